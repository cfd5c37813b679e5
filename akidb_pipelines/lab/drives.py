"""Drives that are files: a GPT with an ext4 root full of real files, and an EFI partition.

A drive is the same at every making as far as names, contents, and ids go; inodes carry the times at which it was made. Nothing is mounted
to make one, and no root is needed. `loops` attaches it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sysconfig
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.lab import programs

_MIB = 1 << 20
_SECTOR_BYTES = 512
_FIRST_MIB, _ESP_MIB, _LAST_MIB = 1, 16, 1
LEAST_MIB = 64
"""Below it, ext4 has no room for a journal and the files."""
_FILLED = 0.6
_LARGEST_FILE_BYTES = 8 * _MIB
_SMALL_FILE_BYTES, _MOST_SMALL_FILES = 64 << 10, 400  # a file took 0.6 ms to make, however small; 4,000 took half of `up`
_EXT4_BLOCK_BYTES = 4096
_IDS = uuid.UUID("6c1f0a86-6a0b-4c5a-9f39-2f5d2f0d7f5e")

# Merged into /usr on Debian; inside a drive that is a root they lead to the machine's own programs.
ROOT_LINKS = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")


def make_image(path: Path, *, name: str, size_mib: int, root_files: Mapping[str, bytes]) -> None:
    """Make a drive; it appears whole or not at all.

    Args:
        path: the image file.
        name: ids and the choice of files follow from it.
        size_mib: of the whole drive.
        root_files: put into the root file system, by path below it, besides the rest.

    Raises:
        OutsideError: no room, or a program is missing.
    """
    new, tree = path.with_suffix(".new"), path.parent / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    root_mib = size_mib - _FIRST_MIB - _ESP_MIB - _LAST_MIB
    try:
        with new.open("wb") as handle:
            handle.truncate(size_mib * _MIB)
        programs.run("sfdisk", "--quiet", new, told=_partition_table(name, root_mib))
        _grow_tree(tree, name, root_files, budget_bytes=int(root_mib * _MIB * _FILLED))
        seeds = f"offset={_FIRST_MIB * _MIB},hash_seed={_id(name, 'hash')},lazy_itable_init=0,lazy_journal_init=0"
        ext4 = f"-q -F -b {_EXT4_BLOCK_BYTES} -i 8192 -L APP -U {_id(name, 'root')} -E {seeds}".split()
        programs.run("mkfs.ext4", *ext4, "-d", tree, new, f"{root_mib}M")
        volume = _id(name, "esp")[:8]
        sectors = (_FIRST_MIB + root_mib) * _MIB // _SECTOR_BYTES
        programs.run(
            "mkfs.vfat", "--invariant", "-i", volume, "-n", "ESP", "--offset", str(sectors), new, str(_ESP_MIB * _MIB // 1024)
        )
        new.replace(path)
    except OSError as error:
        raise OutsideError(f"making drive {path}: {error}", hint="free space, or point AKIDB_HOME at another disk") from error
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        new.unlink(missing_ok=True)


def _partition_table(name: str, root_mib: int) -> str:
    return "\n".join(
        [
            "label: gpt",
            f"label-id: {_id(name, 'table')}",
            f"start={_FIRST_MIB}MiB, size={root_mib}MiB, type=linux, name=APP, uuid={_id(name, 'APP')}",
            f"start={_FIRST_MIB + root_mib}MiB, size={_ESP_MIB}MiB, type=uefi, name=esp, uuid={_id(name, 'partition-esp')}",
            "",
        ]
    )


def _id(name: str, what: str) -> str:
    return str(uuid.uuid5(_IDS, f"{name}:{what}"))


def _grow_tree(tree: Path, name: str, root_files: Mapping[str, bytes], *, budget_bytes: int) -> None:
    """What the root file system begins with."""
    for folder in (
        "dev",
        "etc",
        "home",
        "media",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "srv",
        "sys",
        "tmp",
        "usr",
        "var/log",
        "var/empty folder",
    ):
        (tree / folder).mkdir(parents=True)
    for link in ROOT_LINKS:
        here = Path("/") / link
        if here.is_symlink():
            (tree / link).symlink_to(here.readlink())
        elif here.is_dir():
            (tree / link).mkdir()
    (tree / "var/run").symlink_to("/run")
    for path, content in root_files.items():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    files = tree / "srv/files"
    for source in _choose(name, budget_bytes):
        target = files / source.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    files.mkdir(exist_ok=True)
    (files / "latest").symlink_to("usr")
    with (files / "sparse.bin").open("wb") as handle:
        handle.seek(3 * _MIB)
        handle.write(hashlib.shake_256(name.encode()).digest(_MIB // 2))
        handle.truncate(16 * _MIB)


def _choose(name: str, budget_bytes: int) -> Iterator[Path]:
    """Real files of this machine, texts and programs, in an order that is this drive's own, until the budget is used up."""
    found: list[tuple[bytes, Path, int]] = []
    for top in (
        sysconfig.get_path("stdlib"),
        "/usr/bin",
        "/usr/lib/git-core",
        "/usr/lib/python3",
        "/usr/share/doc",
        "/usr/share/perl",
    ):
        for folder, folders, names in os.walk(top):
            folders[:] = [f for f in folders if f not in {"site-packages", "__pycache__"}]
            for path in (Path(folder) / n for n in names):
                if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                    continue
                if 0 < (size := path.stat().st_size) <= _LARGEST_FILE_BYTES:
                    found.append((hashlib.sha256(f"{name}:{path}".encode()).digest(), path, size))
    left, small_left = budget_bytes, _MOST_SMALL_FILES
    for _, path, size in sorted(found):
        if size <= _SMALL_FILE_BYTES:
            if small_left == 0:
                continue
            small_left -= 1
        left -= -(-size // _EXT4_BLOCK_BYTES) * _EXT4_BLOCK_BYTES
        if left < 0:
            return
        yield path
