"""Drills inside Dagster: a report with its pictures and checks, a dry run that is no drill, alarms, and recovery by itself."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from akidb_pipelines.catalog.catalog import CataloguedDrill
from akidb_pipelines.definitions import build_defs
from akidb_pipelines.periods import Quarter
from akidb_pipelines.resources import DrillTools
from akidb_pipelines.settings import Settings
from assets.drills import REPORT, recent_evaluations
from schedules.schedules import daily_backups, dr_drill
from schedules.sensors import drill_overdue, interrupted_drill

QUARTER = Quarter.containing(datetime.now(UTC)).key


@pytest.fixture
def instance():
    with dg.instance_for_test() as made:
        yield made


def run(settings, instance, **config):
    job = build_defs(settings).resolve_job_def("dr_drill")
    told = {"ops": {"dr_drill_report": {"config": config}}}
    return job.execute_in_process(instance=instance, partition_key=QUARTER, run_config=told, raise_on_error=False)


def evaluations(done):
    return {e.check_name: e for e in done.get_asset_check_evaluations()}


def reports(done):
    return [e for e in done.get_asset_materialization_events() if e.asset_key == REPORT]


@pytest.mark.slow
def test_a_drill_leaves_a_report_with_its_timeline_and_what_decided(swarm, instance):
    done = run(swarm.settings, instance)
    assert done.success
    (event,) = reports(done)
    told = {name: value.value for name, value in event.materialization.metadata.items()}
    assert told["verdict"] == "passed on lab" and 0 < told["rta_s"] < 120
    assert told["timeline"].startswith("![phases over time](data:image/png;base64,")
    assert told["over the quarters"].startswith("![RTA and RPA")
    assert "no proof for staging" in told["report"] and "target: oci" in told["staging's own drill"]
    found = evaluations(done)
    decided = ("rto", "rpo", "data_loss", "quorum_restored", "backup_verified", "undo_complete", "columns", "cedar_entities")
    assert [n for n in decided if not found[n].passed] == []
    assert found["lab_drill_recent"].passed
    assert "oci_drill_recent" not in found, "nobody could end an alert about it"
    swarm.expect_whole()


def test_a_drill_that_fails_is_red_and_its_report_is_there(swarm, instance):
    """Stopped before it touched anything."""
    stop = DrillTools(swarm.settings).cabinet().stop_file
    stop.touch()
    try:
        done = run(swarm.settings, instance, scenario="lost_terraform_state")
    finally:
        stop.unlink()
    assert not done.success
    (event,) = reports(done)
    assert event.materialization.metadata["verdict"].value == "aborted on lab"
    assert not evaluations(done)["rto"].passed


def test_a_dry_run_is_no_drill(swarm, instance):
    done = run(swarm.settings, instance, dry_run=True)
    assert done.success and reports(done) == [] and "rto" not in evaluations(done)
    assert [e for e in done.all_events if e.event_type_value == "ASSET_OBSERVATION"]


def test_oci_that_is_not_configured_says_what_to_set(swarm, instance):
    done = run(swarm.settings, instance, target="oci")
    assert not done.success and reports(done) == []
    (failure,) = [e for e in done.all_events if e.is_step_failure]
    assert "staging on OCI is not configured" in str(failure.event_specific_data.error)


def test_a_past_quarter_is_not_drilled_any_more(settings, instance):
    job = build_defs(settings).resolve_job_def("dr_drill")
    done = job.execute_in_process(instance=instance, partition_key="2026-01-01", raise_on_error=False)
    assert not done.success and reports(done) == []


# --- alarms


def drilled(settings: Settings, target: str, verdict: str, days_ago: int, scenario: str = "node_power_off") -> None:
    moment = (datetime.now(UTC) - timedelta(days=days_ago)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    row = CataloguedDrill(
        f"d{days_ago}-{target}-{verdict}", "2026-Q3", scenario, target, verdict, "me", False, 7200, 93600,
        12_000, 3_000, 12_000, 0, None, "0" * 64, moment, moment,
    )  # fmt: skip
    DrillTools(settings).open_desk().depot.catalog.record_drill(row)


def test_a_lab_drill_does_not_silence_the_alarm_of_oci(settings, tmp_path):
    settings = settings.model_copy(update={"drill_allow_list": tmp_path / "staging.yaml"})
    drilled(settings, "lab", "passed", 3)
    drilled(settings, "oci", "passed", 101)
    drilled(settings, "oci", "failed", 2)
    drilled(settings, "oci", "passed", 4, "partition")
    found = {e.check_name: e for e in recent_evaluations(DrillTools(settings), datetime.now(UTC))}
    assert found["lab_drill_recent"].passed
    assert not found["oci_drill_recent"].passed and found["oci_drill_recent"].severity is dg.AssetCheckSeverity.ERROR
    assert "101 days ago" in found["oci_drill_recent"].description


def test_the_overdue_sensor_tells_a_change_once(settings, instance):
    tools = DrillTools(settings)

    def tick(cursor: str | None):
        context = dg.build_sensor_context(instance=instance, cursor=cursor, resources={"drill_tools": tools})
        return drill_overdue(context)

    assert tick(None).asset_events == [], "where no lab was ever used none is overdue"
    drilled(settings, "lab", "failed", 2)
    first = tick(None)
    assert [e.check_name for e in first.asset_events] == ["lab_drill_recent"] and not first.asset_events[0].passed
    assert tick(first.cursor).asset_events == []
    drilled(settings, "lab", "passed", 1)
    again = tick(first.cursor)
    assert [e.passed for e in again.asset_events] == [True]


def test_a_target_that_is_no_longer_configured_is_no_longer_overdue(settings, instance, tmp_path):
    def tick(chosen, cursor=None):
        return drill_overdue(
            dg.build_sensor_context(instance=instance, cursor=cursor, resources={"drill_tools": DrillTools(chosen)})
        )

    first = tick(settings.model_copy(update={"drill_allow_list": tmp_path / "staging.yaml"}))
    assert [(e.check_name, e.passed) for e in first.asset_events] == [("oci_drill_recent", False)]
    instance.report_runless_asset_event(first.asset_events[0])
    then = tick(settings)  # whoever found it: it need not have been the sensor
    assert [(e.check_name, e.passed) for e in then.asset_events] == [("oci_drill_recent", True)]
    instance.report_runless_asset_event(then.asset_events[0])
    assert tick(settings, then.cursor).asset_events == []


def test_an_interrupted_drill_asks_for_its_recovery_once_a_try(settings, instance):
    tools = DrillTools(settings)

    def tick():
        return interrupted_drill(dg.build_sensor_context(instance=instance, resources={"drill_tools": tools}))

    assert isinstance(tick(), dg.SkipReason)
    journal = tools.cabinet().begin("lab", "node_power_off", datetime.now(UTC))
    journal.write("begin", target="lab", scenario="node_power_off", operator="me", dry_run=False)

    def key():
        return tick().run_key.rpartition(":")[0]  # the rest is the quarter of an hour

    first = key()
    assert first == key()
    journal.write("recovery_begun")
    assert first != key(), "what could not be put right, or was killed over it, is tried again"
    journal.write("recovery_begun")
    first = key()
    assert tick().job_name == "dr_drill_recovery" and first == key()
    with tools.cabinet().only_one():
        assert isinstance(tick(), dg.SkipReason), "while somebody drills or recovers"
    journal.write("recovery_begun")
    assert "somebody has to look" in tick().skip_message, "each try may build a machine anew: not for ever"
    done = build_defs(settings).resolve_job_def("dr_drill_recovery").execute_in_process(instance=instance)
    assert done.success and "no interrupted drill" in tick().skip_message


# --- schedules


def test_the_quarter_of_the_tick_is_drilled_and_oci_is_asked_for():
    moment = datetime(2026, 11, 15, 9, tzinfo=UTC)
    context = dg.build_schedule_context(scheduled_execution_time=moment)
    request = dr_drill("0 9 15 2,5,8,11 *")(context)
    assert request.partition_key == "2026-10-01" and "oci drill of 2026-Q4" in request.tags.values()
    assert json.dumps(request.run_config) == "{}", "the default is the lab, for real"


def test_backups_are_filed_under_the_day_of_the_tick():
    context = dg.build_schedule_context(scheduled_execution_time=datetime(2026, 11, 26, 1, tzinfo=UTC))
    assert daily_backups("0 1 * * *")(context).partition_key == "2026-11-26"
