"""Which dumps stay, for how long, and where. Deciding is a function of values; `depot` acts on it.

Of every database the last dump of each of the newest 30 days stays, and the last of each of 12 months; of the newest 7 days every one
stays. What stays and is not of the newest 7 days may be archived: an archived dump takes up to an hour to come back, and a rebuild has two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from akidb_pipelines.backups.dump import DumpKey

DAYS, MONTHS, AT_HAND = 30, 12, 7


@dataclass(frozen=True)
class Decision:
    """What becomes of a dump, and why."""

    key: DumpKey
    action: str
    """`keep`, `archive`, `remove`."""
    why: str


def plan(keys: Iterable[DumpKey]) -> list[Decision]:
    """Decide for all dumps of a store."""
    decisions = []
    everything = sorted(keys)
    for database in sorted({k.database for k in everything}):
        own = [k for k in everything if k.database == database]
        last_of_day = {k.day: k for k in own}  # sorted, so the highest revision wins
        days = sorted(last_of_day, reverse=True)
        last_of_month: dict[str, DumpKey] = {}
        for day in days:
            last_of_month.setdefault(day[:7], last_of_day[day])
        monthly = set(list(last_of_month.values())[:MONTHS])
        at_hand, daily = set(days[:AT_HAND]), set(days[:DAYS])
        for key in own:
            last = last_of_day[key.day] == key
            if key.day in at_hand:
                decisions.append(Decision(key, "keep", f"of the newest {AT_HAND} days"))
            elif last and key.day in daily:
                decisions.append(Decision(key, "archive", f"the last of one of the newest {DAYS} days"))
            elif key in monthly:
                decisions.append(Decision(key, "archive", f"the last of one of {MONTHS} months"))
            else:
                decisions.append(Decision(key, "remove", "an earlier one of its day" if not last else "older than what is kept"))
    return decisions
