"""The Swarm lab for a test session: up once, and when it goes down, nothing of it may be left on this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from akidb_pipelines.lab.swarm.lab import NODES, SwarmLab
from akidb_pipelines.lab.swarm.open import bring_up, open_swarm
from akidb_pipelines.lab.swarm.target import LabTarget
from akidb_pipelines.settings import Settings

_CACHE = Path(__file__).parents[2] / "var" / "cache"
_BEATS_S = 5.0
"""Some heartbeats of the lab's managers, which are a second apart."""


@dataclass(frozen=True)
class SwarmForTests:
    """`home` is what AKIDB_HOME must be for a drill to use this lab."""

    home: Path
    settings: Settings

    @property
    def lab(self) -> SwarmLab:
        return open_swarm(self.settings)

    @property
    def target(self) -> LabTarget:
        return LabTarget(self.lab)

    def expect_whole(self) -> None:
        """Three healthy managers, each serving its database, and nothing else in the lab's engine.

        On a busy machine a manager misses a heartbeat, and is unreachable until the next one.
        """
        end = time.monotonic() + _BEATS_S
        while not self._is_whole() and time.monotonic() < end:
            time.sleep(0.5)
        assert self._is_whole(), self.target.nodes()
        with self.lab.node(NODES[0]) as node:
            client = node._engine.client
            assert len(client.containers.list(all=True)) == len(NODES)
            assert len(client.volumes.list()) == len(NODES)

    def _is_whole(self) -> bool:
        healthy = sorted(node.name for node in self.target.nodes() if node.is_healthy_manager)
        return healthy == list(NODES) and self.lab.running()


@contextmanager
def running_swarm_lab() -> Iterator[SwarmForTests]:
    """In a home with a short path: a socket's name must fit into 107 characters."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("the Swarm lab needs root")
        pytest.skip("the Swarm lab needs root, or this user in group docker")
    home = Path(tempfile.mkdtemp(prefix="akidb-"))
    settings = Settings(home=home, profiles=("ci",))
    _CACHE.mkdir(parents=True, exist_ok=True)
    settings.cache.symlink_to(_CACHE)  # the database to begin with is built once
    bridges = links()
    try:
        bring_up(settings)
        yield SwarmForTests(home, settings)
    finally:
        open_swarm(settings).down()
        left = leftovers(home) | (links() - bridges)
        shutil.rmtree(home, ignore_errors=True)
    assert left == set(), f"lab down leaves {sorted(left)}"


def links() -> set[str]:
    """Bridges of containers, and cables into them."""
    told = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return {f"link {name}" for line in told.splitlines() if (name := line.split(":")[1].strip()).startswith(("br-", "veth"))}


def leftovers(home: Path) -> set[str]:
    """What a lab below a home could leave on this machine besides: processes with their name spaces, mounts, control groups, files."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    lab_id = hashlib.sha256(str(home / "lab" / "swarm").encode()).hexdigest()[:6]
    groups = list(Path("/sys/fs/cgroup").rglob(f"akidb-lab-{lab_id}"))
    processes = {p.parent.name: _read(p) for p in Path("/proc").glob("[0-9]*/cmdline")}
    return {
        *(f"mount {path}" for path in mounts if path.startswith(f"{home}/")),
        *(f"group {path}" for path in groups),
        *(f"process {pid}: {command}" for pid, command in processes.items() if f"{home}/lab" in command),
        *(f"file {path}" for path in (home / "lab").glob("*")),
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""
