"""The first two phases: every guard is asked, and everything is seen to be well. In the lab a backup is taken, too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from akidb_pipelines.backups.sources import Database
from akidb_pipelines.backups.terraform import parse_state
from akidb_pipelines.drills import guards
from akidb_pipelines.drills.canary import Prober, Writer
from akidb_pipelines.drills.drill import Drill
from akidb_pipelines.drills.guards import GuardError
from akidb_pipelines.drills.report import StateUsed
from akidb_pipelines.drills.scenarios import Fault, Guard
from akidb_pipelines.drills.target import quorum
from akidb_pipelines.drills.undo import candidates
from akidb_pipelines.errors import InputError

ENOUGH = 10
"""Canary rows that must be acknowledged before it counts."""
_STALE = timedelta(hours=4)
"""How much older than the objective the backup of scenario stale_backup is."""


def preflight(drill: Drill) -> str:
    """Every guard; in the lab also a backup of what is about to be lost."""
    facts, target, request = drill.facts, drill.target, drill.request
    if drill.scenario.fault not in target.faults or (target.name != "lab" and drill.scenario.is_for_the_lab):
        known = ", ".join(sorted(target.faults))
        raise InputError(f"{drill.scenario.name} cannot be rehearsed on {target.name}", hint=f"it can do {known}; or --target lab")
    allowed = guards.read_allow_list(target.allow_list())
    facts.cluster_id = target.cluster_id()
    guards.expect_cluster(facts.cluster_id, allowed)
    nodes = target.nodes()
    facts.victims = guards.choose(drill.scenario, nodes, allowed, request.node)
    facts.survivors = [n.name for n in nodes if n not in facts.victims]
    facts.quorum_before = quorum(nodes)
    for victim in facts.victims:
        guards.expect_allowed(victim, allowed)
        guards.expect_tools(target.hindrance(victim.name))
    if not _waived(drill, Guard.QUORUM):
        guards.expect_quorum(nodes, facts.victims)
    machines = {n.name: n.id for n in facts.victims}
    drill.journal.write("chosen", victims=drill.victims, survivors=facts.survivors, cluster=facts.cluster_id, machines=machines)
    if target.name != "lab" and not request.dry_run:
        guards.expect_confirmed(request.confirm, target.environment, "+".join(drill.victims) or "state", datetime.now(UTC).date())
    if drill.scenario.fault is Fault.LOSE_STATE:
        return _expect_state(drill)
    if drill.scenario.fault is Fault.POWER_OFF:
        for name in drill.victims:
            _expect_backups(drill, name)
    chosen = ", ".join(drill.victims)
    return f"{chosen} may be lost; {', '.join(c[0].id for c in facts.backups.values()) or 'no backup is needed'}"


def _waived(drill: Drill, guard: Guard) -> bool:
    return guard in drill.scenario.waived and drill.target.name == "lab"


def _expect_backups(drill: Drill, name: str) -> None:
    database = drill.target.database(name)
    if database is None:
        raise GuardError(
            Guard.BACKUP, f"{name} has no database that can be dumped", hint="set akidb_databases of it in the inventory"
        )
    if drill.target.name == "lab":
        if drill.request.dry_run:
            return  # a backup is taken first, which a dry run does not
        _back_up_first(drill, name, database)
    found = candidates(drill.depot, database)
    verified = [d for d in found if drill.depot.is_verified(d)]
    guards.expect_backup(next(iter(verified or found), None), database.where, verified=bool(verified))
    if not _waived(drill, Guard.BACKUP_AGE):
        guards.expect_young(verified[0], datetime.now(UTC), drill.limits.rpo_s)
    if not drill.request.dry_run:
        drill.depot.ask_for(verified[0])  # an archive needs up to an hour: ask before the clock runs
    drill.facts.backups[name] = verified


def _back_up_first(drill: Drill, name: str, database: Database) -> None:
    """The lab's own daily dump, taken now; two of them where the first is going to be damaged, one of old where it must be stale."""
    _watch(drill)
    drill.until(f"canary rows on {name}", partial(_has_rows, drill, name))
    source = _Aged(database, timedelta(seconds=drill.limits.rpo_s) + _STALE) if drill.scenario.stale else database
    for _ in range(2 if drill.scenario.corrupts else 1):
        dump = drill.depot.take(source)
        for found in drill.depot.run_checks(dump):
            if found.holds_back:
                raise GuardError(
                    Guard.BACKUP, f"{dump.id}: {found.check}: {found.summary}", hint="docs/runbooks/restore-a-database.md"
                )
        drill.tell(f"backed up: {dump.id}")


class _Aged:
    """A database whose dumps say that they are older than they are."""

    def __init__(self, database: Database, by: timedelta) -> None:
        self._database, self._by = database, by
        self.name, self.where = database.name, database.where

    def dump(self, target: Path) -> datetime:
        """See Database."""
        return self._database.dump(target) - self._by


def _expect_state(drill: Drill) -> str:
    path = drill.target.terraform_state()
    if path is None:
        raise GuardError(Guard.BACKUP, "Terraform's state is not configured", hint="set AKIDB_TERRAFORM_STATE")
    state = parse_state(path.read_bytes(), str(path))
    if drill.target.name == "lab" and not drill.request.dry_run:
        drill.states.keep(state, drill.target.environment, new_lineage=True)
    kept = drill.states.newest(drill.target.environment)
    if drill.request.dry_run and drill.target.name == "lab":
        return f"state of serial {state.serial} would be copied, and lost"
    if kept is None or (kept.serial, kept.lineage) != (state.serial, state.lineage):
        raise GuardError(
            Guard.BACKUP,
            f"there is no copy of serial {state.serial}, lineage {state.lineage}",
            hint="akidb-pipelines backups run terraform",
        )
    drill.states.state(kept)
    drill.facts.lost_state = state
    drill.facts.state = StateUsed(state.serial, state.lineage, len(state.resources))
    return f"state of serial {state.serial} may be lost; its copy is verified"


# --- baseline


def baseline(drill: Drill) -> str:
    """Everything is well before, and the watchers see it."""
    facts, target = drill.facts, drill.target
    nodes = target.nodes()
    if unready := [n.name for n in nodes if not n.ready]:
        raise GuardError(Guard.QUORUM, f"{', '.join(unready)} is not ready before anything was done", hint="heal the cluster first")
    if not _waived(drill, Guard.QUORUM):
        guards.expect_quorum(nodes, facts.victims)  # minutes have gone since it was asked
    _watch(drill)
    for name in drill.victims if drill.writer else ():
        drill.until(f"{name} to answer from outside", partial(drill.answers_outside, name))
        drill.until(f"canary rows on {name}", partial(_has_rows, drill, name))
    if drill.victims and not drill.writer:
        drill.find("outage and lost rows are not measured: not configured where the service answers")
    # Those who stay cannot have more than one each; and one that is moving answers in two places for a while.
    facts.gateways = min(len(target.gateways() or ()), len(facts.survivors))
    return f"{len(nodes)} nodes ready, quorum {facts.quorum_before}, {facts.gateways} gateways answer"


def _watch(drill: Drill) -> None:
    """Begin to write canary rows and to probe, where a service can be reached."""
    urls = {name: partial(drill.target.service_url, name) for name in drill.victims if drill.target.service_url(name)}
    if urls and drill.writer is None:
        drill.prober, drill.writer = Prober(urls), Writer(urls, drill.journal.folder / "acknowledged.jsonl")
        drill.prober.start()
        drill.writer.start()


def _has_rows(drill: Drill, name: str) -> bool:
    return drill.acknowledged(name) >= ENOUGH
