"""The port behind which a drive lies, wherever it is, and the drives and files of this machine.

A drive is read, written and frozen by the few verbs of `Drive`; captures, restores and reflashes are written against them only. Here is the
drive of this machine; `remote` has the one on a device over SSH. Both do their work by `agent`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from akidb_pipelines.errors import InputError, OutsideError, PipelineError
from akidb_pipelines.images.agent import drive, facts, freeze

BLOCK_BYTES = 65536
"""Of a block. Disk file systems align to it; smaller blocks cost more in digests than they save, larger ones store more each month."""
DIGEST_BYTES = drive.DIGEST_BYTES
ZERO = drive.ZERO


@dataclass(frozen=True)
class Partition:
    """An entry of a partition table."""

    start_bytes: int
    size_bytes: int
    type: str
    uuid: str
    name: str


@dataclass(frozen=True)
class Mount:
    """A file system, or swap, that lies on a drive and is in use."""

    path: str
    kind: str
    read_only: bool
    device: str
    """Number of its device, `major:minor`: one file system may be mounted in several places."""


@dataclass(frozen=True)
class DriveFacts:
    """A drive and the board that it is in."""

    size_bytes: int
    board_spec: str
    """TNSPEC of /etc/nv_boot_control.conf: what NVIDIA calls the exact board."""
    board_model: str
    board_serial: str
    l4t_release: str
    drive_model: str
    drive_serial: str
    efi_entries: tuple[str, ...]
    partitions: tuple[Partition, ...]
    mounts: tuple[Mount, ...]
    in_use: bool
    """Whether the kernel would let nobody have it for himself: mounted, perhaps where we cannot see it."""
    writes: str
    """A mark that changes when somebody writes."""

    @classmethod
    def parse(cls, told: Mapping[str, Any]) -> DriveFacts:
        """From the agent's words."""
        known = {name: told[name] for name in cls.__dataclass_fields__}
        return cls(
            **{
                **known,
                "efi_entries": tuple(told["efi_entries"]),
                "partitions": tuple(Partition(**p) for p in told["partitions"]),
                "mounts": tuple(Mount(**m) for m in told["mounts"]),
            }
        )


@dataclass(frozen=True)
class Found:
    """A block that is not as expected."""

    number: int
    digest: bytes
    data: bytes | memoryview
    """Empty for a block of zeros, or when only digests were asked for. Lent: it changes once the next piece is asked for."""


@dataclass(frozen=True)
class Scanned:
    """A piece of a drive that was read."""

    position: int
    """Where it ends, in bytes from the drive's beginning."""
    found: tuple[Found, ...]
    """Its blocks that are not as expected, in order."""


@dataclass(frozen=True)
class Checked:
    """One thing that was looked at on a drive."""

    what: str
    ok: bool
    found: str


@dataclass(frozen=True)
class Written:
    """What a write took."""

    written_bytes: int
    zeroed_bytes: int


Block = tuple[int, int, bytes]
"""Number, length in bytes, data; empty data means zeros."""


class Drive(Protocol):
    """A drive. Every verb raises OutsideError when it, or the way to it, fails."""

    name: str
    """For messages."""
    sent_bytes: int
    """What crossed the wire so far, both ways; 0 for a drive of this machine."""
    read_bytes: int
    """What was read from it so far; holes of a file are not."""

    def facts(self) -> DriveFacts:
        """What is known of it now, without reading its contents."""
        ...

    def scan(self, previous: bytes | bytearray, *, data: bool = True, size_bytes: int | None = None) -> Iterator[Scanned]:
        """Read all of it, piece by piece; finds every block that is not as `previous` says.

        Args:
            previous: 32 bytes a block, zeros for a block of zeros; may be short or empty. What was yielded may be changed in it.
            data: whether the blocks themselves are wanted, not only their digests.
            size_bytes: how much of it counts; default: all.
        """
        ...

    def freeze(self, mounts: Sequence[str], read_only: Sequence[str], seconds: int) -> None:
        """Keep its file systems still, for so many seconds at most.

        Raises:
            OutsideError: one cannot be frozen; none is then.
        """
        ...

    def thaw(self) -> bool:
        """End that; returns whether it was frozen all the time until now."""
        ...

    def write(self, blocks: Iterable[Block]) -> Written:
        """Write blocks and make them durable. What is read afterwards comes from the drive and no cache.

        Raises:
            OutsideError: it is mounted, or refuses.
        """
        ...

    def check(self, partitions: Sequence[Partition]) -> tuple[Checked, ...]:
        """Whether the partition table and the file systems on it are sound; changes nothing."""
        ...

    def close(self) -> None:
        """Let go of it; nothing stays frozen."""
        ...


def block_count(size_bytes: int) -> int:
    """Blocks of a drive of that size, the last one perhaps shorter."""
    return -(-size_bytes // BLOCK_BYTES)


def block_length(number: int, size_bytes: int) -> int:
    """Bytes of one block."""
    return min(BLOCK_BYTES, size_bytes - number * BLOCK_BYTES)


class LocalDrive:
    """A file or block device of this machine.

    Args:
        path: it.
        facts_root: where the facts of its board are read.
    """

    def __init__(self, path: Path, facts_root: str = "/") -> None:
        if not path.exists():
            raise InputError(f"{path}: there is no such file or drive", hint="check the path")
        if not (path.is_file() or path.is_block_device()):
            raise InputError(
                f"{path} is neither a file nor a drive", hint="name an image file, or a block device such as /dev/nvme0n1"
            )
        self.path, self._facts_root = path, facts_root
        self.name = str(path)
        self.sent_bytes = self.read_bytes = 0
        self._freezer: freeze.Freezer | None = None

    def facts(self) -> DriveFacts:
        """See Drive."""
        with self._telling("looking at it"):
            return DriveFacts.parse(facts.facts(str(self.path), self._facts_root))

    def scan(self, previous: bytes | bytearray, *, data: bool = True, size_bytes: int | None = None) -> Iterator[Scanned]:
        """See Drive."""
        with self._telling("reading it"):
            for position, read, blocks in drive.scan(os.path.realpath(self.path), BLOCK_BYTES, previous, size_bytes):
                self.read_bytes += read
                yield Scanned(position, tuple(Found(*block) for block in blocks))

    def freeze(self, mounts: Sequence[str], read_only: Sequence[str], seconds: int) -> None:
        """See Drive."""
        with self._telling("freezing it"):
            self._freezer = freeze.Freezer(mounts, read_only, seconds)

    def thaw(self) -> bool:
        """See Drive."""
        freezer, self._freezer = self._freezer, None
        return freezer.thaw() if freezer else False

    def write(self, blocks: Iterable[Block]) -> Written:
        """See Drive."""
        with self._telling("writing it"):
            return Written(**drive.write_blocks(os.path.realpath(self.path), BLOCK_BYTES, blocks))

    def check(self, partitions: Sequence[Partition]) -> tuple[Checked, ...]:
        """See Drive."""
        with self._telling("checking it"):
            return tuple(Checked(**told) for told in facts.check(str(self.path), [vars(p) for p in partitions]))

    def close(self) -> None:
        """See Drive."""
        self.thaw()

    @contextmanager
    def _telling(self, tried: str) -> Iterator[None]:
        try:
            yield
        except (OSError, drive.AgentError) as error:
            raise drive_error(self.name, tried, str(error)) from error


def drive_error(name: str, tried: str, found: str) -> PipelineError:
    """What to tell when a drive fails."""
    hints = {
        "frozen": "the inventory's akidb_freeze_mounts and akidb_readonly_mounts name what lies on the drive; vfat cannot be frozen, "
        "and what has files open for writing (busy; fuser -vm PATH) cannot be made read-only",
        "busy": "something has it mounted or open: unmount it, or start the board from another medium",
        "Permission denied": "drives are read and written as root",
        "No space left": "the disk is full: free some space",
        "Input/output error": "the drive is failing: look at its kernel log (dmesg) and replace it",
    }
    hint = next(
        (hint for sign, hint in hints.items() if sign.lower() in found.lower()), "look at the drive; docs/runbooks/clone-failed.md"
    )
    return OutsideError(f"drive {name}: {tried}: {found}", hint=hint)
