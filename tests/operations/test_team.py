"""The tier of a team, with its own dagster.yaml: PostgreSQL, a container for every run; and the faults that it must survive.

The image is Debian alone; this checkout and its environment are mounted into it. `make test-all` builds the real one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg
import docker
import httpx
import pytest
import yaml

from akidb_pipelines.catalog.catalog import Catalog
from akidb_pipelines.lab.runner import BASE
from tests.services.dagster_machine import DagsterMachine, wait
from tests.services.postgres import Postgres
from tests.services.prometheus import alertmanager, prometheus
from tests.services.receivers import Receivers
from tests.services.server import ROOT, Server, free_port

SUCCESS, FAILURE, CANCELED = dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED


def configuration(folder: Path) -> str:
    """deploy/dagster.yaml, with this machine's paths where the image has its own."""
    told = yaml.safe_load((ROOT / "deploy" / "dagster.yaml").read_text())
    told["local_artifact_storage"]["config"]["base_dir"] = str(folder / "files")
    told["compute_logs"]["config"]["base_dir"] = str(folder / "files" / "logs")
    launcher = told["run_launcher"]["config"]
    # Debian's own Python is in the image; another one is mounted.
    pythons = [] if sys.base_prefix == "/usr" else [sys.base_prefix]
    read_only = [str(ROOT), sys.prefix, *pythons]
    launcher["container_kwargs"]["volumes"] = [f"{folder}:{folder}", *(f"{p}:{p}:ro" for p in dict.fromkeys(read_only))]
    launcher["env_vars"] = ["PATH", "PYTHONPATH", "CHAOS_MARKS"]
    return yaml.safe_dump(told)


@pytest.fixture(scope="module")
def postgres_tcp():
    with Postgres(port=free_port()) as server:
        yield server


@pytest.fixture(scope="module")
def team(runner_lab, postgres_tcp, tmp_path_factory):
    folder = tmp_path_factory.mktemp("team") / "machine"
    database = urlsplit(postgres_tcp.database()).path.strip("/")
    environment = {
        "AKIDB_PG_HOST": "127.0.0.1",
        "AKIDB_PG_PORT": str(postgres_tcp.port),
        "AKIDB_PG_USER": "akidb",
        "AKIDB_PG_PASSWORD": "not asked for",
        "AKIDB_PG_DB": database,
        "AKIDB_IMAGE": BASE,
        "AKIDB_NETWORK": "host",
        "AKIDB_SEED": "4711",
        "AKIDB_SLACK_WEBHOOK": "https://hooks.slack.example/secret",
        "DOCKER_HOST": runner_lab.url,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with DagsterMachine(folder, configuration(folder), environment=environment) as machine:
        yield machine


@pytest.fixture
def engine(runner_lab):
    client = docker.DockerClient(base_url=runner_lab.url)
    yield client
    client.close()


@pytest.fixture
def machine(team):
    team.forget()
    return team


def container_of(engine, run_id):
    def found():
        return next(iter(engine.containers.list(filters={"label": f"dagster/run_id={run_id}"})), None)

    return wait(found)


def told(machine, run_id) -> str:
    return "\n".join(e.message for e in machine.instance.all_logs(run_id))


@pytest.mark.slow
def test_a_run_has_a_container_of_its_own_and_the_settings_that_it_needs(machine, engine, postgres_tcp):
    run_id = machine.in_second_step()
    container = container_of(engine, run_id)
    environment = dict(e.split("=", 1) for e in container.attrs["Config"]["Env"])
    assert environment["AKIDB_SEED"] == "4711"
    assert "AKIDB_SLACK_WEBHOOK" not in environment
    assert "not asked for" not in str(container.attrs["Config"]["Cmd"])
    (machine.marks / "go-on").touch()
    wait(lambda: machine.status(run_id) is SUCCESS)
    # Neither a process of this machine nor SQLite, which is what a missing dagster.yaml would quietly give.
    assert "Launching run in a new container" in told(machine, run_id)
    assert not list(machine.folder.rglob("*.db"))


@pytest.mark.slow
def test_the_init_step_brings_both_databases_to_this_versions_schema(machine, postgres_tcp):
    """Twice, as at every start of the compose file; two databases, since both keep a table alembic_version."""
    catalog = urlsplit(postgres_tcp.database()).path.strip("/")
    url = f"postgresql+psycopg://akidb@127.0.0.1:{postgres_tcp.port}/{catalog}"
    command = [sys.executable, "-m", "akidb_pipelines", "instance", "migrate"]
    for _ in range(2):
        done = subprocess.run(
            command, env={**machine.environment, "AKIDB_CATALOG": url}, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert Catalog(url).releases() == []
    assert {p.name: p.limit for p in machine.instance.event_log_storage.get_pool_limits()}["dr_drill"] == 1


@pytest.mark.slow
def test_a_killed_container_is_noticed_and_its_run_tried_again_from_the_lost_step(machine, engine, record_property):
    run_id = machine.in_second_step()
    container_of(engine, run_id).kill()
    began = time.monotonic()
    wait(lambda: machine.status(run_id) is FAILURE)
    seconds = time.monotonic() - began
    record_property("detected_seconds", round(seconds, 1))
    (machine.marks / "go-on").touch()
    again = wait(lambda: machine.retry_of(run_id))
    wait(lambda: machine.status(again.run_id) is SUCCESS)
    assert (machine.marked("first"), machine.marked("lasts"), machine.marked("lasted")) == (1, 2, 1)


@pytest.mark.slow
def test_a_killed_code_server_leaves_containers_alone(machine):
    run_id = machine.in_second_step()
    machine.kill("code")
    (machine.marks / "go-on").touch()
    wait(lambda: machine.status(run_id) is SUCCESS)
    machine.start("code")


@pytest.mark.slow
def test_what_is_terminated_stays_terminated(machine, engine):
    run_id = machine.in_second_step()
    container = container_of(engine, run_id)
    query = f'mutation {{ terminateRun(runId: "{run_id}") {{ __typename }} }}'
    answer = httpx.post(f"http://127.0.0.1:{machine.port}/graphql", json={"query": query}, timeout=60).json()
    assert answer["data"]["terminateRun"]["__typename"] == "TerminateRunSuccess"
    wait(lambda: machine.status(run_id) is CANCELED)
    wait(lambda: container.id not in [c.id for c in engine.containers.list()])
    assert machine.retry_of(run_id) is None


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3, pytest.param(25, marks=pytest.mark.exhaustive)])
def test_postgresql_goes_away_for_a_while(machine, postgres_tcp, seconds, record_property):
    """What a step cannot do meanwhile it does again: an op with a retry policy outlives even half a minute."""
    run_id = machine.launched("needs_database")
    wait(lambda: machine.marked("writes_events"))
    postgres_tcp.stop()
    time.sleep(seconds)
    postgres_tcp.start()
    machine.instance.dispose()
    machine.instance = dg.DagsterInstance.get()

    def ended():
        """The run, or the one that tried it again."""
        again = machine.retry_of(run_id)
        return machine.status(again.run_id if again else run_id) is SUCCESS

    wait(ended, 150)
    record_property("attempts", machine.marked("writes_events"))
    if machine.processes["daemon"].poll() is not None:
        machine.start("daemon")


@pytest.mark.slow
def test_from_a_failed_run_to_pagerduty_and_back(machine, tmp_path, monkeypatch):
    """PostgreSQL, containers, exporter, Prometheus, Alertmanager, PagerDuty and Slack: on, and off with the same dedup key."""
    port = free_port()
    for name, value in machine.environment.items():
        if name.startswith("AKIDB_PG") or name in {"DAGSTER_HOME", "AKIDB_HOME"}:
            monkeypatch.setenv(name, value)
    exporter = [sys.executable, "-m", "akidb_pipelines", "metrics", "serve", "--port", str(port)]
    (machine.marks / "break").touch()
    with (
        Receivers() as receivers,
        Server(exporter, port, "/metrics", tmp_path / "exporter.log"),
        alertmanager(tmp_path / "am", receivers) as manager,
        prometheus(
            tmp_path / "prometheus", {"exporter:9464": f"127.0.0.1:{port}", "webserver:9465": "127.0.0.1:1"}, manager.url[7:]
        ),
    ):
        failed = machine.launched("backups")
        wait(lambda: machine.status(failed) is FAILURE)
        wait(lambda: [i for i in receivers.open.values() if "backups" in i.summary])
        keys = {k for k, i in receivers.open.items() if "backups" in i.summary}
        assert len(keys) == 1
        (machine.marks / "break").unlink()
        better = machine.launch("backups")
        wait(lambda: machine.status(better) is SUCCESS)
        wait(lambda: not keys & {*receivers.open})
        assert any("pipeline.run.failed" in text for text in receivers.slack)
