"""Rows of a database to Cedar entities, driven by the schema's annotations.

Works on any DB-API-like `execute(sql)` that yields tuples. What Cedar itself should judge (a wrong date, an impossible address, an
unknown status) is passed on as it stands; only form is converted: BLOB keys to UUID text, AkiDB's `+00:00` timestamps, which
Cedar's datetime refuses, to `Z` with milliseconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from akidb_pipelines.cedar.model import Attribute, CedarType, EntityType, Namespace
from akidb_pipelines.errors import InputError

Row = Sequence[Any]
JsonEntity = dict[str, Any]
Convert = Callable[[Any], Any]


class Rows(Protocol):
    """The one verb that reading needs; apsw and sqlite3 connections both have it."""

    def execute(self, statement: str, /) -> Iterable[Any]:
        """Run a query and yield its rows as tuples."""
        ...


def quote(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def id_text(value: Any) -> str:
    """A key as Cedar's entity id: 16 bytes become UUID text, other bytes hex, everything else its text."""
    if isinstance(value, bytes):
        text = value.hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}" if len(value) == 16 else text
    return str(value)


_OFFSET_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\+00:00")


def cedar_time(value: Any) -> Any:
    """A `+00:00` timestamp in the form Cedar reads, cut to milliseconds; anything else unchanged, for Cedar to judge."""
    if isinstance(value, str) and len(value) == 32 and value.endswith("+00:00"):
        return f"{value[:23]}Z"
    if isinstance(value, str) and (match := _OFFSET_TIME.fullmatch(value)):
        return f"{match[1]}.{(match[2] or '')[:3]:0<3}Z"
    return value


@dataclass(frozen=True)
class Mapping:
    """How one entity type is read: a query, and what each of its columns becomes."""

    entity: EntityType
    select: str
    """`SELECT <key columns>, <one expression an attribute> FROM ...`; a WHERE or ORDER BY may be appended."""
    attributes: tuple[tuple[str, Convert], ...]
    parents: tuple[Callable[[JsonEntity], dict[str, str] | None], ...]

    def entity_of(self, row: Row) -> JsonEntity:
        """The Cedar JSON entity of one row of `select`; NULL attributes are left out, as Cedar wants it."""
        keys = len(self.entity.key)
        attrs = {}
        for (name, convert), value in zip(self.attributes, row[keys:], strict=True):
            if value is not None:
                attrs[name] = convert(value)
        uid = id_text(row[0]) if keys == 1 else "/".join(id_text(v) for v in row[:keys])
        parents = [p for p in (parent(attrs) for parent in self.parents) if p]
        return {"uid": {"type": self.entity.qualified, "id": uid}, "attrs": attrs, "parents": parents}

    def read(self, rows: Rows, where: str = "") -> Iterator[JsonEntity]:
        """Every entity of the table, or those that an SQL clause selects (the table's alias is `t`)."""
        for row in rows.execute(f"{self.select} {where}"):
            yield self.entity_of(row)


def mapping(namespace: Namespace, entity: EntityType, columns: Iterable[str]) -> Mapping:
    """How to read `entity` from a table that has `columns`; attributes without a column there are left out (drift reports them)."""
    there = set(columns)
    joins: dict[str, str] = {}
    expressions: list[str] = []
    attributes: list[tuple[str, Convert]] = []
    for attribute in entity.attributes:
        expression = _expression(namespace, entity, attribute, there, joins)
        if expression is None:
            continue
        expressions.append(expression)
        attributes.append((attribute.name, _converter(namespace, attribute)))
    keys = [f"t.{quote(k)}" for k in entity.key]
    select = f"SELECT {', '.join([*keys, *expressions])} FROM {quote(str(entity.table))} AS t {' '.join(joins.values())}"
    parents = tuple(_parent(namespace, entity, parent) for parent in entity.parents)
    return Mapping(entity, select, tuple(attributes), parents)


def _expression(
    namespace: Namespace, entity: EntityType, attribute: Attribute, there: set[str], joins: dict[str, str]
) -> str | None:
    if attribute.column:
        return f"t.{quote(attribute.column)}" if attribute.column in there else None
    if attribute.json_path:
        column, _, key = attribute.json_path.partition(".")
        return f"json_extract(t.{quote(column)}, '$.{key}')" if column in there else None
    step, _, target = str(attribute.via).partition(".")
    through = entity.attribute(step)
    other = namespace.entities[through.type.name]
    joins[step] = (
        f"LEFT JOIN {quote(str(other.table))} AS {quote(step)} ON {quote(step)}.{quote(other.key[0])} = t.{quote(str(through.column))}"
    )
    return f"{quote(step)}.{quote(str(other.attribute(target).column))}"


def _converter(namespace: Namespace, attribute: Attribute) -> Convert:
    of_type = attribute.type
    if of_type.kind == "set":
        return _set_converter(namespace, of_type.element)
    if of_type.kind in {"entity", "enumeration"}:
        qualified = f"{namespace.name}::{of_type.name}"
        return lambda value: {"type": qualified, "id": id_text(value)}
    if of_type.name == "datetime":
        return cedar_time
    if of_type.name == "Bool":
        return lambda value: bool(value) if value in (0, 1) else value
    if of_type.name == "decimal":
        return str
    return lambda value: value


def _set_converter(namespace: Namespace, element: CedarType | None) -> Convert:
    qualified = f"{namespace.name}::{element.name}" if element and element.kind in {"entity", "enumeration"} else None

    def convert(value: Any) -> Any:
        try:
            items = json.loads(value)
        except (TypeError, ValueError):
            return value
        return [{"type": qualified, "id": str(i)} for i in items] if qualified and isinstance(items, list) else items

    return convert


def _parent(namespace: Namespace, entity: EntityType, parent: str) -> Callable[[JsonEntity], dict[str, str] | None]:
    """How to find the parent of one type: the reference of that type, or for a derived type its key from our own attributes."""
    target = namespace.entities.get(parent)
    qualified = f"{namespace.name}::{parent}"
    if target and target.derived_from == entity.name:

        def derived(attrs: JsonEntity) -> dict[str, str] | None:
            parts = [attrs.get(k) for k in target.derived_key]
            ids = [p["id"] if isinstance(p, dict) else p for p in parts]
            return {"type": qualified, "id": "#".join(str(i) for i in ids)} if None not in ids else None

        return derived
    for attribute in entity.attributes:
        if attribute.type.kind == "entity" and attribute.type.name == parent:
            name = attribute.name
            return lambda attrs: attrs.get(name)
    raise InputError(
        f"{entity.qualified} is in [{parent}], but no attribute refers to it",
        hint=f"give it an attribute of type {parent}, or mark {parent} @derived",
    )


def derived_entities(namespace: Namespace, entity: EntityType, rows: Rows) -> Iterator[JsonEntity]:
    """Entities of a type without a table, such as Role: one for each distinct key among the rows they are derived from."""
    source = namespace.entities[str(entity.derived_from)]
    wanted = [source.attribute(k) for k in entity.derived_key]
    columns = ", ".join(quote(str(a.column)) for a in wanted)
    converters = [(a.name, _converter(namespace, a)) for a in wanted]
    parents = [_parent(namespace, entity, parent) for parent in entity.parents]
    for row in rows.execute(f"SELECT DISTINCT {columns} FROM {quote(str(source.table))} ORDER BY {columns}"):
        attrs = {name: convert(value) for (name, convert), value in zip(converters, row, strict=True)}
        uid = "#".join(str(v["id"] if isinstance(v, dict) else v) for v in attrs.values())
        found = [p for p in (parent(attrs) for parent in parents) if p]
        yield {"uid": {"type": entity.qualified, "id": uid}, "attrs": attrs, "parents": found}
