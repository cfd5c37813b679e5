"""`akidb-pipelines store`: whether a store keeps the promises that the registry rests on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from akidb_pipelines.cli.common import AsJson, err, print_json, wide
from akidb_pipelines.errors import ExitCode
from akidb_pipelines.settings import Settings

store_app = typer.Typer(no_args_is_help=True, help="The object store behind the registry.")


@store_app.command("doctor")
def store_doctor(
    url: Annotated[str, typer.Argument(help="file:///folder, s3://name or oci://namespace/name; default AKIDB_STORE.")] = "",
    as_json: AsJson = False,
) -> None:
    """Prove create-only, compare-and-swap, ranged and verified reads, uploads in parts, clock and permissions; exits 3 if one is missing."""
    from akidb_pipelines.store.doctor import examine_store

    with err.status("trying the store"):
        findings = examine_store(Settings.load(), url)
    ok = all(f.ok for f in findings)
    if as_json:
        print_json({"ok": ok, "findings": [asdict(f) for f in findings]})
    else:
        table = Table("", "area", "promise", "found", "what to do", title="Store doctor")
        for f in findings:
            mark = "[green]ok[/]" if f.ok else "[red]broken[/]"
            table.add_row(mark, f.area, f.promise, escape(f.found), escape(f.to_do))
        wide(140).print(table)
    if not ok:
        raise typer.Exit(ExitCode.OUTSIDE)
