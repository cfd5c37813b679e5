"""What is odd about billing lines: what refuses a whole file, and what real bills have and must be told.

Everything here is a query over a view `lines` of typed columns, see intake.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_pipelines.costs import engine
from akidb_pipelines.costs.focus import KEPT

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

EXTRA_COLUMNS = "columns that FOCUS does not have"
LACKING_COLUMNS = "columns that it lacks, and that tell whose a cost is and what was used"
_SAMPLES = 5
_YEARS = (2000, 2100)


@dataclass(frozen=True)
class Oddity:
    """Something odd that is accepted."""

    kind: str
    rows: int
    message: str


OCI_KEY = "ChargePeriodStart, ServiceName, oci_ReferenceNumber"
"""What names a line of OCI's. Other providers have none: two equal rows of theirs are two charges."""


def refusals(db: DuckDBPyConnection) -> Iterator[str]:
    """Why nothing of these lines may count; nothing if they may."""
    for provider, currencies in db.execute(
        "SELECT Provider, string_agg(DISTINCT BillingCurrency, ' and ' ORDER BY BillingCurrency) FROM lines "
        "GROUP BY 1 HAVING count(DISTINCT BillingCurrency) > 1 ORDER BY 1"
    ).fetchall():
        yield f"{provider} is billed in {currencies}"
    for column in ("BillingPeriodStart", "ChargePeriodStart"):
        (odd,) = db.execute(
            f"SELECT count(*) FROM lines WHERE NOT isfinite({column}) OR year({column}) NOT BETWEEN {_YEARS[0]} AND {_YEARS[1]}"
        ).fetchone() or (0,)
        if odd:
            yield f"{column} is not between {_YEARS[0]} and {_YEARS[1]} in {odd} rows"
    keys = db.execute(
        f"SELECT {OCI_KEY}, count(*) FROM lines WHERE oci_ReferenceNumber IS NOT NULL GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL"
    ).fetchall()
    if keys:
        told = "; ".join(
            f"{service} {reference} at {start:%Y-%m-%dT%H:%MZ} {n} times" for start, service, reference, n in keys[:_SAMPLES]
        )
        yield f"{len(keys)} line keys occur more than once: {told}"


def counted_already(db: DuckDBPyConnection, new: Path, others: Sequence[str]) -> tuple[int, str] | None:
    """How many of OCI's lines in a file are in others, and the reference of one; None if none is."""
    keys = f"SELECT {OCI_KEY} FROM read_parquet({{}}) WHERE oci_ReferenceNumber IS NOT NULL"
    mine, theirs = keys.format(engine.text(str(new))), keys.format(engine.listed(others))
    found = db.execute(f"SELECT count(*), min(oci_ReferenceNumber) FROM ({mine} INTERSECT {theirs})").fetchone()
    return (found[0], found[1]) if found and found[0] else None


def whole_again(db: DuckDBPyConnection, new: Path, others: Sequence[str]) -> str:
    """Of providers without keys: a file that holds all lines of another one again, or a part of what others hold, is an export made twice.

    Two equal lines in two files may be two charges, so a few of them say nothing. Returns the other file, or `all` when every line of the
    new one is elsewhere; empty if neither.
    """
    columns = ", ".join(KEPT)
    of = f"(SELECT hash({columns}) AS line, filename FROM read_parquet({{}}, filename = true) WHERE oci_ReferenceNumber IS NULL)"
    mine = f"SELECT line, count(*) AS n FROM {of.format(engine.text(str(new)))} GROUP BY 1"
    theirs = f"SELECT line, filename, count(*) AS n FROM {of.format(engine.listed(others))} GROUP BY ALL"
    held = db.execute(
        f"""
        SELECT filename FROM ({theirs}) AS theirs LEFT JOIN ({mine}) AS mine USING (line)
        GROUP BY 1 HAVING bool_and(coalesce(mine.n, 0) >= theirs.n) ORDER BY 1 LIMIT 1
        """
    ).fetchone()
    if held:
        return str(held[0])
    part = db.execute(
        f"""
        SELECT bool_and(coalesce(theirs.n, 0) >= mine.n)
        FROM ({mine}) AS mine LEFT JOIN (SELECT line, sum(n) AS n FROM ({theirs}) GROUP BY 1) AS theirs USING (line)
        """
    ).fetchone()
    return "all" if part and part[0] else ""


_COUNTED = (
    ("negative usage", "ChargeCategory = 'Usage' AND ConsumedQuantity < 0", "usage rows are negative"),
    ("negative cost", "ChargeCategory = 'Usage' AND BilledCost < 0", "usage rows have a negative cost"),
    ("credits", "ChargeCategory IN ('Credit', 'Adjustment')", "rows are credits or adjustments"),
    (
        "corrections",
        "ChargeClass = 'Correction' OR oci_BackReferenceNumber IS NOT NULL",
        "rows correct earlier ones",
    ),
    ("no effective cost", "EffectiveCost IS NULL", "rows have no EffectiveCost: their BilledCost stands for it"),
    (
        "no contracted cost",
        "ContractedCost IS NULL AND ContractedUnitPrice IS NOT NULL",
        "rows have a contracted price and no ContractedCost",
    ),
    ("untagged", "Tags IS NULL OR Tags = '{}'", "rows have no tags"),
    (
        "unit price",
        """ChargeCategory = 'Usage' AND (
            abs(ListUnitPrice::DOUBLE * PricingQuantity::DOUBLE - ListCost::DOUBLE) > 1e-10
            OR abs(ContractedUnitPrice::DOUBLE * PricingQuantity::DOUBLE - ContractedCost::DOUBLE) > 1e-10)""",
        "usage rows have a cost that is not price times quantity",
    ),
    (
        "other month",
        "date_trunc('month', ChargePeriodStart) <> date_trunc('month', BillingPeriodStart)",
        "rows are charged in one month and billed in another: the billing month counts",
    ),
)
"""Kind, condition, and what is told."""


def scan(db: DuckDBPyConnection) -> tuple[tuple[Oddity, ...], tuple[str, ...]]:
    """Everything odd, and the providers whose EffectiveCost means nothing."""
    counts = db.execute("SELECT " + ", ".join(f"count(*) FILTER (WHERE {c})" for _, c, _ in _COUNTED) + " FROM lines").fetchone()
    assert counts is not None  # an aggregate has a row
    found = [Oddity(kind, n, f"{n:,} {told}") for (kind, _, told), n in zip(_COUNTED, counts, strict=True) if n]
    fallbacks = []
    for provider, rows, zero, whole in db.execute(
        """
        SELECT Provider, count(*), bool_and(EffectiveCost = 0), bool_and(EffectiveCost = trunc(EffectiveCost))
        FROM lines WHERE ChargeCategory = 'Usage' GROUP BY 1
        HAVING bool_and(EffectiveCost = 0) AND NOT bool_and(BilledCost = 0)
            OR bool_and(EffectiveCost = trunc(EffectiveCost)) AND NOT bool_and(BilledCost = trunc(BilledCost))
        ORDER BY 1
        """
    ).fetchall():
        what = "zero" if zero else "an integer" if whole else ""
        fallbacks.append(provider)
        found.append(
            Oddity(
                "effective cost",
                rows,
                f"{provider}: EffectiveCost is {what} in every usage row: BilledCost stands for it in rollups",
            )
        )
    return tuple(found), tuple(fallbacks)
