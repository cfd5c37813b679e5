"""The artifact registry: where channels point, when its signatures end, what retention removed.

No `from __future__ import annotations` here: Dagster reads the annotations of `context` as they stand.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from akidb_pipelines.resources import RegistryTools
from assets.common import started_by, telling
from assets.fixtures import RELEASE

if TYPE_CHECKING:
    from akidb_pipelines.store.report import RegistryReport
    from akidb_pipelines.store.retention import Plan

GROUP = "registry"
REGISTRY = dg.AssetKey("artifact_registry")
RETENTION = dg.AssetKey("registry_retention")
EXPIRY_CHECK = "metadata_expiry"
_ROWS = 100

Tools = dg.ResourceParam[RegistryTools]


@dg.asset(
    key=REGISTRY,
    deps=[RELEASE],
    group_name=GROUP,
    owners=started_by("fixtures"),
    kinds={"tuf"},
    description="Releases and signed channels that engineers and CI pull from: heads, sizes, and when the signatures end.",
    tags={"runbook": "pull-fails"},
)
def artifact_registry(registry_tools: Tools) -> dg.MaterializeResult[None]:
    """Look at the registry as it is now."""
    with telling():
        report = registry_tools.examine()
    return dg.MaterializeResult(metadata=_report_metadata(report, registry_tools))


@dg.asset_check(
    name=EXPIRY_CHECK,
    asset=REGISTRY,
    description="No signed metadata ends within ten days; after its end nobody can pull.",
)
def metadata_expiry(registry_tools: Tools) -> dg.AssetCheckResult:
    """See the library."""
    with telling():
        report = registry_tools.examine()
    return expiry_result(report)


def expiry_result(report: "RegistryReport") -> dg.AssetCheckResult:
    """The outcome of the check, for the check itself and for the sensor that watches between runs."""
    now = datetime.now(UTC)
    ended = not report.expires or any(end <= now for end in report.expires.values())
    first = min(report.expires.items(), key=lambda item: item[1], default=None)
    fine = f"first to end: {first[0]} on {first[1]:%Y-%m-%d}" if first else "nothing is signed yet"
    return dg.AssetCheckResult(
        passed=not report.warnings,
        severity=dg.AssetCheckSeverity.ERROR if ended else dg.AssetCheckSeverity.WARN,
        description="; ".join(report.warnings) or fine,
        metadata={f"{role} ends": dg.MetadataValue.timestamp(end) for role, end in report.expires.items()},
    )


def _report_metadata(report: "RegistryReport", tools: RegistryTools) -> dict[str, dg.MetadataValue]:
    now = datetime.now(UTC)
    heads = [
        dg.TableRecord(
            {
                "kind": h.kind,
                "channel": h.channel,
                "release": str(h.version),
                "sequence": h.sequence,
                "moved at": h.moved_at,
                "why": h.reason,
            }
        )
        for h in report.heads
    ]
    releases = [
        dg.TableRecord(
            {
                "kind": e.kind,
                "release": str(e.version),
                "megabytes": round(e.size_bytes / 1e6, 2),
                "published at": e.published_at,
                "note": e.note,
                "manifest": e.manifest_sha256[:16],
            }
        )
        for e in reversed(report.entries[-_ROWS:])
    ]
    metadata: dict[str, dg.MetadataValue] = {
        "url": dg.MetadataValue.text(report.url),
        "channels": dg.MetadataValue.table(heads, _schema(heads)) if heads else dg.MetadataValue.text("none yet"),
        "releases": dg.MetadataValue.table(releases, _schema(releases)) if releases else dg.MetadataValue.text("none yet"),
        "release_count": dg.MetadataValue.int(len(report.entries)),
        "size_bytes": dg.MetadataValue.int(report.size_bytes),
        "root fingerprint": dg.MetadataValue.text(report.root_fingerprint),
        "runbook": dg.MetadataValue.url(tools.settings.runbook("runbooks/pull-fails.md")),
    }
    for role, end in report.expires.items():
        # Numbers over time: the asset's Plots tab draws them.
        metadata[f"{role}_days_left"] = dg.MetadataValue.float(round((end - now).total_seconds() / 86400, 2))
    return metadata


class RetentionConfig(dg.Config):
    """How to collect."""

    dry_run: bool = False
    """Only say what would be removed and why."""


@dg.asset(
    key=RETENTION,
    deps=[REGISTRY],
    group_name=GROUP,
    owners=started_by("registry"),
    kinds={"tuf"},
    description="What retention keeps, retires and removes, and why: eight newest weeks, pins, channel targets; a week of grace.",
    tags={"runbook": "pull-fails"},
)
def registry_retention(
    context: dg.AssetExecutionContext, config: RetentionConfig, registry_tools: Tools
) -> dg.MaterializeResult[None]:
    """Collect garbage. Stops while a publisher is at work, or died less than a day ago."""
    with telling():
        plan = registry_tools.collect(dry_run=config.dry_run, report=context.log.info)
    return dg.MaterializeResult(metadata=_plan_metadata(plan, config.dry_run))


def _plan_metadata(plan: "Plan", dry_run: bool) -> dict[str, dg.MetadataValue]:
    # What changes first: keeping is the rule and fills the table.
    ordered = sorted(plan.decisions, key=lambda d: d.action == "keep")
    rows = [
        dg.TableRecord({"action": d.action, "what": d.what, "why": d.why, "megabytes": round(d.size_bytes / 1e6, 2)})
        for d in ordered[:_ROWS]
    ]
    return {
        "decisions": dg.MetadataValue.table(rows, _schema(rows)) if rows else dg.MetadataValue.text("nothing is released yet"),
        "dry run": dg.MetadataValue.bool(dry_run),
        "removed": dg.MetadataValue.int(sum(d.action == "remove" for d in plan.decisions)),
        "removed_bytes": dg.MetadataValue.int(plan.removed_bytes),
    }


def _schema(rows: list[dg.TableRecord]) -> dg.TableSchema:
    kinds = {int: "int", float: "float"}
    return dg.TableSchema([dg.TableColumn(name, kinds.get(type(value), "string")) for name, value in rows[0].data.items()])
