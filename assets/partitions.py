"""The partitions that data is filed under (UTC). What belongs here: definitions only. Keys are checked by `akidb_pipelines.periods`."""

from __future__ import annotations

import dagster as dg

from akidb_pipelines.periods import FIRST_WEEK

# day_offset=1: weeks begin on Monday. end_offset=1: the running week exists from its first moment, which is when it is built.
WEEKS = dg.WeeklyPartitionsDefinition(start_date=FIRST_WEEK.key, day_offset=1, end_offset=1)
