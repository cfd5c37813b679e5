"""What a month will have cost at its end: every remaining day as the same day of the week before, with an interval, and a backtest of that.

Seasonal-naive over seven days. Spending so far, extrapolated (run-rate), is what most dashboards show; after a step in the level it is
wrong until the month ends. Forecasts are floats on purpose: nobody books them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from statistics import median

from akidb_pipelines.periods import Month

SEASON_DAYS = 7
_HISTORY_DAYS = 56
_Z90 = 1.645
_LEAST_DAYS = 7
"""With fewer days than a season there is nothing to repeat: the run-rate stands in."""


@dataclass(frozen=True)
class Forecast:
    """A month's end, in the currency of the series."""

    spent: float
    """On the days that are known."""
    expected: float
    low: float
    high: float
    """Ninety in a hundred months end between."""
    known_days: int
    days: int
    method: str
    """`seasonal`, `run-rate`, or `actual` when every day is known."""


def forecast(daily: Mapping[date, float], month: Month, until: date) -> Forecast:
    """The end of a month, as seen on a day.

    Args:
        daily: cost by day, of this month and of those before it; a day that is absent cost nothing.
        month: which.
        until: the last day that is known, in the month or after it.
    """
    days = [month.first + timedelta(days=n) for n in range(month.days)]
    known = [d for d in days if d <= until]
    rest = [d for d in days if d > until]
    spent = math.fsum(daily.get(d, 0.0) for d in known)
    if not rest:
        return Forecast(spent, spent, spent, spent, len(known), len(days), "actual")
    first = min(daily, default=until)
    history = (until - first).days + 1
    if history < _LEAST_DAYS:
        rate = spent / max(len(known), 1)
        expected = spent + rate * len(rest)
        return Forecast(spent, expected, spent, expected * 2 - spent, len(known), len(days), "run-rate")
    # The last known day of the same weekday.
    season = {(until - timedelta(days=n)).weekday(): daily.get(until - timedelta(days=n), 0.0) for n in range(SEASON_DAYS)}
    expected = spent + math.fsum(season[d.weekday()] for d in rest)
    spread = _spread(daily, until, [d.weekday() for d in rest])
    return Forecast(spent, expected, max(spent, expected - spread), expected + spread, len(known), len(days), "seasonal")


def _spread(daily: Mapping[date, float], until: date, weekdays: Sequence[int]) -> float:
    """Half the interval: the error of one day against the week before it, as often as each day is repeated."""
    first = max(min(daily), until - timedelta(days=_HISTORY_DAYS))
    past = [first + timedelta(days=n) for n in range(SEASON_DAYS, (until - first).days + 1)]
    errors = [daily.get(d, 0.0) - daily.get(d - timedelta(days=SEASON_DAYS), 0.0) for d in past]
    if not errors:
        return 0.0
    variance = math.fsum(e * e for e in errors) / len(errors)
    repeated = [weekdays.count(w) for w in range(SEASON_DAYS)]
    return _Z90 * math.sqrt(variance * sum(n * n for n in repeated))


@dataclass(frozen=True)
class Backtest:
    """How far off forecasts of past months were, as fractions of what the month came to."""

    months: int
    median_error: float
    p90_error: float
    run_rate_median_error: float
    run_rate_p90_error: float
    inside: float
    """How many months ended within the interval, of all."""


def backtest(daily: Mapping[date, float], months: Sequence[Month], at_day: int = 14) -> Backtest | None:
    """Forecast past months as of one of their days, and compare. None without any.

    Args:
        daily: cost by day.
        months: complete ones.
        at_day: as of which day of the month.
    """
    ours, naive, inside = [], [], 0
    for month in months:
        until = month.first + timedelta(days=at_day - 1)
        actual = math.fsum(daily.get(month.first + timedelta(days=n), 0.0) for n in range(month.days))
        if actual <= 0:
            continue
        seen = forecast({d: v for d, v in daily.items() if d <= until}, month, until)
        ours.append(abs(seen.expected - actual) / actual)
        naive.append(abs(seen.spent / at_day * month.days - actual) / actual)
        inside += seen.low <= actual <= seen.high
    if not ours:
        return None
    return Backtest(len(ours), median(ours), _p90(ours), median(naive), _p90(naive), inside / len(ours))


def _p90(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(0.9 * len(ordered)) - 1)]
