"""`akidb-pipelines cedar`: the sandbox's schema and policies."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from akidb_pipelines.cli.common import AsJson, SandboxOption, print_json
from akidb_pipelines.errors import ExitCode, InputError, OutsideError
from akidb_pipelines.settings import Settings

cedar_app = typer.Typer(no_args_is_help=True, help="The Cedar sandbox: schema and policies.")


@cedar_app.command("check")
def cedar_check(sandbox: SandboxOption = None, as_json: AsJson = False) -> None:
    """Parse the schema and validate every policy against it."""
    from akidb_pipelines.cedar.sandbox import load_sandbox

    found = load_sandbox(sandbox or Settings.load().cedar_sandbox)
    digests = {name: found.sha256(name) for name in found.model.namespaces}
    if as_json:
        print_json({"source": found.source, "policies": [p.id for p in found.policies], "sha256": digests})
        return
    typer.echo(f"{found.source}: {len(found.policies)} policies validate")
    for name, digest in digests.items():
        typer.echo(f"  {name}: {len(found.model.namespace(name).entities)} entity types, digest {digest[:16]}")


@cedar_app.command("copy")
def cedar_copy(folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")]) -> None:
    """Copy the shipped sandbox to where you can change it; AKIDB_CEDAR_SANDBOX names it then."""
    from akidb_pipelines.cedar.sandbox import SHIPPED

    try:
        shutil.copytree(SHIPPED, folder)
    except FileExistsError as error:
        raise InputError(f"{folder} is there already", hint="name another folder, or change that one") from error
    except OSError as error:
        raise OutsideError(f"{folder}: {error}", hint="check permissions and disk") from error
    typer.echo(f"{folder}: set AKIDB_CEDAR_SANDBOX to it; `akidb-pipelines cedar check` tells whether a change is valid")


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
        print_json({"cases": len(table), "allowed": allowed, "disagreements": len(wrong), "decisions": rows})
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
        print_json({"limit_ms": LATENCY_LIMIT_MS, "ok": check.passed, **asdict(found)})
    else:
        for name, part in (("sliced by tenant", found.sliced), ("full scan", found.full_scan)):
            typer.echo(f"{name}: P50 {part.p50_ms:.3f} ms, P99 {part.p99_ms:.3f} ms over {part.requests} requests")
        typer.echo(
            f"{found.policies} policies; both ways agreed {found.agreed} times of {found.full_scan.requests}; limit {LATENCY_LIMIT_MS} ms"
        )
    if not check.passed:
        raise typer.Exit(ExitCode.CHECK_FAILED)
