"""What Dagster's instance knows about the pipelines now. Metrics show these facts, and alerts are decided by them.

Only the instance is read, never an asset's own store: a pipeline whose store is gone still has a last success. Watching costs a handful of
queries, whatever the history's length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain

import dagster as dg
from dagster._core.definitions.freshness import CronFreshnessPolicy, FreshnessPolicy, TimeWindowFreshnessPolicy
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecord
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus as Outcome
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, WILL_RETRY_TAG
from dagster._utils.schedules import cron_string_iterator

_RECENT_RUNS = 30
"""Of each job, looked at for its newest outcome: enough for every device and runner to be among them."""
_RETRY_S = 120
"""A run that is to be tried again is, within seconds; or never, if the code server was away at that moment."""
_MEMBERS = ("dagster/partition/device", "dagster/partition/runner")
"""Tags that tell runs of one job apart: a Jetson's success says nothing about another's failure."""
_IN_FLIGHT = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


@dataclass(frozen=True)
class Watched:
    """What there is to be watched, from the definitions."""

    assets: Mapping[dg.AssetKey, float | None]
    """Seconds after which a success is too old; None: it never is."""
    checks: Mapping[dg.AssetCheckKey, bool]
    """Whether it is blocking."""
    jobs: tuple[str, ...]


@dataclass(frozen=True)
class AssetFact:
    """An asset that was materialized at least once."""

    name: str
    last_success: float
    """Seconds of the epoch."""
    fresh_for_s: float | None
    numbers: Mapping[str, float]
    """Numeric metadata of the newest materialization."""

    def is_stale(self, now: float) -> bool:
        """Whether the last success is too old."""
        return self.fresh_for_s is not None and now - self.last_success > self.fresh_for_s


@dataclass(frozen=True)
class CheckFact:
    """The newest outcome of a check."""

    asset: str
    name: str
    passed: bool
    blocking: bool
    severity: str
    """`ERROR` or `WARN`."""
    told: str
    at: float
    run_id: str
    numbers: Mapping[str, float]

    @property
    def key(self) -> str:
        """`fixture_databases/schema_drift`."""
        return f"{self.asset}/{self.name}"


@dataclass(frozen=True)
class JobFact:
    """The newest finished run of a job, for each device or runner apart."""

    name: str
    """`runner_images`, `runner_images/mac-1`, or the assets of a run without a job."""
    succeeded: bool
    at: float
    run_id: str
    partition: str


@dataclass(frozen=True)
class Facts:
    """Everything, at one moment."""

    now: float
    assets: tuple[AssetFact, ...]
    checks: tuple[CheckFact, ...]
    jobs: tuple[JobFact, ...]
    runs: Mapping[str, int]
    """In flight, by status."""
    oldest_queued_s: float
    heartbeats: Mapping[str, float]
    """Seconds of the epoch, by daemon."""


def open_instance() -> dg.DagsterInstance:
    """The instance of DAGSTER_HOME, for `with`."""
    return dg.DagsterInstance.get()


def watched_of(repository: dg.RepositoryDefinition) -> Watched:
    """From the definitions."""
    graph = repository.asset_graph
    assets: dict[dg.AssetKey, float | None] = {}
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assets[key] = _window(node.freshness_policy)
    return Watched(assets, {key: graph.get(key).blocking for key in graph.asset_check_keys}, tuple(repository.job_names))


def _window(policy: FreshnessPolicy | None) -> float | None:
    """Seconds that may go by between two successes."""
    if isinstance(policy, TimeWindowFreshnessPolicy):
        return float(policy.fail_window.to_timedelta().total_seconds())
    if isinstance(policy, CronFreshnessPolicy):
        ticks = cron_string_iterator(datetime(2026, 1, 1, tzinfo=UTC).timestamp(), policy.deadline_cron, policy.timezone)
        first, second = next(ticks), next(ticks)
        return float((second - first + policy.lower_bound_delta).total_seconds())
    return None


def collect(instance: dg.DagsterInstance, watched: Watched, now: float | None = None) -> Facts:
    """Ask the instance.

    Args:
        instance: Dagster's.
        watched: what the definitions have.
        now: seconds of the epoch; default: the present.
    """
    now = datetime.now(UTC).timestamp() if now is None else now
    queued = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]), limit=1, ascending=True)
    return Facts(
        now=now,
        assets=tuple(_assets(instance, watched)),
        checks=tuple(_checks(instance, watched)),
        jobs=tuple(_jobs(instance, watched, now)),
        runs={s.value: instance.get_runs_count(dg.RunsFilter(statuses=[s])) for s in _IN_FLIGHT},
        oldest_queued_s=max(0.0, now - queued[0].create_timestamp.timestamp()) if queued else 0.0,
        heartbeats={name: beat.timestamp for name, beat in instance.get_daemon_heartbeats().items()},
    )


def _assets(instance: dg.DagsterInstance, watched: Watched) -> Iterable[AssetFact]:
    for record in instance.get_asset_records(list(watched.assets)):
        entry = record.asset_entry
        if (last := entry.last_materialization_record) and (made := last.asset_materialization):
            yield AssetFact(
                entry.asset_key.to_user_string(), last.timestamp, watched.assets[entry.asset_key], _numbers(made.metadata)
            )


def _checks(instance: dg.DagsterInstance, watched: Watched) -> Iterable[CheckFact]:
    storage = instance.event_log_storage
    newest = storage.get_latest_asset_check_execution_by_key(list(watched.checks))
    for key, latest in newest.items():
        record: AssetCheckExecutionRecord | None = latest
        if latest.status is Outcome.PLANNED:
            # A run is at it, or was skipped: what was found last still stands.
            ended = storage.get_asset_check_execution_history(key, limit=1, status={Outcome.SUCCEEDED, Outcome.FAILED})
            record = next(iter(ended), None)
        event = record.event.dagster_event if record and record.event else None
        if record is None or event is None:
            continue
        found = event.asset_check_evaluation_data
        yield CheckFact(
            key.asset_key.to_user_string(),
            key.name,
            record.status is Outcome.SUCCEEDED,
            watched.checks[key],
            found.severity.value,
            found.description or "",
            record.create_timestamp,
            record.run_id,
            _numbers(found.metadata),
        )


def _jobs(instance: dg.DagsterInstance, watched: Watched, now: float) -> Iterable[JobFact]:
    statuses = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    seen: set[str] = set()
    # Job by job: one that runs every quarter of an hour must not push a weekly one out of sight.
    ended = (dg.RunsFilter(job_name=job, statuses=statuses) for job in watched.jobs)
    for record in chain.from_iterable(instance.get_run_records(of_job, limit=_RECENT_RUNS) for of_job in ended):
        run = record.dagster_run
        at = record.end_time or record.update_timestamp.timestamp()
        if AUTO_RETRY_RUN_ID_TAG in run.tags or (run.tags.get(WILL_RETRY_TAG) == "true" and now - at < _RETRY_S):
            continue  # the run that tries it again speaks for both
        name = run_name(run)
        if name not in seen:
            seen.add(name)
            yield JobFact(name, run.is_success, at, run.run_id, run.tags.get("dagster/partition", ""))


def run_name(run: dg.DagsterRun) -> str:
    """The job of a run, and the device or runner that it is about; of a run without a job its assets."""
    job = run.job_name
    if job.startswith("__ASSET_JOB"):
        chosen = run.asset_selection or {key.asset_key for key in run.asset_check_selection or ()}
        job = "+".join(sorted(key.to_user_string() for key in chosen)) or "assets"
    member = next((run.tags[tag] for tag in _MEMBERS if tag in run.tags), "")
    return f"{job}/{member}" if member else job


def _numbers(metadata: Mapping[str, dg.MetadataValue]) -> dict[str, float]:
    """What is a number: neither a moment nor a truth value."""
    kinds = (dg.IntMetadataValue, dg.FloatMetadataValue)
    found = {name: float(value.value or 0) for name, value in metadata.items() if isinstance(value, kinds)}
    return {name: value for name, value in found.items() if math.isfinite(value)}
