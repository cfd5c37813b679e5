"""The members of a Docker Swarm, through the docker command of its managers over SSH. How staging's own swarm is asked and changed.

A node's host in the inventory may say how docker is called there: `akidb_docker: sudo docker`.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from akidb_pipelines.drills.target import NoQuorumError, Service
from akidb_pipelines.errors import OutsideError
from akidb_pipelines.machines.inventory import Host, Inventory
from akidb_pipelines.machines.ssh import Connection

_PATIENCE_S = 60.0
_MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Member:
    """A member as a manager lists it."""

    id: str
    name: str
    ready: bool
    manager: bool
    reachable: bool
    leader: bool
    drained: bool = False


@dataclass(frozen=True)
class SwarmOverSsh:
    """The swarm.

    Args:
        inventory: has the hosts.
        names: of the nodes, which are hosts of the inventory.
        addresses: where a node is now, if that is not what the inventory says.
    """

    inventory: Inventory
    names: Sequence[str]
    addresses: Mapping[str, str]

    def members(self) -> list[Member]:
        """All members, as the first manager that can say lists them.

        Raises:
            NoQuorumError: none can.
        """
        told = "no node answers"
        for name in self.names:
            try:
                lines = self.docker(name, "node", "ls", "--format", "{{json .}}").splitlines()
                return [_member(json.loads(line)) for line in lines if line]
            except OutsideError as error:
                told = error.message
        raise NoQuorumError(f"swarm: {told}", hint="docs/runbooks/node-lost-in-staging.md")

    def cluster_id(self) -> str:
        """Of the swarm.

        Raises:
            NoQuorumError: no manager can say.
        """
        told = "no node answers"
        for name in self.names:
            try:
                return str(json.loads(self.docker(name, "info", "--format", "{{json .Swarm.Cluster.ID}}")))
            except OutsideError as error:
                told = error.message
        raise NoQuorumError(f"swarm: {told}", hint="docs/runbooks/node-lost-in-staging.md")

    def evict(self, name: str) -> None:
        """Demote a lost member, and remove it; nothing happens if it is not there, or is ready."""
        manager = self._other(name)
        for member in self.members():
            if member.name == name and not member.ready:
                if member.manager and member.reachable is False:
                    self.docker(manager, "node", "demote", member.id)
                self.docker(manager, "node", "rm", "--force", member.id)

    def join(self, name: str) -> None:
        """Make a node a manager of the swarm; nothing happens if it is one."""
        manager = self._other(name)
        if member := self._ready(name):
            if not member.manager:  # somebody demoted it, and could not remove it
                self.docker(manager, "node", "promote", member.id)
            return
        token = self.docker(manager, "swarm", "join-token", "--quiet", "manager").strip()
        address = json.loads(self.docker(manager, "info", "--format", "{{json .Swarm.NodeAddr}}"))
        with suppress(OutsideError):  # of one that was evicted while it was off, and believes that it is still in
            self.docker(name, "swarm", "leave", "--force")
        self.docker(name, "swarm", "join", "--token", token, f"{address}:2377")

    def services(self) -> list[Service]:
        """All services; docker tells replicas as `2/3`, of jobs with more behind it."""
        lines = self.docker(self._other(""), "service", "ls", "--format", "{{json .}}").splitlines()
        found = []
        for told in (json.loads(line) for line in lines if line):
            running, _, desired = str(told["Replicas"]).split()[0].partition("/")
            found.append(Service(str(told["Name"]), int(desired), int(running)))
        return found

    def tasks_on(self, name: str) -> list[str]:
        """Containers of services that run on a node, though the swarm does not want them there."""
        lines = self.docker(
            self._other(name), "node", "ps", name, "--filter", "desired-state=running", "--format", "{{.ID}}"
        ).split()
        here = self.docker(name, "ps", "--format", '{{.Label "com.docker.swarm.task.id"}}').split()
        return [task for task in here if task and not any(task.startswith(wanted) for wanted in lines)]

    @contextmanager
    def drained(self, name: str) -> Iterator[None]:
        """While the block runs, no task of a service runs on a node.

        Raises:
            OutsideError: they do not stop.
        """
        manager = self._other(name)
        member = self._ready(name)
        if member is None:
            raise OutsideError(f"{name} is not ready in its swarm", hint="docker node ls; docs/runbooks/node-lost-in-staging.md")
        self.docker(manager, "node", "update", "--availability", "drain", member.id)
        try:
            end = time.monotonic() + _PATIENCE_S
            while self.docker(name, "ps", "--quiet", "--filter", "label=com.docker.swarm.task.id").strip():
                if time.monotonic() > end:
                    raise OutsideError(f"{name}: its services do not stop", hint="docker ps, on that node")
                time.sleep(1)
            yield
        finally:
            self.docker(manager, "node", "update", "--availability", "active", member.id)

    def undrain(self, name: str) -> None:
        """Let services run on a node again; nothing happens if they may."""
        if (member := self._ready(name)) and member.drained:
            self.docker(self._other(name), "node", "update", "--availability", "active", member.id)

    def _ready(self, name: str) -> Member | None:
        """The member of that name that is ready: a ghost of it is not."""
        return next((m for m in self.members() if m.name == name and m.ready), None)

    def _other(self, name: str) -> str:
        for other in (n for n in self.names if n != name):
            try:
                self.docker(other, "node", "ls", "--quiet")
                return other
            except OutsideError:
                continue
        raise OutsideError(f"swarm: no manager but {name} answers", hint="docs/runbooks/node-lost-in-staging.md")

    def docker(self, name: str, *arguments: str) -> str:
        """Run docker on a node.

        Raises:
            OutsideError: it is not reached, or docker refuses.
        """
        host = found_at(self.inventory.hosts[name], self.addresses.get(name, ""))
        docker = shlex.split(str(self.inventory.variables[name].get("akidb_docker", "docker")))
        tried = f"docker {' '.join(arguments[:2])}"
        # Its end is told apart from a connection that was lost.
        script = '"$@" 2>&1; printf "\\n%d" $?'
        process = Connection(host, self.inventory.hosts).run(["sh", "-c", script, "sh", *docker, *arguments])
        told = bytearray()
        try:
            while len(told) < _MOST_BYTES:
                told += process.read(1, _PATIENCE_S)
        except ConnectionError as error:
            text, _, code = bytes(told).decode(errors="replace").rpartition("\n")
            if not code.isdigit():
                raise process.lost(tried, error) from error
        except OSError as error:
            raise process.lost(tried, error) from error
        finally:
            process.close()
        if code != "0":
            raise OutsideError(f"{name}: {tried}: {text.strip()}", hint=f"ssh {name}; docs/runbooks/node-lost-in-staging.md")
        return text


def found_at(host: Host, address: str) -> Host:
    """A host at the address that a node has now. A name of the inventory stays: whoever gave it moves it."""
    try:
        ipaddress.ip_address(host.address)
    except ValueError:
        return host
    return replace(host, address=address or host.address)


def _member(told: Mapping[str, Any]) -> Member:
    manager = str(told.get("ManagerStatus", ""))
    return Member(
        id=str(told["ID"]),
        name=str(told["Hostname"]),
        ready=told["Status"] == "Ready",
        manager=bool(manager),
        reachable=manager in ("Leader", "Reachable"),
        leader=manager == "Leader",
        drained=told.get("Availability") == "Drain",
    )
