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
    in_bytes: bool = False
    """Whether the amounts are bytes, rather than things."""

    @property
    def amount(self) -> str:
        """`3 of 10`, `13.1 of 65.0 MB`, or nothing when it is not known."""
        if not self.total:
            return ""
        if self.in_bytes:
            return f"{self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB"
        return f"{self.done:,} of {self.total:,}"


Report = Callable[[Progress], None]
