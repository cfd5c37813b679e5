"""Days that cost much more than the same days of weeks before. Pure.

A day is one if it is five median absolute deviations **and** a quarter above the median of the same weekdays before it, **and** above it by
more than a floor in money: percentages of nothing wake nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from statistics import median

DEVIATIONS, FRACTION, FLOOR = 5.0, 0.25, 5.0
_WEEKS = 8
_LEAST_WEEKS = 3


@dataclass(frozen=True)
class Anomaly:
    """A day that stands out."""

    service: str
    day: date
    cost: float
    usual: float
    """The median of the same weekdays before it."""

    @property
    def excess(self) -> float:
        """By how much it is above what is usual."""
        return self.cost - self.usual


def anomalies(service: str, daily: Mapping[date, float], *, since: date, floor: float = FLOOR) -> list[Anomaly]:
    """The days of a series that stand out, in order.

    Args:
        service: whose series it is.
        daily: cost by day.
        since: earlier days are only looked back at.
        floor: in the series' currency.
    """
    if not daily:
        return []
    first = min(daily)
    found = []
    for day in sorted(d for d in daily if d >= since):
        before = [day - timedelta(weeks=n) for n in range(1, _WEEKS + 1)]
        past = [daily.get(d, 0.0) for d in before if d >= first]
        if len(past) < _LEAST_WEEKS:
            continue
        usual = median(past)
        deviation = median(abs(p - usual) for p in past)
        excess = daily[day] - usual
        if excess > DEVIATIONS * deviation and excess > FRACTION * usual and excess > floor:
            found.append(Anomaly(service, day, daily[day], usual))
    return found
