"""Putting right what a drill on OCI did: nothing that is well is built anew, and no database is lost on the way."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from akidb_pipelines.backups.sources import HostDatabase
from akidb_pipelines.drills.desk import Desk
from akidb_pipelines.drills.oci_staging import OciStaging
from akidb_pipelines.drills.undo import Undoing
from akidb_pipelines.errors import OutsideError
from tests.backups.conftest import make_database
from tests.drills.conftest import changes


def undoing(desk: Desk, staging: OciStaging, patience_s: float, **chosen: object) -> Undoing:
    """What undoes a drill that lost staging-2 and came to its eviction."""
    journal = desk.cabinet.begin("oci", "node_power_off", datetime.now(UTC))
    journal.write("chosen", **{"victims": ["staging-2"], "survivors": ["staging-1", "staging-3"], **chosen})
    journal.write("undo", action="member", node="staging-2")
    return Undoing(staging, desk.depot, desk.states, journal, patience_s)


def test_a_database_that_cannot_be_asked_is_never_replaced(desk, oci, backed_up, staging, monkeypatch, tmp_path):
    """Undoing looks whether there is a database; "I could not ask" is no "there is none"."""
    path = tmp_path / "node" / "staging-2.db"
    before = path.read_bytes()
    monkeypatch.setattr(HostDatabase, "exists", lambda _: (_ for _ in ()).throw(OutsideError("connection lost")))
    (record,) = undoing(desk, staging, 1).all()
    assert not record.ok and "connection lost" in record.found and path.read_bytes() == before


def test_a_machine_that_is_still_starting_is_not_built_anew_again(desk, oci, backed_up, staging, monkeypatch):
    """sshd is not up when the cloud calls a machine running: undoing waits for it, as the drill does."""

    def stays_off(_):
        raise OutsideError("out of host capacity")

    oci.named("staging-2")[0].state = "STOPPED"
    monkeypatch.setattr(staging, "power_on", stays_off)
    join, said = staging.join, ["connection refused", "connection refused"]
    built, rebuild = [], staging.rebuild

    def not_yet(name):
        if said:
            raise OutsideError(said.pop())
        join(name)

    monkeypatch.setattr(staging, "join", not_yet)
    monkeypatch.setattr(staging, "rebuild", lambda name: (built.append(name), rebuild(name)))
    (record,) = undoing(desk, staging, 10).all()
    assert record.ok and "joined" in record.found, record
    assert not said and built == ["staging-2"]


def test_a_healthy_manager_whose_service_is_silent_is_not_built_anew(desk, oci, backed_up, staging, monkeypatch, tmp_path):
    """Its disk has everything since the last backup."""
    monkeypatch.setattr("akidb_pipelines.drills.undo._SETTLED_S", 0.1)
    staging.staging = replace(staging.staging, service_url="http://127.0.0.1:9")
    before = (tmp_path / "node" / "staging-2.db").read_bytes()
    (record,) = undoing(desk, staging, 1).all()
    assert not record.ok and "staging-2 is a healthy manager, and its service does not answer" in record.found
    assert changes(oci) == [] and (tmp_path / "node" / "staging-2.db").read_bytes() == before


def test_what_runs_is_not_built_anew_by_terraform_either(staging, oci, monkeypatch, tmp_path):
    staging.staging = replace(staging.staging, terraform=str(tmp_path))
    built = []
    monkeypatch.setattr("akidb_pipelines.drills.terraform.Terraform.replace", lambda _, node: built.append(node))
    staging.rebuild("staging-2")
    assert built == []
    oci.named("staging-2")[0].state = "STOPPED"
    staging.rebuild("staging-2")
    assert built == ["staging-2"]


def test_a_node_that_could_not_be_built_anew_is_not_evicted(desk, oci, backed_up, staging, monkeypatch):
    oci.named("staging-2")[0].state = "STOPPED"
    monkeypatch.setattr(staging, "power_on", lambda _: None)
    monkeypatch.setattr(staging, "hindrance", lambda _: "the program terraform is not on this machine")
    evicted = []
    monkeypatch.setattr(staging, "evict", evicted.append)
    (record,) = undoing(desk, staging, 0.1).all()
    assert not record.ok and "cannot be built anew: the program terraform" in record.found and evicted == []


def test_the_empty_database_of_a_new_machine_is_not_taken_for_what_was_lost(desk, oci, backed_up, staging, tmp_path):
    """A drill that was killed before the backup arrived: the service made itself an empty one, and the night's dump is of that."""
    path = tmp_path / "node" / "staging-2.db"
    rows = documents(path)
    undo = undoing(desk, staging, 1, machines={"staging-2": "ocid1.instance.oc1..the-lost-one"})
    path.unlink()
    make_database(path, rows=0)
    nights = desk.depot.take(staging.database("staging-2"))
    (record,) = undo.all()
    assert record.ok and f"{backed_up.id} brought back" in record.found and nights.id != backed_up.id
    assert documents(path) == rows > 0
    path.unlink()
    make_database(path, rows=rows + 1)
    (record,) = undo.all()
    assert record.ok and "nothing to do" in record.found, "once is enough: what was written since stays"
    assert documents(path) == rows + 1


def documents(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM documents").fetchone()[0])
