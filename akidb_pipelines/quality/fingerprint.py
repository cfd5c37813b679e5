"""Fingerprints: a schema as a flat list of facts, so that two of them can be compared line by line.

Both kinds are compared alike: a database's DDL (`users.role` -> `TEXT NOT NULL IN (...)`) and a Cedar namespace with its policies
(`User.role` -> `RoleName, required`). A fixture's manifest holds both, which is what the next release is compared with.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Inspector, create_engine, inspect

from akidb_pipelines.cedar.sandbox import Sandbox
from akidb_pipelines.quality.database import read_only_url

Facts = Mapping[str, str]

BOOKKEEPING = "_sqlx_migrations"
"""sqlx's own table: no entity, and no drift."""


@dataclass(frozen=True)
class Change:
    """One fact that two fingerprints do not share; an empty side is absent."""

    subject: str
    before: str
    after: str


def changes(before: Facts, after: Facts) -> Iterator[Change]:
    """What differs, by subject."""
    for subject in sorted(before.keys() | after.keys()):
        if before.get(subject, "") != after.get(subject, ""):
            yield Change(subject, before.get(subject, ""), after.get(subject, ""))


def facts_of_file(database: Path) -> dict[str, str]:
    """The facts of a SQLite file."""
    engine = create_engine(read_only_url(database))
    try:
        return database_facts(inspect(engine))
    finally:
        engine.dispose()


def database_facts(database: Inspector) -> dict[str, str]:
    """The tables of a database as facts."""
    facts: dict[str, str] = {}
    for table in sorted(database.get_table_names()):
        if table == BOOKKEEPING:
            continue
        allowed = allowed_values(database, table)
        for column in database.get_columns(table):
            name = column["name"]
            parts = [str(column["type"]), "NULL" if column["nullable"] else "NOT NULL"]
            if name in allowed:
                parts.append(f"IN ({', '.join(sorted(allowed[name]))})")
            if column["default"] is not None:
                parts.append("DEFAULT")
            facts[f"{table}.{name}"] = " ".join(parts)
        for reference in database.get_foreign_keys(table):
            rule = reference.get("options", {}).get("ondelete", "NO ACTION")
            facts[f"{table} ({', '.join(reference['constrained_columns'])}) reference"] = (
                f"{reference['referred_table']} ON DELETE {rule}"
            )
        for columns in sorted(unique_sets(database, table)):
            facts[f"{table} ({', '.join(columns)}) unique"] = "yes"
    return facts


def cedar_facts(sandbox: Sandbox, namespace_name: str) -> dict[str, str]:
    """A namespace and its policies as facts."""
    namespace = sandbox.model.namespace(namespace_name)
    facts = {f"enum {name}": ", ".join(values) for name, values in namespace.enumerations.items()}
    for entity in namespace.entities.values():
        facts[f"entity {entity.name}"] = f"in [{', '.join(entity.parents)}]"
        for attribute in entity.attributes:
            facts[f"{entity.name}.{attribute.name}"] = f"{attribute.type}, {'required' if attribute.required else 'optional'}"
    for action in namespace.actions.values():
        facts[f"action {action.name}"] = f"{', '.join(action.principals)} on {', '.join(action.resources)}"
    for policy in sandbox.policies_of(namespace_name):
        text = json.dumps(policy.meaning, sort_keys=True)
        facts[f"policy {policy.id}"] = hashlib.sha256(text.encode()).hexdigest()[:12]
    return facts


_IN = r"\s*\(*\s*[\"`\[]?{column}[\"`\]]?\s+IN\s*\(([^)]*)\)"
_BETWEEN = r"\s*\(*\s*[\"`\[]?{column}[\"`\]]?\s+BETWEEN\s+(-?\d+)\s+AND\s+(-?\d+)"


def allowed_values(database: Inspector, table: str) -> dict[str, set[str]]:
    """The values that a CHECK (column IN (...)) allows, by column."""
    found = {}
    checks = [str(c["sqltext"]) for c in database.get_check_constraints(table)]
    for column in database.get_columns(table):
        for text in checks:
            if match := re.match(_IN.format(column=re.escape(column["name"])), text, re.IGNORECASE):
                found[column["name"]] = set(re.findall(r"'((?:[^']|'')*)'", match[1]))
    return found


def allowed_range(database: Inspector, table: str, column: str) -> tuple[int, int] | None:
    """The bounds of a CHECK (column BETWEEN a AND b)."""
    for check in database.get_check_constraints(table):
        if match := re.match(_BETWEEN.format(column=re.escape(column)), str(check["sqltext"]), re.IGNORECASE):
            return int(match[1]), int(match[2])
    return None


def unique_sets(database: Inspector, table: str) -> set[tuple[str, ...]]:
    """Sets of columns that the database keeps unique, by constraint, index or primary key."""
    constraints: list[Sequence[str | None]] = [u["column_names"] for u in database.get_unique_constraints(table)]
    indexes: list[Sequence[str | None]] = [i["column_names"] for i in database.get_indexes(table) if i["unique"]]
    key = database.get_pk_constraint(table)["constrained_columns"]
    return {tuple(sorted(str(c) for c in columns)) for columns in (*constraints, *indexes, key) if columns}
