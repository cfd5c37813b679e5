"""The state machine of a drill: phases in order, each with a deadline; what undoes a phase is noted before the phase acts.

The first thing that goes wrong stops it. Whatever happened then (an error, the kill switch, Ctrl-C, a Dagster run that is terminated), what
was noted is undone, in reverse order. A drill that was killed outright leaves its journal unfinished: `desk.recover` undoes from that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

from akidb_pipelines.backups.depot import Depot
from akidb_pipelines.backups.dump import Dump
from akidb_pipelines.backups.terraform import State, StateShelf
from akidb_pipelines.drills.canary import Prober, Writer
from akidb_pipelines.drills.guards import GuardError
from akidb_pipelines.drills.journal import Cabinet, Journal
from akidb_pipelines.drills.report import BackupUsed, Criterion, PhaseRecord, StateUsed, UndoRecord
from akidb_pipelines.drills.scenarios import DEADLINES, RPO_S, RTO_S, TIME_BOX_S, Phase, Scenario, Verdict
from akidb_pipelines.drills.target import Node, Target
from akidb_pipelines.drills.undo import Undoing
from akidb_pipelines.errors import CheckError, OutsideError, PipelineError
from akidb_pipelines.progress import Progress, Report

T = TypeVar("T")


class DeadlineError(CheckError):
    """A phase, or the whole drill, took too long."""


class StoppedError(PipelineError):
    """The kill switch was thrown."""


@dataclass(frozen=True)
class Request:
    """What is to be rehearsed."""

    scenario: Scenario
    operator: str
    node: str = ""
    """The one to lose; empty leaves it to the scenario."""
    dry_run: bool = False
    confirm: str = ""
    run_id: str = ""


@dataclass(frozen=True)
class Limits:
    """How long things may take, and what is promised."""

    deadlines: Mapping[Phase, float] = field(default_factory=lambda: dict(DEADLINES))
    time_box_s: float = TIME_BOX_S
    rto_s: int = RTO_S
    rpo_s: int = RPO_S


@dataclass
class Facts:
    """What is found on the way; it ends up in the report."""

    victims: list[Node] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    cluster_id: str = ""
    quorum_before: str = ""
    quorum_after: str = ""
    gateways: int = 0
    backups: dict[str, list[Dump]] = field(default_factory=dict)
    """Candidates for each victim's database, the newest first."""
    used: dict[str, BackupUsed] = field(default_factory=dict)
    state: StateUsed | None = None
    lost_state: State | None = None
    fault_at: datetime | None = None
    verified_at: datetime | None = None
    rta_s: float | None = None
    rows_acknowledged: int = 0
    rows_lost: int | None = None
    rows_missing: int = 0
    criteria: list[Criterion] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """How it ended."""

    verdict: Verdict
    reason: str
    phases: tuple[PhaseRecord, ...]
    undo: tuple[UndoRecord, ...]


Step = Callable[["Drill"], str]
"""Does a phase and says what it found."""
Watcher = Callable[[PhaseRecord], None]
"""Told when a phase begins and when it ended."""


class Drill:
    """One drill.

    Args:
        request: what is to be rehearsed.
        target: where.
        depot: has the backups.
        states: copies of Terraform's state.
        cabinet: where journals lie.
        journal: of this drill.
        steps: what each phase does.
        limits: how long things may take.
        watch: told of phases.
        report: told the progress within them.
    """

    def __init__(
        self,
        request: Request,
        target: Target,
        depot: Depot,
        states: StateShelf,
        cabinet: Cabinet,
        journal: Journal,
        steps: Mapping[Phase, Step],
        limits: Limits,
        watch: Watcher = lambda _: None,
        report: Report = lambda _: None,
    ) -> None:
        self.request, self.target, self.depot, self.states = request, target, depot, states
        self.cabinet, self.journal, self.limits, self.facts = cabinet, journal, limits, Facts()
        self.writer: Writer | None = None
        self.prober: Prober | None = None
        self._steps, self._watch, self._report = steps, watch, report
        self._started = self._phase_started = time.monotonic()
        self._phase = Phase.PREFLIGHT
        self._records: list[PhaseRecord] = []

    # --- what steps use

    @property
    def scenario(self) -> Scenario:
        """What is rehearsed."""
        return self.request.scenario

    @property
    def victims(self) -> list[str]:
        """Names of the nodes that are lost."""
        return [n.name for n in self.facts.victims]

    def answers_outside(self, node: str) -> bool:
        """Whether the prober was answered by a node's service last; True where nothing is probed."""
        return self.prober is None or self.prober.answers(node)

    def acknowledged(self, node: str) -> int:
        """How many canary rows a node's service has acknowledged."""
        return len(self.writer.acknowledged(node)) if self.writer else 0

    def undo_later(self, action: str, node: str) -> None:
        """Note what undoes the thing that is about to be done. Call it before."""
        self.journal.write("undo", action=action, node=node)

    def tell(self, text: str) -> None:
        """Say what is going on."""
        self._report(Progress(f"{self._phase}: {text}"))

    def find(self, text: str, action: str = "") -> None:
        """Note a finding, and what should be done about it."""
        self.tell(text)
        self.journal.write("finding", text=text)
        self.facts.findings.append(text)
        if action:
            self.facts.actions.append(action)

    def left_s(self) -> float:
        """Seconds that the phase still has."""
        now = time.monotonic()
        phase = self.limits.deadlines[self._phase] - (now - self._phase_started)
        return min(phase, self.limits.time_box_s - (now - self._started))

    def check(self, waiting_for: str = "its end") -> None:
        """Whether the drill may go on.

        Raises:
            StoppedError: the kill switch was thrown.
            DeadlineError: the phase, or the drill, took too long.
        """
        if self.cabinet.stop_file.exists():
            raise StoppedError(
                f"stopped in {self._phase}: the kill switch {self.cabinet.stop_file} is there",
                hint=f"remove it when drills may go on: rm {self.cabinet.stop_file}",
            )
        if self.left_s() <= 0:
            box = time.monotonic() - self._started >= self.limits.time_box_s
            limit = self.limits.time_box_s if box else self.limits.deadlines[self._phase]
            what = "the whole drill" if box else str(self._phase)
            raise DeadlineError(
                f"{what} took longer than {limit:g} s, waiting for {waiting_for}", hint="docs/runbooks/drill-failed.md"
            )

    def until(self, what: str, ask: Callable[[], T]) -> T:
        """Ask until the answer is something, at most as long as the phase may take. What does not answer meanwhile is asked again.

        Raises:
            StoppedError, DeadlineError: see check.
        """
        self.tell(f"waiting for {what}")
        last = ""
        while True:
            try:
                if found := ask():
                    return found
            except OutsideError as error:
                last = f" (last: {error.message})"
            self.check(what + last)
            time.sleep(self.target.poll_s)

    # --- running

    def run(self, interrupted: list[BaseException]) -> Outcome:
        """Go through the phases, then undo what is left to undo. Never raises: what stopped it and is no verdict goes to `interrupted`.

        That is whatever asks this process to end, and bugs; the caller raises it once the report is written.
        """
        verdict, reason = Verdict.ABORTED, "it was interrupted"
        try:
            verdict, reason = self._go()
        except PipelineError as error:
            # Before the fault nothing was proved of the recovery, either way.
            begun = self.facts.fault_at is not None and not isinstance(error, StoppedError)
            verdict, reason = Verdict.FAILED if begun else Verdict.ABORTED, error.message
            self.facts.actions.append(error.hint)
        except Exception as error:  # noqa: BLE001 - a bug must not keep staging broken; it is raised again by the caller
            verdict, reason = Verdict.FAILED, f"a bug: {error!r}"
            interrupted.append(error)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C, a terminated run: the same
            reason = f"it was interrupted: {type(error).__name__}"
            interrupted.append(error)
        try:
            undo = self._unwind()
        except BaseException as error:  # noqa: BLE001 - interrupted while undoing: the journal stays unfinished
            interrupted.append(error)
            undo = [UndoRecord("unwind", "", False, f"interrupted: {type(error).__name__}")]
        complete = all(u.ok for u in undo)
        left = ", ".join(f"{u.action} {u.node}" for u in undo if not u.ok)
        self.facts.criteria.append(Criterion("undo_complete", complete, f"{len(undo)} looked at" if complete else f"left: {left}"))
        if not complete:
            verdict, reason = Verdict.FAILED, f"{reason}; not undone: {left}"
            self.facts.actions.append("akidb-pipelines drills recover")
        self.journal.write("verdict", verdict=verdict, reason=reason)
        return Outcome(verdict, reason, tuple(self._records), tuple(undo))

    def _go(self) -> tuple[Verdict, str]:
        self.check()
        phases = self.scenario.phases
        for phase in Phase:
            if self.request.dry_run and phase is Phase.BASELINE:
                return Verdict.DRY_RUN, "nothing was touched; next would come: " + ", ".join(phases[phases.index(phase) : -1])
            if phase is Phase.REPORT:
                break
            if phase in phases:
                self._do(phase)
            else:
                now = _text(datetime.now(UTC))
                self._records.append(PhaseRecord(phase.value, now, now, 0.0, 0.0, "skipped", f"no part of {self.scenario.name}"))
        failed = [c for c in self.facts.criteria if not c.ok]
        if failed:
            return Verdict.FAILED, "; ".join(f"{c.name}: {c.found}" for c in failed)
        return Verdict.PASSED, "every criterion is met"

    def _do(self, phase: Phase) -> None:
        self._phase, self._phase_started = phase, time.monotonic()
        began = _text(datetime.now(UTC))
        record = PhaseRecord(phase.value, began, began, 0.0, self.limits.deadlines[phase], "running")
        self.journal.write("phase", phase=phase)
        self._watch(record)
        status, told = "failed", ""
        try:
            self.check()
            told = self._steps[phase](self)
            self.check()
            status = "ok"
        except (GuardError, StoppedError) as error:
            status, told = "stopped", error.message
            raise
        except PipelineError as error:
            told = error.message
            raise
        except BaseException as error:
            status, told = "stopped", repr(error)
            raise
        finally:
            seconds = round(time.monotonic() - self._phase_started, 3)
            done = replace(record, finished_at=_text(datetime.now(UTC)), seconds=seconds, status=status, told=told)
            self._records.append(done)
            self.journal.write("phase_end", phase=phase, status=status, told=told)
            self._watch(done)

    def _unwind(self) -> list[UndoRecord]:
        if self.writer:
            self.writer.stop()
        self._phase = Phase.REPORT
        if self.journal.noted().undoes:
            self.tell("looking whether everything is right again")
        records = Undoing(self.target, self.depot, self.states, self.journal).all()
        if self.prober:
            self.prober.stop()
        return records


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
