"""Checks `columns` and `cedar_entities` of what the catalog says of our own artifacts: entities of namespace AkiDB::Ops.

They are held to the same sandbox, by the same two engines, as the fixtures are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from akidb_pipelines.catalog.catalog import Catalog
from akidb_pipelines.cedar.sandbox import OPS, Sandbox
from akidb_pipelines.quality.conformance import run_cedar_entities
from akidb_pipelines.quality.result import CheckReport
from akidb_pipelines.quality.run_gx import run_columns

ENGINES = ("columns", "cedar_entities")


def run_catalogue_checks(
    catalog: Catalog, sandbox: Sandbox, entity: str, names: tuple[str, ...], folder: Path
) -> Iterator[CheckReport]:
    """Check every row of one entity type's table.

    Args:
        catalog: has the rows.
        sandbox: what they are held to.
        entity: its name, such as JetsonImage.
        names: of ENGINES, those that are wanted.
        folder: for a temporary copy of the table.
    """
    whole = sandbox.model.namespace(OPS)
    kind = whole.entities[entity]
    namespace = replace(whole, entities={entity: kind})
    database = folder / f"{kind.table}.db"
    catalog.export(str(kind.table), database)
    if "columns" in names:
        yield run_columns(database, namespace)
    if "cedar_entities" in names:
        yield run_cedar_entities(database, sandbox, namespace=namespace)
