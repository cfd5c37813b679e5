"""The last phases: what is served is looked at from outside and held to what was backed up, and everything is as it was."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from akidb_pipelines.backups.checks import check_foreign_keys, check_integrity
from akidb_pipelines.backups.sources import Database
from akidb_pipelines.backups.sqlite import CANARY_TABLE, examine
from akidb_pipelines.backups.terraform import parse_state
from akidb_pipelines.drills.canary import Acknowledged
from akidb_pipelines.drills.drill import Drill
from akidb_pipelines.drills.preparing import ENOUGH
from akidb_pipelines.drills.report import Criterion, StateUsed
from akidb_pipelines.drills.scenarios import Fault
from akidb_pipelines.drills.target import quorum
from akidb_pipelines.files import digest_file, scratch_folder

# --- proof


def verify(drill: Drill) -> str:
    """From outside: the service answers, and what it serves is what was backed up."""
    if drill.scenario.fault is Fault.LOSE_STATE:
        return _verify_state(drill)
    facts = drill.facts
    present: dict[str, set[int]] = {}
    for name in drill.victims:
        if drill.prober:
            drill.until(f"{name} to answer from outside", partial(drill.answers_outside, name))
        present[name] = _verify_database(drill, name)
    if drill.scenario.fault is Fault.ISOLATE:
        for name in drill.victims:
            drill.until(f"stale tasks on {name} to stop", partial(_no_stale_tasks, drill, name))
        facts.criteria.append(Criterion("stale_tasks_gone", True, "nothing runs that the cluster does not want"))
    facts.verified_at = datetime.now(UTC)
    assert facts.fault_at is not None
    facts.rta_s = (facts.verified_at - facts.fault_at).total_seconds()
    _judge_objectives(drill)
    _judge_rows(drill, present)
    return f"verified {facts.rta_s:.1f} s after the fault"


def _verify_database(drill: Drill, name: str) -> set[int]:
    """Dump what is served and look at it; returns the canary sequences in it."""
    database = drill.target.database(name)
    if database is None:
        return set()
    with scratch_folder(drill.depot.scratch) as folder:
        copy = folder / "served.db"
        drill.until(f"the database of {name} to be served", lambda: _dumped(database, copy))
        found = examine(copy)
        broken = [b.message for r in (check_integrity(found), check_foreign_keys(found)) for b in r.broken]
        used = drill.facts.used.get(name)
        rows: Mapping[str, int] = found.content.rows if found.content else {}
        if used:
            expected = next(d for d in drill.facts.backups[name] if d.id == used.id).record.rows
            broken += [f"{t} has {rows.get(t)} rows, the backup {n}" for t, n in expected.items() if rows.get(t) != n]
        drill.facts.criteria.append(
            Criterion(
                "backup_verified" if used else "data_verified", not broken, "; ".join(broken) or f"{name}: served as backed up"
            )
        )
        return _sequences(copy) if CANARY_TABLE in rows else set()


def _dumped(database: Database, copy: Path) -> bool:
    copy.unlink(missing_ok=True)
    database.dump(copy)
    return True


def _sequences(database: Path) -> set[int]:
    import apsw

    db = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return {int(n) for (n,) in db.execute(f"SELECT sequence FROM {CANARY_TABLE}")}
    finally:
        db.close()


def _judge_objectives(drill: Drill) -> None:
    facts, limits = drill.facts, drill.limits
    assert facts.rta_s is not None and facts.fault_at is not None
    facts.criteria.append(
        Criterion(
            "rto", facts.rta_s <= limits.rto_s, f"{facts.rta_s:.1f} s from the fault until verified, {limits.rto_s} s allowed"
        )
    )
    if facts.used:
        rpa = max((facts.fault_at - datetime.fromisoformat(u.snapshot_at)).total_seconds() for u in facts.used.values())
        ok = 0 <= rpa <= limits.rpo_s
        facts.criteria.append(
            Criterion("rpo", ok, f"the backup's snapshot was {rpa:.1f} s old at the fault, {limits.rpo_s} s allowed")
        )


def _judge_rows(drill: Drill, present: Mapping[str, set[int]]) -> None:
    """Lost is what was acknowledged and is not there; of that, what a backup must have had is missing."""
    facts = drill.facts
    if drill.writer is None:
        return
    lost: list[Acknowledged] = []
    for name in drill.victims:
        rows = drill.writer.acknowledged(name)
        facts.rows_acknowledged += len(rows)
        lost += [r for r in rows if r.sequence not in present[name]]
    since = {name: datetime.fromisoformat(u.snapshot_at) for name, u in facts.used.items()}
    missing = [r for r in lost if r.node not in since or r.at < since[r.node]]
    facts.rows_lost, facts.rows_missing = len(lost), len(missing)
    before = [r for n in drill.victims for r in drill.writer.acknowledged(n) if n in since and r.at < since[n]]
    if facts.used and not before:
        drill.find("no row was acknowledged before the backup's snapshot: whether a backup lacks rows is not measured")
    found = f"{len(lost)} acknowledged rows lost, of which {len(missing)} were acknowledged before the backup's snapshot"
    facts.criteria.append(Criterion("data_loss", not missing, found))


def _verify_state(drill: Drill) -> str:
    path, before = drill.target.terraform_state(), drill.facts.lost_state
    assert path is not None and before is not None and drill.facts.state is not None and drill.facts.fault_at is not None
    after = parse_state(path.read_bytes(), str(path))
    same = (after.serial, after.lineage, after.resources) == (before.serial, before.lineage, before.resources)
    known = drill.facts.state
    drill.facts.state = StateUsed(known.serial, known.lineage, known.resources, after.serial, after.lineage)
    drill.facts.verified_at = datetime.now(UTC)
    drill.facts.rta_s = (drill.facts.verified_at - drill.facts.fault_at).total_seconds()
    told = f"serial {after.serial}, lineage {after.lineage}, {len(after.resources)} resources"
    drill.facts.criteria.append(Criterion("state_restored", same, told))
    drill.facts.criteria.append(Criterion("backup_verified", digest_file(path) == before.sha256, f"digest {after.sha256[:16]}"))
    _judge_objectives(drill)
    return told


# --- reconstitution


def reconstitute(drill: Drill) -> str:
    """Until all is as it was: every manager, every gateway, and rows are written again."""
    facts, target = drill.facts, drill.target
    if drill.scenario.fault is Fault.LOSE_STATE:
        return "the state is in its place"

    def whole() -> str:
        nodes = target.nodes()
        return quorum(nodes) if quorum(nodes) == facts.quorum_before and all(n.ready for n in nodes) else ""

    facts.quorum_after = drill.until("every node to be ready", whole)
    facts.criteria.append(Criterion("quorum_restored", True, f"before {facts.quorum_before}, after {facts.quorum_after}"))
    if facts.gateways:
        drill.until("every gateway to answer", lambda: len(target.gateways() or ()) >= facts.gateways)
    if drill.writer:
        before = {name: drill.acknowledged(name) for name in drill.victims}
        drill.writer.start()
        for name in drill.victims:
            drill.until(f"rows to be written on {name} again", partial(_goes_on, drill, name, before[name]))
        drill.writer.stop()
    return f"quorum {facts.quorum_after}; rows are written again"


def _goes_on(drill: Drill, name: str, before: int) -> bool:
    return drill.acknowledged(name) >= before + ENOUGH


def _no_stale_tasks(drill: Drill, name: str) -> bool:
    return not drill.target.stale_tasks(name)
