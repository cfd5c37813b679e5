"""The code location that is broken on purpose: jobs whose steps leave marks in a folder, so that what ran how often can be counted."""

import os
import time
from pathlib import Path

import dagster as dg

from schedules.retries import lost_retries

MARKS = Path(os.environ.get("CHAOS_MARKS", "."))
DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_offset=1)


def mark(name: str) -> int:
    """Leave a mark, and return how many there are now."""
    with (MARKS / name).open("a") as marks:
        marks.write(f"{os.getpid()}\n")
    return len((MARKS / name).read_text().splitlines())


@dg.op
def first() -> int:
    """Done at once."""
    return mark("first")


@dg.op
def lasts(context: dg.OpExecutionContext, number: int) -> None:
    """Lasts until somebody leaves the mark `go-on`, a minute at most."""
    context.log.info(f"after first {number}")
    mark("lasts")
    end = time.monotonic() + 60
    while not (MARKS / "go-on").exists() and time.monotonic() < end:
        time.sleep(0.1)
    mark("lasted")


@dg.job(executor_def=dg.in_process_executor)
def two_steps() -> None:
    """The second one can be killed."""
    lasts(first())


@dg.op(config_schema={"name": str})
def short(context: dg.OpExecutionContext) -> None:
    """Marks that it ran, after three seconds in which it can be killed."""
    time.sleep(3)
    mark(context.op_config["name"])


@dg.job(executor_def=dg.in_process_executor)
def burst() -> None:
    """One of many."""
    short()


@dg.op(retry_policy=dg.RetryPolicy(max_retries=4, delay=4))
def writes_events(context: dg.OpExecutionContext) -> None:
    """Writes an event every tenth of a second for twelve seconds: it needs the database all the time."""
    mark("writes_events")
    for number in range(120):
        context.log_event(dg.AssetObservation("watched", metadata={"number": number}))
        time.sleep(0.1)


@dg.job(executor_def=dg.in_process_executor)
def needs_database() -> None:
    """For the outage of PostgreSQL."""
    writes_events()


@dg.op
def fails_when_told() -> None:
    """Fails while there is the mark `break`."""
    if (MARKS / "break").exists():
        raise dg.Failure("as told")


@dg.job(name="backups", executor_def=dg.in_process_executor)
def breaks_when_told() -> None:
    """For alerts. It has the name of a job of ours: the exporter knows those."""
    fails_when_told()


@dg.asset(partitions_def=DAYS)
def daily(context: dg.AssetExecutionContext) -> None:
    """One a day."""
    mark(f"daily-{context.partition_key}")


daily_job = dg.define_asset_job("daily_job", ["daily"])


@dg.schedule(job=daily_job, cron_schedule="0 1 * * *", default_status=dg.DefaultScheduleStatus.RUNNING, execution_timezone="UTC")
def every_day(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """A partition a tick."""
    key = context.scheduled_execution_time.date().isoformat()
    return dg.RunRequest(run_key=key, partition_key=key)


defs = dg.Definitions(
    assets=[daily],
    jobs=[two_steps, burst, needs_database, breaks_when_told, daily_job],
    schedules=[every_day],
    sensors=[lost_retries],
)
