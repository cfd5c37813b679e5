"""Forgetting old runs. Dagster keeps every run and event for ever, some 22 kB a run, and deleting a run deletes its part of the history.

Hence what is kept is decided by what a run made: of every asset partition the newest N materializations, of every check the newest N
outcomes, of every job the newest N runs whatever came of them, and for 90 days what a sensor asked for: that it has a run is how the sensor
knows not to ask again. Runs in flight are never touched. What nothing of that holds is deleted, with its events and logs; so are logs of
ticks that are older than the ticks themselves.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus as Outcome
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.tags import RUN_KEY_TAG, SENSOR_NAME_TAG

from akidb_pipelines.operations.facts import Watched, subject_of
from akidb_pipelines.progress import Progress, Report

_PAGE = 1000
_KEYS_KEPT = _TICKS_KEPT = timedelta(days=90)
"""The longest that dagster.yaml keeps ticks."""
_OUTCOMES = {Outcome.SUCCEEDED, Outcome.FAILED}
_DELETED = "deleting runs"


@dataclass(frozen=True)
class Forgotten:
    """What is forgotten, or would be."""

    kept: int
    deleted: tuple[str, ...]
    """Run ids, oldest first."""
    by_job: dict[str, int]
    """How many of each job."""
    reasons: dict[str, int]
    """Why runs were kept, by the first reason that holds."""
    tick_logs: int
    """Files."""


def prune(
    instance: dg.DagsterInstance, watched: Watched, keep: int, *, dry_run: bool, report: Report = lambda _: None
) -> Forgotten:
    """Delete what is not held.

    Args:
        instance: Dagster's.
        watched: what the definitions have.
        keep: N of the rules above, at least 1.
        dry_run: only say it.
        report: told the progress.
    """
    report(Progress("reading the history"))
    held = _held(instance, watched, keep)
    jobs: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    deleted: list[tuple[str, str]] = []
    recent = datetime.now(UTC) - _KEYS_KEPT
    for record in _pages(lambda cursor: instance.get_run_records(cursor=cursor, limit=_PAGE)):
        run = record.dagster_run
        name = subject_of(run, watched)
        jobs[name] += 1
        if not run.is_finished:
            reasons["in flight"] += 1
        elif run.run_id in held:
            reasons[held[run.run_id]] += 1
        elif jobs[name] <= keep:
            reasons["newest runs of a job"] += 1
        elif RUN_KEY_TAG in run.tags and SENSOR_NAME_TAG in run.tags and record.create_timestamp > recent:
            reasons["asked for by a sensor within 90 days"] += 1
        else:
            deleted.append((run.run_id, name))
    deleted.reverse()
    if not dry_run:
        for number, (run_id, _) in enumerate(deleted):
            report(Progress(_DELETED, number, len(deleted)))
            _delete(instance, run_id)
        report(Progress(_DELETED, len(deleted), len(deleted)))
    old = _tick_logs(instance, time.time() - _TICKS_KEPT.total_seconds())
    for path in () if dry_run else old:
        path.unlink(missing_ok=True)
    return Forgotten(
        sum(reasons.values()),
        tuple(run_id for run_id, _ in deleted),
        dict(Counter(name for _, name in deleted)),
        dict(reasons),
        len(old),
    )


def _held(instance: dg.DagsterInstance, watched: Watched, keep: int) -> dict[str, str]:
    """Why a run must stay, by its id."""
    held: dict[str, str] = {}
    for key in instance.all_asset_keys():
        for which in (instance.fetch_materializations, instance.fetch_observations):
            seen: Counter[str | None] = Counter()
            cursor: str | None = None
            while True:
                page = which(dg.AssetRecordsFilter(asset_key=key), limit=_PAGE, cursor=cursor)
                for record in page.records:
                    partition = record.partition_key
                    seen[partition] += 1
                    if seen[partition] <= keep:
                        held.setdefault(record.run_id, "newest materializations of an asset partition")
                if not page.has_more:
                    break
                cursor = page.cursor
    for check in watched.checks:
        for outcome in instance.event_log_storage.get_asset_check_execution_history(check, limit=keep, status=_OUTCOMES):
            held.setdefault(outcome.run_id, "newest outcomes of a check")
    return held


def _pages(fetch: Callable[[str | None], Sequence[dg.RunRecord]]) -> Iterator[dg.RunRecord]:
    cursor = None
    while page := fetch(cursor):
        yield from page
        cursor = page[-1].dagster_run.run_id


def _tick_logs(instance: dg.DagsterInstance, before: float) -> list[Path]:
    """Files of ticks that have ended before, in seconds of the epoch: Dagster deletes the ticks alone."""
    manager = instance.compute_log_manager
    if not isinstance(manager, LocalComputeLogManager):
        return []
    base = Path(manager.get_captured_local_path(["any"], "err")).parent
    # REPOSITORY/SENSOR/TICK.err; of runs it is RUN/compute_logs/STEP.err.
    return [p for p in base.glob("*/*/*.err") if p.parent.name != "compute_logs" and p.stat().st_mtime < before]


def _delete(instance: dg.DagsterInstance, run_id: str) -> None:
    instance.delete_run(run_id)
    if isinstance(instance.event_log_storage, SqlEventLogStorage):
        # Dagster leaves these rows, each with its event.
        with instance.event_log_storage.index_connection() as connection:
            connection.execute(AssetCheckExecutionsTable.delete().where(AssetCheckExecutionsTable.c.run_id == run_id))
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        # Its rows are gone; the file that held them stays otherwise, one for every run there ever was.
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{storage.path_for_shard(run_id)}{suffix}").unlink(missing_ok=True)
