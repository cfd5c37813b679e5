"""A Docker engine of the lab's own on this machine: its images, its containers, its socket, below one folder.

    <folder>/docker.sock    the engine listens here
    <folder>/data           its images

As root. It changes nothing of this machine's network: no bridge of its own, no packet filter.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from akidb_pipelines.errors import OutsideError, PipelineError
from akidb_pipelines.images.runners.engine import Engine
from akidb_pipelines.lab.processes import Process, start
from akidb_pipelines.lab.programs import find
from akidb_pipelines.progress import Progress, Report

_SOCKET_LIMIT = 107
_START_SECONDS = 60
_STATE = "engine.json"


@dataclass(frozen=True)
class LabEngine:
    """The engine below one folder.

    Args:
        folder: it.
        instead: what somebody who is not root can do, for the hint.
    """

    folder: Path
    instead: str

    @property
    def url(self) -> str:
        """Of the engine."""
        return f"unix://{self.folder / 'docker.sock'}"

    def start(self, report: Report) -> None:
        """Start it if it does not run.

        Raises:
            OutsideError: a program, a right or room is missing.
        """
        if os.geteuid() != 0:
            raise OutsideError("the lab's Docker engine runs as root", hint=f"sudo, or {self.instead}")
        if len(self.url) - len("unix://") > _SOCKET_LIMIT:
            raise OutsideError(
                f"the engine's socket would be {self.folder / 'docker.sock'}: longer than {_SOCKET_LIMIT} characters",
                hint="point AKIDB_HOME at a folder with a shorter path",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.running():
            report(Progress("lab: starting a Docker engine"))
            self._start()

    def down(self) -> None:
        """Stop it with its containers, and remove all it had.

        Raises:
            OutsideError: something does not end.
        """
        state = self.folder / _STATE
        if process := Process.load(state):
            process.stop()
        _unmount_below(self.folder)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def running(self) -> bool:
        """Whether the engine answers."""
        process = Process.load(self.folder / _STATE)
        if process is None or not process.alive():
            return False
        try:
            Engine(self.url).close()
        except PipelineError:
            return False
        return True

    def _start(self) -> None:
        if process := Process.load(self.folder / _STATE):
            process.stop()
        _unmount_below(self.folder)
        for stale in ("docker.pid", "docker.sock"):
            (self.folder / stale).unlink(missing_ok=True)
        # Of a killed one: its containerd would be waited for.
        shutil.rmtree(self.folder / "x", ignore_errors=True)
        # No bridge and no packet filter: the lab changes nothing of this machine's network; builds use it as it is.
        command = [
            find("dockerd"),
            "--host",
            self.url,
            "--data-root",
            str(self.folder / "data"),
            "--exec-root",
            str(self.folder / "x"),
        ]
        command += ["--pidfile", str(self.folder / "docker.pid"), "--bridge=none", "--iptables=false", "--ip6tables=false"]
        log = self.folder / "engine.log"
        process = start(command, log, {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"})
        process.save(self.folder / _STATE)
        end = time.monotonic() + _START_SECONDS
        while not self.running():
            if not process.alive() or time.monotonic() > end:
                told = log.read_text(errors="replace")[-500:] if log.exists() else ""
                process.stop()
                raise OutsideError(f"the Docker engine did not start: {told}", hint=f"read {log}")
            time.sleep(0.2)


def _unmount_below(folder: Path) -> None:
    """What containers of a killed engine have left mounted, the deepest first."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run([find("umount"), "--lazy", mount], check=False, capture_output=True)
