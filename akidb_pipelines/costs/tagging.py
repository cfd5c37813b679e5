"""Who a cost belongs to: team, tenant and environment from tags, compartments and services. Pure, but for reading the rules' file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from akidb_pipelines.costs.plan import SHIPPED, Number, load_model
from akidb_pipelines.errors import InputError

RULES = SHIPPED / "allocation.yaml"
SHARED, UNTAGGED, UNALLOCATED = "shared", "untagged", "unallocated"
"""Teams that are none: split by rule; nobody's, for want of a tag; somebody's whom nobody knows."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Place(_Strict):
    team: str
    environment: str = ""


class SharedRule(_Strict):
    """How shared costs of some services are split among teams."""

    services: tuple[str, ...]
    by: Literal["weights", "even", "usage"]
    """`usage`: as the teams' own costs of the same service are, or of everything where they have none."""
    weights: dict[str, Number] = {}

    def means(self, service: str) -> bool:
        """Whether it is about a service."""
        return service in self.services or "*" in self.services


class Rules(_Strict):
    """The rules' file."""

    format: Literal[1]
    tags: dict[Literal["team", "tenant", "environment"], tuple[str, ...]]
    compartments: dict[str, _Place] = {}
    services: dict[str, _Place] = {}
    tenants: tuple[str, ...] = ()
    shared: tuple[SharedRule, ...] = ()
    untagged_percent: Number = Decimal(10)


@dataclass(frozen=True)
class Owner:
    """Whose a cost is."""

    team: str
    tenant: str
    """Empty where the cost is no tenant's."""
    environment: str
    unknown: str = ""
    """The name that nobody knows, where the team is `unallocated`."""


@dataclass(frozen=True)
class Tagging:
    """The rules, and which teams there are.

    Args:
        rules: read from their file.
        teams: that Cedar knows.
    """

    rules: Rules
    teams: frozenset[str]

    def owner(self, tags: str, compartment: str, service: str) -> Owner:
        """Whose a cost is.

        Args:
            tags: as the billing file has them; may be empty.
            compartment: its name, or that of the sub-account.
            service: its name.
        """
        tagged = parse_tags(tags) or {}
        place = self.rules.compartments.get(compartment) or self.rules.services.get(service)
        team = self._tag(tagged, "team") or (place.team if place else "")
        tenant = self._tag(tagged, "tenant")
        environment = self._tag(tagged, "environment") or (place.environment if place else "")
        if tenant and tenant not in self.rules.tenants:
            return Owner(UNALLOCATED, tenant, environment, f"tenant {tenant}")
        if not team:
            unknown = f"compartment {compartment}" if compartment and self.rules.compartments else ""
            return Owner(UNALLOCATED if unknown and not tagged else UNTAGGED, tenant, environment, unknown if not tagged else "")
        if team != SHARED and team not in self.teams:
            return Owner(UNALLOCATED, tenant, environment, f"team {team}")
        return Owner(team, tenant, environment)

    def _tag(self, tags: Mapping[str, str], what: Literal["team", "tenant", "environment"]) -> str:
        lower = {key.lower(): value for key, value in tags.items()}
        return next((v for key in self.rules.tags.get(what, ()) if (v := lower.get(key.lower(), ""))), "")

    def rule(self, service: str) -> SharedRule:
        """How a shared cost of a service is split; evenly, where no rule says."""
        return next((r for r in self.rules.shared if r.means(service)), SharedRule(services=("*",), by="even"))


def parse_tags(text: str) -> dict[str, str] | None:
    """Tags as a mapping: a JSON object, or a list of keys and values. None if they are neither; line breaks within are put up with."""
    if not text:
        return {}
    try:
        found: Any = json.loads(text, strict=False)
    except ValueError:
        return None
    if isinstance(found, list) and all(isinstance(e, dict) and "key" in e for e in found):
        found = {str(e["key"]): e.get("value", "") for e in found}
    if not isinstance(found, dict):
        return None
    return {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


def load_rules(path: Path | None) -> Rules:
    """The rules of a file; None means those that are shipped.

    Raises:
        InputError: it cannot be read, or has none.
    """
    return load_model(Rules, path or RULES, "allocation rules", "AKIDB_COST_ALLOCATION")


def expect_known(rules: Rules, teams: Sequence[str]) -> None:
    """Refuse rules that name a team that Cedar does not know.

    Raises:
        InputError: they do.
    """
    named = {p.team for p in (*rules.compartments.values(), *rules.services.values())} | {
        t for r in rules.shared for t in r.weights
    }
    if unknown := sorted(named - set(teams) - {SHARED}):
        raise InputError(f"allocation rules: team {unknown[0]} is not known to Cedar", hint=f"choose among {', '.join(teams)}")
