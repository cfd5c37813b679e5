"""Runs on Celery's workers, on more than one host. Needs the extra `team`.

Stock dagster-celery never notices that a whole worker was lost: the task's last word is STARTED. And what is terminated reports a
failure, which is then tried again. Both were seen (docs/reliability.md).
"""

from __future__ import annotations

import time
from typing import ClassVar

from dagster import DagsterRun
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG

_ASK_S, _TRIES = 2, 3
"""A worker that is alive answers within milliseconds."""
_SILENT_S = 40
"""Who lost Redis looks for it every 30 s at least, and goes on with its run meanwhile: silent for longer than this is lost."""
_ALIVE = {WorkerStatus.RUNNING, WorkerStatus.UNKNOWN}
"""Unknown is what a Redis that began anew says of everything."""


class WatchedCeleryRunLauncher(CeleryRunLauncher):
    """Asks the worker whether it still has the run's task."""

    _silent_since: ClassVar[dict[str, float]] = {}
    """By task; in the daemon, which asks every few seconds."""

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Celery's own word first; if that is no end, the worker's. Of a worker that is not known any more, everybody's."""
        health = super().check_run_worker_health(run)
        if health.status not in _ALIVE:
            return health
        task = run.tags[DAGSTER_CELERY_TASK_ID_TAG]
        info = self.celery.AsyncResult(task).info
        worker = info.get("hostname") if isinstance(info, dict) else None
        answer: dict[str, dict[str, object]] = {}
        for _ in range(_TRIES):
            answer = self.celery.control.inspect(destination=[worker] if worker else None, timeout=_ASK_S).query_task(task) or {}
            if answer:
                break
        if any(task in tasks for tasks in answer.values()):
            self._silent_since.pop(task, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        # It may have ended while it was asked.
        again = super().check_run_worker_health(run)
        if again.status not in _ALIVE:
            return again
        began = self._silent_since.setdefault(task, time.monotonic())
        if worker not in answer and time.monotonic() - began < _SILENT_S:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        del self._silent_since[task]
        # Should it be alive after all, what it has must not go on beside the run that tries it again.
        self.celery.control.revoke(task, terminate=True)
        told = "does not have the run's task" if worker in answer else f"has not answered for {_SILENT_S} s"
        return CheckRunHealthResult(WorkerStatus.FAILED, f"Celery worker {worker or 'that is not known'} {told}")

    def terminate(self, run_id: str) -> bool:
        """Says first that it is meant: else the worker's end counts as a failure, and the run is tried again."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        return bool(super().terminate(run_id))
