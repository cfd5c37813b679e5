"""The sensor that tells people. What is on is decided from the instance's facts (akidb_pipelines/operations), never here.

It looks at what is, not at what happened: an alert that could not be delivered is delivered later, one whose cause is gone is resolved, and
a failure that nobody noticed while the daemon was down is noticed now. It starts nothing and never fails because a receiver does.
"""

from __future__ import annotations

import dagster as dg

from akidb_pipelines.operations.alerts.decide import firing
from akidb_pipelines.operations.alerts.ledger import Ledger, tell
from akidb_pipelines.operations.alerts.sender import open_lines
from akidb_pipelines.operations.alerts.table import load_table
from akidb_pipelines.operations.facts import collect, watched_of
from akidb_pipelines.settings import Settings


def alerts(settings: Settings) -> dg.SensorDefinition:
    """Tells PagerDuty, Slack and Security what is on and what has ended."""

    @dg.sensor(
        name="alerts",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        # It asks for no runs, but a sensor must be able to name something.
        asset_selection=dg.AssetSelection.all(),
        description="Tells PagerDuty, Slack #akidb-infra and Security which alerts are on and which have ended. Starts nothing.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        table, lines = load_table(), open_lines(settings)
        if context.repository_def is None:
            return dg.SensorResult(skip_reason="the code location is not loaded", cursor=context.cursor)
        on = firing(collect(context.instance, watched_of(context.repository_def)), table)
        told = tell(on, Ledger.parse(context.cursor), table, lines)
        for line in told.lines:
            context.log.info(line)
        for failure in told.failures:
            context.log.error(failure)
        unheard = "" if lines else "; no receiver is configured (docs/alerts.md)"
        found = f"{len(on)} alerts are on: {', '.join(a.key for a in on)}" if on else "no alert is on"
        return dg.SensorResult(skip_reason=f"{found}{unheard}", cursor=told.ledger.text())

    return sensor
