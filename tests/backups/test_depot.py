"""Dumps that can be trusted: what was committed is in them, what is wrong with them is found before anybody uses them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import zstandard

from akidb_pipelines.backups.checks import check_age
from akidb_pipelines.backups.depot import expect_sound, open_depot
from akidb_pipelines.backups.dump import Dump, DumpKey, parse_record
from akidb_pipelines.backups.retention import Kept, plan
from akidb_pipelines.backups.sources import HostDatabase, LocalDatabase, databases_of, open_databases
from akidb_pipelines.backups.sqlite import examine, put_in_place, snapshot
from akidb_pipelines.errors import InputError, IntegrityError, OutsideError
from akidb_pipelines.machines.inventory import load_inventory
from akidb_pipelines.machines.ssh import Connection
from akidb_pipelines.store.publisher import open_publisher
from tests.backups.conftest import NAME, failed, make_database, opened, write_canary
from tests.services.places import content, place_of, use, with_cold

# --- taking and restoring


def test_a_dump_that_passes_its_checks_is_a_verified_backup_and_restores_to_the_same_rows(depot, dump, tmp_path):
    assert not depot.is_verified(dump), "nobody has looked at it yet"
    assert failed(depot, dump) == {}
    assert depot.is_verified(dump)
    restored = depot.restore(dump, tmp_path / "there" / "metadata.db")
    with opened(restored.target) as db:
        assert db.execute("SELECT count(*), sum(length(vector)) FROM documents").fetchone() == (50, 50 * 8 * 512)
    assert dump.record.rows == {"akidb_canary": 1, "collections": 2, "documents": 50} and dump.record.canary == 1
    assert [p.name for p in restored.target.parent.iterdir()] == ["metadata.db"], "nothing temporary is left"


def test_what_was_committed_before_the_snapshot_is_in_it_while_somebody_goes_on_writing(depot, live):
    """Also rows that only the -wal has yet. The writer never stops, and the dump ends all the same."""
    code = (
        "import itertools, sqlite3\n"
        f"db = sqlite3.connect({str(live)!r}, isolation_level=None)\n"
        "db.execute('PRAGMA wal_autocheckpoint = 0')\n"
        "for n in itertools.count(2):\n"
        "    db.execute('INSERT INTO akidb_canary VALUES (?, ?)', (n, '2026-11-26T01:00:00Z'))\n"
        "    print(n, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        acknowledged = [int(writer.stdout.readline()) for _ in range(50)]
        dump = depot.take(LocalDatabase(NAME, live))
        writer.kill()
    assert dump.record.canary >= acknowledged[-1]
    assert failed(depot, dump) == {}


def test_dumps_of_a_day_are_revisions_and_a_name_means_the_newest(depot, live):
    first, second = (depot.take(LocalDatabase(NAME, live)) for _ in range(2))
    assert (first.key.revision, second.key.revision) == (1, 2)
    assert depot.find(NAME).id == depot.find(f"{NAME}/{first.key.day}").id == second.id
    assert depot.find(first.id).id == first.id
    with pytest.raises(InputError, match="there is no dump staging-1-metadata/2020-01-01; the newest are"):
        depot.find(f"{NAME}/2020-01-01")


@pytest.mark.parametrize("kind", ["s3", "oci"])
def test_dumps_lie_in_the_cold_bucket_of_the_store(kind, request, tmp_path, monkeypatch, live):
    place = with_cold(place_of(kind, request, tmp_path))
    use(place, monkeypatch)
    depot = open_depot(place.settings(tmp_path / "home"))
    dump = depot.take(LocalDatabase(NAME, live))
    assert depot.cold.url.endswith("-cold")
    assert failed(depot, dump) == {}


def test_what_is_no_database_is_refused_and_leaves_no_dump(depot, tmp_path):
    (tmp_path / "note.txt").write_text("not a database at all")
    with pytest.raises(InputError, match="no SQLite database"):
        depot.take(LocalDatabase(NAME, tmp_path / "note.txt"))
    with pytest.raises(InputError, match="no name for a database"):
        depot.take(LocalDatabase("../up", tmp_path / "note.txt"))
    assert depot.dumps() == []


# --- what is wrong is found


def _tampered(depot, dump: Dump, change) -> Dump:
    """The dump as if its database had been changed before it was packed: everything agrees but the digest of the database."""
    path = Path(depot.cold.root) / dump.key.data
    raw = Path(depot.cold.root) / "raw.db"
    raw.write_bytes(zstandard.ZstdDecompressor().decompress(path.read_bytes()))
    change(raw)
    packed = zstandard.ZstdCompressor().compress(raw.read_bytes())
    raw.unlink()
    path.chmod(0o644)
    path.write_bytes(packed)
    record = replace(dump.record, stored_sha256=hashlib.sha256(packed).hexdigest(), stored_bytes=len(packed))
    place = Path(depot.cold.root) / dump.key.record
    place.chmod(0o644)
    place.write_bytes(record.to_json())
    return Dump(dump.key, record)


def _flip_a_bit_in_a_blob(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"V0000007V0000007") + 3] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_in_a_blob_is_caught_though_sqlite_finds_nothing(depot, dump, tmp_path):
    bad = _tampered(depot, dump, _flip_a_bit_in_a_blob)
    wrong = failed(depot, bad)
    assert set(wrong) == {"restorable"} and "dumped was" in wrong["restorable"]
    assert not depot.is_verified(bad)
    target = make_database(tmp_path / "metadata.db", rows=3)
    with pytest.raises(IntegrityError, match="is refused: has the digest that was dumped"):
        depot.restore(bad, target, replace=True)
    with opened(target) as db:
        assert db.execute("SELECT count(*) FROM documents").fetchone() == (3,), "what was there is untouched"


def test_bytes_that_changed_in_the_store_are_caught(depot, dump, tmp_path):
    path = Path(depot.cold.root) / dump.key.data
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert "restorable" in failed(depot, dump)
    with pytest.raises(IntegrityError, match="its manifest says"):
        depot.restore(dump, tmp_path / "metadata.db")
    assert not (tmp_path / "metadata.db").exists()


def test_a_verified_backup_that_is_damaged_later_is_verified_no_longer(depot, dump):
    assert failed(depot, dump) == {} and depot.is_verified(dump)
    (Path(depot.cold.root) / dump.key.data).unlink()
    assert "there is no dumps/" in failed(depot, dump)["restorable"]
    assert not depot.is_verified(dump)


def test_orphan_rows_are_found_though_integrity_check_passes_them(depot, live):
    with closing(sqlite3.connect(live, isolation_level=None)) as db:
        db.execute("DELETE FROM collections WHERE id = 2")
    wrong = failed(depot, depot.take(LocalDatabase(NAME, live)))
    assert set(wrong) == {"foreign_keys"} and "documents row 1: no collections" in wrong["foreign_keys"]


def test_a_table_that_has_become_empty_all_at_once_is_news(depot, dump, live):
    with opened(live) as db:
        db.execute("DELETE FROM documents")
    wrong = failed(depot, depot.take(LocalDatabase(NAME, live)))
    assert set(wrong) == {"row_counts"} and "was that on purpose?" in wrong["row_counts"]


def test_a_damaged_page_is_found(dump, depot):
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[4096 + 8 : 4096 + 40] = b"\xff" * 32
        path.write_bytes(data)

    bad = _tampered(depot, dump, damage)
    assert {"restorable", "integrity"} <= set(failed(depot, bad))


def test_a_backup_older_than_the_objective_is_told(dump):
    now = dump.record.taken_at
    assert check_age(dump, now + timedelta(hours=25)).passed
    late = check_age(dump, now + timedelta(hours=27))
    assert not late.passed and "27.0 h old, 26 h are allowed" in late.broken[0].message
    assert not check_age(dump, now - timedelta(hours=1)).passed, "a snapshot from the future is a wrong clock"


@pytest.mark.parametrize("text", [b"", b"{", b'{"format": 2}', b'{"format": 1, "database": "x"}', b"[]"])
def test_a_record_that_is_none_is_refused(text):
    with pytest.raises(IntegrityError):
        parse_record(text, "cold/x.json")


# --- putting it in place


def test_a_stale_wal_beside_the_target_does_not_destroy_what_is_restored(depot, dump, tmp_path):
    """Left to itself, SQLite would replay it into the restored file."""
    (tmp_path / "old").mkdir()
    target = make_database(tmp_path / "old" / "metadata.db", rows=7)
    with opened(target) as db:
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("INSERT INTO documents VALUES (999, 1, x'00')")
        wal, shm = (target.with_name(target.name + s).read_bytes() for s in ("-wal", "-shm"))
    target.unlink()
    for suffix, data in (("-wal", wal), ("-shm", shm)):
        target.with_name(target.name + suffix).write_bytes(data)
    with pytest.raises(InputError, match=r"metadata\.db-wal exists"):
        depot.restore(dump, target)
    depot.restore(dump, target, replace=True)
    assert [p.name for p in target.parent.iterdir()] == ["metadata.db"]
    assert examine(target).sha256 == dump.record.sha256


@contextmanager
def _somebody_uses(path: Path):
    """Another process has it open: locks of one process do not exclude each other."""
    opening = f"import sqlite3\ndb = sqlite3.connect({str(path)!r})\ndb.execute('SELECT 1 FROM documents').fetchone()\n"
    code = f"{opening}print(1, flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        user.stdout.readline()
        try:
            yield
        finally:
            user.kill()


def test_a_database_that_somebody_has_open_is_not_replaced(depot, dump, live):
    with _somebody_uses(live), pytest.raises(OutsideError, match="is in use"):
        depot.restore(dump, live, replace=True)
    depot.restore(dump, live, replace=True)


def test_an_existing_file_is_only_replaced_on_request(depot, dump, live):
    with pytest.raises(InputError, match="exists"):
        depot.restore(dump, live)


def test_a_full_disk_leaves_what_was_there_and_says_what_to_do(depot, tmp_path, small_disk):
    big = make_database(tmp_path / "big.db", rows=2000)
    dump = depot.take(LocalDatabase(NAME, big))
    target = make_database(small_disk / "metadata.db", rows=3)
    with pytest.raises(OutsideError, match="No space left"):
        depot.restore(dump, target, replace=True)
    with opened(target) as db:
        assert db.execute("SELECT count(*) FROM documents").fetchone() == (3,)
    cramped = replace(depot, scratch=small_disk / "tmp")
    with pytest.raises(OutsideError, match=r"full|No space"):
        cramped.take(LocalDatabase("big", big))
    assert depot.dumps("big") == []


def test_put_in_place_and_snapshot_refuse_what_cannot_be_written(tmp_path, live):
    copy = tmp_path / "copy.db"
    snapshot(live, copy)
    with pytest.raises(OutsideError, match="putting"):
        put_in_place(copy, Path("/proc/metadata.db"), replace=False)


# --- killed, and cleared away


def test_a_killed_dump_is_none_and_the_next_one_is_not_in_its_way(settings, depot, tmp_path):
    """Killed when its data is stored and its record is not."""
    big = make_database(tmp_path / "big.db", rows=3000)
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from akidb_pipelines.backups.depot import open_depot\n"
        "from akidb_pipelines.backups.sources import LocalDatabase\n"
        "from akidb_pipelines.settings import Settings\n"
        "from akidb_pipelines.store.local import LocalStore\n"
        "create = LocalStore.create\n"
        "def stop(self, key, *a, **k):\n"
        "    if key.endswith('.json'): print('here', flush=True); time.sleep(60)\n"
        "    create(self, key, *a, **k)\n"
        "LocalStore.create = stop\n"
        f"open_depot(Settings(home=Path({str(settings.home)!r}))).take(LocalDatabase({NAME!r}, Path({str(big)!r})))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    assert depot.dumps() == []
    with opened(big) as db:
        write_canary(db, 2)
    dump = depot.take(LocalDatabase(NAME, big))
    assert failed(depot, dump) == {}
    left = [p for p in Path(depot.cold.root).rglob("*.zst") if p.name != Path(dump.key.data).name]
    assert len(left) == 1
    depot.prune()
    assert left[0].exists(), "it might be being written"
    day_ago = time.time() - 25 * 3600
    os.utime(left[0], (day_ago, day_ago))
    depot.prune()
    assert not left[0].exists() and depot.find(NAME).id == dump.id
    assert not list((settings.home / "tmp").glob("*")), "the killed one's temporary files are swept"


def _keys(days: int, per_day: int = 1, last: datetime = datetime(2026, 11, 26, tzinfo=UTC)) -> list[DumpKey]:
    return [DumpKey(NAME, (last - timedelta(days=d)).date().isoformat(), r + 1) for d in range(days) for r in range(per_day)]


def test_thirty_days_and_twelve_months_stay_and_the_newest_seven_days_are_at_hand():
    decided = {d.key: d.action for d in plan(Kept(k) for k in _keys(500, per_day=2))}
    of = {action: [k for k, a in decided.items() if a == action] for action in ("keep", "archive", "remove")}
    assert sorted({k.day for k in of["keep"]}) == [f"2026-11-{d}" for d in range(20, 27)] and len(of["keep"]) == 14
    days = {k.day for k in (*of["keep"], *of["archive"])}
    assert len([d for d in days if d > "2026-10-27"]) == 30, "thirty days"
    assert {d[:7] for d in days} == {*(f"2026-{m:02}" for m in range(1, 12)), "2025-12"}, "and twelve months"
    assert all(k.revision == 2 for k in of["archive"]), "of older days the last one"
    assert {k.day for k in of["remove"] if k.revision == 2}.isdisjoint(days)


def test_a_database_that_is_dumped_seldom_keeps_its_newest_seven_however_old():
    keys = [DumpKey(NAME, f"2025-{m:02}-01", 1) for m in range(1, 13)]
    assert [d.action for d in plan(Kept(k) for k in keys)] == ["archive"] * 5 + ["keep"] * 7


def test_a_good_dump_never_goes_for_a_bad_one():
    """A later one of the same day that failed its checks, newer days that all failed, or another database of the same name."""
    keys = _keys(60, per_day=2)
    bad = {k for k in keys if k.revision == 2} | {k for k in keys if k.day > "2026-10-01"}
    decided = {d.key: d.action for d in plan(Kept(k, verified=k not in bad) for k in keys)}
    of_october_first = {k.revision: a for k, a in decided.items() if k.day == "2026-10-01"}
    assert of_october_first == {1: "archive", 2: "remove"}, "the last good one of its month"
    two = [Kept(DumpKey(NAME, "2026-11-26", 1), "swarm://a/1"), Kept(DumpKey(NAME, "2026-11-26", 2), "swarm://b/1")]
    assert [d.action for d in plan(two)] == ["keep", "keep"]
    old = [Kept(DumpKey(NAME, f"2024-01-{d:02}", 1), verified=d == 1) for d in range(1, 20)]
    newer = [Kept(DumpKey(NAME, f"2026-{m:02}-{d:02}", 1), verified=False) for m in range(1, 13) for d in range(1, 28)]
    kept = {d.key for d in plan([*old, *newer]) if d.action != "remove"}
    assert old[0].key in kept, "the only good one"


def test_one_damaged_record_hides_no_other_dump(depot, dump, live, tmp_path):
    second = depot.take(LocalDatabase(NAME, live))
    path = Path(depot.cold.root) / dump.key.record
    path.chmod(0o644)
    path.write_text("{")
    assert [d.id for d in depot.dumps()] == [second.id]
    third = depot.take(LocalDatabase(NAME, live))
    assert third.key.revision == 3 and failed(depot, third) == {}
    path.write_bytes(second.record.to_json().replace(second.key.day.encode(), b"2026-01-01"))
    with pytest.raises(IntegrityError, match="is the record of another dump"):
        depot.find(dump.id)


def test_a_restored_file_has_the_mode_of_what_was_there_and_a_new_one_is_private(depot, dump, live, tmp_path):
    live.chmod(0o640)
    depot.restore(dump, live, replace=True)
    assert live.stat().st_mode & 0o777 == 0o640
    assert depot.restore(dump, tmp_path / "new.db").target.stat().st_mode & 0o777 == 0o600


def test_prune_archives_and_removes_and_what_is_archived_comes_back_when_asked_for(request, tmp_path, monkeypatch, live, oci_stub):
    place = with_cold(place_of("oci", request, tmp_path))
    use(place, monkeypatch)
    depot = open_depot(place.settings(tmp_path / "home"))
    dump = depot.take(LocalDatabase(NAME, live))
    packed = depot.cold.read(dump.key.data)
    for key in _keys(12, last=dump.record.taken_at)[1:]:
        depot.cold.create(key.data, packed)
        depot.cold.create(key.record, replace(dump.record, day=key.day).to_json())
    assert depot.prune(dry_run=True) and len(depot.dumps()) == 12
    decided = depot.prune()
    archived = [d.key.id for d in decided if d.action == "archive"]
    assert len(archived) == 5 and len(depot.dumps()) == 12
    old = depot.find(archived[0])
    with pytest.raises(OutsideError, match="restore"):
        depot.restore(old, tmp_path / "x.db")
    depot.wait_for(old, 10, poll_s=0.05)
    assert depot.restore(old, tmp_path / "x.db").target.exists()
    with pytest.raises(OutsideError, match="did not come back within 0 s"):
        depot.wait_for(depot.find(archived[1]), 0)


# --- where they are taken


INVENTORY = """
all:
  children:
    staging:
      hosts:
        staging-1: {{ansible_connection: local, akidb_databases: {{metadata: {path}}}}}
"""


def test_databases_of_the_inventory_and_released_fixtures_are_dumped(settings, tmp_path, live, depot):
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY.format(path=live))
    (found,) = databases_of(load_inventory(path))
    assert (found.name, found.where) == (NAME, f"file://{live}")
    assert depot.take(found).record.rows["documents"] == 50
    path.write_text(INVENTORY.format(path="relative.db"))
    with pytest.raises(InputError, match="staging-1: akidb_databases is"):
        list(databases_of(load_inventory(path)))


def test_a_released_fixture_is_dumped(settings, depot, tmp_path, live):
    assert open_databases(settings) == [], "nothing is released, and the lab's inventory has no database"
    snapshot(live, tmp_path / "ci.db")
    manifest, folder = content(
        tmp_path / "release", "2026-W47", **{"ci.db": (tmp_path / "ci.db").read_bytes(), "ci.manifest.json": b"{}"}
    )
    open_publisher(settings).publish(manifest, folder)
    (fixture,) = open_databases(settings)
    dump = depot.take(fixture)
    assert dump.key.database == "fixtures-ci" and dump.record.rows["documents"] == 50
    assert failed(depot, dump) == {}


@pytest.fixture
def over_ssh(jetson_lab):
    """A host of the lab: jetson-a's SSH server, whose root is this machine's."""
    host = jetson_lab.inventory.hosts["jetson-a"]
    return Connection(host, jetson_lab.inventory.hosts)


def test_a_database_on_a_host_is_dumped_and_put_back_over_ssh(over_ssh, depot, live, tmp_path):
    database = HostDatabase(NAME, over_ssh, str(live))
    dump = depot.take(database)
    assert dump.record.source == f"ssh://jetson-a{live}" and failed(depot, dump) == {}
    target = tmp_path / "other.db"
    target.with_name("other.db-wal").write_bytes(b"stale")
    brought = depot.restore(dump, tmp_path / "brought.db").target
    HostDatabase(NAME, over_ssh, str(target)).put(brought, dump.record.sha256)
    assert examine(target).sha256 == dump.record.sha256 and not target.with_name("other.db-wal").exists()
    with pytest.raises(IntegrityError, match="what arrived has digest"):
        HostDatabase(NAME, over_ssh, str(target)).put(brought, "0" * 64)
    assert examine(target).sha256 == dump.record.sha256
    with _somebody_uses(live), pytest.raises(OutsideError, match="it is in use"):
        database.put(brought, dump.record.sha256)
    fresh = HostDatabase(NAME, over_ssh, str(tmp_path / "empty" / "metadata.db"))
    assert database.exists() and not fresh.exists()
    fresh.put(brought, dump.record.sha256)
    assert fresh.exists() and (tmp_path / "empty" / "metadata.db").stat().st_mode & 0o777 == 0o600
    assert not [p for p in tmp_path.iterdir() if ".akidb-" in p.name]


def test_a_host_says_what_is_wrong_with_its_database(over_ssh, depot, tmp_path):
    with pytest.raises(OutsideError, match="No such file"):
        depot.take(HostDatabase(NAME, over_ssh, str(tmp_path / "none.db")))
    (tmp_path / "note.db").write_text("not a database at all")
    with pytest.raises(OutsideError, match="no SQLite database"):
        depot.take(HostDatabase(NAME, over_ssh, str(tmp_path / "note.db")))


def test_the_record_tells_an_auditor_what_there_is(depot, dump):
    told = json.loads((Path(depot.cold.root) / dump.key.record).read_text())
    assert set(told) >= {"sha256", "rows", "canary", "snapshot_at", "source", "size_bytes", "stored_bytes"}
    moment = datetime.fromisoformat(told["snapshot_at"])
    assert timedelta(0) <= datetime.now(UTC) - moment < timedelta(minutes=5)


def test_a_sound_dump_is_accepted(depot, dump, tmp_path):
    expect_sound(dump, depot.bring(dump, tmp_path).found)
