"""`akidb-pipelines drills`: rehearse a disaster, put right what an interrupted rehearsal has left, read reports."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from akidb_pipelines.cli.common import AsJson, err, out, print_json, wide
from akidb_pipelines.errors import ExitCode
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    from akidb_pipelines.drills.desk import Desk
    from akidb_pipelines.drills.drill import Watcher
    from akidb_pipelines.drills.report import PhaseRecord
    from akidb_pipelines.drills.report import Report as DrillReport

drills_app = typer.Typer(no_args_is_help=True, help="DR drills: lose a node, bring it back from our own backups, prove it.")

_COLOURS = {"ok": "green", "running": "cyan", "failed": "red", "stopped": "red", "skipped": "dim"}
_VERDICTS = {"passed": "green", "failed": "red", "aborted": "yellow", "dry_run": "cyan"}


@drills_app.callback()
def _told_to_end() -> None:
    """Told to end, a drill undoes what it did, as after Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@drills_app.command("run")
def drills_run(
    scenario: Annotated[str, typer.Option("--scenario", help="What goes wrong; `drills scenarios` lists them.")] = "node_power_off",
    target: Annotated[str, typer.Option("--target", help="lab or oci.")] = "lab",
    node: Annotated[str, typer.Option("--node", help="The node to lose; default: the scenario's choice.")] = "",
    dry_run: Annotated[
        bool | None, typer.Option("--dry-run/--no-dry-run", help="Ask every guard and touch nothing; default for oci.")
    ] = None,
    confirm: Annotated[str, typer.Option("--confirm", help="For oci, without --dry-run: ENVIRONMENT/NODE/TODAY.")] = "",
    as_json: AsJson = False,
) -> None:
    """Run one drill. Exits 0 when it passed (or was dry), 1 when it failed or was aborted; a report is left in either case."""
    from akidb_pipelines.drills.desk import operator
    from akidb_pipelines.drills.drill import Request
    from akidb_pipelines.drills.scenarios import scenario_named

    dry = target != "lab" if dry_run is None else dry_run
    request = Request(scenario_named(scenario), operator(), node, dry, confirm)
    with _display(f"{scenario} on {target}") as (watch, report):
        done = _desk().run(target, request, watch, report)
    _show(done, as_json)
    if done.verdict not in ("passed", "dry_run"):
        raise typer.Exit(ExitCode.CHECK_FAILED)


@drills_app.command("selftest")
def drills_selftest(as_json: AsJson = False) -> None:
    """Run every scenario on the lab. Green is what ends as its scenario must: stale_backup must fail. Exits 1 if one does not."""
    from akidb_pipelines.drills.desk import operator

    done: list[DrillReport] = []
    with _display("self-test") as (watch, report):
        for each in _desk().self_test(watch, report, operator()):
            done.append(each)
            err.print(f"{each.scenario}: {each.verdict}, {'as it must' if each.as_expected else 'NOT as it must'}", highlight=False)
    if as_json:
        print_json({"ok": all(d.as_expected for d in done), "drills": [_short(d) for d in done]})
    else:
        table = Table(
            "", "scenario", "verdict", "must", "RTA s", "RPA s", "outage s", "rows lost", "why", title="Self-test of drills"
        )
        for d in done:
            mark = "[green]ok[/]" if d.as_expected else "[red]wrong[/]"
            numbers = [_seconds(d.rta_s), _seconds(d.rpa_s), _seconds(d.service_outage_s), _lost(d)]
            table.add_row(mark, d.scenario, d.verdict, d.expected, *numbers, escape(d.reason))
        wide(130).print(table)
    if not all(d.as_expected for d in done):
        raise typer.Exit(ExitCode.CHECK_FAILED)


@drills_app.command("recover")
def drills_recover(as_json: AsJson = False) -> None:
    """Put right what interrupted drills have left. Exits 1 if something could not be; run it again then."""
    with err.status("recovering") as status:
        done = _desk().recover(lambda told: status.update(told.stage))
    ok = all(record.ok for _, records in done for record in records)
    if as_json:
        print_json({"ok": ok, "drills": [{"drill": name, "undo": [asdict(r) for r in records]} for name, records in done]})
    elif not done:
        typer.echo("nothing to recover: every drill was finished")
    else:
        table = Table("drill", "", "what", "node", "found", title="Recovered")
        for name, records in done:
            for record in records:
                mark = "[green]ok[/]" if record.ok else "[red]failed[/]"
                table.add_row(name, mark, record.action, record.node, escape(record.found))
            if not records:
                table.add_row(name, "[green]ok[/]", "", "", "nothing had been touched")
        wide(110).print(table)
    if not ok:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@drills_app.command("report")
def drills_report(
    drill: Annotated[str, typer.Argument(help="Id of a drill, see `drills list`.")],
    as_json: AsJson = False,
) -> None:
    """The report of a drill, as Markdown or JSON."""
    from akidb_pipelines.drills.report import markdown

    desk = _desk()
    done = desk.report(drill)
    if as_json:
        print_json(json.loads(done.to_json()))
    else:
        picture = desk.picture(drill)
        typer.echo(markdown(done, str(picture) if picture.is_file() else ""), nl=False)


@drills_app.command("list")
def drills_list(as_json: AsJson = False) -> None:
    """Every drill, oldest first; those that were interrupted are named."""
    desk = _desk()
    drills, left = desk.depot.catalog.drills(), [j.folder.name for j in desk.cabinet.unfinished()]
    if as_json:
        print_json({"drills": [asdict(d) for d in drills], "interrupted": left})
        return
    table = Table(title=f"{len(drills)} drills")
    for column in ("drill", "quarter", "verdict", "RTA s", "RPA s", "rows lost", "operator"):
        table.add_column(column, justify="right" if column in {"RTA s", "RPA s", "rows lost"} else "left", overflow="fold")
    for d in drills:
        numbers = ["-" if n is None else f"{n / 1000:,.1f}" for n in (d.rta_ms, d.rpa_ms)]
        verdict = f"[{_VERDICTS[d.verdict]}]{d.verdict}[/]"
        table.add_row(
            d.drill_id, d.quarter, verdict, *numbers, "-" if d.rows_lost is None else f"{d.rows_lost:,}", escape(d.operator)
        )
    wide(110).print(table)
    for name in left:
        err.print(
            f"interrupted and not undone: {name}; akidb-pipelines drills recover", style="bold red", highlight=False, soft_wrap=True
        )


@drills_app.command("scenarios")
def drills_scenarios(as_json: AsJson = False) -> None:
    """What can be rehearsed, and what must come of it."""
    from akidb_pipelines.drills.scenarios import SCENARIOS

    if as_json:
        told = [{"name": s.name, "summary": s.summary, "must": s.expected, "victims": s.victims} for s in SCENARIOS.values()]
        print_json({"scenarios": told})
        return
    table = Table("scenario", "what goes wrong", "nodes lost", "must end", title="Scenarios")
    for s in SCENARIOS.values():
        table.add_row(s.name, s.summary, str(s.victims), s.expected + (f" ({s.fails})" if s.fails else ""))
    wide(110).print(table)


# --- showing


@contextmanager
def _display(title: str) -> Iterator[tuple[Watcher, Report]]:
    """A table of phases that is alive in a terminal; elsewhere a line for each phase that ends."""
    phases: list[PhaseRecord] = []
    began, told = monotonic(), ""

    def table() -> Table:
        shown = Table("phase", "", "seconds", "", title=f"{title}, {monotonic() - began:.0f} s", min_width=100)
        for p in phases:
            seconds = "" if p.status == "running" else f"{p.seconds:.1f}"
            shown.add_row(
                p.phase, f"[{_COLOURS[p.status]}]{p.status}[/]", seconds, escape(told if p.status == "running" else p.told)
            )
        if not phases:
            shown.add_row("", "", "", escape(told))
        return shown

    with Live(console=err, get_renderable=table, refresh_per_second=4, transient=False) if err.is_terminal else _quiet():

        def watch(record: PhaseRecord) -> None:
            if record.status == "running" and record.phase == "preflight":
                phases.clear()
            if phases and phases[-1].phase == record.phase:
                phases.pop()
            phases.append(record)
            if not err.is_terminal and record.status != "running":
                err.print(
                    f"{record.phase}: {record.status}, {record.seconds:.1f} s: {record.told}", highlight=False, soft_wrap=True
                )

        def report(progress: Progress) -> None:
            nonlocal told
            told = progress.stage
            if not err.is_terminal and progress.stage.startswith("lab:"):
                err.print(progress.stage, style="dim", highlight=False)

        yield watch, report


@contextmanager
def _quiet() -> Iterator[None]:
    yield


def _show(done: DrillReport, as_json: bool) -> None:
    if as_json:
        print_json(json.loads(done.to_json()))
        return
    out.print(f"[{_VERDICTS[done.verdict]} bold]{done.verdict}[/]: {escape(done.reason)}", soft_wrap=True, highlight=False)
    if done.target == "lab":
        out.print("on the lab: no proof for staging", style="dim")
    table = Table("criterion", "", "found")
    for c in done.criteria:
        table.add_row(c.name, "[green]met[/]" if c.ok else "[red]not met[/]", escape(c.found))
    wide(100).print(table)
    for action in done.corrective_actions:
        out.print(f"what to do: {action}", soft_wrap=True, highlight=False, markup=False)
    out.print(f"report: akidb-pipelines drills report {done.drill_id}", soft_wrap=True, highlight=False)


def _short(done: DrillReport) -> dict[str, Any]:
    names = (
        "drill_id",
        "scenario",
        "verdict",
        "expected",
        "as_expected",
        "reason",
        "rta_s",
        "rpa_s",
        "service_outage_s",
        "rows_lost",
    )
    return {name: getattr(done, name) for name in names}


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _lost(done: DrillReport) -> str:
    return f"{sum(done.rows_lost.values()):,}" if done.rows_lost else "-"


def _desk() -> Desk:
    from akidb_pipelines.lab.swarm.targets import open_drills

    return open_drills(Settings.load())
