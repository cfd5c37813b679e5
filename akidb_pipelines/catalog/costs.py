"""The catalog's tables of costs: the ledger of billing files, and the versions of billing months. Money comes and goes as Decimal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum

from sqlalchemy import delete, insert, select, update

from akidb_pipelines.catalog.catalog import Catalog
from akidb_pipelines.catalog.models import CostFileRow, CostMonthRow, CostRollupRow

_LISTS = ("months", "billed_for_effective", "notes")


class FileState(StrEnum):
    """What became of a billing file."""

    TAKEN = "taken"
    WITHDRAWN = "withdrawn"
    """Its source replaced it."""
    QUARANTINED = "quarantined"
    DUPLICATE = "duplicate"
    """Another file of the same content counts already."""


@dataclass(frozen=True)
class CataloguedCostFile:
    """A billing file as the ledger knows it."""

    source: str
    name: str
    etag: str
    sample: bool
    state: FileState
    arrived: str
    imported_at: str
    sha256: str
    size_bytes: int
    lines_sha256: str = ""
    lines_bytes: int = 0
    line_count: int = 0
    billed: Decimal = Decimal(0)
    effective: Decimal = Decimal(0)
    months: tuple[str, ...] = ()
    billed_for_effective: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def location(self) -> str:
        """Where it lies, whichever source it was found through."""
        return f"{self.source}/{self.name}"


@dataclass(frozen=True)
class CataloguedMonth:
    """A version of a billing month."""

    month: str
    sample: bool
    version: int
    closed: bool
    files_sha256: str
    line_count: int
    rolled_at: str


@dataclass(frozen=True)
class CataloguedCell:
    """A cell of a version of a month."""

    month: str
    sample: bool
    version: int
    provider: str
    service: str
    sku: str
    team: str
    tenant: str
    environment: str
    currency: str
    unit: str
    line_count: int
    billed: Decimal
    effective: Decimal
    quantity: Decimal


class CostTables:
    """What the catalog knows of costs.

    Args:
        catalog: an open one.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    # --- files

    def files(self, *, sample: bool | None = None, states: Sequence[FileState] = ()) -> list[CataloguedCostFile]:
        """Files of the ledger, in the order of their arrival."""
        query = select(CostFileRow).order_by(CostFileRow.imported_at, CostFileRow.source, CostFileRow.name)
        if sample is not None:
            query = query.where(CostFileRow.sample == sample)
        if states:
            query = query.where(CostFileRow.state.in_(list(states)))
        with self._catalog.session() as session:
            return [_file(row) for row in session.scalars(query)]

    def record_file(self, file: CataloguedCostFile) -> None:
        """Enter a file. If it is taken, or a twin of it counts, what counted in its place is withdrawn in the same transaction."""
        values = {f.name: getattr(file, f.name) for f in fields(CataloguedCostFile)}
        values |= {name: json.dumps(list(values[name])) for name in _LISTS} | {"state": str(file.state)}
        with self._catalog.session() as session:
            if file.state in {FileState.TAKEN, FileState.DUPLICATE}:
                place = CostFileRow.source + "/" + CostFileRow.name == file.location
                counted = CostFileRow.state == FileState.TAKEN
                session.execute(update(CostFileRow).where(place, counted).values(state=FileState.WITHDRAWN))
            self._catalog.put(session, CostFileRow, values)

    # --- months

    def versions(self, *, sample: bool, month: str = "") -> list[CataloguedMonth]:
        """Versions of months (of one month), in order."""
        query = select(CostMonthRow).where(CostMonthRow.sample == sample).order_by(CostMonthRow.month, CostMonthRow.version)
        if month:
            query = query.where(CostMonthRow.month == month)
        with self._catalog.session() as session:
            return [
                CataloguedMonth(**{f.name: getattr(r, f.name) for f in fields(CataloguedMonth)}) for r in session.scalars(query)
            ]

    def cells(self, month: str, *, sample: bool) -> list[CataloguedCell]:
        """The cells of every version of a month."""
        query = (
            select(CostRollupRow)
            .where(CostRollupRow.month == month, CostRollupRow.sample == sample)
            .order_by(CostRollupRow.rollup_id)
        )
        with self._catalog.session() as session:
            return [CataloguedCell(**{f.name: getattr(r, f.name) for f in fields(CataloguedCell)}) for r in session.scalars(query)]

    def record_version(self, month: CataloguedMonth, cells: Sequence[CataloguedCell] | None = None) -> None:
        """Enter a version of a month with its cells (None: those it has stay), all or nothing; the same version of it is replaced."""
        same = (CostRollupRow.month == month.month, CostRollupRow.sample == month.sample, CostRollupRow.version == month.version)
        prefix = f"{'sample/' if month.sample else ''}{month.month}/v{month.version}"
        rows = [{"rollup_id": f"{prefix}/{n:05d}", **vars(cell)} for n, cell in enumerate(cells or (), 1)]
        with self._catalog.session() as session:
            if cells is not None:
                session.execute(delete(CostRollupRow).where(*same))
            if rows:
                session.execute(insert(CostRollupRow), rows)
            self._catalog.put(session, CostMonthRow, vars(month))


def now_text() -> str:
    """Now, as the catalog writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _file(row: CostFileRow) -> CataloguedCostFile:
    values = {f.name: getattr(row, f.name) for f in fields(CataloguedCostFile)}
    values |= {name: tuple(json.loads(values[name])) for name in _LISTS} | {"state": FileState(values["state"])}
    return CataloguedCostFile(**values)
