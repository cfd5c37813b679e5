"""Runners as the inventory describes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from akidb_pipelines.errors import InputError
from akidb_pipelines.images.runners.fleet import Fleet, fleet_of
from akidb_pipelines.machines.inventory import load_inventory

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
RUNNER = """
all:
  children:
    ci_runners:
      vars:
        akidb_runner: docker
        akidb_runner_builder: docker
        akidb_runner_base: debian:12
        akidb_runner_tools: {git: ">=2.39"}
      hosts:
        one: {}
        two: {}
"""


def fleet(tmp_path: Path, text: str) -> Fleet:
    path = tmp_path / "inventory.yaml"
    path.write_text(text)
    return fleet_of(load_inventory(path, {}), DEPLOY)


def test_hosts_that_name_a_runner_are_its_hosts(tmp_path):
    runner = fleet(tmp_path, RUNNER).runner("docker")

    assert [h.name for h in runner.hosts] == ["one", "two"]
    assert (runner.builder, runner.template) == ("docker", DEPLOY / "packer" / "docker")
    assert [(t.name, t.command, t.wanted) for t in runner.tools] == [("git", "git --version", ">=2.39")]


def test_a_tool_may_say_how_it_is_asked(tmp_path):
    text = RUNNER.replace('{git: ">=2.39"}', '{nodejs: ">=18", jq: {command: jq -V, version: ">=1.6"}, make: }')

    tools = fleet(tmp_path, text).runner("docker").tools

    assert [(t.name, t.command, t.wanted) for t in tools] == [
        ("nodejs", "node --version", ">=18"),
        ("jq", "jq -V", ">=1.6"),
        ("make", "make --version", ""),
    ]


def test_the_lab_and_the_example_of_a_real_fleet_are_read():
    lab = fleet_of(load_inventory(DEPLOY / "inventory" / "lab.yaml", {"AKIDB_HOME": "/home", "USER": "me"}), DEPLOY)
    real = fleet_of(load_inventory(DEPLOY / "inventory" / "example-production.yaml", {}), DEPLOY)

    assert lab.runner("docker").docker_host == "unix:///home/lab/runner/docker.sock"
    assert {name: (r.builder, len(r.hosts)) for name, r in real.runners.items()} == {
        "docker": ("docker", 1),
        "mac-mini": ("tart", 4),
        "oci-a1": ("oci", 2),
    }
    assert {t.name for t in real.runner("oci-a1").tools} >= {"nodejs", "rust", "docker", "cedar-policy-cli"}
    assert "xcode-cli" in {t.name for t in real.runner("mac-mini").tools}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("akidb_runner_builder: docker", "akidb_runner_builder: podman", "akidb_runner_builder: is 'podman'"),
        ("akidb_runner_base: debian:12", "akidb_runner_packer: {}", "akidb_runner_base: is not there"),
        ('">=2.39"', '"^2"', "akidb_runner_tools.git: '\\^2' is no range of versions"),
        ('{git: ">=2.39"}', "{}", "akidb_runner_tools: names none"),
        ("two: {}", "two: {akidb_runner_base: debian:13}", "is 'debian:13' for two and 'debian:12' for one"),
        ("two: {}", "two: {akidb_runner_bse: debian:13}", "akidb_runner_bse: of two is unknown"),
        ("builder: docker", "builder: oci", "akidb_runner_oci: has no bucket"),
        ("builder: docker", "builder: tart", "akidb_runner_files: is \\[\\]"),
        ("base: debian:12", "base: debian:12\n        akidb_runner_template: packer/none", "has no runner.pkr.hcl"),
        ("base: debian:12", "base: debian:12\n        akidb_runner_timeout_seconds: soon", "is 'soon'"),
        ("akidb_runner: docker", "akidb_runner: Docker", "'Docker' is no name"),
    ],
)
def test_what_is_wrong_is_told_with_its_variable(tmp_path, before, after, told):
    assert before in RUNNER
    with pytest.raises(InputError, match=told):
        fleet(tmp_path, RUNNER.replace(before, after))


def test_a_runner_that_nobody_names_is_told_with_those_there_are(tmp_path):
    with pytest.raises(InputError, match="no host has akidb_runner: mac; there are docker"):
        fleet(tmp_path, RUNNER).runner("mac")
