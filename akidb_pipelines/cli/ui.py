"""`akidb-pipelines ui`: the Dagster UI, on this machine only and without login, or for a team behind Cedar; and what Cedar says."""

from __future__ import annotations

import os
import sys
from datetime import date
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from akidb_pipelines.cli.common import AsJson, print_json, wide
from akidb_pipelines.errors import InputError
from akidb_pipelines.settings import Settings

access_app = typer.Typer(no_args_is_help=True, help="Who may do what: decisions and their log.")


def ui(
    auth: Annotated[
        bool, typer.Option("--auth", help="Serve the UI behind login and Cedar (docs/deployment.md); no daemon.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the UI.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on; without --auth only this machine's own.")] = "127.0.0.1",
    workspace: Annotated[Path | None, typer.Option(help="Dagster workspace; default: this project's code.")] = None,
    metrics_port: Annotated[int, typer.Option(help="With --auth: port of the front's own metrics; 0: none.")] = 0,
) -> None:
    """Serve the Dagster UI. Without --auth: with the daemon, for this machine only, and whoever reaches the port may do everything."""
    from akidb_pipelines.instance import prepare_dagster_home, workspace_file

    settings = Settings.load()
    if not auth and not _is_loopback(host):
        raise InputError(
            f"without login the UI is not served at {host}", hint="leave --host away, or serve it with --auth; docs/deployment.md"
        )
    prepare_dagster_home(settings)
    found = workspace or workspace_file()
    if not found.is_file():
        raise InputError(f"there is no workspace {found}", hint="name a workspace.yaml of Dagster's")
    if auth:
        from akidb_pipelines.operations.access.serve import serve_front

        serve_front(settings, found, host, port, metrics_port)
        return
    command = ["dagster", "dev", "--workspace", str(found), "--host", host, "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", *command])  # noqa: S606 - Ctrl-C is Dagster's


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@access_app.command("matrix")
def access_matrix(as_json: AsJson = False) -> None:
    """What each team may do, as the sandbox's policies decide now."""
    from akidb_pipelines.operations.access.matrix import decide_matrix

    rows = decide_matrix(Settings.load().cedar_sandbox)
    if as_json:
        print_json({"matrix": [{"right": str(right), **teams} for right, teams in rows.items()]})
        return
    table = Table("may", *next(iter(rows.values())), title="Access matrix")
    for right, teams in rows.items():
        table.add_row(str(right), *("[green]yes[/]" if may else "[dim]no[/]" for may in teams.values()))
    wide(110).print(table)


@access_app.command("log")
def access_log(
    day: Annotated[str | None, typer.Option(help="A day, 2026-11-26; default: the newest.")] = None,
    denied: Annotated[bool, typer.Option("--denied", help="Only what was denied.")] = False,
    as_json: AsJson = False,
) -> None:
    """The log of access decisions that the front wrote on this machine."""
    from akidb_pipelines.operations.access.journal import open_journal

    journal = open_journal(Settings.load())
    try:
        asked = date.fromisoformat(day) if day else next(iter(reversed(journal.days())), None)
    except ValueError as error:
        raise InputError(f"{day!r} is no day", hint="write it as 2026-11-26") from error
    entries = [e for e in (journal.entries(asked) if asked else ()) if not (denied and e["allowed"])]
    if as_json:
        print_json({"day": asked, "decisions": entries})
        return
    columns = ("time", "user", "asked", "about", "right", "decision", "policy")
    table = Table(*columns, title=f"{len(entries)} decisions of {asked or 'no day yet'}")
    for e in entries:
        decision = "[green]allowed[/]" if e["allowed"] else "[red]denied[/]"
        told = {**e, "time": e["time"][11:19], "decision": decision}
        table.add_row(*(told[c] if c == "decision" else escape(_harmless(str(told.get(c, "")))) for c in columns))
    wide(150).print(table)


def _harmless(text: str) -> str:
    """Anybody may choose what stands in the log: a terminal must not obey it."""
    return "".join(c if c.isprintable() else "?" for c in text)
