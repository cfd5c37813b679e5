"""Processes that outlive whoever started them: known again by pid and start time, and ended together with all that they started.

A pid alone is no identity: after a reboot, or on a busy machine, it soon belongs to something else.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.files import write_whole

_PROC = Path("/proc")
_GONE_SECONDS = 10.0


@dataclass(frozen=True)
class Process:
    """One process, and no later one that has its pid."""

    pid: int
    started: int
    """Field 22 of /proc/PID/stat: clock ticks from boot."""
    boot: str
    """The kernel's random id of this boot."""

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process that has a pid now, or None."""
        if not (stat := _stat(pid)):
            return None
        return cls(pid, stat.started, _boot())

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """What `save` wrote, or None when it is not there or unreadable."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            return cls(int(told["pid"]), int(told["started"]), str(told["boot"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def save(self, path: Path) -> None:
        """Remember it for another process of ours."""
        write_whole(path, json.dumps(asdict(self)).encode())

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)  # it may be our own child
        return self.boot == _boot() and Process.of(self.pid) == self

    def stop(self) -> None:
        """End it and all its descendants, at once; returns when they are gone. Does nothing if it is gone already.

        Raises:
            OutsideError: something did not go, such as a process that waits for a frozen file system.
        """
        if not self.alive():
            return
        # Stopped first, so that it starts nothing new while its descendants are looked for. What a killed process leaves behind goes to
        # init and is not found from here, so the root of the tree goes last.
        os.kill(self.pid, signal.SIGSTOP)
        end = time.monotonic() + _GONE_SECONDS
        while left := list(_descendants(self.pid)):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._wait(end, f"its descendants {left} do not end")
        os.kill(self.pid, signal.SIGKILL)
        while self.alive():
            self._wait(end, "it does not end")

    def _wait(self, end: float, found: str) -> None:
        if time.monotonic() > end:
            raise OutsideError(f"stopping process {self.pid}: {found}", hint="see what it waits for: cat /proc/PID/stack")
        time.sleep(0.01)


def start(command: list[str], log: Path, environment: Mapping[str, str]) -> Process:
    """Start a program that goes on when we end: in a session of its own, reading nothing, writing to a log.

    Raises:
        OutsideError: it ended at once.
    """
    writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), writing, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # Not subprocess: its objects warn when they are forgotten before their process ends.
    pid = os.posix_spawn(command[0], command, dict(environment), file_actions=files, setsid=True)
    if process := Process.of(pid):
        return process
    raise OutsideError(f"{command[0]} ended at once", hint=f"read {log}")


@dataclass(frozen=True)
class _Stat:
    parent: int
    started: int


def _stat(pid: int) -> _Stat | None:
    """What /proc says of a process that runs."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # a program's name may contain anything
    return None if fields[0] in "ZX" else _Stat(parent=int(fields[1]), started=int(fields[19]))


def _descendants(pid: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(stat.parent, []).append(int(entry.name))
    above = [pid]
    while above:
        found = children.get(above.pop(), [])
        yield from found
        above.extend(found)


def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
