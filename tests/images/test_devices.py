"""Jetsons of the lab over SSH: captured offline and frozen, reflashed bit for bit."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from akidb_pipelines.errors import CheckError, InputError, OutsideError
from akidb_pipelines.images.checks import check_filesystem
from akidb_pipelines.images.drives import BLOCK_BYTES, LocalDrive
from akidb_pipelines.images.image import Mode
from akidb_pipelines.images.reflash import Reflash, plan, reflash
from akidb_pipelines.images.restore import restore, verify
from akidb_pipelines.images.studio import open_studio
from akidb_pipelines.lab import drives, loops
from akidb_pipelines.settings import Settings
from tests.images.conftest import DECEMBER, MIB, change, taken, writing
from tests.services.jetson_lab import need_root


@pytest.fixture
def studio(tmp_path):
    studio = open_studio(Settings(home=tmp_path / "home", store=f"file://{tmp_path / 'store'}"))
    yield studio
    studio.catalog.close()


def failed(studio, image) -> dict[str, str]:
    return {report.check: report.summary for report in studio.run_checks(image) if not report.passed}


# --- captures


def test_a_jetson_that_started_from_another_medium_is_captured_offline(devices, studio, tmp_path):
    captured = studio.capture(devices.drive("jetson-a"), devices.request("jetson-a"))

    record = captured.image.record
    assert (record.mode, record.size_bytes, record.frozen_seconds) == (Mode.OFFLINE, 64 * MIB, 0)
    assert (record.board.drive_serial, record.board.spec[:4], record.board.qspi) == ("LAB-NVME-A", "3701", "qspi/jetson-a/r36.4.0")
    assert record.board.efi_entries[0] == "BootOrder: 0000,0001"
    assert [(p.name, p.start_bytes) for p in record.partitions] == [("APP", MIB), ("esp", 47 * MIB)]
    assert captured.counts.sent_bytes < captured.counts.new_bytes * 1.02 + MIB
    restore(studio.library, captured.image, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == devices.content("jetson-a")
    assert failed(studio, captured.image) == {}


def test_a_jetson_that_runs_from_its_drive_is_captured_frozen_while_it_writes(devices, studio):
    with writing(devices) as writer:
        captured = studio.capture(devices.drive("jetson-b"), devices.request("jetson-b"))
        writer.expect_progress()

    record = captured.image.record
    assert record.mode is Mode.FROZEN
    assert record.mode_reason.startswith("/ frozen for ")
    assert 0 < record.frozen_seconds < 30
    assert record.board.drive_serial == "LAB-NVME-B"
    assert failed(studio, captured.image) == {}
    assert studio.promote(captured.image, "tried").golden


def test_without_freezing_a_jetson_that_writes_is_captured_live(devices, library):
    with writing(devices):
        captured = devices.capture(library, "jetson-b", freeze_mounts=())

    assert captured.image.record.mode is Mode.LIVE
    assert captured.image.record.mode_reason == "mounted for writing: /"


@pytest.mark.parametrize("round_", range(2))
def test_a_frozen_image_is_sound_whenever_the_writer_was_stopped(devices, library, tmp_path, round_):
    (tmp_path / "copies").mkdir()
    with writing(devices):
        for month in ("2026-01", "2026-02"):
            captured = devices.capture(library, "jetson-b", month)
            report = check_filesystem(library, captured.image, tmp_path / "copies")
            assert report.passed, report.broken
            (tmp_path / "copies" / "restored.img").unlink()


def test_a_month_later_little_more_than_what_differs_crosses_the_wire(devices, library, tmp_path):
    devices.capture(library, "jetson-a")
    with devices.mounted("jetson-a", tmp_path / "root") as root:
        for n, path in enumerate(sorted((root / "srv/files").rglob("*.py"))[:40]):
            path.write_bytes(path.read_bytes()[::-1])
            if n % 4 == 0:
                path.unlink()
        shutil.copy("/usr/bin/git", root / "srv/new")

    second = devices.capture(library, "jetson-a", DECEMBER)

    counts = second.counts
    assert 0 < counts.new_bytes <= counts.changed_blocks * BLOCK_BYTES < 40 * MIB
    assert counts.sent_bytes <= 1.1 * counts.changed_blocks * BLOCK_BYTES + 3 * MIB
    restore(library, second.image, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == devices.content("jetson-a")


def test_an_expired_certificate_is_renewed(devices, library):
    host = devices.running.inventory.hosts["jetson-b"]
    certificate = Path(host.option("CertificateFile"))
    key = Path(host.key_file)
    certificate.unlink(missing_ok=True)
    expired = ["ssh-keygen", "-q", "-s", key.with_name("ca"), "-I", "old", "-n", host.user, "-V", "-2h:-1h", f"{key}.pub"]
    subprocess.run(expired, check=True)
    before = certificate.read_bytes()

    with closing(devices.drive("jetson-b")) as drive:
        assert drive.facts().drive_serial == "LAB-NVME-B"

    assert certificate.read_bytes() != before


@pytest.fixture
def second_mount(devices):
    """A second file system on jetson-b's drive, mounted at /boot/efi with options. Real ones are vfat, which this kernel may not have."""
    loop = devices.loop("jetson-b")
    with loop.open("rb") as drive:
        drive.seek(47 * MIB)
        partition = drive.read(16 * MIB)
    devices.run(
        "jetson-b",
        "mkfs.ext4 -qF /dev/nvme0n1p2 && mkdir -p /boot/efi && mount -o noexec,nosuid,nodev /dev/nvme0n1p2 /boot/efi",
    )
    yield "grep ' /boot/efi ' /proc/self/mountinfo"
    devices.run("jetson-b", "umount /boot/efi && rmdir /boot/efi /boot")
    with loop.open("r+b") as drive:
        drive.seek(47 * MIB)
        drive.write(partition)


def test_a_mount_that_cannot_be_frozen_is_read_only_meanwhile_and_comes_back_as_it_was(devices, library, second_mount):
    before = devices.run("jetson-b", second_mount)

    live = devices.capture(library, "jetson-b").image.record
    frozen = devices.capture(library, "jetson-b", readonly_mounts=("/boot/efi",)).image.record
    after = devices.run("jetson-b", second_mount)
    devices.run("jetson-b", "mount -o remount,ro,noexec,nosuid,nodev /boot/efi")
    devices.capture(library, "jetson-b", readonly_mounts=("/boot/efi",))

    assert (live.mode, live.mode_reason) == (Mode.LIVE, "/boot/efi on it could be written while the rest was frozen")
    assert (frozen.mode, frozen.mode_reason.partition(" frozen")[0]) == (Mode.FROZEN, "/, /boot/efi")
    assert " rw,nosuid,nodev,noexec," in before
    assert after == before
    assert " ro,nosuid,nodev,noexec," in devices.run("jetson-b", second_mount)


def test_a_mount_that_somebody_writes_to_cannot_be_kept_still_and_nothing_stays_frozen(devices, library, second_mount):
    with devices.start("jetson-b", "exec 3>/boot/efi/open; echo open; cat") as holding:
        assert holding.stdout.readline() == "open\n"
        with pytest.raises(OutsideError, match=r"freezing it: /boot/efi cannot be frozen: .*busy") as caught:
            devices.capture(library, "jetson-b", readonly_mounts=("/boot/efi",))
        holding.stdin.close()

    assert "akidb_readonly_mounts" in caught.value.hint
    assert devices.run("jetson-b", "touch /srv/written /boot/efi/written && echo written") == "written\n"
    assert library.images() == []


def test_what_is_mounted_twice_is_frozen_once_and_for_both(devices, library):
    devices.run("jetson-b", "mkdir -p /srv/again && mount --bind /srv/files /srv/again")
    try:
        record = devices.capture(library, "jetson-b").image.record
    finally:
        devices.run("jetson-b", "umount /srv/again; rmdir /srv/again")

    assert record.mode is Mode.FROZEN


def test_a_mounted_drive_of_this_machine_is_frozen_by_the_command(devices, cli, tmp_path):
    with devices.mounted("jetson-a", tmp_path / "root") as root:
        arguments = ("--source", str(devices.loop("jetson-a")), "--name", "here", "--freeze", str(root))
        done = cli("images", "capture", *arguments, "--json")
        (root / "srv/after").write_text("thawed")

    assert done.code == 0, done.err
    assert '"mode": "frozen"' in done.out


def test_a_drive_is_captured_by_its_url_with_the_users_own_keys(devices, cli, tmp_path):
    host = devices.running.inventory.hosts["jetson-a"]
    folder = tmp_path / "me" / ".ssh"
    folder.mkdir(parents=True)
    shutil.copy(host.key_file, folder / "id_ed25519")
    shutil.copy(host.known_hosts, folder / "known_hosts")
    source = f"ssh://{host.user}@{host.address}:{host.port}{devices.loop('jetson-a')}"
    asked = ("images", "capture", "--source", source, "--name", "by-url", "--period", DECEMBER, "--json")

    done = cli(*asked, env={"HOME": str(tmp_path / "me")})
    (folder / "known_hosts").write_text("")
    unknown = cli(*asked, env={"HOME": str(tmp_path / "me")})

    assert done.code == 0, done.err
    assert f'"id": "by-url/{DECEMBER}/r1"' in done.out
    assert '"mode": "offline"' in done.out
    assert unknown.code == 3
    assert "known_hosts" in unknown.err


# --- reflash


def test_after_drift_a_reflash_writes_what_differs_and_the_drive_is_the_image_bit_for_bit(devices, studio, tmp_path):
    image = devices.capture(studio.library, "jetson-a").image
    before = devices.content("jetson-a")
    with devices.mounted("jetson-a", tmp_path / "root") as root:
        shutil.rmtree(root / "etc")
        (root / "srv/drift").write_bytes(b"d" * 300_000)
    change(devices.loop("jetson-a"), 900)
    planned = studio.plan(devices.reflash("jetson-a", image))
    drifted = devices.content("jetson-a")
    assert drifted != before

    done, kept = studio.reflash(devices.reflash("jetson-a", image))

    assert planned.refusals == ()
    assert 0 < planned.write_bytes + planned.zero_bytes < 16 * MIB
    assert planned.same_blocks + planned.write_blocks + planned.zero_blocks == planned.blocks == 1024
    assert done.plan.write_bytes == planned.write_bytes
    assert (done.ok, [c.what for c in done.checks]) == (
        True,
        ["all blocks", "partition table", "partition 1 (APP)", "partition 2 (esp)"],
    )
    assert devices.content("jetson-a") == before
    assert f"# Reflash of jetson-a: done\n\n- image **{image.id}**" in kept.read_text()
    assert kept.with_suffix(".json").is_file()
    assert studio.plan(devices.reflash("jetson-a", image)).same_blocks == 1024


def test_a_plan_writes_nothing(devices, studio):
    image = devices.capture(studio.library, "jetson-a").image
    change(devices.loop("jetson-a"), 0, 100)
    before = devices.content("jetson-a")
    try:
        planned = studio.plan(devices.reflash("jetson-a", image))

        assert (planned.write_blocks + planned.zero_blocks, devices.content("jetson-a") == before) == (2, True)
    finally:
        studio.reflash(devices.reflash("jetson-a", image))


def test_a_drive_that_holds_the_image_already_is_not_written(devices, studio):
    image = devices.capture(studio.library, "jetson-a").image
    writes = LocalDrive(devices.loop("jetson-a")).facts().writes

    done, _ = studio.reflash(devices.reflash("jetson-a", image))

    assert (done.written_bytes, done.zeroed_bytes, done.ok) == (0, 0, True)
    assert LocalDrive(devices.loop("jetson-a")).facts().writes == writes


@pytest.fixture
def new_drive(tmp_path):
    """A new, larger drive that holds other bytes, on this machine."""
    need_root()
    path = tmp_path / "new.img"
    path.write_bytes(b"\xa5" * (66 * MIB))
    yield loops.attach(path).device
    for loop in loops.loops_below(path):
        loops.detach(loop)


def test_a_larger_drive_gets_the_image_and_a_note_about_its_end(devices, library, new_drive):
    image = devices.capture(library, "jetson-a").image
    facts_root = devices.running.inventory.device("jetson-a").facts_root

    what = devices.reflash("jetson-a", image, drive=LocalDrive(new_drive, facts_root))
    with pytest.raises(CheckError, match="the drive's serial number is none, the inventory says LAB-NVME-A") as caught:
        reflash(library, what)
    assert "--serial none" in caught.value.hint
    done = reflash(library, replace(what, confirmed_serial="none"))

    assert "sfdisk --relocate gpt-bak-std" in done.note
    assert new_drive.read_bytes()[: 64 * MIB] == devices.content("jetson-a")
    assert done.ok, done.checks


def test_an_image_is_restored_to_a_drive_of_this_machine_zeros_too(library, new_drive, tmp_path):
    drives.make_image(tmp_path / "drive.img", name="test", size_mib=64, root_files={})
    image = taken(library, tmp_path / "drive.img").image

    restore(library, image, new_drive, replace=True)

    assert new_drive.read_bytes()[: 64 * MIB] == (tmp_path / "drive.img").read_bytes()
    assert verify(library, image, everything=True).problems == ()
    assert plan(library, Reflash("here", LocalDrive(new_drive), image)).same_blocks == 1024


def test_an_image_is_not_restored_to_a_smaller_drive(library, new_drive, tmp_path):
    with (tmp_path / "drive.img").open("wb") as out:
        out.truncate(67 * MIB)
        out.write(b"begins")
    image = taken(library, tmp_path / "drive.img").image
    before = new_drive.read_bytes()

    with pytest.raises(InputError, match=r"has 69,206,016 bytes, the image 70,254,592") as caught:
        restore(library, image, new_drive, replace=True)

    assert "no smaller" in caught.value.hint
    assert new_drive.read_bytes() == before
