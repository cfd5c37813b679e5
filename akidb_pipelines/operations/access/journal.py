"""The log of decisions: one JSON object a line, one file a day, only ever appended to. Team Security reads it in the UI or from the files.

Written down are: every decision about something that changes, every refusal to look, and tokens that were refused. What only greys a
button is not. What cannot be written down is not done. Refusals cost an attacker nothing: sixty a minute of each person's, and of tokens
that prove nobody, are written down.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.settings import Settings

_REFUSALS_A_MINUTE = 60
_MORE = "further refusals of this minute are not written down"


@dataclass(frozen=True)
class Entry:
    """One decision."""

    user: str
    """Email or subject; empty for a token that was refused."""
    subject: str
    """The claim `sub`, which nobody can choose."""
    teams: tuple[str, ...]
    asked: str
    """A mutation, or the path of a page."""
    about: str
    """Names and ids that it is about, as JSON."""
    right: str
    allowed: bool
    policy: str
    """That decided; `default-deny` when none did."""
    address: str
    """Of the client as the front sees it: mostly the proxy's."""


class Journal:
    """The files of one folder.

    Args:
        folder: is made if need be.
        clock: the time of an entry.
    """

    def __init__(self, folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.folder, self._clock = folder, clock
        self._lock = threading.Lock()
        self._minute = 0
        self._refusals: Counter[str] = Counter()

    def write(self, entry: Entry) -> None:
        """Append an entry; of one person's denials the first sixty of a minute.

        Raises:
            OutsideError: it cannot be written; what was asked must not be done.
        """
        known = {"time": self._now(), **asdict(entry)}
        if not entry.allowed:
            count = self._refused(entry.subject)
            if count > _REFUSALS_A_MINUTE + 1:
                return
            if count > _REFUSALS_A_MINUTE:
                known |= {"about": "", "policy": _MORE}
        self._append(known)

    def refuse(self, reason: str, path: str, address: str) -> None:
        """Append that a token was refused, unless sixty of this minute were.

        Raises:
            OutsideError: it cannot be written.
        """
        if (count := self._refused("")) > _REFUSALS_A_MINUTE + 1:
            return
        told = _MORE if count > _REFUSALS_A_MINUTE else reason
        self._append({"time": self._now(), "user": "", "asked": path[:200], "allowed": False, "policy": told, "address": address})

    def _refused(self, subject: str) -> int:
        """How often this minute, with this time."""
        with self._lock:
            minute = int(self._clock().timestamp()) // 60
            if minute != self._minute:
                self._minute = minute
                self._refusals.clear()
            self._refusals[subject] += 1
            return self._refusals[subject]

    def days(self) -> list[date]:
        """Days that have entries, oldest first."""
        return sorted(date.fromisoformat(p.stem[-10:]) for p in self.folder.glob("decisions-????-??-??.jsonl"))

    def entries(self, day: date) -> Iterator[dict[str, Any]]:
        """The entries of a day; what a full disk left of one says so."""
        for line in self.read(day):
            try:
                yield json.loads(line)
            except ValueError:
                if line.strip():
                    yield {
                        "time": "",
                        "asked": line.strip()[:200],
                        "allowed": False,
                        "policy": "half a line, of a disk that was full",
                    }

    def read(self, day: date) -> Iterator[str]:
        """The lines of a day, as they stand."""
        path = self._path(day)
        if path.is_file():
            with path.open(encoding="utf-8") as lines:
                yield from lines

    def _append(self, entry: dict[str, object]) -> None:
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        path = self._path(self._clock().date())
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # One write each: lines of several processes do not mix.
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                # Half a line that a full disk left must not swallow the next one.
                size = os.fstat(handle).st_size
                whole = b"\n" + line if size and os.pread(handle, 1, size - 1) != b"\n" else line
                if os.write(handle, whole) != len(whole):
                    raise OSError(28, "no room for a whole line")
            finally:
                os.close(handle)
        except OSError as error:
            raise OutsideError(
                f"the log of decisions {path} cannot be written: {error.strerror}",
                hint="make room, or let the front write there; until then nothing can be changed through it",
            ) from error

    def _path(self, day: date) -> Path:
        return self.folder / f"decisions-{day}.jsonl"

    def _now(self) -> str:
        return self._clock().isoformat(timespec="milliseconds").replace("+00:00", "Z")


def open_journal(settings: Settings) -> Journal:
    """The journal as configured."""
    return Journal(settings.access_log or settings.home / "access")
