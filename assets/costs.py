"""Cost rollups: billing files taken in by day of arrival, added up by billing month, allocated, forecast, held against quotas, reviewed.

Until `AKIDB_COST_SOURCE` is set, the bill is the lab's: everything says so. No `from __future__ import annotations` here: Dagster reads the
annotations of `context` as they stand.
"""

import base64
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from akidb_pipelines.costs.checklist import BLOCKING_CHECKS, INTAKE_CHECKS, ROLLUP_CHECKS
from akidb_pipelines.errors import InputError
from akidb_pipelines.periods import Month
from akidb_pipelines.resources import CostTools
from assets.checks import check_result
from assets.common import logging, picture, started_by, table, telling
from assets.partitions import ARRIVAL_DAYS, MONTHS

if TYPE_CHECKING:
    from akidb_pipelines.costs.arrivals import Imported
    from akidb_pipelines.costs.ledger import Ledger, RolledMonth

GROUP = "costs"
FILES = dg.AssetKey("focus_files")
LINES = dg.AssetKey("cost_lines")
ROLLUP = dg.AssetKey("cost_rollup")
ALLOCATION = dg.AssetKey("cost_allocation")
FORECAST = dg.AssetKey("cost_forecast")
QUOTAS = dg.AssetKey("quota_burndown")
REVIEW = dg.AssetKey("cost_review")
OVERRUN, HEADROOM, USAGE_API = "line_overrun", "quota_headroom", "usage_api"
_QUARANTINED = "runbooks/cost-file-quarantined.md"
_HELD_BACK = "runbooks/cost-month-held-back.md"
_ABOVE_PLAN = "runbooks/cost-line-above-plan.md"

Tools = dg.ResourceParam[CostTools]

_ABOUT_CHECKS = {
    "quarantine": "Every billing file can be read; of one that cannot, nothing counts until it can.",
    "header_drift": "No billing file has columns that nobody knows.",
    "exact": "Lines, rollup and allocation come to the same, to the last of 18 places.",
    "known_owners": "Every team, tenant and compartment that is named is known to Cedar and to the allocation rules.",
    "invoice": "Each provider's rollup is its invoice, to the cent, where the price book has one.",
    "days_complete": "No day is missing between a provider's first and last; news for two days, then a fault.",
    "oddities": "Negative usage, credits, corrections, costs that are not price times quantity: accepted, and told.",
    "untagged": "No more than the rules allow has neither tag nor compartment.",
    "plan_lines": "Every service is in a line of the plan.",
    "columns": "The catalog's cells by Great Expectations, generated from the Cedar schema.",
    "cedar_entities": "The catalog's cells as AkiDB::Ops::CostRollup entities, judged by Cedar.",
    USAGE_API: "OCI's Usage API says about the same; it computes in floats, and is never booked.",
}


@dg.multi_asset(
    name="cost_intake",
    partitions_def=ARRIVAL_DAYS,
    specs=[
        dg.AssetSpec(
            FILES,
            group_name=GROUP,
            owners=started_by("costs"),
            kinds={"csv"},
            description="The ledger of billing files: what arrived, and whether it counts. A launch takes in whatever is not known yet.",
            tags={"runbook": "cost-file-quarantined"},
            freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=36)),
        ),
        dg.AssetSpec(
            LINES,
            deps=[FILES],
            group_name=GROUP,
            owners=started_by("costs"),
            kinds={"parquet", "duckdb"},
            description="Billing lines, typed: money as DECIMAL(38,18), billing and charge periods in UTC.",
        ),
    ],
    check_specs=[
        dg.AssetCheckSpec(name, asset=FILES, description=_ABOUT_CHECKS[name], blocking=name == "quarantine")
        for name in INTAKE_CHECKS
    ],
)
def cost_intake(context: dg.AssetExecutionContext, cost_tools: Tools) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Take in what is new. A file that is refused does not keep the others out."""
    from akidb_pipelines.costs.checks import check_header_drift, check_quarantine

    done: list[Imported] = []
    with telling(retry=True):
        ledger = cost_tools.open_ledger()
        for each in cost_tools.take_in(ledger, logging(context)("billing files")):
            done.append(each)
            if each.is_new:
                context.log.info(f"{each.file.name}: {each.file.state}, {each.file.line_count} lines, {each.file.billed}")
        sample = ledger.sample
        files = ledger.tables.files(sample=sample)
    fresh = [d.file for d in done if d.is_new]
    taken = [f for f in fresh if f.state == "taken"]
    columns = {"file": "string", "state": "string", "lines": "int", "billed": "string", "months": "string", "told": "string"}
    rows = ((f.name, str(f.state), f.line_count, f"{f.billed:.2f}", " ".join(f.months), "; ".join(f.notes)) for f in fresh)
    told: dict[str, dg.MetadataValue] = {
        "sample data": dg.MetadataValue.bool(sample),
        "new files": dg.MetadataValue.int(len(fresh)),
        "known files": dg.MetadataValue.int(len(done) - len(fresh)),
        "files": table(columns, rows),
        "runbook": dg.MetadataValue.url(cost_tools.settings.runbook(_QUARANTINED)),
    }
    yield dg.MaterializeResult(asset_key=FILES, metadata=told)
    yield check_result(check_quarantine(files), FILES)
    yield check_result(check_header_drift([f for f in files if f.state == "taken"]), FILES)
    yield dg.MaterializeResult(
        asset_key=LINES,
        metadata={
            "sample data": dg.MetadataValue.bool(sample),
            "lines": dg.MetadataValue.int(sum(f.line_count for f in taken)),
            "billed": dg.MetadataValue.float(float(sum(f.billed for f in taken))),
            "months": dg.MetadataValue.text(" ".join(sorted({m for f in taken for m in f.months})) or "none"),
            "stored_bytes": dg.MetadataValue.int(sum(f.lines_bytes for f in taken)),
        },
    )


@dg.asset(
    key=ROLLUP,
    deps=[LINES],
    partitions_def=MONTHS,
    group_name=GROUP,
    owners=started_by("costs"),
    kinds={"duckdb"},
    description="A billing month by provider, service, SKU, team, tenant and environment. What comes late is a further version.",
    tags={"runbook": "cost-month-held-back"},
)
def cost_rollup(context: dg.AssetExecutionContext, cost_tools: Tools) -> dg.MaterializeResult[None]:
    """Add a month up."""
    month = Month.parse(context.partition_key)
    with telling(retry=True):
        ledger = cost_tools.open_ledger()
        rolled = ledger.roll_up(month)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(f"v{rolled.version}-{rolled.line_count}"),
        metadata=_rolled_metadata(ledger, rolled, cost_tools),
    )


def _rolled_metadata(ledger: "Ledger", rolled: "RolledMonth", tools: CostTools) -> dict[str, dg.MetadataValue]:
    names = ("provider", "service", "sku", "team", "tenant", "environment", "currency", "unit")
    columns = dict.fromkeys(names, "string") | {"lines": "int", "billed": "string", "effective": "string"}
    rows = ((*c.key, c.lines, str(c.billed), str(c.effective)) for c in sorted(rolled.cells, key=lambda c: -c.billed))
    told: dict[str, dg.MetadataValue] = {
        "sample data": dg.MetadataValue.bool(rolled.sample),
        "version": dg.MetadataValue.int(rolled.version),
        "closed": dg.MetadataValue.bool(rolled.closed),
        "lines": dg.MetadataValue.int(rolled.line_count),
        "files": dg.MetadataValue.int(len(ledger.counted(rolled.month))),
        "cells": table(columns, rows),
        "unknown": dg.MetadataValue.text(", ".join(rolled.unknown) or "none"),
        "runbook": dg.MetadataValue.url(tools.settings.runbook(_HELD_BACK)),
    }
    for currency, (billed, effective) in rolled.totals.items():
        # Numbers by month: the asset's Plots tab draws them.
        told |= {
            f"billed_{currency}": dg.MetadataValue.float(float(billed)),
            f"effective_{currency}": dg.MetadataValue.float(float(effective)),
            f"billed {currency}, exactly": dg.MetadataValue.text(str(billed)),
        }
    if rolled.version > 1:
        told["added by this version"] = dg.MetadataValue.text(str(sum(c.billed for c in rolled.delta)))
    return told


@dg.multi_asset_check(
    name="cost_checks",
    specs=[
        dg.AssetCheckSpec(name, asset=ROLLUP, blocking=name in BLOCKING_CHECKS, description=_ABOUT_CHECKS[name])
        for name in (*ROLLUP_CHECKS, USAGE_API)
    ],
    can_subset=True,
)
def cost_checks(context: dg.AssetCheckExecutionContext, cost_tools: Tools) -> Iterator[dg.AssetCheckResult]:
    """One step for all checks of a month."""
    from akidb_pipelines.costs.checks import check_usage_api, run_month_checks

    names = {k.name for k in context.selected_asset_check_keys}
    with telling(retry=True):
        ledger = cost_tools.open_ledger()
        month = _month(context, ledger)
        about = {"month": dg.MetadataValue.text(str(month)), "sample data": dg.MetadataValue.bool(ledger.sample)}
        for report in run_month_checks(ledger, month, [n for n in ROLLUP_CHECKS if n in names]):
            context.log.info(f"{month} {report.check}: {report.summary}")
            yield check_result(report, ROLLUP, **about)
        if USAGE_API in names:
            usage = cost_tools.usage()
            if usage is None:
                told = "not compared: billing files do not come from OCI"
                yield dg.AssetCheckResult(
                    asset_key=ROLLUP, check_name=USAGE_API, passed=True, description=told, metadata={"compared": False}
                )
            else:
                yield check_result(check_usage_api(ledger.month(month), usage.month(month)), ROLLUP, **about)


def _month(context: dg.AssetCheckExecutionContext, ledger: "Ledger") -> Month:
    """The run's month, or, for a check that is run by hand, the newest."""
    if key := context.run.tags.get("dagster/partition"):
        return Month.parse(key)
    if months := ledger.months():
        return months[-1]
    raise InputError("there are no billing lines yet", hint="launch job costs_intake first")


@dg.asset(
    key=ALLOCATION,
    deps=[ROLLUP],
    partitions_def=MONTHS,
    group_name=GROUP,
    owners=started_by("costs"),
    kinds={"python"},
    description="Who pays what of a billing month: shared costs split by the allocation rules, to the last digit.",
)
def cost_allocation(context: dg.AssetExecutionContext, cost_tools: Tools) -> dg.MaterializeResult[None]:
    """Split what is shared."""
    month = Month.parse(context.partition_key)
    with telling(retry=True):
        ledger = cost_tools.open_ledger()
        shares = ledger.shares(month)
        review = cost_tools.review(month)
    from akidb_pipelines.costs.charts import teams_chart

    columns = dict.fromkeys(("team", "service", "how", "billed", "effective", "currency"), "string")
    rows = ((s.team, s.service, s.how, str(s.billed), str(s.effective), s.currency) for s in shares)
    told: dict[str, dg.MetadataValue] = {
        "sample data": dg.MetadataValue.bool(ledger.sample),
        "teams": picture("teams", teams_chart(review)),
        "shares": table(columns, rows),
    }
    for team, paid in review.teams:
        told[f"billed_{team}"] = dg.MetadataValue.float(float(paid))
    return dg.MaterializeResult(metadata=told)


@dg.asset(
    key=FORECAST,
    deps=[ROLLUP],
    partitions_def=MONTHS,
    group_name=GROUP,
    owners=started_by("costs"),
    kinds={"python"},
    description="What each line of the plan will have cost at the month's end, with an interval, against what was planned.",
    tags={"runbook": "cost-line-above-plan"},
    check_specs=[
        dg.AssetCheckSpec(OVERRUN, asset=FORECAST, description="No line ends above its plan. The total alone is never looked at.")
    ],
)
def cost_forecast(
    context: dg.AssetExecutionContext, cost_tools: Tools
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Forecast."""
    from akidb_pipelines.costs.charts import daily_chart, lines_chart
    from akidb_pipelines.costs.checks import check_overruns

    with telling(retry=True):
        review = cost_tools.review(Month.parse(context.partition_key))
    columns = dict.fromkeys(("line", "owner", "plan", "so far"), "string") | dict.fromkeys(("expected", "low", "high"), "float")
    ends = ((s, s.forecast) for s in review.lines)
    rows = (
        (s.title, s.owner, f"{s.budget:.2f}", f"{s.actual:.2f}", round(f.expected, 2), round(f.low, 2), round(f.high, 2))
        for s, f in ends
    )
    yield dg.MaterializeResult(
        metadata={
            "sample data": dg.MetadataValue.bool(review.sample),
            "as of": dg.MetadataValue.text(str(review.as_of)),
            "lines against plan": picture("lines against plan", lines_chart(review)),
            "cost by day": picture("cost by day", daily_chart(review)),
            "lines": table(columns, rows),
            "expected": dg.MetadataValue.float(round(review.expected, 2)),
            "planned": dg.MetadataValue.float(float(review.budget)),
            "spent": dg.MetadataValue.float(float(review.spent)),
            "days that stand out": dg.MetadataValue.text("; ".join(f"{a.day} {a.service}" for a in review.anomalies) or "none"),
            "runbook": dg.MetadataValue.url(cost_tools.settings.runbook(_ABOVE_PLAN)),
        }
    )
    yield check_result(check_overruns(review), FORECAST)


@dg.asset(
    key=QUOTAS,
    deps=[ROLLUP],
    partitions_def=MONTHS,
    group_name=GROUP,
    owners=started_by("costs"),
    kinds={"python"},
    description="How much of each quota is used, and when it will be exhausted if things go on as they do.",
    check_specs=[
        dg.AssetCheckSpec(HEADROOM, asset=QUOTAS, description="No quota is four fifths used, or exhausted within a month.")
    ],
)
def quota_burndown(
    context: dg.AssetExecutionContext, cost_tools: Tools
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Hold usage against quotas."""
    from akidb_pipelines.costs.charts import quotas_chart
    from akidb_pipelines.costs.checks import check_quotas

    with telling(retry=True):
        review = cost_tools.review(Month.parse(context.partition_key))
        usage = cost_tools.usage()
        said = list(usage.limits(review.plan)) if usage else []
    told: dict[str, dg.MetadataValue] = {
        "sample data": dg.MetadataValue.bool(review.sample),
        "quotas": picture("quotas", quotas_chart(review)),
    }
    for b in review.burns:
        told[f"{b.quota.id}_used_percent"] = dg.MetadataValue.float(round(100 * b.fraction, 1))
        told[f"{b.quota.id}: exhausted on"] = dg.MetadataValue.text(str(b.exhausted_on or "not foreseeable"))
    for limit in said:
        told[f"{limit.quota}: OCI says"] = dg.MetadataValue.text(f"{limit.used} used, {limit.available} available")
    yield dg.MaterializeResult(metadata=told)
    yield check_result(check_quotas(review), QUOTAS)


@dg.asset(
    key=REVIEW,
    deps=[ALLOCATION, FORECAST, QUOTAS],
    group_name=GROUP,
    owners=started_by("costs"),
    kinds={"markdown"},
    description="The bi-weekly review: a page to be sent to whoever pays, with pictures and tables, in cold storage too.",
    tags={"runbook": "cost-line-above-plan"},
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=16)),
)
def cost_review(context: dg.AssetExecutionContext, cost_tools: Tools) -> dg.MaterializeResult[None]:
    """Write it, of what was added up last."""
    from akidb_pipelines.costs.charts import CHARTS
    from akidb_pipelines.costs.checks import expect_released
    from akidb_pipelines.costs.review import markdown, publish

    with telling(retry=True):
        review = cost_tools.review()
        expect_released(cost_tools.open_ledger(), review.month)
        done = publish(cost_tools.open_ledger(), review, cost_tools.settings.home)
    context.log.info(f"review of {review.month} as of {review.as_of}: {done.folder}")
    pictures = [f"data:image/png;base64,{base64.b64encode(draw(review)).decode()}" for draw in CHARTS.values()]
    return dg.MaterializeResult(
        metadata={
            "sample data": dg.MetadataValue.bool(review.sample),
            "review": dg.MetadataValue.md(markdown(review, pictures)),
            "month": dg.MetadataValue.text(str(review.month)),
            "spent": dg.MetadataValue.float(float(review.spent)),
            "expected": dg.MetadataValue.float(round(review.expected, 2)),
            "planned": dg.MetadataValue.float(float(review.budget)),
            "lines above plan": dg.MetadataValue.text(", ".join(s.title for s in review.overruns) or "none"),
            "folder": dg.MetadataValue.path(str(done.folder)),
            "kept as": dg.MetadataValue.text(done.key),
        }
    )
