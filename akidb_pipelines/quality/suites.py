"""From the Cedar model to rules on columns: which ones an entity type's table must meet, as data.

A rule is either one of Great Expectations' own expectations by name, or a query for the rows that break it. Nothing is run here and
Great Expectations is not imported; `run_gx` does both.

Queries carry `count(*) OVER ()`, so that 50 rows can be shown and all of them counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from akidb_pipelines.cedar.entities import quote
from akidb_pipelines.cedar.model import Attribute, EntityType, Namespace

SHOWN = 50

_D = "[0-9]"
_DATE = f"{_D * 4}-{_D * 2}-{_D * 2}T{_D * 2}:{_D * 2}:{_D * 2}"
_GLOBS = {
    "rfc3339-millis-z": f"{_DATE}.{_D * 3}Z",
    "rfc3339-micros-offset": f"{_DATE}.{_D * 6}+00:00",
    "iso-week": f"{_D * 4}-W{_D * 2}",
    "month": f"{_D * 4}-{_D * 2}",
    "day": f"{_D * 4}-{_D * 2}-{_D * 2}",
    "quarter": f"{_D * 4}-Q[1-4]",
}
# AkiDB writes the shortest exact fraction: 0, 3, 6 or 9 digits.
_OTHER_GLOBS = {"rfc3339-micros-offset": tuple(f"{_DATE}{fraction}+00:00" for fraction in ("", f".{_D * 3}", f".{_D * 9}"))}

STORED_TYPES = {"String": "TEXT", "Long": "INTEGER", "Bool": "INTEGER", "datetime": "TEXT", "decimal": "TEXT", "duration": "TEXT"}


@dataclass(frozen=True)
class Rule:
    """One rule on one table."""

    name: str
    entity: str
    attribute: str = ""
    expectation: str = ""
    """Name of a Great Expectations expectation, with `arguments`; empty when `query` is given."""
    arguments: dict[str, Any] = field(default_factory=dict)
    query: str = ""
    """Selects id, found and the total of the rows that break the rule; `{batch}` stands for the table."""


def rules_of(namespace: Namespace, entity: EntityType, columns: Collection[str]) -> Iterator[Rule]:
    """The rules for an entity type's table, as far as its `columns` are there; missing ones are drift's business."""
    key = [k for k in entity.key if k in columns]
    for column in key:
        yield _expect("key present", entity, "", "ExpectColumnValuesToNotBeNull", column=column)
    if key:
        yield _duplicates("key unique", entity, "", key)
    if entity.unique and set(entity.unique) <= set(columns):
        yield _duplicates("unique together", entity, "", entity.unique)
    for attribute in entity.attributes:
        if attribute.column in columns:
            yield from _attribute_rules(namespace, entity, attribute, columns)


def _attribute_rules(namespace: Namespace, entity: EntityType, attribute: Attribute, columns: Collection[str]) -> Iterator[Rule]:
    name, column = attribute.name, str(attribute.column)
    quoted = f"c.{quote(column)}"
    if attribute.required:
        yield _expect("required", entity, name, "ExpectColumnValuesToNotBeNull", column=column)
    if attribute.type.kind == "entity":
        yield _reference(namespace, entity, attribute, columns)
    elif attribute.type.kind == "primitive" and attribute.type.name in STORED_TYPES:
        stored = STORED_TYPES[attribute.type.name]
        yield _breaking("type", entity, name, f"typeof({quoted}) NOT IN ('{stored.lower()}', 'null')", quoted)
    if attribute.type.kind == "set":
        bad = f"{quoted} IS NOT NULL AND CASE WHEN json_valid({quoted}) THEN json_type({quoted}) ELSE '' END <> 'array'"
        yield _breaking("json array", entity, name, bad, quoted)
        if attribute.values:
            members = f"SELECT value FROM json_each(CASE WHEN json_valid({quoted}) THEN {quoted} ELSE '[]' END)"
            bad = f"EXISTS ({members} WHERE value NOT IN ({literals(attribute.values)}))"
            yield _breaking("known values", entity, name, bad, quoted)
    elif attribute.values:
        yield _breaking("known values", entity, name, f"{quoted} NOT IN ({literals(attribute.values)})", quoted)
    if attribute.format in _GLOBS:
        globs = (_GLOBS[attribute.format], *_OTHER_GLOBS.get(attribute.format, ()))
        bad = " AND ".join(f"{quoted} NOT GLOB '{g}'" for g in globs)
        yield _breaking(f"format {attribute.format}", entity, name, bad, quoted)
    if attribute.format == "sha256-hex":
        yield _breaking("format sha256-hex", entity, name, f"length({quoted}) <> 64 OR {quoted} GLOB '*[^0-9a-f]*'", quoted)
    if attribute.minimum is not None or attribute.maximum is not None:
        bounds = {"min_value": attribute.minimum, "max_value": attribute.maximum}
        yield _expect("range", entity, name, "ExpectColumnValuesToBeBetween", column=column, **bounds)
    if attribute.unique:
        yield _duplicates("unique", entity, name, (column,))


def _expect(name: str, entity: EntityType, attribute: str, expectation: str, **arguments: Any) -> Rule:
    return Rule(name, entity.name, attribute, expectation, arguments)


def _id(entity: EntityType) -> str:
    return " || '/' || ".join(f"hex(c.{quote(k)})" for k in entity.key)


def _shown(expression: str) -> str:
    return f"CASE typeof({expression}) WHEN 'blob' THEN hex({expression}) ELSE {expression} END"


def _breaking(name: str, entity: EntityType, attribute: str, condition: str, shown: str) -> Rule:
    # The query needs a JOIN to be allowed its alias; joining one row costs nothing.
    query = (
        f"SELECT {_id(entity)} AS id, {_shown(shown)} AS found, count(*) OVER () AS total "
        f"FROM {{batch}} AS c JOIN (SELECT 1) WHERE {condition} LIMIT {SHOWN}"
    )
    return Rule(name, entity.name, attribute, query=query)


def _reference(namespace: Namespace, entity: EntityType, attribute: Attribute, columns: Collection[str]) -> Rule:
    target = namespace.entities[attribute.type.name]
    column = f"c.{quote(str(attribute.column))}"
    query = (
        f"SELECT {_id(entity)} AS id, hex({column}) AS found, count(*) OVER () AS total "
        f"FROM {{batch}} AS c LEFT JOIN {quote(str(target.table))} AS p ON p.{quote(target.key[0])} = {column} "
        f"WHERE {column} IS NOT NULL AND p.{quote(target.key[0])} IS NULL LIMIT {SHOWN}"
    )
    return Rule(f"refers to a {target.name}", entity.name, attribute.name, query=query)


def _duplicates(name: str, entity: EntityType, attribute: str, of: Collection[str]) -> Rule:
    listed = ", ".join(f"c.{quote(k)}" for k in of)
    found = " || '/' || ".join(_shown(f"c.{quote(k)}") for k in of)
    present = " AND ".join(f"c.{quote(k)} IS NOT NULL" for k in of)
    query = (
        f"SELECT min({_id(entity)}) AS id, {found} AS found, count(*) OVER () AS total "
        f"FROM {{batch}} AS c JOIN (SELECT 1) WHERE {present} GROUP BY {listed} HAVING count(*) > 1 LIMIT {SHOWN}"
    )
    return Rule(name, entity.name, attribute, query=query)


def literals(values: Collection[str]) -> str:
    """SQL string literals with commas between."""
    return ", ".join("'" + v.replace("'", "''") + "'" for v in values)
