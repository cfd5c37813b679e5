"""The contract of an object store, and what releases promise on top of it. Further back ends join `store`'s parameters."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from akidb_pipelines.errors import InputError, IntegrityError, OutsideError
from akidb_pipelines.store.areas import area
from akidb_pipelines.store.local import LocalStore
from akidb_pipelines.store.objects import AlreadyExistsError, MissingObjectError, SwapError
from akidb_pipelines.store.releases import ReleaseManifest, Releases, blob_key, released_file


@pytest.fixture(params=["local"])
def store(request, tmp_path):
    return LocalStore(tmp_path / "area")


# --- the contract


def test_created_objects_are_read_back(store, tmp_path):
    (tmp_path / "f").write_bytes(b"from a file")
    store.create("a/b", b"bytes")
    store.create("a/c", tmp_path / "f")
    assert store.read("a/b") == b"bytes"
    store.fetch("a/c", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"from a file"
    assert store.stat("a/c").size_bytes == 11
    assert [o.key for o in store.list("a/")] == ["a/b", "a/c"]


def test_the_same_bytes_again_are_fine_and_other_bytes_are_refused(store):
    store.create("k", b"one")
    store.create("k", b"one")
    with pytest.raises(AlreadyExistsError, match="other bytes"):
        store.create("k", b"two")
    assert store.read("k") == b"one"


def test_a_pointer_is_swapped_only_from_what_was_seen(store):
    store.swap("p", b"1", None)
    with pytest.raises(SwapError):
        store.swap("p", b"2", None)
    store.swap("p", b"2", b"1")
    with pytest.raises(SwapError):
        store.swap("p", b"3", b"1")
    assert store.read("p") == b"2"


def test_missing_objects_are_said(store, tmp_path):
    assert store.stat("nothing") is None
    assert list(store.list("nothing/")) == []
    with pytest.raises(MissingObjectError, match="nothing"):
        store.read("nothing")
    with pytest.raises(MissingObjectError):
        store.fetch("nothing", tmp_path / "out")
    store.delete("nothing")


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x"])
def test_keys_stay_inside(store, key):
    with pytest.raises(InputError, match="no key"):
        store.create(key, b"x")


def _swap_many(root, count):
    store = LocalStore(root)
    for _ in range(count):
        while True:
            held = store.read("n")
            try:
                store.swap("n", str(int(held) + 1).encode(), held)
                break
            except SwapError:
                continue


def test_concurrent_swaps_lose_nothing(tmp_path):
    LocalStore(tmp_path).swap("n", b"0", None)
    workers = [multiprocessing.get_context("spawn").Process(target=_swap_many, args=(tmp_path, 50)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert LocalStore(tmp_path).read("n") == b"150"


def test_an_unknown_kind_of_store_is_refused():
    with pytest.raises(InputError, match="ftp"):
        area("ftp://host/x", "artifacts")
    with pytest.raises(InputError):
        area("file://relative", "artifacts")


def test_a_full_disk_is_said_and_leaves_nothing(small_disk):
    store = LocalStore(small_disk)
    with pytest.raises(OutsideError, match=r"(?i)no space") as caught:
        store.create("big", os.urandom(8 << 20))
    assert "free some space" in caught.value.hint
    assert list(store.list("")) == []
    store.create("small", b"still works")


def test_a_read_only_store_is_said(small_disk):
    LocalStore(small_disk).create("k", b"x")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = LocalStore(small_disk)
    with pytest.raises(OutsideError, match=r"(?i)read-only"):
        store.create("other", b"y")
    with pytest.raises(OutsideError):
        store.swap("p", b"y", None)
    assert store.read("k") == b"x"


# --- releases


@pytest.fixture
def releases(tmp_path):
    return Releases(LocalStore(tmp_path / "artifacts"), LocalStore(tmp_path / "channels"), "fixtures")


def content(folder, name, **files: bytes):
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for file, data in files.items():
        (folder / file).write_bytes(data)
        entries.append(released_file(folder, folder / file))
    return ReleaseManifest("fixtures", name, tuple(entries)), folder


def test_the_same_bytes_are_a_no_op_and_other_bytes_the_next_revision(releases, tmp_path):
    first = releases.publish(*content(tmp_path / "a", "2026-W47", db=b"one"))
    again = releases.publish(*content(tmp_path / "b", "2026-W47", db=b"one"))
    other = releases.publish(*content(tmp_path / "c", "2026-W47", db=b"two"))
    assert (first.id, first.created) == ("2026-W47/r1", True)
    assert (again.id, again.created) == ("2026-W47/r1", False)
    assert (other.id, other.created) == ("2026-W47/r2", True)
    assert releases.revisions("2026-W47") == [1, 2]


def test_latest_moves_forward_only(releases, tmp_path):
    releases.publish(*content(tmp_path / "a", "2026-W47", db=b"new"))
    releases.publish(*content(tmp_path / "b", "2026-W40", db=b"backfilled"))
    assert releases.latest().id == "2026-W47/r1"
    releases.publish(*content(tmp_path / "c", "2026-W47", db=b"newer"))
    assert releases.latest().id == "2026-W47/r2"
    releases.publish(*content(tmp_path / "d", "2026-W48", db=b"next week"))
    assert releases.latest().id == "2026-W48/r1"
    assert releases.names() == ["2026-W40", "2026-W47", "2026-W48"]


def test_nothing_released_yet_is_said(releases):
    with pytest.raises(InputError, match="no fixtures were released"):
        releases.latest()


def test_pulled_files_are_verified_and_unchanged_ones_stay(releases, tmp_path):
    release = releases.publish(*content(tmp_path / "a", "2026-W47", db=b"data", truth=b"more"))
    out = tmp_path / "out"
    paths = releases.pull(release, out)
    before = (out / "db").stat().st_mtime_ns
    releases.pull(release, out)
    assert {p.name: p.read_bytes() for p in paths} == {"db": b"data", "truth": b"more"}
    assert (out / "db").stat().st_mtime_ns == before
    (out / "db").write_bytes(b"DATA")
    releases.pull(release, out)
    assert (out / "db").read_bytes() == b"data"


def test_one_flipped_byte_in_the_store_is_refused_and_the_old_copy_stays(releases, tmp_path):
    release = releases.publish(*content(tmp_path / "a", "2026-W47", db=b"data"))
    blob = tmp_path / "artifacts" / blob_key(release.manifest.files[0].sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"dbta")
    out = tmp_path / "out"
    out.mkdir()
    (out / "db").write_bytes(b"last week's")
    with pytest.raises(IntegrityError, match="digest") as caught:
        releases.pull(release, out)
    assert "release the week again" in caught.value.hint
    assert [(p.name, p.read_bytes()) for p in out.iterdir()] == [("db", b"last week's")]


def test_a_pull_that_fails_half_way_mixes_no_releases(releases, tmp_path):
    old = releases.publish(*content(tmp_path / "old", "2026-W46", a=b"old a", b=b"old b"))
    new = releases.publish(*content(tmp_path / "new", "2026-W47", a=b"new a", b=b"new b"))
    releases.pull(old, tmp_path / "out")
    (tmp_path / "artifacts" / blob_key(new.manifest.files[1].sha256)).unlink()
    with pytest.raises(InputError):
        releases.pull(new, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {"a": b"old a", "b": b"old b"}


def test_what_another_host_is_writing_is_left_alone(store):
    store.create("k", b"x")
    theirs = store.root / ".incoming" / ".incoming-otherhost.1-k"
    theirs.write_bytes(b"half")
    store.create("k2", b"x")
    assert theirs.exists()
    os.utime(theirs, (0, 0))
    store.create("k3", b"x")
    assert not theirs.exists()


def test_a_tampered_manifest_is_refused(releases, tmp_path):
    release = releases.publish(*content(tmp_path / "a", "2026-W47", db=b"data"))
    path = tmp_path / "artifacts" / "fixtures" / "releases" / "2026-W47" / "r1" / "manifest.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(release.manifest.files[0].sha256.encode(), b"0" * 64))
    with pytest.raises(IntegrityError, match="`latest` says"):
        releases.latest()
    path.write_text("{}")
    with pytest.raises(IntegrityError, match="no release manifest"):
        releases.latest()


def test_a_file_changed_after_its_manifest_is_not_released(releases, tmp_path):
    manifest, folder = content(tmp_path / "a", "2026-W47", db=b"data")
    (folder / "db").write_bytes(b"DATA")
    with pytest.raises(IntegrityError, match="build again"):
        releases.publish(manifest, folder)
    assert releases.names() == []


def test_a_claimed_revision_without_manifest_is_no_release_and_does_not_stop_the_next(releases, tmp_path):
    """What a publisher leaves that died between its last two writes."""
    manifest, _ = content(tmp_path / "a", "2026-W47", db=b"dead")
    LocalStore(tmp_path / "artifacts").create("fixtures/releases/2026-W47/r1/SHA256SUMS", manifest.sums)
    assert releases.newest("2026-W47") is None
    other = releases.publish(*content(tmp_path / "b", "2026-W47", db=b"alive"))
    assert other.id == "2026-W47/r2"
    assert releases.newest("2026-W47").id == "2026-W47/r2"


def test_the_dead_publishers_own_bytes_complete_its_revision(releases, tmp_path):
    manifest, folder = content(tmp_path / "a", "2026-W47", db=b"same")
    LocalStore(tmp_path / "artifacts").create("fixtures/releases/2026-W47/r1/SHA256SUMS", manifest.sums)
    assert releases.publish(manifest, folder).id == "2026-W47/r1"


PUBLISH = """
import sys
from pathlib import Path
from akidb_pipelines.store.local import LocalStore
from akidb_pipelines.store.releases import ReleaseManifest, Releases, released_file
root, folder = Path(sys.argv[1]), Path(sys.argv[2])
releases = Releases(LocalStore(root / "artifacts"), LocalStore(root / "channels"), "fixtures")
files = tuple(released_file(folder, p) for p in sorted(folder.iterdir()))
print("publishing", flush=True)
print(releases.publish(ReleaseManifest("fixtures", sys.argv[3], files), folder).id)
"""


def _publisher(root, folder, name):
    return subprocess.Popen([sys.executable, "-c", PUBLISH, str(root), str(folder), name], stdout=subprocess.PIPE, text=True)


def _kill_points(exhaustive):
    return [n / 1000 for n in (range(0, 60, 2) if exhaustive else (0, 8, 20))]


@pytest.mark.parametrize("points", [pytest.param(False, id="some"), pytest.param(True, id="every", marks=pytest.mark.exhaustive)])
def test_a_publisher_killed_at_any_moment_leaves_the_old_release_or_the_new(releases, tmp_path, points):
    old = releases.publish(*content(tmp_path / "old", "2026-W46", db=b"old" * 100_000))
    folder = tmp_path / "new"
    content(folder, "2026-W47", **{f"f{n}": os.urandom(300_000) for n in range(8)})
    for wait in _kill_points(points):
        with _publisher(tmp_path, folder, "2026-W47") as process:
            process.stdout.readline()
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
        served = releases.latest()
        assert served.id in {old.id, "2026-W47/r1"}
        out = tmp_path / f"out-{wait}"
        releases.pull(served, out)
        assert {p.name for p in out.iterdir()} == {f.name for f in served.manifest.files}
    done = _publisher(tmp_path, folder, "2026-W47")
    assert done.communicate(timeout=60)[0].split()[-1] == "2026-W47/r1"
    assert releases.latest().id == "2026-W47/r1"
    releases.publish(*content(tmp_path / "next", "2026-W48", db=b"next"))
    assert not list((tmp_path / "artifacts").rglob(".incoming-*")), "the next object stored sweeps what dead writers left"


def test_two_publishers_of_one_week_both_succeed_and_nothing_is_lost(releases, tmp_path):
    content(tmp_path / "a", "2026-W47", db=b"a" * 1_000_000)
    content(tmp_path / "b", "2026-W47", db=b"b" * 1_000_000)
    both = [_publisher(tmp_path, tmp_path / n, "2026-W47") for n in "ab"]
    ids = {p.communicate(timeout=60)[0].split()[-1] for p in both}
    assert ids == {"2026-W47/r1", "2026-W47/r2"}
    assert releases.latest().id == "2026-W47/r2"
    pointer = json.loads((tmp_path / "channels" / "fixtures" / "latest.json").read_text())
    assert pointer["manifest_sha256"] == releases.get("2026-W47", 2).manifest.sha256
