"""The sensor that finds runs that Dagster should have tried again and did not (akidb_pipelines/operations/retries.py)."""

from __future__ import annotations

import json

import dagster as dg

from akidb_pipelines.operations.retries import ask_again, find_lost_retries

_TIMES = 3
"""How often the daemon is asked: what it refuses then, it has a reason to (the job is gone, the backfill was canceled)."""


@dg.sensor(
    name="lost_retries",
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Finds runs whose process was lost and that Dagster did not try again, as it should have; makes it do so.",
)
def lost_retries(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Its cursor tells how often was asked for which run."""
    asked: dict[str, int] = json.loads(context.cursor) if context.cursor else {}
    found = find_lost_retries(context.instance)
    again = [one for one in found if asked.get(one.run.run_id, 0) < _TIMES]
    ask_again(context.instance, again)
    for one in found:
        told = "asked to try it again" if one in again else f"not tried again, though asked {_TIMES} times: launch it by hand"
        context.log.warning(f"run {one.run.run_id} of {one.run.job_name}: {told}")
    cursor = {one.run.run_id: min(asked.get(one.run.run_id, 0) + 1, _TIMES) for one in found}
    told = f"lost retries: {len(found)}" if found else "no retry was lost"
    return dg.SensorResult(skip_reason=told, cursor=json.dumps(cursor))
