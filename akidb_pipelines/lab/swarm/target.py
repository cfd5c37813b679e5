"""The Swarm lab as a drill's target. What is done to it is real: containers lose their power, a swarm loses a manager, a volume its data."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from akidb_pipelines.backups.sources import Database
from akidb_pipelines.drills.scenarios import Fault
from akidb_pipelines.drills.target import Node, NoQuorumError, RefusedCopyError, Service
from akidb_pipelines.errors import IntegrityError, OutsideError, PipelineError
from akidb_pipelines.lab.swarm.lab import NODES, SwarmLab, label
from akidb_pipelines.lab.swarm.node import telling, waited

_ASK_S = 2.0
_SERVED_S = 60.0
_EVICT_S = 15.0


@dataclass(frozen=True)
class LabDatabase:
    """The database of a node, dumped by the service that writes to it."""

    name: str
    where: str
    url: str

    def dump(self, target: Path) -> datetime:
        """See Database."""
        import httpx

        try:
            with httpx.stream("GET", f"{self.url}/dump", timeout=60) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise OutsideError(f"{self.where}: {answer.text}", hint="akidb-pipelines lab status swarm")
                digest = hashlib.sha256()
                with target.open("wb") as out:
                    for block in answer.iter_bytes():
                        digest.update(block)
                        out.write(block)
                moment = datetime.fromisoformat(answer.headers["x-snapshot-at"])
                expected = answer.headers["x-sha256"]
        except httpx.HTTPError as error:
            target.unlink(missing_ok=True)
            raise OutsideError(f"{self.where}: {error}", hint="akidb-pipelines lab status swarm") from error
        if digest.hexdigest() != expected:
            target.unlink()
            raise IntegrityError(f"{self.where}: other bytes arrived than were sent", hint="try again")
        return moment.astimezone(UTC)


@dataclass(frozen=True)
class LabTarget:
    """The lab.

    Args:
        lab: it is up.
        temporary: whether it was made for this one drill, and goes with it.
    """

    lab: SwarmLab
    temporary: bool = False

    name = "lab"
    environment = "lab"
    faults = frozenset(Fault)
    makes_databases = False
    poll_s = 0.1

    def close(self) -> None:
        """See Target."""
        if self.temporary:
            self.lab.down()

    # --- asking

    def cluster_id(self) -> str:
        """See Target."""
        return self.lab.cluster_id()

    def nodes(self) -> list[Node]:
        """See Target."""
        found, refused = None, "no node answers"
        for name in NODES:
            try:
                with self.lab.node(name) as node, node.client(_ASK_S) as client:
                    listed = [_node(member.attrs) for member in client.nodes.list()]
            except OutsideError as error:
                refused = error.message
                continue
            # One that is cut off still answers for itself; who sees most of the others ready speaks for the swarm.
            if found is None or sum(n.ready for n in listed) > sum(n.ready for n in found):
                found = listed
            if sum(n.is_healthy_manager for n in found) * 2 > len({n.address for n in found if n.manager}):
                return found
        if found is None:
            raise NoQuorumError(f"Swarm lab: {refused}", hint="docs/runbooks/node-lost-in-staging.md")
        return found

    def allow_list(self) -> Path:
        """See Target."""
        return self.lab.folder / "allow.yaml"

    def service_url(self, node: str) -> str:
        """See Target."""
        return self.lab.service_url(node)

    def gateways(self) -> list[str] | None:
        """See Target."""
        import httpx

        found = []
        for name in NODES:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.lab.gateway_url(name)}/health", timeout=1).status_code == 200:
                    found.append(name)
        return found

    def services(self) -> list[Service]:
        """See Target."""
        with self._manager() as client:
            found = [(s.name, s.attrs.get("ServiceStatus", {})) for s in client.services.list(status=True)]
        return [Service(name, int(told.get("DesiredTasks", 0)), int(told.get("RunningTasks", 0))) for name, told in found]

    def stale_tasks(self, node: str) -> list[str]:
        """See Target."""
        with self._manager() as client:
            wanted = {
                t["Status"].get("ContainerStatus", {}).get("ContainerID", "")
                for service in client.services.list()
                for t in service.tasks({"desired-state": "running"})
            }
        with self.lab.node(node) as own, own.client(_ASK_S) as client:
            return [c.name for c in client.containers.list(ignore_removed=True) if c.id not in wanted]

    def database(self, node: str) -> Database:
        """See Target."""
        return LabDatabase(f"{node}-metadata", f"swarm://{self.lab.swarm_id()}/{node}", self.lab.service_url(node))

    def has_database(self, node: str) -> bool:
        """See Target."""
        import httpx

        try:
            answer = httpx.get(f"{self.lab.service_url(node)}/health", timeout=_ASK_S)
        except httpx.HTTPError as error:
            raise OutsideError(f"{node}: its service does not answer: {error}", hint="akidb-pipelines lab status swarm") from error
        return answer.status_code == 200

    def hindrance(self, node: str) -> str:
        """See Target: a lab that is up has all it needs."""
        return ""

    def terraform_state(self) -> Path:
        """See Target."""
        return self.lab.folder / "terraform.tfstate"

    def versions(self) -> Mapping[str, str]:
        """See Target."""
        told = {"kernel": platform.release(), "machine": platform.machine()}
        with suppress(PipelineError), self._manager() as client:
            told["docker"] = str(client.version()["Version"])
        return told

    def findings(self) -> list[str]:
        """See Target: it has none."""
        return []

    # --- faults

    def power_off(self, node: str) -> None:
        """See Target."""
        with self.lab.node(node) as own:
            own.power_off()

    def power_on(self, node: str) -> None:
        """See Target."""
        with self.lab.node(node) as own:
            if not own.is_running():
                own.boot()

    def isolate(self, node: str) -> None:
        """See Target."""
        with self.lab.node(node) as own:
            own.isolate()

    def reconnect(self, node: str) -> None:
        """See Target."""
        with self.lab.node(node) as own:
            own.reconnect()

    # --- recovery

    def reform(self, survivor: str, lost: Sequence[str]) -> None:
        """See Target: those who have lost the majority answer no question; one that is slow is asked again."""
        if len(lost) * 2 < len(NODES) or waited(lambda: self._can_say(survivor), _ASK_S):
            return
        with self.lab.node(survivor) as node, node.client(60) as client:
            address = node.address
            # Not client.swarm.init: that asks the swarm for its state first, which no one can give.
            client.api.init_swarm(advertise_addr=address, listen_addr=f"{address}:2377", force_new_cluster=True)
        waited(lambda: [n for n in self.nodes() if n.leader], _EVICT_S)

    def _can_say(self, node: str) -> bool:
        with self.lab.node(node) as own, own.client(_ASK_S) as client:
            client.nodes.list()
            return True

    def evict(self, node: str) -> None:
        """See Target."""

        def gone() -> bool:
            with self._manager(but=node) as client:
                for member in client.nodes.list():
                    if member.attrs["Description"]["Hostname"] == node and member.attrs["Status"]["State"] != "ready":
                        # A manager that is not demoted first cannot be removed; one that a swarm formed anew does not know as a
                        # manager cannot be demoted.
                        if member.attrs.get("ManagerStatus"):
                            member.update({**member.attrs["Spec"], "Role": "worker"})
                        client.api.remove_node(member.id, force=True)
                return True

        if not waited(gone, _EVICT_S):
            raise OutsideError(f"Swarm lab: {node} is not evicted", hint="docker node demote NODE; docker node rm --force NODE")

    def rebuild(self, node: str) -> None:
        """See Target."""
        with self.lab.node(node) as own:
            own.wipe()
            own.boot()
            self.lab.provide_image(own)

    def join(self, node: str) -> None:
        """See Target."""
        with self._manager(but=node) as client, self.lab.node(node) as own:
            if not _ready(client, node):
                with self.lab.node(self._leader_name(client)) as leader:
                    self.lab.join(own, leader)
            for member in waited(lambda: _ready(client, node), _EVICT_S) or ():
                label(member)

    def undrain(self, node: str) -> None:
        """See Target: here nothing is drained."""

    def put_database(self, node: str, database: Path, sha256: str) -> None:
        """See Target."""
        import httpx

        if waited(lambda: [self.has_database(node)], _SERVED_S) == [True]:
            raise OutsideError(f"{node} serves a database already, and keeps it", hint="akidb-pipelines lab status swarm")
        with self.lab.node(node) as own:
            self.lab.put_database(own, database, sha256)
        end = time.monotonic() + _SERVED_S
        told = "it does not answer"
        while time.monotonic() < end:
            try:
                answer = httpx.get(f"{self.lab.service_url(node)}/health", timeout=2)
                told = answer.text
                if answer.status_code == 200:
                    return
                if "refused" in told:
                    raise RefusedCopyError(f"{node} {answer.json()['error']}", hint="use an earlier backup")
            except httpx.HTTPError as error:
                told = str(error)
            time.sleep(0.1)
        raise OutsideError(
            f"{node}: its service does not serve what was brought back: {told}", hint="docker service ps akidb-metadata"
        )

    # --- managers

    @contextmanager
    def _manager(self, but: str = "") -> Iterator[Any]:
        """The engine of a node that can speak for the swarm.

        Raises:
            OutsideError: none can.
        """
        told = "no node answers"
        for name in (n for n in NODES if n != but):
            with ExitStack() as open_:
                try:
                    client = open_.enter_context(open_.enter_context(self.lab.node(name)).client(_ASK_S))
                    with telling(f"asking {name} for the swarm"):
                        client.nodes.list()
                except OutsideError as error:
                    told = error.message
                    continue
                yield client
                return
        raise OutsideError(f"Swarm lab: no manager answers: {told}", hint="docs/runbooks/node-lost-in-staging.md")

    def _leader_name(self, client: Any) -> str:
        return next(
            str(m.attrs["Description"]["Hostname"]) for m in client.nodes.list() if m.attrs.get("ManagerStatus", {}).get("Leader")
        )


def _ready(client: Any, node: str) -> list[Any]:
    """The member of that name which is ready, if there is one."""
    return [
        m for m in client.nodes.list() if m.attrs["Description"].get("Hostname") == node and m.attrs["Status"]["State"] == "ready"
    ]


def _node(attrs: Mapping[str, Any]) -> Node:
    manager: Mapping[str, Any] | None = attrs.get("ManagerStatus")
    return Node(
        name=str(attrs["Description"].get("Hostname", "")),
        id=str(attrs["ID"]),
        address=str(attrs["Status"].get("Addr", "")),
        ready=attrs["Status"]["State"] == "ready",
        manager=manager is not None,
        reachable=(manager or {}).get("Reachability") == "reachable",
        leader=bool((manager or {}).get("Leader")),
        tags=dict(attrs["Spec"].get("Labels") or {}),
    )
