"""What is true of a SQLite database, and putting one in the place of another. No store, no names.

Learnt the hard way, and the reason why `examine` looks four times: `integrity_check` passes a bit that flipped inside a BLOB, and rows
whose parent is gone; a file copied without its `-wal` has lost rows without a word; a `-wal` left beside another file destroys that.
Copies are made by VACUUM INTO, one step under one snapshot: the backup API in several steps may never end while somebody writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import apsw

from akidb_pipelines.errors import InputError, IntegrityError, OutsideError
from akidb_pipelines.files import digest_file, sync_folder
from akidb_pipelines.quality.database import open_read_only, require_database

CANARY_TABLE = "akidb_canary"
"""Rows with a `sequence` that a writer counts up and notes elsewhere: what was lost can be counted. Not every database has it."""
SIDECARS = ("-wal", "-shm", "-journal")
_MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Content:
    """What is in a database."""

    rows: Mapping[str, int]
    """By table."""
    canary: int | None
    """The highest sequence; None without a canary, 0 while it is empty."""


@dataclass(frozen=True)
class Examination:
    """A database looked at in all four ways."""

    sha256: str
    problems: tuple[str, ...]
    """What `integrity_check` found; empty is sound."""
    orphans: tuple[str, ...]
    """Rows whose parent is gone, at most twenty, as `table row 3: no collections`."""
    content: Content | None
    """None where it could not be read at all."""


def snapshot(database: Path, target: Path) -> datetime:
    """Copy a database that may be written to meanwhile, and say as of when: all that was committed before that moment is in it.

    Raises:
        InputError: it is no database.
        OutsideError: it stays locked, or there is no room.
    """
    require_database(database)
    try:
        source = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            source.set_busy_timeout(30_000)
            moment = datetime.now(UTC)
            source.execute("VACUUM INTO ?", (str(target),))
        finally:
            source.close()
    except apsw.Error as error:
        target.unlink(missing_ok=True)
        raise OutsideError(
            f"dumping {database}: {error}", hint="free some space, or see who holds it locked: fuser -v FILE"
        ) from error
    return moment


def content_of(database: Path) -> Content:
    """Count the rows of every table.

    Raises:
        InputError: it is no database.
        IntegrityError: it cannot be read to its end.
    """
    db = open_read_only(database)
    try:
        return _content(db)
    except apsw.Error as error:
        raise IntegrityError(f"{database}: {error}", hint="use an earlier backup") from error
    finally:
        db.close()


def _content(db: apsw.Connection) -> Content:
    names = [
        n for (n,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")
    ]
    rows = {name: int(next(db.execute(f'SELECT count(*) FROM "{name}"'))[0]) for name in names}
    canary = int(next(db.execute(f"SELECT ifnull(max(sequence), 0) FROM {CANARY_TABLE}"))[0]) if CANARY_TABLE in rows else None
    return Content(rows, canary)


def examine(database: Path) -> Examination:
    """Look at a database in all four ways: digest, pages and indexes, foreign keys, rows. It is not changed.

    Raises:
        InputError: it is no database.
    """
    db = open_read_only(database)
    # SQLite and the digest each keep a core busy.
    beside = ThreadPoolExecutor(1)
    digest = beside.submit(digest_file, database)
    try:
        try:
            told = [str(row[0]) for row in db.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})")]
            orphans = [f"{t} row {r}: no {p}" for t, r, p, _ in _first(db.execute("PRAGMA foreign_key_check"))]
            content: Content | None = _content(db)
        except apsw.Error as error:
            told, orphans, content = [str(error)], [], None
    finally:
        db.close()
        beside.shutdown()
    problems = tuple(t for t in told if t != "ok")
    return Examination(digest.result(), problems, tuple(orphans), content)


def _first(rows: apsw.Cursor) -> list[tuple[apsw.SQLiteValue, ...]]:
    return [row for row, _ in zip(rows, range(_MOST_PROBLEMS), strict=False)]


def put_in_place(file: Path, target: Path, *, replace: bool) -> None:
    """Give a verified database the name of another one: what that had beside it goes first, then the name changes in one step.

    Args:
        file: on the same file system as `target`; it is gone afterwards.
        target: where to.
        replace: whether something may be there.

    Raises:
        InputError: something is there.
        OutsideError: somebody has it open, or it cannot be written.
    """
    there = [p for p in (target, *_beside(target)) if p.exists()]
    if there and not replace:
        raise InputError(f"{there[0]} exists", hint="--replace puts the backup in its place, once nobody uses it any more")
    try:
        if target.exists():
            _expect_unused(target)
        for left in _beside(target):
            left.unlink()
        if target.exists():
            before = target.stat()
            file.chmod(before.st_mode & 0o777)
            if os.geteuid() == 0:
                os.chown(file, before.st_uid, before.st_gid)
        else:
            file.chmod(0o600)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        file.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise OutsideError(f"putting {target} in place: {error}", hint="check the folder's owner, mode and disk") from error


def _beside(target: Path) -> list[Path]:
    return [p for s in SIDECARS if (p := target.with_name(target.name + s)).exists()]


def _expect_unused(target: Path) -> None:
    """Nobody has it open: an exclusive lock can be had. A file that is no database, or a damaged one, nobody can use anyway."""
    try:
        db = apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("BEGIN EXCLUSIVE")
            db.execute("ROLLBACK")
        finally:
            db.close()
    except (apsw.BusyError, apsw.LockedError) as error:
        raise OutsideError(
            f"{target} is in use: {error}", hint="stop what uses it, then restore again; fuser -v FILE names it"
        ) from error
    except apsw.Error:
        return
