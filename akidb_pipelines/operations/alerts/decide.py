"""Which alerts are on: a function of the facts and the table, and of nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta

from akidb_pipelines.operations.alerts.table import Rule, Table
from akidb_pipelines.operations.facts import AssetFact, CheckFact, Facts, JobFact, SensorFact

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
    named = {check for rule in table.rules.values() for check in rule.checks}
    for name, rule in table.rules.items():
        yield from (_of_check(name, found) for found in facts.checks if not found.passed and _concerns(rule, found, named))
        if rule.runs:
            yield from (_of_job(name, job) for job in facts.jobs if not job.succeeded)
        if rule.freshness:
            yield from (_of_asset(name, asset, facts.now) for asset in facts.assets if asset.is_stale(facts.now))
        if rule.sensors:
            yield from (_of_sensor(name, sensor) for sensor in facts.sensors if sensor.failing)


def _concerns(rule: Rule, check: CheckFact, named: Collection[str]) -> bool:
    if check.severity not in rule.check_severity:
        return False
    return check.key in rule.checks or (check.key not in named and (rule.blocking if check.blocking else rule.nonblocking))


def _of_job(rule: str, job: JobFact) -> Alert:
    of = f" of {job.partition}" if job.partition else ""
    return Alert(rule, job.name, f"run {job.run_id[:8]} of {job.name}{of} failed", job.run_id)


def _of_asset(rule: str, asset: AssetFact, now: float) -> Alert:
    age, allowed = timedelta(seconds=int(now - asset.last_success)), timedelta(seconds=asset.fresh_for_s or 0)
    return Alert(rule, asset.label, f"{asset.label} last succeeded {age} ago; {allowed} are allowed")


def _of_sensor(rule: str, sensor: SensorFact) -> Alert:
    return Alert(rule, sensor.name, f"sensor {sensor.name} fails at every tick; Automation > {sensor.name} says why")


def _of_check(rule: str, check: CheckFact) -> Alert:
    return Alert(rule, check.label, f"{check.label}: {' '.join(check.told.split())[:_TOLD]}", check.run_id)
