"""Keeping file systems still for a while, in a way that survives us."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import threading
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


class _Undo:
    """What was frozen or made read-only, to be put back once, by whoever comes first: the end, or the timer."""

    def __init__(self, libc: ctypes.CDLL, seconds: int) -> None:
        self._libc, self._lock = libc, threading.Lock()
        self._kept: list[tuple[int | None, int, str]] = []
        self._expired = False
        self.whole = True
        """Whether everything was as we left it until it was put back in time."""
        # It runs from before the first: freezing itself waits for whoever writes.
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.start()

    def keep(self, frozen: int | None, flags: int, path: str) -> None:
        """Remember one: a frozen file system's descriptor, or the flags that a mount had."""
        with self._lock:
            self._kept.append((frozen, flags, path))
        if self._expired:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def put_back(self) -> None:
        """Put everything back. What somebody else has thawed meanwhile keeps nothing else from it."""
        self._timer.cancel()
        with self._lock:
            while self._kept:
                frozen, flags, path = self._kept.pop()
                try:
                    if frozen is not None:
                        fcntl.ioctl(frozen, _FITHAW, 0)
                    elif self._libc.mount(None, path.encode(), None, _MS_REMOUNT | flags, None) != 0:
                        self.whole = False
                except OSError:
                    self.whole = False

    def _expire(self) -> None:
        self._expired, self.whole = True, False
        self.put_back()


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
        _say(told, f"memory cannot be locked, so nothing is frozen: {os.strerror(ctypes.get_errno())}")
        return
    undo = _Undo(libc, seconds)
    path, asked = "", False
    try:
        for path in read_only:
            flags = os.statvfs(path).f_flag & _KEPT  # a remount takes away what it is not told
            if libc.mount(None, path.encode(), None, _MS_REMOUNT | _MS_RDONLY | flags, None) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            undo.keep(None, flags, path)
        for path in mounts:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.ioctl(folder, _FIFREEZE, 0)
            undo.keep(folder, 0, path)
        _say(told, "frozen")
        asked = bool(select.select([control], [], [], seconds)[0])
    except OSError as error:
        _say(told, f"{path} cannot be frozen: {error.strerror}")
    finally:
        undo.put_back()
    _say(told, "thawed as told" if asked and undo.whole else "thawed too early")


def _say(told: int, text: str) -> None:
    with contextlib.suppress(OSError):  # whoever asked is gone: what is frozen must be thawed all the same
        os.write(told, f"{text}\n".encode())
