"""The main job from a terminal: a week's fixtures built, checked and released through Dagster, with progress and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter

import dagster as dg
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from akidb_pipelines import progress
from akidb_pipelines.definitions import build_defs
from akidb_pipelines.errors import CheckError, ExitCode, InputError, OutsideError, PipelineError
from akidb_pipelines.files import is_dead, process_name
from akidb_pipelines.fixtures.checklist import KIND
from akidb_pipelines.fixtures.profiles import profile_named
from akidb_pipelines.fixtures.weekly import WeekBuild, open_workshop
from akidb_pipelines.instance import prepare_dagster_home
from akidb_pipelines.periods import FIRST_WEEK, Week
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.index import Version
from akidb_pipelines.store.manifest import Release
from akidb_pipelines.store.report import fingerprint

_REPOSITORY = {".dagster/repository": "__repository__@akidb_pipelines"}
"""The tag by which the UI tells which code location a run belongs to."""
_PROCESS = "akidb/process"
"""The tag that names the process of a run, since no daemon watches over this one."""


@dataclass(frozen=True)
class WeeklyRun:
    """What a run made."""

    run_id: str
    release: Release
    new: bool
    """Whether the release is a new revision, rather than the same bytes again."""
    build: WeekBuild
    checks_passed: int
    checks: int
    build_seconds: dict[str, float]
    """By profile."""
    seconds: float
    registry: str
    """Where it was released to."""
    root_fingerprint: str
    """Of the root that clients are given."""


def run_week(settings: Settings, week: Week, profiles: Sequence[str], console: Console) -> WeeklyRun:
    """Run job `fixtures` for a week in this process; the runs stand in the Dagster instance like any other.

    Args:
        settings: where everything is.
        week: which.
        profiles: empty takes the settings'.
        console: where progress is shown; a terminal gets bars.

    Raises:
        PipelineError: a setting, the week or a profile is unusable, or something outside is missing.
        CheckError: a step or a blocking check failed; what was released before stays served.
    """
    started = perf_counter()
    # Before Dagster starts: what is wrong here is told plainly, with its own exit code.
    for profile in profiles or settings.profiles:
        profile_named(profile)
    if not FIRST_WEEK <= week <= Week.containing(datetime.now(UTC)):
        raise InputError(f"{week} is no week that is released", hint=f"choose one from {FIRST_WEEK} to the running week")
    open_workshop(settings).publisher.index()
    prepare_dagster_home(settings)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars, dg.DagsterInstance.get() as instance:
        _close_dead_runs(instance)
        tags = {**_REPOSITORY, _PROCESS: process_name()}
        definitions = build_defs(settings, lambda title: _Bar(bars, title).show)
        quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        observed = definitions.resolve_job_def("observe_sandbox").execute_in_process(
            instance=instance, run_config=quiet, tags=tags, raise_on_error=False
        )
        if not observed.success:
            raise _failure(week, observed)
        result = definitions.resolve_job_def("fixtures").execute_in_process(
            instance=instance,
            partition_key=week.key,
            run_config={**quiet, "ops": {"fixture_databases": {"config": {"profiles": list(profiles)}}}},
            tags=tags,
            raise_on_error=False,
        )
    if not result.success:
        raise _failure(week, result)
    built = result.asset_materializations_for_node("fixture_databases")[0].metadata
    released = result.asset_materializations_for_node("fixture_release")[0].metadata
    workshop = open_workshop(settings)
    checks = workshop.catalog.checks_of(str(built["build_sha256"].value))
    return WeeklyRun(
        run_id=result.run_id,
        release=workshop.registry.get(KIND, Version.parse(str(released["release"].value))),
        new=bool(released["new revision"].value),
        build=workshop.find(week, str(built["build_sha256"].value)),
        checks_passed=sum(c.passed for c in checks),
        checks=len(checks),
        build_seconds={
            name.removesuffix("_seconds"): float(str(value.value)) for name, value in built.items() if name.endswith("_seconds")
        },
        seconds=perf_counter() - started,
        registry=workshop.registry.url,
        root_fingerprint=fingerprint(workshop.registry.root() or b""),
    )


def _close_dead_runs(instance: dg.DagsterInstance) -> None:
    """Runs of this command that were killed still count as started, and would hold a place in the queue for hours."""
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        if is_dead(run.tags.get(_PROCESS, "")):
            instance.report_run_failed(run, "the process of this run is gone; nothing of it was released half")


class _Bar:
    """One line of progress that shows the stage a part of the run is in."""

    def __init__(self, bars: Progress, title: str) -> None:
        self._bars, self._title = bars, title
        self._task: TaskID = bars.add_task(title, total=None, amount="")

    def show(self, told: progress.Progress) -> None:
        # A stage without a total counts as done: it is short, and a bar that stays behind looks like trouble.
        done, total = (told.done, told.total) if told.total else (1, 1)
        text = f"{self._title}: {told.stage}"
        self._bars.update(self._task, description=text, completed=done, total=total, amount=told.amount)


def _failure(week: Week, result: dg.ExecuteInProcessResult) -> PipelineError:
    """What a failed run says, in the words of its failed steps. A failure from outside (a full disk) stays one."""
    kind: type[PipelineError] = CheckError
    told = [f"check {e.check_name} failed: {e.description}" for e in result.get_asset_check_evaluations() if _blocks(e)]
    for event in result.get_step_failure_events():
        data = event.step_failure_data
        if data.user_failure_data and data.user_failure_data.description:
            told.append(data.user_failure_data.description)
            if data.user_failure_data.metadata["exit code"].value == ExitCode.OUTSIDE:
                kind = OutsideError
        elif data.error and not told:
            told.append(f"step {event.step_key}: {data.error.message.strip()}")
    return kind(
        f"the fixtures of {week} were not released\n  " + "\n  ".join(told or ["see the run's log"]),
        hint=f"`make ui`, run {result.run_id}, has the details; docs/runbooks/weekly-fixtures-failed.md says what to do",
    )


def _blocks(evaluation: dg.AssetCheckEvaluation) -> bool:
    return not evaluation.passed and evaluation.severity is dg.AssetCheckSeverity.ERROR


def run_table(run: WeeklyRun) -> Table:
    """The table a run ends with: file, rows by table, digest, checks passed, seconds."""
    tables = {"users": "users", "collections": "collections", "vector_documents": "documents", "audit_logs": "audit rows"}
    title = f"{run.release.id} {'released' if run.new else 'is unchanged: the same bytes were released before'}"
    registry = f"registry {run.registry}\nroot fingerprint {run.root_fingerprint}"
    table = Table(title=title, caption=f"{run.seconds:.1f} s in all; run {run.run_id}\n{registry}")
    for column in ("file", *tables.values(), "MB", "sha256", "checks passed", "seconds"):
        table.add_column(column, justify="left" if column in {"file", "sha256"} else "right", no_wrap=True)
    for fixture in run.build.fixtures:
        manifest = fixture.manifest
        table.add_row(
            manifest.database.name,
            *(f"{manifest.tables[t].rows:,}" for t in tables),
            f"{manifest.database.size_bytes / 1e6:.1f}",
            manifest.database.sha256[:12],
            f"{run.checks_passed} of {run.checks}",
            f"{run.build_seconds.get(manifest.profile, 0.0):.1f}",
        )
    return table
