"""Putting right what a drill has done, whether it ended well, failed or was killed. Each action looks first and does what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from akidb_pipelines.backups.depot import Depot
from akidb_pipelines.backups.dump import Dump
from akidb_pipelines.backups.sources import Database
from akidb_pipelines.backups.terraform import StateShelf, parse_state
from akidb_pipelines.drills.journal import Journal, Undo
from akidb_pipelines.drills.report import UndoRecord
from akidb_pipelines.drills.target import Node, NoQuorumError, Target
from akidb_pipelines.errors import IntegrityError, OutsideError, PipelineError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.store.objects import MissingObjectError

_READY_S = 120.0
_SETTLED_S = 30.0
"""So long a cluster may take a dead node for ready."""
_POLL_S = 0.25


def candidates(depot: Depot, database: Database) -> list[Dump]:
    """Backups of this very database, the newest first: another one of the same name, of an earlier cluster, is none."""
    return [d for d in reversed(depot.dumps(database.name)) if d.record.source == database.where]


@dataclass(frozen=True)
class Undoing:
    """What undoing needs.

    Args:
        target: where.
        depot: has the backups.
        states: copies of Terraform's state.
        journal: of the drill: what it did, and where what is brought back is noted.
        patience_s: so long a node may take to be ready.
    """

    target: Target
    depot: Depot
    states: StateShelf
    journal: Journal
    patience_s: float = _READY_S

    def all(self) -> list[UndoRecord]:
        """Do everything that is left to do; one that fails does not keep the others from being done."""
        records = []
        for undo in self.journal.noted().undoes:
            try:
                records.append(UndoRecord(undo.action, undo.node, True, self._one(undo)))
            except PipelineError as error:
                records.append(UndoRecord(undo.action, undo.node, False, str(error)))
            except Exception as error:  # noqa: BLE001 - a bug in one must not keep the others from being done
                records.append(UndoRecord(undo.action, undo.node, False, f"a bug: {error!r}"))
        return records

    def _one(self, undo: Undo) -> str:
        if undo.action == "power_on":
            return self._ready_by(undo.node, self.target.power_on, "powered on")
        if undo.action == "reconnect":
            return self._ready_by(undo.node, self.target.reconnect, "reconnected")
        if undo.action == "state":
            return self._state()
        return self._member(undo.node)

    # --- a node

    def _is_ready(self, name: str) -> bool:
        """Whether the cluster says that it is ready, and it answers itself: for some seconds the cluster takes a dead node for ready.

        A manager is ready some time before it counts for the quorum again: put right is what can be lost next.
        """
        node = self._node(name)
        return node is not None and (node.is_healthy_manager or not node.manager) and self._answers(name)

    def _is_manager(self, name: str) -> bool:
        node = self._node(name)
        return node is not None and node.is_healthy_manager

    def _node(self, name: str) -> Node | None:
        try:
            return next((n for n in self.target.nodes() if n.name == name and n.ready), None)
        except OutsideError:
            return None

    def _answers(self, name: str) -> bool:
        """Whether its service says anything, be it that it has no database; True where there is no service to be asked."""
        import httpx

        try:
            if url := self.target.service_url(name):
                httpx.get(f"{url}/health", timeout=2)
        except (httpx.HTTPError, OutsideError):
            return False
        return True

    def _ready_by(self, name: str, verb: Callable[[str], None], done: str) -> str:
        if self._is_ready(name):
            return "nothing to do: it is ready"
        verb(name)
        self._wait(name)
        return done

    def _wait(self, name: str, *, manager: bool = False) -> None:
        end = time.monotonic() + self.patience_s
        while not self._is_ready(name) or (manager and not self._is_manager(name)):
            if time.monotonic() > end:
                raise OutsideError(
                    f"{name} did not become ready, and as a manager reachable, within {self.patience_s:.0f} s",
                    hint="docker node ls; akidb-pipelines drills recover",
                )
            time.sleep(_POLL_S)

    def _member(self, name: str) -> str:
        with suppress(OutsideError):  # without a quorum nobody can; it is asked again below
            self.target.undrain(name)
        # Until the cluster and the node itself say the same.
        end = time.monotonic() + _SETTLED_S
        while (node := self._node(name)) and not self._answers(name) and time.monotonic() < end:
            time.sleep(_POLL_S)
        if node and node.is_healthy_manager and self._answers(name):
            return self._database(name) or "nothing to do: it is a manager and serves its database"
        if self._is_listed(name) and self._comes_back(name):
            return self._database(name) or "powered on: it is a manager and serves its database"
        self._build_anew(name)
        self._join(name)
        self._wait(name, manager=True)
        return f"joined; {self._database(name) or 'it has its database'}"

    def _is_listed(self, name: str) -> bool:
        """Whether the cluster has it among its managers; a cluster that has lost its quorum is formed anew first."""
        try:
            nodes = self.target.nodes()
        except NoQuorumError:
            noted = self.journal.noted()
            self.target.reform(noted.survivors[0], sorted({u.node for u in noted.undoes}))
            nodes = self.target.nodes()
        return any(n.name == name and n.manager for n in nodes)

    def _build_anew(self, name: str) -> None:
        """Whatever is on its disk goes with it: so nobody does that to a node that the cluster finds well, or that cannot be built."""
        node = self._node(name)
        if node and node.is_healthy_manager:
            raise OutsideError(
                f"{name} is a healthy manager, and its service does not answer: it is not built anew for that",
                hint="docker service ps, docker service logs; then akidb-pipelines drills recover",
            )
        if node is None and (hindrance := self.target.hindrance(name)):
            raise OutsideError(f"{name} cannot be built anew: {hindrance}", hint="docs/runbooks/drill-interrupted.md")
        self.target.evict(name)
        self.target.rebuild(name)

    def _join(self, name: str) -> None:
        """A machine that has just started says no for a while; building it anew for that would begin all over again."""
        end = time.monotonic() + self.patience_s
        while True:
            try:
                return self.target.join(name)
            except OutsideError:
                if time.monotonic() > end:
                    raise
                time.sleep(_POLL_S)

    def _comes_back(self, name: str) -> bool:
        """Give a node that nobody has evicted its power back: that costs less than another one in its place."""
        with suppress(OutsideError):
            self.target.power_on(name)
            end = time.monotonic() + self.patience_s
            while time.monotonic() < end:
                if (node := self._node(name)) and node.is_healthy_manager and self._answers(name):
                    return True
                time.sleep(_POLL_S)
        return False

    def _database(self, name: str) -> str:
        """Bring the database back if the service has none, or made itself an empty one; returns what was done."""
        self.target.undrain(name)
        database = self.target.database(name)
        if database is None:
            return ""
        if self.target.has_database(name) and not self._is_new(name):
            return ""
        fault_at = self.journal.noted().fault_at
        with scratch_folder(self.depot.scratch) as folder:
            for dump in candidates(self.depot, database):
                if fault_at and datetime.fromisoformat(dump.record.snapshot_at) > fault_at:
                    continue  # of what the service made itself
                with suppress(IntegrityError, MissingObjectError):
                    brought = self.depot.sound(dump, folder)
                    self.target.put_database(name, brought.path, dump.record.sha256)
                    self.journal.write("restored", node=name, dump=dump.id)
                    return f"{dump.id} brought back"
        raise OutsideError(
            f"{name}: no backup of {database.where} could be brought back", hint="docs/runbooks/restore-a-database.md"
        )

    def _is_new(self, name: str) -> bool:
        """Whether another machine is in its place, to which nothing was brought yet: a database on it is an empty one."""
        noted = self.journal.noted()
        before, now = noted.machines.get(name), self._node(name)
        return bool(self.target.makes_databases and before and now and now.id != before and name not in noted.restored)

    # --- the state

    def _state(self) -> str:
        path, kept = self.target.terraform_state(), self.states.newest(self.target.environment)
        if path is None or kept is None:
            raise OutsideError("there is no copy of Terraform's state", hint="akidb-pipelines backups run terraform")
        with suppress(OSError, IntegrityError):
            if parse_state(Path(path).read_bytes(), str(path)).sha256 == kept.sha256:
                return "nothing to do: it is there"
        self.states.restore(kept, Path(path), replace=True)
        return f"serial {kept.serial} brought back"
