"""`akidb-pipelines fixtures`: build, verify, pull, compare."""

from __future__ import annotations

from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from akidb_pipelines.cli.common import AsJson, WeekOption, err, print_json, transfer_bars, week_of, wide
from akidb_pipelines.errors import ExitCode, InputError, IntegrityError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.periods import Week
from akidb_pipelines.settings import Settings

fixtures_app = typer.Typer(no_args_is_help=True, help="SQLite test databases: build, verify, pull, compare.")


@fixtures_app.command("build")
def fixtures_build(
    out: Annotated[Path, typer.Option(help="Folder for the result.")],
    week: WeekOption = None,
    profile: Annotated[str, typer.Option(help="ci, standard or load.")] = "ci",
    scale: Annotated[str, typer.Option(help="Factor on users, documents and audit rows, such as 0.1 or 2.")] = "1",
    tenant: Annotated[list[str] | None, typer.Option(help="Only this tenant; may be given more than once.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default AKIDB_SEED.")] = None,
    as_json: AsJson = False,
) -> None:
    """Build one fixture into a folder; nothing is released."""
    from akidb_pipelines import progress
    from akidb_pipelines.cedar.sandbox import load_sandbox
    from akidb_pipelines.fixtures.build import build_fixture
    from akidb_pipelines.fixtures.migrations import load_migrations
    from akidb_pipelines.fixtures.profiles import profile_named
    from akidb_pipelines.fixtures.world import TENANT_SLUGS, Request

    settings = Settings.load()
    request = Request(
        week_of(week),
        profile_named(profile),
        settings.seed if seed is None else seed,
        _fraction(scale),
        tuple(t for t in TENANT_SLUGS if t in tenant) + tuple(t for t in tenant if t not in TENANT_SLUGS)
        if tenant
        else TENANT_SLUGS,
    )
    sandbox, migrations = load_sandbox(settings.cedar_sandbox), load_migrations(settings.migrations)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=err) as bars:
        task = bars.add_task("building", total=None)

        def show(p: progress.Progress) -> None:
            bars.update(task, description=p.stage, completed=p.done, total=p.total or None)

        built = build_fixture(request, sandbox, migrations, out, report=show)
    manifest = built.manifest
    if as_json:
        print_json({"folder": str(out), "seconds": round(built.seconds, 3), "manifest": asdict(manifest)})
        return
    table = Table(title=f"{manifest.week} {manifest.profile} in {built.seconds:.1f} s")
    for column in ("file", "MB", "sha256"):
        table.add_column(column, no_wrap=True)
    for file in manifest.files:
        table.add_row(str(out / file.name), f"{file.size_bytes / 1e6:.1f}", file.sha256)
    wide(140).print(table)


def _fraction(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"--scale {text!r} is no number", hint="write 0.1, 1/10 or 2") from None


@fixtures_app.command("verify")
def fixtures_verify(
    path: Annotated[Path, typer.Argument(help="A folder, a .db or a manifest.")],
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build it again and compare the bytes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prove that files are what their manifest says, and with --rebuild that the manifest is what the generator makes."""
    from akidb_pipelines.cedar.sandbox import load_sandbox
    from akidb_pipelines.fixtures.migrations import load_migrations
    from akidb_pipelines.fixtures.verify import find_manifests, verify

    settings = Settings.load()
    with scratch_folder(settings.home / "tmp") as work:
        source = (load_sandbox(settings.cedar_sandbox), load_migrations(settings.migrations), work) if rebuild else None
        verdicts = [verify(m, source) for m in find_manifests(path)]
    if as_json:
        print_json({"ok": not any(v.problems for v in verdicts), "fixtures": [asdict(v) for v in verdicts]})
    for v in () if as_json else verdicts:
        good = f"{v.week} {v.profile}: {v.files} files as the manifest says" + (", rebuilt byte for byte" if v.rebuilt else "")
        typer.echo(good if not v.problems else f"{v.week} {v.profile}: " + "; ".join(v.problems))
    if any(v.problems for v in verdicts):
        raise typer.Exit(ExitCode.CHECK_FAILED)


@fixtures_app.command("check")
def fixtures_check(
    path: Annotated[Path, typer.Argument(help="A folder, a .db or a manifest.")],
    full: Annotated[bool, typer.Option("--full", help="Every audit row through Cedar, also of very long logs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the checks of a release on fixtures that were built or pulled."""
    from akidb_pipelines.cedar.sandbox import load_sandbox
    from akidb_pipelines.fixtures.verify import find_manifests
    from akidb_pipelines.fixtures.weekly import check_fixture

    sandbox = load_sandbox(Settings.load().cedar_sandbox)
    with err.status("checking"):
        reports = [(m.name, r) for m in find_manifests(path) for r in check_fixture(m, sandbox, full=full)]
    if as_json:
        print_json({"ok": not any(r.holds_back for _, r in reports), "checks": [{"fixture": n, **asdict(r)} for n, r in reports]})
    for name, report in () if as_json else reports:
        typer.echo(f"{name.removesuffix('.manifest.json')} {report.check}: {report.summary} ({report.seconds:.1f} s)")
    if any(r.holds_back for _, r in reports):
        raise typer.Exit(ExitCode.CHECK_FAILED)


@fixtures_app.command("pull")
def fixtures_pull(
    dest: Annotated[Path, typer.Option(help="Folder to pull into.")],
    week: Annotated[str | None, typer.Option(help="ISO week or its Monday; takes the newest revision that is not revoked.")] = None,
    channel: Annotated[str, typer.Option(help="Channel to follow when no week is given: latest or stable.")] = "latest",
    manifest_sha256: Annotated[
        str,
        typer.Option(help="Digest of a release's manifest: exactly these bytes; works without network when they are in the cache."),
    ] = "",
    root: Annotated[Path | None, typer.Option(help="The registry's root.json; default AKIDB_REGISTRY_ROOT.")] = None,
    as_json: AsJson = False,
) -> None:
    """Pull a release from the registry; signatures and every file are verified before the first file gets its name."""
    from akidb_pipelines.fixtures.checklist import KIND
    from akidb_pipelines.store.pull import Puller, Wanted
    from akidb_pipelines.store.registry import open_registry

    settings = Settings.load()
    wanted = Wanted(KIND, channel, Week.parse(week).iso if week else "", manifest_sha256.removeprefix("sha256:"))
    with transfer_bars() as report:
        pulled = Puller(open_registry(settings, root=root), settings.cache).pull(wanted, dest, report)
    if as_json:
        print_json(
            {
                "release": pulled.id,
                "manifest_sha256": pulled.manifest.sha256,
                "files": [str(p) for p in pulled.paths],
                "fetched_bytes": pulled.fetched_bytes,
                "offline": pulled.offline,
            }
        )
        return
    if pulled.offline:
        err.print(f"[yellow]not asked whether it was revoked:[/] {escape(pulled.offline)}", soft_wrap=True, highlight=False)
    size = pulled.manifest.size_bytes / 1e6
    typer.echo(
        f"{pulled.id}: {len(pulled.paths)} files, {size:.1f} MB ({pulled.fetched_bytes / 1e6:.1f} fetched), verified, in {dest}"
    )
    typer.echo(f"  manifest sha256:{pulled.manifest.sha256}")


@fixtures_app.command("list")
def fixtures_list(as_json: AsJson = False) -> None:
    """What is released."""
    from akidb_pipelines.fixtures.checklist import KIND
    from akidb_pipelines.fixtures.weekly import profiles_of
    from akidb_pipelines.store.registry import open_registry

    registry = open_registry(Settings.load())
    found = []
    for entry in registry.index().of(KIND):
        try:
            found.append((entry, registry.release(entry)))
        except IntegrityError as error:
            # One damaged release must not hide the others.
            err.print(f"[yellow]{escape(str(error))}[/]", soft_wrap=True, highlight=False)
    if as_json:
        print_json(
            {
                "releases": [
                    {"id": r.id, "manifest_sha256": r.manifest.sha256, "files": len(r.manifest.files), "revoked": e.revoked}
                    for e, r in found
                ]
            }
        )
        return
    for e, r in found:
        note = f"  revoked: {e.revoked}" if e.revoked else ""
        typer.echo(
            f"{r.id}  {', '.join(profiles_of(r.manifest))}  {r.manifest.size_bytes / 1e6:.1f} MB  {r.manifest.sha256[:16]}{note}"
        )


@fixtures_app.command("drift")
def fixtures_drift(
    migrations: Annotated[Path | None, typer.Option(help="Migrations folder of an AkiDB checkout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the sandbox schema with the database's DDL. Additive drift is a warning; breaking drift exits 1."""
    from akidb_pipelines.cedar.sandbox import load_sandbox
    from akidb_pipelines.fixtures.migrations import load_migrations
    from akidb_pipelines.fixtures.schema_drift import migration_drift

    settings = Settings.load()
    source = load_migrations(migrations or settings.migrations)
    with scratch_folder(settings.home / "tmp") as work:
        report = migration_drift(source, load_sandbox(settings.cedar_sandbox), work)
    if as_json:
        print_json({"breaking": report.breaking, "source": source.source, "findings": [asdict(f) for f in report.findings]})
    else:
        table = Table(title=f"Cedar sandbox against {source.source} migrations")
        for column in ("severity", "kind", "subject", "Cedar says", "database says", "policies", "suggested edit"):
            table.add_column(column, overflow="fold")
        for f in report.findings:
            table.add_row(f.severity, f.kind, f.subject, f.expected, f.found, ", ".join(f.affected_policies), f.suggestion)
        wide(140).print(table)
    if report.breaking:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@fixtures_app.command("negative")
def fixtures_negative(
    out: Annotated[Path, typer.Option(help="Folder for the result.")], week: WeekOption = None, as_json: AsJson = False
) -> None:
    """Write labelled databases with one broken rule each, to test AkiDB's own validation."""
    from akidb_pipelines.cedar.sandbox import load_sandbox
    from akidb_pipelines.fixtures.migrations import load_migrations
    from akidb_pipelines.fixtures.negative import NEGATIVES, build_negatives

    settings = Settings.load()
    paths = build_negatives(
        week_of(week), settings.seed, load_sandbox(settings.cedar_sandbox), load_migrations(settings.migrations), out
    )
    if as_json:
        print_json({"fixtures": [{"file": str(p), **asdict(n)} for p, n in zip(paths, NEGATIVES, strict=True)]})
        return
    for path, negative in zip(paths, NEGATIVES, strict=True):
        typer.echo(f"{path}: {negative.breaks} (found by {negative.found_by})")
