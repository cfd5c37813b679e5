"""Runs that Dagster should have tried again and did not.

A failure is stored before the run's new status. Dagster's daemon (its event log consumer), if it looks in between, finds a run that has not
failed, and goes on for good; if the code server is away when it looks, it gives the run up. Trying again is its work all the same: it is
only made to look once more, which harms nothing, since what was tried again is not tried twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, PARTITION_NAME_TAG, RUN_FAILURE_REASON_TAG, WILL_RETRY_TAG

_WITHIN = timedelta(days=1)
"""What failed before is history."""
_READ_UP_TO = f"EVENT_LOG_CONSUMER_CURSOR-{dg.DagsterEventType.RUN_FAILURE.value}"
"""Under which the daemon keeps the number of the last failure that it has dealt with."""
_MOST_FAILURES = 1000


@dataclass(frozen=True)
class LostRetry:
    """A run that was dealt with and not tried again."""

    run: dg.DagsterRun
    event: int
    """Number of its failure among all events."""


def find_lost_retries(instance: dg.DagsterInstance, now: datetime | None = None) -> list[LostRetry]:
    """What failed within a day, should be tried again, was not, and that nobody has launched anew since.

    Args:
        instance: Dagster's.
        now: default: the clock's.
    """
    read_up_to = instance.daemon_cursor_storage.get_cursor_values({_READ_UP_TO}).get(_READ_UP_TO)
    if read_up_to is None or not instance.run_retries_enabled:
        return []
    since = (now or datetime.now(UTC)) - _WITHIN
    records = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since))
    forgotten = {
        r.dagster_run.run_id: r.dagster_run
        for r in records
        if _is_to_be_tried_again(instance, r.dagster_run) and not _is_overtaken(instance, r)
    }
    if not forgotten:
        return []
    failures = dg.RunStatusChangeRecordsFilter(dg.DagsterEventType.RUN_FAILURE, after_timestamp=since.timestamp())
    events = {e.run_id: e.storage_id for e in instance.fetch_run_status_changes(failures, limit=_MOST_FAILURES).records}
    # What comes after the cursor is still to be dealt with.
    return [LostRetry(run, events[i]) for i, run in forgotten.items() if i in events and events[i] <= int(read_up_to)]


def ask_again(instance: dg.DagsterInstance, lost: Sequence[LostRetry]) -> None:
    """Makes the daemon deal with these failures once more, and with those after them."""
    for one in lost:
        if one.run.tags.get(WILL_RETRY_TAG) != "true":
            instance.add_run_tags(one.run.run_id, {WILL_RETRY_TAG: "true"})
        instance.report_engine_event("This run should have been tried again and was not: Dagster is asked to, once more", one.run)
    if lost:
        instance.daemon_cursor_storage.set_cursor_values({_READ_UP_TO: str(min(one.event for one in lost) - 1)})


def _is_to_be_tried_again(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    if AUTO_RETRY_RUN_ID_TAG in run.tags:
        return False
    why = run.tags.get(RUN_FAILURE_REASON_TAG)
    return bool(auto_reexecution_should_retry_run(instance, run, RunFailureReason(why) if why else None))


def _is_overtaken(instance: dg.DagsterInstance, record: dg.RunRecord) -> bool:
    """Whether the same was launched since, by a schedule or by somebody who saw the failure."""
    run, partition = record.dagster_run, record.dagster_run.tags.get(PARTITION_NAME_TAG)
    later = dg.RunsFilter(
        job_name=run.job_name,
        tags={PARTITION_NAME_TAG: partition} if partition else {},
        created_after=record.create_timestamp,
    )
    return any((r.run_config, r.asset_selection) == (run.run_config, run.asset_selection) for r in instance.get_runs(later))
