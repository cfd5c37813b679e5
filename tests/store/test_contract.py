"""The contract of an object store, held by every back end: the same tests on all."""

from __future__ import annotations

import hashlib
import os
import threading
from datetime import UTC, datetime, timedelta

import pytest

from akidb_pipelines.errors import InputError, IntegrityError, OutsideError
from akidb_pipelines.store.areas import area
from akidb_pipelines.store.objects import AlreadyExistsError, ArchivedError, Availability, MissingObjectError, SwapError
from akidb_pipelines.store.transfer import PART_BYTES, parts_of
from tests.services.places import place_of, use


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def large(tmp_path, size=2 * PART_BYTES + 12_345):
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1 << 20) * (size >> 20) + os.urandom(size % (1 << 20)))
    return path, sha256(path.read_bytes())


def test_created_objects_are_read_back(store, tmp_path):
    (tmp_path / "f").write_bytes(b"from a file")
    store.create("a/b", b"bytes")
    store.create("a/c", tmp_path / "f")
    assert store.read("a/b") == b"bytes"
    store.fetch("a/c", tmp_path / "out", sha256=sha256(b"from a file"), size_bytes=11)
    assert (tmp_path / "out").read_bytes() == b"from a file"
    assert store.stat("a/c").size_bytes == 11
    assert abs(store.stat("a/c").modified_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert sorted(o.key for o in store.list("a/")) == ["a/b", "a/c"]


def test_ranges_are_exact_and_end_with_the_object(store):
    store.create("k", bytes(range(100)))
    assert store.read("k", 10, 5) == bytes(range(10, 15))
    assert store.read("k", 90, 50) == bytes(range(90, 100))
    assert store.read("k", 40) == bytes(range(40, 100))
    assert store.read("k", 100, 1) == b""
    assert store.read("k", 5, 0) == b""


def test_the_same_bytes_again_are_fine_and_other_bytes_are_refused(store):
    store.create("k", b"one")
    store.create("k", b"one")
    with pytest.raises(AlreadyExistsError, match="other bytes"):
        store.create("k", b"two")
    with pytest.raises(AlreadyExistsError, match="other bytes"):
        store.create("k", b"three!")
    assert store.read("k") == b"one"


def test_an_empty_object_is_an_object(store, tmp_path):
    store.create("empty", b"")
    store.fetch("empty", tmp_path / "out", sha256=sha256(b""), size_bytes=0)
    assert (tmp_path / "out").read_bytes() == b""
    assert store.stat("empty").size_bytes == 0


def test_names_with_odd_characters_are_names(store):
    keys = ["a b/c", "a+b", "ü/é", "50%", "a&b=c", "x/y.json"]
    for key in keys:
        store.create(key, key.encode())
    assert {key: store.read(key) for key in keys} == {key: key.encode() for key in keys}
    assert sorted(o.key for o in store.list("")) == sorted(keys)


def test_a_pointer_is_swapped_only_from_what_was_seen(store):
    store.swap("p", b"1", None)
    with pytest.raises(SwapError):
        store.swap("p", b"2", None)
    store.swap("p", b"2", b"1")
    with pytest.raises(SwapError):
        store.swap("p", b"3", b"1")
    with pytest.raises(SwapError):
        store.swap("absent", b"3", b"1")
    assert store.read("p") == b"2"


def test_many_writers_count_to_their_sum(place, tmp_path):
    """Each adds one until it succeeds: a lost update would show in the sum."""
    lost = []

    def work():
        store = area(place.settings(tmp_path / "home"), "artifacts")
        for _ in range(5):
            while True:
                seen = store.read("n")
                try:
                    store.swap("n", str(int(seen) + 1).encode(), seen)
                    break
                except SwapError:
                    lost.append(1)

    area(place.settings(tmp_path / "home"), "artifacts").swap("n", b"0", None)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert area(place.settings(tmp_path / "home"), "artifacts").read("n") == b"20"


def test_of_many_creators_one_wins(place, tmp_path):
    outcomes = []

    def work(number):
        store = area(place.settings(tmp_path / "home"), "artifacts")
        try:
            store.create("k", str(number).encode())
            outcomes.append(number)
        except AlreadyExistsError:
            pass

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = outcomes
    assert area(place.settings(tmp_path / "home"), "artifacts").read("k") == str(winner).encode()


def test_missing_objects_are_said(store, tmp_path):
    assert store.stat("nothing") is None
    with pytest.raises(MissingObjectError, match="nothing"):
        store.read("nothing")
    for size in (0, 3, PART_BYTES + 1):
        with pytest.raises(MissingObjectError, match="nothing"):
            store.fetch("nothing", tmp_path / "out", sha256="0" * 64, size_bytes=size)
    assert list(store.list("nothing/")) == []


def test_deleting_takes_many_and_does_not_mind_what_is_gone(store):
    keys = [f"d/{n}" for n in range(12)]
    for key in keys:
        store.create(key, b"x")
    store.create("kept", b"x")
    store.delete([*keys, "never/there"])
    store.delete([])
    assert [o.key for o in store.list("")] == ["kept"]


def test_long_listings_are_whole(place, tmp_path):
    if hasattr(place.server, "page_size"):
        place.server.page_size = 7
    store = area(place.settings(tmp_path / "home"), "artifacts")
    for n in range(23):
        store.create(f"l/{n:02}", b"x")
    assert sorted(o.key for o in store.list("l/")) == [f"l/{n:02}" for n in range(23)]
    assert sorted(o.key for o in store.list("l/1")) == [f"l/{n}" for n in range(10, 20)]


# --- digests


def test_bytes_of_another_digest_are_not_stored(store, tmp_path):
    (tmp_path / "f").write_bytes(b"data")
    with pytest.raises(IntegrityError, match="digest"):
        store.create("k", tmp_path / "f", sha256=sha256(b"other"))
    path, _ = large(tmp_path)
    with pytest.raises(IntegrityError, match="digest"):
        store.create("k", path, sha256=sha256(b"other"))
    assert store.stat("k") is None
    assert list(store.unfinished()) == []


def test_bytes_of_another_digest_are_not_fetched(store, tmp_path):
    store.create("k", b"data")
    with pytest.raises(IntegrityError, match="digest"):
        store.fetch("k", tmp_path / "out", sha256=sha256(b"dbta"), size_bytes=4)
    with pytest.raises(IntegrityError):
        store.fetch("k", tmp_path / "out", sha256=sha256(b"data and more"), size_bytes=13)


# --- large objects


def test_a_large_object_goes_in_parts_and_comes_back_whole(store, tmp_path):
    path, digest = large(tmp_path)
    told = []
    store.create("large", path, sha256=digest, moved=told.append)
    assert sum(told) == path.stat().st_size
    told.clear()
    store.fetch("large", tmp_path / "out", sha256=digest, size_bytes=path.stat().st_size, moved=told.append)
    assert sum(told) == path.stat().st_size
    assert sha256((tmp_path / "out").read_bytes()) == digest
    assert store.read("large", PART_BYTES - 2, 4) == path.read_bytes()[PART_BYTES - 2 : PART_BYTES + 2]
    assert list(store.unfinished()) == []
    store.create("large", path, sha256=digest)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(AlreadyExistsError):
        store.create("large", path)
    assert list(store.unfinished()) == []


@pytest.mark.parametrize("kind", ["s3", "s3 by OCI's rules", "oci"])
def test_a_dead_upload_is_resumed_and_only_what_is_missing_is_sent(kind, request, tmp_path, monkeypatch):
    """The second part was sent, the process died; whoever stores the same bytes sends the others only."""
    place = place_of(kind, request, tmp_path)
    use(place, monkeypatch)
    store = area(place.settings(tmp_path / "home"), "artifacts")
    path, digest = large(tmp_path)
    data = path.read_bytes()
    upload = next(iter(begun(store, "large", digest)))
    store.bucket.put_part(upload, 2, data[PART_BYTES : 2 * PART_BYTES])
    sent = []
    put_part = store.bucket.put_part
    monkeypatch.setattr(store.bucket, "put_part", lambda u, n, d: sent.append(n) or put_part(u, n, d))
    store.create("large", path, sha256=digest)
    assert sorted(sent) == [1, 3]
    store.fetch("large", tmp_path / "out", sha256=digest, size_bytes=len(data))
    assert store.stat("large").sha256 == digest
    assert list(store.unfinished()) == []


@pytest.mark.parametrize("kind", ["s3", "s3 by OCI's rules", "oci"])
def test_a_part_of_other_bytes_in_a_dead_upload_is_sent_anew(kind, request, tmp_path, monkeypatch):
    place = place_of(kind, request, tmp_path)
    use(place, monkeypatch)
    store = area(place.settings(tmp_path / "home"), "artifacts")
    path, digest = large(tmp_path)
    upload = next(iter(begun(store, "large", digest)))
    store.bucket.put_part(upload, 1, b"\0" * PART_BYTES)
    store.create("large", path, sha256=digest)
    store.fetch("large", tmp_path / "out", sha256=digest, size_bytes=path.stat().st_size)


@pytest.mark.parametrize("kind", ["s3", "s3 by OCI's rules", "oci"])
def test_an_unfinished_upload_can_be_given_up(kind, request, tmp_path, monkeypatch):
    place = place_of(kind, request, tmp_path)
    use(place, monkeypatch)
    store = area(place.settings(tmp_path / "home"), "artifacts")
    (upload,) = begun(store, "large", "0" * 64)
    assert abs(upload.begun_at - datetime.now(UTC)) < timedelta(minutes=1)
    store.abort(upload)
    store.abort(upload)
    assert list(store.unfinished()) == []
    assert list(store.list("")) == []


def begun(store, key, digest):
    store.bucket.begin(key, digest)
    return list(store.unfinished())


@pytest.mark.parametrize("gib", [1, 79, 100, 300, 10 * 1024])
def test_no_object_is_cut_into_more_parts_than_servers_take(gib):
    parts = parts_of(gib << 30)
    assert len(parts) <= 10_000
    assert sum(p.length for p in parts) == gib << 30
    assert max(p.length for p in parts) <= 50 << 30


# --- tiers


@pytest.mark.parametrize("kind", ["s3 by OCI's rules", "oci"])
def test_an_archived_object_must_be_restored_before_it_is_read(kind, request, tmp_path, monkeypatch):
    import time

    place = place_of(kind, request, tmp_path)
    use(place, monkeypatch)
    store = area(place.settings(tmp_path / "home"), "artifacts")
    store.create("dump", b"data")
    assert store.stat("dump").availability is Availability.READY
    store.archive("dump")
    assert store.stat("dump").availability is Availability.ARCHIVED
    assert store.stat("dump").sha256 == sha256(b"data")
    with pytest.raises(ArchivedError, match="restore it first"):
        store.read("dump")
    with pytest.raises(ArchivedError):
        store.fetch("dump", tmp_path / "out", sha256=sha256(b"data"), size_bytes=4)
    store.restore("dump", days=2)
    store.restore("dump", days=2)
    deadline = time.monotonic() + 10
    while store.stat("dump").availability is not Availability.READY:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert store.read("dump") == b"data"


def test_a_folder_has_no_tiers(tmp_path):
    from akidb_pipelines.store.local import LocalStore

    store = LocalStore(tmp_path)
    with pytest.raises(InputError, match="no archive tier"):
        store.archive("k")
    with pytest.raises(InputError, match="no archive tier"):
        store.restore("k", 1)


# --- URLs


@pytest.mark.parametrize("url", ["ftp://x", "file://relative", "s3://UPPER", "s3://", "oci://only-namespace", "nonsense"])
def test_an_unusable_url_is_refused_with_the_forms_that_are_known(url, settings):
    with pytest.raises(InputError, match="store ") as caught:
        area(settings, "artifacts", url)
    assert "oci://namespace/name" in caught.value.hint


def test_keys_stay_inside_the_folder(tmp_path):
    from akidb_pipelines.store.local import LocalStore

    store = LocalStore(tmp_path / "area")
    for key in ("", "/etc/passwd", "a/../../b"):
        with pytest.raises(InputError):
            store.create(key, b"x")


def test_a_full_disk_leaves_nothing_half(small_disk):
    from akidb_pipelines.store.local import LocalStore

    store = LocalStore(small_disk / "area")
    with pytest.raises(OutsideError, match="No space left") as caught:
        store.create("k", os.urandom(4 << 20))
    assert "free some space" in caught.value.hint
    assert list(store.list("")) == []
    store.create("k", b"small")


def test_what_another_host_is_writing_is_left_alone(tmp_path):
    from akidb_pipelines.store.local import LocalStore

    store = LocalStore(tmp_path)
    store.create("k", b"x")
    theirs = store.root / ".incoming" / ".incoming-otherhost.1-k"
    theirs.write_bytes(b"half")
    store.create("k2", b"x")
    assert theirs.exists()
    os.utime(theirs, (0, 0))
    store.create("k3", b"x")
    assert not theirs.exists()
