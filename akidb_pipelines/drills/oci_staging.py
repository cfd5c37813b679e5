"""Staging on OCI as a drill's target: instances by OCI Compute, the swarm by docker over SSH, databases over SSH.

Which nodes may be lost, and where things are, stands in one file (AKIDB_DRILL_ALLOW_LIST), beside the inventory. A node is built anew by
Terraform where that file names a folder; else by the SDK, which the report tells as drift: Terraform's state then does not know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from akidb_pipelines.backups.sources import DATABASES, HostDatabase, databases_of
from akidb_pipelines.drills.oci_compute import Compute, Instance
from akidb_pipelines.drills.scenarios import Fault
from akidb_pipelines.drills.swarm_ssh import Member, SwarmOverSsh, found_at
from akidb_pipelines.drills.target import ALLOWED, TAG, Node, Service
from akidb_pipelines.drills.terraform import Terraform
from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.machines.inventory import Inventory, open_inventory
from akidb_pipelines.settings import Settings

_SECTION = {"endpoint", "gateway_url", "poll_seconds", "service_url", "swarm", "swarm_id", "terraform", "wait_seconds"}


@dataclass(frozen=True)
class Staging:
    """What the file says of staging, besides what may be touched."""

    path: Path
    environment: str
    compartment: str
    nodes: tuple[str, ...]
    service_url: str = ""
    """Of the service on a node, `http://{address}:8080`; empty: outage and lost rows are not measured."""
    gateway_url: str = ""
    swarm: bool = True
    """Whether the nodes are managers of a swarm that is reached over SSH."""
    swarm_id: str = ""
    """What `docker info` says there: the swarm that this file is of."""
    terraform: str = ""
    """Folder in which `terraform apply -replace` builds a node anew; empty: the SDK does."""
    endpoint: str = ""
    wait_seconds: float = 1800
    poll_seconds: float = 10


def read_staging(path: Path) -> Staging:
    """Read the file.

    Raises:
        InputError: it is not there, or says something else.
    """
    import yaml

    hint = "deploy/staging.example.yaml is one to copy; docs/dr-plan.md"
    try:
        told: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        more = dict(told.get("oci") or {})
        if unknown := set(more) - _SECTION:
            raise ValueError(f"oci has {sorted(unknown)[0]}, known are {', '.join(sorted(_SECTION))}")
        return Staging(path, str(told["environment"]), str(told["cluster"]), tuple(str(t) for t in told["targets"]), **more)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise InputError(f"AKIDB_DRILL_ALLOW_LIST {path}: {error!r}", hint=hint) from error


@dataclass
class OciStaging:
    """See Target.

    Args:
        staging: what its file says.
        compute: its instances.
        inventory: its hosts.
    """

    staging: Staging
    compute: Compute
    inventory: Inventory
    _findings: list[str] = field(default_factory=list)

    name = "oci"
    faults = frozenset({Fault.POWER_OFF})
    makes_databases = True
    poll_s = 5.0

    @property
    def environment(self) -> str:
        """See Target."""
        return self.staging.environment

    def close(self) -> None:
        """See Target: nothing was made for this drill."""

    # --- asking

    def cluster_id(self) -> str:
        """See Target: of the compartment; with another swarm in it than the file says, it is another one."""
        if not self.staging.swarm:
            return self.staging.compartment
        found = self._swarm().cluster_id()
        return self.staging.compartment if found == self.staging.swarm_id else f"{self.staging.compartment} with swarm {found}"

    def nodes(self) -> list[Node]:
        """See Target: every manager of the swarm is one, a ghost too, because it counts for the quorum."""
        instances = [i for i in self.compute.instances() if i.name in self.staging.nodes]
        names = {i.name for i in instances}
        if not self.staging.swarm:
            return [_node(i, manager=True, reachable=i.state == "RUNNING") for i in instances]
        members = self._swarm(instances).members()
        known = {m.name: m for m in sorted(members, key=lambda m: m.ready)}  # of one and its ghost, the one that lives
        found = []
        for i in instances:
            m = known.get(i.name)
            node = _node(i, manager=m is not None and m.manager, reachable=m is not None and m.reachable)
            found.append(replace(node, ready=node.ready and m is not None and m.ready, leader=m is not None and m.leader))
        return found + [_unknown(m) for m in members if m.manager and (m.name not in names or m is not known[m.name])]

    def _instance(self, name: str) -> Instance:
        """The one instance of that name; while it is being replaced, the new one. One without the tag is none of ours."""
        ours = [i for i in self.compute.instances() if i.name == name and i.tags.get(TAG) == ALLOWED]
        found = sorted(ours, key=lambda i: i.state != "RUNNING")
        if len([i for i in found if i.state == "RUNNING"]) > 1:
            raise OutsideError(
                f"OCI has several instances {name} that run: {', '.join(i.id for i in found)}", hint="terminate all but one"
            )
        if found:
            return found[0]
        raise OutsideError(f"OCI has no instance {name} in {self.staging.compartment}", hint="look at it in OCI's console")

    def _swarm(self, instances: Sequence[Instance] | None = None) -> SwarmOverSsh:
        known = self.compute.instances() if instances is None else instances
        running = {i.name: i.address for i in known if i.state == "RUNNING" and i.address}
        return SwarmOverSsh(self.inventory, [n for n in self.staging.nodes if n in self.inventory.hosts], running)

    def allow_list(self) -> Path:
        """See Target."""
        return self.staging.path

    def service_url(self, node: str) -> str:
        """See Target."""
        return self._url(self.staging.service_url, node)

    def _url(self, template: str, node: str) -> str:
        if not template or node not in self.staging.nodes:
            return ""
        named = [i for i in self.compute.instances() if i.name == node]
        # If it may not be drilled, to ask it something still does no harm.
        address = named[0].address if len(named) == 1 else self._instance(node).address
        return template.replace("{address}", address).replace("{node}", node)

    def gateways(self) -> list[str] | None:
        """See Target."""
        if not self.staging.gateway_url:
            return None
        import httpx

        found = []
        for instance in self.compute.instances():
            if instance.name in self.staging.nodes and instance.state == "RUNNING":
                url = self.staging.gateway_url.replace("{address}", instance.address).replace("{node}", instance.name)
                try:
                    if httpx.get(url, timeout=3).status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                        found.append(instance.name)
                except httpx.HTTPError:
                    continue
        return found

    def services(self) -> list[Service]:
        """See Target."""
        return self._swarm().services() if self.staging.swarm else []

    def stale_tasks(self, node: str) -> list[str]:
        """See Target."""
        return self._swarm().tasks_on(node) if self.staging.swarm else []

    def database(self, node: str) -> HostDatabase | None:
        """See Target."""
        if len(self.inventory.variables.get(node, {}).get(DATABASES, {})) > 1:
            raise InputError(f"{node} has several databases, and a drill brings back one", hint="rehearse another node")
        for database in databases_of(self.inventory):
            if isinstance(database, HostDatabase) and database.connection.host.name == node:
                host = found_at(database.connection.host, self._instance(node).address)
                return replace(database, connection=replace(database.connection, host=host))
        return None

    def has_database(self, node: str) -> bool:
        """See Target."""
        database = self.database(node)
        return database is not None and database.exists()

    def hindrance(self, node: str) -> str:
        """See Target."""
        return self._terraform.hindrance(node) if self.staging.terraform else ""

    @property
    def _terraform(self) -> Terraform:
        return Terraform(Path(self.staging.terraform), self.staging.path.name)

    def terraform_state(self) -> Path | None:
        """See Target: staging's own state is not lost on purpose."""
        return None

    def versions(self) -> Mapping[str, str]:
        """See Target."""
        import oci

        return {"oci sdk": str(oci.__version__), "rebuilt by": "terraform" if self.staging.terraform else "oci sdk"}

    def findings(self) -> list[str]:
        """See Target."""
        told, self._findings = self._findings, []
        timing = self.compute.timing
        notes, timing.notes = timing.notes, []
        if notes and timing.capacity_s:
            notes.append(f"{timing.capacity_s:.1f} s went to asking for capacity, which says nothing of our recovery")
        return [*told, *notes]

    # --- faults

    def power_off(self, node: str) -> None:
        """See Target."""
        self.compute.stop(self._instance(node))

    def power_on(self, node: str) -> None:
        """See Target."""
        self.compute.start(self._instance(node))

    def isolate(self, node: str) -> None:
        """See Target: not on OCI."""
        raise OutsideError(f"{node}: a node of OCI is not cut off by us", hint="--scenario node_power_off")

    def reconnect(self, node: str) -> None:
        """See Target: not on OCI."""
        raise OutsideError(f"{node}: a node of OCI is not cut off by us", hint="--scenario node_power_off")

    # --- recovery

    def reform(self, survivor: str, lost: Sequence[str]) -> None:
        """See Target: one node is lost at most, so the quorum holds."""

    def evict(self, node: str) -> None:
        """See Target."""
        if self.staging.swarm:
            self._swarm().evict(node)

    def rebuild(self, node: str) -> None:
        """See Target: one that runs is none that was lost, and stays."""
        known = [i for i in self.compute.instances() if i.name == node and i.tags.get(TAG) == ALLOWED]
        if self.staging.terraform:
            if not any(i.state == "RUNNING" for i in known):
                self._terraform.replace(node)
            return
        stopped = [i for i in known if i.state == "STOPPED"]
        for old in stopped:
            self.compute.replace(old)
            self._findings.append(f"drift: {node} was launched by the SDK; Terraform's state does not know it: terraform import")

    def join(self, node: str) -> None:
        """See Target."""
        if self.staging.swarm:
            self._swarm().join(node)

    def undrain(self, node: str) -> None:
        """See Target."""
        if self.staging.swarm:
            self._swarm().undrain(node)

    def put_database(self, node: str, database: Path, sha256: str) -> None:
        """See Target: what runs on the node is stopped meanwhile, or it would go on writing into the file that is replaced."""
        target = self.database(node)
        if target is None:
            raise InputError(
                f"{node} has no {DATABASES} in the inventory", hint="add it: {metadata: /var/lib/akidb/data/metadata.db}"
            )
        with self._swarm().drained(node) if self.staging.swarm else nullcontext():
            target.put(database, sha256)


def _unknown(member: Member) -> Node:
    """A manager that no instance of ours is."""
    return Node(name=member.name, id=member.id, address=member.id, ready=member.ready, manager=True, reachable=member.reachable)


def _node(instance: Instance, *, manager: bool, reachable: bool) -> Node:
    return Node(
        name=instance.name,
        id=instance.id,
        address=instance.address or instance.id,
        ready=instance.state == "RUNNING",
        manager=manager,
        reachable=reachable,
        tags=instance.tags,
    )


def open_staging(settings: Settings) -> OciStaging | None:
    """Staging as settings describe it; None when they do not.

    Raises:
        InputError: the file, the inventory or the credentials are unusable.
    """
    if settings.drill_allow_list is None:
        return None
    staging = read_staging(settings.drill_allow_list)
    compute = Compute(settings, staging.compartment, staging.endpoint, staging.wait_seconds, staging.poll_seconds)
    return OciStaging(staging, compute, open_inventory(settings))
