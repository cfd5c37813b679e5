"""The `akidb-pipelines` command. Thin: reads arguments, calls the library, prints what it returns.

`--json` prints one JSON object on standard output and nothing else there; progress and messages go to standard error. Exit codes:
0 ok, 1 a check failed, 2 unusable input, 3 something outside is missing.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from akidb_pipelines.errors import ExitCode, InputError, PipelineError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.periods import Week
from akidb_pipelines.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Workflows that keep AkiDB 2.0's development infrastructure alive.",
)
fixtures_app = typer.Typer(no_args_is_help=True, help="SQLite test databases: build, verify, pull, compare.")
cedar_app = typer.Typer(no_args_is_help=True, help="The Cedar sandbox: schema and policies.")
hooks_app = typer.Typer(no_args_is_help=True, help="Git hooks.")
app.add_typer(fixtures_app, name="fixtures")
app.add_typer(cedar_app, name="cedar")
app.add_typer(hooks_app, name="hooks")

_err = Console(stderr=True)
_out = Console()

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
WeekOption = Annotated[str | None, typer.Option("--week", help="ISO week (2026-W47) or its Monday; default: the running week.")]
SandboxOption = Annotated[
    Path | None, typer.Option(help="Folder with another sandbox; default AKIDB_CEDAR_SANDBOX or the shipped one.")
]


def main() -> None:
    """Entry point: errors that a user can act on become a message and an exit code; anything else is a bug and keeps its trace."""
    try:
        app()
    except PipelineError as error:
        _err.print(f"[bold red]error:[/] {escape(error.message)}", soft_wrap=True, highlight=False)
        if error.hint:
            _err.print(f"  what to do: {escape(error.hint)}", soft_wrap=True, highlight=False)
        sys.exit(error.exit_code)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def _week(text: str | None) -> Week:
    return Week.parse(text) if text else Week.containing(datetime.now(UTC))


# --- the main job


@app.command()
def run(
    week: WeekOption = None,
    profile: Annotated[list[str] | None, typer.Option(help="ci, standard or load; may be given more than once.")] = None,
) -> None:
    """Build, check and release a week's fixtures through Dagster; ends with a table."""
    from akidb_pipelines.run import run_table, run_week

    done = run_week(Settings.load(), _week(week), profile or (), _err)
    (_out if _out.is_terminal else Console(width=max(_out.width, 120))).print(run_table(done))


@app.command("prepare-home", hidden=True)
def prepare_home() -> None:
    """Prepare DAGSTER_HOME and print it; `make ui` calls this."""
    from akidb_pipelines.instance import prepare_dagster_home

    typer.echo(prepare_dagster_home(Settings.load()))


# --- fixtures


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
        _week(week),
        profile_named(profile),
        settings.seed if seed is None else seed,
        _fraction(scale),
        tuple(t for t in TENANT_SLUGS if t in tenant) + tuple(t for t in tenant if t not in TENANT_SLUGS)
        if tenant
        else TENANT_SLUGS,
    )
    sandbox, migrations = load_sandbox(settings.cedar_sandbox), load_migrations(settings.migrations)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=_err) as bars:
        task = bars.add_task("building", total=None)

        def show(p: progress.Progress) -> None:
            bars.update(task, description=p.stage, completed=p.done, total=p.total or None)

        built = build_fixture(request, sandbox, migrations, out, report=show)
    manifest = built.manifest
    if as_json:
        _print_json({"folder": str(out), "seconds": round(built.seconds, 3), "manifest": asdict(manifest)})
        return
    table = Table(title=f"{manifest.week} {manifest.profile} in {built.seconds:.1f} s")
    for column in ("file", "MB", "sha256"):
        table.add_column(column, no_wrap=True)
    for file in manifest.files:
        table.add_row(str(out / file.name), f"{file.size_bytes / 1e6:.1f}", file.sha256)
    Console(width=max(_out.width, 140)).print(table)


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
        _print_json({"ok": not any(v.problems for v in verdicts), "fixtures": [asdict(v) for v in verdicts]})
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
    with _err.status("checking"):
        reports = [(m.name, r) for m in find_manifests(path) for r in check_fixture(m, sandbox, full=full)]
    if as_json:
        _print_json({"ok": not any(r.holds_back for _, r in reports), "checks": [{"fixture": n, **asdict(r)} for n, r in reports]})
    for name, report in () if as_json else reports:
        typer.echo(f"{name.removesuffix('.manifest.json')} {report.check}: {report.summary} ({report.seconds:.1f} s)")
    if any(r.holds_back for _, r in reports):
        raise typer.Exit(ExitCode.CHECK_FAILED)


@fixtures_app.command("pull")
def fixtures_pull(
    dest: Annotated[Path, typer.Option(help="Folder to pull into.")],
    week: Annotated[str | None, typer.Option(help="ISO week or its Monday; takes the newest revision.")] = None,
    channel: Annotated[str, typer.Option(help="Channel to follow when no week is given.")] = "latest",
    as_json: AsJson = False,
) -> None:
    """Pull a release from the artifact store; every file is verified before it gets its name."""
    from akidb_pipelines.fixtures.weekly import open_releases

    releases = open_releases(Settings.load())
    if week:
        wanted = Week.parse(week)
        release = releases.newest(wanted.iso)
        if release is None:
            have = ", ".join(releases.names()[-5:]) or "none"
            raise InputError(f"{wanted} was never released; the newest weeks are {have}", hint="pull one of these, or backfill it")
    elif channel == "latest":
        release = releases.latest()
    else:
        raise InputError(f"there is no channel {channel!r}", hint="the channel is latest")
    with _err.status("pulling") as status:
        paths = releases.pull(release, dest, lambda name: status.update(f"pulling {name}"))
    if as_json:
        _print_json({"release": release.id, "manifest_sha256": release.manifest.sha256, "files": [str(p) for p in paths]})
        return
    typer.echo(f"{release.id}: {len(paths)} files, {release.manifest.size_bytes / 1e6:.1f} MB, verified, in {dest}")


@fixtures_app.command("list")
def fixtures_list(as_json: AsJson = False) -> None:
    """What is released."""
    from akidb_pipelines.fixtures.weekly import open_releases, profiles_of
    from akidb_pipelines.store.releases import all_releases

    found = list(all_releases(open_releases(Settings.load())))
    if as_json:
        _print_json(
            {"releases": [{"id": r.id, "manifest_sha256": r.manifest.sha256, "files": len(r.manifest.files)} for r in found]}
        )
        return
    for r in found:
        typer.echo(f"{r.id}  {', '.join(profiles_of(r.manifest))}  {r.manifest.size_bytes / 1e6:.1f} MB  {r.manifest.sha256[:16]}")


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
        _print_json({"breaking": report.breaking, "source": source.source, "findings": [asdict(f) for f in report.findings]})
    else:
        table = Table(title=f"Cedar sandbox against {source.source} migrations")
        for column in ("severity", "kind", "subject", "Cedar says", "database says", "policies", "suggested edit"):
            table.add_column(column, overflow="fold")
        for f in report.findings:
            table.add_row(f.severity, f.kind, f.subject, f.expected, f.found, ", ".join(f.affected_policies), f.suggestion)
        Console(width=max(_out.width, 140)).print(table)
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
        _week(week), settings.seed, load_sandbox(settings.cedar_sandbox), load_migrations(settings.migrations), out
    )
    if as_json:
        _print_json({"fixtures": [{"file": str(p), **asdict(n)} for p, n in zip(paths, NEGATIVES, strict=True)]})
        return
    for path, negative in zip(paths, NEGATIVES, strict=True):
        typer.echo(f"{path}: {negative.breaks} (found by {negative.found_by})")


# --- cedar


@cedar_app.command("check")
def cedar_check(sandbox: SandboxOption = None, as_json: AsJson = False) -> None:
    """Parse the schema and validate every policy against it."""
    from akidb_pipelines.cedar.sandbox import load_sandbox

    found = load_sandbox(sandbox or Settings.load().cedar_sandbox)
    digests = {name: found.sha256(name) for name in found.model.namespaces}
    if as_json:
        _print_json({"source": found.source, "policies": [p.id for p in found.policies], "sha256": digests})
        return
    typer.echo(f"{found.source}: {len(found.policies)} policies validate")
    for name, digest in digests.items():
        typer.echo(f"  {name}: {len(found.model.namespace(name).entities)} entity types, digest {digest[:16]}")


@cedar_app.command("matrix")
def cedar_matrix(sandbox: SandboxOption = None, as_json: AsJson = False) -> None:
    """Decide every role, status, action, own and other tenant, and compare with AkiDB's own role model."""
    from akidb_pipelines.cedar.authorize import disagreements, role_table
    from akidb_pipelines.cedar.sandbox import load_sandbox

    table = role_table(load_sandbox(sandbox or Settings.load().cedar_sandbox))
    wrong = list(disagreements(table))
    allowed = sum(d.allowed for d in table.values())
    if as_json:
        rows = [{**asdict(c), **asdict(d)} for c, d in table.items()]
        _print_json({"cases": len(table), "allowed": allowed, "disagreements": len(wrong), "decisions": rows})
    else:
        typer.echo(f"{len(table)} cases, {allowed} allowed, {len(wrong)} unlike AkiDB's role model")
        for case, decision in wrong:
            typer.echo(f"  {case}: {'allowed' if decision.allowed else 'denied'} by {decision.policy}")
    if wrong:
        raise typer.Exit(ExitCode.CHECK_FAILED)


@cedar_app.command("latency")
def cedar_latency(
    policies: Annotated[int, typer.Option(min=1, help="How many policies.")] = 10_000,
    sandbox: SandboxOption = None,
    as_json: AsJson = False,
) -> None:
    """Measure a decision with many policies: by full scan, and sliced by tenant. Exits 1 when the sliced P99 is not below 5 ms."""
    from akidb_pipelines.cedar.sandbox import load_sandbox
    from akidb_pipelines.quality.matrix import LATENCY_LIMIT_MS, run_policy_latency

    check, found = run_policy_latency(load_sandbox(sandbox or Settings.load().cedar_sandbox), policies=policies)
    if as_json:
        _print_json({"limit_ms": LATENCY_LIMIT_MS, "ok": check.passed, **asdict(found)})
    else:
        for name, part in (("sliced by tenant", found.sliced), ("full scan", found.full_scan)):
            typer.echo(f"{name}: P50 {part.p50_ms:.3f} ms, P99 {part.p99_ms:.3f} ms over {part.requests} requests")
        typer.echo(f"{found.policies} policies; both ways agreed on {found.agreed} requests; limit {LATENCY_LIMIT_MS} ms")
    if not check.passed:
        raise typer.Exit(ExitCode.CHECK_FAILED)


# --- machine and repository


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Go through the onboarding checklist; exits 3 when something is missing."""
    from akidb_pipelines.doctor import State, examine

    lines = list(examine(Settings.load()))
    if as_json:
        _print_json({"ok": all(line.state is not State.MISSING for line in lines), "lines": [asdict(line) for line in lines]})
    else:
        table = Table("", "what", "found", "what to do", title="Onboarding checklist")
        colours = {State.OK: "green", State.MISSING: "red", State.NOT_CONFIGURED: "yellow"}
        for line in lines:
            table.add_row(f"[{colours[line.state]}]{line.state}[/]", line.what, escape(line.found), escape(line.to_do))
        Console(width=max(_out.width, 120)).print(table)
    if any(line.state is State.MISSING for line in lines):
        raise typer.Exit(ExitCode.OUTSIDE)


@hooks_app.command("install")
def hooks_install(repository: Annotated[Path, typer.Argument(help="A git repository.")] = Path()) -> None:
    """Install the pre-commit hook: lint, typecheck, Cedar validation."""
    from akidb_pipelines.hooks import install

    typer.echo(f"installed {install(repository)}")
