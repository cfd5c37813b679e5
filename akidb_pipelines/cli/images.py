"""`akidb-pipelines images`: capture drives, restore and reflash them, look after the images."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from akidb_pipelines.cli.common import AsJson, err, print_json, transfer_bars, wide
from akidb_pipelines.errors import ExitCode, InputError
from akidb_pipelines.periods import Month
from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    # These load numpy and boto3: only when a command runs.
    from akidb_pipelines.images.capture import Captured
    from akidb_pipelines.images.drives import Drive
    from akidb_pipelines.images.image import Image
    from akidb_pipelines.images.reflash import Flashed, ReflashPlan
    from akidb_pipelines.images.studio import Studio

images_app = typer.Typer(no_args_is_help=True, help="Images of drives: capture, restore, reflash.")

ImageArgument = Annotated[
    str, typer.Argument(help="jetson-a/2026-11/r1, jetson-a/2026-11, jetson-a@golden, or jetson-a: its latest.")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; stands in the signed metadata.")]


@images_app.command("capture")
def images_capture(
    device: Annotated[str, typer.Option(help="A device of the inventory (AKIDB_INVENTORY).")] = "",
    source: Annotated[str, typer.Option(help="Or a file or drive of this machine, or ssh://USER@HOST:PORT/dev/...")] = "",
    name: Annotated[str, typer.Option(help="Whose images it is one of; default: the device's name.")] = "",
    period: Annotated[str, typer.Option(help="Month (2026-11); default: the running one.")] = "",
    freeze: Annotated[
        list[str] | None, typer.Option(help="With --source: a file system on it to freeze; may be given more than once.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Capture a drive: only blocks that no image has yet are stored. Killed, it goes on where it was when it is run again."""
    from akidb_pipelines.images.capture import CaptureRequest
    from akidb_pipelines.images.studio import device_drive, device_request, source_drive
    from akidb_pipelines.machines.inventory import open_inventory

    if bool(device) == bool(source) or (source and not name):
        raise InputError("say what to capture", hint="give --device NAME, or --source PATH with --name NAME")
    if device and freeze:
        raise InputError(
            "--freeze goes with --source", hint="for a device, the inventory's akidb_freeze_mounts says what is frozen"
        )
    month = Month.parse(period) if period else Month.containing(datetime.now(UTC))
    settings = Settings.load()
    if device:
        inventory = open_inventory(settings)
        known = inventory.device(device)
        drive: Drive = device_drive(inventory, known)
        request = device_request(known, name or device, month)
    else:
        drive, request = source_drive(source), CaptureRequest(name, month, freeze_mounts=tuple(freeze or ()))
    studio = _studio(settings)
    with transfer_bars() as report:
        captured = studio.capture(drive, request, report)
    if as_json:
        print_json(_captured_json(captured))
        return
    _tell_capture(captured)


def _captured_json(captured: Captured) -> dict[str, Any]:
    image = captured.image
    return {
        "id": image.id,
        "created": captured.created,
        "root_sha256": image.root_sha256,
        "mode": image.record.mode,
        "mode_reason": image.record.mode_reason,
        "parent": image.record.parent,
        "size_bytes": image.record.size_bytes,
        **asdict(captured.counts),
        "seconds": round(captured.seconds, 3),
    }


def _tell_capture(captured: Captured) -> None:
    image, counts = captured.image, captured.counts
    table = Table(title=f"{image.id} {'captured' if captured.created else 'is unchanged: the same blocks are there already'}")
    for column in ("blocks", "changed", "MB read", "MB new", "MB stored", "MB over the wire", "seconds", "mode"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    sizes = (counts.read_bytes, counts.new_bytes, counts.stored_bytes, counts.sent_bytes)
    table.add_row(
        f"{counts.blocks:,}",
        f"{counts.changed_blocks:,}",
        *(f"{size / 1e6:,.1f}" for size in sizes),
        f"{captured.seconds:.1f}",
        image.record.mode,
    )
    table.caption = f"root {image.root_sha256}\n{image.record.mode}: {escape(image.record.mode_reason)}"
    wide(110).print(table)


@images_app.command("restore")
def images_restore(
    image: ImageArgument,
    to: Annotated[Path, typer.Option("--to", help="A new file, or a drive of this machine that nothing has mounted.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace the file, or what the drive holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a whole image; every block is verified. A file appears when it is whole."""
    from akidb_pipelines.images.library import open_library
    from akidb_pipelines.images.restore import restore

    library = open_library(Settings.load())
    with transfer_bars() as report:
        found = library.find(image)
        done = restore(library, found, to, replace=replace, report=report)
    if as_json:
        print_json({"id": found.id, **asdict(done)})
    else:
        typer.echo(f"{found.id} restored to {done.target}: {done.written_bytes / 1e6:,.1f} MB written, {done.seconds:.1f} s")


@images_app.command("reflash")
def images_reflash(
    device: Annotated[str, typer.Option(help="A device of the inventory.")],
    image: Annotated[str, typer.Option(help="golden, or an image such as jetson-a/2026-11/r1.")] = "golden",
    serial: Annotated[
        str, typer.Option(help="The drive's serial number, confirmed by you, where it is not the inventory's or the image's.")
    ] = "",
    only_plan: Annotated[bool, typer.Option("--plan", help="Only say what would be written.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a device's drive hold an image: only what differs is written, then all of it is read again and checked."""
    from akidb_pipelines.images.reflash import refused
    from akidb_pipelines.images.studio import device_reflash
    from akidb_pipelines.machines.inventory import open_inventory

    if as_json and not (yes or only_plan):
        raise InputError("--json asks nothing", hint="say --yes to write, or --plan to see what would be written")
    settings = Settings.load()
    inventory = open_inventory(settings)
    known = inventory.device(device)
    studio = _studio(settings)
    with transfer_bars() as report:
        planned = studio.plan(device_reflash(studio, inventory, known, image, serial), report)
    if only_plan:
        if as_json:
            print_json(asdict(planned))
        else:
            _tell_plan(planned)
        if planned.refusals:
            raise typer.Exit(ExitCode.CHECK_FAILED)
        return
    if planned.refusals:
        raise refused(planned)
    if not as_json:
        _tell_plan(planned)
    if not yes and typer.prompt(f"Type {device} to write this", err=True) != device:
        raise InputError(f"{device} was not typed; nothing was written", hint="say --yes to be asked nothing")
    with transfer_bars() as report:
        done, kept = studio.reflash(device_reflash(studio, inventory, known, planned.image, serial), report)
    _tell_flashed(done, kept, as_json=as_json)


def _tell_plan(plan: ReflashPlan) -> None:
    table = Table(title=f"{plan.image} onto {plan.drive} (serial number {plan.drive_serial or 'unknown'})")
    for column in ("blocks", "the same", "to write", "MB to write", "to zero", "MB to zero", "seconds expected"):
        table.add_column(column, justify="right")
    table.add_row(
        f"{plan.blocks:,}",
        f"{plan.same_blocks:,}",
        f"{plan.write_blocks:,}",
        f"{plan.write_bytes / 1e6:,.1f}",
        f"{plan.zero_blocks:,}",
        f"{plan.zero_bytes / 1e6:,.1f}",
        f"{plan.expected_seconds:.0f}",
    )
    wide(110).print(table)
    for refusal in plan.refusals:
        err.print(f"[bold red]refused:[/] {escape(refusal.reason)}", soft_wrap=True, highlight=False)
        err.print(f"  what to do: {escape(refusal.to_do)}", soft_wrap=True, highlight=False)


def _tell_flashed(done: Flashed, kept: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"ok": done.ok, **asdict(done), "report": str(kept)})
    else:
        table = Table("", "what", "found", title=f"{done.plan.device} holds {done.plan.image}", caption=f"report: {kept}")
        for checked in done.checks:
            table.add_row("[green]ok[/]" if checked.ok else "[red]wrong[/]", escape(checked.what), escape(checked.found))
        wide(110).print(table)
        typer.echo(f"{done.written_bytes / 1e6:,.1f} MB written, {done.zeroed_bytes / 1e6:,.1f} MB zeroed, {done.seconds:.1f} s")
        if done.note:
            err.print(escape(done.note), soft_wrap=True, highlight=False)
    if not done.ok:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@images_app.command("verify")
def images_verify(
    image: ImageArgument,
    everything: Annotated[bool, typer.Option("--all", help="Every block, not a sample of 256 MiB.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read an image's blocks back from the store and compare their digests."""
    from akidb_pipelines.images.library import open_library
    from akidb_pipelines.images.restore import verify

    library = open_library(Settings.load())
    found = library.find(image)
    with transfer_bars() as report:
        verified = verify(library, found, everything=everything, report=report)
    if as_json:
        print_json({"ok": not verified.problems, **asdict(verified)})
    else:
        for problem in verified.problems:
            err.print(f"[bold red]wrong:[/] {escape(problem)}", soft_wrap=True, highlight=False)
        rate = verified.read_bytes / max(verified.seconds, 0.001) / 1e6
        typer.echo(
            f"{found.id}: {verified.blocks:,} of {verified.of_blocks:,} blocks read back, {verified.seconds:.1f} s, {rate:.0f} MB/s"
        )
    if verified.problems:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@images_app.command("check")
def images_check(image: ImageArgument, as_json: AsJson = False) -> None:
    """Run the checks that an image must pass before it may become golden; exits 1 if one does not."""
    studio = _studio(Settings.load())
    found = studio.library.find(image)
    with transfer_bars() as report:
        reports = list(studio.run_checks(found, report=lambda _: report))
    ok = not any(r.holds_back for r in reports)
    if as_json:
        checks = [{"check": r.check, "passed": r.passed, "summary": r.summary, "facts": dict(r.facts)} for r in reports]
        print_json({"ok": ok, "id": found.id, "checks": checks})
    else:
        table = Table("", "check", "found", "seconds", title=found.id)
        for r in reports:
            mark = "[green]ok[/]" if r.passed else "[yellow]look[/]" if r.advisory else "[red]failed[/]"
            told = "; ".join([r.summary, *(b.message for b in r.broken if b.message)])
            table.add_row(mark, r.check, escape(told), f"{r.seconds:.1f}")
        wide(110).print(table)
    if not ok:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@images_app.command("list")
def images_list(
    name: Annotated[str, typer.Option(help="Only the images of this name.")] = "",
    as_json: AsJson = False,
) -> None:
    """Every image there is."""
    from akidb_pipelines.images.library import open_library

    images = open_library(Settings.load()).images(name)
    if as_json:
        print_json({"images": [_image_json(image) for image in images]})
        return
    table = Table(title=f"{len(images)} images")
    for column in ("image", "state", "mode", "captured", "GB", "MB new", "MB stored", "board", "note"):
        table.add_column(column, justify="right" if "B" in column else "left", overflow="fold")
    for image in images:
        record = image.record
        table.add_row(
            image.id,
            image.state,
            record.mode,
            record.finished_at[:16],
            f"{record.size_bytes / 1e9:,.2f}",
            f"{record.counts.new_bytes / 1e6:,.1f}",
            f"{record.counts.stored_bytes / 1e6:,.1f}",
            escape(record.board.model),
            escape(image.revoked or image.pinned),
        )
    wide(130).print(table)


def _image_json(image: Image) -> dict[str, Any]:
    told = {
        "id": image.id,
        "state": image.state,
        "root_sha256": image.root_sha256,
        "pinned": image.pinned,
        "revoked": image.revoked,
    }
    return {**told, "published_at": image.published_at, **asdict(image.record)}


@images_app.command("promote")
def images_promote(image: ImageArgument, reason: ReasonOption = "promoted by hand") -> None:
    """Make an image golden: captured frozen or offline, all checks passed. It is kept for ever from then on."""
    studio = _studio(Settings.load())
    promoted = studio.promote(studio.library.find(image), reason)
    typer.echo(f"{promoted.id} is golden")


@images_app.command("revoke")
def images_revoke(image: ImageArgument, reason: ReasonOption) -> None:
    """Withdraw an image: nothing is reflashed with it any more."""
    studio = _studio(Settings.load())
    revoked = studio.revoke(studio.library.find(image), reason)
    typer.echo(f"{revoked.id} is revoked")


@images_app.command("prune")
def images_prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove packs that no image needs, and pack anew what is mostly not needed. Images themselves go by `registry gc`: after 12 months."""
    from akidb_pipelines.images.library import open_library
    from akidb_pipelines.images.prune import prune

    with transfer_bars() as report:
        pruned = prune(open_library(Settings.load()), dry_run=dry_run, report=report)
    if as_json:
        print_json({"dry_run": dry_run, **asdict(pruned)})
        return
    table = Table(title=f"{'Would free' if dry_run else 'Freed'} {pruned.removed_bytes / 1e6:.1f} MB")
    for column in ("action", "pack", "why", "MB"):
        table.add_column(column, overflow="fold", justify="right" if column == "MB" else "left")
    for sweep in pruned.sweeps:
        table.add_row(sweep.action, sweep.pack.name[:16], sweep.why, f"{sweep.pack.size_bytes / 1e6:.1f}")
    wide(110).print(table)


def _studio(settings: Settings) -> Studio:
    from akidb_pipelines.images.studio import open_studio

    return open_studio(settings)
