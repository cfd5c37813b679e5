"""More than one host: runs on Celery's workers over a real Redis and PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import httpx
import psutil
import pytest
import yaml

from tests.services.dagster_machine import DagsterMachine, wait
from tests.services.postgres import Postgres
from tests.services.server import ROOT, free_port

SUCCESS, FAILURE, CANCELED = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED
pytestmark = pytest.mark.slow


class CeleryMachine(DagsterMachine):
    """With a Redis and a worker."""

    redis_port = 0

    def start_redis(self) -> None:
        """One that keeps nothing: when it is killed, it has forgotten everything."""
        command = ["redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        self.processes["redis"] = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def start_worker(self) -> None:
        """Start it, and wait until it answers."""
        celery = [str(Path(sys.executable).with_name("celery")), "-A", "dagster_celery.app"]
        log = (self.folder / "worker.log").open("ab")
        options = ["-Q", "dagster", "-n", "akidb@%h", "--concurrency", "2", "--prefetch-multiplier=1"]
        command = [*celery, "worker", *options]
        self.processes["worker"] = subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=log, stderr=log)
        log.close()
        ping = [*celery, "inspect", "ping", "--timeout", "2"]
        wait(lambda: subprocess.run(ping, env=self.environment, capture_output=True, check=False).returncode == 0, 90)

    def kill_worker(self) -> None:
        """The worker with its children, which run the runs."""
        worker = psutil.Process(self.processes["worker"].pid)
        everybody = [*worker.children(recursive=True), worker]
        for process in everybody:
            process.kill()
        self.processes["worker"].wait()


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("celery") / "machine"
    port = free_port()
    told = yaml.safe_load((ROOT / "deploy" / "dagster-celery.yaml").read_text())
    for part in ("local_artifact_storage", "compute_logs"):
        told[part]["config"]["base_dir"] = str(folder / "files")
    with Postgres(port=free_port()) as postgres:
        environment = {
            "AKIDB_PG_HOST": "127.0.0.1",
            "AKIDB_PG_PORT": str(postgres.port),
            "AKIDB_PG_USER": "akidb",
            "AKIDB_PG_PASSWORD": "not asked for",
            "AKIDB_PG_DB": urlsplit(postgres.database()).path.strip("/"),
            "AKIDB_CELERY_BROKER": f"redis://127.0.0.1:{port}/0",
            "AKIDB_CELERY_BACKEND": f"redis://127.0.0.1:{port}/1",
            "PYTHONPATH": os.pathsep.join((str(ROOT / "deploy" / "celery"), str(ROOT))),
        }
        with CeleryMachine(folder, yaml.safe_dump(told), environment=environment) as machine:
            machine.redis_port = port
            machine.start_redis()
            machine.start_worker()
            yield machine


def test_a_run_is_done_by_a_worker(machine):
    machine.forget()
    run_id = machine.in_second_step()
    (machine.marks / "go-on").touch()
    wait(lambda: machine.status(run_id) is SUCCESS)


@pytest.mark.exhaustive
def test_a_worker_that_is_lost_is_noticed_and_its_run_tried_again_elsewhere(machine, record_property):
    machine.forget()
    run_id = machine.in_second_step()
    machine.kill_worker()
    began = time.monotonic()
    wait(lambda: machine.status(run_id) is FAILURE, 90)
    record_property("detected_seconds", round(time.monotonic() - began, 1))
    (machine.marks / "go-on").touch()
    machine.start_worker()
    again = wait(lambda: machine.retry_of(run_id))
    wait(lambda: machine.status(again.run_id) is SUCCESS, 120)
    assert (machine.marked("first"), machine.marked("lasted")) == (1, 1)


@pytest.mark.exhaustive
def test_a_redis_that_is_lost_and_begins_anew_starts_nothing_twice(machine):
    machine.forget()
    run_id = machine.in_second_step()
    machine.kill("redis")
    time.sleep(10)
    machine.start_redis()
    time.sleep(15)  # three looks of the daemon at its runs
    assert machine.status(run_id) is dg.DagsterRunStatus.STARTED
    (machine.marks / "go-on").touch()
    wait(lambda: machine.status(run_id) is SUCCESS)
    assert machine.retry_of(run_id) is None
    assert (machine.marked("first"), machine.marked("lasts"), machine.marked("lasted")) == (1, 1, 1)
    assert machine.launch("burst", {"ops": {"short": {"config": {"name": "after"}}}})
    wait(lambda: machine.marked("after") == 1)


@pytest.mark.exhaustive
def test_what_is_terminated_stays_terminated(machine):
    machine.forget()
    run_id = machine.in_second_step()
    query = f'mutation {{ terminateRun(runId: "{run_id}") {{ __typename }} }}'
    httpx.post(f"http://127.0.0.1:{machine.port}/graphql", json={"query": query}, timeout=60).raise_for_status()
    wait(lambda: machine.status(run_id) is CANCELED)
    time.sleep(10)
    assert machine.retry_of(run_id) is None
