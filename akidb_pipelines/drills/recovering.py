"""The fault, and what brings the cluster and its data back."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from akidb_pipelines.backups.dump import Dump
from akidb_pipelines.drills.drill import Drill
from akidb_pipelines.drills.report import BackupUsed
from akidb_pipelines.drills.scenarios import Fault
from akidb_pipelines.drills.target import NoQuorumError
from akidb_pipelines.errors import IntegrityError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.store.objects import MissingObjectError

# --- the fault


def inject(drill: Drill) -> str:
    """Do it, having noted what undoes it."""
    facts, target = drill.facts, drill.target
    if drill.scenario.fault is Fault.LOSE_STATE:
        drill.undo_later("state", "")
        path = target.terraform_state()
        assert path is not None
        facts.fault_at = datetime.now(UTC)
        path.unlink()
        return f"{path.name} removed"
    isolate = drill.scenario.fault is Fault.ISOLATE
    for name in drill.victims:
        drill.undo_later("reconnect" if isolate else "power_on", name)
    facts.fault_at = datetime.now(UTC)
    for name in drill.victims:
        (target.isolate if isolate else target.power_off)(name)
    return f"{', '.join(drill.victims)} {'cut off' if isolate else 'powered off'}"


def detect(drill: Drill) -> str:
    """Until the cluster (of a state: whoever reads it) knows."""
    if drill.scenario.fault is Fault.LOSE_STATE:
        path = drill.target.terraform_state()
        drill.until("the state to be missed", lambda: path is not None and not path.exists())
        return "there is no state"
    lost = set(drill.victims)

    def seen() -> str:
        try:
            nodes = drill.target.nodes()
        except NoQuorumError as error:
            if drill.scenario.victims == 1:
                raise  # while the others elect a leader
            return f"the managers have no quorum: {error.message}"
        down = {n.name for n in nodes if not n.ready}
        return f"{', '.join(sorted(lost))} down" if lost <= down else ""

    found = drill.until(f"{', '.join(drill.victims)} to be seen as lost", seen)
    if drill.writer:
        drill.writer.stop()
    return found


# --- recovery


def reschedule(drill: Drill) -> str:
    """Until what ran on the lost nodes runs elsewhere, as seen over HTTP: a task's state proves nothing."""
    facts = drill.facts
    if drill.target.gateways() is None:
        return "no gateway to be probed"
    if drill.scenario.victims > 1:
        return "nobody can reschedule without a quorum"

    def elsewhere() -> list[str]:
        found = [n for n in drill.target.gateways() or () if n not in drill.victims]
        return found if len(found) >= facts.gateways else []

    return f"gateways answer on {', '.join(drill.until(f'{facts.gateways} gateways elsewhere', elsewhere))}"


def evict(drill: Drill) -> str:
    """Take the lost ones out; where the quorum is lost, form the cluster anew first."""
    for name in drill.victims:
        drill.undo_later("member", name)
    drill.target.reform(drill.facts.survivors[0], drill.victims)
    for name in drill.victims:
        drill.until(f"{name} to be evicted", partial(_evicted, drill, name))
    return f"{', '.join(drill.victims)} evicted"


def _evicted(drill: Drill, name: str) -> bool:
    drill.target.evict(name)
    return True


def rebuild(drill: Drill) -> str:
    """New machines in their place."""
    for name in drill.victims:
        drill.tell(f"building {name} anew")
        drill.target.rebuild(name)
        for text in drill.target.findings():
            drill.find(text)
        drill.check()
    return f"{', '.join(drill.victims)} built anew"


def join(drill: Drill) -> str:
    """Until they are healthy managers again."""
    for name in drill.victims:
        if drill.scenario.fault is Fault.ISOLATE:
            drill.target.reconnect(name)
        else:
            drill.until(f"{name} to join", partial(_joined, drill, name))  # a machine that has just started says no for a while
        drill.until(f"{name} to be a healthy manager", partial(_is_healthy, drill, name))
    return f"{', '.join(drill.victims)} joined"


def _joined(drill: Drill, name: str) -> bool:
    drill.target.join(name)
    return True


def _is_healthy(drill: Drill, name: str) -> bool:
    return any(n.name == name and n.is_healthy_manager for n in drill.target.nodes())


def restore(drill: Drill) -> str:
    """Bring back the newest verified backup that is sound, and is served."""
    if drill.scenario.fault is Fault.LOSE_STATE:
        path, kept = drill.target.terraform_state(), drill.states.newest(drill.target.environment)
        assert path is not None and kept is not None
        drill.states.restore(kept, path)
        return f"serial {kept.serial} brought back"
    return "; ".join(_restore_one(drill, name) for name in drill.victims)


def _restore_one(drill: Drill, name: str) -> str:
    refused: list[str] = []
    for number, dump in enumerate(drill.facts.backups[name]):
        with scratch_folder(drill.depot.scratch) as folder:
            try:
                drill.depot.wait_for(dump, drill.left_s(), check=drill.check)
                brought = drill.depot.sound(dump, folder)
                if drill.scenario.corrupts and number == 0:
                    _flip_bits(brought.path)
                drill.tell(f"bringing {dump.id} to {name}")
                drill.target.put_database(name, brought.path, dump.record.sha256)
            except (IntegrityError, MissingObjectError) as error:
                refused.append(f"{dump.id}: {error.message}")
                drill.find(f"{dump.id} was refused: {error.message}", f"find out what became of {dump.id} on its way to {name}")
                continue
        drill.journal.write("restored", node=name, dump=dump.id)
        record = dump.record
        drill.facts.used[name] = BackupUsed(dump.id, record.sha256, record.snapshot_at, _tier(drill, dump), tuple(refused))
        return f"{dump.id} on {name}" + (f", {len(refused)} refused before" if refused else "")
    raise IntegrityError(
        f"{name}: no backup of it is sound: {'; '.join(refused) or 'there is none'}", hint="docs/runbooks/restore-a-database.md"
    )


def _tier(drill: Drill, dump: Dump) -> str:
    info = drill.depot.cold.stat(dump.key.data)
    return f"{drill.depot.cold.url.partition('://')[0]}, {info.availability.value if info else 'gone'}"


def _flip_bits(path: Path) -> None:
    """What a bad disk or memory does: some bits, in the middle of the file."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        for place in (size // 2, size // 2 + 4096):
            file.seek(min(place, size - 1))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0x10]))
