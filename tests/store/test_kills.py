"""A publisher that is killed with SIGKILL at any step: readers see the old release or the new one, whole, and the next publisher succeeds.

A step is a call that changes the store. The process kills itself before or after its n-th; which n there are, a whole run tells.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import pytest

from akidb_pipelines.store.publisher import open_publisher
from akidb_pipelines.store.pull import Puller, Wanted
from akidb_pipelines.store.registry import open_registry
from akidb_pipelines.store.retention import collect
from tests.services.places import clean_environment, content, place_of, use

KIND = "fixtures"


def new_files() -> dict[str, bytes]:
    """Other bytes each time, so that every run stores as many objects; one goes in parts."""
    return {"db": os.urandom(3000), "large": os.urandom(16) + b"l" * (17 << 20), "manifest": os.urandom(16)}


PUBLISHER = """
import os, signal, sys
from pathlib import Path
from threading import Lock
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.local import LocalStore
from akidb_pipelines.store.manifest import ReleaseManifest, released_file
from akidb_pipelines.store.publisher import open_publisher
from akidb_pipelines.store.s3 import S3Bucket

folder, name, die_at, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
steps, lock = 0, Lock()

def counted(change):
    def step(*arguments, **options):
        global steps
        with lock:
            steps += 1
            mine = steps
        if mine == die_at and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = change(*arguments, **options)
        if mine == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return step

for kind, names in ((LocalStore, ("create", "swap")), (S3Bucket, ("put", "begin", "put_part", "commit"))):
    for verb in names:
        setattr(kind, verb, counted(getattr(kind, verb)))
files = tuple(released_file(folder, p) for p in sorted(folder.iterdir()))
release = open_publisher(Settings.load()).publish(ReleaseManifest("fixtures", name, files), folder)
print(release.id, steps)
"""


def run(place, home, folder, name, die_at=0, when="after"):
    """Publish in a process of its own; returns (id, steps), or None if it died."""
    environment = clean_environment(AKIDB_HOME=str(home), AKIDB_STORE=place.url, **place.environment)
    done = subprocess.run(
        [sys.executable, "-c", PUBLISHER, str(folder), name, str(die_at), when],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    id_, steps = done.stdout.split()
    return id_, int(steps)


@pytest.mark.parametrize(
    "points", [pytest.param(4, id="some"), pytest.param(25, id="25", marks=[pytest.mark.exhaustive, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_killed_at_any_step_readers_see_old_or_new_and_the_next_succeeds(kind, points, request, tmp_path, monkeypatch):
    place = place_of(kind, request, tmp_path)
    use(place, monkeypatch)
    home = tmp_path / "home"
    publisher = open_publisher(place.settings(home))
    publisher.init()
    publisher.publish(*content(tmp_path / "old", "2026-W40", db=b"old"))
    content(tmp_path / "new", "", **new_files())

    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # shown when the test fails
    draw = random.Random(seed)
    _, steps = run(place, home, tmp_path / "new", "2026-W41")
    assert steps >= 12, "lease, three blobs, three files of the release, two targets, three documents, lease"
    # The commit, the last step but the return of the lease, is always among them.
    chosen = [(steps - 1, "before"), (steps - 1, "after")]
    chosen += [(draw.randint(1, steps), draw.choice(["before", "after"])) for _ in range(points - len(chosen))]
    week = 42
    for die_at, when in chosen:
        name, before = f"2026-W{week}", publisher.registry.head(KIND).id
        content(tmp_path / "new", "", **new_files())
        assert run(place, home, tmp_path / "new", name, die_at, when) is None
        stranger = open_registry(place.settings(tmp_path / f"c{week}-{die_at}"), root=publisher.registry.own_root)
        pulled = Puller(stranger, tmp_path / "c" / f"{week}-{die_at}-{when}").pull(Wanted(KIND), tmp_path / "out" / str(week))
        assert pulled.id in {before, f"{name}/r1"}, (die_at, when)
        committed = die_at == steps or (die_at, when) == (steps - 1, "after")
        assert (pulled.id != before) == committed, (die_at, when)
        assert {p.name for p in pulled.paths} == {f.name for f in pulled.manifest.files}
        id_, _ = run(place, home, tmp_path / "new", name)
        assert id_ in {f"{name}/r1", f"{name}/r2"}
        assert publisher.registry.head(KIND).id == id_
        week += 1
    plan = collect(publisher, dry_run=True)
    assert all(d.action == "keep" for d in plan.decisions if "blobs" in d.what), "what the dead left is younger than the grace"


def test_two_publishers_at_once_both_succeed_and_nothing_is_lost(tmp_path):
    from tests.services.places import Place

    place = Place(f"file://{tmp_path / 'store'}", {})
    content(tmp_path / "a", "", db=b"a" * 1_000_000)
    content(tmp_path / "b", "", db=b"b" * 1_000_000)
    environment = clean_environment(AKIDB_HOME=str(tmp_path / "home"), AKIDB_STORE=place.url)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(tmp_path / n), "2026-W47", "0", "after"],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in "ab"
    ]
    ids = {p.communicate(timeout=60)[0].split()[0] for p in both}
    assert ids == {"2026-W47/r1", "2026-W47/r2"}
    publisher = open_publisher(place.settings(tmp_path / "home"))
    assert publisher.registry.head(KIND).id == "2026-W47/r2"


def test_what_dead_writers_left_in_a_folder_is_swept_by_the_next(tmp_path):
    from tests.services.places import Place

    place = Place(f"file://{tmp_path / 'store'}", {})
    content(tmp_path / "new", "", **new_files())
    run(place, tmp_path / "home", tmp_path / "new", "2026-W41")
    dead = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os,signal,sys;from pathlib import Path;from akidb_pipelines.store.local import LocalStore;"
            "LocalStore(Path(sys.argv[1])).create('k', Path(sys.argv[2]), moved=lambda _: os.kill(os.getpid(), signal.SIGKILL))",
            str(tmp_path / "store" / "artifacts"),
            str(tmp_path / "new" / "large"),
        ],
        check=False,
    )
    assert dead.returncode == -signal.SIGKILL
    arriving = tmp_path / "store" / "artifacts" / ".incoming"
    assert len(list(arriving.iterdir())) == 1
    content(tmp_path / "new", "", **new_files())
    run(place, tmp_path / "home", tmp_path / "new", "2026-W42")
    assert list(arriving.iterdir()) == []
