"""Which runs Dagster should have tried again and did not. That its daemon does so when it is asked is in test_chaos.py."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG, WILL_RETRY_TAG
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.auto_run_reexecution.event_log_consumer import _create_cursor_key

from akidb_pipelines.operations.retries import ask_again

READ_UP_TO = _create_cursor_key(dg.DagsterEventType.RUN_FAILURE)
STARTED = dg.DagsterRunStatus.STARTED
LOCATION = GrpcServerCodeLocationOrigin(host="127.0.0.1", port=1, location_name="akidb")
ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(LOCATION, "__repository__"), "fixtures")


@pytest.fixture
def instance(tmp_path):
    (tmp_path / "dagster.yaml").write_text(
        "telemetry: {enabled: false}\nrun_retries: {enabled: true, max_retries: 1, retry_on_asset_or_op_failure: false}\n"
    )
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def start(instance, week="2026-W47", again=None):
    """A run of a week; one that tries another one again."""
    tags, group = {"dagster/partition": week}, {}
    if again:
        group = {"root_run_id": again.run_id, "parent_run_id": again.run_id}
        tags |= {ROOT_RUN_ID_TAG: again.run_id, PARENT_RUN_ID_TAG: again.run_id}
    return create_run_for_test(instance, "fixtures", status=STARTED, tags=tags, remote_job_origin=ORIGIN, **group)


def failed(instance, reason=RunFailureReason.RUN_EXCEPTION, **rest):
    """A run whose process was lost."""
    run = start(instance, **rest)
    instance.report_run_failed(run, job_failure_data=JobFailureData(None, failure_reason=reason))
    return run


def daemon_has_read_all(instance):
    """As it has when it looked before the run's status was stored."""
    newest = instance.event_log_storage.get_maximum_record_id() or 0
    instance.daemon_cursor_storage.set_cursor_values({READ_UP_TO: str(newest)})


def read_up_to(instance):
    return int(instance.daemon_cursor_storage.get_cursor_values({READ_UP_TO})[READ_UP_TO])


def asked(instance, **rest):
    return [run.run_id for run in ask_again(instance, **rest).asked]


def read_next(instance):
    """What the daemon will read."""
    found = instance.event_log_storage.get_logs_for_all_runs_by_log_id(read_up_to(instance), dg.DagsterEventType.RUN_FAILURE)
    return [entry.run_id for entry in found.values()]


def promised(instance, run):
    return instance.get_run_by_id(run.run_id).tags.get(WILL_RETRY_TAG)


def test_a_failure_that_the_daemon_has_not_dealt_with_is_not_lost(instance):
    daemon_has_read_all(instance)
    failed(instance)
    assert asked(instance) == []


def test_the_daemon_is_made_to_read_the_lost_failure_again_and_none_before_it(instance):
    failed(instance, RunFailureReason.STEP_FAILURE, week="2026-W45")
    run = failed(instance)
    failed(instance, RunFailureReason.STEP_FAILURE, week="2026-W48")
    daemon_has_read_all(instance)
    assert read_next(instance) == []
    assert asked(instance) == [run.run_id]
    assert read_next(instance)[0] == run.run_id
    assert asked(instance) == []  # it is the daemon's turn
    assert any("tried again" in entry.message for entry in instance.all_logs(run.run_id))


def test_what_the_daemon_gave_up_because_the_code_server_was_away_is_to_be_tried_again(instance):
    run = failed(instance)
    instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "false"})
    daemon_has_read_all(instance)
    assert asked(instance) == [run.run_id]
    assert promised(instance, run) == "true"


def test_a_failed_step_is_a_finding_and_stays_one(instance):
    failed(instance, RunFailureReason.STEP_FAILURE)
    daemon_has_read_all(instance)
    assert asked(instance) == []


def test_what_was_tried_again_is_not_lost(instance):
    run = failed(instance)
    daemon_has_read_all(instance)
    again = start(instance, again=run)
    instance.add_run_tags(run.run_id, {AUTO_RETRY_RUN_ID_TAG: again.run_id})
    assert asked(instance) == []


def test_what_somebody_tried_again_by_hand_is_not_tried_again_when_the_daemon_reads_it_for_anothers_sake(instance):
    """The daemon believes the tag alone."""
    run, by_hand = failed(instance), failed(instance, week="2026-W48")
    start(instance, "2026-W48", again=by_hand)
    daemon_has_read_all(instance)
    assert promised(instance, by_hand) == "true"
    found = ask_again(instance)
    assert ([r.run_id for r in found.asked], [r.run_id for r in found.given_up]) == ([run.run_id], [by_hand.run_id])
    assert promised(instance, by_hand) == "false"


def test_what_failed_more_than_six_hours_ago_is_history(instance):
    run = failed(instance)
    daemon_has_read_all(instance)
    now = datetime.now(UTC)
    assert asked(instance, now=now + timedelta(hours=7)) == []
    assert asked(instance, now=now + timedelta(hours=5)) == [run.run_id]


def test_a_job_that_nobody_starts_again_but_a_person_is_left_alone(instance):
    run = create_run_for_test(instance, "dr_drill", status=STARTED, tags={"dagster/max_retries": "0"}, remote_job_origin=ORIGIN)
    instance.report_run_failed(run)
    daemon_has_read_all(instance)
    assert asked(instance) == []


def test_the_daemon_is_asked_three_times_and_then_a_person_is(instance):
    """It refuses where it has a reason to: the job is gone, say."""
    run = failed(instance)
    found = []
    for _ in range(5):
        daemon_has_read_all(instance)
        found.append(ask_again(instance))
    assert [len(f.asked) for f in found] == [1, 1, 1, 0, 0]
    assert [len(f.given_up) for f in found] == [0, 0, 0, 1, 0]
    assert promised(instance, run) == "false"


def test_a_count_that_is_none_stops_nobodys_retries(instance):
    """Who administers may write any tag."""
    runs = [failed(instance, week=week) for week in ("2026-W46", "2026-W47")]
    instance.add_run_tags(runs[0].run_id, {"akidb/asked_again": "often"})
    daemon_has_read_all(instance)
    assert sorted(asked(instance)) == sorted(run.run_id for run in runs)
