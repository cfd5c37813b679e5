"""What every check reports, whichever engine ran it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """Outcome of a rule. `error` means that the rule could not be judged, which is no pass."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    ERROR = "error"


@dataclass(frozen=True)
class Sample:
    """One row that breaks a rule."""

    id: str
    """Key in hex, or an entity's id."""
    found: str


@dataclass(frozen=True)
class RuleResult:
    """One rule on one entity or attribute."""

    rule: str
    entity: str
    attribute: str = ""
    status: Status = Status.PASS
    count: int = 0
    """Rows that break the rule."""
    samples: tuple[Sample, ...] = ()
    message: str = ""
    """What the engine said, where that is more than the samples."""
    sql: str = ""
    """A query that finds the rows, where there is one."""

    @property
    def subject(self) -> str:
        """`User.email`, or `User`."""
        return f"{self.entity}.{self.attribute}" if self.attribute else self.entity


@dataclass(frozen=True)
class CheckReport:
    """A named check: its rules, and what it looked at."""

    check: str
    results: tuple[RuleResult, ...]
    seconds: float
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    """Rows checked, versions, digests: what an auditor asks for."""
    advisory: bool = False
    """Broken rules are news, not faults: they warn and hold nothing back."""

    @property
    def holds_back(self) -> bool:
        """Whether a release must wait."""
        return not self.passed and not self.advisory

    @property
    def passed(self) -> bool:
        """Whether every rule passed."""
        return all(r.status is Status.PASS for r in self.results)

    @property
    def broken(self) -> tuple[RuleResult, ...]:
        """The rules that did not pass."""
        return tuple(r for r in self.results if r.status is not Status.PASS)

    @property
    def summary(self) -> str:
        """One line: `columns: 118 rules passed`, or what broke first."""
        broken = self.broken
        if not broken:
            return f"{len(self.results)} rules passed"
        first = broken[0]
        rows = f" on {first.count} rows" if first.count else ""
        more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        return f"{len(broken)} of {len(self.results)} rules broken: {first.subject} {first.rule}{rows}{more}"


def worst(results: Iterable[RuleResult]) -> list[RuleResult]:
    """Broken rules first, those with most rows at the top."""
    return sorted(results, key=lambda r: (r.status is Status.PASS, -r.count, r.subject))
