"""DuckDB as costs use it: bounded memory, UTC, no network, and SQL literals that cannot break out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_pipelines.errors import OutsideError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_MEMORY = "600MB"
"""Ten million rows are rolled up within; what does not fit goes to the scratch folder."""
_THREADS = 1
"""Two are no faster in sum: reading text is bound by memory, and costs a quarter more CPU."""


@contextmanager
def duck(scratch: Path) -> Iterator[DuckDBPyConnection]:
    """A DuckDB in memory.

    Args:
        scratch: folder for what does not fit into memory.

    Raises:
        OutsideError: it ran out of memory or disk.
    """
    import duckdb

    db = duckdb.connect(
        config={
            "memory_limit": _MEMORY,
            "threads": _THREADS,
            "temp_directory": str(scratch / "duckdb"),
            "autoinstall_known_extensions": False,
        }
    )
    try:
        db.execute("SET TimeZone = 'UTC'")
        yield db
    except duckdb.OutOfMemoryException as error:
        raise OutsideError(f"costs: {first_line(error)}", hint="free some memory or room in AKIDB_HOME") from error
    except duckdb.IOException as error:
        if "No space left" in str(error) or "Could not write" in str(error):
            raise OutsideError(f"costs: {first_line(error)}", hint="free some space, or point AKIDB_HOME elsewhere") from error
        raise
    finally:
        db.close()


def text(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("'", "''") + "'"


def name(value: str) -> str:
    """An identifier."""
    return '"' + value.replace('"', '""') + '"'


def listed(values: Sequence[str]) -> str:
    """A list of string literals, in brackets."""
    return f"[{', '.join(text(v) for v in values)}]"


def first_line(error: Exception) -> str:
    """The first line of DuckDB's message: the rest quotes our own SQL."""
    return str(error).strip().split("\n")[0]
