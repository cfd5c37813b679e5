"""`akidb-pipelines costs`: billing files in, months added up, the review out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from akidb_pipelines.cli.common import AsJson, err, out, print_json, transfer_bars, wide
from akidb_pipelines.errors import ExitCode, InputError
from akidb_pipelines.periods import Month
from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    # These load SQLAlchemy and pydantic: only when a command runs.
    from akidb_pipelines.costs.arrivals import Imported
    from akidb_pipelines.costs.forecast import Backtest
    from akidb_pipelines.costs.intake import Group
    from akidb_pipelines.costs.ledger import Ledger, RolledMonth
    from akidb_pipelines.costs.review import Review
    from akidb_pipelines.progress import Report
    from akidb_pipelines.quality.result import CheckReport

costs_app = typer.Typer(
    no_args_is_help=True, help="Costs: billing files (FOCUS), rollups, forecast against plan, the bi-weekly review."
)

MonthOption = Annotated[str | None, typer.Option("--month", help="Billing month, such as 2026-10; default: yesterday's.")]
_COLOURS = {"taken": "green", "withdrawn": "dim", "quarantined": "red", "duplicate": "yellow"}


@costs_app.command("import")
def costs_import(
    where: Annotated[
        str | None,
        typer.Argument(
            help="A FOCUS file or folder, s3://bucket/prefix, oci://bling/TENANCY/FOCUS Reports; default: AKIDB_COST_SOURCE, else the lab's."
        ),
    ] = None,
    out_catalog: Annotated[
        Path | None,
        typer.Option("--out-catalog", help="Keep ledger and lines in this folder instead: to look at a file on its own."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take in billing files. Prints what the new ones, and the ones that were known, come to. Exits 1 if one is refused."""
    settings = Settings.load()
    if out_catalog:
        settings = settings.model_copy(update={"home": out_catalog.absolute(), "store": "", "catalog": ""})
    with transfer_bars() as report:
        done = list(_take_in(settings, where, report, again=True))
    ledger = _ledger(settings)
    counted = [d for d in done if d.file.state in {"taken", "duplicate"}]
    groups = [g for d in counted for g in (d.groups or ledger.arrivals.groups(d.file))]
    refused = [d for d in done if d.file.state == "quarantined"]
    if as_json:
        print_json({"ok": not refused, **_totals(groups), "files": [_file_json(d) for d in done], "warnings": _warnings(done)})
    else:
        _show_import(done, groups)
    if refused:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@costs_app.command("files")
def costs_files(as_json: AsJson = False) -> None:
    """The ledger: every billing file that ever arrived, and what became of it."""
    files = _ledger().tables.files()
    if as_json:
        print_json({"files": [asdict(f) for f in files]})
        return
    table = Table(title=f"{len(files)} billing files")
    for column in ("file", "state", "arrived", "months", "lines", "billed", "told"):
        table.add_column(column, justify="right" if column in {"lines", "billed"} else "left", overflow="fold")
    for f in files:
        name = f"{f.name}{' (sample)' if f.sample else ''}"
        told = f.notes[0] if f.notes else ""
        state = f"[{_COLOURS[f.state]}]{f.state}[/]"
        table.add_row(escape(name), state, f.arrived, " ".join(f.months), f"{f.line_count:,}", f"{f.billed:,.2f}", escape(told))
    wide(140).print(table)


@costs_app.command("withdraw")
def costs_withdraw(
    name: Annotated[str, typer.Argument(help="A file that counts, as `costs files` names it, or the end of its name.")],
    as_json: AsJson = False,
) -> None:
    """Let a file count no more, one that was imported by mistake. If its source still has it, the next intake takes it in again."""
    gone = _ledger().arrivals.withdraw(name)
    if as_json:
        print_json(asdict(gone))
    else:
        out.print(
            f"{gone.location} counts no more; months to be added up: {', '.join(gone.months)}", soft_wrap=True, highlight=False
        )


@costs_app.command("rollup")
def costs_rollup(month: MonthOption = None, as_json: AsJson = False) -> None:
    """Add a billing month up, and check it. Exits 1 if a check fails."""
    from akidb_pipelines.costs.checklist import ROLLUP_CHECKS
    from akidb_pipelines.costs.checks import run_month_checks

    ledger, wanted = _ledger(), _month(month)
    rolled = ledger.roll_up(wanted)
    reports = list(run_month_checks(ledger, wanted, ROLLUP_CHECKS, unknown=rolled.unknown))
    ok = not any(r.holds_back for r in reports)
    if as_json:
        print_json({"ok": ok, **_rolled_json(rolled), "checks": [_check_json(r) for r in reports]})
    else:
        _show_rollup(ledger, rolled, reports)
    if not ok:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@costs_app.command("review")
def costs_review(
    month: MonthOption = None,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Of what was taken in and added up before; default: bring both up to date first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the review: a page with pictures and tables, here and in cold storage. Exits 1 if a check holds the month back."""
    from akidb_pipelines.costs.checks import expect_released
    from akidb_pipelines.costs.review import as_json as review_json
    from akidb_pipelines.costs.review import draw_up, markdown, publish

    settings = Settings.load()
    ledger = _ledger(settings) if as_is else _up_to_date(settings)
    review = draw_up(ledger, _today(), Month.parse(month) if month else None)
    expect_released(ledger, review.month)
    done = publish(ledger, review, settings.home)
    if as_json:
        print_json({**review_json(review), "folder": str(done.folder), "key": done.key, "files": done.files})
        return
    from rich.markdown import Markdown

    text = "\n".join(line for line in markdown(review).splitlines() if not line.startswith("!["))
    wide(110).print(Markdown(text))
    out.print(f"page, pictures and tables: {done.folder}", soft_wrap=True, highlight=False)


@costs_app.command("forecast")
def costs_forecast(month: MonthOption = None, as_json: AsJson = False) -> None:
    """What a month will have cost at its end, by line of the plan, and how good such forecasts were."""
    from akidb_pipelines.costs.review import as_json as review_json
    from akidb_pipelines.costs.review import draw_up

    review = draw_up(_ledger(), _today(), Month.parse(month) if month else None)
    if as_json:
        told = review_json(review)
        print_json(
            {
                k: told[k]
                for k in ("as_of", "month", "sample", "plan", "currency", "spent", "budget", "expected", "lines", "backtest")
            }
        )
        return
    _show_forecast(review)


@costs_app.command("lint-plan")
def costs_lint_plan(
    plan: Annotated[Path | None, typer.Argument(help="A plan book; default: AKIDB_COST_PLAN, else the shipped one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute every line of a plan book. Exits 1 if something differs, is undefined or missing."""
    from akidb_pipelines.costs.lint import is_sound, lint, load_prices
    from akidb_pipelines.costs.plan import load_plan

    book = load_plan(plan or Settings.load().cost_plan)
    found = lint(book, load_prices())
    if as_json:
        lines = [{"line": n.id, "stated": _plain(n.stated), "computed": _plain(book.amount(n))} for n in book.lines]
        findings = [{**asdict(f), "stated": _plain(f.stated), "recomputed": _plain(f.recomputed)} for f in found]
        print_json({"ok": is_sound(found), "plan": book.title, "total": _plain(book.total()), "lines": lines, "findings": findings})
    else:
        table = Table("line", "", "found", title=f"{book.title}: {book.currency} {book.total():,.2f} a month, recomputed")
        for f in found:
            table.add_row(f.line, "[dim]note[/]" if f.kind == "note" else f"[red]{f.kind}[/]", escape(f.message))
        wide(130).print(table)
    if not is_sound(found):
        raise typer.Exit(ExitCode.CHECK_FAILED)


@costs_app.command("generate")
def costs_generate(
    to: Annotated[Path, typer.Option("--to", help="Folder for the files, in OCI's layout.")],
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="How many lines; default: what AkiDB's infrastructure makes.")
    ] = None,
    month: MonthOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed makes the same lines.")] = 2025,
    as_json: AsJson = False,
) -> None:
    """Make up billing files of a month as OCI writes them, with everything that is odd about them."""
    from akidb_pipelines.lab.billing import Batch, generate

    wanted = _month(month)
    with transfer_bars() as report:
        written = generate(to, Batch(wanted.first, wanted.days), rows=rows, seed=seed, report=report)
    if as_json:
        print_json({"month": str(wanted), "files": [str(p) for p in written], "size_bytes": sum(p.stat().st_size for p in written)})
    else:
        out.print(*written, sep="\n", soft_wrap=True, highlight=False)


# --- what they share


def _plain(amount: Decimal | None) -> str | None:
    from akidb_pipelines.costs.money import plain

    return None if amount is None else plain(amount)


def _today() -> date:
    return datetime.now(UTC).date()


def _month(text: str | None) -> Month:
    return Month.parse(text) if text else Month.containing(_today() - timedelta(days=1))


def _ledger(settings: Settings | None = None) -> Ledger:
    from akidb_pipelines.costs.ledger import open_ledger

    return open_ledger(settings or Settings.load())


def _take_in(settings: Settings, where: str | None, report: Report, *, again: bool = False) -> Iterable[Imported]:
    from akidb_pipelines.costs.sources import open_source
    from akidb_pipelines.lab.billing import billing_source

    source = open_source(where, settings) if where else billing_source(settings, _today(), report)
    done = list(_ledger(settings).take_in(source, report, again=again))
    if not done:
        raise InputError(f"{source.url} has no billing files", hint="they end in .csv or .csv.gz")
    return done


def _up_to_date(settings: Settings) -> Ledger:
    ledger = _ledger(settings)
    with transfer_bars() as report:
        if settings.cost_source or ledger.sample:
            for done in _take_in(settings, None, report):
                if done.file.state == "quarantined" and done.is_new:
                    err.print(f"[red]refused[/] {escape(done.file.name)}: {escape(done.file.notes[0])}", highlight=False)
    ledger.price()
    for month in ledger.stale():
        ledger.roll_up(month)
        err.print(f"added up: {month}", style="dim", highlight=False)
    return ledger


def _totals(groups: Iterable[Group]) -> dict[str, Any]:
    """What groups come to, all told and by provider, service, billing month and tag."""
    from akidb_pipelines.costs.tagging import parse_tags

    whole, by = _Sum(), {name: dict[str, _Sum]() for name in ("provider", "service", "billing_month")}
    tags: dict[str, dict[str, _Sum]] = {}
    for g in groups:
        whole.add(g)
        for name, value in (("provider", g.provider), ("service", g.service), ("billing_month", g.month)):
            by[name].setdefault(value, _Sum()).add(g)
        for key, value in (parse_tags(g.tags) or {}).items():
            tags.setdefault(key, {}).setdefault(value, _Sum()).add(g)
    return {
        **whole.told(),
        **{f"by_{name}": {k: v.told() for k, v in sorted(sums.items())} for name, sums in by.items()},
        "by_tag": {key: {k: v.told() for k, v in sorted(values.items())} for key, values in sorted(tags.items())},
    }


class _Sum:
    """Rows and money added up, exactly."""

    def __init__(self) -> None:
        self._groups: list[Group] = []

    def add(self, group: Group) -> None:
        """One more."""
        self._groups.append(group)

    def told(self) -> dict[str, Any]:
        """As it is printed."""
        from akidb_pipelines.costs.money import plain, total

        return {
            "rows": sum(g.rows for g in self._groups),
            "billed_cost": plain(total([g.billed for g in self._groups])),
            "effective_cost": plain(total([g.effective for g in self._groups])),
        }


def _file_json(done: Imported) -> dict[str, Any]:
    f = done.file
    told = {"name": f.name, "state": f.state, "new": done.is_new, "sample": f.sample, "rows": f.line_count, "sha256": f.sha256}
    return {**told, "months": f.months, "notes": f.notes}


def _warnings(done: Iterable[Imported]) -> list[str]:
    return [f"{d.file.name}: {note}" for d in done for note in d.file.notes]


def _show_import(done: list[Imported], groups: list[Group]) -> None:
    table = Table("", "file", "lines", "billed", "told", title="Billing files")
    for d in done:
        f = d.file
        state = f"[{_COLOURS[f.state]}]{f.state if d.is_new else 'known'}[/]"
        name = f"{f.name}{' (sample)' if f.sample else ''}"
        table.add_row(state, escape(name), f"{f.line_count:,}", f"{f.billed:,.2f}", escape("; ".join(f.notes[:3])))
    wide(130).print(table)
    if any(d.file.state == "quarantined" for d in done):
        told_where = "nothing of a quarantined file counts; what to do: docs/runbooks/cost-file-quarantined.md"
        err.print(told_where, soft_wrap=True, highlight=False)
    if not groups:
        return
    told = _totals(groups)
    for what in ("provider", "service", "billing_month"):
        table = Table(what.replace("_", " "), "lines", "billed", "effective")
        for name, sums in told[f"by_{what}"].items():
            table.add_row(escape(name), f"{sums['rows']:,}", sums["billed_cost"], sums["effective_cost"])
        out.print(table)
    out.print(
        f"all: {told['rows']:,} lines, billed {told['billed_cost']}, effective {told['effective_cost']}",
        highlight=False,
        soft_wrap=True,
    )


def _rolled_json(rolled: RolledMonth) -> dict[str, Any]:
    from akidb_pipelines.costs.money import plain

    return {
        "month": str(rolled.month),
        "sample": rolled.sample,
        "version": rolled.version,
        "closed": rolled.closed,
        "changed": rolled.changed,
        "lines": rolled.line_count,
        "totals": {c: {"billed_cost": plain(b), "effective_cost": plain(e)} for c, (b, e) in rolled.totals.items()},
        "unknown": rolled.unknown,
        "delta": [_cell_json(c) for c in rolled.delta],
        "cells": [_cell_json(c) for c in rolled.cells],
    }


def _cell_json(cell: Any) -> dict[str, Any]:
    from akidb_pipelines.costs.money import plain

    return {name: plain(value) if isinstance(value, Decimal) else value for name, value in asdict(cell).items()}


def _check_json(report: CheckReport) -> dict[str, Any]:
    return {"check": report.check, "passed": report.passed, "holds_back": report.holds_back, "summary": report.summary}


def _show_rollup(ledger: Ledger, rolled: RolledMonth, reports: list[CheckReport]) -> None:
    state = "closed" if rolled.closed else "open"
    title = f"{rolled.month}, version {rolled.version}, {state}{', SAMPLE DATA' if rolled.sample else ''}"
    table = Table("team", "service", "how", "billed", "effective", title=title)
    for s in ledger.shares(rolled.month):
        table.add_row(s.team, escape(s.service), s.how, f"{s.billed:,.2f} {s.currency}", f"{s.effective:,.2f}")
    wide(100).print(table)
    checks = Table("", "check", "found")
    for r in reports:
        mark = "[green]ok[/]" if r.passed else "[yellow]look[/]" if r.advisory else "[red]failed[/]"
        checks.add_row(mark, r.check, escape("; ".join([r.summary, *(b.message for b in r.broken[:3] if b.message)])))
    wide(110).print(checks)
    if rolled.delta:
        out.print(f"version {rolled.version} adds {sum(c.billed for c in rolled.delta):,.2f} to what was closed", highlight=False)


def _show_forecast(review: Review) -> None:
    title = f"{review.month} as of {review.as_of}: ${review.expected:,.2f} expected, ${review.budget:,.2f} planned"
    table = Table("line", "plan", "so far", "at the end", "between", "", title=f"{title}{', SAMPLE DATA' if review.sample else ''}")
    for s in review.lines:
        f = s.forecast
        mark = "[red]above plan[/]" if s.overrun else ""
        table.add_row(s.title, f"{s.budget:,.2f}", f"{s.actual:,.2f}", f"{f.expected:,.2f}", f"{f.low:,.2f} to {f.high:,.2f}", mark)
    wide(110).print(table)
    if tested := review.tested:
        _show_backtest(tested)


def _show_backtest(t: Backtest) -> None:
    told = f"as of day 14, {t.months} months: off by {t.median_error:.1%} (median), {t.p90_error:.1%} (p90)"
    out.print(f"{told}; extrapolated: {t.run_rate_median_error:.1%}, {t.run_rate_p90_error:.1%}", highlight=False, soft_wrap=True)
