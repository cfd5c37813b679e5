"""A capture that is killed with SIGKILL at any step: nothing half appears, the next one completes, and the image comes back bit for bit.

A step is a call that changes the store. The process kills itself before or after its n-th; which n there are, a whole run tells.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import timedelta

import pytest

from akidb_pipelines.images.prune import prune
from akidb_pipelines.images.restore import restore, verify
from akidb_pipelines.store.retention import collect
from tests.images.conftest import DECEMBER, MIB, NOVEMBER, change, library_in, stored, taken, write_drive
from tests.services.places import clean_environment

CAPTURE = """
import json, os, signal, sys
from pathlib import Path
from threading import Lock
from akidb_pipelines.images.capture import CaptureRequest, capture
from akidb_pipelines.images.drives import LocalDrive
from akidb_pipelines.images.library import open_library
from akidb_pipelines.periods import Month
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.local import LocalStore

disk, die_at, when = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
steps, lock = [], Lock()

def counted(change):
    def step(store, key, *arguments, **options):
        with lock:
            steps.append(key)
            mine = len(steps)
            if mine == die_at and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
        result = change(store, key, *arguments, **options)
        if mine == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return step

for verb in ("create", "swap"):
    setattr(LocalStore, verb, counted(getattr(LocalStore, verb)))
captured = capture(open_library(Settings.load()), LocalDrive(disk), CaptureRequest("disk", Month.parse("2026-12"), pack_bytes=1 << 20))
print(json.dumps({"id": captured.image.id, "new_bytes": captured.counts.new_bytes, "steps": steps}))
"""


class Rig:
    """A library with one image, and a drive that has changed since."""

    def __init__(self, library, folder) -> None:
        self.library, self.folder, self.seed = library, folder, 0
        self.disk = write_drive(folder / "disk.img", data_mib=6)
        self.old = self.disk.read_bytes()
        self.first = taken(library, self.disk).image
        self.change()

    def change(self) -> None:
        """Other bytes, so that a capture has as much to do as the one before."""
        self.seed += 1
        change(self.disk, *range(16, 100), seed=self.seed)

    def run(self, die_at: int = 0, when: str = "after") -> dict | None:
        """Capture in a process of its own; None if it died."""
        environment = clean_environment(AKIDB_HOME=str(self.folder / "home"), AKIDB_STORE=f"file://{self.folder / 'store'}")
        done = subprocess.run(
            [sys.executable, "-c", CAPTURE, str(self.disk), str(die_at), when],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode == -signal.SIGKILL:
            return None
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def expect_the_next_completes(self, killed_at: tuple[int, str]) -> None:
        """After a kill: what is visible is whole, and capturing again gives the image."""
        library = self.library
        for image in library.images("disk")[-2:]:
            assert verify(library, image, everything=True).problems == (), killed_at
        captured = taken(library, self.disk, DECEMBER)
        assert [i.id for i in library.images("disk")].count(captured.image.id) == 1
        out = self.folder / "out"
        for image, content in ((self.first, self.old), (captured.image, self.disk.read_bytes())):
            restore(library, image, out, replace=True)
            assert out.read_bytes() == content, killed_at
        assert self.halves(".index", ".pack") == set(), killed_at

    def halves(self, of: str, other: str) -> set[str]:
        """Packs without index, or indexes without pack."""
        have, others = ({key.removesuffix(suffix) for key in stored(self.library, suffix)} for suffix in (of, other))
        return have - others


@pytest.fixture
def rig(library, tmp_path):
    return Rig(library, tmp_path)


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> list[str]:
    """The keys that a whole capture stores, in their order."""
    folder = tmp_path_factory.mktemp("whole")
    return Rig(library_in(folder), folder).run()["steps"]


def test_a_capture_takes_these_steps_in_this_order(steps):
    packs = [n for n, key in enumerate(steps) if key.endswith(".pack")]
    indexes = [n for n, key in enumerate(steps) if key.endswith(".index")]
    released = [n for n, key in enumerate(steps) if key.startswith(("blobs/", "images.disk/"))]
    assert len(packs) == len(indexes) >= 4
    assert all(steps.index(steps[n].replace(".index", ".pack")) < n for n in indexes)
    assert max(indexes) < min(released), "what a release names is there before it"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", [".pack", ".index", "images.disk/releases", "timestamp.json"])
def test_killed_at_a_pack_an_index_or_the_release_the_next_capture_completes(rig, steps, what, when):
    at = [n for n, key in enumerate(steps, 1) if what in key]
    die_at = at[len(at) // 2]

    assert rig.run(die_at, when) is None

    committed = what == "timestamp.json" and when == "after"
    months = [image.record.period for image in rig.library.images("disk")]
    assert months == [NOVEMBER, *[DECEMBER] * committed]
    before = len(stored(rig.library, ".index"))
    again = taken(rig.library, rig.disk, DECEMBER, pack_bytes=MIB)
    assert again.created is not committed
    if what != ".pack":
        assert len(stored(rig.library, ".index")) - before <= 5
    rig.expect_the_next_completes((die_at, when))
    left = rig.halves(".pack", ".index")
    assert prune(rig.library, grace=timedelta(0)).halves == len(left)
    assert rig.halves(".pack", ".index") == set(), "what the dead left half is swept"
    rig.expect_the_next_completes((die_at, when))


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_killed_at_every_step_the_next_capture_completes(rig, steps):
    for die_at in range(1, len(steps) + 1):
        for when in ("before", "after"):
            rig.change()
            assert rig.run(die_at, when) is None, (die_at, when)
            rig.expect_the_next_completes((die_at, when))
    plan = collect(rig.library.publisher, dry_run=True)
    assert all(d.action == "keep" for d in plan.decisions if "blobs" in d.what), "what the dead left is younger than the grace"


def test_a_killed_capture_leaves_nothing_outside_the_store(rig, steps):
    index = next(n for n, key in enumerate(steps, 1) if key.startswith("blobs/"))
    assert rig.run(index, "after") is None
    scratch = rig.library.scratch
    assert list(scratch.iterdir()), "the dead one's folder"

    taken(rig.library, rig.disk, DECEMBER)

    assert list(scratch.iterdir()) == []
    assert list((rig.library.blocks.store.root / ".incoming").iterdir()) == []
    assert [image.record.period for image in rig.library.images("disk")] == [NOVEMBER, DECEMBER]
