"""Daily backups: dumps of databases with their checks, copies of Terraform's state, dashboards, and what retention removes.

A backup is filed under the day on which it is taken; of a past day none can be taken any more. What is not configured is neither there nor
green. No `from __future__ import annotations` here: Dagster reads the annotations of `context` as they stand.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from akidb_pipelines.backups.checklist import BLOCKING_CHECKS, CHECKS, LAB
from akidb_pipelines.errors import InputError, PipelineError
from akidb_pipelines.resources import BackupTools
from assets.checks import check_result
from assets.common import built_metadata, ended_checks, logging, newest_partition, started_by, telling
from assets.partitions import DAYS

if TYPE_CHECKING:
    from akidb_pipelines.backups.dump import Dump
    from akidb_pipelines.catalog.catalog import CataloguedBackup
    from akidb_pipelines.quality.result import CheckReport

GROUP = "backups"
DUMPS = dg.AssetKey("staging_dumps")
RETENTION = dg.AssetKey("dump_retention")
TERRAFORM = dg.AssetKey("terraform_state_backup")
DASHBOARDS = dg.AssetKey("dashboard_export")
_DUMPS = "dumps"
_COMPLETE = "complete"
_RUNBOOK = "runbooks/restore-a-database.md"

Tools = dg.ResourceParam[BackupTools]

_ABOUT_CHECKS = {
    "restorable": "Fetched from cold storage, unpacked and read, each has the digest that was dumped.",
    "integrity": "SQLite's own check of pages, indexes and constraints, on what was restored.",
    "foreign_keys": "Every row has its parent, in what was restored; the integrity check does not look.",
    "row_counts": "Every table has the rows that were dumped, and none has become empty all at once.",
    "age": "Younger than the recovery point objective of 26 hours.",
    "columns": "The catalog's rows of backups by Great Expectations, generated from the Cedar schema.",
    "cedar_entities": "The catalog's rows of backups as AkiDB::Ops::Backup entities, judged by Cedar.",
}
_KEPT_CHECKS = ("restorable", "columns", "cedar_entities")
"""Of Terraform's state and of dashboards."""


def _expect_today(context: dg.AssetExecutionContext) -> None:
    """Raises InputError for another day."""
    today = datetime.now(UTC).date().isoformat()
    if context.partition_key != today:
        raise InputError(
            f"a backup of {context.partition_key} cannot be taken any more: it is {today}", hint=f"launch partition {today}"
        )


@dg.multi_asset(
    name="staging_dumps",
    partitions_def=DAYS,
    can_subset=True,  # hence nothing has to come of it: what is not configured is neither there nor green
    specs=[
        dg.AssetSpec(
            DUMPS,
            group_name=GROUP,
            owners=started_by("backups"),
            kinds={"sqlite"},
            description="A dump of every database of staging in cold storage, with digest, row counts, canary and snapshot time.",
            tags={"runbook": "restore-a-database"},
            skippable=True,
            freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=26)),
        )
    ],
    check_specs=[dg.AssetCheckSpec(_COMPLETE, asset=DUMPS, description="Every database that is configured was dumped.")],
)
def staging_dumps(
    context: dg.AssetExecutionContext, backup_tools: Tools
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Dump everything that can be dumped."""
    taken, errors = [], []
    with telling(retry=True):
        _expect_today(context)
        depot = backup_tools.open_depot()
        for database in backup_tools.databases():
            try:
                dump = depot.take(database, logging(context)(database.name))
            except PipelineError as error:  # one that cannot be reached must not keep the others from being dumped
                errors.append(error)
                context.log.error(f"{database.name}: {error}")
            else:
                context.log.info(f"{dump.id}: {sum(dump.record.rows.values())} rows, snapshot {dump.record.snapshot_at}")
                taken.append(dump)
        if errors and not taken:
            raise errors[0]
    if not taken:
        context.log.warning(
            "not configured: set akidb_databases of a host in the inventory, release fixtures (make run), or akidb-pipelines lab up swarm"
        )
        return
    yield dg.MaterializeResult(asset_key=DUMPS, metadata=_dumps_metadata(taken, backup_tools.settings.runbook(_RUNBOOK)))
    yield dg.AssetCheckResult(
        asset_key=DUMPS,
        check_name=_COMPLETE,
        passed=not errors,
        description="; ".join(e.message for e in errors) or f"{len(taken)} databases",
        metadata={"what to do": "; ".join(e.hint for e in errors) or "nothing"},
    )


def _dumps_metadata(taken: "list[Dump]", runbook: str) -> dict[str, dg.MetadataValue]:
    names = ("dump", "rows", "canary", "snapshot", "MB", "MB stored", "seconds", "from")
    kinds = {"rows": "int", "canary": "int", "MB": "float", "MB stored": "float", "seconds": "float"}
    rows = [
        dg.TableRecord(
            {
                "dump": d.id,
                "rows": sum(d.record.rows.values()),
                "canary": -1 if d.record.canary is None else d.record.canary,
                "snapshot": d.record.snapshot_at,
                "MB": round(d.record.size_bytes / 1e6, 2),
                "MB stored": round(d.record.stored_bytes / 1e6, 2),
                "seconds": d.record.seconds,
                "from": d.record.source,
            }
        )
        for d in taken
    ]
    return {
        _DUMPS: dg.MetadataValue.text(" ".join(d.id for d in taken)),
        "databases": dg.MetadataValue.table(rows, dg.TableSchema([dg.TableColumn(n, kinds.get(n, "string")) for n in names])),
        # Numbers by day: the asset's Plots tab draws them.
        "rows": dg.MetadataValue.int(sum(sum(d.record.rows.values()) for d in taken)),
        "size_bytes": dg.MetadataValue.int(sum(d.record.size_bytes for d in taken)),
        "stored_bytes": dg.MetadataValue.int(sum(d.record.stored_bytes for d in taken)),
        "seconds": dg.MetadataValue.float(round(sum(d.record.seconds for d in taken), 2)),
        "restore": dg.MetadataValue.text(f"akidb-pipelines backups restore {taken[0].id} --to FILE"),
        "runbook": dg.MetadataValue.url(runbook),
    }


@dg.multi_asset_check(
    name="backup_checks",
    specs=[
        dg.AssetCheckSpec(name, asset=DUMPS, blocking=name in BLOCKING_CHECKS, description=_ABOUT_CHECKS[name]) for name in CHECKS
    ],
    can_subset=True,
)
def backup_checks(context: dg.AssetCheckExecutionContext, backup_tools: Tools) -> Iterator[dg.AssetCheckResult]:
    """One step for all checks: every dump is restored once."""
    key = newest_partition(context, DUMPS)
    names = [c for c in CHECKS if c in {k.name for k in context.selected_asset_check_keys}]
    found: dict[str, list[CheckReport]] = {name: [] for name in names}
    with telling(retry=True):
        depot = backup_tools.open_depot()
        dumps = [depot.find(name) for name in built_metadata(context, DUMPS, key, _DUMPS).split()]
        for dump in dumps:
            for report in depot.run_checks(dump, names, logging(context)(dump.id)):
                context.log.info(f"{dump.id} {report.check}: {report.summary}")
                told = tuple(replace(r, entity=dump.id, attribute="") for r in report.results)
                found[report.check].append(replace(report, results=told))
    for name, reports in found.items():
        # A dump that could not be brought back has no other outcome.
        results = tuple(r for report in reports for r in report.results)
        missing = len(dumps) - len(reports)
        together = replace(reports[0], results=results, seconds=sum(r.seconds for r in reports)) if reports else None
        about = {
            "partition_key": dg.MetadataValue.text(key),
            _DUMPS: dg.MetadataValue.text(" ".join(d.id for d in dumps)),
            "dumps checked": dg.MetadataValue.int(len(reports)),
        }
        if together is None or missing:
            described = f"{missing} of {len(dumps)} dumps could not be brought back"
            yield dg.AssetCheckResult(asset_key=DUMPS, check_name=name, passed=False, description=described, metadata=about)
        else:
            yield check_result(together, DUMPS, **about)


@dg.multi_asset(
    name="terraform_state_backup",
    partitions_def=DAYS,
    can_subset=True,
    specs=[
        dg.AssetSpec(
            TERRAFORM,
            group_name=GROUP,
            owners=started_by("backups"),
            kinds={"terraform"},
            description="A copy of Terraform's state in the versioned area tfstate; a stale, truncated or foreign one is refused.",
            tags={"runbook": "node-lost-in-staging"},
            skippable=True,
        )
    ],
    check_specs=[dg.AssetCheckSpec(name, asset=TERRAFORM, description=_ABOUT_CHECKS[name]) for name in _KEPT_CHECKS],
)
def terraform_state_backup(
    context: dg.AssetExecutionContext, backup_tools: Tools
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Keep every state that there is."""
    with telling(retry=True):
        _expect_today(context)
        found, shelf = backup_tools.terraform_states(), backup_tools.open_states()
        # A lab's state is begun anew with every lab.
        kept = [shelf.keep(state, name, new_lineage=name == LAB)[0] for name, state in found.items()]
        for copy in kept:
            shelf.state(copy)  # read back, parsed, and compared with what it was kept as
    if not kept:
        context.log.warning("not configured: set AKIDB_TERRAFORM_STATE")
        yield from ended_checks(context, TERRAFORM, _KEPT_CHECKS)
        return
    metadata: dict[str, dg.MetadataValue] = {}
    for copy in kept:
        metadata |= {
            f"{copy.name}: serial": dg.MetadataValue.int(copy.serial),
            f"{copy.name}: lineage": dg.MetadataValue.text(copy.lineage),
            f"{copy.name}: resources": dg.MetadataValue.int(copy.resources),
            f"{copy.name}: sha256": dg.MetadataValue.text(copy.sha256),
            f"{copy.name}: kept at": dg.MetadataValue.text(copy.taken_at),
        }
    yield dg.MaterializeResult(asset_key=TERRAFORM, metadata=metadata)
    yield from _kept_checks(backup_tools, TERRAFORM, [copy.catalogued() for copy in kept])


@dg.multi_asset(
    name="dashboard_export",
    partitions_def=DAYS,
    can_subset=True,
    specs=[
        dg.AssetSpec(
            DASHBOARDS,
            group_name=GROUP,
            owners=started_by("backups"),
            kinds={"grafana", "git"},
            description="Grafana's dashboards as normalised JSON in a git repository; a commit when one changed.",
            tags={"runbook": "node-lost-in-staging"},
            skippable=True,
        )
    ],
    check_specs=[dg.AssetCheckSpec(name, asset=DASHBOARDS, description=_ABOUT_CHECKS[name]) for name in _KEPT_CHECKS],
)
def dashboard_export(
    context: dg.AssetExecutionContext, backup_tools: Tools
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Export, and commit what changed."""
    with telling(retry=True):
        _expect_today(context)
        done = backup_tools.export_dashboards()
    if done is None:
        context.log.warning("not configured: set AKIDB_GRAFANA_URL and AKIDB_GRAFANA_TOKEN")
        yield from ended_checks(context, DASHBOARDS, _KEPT_CHECKS)
        return
    yield dg.MaterializeResult(
        asset_key=DASHBOARDS,
        data_version=dg.DataVersion(done.commit),
        metadata={
            "dashboards": dg.MetadataValue.int(done.dashboards),
            "changed": dg.MetadataValue.text("; ".join(done.changed) or "nothing"),
            "commit": dg.MetadataValue.text(done.commit),
            "repository": dg.MetadataValue.path(str(backup_tools.settings.dashboards_path)),
        },
    )
    yield from _kept_checks(backup_tools, DASHBOARDS, [done.catalogued()] if done.dashboards else [])


def _kept_checks(tools: BackupTools, asset: dg.AssetKey, kept: "list[CataloguedBackup]") -> Iterator[dg.AssetCheckResult]:
    """What was read back is restorable: reading raised otherwise. The others are of the catalog's rows."""
    catalog = tools.open_depot().catalog
    for copy in kept:
        catalog.record_backups(copy.database, [copy])
    told = ", ".join(f"{copy.backup_id}, {copy.size_bytes} bytes" for copy in kept) or "empty"
    yield dg.AssetCheckResult(asset_key=asset, check_name="restorable", passed=True, description=f"read back: {told}")
    with telling():
        for report in tools.check_backups():
            yield check_result(report, asset)


class RetentionConfig(dg.Config):
    """What to do."""

    dry_run: bool = False
    """Only say what would be archived and removed."""


@dg.asset(
    key=RETENTION,
    deps=[DUMPS],
    partitions_def=DAYS,
    group_name=GROUP,
    owners=started_by("backups"),
    kinds={"python"},
    description="Dumps archived and removed: 30 days and 12 months stay, the newest 7 days at hand. Waits for the day's checks.",
    tags={"runbook": "restore-a-database"},
)
def dump_retention(context: dg.AssetExecutionContext, config: RetentionConfig, backup_tools: Tools) -> dg.MaterializeResult[None]:
    """Clear away."""
    with telling(retry=True):
        decisions = backup_tools.open_depot().prune(dry_run=config.dry_run, report=logging(context)("retention"))
    counts = {action: sum(d.action == action for d in decisions) for action in ("keep", "archive", "remove")}
    rows = [dg.TableRecord({"dump": d.key.id, "action": d.action, "why": d.why}) for d in decisions if d.action != "keep"]
    return dg.MaterializeResult(
        metadata={
            "dry run": dg.MetadataValue.bool(config.dry_run),
            "at hand": dg.MetadataValue.int(counts["keep"]),
            "archived": dg.MetadataValue.int(counts["archive"]),
            "removed": dg.MetadataValue.int(counts["remove"]),
            "decisions": dg.MetadataValue.table(rows[:200], dg.TableSchema([dg.TableColumn(c) for c in ("dump", "action", "why")])),
        }
    )
