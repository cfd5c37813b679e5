"""Reading, hashing and writing a drive or a file, block by block."""

from __future__ import annotations

import collections
import concurrent.futures
import fcntl
import hashlib
import itertools
import mmap
import os
import stat
import struct
from collections.abc import Iterable, Iterator

DIGEST_BYTES = 32
ZERO = bytes(DIGEST_BYTES)
"""Stands for a block of zeros, or a hole, in an array of digests. SHA-256 itself is never computed of those."""
SEGMENT_BYTES = 2 << 20
"""Read at once: keeps an NVMe drive busy with two readers, and bounds memory."""

_BLKFLSBUF, _BLKZEROOUT = 0x1261, 0x127F


class AgentError(Exception):
    """What a person should be told; crosses the wire as text."""


def open_drive(path: str, *, write: bool = False) -> tuple[int, int]:
    """Open a drive or a file; returns descriptor and size in bytes.

    A drive is read past the page cache: what a file system on it wrote since the last look is not in that cache. It is written only when
    nothing has it mounted, in whatever namespace; the kernel sees to that (O_EXCL).
    """
    is_drive = stat.S_ISBLK(os.stat(path).st_mode)
    flags = os.O_RDWR if write else os.O_RDONLY
    if is_drive:
        flags |= os.O_EXCL if write else getattr(os, "O_DIRECT", 0)
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    size = os.lseek(descriptor, 0, os.SEEK_END)
    return descriptor, size


def scan(
    path: str, block_bytes: int, previous: bytes | bytearray, size_bytes: int | None = None, workers: int = 2
) -> Iterator[tuple[int, int, list[tuple[int, bytes, memoryview]]]]:
    """Read a drive and find every block that is not as `previous` says.

    Args:
        path: a block device or a file.
        block_bytes: of a block; the last one may be shorter.
        previous: digests of all blocks, 32 bytes each, ZERO for zeros; short or empty where nothing is known.
        size_bytes: how much of it counts; default: all.
        workers: so many segments are read and hashed at once.

    Yields:
        For each segment, in order: where it ends, how many bytes were read of it (holes are not), and its differing blocks: number,
        digest, data (empty for zeros). The data is lent: it changes once the next segment is asked for.
    """
    descriptor, size = open_drive(path)
    size = size if size_bytes is None else min(size, size_bytes)
    zeros = bytes(block_bytes)
    spare: collections.deque[mmap.mmap] = collections.deque()

    def read(start: int) -> tuple[int, list[tuple[int, bytes, memoryview]], mmap.mmap | None]:
        length = min(SEGMENT_BYTES, size - start)
        numbers = range(start // block_bytes, (start + length + block_bytes - 1) // block_bytes)
        if _is_hole(descriptor, start, length):
            return 0, [(n, ZERO, nothing) for n in numbers if _digest_at(previous, n) != ZERO], None
        try:
            buffer = spare.popleft()
        except IndexError:
            buffer = mmap.mmap(-1, SEGMENT_BYTES)
        found = []
        view = memoryview(buffer)[:length]
        _fill(descriptor, view, start)
        for number in numbers:
            at = number * block_bytes - start
            block = view[at : at + block_bytes]
            # Looking at two bytes first spares a copy of nearly every block that is not zeros.
            if block[0] == block[-1] == 0 and bytes(block) == zeros[: len(block)]:
                digest, block = ZERO, nothing
            else:
                digest = hashlib.sha256(block).digest()
            if digest != _digest_at(previous, number):
                found.append((number, digest, block))
        return length, found, buffer

    nothing = memoryview(b"")
    try:
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            starts = iter(range(0, size, SEGMENT_BYTES))
            waiting = collections.deque((start, pool.submit(read, start)) for start in itertools.islice(starts, 2 * workers))
            try:
                while waiting:
                    start, future = waiting.popleft()
                    length, found, buffer = future.result()
                    waiting.extend((n, pool.submit(read, n)) for n in itertools.islice(starts, 1))
                    yield min(start + SEGMENT_BYTES, size), length, found
                    if buffer is not None:
                        spare.append(buffer)
            finally:
                for _, future in waiting:
                    future.cancel()
    finally:
        os.close(descriptor)


def _digest_at(digests: bytes | bytearray, number: int) -> bytes:
    return bytes(digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]) or ZERO


def _is_hole(descriptor: int, start: int, length: int) -> bool:
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA) >= start + length
    except OSError as error:
        return error.errno == 6  # ENXIO: no data from here to the end. Others: no holes on this kind.


def _fill(descriptor: int, view: memoryview, start: int) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], start + done)
        if count == 0:
            raise AgentError(f"the drive ended at byte {start + done} while it was read")
        done += count


def write_blocks(path: str, block_bytes: int, blocks: Iterable[tuple[int, int, bytes]]) -> dict[str, int]:
    """Write blocks, make them durable, and forget what the kernel has cached; returns how many bytes were written and zeroed.

    The first block is a barrier, whenever it comes: what came before it is durable before it is, and it before what comes after it. Else a
    drive that lost power could have its partition table and not what lies in the partitions.

    Args:
        path: a block device that nothing has mounted, or a file.
        blocks: (number, length, data); empty data writes zeros.
    """
    descriptor, _ = open_drive(path, write=True)
    written = zeroed = 0
    try:
        is_drive = stat.S_ISBLK(os.fstat(descriptor).st_mode)
        for number, length, data in blocks:
            if number == 0:
                os.fsync(descriptor)
            if data:
                _write(descriptor, data, number * block_bytes)
                written += length
            else:
                _zero(descriptor, length, number * block_bytes, is_drive=is_drive)
                zeroed += length
            if number == 0:
                os.fsync(descriptor)
        os.fsync(descriptor)
        if is_drive:
            fcntl.ioctl(descriptor, _BLKFLSBUF)
        else:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return {"written_bytes": written, "zeroed_bytes": zeroed}


def _zero(descriptor: int, length: int, start: int, *, is_drive: bool) -> None:
    try:
        if not is_drive:
            raise OSError
        fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("QQ", start, length))
    except OSError:
        _write(descriptor, bytes(length), start)


def _write(descriptor: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, start)
        view, start = view[count:], start + count
