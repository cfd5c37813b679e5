"""Starts runs as processes of this machine, and notices when one is gone.

Stock Dagster learns of a dead run from the code server that started it. When both die at once (the machine is out of memory, a container is
restarted) nobody is left to tell, and the run stands as started until its time limit. Here the daemon looks for the process itself.
"""

from __future__ import annotations

import re

import psutil
from dagster import DagsterEventType, DagsterRun
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher

_STARTED = re.compile(r"Started process for run \(pid: (\d+)\)")
_LATER_S = 5
"""A process that began so long after the run told its id is another one."""


class LocalRunLauncher(DefaultRunLauncher):
    """For the tier of one machine: daemon and runs see the same processes."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Run monitoring asks `check_run_worker_health`."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the process whose id the run told lives: not one that nobody waited for, nor another that has its number."""
        told = self._process_of(run)
        if told is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "its process has not told its id yet")
        pid, at = told
        try:
            process = psutil.Process(pid)
            is_it = process.create_time() < at + _LATER_S and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            is_it = False
        if is_it:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, f"its process {pid} is gone")

    def _process_of(self, run: DagsterRun) -> tuple[int, float] | None:
        """Id of the run's process, and when the run told it, in seconds of the epoch."""
        events = self._instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
        for event in reversed(events):
            if match := _STARTED.search(event.dagster_event.message or "" if event.dagster_event else ""):
                return int(match[1]), event.timestamp
        return None
