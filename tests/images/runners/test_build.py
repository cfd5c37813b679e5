"""Builds by a real Packer in a real engine: what comes out, and that nothing is left of those that fail, take too long or are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from akidb_pipelines.errors import CheckError, InputError, IntegrityError, OutsideError, PipelineError
from akidb_pipelines.images.runners.archive import archive_docker
from akidb_pipelines.images.runners.engine import BUILD_LABEL, BUILDING_LABEL, RUNNER_LABEL, Engine
from akidb_pipelines.images.runners.fleet import Runner, Tool, open_fleet
from akidb_pipelines.images.runners.foundry import Foundry, open_foundry
from akidb_pipelines.images.runners.restore import restore
from akidb_pipelines.lab.processes import Process
from akidb_pipelines.lab.runner import BASE
from akidb_pipelines.periods import Week
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.lease import BusyError

WEEK = Week.parse("2026-W47")
TEMPLATE = """
variable "runner" { type = string }
variable "week" { type = string }
variable "build_id" { type = string }
variable "base" { type = string }
variable "repository" { type = string }
variable "output" { type = string }
variable "playbook" { type = string }
variable "ansible_variables" { type = string }

source "docker" "runner" {
  image       = var.base
  commit      = true
  pull        = false
  changes     = ["LABEL akidb.building= akidb.runner=${var.runner} akidb.build=${var.build_id}"]
  run_command = ["-d", "-i", "-t", "--network=none", "--label=akidb.building=${var.runner}", "--entrypoint=/bin/sh", "--", "{{.Image}}"]
}
build {
  sources = ["source.docker.runner"]
  provisioner "shell" { inline = ["SCRIPT"] }
  provisioner "shell-local" {
    inline = ["echo '{\\"tools\\": [], \\"problems\\": [], \\"packages\\": {}}' > ${var.output}/facts.json"]
  }
  post-processors {
    post-processor "docker-tag" {
      repository = var.repository
      tags       = [var.build_id]
    }
  }
}
"""


@pytest.fixture
def settings(runner_home) -> Settings:
    return Settings(home=runner_home)


@pytest.fixture
def foundry(settings) -> Foundry:
    return open_foundry(settings)


@pytest.fixture
def runner(settings, runner_lab) -> Runner:
    """The lab's, under a name of its own: what is left in the engine is told apart by it."""
    return replace(open_fleet(settings).runner("docker"), docker_host=runner_lab.url, name="trial")


def playing(runner: Runner, folder: Path, script: str, **more: Any) -> Runner:
    """The runner, built by a script instead of Ansible."""
    folder.mkdir(exist_ok=True)
    (folder / "runner.pkr.hcl").write_text(TEMPLATE.replace("SCRIPT", script))
    return replace(runner, template=folder, **more)


def left(runner: Runner, settings: Settings) -> list[str]:
    """Whatever a build has left: in the engine, and on this machine."""
    import docker

    with closing(docker.DockerClient(runner.docker_host)) as client:
        found = [c.name for c in client.containers.list(all=True, filters={"label": f"{BUILDING_LABEL}={runner.name}"})]
        found += [str(i.tags or i.id) for i in client.images.list(filters={"label": f"{RUNNER_LABEL}={runner.name}"})]
    scratch = settings.home / "tmp"
    return found + [str(p) for p in scratch.rglob("*")] if scratch.exists() else found


def test_a_build_makes_an_image_that_waits_to_be_archived(foundry, runner, settings, tmp_path):
    built = foundry.build(playing(runner, tmp_path / "t", "echo hello > /etc/motd"), WEEK)

    with closing(Engine(runner.docker_host)) as engine:
        assert engine.image_id(built.image) == built.image_id
        assert engine.image_id(BASE) == built.base_id
        assert foundry.workplace.load("trial", WEEK) == built
        archived = foundry.archive(runner, WEEK)
        assert archived.snapshot.record.image_id == built.image_id
        engine.remove(built.image)
    with pytest.raises(InputError, match="trial was not built for 2026-W47"):
        foundry.workplace.load("trial", WEEK)
    again = foundry.archive(runner, WEEK)
    assert (again.created, again.snapshot.id) == (False, archived.snapshot.id)
    with pytest.raises(InputError, match="trial was not built for 2026-W48"):
        foundry.archive(runner, WEEK.shift(1))
    assert left(runner, settings) == []


def test_a_build_that_fails_halfway_says_why_and_leaves_nothing(foundry, runner, settings, tmp_path):
    with pytest.raises(OutsideError, match="Script exited with non-zero exit status: 7") as caught:
        foundry.build(playing(runner, tmp_path / "t", "echo one; exit 7"), WEEK)

    assert "packer.log" in caught.value.hint
    assert left(runner, settings) == []


def test_a_build_that_takes_too_long_is_interrupted_and_leaves_nothing(foundry, runner, settings, tmp_path):
    started = time.monotonic()
    with pytest.raises(OutsideError, match="did not end within 3 s") as caught:
        foundry.build(playing(runner, tmp_path / "t", "sleep 600", timeout_seconds=3), WEEK)

    assert time.monotonic() - started < 40
    assert "akidb_runner_timeout_seconds" in caught.value.hint
    assert left(runner, settings) == []


def test_a_packer_that_is_killed_is_told_and_leaves_nothing(foundry, runner, settings, tmp_path):
    template = playing(runner, tmp_path / "t", "sleep 600")

    def kill_packer(told):
        if "Provisioning with shell script" in told.stage:
            found = subprocess.run(["pgrep", "-f", f"packer build.*{tmp_path}"], check=True, capture_output=True, text=True)
            for pid in found.stdout.split():
                os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(OutsideError, match="packer build of t ended with -9"):
        foundry.build(template, WEEK, kill_packer)
    assert left(runner, settings) == []


def test_a_template_that_is_none_is_told(foundry, runner, settings, tmp_path):
    broken = playing(runner, tmp_path / "t", "true")
    (broken.template / "runner.pkr.hcl").write_text('source "docker" {')

    with pytest.raises(OutsideError, match="packer build of t ended with 1"):
        foundry.build(broken, WEEK)
    assert left(runner, settings) == []


def test_a_base_image_that_is_not_there_is_told(foundry, runner):
    with pytest.raises(InputError, match="base image debian:99 is not in the engine") as caught:
        foundry.build(replace(runner, base="debian:99"), WEEK)
    assert "lab up runner" in caught.value.hint


def test_an_engine_that_does_not_answer_is_told(foundry, runner, tmp_path):
    with pytest.raises(OutsideError, match=r"Docker engine unix:.*connecting to it") as caught:
        foundry.build(replace(runner, docker_host=f"unix://{tmp_path}/none.sock"), WEEK)
    assert "lab up runner" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "told"),
    [
        (Tool("git", "git --version", ">=99"), r"git: wanted >=99, found 2\.\d+"),
        (Tool("nix", "nix --version", ">=2"), "nix: wanted >=2, found nothing: .*nix: not found"),
    ],
    ids=["too old", "missing"],
)
def test_a_tool_that_is_missing_or_too_old_is_told_with_what_was_wanted_and_found(foundry, runner, settings, tool, told):
    with pytest.raises(CheckError, match=told) as caught:
        foundry.build(replace(runner, tools=(tool,)), WEEK)

    assert "deploy/ansible/roles/runner" in caught.value.hint
    assert left(runner, settings) == []


_BUILDER = """
import sys
from dataclasses import replace
from pathlib import Path
from akidb_pipelines.images.runners.fleet import open_fleet
from akidb_pipelines.images.runners.foundry import open_foundry
from akidb_pipelines.periods import Week
from akidb_pipelines.settings import Settings
settings = Settings(home=Path(sys.argv[1]))
runner = replace(open_fleet(settings).runner("docker"), name="trial", docker_host=sys.argv[2], template=Path(sys.argv[3]))
open_foundry(settings).build(runner, Week.parse("2026-W47"), lambda told: print(told.stage, flush=True))
"""


def builder(runner: Runner, settings: Settings) -> subprocess.Popen[str]:
    """A process of its own that builds, and has got to the script."""
    arguments = [sys.executable, "-c", _BUILDER, str(settings.home), runner.docker_host, str(runner.template)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if "Provisioning with shell script" in line:
            return process
    raise AssertionError(process.wait())


def test_a_build_that_is_killed_leaves_nothing_for_long(foundry, runner, settings, tmp_path):
    process = builder(playing(runner, tmp_path / "t", "sleep 600"), settings)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    built = foundry.build(playing(runner, tmp_path / "t", "true"), WEEK)

    # The container of the killed build, its SSH keys and its Packer are gone; what is left is what was built now.
    assert left(runner, settings) == [f"['{built.image}']"]
    assert subprocess.run(["pgrep", "-f", f"packer build.*{tmp_path}"], check=False, capture_output=True).stdout == b""
    with closing(Engine(runner.docker_host)) as engine:
        engine.remove(built.image)


def test_what_a_build_left_between_commit_and_tag_is_swept_by_the_next(foundry, runner, settings, tmp_path):
    import docker

    with closing(docker.DockerClient(runner.docker_host)) as client:
        container = client.containers.create(BASE, ["sleep", "600"], labels={BUILDING_LABEL: "trial"}, network_mode="none")
        container.commit(changes=[f"LABEL {BUILDING_LABEL}= {RUNNER_LABEL}=trial {BUILD_LABEL}=of-a-dead-one"])
    assert len(left(runner, settings)) == 2  # the container, and the image without a name

    with pytest.raises(PipelineError):
        foundry.build(playing(runner, tmp_path / "t", "exit 1"), WEEK)
    assert left(runner, settings) == []


def test_two_who_sweep_at_once_both_find_nothing_left(runner, settings):
    import docker

    def sweep() -> list[str]:
        with closing(Engine(runner.docker_host)) as engine:
            engine.sweep_containers(runner.name)
        return left(runner, settings)

    with closing(docker.DockerClient(runner.docker_host)) as client, ThreadPoolExecutor() as pool:
        for _ in range(5):
            for _ in range(3):
                client.containers.run(BASE, ["sleep", "600"], labels={BUILDING_LABEL: "trial"}, network_mode="none", detach=True)
            assert [swept.result() for swept in [pool.submit(sweep) for _ in range(3)]] == [[], [], []]


def test_what_runs_from_a_restored_image_is_left_alone(foundry, runner, settings, tmp_path):
    import docker

    template = playing(runner, tmp_path / "t", "true")
    foundry.build(template, WEEK)
    snapshot = foundry.archive(template, WEEK).snapshot
    with closing(Engine(runner.docker_host)) as engine, closing(docker.DockerClient(runner.docker_host)) as client:
        restore(foundry.shelf, snapshot, tmp_path / "image.tar")
        image = engine.load(tmp_path / "image.tar")
        job = client.containers.run(image, ["sleep", "600"], entrypoint=[], detach=True, network_mode="none")
        engine.remove(foundry.build(template, WEEK.shift(1)).image)

        assert client.containers.get(job.id).status == "running"
        assert engine.names(image) == ["akidb/runner-trial:2026-w47-r1"]
        with pytest.raises(OutsideError, match="removing image"):
            list(foundry.run_checks(template, snapshot, ("restored",)))
        job.remove(force=True)
        (done,) = foundry.run_checks(template, snapshot, ("restored",))
        assert done.passed
        assert engine.names(image) == ["akidb/runner-trial:2026-w47-r1"]
        engine.remove(image)


def test_two_builds_of_a_runner_at_once_are_one_too_many(foundry, runner, settings, tmp_path):
    process = builder(playing(runner, tmp_path / "t", "sleep 600"), settings)
    try:
        with pytest.raises(BusyError, match="building trial 2026-W48"):
            foundry.build(playing(runner, tmp_path / "u", "true"), WEEK.shift(1))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(90)
        process.stdout.close()
    assert left(runner, settings) == []


def test_a_full_disk_is_told(foundry, runner, small_disk, tmp_path):
    crowded = replace(foundry, workplace=replace(foundry.workplace, folder=small_disk / "builds"))
    (small_disk / "ballast").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))

    with pytest.raises(OutsideError, match="No space left"):
        crowded.build(playing(runner, tmp_path / "t", "true"), WEEK)


def test_an_engine_that_stops_in_mid_export_releases_nothing_and_the_next_archive_does(foundry, runner, runner_lab, tmp_path):
    built = foundry.build(playing(runner, tmp_path / "t", "true"), WEEK)

    class Stopping:
        """A stream whose engine is killed after 20 MB."""

        def __init__(self, stream):
            self.stream, self.left = stream, 20_000_000

        def read(self, count):
            if self.left > 0 >= self.left - count:
                Process.load(runner_lab.folder / "engine.json").stop()
            self.left -= count
            return self.stream.read(count)

    with (
        pytest.raises((OutsideError, IntegrityError), match=r"exporting image|cut short|early"),
        closing(Engine(runner.docker_host)) as engine,
        engine.exported(built.image_id) as stream,
    ):
        archive_docker(foundry.shelf, built, Stopping(stream))
    assert foundry.shelf.snapshots() == []

    runner_lab.up()
    assert foundry.archive(runner, WEEK).snapshot.id == "trial/2026-W47/r1"
    with closing(Engine(runner.docker_host)) as engine:
        engine.remove(built.image)
