"""What must never happen: packs swept because the registry could not be read, a device left frozen, a drive overwritten by mistake."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from akidb_pipelines.errors import InputError, IntegrityError
from akidb_pipelines.images.agent.facts import facts
from akidb_pipelines.images.agent.freeze import _FITHAW, Freezer, _freeze
from akidb_pipelines.images.prune import prune
from akidb_pipelines.images.restore import restore, verify
from akidb_pipelines.machines.inventory import Host
from akidb_pipelines.machines.ssh import Connection
from tests.images.conftest import MIB, change, library_in, stored, taken, write_drive
from tests.services.jetson_lab import need_root

AT_ONCE = timedelta(0)


@pytest.fixture
def captured(library, tmp_path):
    return taken(library, write_drive(tmp_path / "disk.img", seed=3)).image


@pytest.mark.parametrize("lost", ["channels", "channels/tuf/metadata/timestamp.json"])
def test_a_registry_that_is_gone_is_not_an_empty_one_and_nothing_is_swept(library, captured, tmp_path, lost):
    packs = stored(library, ".pack")
    (tmp_path / "store" / lost).rename(tmp_path / "lost")
    stranger = library_in(tmp_path)
    shutil.rmtree(stranger.registry.folder / "trust", ignore_errors=True)
    with pytest.raises((InputError, IntegrityError)):
        prune(stranger, grace=AT_ONCE)
    assert stored(library, ".pack") == packs


def test_what_a_killed_writer_left_half_is_swept(library, captured):
    library.blocks.store.create("images/packs/ab/abcd.pack", b"half")
    assert prune(library, grace=AT_ONCE, dry_run=True).halves == 1
    assert prune(library, grace=AT_ONCE).halves == 1
    assert "images/packs/ab/abcd.pack" not in stored(library, ".pack")
    assert not verify(library, captured, everything=True).problems


def test_a_pack_that_was_cut_short_is_not_counted_on(library, captured, tmp_path):
    path = library.blocks.store.root / stored(library, ".pack")[0]
    path.chmod(0o644)
    os.truncate(path, 1000)
    assert verify(library, captured, everything=True).problems
    path.unlink()
    again = taken(library, tmp_path / "disk.img", "2026-12")
    assert again.counts.new_bytes > 0
    assert not verify(library, captured, everything=True).problems


# --- freezing


@pytest.fixture
def file_systems(tmp_path):
    """Two small file systems that can be frozen."""
    need_root()
    mounts = []
    for name in ("one", "two"):
        image, mount = tmp_path / f"{name}.img", tmp_path / name
        with image.open("wb") as made:
            made.truncate(8 * MIB)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        mount.mkdir()
        subprocess.run(["mount", "-o", "loop", image, mount], check=True)
        mounts.append(mount)
    yield mounts
    for mount in mounts:
        thaw(mount)
        subprocess.run(["umount", mount], check=True)


def thaw(mount: Path) -> bool:
    """Thaw by hand; whether it was frozen."""
    folder = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(folder, _FITHAW, 0)
    except OSError:
        return False
    finally:
        os.close(folder)
    return True


def test_one_file_system_that_somebody_thawed_keeps_no_other_frozen(file_systems):
    freezer = Freezer([str(m) for m in file_systems], [], 30)
    assert thaw(file_systems[1])
    assert freezer.thaw() is False
    assert not any(thaw(m) for m in file_systems)


def test_when_nobody_is_left_to_be_told_what_was_frozen_is_thawed(file_systems):
    told_reader, told = os.pipe()
    control, asks = os.pipe()
    os.close(told_reader)
    child = os.fork()
    if child == 0:
        os.close(asks)
        try:
            _freeze([str(m) for m in file_systems], [], 30, control, told)
        finally:
            os._exit(0)
    os.close(asks)
    os.waitpid(child, 0)
    assert not any(thaw(m) for m in file_systems)
    os.close(control)
    os.close(told)


def test_a_freeze_ends_with_its_time(file_systems):
    freezer = Freezer([str(file_systems[0])], [], 1)
    (file_systems[0] / "waits").write_text("for the thaw")
    assert freezer.thaw() is False


# --- drives


@pytest.fixture
def new_loop(tmp_path):
    """A loop device of a size."""
    need_root()
    made = []

    def make(size: int) -> Path:
        image = tmp_path / f"loop-{len(made)}.img"
        with image.open("wb") as out:
            out.truncate(size)
        made.append(subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True).stdout.strip())
        return Path(made[-1])

    yield make
    for loop in made:
        subprocess.run(["losetup", "-d", loop], check=True)


def test_an_image_whose_last_block_is_short_goes_onto_a_larger_drive(library, tmp_path, new_loop):
    source = write_drive(tmp_path / "odd.img", tail=b"x" * 24_576)
    image = taken(library, source).image
    drive = new_loop(32 * MIB)
    change(drive, 0, 100, source.stat().st_size // 65_536, 500)
    restore(library, image, drive, replace=True)
    assert drive.read_bytes()[: source.stat().st_size] == source.read_bytes()


def test_what_a_drive_holds_is_not_replaced_unless_somebody_says_so(library, captured, new_loop):
    drive = new_loop(32 * MIB)
    change(drive, 3)
    before = drive.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        restore(library, captured, drive)
    assert drive.read_bytes() == before


def test_a_drive_is_known_by_another_name_of_it(tmp_path, new_loop):
    drive = new_loop(MIB)
    system = tmp_path / "root" / "sys" / "class" / "block" / drive.name / "device"
    system.mkdir(parents=True)
    (system / "serial").write_text("S1234\n")
    link = tmp_path / "by-id-of-it"
    link.symlink_to(drive)
    assert facts(str(link), str(tmp_path / "root"))["drive_serial"] == "S1234"


def test_a_jump_host_whose_key_is_not_pinned_is_refused():
    host = Host("jetson-1", "10.0.0.1", options=(("ProxyJump", "ops@bastion.example.com:2222"),))
    with pytest.raises(InputError, match="its key is not pinned"):
        Connection(host).config()
