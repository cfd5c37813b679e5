"""The Jetson lab: what the inventory describes is really there, survives, and goes without a trace."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from akidb_pipelines.cli.lab import lab_app
from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.lab import drives, facts, loops, namespace, processes
from akidb_pipelines.lab.jetson import JetsonLab
from akidb_pipelines.lab.processes import Process
from tests.services.jetson_lab import LabForTests, describe_lab, need_root, running_lab

ROOT_OFFSET = 1 << 20
EFI = "sys/firmware/efi/efivars"
EFI_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab"), size_mib=96) as lab:
        yield lab


def ssh(lab: LabForTests, name: str, command: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """Runs a command as the inventory says: keys pinned, through the bastion where it says so."""
    config = lab.home / "ssh_config"
    lines = []
    for host in lab.inventory.hosts.values():
        lines += [f"Host {host.name}", f"HostName {host.address}", f"Port {host.port}", f"User {host.user}"]
        lines += [f"IdentityFile {host.key_file}", f"UserKnownHostsFile {host.known_hosts}", "IdentitiesOnly yes"]
        lines += ["StrictHostKeyChecking yes", "BatchMode yes", *(f"{key} {value}" for key, value in host.options)]
    config.write_text("\n".join(lines) + "\n")
    return subprocess.run(["ssh", "-F", config, name, command], capture_output=True, text=True, timeout=timeout, check=False)


def sign(lab: LabForTests) -> None:
    subprocess.run(shlex.split(lab.inventory.hosts["jetson-b"].certificate_command), check=True)


def pids(lab: JetsonLab) -> dict[str, int]:
    found = {state.parent.name: Process.load(state) for state in lab.folder.glob("*/state.json")}
    return {name: process.pid for name, process in found.items() if process and process.alive()}


def processes_with(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace"))
    return [line for line in found if text in line]


def test_a_drive_has_a_valid_table_and_a_clean_root_full_of_real_files(running):
    device = running.lab.drive("jetson-a")

    table = subprocess.run(["sfdisk", "--verify", device], capture_output=True, text=True, check=False)
    root = subprocess.run(["e2fsck", "-fn", f"{device}?offset={ROOT_OFFSET}"], capture_output=True, text=True, check=False)
    names = subprocess.run(["debugfs", "-R", "ls -p /srv/files", f"{device}?offset={ROOT_OFFSET}"], capture_output=True, check=True)

    assert (table.returncode, root.returncode) == (0, 0), table.stderr + root.stdout
    used, blocks = root.stdout.rsplit(", ", 1)[1].split()[0].split("/")
    assert 0.5 < int(used) / int(blocks) < 0.9
    assert b"/sparse.bin/" in names.stdout


def test_the_images_are_sparse_and_differ_by_host(running):
    images = [running.lab.folder / name / "drive.img" for name in ("jetson-a", "jetson-b")]

    assert all(image.stat().st_blocks * 512 < 0.9 * image.stat().st_size for image in images)
    assert images[0].read_bytes() != images[1].read_bytes()


def test_the_bastion_and_an_unmounted_jetson_let_in_the_operator_whose_pin_is_right(running):
    assert ssh(running, "lab-bastion", "echo here").stdout == "here\n"
    assert ssh(running, "jetson-a", "cat").returncode == 0

    pins = running.lab.folder / "known_hosts"
    right = pins.read_text()
    bastion, jetson_a, jetson_b = right.splitlines(keepends=True)
    pins.write_text(bastion + jetson_a.split()[0] + " " + jetson_b.split(maxsplit=1)[1])
    try:
        assert "Host key verification failed" in ssh(running, "jetson-a", "echo here").stderr
    finally:
        pins.write_text(right)


def test_a_jetson_with_certificates_lets_nobody_in_without_one(running):
    certificate = Path(running.inventory.hosts["jetson-b"].option("CertificateFile"))
    certificate.unlink(missing_ok=True)
    refused = ssh(running, "jetson-b", "echo here")

    sign(running)

    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr
    assert ssh(running, "jetson-b", "echo here").stdout == "here\n"


def test_a_mounted_jetson_runs_from_its_drive(running):
    sign(running)
    numbers = loops.Loop(running.lab.drive("jetson-b"), Path()).partitions

    told = ssh(
        running,
        "jetson-b",
        "cat /proc/self/mountinfo; python3 -c 'print(6 * 7)'; sfdisk --verify /dev/nvme0n1 >/dev/null && echo ok",
    )

    mounted = {fields[4]: fields[2] for line in told.stdout.splitlines() if len(fields := line.split()) > 6}
    assert mounted["/"] == numbers[1]
    assert told.stdout.endswith("42\nok\n")


def test_a_live_root_is_frozen_while_commands_still_run_and_thawed(running):
    sign(running)
    guarded = "fsfreeze -f / && (timeout 1 sh -c 'touch /frozen' || echo blocked) ; fsfreeze -u / && touch /thawed && echo thawed"

    told = ssh(running, "jetson-b", f"trap 'fsfreeze -u /' EXIT; {guarded}")

    assert told.stdout == "blocked\nthawed\n"


def test_up_again_keeps_what_runs_and_starts_what_died(running):
    before = pids(running.lab)
    running.lab.up()
    assert pids(running.lab) == before

    for name in ("jetson-a", "jetson-b"):
        os.kill(before[name], signal.SIGKILL)
    wait_until(lambda: set(pids(running.lab)) == {"lab-bastion"})
    assert [h.running for h in running.lab.status()] == [True, False, False]
    inodes = [(running.lab.folder / name / "drive.img").stat().st_ino for name in ("jetson-a", "jetson-b")]
    running.lab.up()

    sign(running)
    assert pids(running.lab)["lab-bastion"] == before["lab-bastion"]
    assert ssh(running, "jetson-a", "echo here").stdout == "here\n"
    assert ssh(running, "jetson-b", "echo here").stdout == "here\n"
    assert inodes == [(running.lab.folder / name / "drive.img").stat().st_ino for name in ("jetson-a", "jetson-b")]


def test_a_jetson_that_died_frozen_comes_back_thawed(running):
    sign(running)
    assert ssh(running, "jetson-b", "fsfreeze -f /").returncode == 0
    os.kill(pids(running.lab)["jetson-b"], signal.SIGKILL)

    running.lab.up()

    assert ssh(running, "jetson-b", "touch /written && echo written").stdout == "written\n"


def test_facts_have_the_formats_of_the_real_files(running):
    sign(running)
    root = Path(running.inventory.devices["jetson-a"].facts_root)
    option = (root / EFI / f"Boot0000-{EFI_GLOBAL}").read_bytes()
    attributes, active, path_bytes = struct.unpack_from("<IIH", option)
    description, path = option[10:-path_bytes].decode("utf-16-le"), option[-path_bytes:]

    assert (root / "etc/nv_tegra_release").read_text().startswith("# R36 (release), REVISION: 4.0")
    assert (root / "proc/device-tree/model").read_bytes() == b"NVIDIA Jetson AGX Orin Developer Kit\0"
    assert (root / "sys/class/block/nvme0n1/device/serial").read_text().strip() == "LAB-NVME-A"
    assert (root / EFI / f"BootOrder-{EFI_GLOBAL}").read_bytes() == struct.pack("<IHH", 7, 0, 1)
    assert (attributes, active, description) == (7, 1, "UEFI LAB NVMe 96MB LAB-NVME-A 1\0")
    assert path.endswith(bytes.fromhex("7fff0400"))
    assert facts.release_files()["etc/nv_boot_control.conf"].startswith(b"TNSPEC 3701-500-0005-G.0-1-0-jetson-agx-orin-devkit-\n")
    assert "LAB-NVME-B" in ssh(running, "jetson-b", "cat /facts/sys/class/block/nvme0n1/device/serial").stdout


def test_a_second_lab_runs_beside_the_first_and_goes_without_a_trace(running, tmp_path):
    mark = f"301.{os.getpid()}"
    with running_lab(tmp_path / "second", size_mib=64) as second:
        lab = second.lab
        attached = list(loops.loops_below(lab.folder))
        drive = lab.drive("jetson-a")
        mounted = tmp_path / "mounted here"
        mounted.mkdir()
        subprocess.run(["mount", f"{drive}p1", mounted], check=True)
        sign(second)
        assert ssh(second, "jetson-b", f"nohup sleep {mark} >/dev/null 2>&1 & fsfreeze -f /").returncode == 0
        assert len(attached) == 2
        assert all(host.running for host in (*lab.status(), *running.lab.status()))

        lab.down()

        assert not lab.folder.exists()
        assert not list(loops.loops_below(lab.folder))
        assert not mounted.is_mount()
        assert not processes_with(str(lab.folder)) + processes_with(mark)
        assert [host.running for host in lab.status()] == [False] * 3
    assert all(host.running for host in running.lab.status())


def test_the_command_shows_the_lab_as_json_and_names_the_labs_that_there_are(running, monkeypatch):
    monkeypatch.setenv("AKIDB_HOME", str(running.home))
    monkeypatch.setenv("AKIDB_INVENTORY", str(running.inventory_path))

    told = json.loads(CliRunner().invoke(lab_app, ["status", "--json"], catch_exceptions=False).stdout)

    assert {host["name"]: host["mounted"] for host in told["hosts"]} == {"lab-bastion": False, "jetson-a": False, "jetson-b": True}
    assert told["hosts"][1]["drive"] == str(running.lab.drive("jetson-a"))
    with pytest.raises(InputError, match="no lab 'mainframe'"):
        CliRunner().invoke(lab_app, ["up", "mainframe"], catch_exceptions=False)


def test_down_frees_drives_whose_folder_is_gone(tmp_path):
    need_root()
    image = tmp_path / "lab" / "jetson" / "jetson-a" / "drive.img"
    image.parent.mkdir(parents=True)
    drives.make_image(image, name="jetson-a", size_mib=64, root_files={})
    loop = loops.attach(image)
    shutil.rmtree(tmp_path / "lab")

    describe_lab(tmp_path).lab.down()

    assert loop.device not in {left.device for left in loops.loops_below(image)}


def test_an_image_that_was_replaced_gets_a_loop_device_of_its_own(tmp_path):
    need_root()
    image = tmp_path / "drive.img"
    drives.make_image(image, name="old", size_mib=64, root_files={})
    loops.attach(image)
    image.unlink()
    drives.make_image(image, name="new", size_mib=64, root_files={})
    try:
        label = subprocess.run(["sfdisk", "--disk-id", image], capture_output=True, check=True).stdout
        assert subprocess.run(["sfdisk", "--disk-id", loops.attach(image).device], capture_output=True, check=True).stdout == label
    finally:
        for loop in loops.loops_below(tmp_path):
            loops.detach(loop)
    assert not list(loops.loops_below(tmp_path))


def test_a_wiped_drive_is_still_a_drive_but_no_root(tmp_path):
    need_root()
    image = tmp_path / "drive.img"
    with image.open("wb") as handle:
        handle.truncate(1 << 20)
    loop = loops.attach(image)
    try:
        assert loop.partitions == {}
        with pytest.raises(OutsideError, match="has no partition 1"):
            namespace.sshd_command(loop, drive="/dev/nvme0n1", mount_point=tmp_path, sshd_folder=tmp_path)
    finally:
        loops.detach(loop)


def test_an_inventory_of_real_machines_is_refused_before_anything_is_made(tmp_path):
    described = describe_lab(tmp_path)
    far = replace(described.inventory.hosts["jetson-a"], address="192.0.2.7")
    inventory = replace(described.inventory, hosts={**described.inventory.hosts, "jetson-a": far})

    with pytest.raises(InputError, match=r"jetson-a: is at 192\.0\.2\.7"):
        JetsonLab(described.lab.folder, inventory).up()

    assert not described.lab.folder.exists()


def test_a_taken_port_is_named(tmp_path):
    described = describe_lab(tmp_path, size_mib=64)
    bastion = described.inventory.hosts["lab-bastion"]
    inventory = replace(described.inventory, hosts={"lab-bastion": bastion}, devices={})

    with socket.create_server(("127.0.0.1", bastion.port)), pytest.raises(OutsideError, match=f"127.0.0.1:{bastion.port}"):
        JetsonLab(described.lab.folder, inventory).up()


def test_a_process_is_ended_with_its_descendants_and_never_by_its_pid_alone(tmp_path):
    mark = f"300.{os.getpid()}"
    process = processes.start(
        ["/bin/sh", "-c", f"sleep {mark} & sh -c 'sleep {mark}; :'"], tmp_path / "log", {"PATH": os.environ["PATH"]}
    )
    wait_until(lambda: len(processes_with(f"sleep\0{mark}")) == 2)
    try:
        replace(process, started=process.started + 1).stop()
        assert process.alive()
    finally:
        process.stop()
    assert not process.alive()
    assert not processes_with(mark)


def wait_until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
