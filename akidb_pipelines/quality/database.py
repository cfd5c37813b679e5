"""Opening a SQLite file for checks: read-only, and refused in plain words when it is something else."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import apsw

from akidb_pipelines.errors import InputError


def require_database(path: Path) -> None:
    """Refuse what is no SQLite database, before an engine makes an obscure error of it.

    Raises:
        InputError: missing, unreadable, or something else.
    """
    try:
        with path.open("rb") as handle:
            head = handle.read(16)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}", hint="name a .db file") from error
    if head != b"SQLite format 3\0":
        raise InputError(f"{path} is no SQLite database", hint="name a .db file, built or pulled with akidb-pipelines")


def _uri(path: Path) -> str:
    # immutable: a released file lies in a folder that may be read-only, and nobody writes to it.
    return f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"


def read_only_url(path: Path) -> str:
    """SQLAlchemy URL that cannot change the file, nor leave a journal beside it."""
    return f"sqlite:///{_uri(path)}&uri=true"


def open_read_only(path: Path) -> apsw.Connection:
    """A connection that cannot change the file.

    Raises:
        InputError: the file is no SQLite database.
    """
    require_database(path)
    return apsw.Connection(_uri(path), flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
