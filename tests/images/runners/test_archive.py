"""Snapshots of Docker images: archived, found again, restored to the same id; withdrawn with what was built on them."""

from __future__ import annotations

import io
import os
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest

from akidb_pipelines.errors import CheckError, InputError, IntegrityError, OutsideError
from akidb_pipelines.images.block_store import index_key, pack_key
from akidb_pipelines.images.drives import LocalDrive
from akidb_pipelines.images.prune import prune
from akidb_pipelines.images.runners.archive import archive_disks, archive_docker
from akidb_pipelines.images.runners.difference import difference
from akidb_pipelines.images.runners.docker_image import take_apart
from akidb_pipelines.images.runners.restore import restore
from akidb_pipelines.images.runners.shelf import open_shelf
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.index import PRODUCTION
from akidb_pipelines.store.retention import collect
from tests.images.runners.conftest import W46, W47, W48, archived, built, export_of, files_of, layer, noise

BASE = layer(files_of(20, seed=2))


def taken_apart(path) -> tuple[str, list[bytes]]:
    """Id and layers of an archive that was restored."""
    layers = []

    def take(reader):
        reader_pieces = list(reader.pieces())
        layers.append(sum(len(p.data) for p in reader_pieces))
        return reader.finished()[0]

    with path.open("rb") as stream:
        config = take_apart(stream, take)
    return config.image_id, layers


@pytest.mark.parametrize("blobs", [False, True], ids=["a folder a layer", "blobs by digest"])
def test_an_image_comes_back_with_its_id_and_layers(shelf, tmp_path, blobs):
    export = export_of(BASE, layer(files_of()))

    snapshot = archived(shelf, export, blobs=blobs).snapshot
    restore(shelf, snapshot, tmp_path / "image.tar")

    assert snapshot.id == "docker/2026-W47/r1"
    assert snapshot.record.image_id == export.config.image_id
    assert snapshot.record.architecture == "arm64"
    assert taken_apart(tmp_path / "image.tar") == (export.config.image_id, [len(data) for data in export.layers])


def test_a_layer_that_comes_twice_is_stored_once(shelf, tmp_path):
    empty = layer({})
    export = export_of(BASE, empty, layer(files_of(3)), empty)

    snapshot = archived(shelf, export).snapshot
    restore(shelf, snapshot, tmp_path / "image.tar")

    assert len(snapshot.record.files) == 3
    assert taken_apart(tmp_path / "image.tar")[0] == export.config.image_id


def test_a_week_later_only_what_is_new_is_stored(shelf):
    files = files_of(60)
    first = archived(shelf, export_of(BASE, layer(files, mtime=1)), W46)
    rebuilt = {**files, "usr/lib/000": noise(77, 100_000)}
    second = archived(shelf, export_of(BASE, layer(rebuilt, mtime=2)), W47)

    assert first.counts.new_bytes > 1_000_000
    assert 100_000 <= second.counts.new_bytes < 100_000 + 2 * 1024 * len(files) + 65536
    assert second.snapshot.record.previous == first.snapshot.id


def test_the_same_image_again_is_no_new_snapshot(shelf):
    export = export_of(BASE)
    first, again = archived(shelf, export), archived(shelf, export)

    assert (again.created, again.snapshot.id) == (False, first.snapshot.id)
    assert again.counts.stored_bytes == 0


def test_another_image_of_the_week_is_its_next_revision(shelf):
    archived(shelf, export_of(BASE))

    assert archived(shelf, export_of(BASE, label="again")).snapshot.id == "docker/2026-W47/r2"


def test_an_older_week_is_compared_with_the_one_before_it(shelf):
    archived(shelf, export_of(BASE, label="46"), W46)
    archived(shelf, export_of(BASE, label="48"), W48)

    assert archived(shelf, export_of(BASE, label="47"), W47).snapshot.record.previous == "docker/2026-W46/r1"


def test_a_layer_that_was_damaged_on_the_way_releases_nothing(shelf):
    export = export_of(BASE, layer(files_of()))
    data = bytearray(export.tar())
    data[len(data) // 2] ^= 1

    with pytest.raises(IntegrityError, match=r"layer \d is damaged: its digest is") as caught:
        archive_docker(shelf, built(export), io.BytesIO(data))

    assert "export the image again" in caught.value.hint
    assert shelf.snapshots() == []


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_an_export_that_is_cut_short_releases_nothing_and_the_next_one_stores_the_rest(shelf, share):
    export = export_of(BASE, layer(files_of()))
    data = export.tar()

    with pytest.raises(IntegrityError, match=r"cut short|early"):
        archive_docker(shelf, built(export), io.BytesIO(data[: int(len(data) * share)]), pack_bytes=1 << 20)

    assert shelf.snapshots() == []
    assert archived(shelf, export).snapshot.id == "docker/2026-W47/r1"


def test_another_image_than_was_built_is_refused(shelf):
    export, other = export_of(BASE), export_of(BASE, label="other")

    with pytest.raises(IntegrityError, match="was built"):
        archive_docker(shelf, built(export), io.BytesIO(other.tar()))


def test_a_damaged_pack_is_found_when_it_is_restored(shelf, tmp_path):
    snapshot = archived(shelf, export_of(BASE)).snapshot
    pack = max((tmp_path / "home" / "store").rglob("*.pack"), key=lambda p: p.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)

    with pytest.raises(IntegrityError, match="damaged"):
        restore(shelf, snapshot, tmp_path / "image.tar")
    assert not list(tmp_path.glob("*image*"))


def test_a_pack_that_is_gone_is_told(shelf, tmp_path):
    snapshot = archived(shelf, export_of(BASE)).snapshot
    blocks = shelf.library.blocks
    name = blocks.packs()[0][0].name
    blocks.store.delete([index_key(name), pack_key(name)])

    with pytest.raises(IntegrityError, match=r"pieces of sha256:.* lie in no pack") as caught:
        restore(shelf, snapshot, tmp_path / "image.tar")
    assert "bad-runner-image.md" in caught.value.hint


def test_a_file_that_is_there_is_not_replaced_unasked(shelf, tmp_path):
    snapshot = archived(shelf, export_of(BASE)).snapshot
    (tmp_path / "image.tar").write_text("mine")

    with pytest.raises(InputError, match="is there already"):
        restore(shelf, snapshot, tmp_path / "image.tar")
    assert (tmp_path / "image.tar").read_text() == "mine"
    restore(shelf, snapshot, tmp_path / "image.tar", replace=True)
    assert (tmp_path / "image.tar").stat().st_size > len(BASE)


def test_a_full_disk_is_told_and_nothing_is_released(small_disk, tmp_path):
    full = open_shelf(Settings(home=tmp_path / "home", store=f"file://{small_disk}/store"))

    with pytest.raises(OutsideError, match="No space left"):
        archived(full, export_of(layer({"large": noise(4, 8_000_000)})))
    assert full.snapshots() == []


# --- ancestry


def test_what_was_built_on_a_snapshot_is_withdrawn_with_it(shelf):
    parent = archived(shelf, export_of(BASE), W46, runner="base").snapshot
    child = archived(shelf, export_of(BASE, layer(files_of(4)))).snapshot
    grandchild = archived(shelf, export_of(BASE, layer(files_of(4)), layer(files_of(2, seed=5))), runner="gpu").snapshot
    stranger = archived(shelf, export_of(layer(files_of(5, seed=8))), runner="other").snapshot
    for snapshot in (child, grandchild, stranger):
        shelf.promote(snapshot, "checked")

    gone = shelf.revoke(parent, "a key was left in it")

    assert child.record.built_on == parent.id
    assert grandchild.record.built_on == child.id
    assert [s.id for s in gone] == [parent.id, child.id, grandchild.id]
    assert shelf.find(grandchild.id).revoked == f"built on {parent.id}: a key was left in it"
    assert shelf.production("docker") is None
    assert shelf.production("other").id == stranger.id


def test_production_goes_back_when_it_is_withdrawn(shelf):
    first, second = (archived(shelf, export_of(BASE, label=week), week).snapshot for week in (W46, W47))
    shelf.promote(first, "checked")
    shelf.promote(second, "checked")

    shelf.revoke(second, "jobs hang")

    assert shelf.find("docker@production").id == first.id
    with pytest.raises(InputError, match="revoked: jobs hang"):
        shelf.promote(shelf.find(second.id), "again")


def test_an_image_withdrawn_between_build_and_archive_does_not_come_back(shelf):
    export = export_of(BASE)
    snapshot = archived(shelf, export).snapshot
    shelf.revoke(snapshot, "a bad base image")

    again = archived(shelf, export)

    assert again.snapshot.id == "docker/2026-W47/r2"
    with pytest.raises(CheckError, match="2026-W47/r1 is the same image, and was revoked: a bad base image"):
        shelf.promote(again.snapshot, "checked")
    assert shelf.production("docker") is None


def test_an_image_whose_base_was_withdrawn_meanwhile_does_not_get_into_production(shelf):
    base = archived(shelf, export_of(BASE), W46, runner="base").snapshot
    shelf.revoke(base, "a key was left in it")
    child = archived(shelf, export_of(BASE, layer(files_of(4)))).snapshot

    with pytest.raises(CheckError, match="base/2026-W46/r1 is what it was built on, and was revoked: a key"):
        shelf.promote(child, "checked")


def test_a_damaged_snapshot_of_another_runner_does_not_stop_a_rollback(shelf, tmp_path):
    other = archived(shelf, export_of(BASE, label="other"), runner="other").snapshot
    first, second = (archived(shelf, export_of(BASE, label=week), week).snapshot for week in (W46, W47))
    for snapshot in (first, second):
        shelf.promote(snapshot, "checked")
    for path in (tmp_path / "home" / "store" / "artifacts" / "blobs").rglob("*"):
        if path.is_file() and other.record.image_id.encode() in path.read_bytes() and b'"runner"' in path.read_bytes():
            path.chmod(0o644)
            path.write_bytes(b"{}")

    shelf.revoke(second, "jobs hang")

    assert shelf.production("docker").id == first.id


def test_a_disk_that_is_written_meanwhile_is_refused(shelf, tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(noise(3, 300_000))
    machine = built(export_of(BASE), builder="tart", runner="mac-mini", image_id="vm-1")

    class Written(LocalDrive):
        def scan(self, *arguments, **more):
            yield from super().scan(*arguments, **more)
            disk.write_bytes(noise(4, 300_000))

    with closing(Written(disk)) as drive, pytest.raises(CheckError, match="was written while it was read"):
        archive_disks(shelf, machine, {"disk.img": drive})
    assert shelf.snapshots() == []


def test_what_differs_between_weeks_is_told_by_package_and_tool(shelf):
    facts = {
        "tools": [{"name": "git", "found": "2.39.5"}, {"name": "node", "found": "18.1"}],
        "packages": {"a": "1", "b": "1", "c": "1"},
    }
    later = {
        "tools": [{"name": "git", "found": "2.40.0"}, {"name": "rust", "found": "1.8"}],
        "packages": {"a": "2", "c": "1", "d": "1"},
    }
    before = archived(shelf, export_of(BASE, label="46"), W46, facts=facts).snapshot
    after = archived(shelf, export_of(BASE, label="47"), W47, facts=later).snapshot

    found = difference(shelf, before, after)

    assert [(c.what, c.kind, c.name, c.before, c.after) for c in found.changed] == [
        ("changed", "tool", "git", "2.39.5", "2.40.0"),
        ("removed", "tool", "node", "18.1", ""),
        ("added", "tool", "rust", "", "1.8"),
        ("changed", "package", "a", "1", "2"),
        ("removed", "package", "b", "1", ""),
        ("added", "package", "d", "", "1"),
    ]
    assert found.summary == "2 added, 2 removed, 2 changed"


# --- disks


def test_disks_are_archived_by_block_and_come_back(shelf, tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(noise(3, 3_000_000))
    os.truncate(disk, 20_000_000)
    (tmp_path / "nvram.bin").write_bytes(b"\0" * 100 + b"boot")
    machine = built(export_of(BASE), builder="tart", runner="mac-mini", image="vm-1", image_id="vm-1")

    def archive(week):
        with closing(LocalDrive(disk)) as drive, closing(LocalDrive(tmp_path / "nvram.bin")) as nvram:
            return archive_disks(shelf, replace(machine, week=week), {"disk.img": drive, "nvram.bin": nvram})

    archive(W46)
    with disk.open("r+b") as opened:
        opened.seek(1_000_000)
        opened.write(b"other")
    second = archive(W47)
    restore(shelf, second.snapshot, tmp_path / "machine")

    assert second.counts.new_bytes == 65536
    assert second.snapshot.record.built_on == ""
    for name in ("disk.img", "nvram.bin"):
        assert (tmp_path / "machine" / name).read_bytes() == (tmp_path / name).read_bytes()


# --- what is kept


def test_pieces_of_snapshots_outlive_a_sweep_of_packs(shelf, tmp_path):
    snapshot = archived(shelf, export_of(BASE, layer(files_of()))).snapshot

    pruned = prune(shelf.library, grace=timedelta(0))
    restore(shelf, snapshot, tmp_path / "image.tar")

    assert {s.action for s in pruned.sweeps} == {"keep"}


def test_the_image_in_production_and_the_one_before_are_kept_however_old(shelf):
    weeks = [f"2026-W{n:02}" for n in range(1, 31)]
    snapshots = [archived(shelf, export_of(BASE, label=week), week).snapshot for week in weeks]
    for snapshot in snapshots[:2]:
        shelf.promote(snapshot, "checked")

    plan = collect(shelf.library.publisher, dry_run=True)

    kept = {d.what.split()[1].split("/")[0] for d in plan.decisions if d.action == "keep" and d.what.startswith("runners.docker")}
    assert {"2026-W01", "2026-W02"} <= kept
    assert set(weeks[-8:]) <= kept
    monthly = kept - set(weeks[-8:]) - {"2026-W01", "2026-W02"}
    # July to February: W30, W27, and these. W01 is the last of December 2025, and the seventh.
    assert monthly == {"2026-W22", "2026-W18", "2026-W14", "2026-W09"}
    assert shelf.library.registry.index().head("runners.docker", PRODUCTION).version == snapshots[1].version


def test_a_snapshot_that_does_not_verify_is_no_snapshot(shelf, tmp_path):
    snapshot = archived(shelf, export_of(BASE)).snapshot
    blob = next(
        p for p in (tmp_path / "home" / "store" / "artifacts" / "blobs").rglob("*") if p.is_file() and b'"runner"' in p.read_bytes()
    )
    blob.chmod(0o644)
    blob.write_bytes(b"{}")

    with pytest.raises(CheckError):
        shelf.find(snapshot.id)
