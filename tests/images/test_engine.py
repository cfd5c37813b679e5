"""What the engine promises of drives that are files: bit for bit, only what changed, whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace

import pytest

from akidb_pipelines.errors import CheckError, InputError, IntegrityError, OutsideError
from akidb_pipelines.images.drives import BLOCK_BYTES, LocalDrive
from akidb_pipelines.images.image import ImageRef, Mode, parse_record
from akidb_pipelines.images.restore import restore, verify
from akidb_pipelines.images.studio import open_studio
from akidb_pipelines.lab import drives
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.index import GOLDEN
from akidb_pipelines.store.retention import collect
from tests.images.conftest import DECEMBER, MIB, NOVEMBER, change, library_in, stored, taken, write_drive

# --- there and back


@pytest.mark.parametrize("tail", [b"", b"a tail that is no whole block"], ids=["whole blocks", "a short last block"])
def test_a_restored_file_is_the_captured_one_bit_for_bit_with_its_holes(any_library, tmp_path, tail):
    disk = write_drive(tmp_path / "disk.img", tail=tail)
    captured = taken(any_library, disk)

    restored = restore(any_library, captured.image, tmp_path / "restored.img")

    assert (tmp_path / "restored.img").read_bytes() == disk.read_bytes()
    assert restored.size_bytes == disk.stat().st_size
    assert restored.written_bytes == 4 * MIB + len(tail)
    assert (tmp_path / "restored.img").stat().st_blocks * 512 < 6 * MIB
    assert verify(any_library, captured.image, everything=True).problems == ()
    assert captured.image.record.mode is Mode.OFFLINE


def test_a_month_later_only_what_changed_is_stored_and_both_months_come_back(any_library, tmp_path):
    disk = write_drive(tmp_path / "disk.img")
    before = disk.read_bytes()
    first = taken(any_library, disk)
    change(disk, 0, 20, 21)

    second = taken(any_library, disk, DECEMBER)

    assert (second.counts.changed_blocks, second.counts.new_bytes) == (3, 3 * BLOCK_BYTES)
    assert 3 * BLOCK_BYTES < second.counts.stored_bytes < 3 * BLOCK_BYTES + 2000
    assert (second.image.record.parent, second.image.record.parent_root) == (first.image.id, first.image.root_sha256)
    for captured, content in ((first, before), (second, disk.read_bytes())):
        restore(any_library, captured.image, tmp_path / "out", replace=True)
        assert (tmp_path / "out").read_bytes() == content


def test_a_drive_that_did_not_change_is_no_new_image_in_its_month_and_one_in_the_next(any_library, tmp_path):
    disk = write_drive(tmp_path / "disk.img")
    first = taken(any_library, disk)

    again, later = taken(any_library, disk), taken(any_library, disk, DECEMBER)

    assert (first.created, again.created, later.created) == (True, False, True)
    assert again.image == any_library.find(f"disk/{NOVEMBER}/r1")
    assert (again.counts.new_bytes, again.counts.stored_bytes, later.counts.stored_bytes) == (0, 0, 0)
    assert [image.id for image in any_library.images("disk")] == [f"disk/{NOVEMBER}/r1", f"disk/{DECEMBER}/r1"]


def test_a_changed_drive_is_another_revision_in_the_same_month(library, tmp_path):
    disk = write_drive(tmp_path / "disk.img")
    taken(library, disk)
    change(disk, 3)

    assert taken(library, disk).image.id == f"disk/{NOVEMBER}/r2"
    assert library.find(f"disk/{NOVEMBER}").revision == 2


def test_a_drive_that_went_back_to_an_older_state_stores_nothing(library, tmp_path):
    disk = write_drive(tmp_path / "disk.img")
    old = disk.read_bytes()
    taken(library, disk)
    change(disk, *range(16, 40))
    taken(library, disk)
    disk.write_bytes(old)

    third = taken(library, disk)

    assert (third.image.revision, third.counts.new_bytes) == (3, 0)
    restore(library, third.image, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == old


def test_zeros_and_holes_are_counted_and_not_stored(library, tmp_path):
    disk = tmp_path / "disk.img"
    with disk.open("wb") as out:
        out.write(bytes(2 * MIB))
        out.truncate(40 * MIB)

    captured = taken(library, disk)

    assert (captured.counts.blocks, captured.counts.zero_blocks, captured.counts.new_bytes) == (640, 640, 0)
    assert captured.counts.read_bytes <= 4 * MIB
    assert stored(library, ".pack") == []
    restore(library, captured.image, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == bytes(40 * MIB)


def test_data_that_became_zeros_is_zeros_when_it_is_restored(library, tmp_path):
    disk = write_drive(tmp_path / "disk.img")
    taken(library, disk)
    with disk.open("r+b") as out:
        out.seek(MIB)
        out.write(bytes(2 * MIB))

    second = taken(library, disk, DECEMBER)
    restore(library, second.image, tmp_path / "out")

    assert second.counts.new_bytes == 0
    assert (tmp_path / "out").read_bytes() == disk.read_bytes()


def test_blocks_that_any_image_has_are_stored_once(library, tmp_path):
    block = os.urandom(BLOCK_BYTES)
    one, two = tmp_path / "one.img", tmp_path / "two.img"
    one.write_bytes(block * 50)
    two.write_bytes(os.urandom(BLOCK_BYTES) + block * 3)

    first, second = taken(library, one, name="one"), taken(library, two, name="two")

    assert (first.counts.new_bytes, second.counts.new_bytes) == (BLOCK_BYTES, BLOCK_BYTES)
    restore(library, second.image, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == two.read_bytes()


@pytest.mark.parametrize("size", [3 * MIB + 5, 20 * MIB, BLOCK_BYTES - 1, 1])
def test_a_drive_that_shrank_or_grew_is_captured_whole(library, tmp_path, size):
    disk = write_drive(tmp_path / "disk.img")
    taken(library, disk)
    with disk.open("r+b") as out:
        out.truncate(size)
        out.seek(size - 1)
        out.write(b"z")

    captured = taken(library, disk, DECEMBER)
    restore(library, captured.image, tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == disk.read_bytes()


def test_many_small_packs_hold_the_same_image(library, tmp_path):
    disk = write_drive(tmp_path / "disk.img", data_mib=12)

    captured = taken(library, disk, pack_bytes=1 << 20)
    restore(library, captured.image, tmp_path / "out")

    assert len(stored(library, ".pack")) == len(stored(library, ".index")) > 7
    assert (tmp_path / "out").read_bytes() == disk.read_bytes()


def test_another_computer_restores_with_an_empty_cache(library, tmp_path):
    disk = write_drive(tmp_path / "disk.img")
    image = taken(library, disk).image
    other = replace(library, blocks=replace(library.blocks, cache=tmp_path / "elsewhere"))

    restore(other, image, tmp_path / "out")
    for index in (tmp_path / "elsewhere").iterdir():
        index.write_bytes(b"spoilt")
    restore(other, image, tmp_path / "out", replace=True)

    assert (tmp_path / "out").read_bytes() == disk.read_bytes()


def test_a_file_that_somebody_wrote_meanwhile_is_live(library, tmp_path):
    disk = write_drive(tmp_path / "disk.img")
    drive = LocalDrive(disk)
    scan = drive.scan

    def overtaken(previous, *, data=True):
        yield from scan(previous, data=data)
        change(disk, 0)

    drive.scan = overtaken
    live = taken(library, drive)
    offline = taken(library, disk)

    assert (live.image.record.mode, live.image.record.mode_reason) == (Mode.LIVE, "it was written while it was read")
    assert offline.image.record.mode is Mode.OFFLINE


def test_an_unchanged_drive_that_was_live_is_taken_again_when_it_is_still(library, tmp_path, monkeypatch):
    disk = write_drive(tmp_path / "disk.img")
    first = taken(library, disk)
    record = replace(first.image.record, mode=Mode.LIVE, period=DECEMBER)
    live = library.publish(record, library.digests(first.image))

    again = taken(library, disk, DECEMBER)

    assert (live.id, again.created, again.image.id) == (f"disk/{DECEMBER}/r1", True, f"disk/{DECEMBER}/r2")


# --- what cannot be captured


def test_what_is_no_drive_is_refused(library, tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match=r"nowhere: there is no such file or drive"):
        LocalDrive(tmp_path / "nowhere")
    with pytest.raises(InputError, match="empty is empty"):
        taken(library, tmp_path / "empty")
    with pytest.raises(InputError, match="is neither a file nor a drive"):
        LocalDrive(tmp_path)


@pytest.mark.parametrize("name", ["", "Jetson", "a/b", "-a", "a" * 50, "../x"])
def test_a_name_that_is_none_is_refused_before_anything_is_read(library, tmp_path, name):
    disk = write_drive(tmp_path / "disk.img")

    with pytest.raises(InputError, match="is no name for an image"):
        taken(library, disk, name=name)

    assert stored(library, ".pack") == []


def test_a_mount_that_does_not_lie_on_the_drive_is_named(library, tmp_path):
    with pytest.raises(InputError, match="/ is to be kept still, but does not lie on it; mounted from it: nothing"):
        taken(library, write_drive(tmp_path / "disk.img"), freeze_mounts=("/",))


def test_another_drive_than_the_inventorys_is_refused(library, tmp_path):
    with pytest.raises(CheckError, match="has serial number none, the inventory says S1"):
        taken(library, write_drive(tmp_path / "disk.img"), serial="S1")


# --- restoring


@pytest.fixture
def disk_image(library, tmp_path):
    return taken(library, write_drive(tmp_path / "disk.img")).image


def test_restoring_refuses_what_is_there_unless_it_is_to_be_replaced(library, disk_image, tmp_path):
    target = tmp_path / "out"
    target.write_bytes(b"mine")
    with pytest.raises(InputError, match="out is there already") as caught:
        restore(library, disk_image, target)
    assert target.read_bytes() == b"mine"
    assert "--replace" in caught.value.hint

    restore(library, disk_image, target, replace=True)

    assert target.read_bytes() == (tmp_path / "disk.img").read_bytes()
    with pytest.raises(InputError, match="is there already"):
        restore(library, disk_image, tmp_path, replace=True)


def test_a_restored_file_appears_only_when_it_is_whole(library, disk_image, tmp_path):
    target, seen = tmp_path / "new" / "out", []
    target.parent.mkdir()

    restore(library, disk_image, target, report=lambda _: seen.append(target.exists()))

    assert seen
    assert not any(seen)
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_a_restore_that_fails_leaves_nothing_and_what_was_there_as_it_was(library, disk_image, tmp_path):
    target = tmp_path / "new" / "out"
    target.parent.mkdir()
    target.write_bytes(b"mine")
    (key,) = stored(library, ".pack")
    library.blocks.store.delete([key])
    with pytest.raises(IntegrityError, match="lie in no pack"):
        restore(library, disk_image, target, replace=True)

    assert target.read_bytes() == b"mine"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_a_folder_that_is_not_there_is_said(library, disk_image, tmp_path):
    with pytest.raises(OutsideError, match="No such file or directory") as caught:
        restore(library, disk_image, tmp_path / "no" / "out")
    assert "folder" in caught.value.hint


def test_restoring_to_a_full_disk_says_so_and_leaves_nothing(library, disk_image, small_disk):
    with pytest.raises(OutsideError, match="No space left") as caught:
        restore(library, disk_image, small_disk / "out")

    assert "free some space" in caught.value.hint
    assert list(small_disk.iterdir()) == []


# --- verifying


def test_a_sample_reads_a_part_and_everything_all(library, tmp_path, monkeypatch):
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(12 * MIB))
    image = taken(library, disk).image
    monkeypatch.setattr("akidb_pipelines.images.restore.SAMPLE_BYTES", 2 * MIB)

    sample, everything = verify(library, image, everything=False), verify(library, image, everything=True)

    assert (sample.blocks, sample.of_blocks, sample.read_bytes) == (32, 192, 2 * MIB)
    assert (everything.blocks, everything.of_blocks, everything.problems) == (192, 192, ())


# --- names


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("jetson-a/2026-11/r12", ("jetson-a", "2026-11", 12, "")),
        ("jetson-a/2026-11", ("jetson-a", "2026-11", 0, "")),
        ("jetson-a@golden", ("jetson-a", "", 0, "golden")),
        ("jetson-a@latest", ("jetson-a", "", 0, "latest")),
        ("jetson-a", ("jetson-a", "", 0, "latest")),
    ],
)
def test_an_image_is_asked_for_in_four_ways(text, parts):
    ref = ImageRef.parse(text)
    assert (ref.name, ref.period, ref.revision, ref.channel) == parts


@pytest.mark.parametrize(
    "text", ["", "Jetson/2026-11", "a/2026-11/1", "a/2026-11/r1/x", "a@stable", "a@", "a/2026-11@golden", "a/"]
)
def test_what_names_no_image_is_refused_with_how_to_write_it(text):
    with pytest.raises(InputError) as caught:
        ImageRef.parse(text)
    assert "jetson-a" in caught.value.hint


def test_images_are_found_by_revision_month_and_channel(library, tmp_path):
    disk = write_drive(tmp_path / "disk.img")
    assert library.images() == []
    first = taken(library, disk).image
    change(disk, 1)
    second = taken(library, disk).image
    change(disk, 2)
    third = taken(library, disk, DECEMBER).image
    library.promote(first, "tried")

    found = {text: library.find(text).id for text in ("disk/2026-11/r1", "disk/2026-11", "disk", "disk@latest", "disk@golden")}

    assert found == {
        "disk/2026-11/r1": first.id,
        "disk/2026-11": second.id,
        "disk": third.id,
        "disk@latest": third.id,
        "disk@golden": first.id,
    }


def test_an_image_that_is_not_there_is_said_with_what_is(library, disk_image):
    for text in ("disk/2027-01", "disk/2026-11/r9", "other", "other@golden"):
        with pytest.raises(InputError, match="there is no"):
            library.find(text)
    with pytest.raises(InputError, match=r"of disk there are: disk/2026-11/r1") as caught:
        library.find("disk@golden")
    assert "images promote" in caught.value.hint


def test_a_record_comes_back_from_its_json(library, disk_image):
    record = disk_image.record

    assert parse_record(record.to_json(), "test") == record
    assert library.find(disk_image.id).record == record
    assert parse_record(json.dumps(asdict(record)).encode(), "test") == record


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"format": 2}, InputError),
        ({"block_bytes": 4096}, InputError),
        ({"mode": "warm"}, IntegrityError),
        ({"x": 1}, IntegrityError),
    ],
)
def test_a_record_that_is_not_understood_is_refused(disk_image, told, error):
    data = {**json.loads(disk_image.record.to_json()), **told}
    with pytest.raises(error, match="here"):
        parse_record(json.dumps(data).encode(), "here")
    with pytest.raises(IntegrityError, match="no record of a capture"):
        parse_record(b"[]", "here")


# --- golden


@pytest.fixture
def studio(tmp_path):
    studio = open_studio(Settings(home=tmp_path / "home", store=f"file://{tmp_path / 'store'}"))
    yield studio
    studio.catalog.close()


@pytest.fixture
def candidate(studio, tmp_path):
    """An image of a whole drive, with a table and file systems."""
    drives.make_image(tmp_path / "drive.img", name="test", size_mib=64, root_files={})
    return taken(studio.library, tmp_path / "drive.img").image


def test_an_image_becomes_golden_when_its_checks_have_passed_and_is_kept_for_ever(studio, candidate, tmp_path):
    with pytest.raises(CheckError, match="mode was not run") as caught:
        studio.promote(candidate, "tried")
    assert f"images check {candidate.id}" in caught.value.hint
    reports = {report.check: report for report in studio.run_checks(candidate)}
    assert all(not report.holds_back for report in reports.values())
    assert "partition 1 (APP)" in reports["filesystem"].facts

    golden = studio.promote(candidate, "tried")

    assert (golden.golden, golden.state) == (True, "golden")
    assert golden.pinned.startswith("golden since 20")
    assert studio.library.find(f"disk@{GOLDEN}").id == candidate.id
    for n in range(13):
        change(tmp_path / "drive.img", 5, seed=n)
        taken(studio.library, tmp_path / "drive.img", f"{2027 + n // 12}-{n % 12 + 1:02}")
    plan = collect(studio.library.publisher, dry_run=True)
    kept = {d.what: (d.action, d.why) for d in plan.decisions}
    assert kept[f"images.disk {NOVEMBER}/r1"] == ("keep", f"pinned: {golden.pinned}")
    assert kept["images.disk 2027-01/r1"][0] == "retire"


def test_a_failed_check_keeps_an_image_from_becoming_golden(studio, tmp_path):
    image = taken(studio.library, write_drive(tmp_path / "disk.img")).image
    failed = [report.check for report in studio.run_checks(image) if report.holds_back]
    assert failed == ["filesystem"]

    with pytest.raises(CheckError, match="does not become golden: filesystem") as caught:
        studio.promote(image, "hurry")

    assert "the golden image stays" in caught.value.hint
    assert not studio.library.find(image.id).golden


def test_a_broken_file_system_is_found_on_the_restored_copy(studio, tmp_path):
    drive = tmp_path / "drive.img"
    drives.make_image(drive, name="test", size_mib=64, root_files={})
    with drive.open("r+b") as out:
        out.seek(MIB + 4096 * 2)
        out.write(os.urandom(8192))

    (report,) = studio.run_checks(taken(studio.library, drive).image, ["filesystem"])

    assert not report.passed
    assert [broken.rule for broken in report.broken] == ["partition 1 (APP) is sound"]


def test_a_live_image_never_becomes_golden(studio, candidate):
    live = studio.library.publish(
        replace(candidate.record, mode=Mode.LIVE, mode_reason="mounted"), studio.library.digests(candidate)
    )
    assert any(report.holds_back for report in studio.run_checks(live, ["mode"]))

    with pytest.raises(CheckError, match="captured live: mounted"):
        studio.library.promote(live, "hurry")
    with pytest.raises(CheckError, match="mode: "):
        studio.promote(live, "hurry")


def test_a_revoked_image_is_no_longer_golden_and_the_one_before_is(studio, candidate, tmp_path):
    library = studio.library
    library.promote(candidate, "tried")
    change(tmp_path / "drive.img", 5)
    second = taken(library, tmp_path / "drive.img", DECEMBER).image
    library.promote(second, "tried")

    revoked = studio.revoke(second, "does not boot")

    assert (revoked.state, revoked.revoked, revoked.golden) == ("revoked", "does not boot", False)
    assert library.find("disk@golden").id == candidate.id
    assert library.find("disk@latest").id == candidate.id
    with pytest.raises(InputError, match="was revoked: does not boot"):
        library.promote(second, "again")
    with pytest.raises(InputError, match="ahead of"):
        library.promote(library.promote(taken(library, tmp_path / "drive.img", "2027-01").image, "x") and candidate, "older")
    assert taken(library, tmp_path / "drive.img", "2027-02").image.record.parent == "disk/2027-01/r1", (
        "never compared with a revoked one"
    )


def test_libraries_do_not_share_their_packs(tmp_path):
    disk = write_drive(tmp_path / "disk.img")
    for name in ("one", "two"):
        assert taken(library_in(tmp_path / name), disk).counts.new_bytes > 2 * MIB
