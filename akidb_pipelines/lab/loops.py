"""Loop devices: image files as drives of this machine, with their partitions, and back. Needs root.

What belongs here: the kernel's view, read from /sys and /proc. What is on a drive is the business of `drives`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.lab import programs

ROOT_PARTITION = 1
_SYS_BLOCK = Path("/sys/block")
_DELETED = " (deleted)"  # the kernel's note behind the path
_FREE_SECONDS = 10.0


@dataclass(frozen=True)
class Loop:
    """A loop device."""

    device: Path
    backing: Path
    deleted: bool = False
    """Whether that file has no name any more."""

    @property
    def number(self) -> str:
        """`major:minor`."""
        return (self._sys / "dev").read_text().strip()

    @property
    def partitions(self) -> Mapping[int, str]:
        """`major:minor` by partition, of those that the kernel knows."""
        found = self._sys.glob(f"{self.device.name}p*/partition")
        return {int(p.read_text()): (p.parent / "dev").read_text().strip() for p in sorted(found)}

    @property
    def claimed(self) -> bool:
        """Whether anybody, in whichever namespace, has it or a partition of it mounted."""
        try:
            os.close(os.open(self.device, os.O_RDONLY | os.O_EXCL))
        except OSError as error:
            if error.errno == errno.EBUSY:
                return True
            raise OutsideError(f"loop device {self.device}: {error}", hint="the lab's drives need root") from error
        return False

    @property
    def _sys(self) -> Path:
        return _SYS_BLOCK / self.device.name


def attach(image: Path) -> Loop:
    """The loop device of an image: the one it has, or a new one, with the partitions that stand on it.

    Raises:
        OutsideError: the kernel gives none.
    """
    found = None
    for loop in loops_below(image):
        if loop.deleted:
            detach(loop)  # of an image that stood here before
        else:
            found = loop
    if found is None:
        device = Path(programs.run("losetup", "--find", "--show", "--partscan", image).strip())
        found = Loop(device, image.resolve())
    if not found.partitions:
        # A kernel built without GPT knows partitions only when it is told of them. A drive that was wiped has none.
        with contextlib.suppress(OutsideError):
            programs.run("partx", "--update", found.device)
    return found


def loops_below(path: Path) -> Iterator[Loop]:
    """Loop devices whose file is this one or lies below this folder, also if the file is gone."""
    wanted = path.resolve()
    for entry in _SYS_BLOCK.glob("loop*/loop/backing_file"):
        try:
            told = entry.read_text().rstrip("\n")
        except OSError:
            continue  # detached meanwhile
        backing = Path(told.removesuffix(_DELETED))
        if backing == wanted or wanted in backing.parents:
            yield Loop(Path("/dev") / entry.parent.parent.name, backing, told.endswith(_DELETED))


def detach(loop: Loop) -> None:
    """Thaw and unmount what is mounted of it here, and free the device; returns when it is free.

    Raises:
        OutsideError: something still holds it.
    """
    thaw(loop)
    for point in _mount_points({loop.number, *loop.partitions.values()}):
        programs.run("umount", point)
    programs.run("losetup", "--detach", loop.device)
    # The kernel frees it when the last user closes it, which is a moment later if something just looked at it.
    end = time.monotonic() + _FREE_SECONDS
    while any(left.device == loop.device for left in loops_below(loop.backing)):
        if time.monotonic() > end:
            raise OutsideError(
                f"{loop.device} is still in use; processes that have it mounted: {_users(loop) or 'none'}",
                hint=f"end what uses it (fuser -v {loop.device}); it is marked to go by itself then",
            )
        time.sleep(0.01)


def thaw(loop: Loop) -> None:
    """Thaw its root file system if that is mounted, in whichever namespace, and frozen.

    Also when the namespace is gone: a frozen file system stays alive without a mount and holds its device until somebody thaws it.
    """
    if not loop.claimed or ROOT_PARTITION not in loop.partitions:
        return
    major, minor = loop.partitions[ROOT_PARTITION].split(":")
    programs.run("unshare", "--mount", "--propagation", "private", "sh", "-c", _THAW, "sh", major, minor)


# A second mount of a file system is the same file system. This one is in a namespace of its own: nobody sees it, and it goes by itself.
# What cannot be mounted is not what was mounted; fsfreeze fails when there is nothing to thaw.
_THAW = """
set -e
mount -t tmpfs lab /mnt
mknod /mnt/device b "$1" "$2"
mkdir /mnt/root
mount -t ext4 -o rw /mnt/device /mnt/root || mount -t ext4 -o ro /mnt/device /mnt/root || exit 0
fsfreeze --unfreeze /mnt/root || :
"""


def _mounts(process: str) -> list[tuple[str, bytes]]:
    """What a process has mounted, in order: `major:minor`, mount point as proc(5) escapes it."""
    lines = Path("/proc", process, "mountinfo").read_bytes().splitlines()
    return [(fields[2].decode(), fields[4]) for fields in (line.split(b" ") for line in lines)]


def _mount_points(numbers: set[str]) -> list[str]:
    """Where devices are mounted in this namespace, last mounted first."""
    found = [point for number, point in _mounts("self") if number in numbers]
    return [os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), point)) for point in reversed(found)]


def _users(loop: Loop) -> list[int]:
    """Processes that see a partition of it mounted."""
    numbers, found = {loop.number, *loop.partitions.values()}, []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if any(number in numbers for number, _ in _mounts(entry.name)):
                found.append(int(entry.name))
    return found
