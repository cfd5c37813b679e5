"""Which dumps stay, for how long, and where. Deciding is a function of values; `depot` acts on it.

Of every database the last good dump of each of the newest 30 days stays, and of each of 12 months; of the newest 7 days every one stays.
Good is what passed its checks; where none of a day did, the last one stays, and the newest good one stays in any case. What stays and is not
of the newest 7 days may be archived: an archived dump takes up to an hour to come back, and a rebuild has two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from akidb_pipelines.backups.dump import DumpKey

DAYS, MONTHS, AT_HAND = 30, 12, 7


@dataclass(frozen=True)
class Kept:
    """A dump as retention sees it."""

    key: DumpKey
    source: str = ""
    """Where it was taken: two of one name from two places are two databases."""
    verified: bool = True


@dataclass(frozen=True)
class Decision:
    """What becomes of a dump, and why."""

    key: DumpKey
    action: str
    """`keep`, `archive`, `remove`."""
    why: str


def plan(dumps: Iterable[Kept]) -> list[Decision]:
    """Decide for all dumps of a store."""
    by_database: dict[tuple[str, str], list[Kept]] = {}
    for dump in sorted(dumps, key=lambda d: d.key):
        by_database.setdefault((dump.key.database, dump.source), []).append(dump)
    return [decision for _, own in sorted(by_database.items()) for decision in _plan_one(own)]


def _plan_one(own: list[Kept]) -> list[Decision]:
    """Of one database; `own` is in order, so a later one wins among equals."""
    of_day: dict[str, Kept] = {}
    for dump in own:
        before = of_day.get(dump.key.day)
        if before is None or dump.verified >= before.verified:
            of_day[dump.key.day] = dump
    days = sorted(of_day, reverse=True)
    of_month: dict[str, DumpKey] = {}
    for day in sorted(days, key=lambda d: (of_day[d].verified, d), reverse=True):
        of_month.setdefault(day[:7], of_day[day].key)
    monthly = set(sorted(of_month.values(), reverse=True)[:MONTHS])
    newest_good = next((d.key for d in reversed(own) if d.verified), None)
    at_hand, daily = set(days[:AT_HAND]), set(days[:DAYS])
    decisions = []
    for key in (d.key for d in own):
        best = of_day[key.day].key == key
        if key.day in at_hand:
            decisions.append(Decision(key, "keep", f"of the newest {AT_HAND} days"))
        elif best and key.day in daily:
            decisions.append(Decision(key, "archive", f"the last good one of one of the newest {DAYS} days"))
        elif key in monthly:
            decisions.append(Decision(key, "archive", f"the last good one of one of {MONTHS} months"))
        elif key == newest_good:
            decisions.append(Decision(key, "keep", "the newest that passed its checks"))
        else:
            decisions.append(Decision(key, "remove", "older than what is kept" if best else "another one of its day is kept"))
    return decisions
