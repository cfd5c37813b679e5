"""What is odd about billing lines: what refuses a whole file, and what real bills have and must be told.

Everything here is a query over a view `lines` of typed columns, see intake.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

EXTRA_COLUMNS = "columns that FOCUS does not have"
_SAMPLES = 5


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
    keys = db.execute(
        f"SELECT {OCI_KEY}, count(*) FROM lines WHERE oci_ReferenceNumber IS NOT NULL GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL"
    ).fetchall()
    if keys:
        told = "; ".join(
            f"{service} {reference} at {start:%Y-%m-%dT%H:%MZ} {n} times" for start, service, reference, n in keys[:_SAMPLES]
        )
        yield f"{len(keys)} line keys occur more than once: {told}"


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
        HAVING bool_and(EffectiveCost = trunc(EffectiveCost)) AND NOT bool_and(BilledCost = trunc(BilledCost))
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
