"""Which alerts are on: a function of the facts and the table, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from akidb_pipelines.operations.alerts.table import Table
from akidb_pipelines.operations.facts import CheckFact, Facts

_TOLD = 400


@dataclass(frozen=True)
class Alert:
    """One that is on."""

    rule: str
    subject: str
    """An asset's check, a job, an asset."""
    told: str
    """What was found, in one line."""
    run_id: str = ""
    """Where to look; empty when no run is to blame."""

    @property
    def key(self) -> str:
        """Its trigger and its resolve have this in common."""
        return f"{self.rule}/{self.subject}"


def firing(facts: Facts, table: Table) -> list[Alert]:
    """All that are on, by key."""
    return sorted({a.key: a for a in _firing(facts, table)}.values(), key=lambda a: a.key)


def _firing(facts: Facts, table: Table) -> Iterator[Alert]:
    failed = {c.key: c for c in facts.checks if not c.passed}
    named = {check for rule in table.rules.values() for check in rule.checks}
    for name, rule in table.rules.items():
        for check in rule.checks:
            if check in failed and (failed[check].severity == "ERROR" or not rule.only_errors):
                yield _of_check(name, failed[check])
        if rule.blocking:
            # A blocking check that only warned has held nothing back.
            for found in failed.values():
                if found.blocking and found.severity == "ERROR" and found.key not in named:
                    yield _of_check(name, found)
        if rule.runs:
            for job in facts.jobs:
                if not job.succeeded:
                    of = f" of {job.partition}" if job.partition else ""
                    yield Alert(name, job.name, f"run {job.run_id[:8]} of {job.name}{of} failed", job.run_id)
        if rule.freshness:
            for asset in facts.assets:
                if asset.is_stale(facts.now):
                    age, allowed = timedelta(seconds=int(facts.now - asset.last_success)), timedelta(seconds=asset.fresh_for_s or 0)
                    yield Alert(name, asset.name, f"{asset.name} last succeeded {age} ago; {allowed} are allowed")


def _of_check(rule: str, check: CheckFact) -> Alert:
    return Alert(rule, check.key, f"{check.key}: {' '.join(check.told.split())[:_TOLD]}", check.run_id)
