"""What the fixture assets tell the UI: tables, numbers to plot, links. Types only are imported here, so that loading stays light."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from akidb_pipelines.files import write_whole
from akidb_pipelines.resources import FixtureTools
from assets.common import BUILD

if TYPE_CHECKING:
    from akidb_pipelines.cedar.sandbox import Sandbox
    from akidb_pipelines.fixtures.manifest import Manifest
    from akidb_pipelines.fixtures.weekly import WeekBuild
    from akidb_pipelines.periods import Week
    from akidb_pipelines.quality.drift import DriftReport
    from akidb_pipelines.settings import Settings


def build_metadata(build: WeekBuild, tools: FixtureTools) -> dict[str, dg.MetadataValue]:
    """What a build holds."""
    manifests = [b.manifest for b in build.fixtures]
    metadata: dict[str, dg.MetadataValue] = {
        BUILD: dg.MetadataValue.text(build.sha256),
        "fixtures": _fixture_table(build),
        "tables": _row_table(manifests),
        "dagster/row_count": dg.MetadataValue.int(sum(t.rows for m in manifests for t in m.tables.values())),
        "dagster/column_schema": dg.MetadataValue.table_schema(_column_schema(manifests[0])),
        "size_bytes": dg.MetadataValue.int(build.release.size_bytes),
        "seconds": dg.MetadataValue.float(round(sum(b.seconds for b in build.fixtures), 2)),
        "migration_seconds": dg.MetadataValue.float(
            round(sum(b.migration_seconds for b in build.fixtures) / len(build.fixtures), 4)
        ),
        "folder": dg.MetadataValue.path(build.folder),
        "runbook": dg.MetadataValue.url(tools.settings.runbook("runbooks/weekly-fixtures-failed.md")),
    }
    for built in build.fixtures:
        metadata[f"{built.manifest.profile}_seconds"] = dg.MetadataValue.float(round(built.seconds, 2))
    for manifest in manifests:
        for table in ("users", "vector_documents", "audit_logs"):
            # Numbers by week: the asset's Plots tab draws them.
            metadata[f"{manifest.profile}_{table}_rows"] = dg.MetadataValue.int(manifest.tables[table].rows)
    return metadata


def _fixture_table(build: WeekBuild) -> dg.MetadataValue:
    rows = [
        dg.TableRecord(
            {
                "file": b.manifest.database.name,
                "megabytes": round(b.manifest.database.size_bytes / 1e6, 2),
                "rows": sum(t.rows for t in b.manifest.tables.values()),
                "ground truth queries": b.manifest.truth_queries,
                "sha256": b.manifest.database.sha256,
                "seconds": round(b.seconds, 2),
            }
        )
        for b in build.fixtures
    ]
    kinds = {"megabytes": "float", "rows": "int", "ground truth queries": "int", "seconds": "float"}
    columns = ("file", "megabytes", "rows", "ground truth queries", "sha256", "seconds")
    return dg.MetadataValue.table(rows, dg.TableSchema([dg.TableColumn(c, kinds.get(c, "string")) for c in columns]))


def _row_table(manifests: list[Manifest]) -> dg.MetadataValue:
    """Rows of every table, one column a profile."""
    rows = [
        dg.TableRecord({"table": table, **{m.profile: m.tables[table].rows for m in manifests}})
        for table in sorted(manifests[0].tables)
    ]
    columns = [dg.TableColumn("table", "string"), *(dg.TableColumn(m.profile, "int") for m in manifests)]
    return dg.MetadataValue.table(rows, dg.TableSchema(columns))


def _column_schema(manifest: Manifest) -> dg.TableSchema:
    """Every column of every table, as `users.email`."""
    facts = manifest.facts["database"]
    return dg.TableSchema([dg.TableColumn(name, fact) for name, fact in facts.items() if " " not in name])


def drift_metadata(report: DriftReport, week: Week, sandbox: Sandbox, settings: Settings) -> dict[str, dg.MetadataValue]:
    """A draft of the decision record that drift asks for, and where to read on."""
    from akidb_pipelines.quality.drift import adr_draft

    draft = settings.home / "adr-drafts" / f"{week.iso}-schema-drift.md"
    draft.parent.mkdir(parents=True, exist_ok=True)
    write_whole(draft, adr_draft(report.findings, week=week.iso, sandbox=sandbox).encode())
    return {
        "ADR draft": dg.MetadataValue.path(draft),
        "runbook": dg.MetadataValue.url(settings.runbook("runbooks/fixture-drift.md")),
    }
