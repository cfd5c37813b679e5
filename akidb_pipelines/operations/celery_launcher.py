"""Runs on Celery's workers, on more than one host. Needs the extra `team`.

Stock dagster-celery never notices that a whole worker was lost: the task's last word is STARTED. And what is terminated reports a
failure, which is then tried again. Both were seen (docs/reliability.md).
"""

from __future__ import annotations

from dagster import DagsterRun
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

_ASK_S, _TRIES = 2, 3
"""A worker that is alive answers within milliseconds. One that is silent for longer than this is lost, and its run is tried again."""


class WatchedCeleryRunLauncher(CeleryRunLauncher):
    """Asks the worker whether it still has the run's task."""

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Celery's own word first; if that is `started`, the worker's."""
        health = super().check_run_worker_health(run)
        if health.status is not WorkerStatus.RUNNING:
            return health
        task = run.tags[DAGSTER_CELERY_TASK_ID_TAG]
        info = self.celery.AsyncResult(task).info
        worker = info.get("hostname") if isinstance(info, dict) else None
        if not worker:
            return health  # still in the queue
        answer: dict[str, dict[str, object]] = {}
        for _ in range(_TRIES):
            answer = self.celery.control.inspect(destination=[worker], timeout=_ASK_S).query_task(task) or {}
            if worker in answer:
                break
        if task in answer.get(worker, {}):
            return health
        # It may have ended while it was asked.
        again = super().check_run_worker_health(run)
        if again.status is not WorkerStatus.RUNNING:
            return again
        told = "does not have the run's task" if worker in answer else "does not answer"
        return CheckRunHealthResult(WorkerStatus.FAILED, f"Celery worker {worker} {told}")

    def terminate(self, run_id: str) -> bool:
        """Says first that it is meant: else the worker's end counts as a failure, and the run is tried again."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        return bool(super().terminate(run_id))
