"""Access and metrics: what the front costs a query, what a decision costs, how long a scrape takes with a year of history."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import dagster as dg
import httpx

from akidb_pipelines.definitions import build_defs
from akidb_pipelines.operations.access.identity import Principal
from akidb_pipelines.operations.access.judge import Judge
from akidb_pipelines.operations.access.rights import STARTS
from akidb_pipelines.operations.facts import collect, watched_of
from akidb_pipelines.operations.metrics.families import families
from akidb_pipelines.operations.pruning import prune
from akidb_pipelines.settings import Settings
from bench.history import write_year
from bench.measure import Line
from tests.services.dagster_machine import DagsterMachine
from tests.services.front import Front
from tests.services.identity import Issuer
from tests.services.server import ROOT

_QUERY = "{ assetNodes { assetKey { path } hasMaterializePermission } permissions { permission value } version }"


def lines() -> Iterator[Line]:
    """All of them."""
    yield from _decisions()
    with tempfile.TemporaryDirectory(prefix="akidb-bench-operations-") as folder:
        yield from _front(Path(folder) / "front")
        yield from _year(Path(folder) / "year")


def _decisions() -> Iterator[Line]:
    spent: list[float] = []
    judge = Judge(measured=spent.append, clock=time.monotonic)
    for number in range(400):
        person = Principal(f"u{number}", "", ("qa",), 0)
        for right in STARTS.values():
            judge.decide(person, right)
    ms = median(spent) * 1000
    yield Line("a decision by Cedar", f"{ms:.3f} ms", "<= 0.2 ms", ms <= 0.2, f"{len(spent)} evaluations")


def _front(folder: Path) -> Iterator[Line]:
    """The same query through the front and through the stock webserver, on the same code and machine."""
    with Issuer() as issuer, Front(folder, issuer) as front:
        token = issuer.token("qa")
        ours = _median_ms(f"{front.url}/graphql", {"Authorization": f"Bearer {token}"})
    code = ROOT / "akidb_pipelines" / "definitions.py"
    with DagsterMachine(folder / "stock", (ROOT / "dagster.yaml").read_text(), code=code, roles=("code", "webserver")) as stock:
        theirs = _median_ms(f"http://127.0.0.1:{stock.port}/graphql", {})
    more = ours - theirs
    yield Line(
        "a query through the front, over stock", f"+{more:.1f} ms", "<= 5 ms", more <= 5, f"{ours:.1f} ms against {theirs:.1f} ms"
    )


def _median_ms(url: str, headers: dict[str, str]) -> float:
    taken = []
    with httpx.Client(headers=headers, timeout=60) as client:
        for number in range(80):
            began = time.perf_counter()
            client.post(url, json={"query": _QUERY}).raise_for_status()
            if number >= 20:
                taken.append((time.perf_counter() - began) * 1000)
    return median(taken)


def _year(folder: Path) -> Iterator[Line]:
    folder.mkdir()
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    defs = build_defs(Settings(home=folder))
    watched = watched_of(defs.get_repository_def())
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        written = write_year(instance, watched)
        taken = []
        for _ in range(7):
            began = time.perf_counter()
            number = sum(len(f.samples) for f in families(collect(instance, watched)))
            taken.append((time.perf_counter() - began) * 1000)
        ms = median(taken)
        detail = f"{number} samples, {written.runs} runs, {written.events} events, {written.bytes / 1e6:.0f} MB"
        yield Line("a scrape with a year of history", f"{ms:.0f} ms", "<= 500 ms", ms <= 500, detail)
        began = time.perf_counter()
        done = prune(instance, watched, 1, dry_run=True)
        said = time.perf_counter() - began
        yield Line(
            "instance prune --dry-run over that year",
            f"{said:.1f} s",
            "",
            None,
            f"{len(done.deleted)} of {written.runs} runs would go",
        )
