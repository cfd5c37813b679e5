"""Runs that Dagster should have tried again and did not.

A failure is stored before the run's new status. Dagster's daemon (its event log consumer), if it looks in between, finds a run that has not
failed, and goes on for good; if the code server is away when it looks, it gives the run up. Trying again is its work all the same: its
cursor is set back, so that it looks once more. What it has tried again it does not try twice, and of a failed step it says once more that it
stays one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, RUN_FAILURE_REASON_TAG, WILL_RETRY_TAG

_WITHIN = timedelta(hours=6)
"""What failed before, people have dealt with."""
_TIMES = 3
"""How often the daemon is asked: what it refuses then, it has a reason to (the job is gone, the backfill was canceled)."""
_ASKED = "akidb/asked_again"
"""Tag of a run: how often that was."""
_READ_UP_TO = f"EVENT_LOG_CONSUMER_CURSOR-{dg.DagsterEventType.RUN_FAILURE.value}"
"""Under which the daemon keeps the number of the last failure that it has dealt with."""
_MOST_FAILURES = 1000


@dataclass(frozen=True)
class Retries:
    """What was found, and done about it."""

    asked: tuple[dg.DagsterRun, ...] = ()
    """Dagster was asked to look at them once more."""
    given_up: tuple[dg.DagsterRun, ...] = ()
    """Nothing tries them again: asked often enough, or somebody has done it by hand."""


def ask_again(instance: dg.DagsterInstance, now: datetime | None = None) -> Retries:
    """Find what was lost within six hours, and make the daemon look at it once more.

    Args:
        instance: Dagster's.
        now: default: the clock's.
    """
    read_up_to = instance.daemon_cursor_storage.get_cursor_values({_READ_UP_TO}).get(_READ_UP_TO)
    if read_up_to is None or not instance.run_retries_enabled:
        return Retries()
    since = (now or datetime.now(UTC)) - _WITHIN
    failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=since))
    open_ends = [run for run in failed if AUTO_RETRY_RUN_ID_TAG not in run.tags]
    wanted = {run.run_id for run in open_ends if _is_to_be_tried_again(instance, run)}
    open_ends = [run for run in open_ends if run.run_id in wanted or run.tags.get(WILL_RETRY_TAG) == "true"]
    if not open_ends:
        return Retries()
    failures = dg.RunStatusChangeRecordsFilter(dg.DagsterEventType.RUN_FAILURE, after_timestamp=since.timestamp())
    events = {e.run_id: e.storage_id for e in instance.fetch_run_status_changes(failures, limit=_MOST_FAILURES).records}
    # What comes after the cursor is still to be dealt with.
    lost = [run for run in open_ends if run.run_id in events and events[run.run_id] <= int(read_up_to)]
    asked = tuple(run for run in lost if run.run_id in wanted)
    given_up = tuple(run for run in lost if run.run_id not in wanted)
    for run in given_up:
        # Else the daemon, whose cursor goes back for others, would believe the tag; so would a backfill, and wait.
        instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "false"})
    for run in asked:
        instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "true", _ASKED: str(_asked(run) + 1)})
        instance.report_engine_event("This run should have been tried again and was not: Dagster is asked to, once more", run)
    if asked:
        instance.daemon_cursor_storage.set_cursor_values({_READ_UP_TO: str(min(events[run.run_id] for run in asked) - 1)})
    return Retries(asked, given_up)


def _asked(run: dg.DagsterRun) -> int:
    told = run.tags.get(_ASKED, "0")
    return int(told) if told.isdecimal() else 0  # whoever administers may write anything; it must not stop the others' retries


def _is_to_be_tried_again(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """By Dagster's own rules, which count what somebody has started again by hand; not what was asked for often enough."""
    why = run.tags.get(RUN_FAILURE_REASON_TAG)
    return (
        _asked(run) < _TIMES
        and run.remote_job_origin is not None
        and bool(auto_reexecution_should_retry_run(instance, run, RunFailureReason(why) if why else None))
    )
