"""The cost ledger: which billing files count, and the versions of every billing month.

What the lab made up is `sample`: it is never added to what is real, and as soon as there is anything real, only that is shown. A closed
month stays as it was: whatever comes later is a further version that holds the differences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from akidb_pipelines.catalog.catalog import Catalog
from akidb_pipelines.catalog.costs import CataloguedCell, CataloguedCostFile, CataloguedMonth, CostTables, FileState, now_text
from akidb_pipelines.cedar.sandbox import OPS, Sandbox, load_sandbox
from akidb_pipelines.costs.allocation import Share, allocate
from akidb_pipelines.costs.arrivals import ROOT, Arrivals, Imported
from akidb_pipelines.costs.money import total
from akidb_pipelines.costs.plan import Plan, load_plan
from akidb_pipelines.costs.price_book import PriceBook, focus_csv, load_price_book
from akidb_pipelines.costs.rollup import Cell, Day, Key, LinesFile, Rolled, by_day, days_present, known_until, line_totals, roll_up
from akidb_pipelines.costs.sources import BillingFile, Source
from akidb_pipelines.costs.tagging import SHARED, UNALLOCATED, UNTAGGED, Tagging, expect_known, load_rules
from akidb_pipelines.errors import InputError, IntegrityError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.periods import Month
from akidb_pipelines.progress import Report
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.areas import COLD, area
from akidb_pipelines.store.lease import hold
from akidb_pipelines.store.objects import ObjectStore

PRICES = "price-book"
"""Source of the lines that the price book makes."""
_TEAMS = "CostTeam"


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
        arrivals: billing files and their lines.
        catalog: what is kept is in it.
        sandbox: what the rollups are held to.
        plan: the plan book.
        book: the price book.
        tagging: whose a cost is.
        close_days: after so many days of the next month a month is closed.
        is_real: whether a source is configured: what is made up is not shown then, even while nothing real has come.
    """

    arrivals: Arrivals
    catalog: Catalog
    sandbox: Sandbox
    plan: Plan
    book: PriceBook
    tagging: Tagging
    close_days: int
    is_real: bool

    @property
    def cold(self) -> ObjectStore:
        """Area of the store that it all lies in."""
        return self.arrivals.cold

    @property
    def tables(self) -> CostTables:
        """What the catalog knows of costs."""
        return self.arrivals.tables

    @property
    def scratch(self) -> Path:
        """Folder for temporary work."""
        return self.arrivals.scratch

    @property
    def sample(self) -> bool:
        """Whether what is shown is made up: nothing else ever counted, and nothing is configured."""
        counted = self.tables.files(sample=False, states=(FileState.TAKEN, FileState.WITHDRAWN))
        return not self.is_real and all(f.source.startswith(PRICES) for f in counted)

    # --- files

    def take_in(
        self, source: Source, report: Report = lambda _: None, *, today: date | None = None, again: bool = False
    ) -> Iterator[Imported]:
        """Take in what is new at a source, see Arrivals.take_in."""
        return self.arrivals.take_in(source, report, today=today, again=again)

    def price(self, today: date | None = None) -> list[Imported]:
        """Take in what the price book says up to yesterday, of every month that there are lines of, yesterday's and the one before it.

        Returns:
            what is new.
        """
        today = today or datetime.now(UTC).date()
        running = Month.containing(today - timedelta(days=1))
        said = {f.name.removesuffix(".csv") for f in self.tables.files(sample=self.sample) if f.source.startswith(PRICES)}
        done = []
        for month in sorted({running, running.shift(-1), *self.months(), *(Month.parse(m) for m in said)}):
            done += self._price(month, today, is_known=str(month) in said)
        return done

    def _price(self, month: Month, today: date, *, is_known: bool) -> list[Imported]:
        until = min(month.last, today - timedelta(days=1))
        data = focus_csv(self.book, month, until)
        if not is_known and data.count(b"\n") == 1:
            return []  # nothing to say, and nothing to take back
        source = _Prices(f"{month}.csv", data, sample=self.sample)
        counted = self.tables.files(sample=self.sample, states=(FileState.TAKEN,))
        if any((f.source, f.name, f.sha256) == (source.url, f"{month}.csv", source.sha256) for f in counted):
            return []
        return list(self.take_in(source, today=today))

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
        return [self.arrivals.lines(f) for f in self.counted(month)]

    def days(self, month: Month) -> list[Day]:
        """A month by day and SKU."""
        with scratch_folder(self.scratch) as folder:
            return by_day(self.lines(month), month, folder)

    def days_present(self, month: Month) -> dict[str, list[date]]:
        """The days that each provider has lines for."""
        with scratch_folder(self.scratch) as folder:
            return days_present(self.lines(month), month, folder)

    def known_until(self, month: Month, yesterday: date) -> date:
        """The newest day of a month that is complete: every provider that still bills has billed it to its end."""
        with scratch_folder(self.scratch) as folder:
            return known_until(self.lines(month), month, min(month.last, yesterday), folder)

    def line_totals(self, month: Month) -> dict[str, tuple[int, Decimal, Decimal]]:
        """Rows, billed and effective cost of all lines of a month, by currency."""
        with scratch_folder(self.scratch) as folder:
            return line_totals(self.lines(month), month, folder)

    # --- months

    def months(self) -> list[Month]:
        """Every month that there are lines of, in order."""
        taken = self.tables.files(sample=self.sample, states=(FileState.TAKEN,))
        return [Month.parse(m) for m in sorted({m for f in taken for m in f.months})]

    def stale(self, today: date | None = None) -> dict[Month, str]:
        """Months that are to be added up: their files or rules are others than were added up, or they are to be closed.

        Returns:
            by month, what it would be added up from and what it was last, as one word.
        """
        today = today or datetime.now(UTC).date()
        newest = {v.month: v for v in self.tables.versions(sample=self.sample)}
        found = {}
        for month in sorted({*self.months(), *(Month.parse(m) for m in newest)}):
            last, digest = newest.get(str(month)), _digest(self.counted(month), self.tagging)
            if last is None or last.files_sha256 != digest or (not last.closed and self._is_over(month, today)):
                found[month] = f"{digest[:16]}:{last.rolled_at if last else ''}"
        return found

    def _is_over(self, month: Month, today: date) -> bool:
        """Whether a month is to be closed."""
        return today >= month.shift(1).first + timedelta(days=self.close_days)

    def is_current(self, month: Month) -> bool:
        """Whether a month's newest version is of the files and rules that count now."""
        versions = self.tables.versions(sample=self.sample, month=str(month))
        return bool(versions) and versions[-1].files_sha256 == _digest(self.counted(month), self.tagging)

    def unknown(self, month: Month) -> tuple[str, ...]:
        """Teams, tenants and compartments of a month's lines that nobody knows. Nothing is kept."""
        return self._rolled(month, self.counted(month)).unknown

    def _rolled(self, month: Month, files: Iterable[CataloguedCostFile]) -> Rolled:
        with scratch_folder(self.scratch) as folder:
            lines = [self.arrivals.lines(f) for f in files]
            rolled = roll_up(lines, month, self.tagging, folder)
            _expect_exact(month, rolled.cells, line_totals(lines, month, folder))
        return rolled

    def roll_up(self, month: Month, today: date | None = None) -> RolledMonth:
        """Add a month up, and keep it: version 1 while it is open; once it is closed, differences as further versions.

        Raises:
            InputError: there are no lines of it, and never were.
            IntegrityError: lines are damaged, or the sum is not that of the lines; nothing is kept then.
            BusyError: somebody else is at it.
            OutsideError: store or catalog cannot be reached.
        """
        today = today or datetime.now(UTC).date()
        self.price(today)
        with hold(self.cold, f"adding up {month}", key=f"{ROOT}lease-{month}.json") as held:
            files = self.counted(month)
            versions = self.tables.versions(sample=self.sample, month=str(month))
            if not files and not versions:
                have = ", ".join(str(m) for m in self.months()) or "none"
                raise InputError(
                    f"there are no billing lines of {month}; months with lines: {have}", hint="akidb-pipelines costs import"
                )
            rolled = self._rolled(month, files)
            held.check()
            changed = self._keep(month, rolled, _digest(files, self.tagging), versions, self._is_over(month, today))
        return self.month(month, rolled.unknown, changed=changed)

    def _keep(self, month: Month, rolled: Rolled, digest: str, versions: list[CataloguedMonth], is_over: bool) -> bool:
        """Make a version, replace an open one, or close it; returns whether amounts changed."""
        delta = difference(self._cells(month), rolled.cells)
        newest = versions[-1] if versions else None
        if newest and not delta:  # the same money: at most of other files, and nothing to do again
            self.tables.record_version(replace(newest, files_sha256=digest, closed=newest.closed or is_over))
            return False
        if newest and is_over and not newest.closed:  # it was reported as it is
            newest = replace(newest, closed=True)
            self.tables.record_version(newest)
        number, cells = (newest.version + 1, delta) if newest and newest.closed else (1, list(rolled.cells))
        row = CataloguedMonth(str(month), self.sample, number, is_over, digest, sum(c.lines for c in cells), now_text())
        self.tables.record_version(row, [_catalogued(c, row) for c in cells])
        return True

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


class _Prices:
    """The price book's lines of one month, as a source."""

    def __init__(self, name: str, data: bytes, *, sample: bool) -> None:
        self.url = f"{PRICES}{'-sample' if sample else ''}"
        self.sample, self._data, self._name = sample, data, name
        self.sha256 = hashlib.sha256(data).hexdigest()

    def files(self) -> Iterator[BillingFile]:
        yield BillingFile(self._name, self.sha256, len(self._data))

    def fetch(self, _: BillingFile, target: Path, report: Report = lambda _: None) -> str:
        target.write_bytes(self._data)
        return self.sha256


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
        arrivals=Arrivals(area(settings, COLD), CostTables(catalog), settings.home / "tmp", settings.cache / "costs"),
        catalog=catalog,
        sandbox=sandbox,
        plan=load_plan(settings.cost_plan),
        book=load_price_book(settings.cost_price_book),
        tagging=Tagging(rules, frozenset(teams)),
        close_days=settings.cost_close_days,
        is_real=bool(settings.cost_source),
    )
