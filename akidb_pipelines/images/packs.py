"""Packs and their indexes, as bytes: how blocks are grouped, compressed and found again. docs/image-format.md has the format.

    pack    zstd frames, one after the other; each holds up to 1 MiB of blocks and can be read alone
    index   which block lies in which frame, at which offset, with the number that it had when it was stored

Both are named by the digest of the index, which names every block by digest. Here are
the format and the table that finds blocks; no store, no device. Both are written once and never changed.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from mmap import mmap
from threading import local

import numpy as np
import zstandard
from numpy.typing import NDArray

from akidb_pipelines.errors import IntegrityError

FRAME_BYTES = 1 << 20
"""Of blocks in a frame, before compression: what must be read and decompressed to get at one of them."""
PACK_BYTES = 8 << 20
"""A pack is at most so long (64 MiB is the most the format allows). A few are in memory at once: this bounds it."""
LEVEL = 1
"""Of zstd, which is half the work of a first capture: level 2 stores 8 % less and takes 18 % longer in all."""
VERSION = 1
_LOOKUP = 1 << 16
"""So many digests are looked up at once: what that takes is bounded, however large the drive."""

_MAGIC = b"AKIX"
_HEAD = struct.Struct("<4sHHII")
"""Magic, version, length of the image's name, frames, entries."""
_FRAMES = np.dtype([("start", "<u4"), ("stored", "<u4"), ("length", "<u4")])
_ENTRIES = np.dtype([("digest", "V32"), ("number", "<u8"), ("frame", "<u4"), ("start", "<u4"), ("length", "<u4")])


@dataclass(frozen=True)
class Index:
    """What a pack holds."""

    name: str
    """Digest of its bytes in hex, which names it and its pack."""
    image: str
    """Name of the image that it was stored for."""
    frames: NDArray[np.void]
    entries: NDArray[np.void]

    @property
    def pack_bytes(self) -> int:
        """How long the pack must be."""
        return int(self.frames["start"][-1] + self.frames["stored"][-1]) if len(self.frames) else 0


def index_bytes(image: str, frames: NDArray[np.void], entries: NDArray[np.void]) -> bytes:
    """An index as it is stored."""
    name = image.encode()
    head = _HEAD.pack(_MAGIC, VERSION, len(name), len(frames), len(entries))
    return head + name + frames.tobytes() + entries.tobytes()


def parse_index(data: bytes, name: str, source: str) -> Index:
    """Read a stored index.

    Args:
        data: its bytes.
        name: what its digest must be.
        source: where it was read, for messages.

    Raises:
        IntegrityError: it is none, or was damaged.
    """
    if data[:4] != _MAGIC or hashlib.sha256(data).hexdigest() != name:
        raise IntegrityError(
            f"{source} is no index of a pack, or damaged",
            hint="delete it and its pack, then capture again: what is missing is stored anew; docs/runbooks/clone-failed.md",
        )
    _, version, name_length, frame_count, entry_count = _HEAD.unpack_from(data)
    if version != VERSION:
        raise IntegrityError(f"{source} has version {version}, this program reads {VERSION}", hint="upgrade akidb-pipelines")
    at = _HEAD.size + name_length
    frames = np.frombuffer(data, _FRAMES, frame_count, at)
    entries = np.frombuffer(data, _ENTRIES, entry_count, at + frames.nbytes)
    return Index(name, data[_HEAD.size : at].decode(), frames, entries)


@dataclass(frozen=True)
class Pack:
    """A finished pack."""

    name: str
    data: memoryview
    index: bytes


_Told = list[tuple[int, bytes, int]]
"""Number, digest and length of the blocks of a frame."""


class Packer:
    """Groups blocks into frames and frames into packs. Frames are compressed by a pool; their order is that of the blocks.

    Frames are gathered and packs are put together in mapped memory, not on the heap: what is given back is given back whole.

    Args:
        image: name of the image that they are for.
        pool: compresses.
        pack_bytes: a pack is at most so long.
    """

    def __init__(self, image: str, pool: ThreadPoolExecutor, pack_bytes: int = PACK_BYTES) -> None:
        self._image, self._pool, self._pack_bytes = image, pool, pack_bytes
        self._spare: list[mmap] = []
        self._frame, self._length, self._told = mmap(-1, FRAME_BYTES), 0, _Told()
        self._waiting: deque[tuple[_Told, mmap, Future[bytes]]] = deque()
        self._pack, self._packed, self._frames = mmap(-1, pack_bytes), 0, list[tuple[_Told, int]]()

    def add(self, number: int, digest: bytes, data: bytes | memoryview) -> Iterator[Pack]:
        """Take a block; yields a pack when one is full."""
        if self._length + len(data) > FRAME_BYTES:
            yield from self._close_frame()
        self._frame[self._length : self._length + len(data)] = data
        self._length += len(data)
        self._told.append((number, digest, len(data)))

    def finish(self) -> Iterator[Pack]:
        """Yield what is left."""
        if self._told:
            yield from self._close_frame()
        while self._waiting:
            yield from self._settle()
        if self._frames:
            yield self._close_pack()

    def _close_frame(self) -> Iterator[Pack]:
        self._waiting.append((self._told, self._frame, self._pool.submit(_compressed, memoryview(self._frame)[: self._length])))
        # Two frames under way keep two cores busy; a few more make up for unequal ones.
        while len(self._waiting) > 4:
            yield from self._settle()
        self._frame = self._spare.pop() if self._spare else mmap(-1, FRAME_BYTES)
        self._length, self._told = 0, []

    def _settle(self) -> Iterator[Pack]:
        told, buffer, future = self._waiting.popleft()
        frame = future.result()
        self._spare.append(buffer)
        if self._packed + len(frame) > len(self._pack):
            if self._frames:
                yield self._close_pack()
            if len(frame) > len(self._pack):  # a frame that does not compress, and packs made very small
                self._pack = mmap(-1, len(frame))
        self._pack[self._packed : self._packed + len(frame)] = frame
        self._packed += len(frame)
        self._frames.append((told, len(frame)))

    def _close_pack(self) -> Pack:
        frames = np.zeros(len(self._frames), _FRAMES)
        entries = np.zeros(sum(len(told) for told, _ in self._frames), _ENTRIES)
        at = row = 0
        for n, (told, stored) in enumerate(self._frames):
            start = 0
            for number, digest, length in told:
                entries[row] = (digest, number, n, start, length)
                start, row = start + length, row + 1
            frames[n] = (at, stored, start)
            at += stored
        data = memoryview(self._pack)[: self._packed]
        self._pack, self._packed, self._frames = mmap(-1, self._pack_bytes), 0, []
        index = index_bytes(self._image, frames, entries)
        return Pack(hashlib.sha256(index).hexdigest(), data, index)


_THREAD = local()


def _compressed(blocks: memoryview) -> bytes:
    if not hasattr(_THREAD, "compressor"):
        _THREAD.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    return bytes(_THREAD.compressor.compress(blocks))


def decompressed(frame: bytes | memoryview, length: int, source: str) -> bytes:
    """A frame's blocks.

    Raises:
        IntegrityError: it is damaged.
    """
    if not hasattr(_THREAD, "decompressor"):
        _THREAD.decompressor = zstandard.ZstdDecompressor()
    try:
        # Asked first: what a damaged header promises would be allocated.
        if (promised := zstandard.frame_content_size(frame)) != length:
            raise damaged(source, f"{promised} bytes where {length} should be")
        return bytes(_THREAD.decompressor.decompress(frame, max_output_size=length))
    except zstandard.ZstdError as error:
        raise damaged(source, str(error)) from error


def damaged(source: str, found: str) -> IntegrityError:
    """What to tell of a pack whose bytes are not what they were."""
    return IntegrityError(
        f"{source} is damaged: {found}",
        hint="delete that pack and its index, then capture the device again: what is missing is stored anew; docs/runbooks/clone-failed.md",
    )


@dataclass(frozen=True)
class Place:
    """Where a frame lies, and which blocks of it are wanted."""

    pack: str
    """Its name."""
    start: int
    stored_bytes: int
    length: int
    blocks: tuple[tuple[int, bytes, int, int], ...]
    """Row in the table, digest, offset in the frame, length."""


class BlockTable:
    """Finds blocks by digest among many packs.

    Args:
        indexes: of packs; where a block lies in several, the earlier of these is taken.
    """

    def __init__(self, indexes: Sequence[Index] = ()) -> None:
        self._indexes = tuple(indexes)
        self._entries = np.concatenate([i.entries for i in indexes]) if indexes else np.zeros(0, _ENTRIES)
        self._pack = np.repeat(np.arange(len(self._indexes), dtype=np.uint32), [len(i.entries) for i in self._indexes])
        # Sorted by the first eight bytes of the digest; a stable sort keeps the order of packs.
        keys = _keys(self._entries["digest"])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def __len__(self) -> int:
        return len(self._entries)

    def rows(self, digests: NDArray[np.void]) -> NDArray[np.int64]:
        """The row of each digest, or -1. `digests` are V32."""
        found = np.full(len(digests), -1, np.int64)
        for start in range(0, len(digests) if len(self._keys) else 0, _LOOKUP):
            self._look_up(digests[start : start + _LOOKUP], found[start : start + _LOOKUP])
        return found

    def _look_up(self, wanted: NDArray[np.void], found: NDArray[np.int64]) -> None:
        words = _words(wanted)
        at = np.searchsorted(self._keys, words[:, 0])
        waiting = np.flatnonzero(at < len(self._keys))
        # Nearly always one look is enough; two digests that begin alike need more.
        while len(waiting):
            rows = self._order[at[waiting]]
            same_key = self._keys[at[waiting]] == words[waiting, 0]
            same = same_key & (_words(self._entries["digest"][rows]) == words[waiting]).all(axis=1)
            found[waiting[same]] = rows[same]
            waiting = waiting[same_key & ~same]
            at[waiting] += 1
            waiting = waiting[at[waiting] < len(self._keys)]

    def has(self, digests: NDArray[np.void]) -> NDArray[np.bool_]:
        """Whether each digest lies in a pack."""
        return self.rows(digests) >= 0

    def packs_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The number of the pack of each row."""
        return self._pack[rows]

    def lengths_of(self, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Bytes of the block of each row."""
        return self._entries["length"][rows]

    def entry(self, row: int) -> tuple[int, bytes]:
        """The number that a row's block had when it was stored, and its digest."""
        return int(self._entries["number"][row]), self._entries["digest"][row].tobytes()

    def places(self, rows: NDArray[np.int64]) -> Iterator[Place]:
        """Where the blocks of some rows lie, frame by frame, pack by pack; each row once."""
        rows = np.unique(rows)
        entries = self._entries[rows]
        order = np.lexsort((entries["start"], entries["frame"], self._pack[rows]))
        rows, entries = rows[order], entries[order]
        packs, frames = self._pack[rows], entries["frame"]
        cuts = np.flatnonzero((np.diff(packs.astype(np.int64)) != 0) | (np.diff(frames.astype(np.int64)) != 0)) + 1
        for part in np.split(np.arange(len(rows)), cuts) if len(rows) else ():
            index = self._indexes[packs[part[0]]]
            start, stored, length = (int(x) for x in index.frames[frames[part[0]]])
            told = zip(rows[part].tolist(), entries[part], strict=True)
            blocks = tuple((row, e["digest"].tobytes(), int(e["start"]), int(e["length"])) for row, e in told)
            yield Place(index.name, start, stored, length, blocks)


def digests_of(array: bytes | bytearray) -> NDArray[np.void]:
    """An array of digests as numpy has it: the same memory."""
    return np.frombuffer(array, "V32")


def _keys(digests: NDArray[np.void]) -> NDArray[np.uint64]:
    return _words(digests)[:, 0]


def _words(digests: NDArray[np.void]) -> NDArray[np.uint64]:
    return np.frombuffer(digests.tobytes(), ">u8").reshape(-1, 4).astype(np.uint64)


def merged(places: Iterable[Place], most_bytes: int) -> Iterator[list[Place]]:
    """Frames that lie one behind the other in a pack, in runs of at most so many bytes: one read each."""
    run: list[Place] = []
    for place in places:
        last = run[-1] if run else None
        adjoins = last and last.pack == place.pack and last.start + last.stored_bytes == place.start
        if run and not (adjoins and place.start + place.stored_bytes - run[0].start <= most_bytes):
            yield run
            run = []
        run.append(place)
    if run:
        yield run
