"""The backups commands as ops call them, on a database of this machine."""

from __future__ import annotations

import json

import pytest

from tests.backups.conftest import make_database, opened, write_canary
from tests.backups.test_terraform import state_text
from tests.cli.test_runners import told


@pytest.fixture
def backups(cli, tmp_path):
    database = make_database(tmp_path / "metadata.db")
    inventory = tmp_path / "inventory.yaml"
    host = {"ansible_connection": "local", "akidb_databases": {"metadata": str(database)}}
    inventory.write_text(json.dumps({"staging": {"hosts": {"staging-1": host}}}))
    (tmp_path / "terraform.tfstate").write_bytes(state_text(7))
    environment = {"AKIDB_INVENTORY": str(inventory), "AKIDB_TERRAFORM_STATE": str(tmp_path / "terraform.tfstate")}
    return lambda *arguments: cli("backups", *arguments, env=environment)


def test_everything_is_backed_up_listed_verified_and_restored(backups, tmp_path):
    done = told(backups("run", "--json"))
    assert {b["what"]: b["ok"] for b in done["backups"]} == {
        "staging-1-metadata": True,
        "terraform/staging": True,
        "dashboards": None,
    }
    (dump,) = told(backups("list", "--json"))["dumps"]
    assert dump["verified"] and dump["rows"]["documents"] == 50 and dump["canary"] == 1
    with opened(tmp_path / "metadata.db") as db:
        write_canary(db, 2)
    restored = tmp_path / "restored.db"
    assert told(backups("restore", "staging-1-metadata", "--to", str(restored), "--json"))["sha256"] == dump["sha256"]
    with opened(restored) as db:
        assert db.execute("SELECT max(sequence) FROM akidb_canary").fetchone() == (1,)
    again = backups("restore", "staging-1-metadata", "--to", str(restored))
    assert again.code == 2 and "--replace" in again.err
    assert told(backups("prune", "--dry-run", "--json"))["decisions"][0]["action"] == "keep"
    state = tmp_path / "state"
    assert "serial 7" in backups("restore", "terraform", "--to", str(state)).out
    assert state.read_bytes() == state_text(7)


def test_a_stale_state_ends_with_1_and_says_what_to_do(backups, tmp_path):
    assert backups("run", "terraform").code == 0
    (tmp_path / "terraform.tfstate").write_bytes(state_text(6))
    done = backups("run", "terraform")
    assert done.code == 1 and "it is stale" in done.err and "terraform state push" in done.err


def test_what_nobody_knows_ends_with_2(backups, tmp_path):
    done = backups("run", "mainframe")
    assert done.code == 2 and "staging-1-metadata" in done.err
    assert backups("verify", "staging-9-metadata").code == 2
