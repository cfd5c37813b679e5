"""Sensors. A decision is a function of values (`requests`, `restatements`); the sensor around it only reads and reports.

The drift sensor watches the digest of namespace AkiDB. When it changes, released weeks no longer agree with the sandbox. By default the
sensor *asks*: it says which weeks and what to do. Only with AKIDB_AUTO_BACKFILL does it start their rebuild.

The expiry sensor watches the registry's signatures between runs and turns their check yellow ten days ahead, red when they have ended.

Drills have three: whether one is overdue, for the lab and for OCI apart; whether one that failed was left half undone; and whether one was
killed so that not even its failure was noticed.

The restatement sensor asks for the months whose billing files are not those that were added up.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from akidb_pipelines.cedar.sandbox import PRODUCT
from akidb_pipelines.errors import PipelineError
from akidb_pipelines.fixtures.stale import affected_weeks
from akidb_pipelines.periods import FIRST_MONTH, Month, Week
from akidb_pipelines.resources import CostTools, DrillTools, FixtureTools, RegistryTools
from assets.common import failed_checks
from assets.drills import RECENT, REPORT, recent_evaluations, recovery_job
from assets.fixtures import AGREES, RELEASE, SANDBOX, agreement
from assets.registry import EXPIRY_CHECK, REGISTRY, expiry_result
from schedules.jobs import costs_rollup_job, dr_drill_job, fixtures_job


def requests(weeks: Iterable[Week], cedar_sha256: str) -> list[dg.RunRequest]:
    """One run a week. The digest is in the run key: keys count for ever, and the next drift must run again."""
    return [
        dg.RunRequest(
            run_key=f"drift:{cedar_sha256[:16]}:{week.key}",
            partition_key=week.key,
            tags={"cause": "drift", "cedar_sha256": cedar_sha256[:16]},
        )
        for week in weeks
    ]


@dg.sensor(
    name="fixture_drift",
    job=fixtures_job,
    minimum_interval_seconds=600,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Watches the Cedar sandbox; when it changes, names the weeks to rebuild, or rebuilds them if AKIDB_AUTO_BACKFILL is set.",
)
def fixture_drift(context: dg.SensorEvaluationContext, fixture_tools: dg.ResourceParam[FixtureTools]) -> dg.SensorResult:
    """See the module."""
    try:
        workshop = fixture_tools.open_workshop()
        digest = workshop.sandbox.sha256(PRODUCT)
        weeks = affected_weeks(workshop.catalog.releases(), digest)
    except PipelineError as error:
        # A sandbox that cannot be read is reported at every tick, and starts nothing.
        raise dg.Failure(str(error)) from error
    observed: list[dg.AssetObservation | dg.AssetCheckEvaluation] = []
    if (context.cursor or "").partition(":")[0] != digest:
        tags = {DATA_VERSION_TAG: digest}
        observed = [dg.AssetObservation(asset_key=SANDBOX, tags=tags, metadata={"source": workshop.sandbox.source})]
    agrees, told = agreement(weeks, digest)
    # Written when it changes, so that the log does not fill.
    after = f"{digest}:{told}"
    if after != context.cursor:
        observed.append(
            dg.AssetCheckEvaluation(
                asset_key=RELEASE, check_name=AGREES, passed=agrees, severity=dg.AssetCheckSeverity.WARN, description=told
            )
        )
    if not agrees:
        context.log.warning(told)
    if agrees or not fixture_tools.settings.auto_backfill:
        return dg.SensorResult(skip_reason=told, cursor=after, asset_events=observed)
    return dg.SensorResult(run_requests=requests(weeks, digest), cursor=after, asset_events=observed)


@dg.sensor(
    name="registry_expiry",
    asset_selection=dg.AssetSelection.assets(REGISTRY),
    minimum_interval_seconds=3600,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Watches when the registry's signed metadata ends; warns ten days ahead. Starts nothing.",
)
def registry_expiry(context: dg.SensorEvaluationContext, registry_tools: dg.ResourceParam[RegistryTools]) -> dg.SensorResult:
    """See the module. The check is written when its outcome changes, so that the log does not fill."""
    try:
        report = registry_tools.examine()
    except PipelineError as error:
        raise dg.Failure(str(error)) from error
    result = expiry_result(report)
    told = str(result.description)
    if report.warnings:
        context.log.warning(told)
    evaluation = dg.AssetCheckEvaluation(
        asset_key=REGISTRY,
        check_name=EXPIRY_CHECK,
        passed=result.passed,
        severity=result.severity,
        description=told,
        metadata=result.metadata,
    )
    return dg.SensorResult(skip_reason=told, cursor=told, asset_events=[] if context.cursor == told else [evaluation])


@dg.sensor(
    name="drill_overdue",
    asset_selection=dg.AssetSelection.assets(REPORT),
    minimum_interval_seconds=3600,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Watches how long ago a drill passed on the lab, and on OCI: 100 days are allowed. Starts nothing.",
)
def drill_overdue(context: dg.SensorEvaluationContext, drill_tools: dg.ResourceParam[DrillTools]) -> dg.SensorResult:
    """See the module. A check is written when its outcome changes, so that the log does not fill."""
    try:
        found = recent_evaluations(drill_tools, datetime.now(UTC))
    except PipelineError as error:
        raise dg.Failure(str(error)) from error
    before = json.loads(context.cursor) if context.cursor else {}
    after = {e.check_name: e.passed for e in found}
    changed = [e for e in found if before.get(e.check_name) != e.passed]
    # What is not configured is not overdue, whoever found it so before.
    gone = failed_checks(context.instance, REPORT, RECENT.values() - after.keys())
    changed += [
        dg.AssetCheckEvaluation(asset_key=REPORT, check_name=n, passed=True, description="no longer configured") for n in gone
    ]
    for evaluation in found:
        if not evaluation.passed:
            context.log.warning(str(evaluation.description))
    told = "; ".join(str(e.description) for e in found)
    return dg.SensorResult(
        skip_reason=told or "no drill is expected: the lab was never used, and no allow list names staging",
        cursor=json.dumps(after),
        asset_events=changed,
    )


_RECOVERIES = 3
"""So often a drill is put right by itself: each try may build a machine anew, and a person cannot while one goes on."""


def _recovery(tools: DrillTools) -> dg.RunRequest | dg.SkipReason:
    """A run of the recovery job if an interrupted drill is left, and nobody drills or recovers now."""
    cabinet = tools.cabinet()
    left = [] if cabinet.is_busy() else cabinet.unfinished()
    if not left:
        return dg.SkipReason("no interrupted drill is left")
    drill_id = left[0].folder.name
    lines = left[0].lines()
    tried = sum(line["event"] == "recovery_begun" for line in lines)
    if tried >= _RECOVERIES:
        told = f"drill {drill_id} could not be put right {tried} times: somebody has to look (runbook drill-interrupted)"
        return dg.SkipReason(told)
    # How far it came is in the key: what could not be put right is tried again, and what did not even begin, a quarter of an hour later.
    quarter = int(datetime.now(UTC).timestamp()) // 900
    return dg.RunRequest(run_key=f"recover:{drill_id}:{len(lines)}:{quarter}", job_name=recovery_job.name)


@dg.run_failure_sensor(
    name="failed_drill",
    monitored_jobs=[dr_drill_job],
    request_job=recovery_job,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="When a drill's run failed and was not undone, starts dr_drill_recovery.",
)
def failed_drill(context: dg.RunFailureSensorContext, drill_tools: dg.ResourceParam[DrillTools]) -> dg.RunRequest | dg.SkipReason:
    """See the module."""
    return _recovery(drill_tools)


@dg.sensor(
    name="interrupted_drill",
    job_name=recovery_job.name,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Finds drills that were killed outright, whose run nobody has noticed to be dead, and starts dr_drill_recovery.",
)
def interrupted_drill(
    context: dg.SensorEvaluationContext, drill_tools: dg.ResourceParam[DrillTools]
) -> dg.RunRequest | dg.SkipReason:
    """See the module."""
    return _recovery(drill_tools)


def restatements(stale: Mapping[Month, str], day: date) -> list[dg.RunRequest]:
    """One run a month. What it would be added up from is in the run key, and the day: one that failed is asked for again tomorrow."""
    return [
        dg.RunRequest(run_key=f"{month}:{state}:{day}", partition_key=month.key, tags={"cause": "new billing files"})
        for month, state in sorted(stale.items())
        if month >= FIRST_MONTH
    ]


@dg.sensor(
    name="costs_restatement",
    job=costs_rollup_job,
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Adds up billing months whose files are not those that were added up: new and late ones, corrections, other rules.",
)
def costs_restatement(
    context: dg.SensorEvaluationContext, cost_tools: dg.ResourceParam[CostTools]
) -> list[dg.RunRequest] | dg.SkipReason:
    """See the module."""
    try:
        stale = cost_tools.open_ledger().stale()
    except PipelineError as error:
        raise dg.Failure(str(error)) from error
    wanted = restatements(stale, datetime.now(UTC).date())
    if not wanted:
        return dg.SkipReason("every month is added up as its files are now")
    context.log.info(f"added up anew: {', '.join(str(m) for m in sorted(stale))}")
    return wanted
