from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akidb_pipelines.errors import InputError
from akidb_pipelines.periods import Week


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
