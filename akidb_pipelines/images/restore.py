"""Bringing an image's blocks back: into a file, onto a drive, or only before the eyes of a check.

Every block is verified by its own digest on the way, whatever it went through. What to write where on a drive that holds something already
is decided by `reflash`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from akidb_pipelines.errors import InputError, IntegrityError, OutsideError
from akidb_pipelines.files import sync_folder
from akidb_pipelines.images.drives import BLOCK_BYTES, ZERO, Block, Drive, LocalDrive, block_length
from akidb_pipelines.images.image import Image
from akidb_pipelines.images.library import Library
from akidb_pipelines.images.packs import BlockTable, digests_of
from akidb_pipelines.progress import Progress, Report

SAMPLE_BYTES = 256 << 20
"""What a sample reads back at most."""


@dataclass(frozen=True)
class Content:
    """An image's blocks, found in the packs.

    Args:
        image: which.
        digests: of all its blocks (V32).
        table: where blocks lie.
        rows: the row of each block in it; -1 for zeros.
    """

    library: Library
    image: Image
    digests: NDArray[np.void]
    table: BlockTable
    rows: NDArray[np.int64]

    @property
    def missing(self) -> NDArray[np.int64]:
        """Numbers of the blocks that lie in no pack."""
        return np.flatnonzero((self.rows < 0) & (self.digests != np.void(ZERO)))

    def expect_whole(self) -> None:
        """That every block is in a pack.

        Raises:
            IntegrityError: some are not.
        """
        if len(self.missing):
            raise IntegrityError(
                f"image {self.image.id}: {len(self.missing)} of its {len(self.rows)} blocks lie in no pack, the first at byte "
                f"{int(self.missing[0]) * BLOCK_BYTES}: a pack or its index is gone from {self.library.blocks.store.url}",
                hint="capture the device again (what is missing is stored anew), or use another image; docs/runbooks/clone-failed.md",
            )

    def blocks(
        self, numbers: NDArray[np.int64], broken: Callable[[IntegrityError], None] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Read some blocks that are not zeros, in the order they are stored in; yields number and data. See BlockStore.read."""
        rows = self.rows[numbers]
        order = np.argsort(rows, kind="stable")
        numbers, rows = numbers[order], rows[order]
        for row, data in self.library.blocks.read(self.table, rows, broken):
            first, last = np.searchsorted(rows, [row, row + 1])
            for number in numbers[first:last].tolist():
                yield number, data

    def length(self, number: int) -> int:
        """Bytes of a block."""
        return block_length(number, self.image.record.size_bytes)


def content_of(library: Library, image: Image) -> Content:
    """Find an image's blocks.

    Raises:
        IntegrityError: the digest array, or the index of a pack, is damaged.
    """
    digests = digests_of(library.digests(image))
    table = library.blocks.table()
    return Content(library, image, digests, table, table.rows(digests))


@dataclass(frozen=True)
class Restored:
    """What a restore wrote."""

    target: str
    size_bytes: int
    written_bytes: int
    seconds: float


def restore(library: Library, image: Image, target: Path, *, replace: bool = False, report: Report = lambda _: None) -> Restored:
    """Write a whole image to a file, which appears when it is whole, or to a drive of this machine.

    Args:
        library, image: what.
        target: a new file, or a block device.
        replace: whether a file that is there, or what a drive holds, may be replaced.
        report: told the progress.

    Raises:
        InputError: the file, or a drive, is there and must not be replaced; or the drive is too small.
        IntegrityError: a block is damaged or gone.
        OutsideError: no room, no permission, or the drive is mounted.
    """
    started = perf_counter()
    content = content_of(library, image)
    content.expect_whole()
    size = image.record.size_bytes
    if target.exists() and not (replace and (target.is_file() or target.is_block_device())):
        raise InputError(f"{target} is there already", hint="choose another, or say --replace: what it holds is lost")
    if target.is_block_device():
        drive = LocalDrive(target)
        if (found := drive.facts().size_bytes) < size:
            raise InputError(f"{target} has {found:,} bytes, the image {size:,}", hint="choose a drive that is no smaller")
        written = drive.write(in_safe_order(content, np.arange(len(content.rows)), report)).written_bytes
        if len(differing(drive, content, report, "reading all of it again")):
            raise IntegrityError(f"drive {target} does not hold what was written to it", hint="the drive is failing: replace it")
        return Restored(str(target), size, written, perf_counter() - started)
    part = target.parent / f".{target.name}-{secrets.token_hex(4)}.part"
    try:
        with part.open("xb") as made:
            os.truncate(made.fileno(), size)
        written = LocalDrive(part).write(_blocks(content, np.flatnonzero(content.rows >= 0), report)).written_bytes
        part.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise OutsideError(f"restoring {image.id} to {target}: {error}", hint="choose a folder that may be written") from error
    finally:
        part.unlink(missing_ok=True)
    return Restored(str(target), size, written, perf_counter() - started)


def _blocks(content: Content, numbers: NDArray[np.int64], report: Report) -> Iterator[Block]:
    """Some blocks: zeros first, then the others in the order they are stored in."""
    total = len(numbers) * BLOCK_BYTES
    zero = content.rows[numbers] < 0
    done = 0
    for number in numbers[zero].tolist():
        yield number, content.length(number), b""
        done += 1
    for number, data in content.blocks(numbers[~zero]):
        yield number, len(data), data
        done += 1
        if done % 64 == 0:
            report(Progress("writing", done * BLOCK_BYTES, total, in_bytes=True))
    if total:
        report(Progress("writing", total, total, in_bytes=True))


def in_safe_order(content: Content, numbers: NDArray[np.int64], report: Report) -> Iterator[Block]:
    """Blocks for a drive: the first, with the partition table, cleared before all others and written after them."""
    yield 0, content.length(0), b""
    yield from _blocks(content, numbers[numbers != 0], report)
    if content.rows[0] >= 0:
        yield from _blocks(content, np.zeros(1, np.int64), lambda _: None)


@dataclass(frozen=True)
class Verified:
    """What reading an image back found."""

    image: str
    blocks: int
    """Read and compared."""
    of_blocks: int
    """That are not zeros."""
    read_bytes: int
    problems: tuple[str, ...]
    seconds: float


def verify(library: Library, image: Image, *, everything: bool, seed: int = 0, report: Report = lambda _: None) -> Verified:
    """Read blocks back from the store and compare their digests: all of them, or a sample.

    Args:
        library, image: what.
        everything: else at most SAMPLE_BYTES, drawn by `seed`.
        seed: of the sample.
        report: told the progress.
    """
    started = perf_counter()
    content = content_of(library, image)
    problems = [f"{len(content.missing)} blocks lie in no pack"] if len(content.missing) else []
    stored = np.flatnonzero(content.rows >= 0)
    numbers = stored
    if not everything and len(stored) * BLOCK_BYTES > SAMPLE_BYTES:
        numbers = np.random.default_rng(seed).choice(stored, SAMPLE_BYTES // BLOCK_BYTES, replace=False)
    blocks = read = 0
    for _, data in content.blocks(numbers, lambda error: problems.append(error.message)):
        blocks, read = blocks + 1, read + len(data)
        if blocks % 256 == 0:
            report(Progress("reading back", read, len(numbers) * BLOCK_BYTES, in_bytes=True))
    return Verified(image.id, blocks, len(stored), read, tuple(problems), perf_counter() - started)


def differing(drive: Drive, content: Content, report: Report = lambda _: None, stage: str = "comparing") -> NDArray[np.int64]:
    """Numbers of the blocks in which a drive is not as an image; what lies behind the image's end is left out."""
    size = content.image.record.size_bytes
    numbers: list[int] = []
    for piece in drive.scan(content.digests.tobytes(), data=False, size_bytes=size):
        numbers += [found.number for found in piece.found]
        report(Progress(stage, piece.position, size, in_bytes=True))
    return np.asarray(numbers, np.int64)
