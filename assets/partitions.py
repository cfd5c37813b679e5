"""The partitions that data is filed under (UTC). What belongs here: definitions only. Keys are checked by `akidb_pipelines.periods`."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from akidb_pipelines.periods import FIRST_MONTH, FIRST_WEEK

# day_offset=1: weeks begin on Monday. end_offset=1: the running week exists from its first moment, which is when it is built.
WEEKS = dg.WeeklyPartitionsDefinition(start_date=FIRST_WEEK.key, day_offset=1, end_offset=1)

MONTH, DEVICE = "month", "device"
WEEK, RUNNER = "week", "runner"


def jetson_months(devices: Sequence[str]) -> dg.MultiPartitionsDefinition:
    """Months times devices; a key is `jetson-a|2026-11-01`. The running month exists from its first moment."""
    months = dg.MonthlyPartitionsDefinition(start_date=FIRST_MONTH.key, end_offset=1)
    return dg.MultiPartitionsDefinition({MONTH: months, DEVICE: dg.StaticPartitionsDefinition(list(devices))})


def runner_weeks(runners: Sequence[str]) -> dg.MultiPartitionsDefinition:
    """Weeks times runners; a key is `docker|2026-11-16`."""
    return dg.MultiPartitionsDefinition({WEEK: WEEKS, RUNNER: dg.StaticPartitionsDefinition(list(runners))})
