"""Keeping file systems still for a while, in a way that survives us."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
from collections.abc import Sequence

from akidb_pipelines.images.agent.drive import AgentError

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_MS_RDONLY, _MS_REMOUNT = 1, 32
_KEPT = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME
"""Flags of a mount that statvfs(3) tells with the numbers that mount(2) takes."""
_MCL_CURRENT_AND_FUTURE = 3


class Freezer:
    """Keeps file systems still, in a process of its own that thaws them: when told, when we are gone, or when its time is up.

    That process runs before anything is frozen, has its memory locked and writes to no disk: whoever must page in or write in order to thaw
    would wait for himself.
    """

    def __init__(self, mounts: Sequence[str], read_only: Sequence[str], seconds: int) -> None:
        report, told = os.pipe()
        ours, self._control = os.pipe()
        self._report = report
        self._child = os.fork()
        if self._child == 0:
            try:
                os.close(report)
                os.close(self._control)
                _freeze(mounts, read_only, seconds, ours, told)
            finally:
                os._exit(0)
        os.close(told)
        os.close(ours)
        self._problem = os.read(report, 4096).decode("utf-8", "replace").partition("\n")[0]
        if self._problem != "frozen":
            self.thaw()
            raise AgentError(self._problem or "the freezing process died")

    def thaw(self) -> bool:
        """Thaw; returns whether it was frozen all the time until now."""
        with contextlib.suppress(BrokenPipeError):  # its time was up
            os.write(self._control, b"thaw")
        os.close(self._control)
        last = os.read(self._report, 4096)
        os.close(self._report)
        os.waitpid(self._child, 0)
        return last == b"thawed as told\n"


def _freeze(mounts: Sequence[str], read_only: Sequence[str], seconds: int, control: int, told: int) -> None:
    """The freezing process, from its first moment to its last."""
    os.setsid()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # else a lost connection is not over while this lives
        os.dup2(nothing, standard)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT_AND_FUTURE) != 0:
        os.write(told, b"memory cannot be locked, so nothing is frozen: %s\n" % os.strerror(ctypes.get_errno()).encode())
        return
    undo: list[tuple[int | None, int, str]] = []
    asked = False
    path = ""
    try:
        for path in read_only:
            flags = os.statvfs(path).f_flag & _KEPT  # a remount takes away what it is not told
            if libc.mount(None, path.encode(), None, _MS_REMOUNT | _MS_RDONLY | flags, None) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            undo.append((None, flags, path))
        for path in mounts:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.ioctl(folder, _FIFREEZE, 0)
            undo.append((folder, 0, path))
        os.write(told, b"frozen\n")
        asked = bool(select.select([control], [], [], seconds)[0])
    except OSError as error:
        os.write(told, f"{path} cannot be frozen: {error.strerror}\n".encode())
    for frozen, flags, path in reversed(undo):
        if frozen is None:
            libc.mount(None, path.encode(), None, _MS_REMOUNT | flags, None)
        else:
            fcntl.ioctl(frozen, _FITHAW, 0)
    os.write(told, b"thawed as told\n" if asked else b"thawed because its time was up\n")
