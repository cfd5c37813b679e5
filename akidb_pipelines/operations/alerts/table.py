"""The table of alerts, alerts.yaml, as values."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from akidb_pipelines.errors import InputError

TABLE = Path(__file__).with_name("alerts.yaml")

Severity = Literal["critical", "warning"]
CheckSeverity = Literal["ERROR", "WARN"]
Receiver = Literal["pagerduty", "slack", "security"]


class Rule(BaseModel):
    """One alert. Exactly one of checks, blocking, nonblocking, runs, freshness, sensors and prometheus says what it watches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    severity: Severity
    summary: str
    runbook: str
    also: tuple[Receiver, ...] = ()
    """Told besides those of its severity."""
    checks: tuple[str, ...] = ()
    blocking: bool = False
    nonblocking: bool = False
    check_severity: tuple[CheckSeverity, ...] = ("ERROR", "WARN")
    """Of its checks: a failure of another severity is none."""
    runs: bool = False
    freshness: bool = False
    sensors: bool = False
    prometheus: bool = False

    @model_validator(mode="after")
    def _watches_one_thing(self) -> Rule:
        watched = (self.checks, self.blocking, self.nonblocking, self.runs, self.freshness, self.sensors, self.prometheus)
        if sum(map(bool, watched)) != 1:
            raise ValueError("say one of checks, blocking, nonblocking, runs, freshness, sensors, prometheus")
        return self


class Table(BaseModel):
    """All of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    routes: dict[Severity, tuple[Receiver, ...]]
    rules: dict[str, Rule]

    def receivers(self, rule: str) -> tuple[Receiver, ...]:
        """Who is told of a rule, in order."""
        found = self.rules[rule]
        return tuple(dict.fromkeys((*self.routes[found.severity], *found.also)))


def load_table(path: Path = TABLE) -> Table:
    """Read it.

    Raises:
        InputError: it is no such table; the message says where.
    """
    try:
        return Table.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise InputError(f"the table of alerts {path}: {error}", hint="correct it; its head says what a rule has") from error
