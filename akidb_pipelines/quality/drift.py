"""Check `schema_drift`: where the sandbox schema and the database's own DDL no longer say the same.

A finding is *breaking* when Cedar would refuse, or misread, what the database holds or may hold; *additive* when one side merely
knows more; a *note* when both agree on the data but only one enforces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from time import perf_counter

from sqlalchemy import Connection, Inspector, create_engine, inspect

from akidb_pipelines.cedar.entities import quote
from akidb_pipelines.cedar.model import Attribute, EntityType
from akidb_pipelines.cedar.sandbox import PRODUCT, Sandbox
from akidb_pipelines.quality.database import read_only_url, require_database
from akidb_pipelines.quality.fingerprint import BOOKKEEPING, Change, allowed_range, allowed_values, unique_sets
from akidb_pipelines.quality.result import CheckReport, RuleResult, Sample, Status
from akidb_pipelines.quality.suites import STORED_TYPES, literals


class Severity(StrEnum):
    """How much a finding matters."""

    BREAKING = "breaking"
    ADDITIVE = "additive"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One difference."""

    severity: Severity
    kind: str
    subject: str
    """`User.role`, a table, or what a fingerprint calls it."""
    expected: str
    """What Cedar says, or what was there before."""
    found: str
    """What the database says, or what is there now."""
    affected_rows: int = 0
    affected_policies: tuple[str, ...] = ()
    suggestion: str = ""

    @property
    def key(self) -> str:
        """What makes it the same finding next week."""
        return f"{self.kind} {self.subject}: {self.expected} / {self.found}"


@dataclass(frozen=True)
class DriftReport(CheckReport):
    """The check `schema_drift` with its findings, the worst first. Holds a release back only when breaking; notes pass."""

    findings: tuple[Finding, ...] = ()

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of one severity."""
        return tuple(f for f in self.findings if f.severity is severity)

    @property
    def breaking(self) -> bool:
        """Whether anything is breaking."""
        return bool(self.of(Severity.BREAKING))

    @property
    def markdown(self) -> str:
        """The findings as a table."""
        return markdown_table(self.findings)

    @property
    def summary(self) -> str:
        """`1 breaking, 3 additive: User.role enum values, ...`"""
        told = [f for f in self.findings if f.severity is not Severity.NOTE]
        if not told:
            return "the sandbox and the database agree"
        counts = ", ".join(f"{n} {s}" for s in Severity if (n := len(self.of(s))))
        return f"{counts}: " + "; ".join(f"{f.subject} {f.kind}" for f in told)


def drift_report(findings: Iterable[Finding], seconds: float) -> DriftReport:
    """A report of these findings."""
    rank = list(Severity)
    found = tuple(sorted(findings, key=lambda f: (rank.index(f.severity), f.kind, f.subject)))
    counts: dict[str, str | int | float] = {str(s): sum(f.severity is s for f in found) for s in Severity}
    advisory = not counts[Severity.BREAKING]
    return DriftReport("schema_drift", tuple(_as_rule(f) for f in found), seconds, counts, advisory, found)


def _as_rule(finding: Finding) -> RuleResult:
    entity, _, attribute = finding.subject.partition(".")
    return RuleResult(
        f"{finding.severity}: {finding.kind}",
        entity,
        attribute,
        Status.PASS if finding.severity is Severity.NOTE else Status.FAIL,
        finding.affected_rows,
        (Sample(finding.expected, finding.found),),
        finding.suggestion,
    )


def compare_with_cedar(database: Path, sandbox: Sandbox) -> DriftReport:
    """Compare a database's DDL with namespace AkiDB.

    Raises:
        InputError: the file is no SQLite database.
    """
    started = perf_counter()
    require_database(database)
    engine = create_engine(read_only_url(database))
    try:
        with engine.connect() as connection:
            findings = list(_Comparison(connection, sandbox).run())
    finally:
        engine.dispose()
    return drift_report(findings, perf_counter() - started)


class _Comparison:
    def __init__(self, connection: Connection, sandbox: Sandbox) -> None:
        self._connection = connection
        self._database: Inspector = inspect(connection)
        self._sandbox = sandbox
        self._namespace = sandbox.model.namespace(PRODUCT)
        self._tables = set(self._database.get_table_names())

    def run(self) -> Iterator[Finding]:
        mapped = set()
        converted: list[str] = []
        for entity in self._namespace.tables:
            mapped.add(entity.table)
            if entity.table not in self._tables:
                policies = self._policies(entity=entity.qualified)
                told = f"add the table, or remove the entity type {entity.name} from the sandbox"
                yield Finding(
                    Severity.BREAKING, "missing table", entity.name, str(entity.table), "no such table", 0, policies, told
                )
                continue
            yield from self._entity(entity)
            converted += [f"{entity.table}.{a.column}" for a in entity.attributes if a.format == "rfc3339-micros-offset"]
        for table in sorted(self._tables - mapped - {BOOKKEEPING}):
            told = "give it an entity type with @table, if authorization should know it"
            yield Finding(Severity.ADDITIVE, "unmapped table", table, "no entity type", "a table", self._rows(table), (), told)
        if converted:
            listed = f"{len(converted)} columns of {len({c.split('.')[0] for c in converted})} tables"
            told = "nothing: the entity mapping converts it"
            yield Finding(Severity.NOTE, "time format", listed, "datetime ending in Z", "+00:00, which Cedar refuses", 0, (), told)

    def _entity(self, entity: EntityType) -> Iterator[Finding]:
        table = str(entity.table)
        columns = {c["name"]: c for c in self._database.get_columns(table)}
        for name in sorted(set(columns) - set(entity.columns)):
            told = f"add an attribute to {entity.name}, or list the column in its @opaque"
            found = f"{table}.{name} {columns[name]['type']}"
            yield Finding(Severity.ADDITIVE, "unmapped column", f"{entity.name}.{name}", "no attribute", found, 0, (), told)
        for attribute in entity.attributes:
            if attribute.column and attribute.column not in columns:
                severity = Severity.BREAKING if attribute.required else Severity.ADDITIVE
                yield self._finding(
                    severity,
                    "missing column",
                    entity,
                    attribute,
                    f"{attribute.type}, {'required' if attribute.required else 'optional'}",
                    f"no column {table}.{attribute.column}",
                    f"add the column {table}.{attribute.column}, or drop the attribute from the sandbox",
                    self._rows(table) if attribute.required else 0,
                )
            elif attribute.column:
                column = columns[attribute.column]
                yield from self._attribute(entity, attribute, str(column["type"]), nullable=bool(column["nullable"]))
        wanted = [entity.unique] if entity.unique else []
        wanted += [(a.column,) for a in entity.attributes if a.unique and a.column in columns]
        there = unique_sets(self._database, table)
        for unique in wanted:
            if tuple(sorted(unique)) not in there:
                told = f"add UNIQUE ({', '.join(unique)}) to {table}"
                yield Finding(
                    Severity.ADDITIVE, "uniqueness", entity.name, f"unique ({', '.join(unique)})", "not enforced", 0, (), told
                )

    def _attribute(self, entity: EntityType, attribute: Attribute, stored: str, *, nullable: bool) -> Iterator[Finding]:
        table, column = str(entity.table), str(attribute.column)
        expected = STORED_TYPES.get(attribute.type.name) if attribute.type.kind == "primitive" else None
        if expected and stored != expected:
            told = f"make {table}.{column} {expected}, or change the attribute's type"
            yield self._finding(Severity.BREAKING, "type", entity, attribute, str(attribute.type), stored, told, self._rows(table))
        if attribute.required and nullable:
            nulls = self._count(table, f"{quote(column)} IS NULL")
            severity = Severity.BREAKING if nulls else Severity.NOTE
            told = f"make {table}.{column} NOT NULL, or the attribute optional"
            yield self._finding(severity, "nullability", entity, attribute, "required", "may be NULL", told, nulls)
        elif not attribute.required and not nullable:
            told = "make the attribute required"
            yield self._finding(Severity.NOTE, "nullability", entity, attribute, "optional", "NOT NULL", told)
        if attribute.type.kind == "enumeration":
            yield from self._values(entity, attribute)
        if attribute.type.kind == "entity":
            target = str(self._namespace.entities[attribute.type.name].table)
            keys = self._database.get_foreign_keys(table)
            if not any(k["constrained_columns"] == [column] and k["referred_table"] == target for k in keys):
                told = f"add FOREIGN KEY ({column}) REFERENCES {target}"
                yield self._finding(
                    Severity.NOTE, "unenforced reference", entity, attribute, f"a {attribute.type}", "no FOREIGN KEY", told
                )
        if attribute.minimum is not None and attribute.maximum is not None:
            bounds = allowed_range(self._database, table, column)
            if bounds != (attribute.minimum, attribute.maximum):
                said = f"{bounds[0]}..{bounds[1]}" if bounds else "no CHECK"
                wider = bounds and (bounds[0] < attribute.minimum or bounds[1] > attribute.maximum)
                severity = Severity.BREAKING if wider else Severity.NOTE
                told = f"CHECK ({column} BETWEEN {attribute.minimum} AND {attribute.maximum})"
                expected_range = f"{attribute.minimum}..{attribute.maximum}"
                yield self._finding(severity, "range", entity, attribute, expected_range, said, told)

    def _values(self, entity: EntityType, attribute: Attribute) -> Iterator[Finding]:
        table, column = str(entity.table), str(attribute.column)
        said, stored = set(attribute.values or ()), allowed_values(self._database, table).get(column)
        if stored is None:
            told = f"add CHECK ({column} IN (...)) to {table}"
            yield self._finding(
                Severity.NOTE, "unenforced values", entity, attribute, ", ".join(attribute.values or ()), "no CHECK", told
            )
            return
        for value in sorted(said - stored):
            yield Finding(
                Severity.ADDITIVE,
                "enum values",
                f"{entity.name}.{attribute.name}",
                f"{attribute.type} has {value!r}",
                f"CHECK on {table}.{column} forbids it",
                self._count(table, f"{quote(column)} = {literals((value,))}"),
                self._policies(uid=(f"{PRODUCT}::{attribute.type}", value)),
                f"allow {value!r} in the CHECK on {table}.{column}, or remove it from {attribute.type} in the sandbox",
            )
        for value in sorted(stored - said):
            yield Finding(
                Severity.BREAKING,
                "enum values",
                f"{entity.name}.{attribute.name}",
                f"{attribute.type} has no {value!r}",
                f"CHECK on {table}.{column} allows it",
                self._count(table, f"{quote(column)} = {literals((value,))}"),
                self._policies(attribute=attribute.name),
                f"add {value!r} to {attribute.type} in the sandbox: Cedar refuses rows that hold it",
            )

    def _finding(
        self,
        severity: Severity,
        kind: str,
        entity: EntityType,
        attribute: Attribute,
        expected: str,
        found: str,
        told: str,
        rows: int = 0,
    ) -> Finding:
        policies = self._policies(attribute=attribute.name) if severity is not Severity.NOTE else ()
        return Finding(severity, kind, f"{entity.name}.{attribute.name}", expected, found, rows, policies, told)

    def _policies(self, *, entity: str = "", uid: tuple[str, str] | None = None, attribute: str = "") -> tuple[str, ...]:
        own = self._sandbox.policies_of(PRODUCT)
        return tuple(p.id for p in own if p.mentions(entity=entity, uid=uid, attribute=attribute))

    def _rows(self, table: str) -> int:
        return self._count(table, "1")

    def _count(self, table: str, where: str) -> int:
        counted: int = self._connection.exec_driver_sql(f"SELECT count(*) FROM {quote(table)} WHERE {where}").scalar_one()
        return counted


def compare_with_previous(kind: str, differences: Iterable[Change]) -> Iterator[Finding]:
    """Findings about what changed between two fingerprints.

    Never breaking by themselves: that this week's schema differs from last week's is news for whoever reads fixtures, not a fault.
    """
    for change in differences:
        told = "tell the readers of fixtures; rebuild earlier weeks if they need the new form"
        yield Finding(
            Severity.ADDITIVE,
            f"{kind} changed",
            change.subject,
            change.before or "absent",
            change.after or "absent",
            suggestion=told,
        )


def markdown_table(findings: Iterable[Finding]) -> str:
    """The report as a Markdown table."""
    head = "| severity | kind | subject | Cedar says / before | database says / now | rows | policies | suggested edit |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for f in findings:
        cells = (
            f.severity,
            f.kind,
            f.subject,
            f.expected,
            f.found,
            str(f.affected_rows),
            ", ".join(f.affected_policies),
            f.suggestion,
        )
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)


def adr_draft(findings: Iterable[Finding], *, week: str, sandbox: Sandbox) -> str:
    """An architecture decision record to be completed by Platform Security."""
    found = tuple(findings)
    worst = "breaking" if any(f.severity is Severity.BREAKING for f in found) else "additive"
    return f"""# ADR draft: schema drift in the fixtures of {week}

- Status: draft, to be decided by Platform Security
- Found by: check `schema_drift` on the fixtures of {week}
- Sandbox: digest `{sandbox.sha256(PRODUCT)}` of namespace {PRODUCT} and its policies

## Context

The Cedar sandbox schema and AkiDB's metadata database do not say the same. The worst finding is **{worst}**.

{markdown_table(found)}

## Decision

For each finding, choose one and strike the other: change the sandbox, or change AkiDB's migrations. The last column suggests an edit.

## Consequences

- Released fixtures of another sandbox are rebuilt: the sensor `fixture_drift` names the weeks.
- A value that only the sandbox knows cannot be stored, so the policies named above protect nothing until it can.
"""
