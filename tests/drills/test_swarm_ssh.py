"""Staging's swarm over SSH, as it is: a real sshd, the real docker command, the lab's real Swarm behind it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from akidb_pipelines.drills.swarm_ssh import SwarmOverSsh, found_at
from akidb_pipelines.drills.target import NoQuorumError
from akidb_pipelines.errors import OutsideError
from akidb_pipelines.files import digest_file
from akidb_pipelines.health.staging import look_at_staging
from akidb_pipelines.lab.swarm.lab import NODES
from akidb_pipelines.lab.swarm.node import waited
from akidb_pipelines.lab.swarm.open import seed_database
from akidb_pipelines.machines.inventory import Inventory, load_inventory


@pytest.fixture
def inventory(swarm, jetson_lab, tmp_path) -> Inventory:
    """Each node is reached through the lab's SSH server, whose root is this machine's; docker talks to that node's engine."""
    host = jetson_lab.inventory.hosts["jetson-a"]
    about = {
        "ansible_host": host.address,
        "ansible_port": host.port,
        "ansible_user": host.user,
        "ansible_ssh_private_key_file": host.key_file,
        "akidb_known_hosts": host.known_hosts,
    }
    hosts = {n: {**about, "akidb_docker": f"docker -H unix://{swarm.lab.folder}/nodes/{n}/docker.sock"} for n in NODES}
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps({"staging": {"hosts": hosts}}))
    return load_inventory(path)


@pytest.mark.slow
def test_a_lost_manager_is_evicted_and_its_successor_joins(swarm, inventory):
    members = SwarmOverSsh(inventory, NODES, {})
    assert members.cluster_id() == swarm.target.cluster_id()
    assert sorted(members.services(), key=lambda s: s.name) == sorted(swarm.target.services(), key=lambda s: s.name)
    whole = look_at_staging(swarm.target)
    assert whole.replicas[0], whole.replicas
    assert whole.answers
    assert whole.answers[0], whole.answers
    assert [(m.name, m.ready, m.reachable) for m in sorted(members.members(), key=lambda m: m.name)] == [
        (n, True, True) for n in NODES
    ]
    victim = next(m.name for m in members.members() if not m.leader)
    swarm.target.power_off(victim)
    assert waited(lambda: [m for m in members.members() if m.name == victim and not m.ready], 60)
    assert [s.desired for s in members.services()] == [s.desired for s in swarm.target.services()]
    health = look_at_staging(swarm.target)
    assert not health.replicas[0]
    assert f"node {victim} is not ready" in health.replicas[1]
    assert health.answers
    assert not health.answers[0]
    members.evict(victim)
    assert victim not in [m.name for m in members.members()]
    swarm.target.rebuild(victim)
    members.join(victim)
    assert waited(lambda: [m for m in members.members() if m.name == victim and m.reachable], 60)
    swarm.target.join(victim)  # labels it again
    swarm.target.put_database(victim, seed_database(swarm.settings), digest_file(seed_database(swarm.settings)))
    with members.drained(victim):
        assert members.docker(victim, "ps", "--quiet").strip() == ""
    _left_by_one_who_was_killed(swarm, members, victim)
    assert waited(swarm.lab.running, 60)
    assert waited(lambda: not members.tasks_on(victim), 30)
    swarm.expect_whole()


def _left_by_one_who_was_killed(swarm, members: SwarmOverSsh, victim: str) -> None:
    """A node that is drained takes services again, and one that was demoted and not removed is a manager again."""
    other = next(n for n in NODES if n != victim)
    members.docker(other, "node", "update", "--availability", "drain", victim)
    members.undrain(victim)
    assert [m.drained for m in members.members() if m.name == victim] == [False]
    members.docker(other, "node", "demote", victim)
    assert waited(lambda: [m for m in members.members() if m.name == victim and m.ready and not m.manager], 30)
    members.join(victim)
    assert waited(lambda: [m for m in members.members() if m.name == victim and m.reachable], 60)


def test_what_docker_refuses_is_told_and_nobody_left_is_no_quorum(inventory, swarm):
    members = SwarmOverSsh(inventory, NODES, {})
    with pytest.raises(OutsideError, match=r"staging-lab-1: docker node rm: .*not found"):
        members.docker("staging-lab-1", "node", "rm", "nobody")
    with pytest.raises(NoQuorumError, match="no node answers"):
        SwarmOverSsh(inventory, (), {}).members()


def test_an_address_moves_and_a_name_stays(inventory):
    host = inventory.hosts["staging-lab-1"]
    assert found_at(host, "10.9.9.9").address == "10.9.9.9"
    assert found_at(host, "").address == host.address
    assert found_at(replace(host, address="staging-1.example.com"), "10.9.9.9").address == "staging-1.example.com"
