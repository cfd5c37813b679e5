"""The images commands as ops call them: on files, and on a Jetson of the lab."""

from __future__ import annotations

import json
import os
import random

import pytest

from akidb_pipelines.cli.images import images_app
from akidb_pipelines.lab import drives
from tests.images.conftest import DECEMBER, NOVEMBER, Devices, change, write_drive


def told(done, code: int = 0) -> dict:
    """What a command printed as JSON, and nothing else; it ended with a code."""
    assert done.code == code, done.err
    return json.loads(done.out)


@pytest.fixture
def disk(tmp_path):
    return write_drive(tmp_path / "disk.img")


@pytest.fixture
def capture(cli, disk):
    """Captures the disk."""

    def run(period: str = NOVEMBER, *more: str):
        return cli("images", "capture", "--source", str(disk), "--name", "disk", "--period", period, *more)

    return run


@pytest.mark.slow
def test_an_image_is_captured_listed_verified_and_restored(cli, capture, disk, tmp_path):
    first = told(capture(NOVEMBER, "--json"))
    again = told(capture(NOVEMBER, "--json"))
    change(disk, 20)
    second = told(capture(DECEMBER, "--json"))

    assert {"id", "root_sha256", "mode", "read_bytes", "new_bytes", "stored_bytes", "sent_bytes", "changed_blocks"} <= set(first)
    assert (first["id"], first["created"], first["mode"], first["parent"]) == ("disk/2026-11/r1", True, "offline", "")
    assert first["new_bytes"] > first["stored_bytes"] > 1_000_000
    assert (again["id"], again["created"], again["stored_bytes"]) == (first["id"], False, 0)
    assert (second["id"], second["parent"], second["new_bytes"]) == ("disk/2026-12/r1", first["id"], 65536)
    listed = told(cli("images", "list", "--json"))["images"]
    assert [(i["id"], i["state"], i["period"]) for i in listed] == [
        (first["id"], "candidate", NOVEMBER),
        (second["id"], "candidate", DECEMBER),
    ]
    shown = cli("images", "list", "--name", "disk").out
    assert "disk/2026-11/r1" in shown
    assert "2 images" in shown
    verified = told(cli("images", "verify", "disk/2026-11", "--all", "--json"))
    assert (verified["ok"], verified["problems"], verified["blocks"]) == (True, [], verified["of_blocks"])
    restored = told(cli("images", "restore", "disk", "--to", "out.img", "--json"))
    assert (restored["id"], restored["size_bytes"]) == (second["id"], disk.stat().st_size)
    assert (tmp_path / "out.img").read_bytes() == disk.read_bytes()
    refused = cli("images", "restore", "disk", "--to", "out.img")
    assert refused.code == 2
    assert "--replace" in refused.err
    assert cli("images", "restore", "disk", "--to", "out.img", "--replace").code == 0


def test_for_people_a_capture_is_a_table_and_says_when_nothing_changed(capture):
    first, again = capture(), capture()

    assert (first.code, again.code) == (0, 0)
    assert "disk/2026-11/r1 captured" in first.out
    assert "offline: nothing had it mounted for writing" in " ".join(first.out.split())
    assert "is unchanged" in again.out


@pytest.mark.slow
def test_an_image_becomes_golden_after_its_checks_and_is_revoked(cli, tmp_path):
    drives.make_image(tmp_path / "drive.img", name="test", size_mib=64, root_files={})
    asked = ("images", "capture", "--source", "drive.img", "--name", "drive", "--json")
    told(cli(*asked, "--period", NOVEMBER))
    early = cli("images", "promote", "drive")
    assert early.code == 1
    assert "was not run" in early.err

    checked = told(cli("images", "check", "drive", "--json"))
    promoted = cli("images", "promote", "drive", "--reason", "boots")
    golden = told(cli("images", "list", "--json"))["images"][0]

    assert checked["ok"]
    assert {c["check"]: c["passed"] for c in checked["checks"]}["filesystem"]
    assert promoted.out == "drive/2026-11/r1 is golden\n"
    assert (golden["state"], golden["pinned"][:12]) == ("golden", "golden since")
    revoked = cli("images", "revoke", "drive@golden", "--reason", "does not boot")
    assert revoked.out == "drive/2026-11/r1 is revoked\n"
    assert told(cli("images", "list", "--json"))["images"][0]["revoked"] == "does not boot"
    gone = cli("images", "restore", "drive@golden", "--to", "x")
    assert gone.code == 2
    assert "images promote" in gone.err


@pytest.mark.slow
def test_what_is_not_sound_ends_with_1(cli, capture, disk, tmp_path):
    told(capture(NOVEMBER, "--json"))
    failed = told(cli("images", "check", "disk", "--json"), 1)
    assert [c["check"] for c in failed["checks"] if not c["passed"]] == ["filesystem"]
    (pack,) = (tmp_path / "home" / "store").rglob("*.pack")
    pack.chmod(0o644)
    data = bytearray(pack.read_bytes())
    data[random.Random(1).randrange(len(data))] ^= 1
    pack.write_bytes(data)

    verified = told(cli("images", "verify", "disk", "--all", "--json"), 1)
    restored = cli("images", "restore", "disk", "--to", "out.img")

    assert not verified["ok"]
    assert pack.name in verified["problems"][0]
    assert restored.code == 1
    assert pack.name in "".join(restored.err.split())
    assert "docs/runbooks/clone-failed.md" in " ".join(restored.err.split())
    assert not (tmp_path / "out.img").exists()


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("capture",), "say what to capture"),
        (("capture", "--source", "disk.img"), "say what to capture"),
        (("capture", "--source", "disk.img", "--device", "jetson-a"), "say what to capture"),
        (("capture", "--source", "nowhere.img", "--name", "x"), "there is no such file or drive"),
        (("capture", "--source", ".", "--name", "x"), "is neither a file nor a drive"),
        (("capture", "--source", "ssh://host", "--name", "x"), "names no drive"),
        (("capture", "--source", "disk.img", "--name", "X"), "is no name for an image"),
        (("capture", "--source", "disk.img", "--name", "x", "--period", "2026-13"), "2026-13"),
        (("capture", "--device", "jetson-z"), "has no device 'jetson-z'"),
        (("capture", "--device", "jetson-a", "--freeze", "/"), "--freeze goes with --source"),
        (("restore", "disk", "--to", "x"), "there is no image disk"),
        (("verify", "Disk!"), "is no name for an image"),
        (("verify", "disk@stable"), "names no image"),
        (("promote", "disk"), "there is no image disk"),
        (("revoke", "disk"), "--reason"),
        (("reflash", "--device", "jetson-a"), "there is no image jetson-a@golden"),
        (("reflash", "--device", "jetson-z"), "has no device"),
    ],
)
def test_unusable_input_ends_with_2_and_a_message(cli, disk, arguments, found):
    done = cli("images", *arguments)

    assert done.code == 2, done.err
    assert found in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_store_that_cannot_be_reached_ends_with_3(cli, disk):
    environment = {"AKIDB_STORE": "s3://none", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    environment |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "x"}

    done = cli("images", "capture", "--source", str(disk), "--name", "disk", env=environment)

    assert done.code in {2, 3}
    assert "Traceback" not in done.err
    assert "what to do" in done.err


def test_nothing_is_listed_or_pruned_where_there_is_nothing(cli):
    assert told(cli("images", "list", "--json")) == {"images": []}
    assert told(cli("images", "prune", "--json")) == {
        "dry_run": False,
        "sweeps": [],
        "removed_bytes": 0,
        "repacked_bytes": 0,
        "halves": 0,
    }


def test_pruning_says_what_becomes_of_each_pack(cli, capture):
    told(capture(NOVEMBER, "--json"))

    dry = told(cli("images", "prune", "--dry-run", "--json"))
    shown = cli("images", "prune")

    assert dry["dry_run"]
    assert [(s["action"], s["why"]) for s in dry["sweeps"]] == [("keep", "100% of it is needed")]
    assert "Freed 0.0 MB" in shown.out
    assert "100% of it is needed" in shown.out


def test_every_command_has_help():
    assert all(command.callback.__doc__ for command in images_app.registered_commands)


# --- a Jetson of the lab


@pytest.fixture
def devices(jetson_lab):
    jetson_lab.lab.up()
    return Devices(jetson_lab)


@pytest.fixture
def jetson(cli, devices, tmp_path):
    """Runs a command with the lab's inventory."""
    environment = {"AKIDB_INVENTORY": str(devices.inventory_in(tmp_path)), "USER": os.environ.get("USER", "root")}
    return lambda *arguments, under=(): cli("images", *arguments, env=environment, under=under)


@pytest.mark.slow
def test_a_jetson_is_captured_made_golden_planned_and_reflashed(jetson, devices, tmp_path):
    captured = told(jetson("capture", "--device", "jetson-a", "--period", NOVEMBER, "--json"))
    assert (captured["id"], captured["mode"]) == ("jetson-a/2026-11/r1", "offline")
    assert captured["sent_bytes"] > 20_000_000
    assert told(jetson("check", "jetson-a", "--json"))["ok"]
    assert jetson("promote", "jetson-a").code == 0
    image = devices.content("jetson-a")
    change(devices.loop("jetson-a"), 500, 900)
    drifted = devices.content("jetson-a")

    plan = told(jetson("reflash", "--device", "jetson-a", "--plan", "--json"))
    shown = jetson("reflash", "--device", "jetson-a", "--plan")
    unconfirmed = jetson("reflash", "--device", "jetson-a")
    refused = jetson("reflash", "--device", "jetson-a", "--serial", "OTHER", "--yes")

    assert (plan["image"], plan["refusals"], plan["write_blocks"] + plan["zero_blocks"]) == ("jetson-a/2026-11/r1", [], 2)
    assert "serial number LAB-NVME-A" in " ".join(shown.out.split())
    assert unconfirmed.code != 0
    assert refused.code == 1
    assert "serial number OTHER was confirmed" in " ".join(refused.err.split())
    assert devices.content("jetson-a") == drifted

    done = told(jetson("reflash", "--device", "jetson-a", "--yes", "--json"))

    assert done["ok"]
    assert all(c["ok"] for c in done["checks"])
    assert devices.content("jetson-a") == image
    assert str(tmp_path / "home" / "reports" / "reflash") in done["report"]


def test_a_mounted_jetson_is_captured_frozen_and_not_reflashed(jetson):
    captured = told(jetson("capture", "--device", "jetson-b", "--period", NOVEMBER, "--json"))

    refused = jetson("reflash", "--device", "jetson-b", "--image", "jetson-b", "--yes")

    assert captured["mode"] == "frozen"
    assert captured["mode_reason"].startswith("/ frozen for")
    assert refused.code == 1
    assert "the drive is mounted or in use: /" in " ".join(refused.err.split())
    assert "start the board from another medium" in " ".join(refused.err.split())


def test_a_jetson_that_is_down_ends_with_3_and_names_it(jetson, devices):
    devices.stop_sshd("jetson-a")
    try:
        done = jetson("capture", "--device", "jetson-a")
    finally:
        devices.running.lab.up()

    assert done.code == 3
    assert "jetson-a (root@127.0.0.1:" in done.err
    assert "is the device up" in " ".join(done.err.split())
    assert "Traceback" not in done.err
