"""How far a piece of long work is, told to whoever shows it: bars in a terminal, log lines in Dagster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A stage, and how much of it is done."""

    stage: str
    done: int = 0
    total: int = 0
    """0 when unknown."""


Report = Callable[[Progress], None]
