"""Billing files like those that OCI writes, made up: the lab's stand-in for a cloud's bill, and input of any size for benches.

All 49 columns of FOCUS 1.0-preview as OCI has them, in OCI's layout of folders, with what makes real bills hard to read: times without
seconds, `Usage-based`, EffectiveCost in whole units, negative corrections with back-references, a row that is charged in one month and
billed in the next, tags with quotes and line breaks, resources without tags. The same seed makes the same rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from akidb_pipelines.costs import engine
from akidb_pipelines.costs.focus import LAB_ACCOUNT
from akidb_pipelines.costs.sources import Folder, Source, open_source
from akidb_pipelines.errors import OutsideError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.periods import Month
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.settings import Settings

FOLDER = "FOCUS Reports"
_NAME = re.compile(r"(\d{8})-(\d{2})d-")
_SPLIT_ROWS = 1_000_000
"""OCI begins a new file then."""
_NOTE = engine.text(',"note":"said \\"hello\\",\nworld"}')
"""At the end of some tags: quotes, a comma and a line break."""
_TENANTS = tuple(f"tenant-{n}" for n in range(1, 6))


@dataclass(frozen=True)
class Meter:
    """What bills by the hour."""

    name: str
    service: str
    sku: str
    description: str
    unit: str
    rate: str
    hourly: float
    """Of the unit, on an average hour."""
    compartment: str
    tags: str
    swing: float = 0.05
    """How much it varies from hour to hour."""
    office: float = 0.0
    """How much more it is on working days from 8 to 18, and less otherwise."""


def _tags(**tags: str) -> str:
    return json.dumps({f"akidb.{key}": value for key, value in tags.items()}, separators=(",", ":"))


def meters() -> tuple[Meter, ...]:
    """AkiDB's infrastructure, as small as it is."""
    staging = _tags(team="platform-engineering", environment="staging")
    ci = _tags(team="application-engineering", environment="ci")
    cores = ("COMPUTE", "B93297", "Standard - A1 - OCPU", "OCPU-hour", "0.0100")
    memory = ("COMPUTE", "B93298", "Standard - A1 - Memory", "GB-hour", "0.0015")
    block = ("BLOCK_STORAGE", "B91961", "Block Volume - Storage", "GB-month", "0.0255")
    bucket = ("OBJECTSTORE", "B91628", "Object Storage - Storage", "GB-month", "0.0255")
    egress = ("NETWORK", "B88327", "Outbound Data Transfer", "GB", "0.0085")
    found = []
    for n in range(1, 7):
        found += [
            Meter(f"staging-{n}", *cores, 4, "staging", staging, 0),
            Meter(f"staging-{n}-memory", *memory, 32, "staging", staging, 0),
            Meter(f"staging-{n}-boot", *block, 200 / 730, "staging", staging, 0),
        ]
    for n in range(1, 4):
        found += [
            Meter(f"ci-burst-{n}", *cores, 2, "ci", ci, 0.2, 0.9),
            Meter(f"ci-burst-{n}-memory", *memory, 16, "ci", ci, 0.2, 0.9),
        ]
    for tenant in _TENANTS:
        tagged = _tags(team="platform-engineering", environment="staging", tenant=tenant)
        found += [
            Meter(f"{tenant}-vectors", *bucket, 120 / 730, "staging", tagged, 0.01),
            Meter(f"{tenant}-egress", *egress, 1.4, "staging", tagged, 0.3, 0.4),
        ]
    found += [
        Meter("metrics", *bucket, 900 / 730, "observability", "", 0.01),
        Meter("logs", *bucket, 700 / 730, "observability", "", 0.01),
        Meter("fixtures", *bucket, 160 / 730, "ci", _tags(team="qa", environment="ci"), 0.01),
        Meter("registry-egress", *egress, 6.5, "ci", ci, 0.3, 0.8),
        Meter("audit-logs", *bucket, 60 / 730, "security", _tags(team="security", environment="staging"), 0.01),
        Meter("load-balancer", "LOAD_BALANCER", "B93030", "Load Balancer - Base", "LB-hour", "0.0113", 1, "staging", staging, 0),
    ]
    return tuple(found)


@dataclass(frozen=True)
class Batch:
    """What is put into files at one go: days of one billing month."""

    first: date
    days: int

    @property
    def month(self) -> Month:
        """Their billing month."""
        return Month.containing(self.first)


def generate(
    folder: Path, batch: Batch, *, rows: int | None = None, seed: int = 2025, report: Report = lambda _: None
) -> list[Path]:
    """Write the files of some days into OCI's layout of folders below `folder`; what is there under the same names is replaced.

    Args:
        folder: the root, which stands for the bucket.
        batch: which days.
        rows: how many; default: what the infrastructure makes. More are made of more resources, each a part of one.
        seed: of everything random.
        report: told the progress.

    Raises:
        OutsideError: there is no room.
    """
    hours = batch.days * 24
    resources = list(meters())
    wanted = rows if rows is not None else len(resources) * hours
    copies = max(1, -(-wanted // (len(resources) * hours)))
    last = batch.first + timedelta(days=batch.days - 1)
    place = folder / FOLDER / f"{last:%Y/%m/%d}"
    written = []
    try:
        place.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder / ".scratch") as scratch, engine.duck(scratch) as db:
            db.execute(f"CREATE TEMP TABLE meters AS {_meters_sql(resources, copies)}")
            for part, start in enumerate(range(0, wanted, _SPLIT_ROWS)):
                end = min(start + _SPLIT_ROWS, wanted)
                report(Progress("billing files", start, wanted))
                # Whole or not at all: whoever takes files in may look at any moment.
                beside = scratch / "file.csv.gz"
                db.execute(
                    f"COPY ({_rows_sql(batch, start, end, copies * len(resources), seed)}) TO {engine.text(str(beside))} "
                    "(FORMAT csv, HEADER, COMPRESSION gzip)"
                )
                written.append(beside.replace(place / f"{batch.first:%Y%m%d}-{batch.days:02d}d-{part + 1:05d}.csv.gz"))
    except OSError as error:
        raise OutsideError(f"billing files in {folder}: {error}", hint="free some space, or name another folder") from error
    report(Progress("billing files", wanted, wanted))
    return written


def _meters_sql(resources: Sequence[Meter], copies: int) -> str:
    values = ", ".join(
        f"({n}, {engine.text(m.name)}, {engine.text(m.service)}, {engine.text(m.sku)}, {engine.text(m.description)}, {engine.text(m.unit)}, "
        f"{m.rate}::DECIMAL(9,4), {m.hourly / copies!r}::DOUBLE, {engine.text(m.compartment)}, {engine.text(m.tags)}, {m.swing!r}::DOUBLE, "
        f"{m.office!r}::DOUBLE)"
        for n, m in enumerate(resources)
    )
    columns = "n, name, service, sku, description, unit, rate, hourly, compartment, tags, swing, office"
    return (
        f"SELECT m.n + c.range * {len(resources)} AS meter, "
        "m.* REPLACE (CASE WHEN c.range = 0 THEN name ELSE name || '-' || c.range END AS name) "
        f"FROM (VALUES {values}) AS m({columns}), range({copies}) c"
    )


def _rows_sql(batch: Batch, start: int, end: int, width: int, seed: int) -> str:
    """Rows `start` to `end`: hour after hour, every meter in each. Arithmetic instead of random(): the same rows on every version."""
    month = batch.month
    hours_before = batch.first.toordinal() * 24
    noise = f"(((meter + 1) * 7919 + (hour + {hours_before}) * 104729 + {seed * 1299709 % 1000003}) % 1000003) / 1000003.0"
    return f"""
        WITH numbered AS (
            SELECT i, (i % {width})::BIGINT AS meter, (i // {width})::BIGINT AS hour FROM (SELECT range AS i FROM range({start}, {end}))
        ), metered AS (
            SELECT i, hour, meters.*, TIMESTAMP '{batch.first} 00:00:00' + to_hours(hour) AS moment, {noise} AS noise
            FROM numbered JOIN meters USING (meter)
        ), used AS (
            SELECT *, i % 997 = 996 AS correction, i = {start} AND {batch.first.day} = 1 AS late,
                (hourly * (1 + swing * (2 * noise - 1))
                    * (1 + office * CASE WHEN isodow(moment) < 6 AND hour(moment) BETWEEN 8 AND 17 THEN 1 ELSE -0.4 END)
                    * CASE WHEN sku = 'B88327' AND name LIKE 'registry%' AND day(moment) = 17 THEN 9 ELSE 1 END
                    * CASE WHEN i % 997 = 996 THEN -0.25 ELSE 1 END)::DECIMAL(18,6) AS quantity
            FROM metered
        ), priced AS (
            SELECT *, quantity * rate AS cost,
                strftime(CASE WHEN late THEN moment - INTERVAL 1 HOUR ELSE moment END, '%Y-%m-%dT%H:%MZ') AS begun,
                strftime(CASE WHEN late THEN moment ELSE moment + INTERVAL 1 HOUR END, '%Y-%m-%dT%H:%MZ') AS ended
            FROM used
        )
        SELECT
            CASE WHEN service = 'COMPUTE' THEN 'eu-frankfurt-1-ad-' || (1 + meter % 3) END AS AvailabilityZone,
            cost AS BilledCost, '{LAB_ACCOUNT}' AS BillingAccountId, 'akidb-lab' AS BillingAccountName, 'USD' AS BillingCurrency,
            '{month.shift(1).key}T00:00Z' AS BillingPeriodEnd, '{month.key}T00:00Z' AS BillingPeriodStart, 'Usage' AS ChargeCategory,
            description AS ChargeDescription, 'Usage-based' AS ChargeFrequency, ended AS ChargePeriodEnd, begun AS ChargePeriodStart,
            CASE WHEN correction THEN 'Correction' ELSE 'On-Demand' END AS ChargeSubcategory, NULL AS CommitmentDiscountCategory,
            NULL AS CommitmentDiscountId, NULL AS CommitmentDiscountName, NULL AS CommitmentDiscountType,
            trunc(cost)::BIGINT AS EffectiveCost,
            'Oracle' AS InvoiceIssuer, cost AS ListCost, rate AS ListUnitPrice, 'Standard' AS PricingCategory, quantity AS PricingQuantity,
            unit AS PricingUnit, 'Oracle' AS Provider, 'Oracle' AS Publisher, 'eu-frankfurt-1' AS Region,
            'ocid1.' || lower(service) || '.oc1.eu-frankfurt-1.' || md5(name) AS ResourceId, name AS ResourceName,
            lower(service) AS ResourceType,
            CASE service WHEN 'COMPUTE' THEN 'Compute' WHEN 'NETWORK' THEN 'Networking' ELSE 'Storage' END AS ServiceCategory,
            service AS ServiceName, sku AS SkuId, sku || '-1' AS SkuPriceId, 'ocid1.tenancy.oc1..lab' AS SubAccountId,
            'akidb-lab' AS SubAccountName,
            CASE WHEN tags = '' THEN NULL WHEN i % 499 = 7 THEN left(tags, -1) || {_NOTE} ELSE tags END AS Tags,
            quantity AS UsageQuantity, unit AS UsageUnit,
            'lab{seed}' || lpad(i::VARCHAR, 10, '0') || '{batch.first:%Y%m%d}' AS oci_ReferenceNumber,
            'ocid1.compartment.oc1..' || md5(compartment) AS oci_CompartmentId, compartment AS oci_CompartmentName, 'N' AS oci_OverageFlag,
            NULL AS oci_UnitPriceOverage, NULL AS oci_BilledQuantityOverage, NULL AS oci_CostOverage, NULL AS oci_AttributedUsage,
            NULL AS oci_AttributedCost,
            CASE WHEN correction THEN 'lab{seed}' || lpad((i - 400)::VARCHAR, 10, '0') || '{batch.first:%Y%m%d}' END
                AS oci_BackReferenceNumber
        FROM priced ORDER BY i
    """


def refresh(folder: Path, until: date, *, months: int = 4, seed: int = 2025, report: Report = lambda _: None) -> list[Path]:
    """Bring the lab's bill up to a day: past months whole, the running one day by day, as a cloud's files come. What is there stays.

    Raises:
        OutsideError: there is no room.
    """
    written = []
    month = Month.containing(until).shift(1 - months)
    while month.first <= until:
        there = _covered(folder, month)
        if not there and month.last <= until:
            todo = [Batch(month.first, month.days)]
        else:
            days = (month.first + timedelta(days=n) for n in range((min(month.last, until) - month.first).days + 1))
            todo = [Batch(day, 1) for day in days if day not in there]
        for batch in todo:
            written += generate(folder, batch, seed=seed, report=report)
        month = month.shift(1)
    return written


def _covered(folder: Path, month: Month) -> set[date]:
    """The days of a month that have files."""
    days = set()
    for path in (folder / FOLDER / f"{month.first:%Y/%m}").rglob("*.csv.gz"):
        if match := _NAME.match(path.name):
            first = date.fromisoformat(match[1])
            days |= {first + timedelta(days=n) for n in range(int(match[2]))}
    return days


def billing_source(settings: Settings, today: date, report: Report = lambda _: None) -> Source:
    """Where billing files come from: what is configured, or else the lab's bill, brought up to yesterday.

    Raises:
        InputError: what is configured is not there.
        OutsideError: there is no room for the lab's files.
    """
    if settings.cost_source:
        return open_source(settings.cost_source, settings)
    folder = bill_folder(settings)
    refresh(folder, today - timedelta(days=1), report=report)
    return Folder(folder, sample=True)


def bill_folder(settings: Settings) -> Path:
    """Where the lab's bill lies."""
    return settings.home / "lab" / "billing"
