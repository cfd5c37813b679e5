"""Costs inside Dagster: intake, rollup with its checks and pictures, restatements that ask by themselves, the review's calendar."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from akidb_pipelines.definitions import build_defs
from akidb_pipelines.periods import Month
from akidb_pipelines.resources import CostTools
from schedules.schedules import costs_intake, costs_review
from schedules.sensors import costs_restatement, restatements
from tests.costs.conftest import focus

YESTERDAY = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()


@pytest.fixture
def instance():
    with dg.instance_for_test() as made:
        yield made


def run(settings, instance, job, key=None):
    return build_defs(settings).resolve_job_def(job).execute_in_process(instance=instance, partition_key=key, raise_on_error=False)


def told(done, asset):
    (event,) = [e for e in done.get_asset_materialization_events() if e.asset_key == dg.AssetKey(asset)]
    return {name: value.value for name, value in event.materialization.metadata.items()}


def evaluations(done):
    return {e.check_name: e for e in done.get_asset_check_evaluations()}


def asked(settings, instance):
    """The months that the restatement sensor asks for."""
    context = dg.build_sensor_context(instance=instance, resources={"cost_tools": CostTools(settings)})
    found = costs_restatement(context)
    return [] if isinstance(found, dg.SkipReason) else [r.partition_key for r in found]


def test_everything_loads_together(settings):
    """Names of jobs, assets, schedules and sensors must not meet."""
    names = [j.name for j in build_defs(settings).get_repository_def().get_all_jobs()]
    assert {"costs_intake", "costs_rollup", "costs_review"} <= set(names)


def test_the_labs_bill_is_taken_in_added_up_and_reviewed_by_default(settings, instance):
    done = run(settings, instance, "costs_intake", YESTERDAY)
    assert done.success and evaluations(done)["quarantine"].passed
    assert told(done, "focus_files")["sample data"] is True
    months = asked(settings, instance)
    assert len(months) == 4 and months[-1] == Month.containing(datetime.now(UTC).date() - timedelta(days=1)).key
    for month in months[-2:]:
        done = run(settings, instance, "costs_rollup", month)
        assert done.success
        found = evaluations(done)
        assert [n for n in ("exact", "known_owners", "columns", "cedar_entities") if not found[n].passed] == []
        assert not found["line_overrun"].passed and found["line_overrun"].severity is dg.AssetCheckSeverity.WARN
        assert found["usage_api"].description == "not compared: billing files do not come from OCI"
    assert asked(settings, instance) == months[:-2]
    assert told(done, "cost_rollup")["sample data"] is True
    for asset, picture in (("cost_forecast", "lines against plan"), ("cost_allocation", "teams"), ("quota_burndown", "quotas")):
        assert told(done, asset)[picture].startswith("![") and "base64," in told(done, asset)[picture]
    done = run(settings, instance, "costs_review")
    review = told(done, "cost_review")
    assert "**Sample data.**" in review["review"] and review["review"].count("data:image/png;base64,") == 4
    assert review["lines above plan"] == "Not in the plan"


@pytest.fixture
def real(settings, tmp_path):
    folder = tmp_path / "bill"
    folder.mkdir()
    return settings.model_copy(update={"cost_source": str(folder)}), folder


def test_a_file_that_cannot_be_read_fails_its_check_and_the_others_count(real, instance):
    settings, folder = real
    (folder / "good.csv").write_text(focus([{"oci_ReferenceNumber": "r1"}]))
    (folder / "bad.csv").write_text(focus([{"BilledCost": "x"}]))
    done = run(settings, instance, "costs_intake", YESTERDAY)
    check = evaluations(done)["quarantine"]
    (row,) = [record.data for record in check.metadata["broken"].value.records]
    assert not check.passed and check.blocking
    assert row["id"] == "bad.csv" and row["found"].startswith("row 1, BilledCost 'x': is no number")
    assert told(done, "cost_lines")["sample data"] is False
    assert "2026-10-01" in asked(settings, instance)


def test_an_unknown_team_holds_allocation_forecast_and_quotas_back(real, instance):
    settings, folder = real
    (folder / "a.csv").write_text(focus([{"Tags": '{"team": "strangers"}'}]))
    run(settings, instance, "costs_intake", YESTERDAY)
    done = run(settings, instance, "costs_rollup", "2026-10-01")
    assert not evaluations(done)["known_owners"].passed
    made = {e.asset_key.to_user_string() for e in done.get_asset_materialization_events()}
    assert made == {"cost_rollup"}


def test_a_late_file_makes_the_sensor_ask_again(real, instance):
    settings, folder = real
    (folder / "a.csv").write_text(focus([{"oci_ReferenceNumber": "r1"}]))
    run(settings, instance, "costs_intake", YESTERDAY)
    first = asked(settings, instance)
    run(settings, instance, "costs_rollup", "2026-10-01")
    assert "2026-10-01" in first and "2026-10-01" not in asked(settings, instance)
    (folder / "late.csv").write_text(focus([{"oci_ReferenceNumber": "r2"}]))
    run(settings, instance, "costs_intake", YESTERDAY)
    assert "2026-10-01" in asked(settings, instance)
    done = run(settings, instance, "costs_rollup", "2026-10-01")
    assert told(done, "cost_rollup")["version"] == 2 and told(done, "cost_rollup")["added by this version"] == "1.5"


def test_a_run_key_is_of_the_files_and_months_before_the_first_are_left_alone():
    november, old = Month.parse("2026-11"), Month.parse("2024-01")
    (one,) = restatements({november: "state", old: "other"}, date(2026, 11, 26))
    assert one.partition_key == "2026-11-01" and one.run_key == "2026-11:state:2026-11-26"


def test_a_month_without_lines_and_a_review_of_nothing_fail_with_what_to_do(settings, instance):
    for job, key, told in (("costs_rollup", "2025-11-01", "costs import"), ("costs_review", None, "costs rollup --month")):
        done = run(settings, instance, job, key)
        (failure,) = [e for e in done.all_events if e.is_step_failure]
        assert told in str(failure.event_specific_data.user_failure_data.description)


def test_a_month_that_is_held_back_is_not_reviewed(real, instance):
    settings, folder = real
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    month = Month.containing(yesterday)
    (folder / "a.csv").write_text(focus([{"Tags": '{"team": "strangers"}', "BillingPeriodStart": f"{month.first}T00:00:00Z"}]))
    run(settings, instance, "costs_intake", YESTERDAY)
    run(settings, instance, "costs_rollup", month.key)
    done = run(settings, instance, "costs_review")
    (failure,) = [e for e in done.all_events if e.is_step_failure]
    assert "known_owners: team strangers is not known" in str(failure.event_specific_data.user_failure_data.description)


def test_the_review_is_due_every_other_monday_and_intake_is_of_yesterday():
    monday = datetime(2026, 11, 23, 8, tzinfo=UTC)
    schedule = costs_review("0 8 * * 1")
    due = schedule(dg.build_schedule_context(scheduled_execution_time=monday))
    assert due.run_key == "2026-11-23"
    skipped = schedule(dg.build_schedule_context(scheduled_execution_time=monday - timedelta(days=7)))
    assert isinstance(skipped, dg.SkipReason) and "due on 2026-11-23" in skipped.skip_message
    intake = costs_intake("0 6 * * *")(dg.build_schedule_context(scheduled_execution_time=monday))
    assert intake.partition_key == "2026-11-22"
