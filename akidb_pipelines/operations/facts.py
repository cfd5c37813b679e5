"""What Dagster's instance knows about the pipelines now. Metrics show these facts, and alerts are decided by them.

Only the instance is read, never an asset's own store: a pipeline whose store is gone still has a last success. Watching costs a handful of
queries, whatever the history's length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain

import dagster as dg
from dagster._core.definitions.freshness import CronFreshnessPolicy, FreshnessPolicy, TimeWindowFreshnessPolicy
from dagster._core.scheduler.instigation import InstigatorStatus, InstigatorType, SensorInstigatorData, TickStatus
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus as Outcome
from dagster._core.storage.tags import ASSET_RESUME_RETRY_TAG, AUTO_RETRY_RUN_ID_TAG, RESUME_RETRY_TAG, WILL_RETRY_TAG
from dagster._utils.schedules import cron_string_iterator

_RECENT_RUNS, _RECENT_BY_HAND, _RECENT_OF_MEMBER = 15, 100, 10
"""Finished runs that are looked at for newest outcomes: of each job, of what was started without one, of each device and runner."""
_OLDER_OF_MEMBER = 50
"""Further ones of a device or runner, for checks that none of the recent ones has come to: builds may have failed before them for weeks."""
_RETRY_S = 120
"""A run that is to be tried again is, within seconds; within a minute or so if Dagster lost it (retries.py)."""
_DIMENSIONS = ("device", "runner")
"""Of partitions, that tell apart what has nothing to do with each other: a Jetson's success says nothing about another's failure."""
_FAILING_TICKS = 3
"""So many failures in a row of a sensor are no accident."""
_ENDED_TICKS = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
_IN_FLIGHT = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


@dataclass(frozen=True)
class Members:
    """Devices or runners that an asset is partitioned by; none, where the inventory has none."""

    dimension: str
    names: frozenset[str]


@dataclass(frozen=True)
class Watched:
    """What there is to be watched, from the definitions."""

    assets: Mapping[dg.AssetKey, float | None]
    """Seconds after which a success is too old; None: it never is."""
    checks: Mapping[dg.AssetCheckKey, bool]
    """Whether it is blocking."""
    jobs: tuple[str, ...]
    members: Mapping[dg.AssetKey, Members]
    """Of assets that have them."""
    parts: Mapping[str, frozenset[dg.AssetKey]]
    """Assets of a job: a run of some of them says nothing about the rest."""
    steps: Mapping[str, frozenset[str]]
    """Steps of a job, likewise."""
    sensors: frozenset[str]
    """By name; of one that is gone Dagster keeps its last ticks for ever."""


Member = tuple[str, str]
"""Dimension and name: `("runner", "docker")`."""


def _labelled(name: str, member: str) -> str:
    return f"{name}/{member}" if member else name


@dataclass(frozen=True)
class AssetFact:
    """An asset that was materialized at least once; of one that is partitioned by devices or runners, one of these."""

    name: str
    member: str
    """Device or runner; empty for most."""
    last_success: float
    """Of its newest period, in seconds of the epoch: making up an old one does not make it fresh."""
    fresh_for_s: float | None
    numbers: Mapping[str, float]
    """Numeric metadata of the newest materialization."""

    @property
    def label(self) -> str:
        """`runner_image_release/docker`."""
        return _labelled(self.name, self.member)

    def is_stale(self, now: float) -> bool:
        """Whether the last success is too old."""
        return self.fresh_for_s is not None and now - self.last_success > self.fresh_for_s


@dataclass(frozen=True)
class CheckFact:
    """The newest outcome of a check, for each device or runner apart."""

    asset: str
    name: str
    member: str
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

    @property
    def label(self) -> str:
        """`runner_image_archive/tools/docker`."""
        return _labelled(self.key, self.member)


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
class SensorFact:
    """A sensor that is switched on."""

    name: str
    at: float
    """When it was last evaluated, in seconds of the epoch."""
    failing: bool
    """Several times in a row."""


@dataclass(frozen=True)
class Facts:
    """Everything, at one moment."""

    now: float
    assets: tuple[AssetFact, ...]
    checks: tuple[CheckFact, ...]
    jobs: tuple[JobFact, ...]
    sensors: tuple[SensorFact, ...]
    runs: Mapping[str, int]
    """In flight, by status."""
    oldest_queued_s: float
    heartbeats: Mapping[str, float]
    """Seconds of the epoch, by daemon that this instance needs."""


def open_instance() -> dg.DagsterInstance:
    """The instance of DAGSTER_HOME, for `with`."""
    return dg.DagsterInstance.get()


def where(instance: dg.DagsterInstance) -> str:
    """Where the instance keeps its runs, without passwords: what somebody who looked at the wrong one has to know."""
    from sqlalchemy import make_url

    url = getattr(instance.run_storage, "postgres_url", "")
    return make_url(url).render_as_string(hide_password=True) if url else instance.root_directory


def watched_of(repository: dg.RepositoryDefinition) -> Watched:
    """From the definitions."""
    graph = repository.asset_graph
    nodes = {key: graph.get(key) for key in graph.get_all_asset_keys()}
    jobs = repository.get_all_jobs()
    return Watched(
        {key: _window(node.freshness_policy) for key, node in nodes.items()},
        {key: graph.get(key).blocking for key in graph.asset_check_keys},
        tuple(repository.job_names),
        {key: members for key, node in nodes.items() if (members := _members(node.partitions_def))},
        {job.name: frozenset(job.asset_layer.executable_asset_keys) for job in jobs},
        {job.name: frozenset(node.name for node in job.nodes) for job in jobs},
        frozenset(sensor.name for sensor in repository.sensor_defs),
    )


def _members(partitions: dg.PartitionsDefinition | None) -> Members | None:
    if not isinstance(partitions, dg.MultiPartitionsDefinition):
        return None
    of_both = ((d.name, d.partitions_def) for d in partitions.partitions_defs)
    return next((Members(name, frozenset(of.get_partition_keys())) for name, of in of_both if name in _DIMENSIONS), None)


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
    # All of them: behind a backfill of many that take hours stands one that should not wait.
    queued = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]), ascending=True)
    # Those that take hours wait for each other for hours, as they should.
    waiting = [record.create_timestamp.timestamp() for record in queued if "akidb/long" not in record.dagster_run.tags]
    of_members = _runs_of_members(instance, watched)
    checks = (*_checks(instance, watched), *_checks_of_members(instance, watched, of_members))
    succeeded, assets = {c.label: c.at for c in checks}, []
    for asset, at in _assets(instance, watched):
        assets.append(asset)
        succeeded[asset.label] = at
    needed = {*instance.get_required_daemon_types()}
    return Facts(
        now=now,
        assets=tuple(assets),
        checks=checks,
        jobs=tuple(_jobs(instance, watched, _newest_runs(instance, watched, of_members), succeeded, now)),
        sensors=tuple(_sensors(instance, watched)),
        runs={s.value: instance.get_runs_count(dg.RunsFilter(statuses=[s])) for s in _IN_FLIGHT},
        oldest_queued_s=max(0.0, now - waiting[0]) if waiting else 0.0,
        heartbeats={name: beat.timestamp for name, beat in instance.get_daemon_heartbeats().items() if name in needed},
    )


def _assets(instance: dg.DagsterInstance, watched: Watched) -> Iterable[tuple[AssetFact, float]]:
    """Each with when it last succeeded, for whichever period."""
    for record in instance.get_asset_records([*watched.assets]):
        key, last = record.asset_entry.asset_key, record.asset_entry.last_materialization_record
        if last is None:
            continue
        window, members = watched.assets[key], watched.members.get(key)
        found = _by_member(instance, key, members) if members or window is not None else {}
        if not found and not members:
            found = {"": (last, last.timestamp)}
        for member, (newest, at) in found.items():
            if made := newest.asset_materialization:
                yield AssetFact(key.to_user_string(), member, newest.timestamp, window, _numbers(made.metadata)), at


def _by_member(
    instance: dg.DagsterInstance, key: dg.AssetKey, members: Members | None
) -> Mapping[str, tuple[dg.EventLogRecord, float]]:
    """Of each device or runner that is still known: the last success of its newest period, and when any succeeded last."""
    newest: dict[str, tuple[str, int]] = {}
    last: dict[str, int] = {}
    of_partition = instance.get_latest_storage_id_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION)
    for partition, storage_id in of_partition.items():
        member, _, period = partition.rpartition("|")  # 2026-11-16, or docker|2026-11-16
        if members is None or member in members.names:
            newest[member] = max(newest.get(member, ("", 0)), (period, storage_id))
            last[member] = max(last.get(member, 0), storage_id)
    ids = {*last.values(), *(storage_id for _, storage_id in newest.values())}
    if not ids:
        return {}
    of_key = dg.AssetRecordsFilter(key, storage_ids=[*ids])
    records = {r.storage_id: r for r in instance.fetch_materializations(of_key, limit=len(ids)).records}
    return {member: (records[storage_id], records[last[member]].timestamp) for member, (_, storage_id) in newest.items()}


def _runs_of_members(instance: dg.DagsterInstance, watched: Watched) -> Mapping[Member, Sequence[dg.RunRecord]]:
    """The newest finished runs about each device and runner. Asked one by one: whatever else ran since pushes none out of sight."""
    members = sorted({(m.dimension, name) for m in watched.members.values() for name in m.names})
    return {member: instance.get_run_records(_ended_of(member), limit=_RECENT_OF_MEMBER) for member in members}


def _ended_of(member: Member) -> dg.RunsFilter:
    dimension, name = member
    return dg.RunsFilter(tags={f"dagster/partition/{dimension}": name}, statuses=_ENDED)


def _checks(instance: dg.DagsterInstance, watched: Watched) -> Iterable[CheckFact]:
    storage = instance.event_log_storage
    ended = {Outcome.SUCCEEDED, Outcome.FAILED}
    whole = {key for key in watched.checks if key.asset_key not in watched.members}
    for key, latest in storage.get_latest_asset_check_execution_by_key([*whole]).items():
        if key not in whole:
            continue  # of an asset that no longer has it: Dagster asks for assets and names apart
        # While a run is at it, or after one that was skipped, what was found last still stands.
        records = [latest] if latest.status in ended else storage.get_asset_check_execution_history(key, limit=1, status=ended)
        for record in records:
            if record.event and (event := record.event.dagster_event):
                yield _check(watched, event.asset_check_evaluation_data, "", record.create_timestamp, record.run_id)


def _checks_of_members(
    instance: dg.DagsterInstance, watched: Watched, runs: Mapping[Member, Sequence[dg.RunRecord]]
) -> Iterable[CheckFact]:
    """A run is about one device or runner, and mostly has all checks of its assets: the newest tells enough."""
    for (dimension, member), records in runs.items():
        assets = {key for key, of in watched.members.items() if of.dimension == dimension and member in of.names}
        missing = {key for key in watched.checks if key.asset_key in assets}
        yield from _evaluated(instance, watched, member, missing, records)
        if missing and len(records) == _RECENT_OF_MEMBER:
            missing &= {*instance.event_log_storage.get_latest_asset_check_execution_by_key([*missing])}  # else none has begun yet
            before = records[-1].dagster_run.run_id
            older = (
                instance.get_run_records(_ended_of((dimension, member)), limit=_OLDER_OF_MEMBER, cursor=before) if missing else []
            )
            yield from _evaluated(instance, watched, member, missing, older)


def _evaluated(
    instance: dg.DagsterInstance, watched: Watched, member: str, missing: set[dg.AssetCheckKey], records: Sequence[dg.RunRecord]
) -> Iterable[CheckFact]:
    """The newest outcomes in these runs of what is missing, which is less then."""
    for run_id in (record.dagster_run.run_id for record in records):
        if not missing:
            return
        told = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION, ascending=False)
        for record in told.records:
            event = record.event_log_entry.dagster_event
            if event and (key := event.asset_check_evaluation_data.asset_check_key) in missing:
                missing.remove(key)
                yield _check(watched, event.asset_check_evaluation_data, member, record.timestamp, run_id)


def _check(watched: Watched, found: dg.AssetCheckEvaluation, member: str, at: float, run_id: str) -> CheckFact:
    key = found.asset_check_key
    return CheckFact(
        key.asset_key.to_user_string(),
        key.name,
        member,
        found.passed,
        watched.checks[key],
        found.severity.value,
        found.description or "",
        at,
        run_id,
        _numbers(found.metadata),
    )


def _newest_runs(
    instance: dg.DagsterInstance, watched: Watched, of_members: Mapping[Member, Sequence[dg.RunRecord]]
) -> list[dg.RunRecord]:
    """Finished ones, newest first. Job by job: one that runs every quarter of an hour must not push a weekly one out of sight."""
    found = {r.storage_id: r for records in of_members.values() for r in records if r.dagster_run.job_name in watched.jobs}
    for job in watched.jobs:
        limit = _RECENT_BY_HAND if _is_by_hand(job) else _RECENT_RUNS
        of_job = instance.get_run_records(dg.RunsFilter(job_name=job, statuses=_ENDED), limit=limit)
        found.update((record.storage_id, record) for record in of_job)
    return [found[storage_id] for storage_id in sorted(found, reverse=True)]


def _jobs(
    instance: dg.DagsterInstance, watched: Watched, records: Sequence[dg.RunRecord], succeeded: Mapping[str, float], now: float
) -> Iterable[JobFact]:
    known = frozenset({"", *chain.from_iterable(m.names for m in watched.members.values())})
    runs = {record.dagster_run.run_id: record.dagster_run for record in records}
    seen: dict[str, JobFact] = {}
    for record in records:
        run, member = record.dagster_run, _member(record.dagster_run)
        at = record.end_time or record.update_timestamp.timestamp()
        if AUTO_RETRY_RUN_ID_TAG in run.tags or (run.tags.get(WILL_RETRY_TAG) == "true" and now - at < _RETRY_S):
            continue  # the run that tries it again speaks for both
        asked = run
        while _goes_on(asked) and (begun := runs.get(parent := asked.parent_run_id or "") or instance.get_run_by_id(parent)):
            asked = begun
        name = subject_of(asked, watched)
        if name in seen or member not in known:
            continue
        # What was started by hand and failed is over when all of it has succeeded since, by whichever run.
        made_good = [
            max(succeeded.get(one, 0.0), succeeded.get(_labelled(one, member), 0.0)) > at for one in _chosen(asked, watched)
        ]
        whole = seen.get(_labelled(run.job_name, member))
        is_good = run.is_success or (bool(made_good) and all(made_good)) or (whole is not None and whole.succeeded)
        seen[name] = JobFact(name, is_good, at, run.run_id, run.tags.get("dagster/partition", ""))
    return seen.values()


def _sensors(instance: dg.DagsterInstance, watched: Watched) -> Iterable[SensorFact]:
    on = {InstigatorStatus.RUNNING, InstigatorStatus.DECLARED_IN_CODE}
    found: dict[str, SensorFact] = {}
    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR, instigator_statuses=on):
        name, told = state.instigator_name, state.instigator_data
        if name not in watched.sensors or not isinstance(told, SensorInstigatorData) or not told.last_tick_timestamp:
            continue
        if (other := found.get(name)) and other.at > told.last_tick_timestamp:
            continue  # the same sensor under another location's name, from before
        # One that has just begun says nothing: of a sensor that is always at it, it would be the newest each time.
        ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=_FAILING_TICKS, statuses=_ENDED_TICKS)
        failing = len(ticks) == _FAILING_TICKS and all(tick.status is TickStatus.FAILURE for tick in ticks)
        found[name] = SensorFact(name, told.last_tick_timestamp, failing)
    return found.values()


def subject_of(run: dg.DagsterRun, watched: Watched) -> str:
    """The job of a run, and the device or runner that it is about; of a run of some assets or checks these."""
    return _labelled("+".join(_chosen(run, watched)) or run.job_name, _member(run))


def _chosen(run: dg.DagsterRun, watched: Watched) -> list[str]:
    """Assets, checks or steps that a run is narrowed to; none for a whole job."""
    assets, checks = run.asset_selection or set(), run.asset_check_selection or set()
    by_hand = _is_by_hand(run.job_name)
    if not by_hand and assets and assets >= watched.parts.get(run.job_name, frozenset()):
        assets, checks = set(), set()  # the UI names all of them
    if chosen := sorted(k.to_user_string() for k in assets) or sorted(f"{k.asset_key.to_user_string()}/{k.name}" for k in checks):
        return chosen
    if by_hand:
        return ["assets"]
    steps = set(run.step_keys_to_execute or ())
    is_part = run.parent_run_id and steps and not steps >= watched.steps.get(run.job_name, steps) and not _goes_on(run)
    return sorted(steps) if is_part else []


def _goes_on(run: dg.DagsterRun) -> bool:
    """Whether it does what another run left, and so speaks for all that that one was started for."""
    return "true" in {run.tags.get(RESUME_RETRY_TAG), run.tags.get(ASSET_RESUME_RETRY_TAG)}


def _is_by_hand(job: str) -> bool:
    """Whether it is Dagster's own, of assets that were started without a job."""
    return job.startswith("__ASSET_JOB")


def _member(run: dg.DagsterRun) -> str:
    """Of `docker|2026-11-16` the runner; empty where there is none."""
    return run.tags.get("dagster/partition", "").rpartition("|")[0]


def _numbers(metadata: Mapping[str, dg.MetadataValue]) -> dict[str, float]:
    """What is a number: neither a moment nor a truth value."""
    kinds = (dg.IntMetadataValue, dg.FloatMetadataValue)
    found = {name: float(value.value or 0) for name, value in metadata.items() if isinstance(value, kinds)}
    return {name: value for name, value in found.items() if math.isfinite(value)}
