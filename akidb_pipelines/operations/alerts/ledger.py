"""Which alerts have been told to whom: each is told once, again every twelve hours while it lasts (as Alertmanager does), and its end to
everybody who heard of it.

What could not be delivered stays due and is tried again: a receiver that is down loses nothing, and holds nothing else up. The ledger is a
value; the sensor keeps its text as its cursor.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.operations.alerts.decide import Alert
from akidb_pipelines.operations.alerts.sender import Line, RefusedAlertError
from akidb_pipelines.operations.alerts.table import Receiver, Rule, Table

_WITHIN_S = 30
"""Dagster ends a tick after a minute, and what was told is lost with it: the rest waits for the next tick."""
_AGAIN_S = 12 * 3600
"""An incident that somebody resolved by hand, and whose cause is still there, must not be forgotten."""
_GONE = Rule(severity="warning", summary="The table of alerts no longer has this rule.", runbook="alerts.md", prometheus=True)


@dataclass(frozen=True)
class Open:
    """An alert that somebody was told of, or is to be."""

    alert: Alert
    told: Mapping[Receiver, float] = field(default_factory=dict)
    """Who heard of it, and when last, in seconds of the epoch."""


@dataclass(frozen=True)
class Ledger:
    """Open alerts by key."""

    entries: Mapping[str, Open]

    @classmethod
    def parse(cls, text: str | None) -> Ledger:
        """Of a cursor; what is none is an empty ledger, and everything that is on is told again."""
        try:
            stored = json.loads(text or "{}")
            return cls({k: Open(Alert(**v["alert"]), dict(v["told"])) for k, v in stored.items()})
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls({})

    def text(self) -> str:
        """For a cursor."""
        return json.dumps({k: asdict(v) for k, v in self.entries.items()})


@dataclass(frozen=True)
class Told:
    """What came of telling."""

    ledger: Ledger
    lines: tuple[str, ...]
    """What was told to whom, for a log."""
    failures: tuple[str, ...]


def tell(
    on: Iterable[Alert],
    ledger: Ledger,
    table: Table,
    lines: Mapping[Receiver, Line],
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> Told:
    """Tell what is new, and what has ended.

    Args:
        on: the alerts that are on now.
        ledger: who knows of which.
        table: severities and routes.
        lines: the receivers that are configured.
        clock: seconds that only grow.
        now: seconds of the epoch.
    """
    until = clock() + _WITHIN_S
    entries = dict(ledger.entries)
    done: list[str] = []
    failures: list[str] = []
    dead: set[Receiver] = set()

    def deliver(receiver: Receiver, alert: Alert, *, is_on: bool) -> bool:
        # One that is away for the first is away for the tenth: the rest waits for the next tick.
        if receiver in dead or clock() > until:
            return False
        try:
            lines[receiver].tell(alert, table.rules.get(alert.rule, _GONE), on=is_on)
        except OutsideError as error:
            if not isinstance(error, RefusedAlertError):
                dead.add(receiver)
            failures.append(str(error))
            return False
        done.append(f"{receiver}: {alert.key} {'is on' if is_on else 'has ended'}")
        return True

    current = {alert.key: alert for alert in on}
    for key, alert in current.items():
        told = dict(entries[key].told) if key in entries else {}
        due = [r for r in table.receivers(alert.rule) if r in lines and now() - told.get(r, -math.inf) > _AGAIN_S]
        told |= {r: now() for r in due if deliver(r, alert, is_on=True)}
        entries[key] = Open(alert, told)
    for key in [k for k in entries if k not in current]:
        entry = entries[key]
        # Who is no longer configured cannot be told; a rule that is gone from the table has ended, too, and its incident with it.
        due = [r for r in entry.told if r in lines]
        left = {r: entry.told[r] for r in due if not deliver(r, entry.alert, is_on=False)}
        if left:
            entries[key] = Open(entry.alert, left)
        else:
            del entries[key]
    return Told(Ledger(entries), tuple(done), tuple(failures))
