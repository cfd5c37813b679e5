"""A year of Dagster history, written through its event-log API: five weekly pipelines and the daily ones, with checks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventType, EngineEventData, StepMaterializationData
from dagster._core.utils import make_new_run_id

from akidb_pipelines.operations.facts import Watched

_WEEKLY = (
    ("fixtures", ("fixture_databases", "fixture_release", "artifact_registry")),
    ("runner_images", ("runner_image_build", "runner_image_archive", "runner_image_release")),
    ("registry_gc", ("registry_retention", "image_packs")),
    ("costs_review", ("cost_review",)),
    ("observe_sandbox", ()),
)
_DAILY = (
    ("backups", ("staging_dumps", "terraform_state_backup", "dashboard_export", "dump_retention")),
    ("costs_intake", ("focus_files", "cost_lines")),
    ("costs_rollup", ("cost_rollup", "cost_allocation", "cost_forecast", "quota_burndown")),
)
_ENGINE_EVENTS = 8
"""Besides what is made; their number matters to the database's size only."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    runs: int
    events: int
    bytes: int


def write_year(instance: dg.DagsterInstance, watched: Watched) -> Written:
    """Write it into an empty instance."""
    today = datetime.now(UTC).date()
    runs = events = 0
    for back in range(364, -1, -1):
        day = today - timedelta(days=back)
        for job, assets in (*_DAILY, *(_WEEKLY if day.weekday() == 0 else ())):
            of = watched.members.get(dg.AssetKey(assets[0])) if assets else None
            for member in sorted(of.names) if of else ("",):
                tags = {"dagster/partition": f"{member}|{day}", f"dagster/partition/{of.dimension}": member} if of else {}
                events += _run(instance, watched, job, assets, {"dagster/partition": day.isoformat(), **tags})
                runs += 1
    stored = sum(p.stat().st_size for p in Path(instance.root_directory).rglob("*") if p.is_file())
    return Written(runs, events, stored)


def _run(instance: dg.DagsterInstance, watched: Watched, job: str, assets: tuple[str, ...], tags: dict[str, str]) -> int:
    run = dg.DagsterRun(job, run_id=make_new_run_id(), status=dg.DagsterRunStatus.STARTED, tags=tags)
    instance.add_run(run)
    line = "a line such as Dagster writes " * 8
    engine = DagsterEvent(DagsterEventType.ENGINE_EVENT.value, job, event_specific_data=EngineEventData(), message=line)
    told = [engine] * _ENGINE_EVENTS
    for asset in assets:
        key = dg.AssetKey(asset)
        numbers = {name: n for n, name in enumerate(("size_bytes", "stored_bytes", "seconds", "rows", "migration_seconds"), 1)}
        made = dg.AssetMaterialization(key, partition=tags["dagster/partition"], metadata=numbers)
        told.append(
            DagsterEvent(DagsterEventType.ASSET_MATERIALIZATION.value, job, event_specific_data=StepMaterializationData(made))
        )
        for check in watched.checks:
            if check.asset_key == key:
                found = dg.AssetCheckEvaluation(asset_key=key, check_name=check.name, passed=True, metadata={"seconds": 0.5})
                told.append(DagsterEvent(DagsterEventType.ASSET_CHECK_EVALUATION.value, job, event_specific_data=found))
    told.append(DagsterEvent(DagsterEventType.RUN_SUCCESS.value, job))
    for event in told:
        instance.report_dagster_event(event, run.run_id)
    return len(told)
