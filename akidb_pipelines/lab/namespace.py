"""A drive as the root of its own sshd: a mount and a process namespace in which the drive is `/`, as on a Jetson that runs from it.

Programs and libraries come from this machine, read-only; everything that writes by itself (/run, /tmp, /var/log) is in memory, so that the
drive can be frozen. Both namespaces end with sshd, and the mount with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.lab import programs
from akidb_pipelines.lab.drives import ROOT_LINKS
from akidb_pipelines.lab.loops import ROOT_PARTITION, Loop

LAB_FOLDER = "/run/lab"
"""Where sshd's configuration and keys appear inside."""

ACCOUNTS: Mapping[str, bytes] = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n",
    "etc/group": b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/shadow": b"root:*:20000:0:99999:7:::\nsshd:!:20000::::::\n",
    "etc/nsswitch.conf": b"passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
}
"""Files that sshd needs on the drive."""

_PYTHON = Path("/usr/bin/python3")

# $1 mount point, $2 folder with sshd's files, $3 sshd, $4 folders of this machine, $5 name of the drive, then NAME=MAJOR:MINOR of its nodes.
_SCRIPT = """
set -eu
root=$1 lab=$2 sshd=$3 shared=$4 name=$5
shift 5

mount -t tmpfs -o mode=755,size=1m lab /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/zero c 1 5
mknod -m 666 /dev/full c 1 7
mknod -m 666 /dev/random c 1 8
mknod -m 666 /dev/urandom c 1 9
mknod -m 666 /dev/tty c 5 0
mkdir /dev/pts /dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts /dev/pts
ln -s pts/ptmx /dev/ptmx
ln -s /proc/self/fd /dev/fd
for node; do
    number=${node#*=}
    mknod -m 660 "/dev/${node%%=*}" b "${number%:*}" "${number#*:}"
done

mount -t ext4 "/dev/${name}p1" "$root"
for folder in $shared; do
    if [ -d "/$folder" ] && [ ! -L "/$folder" ]; then
        mkdir -p "$root/$folder"
        mount --bind "/$folder" "$root/$folder"
        mount -o remount,bind,ro "$root/$folder"
    fi
done
mount --move /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind /sys "$root/sys"
mount -o remount,bind,ro "$root/sys"
mount -t tmpfs -o mode=755,size=16m lab "$root/run"
mount -t tmpfs -o mode=755,size=16m lab "$root/var/log"
mount -t tmpfs -o mode=1777,size=256m lab "$root/tmp"
mkdir "$root/run/sshd" "$root/run/lab"
mount --bind "$lab" "$root/run/lab"
mount -o remount,bind,ro "$root/run/lab"

cd "$root"
pivot_root . mnt
exec chroot . sh -c 'umount -l /mnt; exec "$0" -D -e -f /run/lab/sshd_config' "$sshd"
"""


def sshd_command(loop: Loop, *, drive: str, mount_point: Path, sshd_folder: Path) -> list[str]:
    """What starts sshd with a drive as its root; the process ends when sshd does, and sshd when the process does.

    Args:
        loop: the drive.
        drive: its path inside, such as /dev/nvme0n1.
        mount_point: an empty folder.
        sshd_folder: has `sshd_config`; seen inside as `LAB_FOLDER`.

    Raises:
        OutsideError: a program is missing, or the drive has no root partition.
    """
    if ROOT_PARTITION not in loop.partitions:
        raise OutsideError(
            f"{loop.device} of {loop.backing} has no partition {ROOT_PARTITION}, and its sshd runs from that",
            hint="`akidb-pipelines lab down` and `up` make the drive new",
        )
    if not _PYTHON.exists():
        raise OutsideError(f"there is no {_PYTHON}, which a drive that is a root needs inside", hint="apt-get install python3")
    name = PurePosixPath(drive).name
    nodes = [f"{name}={loop.number}", *(f"{name}p{number}={node}" for number, node in loop.partitions.items())]
    shared = " ".join(("usr", *ROOT_LINKS, "etc/alternatives"))
    unshare = [programs.find("unshare"), "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    arguments = [str(mount_point), str(sshd_folder), programs.find("sshd"), shared, name, *nodes]
    return [*unshare, programs.find("sh"), "-c", _SCRIPT, "sh", *arguments]
