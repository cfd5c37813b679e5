from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import dagster as dg
import pytest
from dagster._utils.schedules import cron_string_iterator
from hypothesis import given
from hypothesis import strategies as st

from akidb_pipelines.definitions import build_defs
from akidb_pipelines.errors import InputError
from akidb_pipelines.periods import Week
from akidb_pipelines.settings import Settings


def test_an_iso_week_and_its_monday_are_the_same_week():
    assert Week.parse("2026-W47") == Week.parse("2026-11-16")
    assert Week.parse("2026-W47").key == "2026-11-16"


@given(st.dates(date(2000, 1, 1), date(2100, 1, 1)))
def test_every_day_belongs_to_the_week_that_python_says(day):
    week = Week.containing(day)
    assert week.monday <= day < week.monday + timedelta(days=7)
    assert Week.parse(week.iso) == Week.parse(week.key) == week


def test_week_53_exists_only_in_years_that_have_it():
    assert Week.parse("2026-W53").key == "2026-12-28"
    with pytest.raises(InputError, match="2025 has weeks 01 to 52"):
        Week.parse("2025-W53")


@pytest.mark.parametrize("text", ["2026-W54", "2026-W00", "2026-02-30", "W47", "", "2026-11", "next week"])
def test_what_is_no_week_is_refused(text):
    with pytest.raises(InputError):
        Week.parse(text)


def test_a_tuesday_is_refused_and_its_monday_is_named():
    with pytest.raises(InputError, match="Tuesday") as caught:
        Week.parse("2026-11-17")
    assert "2026-11-16" in caught.value.hint


def test_a_moment_is_taken_in_utc():
    # Monday 00:30 in Tokyo is still Sunday in UTC.
    tokyo = datetime(2026, 11, 16, 0, 30, tzinfo=timezone(timedelta(hours=9)))
    assert Week.containing(tokyo).iso == "2026-W46"
    assert Week.containing(datetime(2026, 11, 16, tzinfo=UTC)).iso == "2026-W47"


# --- schedules at the edges of the calendar; crons are in UTC, so that no hour is there twice or not at all


@pytest.fixture(scope="module")
def repository():
    return build_defs(Settings()).get_repository_def()


@pytest.mark.parametrize(
    ("name", "tick", "key"),
    [
        # 2026 has a week 53, which begins in December and ends in January.
        ("weekly_fixtures", datetime(2026, 12, 28, 2, tzinfo=UTC), "2026-12-28"),
        ("weekly_fixtures", datetime(2027, 1, 4, 2, tzinfo=UTC), "2027-01-04"),
        # Europe's clocks go back on 25 October 2026, and forward on 28 March 2027.
        ("daily_backups", datetime(2026, 10, 25, 1, tzinfo=UTC), "2026-10-25"),
        ("daily_backups", datetime(2027, 3, 28, 1, tzinfo=UTC), "2027-03-28"),
        ("costs_intake", datetime(2027, 3, 29, 6, tzinfo=UTC), "2027-03-28"),
        # A leap day.
        ("daily_backups", datetime(2028, 2, 29, 1, tzinfo=UTC), "2028-02-29"),
        ("dr_drill", datetime(2027, 2, 15, 9, tzinfo=UTC), "2027-01-01"),
    ],
)
def test_a_tick_asks_for_the_right_partition_once(repository, name, tick, key):
    # The partition must exist at that moment, for Dagster refuses others.
    with (
        dg.partition_loading_context(effective_dt=tick + timedelta(seconds=1)),
        dg.build_schedule_context(scheduled_execution_time=tick, repository_def=repository) as context,
    ):
        asked = repository.get_schedule_def(name).evaluate_tick(context).run_requests
    assert [request.partition_key for request in asked] == [key]


def test_crons_fire_once_on_days_with_23_or_25_hours(repository):
    for day in (datetime(2026, 10, 25, tzinfo=UTC), datetime(2027, 3, 28, tzinfo=UTC)):
        ticks = cron_string_iterator(day.timestamp() - 1, repository.get_schedule_def("daily_backups").cron_schedule, "UTC")
        assert [next(ticks).day for _ in range(2)] == [day.day, (day + timedelta(days=1)).day]
