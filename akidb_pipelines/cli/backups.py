"""`akidb-pipelines backups`: dump databases, keep Terraform's state and dashboards, verify, restore."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from akidb_pipelines.cli.common import AsJson, err, print_json, transfer_bars, wide
from akidb_pipelines.errors import ExitCode, InputError, PipelineError
from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    # These load SQLAlchemy and zstandard: only when a command runs.
    from collections.abc import Callable

    from akidb_pipelines.backups.depot import Depot
    from akidb_pipelines.backups.dump import Dump
    from akidb_pipelines.backups.sources import Database
    from akidb_pipelines.progress import Report
    from akidb_pipelines.quality.result import CheckReport

backups_app = typer.Typer(no_args_is_help=True, help="Backups: database dumps, Terraform's state, dashboards.")

TERRAFORM, DASHBOARDS = "terraform", "dashboards"
DumpArgument = Annotated[
    str, typer.Argument(help="staging-1-metadata/2026-11-26/r1, staging-1-metadata/2026-11-26 (its newest), or staging-1-metadata.")
]


@backups_app.command("run")
def backups_run(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="Names of databases, `terraform`, `dashboards`; default: everything that is configured."),
    ] = None,
    new_lineage: Annotated[bool, typer.Option("--new-lineage", help="Terraform's state was begun anew, on purpose.")] = False,
    as_json: AsJson = False,
) -> None:
    """Back up and verify. Exits 1 if a check of a dump fails; what is not configured is said."""
    from akidb_pipelines.backups.sources import open_databases
    from akidb_pipelines.lab.swarm.open import lab_databases

    settings = Settings.load()
    databases = {d.name: d for d in (*open_databases(settings), *lab_databases(settings))}
    asked = what or [*databases, TERRAFORM, DASHBOARDS]
    if unknown := [name for name in asked if name not in {*databases, TERRAFORM, DASHBOARDS}]:
        known = ", ".join([*databases, TERRAFORM, DASHBOARDS])
        raise InputError(
            f"there is no {unknown[0]!r} to back up", hint=f"choose among {known}; set akidb_databases in the inventory"
        )
    told: list[dict[str, Any]] = []
    errors: list[PipelineError] = []

    def attempt(what: str, do: Callable[[], list[dict[str, Any]]]) -> None:
        """One that fails must not keep the others from being backed up."""
        try:
            told.extend(do())
        except PipelineError as error:
            errors.append(error)
            told.append({"what": what, "ok": False, "found": error.message})

    depot = _depot(settings)
    with transfer_bars() as report:
        for name in (n for n in asked if n in databases):
            attempt(name, partial(_back_up, depot, databases[name], report))
    if TERRAFORM in asked:
        attempt(TERRAFORM, lambda: _back_up_states(settings, new_lineage))
    if DASHBOARDS in asked:
        attempt(DASHBOARDS, lambda: [_back_up_dashboards(settings)])
    if as_json:
        print_json({"ok": all(t["ok"] is not False for t in told), "backups": told})
    else:
        _show_run(told)
    if errors:
        raise errors[0]
    if any(t["ok"] is False for t in told):
        raise typer.Exit(ExitCode.CHECK_FAILED)


def _back_up(depot: Depot, database: Database, report: Report) -> list[dict[str, Any]]:
    dump = depot.take(database, report)
    reports = list(depot.run_checks(dump, report=report))
    ok = not any(r.holds_back for r in reports)
    return [{"what": database.name, "ok": ok, **_dump_json(dump), "checks": _checks_json(reports)}]


def _back_up_states(settings: Settings, new_lineage: bool) -> list[dict[str, Any]]:
    from akidb_pipelines.backups.checklist import LAB
    from akidb_pipelines.backups.terraform import open_states
    from akidb_pipelines.lab.swarm.open import terraform_states

    found = []
    for name, state in terraform_states(settings).items():
        kept, created = open_states(settings).keep(state, name, new_lineage=new_lineage or name == LAB)
        text = f"serial {kept.serial}, lineage {kept.lineage}" + ("" if created else "; unchanged")
        found.append({"what": f"{TERRAFORM}/{name}", "ok": True, "found": text, **asdict(kept), "created": created})
    return found or [{"what": TERRAFORM, "ok": None, "found": "not configured: set AKIDB_TERRAFORM_STATE"}]


def _back_up_dashboards(settings: Settings) -> dict[str, Any]:
    from akidb_pipelines.backups.dashboards import export

    done = export(settings)
    if done is None:
        return {"what": DASHBOARDS, "ok": None, "found": "not configured: set AKIDB_GRAFANA_URL and AKIDB_GRAFANA_TOKEN"}
    found = f"{done.dashboards} dashboards, {len(done.changed)} changed, commit {done.commit[:12]}"
    return {"what": DASHBOARDS, "ok": True, "found": found, **asdict(done)}


def _show_run(told: list[dict[str, Any]]) -> None:
    table = Table("", "what", "found", title="Backups")
    for each in told:
        mark = {True: "[green]ok[/]", False: "[red]failed[/]", None: "[yellow]-[/]"}[each["ok"]]
        found = each.get("found") or f"{each['id']}, {each['rows_total']:,} rows, {each['stored_bytes'] / 1e6:.1f} MB stored"
        failed = "; ".join(f"{c['check']}: {c['summary']}" for c in each.get("checks", ()) if not c["passed"])
        table.add_row(mark, each["what"], escape(f"{found}{'; ' + failed if failed else ''}"))
    wide(110).print(table)


@backups_app.command("verify")
def backups_verify(dump: DumpArgument, as_json: AsJson = False) -> None:
    """Restore a dump into a temporary folder and run every check on it. Exits 1 if one fails."""
    depot = _depot(Settings.load())
    found = depot.find(dump)
    with transfer_bars() as report:
        reports = list(depot.run_checks(found, report=report))
    ok = not any(r.holds_back for r in reports)
    if as_json:
        print_json({"ok": ok, **_dump_json(found), "checks": _checks_json(reports)})
    else:
        table = Table("", "check", "found", "seconds", title=found.id)
        for r in reports:
            mark = "[green]ok[/]" if r.passed else "[yellow]look[/]" if r.advisory else "[red]failed[/]"
            table.add_row(
                mark, r.check, escape("; ".join([r.summary, *(b.message for b in r.broken if b.message)])), f"{r.seconds:.1f}"
            )
        wide(110).print(table)
    if not ok:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@backups_app.command("restore")
def backups_restore(
    what: Annotated[str, typer.Argument(help="A dump (see `backups list`), `terraform`, or `terraform/lab`.")],
    to: Annotated[Path, typer.Option("--to", help="File to restore to.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace what is there, if nobody uses it.")] = False,
    wait: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait for an archived dump.")] = 3600,
    as_json: AsJson = False,
) -> None:
    """Bring a backup back. It is verified before it takes anything's place; `-wal` and `-shm` of what was there go with it."""
    settings = Settings.load()
    if what.partition("/")[0] == TERRAFORM:
        from akidb_pipelines.backups.terraform import NAME, open_states

        states, name = open_states(settings), what.partition("/")[2] or NAME
        kept = states.newest(name)
        if kept is None:
            raise InputError(f"there is no copy of Terraform's state of {name}", hint="akidb-pipelines backups run terraform")
        states.restore(kept, to, replace=replace)
        told = {"target": str(to), **asdict(kept)}
        text = f"serial {kept.serial}, lineage {kept.lineage} restored: {to}"
    else:
        depot = _depot(settings)
        dump = depot.find(what)
        with transfer_bars() as report:
            depot.wait_for(dump, wait, report)
            done = depot.restore(dump, to.absolute(), replace=replace, report=report)
        told = {"target": str(done.target), "seconds": round(done.seconds, 3), **_dump_json(dump)}
        text = f"{dump.id} restored: {done.target}"
    if as_json:
        print_json(told)
    else:
        typer.echo(text)


@backups_app.command("list")
def backups_list(
    database: Annotated[str, typer.Option(help="Only the dumps of this database.")] = "",
    as_json: AsJson = False,
) -> None:
    """Every dump, and the newest copy of Terraform's state."""
    from datetime import UTC, datetime

    from akidb_pipelines.backups.terraform import open_states

    settings = Settings.load()
    depot, states = _depot(settings), open_states(settings)
    dumps, kept = depot.dumps(database), states.newest()
    if as_json:
        told = [{**_dump_json(d), "verified": depot.is_verified(d)} for d in dumps]
        print_json({"dumps": told, "terraform": asdict(kept) if kept else None})
        return
    table = Table(title=f"{len(dumps)} dumps")
    for column in ("dump", "verified", "snapshot", "hours old", "rows", "canary", "MB", "MB stored", "from"):
        table.add_column(
            column, justify="right" if column in {"hours old", "rows", "canary", "MB", "MB stored"} else "left", overflow="fold"
        )
    now = datetime.now(UTC)
    for d in dumps:
        record = d.record
        table.add_row(
            d.id,
            "[green]yes[/]" if depot.is_verified(d) else "[red]no[/]",
            record.snapshot_at[:16],
            f"{d.age_s(now) / 3600:,.1f}",
            f"{sum(record.rows.values()):,}",
            "-" if record.canary is None else f"{record.canary:,}",
            f"{record.size_bytes / 1e6:,.1f}",
            f"{record.stored_bytes / 1e6:,.1f}",
            escape(record.source),
        )
    wide(130).print(table)
    if kept:
        err.print(f"Terraform: serial {kept.serial}, lineage {kept.lineage}, kept {kept.taken_at[:16]}", highlight=False)
    if not dumps:
        err.print("none yet: akidb-pipelines backups run", highlight=False)


@backups_app.command("prune")
def backups_prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove dumps that retention does not keep (30 days, 12 months), archive what is not of the newest 7 days."""
    with transfer_bars() as report:
        decisions = _depot(Settings.load()).prune(dry_run=dry_run, report=report)
    if as_json:
        print_json({"decisions": [{"dump": d.key.id, "action": d.action, "why": d.why} for d in decisions]})
        return
    table = Table("dump", "", "why", title="would be done" if dry_run else "done")
    for d in decisions:
        table.add_row(d.key.id, d.action, d.why)
    wide(100).print(table)


def _dump_json(dump: Dump) -> dict[str, Any]:
    return {"id": dump.id, "rows_total": sum(dump.record.rows.values()), **asdict(dump.record)}


def _checks_json(reports: list[CheckReport]) -> list[dict[str, Any]]:
    return [{"check": r.check, "passed": r.passed, "summary": r.summary, "facts": dict(r.facts)} for r in reports]


def _depot(settings: Settings) -> Depot:
    from akidb_pipelines.backups.depot import open_depot

    return open_depot(settings)
