"""A typed model of a Cedar schema: what the generators of checks and the row-to-entity mapping read.

Holds facts only. It is built from Cedar's JSON form (`parse.schema_json`) and knows the annotations that tie the schema to
tables; the schema's head lists them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from akidb_pipelines.cedar.parse import Json
from akidb_pipelines.errors import InputError

PRIMITIVES = frozenset({"String", "Long", "Bool", "datetime", "decimal", "duration", "ipaddr"})
FORMATS = frozenset(
    {"rfc3339-millis-z", "rfc3339-micros-offset", "sha256-hex", "json-array", "iso-week", "month", "day", "quarter"}
)


@dataclass(frozen=True)
class CedarType:
    """The type of an attribute. `name` is a primitive's, or the unqualified name of the entity or enumeration referred to."""

    kind: Literal["primitive", "entity", "enumeration", "set", "record"]
    name: str
    element: CedarType | None = None

    def __str__(self) -> str:
        return f"Set<{self.element}>" if self.kind == "set" else self.name


@dataclass(frozen=True)
class Attribute:
    """One attribute of an entity type, and where its value is stored."""

    name: str
    type: CedarType
    required: bool
    doc: str = ""
    column: str | None = None
    """Column of the entity's table; None when the value comes from `json_path` or `via`."""
    json_path: str | None = None
    """`column.key`: a key of a JSON column."""
    via: str | None = None
    """`attribute.attribute`: taken from the entity that the first attribute refers to."""
    format: str | None = None
    minimum: int | None = None
    maximum: int | None = None
    values: tuple[str, ...] | None = None
    unique: bool = False


@dataclass(frozen=True)
class EntityType:
    """An entity type and the table its rows live in (None when it has none)."""

    namespace: str
    name: str
    attributes: tuple[Attribute, ...]
    parents: tuple[str, ...] = ()
    doc: str = ""
    table: str | None = None
    key: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()
    derived_from: str | None = None
    derived_key: tuple[str, ...] = ()

    @property
    def qualified(self) -> str:
        """`AkiDB::User`."""
        return f"{self.namespace}::{self.name}" if self.namespace else self.name

    def attribute(self, name: str) -> Attribute:
        """The attribute of that name; KeyError if there is none."""
        return next(a for a in self.attributes if a.name == name)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the table that the schema knows of, keys first."""
        stored = [a.column for a in self.attributes if a.column]
        return tuple(dict.fromkeys([*self.key, *stored, *self.opaque]))


@dataclass(frozen=True)
class Action:
    """An action, or a group of actions when it applies to nothing itself."""

    name: str
    groups: tuple[str, ...]
    principals: tuple[str, ...]
    resources: tuple[str, ...]
    doc: str = ""


@dataclass(frozen=True)
class Namespace:
    """What one namespace declares, by unqualified name."""

    name: str
    entities: Mapping[str, EntityType]
    enumerations: Mapping[str, tuple[str, ...]]
    actions: Mapping[str, Action]
    source: Json

    @property
    def tables(self) -> tuple[EntityType, ...]:
        """The entity types that have a table, in the schema's order."""
        return tuple(e for e in self.entities.values() if e.table)

    @property
    def concrete_actions(self) -> tuple[str, ...]:
        """Actions that can be asked for, groups left out."""
        return tuple(a.name for a in self.actions.values() if a.resources)

    @cached_property
    def _meaning(self) -> str:
        return json.dumps(without_docs(self.source), sort_keys=True)

    def sha256(self, policies: str = "") -> str:
        """Digest of what the namespace and its policies mean: comments, order and `@doc` do not count."""
        return hashlib.sha256(f"{self._meaning}\n{policies}".encode()).hexdigest()


@dataclass(frozen=True)
class Model:
    """A whole schema."""

    namespaces: Mapping[str, Namespace]

    def namespace(self, name: str) -> Namespace:
        """The namespace of that name.

        Raises:
            InputError: the schema declares none of that name.
        """
        if name not in self.namespaces:
            raise InputError(
                f"the sandbox schema has no namespace {name}; it has {', '.join(self.namespaces)}",
                hint="point AKIDB_CEDAR_SANDBOX at a schema that declares it",
            )
        return self.namespaces[name]


def without_docs(value: Any) -> Any:
    """A copy of a JSON value with every `doc` annotation gone."""
    if isinstance(value, dict):
        pairs = ((k, without_docs(v)) for k, v in value.items() if k != "doc" or isinstance(v, dict))
        return {k: v for k, v in pairs if k != "annotations" or v}
    if isinstance(value, list):
        return [without_docs(v) for v in value]
    return value


def build_model(schema: Json) -> Model:
    """The typed model of a schema in Cedar's JSON form.

    Raises:
        InputError: an annotation is not understood; the message names the attribute.
    """
    return Model({name: _namespace(name, declared) for name, declared in schema.items()})


def _namespace(name: str, declared: Json) -> Namespace:
    types = declared["entityTypes"]
    enumerations = {n: tuple(t["enum"]) for n, t in types.items() if "enum" in t}
    actions = {n: _action(n, a) for n, a in declared["actions"].items()}
    concrete = tuple(a.name for a in actions.values() if a.resources)
    common = declared.get("commonTypes", {})

    def cedar_type(json_type: Json) -> CedarType:
        if json_type["type"] == "Set":
            return CedarType("set", "Set", cedar_type(json_type["element"]))
        if json_type["type"] == "Record":
            return CedarType("record", "Record")
        short = str(json_type["name"]).removeprefix("__cedar::").removeprefix(f"{name}::")
        if short in common:
            return cedar_type(common[short])
        if short in PRIMITIVES:
            return CedarType("primitive", short)
        return CedarType("enumeration" if short in enumerations else "entity", short)

    def attribute(owner: str, attribute_name: str, json_type: Json) -> Attribute:
        notes = json_type.get("annotations", {})
        where = f"{name}::{owner}.{attribute_name}"
        elsewhere = "json" in notes or "via" in notes
        of_type = cedar_type(json_type)
        if (form := notes.get("format")) and form not in FORMATS:
            raise InputError(f"{where}: @format({form!r}) is unknown", hint=f"use one of {', '.join(sorted(FORMATS))}")
        if (values := notes.get("values")) and values != "actions":
            raise InputError(f"{where}: @values({values!r}) is unknown", hint='only @values("actions") is known')
        return Attribute(
            name=attribute_name,
            type=of_type,
            required=json_type.get("required", True),
            doc=notes.get("doc", ""),
            column=None if elsewhere else notes.get("column", attribute_name),
            json_path=notes.get("json"),
            via=notes.get("via"),
            format=form,
            minimum=_whole(notes.get("min"), where),
            maximum=_whole(notes.get("max"), where),
            values=concrete if values else enumerations.get(_leaf(of_type).name),
            unique="unique" in notes,
        )

    def entity(entity_name: str, json_entity: Json) -> EntityType:
        notes = json_entity.get("annotations", {})
        derived_from, _, derived_key = notes.get("derived", "").partition(":")
        attributes = json_entity.get("shape", {}).get("attributes", {})
        return EntityType(
            namespace=name,
            name=entity_name,
            attributes=tuple(attribute(entity_name, n, t) for n, t in attributes.items()),
            parents=tuple(p.removeprefix(f"{name}::") for p in json_entity.get("memberOfTypes", [])),
            doc=notes.get("doc", ""),
            table=notes.get("table"),
            key=tuple(notes.get("key", "").split()),
            unique=tuple(notes.get("unique", "").split()),
            opaque=tuple(notes.get("opaque", "").split()),
            derived_from=derived_from or None,
            derived_key=tuple(derived_key.split()),
        )

    entities = {n: entity(n, t) for n, t in types.items() if "enum" not in t}
    for declared_entity in entities.values():
        if declared_entity.table and not declared_entity.key:
            raise InputError(f"{declared_entity.qualified} has @table but no @key", hint="name its key columns")
    return Namespace(name, entities, enumerations, actions, declared)


def _leaf(of_type: CedarType) -> CedarType:
    return _leaf(of_type.element) if of_type.element else of_type


def _whole(text: str | None, where: str) -> int | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{where}: a bound must be a whole number, found {text!r}") from None


def _action(name: str, declared: Json) -> Action:
    applies = declared.get("appliesTo", {})
    return Action(
        name=name,
        groups=tuple(g["id"] for g in declared.get("memberOf", [])),
        principals=tuple(applies.get("principalTypes", [])),
        resources=tuple(applies.get("resourceTypes", [])),
        doc=declared.get("annotations", {}).get("doc", ""),
    )
