"""The `akidb-pipelines` command. Thin: reads arguments, calls the library, prints what it returns.

`--json` prints one JSON object on standard output and nothing else there; progress and messages go to standard error. Exit codes:
0 ok, 1 a check failed, 2 unusable input, 3 something outside is missing. One module a group of commands.
"""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from akidb_pipelines.cli.backups import backups_app
from akidb_pipelines.cli.cedar import cedar_app
from akidb_pipelines.cli.common import AsJson, WeekOption, err, out, print_json, week_of, wide
from akidb_pipelines.cli.costs import costs_app
from akidb_pipelines.cli.drills import drills_app
from akidb_pipelines.cli.fixtures import fixtures_app
from akidb_pipelines.cli.images import images_app
from akidb_pipelines.cli.lab import lab_app
from akidb_pipelines.cli.operations import alerts_app, instance_app, metrics_app
from akidb_pipelines.cli.registry import registry_app
from akidb_pipelines.cli.runners import runners_app
from akidb_pipelines.cli.store import store_app
from akidb_pipelines.cli.ui import access_app, ui
from akidb_pipelines.errors import ExitCode, PipelineError
from akidb_pipelines.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Workflows that keep AkiDB 2.0's development infrastructure alive.",
)
hooks_app = typer.Typer(no_args_is_help=True, help="Git hooks.")
app.add_typer(fixtures_app, name="fixtures")
app.add_typer(images_app, name="images")
app.add_typer(runners_app, name="runners")
app.add_typer(backups_app, name="backups")
app.add_typer(drills_app, name="drills")
app.add_typer(costs_app, name="costs")
app.add_typer(lab_app, name="lab")
app.add_typer(registry_app, name="registry")
app.add_typer(store_app, name="store")
app.add_typer(cedar_app, name="cedar")
app.add_typer(access_app, name="access")
app.add_typer(alerts_app, name="alerts")
app.add_typer(instance_app, name="instance")
app.add_typer(metrics_app, name="metrics")
app.add_typer(hooks_app, name="hooks")
app.command("ui")(ui)


def main() -> None:
    """Entry point: errors that a user can act on become a message and an exit code; anything else is a bug and keeps its trace."""
    try:
        if "--help" not in sys.argv:
            _take_secrets()
        app()
    except PipelineError as error:
        _tell("[bold red]error:[/]", error)
        sys.exit(error.exit_code)


def _take_secrets() -> None:
    """From Vault, where the instance has its secrets there. A command goes on without: it may be the one that gets things going again."""
    from akidb_pipelines.instance import dagster_home

    configuration = dagster_home(Settings.load()) / "dagster.yaml"
    if not configuration.is_file() or not re.search(r"(?m)^secrets:", configuration.read_text(encoding="utf-8")):
        return
    from akidb_pipelines.operations.secrets import take_secrets

    try:
        take_secrets(configuration)
    except PipelineError as error:
        _tell("[bold yellow]going on without secrets:[/]", error)


def _tell(what: str, error: PipelineError) -> None:
    err.print(f"{what} {escape(error.message)}", soft_wrap=True, highlight=False)
    if error.hint:
        err.print(f"  what to do: {escape(error.hint)}", soft_wrap=True, highlight=False)


@app.command()
def run(
    week: WeekOption = None,
    profile: Annotated[list[str] | None, typer.Option(help="ci, standard or load; may be given more than once.")] = None,
) -> None:
    """Build, check and release a week's fixtures through Dagster; ends with a table."""
    from akidb_pipelines.run import run_table, run_week

    done = run_week(Settings.load(), week_of(week), profile or (), err)
    (out if out.is_terminal else wide(120)).print(run_table(done))


@app.command("prepare-home", hidden=True)
def prepare_home() -> None:
    """Prepare DAGSTER_HOME and print it; `make ui` calls this."""
    from akidb_pipelines.instance import prepare_dagster_home

    typer.echo(prepare_dagster_home(Settings.load()))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Go through the onboarding checklist; exits 3 when something is missing."""
    from akidb_pipelines.doctor import State, examine

    lines = list(examine(Settings.load()))
    if as_json:
        print_json({"ok": all(line.state is not State.MISSING for line in lines), "lines": [asdict(line) for line in lines]})
    else:
        table = Table("", "what", "found", "what to do", title="Onboarding checklist")
        colours = {State.OK: "green", State.MISSING: "red", State.NOT_CONFIGURED: "yellow"}
        for line in lines:
            table.add_row(f"[{colours[line.state]}]{line.state}[/]", line.what, escape(line.found), escape(line.to_do))
        wide(120).print(table)
    if any(line.state is State.MISSING for line in lines):
        raise typer.Exit(ExitCode.OUTSIDE)


@hooks_app.command("install")
def hooks_install(repository: Annotated[Path, typer.Argument(help="A git repository.")] = Path()) -> None:
    """Install the pre-commit hook: lint, typecheck, Cedar validation."""
    from akidb_pipelines.hooks import install

    typer.echo(f"installed {install(repository)}")
