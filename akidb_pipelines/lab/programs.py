"""The programs of the operating system that the lab is built with: found, run, and missed with the name of their Debian package."""

from __future__ import annotations

import os
import shutil
import subprocess

from akidb_pipelines.errors import OutsideError

_PACKAGES = {
    "debootstrap": "debootstrap",
    "docker": "docker.io",
    "dockerd": "docker.io",
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "docker-init": "docker.io",
    "docker-proxy": "docker.io",
    "fsfreeze": "util-linux",
    "ip6tables": "iptables",
    "ldd": "libc-bin",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "mount": "mount",
    "partx": "util-linux",
    "python3": "python3",
    "sfdisk": "fdisk",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "tar": "tar",
    "umount": "mount",
    "unshare": "util-linux",
}
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where system programs are; users other than root often have no sbin in their PATH."""


def find(name: str) -> str:
    """Absolute path of a program.

    Raises:
        OutsideError: it is not installed.
    """
    if found := shutil.which(name) or shutil.which(name, path=SEARCH_PATH):
        return found
    package = _PACKAGES.get(name, name)
    raise OutsideError(f"the lab needs the program {name}, which is not installed", hint=f"apt-get install {package}")


def run(name: str, *arguments: str | os.PathLike[str], told: str = "", env: dict[str, str] | None = None) -> str:
    """Run a program to its end and return what it printed.

    Args:
        name: looked up by `find`.
        arguments: as they are; no shell sees them.
        told: its standard input.
        env: added to this process's environment.

    Raises:
        OutsideError: it is missing or failed; the message has what it wrote.
    """
    command = [find(name), *(os.fspath(a) for a in arguments)]
    done = subprocess.run(
        command, input=told, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C", **(env or {})}
    )
    if done.returncode != 0:
        wrote = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise OutsideError(
            f"{' '.join(command)} ended with {done.returncode}: {wrote}", hint="do what its message asks for, then try again"
        )
    return done.stdout
