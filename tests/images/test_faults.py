"""What goes wrong with devices, connections, packs and rooms: nothing is lost, nothing half appears, and the message says what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from akidb_pipelines.errors import CheckError, InputError, IntegrityError, OutsideError
from akidb_pipelines.images.block_store import StoredPack, index_key, pack_key
from akidb_pipelines.images.capture import CaptureRequest, capture
from akidb_pipelines.images.drives import BLOCK_BYTES, ZERO, LocalDrive
from akidb_pipelines.images.image import Mode
from akidb_pipelines.images.packs import digests_of
from akidb_pipelines.images.prune import decide, prune
from akidb_pipelines.images.reflash import Reflash, plan, reflash
from akidb_pipelines.images.restore import restore, verify
from akidb_pipelines.periods import Month
from akidb_pipelines.progress import Progress
from akidb_pipelines.store.lease import BusyError
from akidb_pipelines.store.retention import collect
from tests.images.conftest import DECEMBER, MIB, NOVEMBER, change, damage, library_in, stored, taken, write_drive, writing
from tests.images.test_packs import pack_up, parsed, sha256, some_blocks
from tests.services.places import clean_environment

NO_GRACE = timedelta(0)
FROZEN_PASS = "reading what changed, frozen"


def wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.003)


def processes_with(*texts: str) -> list[int]:
    """Processes whose command line contains all of these."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if all(text in line for text in texts):
            found.append(int(path.parent.name))
    return found


# --- a capture that is killed

CAPTURE = """
import sys
from pathlib import Path
from akidb_pipelines.images.capture import CaptureRequest, capture
from akidb_pipelines.machines.inventory import load_inventory
from akidb_pipelines.images.library import open_library
from akidb_pipelines.images.studio import device_drive
from akidb_pipelines.periods import Month
from akidb_pipelines.settings import Settings

inventory = load_inventory(Path(sys.argv[1]))
request = CaptureRequest("jetson-a", Month.parse("2026-11"), device="jetson-a", pack_bytes=1 << 20)
capture(open_library(Settings.load()), device_drive(inventory, inventory.device("jetson-a")), request)
"""


def test_a_killed_capture_goes_on_where_it_was(devices, library, tmp_path):
    environment = clean_environment(AKIDB_HOME=str(tmp_path / "home"), AKIDB_STORE=f"file://{tmp_path / 'store'}")
    inventory = devices.inventory_in(tmp_path)
    killed = subprocess.Popen([sys.executable, "-c", CAPTURE, str(inventory)], env={**environment, "USER": "root"})
    wait_until(lambda: len(stored(library, ".index")) >= 5)
    killed.kill()
    killed.wait()
    before = sum(int(index.entries["length"].sum()) for _, index in library.blocks.packs())
    assert library.images() == []

    again = devices.capture(library, "jetson-a")

    assert again.image.id == f"jetson-a/{NOVEMBER}/r1"
    assert again.counts.sent_bytes - again.counts.new_bytes < 0.1 * before
    assert again.counts.new_bytes < again.counts.read_bytes / 2
    restore(library, again.image, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == devices.content("jetson-a")


# --- freezing


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def ssh_clients() -> list[int]:
    """The engine's own ssh processes, children of this one."""
    return [pid for pid in processes_with("akidb-ssh-") if parent(pid) == os.getpid()]


def agents() -> list[int]:
    """The agents that run on devices, without the processes that freeze for them."""
    found = set(processes_with("\0-I\0", "exec(sys.stdin.buffer.read(")) - set(processes_with("akidb-ssh-"))
    return [pid for pid in found if parent(pid) not in found]


def in_the_frozen_pass(act):
    """A report that acts once while the device is frozen."""

    def report(told: Progress) -> None:
        if told.stage == FROZEN_PASS and not report.done:
            report.done = True
            act()

    report.done = False
    return report


def test_a_connection_that_is_cut_while_the_device_is_frozen_thaws_it_at_once(devices, library):
    seconds = {}

    def cut() -> None:
        assert not writer.progress(0.5), "the device is not frozen"
        begun = time.monotonic()
        for pid in ssh_clients():
            os.kill(pid, signal.SIGKILL)
        writer.expect_progress(5)
        seconds["until thawed"] = time.monotonic() - begun

    with writing(devices) as writer, pytest.raises(OutsideError, match="jetson-b") as caught:
        devices.capture(library, "jetson-b", report=in_the_frozen_pass(cut), freeze_seconds=60)

    assert seconds["until thawed"] < 3
    assert caught.value.hint
    assert library.images() == []


def test_a_device_whose_agent_hangs_thaws_by_its_own_timer(devices, library):
    """The whole session of the agent is stopped; what thaws is a process of its own."""
    stopped: list[int] = []
    frozen_for = 3

    def hang() -> None:
        begun = time.monotonic()
        session = {os.getsid(pid) for pid in agents()}
        assert session
        for path in Path("/proc").glob("[0-9]*"):
            pid = int(path.name)
            try:
                if os.getsid(pid) in session:
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)
            except ProcessLookupError:
                continue
        assert not writer.progress(0.5), "the device is not frozen"
        writer.expect_progress(frozen_for + 2)
        assert time.monotonic() - begun < frozen_for + 2
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)

    with writing(devices) as writer, pytest.raises(CheckError, match=f"thawed by itself within {frozen_for} s"):
        try:
            devices.capture(library, "jetson-b", report=in_the_frozen_pass(hang), freeze_seconds=frozen_for)
        finally:
            for pid in stopped:
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    continue

    assert stopped
    assert library.images() == []


def test_an_agent_that_is_killed_while_the_device_is_frozen_thaws_it(devices, library):
    def kill() -> None:
        for pid in agents():
            os.kill(pid, signal.SIGKILL)
        writer.expect_progress(5)

    with writing(devices) as writer, pytest.raises(OutsideError, match="jetson-b"):
        devices.capture(library, "jetson-b", report=in_the_frozen_pass(kill), freeze_seconds=60)

    assert library.images() == []


def test_a_device_that_thawed_before_all_was_read_gives_no_image_and_the_next_try_succeeds(devices, library):
    report = in_the_frozen_pass(lambda: time.sleep(1.5))

    with pytest.raises(CheckError, match="thawed by itself within 1 s, before all of it was read") as caught:
        devices.capture(library, "jetson-b", report=report, freeze_seconds=1, pack_bytes=MIB)

    assert "akidb_freeze_seconds" in caught.value.hint
    assert library.images() == []
    again = devices.capture(library, "jetson-b")
    assert again.image.record.mode is Mode.FROZEN
    assert again.counts.new_bytes < 6 * MIB, "packs that were full are not stored again"


def test_a_capture_that_is_interrupted_while_the_device_is_frozen_thaws_it(devices, library):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with writing(devices) as writer:
        with pytest.raises(KeyboardInterrupt):
            devices.capture(library, "jetson-b", report=in_the_frozen_pass(interrupt), freeze_seconds=60)
        writer.expect_progress(5)


def test_a_mount_that_cannot_be_frozen_is_named_and_nothing_stays_frozen(devices, library):
    devices.run("jetson-b", "fsfreeze -f /")
    try:
        with pytest.raises(OutsideError, match="freezing it: / cannot be frozen: Device or resource busy"):
            devices.capture(library, "jetson-b")
    finally:
        devices.thaw()
    assert devices.run("jetson-b", "touch /srv/written && echo written") == "written\n"


def test_a_drive_that_is_written_while_it_is_read_is_live(devices, library):
    def write(told: Progress) -> None:
        if told.stage == "reading" and not written:
            written.append(change(devices.loop("jetson-a"), 1000, seed=int(time.time())))

    written: list[None] = []
    live = devices.capture(library, "jetson-a", report=write).image
    still = devices.capture(library, "jetson-a").image

    assert (live.record.mode, live.record.mode_reason) == (Mode.LIVE, "it was written while it was read")
    assert (still.revision, still.record.mode) == (2, Mode.OFFLINE)
    with pytest.raises(CheckError, match="captured live: it was written"):
        reflash(library, devices.reflash("jetson-a", live))


# --- packs that are damaged or gone


@pytest.fixture
def disk(tmp_path):
    return write_drive(tmp_path / "disk.img", data_mib=8)


def test_a_damaged_pack_is_refused_by_name_found_by_verify_and_healed_by_the_next_capture(library, disk, tmp_path):
    older = taken(library, disk, pack_bytes=2 * MIB).image
    before = disk.read_bytes()
    key = stored(library, ".pack")[1]
    damage(library, key)

    with pytest.raises(IntegrityError, match=key) as caught:
        restore(library, older, tmp_path / "out")
    target = tmp_path / "target.img"
    target.write_bytes(b"\1" * disk.stat().st_size)
    with pytest.raises(IntegrityError, match=key):
        reflash(library, onto(older, target))
    verified = verify(library, older, everything=True)
    kept = taken(library, disk, DECEMBER)

    assert "delete that pack and its index" in caught.value.hint
    assert not (tmp_path / "out").exists()
    assert target.read_bytes()[:BLOCK_BYTES] == bytes(BLOCK_BYTES), "no partition table over half an image"
    assert any(key in problem and "damaged" in problem for problem in verified.problems)
    assert verified.blocks < verified.of_blocks
    assert kept.counts.new_bytes == 0, "a capture trusts what is stored; verify finds what is not to be trusted"

    library.blocks.store.delete([index_key(name := Path(key).stem), pack_key(name)])
    healed = taken(library, disk, DECEMBER)

    assert healed.counts.new_bytes > BLOCK_BYTES
    restore(library, older, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == before
    assert verify(library, healed.image, everything=True).problems == ()
    assert reflash(library, onto(older, target)).checks[0].ok
    assert target.read_bytes() == before


def onto(image, path: Path) -> Reflash:
    return Reflash("here", LocalDrive(path), image)


@pytest.mark.parametrize("suffix", [".pack", ".index"])
def test_a_pack_or_index_that_is_gone_is_said_before_anything_is_written_and_healed_by_the_next_capture(
    library, disk, tmp_path, suffix
):
    image = taken(library, disk, pack_bytes=2 * MIB).image
    library.blocks.store.delete([stored(library, suffix)[0]])
    target = tmp_path / "target.img"
    target.write_bytes(b"\1" * disk.stat().st_size)

    for refused in (
        lambda: restore(library, image, tmp_path / "out"),
        lambda: reflash(library, onto(image, target)),
        lambda: plan(library, onto(image, target)),
    ):
        with pytest.raises(IntegrityError, match=rf"image {image.id}: \d+ of its \d+ blocks lie in no pack") as caught:
            refused()
        assert "capture the device again" in caught.value.hint
    assert "lie in no pack" in verify(library, image, everything=True).problems[0]
    assert set(target.read_bytes()) == {1}

    again = taken(library, disk)

    assert (again.created, again.counts.new_bytes > 0) == (False, True)
    restore(library, image, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == disk.read_bytes()


def test_a_damaged_index_stops_everything_and_names_itself(library, disk):
    image = taken(library, disk).image
    (key,) = stored(library, ".index")
    damage(library, key)
    fresh = replace(library, blocks=replace(library.blocks, cache=library.scratch / "no cache"))

    for refused in (lambda: verify(fresh, image, everything=True), lambda: taken(fresh, disk, DECEMBER), lambda: prune(fresh)):
        with pytest.raises(IntegrityError, match=f"{key} is no index of a pack, or damaged"):
            refused()


def test_a_pack_that_goes_while_it_is_captured_on_top_of_is_noticed(library, disk):
    taken(library, disk)
    change(disk, 17)

    def sweep(told: Progress) -> None:
        if told.stage == "reading":
            library.blocks.store.delete(stored(library, ".index"))

    with closing(LocalDrive(disk)) as drive, pytest.raises(IntegrityError, match="packs that disk counts on went") as caught:
        capture(library, drive, CaptureRequest("disk", Month.parse(DECEMBER)), sweep)

    assert "capture again" in caught.value.hint
    assert [image.id for image in library.images()] == [f"disk/{NOVEMBER}/r1"]


# --- room


@pytest.mark.slow
def test_a_full_store_is_said_nothing_is_released_and_it_goes_on_when_there_is_room(cli, small_disk, tmp_path):
    (tmp_path / "disk.img").write_bytes(os.urandom(12 * MIB))
    asked = ("images", "capture", "--source", str(tmp_path / "disk.img"), "--name", "disk", "--period", NOVEMBER, "--json")
    environment = {"AKIDB_STORE": f"file://{small_disk}/store"}

    full = cli(*asked, env=environment)
    images = json.loads(cli("images", "list", "--json", env=environment).out)["images"]
    subprocess.run(["mount", "-o", "remount,size=40m", small_disk], check=True)
    done = cli(*asked, env=environment)

    assert full.code == 3
    assert "No space left on device" in full.err
    assert "free some space" in full.err
    assert "Traceback" not in full.err
    assert images == []
    assert (done.code, json.loads(done.out)["id"]) == (0, f"disk/{NOVEMBER}/r1")
    assert cli("images", "verify", "disk", "--all", env=environment).code == 0


# --- reflashes that are refused


@pytest.fixture
def shelf(devices, library):
    """An image of jetson-a."""
    return devices.capture(library, "jetson-a").image


def refusal(library, what, *, lives: bool = False) -> CheckError:
    """Why a reflash is refused; the drive stays as it was. One that a system lives on is written by that, but not at its beginning."""

    def mark():
        if not isinstance(what.drive, LocalDrive):
            return None
        if not lives:
            return LocalDrive(what.drive.path).facts().writes
        with what.drive.path.open("rb") as drive:
            return drive.read(MIB)

    before = mark()
    with pytest.raises(CheckError, match="nothing was written") as caught:
        reflash(library, what)
    assert not isinstance(caught.value, IntegrityError)
    assert mark() == before
    return caught.value


@pytest.mark.parametrize("options", [(), ("-o", "ro")], ids=["for writing", "read-only"])
def test_a_mounted_drive_is_not_reflashed(devices, library, shelf, tmp_path, options):
    with devices.mounted("jetson-a", tmp_path / "root", *options) as root, closing(devices.drive("jetson-a")) as drive:
        told = refusal(library, devices.reflash("jetson-a", shelf, drive=drive))
        with pytest.raises(OutsideError, match=r"writing it: .*busy"):
            drive.write([(0, BLOCK_BYTES, b"")])

    assert f"the drive is mounted or in use: {root}" in told.message
    assert "unmount it" in told.hint


def test_a_drive_that_is_mounted_where_nobody_here_sees_it_is_not_reflashed(devices, library, shelf):
    """The root of jetson-b is mounted in a namespace of its own."""
    drive = LocalDrive(devices.loop("jetson-b"), devices.running.inventory.device("jetson-a").facts_root)

    told = refusal(library, devices.reflash("jetson-a", shelf, "none", drive=drive), lives=True)

    assert "the drive is mounted or in use: where it cannot be seen from here" in told.message
    with pytest.raises(OutsideError, match="busy"):
        drive.write([(0, BLOCK_BYTES, b"")])


def test_everything_that_speaks_against_a_reflash_is_told_at_once(devices, library, shelf, tmp_path):
    board = replace(shelf.record.board, spec="3767-000-jetson-orin-nano", drive_serial="OLD")
    record = replace(shelf.record, name="other", board=board, size_bytes=shelf.record.size_bytes * 2, mode=Mode.LIVE)
    digests = library.digests(shelf)
    other = library.publish(replace(record, period=NOVEMBER), digests + digests)
    other = library.revoke(other, "does not boot")
    before = devices.content("jetson-a")

    with devices.mounted("jetson-a", tmp_path / "root", "-o", "ro"):
        told = refusal(library, replace(devices.reflash("jetson-a", other), serial="NEW"))
    planned = plan(library, devices.reflash("jetson-a", other))

    for part in (
        f"image {other.id} was revoked: does not boot",
        "was captured live",
        "the drive is mounted",
        "the drive has 67,108,864 bytes, the image 134,217,728",
        "the image is of board 3767-000-jetson-orin-nano, this is 3701-",
        "the drive's serial number is LAB-NVME-A, the inventory says NEW",
        "the drive's serial number is LAB-NVME-A, the image was taken from OLD",
    ):
        assert part in told.message
    assert "--serial LAB-NVME-A" in told.hint
    assert len(planned.refusals) == 5
    assert devices.content("jetson-a") == before


def test_the_drive_that_somebody_confirms_by_its_serial_number_is_reflashed_and_no_other(devices, library, shelf):
    what = replace(devices.reflash("jetson-a", shelf), serial="ANOTHER")
    assert "the inventory says ANOTHER" in refusal(library, what).message

    wrong = refusal(library, replace(devices.reflash("jetson-a", shelf), confirmed_serial="ANOTHER"))
    done = reflash(library, replace(devices.reflash("jetson-a", shelf), serial="ANOTHER", confirmed_serial="LAB-NVME-A"))

    assert "serial number ANOTHER was confirmed, the drive's is LAB-NVME-A" in wrong.message
    assert "look again" in wrong.hint
    assert done.ok


# --- a reflash that is cut


@pytest.mark.slow
def test_a_reflash_that_is_killed_leaves_no_partition_table_and_running_it_again_writes_the_rest(
    devices, cli, library, shelf, tmp_path
):
    loop = devices.loop("jetson-a")
    image = devices.content("jetson-a")
    spoilt = image[:BLOCK_BYTES] + b"\xa5" * (len(image) - BLOCK_BYTES)
    loop.write_bytes(spoilt)
    inventory = devices.inventory_in(tmp_path)
    environment = clean_environment(
        AKIDB_HOME=str(tmp_path / "home"), AKIDB_STORE=f"file://{tmp_path / 'store'}", AKIDB_INVENTORY=str(inventory)
    )
    command = ["images", "reflash", "--device", "jetson-a", "--image", shelf.id, "--yes", "--json"]
    killed = subprocess.Popen([sys.executable, "-m", "akidb_pipelines", *command], env=environment, stdout=subprocess.DEVNULL)

    def has_begun() -> bool:
        with loop.open("rb") as drive:
            return drive.read(BLOCK_BYTES) == bytes(BLOCK_BYTES)

    wait_until(has_begun)
    killed.kill()
    killed.wait()
    wait_until(lambda: not agents())
    half = devices.content("jetson-a")

    assert half[:BLOCK_BYTES] == bytes(BLOCK_BYTES)
    assert half[BLOCK_BYTES:] not in (spoilt[BLOCK_BYTES:], image[BLOCK_BYTES:])
    assert LocalDrive(loop).facts().partitions == ()
    done = cli(*command, env={name: value for name, value in environment.items() if name.startswith("AKIDB_")})
    assert done.code == 0, done.err
    assert json.loads(done.out)["ok"]
    assert devices.content("jetson-a") == image


def test_a_drive_that_does_not_keep_what_is_written_is_found_by_reading_all_of_it_again(library, disk, tmp_path):
    image = taken(library, disk).image
    target = tmp_path / "target.img"
    target.write_bytes(bytes(disk.stat().st_size))
    what = onto(image, target)
    write = what.drive.write

    def forgetful(blocks):
        written = write(blocks)
        change(target, 20, 30)
        return written

    what.drive.write = forgetful

    done = reflash(library, what)

    assert not done.ok
    assert "2 are not what was written, the first at byte 1310720: the drive is failing, replace it" in done.markdown


# --- who is at work


def at_work(library, disk, act, period: str = DECEMBER):
    """Do something in the middle of a capture; returns the capture."""
    done = []

    def report(told: Progress) -> None:
        if told.stage == "reading" and not done:
            done.append(act())

    with closing(LocalDrive(disk)) as drive:
        return capture(library, drive, CaptureRequest("disk", Month.parse(period)), report)


def test_packs_are_not_swept_while_somebody_captures(library, disk):
    def sweep() -> None:
        with pytest.raises(BusyError, match="sweeping packs: somebody is at work: capturing disk") as caught:
            prune(library)
        assert "run it again when that has ended" in caught.value.hint
        assert prune(library, dry_run=True).sweeps == ()

    captured = at_work(library, disk, sweep)

    assert captured.created
    assert prune(library).removed_bytes == 0


def test_nobody_captures_while_packs_are_swept(library, disk):
    image = taken(library, disk).image

    def report(told: Progress) -> None:
        for refused in (lambda: taken(library, disk, DECEMBER), lambda: reflash(library, onto(image, disk))):
            with pytest.raises(BusyError, match="packs are being swept: sweeping packs"):
                refused()
        seen.append(told.stage)

    seen: list[str] = []
    prune(library, report=report)

    assert seen
    assert taken(library, disk, DECEMBER).created


def test_a_sweeper_that_was_killed_keeps_nobody_waiting(library, disk, tmp_path):
    killed = """
import os, signal, sys
from akidb_pipelines.images.library import open_library
from akidb_pipelines.settings import Settings
with open_library(Settings.load()).sweeping("sweeping packs"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = clean_environment(AKIDB_HOME=str(tmp_path / "home"), AKIDB_STORE=f"file://{tmp_path / 'store'}")
    done = subprocess.run([sys.executable, "-c", killed], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL

    assert taken(library, disk).created
    assert prune(library).removed_bytes == 0


def test_a_device_is_captured_by_one_at_a_time(library, disk):
    def second() -> None:
        with pytest.raises(BusyError, match=r"capturing disk waited 0 s for capturing disk") as caught:
            taken(library, disk, DECEMBER)
        assert caught.value.exit_code == 3
        assert taken(library, disk, name="another").created, "others are not concerned"

    assert at_work(library, disk, second).image.id == f"disk/{DECEMBER}/r1"
    assert taken(library, disk, DECEMBER).created is False


def test_an_image_called_prune_is_an_image_like_any_other(library, disk):
    assert taken(library, disk, name="prune").image.id == f"prune/{NOVEMBER}/r1"


# --- sweeping

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def old_pack(blocks: list[bytes], days: int) -> tuple[StoredPack, object]:
    (pack,) = pack_up(blocks)
    return StoredPack(pack.name, len(pack.data), len(pack.index), NOW - timedelta(days=days)), parsed(pack)


def decided(live: list[bytes], *packs) -> list[tuple[str, str]]:
    array = digests_of(b"".join(sha256(b) for b in live))
    assert (array != np.void(ZERO)).all()
    return [(s.action, s.why) for s in decide([p for p, _ in packs], [i for _, i in packs], array, NOW)]


def test_a_pack_goes_when_no_image_needs_it_and_it_is_older_than_the_grace():
    blocks = some_blocks(10)

    assert decided([], old_pack(blocks, 15)) == [("remove", "no image needs it")]
    assert decided([], old_pack(blocks, 13)) == [("keep", "no image needs it, but it is within the grace of 14 days")]
    assert decided([b"elsewhere"], old_pack(blocks, 15)) == [("remove", "no image needs it")]
    assert decided(blocks[:1], old_pack(blocks, 500))[0][0] == "repack"
    assert decide([], [], digests_of(b""), NOW) == []


def test_a_pack_is_packed_anew_when_less_than_60_percent_of_it_is_needed():
    blocks = some_blocks(10)

    assert decided(blocks[:6], old_pack(blocks, 15)) == [("keep", "60% of it is needed")]
    assert decided(blocks[:5], old_pack(blocks, 15)) == [("repack", "50% of it is needed")]
    assert decided(blocks[:5], old_pack(blocks, 13)) == [("keep", "50% of it is needed")]


def test_a_pack_waits_until_those_that_took_its_blocks_over_are_past_the_grace_too():
    blocks = some_blocks(10)
    old = old_pack(blocks, 100)

    assert decided(blocks[:5], old_pack(blocks[:5], 13), old) == [
        ("keep", "100% of it is needed"),
        ("keep", "newer packs have what is needed of it, but it is within the grace of 14 days"),
    ]
    assert decided(blocks[:5], old_pack(blocks[:5], 15), old)[1] == ("remove", "newer packs have what is needed of it")


def test_after_an_image_left_its_blocks_go_and_the_others_still_come_back(library, disk, tmp_path):
    taken(library, disk, pack_bytes=2 * MIB)
    change(disk, *range(16, 64))
    kept = taken(library, disk, DECEMBER, pack_bytes=2 * MIB)
    assert prune(library, grace=NO_GRACE).removed_bytes == 0
    forget(library, "disk", NOVEMBER)
    before = len(stored(library, ".pack"))

    dry = prune(library, dry_run=True, grace=NO_GRACE)
    assert len(stored(library, ".pack")) == before
    first = prune(library, grace=NO_GRACE)
    second = prune(library, grace=NO_GRACE)

    assert first.removed_bytes == dry.removed_bytes > 0
    assert {sweep.action for sweep in first.sweeps} == {"keep", "repack", "remove"}
    assert first.repacked_bytes > 0
    assert second.removed_bytes > first.repacked_bytes, "what was packed anew goes with the next sweep"
    assert prune(library, grace=NO_GRACE).removed_bytes == 0
    assert len(stored(library, ".pack")) == len(stored(library, ".index")) < before
    restore(library, kept.image, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == disk.read_bytes()


def forget(library, name: str, period: str) -> None:
    """What `registry gc` does with an image after a year: retire it, and remove it when its grace is over."""
    publisher = library.publisher
    entry = next(e for e in publisher.index().of(f"images.{name}") if e.version.name == period)
    publisher.change("forgetting", lambda index: index.with_entry(replace(entry, retired_at="2020-01-01T00:00:00Z")))
    for month in range(12):
        image = library.find(name)
        library.publish(replace(image.record, period=f"2027-{month + 1:02}"), library.digests(image))
    later = replace(publisher, now=lambda: datetime.now(UTC) + timedelta(days=15))
    assert ("remove", f"images.{name} {period}/r1") in {(d.action, d.what) for d in collect(later).decisions}


# --- the way to the device


def test_a_changed_host_key_stops_everything_and_nothing_is_sent(devices, library):
    lab = devices.running.lab
    pins = lab.folder / "known_hosts"
    right = pins.read_text()
    files = lab.folder / "jetson-a" / "sshd"
    devices.stop_sshd("jetson-a")
    (files / "host_key").unlink()
    (files / "host_key.pub").unlink()
    lab.up()  # with a new host key
    new = pins.read_text()
    assert new != right
    pins.write_text(right)
    log = lab.folder / "jetson-a" / "sshd.log"
    before = log.stat().st_size
    try:
        with pytest.raises(OutsideError, match="HOST IDENTIFICATION HAS CHANGED") as caught:
            devices.capture(library, "jetson-a")
    finally:
        pins.write_text(new)

    assert str(pins) in caught.value.hint
    assert "console" in caught.value.hint
    assert "Accepted" not in log.read_text()[before:]
    assert (library.images(), stored(library, "")) == ([], [])
    assert devices.capture(library, "jetson-a").created


def test_an_unknown_host_key_is_said(devices, library, tmp_path):
    (tmp_path / "pins").touch()

    with closing(devices.drive("jetson-a", known_hosts=str(tmp_path / "pins"))) as drive, pytest.raises(OutsideError) as caught:
        taken(library, drive)

    assert "Host key verification failed" in caught.value.message
    assert f"its host key is not in {tmp_path / 'pins'}" in caught.value.hint


def test_a_bastion_that_is_down_is_named(devices, library):
    devices.stop_sshd("lab-bastion")

    with pytest.raises(OutsideError, match="jetson-b") as caught:
        devices.capture(library, "jetson-b")

    assert f"port {devices.running.inventory.hosts['lab-bastion'].port}: Connection refused" in caught.value.message
    assert "lab-bastion" in caught.value.hint


def test_a_device_that_is_down_is_named(devices, library):
    devices.stop_sshd("jetson-a")

    with pytest.raises(OutsideError, match=r"^jetson-a \(root@127\.0\.0\.1:\d+\): connecting: .*Connection refused") as caught:
        devices.capture(library, "jetson-a")

    assert "is the device up" in caught.value.hint


def test_a_device_without_python_is_said(devices, library):
    with (
        closing(devices.drive("jetson-a", python="/opt/no/python")) as drive,
        pytest.raises(OutsideError, match="/opt/no/python") as caught,
    ):
        taken(library, drive)

    assert "ansible_python_interpreter" in caught.value.hint


def test_a_user_without_sudo_is_said(devices, library):
    with closing(devices.drive("jetson-a", become=True)) as drive, pytest.raises(OutsideError, match="sudo") as caught:
        taken(library, drive)

    assert "passwordless sudo" in caught.value.hint


def test_a_key_that_the_device_does_not_take_is_said(devices, library, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)

    with closing(devices.drive("jetson-a", key_file=str(tmp_path / "key"))) as drive, pytest.raises(OutsideError) as caught:
        taken(library, drive)

    assert "Permission denied" in caught.value.message
    assert "ansible_user" in caught.value.hint


def test_a_drive_that_is_not_on_the_device_is_said(devices, library):
    with closing(devices.drive("jetson-a")) as drive:
        drive._path = "/dev/nvme9n1"
        with pytest.raises(OutsideError, match="looking at it: drive /dev/nvme9n1: No such file"):
            taken(library, drive)


def test_another_drive_in_the_device_is_not_captured(devices, library):
    with pytest.raises(CheckError, match="has serial number LAB-NVME-A, the inventory says S6S2") as caught:
        devices.capture(library, "jetson-a", serial="S6S2")

    assert "akidb_drive_serial" in caught.value.hint
    assert library.images() == []


def test_a_mount_that_the_inventory_names_wrongly_is_said_with_what_is_mounted(devices, library):
    with pytest.raises(InputError, match="/data is to be kept still, but does not lie on it; mounted from it: /"):
        devices.capture(library, "jetson-b", freeze_mounts=("/", "/data"))


def test_a_device_of_another_library_is_not_waited_for(devices, tmp_path):
    for name in ("one", "two"):
        assert devices.capture(library_in(tmp_path / name), "jetson-a").created
