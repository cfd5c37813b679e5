"""Names who asked for a run: the person who signed in, or the schedule, sensor or backfill that did."""

from __future__ import annotations

from dagster import DagsterRun
from dagster._core.run_coordinator.base import SubmitRunContext
from dagster._core.run_coordinator.queued_run_coordinator import QueuedRunCoordinator

from akidb_pipelines.operations.access.context import USER_TAG, CedarRequestContext

_INHERITS = {"dagster/backfill", "dagster/parent_run_id"}
"""Tags of runs that carry the name of whoever started the backfill, or the run that is tried again."""
_CAUSES = {"dagster/schedule_name": "schedule", "dagster/sensor_name": "sensor"}


class NamingRunCoordinator(QueuedRunCoordinator):
    """Queues runs as Dagster does, and stamps tag `user`. What the run's launcher claimed is overwritten.

    A backfill's runs carry the name of who started it: the front stamped it, and Dagster's daemon passes it on.
    """

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Stamp, then queue."""
        run, workspace = context.dagster_run, context.workspace
        who = None
        if isinstance(workspace, CedarRequestContext):
            who = workspace.principal.name
        elif not _INHERITS & run.tags.keys():
            who = next((f"{kind}:{run.tags[tag]}" for tag, kind in _CAUSES.items() if tag in run.tags), None)
        if who:
            self._instance.add_run_tags(run.run_id, {USER_TAG: who})
        return super().submit_run(context)
