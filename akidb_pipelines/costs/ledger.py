"""The cost ledger: which billing files count, their lines in cold storage, and the versions of every billing month.

costs/files/<sha256>            a billing file as it came, also one that was refused
costs/lines/<sha256>.parquet    its lines, typed
A file counts from the transaction that enters it, which is the last thing that happens; what a killed import has left is an object
without an entry, and the same import again writes the same one. What the lab made up is `sample`: it is never added to what is real, and
as soon as there is anything real, only that is shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from akidb_pipelines.catalog.catalog import Catalog
from akidb_pipelines.catalog.costs import CataloguedCell, CataloguedCostFile, CataloguedMonth, CostTables, FileState, now_text
from akidb_pipelines.cedar.sandbox import OPS, Sandbox, load_sandbox
from akidb_pipelines.costs import engine
from akidb_pipelines.costs.allocation import Share, allocate
from akidb_pipelines.costs.intake import Group, Lines, Reason, RefusedFileError, groups_of, read_focus
from akidb_pipelines.costs.money import total
from akidb_pipelines.costs.oddities import OCI_KEY
from akidb_pipelines.costs.plan import Plan, load_plan
from akidb_pipelines.costs.price_book import PriceBook, focus_csv, load_price_book
from akidb_pipelines.costs.rollup import Cell, Day, Key, LinesFile, by_day, days_present, line_totals, roll_up
from akidb_pipelines.costs.sources import BillingFile, Folder, Source
from akidb_pipelines.costs.tagging import SHARED, UNALLOCATED, UNTAGGED, Tagging, expect_known, load_rules
from akidb_pipelines.errors import IntegrityError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.periods import Month
from akidb_pipelines.progress import Report
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.areas import COLD, area
from akidb_pipelines.store.lease import hold
from akidb_pipelines.store.objects import ObjectStore

ROOT = "costs/"
PRICES = "price-book"
"""Source of the lines that the price book makes."""
_TEAMS = "CostTeam"


@dataclass(frozen=True)
class Imported:
    """What became of one file."""

    file: CataloguedCostFile
    groups: tuple[Group, ...] = ()
    """What it holds; of a file that was known before, see Ledger.groups."""
    reasons: tuple[Reason, ...] = ()
    is_new: bool = True


@dataclass(frozen=True)
class RolledMonth:
    """A billing month as it is now: the sum of its versions."""

    month: Month
    sample: bool
    version: int
    closed: bool
    cells: tuple[Cell, ...]
    delta: tuple[Cell, ...]
    """What its newest version added, where that is not the first."""
    unknown: tuple[str, ...]
    changed: bool
    """Whether this rollup made or replaced a version."""

    @property
    def totals(self) -> dict[str, tuple[Decimal, Decimal]]:
        """Billed and effective cost by currency: amounts of two are never added."""
        of = {c.currency: [n for n in self.cells if n.currency == c.currency] for c in self.cells}
        return {name: (total([c.billed for c in cells]), total([c.effective for c in cells])) for name, cells in sorted(of.items())}

    @property
    def line_count(self) -> int:
        """How many lines went in."""
        return sum(c.lines for c in self.cells)


@dataclass(frozen=True)
class Ledger:
    """Everything about costs that is kept.

    Args:
        cold: area of the store.
        tables: of the catalog.
        catalog: that they are in.
        sandbox: what the rollups are held to.
        plan: the plan book.
        book: the price book.
        tagging: whose a cost is.
        scratch: folder for temporary work.
        cache: folder of lines that were fetched before.
        close_days: after so many days of the next month a month is closed.
        is_real: whether a source is configured: what is made up is not shown then, even while nothing real has come.
    """

    cold: ObjectStore
    tables: CostTables
    catalog: Catalog
    sandbox: Sandbox
    plan: Plan
    book: PriceBook
    tagging: Tagging
    scratch: Path
    cache: Path
    close_days: int
    is_real: bool

    @property
    def sample(self) -> bool:
        """Whether what is shown is made up: nothing else has ever come, and nothing is configured."""
        return not self.is_real and not any(not f.source.startswith(PRICES) for f in self.tables.files(sample=False))

    # --- files

    def take_in(self, source: Source, report: Report = lambda _: None, *, today: date | None = None) -> Iterator[Imported]:
        """Take in every file of a source that the ledger does not know. One that is refused does not keep the others out.

        Raises:
            OutsideError: the source or the store cannot be reached, or there is no room.
            BusyError: somebody else takes files in.
        """
        with self._alone():
            known = {f.key: f for f in self.tables.files(sample=source.sample)}
            for file in source.files():
                entry = known.get((source.url, file.name, file.etag))
                if entry and entry.state is not FileState.WITHDRAWN:
                    yield Imported(entry, is_new=False)
                else:
                    yield self._take_in(source, file, report, today or datetime.now(UTC).date())

    def _alone(self) -> AbstractContextManager[object]:
        return hold(self.cold, "cost intake", key=f"{ROOT}lease.json")

    def _take_in(self, source: Source, file: BillingFile, report: Report, today: date) -> Imported:
        with scratch_folder(self.scratch) as folder:
            path, parquet = folder / "file", folder / "lines.parquet"
            sha256 = source.fetch(file, path, report)
            entry = CataloguedCostFile(
                source=source.url,
                name=file.name,
                etag=file.etag,
                sample=source.sample,
                state=FileState.QUARANTINED,
                arrived=today.isoformat(),
                imported_at=now_text(),
                sha256=sha256,
                size_bytes=file.size_bytes,
            )
            counted = self.tables.files(sample=source.sample, states=(FileState.TAKEN,))
            others = [f for f in counted if (f.source, f.name) != (source.url, file.name)]
            if twin := next((f for f in others if f.sha256 == sha256), None):
                note = f"the same bytes count already as {twin.source}/{twin.name}"
                return self._enter(entry, FileState.DUPLICATE, notes=(note,))
            self.cold.create(f"{ROOT}files/{sha256}", path, sha256=sha256)
            try:
                lines = read_focus(path, file.name, parquet, folder)
                self._expect_new_lines(file.name, parquet, lines, others, folder)
            except RefusedFileError as error:
                done = self._enter(entry, FileState.QUARANTINED, notes=tuple(str(r) for r in error.reasons))
                return Imported(done.file, reasons=error.reasons)
            with parquet.open("rb") as handle:
                lines_sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
            self.cold.create(_lines_key(lines_sha256), parquet, sha256=lines_sha256)
            done = self._enter(
                entry,
                FileState.TAKEN,
                lines_sha256=lines_sha256,
                lines_bytes=parquet.stat().st_size,
                line_count=lines.rows,
                billed=lines.billed,
                effective=lines.effective,
                months=lines.months,
                billed_for_effective=lines.billed_for_effective,
                notes=tuple(o.message for o in lines.oddities),
            )
            return Imported(done.file, lines.groups)

    def _enter(self, entry: CataloguedCostFile, state: FileState, **values: object) -> Imported:
        file = replace(entry, state=state, **values)  # type: ignore[arg-type]
        self.tables.record_file(file)
        return Imported(file)

    def _expect_new_lines(self, name: str, parquet: Path, lines: Lines, others: Sequence[CataloguedCostFile], folder: Path) -> None:
        """Raises RefusedFileError: some of its lines count already, in another file."""
        same_months = [f for f in others if set(f.months) & set(lines.months)]
        if not same_months:
            return
        paths = engine.listed([str(p) for p in (self._lines(f).path for f in same_months)])
        with engine.duck(folder) as db:
            new = f"SELECT {OCI_KEY} FROM read_parquet({engine.text(str(parquet))}) WHERE oci_ReferenceNumber IS NOT NULL"
            old = f"SELECT {OCI_KEY} FROM read_parquet({paths}) WHERE oci_ReferenceNumber IS NOT NULL"
            found = db.execute(f"SELECT count(*), min(oci_ReferenceNumber) FROM ({new} INTERSECT {old})").fetchone()
        if found and found[0]:
            raise RefusedFileError(name, (Reason(f"{found[0]} of its lines count already in another file, such as {found[1]}"),))

    def price(self, month: Month, today: date | None = None) -> Imported | None:
        """Take in what the price book says of a month, up to yesterday; None where that is nothing."""
        today = today or datetime.now(UTC).date()
        until = min(month.last, today - timedelta(days=1))
        if until < month.first or not self.book.items:
            return None
        with scratch_folder(self.scratch) as folder:
            path = folder / f"{month}.csv"
            path.write_bytes(focus_csv(self.book, month, until))
            prices = _Prices(path, sample=self.sample)
            return next(iter(self.take_in(prices, today=today)), None)

    # --- lines

    def counted(self, month: Month) -> list[CataloguedCostFile]:
        """The files that count in a month."""
        taken = self.tables.files(sample=self.sample, states=(FileState.TAKEN,))
        return [f for f in taken if str(month) in f.months]

    def lines(self, month: Month) -> list[LinesFile]:
        """Their lines, here.

        Raises:
            IntegrityError: the store has other bytes than were stored.
            OutsideError: they cannot be fetched.
        """
        return [self._lines(f) for f in self.counted(month)]

    def _lines(self, file: CataloguedCostFile) -> LinesFile:
        path = self.cache / f"{file.lines_sha256}.parquet"
        if not path.exists() or path.stat().st_size != file.lines_bytes:
            self.cache.mkdir(parents=True, exist_ok=True)
            with scratch_folder(self.cache) as folder:
                fetched = folder / "lines"
                self.cold.fetch(_lines_key(file.lines_sha256), fetched, sha256=file.lines_sha256, size_bytes=file.lines_bytes)
                fetched.replace(path)
        return LinesFile(path, file.billed_for_effective)

    def groups(self, file: CataloguedCostFile) -> tuple[Group, ...]:
        """What a file that counts holds."""
        with scratch_folder(self.scratch) as folder:
            return groups_of(self._lines(file).path, folder)

    def days(self, month: Month) -> list[Day]:
        """A month by day and SKU."""
        with scratch_folder(self.scratch) as folder:
            return by_day(self.lines(month), month, folder)

    def days_present(self, month: Month) -> dict[str, list[date]]:
        """The days that each provider has lines for."""
        with scratch_folder(self.scratch) as folder:
            return days_present(self.lines(month), month, folder)

    def line_totals(self, month: Month) -> dict[str, tuple[int, Decimal, Decimal]]:
        """Rows, billed and effective cost of all lines of a month, by currency."""
        with scratch_folder(self.scratch) as folder:
            return line_totals(self.lines(month), month, folder)

    # --- months

    def months(self) -> list[Month]:
        """Every month that there are lines of, in order."""
        taken = self.tables.files(sample=self.sample, states=(FileState.TAKEN,))
        return [Month.parse(m) for m in sorted({m for f in taken for m in f.months})]

    def stale(self) -> dict[Month, str]:
        """Months whose rollup is not of the files and rules that count now, with the digest of those."""
        newest = {v.month: v.files_sha256 for v in self.tables.versions(sample=self.sample)}
        now = {m: _digest(self.counted(m), self.tagging) for m in self.months()}
        return {m: digest for m, digest in now.items() if newest.get(str(m)) != digest}

    def roll_up(self, month: Month, today: date | None = None) -> RolledMonth:
        """Add a month up, and keep it: version 1 while it is open; once it is closed, differences as further versions.

        Raises:
            IntegrityError: lines are damaged, or the sum is not that of the lines; nothing is kept then.
            OutsideError: store or catalog cannot be reached.
        """
        today = today or datetime.now(UTC).date()
        self.price(month, today)
        files = self.counted(month)
        with scratch_folder(self.scratch) as folder:
            lines = [self._lines(f) for f in files]
            rolled = roll_up(lines, month, self.tagging, folder)
            _expect_exact(month, rolled.cells, line_totals(lines, month, folder))
        is_closed = today >= month.shift(1).first + timedelta(days=self.close_days)
        digest = _digest(files, self.tagging)
        versions = self.tables.versions(sample=self.sample, month=str(month))
        if versions and versions[-1].files_sha256 == digest and versions[-1].closed == is_closed:
            return self.month(month, rolled.unknown)
        if versions and versions[-1].closed:
            number, cells = versions[-1].version + 1, difference(self._cells(month), rolled.cells)
        else:
            number, cells = 1, list(rolled.cells)
        if number > 1 and not cells:  # other files, the same money: nothing to add, and nothing to do again
            self.tables.record_version(replace(versions[-1], files_sha256=digest))
            return self.month(month, rolled.unknown)
        row = CataloguedMonth(str(month), self.sample, number, is_closed, digest, sum(c.lines for c in cells), now_text())
        self.tables.record_version(row, [_catalogued(c, row) for c in cells])
        return self.month(month, rolled.unknown, changed=True)

    def month(self, month: Month, unknown: tuple[str, ...] = (), *, changed: bool = False) -> RolledMonth:
        """A month as the catalog has it."""
        versions = self.tables.versions(sample=self.sample, month=str(month))
        newest = versions[-1] if versions else None
        rows = self.tables.cells(str(month), sample=self.sample)
        delta = [_cell(r) for r in rows if newest and newest.version > 1 and r.version == newest.version]
        return RolledMonth(
            month=month,
            sample=self.sample,
            version=newest.version if newest else 0,
            closed=bool(newest and newest.closed),
            cells=tuple(added(_cell(r) for r in rows)),
            delta=tuple(delta),
            unknown=unknown,
            changed=changed,
        )

    def _cells(self, month: Month) -> list[Cell]:
        return added(_cell(r) for r in self.tables.cells(str(month), sample=self.sample))

    def shares(self, month: Month) -> list[Share]:
        """Who pays what of a month."""
        return allocate(self._cells(month), self.tagging)


class _Prices(Folder):
    """The price book's lines of one month, as a source."""

    def __init__(self, path: Path, *, sample: bool) -> None:
        super().__init__(path, sample=sample)
        self.url = f"{PRICES}{'-sample' if sample else ''}"


def _lines_key(sha256: str) -> str:
    return f"{ROOT}lines/{sha256}.parquet"


def _digest(files: Iterable[CataloguedCostFile], tagging: Tagging) -> str:
    """Of all that goes into a rollup: files and rules."""
    told = [*sorted(f.lines_sha256 for f in files), tagging.rules.model_dump_json(), *sorted(tagging.teams)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _expect_exact(month: Month, cells: Iterable[Cell], lines: dict[str, tuple[int, Decimal, Decimal]]) -> None:
    by_currency: dict[str, list[Cell]] = {}
    for cell in cells:
        by_currency.setdefault(cell.currency, []).append(cell)
    for currency, (rows, billed, effective) in lines.items():
        mine = by_currency.get(currency, [])
        if (sum(c.lines for c in mine), total([c.billed for c in mine]), total([c.effective for c in mine])) != (
            rows,
            billed,
            effective,
        ):
            raise IntegrityError(
                f"the rollup of {month} is not the sum of its {currency} lines", hint="this is a bug: report it; nothing was kept"
            )


def added(cells: Iterable[Cell]) -> list[Cell]:
    """Cells of the same key as one; what comes to nothing at all is left out."""
    sums: dict[Key, list[Cell]] = {}
    for cell in cells:
        sums.setdefault(cell.key, []).append(cell)
    found = [
        Cell(
            *key,
            sum(c.lines for c in v),
            total([c.billed for c in v]),
            total([c.effective for c in v]),
            total([c.quantity for c in v]),
        )
        for key, v in sorted(sums.items())
    ]
    return [c for c in found if c.lines or c.billed or c.effective or c.quantity]


def difference(before: Iterable[Cell], after: Iterable[Cell]) -> list[Cell]:
    """What must be added to one rollup to make the other of it."""
    minus = [Cell(*c.key, -c.lines, -c.billed, -c.effective, -c.quantity) for c in before]
    return added([*minus, *after])


def _cell(row: CataloguedCell) -> Cell:
    key = (row.provider, row.service, row.sku, row.team, row.tenant, row.environment, row.currency, row.unit)
    return Cell(*key, row.line_count, row.billed, row.effective, row.quantity)


def _catalogued(cell: Cell, month: CataloguedMonth) -> CataloguedCell:
    return CataloguedCell(
        month.month, month.sample, month.version, *cell.key, cell.lines, cell.billed, cell.effective, cell.quantity
    )


def open_ledger(settings: Settings) -> Ledger:
    """The ledger that settings describe.

    Raises:
        InputError: plan book, price book, rules, sandbox, the store's or the catalog's URL are unusable.
        OutsideError: the catalog cannot be opened.
    """
    sandbox = load_sandbox(settings.cedar_sandbox)
    teams = [t for t in sandbox.model.namespace(OPS).enumerations[_TEAMS] if t not in {SHARED, UNTAGGED, UNALLOCATED}]
    rules = load_rules(settings.cost_allocation)
    expect_known(rules, teams)
    catalog = Catalog(settings.catalog_url)
    return Ledger(
        cold=area(settings, COLD),
        tables=CostTables(catalog),
        catalog=catalog,
        sandbox=sandbox,
        plan=load_plan(settings.cost_plan),
        book=load_price_book(settings.cost_price_book),
        tagging=Tagging(rules, frozenset(teams)),
        scratch=settings.home / "tmp",
        cache=settings.cache / "costs",
        close_days=settings.cost_close_days,
        is_real=bool(settings.cost_source),
    )
