"""What a drill did, line by line, each on the disk before the next thing is done: after a killed drill, what to undo stands here.

<home>/drills/<id>/journal.jsonl    one JSON object a line; `end` is the last of a drill that was finished
<home>/drills/lock                  held by the process that drills
<home>/drills/STOP                  while this file is there, no drill goes on
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.store.lease import BusyError

JOURNAL, STOP = "journal.jsonl", "STOP"
_ID = re.compile(r"\d{8}T\d{6}Z-[a-z]+-[a-z_]+(-[0-9a-f]{4})?")


@dataclass(frozen=True)
class Undo:
    """Something that puts right what a phase is about to do; harmless when there is nothing to put right."""

    action: str
    """`power_on`, `reconnect`, `member`, `state`."""
    node: str


@dataclass(frozen=True)
class Noted:
    """What a journal says for whoever puts right what its drill did."""

    undoes: tuple[Undo, ...]
    """The last first."""
    survivors: tuple[str, ...]
    """Nodes that the drill did not touch."""
    machines: Mapping[str, str]
    """Ids of the lost nodes before they were lost."""
    restored: frozenset[str]
    """Nodes whose database was brought back."""
    fault_at: datetime | None
    """None: nothing was done."""


class Journal:
    """The journal of one drill.

    Args:
        folder: of the drill.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / JOURNAL

    def write(self, event: str, **told: object) -> None:
        """Add a line, and return when it is on the disk.

        Raises:
            OutsideError: it cannot be written; nothing more may be done then.
        """
        line = json.dumps({"at": datetime.now(UTC).isoformat(), "event": event, **told}, default=str) + "\n"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as out:
                if out.seek(0, os.SEEK_END):
                    out.seek(-1, os.SEEK_END)
                    if out.read(1) != b"\n":  # a line that was cut short when the disk was full, or the power went
                        line = f"\n{line}"
                out.write(line.encode())
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise OutsideError(
                f"journal {self._path}: {error}", hint="free some space; then: akidb-pipelines drills recover"
            ) from error

    def lines(self) -> list[dict[str, Any]]:
        """All lines. One that was cut short says nothing: it was not on the disk before the thing was done."""
        found = []
        for text in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                found.append(dict(json.loads(text)))
        return found

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to be undone."""
        lines = self.lines()
        return bool(lines) and lines[-1]["event"] == "end"

    def noted(self) -> Noted:
        """What it says for whoever puts right what the drill did."""
        lines = self.lines()
        chosen = [line for line in lines if line["event"] == "chosen"]
        undoes = [line for line in lines if line["event"] == "undo"]
        return Noted(
            undoes=tuple(dict.fromkeys(Undo(line["action"], line["node"]) for line in reversed(undoes))),
            survivors=tuple(str(name) for line in chosen for name in line["survivors"]),
            machines={str(name): str(id_) for line in chosen for name, id_ in line.get("machines", {}).items()},
            restored=frozenset(str(line["node"]) for line in lines if line["event"] == "restored"),
            fault_at=datetime.fromisoformat(undoes[0]["at"]) if undoes else None,
        )


@dataclass(frozen=True)
class Cabinet:
    """The journals of all drills, below one folder."""

    folder: Path

    @property
    def stop_file(self) -> Path:
        """The kill switch."""
        return self.folder / STOP

    def begin(self, target: str, scenario: str, now: datetime) -> Journal:
        """A journal for a new drill, under a name that no drill of the same second has, here or on another machine."""
        return Journal(self.folder / f"{now:%Y%m%dT%H%M%SZ}-{target}-{scenario}-{secrets.token_hex(2)}")

    def ids(self) -> list[str]:
        """Every drill, oldest first."""
        return sorted(p.parent.name for p in self.folder.glob(f"*/{JOURNAL}"))

    def journal(self, drill_id: str) -> Journal:
        """The journal of a drill.

        Raises:
            InputError: there is none.
        """
        if not _ID.fullmatch(drill_id) or drill_id not in self.ids():
            have = ", ".join(self.ids()[-3:]) or "none"
            raise InputError(f"there is no drill {drill_id}; the last are {have}", hint="akidb-pipelines drills list")
        return Journal(self.folder / drill_id)

    def unfinished(self) -> list[Journal]:
        """Those of drills that were killed, or whose undoing failed."""
        return [j for j in (Journal(self.folder / i) for i in self.ids()) if not j.is_finished]

    def expect_all_finished(self) -> None:
        """Refuse to begin while something is left to be undone.

        Raises:
            BusyError: it is.
        """
        if left := self.unfinished():
            raise BusyError(
                f"drill {left[0].folder.name} was interrupted and is not undone",
                hint="akidb-pipelines drills recover; docs/runbooks/drill-interrupted.md",
            )

    def is_busy(self) -> bool:
        """Whether a process drills or recovers now."""
        try:
            with self.only_one():
                return False
        except BusyError:
            return True

    @contextmanager
    def only_one(self) -> Iterator[None]:
        """Be the only process that drills.

        Raises:
            BusyError: another one does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError("another drill is under way here", hint="wait for it; akidb-pipelines drills list") from error
            yield
