"""The pipeline inside Dagster: what ops see after a good week, a bad one, and a drift."""

from __future__ import annotations

import shutil

import dagster as dg
import pytest

from akidb_pipelines.cedar.sandbox import PRODUCT, SHIPPED, load_sandbox
from akidb_pipelines.definitions import build_defs
from akidb_pipelines.fixtures.stale import affected_weeks
from akidb_pipelines.fixtures.weekly import CHECKS, open_workshop
from akidb_pipelines.periods import Week
from akidb_pipelines.resources import FixtureTools
from assets.fixtures import DATABASES, RELEASE, SANDBOX
from assets.partitions import WEEKS
from schedules.sensors import fixture_drift, requests

MONDAY = "2026-11-09"


@pytest.fixture
def instance():
    with dg.instance_for_test() as made:
        yield made


def run(settings, instance, partition=MONDAY, **arguments):
    job = build_defs(settings).resolve_job_def("fixtures")
    return job.execute_in_process(instance=instance, partition_key=partition, raise_on_error=False, **arguments)


def evaluations(result):
    return {e.check_name: e for e in result.get_asset_check_evaluations()}


def edited_sandbox(tmp_path, old, new, file="akidb.cedar"):
    folder = tmp_path / "sandbox"
    shutil.copytree(SHIPPED, folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    return folder


def test_a_good_week_is_materialized_checked_and_released(settings, instance):
    result = run(settings, instance)
    assert result.success
    checks = evaluations(result)
    assert set(checks) == {*CHECKS, "fresh_pull", "metadata_expiry", "sandbox_agrees"}
    assert {name for name, e in checks.items() if not e.passed} == {"schema_drift"}
    drift = checks["schema_drift"]
    assert drift.severity is dg.AssetCheckSeverity.WARN
    assert "User.role enum values" in drift.description
    findings = drift.metadata["findings"].value.records
    assert any(r.data["policies"] == "support-looks" for r in findings)
    draft = settings.home / "adr-drafts" / "2026-W46-schema-drift.md"
    assert "RoleName has 'support'" in draft.read_text()
    assert all(checks[name].metadata["partition_key"].value == MONDAY for name in CHECKS)
    assert "2026-W46/r1: 3 files" in checks["fresh_pull"].description

    built = result.asset_materializations_for_node("fixture_databases")[0].metadata
    assert built["dagster/row_count"].value > 3000
    assert "users.email" in {c.name for c in built["dagster/column_schema"].value.columns}
    assert built["runbook"].value.endswith("runbooks/weekly-fixtures-failed.md")
    released = result.asset_materializations_for_node("fixture_release")[0].metadata
    assert released["release"].value == "2026-W46/r1"
    assert open_workshop(settings).registry.head("fixtures").id == "2026-W46/r1"


def test_a_failed_blocking_check_shows_its_rows_and_nothing_is_released(settings, instance, tmp_path):
    sandbox = edited_sandbox(tmp_path, ', "audit_log"]', "]", "akidb.cedarschema")
    result = run(settings.model_copy(update={"cedar_sandbox": sandbox}), instance)
    assert not result.success
    check = evaluations(result)["columns"]
    assert not check.passed
    assert check.severity is dg.AssetCheckSeverity.ERROR
    row = next(r.data for r in check.metadata["broken"].value.records if r.data["subject"] == "ci/AuditLog.resource_type")
    assert (row["rule"], row["found"]) == ("known values", "audit_log")
    assert row["rows"] > 0
    assert len(row["id"]) == 32
    assert "fixture_release" not in {e.step_key for e in result.get_step_success_events()}
    assert open_workshop(settings).publisher.index().names("fixtures") == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cedar_sandbox": "without a status"}, "UserStatus of the sandbox lacks 'deactivated'"),
        ({"cedar_sandbox": "nowhere"}, "no such folder"),
        ({"migrations": "nowhere"}, "no such folder"),
        ({"store": "ftp://x"}, "unknown kind of store"),
        ({"profiles": ("huge",)}, "there is no profile 'huge'"),
    ],
)
def test_a_wrong_setting_fails_the_run_in_words(settings, instance, tmp_path, change, told):
    value = {k: tmp_path / v if v == "nowhere" else v for k, v in change.items()}
    if change.get("cedar_sandbox") == "without a status":
        value["cedar_sandbox"] = edited_sandbox(tmp_path, '"suspended", "deactivated"', '"suspended"', "akidb.cedarschema")
    result = run(settings.model_copy(update=value), instance)
    data = result.get_step_failure_events()[0].step_failure_data
    assert told in data.user_failure_data.description
    assert "what to do" in data.user_failure_data.description


def test_a_partition_key_that_is_no_monday_is_refused(settings, instance):
    result = dg.materialize(
        list(build_defs(settings).assets)[1:2],
        instance=instance,
        resources={"fixture_tools": FixtureTools(settings)},
        tags={"dagster/partition": "2026-11-10"},
        raise_on_error=False,
    )
    assert not result.success
    assert "Tuesday" in result.get_step_failure_events()[0].step_failure_data.user_failure_data.description


def test_a_check_run_by_hand_takes_the_newest_week(settings, instance):
    assert run(settings, instance).success
    definitions = build_defs(settings)
    job = definitions.resolve_implicit_global_asset_job_def()
    keys = [dg.AssetCheckKey(DATABASES, "cedar_entities")]
    result = job.get_subset(asset_selection=set(), asset_check_selection=set(keys)).execute_in_process(instance=instance)
    (evaluation,) = result.get_asset_check_evaluations()
    assert evaluation.passed
    assert evaluation.metadata["partition_key"].value == MONDAY


def test_observing_the_sandbox_records_its_digest(settings, instance):
    result = build_defs(settings).resolve_job_def("observe_sandbox").execute_in_process(instance=instance)
    (event,) = result.get_asset_observation_events()
    tags = event.event_specific_data.asset_observation.tags
    assert tags["dagster/data_version"] == load_sandbox().sha256(PRODUCT)


# --- time


def test_the_running_week_is_a_partition_from_its_first_moment():
    from datetime import UTC, datetime

    for now, newest in (
        (datetime(2026, 11, 16, 0, 0, 1, tzinfo=UTC), "2026-11-16"),
        (datetime(2026, 11, 15, 23, 59, tzinfo=UTC), "2026-11-09"),
        (datetime(2026, 12, 31, 12, tzinfo=UTC), "2026-12-28"),
    ):
        with dg.partition_loading_context(effective_dt=now):
            assert WEEKS.get_last_partition_key() == newest
    assert WEEKS.get_first_partition_key() == "2025-11-03"


def test_the_mondays_tick_builds_the_week_that_begins(settings):
    from datetime import UTC, datetime

    schedule = build_defs(settings).resolve_schedule_def("weekly_fixtures")
    assert schedule.cron_schedule == "0 2 * * 1"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    # Also over the end of daylight saving in zones that have it: everything is UTC.
    for tick, key in ((datetime(2026, 11, 16, 2, tzinfo=UTC), "2026-11-16"), (datetime(2026, 12, 28, 2, tzinfo=UTC), "2026-12-28")):
        repository = build_defs(settings).get_repository_def()
        with dg.build_schedule_context(scheduled_execution_time=tick, repository_def=repository) as context:
            request = schedule.evaluate_tick(context).run_requests[0]
        assert (request.partition_key, request.run_key) == (key, key)


# --- drift


def sensor_result(settings, cursor=None, tools=None):
    with dg.build_sensor_context(cursor=cursor, resources={"fixture_tools": tools or FixtureTools(settings)}) as context:
        return fixture_drift(context)


def test_a_code_server_that_lives_on_sees_an_edited_sandbox(settings, instance, tmp_path):
    folder = edited_sandbox(tmp_path, "viewer-reads", "viewer-reads")
    tools = FixtureTools(settings.model_copy(update={"cedar_sandbox": folder}))
    assert run(tools.settings, instance).success
    assert "agree" in sensor_result(None, tools=tools).skip_reason.skip_message
    policies = folder / "akidb.cedar"
    policies.write_text(policies.read_text().replace("viewer-reads", "viewers-read"))
    assert "2026-W46" in sensor_result(None, tools=tools).skip_reason.skip_message


def test_the_drift_sensor_asks_and_rebuilds_only_when_told_to(settings, instance, tmp_path):
    assert run(settings, instance).success
    quiet = sensor_result(settings)
    assert "agree" in quiet.skip_reason.skip_message
    assert quiet.asset_events[0].asset_key == SANDBOX

    drifted = settings.model_copy(update={"cedar_sandbox": edited_sandbox(tmp_path, "viewer-reads", "viewers-read")})
    asked = sensor_result(drifted, quiet.cursor)
    assert not asked.run_requests
    assert "2026-W46" in asked.skip_reason.skip_message
    assert "backfill partitions 2026-11-09 to 2026-11-09" in asked.skip_reason.skip_message
    assert asked.cursor != quiet.cursor

    told = sensor_result(drifted.model_copy(update={"auto_backfill": True}), quiet.cursor)
    (request,) = told.run_requests
    assert request.partition_key == MONDAY
    assert request.run_key == f"drift:{told.cursor[:16]}:{MONDAY}"

    assert run(drifted, instance).success
    assert "agree" in sensor_result(drifted).skip_reason.skip_message
    assert open_workshop(settings).registry.head("fixtures").id == "2026-W46/r2"


def test_the_run_key_holds_the_digest_so_that_the_next_drift_runs_again():
    weeks = [Week.parse("2026-W46")]
    assert requests(weeks, "a" * 64)[0].run_key != requests(weeks, "b" * 64)[0].run_key
    assert requests(weeks, "a" * 64)[0].run_key == requests(weeks, "a" * 64)[0].run_key


def test_only_the_newest_revision_of_the_newest_weeks_counts():
    from akidb_pipelines.catalog.catalog import CataloguedRelease

    def release(week, revision, cedar):
        return CataloguedRelease(week.iso, revision, "m", cedar, 1, ("ci",))

    first = Week.parse("2026-W30")
    old = [release(first.shift(n), 1, "old") for n in range(12)]
    assert affected_weeks(old, "new") == [first.shift(n) for n in range(4, 12)]
    rebuilt = [*old, release(first.shift(11), 2, "new")]
    assert first.shift(11) not in affected_weeks(rebuilt, "new")


# --- what the UI lists


def test_every_asset_and_check_says_what_it_is_and_whose():
    graph = build_defs().resolve_asset_graph()
    for key in (SANDBOX, DATABASES, RELEASE):
        node = graph.get(key)
        assert node.owners
        assert node.description
        assert node.kinds
        assert node.group_name == "fixtures"
        assert node.tags["runbook"] in {"fixture-drift", "weekly-fixtures-failed"}
    for key in graph.asset_check_keys:
        assert graph.get_check_spec(key).description
