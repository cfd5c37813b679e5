"""Pulling as engineers and CI do: again and again, offline, onto full disks, beside files that were changed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from akidb_pipelines.errors import InputError, IntegrityError, OutsideError
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.index import Version
from akidb_pipelines.store.local import LocalStore
from akidb_pipelines.store.manifest import blob_key
from akidb_pipelines.store.pull import Puller, Wanted, pull_afresh
from akidb_pipelines.store.registry import open_registry
from tests.services.places import content

KIND = "fixtures"


@pytest.fixture
def puller(publisher, tmp_path):
    publisher.publish(*content(tmp_path / "w46", "2026-W46", db=b"old", common=b"common"))
    publisher.publish(
        *content(tmp_path / "w47", "2026-W47", **{"db": b"new" * 1000, "common": b"common", "x.manifest.json": b"{}"})
    )
    registry = open_registry(Settings(home=tmp_path / "client", store=publisher.registry.url))
    return Puller(registry, tmp_path / "client" / "cache")


def test_files_that_are_right_stay_and_others_are_replaced(puller, tmp_path):
    out = tmp_path / "out"
    first = puller.pull(Wanted(KIND), out)
    assert first.fetched_bytes == 3008
    before = (out / "db").stat()
    again = puller.pull(Wanted(KIND), out)
    assert again.fetched_bytes == 0
    assert (out / "db").stat().st_mtime_ns == before.st_mtime_ns
    (out / "db").write_bytes(b"changed by AkiDB")
    (out / "notes").write_text("mine")
    assert puller.pull(Wanted(KIND), out).fetched_bytes == 0, "from the cache"
    assert (out / "db").read_bytes() == b"new" * 1000
    assert (out / "notes").read_text() == "mine"


def test_a_file_changed_with_its_times_put_back_is_noticed(puller, tmp_path):
    out = tmp_path / "out"
    puller.pull(Wanted(KIND), out)
    found = (out / "db").stat()
    (out / "db").write_bytes(b"NEW" * 1000)
    os.utime(out / "db", ns=(found.st_atime_ns, found.st_mtime_ns))
    puller.pull(Wanted(KIND), out)
    assert (out / "db").read_bytes() == b"new" * 1000


def test_an_unchanged_file_is_not_read_again(puller, tmp_path, monkeypatch):
    out = tmp_path / "out"
    puller.pull(Wanted(KIND), out)
    read = []
    monkeypatch.setattr("akidb_pipelines.store.pull.digest_file", lambda path: read.append(path.name) or "")
    puller.pull(Wanted(KIND), out)
    assert read == []


def test_weeks_share_what_they_have_in_common(puller, tmp_path):
    puller.pull(Wanted(KIND, name="2026-W46"), tmp_path / "a")
    assert puller.pull(Wanted(KIND), tmp_path / "b").fetched_bytes == 3002


def test_a_pull_that_fails_half_way_mixes_no_releases(puller, publisher, tmp_path):
    out = tmp_path / "out"
    puller.pull(Wanted(KIND, name="2026-W46"), out)
    new = publisher.registry.get(KIND, Version("2026-W47", 1)).manifest
    publisher.registry.artifacts.delete([blob_key(f.sha256) for f in new.files if f.name.endswith(".json")])
    with pytest.raises(IntegrityError, match=r"there is no blobs/.*though the release names it") as caught:
        puller.pull(Wanted(KIND), out)
    assert "release the week again" in caught.value.hint
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {"db": b"old", "common": b"common"}


def test_a_file_changed_while_it_was_verified_is_noticed_the_next_time(puller, tmp_path, monkeypatch):
    from akidb_pipelines.store import pull as module

    out = tmp_path / "out"
    puller.pull(Wanted(KIND), out)
    os.utime(out / "db")  # so that it is read again
    read = module.digest_file

    def changed_behind(path):
        found = read(path)
        if path.name == "db":
            path.write_bytes(b"NEW" * 1000)
        return found

    monkeypatch.setattr(module, "digest_file", changed_behind)
    puller.pull(Wanted(KIND), out)
    monkeypatch.undo()
    puller.pull(Wanted(KIND), out)
    assert (out / "db").read_bytes() == b"new" * 1000


def test_what_a_dead_program_left_beside_a_database_does_not_change_the_next_one(publisher, tmp_path):
    """An engineer's process died in WAL mode; the release after must not read its leftovers."""
    import sqlite3

    def database(text):
        path = tmp_path / f"{text}.db"
        made = sqlite3.connect(path)
        made.execute("CREATE TABLE t (x)")
        made.execute("INSERT INTO t VALUES (?)", (text,))
        made.commit()
        made.close()
        return path.read_bytes()

    def rows():
        opened = sqlite3.connect(f"file:{tmp_path / 'out' / 'ci.db'}?mode=ro", uri=True)
        found = opened.execute("SELECT x FROM t").fetchall()
        opened.close()
        return found

    die_in_wal_mode = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1])\n"
        "c.execute('PRAGMA journal_mode = WAL')\n"
        "c.execute(\"INSERT INTO t VALUES ('mine')\")\n"
        "c.commit()\n"
        "os._exit(0)\n"
    )
    puller = Puller(publisher.registry, tmp_path / "cache")
    for week, text in (("2026-W46", "first"), ("2026-W47", "second")):
        publisher.publish(*content(tmp_path / week, week, **{"ci.db": database(text)}))
        puller.pull(Wanted(KIND), tmp_path / "out")
        assert rows() == [(text,)]
        subprocess.run([sys.executable, "-c", die_in_wal_mode, str(tmp_path / "out" / "ci.db")], check=True)
        assert (tmp_path / "out" / "ci.db-wal").exists()
    puller.pull(Wanted(KIND), tmp_path / "out")
    assert rows() == [("second",)]


# --- offline


def test_a_pinned_digest_that_is_in_the_cache_needs_no_network(puller, publisher, tmp_path):
    digest = puller.pull(Wanted(KIND), tmp_path / "a").manifest.sha256
    store = tmp_path / "store"
    offline = open_registry(Settings(home=tmp_path / "client", store="s3://unreachable"), root=publisher.registry.own_root)
    os.environ.update({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
    os.environ["AWS_MAX_ATTEMPTS"] = "1"
    try:
        store.rename(tmp_path / "gone")
        offline = open_registry(
            Settings(home=tmp_path / "client", store="s3://unreachable", store_timeout_s=1), root=publisher.registry.own_root
        )
        pulled = Puller(offline, tmp_path / "client" / "cache").pull(Wanted(KIND, manifest_sha256=digest), tmp_path / "b")
        assert "127.0.0.1:9" in pulled.offline
        assert (tmp_path / "b" / "db").read_bytes() == b"new" * 1000
        with pytest.raises(OutsideError):
            Puller(offline, tmp_path / "client" / "cache").pull(Wanted(KIND), tmp_path / "c")
        with pytest.raises(OutsideError):
            Puller(offline, tmp_path / "client" / "cache").pull(Wanted(KIND, manifest_sha256="0" * 64), tmp_path / "c")
    finally:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_MAX_ATTEMPTS"):
            os.environ.pop(name)


def test_an_unknown_digest_is_said(puller, tmp_path):
    with pytest.raises(InputError, match="manifest digest ffff"):
        puller.pull(Wanted(KIND, manifest_sha256="f" * 64), tmp_path / "out")


# --- the cache


def cache_files(tmp_path, part):
    return [p for p in (tmp_path / "client" / "cache" / "artifacts" / part).rglob("*") if p.is_file()]


def test_a_damaged_cache_is_put_right_from_the_store(puller, tmp_path):
    puller.pull(Wanted(KIND), tmp_path / "a")
    for path in cache_files(tmp_path, "blobs"):
        path.chmod(0o644)
        path.write_bytes(b"x" * path.stat().st_size)
    pulled = puller.pull(Wanted(KIND), tmp_path / "b")
    assert pulled.fetched_bytes == 3008
    assert (tmp_path / "b" / "db").read_bytes() == b"new" * 1000
    for path in cache_files(tmp_path, "manifests"):
        path.chmod(0o644)
        path.write_bytes(b"{}")
    with pytest.raises(IntegrityError, match="pull again"):
        puller.pull(Wanted(KIND), tmp_path / "c")
    puller.pull(Wanted(KIND), tmp_path / "c")


def test_the_cache_keeps_the_last_four_releases(puller, publisher, tmp_path):
    for week in range(48, 54):
        publisher.publish(*content(tmp_path / str(week), f"2026-W{week}", db=str(week).encode()))
        puller.pull(Wanted(KIND), tmp_path / "out")
    assert len(cache_files(tmp_path, "manifests")) == 4
    assert {p.read_bytes() for p in cache_files(tmp_path, "blobs")} == {b"50", b"51", b"52", b"53"}


def test_the_cache_may_be_removed_at_any_time(puller, tmp_path):
    import shutil

    puller.pull(Wanted(KIND), tmp_path / "out")
    shutil.rmtree(tmp_path / "client" / "cache")
    assert puller.pull(Wanted(KIND), tmp_path / "out").fetched_bytes == 0, "what lies there is read and found right"


# --- disks and neighbours


def test_a_disk_that_fills_while_pulling_leaves_what_was_there(publisher, tmp_path, small_disk):
    publisher.publish(*content(tmp_path / "w46", "2026-W46", db=b"old"))
    registry = open_registry(Settings(home=tmp_path / "client", store=publisher.registry.url))
    puller = Puller(registry, tmp_path / "client" / "cache")
    puller.pull(Wanted(KIND), small_disk / "out")
    publisher.publish(*content(tmp_path / "w47", "2026-W47", db=os.urandom(1 << 20), more=os.urandom(4 << 20)))
    with pytest.raises(OutsideError, match="No space left") as caught:
        puller.pull(Wanted(KIND), small_disk / "out")
    assert "free some space" in caught.value.hint
    assert {p.name: p.read_bytes() for p in (small_disk / "out").iterdir()} == {"db": b"old"}


def test_a_disk_without_room_for_the_cache_does_not_stop_a_pull(publisher, tmp_path, small_disk):
    publisher.publish(*content(tmp_path / "w47", "2026-W47", db=os.urandom(5 << 20)))
    registry = open_registry(Settings(home=tmp_path / "client", store=publisher.registry.url))
    pulled = Puller(registry, small_disk / "cache").pull(Wanted(KIND), tmp_path / "out")
    assert pulled.fetched_bytes == 5 << 20


def test_two_pulls_at_once_into_one_home_both_succeed(puller, publisher, tmp_path):
    failed = []

    def pull(number):
        try:
            for _ in range(5):
                puller.pull(Wanted(KIND), tmp_path / f"out{number}")
        except Exception as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=pull, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_stranger_pulls_what_was_published(publisher, puller, tmp_path):
    (tmp_path / "work").mkdir()
    pulled = pull_afresh(publisher.registry, Wanted(KIND, name="2026-W47"), tmp_path / "work")
    assert pulled.fetched_bytes == 3008


def test_a_store_that_lost_a_blob_is_healed_by_releasing_again(publisher, puller, tmp_path):
    store = LocalStore(tmp_path / "store" / "artifacts")
    manifest = publisher.registry.get(KIND, Version("2026-W47", 1)).manifest
    store.delete([blob_key(manifest.files[0].sha256)])
    with pytest.raises(IntegrityError):
        puller.pull(Wanted(KIND), tmp_path / "out")
    files = {"db": b"new" * 1000, "common": b"common", "x.manifest.json": b"{}"}
    assert not publisher.publish(*content(tmp_path / "w47", "2026-W47", **files)).created
    puller.pull(Wanted(KIND), tmp_path / "out")
