"""`akidb-pipelines registry`: make it, look at it, move channels, withdraw releases, replace keys, collect garbage."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from akidb_pipelines.cli.common import AsJson, err, print_json, wide
from akidb_pipelines.errors import ExitCode, InputError
from akidb_pipelines.progress import Progress
from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    # These load tuf and boto3: only when a command runs.
    from akidb_pipelines.store.index import Version
    from akidb_pipelines.store.publisher import Publisher

registry_app = typer.Typer(no_args_is_help=True, help="The artifact registry: signed channels, retention, keys.")

KindOption = Annotated[str, typer.Option("--kind", help="Kind of release.")]
ChannelOption = Annotated[str, typer.Option("--channel", help="latest or stable; of Jetson images golden, of runners production.")]
ReleaseArgument = Annotated[str, typer.Argument(help="A release, such as 2026-W47/r1.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; stands in the signed metadata.")]


@registry_app.command("init")
def registry_init(
    url: Annotated[str, typer.Argument(help="file:///folder, s3://name or oci://namespace/name; default AKIDB_STORE.")] = "",
    anew: Annotated[
        bool,
        typer.Option(
            "--anew", help="Replace its root and all keys: the root key was lost or stolen. Every client needs the new root."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a registry: its areas, its keys, its root. Releases that lie in the store already are adopted. Safe to run again."""
    from akidb_pipelines.store.publisher import open_publisher, prepare_areas
    from akidb_pipelines.store.registry import open_registry
    from akidb_pipelines.store.report import fingerprint

    settings = Settings.load()
    if anew and not url:
        raise InputError("--anew cuts off every client", hint="write the registry's URL out, to show that you mean this one")
    registry = open_registry(settings, url)
    if failed := prepare_areas(settings, registry.url):
        for error in failed[1:]:
            err.print(f"{escape(str(error))}", soft_wrap=True, highlight=False)
        raise failed[0]
    publisher = open_publisher(settings, registry)

    def tell(told: Progress) -> None:
        err.print(escape(told.stage), soft_wrap=True, highlight=False)

    with err.status("making the registry"):
        if anew:
            publisher.start_anew(tell)
        made = anew or publisher.init(tell)
        index = publisher.index()
    root = registry.root() or b""
    told = {
        "url": registry.url,
        "made": made,
        "root": str(registry.own_root),
        "root_fingerprint": fingerprint(root),
        "keys": publisher.keys.where,
        "releases": len(index.entries),
    }
    if as_json:
        print_json(told)
        return
    typer.echo(f"{registry.url}: {'made' if made else 'is a registry already'}, {told['releases']} releases")
    typer.echo(f"  root         {told['root']}")
    typer.echo(f"  fingerprint  {told['root_fingerprint']}")
    typer.echo(f"  keys         {told['keys']}")
    typer.echo(
        "Give root.json to everyone who pulls (AKIDB_REGISTRY_ROOT). Take the key root-*.pem off this machine and keep two copies."
    )


@registry_app.command("status")
def registry_status(as_json: AsJson = False) -> None:
    """Channels, releases and when the metadata ends. Exits 1 when something ends within ten days."""
    from akidb_pipelines.store.registry import open_registry
    from akidb_pipelines.store.report import examine

    report = examine(open_registry(Settings.load()), datetime.now(UTC))
    if as_json:
        print_json(
            {
                "url": report.url,
                "root_fingerprint": report.root_fingerprint,
                "heads": [{**asdict(h), "version": str(h.version), "high": str(h.high)} for h in report.heads],
                "releases": [{**asdict(e), "version": str(e.version)} for e in report.entries],
                "expires": {role: moment.isoformat() for role, moment in report.expires.items()},
                "warnings": list(report.warnings),
            }
        )
    else:
        table = Table(title=f"Registry {report.url}")
        for column in ("kind", "channel", "release", "sequence", "moved at", "why"):
            table.add_column(column)
        for h in report.heads:
            table.add_row(h.kind, h.channel, str(h.version), str(h.sequence), h.moved_at, escape(h.reason))
        wide(120).print(table)
        releases = Table(title="Releases")
        for column in ("kind", "release", "MB", "published at", "manifest", "note"):
            releases.add_column(column)
        for e in report.entries:
            releases.add_row(
                e.kind, str(e.version), f"{e.size_bytes / 1e6:.1f}", e.published_at, e.manifest_sha256[:16], escape(e.note)
            )
        wide(120).print(releases)
        ends = ", ".join(f"{role} {moment:%Y-%m-%d}" for role, moment in report.expires.items())
        typer.echo(f"metadata ends: {ends or 'nothing signed was found'}")
        typer.echo(f"root fingerprint: {report.root_fingerprint or 'none yet'}")
        for warning in report.warnings:
            err.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True, highlight=False)
    if report.warnings:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@registry_app.command("promote")
def registry_promote(
    release: ReleaseArgument, reason: ReasonOption = "", channel: ChannelOption = "stable", kind: KindOption = "fixtures"
) -> None:
    """Move a channel forward to a release."""
    head = _publisher().promote(kind, _version(release), _channel(channel), reason or f"promoted {release}")
    typer.echo(f"{kind} {channel} now points at {head.version} (sequence {head.sequence})")


@registry_app.command("rollback")
def registry_rollback(
    reason: ReasonOption,
    channel: ChannelOption = "latest",
    to: Annotated[str, typer.Option("--to", help="Release to go back to; default: the one before.")] = "",
    kind: KindOption = "fixtures",
) -> None:
    """Move a channel back. Clients follow, because it is a new, signed sequence number; the next new release moves it forward again."""
    head = _publisher().roll_back(kind, _channel(channel), _version(to) if to else None, reason)
    typer.echo(f"{kind} {channel} now points at {head.version} (sequence {head.sequence})")


@registry_app.command("revoke")
def registry_revoke(release: ReleaseArgument, reason: ReasonOption, kind: KindOption = "fixtures") -> None:
    """Withdraw a release: nobody can pull it any more; channels that point at it go back to where they pointed before."""
    from akidb_pipelines.store.index import CHANNELS, GOLDEN

    index = _publisher().revoke(kind, _version(release), reason)
    typer.echo(f"{kind} {release} is revoked")
    for channel in CHANNELS:
        head = index.head(kind, channel)
        if head is None and channel == GOLDEN:
            continue  # fixtures have none
        typer.echo(f"  {channel} points at {f'{head.version} (sequence {head.sequence})' if head else 'nothing'}")


@registry_app.command("pin")
def registry_pin(release: ReleaseArgument, reason: ReasonOption, kind: KindOption = "fixtures") -> None:
    """Keep a release for ever."""
    _publisher().pin(kind, _version(release), reason)
    typer.echo(f"{kind} {release} is kept for ever")


@registry_app.command("unpin")
def registry_unpin(release: ReleaseArgument, kind: KindOption = "fixtures") -> None:
    """Keep a release no longer than retention does."""
    _publisher().pin(kind, _version(release), "")
    typer.echo(f"{kind} {release} is kept as long as retention says")


@registry_app.command("refresh")
def registry_refresh() -> None:
    """Sign the metadata anew, so that it lasts its whole time again. Publishing does so by itself."""
    state = _publisher().refresh()
    typer.echo("metadata ends: " + ", ".join(f"{role} {moment:%Y-%m-%d}" for role, moment in state.expiries().items()))


@registry_app.command("rotate-key")
def registry_rotate_key(roles: Annotated[list[str], typer.Argument(help="Of root, targets, snapshot, timestamp.")]) -> None:
    """Replace the keys of roles: after a leak, after a loss, or when someone who had them leaves. Needs the root key. Roles whose keys are
    all lost must be named together."""
    from akidb_pipelines.store.keys import ROLES

    if unknown := [role for role in roles if role not in ROLES]:
        raise InputError(f"there is no role {unknown[0]!r}", hint=f"choose among {', '.join(ROLES)}")
    publisher = _publisher()
    for role, key in publisher.rotate_keys(tuple(dict.fromkeys(roles))).items():
        typer.echo(f"role {role} is signed with key {key[:8]} from now on; it lies in {publisher.keys.where}")
    typer.echo("Clients follow by themselves. Back the new keys up, and destroy the old ones.")


@registry_app.command("gc")
def registry_gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what nothing keeps: retire releases outside retention, and a week later (images: 14 days) remove them with their contents."""
    from akidb_pipelines.store.retention import collect

    publisher = _publisher()
    with err.status("looking"):
        plan = collect(publisher, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "removed_bytes": plan.removed_bytes, "decisions": [asdict(d) for d in plan.decisions]})
        return
    table = Table(title=f"{'Would free' if dry_run else 'Freed'} {plan.removed_bytes / 1e6:.1f} MB")
    for column in ("action", "what", "why", "MB"):
        table.add_column(column, overflow="fold")
    for d in plan.decisions:
        table.add_row(d.action, escape(d.what), escape(d.why), f"{d.size_bytes / 1e6:.1f}" if d.size_bytes else "")
    wide(120).print(table)


def _publisher() -> Publisher:
    from akidb_pipelines.store.publisher import open_publisher

    return open_publisher(Settings.load())


def _version(text: str) -> Version:
    from akidb_pipelines.store.index import Version

    return Version.parse(text)


def _channel(name: str) -> str:
    from akidb_pipelines.store.index import known_channel

    return known_channel(name)
