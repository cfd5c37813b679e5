"""What is known of a drive and its board without reading its contents, and whether what lies on it is sound."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import struct
import subprocess
from typing import Any

from akidb_pipelines.images.agent.drive import AgentError, open_drive

_TOOL_SECONDS = 3600


def facts(drive: str, root: str) -> dict[str, Any]:
    """What is known of a drive and the board that it is in, without reading its contents.

    Args:
        drive: its path; a link is followed, but its name is the one looked for below /sys.
        root: where the board's facts are read; `/` but for the lab.
    """
    real = os.path.realpath(drive)
    try:
        descriptor, size = open_drive(real)
    except OSError as error:
        raise AgentError(f"drive {drive}: {error.strerror}") from None
    os.close(descriptor)
    mode = os.stat(real).st_mode
    block = os.path.join(root, "sys/class/block")
    names = (os.path.basename(drive), os.path.basename(real))  # of /dev/disk/by-id/... the kernel knows only the latter
    system = os.path.join(next((p for n in names if os.path.isdir(p := os.path.join(block, n))), block), "device")
    return {
        "size_bytes": size,
        "board_spec": _setting(os.path.join(root, "etc/nv_boot_control.conf"), "TNSPEC"),
        "board_model": _text(os.path.join(root, "proc/device-tree/model")),
        "board_serial": _text(os.path.join(root, "proc/device-tree/serial-number")),
        "l4t_release": (_text(os.path.join(root, "etc/nv_tegra_release")).splitlines() or [""])[0].lstrip("# "),
        "drive_model": _text(os.path.join(system, "model")) or _text(os.path.join(system, "name")),
        "drive_serial": _text(os.path.join(system, "serial")),
        "efi_entries": _efi_entries(os.path.join(root, "sys/firmware/efi/efivars")),
        "partitions": _partitions(real),
        "mounts": _mounts(real),
        "in_use": _is_in_use(real, is_drive=stat.S_ISBLK(mode)),
        "writes": _writes(real),
    }


def _text(path: str) -> str:
    try:
        with open(path, "rb") as source:
            return source.read(4096).decode("utf-8", "replace").strip("\0 \n")
    except OSError:
        return ""


def _setting(path: str, name: str) -> str:
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return value.strip()
    return ""


def _efi_entries(folder: str) -> list[str]:
    """Boot entries by the layout of the UEFI specification (3.1.3, EFI_LOAD_OPTION), after their order.

    In brackets stands all of each, in hex: from that it can be made anew.
    """
    entries: list[str] = []
    order = ""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    for name in names:
        try:
            with open(os.path.join(folder, name), "rb") as source:
                value = source.read(65536)[4:]  # what comes first are the variable's attributes
        except OSError:
            continue
        if name.startswith("BootOrder-"):
            order = "BootOrder: " + ",".join(f"{n:04X}" for (n,) in struct.iter_unpack("<H", value[: len(value) // 2 * 2]))
        elif name.startswith("Boot") and name[8:9] == "-" and len(value) > 6:
            text = value[6:].decode("utf-16-le", "replace").partition("\0")[0]
            active = "*" if value[0] & 1 else ""
            entries.append(f"{name[:8]}{active} {text} [{value.hex()}]")
    return ([order] if order else []) + entries


def _partitions(real: str) -> list[dict[str, Any]]:
    """The partition table as sfdisk reads it, without the names of devices; empty where there is none."""
    code, told = _run(["sfdisk", "--json", real], errors=subprocess.DEVNULL)
    if code:
        return []
    table = json.loads(told)["partitiontable"]
    sector = table.get("sectorsize", 512)
    return [
        {
            "start_bytes": p["start"] * sector,
            "size_bytes": p["size"] * sector,
            "type": p.get("type", ""),
            "uuid": p.get("uuid", ""),
            "name": p.get("name", ""),
        }
        for p in table.get("partitions", [])
    ]


def _devices(real: str) -> set[str]:
    """Device numbers `major:minor` of a drive, its partitions and whatever is built on them; for a file, of its loop devices."""
    mode = os.stat(real)
    if not stat.S_ISBLK(mode.st_mode):
        loops = (os.path.join("/sys/block", name) for name in _names("/sys/block") if name.startswith("loop"))
        found = [loop for loop in loops if _text(os.path.join(loop, "loop/backing_file")) == real]
    else:
        found = [f"/sys/dev/block/{_number(mode.st_rdev)}"]
    numbers: set[str] = set()
    while found:
        folder = found.pop()
        number = _text(os.path.join(folder, "dev"))
        if number and number not in numbers:
            numbers.add(number)
            found += [os.path.join(folder, n) for n in _names(folder) if os.path.exists(os.path.join(folder, n, "partition"))]
            found += [os.path.join(folder, "holders", n) for n in _names(os.path.join(folder, "holders"))]
    return numbers


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _mounts(real: str) -> list[dict[str, Any]]:
    """File systems and swap on the drive that this process can see."""
    devices = _devices(real)
    found: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as source:
        for line in source:  # not on macOS, where only files are read
            before, _, after = line.partition(" - ")
            fields, kind = before.split(), after.split()
            if fields[2] in devices:
                read_only = "ro" in fields[5].split(",") or "ro" in kind[2].split(",")
                path = fields[4].replace("\\040", " ")
                found.append({"path": path, "kind": kind[0], "read_only": read_only, "device": fields[2]})
    for line in _text("/proc/swaps").splitlines()[1:]:
        path = line.split()[0]
        try:
            number = os.stat(path).st_rdev
        except OSError:
            continue
        if _number(number) in devices:
            found.append({"path": path, "kind": "swap", "read_only": False, "device": _number(number)})
    return found


def _is_in_use(real: str, *, is_drive: bool) -> bool:
    """Whether the kernel lets nobody have it for himself: a drive that is mounted, perhaps where this process cannot see it; a file that
    somebody has open for writing."""
    try:
        descriptor = os.open(real, os.O_RDONLY | (os.O_EXCL if is_drive else 0))
    except OSError:
        return is_drive
    try:
        if not is_drive and hasattr(fcntl, "F_SETLEASE"):
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN  # other answers: leases are not to be had here
    finally:
        os.close(descriptor)
    return False


def _writes(real: str) -> str:
    """A mark that changes when somebody writes: the count of written sectors; of a file, its times."""
    told = os.stat(real)
    if stat.S_ISBLK(told.st_mode):
        return _text(f"/sys/dev/block/{_number(told.st_rdev)}/stat").split()[6]
    return f"{told.st_mtime_ns} {told.st_size}"


# --- checking


def check(path: str, partitions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether the partition table and the ext file systems are sound; a list of what was looked at."""
    real = os.path.realpath(path)
    code, told = _run(["sfdisk", "--verify", real])
    found = [{"what": "partition table", "ok": code == 0, "found": told.strip().splitlines()[-1] if told.strip() else ""}]
    descriptor, _ = open_drive(real)
    os.close(descriptor)
    for number, partition in enumerate(partitions, 1):
        start = partition["start_bytes"]
        with open(real, "rb") as source:
            source.seek(start + 1024)
            is_ext = source.read(1024)[56:58] == b"\x53\xef"
        what = f"partition {number} ({partition['name'] or partition['type']})"
        if not is_ext:
            found.append({"what": what, "ok": True, "found": "no ext file system: its blocks were compared, nothing else"})
            continue
        code, told = _run(["e2fsck", "-fn", f"{real}?offset={start}"])
        lines = [line for line in told.splitlines() if line.strip() and not line.startswith("e2fsck ")]
        found.append({"what": what, "ok": code == 0, "found": lines[-1] if code == 0 and lines else "; ".join(lines[-6:])})
    return found


def _run(command: list[str], errors: int = subprocess.STDOUT) -> tuple[int, str]:
    """Exit code and output of a program; 127 where it is missing."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={"PATH": path, "LC_ALL": "C"},
            timeout=_TOOL_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return 127, f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"{command[0]} took longer than {_TOOL_SECONDS} s"
    return done.returncode, done.stdout.decode("utf-8", "replace")
