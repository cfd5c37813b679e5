"""Shared pieces: one built fixture, one sandbox, a home of its own for every test that writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from akidb_pipelines.cedar.sandbox import Sandbox, load_sandbox
from akidb_pipelines.fixtures.build import Built, build_fixture
from akidb_pipelines.fixtures.migrations import Migrations, load_migrations
from akidb_pipelines.fixtures.profiles import profile_named
from akidb_pipelines.fixtures.weekly import Workshop, open_workshop
from akidb_pipelines.fixtures.world import Request
from akidb_pipelines.lab.runner import RunnerLab
from akidb_pipelines.periods import Week
from akidb_pipelines.settings import Settings
from tests.services.jetson_lab import LabForTests, running_lab
from tests.services.oci_stub import OciStub
from tests.services.postgres import Postgres
from tests.services.runner_lab import running_runner_lab
from tests.services.s3_rules_stub import S3RulesStub
from tests.services.seaweed import Seaweed
from tests.services.swarm_lab import SwarmForTests, running_swarm_lab

# Most tests wait for one process of their own, so two workers run at once. Those that look for what is left on the machine as a whole
# (bridges of containers, loop devices) stay in one of them; tests of one file stay together for the sake of their fixtures.
MACHINE_WIDE = (
    "tests/assets/test_backups.py",
    "tests/assets/test_drills.py",
    "tests/assets/test_jetson.py",
    "tests/assets/test_runners.py",
    "tests/backups/test_depot.py",
    "tests/cli/test_drills.py",
    "tests/cli/test_images.py",
    "tests/cli/test_runners.py",
    "tests/drills/",
    "tests/images/",
    "tests/lab/test_jetson_lab.py",
    "tests/operations/test_deployment.py",
    "tests/operations/test_team.py",
)
_LABS = frozenset({"jetson_lab", "runner_lab", "swarm"})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Hand out tests by file, and all that are machine-wide to one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "machine" if path.startswith(MACHINE_WIDE) else path

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse tests that use a lab and are not known to."""
    for item in items:
        if _LABS & set(getattr(item, "fixturenames", ())) and not item.location[0].startswith(MACHINE_WIDE):
            raise pytest.UsageError(f"{item.location[0]} uses a lab: list it in MACHINE_WIDE of tests/conftest.py")


SEED = 2025
WEEK = Week.parse("2026-W46")


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    return load_sandbox()


@pytest.fixture(scope="session")
def migrations() -> Migrations:
    return load_migrations()


@pytest.fixture(scope="session")
def week() -> Week:
    return WEEK


@pytest.fixture(scope="session")
def built(tmp_path_factory, sandbox, migrations) -> Built:
    """The profile ci of one week. Read-only: copy it before changing anything."""
    out = tmp_path_factory.mktemp("built")
    return build_fixture(Request(WEEK, profile_named("ci"), SEED), sandbox, migrations, out)


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path / "home", profiles=("ci",))


@pytest.fixture
def workshop(settings) -> Workshop:
    return open_workshop(settings)


# --- servers, started once or for one test, and stopped afterwards


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory) -> Iterator[Seaweed]:
    """A real S3 server for the whole session; every test makes buckets of its own."""
    with Seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL for the whole session; every test makes a database of its own."""
    with Postgres() as server:
        yield server


@pytest.fixture
def s3_rules() -> Iterator[S3RulesStub]:
    with S3RulesStub() as stub:
        yield stub


@pytest.fixture
def oci_stub() -> Iterator[OciStub]:
    with OciStub() as stub:
        yield stub


@pytest.fixture(scope="session")
def jetson_lab(tmp_path_factory) -> Iterator[LabForTests]:
    """Two Jetsons with drives of 64 MiB and their bastion, for the whole session. Who stops one of them brings it `up` again."""
    with running_lab(tmp_path_factory.mktemp("jetsons"), size_mib=64) as lab:
        yield lab


@pytest.fixture(scope="session")
def runner_lab() -> Iterator[RunnerLab]:
    """A Docker engine with the lab's base image, for the whole session. Who stops it brings it `up` again."""
    with running_runner_lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def swarm() -> Iterator[SwarmForTests]:
    """The Swarm lab, for the whole session. Whoever loses a node of it brings it back."""
    with running_swarm_lab() as lab:
        yield lab


@pytest.fixture
def runner_home(runner_lab) -> Path:
    """The engine's home, without builds and snapshots of earlier tests."""
    home = runner_lab.folder.parents[1]
    for path in home.iterdir():
        if path.name != "lab":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return home


# --- the command, and a disk that can be full


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(tmp_path):
    """Runs the real command in a process of its own, in a home of its own."""

    def run(*arguments: str, timeout: float = 120, env: dict[str, str] | None = None, under: tuple[str, ...] = ()) -> Ended:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("AKIDB_", "DAGSTER_", "AWS_", "OCI_"))}
        environment |= {"AKIDB_HOME": str(tmp_path / "home"), **(env or {})}
        done = subprocess.run(
            [*under, sys.executable, "-m", "akidb_pipelines", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A file system of 3 MiB, really full when it is full. Needs root; CI has it."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=False, capture_output=True)
    if mounted.returncode != 0:
        if os.environ.get("CI"):
            pytest.fail(f"cannot mount a small disk: {mounted.stderr.decode()}")
        pytest.skip("a full disk needs root to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
