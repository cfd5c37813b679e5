"""What a drill reports: values, JSON for machines, Markdown for people. Words as in NIST SP 800-34: activation, recovery, reconstitution.

RTO and RPO are objectives; RTA and RPA are what was measured. A lab's report says so on its first line: it is no proof for staging.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from akidb_pipelines.catalog.catalog import CataloguedDrill
from akidb_pipelines.drills.scenarios import Phase, Verdict
from akidb_pipelines.errors import IntegrityError

FORMAT = 1
ACTIVATION = (Phase.PREFLIGHT, Phase.BASELINE, Phase.INJECT, Phase.DETECT)
RECOVERY = (Phase.RESCHEDULE, Phase.EVICT, Phase.REBUILD, Phase.JOIN, Phase.RESTORE, Phase.VERIFY)


def stage_of(phase: str) -> str:
    """The stage of NIST SP 800-34 that a phase is part of."""
    if phase in ACTIVATION:
        return "activation"
    return "recovery" if phase in RECOVERY else "reconstitution"


@dataclass(frozen=True)
class PhaseRecord:
    """How a phase went."""

    phase: str
    started_at: str
    finished_at: str
    seconds: float
    deadline_s: float
    status: str
    """`running`, `ok`, `failed`, `stopped`, `skipped`."""
    told: str = ""


@dataclass(frozen=True)
class Criterion:
    """Something that decides on the verdict."""

    name: str
    ok: bool
    found: str


@dataclass(frozen=True)
class UndoRecord:
    """What was put right at the end, or found right already."""

    action: str
    node: str
    ok: bool
    found: str


@dataclass(frozen=True)
class BackupUsed:
    """The backup that was brought back."""

    id: str
    sha256: str
    snapshot_at: str
    tier: str
    refused: tuple[str, ...] = ()
    """Those that were tried before and refused, with why."""


@dataclass(frozen=True)
class StateUsed:
    """Terraform's state before, and after it was brought back."""

    serial: int
    lineage: str
    resources: int
    serial_after: int | None = None
    lineage_after: str = ""
    plan_exit_code: int | None = None
    """Of `terraform plan -detailed-exitcode`: 0 clean, 2 drift, 1 broken. None where terraform was not run. A stale state gives 0, too."""


@dataclass(frozen=True)
class Report:
    """All there is to say of a drill."""

    drill_id: str
    quarter: str
    operator: str
    scenario: str
    summary: str
    target: str
    environment: str
    cluster_id: str
    nodes: tuple[str, ...]
    dry_run: bool
    versions: Mapping[str, str]
    started_at: str
    finished_at: str
    fault_at: str
    verified_at: str
    rto_target_s: int
    rpo_target_s: int
    rta_s: float | None
    """From the fault until what was restored was verified."""
    rpa_s: float | None
    """From the backup's snapshot (not its upload) to the fault."""
    service_outage_s: float | None
    """As a prober outside saw it."""
    rows_acknowledged: int
    rows_lost: Mapping[str, int]
    """Acknowledged rows that what was restored does not have, by table; empty where nothing was measured."""
    rows_missing: int
    """Of those, rows that were acknowledged before the backup's snapshot: a backup must have them."""
    backup: BackupUsed | None
    terraform: StateUsed | None
    quorum_before: str
    quorum_after: str
    phases: tuple[PhaseRecord, ...]
    criteria: tuple[Criterion, ...]
    undo: tuple[UndoRecord, ...]
    findings: tuple[str, ...]
    corrective_actions: tuple[str, ...]
    verdict: str
    reason: str
    expected: str
    as_expected: bool
    """Whether it ended as its scenario must. Green is only what passed, except in a self-test."""
    format: int = field(default=FORMAT)

    def to_json(self) -> bytes:
        """Stable bytes."""
        return (json.dumps(asdict(self), sort_keys=True, indent=2) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Of the stable bytes."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def criterion(self, name: str) -> Criterion | None:
        """One criterion, if it was judged; of several nodes the one that is not met."""
        return min((c for c in self.criteria if c.name == name), key=lambda c: c.ok, default=None)

    def catalogued(self) -> CataloguedDrill:
        """As the catalog keeps it."""
        return CataloguedDrill(
            drill_id=self.drill_id,
            quarter=self.quarter,
            scenario=self.scenario,
            target=self.target,
            verdict=self.verdict,
            operator=self.operator,
            dry_run=self.dry_run,
            rto_target_s=self.rto_target_s,
            rpo_target_s=self.rpo_target_s,
            rta_ms=_ms(self.rta_s),
            rpa_ms=_ms(self.rpa_s),
            outage_ms=_ms(self.service_outage_s),
            rows_lost=sum(self.rows_lost.values()) if self.rows_lost else None,
            backup_id=self.backup.id if self.backup else None,
            report_sha256=self.sha256,
            started_at=self.started_at,
            finished_at=self.finished_at,
        )


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else max(0, round(seconds * 1000))


def parse_report(data: bytes, source: str) -> Report:
    """Read a report's bytes; `source` names it in messages.

    Raises:
        IntegrityError: it is none.
    """
    try:
        raw: dict[str, Any] = json.loads(data)
        if raw["format"] != FORMAT:
            raise IntegrityError(f"{source}: format {raw['format']}, this version reads {FORMAT}", hint="upgrade akidb-pipelines")
        for name, kind in (("phases", PhaseRecord), ("criteria", Criterion), ("undo", UndoRecord)):
            raw[name] = tuple(kind(**each) for each in raw[name])
        for name in ("nodes", "findings", "corrective_actions"):
            raw[name] = tuple(raw[name])
        if raw["backup"]:
            raw["backup"] = BackupUsed(**{**raw["backup"], "refused": tuple(raw["backup"]["refused"])})
        if raw["terraform"]:
            raw["terraform"] = StateUsed(**raw["terraform"])
        return Report(**raw)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{source}: no report of a drill: {error!r}", hint="use the copy in cold storage") from error


def markdown(report: Report, picture: str = "timeline.png") -> str:
    """The report for people; `picture` is where its timeline lies, empty for none."""
    kind = "**Lab: no proof for staging.**" if report.target == "lab" else f"**{report.environment}.**"
    verdict = report.verdict.upper().replace("_", " ")
    parts = [
        f"# DR drill {report.drill_id}: {verdict}",
        f"{kind} {report.summary} Outcome: {report.reason}.",
        f"![Phases over time]({picture})" if picture else "",
        _table(("objective", "target", "actual", ""), _objectives(report)),
        "## What decided",
        _table(("criterion", "", "found"), [(c.name, "met" if c.ok else "**not met**", c.found) for c in report.criteria]),
        "## What was done",
        _table(("", ""), _facts(report)),
        "## Phases",
        _table(
            ("stage", "phase", "began", "seconds", "deadline", "", "found"),
            [
                (stage_of(p.phase), p.phase, p.started_at[11:23], f"{p.seconds:.1f}", f"{p.deadline_s:.0f} s", p.status, p.told)
                for p in report.phases
            ],
        ),
        "## Put right afterwards",
        _table(("", "node", "", "found"), [(u.action, u.node, "ok" if u.ok else "**failed**", u.found) for u in report.undo]),
        "## Findings",
        "\n".join(f"- {f}" for f in report.findings) or "None.",
        "## Corrective actions",
        "\n".join(f"- [ ] {a}" for a in report.corrective_actions) or "None.",
        f"Report's digest (SHA-256 of report.json): `{report.sha256}`",
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _objectives(report: Report) -> list[tuple[str, ...]]:
    def row(name: str, target: float, actual: float | None) -> tuple[str, ...]:
        if actual is None:
            return name, _long(target), "not measured", ""
        return name, _long(target), _long(actual), "met" if actual <= target else "**not met**"

    lost = ", ".join(f"{count} of {table}" for table, count in report.rows_lost.items()) or "not measured"
    outage = "not measured" if report.service_outage_s is None else _long(report.service_outage_s)
    return [
        row("recovery time (RTO, RTA)", report.rto_target_s, report.rta_s),
        row("recovery point (RPO, RPA)", report.rpo_target_s, report.rpa_s),
        ("service outage, seen from outside", "", outage, ""),
        ("acknowledged rows lost", "", lost, f"of {report.rows_acknowledged} acknowledged"),
    ]


def _facts(report: Report) -> list[tuple[str, str]]:
    rows = [
        ("scenario", report.scenario),
        ("operator", report.operator),
        ("quarter", report.quarter),
        ("cluster", report.cluster_id),
        ("nodes lost", ", ".join(report.nodes) or "none"),
        ("began", report.started_at),
        ("fault", report.fault_at or "none"),
        ("verified", report.verified_at or "never"),
        ("ended", report.finished_at),
        ("quorum before, after", f"{report.quorum_before or 'not measured'}; {report.quorum_after or 'not measured'}"),
    ]
    if backup := report.backup:
        rows += [("backup", f"{backup.id}, snapshot {backup.snapshot_at}, {backup.tier}"), ("its digest", f"`{backup.sha256}`")]
        rows += [("refused", text) for text in backup.refused]
    if state := report.terraform:
        after = "not measured" if state.serial_after is None else f"serial {state.serial_after}, lineage {state.lineage_after}"
        rows.append(("Terraform's state", f"serial {state.serial}, lineage {state.lineage}; after: {after}"))
    return [*rows, *((f"version of {name}", version) for name, version in report.versions.items())]


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    if not rows:
        return "None."
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def _long(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def expected_verdict(verdict: str, failed: list[str], expected: Verdict, fails: str) -> bool:
    """Whether a drill ended as its scenario must: with that verdict, and, where it must fail, for that reason alone."""
    return verdict == expected and (expected is not Verdict.FAILED or failed == [fails])
