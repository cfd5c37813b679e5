"""A billing month's lines added up: by provider, service, SKU, team, tenant and environment; and by day, for forecasts and quotas.

Sums are taken by DuckDB on DECIMAL(38,18), which is exact; divisions are not, so there are none here. A line belongs to the month it is
billed in, whenever it was charged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_pipelines.costs import engine
from akidb_pipelines.costs.tagging import Tagging
from akidb_pipelines.periods import Month

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


Key = tuple[str, str, str, str, str, str, str, str]
"""Provider, service, SKU, team, tenant, environment, currency, unit."""


_STILL_BILLS = timedelta(days=3)


@dataclass(frozen=True)
class LinesFile:
    """Parquet of one billing file, and the providers in it whose EffectiveCost means nothing."""

    path: Path
    billed_for_effective: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One cell of a rollup."""

    provider: str
    service: str
    sku: str
    team: str
    tenant: str
    environment: str
    currency: str
    unit: str
    lines: int
    billed: Decimal
    effective: Decimal
    quantity: Decimal

    @property
    def key(self) -> Key:
        """What the cell is about."""
        return (self.provider, self.service, self.sku, self.team, self.tenant, self.environment, self.currency, self.unit)


@dataclass(frozen=True)
class Rolled:
    """A month's rollup."""

    cells: tuple[Cell, ...]
    unknown: tuple[str, ...]
    """Teams, tenants and compartments that nobody knows, such as `team ml-platform`."""


@dataclass(frozen=True)
class Day:
    """What one SKU cost and used on a day."""

    day: date
    service: str
    sku: str
    currency: str
    unit: str
    billed: Decimal
    one_off: Decimal
    """Of it, what is no usage: credits, purchases, taxes. It does not go on."""
    quantity: Decimal
    peak: Decimal
    """The most that was used in one hour, over all resources."""


def roll_up(files: Sequence[LinesFile], month: Month, tagging: Tagging, scratch: Path) -> Rolled:
    """Add a month's lines up. Every line is in exactly one cell.

    Args:
        files: all that count.
        month: the billing month.
        tagging: says whose a line is.
        scratch: folder for temporary work.
    """
    if not files:
        return Rolled((), ())
    with engine.duck(scratch) as db:
        _lines(db, files, month)
        db.execute(
            """
            CREATE TEMP TABLE grouped AS
            SELECT Provider, ServiceName, coalesce(SkuId, '') AS sku, BillingCurrency, coalesce(ConsumedUnit, PricingUnit, '') AS unit,
                   coalesce(Tags, '') AS tags, coalesce(oci_CompartmentName, SubAccountName, '') AS compartment,
                   count(*) AS n, sum(BilledCost) AS billed, sum(effective) AS effective, coalesce(sum(ConsumedQuantity), 0) AS quantity
            FROM lines GROUP BY ALL
            """
        )
        places = db.execute("SELECT DISTINCT tags, compartment, ServiceName FROM grouped").fetchall()
        owners = [(*p, tagging.owner(*p)) for p in places]
        db.execute(
            "CREATE TEMP TABLE owners "
            "(tags VARCHAR, compartment VARCHAR, service VARCHAR, team VARCHAR, tenant VARCHAR, environment VARCHAR)"
        )
        if owners:
            db.executemany(
                "INSERT INTO owners VALUES (?, ?, ?, ?, ?, ?)",
                [(t, c, s, o.team, o.tenant, o.environment) for t, c, s, o in owners],
            )
        rows = db.execute(
            """
            SELECT Provider, ServiceName, sku, team, tenant, environment, BillingCurrency, unit, sum(n)::BIGINT, sum(billed), sum(effective),
                   sum(quantity)
            FROM grouped JOIN owners ON grouped.tags = owners.tags AND grouped.compartment = owners.compartment AND ServiceName = service
            GROUP BY ALL ORDER BY ALL
            """
        ).fetchall()
    return Rolled(tuple(Cell(*row) for row in rows), tuple(sorted({o.unknown for *_, o in owners if o.unknown})))


def line_totals(files: Sequence[LinesFile], month: Month, scratch: Path) -> dict[str, tuple[int, Decimal, Decimal]]:
    """Rows, billed and effective cost of a month's lines by currency: what every rollup of them must come to."""
    if not files:
        return {}
    with engine.duck(scratch) as db:
        _lines(db, files, month)
        rows = db.execute(
            "SELECT BillingCurrency, count(*), sum(BilledCost), sum(effective) FROM lines GROUP BY 1 ORDER BY 1"
        ).fetchall()
    return {currency: (n, billed, effective) for currency, n, billed, effective in rows}


def by_day(files: Sequence[LinesFile], month: Month, scratch: Path) -> list[Day]:
    """A month's cost and usage by day and SKU, in order. A line that was charged in another month counts on the first or last day."""
    if not files:
        return []
    with engine.duck(scratch) as db:
        _lines(db, files, month)
        rows = db.execute(
            """
            WITH hours AS (
                SELECT ChargePeriodStart AS hour, ServiceName AS service, coalesce(SkuId, '') AS sku, BillingCurrency AS currency,
                       coalesce(ConsumedUnit, PricingUnit, '') AS unit, sum(BilledCost) AS billed,
                       coalesce(sum(BilledCost) FILTER (WHERE ChargeCategory IS DISTINCT FROM 'Usage'), 0) AS one_off,
                       coalesce(sum(ConsumedQuantity), 0) AS quantity
                FROM lines GROUP BY ALL
            )
            SELECT least(greatest(hour::DATE, $first), $last), service, sku, currency, unit, sum(billed), sum(one_off), sum(quantity),
                   max(quantity)
            FROM hours GROUP BY ALL ORDER BY ALL
            """,
            {"first": month.first, "last": month.last},
        ).fetchall()
    return [Day(*row) for row in rows]


def days_present(files: Sequence[LinesFile], month: Month, scratch: Path) -> dict[str, list[date]]:
    """The days of a month that each provider has lines for, in order."""
    if not files:
        return {}
    with engine.duck(scratch) as db:
        _lines(db, files, month)
        rows = db.execute(
            "SELECT Provider, list(DISTINCT ChargePeriodStart::DATE ORDER BY ChargePeriodStart::DATE) FROM lines GROUP BY 1 ORDER BY 1"
        ).fetchall()
    return {provider: list(days) for provider, days in rows}


def known_until(files: Sequence[LinesFile], month: Month, latest: date, scratch: Path) -> date:
    """The newest day, up to `latest`, that every provider has billed to its end; one that has billed nothing for days does not count.

    Files come up to a day late and hour by hour: a forecast that takes half a day for a whole one is wrong by half a month.
    """
    if not files:
        return latest
    with engine.duck(scratch) as db:
        _lines(db, files, month)
        ends = db.execute(
            """
            SELECT max(coalesce(ChargePeriodEnd, ChargePeriodStart + INTERVAL 1 HOUR)) FROM lines
            WHERE ChargeCategory = 'Usage' AND ChargePeriodStart < $after GROUP BY Provider
            """,
            {"after": latest + timedelta(days=1)},
        ).fetchall()
    known = [min(end.date() - timedelta(days=1), latest) for (end,) in ends]
    return min((day for day in known if latest - day <= _STILL_BILLS), default=latest)


def _lines(db: DuckDBPyConnection, files: Sequence[LinesFile], month: Month) -> None:
    """A view `lines` of a month, with column `effective`."""
    paths = engine.listed([str(f.path) for f in files])
    unusable = [(str(f.path), p) for f in files for p in f.billed_for_effective]
    effective = "coalesce(EffectiveCost, BilledCost)"
    if unusable:
        pairs = ", ".join(f"({engine.text(path)}, {engine.text(provider)})" for path, provider in unusable)
        effective = f"CASE WHEN (filename, Provider) IN ({pairs}) THEN BilledCost ELSE {effective} END"
    db.execute(
        f"CREATE VIEW lines AS SELECT *, {effective} AS effective FROM read_parquet({paths}, union_by_name = true, filename = true) "
        f"WHERE BillingPeriodStart >= DATE {engine.text(month.key)} AND BillingPeriodStart < DATE {engine.text(month.shift(1).key)}"
    )
