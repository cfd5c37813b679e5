"""The sensor that has Dagster try again what it should have tried again (akidb_pipelines/operations/retries.py)."""

from __future__ import annotations

import dagster as dg

from akidb_pipelines.operations.retries import ask_again


@dg.sensor(
    name="lost_retries",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Finds runs whose process was lost and that Dagster did not try again, as it should have; makes it do so.",
)
def lost_retries(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """It asks for no run itself."""
    found = ask_again(context.instance)
    for run in found.asked:
        context.log.warning(f"run {run.run_id} of {run.job_name} was not tried again: Dagster is asked to, once more")
    for run in found.given_up:
        context.log.warning(
            f"run {run.run_id} of {run.job_name} is not tried again: Dagster was asked often enough, or somebody has started it again "
            "by hand; look at its log, and launch it if what it makes is missing"
        )
    return dg.SkipReason(f"lost retries: {len(found.asked)}; given up: {len(found.given_up)}")
