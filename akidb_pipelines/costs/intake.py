"""Reading one FOCUS file: CSV, plain or gzip, into typed Parquet, with what is true of it; or the reasons why it is refused.

A file counts whole or not at all. What is wrong with single rows of a file that is refused is found in a second, slow pass. What is odd but
true of real bills (negative usage, credits, corrections) is accepted and told. No ledger, no store: see ledger.py.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_pipelines.costs import engine
from akidb_pipelines.costs.focus import EXACT, FILLED, KEPT, LAB_ACCOUNT, NUMBERS, PRICES, TIMES, WANTED, Header, read_header
from akidb_pipelines.costs.money import PLACES
from akidb_pipelines.costs.oddities import EXTRA_COLUMNS, LACKING_COLUMNS, Oddity, refusals, scan
from akidb_pipelines.errors import CheckError, InputError, OutsideError
from akidb_pipelines.files import BLOCK_BYTES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_GZIP = b"\x1f\x8b"
_MOST_REASONS = 20
_DECIMAL = f"DECIMAL(38,{PLACES})"


@dataclass(frozen=True)
class Reason:
    """Why a file is refused; `row` counts from 1 after the header, 0 is the file as a whole."""

    message: str
    row: int = 0
    column: str = ""
    value: str = ""

    def __str__(self) -> str:
        where = f"row {self.row}, {self.column} {self.value!r}: " if self.row else ""
        return f"{where}{self.message}"


class RefusedFileError(CheckError):
    """A file of which nothing may count.

    Args:
        name: of the file.
        reasons: at least one.
    """

    def __init__(self, name: str, reasons: tuple[Reason, ...]) -> None:
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        super().__init__(
            f"{name}: nothing of it counts: {'; '.join(str(r) for r in reasons[:3])}{more}",
            hint="runbooks/cost-file-quarantined.md",
        )
        self.reasons = reasons


@dataclass(frozen=True)
class Group:
    """Rows of one provider, service, billing month and set of tags, added up as they stand in the file."""

    provider: str
    service: str
    month: str
    tags: str
    rows: int
    billed: Decimal
    effective: Decimal


@dataclass(frozen=True)
class Lines:
    """What a file holds, once it is Parquet."""

    rows: int
    billed: Decimal
    effective: Decimal
    months: tuple[str, ...]
    """Billing months, such as 2026-10."""
    groups: tuple[Group, ...]
    oddities: tuple[Oddity, ...]
    sample: bool
    """Whether the lab made it up: its billing account says so."""
    billed_for_effective: tuple[str, ...]
    """Providers whose EffectiveCost means nothing (all zero, or all integers): BilledCost stands for it in rollups."""


def read_focus(path: Path, name: str, parquet: Path, scratch: Path) -> Lines:
    """Turn a FOCUS file into Parquet: our columns, numbers as DECIMAL(38,18), times as TIMESTAMP in UTC, everything else as text.

    Args:
        path: the file as it came.
        name: what to call it in messages.
        parquet: the file to write.
        scratch: folder for temporary work.

    Raises:
        RefusedFileError: nothing of it may count.
        OutsideError: there is no room.
    """
    plain = _plain(path, name, scratch / "plain.csv")
    header = _header(plain, name)
    with engine.duck(scratch) as db:
        _write(db, plain, name, header, parquet)
        lines = _look(db, parquet, name)
    if plain != path:
        plain.unlink()
    drift = _drift(header)
    return replace(lines, oddities=(*drift, *lines.oddities))


def _plain(path: Path, name: str, target: Path) -> Path:
    """The file without its compression. Python reads gzip because DuckDB does not compare the checksum."""
    with path.open("rb") as raw:
        if raw.read(2) != _GZIP:
            return path
    try:
        with gzip.open(path) as source, target.open("wb") as out:
            while block := source.read(BLOCK_BYTES):
                out.write(block)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        target.unlink(missing_ok=True)
        reason = "it is cut short" if isinstance(error, EOFError) else f"its compression is damaged ({error})"
        raise RefusedFileError(name, (Reason(reason),)) from error
    except OSError as error:
        target.unlink(missing_ok=True)
        raise OutsideError(f"unpacking {name}: {error}", hint="free some space, or point AKIDB_HOME elsewhere") from error
    return target


def _header(path: Path, name: str) -> Header:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            names = next(csv.reader(handle), [])
        return read_header(names, name)
    except (UnicodeDecodeError, csv.Error) as error:
        raise RefusedFileError(name, (Reason(f"its header cannot be read: {error}"),)) from error
    except InputError as error:
        raise RefusedFileError(name, (Reason(error.message.removeprefix(f"{name} ").removeprefix(f"{name}: ")),)) from error


def _source(path: Path, header: Header) -> str:
    columns = ", ".join(f"'c{n}': 'VARCHAR'" for n in range(len(header.names)))
    return (
        f"read_csv({engine.text(str(path))}, auto_detect = false, header = true, delim = ',', quote = '\"', escape = '\"', "
        f"nullstr = ['', 'NULL'], columns = {{{columns}}})"
    )


def _raw(header: Header, column: str) -> str:
    """The text of a column: its newest name's, or an older one's where that is empty."""
    sources = [f"c{n}" for n in header.sources.get(column, ())]
    if not sources:
        return "NULL"
    return sources[0] if len(sources) == 1 else f"coalesce({', '.join(sources)})"


def _too_fine(raw: str) -> str:
    """Whether digits would be lost; 19 characters cannot hold too many, and are nearly all there is."""
    fraction = f"length(rtrim(split_part(split_part(lower({raw}), 'e', 1), '.', 2), '0'))"
    exponent = f"coalesce(TRY_CAST(nullif(split_part(lower({raw}), 'e', 2), '') AS INTEGER), 0)"
    suspect = f"(length({raw}) > 19 OR contains({raw}, 'e') OR contains({raw}, 'E'))"
    return f"{suspect} AND {fraction} - {exponent} > {PLACES}"


def _typed(header: Header, column: str) -> str:
    raw = _raw(header, column)
    if raw == "NULL":
        value = f"CAST(NULL AS {_DECIMAL if column in NUMBERS else 'TIMESTAMP' if column in TIMES else 'VARCHAR'})"
    elif column in EXACT:
        value = f"CASE WHEN {_too_fine(raw)} THEN error('too fine') ELSE CAST({raw} AS {_DECIMAL}) END"
    elif column in PRICES:
        value = f"TRY_CAST({raw} AS {_DECIMAL})"
    elif column in NUMBERS:
        value = f"CAST({raw} AS {_DECIMAL})"
    elif column in TIMES:
        # Nearly all are in UTC and say so; converting all through a time zone took a sixth of the whole.
        value = f"CASE WHEN suffix({raw}, 'Z') THEN CAST({raw} AS TIMESTAMP) ELSE CAST(CAST({raw} AS TIMESTAMPTZ) AS TIMESTAMP) END"
    else:
        value = f"CAST({raw} AS VARCHAR)"
    return f"{value} AS {engine.name(column)}"


def _write(db: DuckDBPyConnection, path: Path, name: str, header: Header, parquet: Path) -> None:
    import duckdb

    columns = [_typed(header, c) for c in KEPT]
    query = f"SELECT {', '.join(columns)} FROM {_source(path, header)}"
    try:
        db.execute(f"COPY ({query}) TO {engine.text(str(parquet))} (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)")
    except (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException) as error:
        parquet.unlink(missing_ok=True)
        raise RefusedFileError(name, tuple(_reasons(db, path, header)) or (_structure(error),)) from error


def _reasons(db: DuckDBPyConnection, path: Path, header: Header) -> Iterator[Reason]:
    """What is wrong with which row; nothing if the file is no CSV as such."""
    import duckdb

    checks = []
    for column in (c for c in (*NUMBERS, *TIMES) if c in header.sources and c not in PRICES):
        raw = _raw(header, column)
        if column in NUMBERS:
            wrong = [(f"TRY_CAST({raw} AS {_DECIMAL}) IS NULL", "is no number, or has more than 20 digits before the point")]
            if column in EXACT:
                wrong.append((_too_fine(raw), f"has more than {PLACES} decimal places"))
        else:
            wrong = [(f"TRY_CAST({raw} AS TIMESTAMPTZ) IS NULL", "is no time in UTC, such as 2026-10-01T00:00:00Z")]
        checks += [
            f"SELECT n, {engine.text(column)}, {raw}, {engine.text(told)} FROM rows WHERE {raw} IS NOT NULL AND {bad}"
            for bad, told in wrong
        ]
    query = (
        f"WITH rows AS MATERIALIZED (SELECT row_number() OVER () AS n, * FROM {_source(path, header)}) {' UNION ALL '.join(checks)}"
    )
    try:
        found = db.execute(f"{query} ORDER BY 1, 2 LIMIT {_MOST_REASONS}").fetchall()
    except duckdb.InvalidInputException:
        return
    yield from (Reason(told, row, column, value) for row, column, value, told in found)


def _structure(error: Exception) -> Reason:
    """DuckDB's own words for a row that is none."""
    told = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [
        t for t in told if t.startswith(("Invalid Input Error", "Expected Number", "Value with", "Invalid unicode", "Error when"))
    ]
    return Reason("; ".join(useful or told[:1]).removeprefix("Invalid Input Error: "))


def _look(db: DuckDBPyConnection, parquet: Path, name: str) -> Lines:
    db.execute(f"CREATE VIEW lines AS SELECT * FROM read_parquet({engine.text(str(parquet))})")
    empty = db.execute(f"SELECT count(*), {', '.join(f'count(*) - count({c})' for c in FILLED)} FROM lines").fetchone()
    assert empty is not None  # an aggregate has a row
    reasons = [Reason(f"{c} is empty in {n} rows") for c, n in zip(FILLED, empty[1:], strict=True) if n]
    if reasons := [*reasons, *(Reason(told) for told in refusals(db))]:
        parquet.unlink(missing_ok=True)
        raise RefusedFileError(name, tuple(reasons))
    groups = _groups(db)
    oddities, fallbacks = scan(db)
    sample = db.execute(f"SELECT bool_or(BillingAccountId = {engine.text(LAB_ACCOUNT)}) FROM lines").fetchone()
    return Lines(
        rows=empty[0],
        billed=_added(g.billed for g in groups),
        effective=_added(g.effective for g in groups),
        months=tuple(sorted({g.month for g in groups})),
        groups=groups,
        oddities=oddities,
        sample=bool(sample and sample[0]),
        billed_for_effective=fallbacks,
    )


def _groups(db: DuckDBPyConnection) -> tuple[Group, ...]:
    rows = db.execute(
        """
        SELECT Provider, ServiceName, strftime(BillingPeriodStart, '%Y-%m'), coalesce(Tags, ''), count(*),
               coalesce(sum(BilledCost), 0), coalesce(sum(EffectiveCost), 0)
        FROM lines GROUP BY ALL ORDER BY ALL
        """
    ).fetchall()
    return tuple(Group(*row) for row in rows)


def groups_of(parquet: Path, scratch: Path) -> tuple[Group, ...]:
    """The groups of a file that was read before."""
    with engine.duck(scratch) as db:
        db.execute(f"CREATE VIEW lines AS SELECT * FROM read_parquet({engine.text(str(parquet))})")
        return _groups(db)


def _added(amounts: Iterator[Decimal]) -> Decimal:
    from akidb_pipelines.costs.money import total

    return total(list(amounts))


def _drift(header: Header) -> tuple[Oddity, ...]:
    found = []
    if header.extra:
        found.append(Oddity("extra columns", len(header.extra), f"{EXTRA_COLUMNS}: {', '.join(header.extra)}"))
    if lacking := [name for name in WANTED if name not in header.sources]:
        found.append(Oddity("missing columns", len(lacking), f"{LACKING_COLUMNS}: {', '.join(lacking)}"))
    return tuple(found)
