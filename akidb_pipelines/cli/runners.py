"""`akidb-pipelines runners`: build CI runner images, archive and boot them, put them into production, withdraw them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from akidb_pipelines.cli.common import AsJson, err, print_json, transfer_bars, week_of, wide
from akidb_pipelines.errors import ExitCode, InputError
from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    # These load numpy and boto3: only when a command runs.
    from collections.abc import Iterable

    from akidb_pipelines.images.runners.foundry import Foundry
    from akidb_pipelines.images.runners.snapshot import Snapshot
    from akidb_pipelines.quality.result import CheckReport

runners_app = typer.Typer(no_args_is_help=True, help="CI runner images: build, archive, boot, promote, roll back.")

RunnerArgument = Annotated[str, typer.Argument(help="A runner of the inventory, such as docker.")]
SnapshotArgument = Annotated[
    str, typer.Argument(help="docker/2026-W48/r1, docker/2026-W48, docker@production, or docker: its latest.")
]
WeekOption = Annotated[str, typer.Option("--week", help="Week (2026-W48); default: the running one.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; stands in the signed metadata.")]


@runners_app.command("build")
def runners_build(runner: RunnerArgument, week: WeekOption = "", as_json: AsJson = False) -> None:
    """Build a runner with Packer and Ansible, which ask every tool for its version. A build that fails leaves nothing behind."""
    foundry, known = _foundry(), _runner(runner)
    with transfer_bars() as report:
        built = foundry.build(known, week_of(week or None), report)
    if as_json:
        print_json(
            {"runner": built.runner, "week": built.week, "image": built.image, "image_id": built.image_id, **_facts(built.facts)}
        )
        return
    table = Table(title=f"{built.runner} {built.week}: {built.image} built in {built.seconds:.0f} s", caption=built.image_id)
    for column in ("tool", "wanted", "found"):
        table.add_column(column)
    for tool in built.facts["tools"]:
        table.add_row(tool["name"], escape(tool["wanted"] or "any"), tool["found"])
    wide(90).print(table)


def _facts(facts: Any) -> dict[str, Any]:
    return {"tools": {t["name"]: t["found"] for t in facts["tools"]}, "packages": len(facts["packages"])}


@runners_app.command("archive")
def runners_archive(runner: RunnerArgument, week: WeekOption = "", as_json: AsJson = False) -> None:
    """Archive what was built: only what no snapshot has yet is stored."""
    foundry, known = _foundry(), _runner(runner)
    with transfer_bars() as report:
        archived = foundry.archive(known, week_of(week or None), report)
    snapshot, counts = archived.snapshot, archived.counts
    if as_json:
        print_json(
            {
                "id": snapshot.id,
                "created": archived.created,
                "root_sha256": snapshot.root_sha256,
                "image_id": snapshot.record.image_id,
                "size_bytes": snapshot.record.size_bytes,
                **asdict(counts),
                "seconds": round(archived.seconds, 3),
            }
        )
        return
    table = Table(title=f"{snapshot.id} {'archived' if archived.created else 'is unchanged: the same image is there already'}")
    for column in ("files", "pieces", "MB", "MB new", "MB stored", "seconds"):
        table.add_column(column, justify="right")
    sizes = (snapshot.record.size_bytes, counts.new_bytes, counts.stored_bytes)
    files = str(len(snapshot.record.files))
    table.add_row(files, f"{counts.pieces:,}", *(f"{size / 1e6:,.1f}" for size in sizes), f"{archived.seconds:.1f}")
    wide(90).print(table)


@runners_app.command("verify")
def runners_verify(snapshot: SnapshotArgument, as_json: AsJson = False) -> None:
    """Run every check that production waits for: restore, load, boot, tools, a CI job, the catalog. Exits 1 if one fails."""
    from akidb_pipelines.images.runners.checklist import CHECKS

    _check(snapshot, CHECKS, as_json)


@runners_app.command("boot-test")
def runners_boot_test(snapshot: SnapshotArgument, as_json: AsJson = False) -> None:
    """Restore a snapshot, start it without network, ask every tool for its version and run a CI job. Exits 1 if one fails."""
    from akidb_pipelines.images.runners.checklist import BOOT_CHECKS

    _check(snapshot, ("restored", *BOOT_CHECKS), as_json)


def _check(text: str, names: Iterable[str], as_json: bool) -> None:
    foundry = _foundry()
    found = foundry.shelf.find(text)
    with transfer_bars() as report:
        reports = list(foundry.run_checks(_runner(found.record.runner), found, names, report))
    ok = not any(r.holds_back for r in reports)
    if as_json:
        checks = [{"check": r.check, "passed": r.passed, "summary": r.summary, "facts": dict(r.facts)} for r in reports]
        print_json({"ok": ok, "id": found.id, "checks": checks})
    else:
        _tell_checks(found.id, reports)
    if not ok:
        raise typer.Exit(ExitCode.CHECK_FAILED)


def _tell_checks(title: str, reports: Iterable[CheckReport]) -> None:
    table = Table("", "check", "found", "seconds", title=title)
    for r in reports:
        mark = "[green]ok[/]" if r.passed else "[yellow]look[/]" if r.advisory else "[red]failed[/]"
        told = "; ".join([r.summary, *(b.message for b in r.broken if b.message)])
        table.add_row(mark, r.check, escape(told), f"{r.seconds:.1f}")
    wide(110).print(table)


@runners_app.command("restore")
def runners_restore(
    snapshot: SnapshotArgument,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="A new file, for `docker load`; of a virtual machine a new folder, which gets its files."),
    ] = None,
    load: Annotated[bool, typer.Option("--load", help="Load it into the runner's engine.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace what is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a snapshot back; every piece and every layer is verified. The image has the id that was built."""
    from akidb_pipelines.files import scratch_folder
    from akidb_pipelines.images.runners.engine import Engine
    from akidb_pipelines.images.runners.restore import restore
    from akidb_pipelines.images.runners.shelf import open_shelf

    if (to is None) == (not load):
        raise InputError("say where to", hint="give --to FILE, or --load")
    settings = Settings.load()
    shelf = open_shelf(settings)
    found = shelf.find(snapshot)
    told: dict[str, Any] = {"id": found.id, "image_id": found.record.image_id}
    with transfer_bars() as report:
        if to:
            done = restore(shelf, found, to, replace=replace, report=report)
            told |= {"target": done.target, "size_bytes": done.size_bytes, "seconds": round(done.seconds, 3)}
        else:
            runner = _runner(found.record.runner)
            if runner.builder != "docker":
                raise InputError(f"{found.id} is no Docker image", hint="give --to FOLDER")
            with scratch_folder(settings.home / "tmp") as folder, closing(Engine(runner.docker_host)) as engine:
                restore(shelf, found, folder / "image.tar", report=report)
                told["target"] = engine.load(folder / "image.tar")
    if as_json:
        print_json(told)
    else:
        typer.echo(f"{found.id} restored: {told['target']}")


@runners_app.command("promote")
def runners_promote(snapshot: SnapshotArgument, reason: ReasonOption = "promoted by hand") -> None:
    """Put a snapshot into production, if its checks passed."""
    foundry = _foundry()
    promoted = foundry.promote(foundry.shelf.find(snapshot), reason)
    typer.echo(f"{promoted.id} is in production")


@runners_app.command("revoke")
def runners_revoke(snapshot: SnapshotArgument, reason: ReasonOption) -> None:
    """Withdraw a snapshot and all that was built on it; production goes back to where it pointed before."""
    foundry = _foundry()
    found = foundry.shelf.find(snapshot)
    gone = foundry.revoke(found, reason)
    for each in gone:
        typer.echo(f"{each.id} is revoked")
    for runner in sorted({s.record.runner for s in gone}):
        now = foundry.shelf.production(runner)
        typer.echo(f"{runner}@production is {now.id if now else 'nothing'}")


@runners_app.command("diff")
def runners_diff(
    before: SnapshotArgument,
    after: Annotated[str, typer.Argument(help="Another snapshot; default: the same runner's latest.")] = "",
    as_json: AsJson = False,
) -> None:
    """Packages and tools that came, went or changed between two snapshots."""
    from akidb_pipelines.images.runners.difference import difference
    from akidb_pipelines.images.runners.shelf import open_shelf

    shelf = open_shelf(Settings.load())
    old = shelf.find(before)
    found = difference(shelf, old, shelf.find(after or old.record.runner))
    if as_json:
        print_json({**asdict(found), "summary": found.summary})
        return
    table = Table(title=f"{found.before} and {found.after}: {found.summary}")
    for column in ("", "what", "name", "before", "after"):
        table.add_column(column, overflow="fold")
    for changed in found.changed:
        table.add_row(changed.what, changed.kind, escape(changed.name), escape(changed.before), escape(changed.after))
    wide(110).print(table)


@runners_app.command("list")
def runners_list(
    runner: Annotated[str, typer.Option(help="Only the snapshots of this runner.")] = "",
    as_json: AsJson = False,
) -> None:
    """Every snapshot there is."""
    from akidb_pipelines.images.runners.shelf import open_shelf

    snapshots = open_shelf(Settings.load()).snapshots(runner)
    if as_json:
        print_json({"snapshots": [_snapshot_json(s) for s in snapshots]})
        return
    table = Table(title=f"{len(snapshots)} snapshots")
    for column in ("snapshot", "state", "built on", "archived", "MB", "MB stored", "tools", "note"):
        table.add_column(column, justify="right" if "MB" in column else "left", overflow="fold")
    for s in snapshots:
        record = s.record
        table.add_row(
            s.id,
            s.state,
            record.built_on or escape(record.base),
            record.finished_at[:16],
            f"{record.size_bytes / 1e6:,.1f}",
            f"{record.counts.stored_bytes / 1e6:,.1f}",
            escape(", ".join(f"{name} {version}" for name, version in record.tools.items())),
            escape(s.revoked or s.pinned),
        )
    wide(130).print(table)
    if not snapshots:
        err.print(
            "none yet: akidb-pipelines lab up runner, then akidb-pipelines runners build docker", highlight=False, soft_wrap=True
        )


def _snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    told = {"id": snapshot.id, "state": snapshot.state, "root_sha256": snapshot.root_sha256, "revoked": snapshot.revoked}
    return {**told, "published_at": snapshot.published_at, **asdict(snapshot.record)}


def _foundry() -> Foundry:
    from akidb_pipelines.images.runners.foundry import open_foundry

    return open_foundry(Settings.load())


def _runner(name: str) -> Any:
    from akidb_pipelines.images.runners.fleet import open_fleet

    return open_fleet(Settings.load()).runner(name)
