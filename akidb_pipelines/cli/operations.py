"""`akidb-pipelines metrics`, `alerts` and `instance`: what Prometheus scrapes, which alerts are on, what Dagster may forget."""

from __future__ import annotations

import signal
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from akidb_pipelines.cli.common import AsJson, print_json, transfer_bars, wide
from akidb_pipelines.errors import ExitCode
from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    from akidb_pipelines.operations.facts import Watched

metrics_app = typer.Typer(no_args_is_help=True, help="Metrics of the pipelines for Prometheus.")
instance_app = typer.Typer(no_args_is_help=True, help="Dagster's instance: its runs and their history.")
alerts_app = typer.Typer(no_args_is_help=True, help="Alerts: which there are, which are on, whether they arrive.")


@metrics_app.command("serve")
def metrics_serve(
    port: Annotated[int, typer.Option(help="Port of /metrics.")] = 9464,
    host: Annotated[str, typer.Option(help="Address to listen on; metrics have no login.")] = "127.0.0.1",
) -> None:
    """Serve metrics of the Dagster instance until told to end."""
    from akidb_pipelines.operations.metrics.serve import serve_metrics

    settings, stop = _prepared(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    serve_metrics(_watched(settings), settings.cedar_sandbox, host, port, stop)


@metrics_app.command("show")
def metrics_show() -> None:
    """Print the metrics once, in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    from akidb_pipelines.operations.facts import open_instance
    from akidb_pipelines.operations.metrics.serve import PipelineCollector

    settings = _prepared()
    with open_instance() as instance:
        registry = CollectorRegistry()
        registry.register(PipelineCollector(instance, _watched(settings)))
        typer.echo(generate_latest(registry).decode(), nl=False)


@alerts_app.command("list")
def alerts_list(as_json: AsJson = False) -> None:
    """Every rule and what is on now, decided anew; exits 1 while a critical one is on, 3 if nothing ever ran. Tells nobody."""
    from akidb_pipelines.operations.alerts.decide import firing
    from akidb_pipelines.operations.alerts.table import load_table
    from akidb_pipelines.operations.facts import collect, open_instance, where

    settings, rules = _prepared(), load_table()
    with open_instance() as instance:
        facts = collect(instance, _watched(settings))
        looked_at, is_used = where(instance), bool(facts.heartbeats or instance.get_runs(limit=1))
    on, known = firing(facts, rules), {check.key for check in facts.checks}
    if as_json:
        print_json({"instance": looked_at, "on": [{**asdict(a), "severity": rules.rules[a.rule].severity} for a in on]})
    else:
        table = Table("", "rule", "severity", "told", "found", "runbook", title=f"{len(on)} alerts are on in {looked_at}")
        for name, rule in rules.rules.items():
            # What was never looked at is not green.
            unknown = (
                "Prometheus only" if rule.prometheus else "not looked at yet" if rule.checks and not known & {*rule.checks} else ""
            )
            mark = f"[dim]{unknown}[/]" if unknown else "[green]off[/]"
            told = [("[red]on[/]", escape(a.told)) for a in on if a.rule == name]
            for shown, text in told or [(mark, "")]:
                table.add_row(shown, name, rule.severity, ", ".join(rules.receivers(name)), text, rule.runbook)
        wide(150).print(table)
    if not is_used:
        typer.echo(f"nothing ever ran in {looked_at}: is it the right one? docs/on-call.md", err=True)
        raise typer.Exit(ExitCode.OUTSIDE)
    if any(rules.rules[a.rule].severity == "critical" for a in on):
        raise typer.Exit(ExitCode.CHECK_FAILED)


@alerts_app.command("test")
def alerts_test() -> None:
    """Trigger and resolve a test alert at every receiver that is configured; exits 3 if one does not take it."""
    from akidb_pipelines.operations.alerts.decide import Alert
    from akidb_pipelines.operations.alerts.ledger import Ledger, tell
    from akidb_pipelines.operations.alerts.sender import open_lines
    from akidb_pipelines.operations.alerts.table import Rule, Table

    lines = open_lines(_prepared())
    rule = Rule(severity="warning", summary="A test; nothing is wrong.", runbook="alerts.md", prometheus=True)
    table = Table(routes={"critical": tuple(lines), "warning": tuple(lines)}, rules={"test": rule})
    on = tell([Alert("test", "akidb-pipelines alerts test", "a test: nothing is wrong")], Ledger({}), table, lines)
    off = tell([], on.ledger, table, lines)
    for line in (*on.lines, *off.lines):
        typer.echo(line)
    for failure in (*on.failures, *off.failures):
        typer.echo(failure, err=True)
    if not lines:
        typer.echo("no receiver is configured: docs/alerts.md", err=True)
    if on.failures or off.failures or not lines:
        raise typer.Exit(ExitCode.OUTSIDE)


@instance_app.command("migrate")
def instance_migrate() -> None:
    """Bring the databases of Dagster and of the catalog to this version's schema; the init step of a deployment."""
    from akidb_pipelines.catalog.catalog import Catalog
    from akidb_pipelines.operations.facts import open_instance

    settings = _prepared()
    with open_instance() as instance:
        instance.upgrade(typer.echo)
        # One drill at a time, whoever starts it.
        instance.event_log_storage.set_concurrency_slots("dr_drill", 1)
    Catalog(settings.catalog_url)
    typer.echo("both databases have this version's schema")


@instance_app.command("prune")
def instance_prune(
    keep: Annotated[int, typer.Option(min=1, help="Newest of each asset partition, check and job that are kept.")] = 10,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete old runs with their events and logs; what an asset partition's or check's newest history rests on stays."""
    from akidb_pipelines.operations.facts import open_instance
    from akidb_pipelines.operations.pruning import prune

    settings = _prepared()
    with open_instance() as instance, transfer_bars() as bars:
        done = prune(instance, _watched(settings), keep, dry_run=dry_run, report=bars)
    if as_json:
        print_json({"dry_run": dry_run, **asdict(done)})
        return
    table = Table("job", "would be deleted" if dry_run else "deleted", title=f"{len(done.deleted)} runs, {done.kept} kept")
    for job, number in sorted(done.by_job.items()):
        table.add_row(escape(job), str(number))
    wide(80).print(table)
    for reason, number in sorted(done.reasons.items()):
        typer.echo(f"{number} kept: {reason}")
    if done.tick_logs:
        typer.echo(f"{done.tick_logs} logs of ticks that are gone{' would be' if dry_run else ''} deleted")


def _prepared() -> Settings:
    from akidb_pipelines.instance import prepare_dagster_home

    settings = Settings.load()
    prepare_dagster_home(settings)
    return settings


def _watched(settings: Settings) -> Watched:
    from akidb_pipelines.definitions import build_defs
    from akidb_pipelines.operations.facts import watched_of

    return watched_of(build_defs(settings).get_repository_def())
