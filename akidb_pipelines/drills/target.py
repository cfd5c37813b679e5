"""Where a drill takes place, as far as drills need it: the port that the lab and OCI fulfil. Who composes a program injects one.

Every verb that changes something may be called again: it does what is still missing. Each raises OutsideError when what it asks does not
answer or refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from akidb_pipelines.backups.sources import Database
from akidb_pipelines.drills.scenarios import Fault
from akidb_pipelines.errors import IntegrityError, OutsideError

TAG, ALLOWED = "akidb-drill", "allowed"
"""The live tag of what a drill may touch."""


class NoQuorumError(OutsideError):
    """The managers cannot decide anything: too few of them are left."""


class RefusedCopyError(IntegrityError):
    """The node found that what was brought to it has another digest, and does not serve it."""


@dataclass(frozen=True)
class Node:
    """A node as its cluster sees it now."""

    name: str
    id: str
    """The cluster's own, or an OCID."""
    address: str
    ready: bool
    manager: bool = False
    reachable: bool = False
    """As a manager."""
    leader: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_healthy_manager(self) -> bool:
        """Whether it counts for the quorum: `reachable` alone does not, a ghost is that too."""
        return self.manager and self.ready and self.reachable


@dataclass(frozen=True)
class Service:
    """A service as its cluster sees it now."""

    name: str
    desired: int
    """Replicas that there should be."""
    running: int


def quorum(nodes: Sequence[Node]) -> str:
    """`3 of 3 managers healthy`; distinct addresses count, so that a ghost and its successor are one."""
    managers = {n.address for n in nodes if n.manager}
    healthy = {n.address for n in nodes if n.is_healthy_manager}
    return f"{len(healthy)} of {len(managers)} managers healthy"


class Target(Protocol):
    """See the module."""

    name: str
    """`lab` or `oci`."""
    faults: frozenset[Fault]
    """What can be done to its nodes."""
    makes_databases: bool
    """Whether its service makes an empty database where there is none: that there is one proves nothing then."""
    poll_s: float
    """Between two looks at it."""

    @property
    def environment(self) -> str:
        """As the confirmation names it."""
        ...

    def close(self) -> None:
        """Let go of what was opened, and take down what was made for this one drill."""
        ...

    # --- asking

    def cluster_id(self) -> str:
        """Of the swarm, or the compartment's OCID."""
        ...

    def nodes(self) -> list[Node]:
        """Every node, the lost ones too.

        Raises:
            NoQuorumError: the managers cannot say.
        """
        ...

    def allow_list(self) -> Path:
        """The file that names what may be touched."""
        ...

    def service_url(self, node: str) -> str:
        """Of the service on a node, as seen from outside; empty when there is none to be probed."""
        ...

    def gateways(self) -> list[str] | None:
        """Names of the nodes whose gateway answers over HTTP; None where there is none."""
        ...

    def services(self) -> list[Service]:
        """Every service, with how often it should run and does; none where nothing of that kind is known."""
        ...

    def stale_tasks(self, node: str) -> list[str]:
        """What runs on a node though the cluster does not want it there."""
        ...

    def database(self, node: str) -> Database | None:
        """The node's database; None where it has none that can be dumped."""
        ...

    def has_database(self, node: str) -> bool:
        """Whether the node has a database: one that cannot be asked is no answer.

        Raises:
            OutsideError: it cannot be asked.
        """
        ...

    def hindrance(self, node: str) -> str:
        """Why a node could not be built anew from here, or not without harm to others; empty when it could.

        Raises:
            OutsideError: nobody can say.
        """
        ...

    def terraform_state(self) -> Path | None:
        """The state file; None where there is none here."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Of what the target is made of, for the report."""
        ...

    def findings(self) -> list[str]:
        """What the target itself found since it was last asked, such as drift."""
        ...

    # --- faults, and their undoing

    def power_off(self, node: str) -> None:
        """Cut its power."""
        ...

    def power_on(self, node: str) -> None:
        """Give it back; nothing happens if it runs, or is gone."""
        ...

    def isolate(self, node: str) -> None:
        """Cut it off the network."""
        ...

    def reconnect(self, node: str) -> None:
        """Put it back on the network."""
        ...

    # --- recovery

    def reform(self, survivor: str, lost: Sequence[str]) -> None:
        """Make the survivor a cluster of its own, with what was decided before, where the quorum is lost; else nothing."""
        ...

    def evict(self, node: str) -> None:
        """Take a lost node out of the cluster, so that another one may take its place."""
        ...

    def rebuild(self, node: str) -> None:
        """A new machine in its place, empty."""
        ...

    def join(self, node: str) -> None:
        """Make it a manager of the cluster; `nodes` says when it is one."""
        ...

    def undrain(self, node: str) -> None:
        """Let services run on it again, if a database that was being brought back still keeps them off."""
        ...

    def put_database(self, node: str, database: Path, sha256: str) -> None:
        """Bring a database there and have it served.

        Raises:
            RefusedCopyError: other bytes arrived; nothing is served.
        """
        ...
