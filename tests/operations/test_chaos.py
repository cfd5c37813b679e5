"""The fault matrix of docs/reliability.md on one machine and on PostgreSQL: real processes are killed, and what must come of it comes."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import time
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.scheduler.instigation import InstigatorType
from dagster._core.storage.tags import WILL_RETRY_TAG
from dagster._daemon.auto_run_reexecution.event_log_consumer import _create_cursor_key

from tests.services.clock import clock
from tests.services.dagster_machine import DagsterMachine, wait
from tests.services.server import ROOT

ONE_MACHINE = (ROOT / "dagster.yaml").read_text().replace("start_timeout_seconds: 180", "start_timeout_seconds: 60")
"""Where a run whose start was lost is told so after a minute instead of three."""
SUCCESS, FAILURE = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with DagsterMachine(tmp_path_factory.mktemp("chaos") / "machine", ONE_MACHINE) as machine:
        yield machine


@pytest.fixture
def machine(shared):
    shared.forget()
    return shared


def seconds_until_failed(machine, run_id) -> float:
    began = time.monotonic()
    wait(lambda: machine.status(run_id) is FAILURE)
    return time.monotonic() - began


@pytest.mark.slow
def test_a_killed_worker_is_noticed_and_its_run_tried_again_from_the_lost_step(machine, record_property):
    run_id = machine.in_second_step()
    machine.worker(run_id).kill()
    seconds = seconds_until_failed(machine, run_id)
    record_property("detected_seconds", round(seconds, 1))
    (machine.marks / "go-on").touch()
    again = wait(lambda: machine.retry_of(run_id))
    wait(lambda: machine.status(again.run_id) is SUCCESS)
    assert (machine.marked("first"), machine.marked("lasts"), machine.marked("lasted")) == (1, 2, 1)


@pytest.mark.slow
def test_a_killed_code_server_leaves_the_run_alone(machine):
    run_id = machine.in_second_step()
    machine.kill("code")
    (machine.marks / "go-on").touch()
    wait(lambda: machine.status(run_id) is SUCCESS)
    assert machine.marked("lasted") == 1
    machine.start("code")


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_worker_that_dies_with_its_code_server_is_noticed_by_the_daemon(machine, record_property):
    """As when a machine is out of memory. Nobody is left to tell but the daemon, which looks for the process itself."""
    run_id = machine.in_second_step()
    worker = machine.worker(run_id)
    machine.kill("code")
    worker.kill()
    seconds = seconds_until_failed(machine, run_id)
    record_property("detected_seconds", round(seconds, 1))
    assert machine.marked("lasted") == 0
    # Without its code Dagster cannot try it again, and gives it up: that is noticed when the code is back.
    wait(lambda: machine.instance.get_run_by_id(run_id).tags.get(WILL_RETRY_TAG) == "false")
    machine.start("code")
    (machine.marks / "go-on").touch()
    again = wait(lambda: machine.retry_of(run_id))
    wait(lambda: machine.status(again.run_id) is SUCCESS)
    assert (machine.marked("first"), machine.marked("lasted")) == (1, 1)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_failure_that_the_daemon_looked_at_too_early_is_tried_again_once(machine, record_property):
    """Before the run's status was stored; made here by telling the daemon, while it is away, that it has read everything."""
    run_id = machine.in_second_step()
    machine.kill("daemon")
    machine.worker(run_id).kill()
    wait(lambda: machine.status(run_id) is FAILURE)
    newest = machine.instance.event_log_storage.get_maximum_record_id()
    machine.instance.daemon_cursor_storage.set_cursor_values({_create_cursor_key(dg.DagsterEventType.RUN_FAILURE): str(newest)})
    (machine.marks / "go-on").touch()
    machine.start("daemon")
    began = time.monotonic()
    again = wait(lambda: machine.retry_of(run_id))
    record_property("tried_again_after_seconds", round(time.monotonic() - began, 1))
    wait(lambda: machine.status(again.run_id) is SUCCESS)
    asked = machine.ticks("lost_retries")
    wait(lambda: machine.ticks("lost_retries") > asked)
    time.sleep(10)  # two looks of the daemon at its failures
    assert [r.run_id for r in machine.instance.get_runs() if r.parent_run_id == run_id] == [again.run_id]
    assert (machine.marked("first"), machine.marked("lasted")) == (1, 1)


@pytest.mark.slow
def test_a_killed_daemon_stops_no_run_and_starts_none_twice(machine):
    first = machine.in_second_step()
    machine.kill("daemon")
    queued = [machine.launch("burst", _named(f"q{n}")) for n in range(3)]
    (machine.marks / "go-on").touch()
    wait(lambda: machine.status(first) is SUCCESS)
    machine.start("daemon")
    wait(lambda: all(machine.status(r) is SUCCESS for r in queued))
    assert [machine.marked(f"q{n}") for n in range(3)] == [1, 1, 1]


@pytest.mark.slow
def test_what_takes_hours_leaves_a_place_for_what_must_not_wait(machine):
    long = [machine.launched("two_steps", tags={"akidb/long": "true"}) for _ in range(2)]
    wait(lambda: machine.marked("lasts") == 1)
    quick = machine.launch("burst", _named("quick"))
    wait(lambda: machine.status(quick) is SUCCESS, 50)
    assert {machine.status(r) for r in long} == {dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.QUEUED}
    (machine.marks / "go-on").touch()
    wait(lambda: all(machine.status(r) is SUCCESS for r in long))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_run_that_was_being_started_when_everything_died_is_tried_again_and_runs_once(tmp_path):
    """Its process never was: nobody but the daemon's clock can tell."""
    assert "start_timeout_seconds: 60" in ONE_MACHINE
    with DagsterMachine(tmp_path / "machine", ONE_MACHINE) as machine:
        full = [machine.launched("two_steps") for _ in range(2)]
        wait(lambda: machine.marked("lasts") == 2)
        run_id = machine.launch("burst", _named("only"))
        machine.processes["code"].send_signal(signal.SIGSTOP)  # takes the run, and never starts it
        (machine.marks / "go-on").touch()
        wait(lambda: machine.status(run_id) is dg.DagsterRunStatus.STARTING)
        machine.kill("daemon", "code")
        machine.start("code")
        machine.start("daemon")
        wait(lambda: settled(machine, [*full, run_id]))
        assert (machine.status(run_id), machine.marked("only")) == (FAILURE, 1)


def settled(machine, runs) -> bool:
    """Every run has succeeded, itself or the one that tried it again."""
    return all(machine.status(r) is SUCCESS or ((a := machine.retry_of(r)) and machine.status(a.run_id) is SUCCESS) for r in runs)


def _named(name):
    return {"ops": {"short": {"config": {"name": name}}}}


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_burst_survives_the_death_of_everything(machine, record_property):
    """Fourteen runs on SQLite; daemon, code server, webserver and workers are killed in the middle."""
    runs = {machine.launch("burst", _named(f"b{n}")): f"b{n}" for n in range(14)}
    wait(lambda: sum(machine.status(r) is SUCCESS for r in runs) >= 3)
    flying = wait(lambda: [r for r in runs if machine.status(r) is dg.DagsterRunStatus.STARTED])
    workers = [machine.worker(r) for r in flying]
    machine.kill("daemon", "code", "webserver")
    for worker in workers:
        if worker.is_running():
            worker.kill()
    machine.start("code")
    machine.start("daemon", "webserver")

    wait(lambda: settled(machine, runs), 300)
    marks = {name: machine.marked(name) for name in runs.values()}
    lost = [name for name, count in marks.items() if count == 0]
    # Whoever was killed in flight may have left its mark before, and leaves another when it is tried again; nobody else does.
    twice = [name for run_id, name in runs.items() if marks[name] > 1 and run_id not in flying]
    record_property("killed_in_flight", len(flying))
    assert (lost, twice) == ([], [])
    assert "database is locked" not in machine.log()
    for path in (machine.folder / "home").rglob("*.db"):
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",), path


@pytest.mark.exhaustive
@pytest.mark.slow
def test_of_ticks_that_were_missed_the_newest_is_run_once(tmp_path):
    """The schedule began three days ago by the daemon's clock; then the daemon is dead until now. Earlier days are for a backfill."""
    now = datetime.now(UTC)
    with DagsterMachine(tmp_path / "machine", ONE_MACHINE, roles=("code",)) as machine:
        began = now - timedelta(days=3)
        then = {**machine.environment, **clock(began.strftime("@%Y-%m-%d 12:00:00")), "TZ": "UTC"}
        past = subprocess.Popen(machine.daemon, env=then, cwd=machine.folder, stderr=subprocess.DEVNULL)
        # Its sensors may have begun before its schedules.
        wait(lambda: machine.instance.all_instigator_state(instigator_type=InstigatorType.SCHEDULE))
        past.kill()
        past.wait()
        machine.start("daemon")
        # A day's tick is at 01:00.
        newest = (now if now.hour >= 1 else now - timedelta(days=1)).date().isoformat()
        wait(lambda: machine.marked(f"daily-{newest}"))
        machine.kill("daemon")
        machine.start("daemon")
        unfinished = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED])
        wait(lambda: not machine.instance.get_runs(unfinished))
        assert {p.name: machine.marked(p.name) for p in machine.marks.iterdir()} == {f"daily-{newest}": 1}
