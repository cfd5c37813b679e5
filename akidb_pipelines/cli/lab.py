"""`akidb-pipelines lab`: the stand-ins on this machine for the machines that pipelines work on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from akidb_pipelines.cli.common import AsJson, err, out, print_json, transfer_bars, wide
from akidb_pipelines.errors import InputError
from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    from akidb_pipelines.lab.jetson import JetsonLab, LabHost
    from akidb_pipelines.lab.runner import RunnerLab
    from akidb_pipelines.lab.swarm.lab import SwarmLab

KNOWN = ("jetson", "runner", "swarm", "billing")

lab_app = typer.Typer(
    no_args_is_help=True,
    help="Stand-ins on this machine: Jetsons with drives and sshd, a Docker engine for CI runners, a Swarm to lose nodes of, a bill.",
)
What = Annotated[str, typer.Argument(help=f"Which lab: {', '.join(KNOWN)}.")]


@lab_app.command("up")
def lab_up(what: What = "jetson", as_json: AsJson = False) -> None:
    """Make and start what the inventory describes; what runs already goes on."""
    if what == "runner":
        runner = _runner_lab()
        with err.status("lab") as status:
            runner.up(lambda told: status.update(told.stage))
        _show_runner(runner, as_json)
        if not as_json:
            out.print("Try:", "  akidb-pipelines runners build docker", sep="\n", soft_wrap=True, highlight=False)
        return
    if what == "swarm":
        _swarm_up(as_json)
        return
    if what == "billing":
        _billing_up(as_json)
        return
    lab = _lab(what)
    with err.status("lab") as status:
        hosts = lab.up(lambda told: status.update(told.stage))
    _show(hosts, as_json)
    if missing := [host.name for host in hosts if not host.running]:
        err.print(f"not started: {', '.join(missing)}; the drive is the root of its sshd, which needs root", highlight=False)
    if not as_json:
        out.print("Try:", *_examples(hosts), sep="\n  ", soft_wrap=True, highlight=False)


@lab_app.command("down")
def lab_down(what: What = "jetson") -> None:
    """Stop it and remove everything it made, drives included."""
    if what == "runner":
        _runner_lab().down()
    elif what == "swarm":
        with err.status("lab") as status:
            _swarm_lab().down(lambda told: status.update(told.stage))
    elif what == "billing":
        _billing_down()
    else:
        _lab(what).down()


@lab_app.command("status")
def lab_status(what: What = "jetson", as_json: AsJson = False) -> None:
    """Which hosts run, and where their drives are."""
    if what == "runner":
        _show_runner(_runner_lab(), as_json)
    elif what == "swarm":
        _show_swarm(_swarm_lab(), as_json)
    elif what == "billing":
        _show_billing(as_json)
    else:
        _show(_lab(what).status(), as_json)


def _lab(what: str) -> JetsonLab:
    from akidb_pipelines.lab.jetson import JetsonLab
    from akidb_pipelines.machines.inventory import open_inventory

    if what not in KNOWN:
        raise InputError(f"there is no lab {what!r}", hint=f"known are: {', '.join(KNOWN)}")
    settings = Settings.load()
    return JetsonLab(settings.home / "lab" / what, open_inventory(settings))


def _runner_lab() -> RunnerLab:
    from akidb_pipelines.lab.runner import RunnerLab

    settings = Settings.load()
    return RunnerLab(settings.home / "lab" / "runner", settings.cache)


def _show_runner(lab: RunnerLab, as_json: bool) -> None:
    if as_json:
        print_json({"engine": lab.url, "running": lab.running()})
    else:
        out.print(f"Docker engine {lab.url}: {'running' if lab.running() else 'not running'}", soft_wrap=True, highlight=False)


def _billing_up(as_json: bool) -> None:
    from datetime import UTC, datetime, timedelta

    from akidb_pipelines.lab.billing import bill_folder, refresh

    with transfer_bars() as report:
        refresh(bill_folder(Settings.load()), datetime.now(UTC).date() - timedelta(days=1), report=report)
    _show_billing(as_json)
    if not as_json:
        out.print("Try:", "  akidb-pipelines costs review", sep="\n", soft_wrap=True, highlight=False)


def _billing_down() -> None:
    """The files; what was taken in stays in the ledger, marked as made up."""
    import shutil

    from akidb_pipelines.lab.billing import bill_folder

    shutil.rmtree(bill_folder(Settings.load()), ignore_errors=True)


def _show_billing(as_json: bool) -> None:
    from akidb_pipelines.lab.billing import bill_folder

    folder = bill_folder(Settings.load())
    files = sorted(folder.rglob("*.csv.gz"))
    if as_json:
        print_json({"folder": str(folder), "files": len(files), "size_bytes": sum(f.stat().st_size for f in files)})
    else:
        out.print(f"{len(files)} billing files in {folder}", soft_wrap=True, highlight=False)


def _swarm_lab() -> SwarmLab:
    from akidb_pipelines.lab.swarm.open import open_swarm

    return open_swarm(Settings.load())


def _swarm_up(as_json: bool) -> None:
    from akidb_pipelines.lab.swarm.open import bring_up

    with err.status("lab") as status:
        lab = bring_up(Settings.load(), lambda told: status.update(told.stage))
    _show_swarm(lab, as_json)
    if not as_json:
        out.print("Try:", "  akidb-pipelines drills run --scenario node_power_off", sep="\n", soft_wrap=True, highlight=False)


def _show_swarm(lab: SwarmLab, as_json: bool) -> None:
    from akidb_pipelines.lab.swarm.target import LabTarget

    made = lab.swarm_is_made()
    nodes = LabTarget(lab).nodes() if made else []
    if as_json:
        print_json({"running": lab.running(), "nodes": [{**asdict(n), "service": lab.service_url(n.name)} for n in nodes]})
        return
    table = Table("node", "ready", "manager", "service", title="Swarm lab" if made else "Swarm lab: not up")
    for n in nodes:
        manager = "leader" if n.leader else "reachable" if n.reachable else "-"
        table.add_row(n.name, "[green]yes[/]" if n.ready else "[red]no[/]", manager, lab.service_url(n.name))
    wide(80).print(table)


def _show(hosts: Iterable[LabHost], as_json: bool) -> None:
    if as_json:
        print_json({"hosts": [asdict(host) for host in hosts]})
        return
    table = Table("host", "port", "drive", "mounted", "running", title="Jetson lab")
    for host in hosts:
        running = "[green]yes[/]" if host.running else "[red]no[/]"
        table.add_row(host.name, str(host.port), escape(str(host.drive or "-")), "yes" if host.mounted else "no", running)
    wide(100).print(table)


def _examples(hosts: Iterable[LabHost]) -> list[str]:
    command = "akidb-pipelines images capture --device {0} --name {0} --period 2026-11"
    return [command.format(host.name) for host in hosts if host.running and host.drive]
