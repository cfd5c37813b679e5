"""Backups inside Dagster: a day's dumps with their checks, what is not configured, what is refused."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from pydantic import SecretStr

from akidb_pipelines.backups.checklist import CHECKS
from akidb_pipelines.backups.depot import open_depot
from akidb_pipelines.definitions import build_defs
from akidb_pipelines.settings import Settings
from assets.backups import DASHBOARDS, DUMPS, RETENTION, TERRAFORM
from tests.backups.conftest import make_database
from tests.backups.test_terraform import state_text
from tests.services.grafana_stub import GrafanaStub


def today() -> str:
    return datetime.now(UTC).date().isoformat()


@pytest.fixture
def instance():
    with dg.instance_for_test() as made:
        yield made


@pytest.fixture
def configured(tmp_path):
    """A database of this machine, a Terraform state and a Grafana."""
    database = make_database(tmp_path / "metadata.db")
    inventory = tmp_path / "inventory.yaml"
    host = {"ansible_connection": "local", "akidb_databases": {"metadata": str(database)}}
    inventory.write_text(json.dumps({"staging": {"hosts": {"staging-1": host}}}))
    (tmp_path / "terraform.tfstate").write_bytes(state_text(7))
    with GrafanaStub() as grafana:
        grafana.save("bs1", "Build success")
        yield Settings(
            home=tmp_path / "home",
            inventory=inventory,
            terraform_state=str(tmp_path / "terraform.tfstate"),
            grafana_url=grafana.endpoint,
            grafana_token=SecretStr(grafana.token),
        )


def run(settings, instance, key=""):
    job = build_defs(settings).resolve_job_def("backups")
    return job.execute_in_process(instance=instance, partition_key=key or today(), raise_on_error=False)


def metadata(done, asset):
    (event,) = [e for e in done.get_asset_materialization_events() if e.asset_key == asset]
    return {name: value.value for name, value in event.materialization.metadata.items()}


def evaluations(done, asset):
    return {e.check_name: e for e in done.get_asset_check_evaluations() if e.asset_key == asset}


def test_a_day_is_backed_up_checked_and_cleared_away(configured, instance):
    done = run(configured, instance)
    assert done.success
    assert metadata(done, DUMPS)["dumps"] == f"staging-1-metadata/{today()}/r1"
    found = evaluations(done, DUMPS)
    assert set(found) == {*CHECKS, "complete"} and all(e.passed for e in found.values())
    assert metadata(done, TERRAFORM)["staging: serial"] == 7
    assert metadata(done, DASHBOARDS)["changed"] == "A dashboards/build-success-bs1.json"
    for asset in (TERRAFORM, DASHBOARDS):
        assert {n: e.passed for n, e in evaluations(done, asset).items()} == dict.fromkeys(
            ("restorable", "columns", "cedar_entities"), True
        )
    assert metadata(done, RETENTION)["at hand"] == 1
    depot = open_depot(configured)
    assert depot.is_verified(depot.find("staging-1-metadata"))


def test_while_a_check_fails_nothing_is_cleared_away(configured, instance, tmp_path):
    with sqlite3.connect(tmp_path / "metadata.db") as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("DELETE FROM collections WHERE id = 1")
    done = run(configured, instance)
    assert not done.success
    failed = {n: e for n, e in evaluations(done, DUMPS).items() if not e.passed}
    assert set(failed) == {"foreign_keys"}
    assert "staging-1-metadata" in str(failed["foreign_keys"].metadata["broken"].value)
    assert [e for e in done.get_asset_materialization_events() if e.asset_key == RETENTION] == []


def test_a_database_that_cannot_be_dumped_keeps_no_other_from_being_dumped(configured, instance, tmp_path):
    told = json.loads((tmp_path / "inventory.yaml").read_text())
    told["staging"]["hosts"]["staging-0"] = {"ansible_connection": "local", "akidb_databases": {"metadata": "/nowhere/metadata.db"}}
    (tmp_path / "inventory.yaml").write_text(json.dumps(told))
    done = run(configured, instance)
    found = evaluations(done, DUMPS)
    assert not found["complete"].passed and "/nowhere/metadata.db" in found["complete"].description
    assert found["restorable"].passed and open_depot(configured).databases() == ["staging-1-metadata"]


def test_what_is_not_configured_is_neither_there_nor_green(tmp_path, instance):
    done = run(Settings(home=tmp_path), instance)
    assert done.success
    assert done.get_asset_materialization_events() == [] and done.get_asset_check_evaluations() == []


def test_a_past_day_cannot_be_backed_up_any_more(configured, instance):
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    done = run(configured, instance, yesterday)
    assert not done.success and open_depot(configured).dumps() == []


def test_a_stale_state_fails_its_asset_and_the_dumps_are_taken_all_the_same(configured, instance, tmp_path):
    assert run(configured, instance).success
    (tmp_path / "terraform.tfstate").write_bytes(state_text(6))
    done = run(configured, instance)
    assert not done.success
    assert [e.asset_key for e in done.get_asset_materialization_events() if e.asset_key in (DUMPS, TERRAFORM)] == [DUMPS]
