"""How much of each quota is used, and when it will be exhausted if things go on as they do. Pure.

OCI has no limit resource for egress: it is taken from usage. `GB-month` of storage is billed by the hour in parts of a month, so a day's sum
times the days of its month is what lay there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

from akidb_pipelines.costs.plan import Plan, Quota
from akidb_pipelines.costs.rollup import Day
from akidb_pipelines.periods import Month

_TREND_DAYS = 28
_RECENT_DAYS = 7
_HORIZON_DAYS = 730
"""Whatever is exhausted later is not told: a trend of four weeks says nothing about it."""


@dataclass(frozen=True)
class Burn:
    """A quota and what is used of it."""

    quota: Quota
    limit: float
    used: float
    """In the quota's unit: of the month so far, or on the newest day."""
    series: tuple[tuple[date, float], ...]
    """By day, what stood against the limit."""
    exhausted_on: date | None
    """None: not within two years (for one that is of a month: not in this month)."""
    as_of: date | None
    """The newest day with usage; None without any."""

    @property
    def fraction(self) -> float:
        """Used, of the limit."""
        return self.used / self.limit if self.limit else math.inf

    @property
    def days_left(self) -> int | None:
        """From the newest day to its exhaustion."""
        return (self.exhausted_on - self.as_of).days if self.exhausted_on and self.as_of else None


def burn_down(plan: Plan, days: Iterable[Day], month: Month) -> list[Burn]:
    """Every quota of a plan.

    Args:
        plan: has the quotas.
        days: usage of the month and, for trends, of the one before it.
        month: the running one.
    """
    listed = list(days)
    return [_burn(plan, quota, [d for d in listed if d.sku in quota.skus], month) for quota in plan.quotas]


def _burn(plan: Plan, quota: Quota, days: list[Day], month: Month) -> Burn:
    amounts: dict[date, float] = {}
    for day in days:
        amounts[day.day] = amounts.get(day.day, 0.0) + _amount(plan, quota, day)
    if not amounts:
        return Burn(quota, float(quota.limit), 0.0, (), None, None)
    newest = max(amounts)
    if quota.kind == "a month":
        return _of_month(quota, amounts, month, newest)
    series = tuple(sorted(amounts.items()))
    used = amounts[newest]
    slope = _slope([(d.toordinal(), v) for d, v in series if d > newest - timedelta(days=_TREND_DAYS)])
    left = float(quota.limit) - used
    exhausted = (
        newest if left <= 0 else newest + timedelta(days=math.ceil(left / slope)) if 0 < left < slope * _HORIZON_DAYS else None
    )
    return Burn(quota, float(quota.limit), used, series, exhausted, newest)


def _of_month(quota: Quota, amounts: dict[date, float], month: Month, newest: date) -> Burn:
    newest = max(newest, month.first - timedelta(days=1))
    limit, done, series = float(quota.limit), 0.0, []
    exhausted: date | None = None
    for day in sorted(d for d in amounts if month.first <= d <= month.last):
        done += amounts[day]
        series.append((day, done))
        exhausted = exhausted or (day if done >= limit else None)
    recent = [amounts.get(newest - timedelta(days=n), 0.0) for n in range(_RECENT_DAYS)]
    rate = math.fsum(recent) / _RECENT_DAYS
    if exhausted is None and rate > 0:
        on = newest + timedelta(days=math.ceil((limit - done) / rate))
        exhausted = on if on <= month.last else None
    return Burn(quota, limit, done, tuple(series), exhausted, newest)


def _amount(plan: Plan, quota: Quota, day: Day) -> float:
    """What a day stands for, in the quota's unit."""
    if quota.unit == "OCPU":
        return float(day.peak)
    amount = day.quantity
    if quota.kind == "level":
        amount *= Month.containing(day.day).days
    return float(amount / plan.gb_of_tb if quota.unit == "TB" else amount)


def _slope(points: list[tuple[int, float]]) -> float:
    """By day, of the line of least squares."""
    if len(points) < 2:
        return 0.0
    middle_x = math.fsum(x for x, _ in points) / len(points)
    middle_y = math.fsum(y for _, y in points) / len(points)
    below = math.fsum((x - middle_x) ** 2 for x, _ in points)
    return math.fsum((x - middle_x) * (y - middle_y) for x, y in points) / below
