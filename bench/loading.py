"""Loading the code location, against importing Dagster itself."""

from __future__ import annotations

from collections.abc import Iterator

from bench.measure import Line, measure


def lines() -> Iterator[Line]:
    """Run the comparison."""
    ours = measure("from akidb_pipelines.definitions import defs; defs()", runs=5)
    dagster = measure("import dagster; dagster.Definitions", runs=5)
    ratio = ours.cpu_s / dagster.cpu_s
    told = f"{ours.cpu_s:.2f} s of CPU against {dagster.cpu_s:.2f} s"
    yield Line("code location loaded / import dagster", f"{ratio:.2f}x", "<= 1.5x", ratio <= 1.5, told)
