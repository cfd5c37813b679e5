"""Forgetting runs: what the newest history rests on stays, everything else goes with its events, logs and files."""

import os
import time
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from akidb_pipelines.operations.facts import watched_of
from akidb_pipelines.operations.pruning import prune

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-02-01")


@dg.asset(partitions_def=DAYS, check_specs=[dg.AssetCheckSpec("sound", asset="daily")])
def daily():
    yield dg.MaterializeResult()
    yield dg.AssetCheckResult(passed=True)


@dg.asset
def breaks() -> None:
    raise dg.Failure("always")


DEFS = dg.Definitions(
    assets=[daily, breaks], jobs=[dg.define_asset_job("days", ["daily"]), dg.define_asset_job("broken", ["breaks"])]
)
WATCHED = watched_of(DEFS.get_repository_def())


@pytest.fixture
def instance(tmp_path, monkeypatch):
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def run(instance, day):
    return DEFS.resolve_job_def("days").execute_in_process(instance=instance, partition_key=day).run_id


def test_of_every_partition_the_newest_stay(instance):
    first = [run(instance, "2026-01-01") for _ in range(4)]
    second = [run(instance, "2026-01-02") for _ in range(2)]
    done = prune(instance, WATCHED, 2, dry_run=False)
    assert {r.run_id for r in instance.get_runs()} == {*first[2:], *second}
    assert done.deleted == tuple(first[:2])
    assert done.kept == 4
    for day in ("2026-01-01", "2026-01-02"):
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey("daily"), asset_partitions=[day]), limit=9
        ).records
        assert len(records) == 2
    assert instance.get_latest_materialization_event(dg.AssetKey("daily")).run_id == second[-1]


def test_a_partition_keeps_its_history_however_many_newer_ones_there_are(instance):
    runs = [run(instance, f"2026-01-{day:02d}") for day in range(1, 13)]
    done = prune(instance, WATCHED, 1, dry_run=False)
    assert done.deleted == ()
    assert {r.run_id for r in instance.get_runs()} == {*runs}


def test_runs_that_made_nothing_are_kept_by_their_job(instance):
    ids = [DEFS.resolve_job_def("broken").execute_in_process(instance=instance, raise_on_error=False).run_id for _ in range(5)]
    done = prune(instance, WATCHED, 2, dry_run=False)
    assert done.by_job == {"broken": 3}
    assert {r.run_id for r in instance.get_runs()} == {*ids[3:]}


def test_a_run_in_flight_is_never_deleted(instance):
    old = [instance.create_run_for_job(DEFS.resolve_job_def("broken"), status=dg.DagsterRunStatus.STARTED) for _ in range(3)]
    assert prune(instance, WATCHED, 1, dry_run=False).deleted == ()
    assert len(instance.get_runs()) == len(old)


def test_what_a_sensor_asked_for_is_not_asked_for_again(instance, monkeypatch):
    """The key of a run is known by the run alone."""
    tags = {"dagster/run_key": "w1", "dagster/sensor_name": "fixture_drift"}
    asked = instance.create_run_for_job(DEFS.resolve_job_def("broken"), status=dg.DagsterRunStatus.FAILURE, tags=tags)
    instance.create_run_for_job(DEFS.resolve_job_def("broken"), status=dg.DagsterRunStatus.FAILURE)
    assert prune(instance, WATCHED, 1, dry_run=False).reasons["asked for by a sensor within 90 days"] == 1
    monkeypatch.setattr("akidb_pipelines.operations.pruning._KEYS_KEPT", timedelta(0))
    assert prune(instance, WATCHED, 1, dry_run=False).deleted == (asked.run_id,)


def test_logs_of_ticks_go_with_the_ticks(instance):
    run_id = run(instance, "2026-01-01")
    logs = []
    for key, days in (
        (["repository", "sensor", "1"], 91),
        (["repository", "sensor", "2"], 89),
        ([run_id, "compute_logs", "x"], 91),
    ):
        path = Path(instance.compute_log_manager.get_captured_local_path(key, "err"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (time.time() - days * 86400,) * 2)
        logs.append(path)
    assert prune(instance, WATCHED, 1, dry_run=True).tick_logs == 1
    assert all(path.exists() for path in logs)
    assert prune(instance, WATCHED, 1, dry_run=False).tick_logs == 1
    assert [path.exists() for path in logs] == [False, True, True]


def test_a_dry_run_only_says_it(instance):
    for _ in range(4):
        run(instance, "2026-01-01")
    said = prune(instance, WATCHED, 1, dry_run=True)
    assert len(said.deleted) == 3
    assert len(instance.get_runs()) == 4
    assert prune(instance, WATCHED, 1, dry_run=False).deleted == said.deleted


def test_files_of_deleted_runs_are_gone(instance, tmp_path):
    for _ in range(6):
        run(instance, "2026-01-01")
    done = prune(instance, WATCHED, 1, dry_run=False)
    left = {name for _, _, names in os.walk(tmp_path) for name in names}
    folders = {name for _, names, _ in os.walk(tmp_path) for name in names}
    assert not [n for n in left | folders for run_id in done.deleted if run_id in n]
