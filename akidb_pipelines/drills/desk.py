"""Where drills are run from: one at a time, each with a report that stays, and whatever a killed one has left put right.

<home>/drills/<id>/report.json, report.md, timeline.png, acknowledged.jsonl     and, but for the last, in area `cold` of the store
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from akidb_pipelines.backups.depot import Depot, open_depot
from akidb_pipelines.backups.terraform import StateShelf, open_states
from akidb_pipelines.drills.drill import Drill, Facts, Limits, Outcome, Request, Watcher
from akidb_pipelines.drills.journal import Cabinet, Journal
from akidb_pipelines.drills.report import Criterion, UndoRecord, expected_verdict, markdown, parse_report
from akidb_pipelines.drills.report import Report as DrillReport
from akidb_pipelines.drills.scenarios import DEFAULT, SCENARIOS, Verdict, scenario_named
from akidb_pipelines.drills.steps import STEPS
from akidb_pipelines.drills.target import Target
from akidb_pipelines.drills.timeline import timeline
from akidb_pipelines.drills.undo import Undoing
from akidb_pipelines.errors import InputError, OutsideError, PipelineError
from akidb_pipelines.files import write_whole
from akidb_pipelines.periods import Quarter
from akidb_pipelines.progress import Report
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.lease import hold
from akidb_pipelines.store.objects import MissingObjectError

_REPORT, _MARKDOWN, _PICTURE = "report.json", "report.md", "timeline.png"
_ROOT = "drills/"

OpenTarget = Callable[[Report], Target]
"""Gives a target to drill on; told the progress while it is made ready."""


@dataclass(frozen=True)
class Desk:
    """Runs drills.

    Args:
        settings: where state lies.
        targets: by name, `lab` and `oci`; each is opened when a drill needs it.
        depot: has the backups, and the catalog.
        states: copies of Terraform's state.
        limits: how long things may take.
        sweep: see below.
    """

    settings: Settings
    targets: Mapping[str, OpenTarget]
    depot: Depot
    states: StateShelf
    limits: Limits = field(default_factory=Limits)
    sweep: Callable[[], None] = lambda: None
    """Takes down what was made for one drill and outlived it; called when every drill is put right."""

    @property
    def cabinet(self) -> Cabinet:
        """Journals and reports."""
        return Cabinet(self.settings.home / "drills")

    # --- running

    def run(self, target: str, request: Request, watch: Watcher = lambda _: None, report: Report = lambda _: None) -> DrillReport:
        """Run one drill. It leaves a report, whatever happens.

        Raises:
            BusyError: another one is under way, or an interrupted one is not undone.
            OutsideError: the target cannot be opened.
            BaseException: what interrupted it, once everything is undone and the report is written.
        """
        with self._opened(target, report) as opened:
            return self._drill(opened, request, watch, report)

    def self_test(
        self, watch: Watcher = lambda _: None, report: Report = lambda _: None, operator: str = ""
    ) -> Iterator[DrillReport]:
        """Run every scenario on one lab. An expected failure is as it must be here, and nowhere else.

        Raises:
            BusyError, OutsideError: see run.
        """
        with self._opened("lab", report) as opened:
            for scenario in SCENARIOS.values():
                self.cabinet.expect_all_finished()
                yield self._drill(opened, Request(scenario, operator), watch, report)

    @contextmanager
    def _opened(self, name: str, report: Report) -> Iterator[Target]:
        if name not in self.targets:
            raise InputError(f"there is no target {name!r}", hint=f"choose among {', '.join(self.targets)}")
        with self.cabinet.only_one(), self._nobody_else(name):
            self.cabinet.expect_all_finished()
            target = self.targets[name](report)
            try:
                yield target
            finally:
                target.close()

    def _nobody_else(self, name: str) -> AbstractContextManager[object]:
        """Staging is one, whoever drills from wherever: the lease lies in the store that all share."""
        if name == "lab":
            return nullcontext()
        return hold(self.depot.cold, f"drill on {name}", key=f"{_ROOT}lease-{name}.json", patience_s=0)

    def _drill(self, target: Target, request: Request, watch: Watcher, report: Report) -> DrillReport:
        started = datetime.now(UTC)
        journal = self.cabinet.begin(target.name, request.scenario.name, started)
        journal.write(
            "begin", target=target.name, scenario=request.scenario.name, operator=request.operator, dry_run=request.dry_run
        )
        # A dump that lies about its age must not get among the real ones.
        depot = self._stale_depot(journal) if request.scenario.stale else self.depot
        drill = Drill(request, target, depot, self.states, self.cabinet, journal, STEPS, self.limits, watch, report)
        interrupted: list[BaseException] = []
        outcome = drill.run(interrupted)
        done = _report(drill, outcome, started, journal.folder.name)
        _write(journal, done)
        if all(u.ok for u in outcome.undo):
            shutil.rmtree(_stale_home(journal), ignore_errors=True)
            journal.write("end", verdict=outcome.verdict)
        try:
            self._keep(journal, done)
        finally:
            if interrupted:
                raise interrupted[0]
        return done

    def _stale_depot(self, journal: Journal) -> Depot:
        return open_depot(self.settings.model_copy(update={"home": _stale_home(journal), "store": "", "catalog": ""}))

    def _keep(self, journal: Journal, done: DrillReport) -> None:
        """Keep a report that is written in cold storage and in the catalog, too.

        Raises:
            OutsideError: one of them cannot be reached; `recover` tries again.
        """
        try:
            for name in (_REPORT, _MARKDOWN, _PICTURE):
                self.depot.cold.create(f"{_ROOT}{done.drill_id}/{name}", journal.folder / name)
            self.depot.catalog.record_drill(done.catalogued())
        except PipelineError as error:
            told = f"drill {done.drill_id} {done.verdict}; its report lies in {journal.folder}, and could not be kept elsewhere"
            raise OutsideError(
                f"{told}: {error.message}",
                hint="when store and catalog are back: akidb-pipelines drills recover",
            ) from error

    # --- afterwards

    def recover(self, report: Report = lambda _: None) -> list[tuple[str, list[UndoRecord]]]:
        """Put right what interrupted drills have left; returns what was done for each. Nothing interrupted is no error.

        Raises:
            BusyError: a drill is under way.
            OutsideError: the target of one cannot be opened, or a report still cannot be kept in store and catalog.
        """
        done = []
        with self.cabinet.only_one():
            for journal in self.cabinet.unfinished():
                with suppress(OutsideError):  # for whoever counts; a full disk keeps nobody from putting it right
                    journal.write("recovery_begun")
                records = self._recover_one(journal, report)
                if all(r.ok for r in records):
                    shutil.rmtree(_stale_home(journal), ignore_errors=True)
                    if not (journal.folder / _REPORT).exists():
                        _write(journal, _interrupted(journal, records, self.limits))
                    journal.write("end", verdict="aborted", recovered=True)
                else:
                    journal.write("recovery_failed", left=[f"{r.action} {r.node}" for r in records if not r.ok])
                done.append((journal.folder.name, records))
            if not self.cabinet.unfinished():
                self.sweep()
            known = {d.drill_id for d in self.depot.catalog.drills()}
            for journal in (self.cabinet.journal(i) for i in self.cabinet.ids() if i not in known):
                if (journal.folder / _REPORT).exists():
                    self._keep(journal, self.report(journal.folder.name))
        return done

    def _recover_one(self, journal: Journal, report: Report) -> list[UndoRecord]:
        begin = next((line for line in journal.lines() if line["event"] == "begin"), None)
        if begin is None or not journal.noted().undoes:
            return []
        depot = self.depot
        if _stale_home(journal).exists():
            depot = self._stale_depot(journal)
        # Not closed: whatever is to go with the drill goes when every drill is put right.
        target = self.targets[begin["target"]](report)
        return Undoing(target, depot, self.states, journal).all()

    def report(self, drill_id: str) -> DrillReport:
        """The report of a drill, from here or from cold storage.

        Raises:
            InputError: there is none.
            IntegrityError: it is damaged.
        """
        path = self.cabinet.folder / drill_id / _REPORT
        try:
            if "/" not in drill_id and path.is_file():
                return parse_report(path.read_bytes(), str(path))
            return parse_report(self.depot.cold.read(f"{_ROOT}{drill_id}/{_REPORT}"), f"{self.depot.cold.url}/{drill_id}")
        except MissingObjectError:
            have = ", ".join(d.drill_id for d in self.depot.catalog.drills()[-3:]) or "none"
            raise InputError(
                f"there is no report of drill {drill_id}; the last are {have}", hint="akidb-pipelines drills list"
            ) from None

    def picture(self, drill_id: str) -> Path:
        """The picture of a drill's phases, on this machine."""
        return self.cabinet.folder / drill_id / _PICTURE


def _write(journal: Journal, done: DrillReport) -> None:
    """The report beside the journal.

    Raises:
        OutsideError: there is no room; the journal has what happened.
    """
    kept = {_REPORT: done.to_json(), _MARKDOWN: markdown(done).encode(), _PICTURE: timeline(done)}
    try:
        for name, data in kept.items():
            write_whole(journal.folder / name, data)
    except OSError as error:
        raise OutsideError(
            f"report of drill {done.drill_id}: {error}", hint="free some space; the journal has what happened"
        ) from error


def _interrupted(journal: Journal, undo: list[UndoRecord], limits: Limits) -> DrillReport:
    """What can be said of a drill that was killed: its journal says how far it came."""
    lines = journal.lines()
    begin = next((line for line in lines if line["event"] == "begin"), {})
    chosen = next((line for line in lines if line["event"] == "chosen"), {})
    reached = next((line["phase"] for line in reversed(lines) if line["event"] == "phase"), "its beginning")
    started = datetime.fromisoformat(str(begin.get("at") or datetime.now(UTC).isoformat()))
    scenario = scenario_named(str(begin.get("scenario", DEFAULT)))
    return DrillReport(
        drill_id=journal.folder.name,
        quarter=Quarter.containing(started).iso,
        operator=str(begin.get("operator", "")),
        scenario=scenario.name,
        summary=scenario.summary,
        target=str(begin.get("target", "lab")),
        environment=str(begin.get("target", "lab")),
        cluster_id=str(chosen.get("cluster", "")),
        nodes=tuple(chosen.get("victims", ())),
        dry_run=bool(begin.get("dry_run", False)),
        versions={},
        started_at=_text(started),
        finished_at=_text(datetime.now(UTC)),
        fault_at="",
        verified_at="",
        rto_target_s=limits.rto_s,
        rpo_target_s=limits.rpo_s,
        rta_s=None,
        rpa_s=None,
        service_outage_s=None,
        rows_acknowledged=0,
        rows_lost={},
        rows_missing=0,
        backup=None,
        terraform=None,
        quorum_before="",
        quorum_after="",
        phases=(),
        criteria=(Criterion("undo_complete", True, f"{len(undo)} looked at, by recover"),),
        undo=tuple(undo),
        findings=(),
        corrective_actions=("run it again: it proved nothing",),
        verdict=Verdict.ABORTED.value,
        reason=f"it was killed in {reached}, and put right by recover",
        expected=scenario.expected.value,
        as_expected=False,
    )


def _stale_home(journal: Journal) -> Path:
    return journal.folder / "stale"


def operator() -> str:
    """Who runs this: the user's name, or number where it has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"


def _report(drill: Drill, outcome: Outcome, started: datetime, drill_id: str) -> DrillReport:
    facts, request, target = drill.facts, drill.request, drill.target
    used = min(facts.used.values(), key=lambda u: u.snapshot_at, default=None)  # of several the oldest
    rpa = (facts.fault_at - datetime.fromisoformat(used.snapshot_at)).total_seconds() if used and facts.fault_at else None
    failed = [c.name for c in facts.criteria if not c.ok]
    versions: Mapping[str, str] = {}
    with suppress(PipelineError):
        versions = target.versions()
    return DrillReport(
        drill_id=drill_id,
        quarter=Quarter.containing(started).iso,
        operator=request.operator,
        scenario=request.scenario.name,
        summary=request.scenario.summary,
        target=target.name,
        environment=target.environment,
        cluster_id=facts.cluster_id,
        nodes=tuple(drill.victims),
        dry_run=request.dry_run,
        versions=versions,
        started_at=_text(started),
        finished_at=_text(datetime.now(UTC)),
        fault_at=_text(facts.fault_at),
        verified_at=_text(facts.verified_at),
        rto_target_s=drill.limits.rto_s,
        rpo_target_s=drill.limits.rpo_s,
        rta_s=facts.rta_s,
        rpa_s=rpa,
        service_outage_s=_outage(drill, facts),
        rows_acknowledged=facts.rows_acknowledged,
        rows_lost={} if facts.rows_lost is None else {"akidb_canary": facts.rows_lost},
        rows_missing=facts.rows_missing,
        backup=used,
        terraform=facts.state,
        quorum_before=facts.quorum_before,
        quorum_after=facts.quorum_after,
        phases=outcome.phases,
        criteria=tuple(facts.criteria),
        undo=outcome.undo,
        findings=tuple(facts.findings),
        corrective_actions=tuple(dict.fromkeys(a for a in facts.actions if a)),
        verdict=outcome.verdict.value,
        reason=outcome.reason,
        expected=request.scenario.expected.value,
        as_expected=expected_verdict(outcome.verdict, failed, request.scenario.expected, request.scenario.fails),
    )


def _outage(drill: Drill, facts: Facts) -> float | None:
    if drill.prober is None or facts.fault_at is None:
        return None
    outage = drill.prober.outage_s()
    return None if outage is None else round(outage, 3)


def _text(moment: datetime | None) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z") if moment else ""


def open_desk(
    settings: Settings, targets: Mapping[str, OpenTarget], limits: Limits | None = None, sweep: Callable[[], None] = lambda: None
) -> Desk:
    """The desk that settings describe.

    Raises:
        InputError, OutsideError: see open_depot.
    """
    return Desk(settings, targets, open_depot(settings), open_states(settings), limits or Limits(), sweep)
