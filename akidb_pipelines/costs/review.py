"""The bi-weekly review: what a month has cost and will have cost, line by line against the plan, who pays, what is used up, what stands out.

`draw_up` decides, from values; `publish` writes the page with its pictures and tables, here and into cold storage.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

from akidb_pipelines.costs import engine
from akidb_pipelines.costs.anomalies import Anomaly, anomalies
from akidb_pipelines.costs.arrivals import ROOT
from akidb_pipelines.costs.forecast import Backtest, Forecast, backtest, forecast
from akidb_pipelines.costs.ledger import Ledger, RolledMonth
from akidb_pipelines.costs.money import cents, plain, total
from akidb_pipelines.costs.plan import Line, Plan
from akidb_pipelines.costs.quota import Burn, burn_down
from akidb_pipelines.costs.rollup import Day
from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.files import write_whole
from akidb_pipelines.periods import Month
from akidb_pipelines.store.objects import AlreadyExistsError

UNPLANNED = "unplanned"
_HISTORY_MONTHS = 4


@dataclass(frozen=True)
class LineStatus:
    """A line of the plan and what came of it in the month, in the plan's currency."""

    line: str
    title: str
    owner: str
    budget: Decimal
    actual: Decimal
    forecast: Forecast
    overrun: bool
    """Whether its forecast is above its budget by more than the plan puts up with."""


@dataclass(frozen=True)
class PastMonth:
    """A month before this one."""

    month: Month
    version: int
    closed: bool
    billed: Decimal
    budget: Decimal


@dataclass(frozen=True)
class Review:
    """What there is to be talked about."""

    as_of: date
    """The last day that is counted."""
    month: Month
    sample: bool
    plan: Plan
    rolled: RolledMonth
    lines: tuple[LineStatus, ...]
    teams: tuple[tuple[str, Decimal], ...]
    burns: tuple[Burn, ...]
    anomalies: tuple[Anomaly, ...]
    past: tuple[PastMonth, ...]
    tested: Backtest | None
    daily: tuple[tuple[str, tuple[tuple[date, float], ...]], ...]
    """Cost by service and day, for pictures."""

    @property
    def budget(self) -> Decimal:
        """What the month is planned to cost, with contingency."""
        return total([self.plan.budget(line) for line in self.plan.effective(self.month)])

    @property
    def spent(self) -> Decimal:
        """So far."""
        return self.rolled.totals.get(self.plan.currency, (Decimal(0), Decimal(0)))[0]

    @property
    def expected(self) -> float:
        """At the month's end."""
        return sum(s.forecast.expected for s in self.lines)

    @property
    def overruns(self) -> tuple[LineStatus, ...]:
        """Lines above their plan."""
        return tuple(s for s in self.lines if s.overrun)


def draw_up(ledger: Ledger, today: date, month: Month | None = None) -> Review:
    """The review of a month, as of the day before today.

    Args:
        ledger: has the rollups.
        today: nothing of today is known yet.
        month: default: yesterday's.

    Raises:
        InputError: there is nothing of the month.
    """
    yesterday = today - timedelta(days=1)
    if month is None:
        # On the first days of a month there may be nothing of it yet.
        made = [Month.parse(v.month) for v in ledger.tables.versions(sample=ledger.sample)]
        month = max((m for m in made if m <= Month.containing(yesterday)), default=Month.containing(yesterday))
    rolled = ledger.month(month)
    if not rolled.version:
        have = ", ".join(str(m) for m in ledger.months()) or "none"
        raise InputError(
            f"there is no rollup of {month}; months with lines: {have}", hint=f"akidb-pipelines costs rollup --month {month}"
        )
    as_of = ledger.known_until(month, yesterday)
    known = {v.month for v in ledger.tables.versions(sample=ledger.sample)}
    earlier = [m for n in range(_HISTORY_MONTHS - 1, 0, -1) if str(m := month.shift(-n)) in known]
    # Amounts of two currencies are never added.
    every = [d for m in (*earlier, month) for d in ledger.days(m) if d.currency == ledger.plan.currency]
    days = [d for d in every if d.day <= as_of]
    series = _sums((_line_id(ledger.plan, d.service, d.sku), d) for d in days)
    # Anomalies by service: lines of a plan put together what has nothing to do with each other.
    services = _sums((d.service, d) for d in days)
    statuses = tuple(
        _status(ledger.plan, line, series.get(line.id, {}), rolled, every, as_of) for line in _lines(ledger.plan, rolled)
    )
    everything = _sums(("", d) for d in days).get("", {})
    complete = [m for m in earlier if everything and min(everything) <= m.first - timedelta(days=7)]
    return Review(
        as_of=as_of,
        month=month,
        sample=ledger.sample,
        plan=ledger.plan,
        rolled=rolled,
        lines=statuses,
        teams=_teams(ledger, month),
        burns=tuple(burn_down(ledger.plan, days, month)),
        anomalies=tuple(a for name, daily in services.items() for a in anomalies(name, daily, since=month.first)),
        past=tuple(_past(ledger, m) for m in earlier),
        tested=backtest(everything, complete) if complete else None,
        daily=tuple((name, tuple(sorted(daily.items()))) for name, daily in services.items()),
    )


def _line_id(plan: Plan, service: str, sku: str) -> str:
    """The line that a cost is booked on; what the plan lacks is `unplanned`."""
    line = plan.line_of(service, sku)
    return line.id if line else UNPLANNED


def _sums(named: Iterable[tuple[str, Day]]) -> dict[str, dict[date, float]]:
    """What goes on from day to day, by name: credits and purchases do not."""
    found: dict[str, dict[date, float]] = defaultdict(lambda: defaultdict(float))
    for name, day in named:
        found[name][day.day] += float(day.billed - day.one_off)
    return {name: dict(values) for name, values in sorted(found.items())}


def _lines(plan: Plan, rolled: RolledMonth) -> list[Line]:
    """Lines that something can be booked on, and `unplanned` where there is any."""
    lines = [line for line in plan.effective(rolled.month) if line.kind != "contingency"]
    if any(plan.line_of(c.service, c.sku) not in lines for c in rolled.cells if c.currency == plan.currency):
        lines.append(
            Line(
                id=UNPLANNED,
                title="Not in the plan",
                kind="cloud",
                owner="",
                quantities={"none": Decimal(0)},
                effective_from=rolled.month.first,
                stated=Decimal(0),
            )
        )
    return lines


def _status(plan: Plan, line: Line, daily: dict[date, float], rolled: RolledMonth, days: Sequence[Day], as_of: date) -> LineStatus:
    cells = [c for c in rolled.cells if c.currency == plan.currency and _line_id(plan, c.service, c.sku) == line.id]
    actual = total([c.billed for c in cells])
    booked = [d for d in days if _line_id(plan, d.service, d.sku) == line.id and rolled.month.first <= d.day <= rolled.month.last]
    seen = _with_one_offs(forecast(daily, rolled.month, as_of), float(actual), float(total([d.one_off for d in booked])))
    budget = plan.budget(line)
    above = Decimal(seen.expected) - budget
    overrun = above > budget * plan.overrun_percent / 100 and above > plan.overrun_floor
    return LineStatus(line.id, line.title, line.owner, budget, actual, seen, overrun)


def _with_one_offs(seen: Forecast, actual: float, one_offs: float) -> Forecast:
    """A forecast of what goes on, with what does not added as it is. What was billed already is not taken back."""
    if seen.method == "actual":
        return replace(seen, spent=actual, expected=actual, low=actual, high=actual)
    expected = max(seen.expected + one_offs, actual)
    low = min(max(seen.low + one_offs, actual), expected)
    return replace(seen, spent=actual, expected=expected, low=low, high=max(seen.high + one_offs, expected))


def _teams(ledger: Ledger, month: Month) -> tuple[tuple[str, Decimal], ...]:
    paid: dict[str, Decimal] = {}
    for share in ledger.shares(month):
        if share.currency == ledger.plan.currency:
            paid[share.team] = paid.get(share.team, Decimal(0)) + share.billed
    return tuple(sorted(paid.items(), key=lambda p: -p[1]))


def _past(ledger: Ledger, month: Month) -> PastMonth:
    rolled = ledger.month(month)
    billed = rolled.totals.get(ledger.plan.currency, (Decimal(0), Decimal(0)))[0]
    budget = total([ledger.plan.budget(line) for line in ledger.plan.effective(month)])
    return PastMonth(month, rolled.version, rolled.closed, billed, budget)


# --- the page


def markdown(review: Review, pictures: Sequence[str] = ()) -> str:
    """The page. `pictures` are what its images are linked to, in the order of charts.CHARTS."""
    known = f"{review.lines[0].forecast.known_days} of {review.month.days} days" if review.lines else "no days"
    out = [f"# Costs of {review.month.first:%B %Y}, as of {review.as_of}", ""]
    if review.sample:
        out += [
            "> **Sample data.** Made up by the lab; no cloud has billed this. Set `AKIDB_COST_SOURCE` to see the real thing.",
            "",
        ]
    out += [
        f"{_usd(review.spent)} on {known}. The month will end at about **{_usd(review.expected)}**; the plan is {_usd(review.budget)} "
        f"with contingency ({review.plan.title}).",
        "",
        _verdict(review),
        "",
        "| line | owner | plan | so far | at the end | between | |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for s in review.lines:
        between = f"{_usd(s.forecast.low)} to {_usd(s.forecast.high)}"
        mark = "**above plan**" if s.overrun else ""
        out.append(
            f"| {s.title} | {s.owner} | {_usd(s.budget)} | {_usd(s.actual)} | {_usd(s.forecast.expected)} | {between} | {mark} |"
        )
    out += ["", *_picture(pictures, 0, "forecast against plan"), "## Who pays", ""]
    whole = total([p for _, p in review.teams])
    out += ["| team | so far | |", "|---|--:|--:|"]
    out += [f"| {team} | {_usd(paid)} | {paid * 100 / whole if whole else 0:.1f} % |" for team, paid in review.teams]
    out += ["", "Shared costs are split by the allocation rules; the parts add up to the bill to the last digit.", ""]
    out += [*_picture(pictures, 1, "teams"), "## Quotas", "", "| quota | used | of | | exhausted |", "|---|--:|--:|--:|---|"]
    for b in review.burns:
        when = f"{b.exhausted_on}, in {b.days_left} days" if b.exhausted_on else "not foreseeable" if b.as_of else "no usage yet"
        unit = f"{b.quota.unit}{' a month' if b.quota.kind == 'a month' else ''}"
        out.append(f"| {b.quota.title} | {b.used:,.1f} {unit} | {b.limit:,.0f} {unit} | {b.fraction:.0%} | {when} |")
    out += ["", *_picture(pictures, 2, "quotas"), "## Days that stand out", ""]
    if review.anomalies:
        out += ["| day | service | cost | usual | more |", "|---|---|--:|--:|--:|"]
        out += [f"| {a.day} | {a.service} | {_usd(a.cost)} | {_usd(a.usual)} | {_usd(a.excess)} |" for a in review.anomalies]
    else:
        out.append("None: no day was five deviations and a quarter above the same weekdays before it.")
    out += [
        "",
        *_picture(pictures, 3, "cost by day"),
        "## Months before",
        "",
        "| month | billed | plan | | version |",
        "|---|--:|--:|--:|---|",
    ]
    for p in review.past:
        state = f"{p.version}{'' if p.closed else ', open'}"
        out.append(
            f"| {p.month} | {_usd(p.billed)} | {_usd(p.budget)} | {p.billed * 100 / p.budget if p.budget else 0:.0f} % | {state} |"
        )
    out += ["", *_trust(review)]
    return "\n".join(out).rstrip() + "\n"


def _verdict(review: Review) -> str:
    if not review.overruns:
        return "No line will end above its plan."
    told = "; ".join(
        f"{s.title} by {_usd(s.forecast.expected - float(s.budget))} (owner: {s.owner or 'nobody'})" for s in review.overruns
    )
    return f"**Above plan: {told}.**"


def _trust(review: Review) -> list[str]:
    out = ["## How far to trust this", ""]
    if t := review.tested:
        out.append(
            f"Forecast as of day 14, the last {t.months} months were off by {t.median_error:.1%} in the middle and {t.p90_error:.1%} "
            "in the worst tenth "
            f"(extrapolated spending: {t.run_rate_median_error:.1%} and {t.run_rate_p90_error:.1%})."
        )
    else:
        out.append("Fewer than two months of history: the forecast has not been tested on them.")
    out.append("Amounts are as billed, by billing month. What was billed late makes a further version of a closed month.")
    return [*out, ""]


def _picture(pictures: Sequence[str], number: int, what: str) -> list[str]:
    return [f"![{what}]({pictures[number]})", ""] if number < len(pictures) else []


def _usd(amount: Decimal | float) -> str:
    value = cents(Decimal(str(round(amount, 6)) if isinstance(amount, float) else amount))
    return f"{'-' if value < 0 else ''}${abs(value):,}"


# --- keeping it


@dataclass(frozen=True)
class Published:
    """Where a review lies."""

    folder: Path
    key: str
    """In cold storage."""
    files: tuple[str, ...]


def publish(ledger: Ledger, review: Review, home: Path) -> Published:
    """Write a review with its pictures and tables, here and into cold storage; one of the same day is another revision.

    Raises:
        OutsideError: there is no room, or the store cannot be reached.
    """
    from akidb_pipelines.costs.charts import CHARTS

    folder = home / "costs" / "reviews" / f"{'sample-' if review.sample else ''}{review.as_of}"
    pictures = {name: draw(review) for name, draw in CHARTS.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, png in pictures.items():
            write_whole(folder / name, png)
        write_whole(folder / "review.md", markdown(review, tuple(pictures)).encode())
        write_whole(folder / "review.json", (json.dumps(as_json(review), indent=2) + "\n").encode())
        _tables(ledger, review, folder)
    except OSError as error:
        raise OutsideError(f"review in {folder}: {error}", hint="free some space, or point AKIDB_HOME elsewhere") from error
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    revision = 1
    while True:
        key = f"{ROOT}reviews/{folder.name}/r{revision}/"
        try:
            for name in names:
                ledger.cold.create(key + name, folder / name)
            return Published(folder, key, tuple(names))
        except AlreadyExistsError:
            revision += 1


def _tables(ledger: Ledger, review: Review, folder: Path) -> None:
    """The rollup as CSV and Parquet, the allocation as CSV; amounts are exact."""
    columns = (
        "provider",
        "service",
        "sku",
        "team",
        "tenant",
        "environment",
        "currency",
        "unit",
        "lines",
        "billed",
        "effective",
        "quantity",
    )
    with (folder / "rollup.csv").open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([*c.key, c.lines, plain(c.billed), plain(c.effective), plain(c.quantity)] for c in review.rolled.cells)
    with (folder / "allocation.csv").open("w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("team", "service", "currency", "how", "billed", "effective"))
        shares = ledger.shares(review.month)
        writer.writerows((s.team, s.service, s.currency, s.how, plain(s.billed), plain(s.effective)) for s in shares)
    types = ", ".join(f"'{c}': 'VARCHAR'" for c in columns[:8])
    money = ", ".join(f"'{c}': 'DECIMAL(38,18)'" for c in columns[9:])
    source = (
        f"read_csv({engine.text(str(folder / 'rollup.csv'))}, header = true, columns = {{{types}, 'lines': 'BIGINT', {money}}})"
    )
    with engine.duck(folder / ".duckdb") as db:
        db.execute(f"COPY (SELECT * FROM {source}) TO {engine.text(str(folder / 'rollup.parquet'))} (FORMAT parquet)")


def as_json(review: Review) -> dict[str, object]:
    """A review as data: amounts that are booked as text, forecasts as numbers."""
    return {
        "as_of": str(review.as_of),
        "month": str(review.month),
        "sample": review.sample,
        "plan": review.plan.title,
        "currency": review.plan.currency,
        "spent": plain(review.spent),
        "budget": plain(review.budget),
        "expected": round(review.expected, 2),
        "lines": [
            {
                "line": s.line,
                "title": s.title,
                "owner": s.owner,
                "budget": plain(s.budget),
                "actual": plain(s.actual),
                "overrun": s.overrun,
            }
            | {"forecast": asdict(s.forecast)}
            for s in review.lines
        ],
        "teams": {team: plain(paid) for team, paid in review.teams},
        "quotas": [
            {
                "quota": b.quota.id,
                "used": b.used,
                "limit": b.limit,
                "unit": b.quota.unit,
                "exhausted_on": str(b.exhausted_on or "") or None,
            }
            for b in review.burns
        ],
        "anomalies": [{"service": a.service, "day": str(a.day), "cost": a.cost, "usual": a.usual} for a in review.anomalies],
        "past": [{"month": str(p.month), "version": p.version, "closed": p.closed, "billed": plain(p.billed)} for p in review.past],
        "backtest": asdict(review.tested) if review.tested else None,
    }
