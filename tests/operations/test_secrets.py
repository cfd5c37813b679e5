"""Secrets: where they come from, and that they go nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.operations.secrets import VaultSecretsLoader, take_secrets
from tests.services.http_stub import Status
from tests.services.server import ROOT
from tests.services.vault_stub import VaultStub

LOADER = "secrets: {custom: {module: akidb_pipelines.operations.secrets, class: VaultSecretsLoader, config: {mount: kv}}}\n"


@pytest.fixture
def vault(monkeypatch):
    with VaultStub() as stub:
        stub.stored["akidb-pipelines"] = {"AKIDB_GITHUB_TOKEN": "from-vault", "AKIDB_SLACK_WEBHOOK": "hook", "PATH": "/evil"}
        monkeypatch.setenv("VAULT_ADDR", stub.endpoint)
        monkeypatch.delenv("VAULT_TOKEN", raising=False)
        monkeypatch.setenv("VAULT_ROLE_ID", stub.role_id)
        monkeypatch.setenv("VAULT_SECRET_ID", stub.secret_id)
        yield stub


def load() -> dict[str, str]:
    return dict(VaultSecretsLoader("kv", "akidb-pipelines").get_secrets_for_environment(None))


def test_vault_gives_what_the_environment_lacks(vault, monkeypatch):
    monkeypatch.setenv("AKIDB_SLACK_WEBHOOK", "set by hand")
    monkeypatch.delenv("AKIDB_GITHUB_TOKEN", raising=False)
    assert load() == {"AKIDB_GITHUB_TOKEN": "from-vault"}


def test_a_run_gets_none_of_alerts(vault, monkeypatch):
    monkeypatch.delenv("AKIDB_GITHUB_TOKEN", raising=False)
    assert {*load()} == {"AKIDB_GITHUB_TOKEN", "AKIDB_SLACK_WEBHOOK"}
    for of_docker_or_celery in ("DAGSTER_RUN_JOB_NAME", "AKIDB_CELERY_WORKER"):
        with monkeypatch.context() as within:
            within.setenv(of_docker_or_celery, "x")
            assert {*load()} == {"AKIDB_GITHUB_TOKEN"}


def test_a_vault_that_refuses_or_is_away_is_told_without_its_secrets(vault, monkeypatch):
    monkeypatch.setenv("VAULT_SECRET_ID", "wrong-secret-id")
    with pytest.raises(OutsideError, match="Vault, kv/akidb-pipelines") as refused:
        load()
    assert "wrong-secret-id" not in str(refused.value)
    monkeypatch.setenv("VAULT_SECRET_ID", vault.secret_id)
    vault.inject(Status(503), path="/kv/", times=9)
    with pytest.raises(OutsideError):
        load()
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    with pytest.raises(OutsideError):
        load()


def test_what_is_no_text_is_refused(vault):
    vault.stored["akidb-pipelines"]["AKIDB_SEED"] = 7
    with pytest.raises(InputError, match="AKIDB_SEED"):
        load()


def test_an_instance_takes_the_loader_and_a_run_gets_the_secret(vault, tmp_path, monkeypatch):
    monkeypatch.delenv("AKIDB_GITHUB_TOKEN", raising=False)
    (tmp_path / "dagster.yaml").write_text(LOADER)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.inject_env_vars(None)
    assert os.environ.pop("AKIDB_GITHUB_TOKEN") == "from-vault"


def test_every_command_has_them_and_goes_on_without_vault(vault, tmp_path, monkeypatch):
    store = tmp_path / "told-by-vault"
    vault.stored["akidb-pipelines"] = {"AKIDB_STORE": f"file://{store}"}
    monkeypatch.setenv("AKIDB_HOME", str(tmp_path))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text(f"{LOADER}# no database that could be opened\nstorage: {{postgres: {{}}}}\n")

    told = run_cli("store", "doctor")
    assert (told.returncode, told.stderr) == (0, "")
    assert store.is_dir()

    store.rename(tmp_path / "seen")
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")
    told = run_cli("store", "doctor")
    assert told.returncode == 0
    assert not store.exists()
    assert "going on without secrets: Vault, kv/akidb-pipelines" in " ".join(told.stderr.split())


@pytest.mark.parametrize(
    "written", ["{}", "{custom: {module: nowhere, class: A}}", LOADER[9:-1].replace("VaultSecretsLoader", "VaultSecretLoader")]
)
def test_a_loader_that_is_written_wrongly_is_told(tmp_path, written):
    (tmp_path / "dagster.yaml").write_text(f"secrets: {written}\n")
    with pytest.raises(InputError, match=r"dagster\.yaml"):
        take_secrets(tmp_path / "dagster.yaml")


def run_cli(*arguments):
    command = [sys.executable, "-m", "akidb_pipelines", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


CANARIES = {
    "AKIDB_GITHUB_TOKEN": "canary-github-7f3a91",
    "AKIDB_GRAFANA_TOKEN": "canary-grafana-18bc02",
    "AKIDB_PAGERDUTY_ROUTING_KEY": "canary-pagerduty-c2d4e6",
    "AKIDB_SLACK_WEBHOOK": "http://127.0.0.1:1/services/canary-slack-55aa17",
    "AKIDB_SECURITY_WEBHOOK": "http://127.0.0.1:1/canary-security-90ff12",
    "AWS_SECRET_ACCESS_KEY": "canary-aws-6b1d7e",
    "VAULT_TOKEN": "canary-vault-e0e1e2",
}

JOBS = """
import os, sys
import dagster as dg
from akidb_pipelines.definitions import build_defs
from akidb_pipelines.instance import prepare_dagster_home
from akidb_pipelines.periods import Week
from akidb_pipelines.settings import Settings
from datetime import UTC, datetime

settings = Settings.load()
prepare_dagster_home(settings)
now = datetime.now(UTC)
week = Week.containing(now).key
month, day = now.strftime("%Y-%m-01"), now.date().isoformat()
quarter = f"{now.year}-{3 * ((now.month - 1) // 3) + 1:02d}-01"
keys = {"fixtures": week, "jetson_images": f"jetson-a|{month}", "runner_images": f"docker|{week}", "backups": day,
        "costs_rollup": month, "dr_drill": quarter, "costs_intake": None}
configs = {"dr_drill": {"ops": {"dr_drill_report": {"config": {"scenario": "no such scenario"}}}},
           "jetson_reflash": {"ops": {"reflash_device": {"config": {"device": "jetson-a"}}}},
           "fixtures": {"ops": {"fixture_databases": {"config": {"profiles": ["ci"]}}}}}
defs = build_defs(settings)
repository = defs.get_repository_def()
with dg.DagsterInstance.get() as instance:
    done = {}
    # jetson_images waits for minutes before it tries a device again that is not there; jetson_reflash asks the same device.
    left_out = {"jetson_images"}
    for name in sorted({j.name for j in repository.get_all_jobs() if not j.name.startswith("__")} - left_out):
        key = keys.get(name)
        if name == "costs_intake":
            from datetime import timedelta
            key = (now - timedelta(days=1)).date().isoformat()
        result = defs.resolve_job_def(name).execute_in_process(
            instance=instance, partition_key=key, run_config=configs.get(name), raise_on_error=False
        )
        done[name] = result.success
    repository.get_sensor_def("alerts").evaluate_tick(dg.build_sensor_context(instance=instance, repository_def=repository))
    print(done)
"""


@pytest.mark.slow
def test_no_secret_is_in_a_database_a_log_an_artifact_or_a_metric(tmp_path):
    """Canaries for every secret; every job is run (many fail, and failures tell most); then everything is searched."""
    home = tmp_path / "home"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("AKIDB_", "DAGSTER_"))},
        **CANARIES,
        "AKIDB_HOME": str(home),
        "DAGSTER_HOME": str(home / "dagster"),
        "AKIDB_PROFILES": "ci",
        "AKIDB_GITHUB_URL": "http://127.0.0.1:1",
        "AKIDB_GITHUB_REPOSITORY": "akidb/akidb",
        "AKIDB_GRAFANA_URL": "http://127.0.0.1:1",
        "AKIDB_PROMETHEUS_URL": "http://127.0.0.1:1",
        "AKIDB_LOKI_URL": "http://127.0.0.1:1",
    }
    done = subprocess.run([sys.executable, "-c", JOBS], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "'fixtures': True" in done.stdout
    assert "'runner_capacity': False" in done.stdout  # it used its token, against a server that is not there
    commands = (["metrics", "show"], ["alerts", "list", "--json"], ["alerts", "test"], ["doctor", "--json"])
    shown = [done.stdout, done.stderr]
    for command in commands:
        told = subprocess.run(
            [sys.executable, "-m", "akidb_pipelines", *command],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        shown += [told.stdout, told.stderr]
    files = [p for p in home.rglob("*") if p.is_file()]
    assert any(p.suffix == ".db" for p in files)
    secrets = [value.rsplit("/", 1)[-1].encode() for value in CANARIES.values()]
    leaks = [(p.relative_to(home), s) for p in files for s in secrets if s in p.read_bytes()]
    leaks += [(Path(f"output {n}"), s) for n, text in enumerate(shown) for s in secrets if s in text.encode()]
    assert leaks == []
