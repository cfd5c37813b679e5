"""Whether staging runs what it should, and answers: asked through the drill's target, so that both look at the same staging."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter

from akidb_pipelines.drills.target import Node, Service, Target, quorum
from akidb_pipelines.errors import PipelineError

_TIMEOUT_S = 5
_OK = 200


@dataclass(frozen=True)
class Probe:
    """One HTTP request to a node's service."""

    node: str
    url: str
    ok: bool
    told: str
    seconds: float


@dataclass(frozen=True)
class StagingHealth:
    """One look at staging."""

    target: str
    environment: str
    services: tuple[Service, ...]
    nodes: tuple[Node, ...]
    probes: tuple[Probe, ...]
    error: str = ""
    """Why it cannot be asked; the rest is empty then."""

    @property
    def replicas(self) -> tuple[bool, str]:
        """Whether every service runs as often as it should, on nodes that are ready; and that in a sentence."""
        if self.error:
            return False, f"{self.target}: {self.error}"
        short = [f"{s.name} {s.running} of {s.desired}" for s in self.services if s.running < s.desired]
        lost = sorted(n.name for n in self.nodes if not n.ready)
        wrong = [*(f"{s} replicas run" for s in short), *(f"node {n} is not ready" for n in lost)]
        fine = f"{len(self.services)} services run as they should on {len(self.nodes)} nodes; {quorum(self.nodes)}"
        return not wrong, f"{self.target}: {'; '.join(wrong) or fine}"

    @property
    def answers(self) -> tuple[bool, str] | None:
        """Whether the service answers on every node; None where nothing is to be probed."""
        if not self.probes:
            return None
        silent = [f"{p.node}: {p.told}" for p in self.probes if not p.ok]
        slowest = max(p.seconds for p in self.probes)
        fine = f"{len(self.probes)} nodes answer, the slowest after {slowest * 1000:.0f} ms"
        return not silent, f"{self.target}: {'; '.join(silent) or fine}"


def look_at_staging(target: Target) -> StagingHealth:
    """Ask it. That it cannot be asked is what was found."""
    try:
        nodes = target.nodes()
        services = target.services()
        urls = {n.name: target.service_url(n.name) for n in nodes}
    except PipelineError as error:
        return StagingHealth(target.name, target.environment, (), (), (), error.message)
    return StagingHealth(target.name, target.environment, tuple(services), tuple(nodes), tuple(_probes(urls.items())))


def _probes(urls: Iterable[tuple[str, str]]) -> Iterable[Probe]:
    import httpx

    for node, url in sorted(urls):
        if not url:
            continue
        began = perf_counter()
        try:
            answer = httpx.get(f"{url}/health", timeout=_TIMEOUT_S)
            ok, told = answer.status_code == _OK, f"HTTP {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            ok, told = False, str(error) or type(error).__name__
        yield Probe(node, url, ok, told, perf_counter() - began)
