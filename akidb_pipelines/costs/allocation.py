"""Shared costs split among teams, so that nothing is lost: the parts of every cost add up to it exactly. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from akidb_pipelines.costs.money import split, total
from akidb_pipelines.costs.rollup import Cell
from akidb_pipelines.costs.tagging import SHARED, Tagging


@dataclass(frozen=True)
class Share:
    """What a team pays of a service in a month."""

    team: str
    service: str
    currency: str
    how: str
    """`direct`, or the rule by which a shared cost was split: `even`, `usage`, `weights`."""
    billed: Decimal
    effective: Decimal


def allocate(cells: Iterable[Cell], tagging: Tagging) -> list[Share]:
    """Who pays what of a month.

    Args:
        cells: of the month's rollup.
        tagging: has the rules for what is shared.
    """
    direct: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        direct[cell.team, cell.service, cell.currency].append(cell)
    added = {k: (total([c.billed for c in v]), total([c.effective for c in v])) for k, v in direct.items()}
    shares = [Share(t, s, c, "direct", *amounts) for (t, s, c), amounts in added.items() if t != SHARED]
    for (team, service, currency), (billed, effective) in added.items():
        if team == SHARED:
            shares += _split(service, currency, billed, effective, shares, tagging)
    return sorted(shares, key=lambda s: (s.team, s.service, s.currency, s.how))


def _split(service: str, currency: str, billed: Decimal, effective: Decimal, own: list[Share], tagging: Tagging) -> list[Share]:
    rule = tagging.rule(service)
    teams = sorted(tagging.teams)
    if rule.by == "weights":
        weights = [rule.weights.get(t, Decimal(0)) for t in teams]
    elif rule.by == "usage":
        weights = _usage(service, currency, own, teams)
    else:
        weights = [Decimal(1)] * len(teams)
    parts = zip(teams, split(billed, weights), split(effective, weights), strict=True)
    return [Share(t, service, currency, rule.by, b, e) for t, b, e in parts if b or e]


def _usage(service: str, currency: str, own: list[Share], teams: list[str]) -> list[Decimal]:
    """The teams' own costs of the service; of everything, where none of them has any. A credit is no usage."""
    for wanted in ({service}, {s.service for s in own}):
        found = [
            max(
                total(
                    [
                        s.effective
                        for s in own
                        if s.team == t and s.service in wanted and s.how == "direct" and s.currency == currency
                    ]
                ),
                Decimal(0),
            )
            for t in teams
        ]
        if any(found):
            return found
    return [Decimal(1)] * len(teams)
