"""Days of cost, made up: what forecasts are tested on where nobody has a year of bills."""

from __future__ import annotations

from datetime import date, timedelta

_WEEKEND = 0.72
_STEP_DAYS = 45
"""A resource comes or goes about so often, and the level changes by up to a third."""


def year_of_costs(seed: int, first: date, days: int = 430) -> dict[date, float]:
    """Cost by day: working days and weekends, slow growth, noise, and steps when resources come or go.

    Args:
        seed: the same one makes the same days.
        first: day.
        days: how many; the default is a year with two months before it.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    growth = random.uniform(-0.0003, 0.0012)
    level, found = random.uniform(80, 400), {}
    for n in range(days):
        day = first + timedelta(days=n)
        if random.random() < 1 / _STEP_DAYS:
            level *= random.uniform(0.7, 1.35)
        weekend = _WEEKEND if day.isoweekday() > 5 else 1.0
        found[day] = float(level * (1 + growth) ** n * weekend * random.normal(1, 0.02))
    return found
