"""The partitions that data is filed under (UTC). What belongs here: definitions only. Keys are checked by `akidb_pipelines.periods`."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from akidb_pipelines.periods import FIRST_DAY, FIRST_MONTH, FIRST_QUARTER, FIRST_WEEK

# day_offset=1: weeks begin on Monday. end_offset=1: the running week exists from its first moment, which is when it is built.
WEEKS = dg.WeeklyPartitionsDefinition(start_date=FIRST_WEEK.key, day_offset=1, end_offset=1)

# What is taken today is filed under today, from its first moment.
DAYS = dg.DailyPartitionsDefinition(start_date=FIRST_DAY.isoformat(), end_offset=1)

# What arrived on a day is complete when the day is over.
ARRIVAL_DAYS = dg.DailyPartitionsDefinition(start_date=FIRST_DAY.isoformat())

# The running billing month exists from its first moment.
MONTHS = dg.MonthlyPartitionsDefinition(start_date=FIRST_MONTH.key, end_offset=1)

# Without end_offset=1 the running quarter would not exist on the day of its drill.
QUARTERS = dg.TimeWindowPartitionsDefinition(
    start=FIRST_QUARTER.key, fmt="%Y-%m-%d", cron_schedule="0 0 1 1,4,7,10 *", timezone="UTC", end_offset=1
)

MONTH, DEVICE = "month", "device"
WEEK, RUNNER = "week", "runner"


def jetson_months(devices: Sequence[str]) -> dg.MultiPartitionsDefinition:
    """Months times devices; a key is `jetson-a|2026-11-01`. The running month exists from its first moment."""
    months = dg.MonthlyPartitionsDefinition(start_date=FIRST_MONTH.key, end_offset=1)
    return dg.MultiPartitionsDefinition({MONTH: months, DEVICE: dg.StaticPartitionsDefinition(list(devices))})


def runner_weeks(runners: Sequence[str]) -> dg.MultiPartitionsDefinition:
    """Weeks times runners; a key is `docker|2026-11-16`."""
    return dg.MultiPartitionsDefinition({WEEK: WEEKS, RUNNER: dg.StaticPartitionsDefinition(list(runners))})
