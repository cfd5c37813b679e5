"""What a dump is held to: it was restored, it is what its record says, it is sound, and it is young enough.

`columns` and `cedar_entities` are those of the catalog's rows (quality.catalogue); the others are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from akidb_pipelines.backups.checklist import RPO_S
from akidb_pipelines.backups.dump import Dump, Record
from akidb_pipelines.backups.sqlite import Examination
from akidb_pipelines.quality.result import CheckReport, RuleResult, Sample, Status

_ENTITY = "Backup"


def check_restorable(record: Record, found: Examination, seconds: float) -> CheckReport:
    """It was fetched, unpacked and read, and has the bytes that were dumped.

    Args:
        record: of the dump.
        found: in what was restored.
        seconds: that restoring took.
    """
    results = (
        _rule(
            "has the digest that was dumped", found.sha256 == record.sha256, f"{found.sha256}, dumped was {record.sha256}", "sha256"
        ),
        _rule("can be read", found.content is not None, "; ".join(found.problems[:1])),
    )
    return CheckReport("restorable", results, seconds, {"sha256": found.sha256, "size_bytes": record.size_bytes})


def check_integrity(found: Examination) -> CheckReport:
    """SQLite's own check of pages, indexes and constraints."""
    return CheckReport("integrity", (_samples("integrity_check finds nothing", found.problems),), 0.0)


def check_foreign_keys(found: Examination) -> CheckReport:
    """Every row has its parent; integrity_check does not look."""
    return CheckReport("foreign_keys", (_samples("every row has its parent", found.orphans),), 0.0)


def check_row_counts(record: Record, found: Examination, before: Dump | None) -> CheckReport:
    """The rows that were dumped are there, and no table of the dump before has become empty.

    Args:
        record: of the dump.
        found: in what was restored.
        before: the dump before it, if there is one.
    """
    rows: Mapping[str, int] = found.content.rows if found.content else {}
    results = [
        _rule(f"{table} has its rows", rows.get(table) == count, f"{rows.get(table, 'no such table')}, dumped were {count}", "rows")
        for table, count in record.rows.items()
    ]
    if found.content and found.content.canary != record.canary:
        results.append(_rule("has its canary", False, f"{found.content.canary}, dumped was {record.canary}", "canary"))
    for table, count in before.record.rows.items() if before else ():
        if count and not rows.get(table):
            told = f"{before.id if before else ''} had {count} rows of it: was that on purpose?"
            results.append(_rule(f"{table} has not become empty", False, told, "rows"))
    facts: dict[str, str | int | float] = {"tables": len(record.rows), "rows": sum(record.rows.values())}
    if record.canary is not None:
        facts["canary"] = record.canary
    return CheckReport("row_counts", tuple(results), 0.0, facts)


def check_age(dump: Dump, now: datetime, rpo_s: float = RPO_S) -> CheckReport:
    """Whether it is younger than the recovery point objective."""
    age = dump.age_s(now)
    told = f"its snapshot is {age / 3600:.1f} h old, {rpo_s / 3600:.0f} h are allowed"
    result = _rule("younger than the recovery point objective", 0 <= age <= rpo_s, told, "snapshot_at")
    return CheckReport("age", (result,), 0.0, {"age_s": round(age), "rpo_target_s": round(rpo_s)}, advisory=True)


def _samples(rule: str, found: tuple[str, ...]) -> RuleResult:
    if not found:
        return RuleResult(rule, _ENTITY)
    samples = tuple(Sample(str(n), text) for n, text in enumerate(found, 1))
    return RuleResult(rule, _ENTITY, "", Status.FAIL, len(found), samples, message="; ".join(found[:3]))


def _rule(rule: str, ok: bool, found: str, attribute: str = "") -> RuleResult:
    return RuleResult(rule, _ENTITY, attribute) if ok else RuleResult(rule, _ENTITY, attribute, Status.FAIL, 1, message=found)
