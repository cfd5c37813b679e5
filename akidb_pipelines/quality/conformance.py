"""Check `cedar_entities`: every row as a Cedar entity, judged by Cedar against the schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from time import perf_counter

import apsw

from akidb_pipelines.cedar.entities import JsonEntity, derived_entities, mapping, quote
from akidb_pipelines.cedar.model import EntityType, Namespace
from akidb_pipelines.cedar.sandbox import PRODUCT, Sandbox
from akidb_pipelines.cedar.validate import Validation, validate_entities
from akidb_pipelines.quality.database import open_read_only
from akidb_pipelines.quality.result import CheckReport, RuleResult, Sample, Status

AUDIT_SAMPLE = 10_000
_SAMPLED_ABOVE = 200_000
"""Audit logs longer than this are sampled: a million rows would take a minute of Cedar and say little more."""


def run_cedar_entities(
    database: Path,
    sandbox: Sandbox,
    *,
    namespace: Namespace | None = None,
    full: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> CheckReport:
    """Validate every entity of a namespace (default: AkiDB); very long audit logs by a stratified sample unless `full`.

    Raises:
        InputError: the file is no SQLite database.
    """
    started = perf_counter()
    namespace = namespace or sandbox.model.namespace(PRODUCT)
    db = open_read_only(database)
    try:
        present = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        streams: list[Iterator[JsonEntity]] = []
        sampled = 1.0
        for entity in namespace.entities.values():
            if entity.table and entity.table in present:
                where, fraction = _sample(db, entity) if entity.name == "AuditLog" and not full else ("", 1.0)
                sampled = min(sampled, fraction)
                columns = [row[1] for row in db.execute(f"PRAGMA table_info({quote(entity.table)})")]
                streams.append(mapping(namespace, entity, columns).read(db, where))
            elif entity.derived_from and namespace.entities[entity.derived_from].table in present:
                streams.append(derived_entities(namespace, entity, db))
        found = validate_entities(chain.from_iterable(streams), sandbox.schema, progress=progress)
    finally:
        db.close()
    results = tuple(_result(entity, found) for entity in namespace.entities.values())
    seconds = perf_counter() - started
    facts: dict[str, str | int | float] = {
        "entities": found.total,
        "entities_per_second": round(found.total / seconds),
        "cedarpy": version("cedarpy"),
    }
    if "AuditLog" in namespace.entities:
        facts["audit_log_sampled_fraction"] = round(sampled, 4)
    return CheckReport("cedar_entities", results, seconds, facts)


def _sample(db: apsw.Connection, entity: EntityType) -> tuple[str, float]:
    """A WHERE clause that takes every n-th row of each tenant, action and result, and the share of rows it takes."""
    table = quote(str(entity.table))
    ((rows,),) = db.execute(f"SELECT count(*) FROM {table}")
    if rows <= _SAMPLED_ABOVE:
        return "", 1.0
    step = rows // AUDIT_SAMPLE
    numbered = f"SELECT rowid AS r, row_number() OVER (PARTITION BY tenant_id, action, result ORDER BY rowid) AS n FROM {table}"
    return f"WHERE t.rowid IN (SELECT r FROM ({numbered}) WHERE n % {step} = 1)", 1 / step


def _result(entity: EntityType, found: Validation) -> RuleResult:
    failed = found.failed.get(entity.qualified, 0)
    samples = tuple(Sample(f.id, f.cause) for f in found.samples if f.entity_type == entity.qualified)
    status = Status.FAIL if failed else Status.PASS
    return RuleResult("conforms to the schema", entity.name, status=status, count=failed, samples=samples)
