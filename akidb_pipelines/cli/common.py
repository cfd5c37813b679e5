"""What all commands share: consoles, options, JSON, bars."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from akidb_pipelines import progress
from akidb_pipelines.periods import Week

err = Console(stderr=True)
out = Console()

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
WeekOption = Annotated[str | None, typer.Option("--week", help="ISO week (2026-W47) or its Monday; default: the running week.")]
SandboxOption = Annotated[
    Path | None, typer.Option(help="Folder with another sandbox; default AKIDB_CEDAR_SANDBOX or the shipped one.")
]


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def week_of(text: str | None) -> Week:
    """A week as written, or the running one."""
    return Week.parse(text) if text else Week.containing(datetime.now(UTC))


def wide(least: int) -> Console:
    """The console for tables: as wide as the terminal, but not narrower than `least`."""
    return Console(width=max(out.width, least))


@contextmanager
def transfer_bars() -> Iterator[progress.Report]:
    """Bars on standard error, one a file (or stage) that is moved; of a stage without an amount, its name."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err) as bars:
        tasks: dict[str, TaskID] = {}

        def show(told: progress.Progress) -> None:
            if not told.total:
                bars.console.print(told.stage, style="dim", highlight=False)
                return
            if told.stage not in tasks:
                tasks[told.stage] = bars.add_task(told.stage, total=None)
            bars.update(tasks[told.stage], completed=told.done, total=told.total)

        yield show
