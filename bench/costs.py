"""Costs: a million lines of 49 columns from gzip to a checked rollup, against gunzip alone and against pandas; ten million from Parquet."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path

from akidb_pipelines.costs.forecast import backtest
from akidb_pipelines.lab.billing import Batch, generate
from akidb_pipelines.lab.cost_series import year_of_costs
from akidb_pipelines.periods import Month
from bench.measure import Line, measure

_ROWS = 1_000_000
_RUNS = 3
_TEAMS = ("application-engineering", "platform-engineering", "qa", "security")

_GUNZIP = """
import gzip
with gzip.open({path!r}) as handle:
    while handle.read(1 << 20):
        pass
"""
_SETUP = """
from pathlib import Path
from akidb_pipelines.costs.intake import read_focus
from akidb_pipelines.costs.rollup import LinesFile, line_totals, roll_up
from akidb_pipelines.costs.tagging import Tagging, load_rules
from akidb_pipelines.periods import Month
import duckdb
path, folder = Path({path!r}), Path({folder!r})
tagging, month = Tagging(load_rules(None), frozenset({teams!r})), Month.parse("2026-10")
"""
_OURS = """
lines = read_focus(path, path.name, folder / "lines.parquet", folder)
files = [LinesFile(folder / "lines.parquet", lines.billed_for_effective)]
rolled = roll_up(files, month, tagging, folder)
said = line_totals(files, month, folder)
assert sum(c.billed for c in rolled.cells) == said["USD"][1] == lines.billed
value = [len(rolled.cells), str(lines.billed)]
"""
_MANY = """
files = [LinesFile(p) for p in sorted(folder.glob("many-*.parquet"))]
value = sum(c.lines for c in roll_up(files, month, tagging, folder).cells)
"""
# As exact as ours: money as Decimal, times parsed, the same checks of keys, currencies and prices. It writes nothing: in its favour.
_PANDAS = """
from decimal import Decimal
frame = pandas.read_csv({path!r}, dtype=str, keep_default_na=False)
for column in ("BilledCost", "EffectiveCost", "ListCost", "UsageQuantity", "PricingQuantity", "ListUnitPrice"):
    frame[column] = frame[column].map(Decimal)
for column in ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"):
    frame[column] = pandas.to_datetime(frame[column], utc=True)
keys = ["Provider", "ServiceName", "SkuId", "BillingCurrency", "UsageUnit", "Tags", "oci_CompartmentName"]
sums = frame.groupby(keys, dropna=False)[["BilledCost", "EffectiveCost", "UsageQuantity"]].sum()
assert not frame.duplicated(["ChargePeriodStart", "ServiceName", "oci_ReferenceNumber"]).any()
assert frame.groupby("Provider")["BillingCurrency"].nunique().max() == 1
tags = frame.groupby(["Provider", "ServiceName", "BillingPeriodStart", "Tags"], dropna=False)[["BilledCost", "EffectiveCost"]].sum()
odd = (frame["ListUnitPrice"].astype(float) * frame["PricingQuantity"].astype(float) - frame["ListCost"].astype(float)).abs() > 1e-10
value = [len(sums) + len(tags), int(odd.sum()), str(frame["BilledCost"].sum())]
"""


def lines(work: Path) -> Iterator[Line]:
    folder = (work / "costs").absolute()
    folder.mkdir()
    (path,) = generate(folder / "bill", Batch(date(2026, 10, 1), 31), rows=_ROWS)
    told = {"path": str(path), "folder": str(folder), "teams": _TEAMS}
    base = measure(_GUNZIP.format(**told), runs=_RUNS)
    ours = measure(_OURS, _SETUP.format(**told), runs=_RUNS)
    pandas = measure(_PANDAS.format(**told), "import pandas")
    assert Decimal(ours.value[1]) == Decimal(pandas.value[-1])
    size = path.stat().st_size / 1e6
    ratio = ours.cpu_s / base.cpu_s
    detail = f"{ours.cpu_s:.1f} s against {base.cpu_s:.2f} s CPU; {_ROWS:,} lines, {size:.0f} MB gz"
    yield Line("intake, rollup and checks / gunzip by Python (CPU)", f"{ratio:.1f}x", "<= 8x", ratio <= 8, detail)
    ratio = pandas.cpu_s / ours.cpu_s
    detail = f"{pandas.cpu_s:.1f} s against {ours.cpu_s:.1f} s CPU; RSS {pandas.rss_mb:,.0f} MB"
    yield Line("the same in pandas, without Parquet (CPU)", f"{ratio:.1f}x slower", ">= 2x", ratio >= 2, detail)
    yield Line("intake, rollup and checks: RSS", f"{ours.rss_mb:,.0f} MB", "<= 1000 MB", ours.rss_mb <= 1000)
    for n in range(10):
        shutil.copyfile(folder / "lines.parquet", folder / f"many-{n}.parquet")
    many = measure(_MANY, _SETUP.format(**told), runs=_RUNS)
    assert many.value == 10 * _ROWS
    yield Line(
        "10 million lines, Parquet to rollup (CPU)", f"{many.cpu_s:.1f} s", "<= 6 s", many.cpu_s <= 6, f"RSS {many.rss_mb:,.0f} MB"
    )
    yield _forecasts()
    shutil.rmtree(folder)


def _forecasts() -> Line:
    months = [Month(date(2026, m, 1)) for m in range(1, 13)]
    tested = [t for seed in range(10) if (t := backtest(year_of_costs(seed, date(2025, 11, 1)), months))]
    won = sum(t.median_error < t.run_rate_median_error and t.p90_error < t.run_rate_p90_error for t in tested)
    mean = [
        sum(getattr(t, n) for t in tested) / len(tested)
        for n in ("median_error", "p90_error", "run_rate_median_error", "run_rate_p90_error")
    ]
    detail = f"off by {mean[0]:.1%} (p90 {mean[1]:.1%}), run-rate {mean[2]:.1%} ({mean[3]:.1%}); 10 made-up years, day 14"
    return Line("forecast better than run-rate, median and p90", f"{won} of 10", ">= 8 of 10", won >= 8, detail)
