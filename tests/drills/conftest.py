"""Staging on OCI, against a stub that verifies every signature; its hosts are a real SSH server."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from akidb_pipelines.backups.depot import open_depot
from akidb_pipelines.backups.sources import HostDatabase
from akidb_pipelines.drills.desk import Desk, open_desk
from akidb_pipelines.drills.drill import Request
from akidb_pipelines.drills.oci_staging import OciStaging, open_staging
from akidb_pipelines.drills.scenarios import scenario_named
from akidb_pipelines.settings import Settings
from tests.backups.conftest import make_database
from tests.services.oci_staging_stub import COMPARTMENT, OciStagingStub

NODES = ("staging-1", "staging-2", "staging-3")
ALLOWED = {"akidb-drill": "allowed", "team": "platform"}


@pytest.fixture
def oci():
    with OciStagingStub() as stub:
        for name in (*NODES, "build-1"):
            stub.make_instance(name, tags=dict(ALLOWED))
        stub.make_buckets("base-cold", "base-tfstate", "base-artifacts", "base-channels")
        yield stub


@pytest.fixture
def settings(tmp_path, oci, jetson_lab, monkeypatch) -> Settings:
    """Staging's hosts are the lab's SSH server: what goes over SSH is real, and only OCI is a stub."""
    monkeypatch.setenv("OCI_CONFIG_FILE", str(oci.config_file(tmp_path)))
    host = jetson_lab.inventory.hosts["jetson-a"]
    about = {
        "ansible_host": "localhost",
        "ansible_port": host.port,
        "ansible_user": host.user,
        "ansible_ssh_private_key_file": host.key_file,
        "akidb_known_hosts": host.known_hosts,
        "ansible_ssh_common_args": f"-o HostKeyAlias=[{host.address}]:{host.port}",
    }
    data = tmp_path / "node"
    data.mkdir()
    hosts = {name: {**about, "akidb_databases": {"metadata": str(make_database(data / f"{name}.db"))}} for name in NODES}
    inventory, allow = tmp_path / "inventory.yaml", tmp_path / "staging.yaml"
    inventory.write_text(json.dumps({"staging": {"hosts": hosts}}))
    told = {"endpoint": oci.endpoint, "wait_seconds": 2, "poll_seconds": 0.05, "swarm": False}
    allow.write_text(json.dumps({"environment": "staging", "cluster": COMPARTMENT, "targets": list(NODES), "oci": told}))
    return Settings(
        home=tmp_path / "home", store="oci://axns/base", oci_endpoint=oci.endpoint, inventory=inventory, drill_allow_list=allow
    )


@pytest.fixture
def staging(settings) -> OciStaging:
    found = open_staging(settings)
    assert found is not None
    return found


@pytest.fixture
def desk(settings) -> Desk:
    return open_desk(settings, {"oci": lambda _: open_staging(settings)})


@pytest.fixture
def backed_up(settings, staging):
    """A verified backup of staging-2, an hour old or less."""
    depot = open_depot(settings)
    database = staging.database("staging-2")
    assert isinstance(database, HostDatabase)
    dump = depot.take(database)
    assert not [r for r in depot.run_checks(dump) if r.holds_back]
    return dump


def confirmed(node: str = "staging-2") -> str:
    return f"staging/{node}/{datetime.now(UTC).date()}"


def changes(oci: OciStagingStub) -> list[str]:
    """What was asked of Compute that changes something."""
    asked = [e.request for e in oci.log if "/20160918/instances" in e.request.target]
    return [f"{r.method} {r.query.get('action', '')}".strip() for r in asked if r.method != "GET"]


def refused(desk: Desk, oci: OciStagingStub, node: str) -> str:
    done = desk.run("oci", Request(scenario_named("node_power_off"), "me", node, confirm=confirmed(node)))
    assert done.verdict == "aborted" and changes(oci) == []
    return done.reason
