"""Calendar periods that data is filed under, and the two spellings that people use for them.

Storage and Dagster use the first day (`2026-11-16`); people and file names use the ISO week (`2026-W47`). Everything is UTC.
A day that does not begin a period is refused: Dagster would quietly take the next window.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from akidb_pipelines.errors import InputError

_ISO_WEEK = re.compile(r"(\d{4})-W(\d{2})")
_MONTH = re.compile(r"(\d{4})-(\d{2})(?:-(\d{2}))?")
_QUARTER = re.compile(r"(\d{4})-Q([1-4])")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, order=True)
class Week:
    """An ISO week, named by its Monday."""

    monday: date

    def __post_init__(self) -> None:
        if self.monday.isoweekday() != 1:
            raise _not_a_monday(self.monday)

    @classmethod
    def parse(cls, text: str) -> Week:
        """Read `2026-W47` or the Monday `2026-11-16`.

        Raises:
            InputError: no such week, or a day that is no Monday.
        """
        text = text.strip()
        if iso := _ISO_WEEK.fullmatch(text):
            year, number = int(iso[1]), int(iso[2])
            try:
                return cls(date.fromisocalendar(year, number, 1))
            except ValueError:
                last = date(year, 12, 28).isocalendar().week if year else 52
                raise InputError(
                    f"{text} is no week: {year} has weeks 01 to {last}", hint="write a week such as 2026-W47"
                ) from None
        if _DAY.fullmatch(text):
            try:
                day = date.fromisoformat(text)
            except ValueError:
                raise InputError(f"{text} is no day of the calendar", hint="write a week such as 2026-W47") from None
            return cls(day)
        raise InputError(f"{text!r} is no week", hint="write an ISO week (2026-W47) or its Monday (2026-11-16)")

    @classmethod
    def containing(cls, moment: datetime | date) -> Week:
        """The week that a day, or an aware moment (in UTC), falls into."""
        if isinstance(moment, datetime):
            moment = moment.astimezone(UTC).date()
        return cls(moment - timedelta(days=moment.isoweekday() - 1))

    @property
    def iso(self) -> str:
        """`2026-W47`."""
        year, number, _ = self.monday.isocalendar()
        return f"{year:04d}-W{number:02d}"

    @property
    def key(self) -> str:
        """The Dagster partition key: the Monday, `2026-11-16`."""
        return self.monday.isoformat()

    @property
    def start(self) -> datetime:
        """Monday 00:00 UTC: the "now" of the week's fixtures."""
        return datetime(self.monday.year, self.monday.month, self.monday.day, tzinfo=UTC)

    def shift(self, weeks: int) -> Week:
        """The week so many weeks later (earlier, if negative)."""
        return Week(self.monday + timedelta(weeks=weeks))

    def __str__(self) -> str:
        return self.iso


@dataclass(frozen=True, order=True)
class Month:
    """A calendar month, named by its first day."""

    first: date

    def __post_init__(self) -> None:
        if self.first.day != 1:
            hint = f"write {self.first:%Y-%m}"
            raise InputError(f"{self.first} is not the first of a month; a month is named by its first day", hint=hint)

    @classmethod
    def parse(cls, text: str) -> Month:
        """Read `2026-11` or its first day `2026-11-01`.

        Raises:
            InputError: no such month, or another day of it.
        """
        match = _MONTH.fullmatch(text.strip())
        try:
            if match:
                return cls(date(int(match[1]), int(match[2]), int(match[3] or 1)))
        except ValueError:
            pass
        raise InputError(f"{text!r} is no month", hint="write a month such as 2026-11")

    @classmethod
    def containing(cls, moment: datetime | date) -> Month:
        """The month that a day, or an aware moment (in UTC), falls into."""
        if isinstance(moment, datetime):
            moment = moment.astimezone(UTC).date()
        return cls(moment.replace(day=1))

    @property
    def key(self) -> str:
        """The Dagster partition key: the first day, `2026-11-01`."""
        return self.first.isoformat()

    @property
    def last(self) -> date:
        """The last day."""
        return self.shift(1).first - timedelta(days=1)

    @property
    def days(self) -> int:
        """How many days it has."""
        return self.last.day

    def shift(self, months: int) -> Month:
        """The month so many months later (earlier, if negative)."""
        count = self.first.year * 12 + self.first.month - 1 + months
        return Month(date(count // 12, count % 12 + 1, 1))

    def __str__(self) -> str:
        return f"{self.first:%Y-%m}"


@dataclass(frozen=True, order=True)
class Quarter:
    """A quarter of a calendar year, named by its first day."""

    first: date

    def __post_init__(self) -> None:
        if self.first.day != 1 or self.first.month not in (1, 4, 7, 10):
            begin = self.first.replace(month=3 * ((self.first.month - 1) // 3) + 1, day=1)
            hint = f"write {begin} or {begin.year}-Q{(begin.month + 2) // 3}"
            raise InputError(f"{self.first} does not begin a quarter; a quarter is named by its first day", hint=hint)

    @classmethod
    def parse(cls, text: str) -> Quarter:
        """Read `2026-Q4` or its first day `2026-10-01`.

        Raises:
            InputError: no such quarter, or another day of it.
        """
        text = text.strip()
        if match := _QUARTER.fullmatch(text):
            return cls(date(int(match[1]), 3 * int(match[2]) - 2, 1))
        try:
            return cls(date.fromisoformat(text))
        except ValueError:
            raise InputError(f"{text!r} is no quarter", hint="write a quarter such as 2026-Q4") from None

    @classmethod
    def containing(cls, moment: datetime | date) -> Quarter:
        """The quarter that a day, or an aware moment (in UTC), falls into."""
        if isinstance(moment, datetime):
            moment = moment.astimezone(UTC).date()
        return cls(moment.replace(month=3 * ((moment.month - 1) // 3) + 1, day=1))

    @property
    def iso(self) -> str:
        """`2026-Q4`."""
        return f"{self.first.year:04d}-Q{(self.first.month + 2) // 3}"

    @property
    def key(self) -> str:
        """The Dagster partition key: the first day, `2026-10-01`."""
        return self.first.isoformat()

    def __str__(self) -> str:
        return self.iso


REVIEW_ANCHOR = date(2025, 11, 10)
"""The Monday of the first review of costs."""


def is_review_day(day: date) -> bool:
    """Whether a bi-weekly review is due in the week of a day. Counted from an anchor: ISO week numbers are no measure, 2026 has 53."""
    return (day - REVIEW_ANCHOR).days // 7 % 2 == 0


FIRST_QUARTER = Quarter(date(2025, 10, 1))
"""The first quarter there is a drill for: that of the plan's week 0."""

FIRST_DAY = date(2025, 11, 3)
"""The first day there are backups for: the plan's week 0."""

FIRST_MONTH = Month(date(2025, 11, 1))
"""The first month there are images for: that of the plan's week 0."""

FIRST_WEEK = Week(date(2025, 11, 3))
"""The first week there are fixtures for: the plan's week 0."""


def _not_a_monday(day: date) -> InputError:
    monday = day - timedelta(days=day.isoweekday() - 1)
    year, number, _ = day.isocalendar()
    return InputError(f"{day} is a {day:%A}; a week is named by its Monday", hint=f"write {monday} or {year:04d}-W{number:02d}")
