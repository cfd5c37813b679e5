"""Packs and their indexes, as bytes: how blocks are grouped, compressed and found again. docs/image-format.md has the format.

    pack    zstd frames, one after the other; each holds up to 1 MiB of blocks and can be read alone
    index   which block lies in which frame, at which offset, with the number that it had when it was stored

A pack is named by its own digest, its index by the pack's name. What belongs here is the format and the table that finds blocks; no store,
no device. Both are written once and never changed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import local

import numpy as np
import zstandard
from numpy.typing import NDArray

from akidb_pipelines.errors import IntegrityError
from akidb_pipelines.images.drives import BLOCK_BYTES, DIGEST_BYTES

FRAME_BYTES = 1 << 20
"""Of blocks in a frame, before compression: what must be read and decompressed to get at one of them."""
PACK_BYTES = 16 << 20
"""A pack is closed once it is so long (64 MiB is the most the format allows). Few are in memory at once: this bounds it."""
LEVEL = 3
"""Of zstd: 340 MB/s a core; higher levels stored a tenth less and took twice as long."""
VERSION = 1

_MAGIC = b"AKIX"
_HEAD = struct.Struct("<4sHHQ32sII")
"""Magic, version, length of the image's name, length of the pack, its digest, frames, entries."""
_FRAMES = np.dtype([("start", "<u4"), ("stored", "<u4"), ("length", "<u4")])
_ENTRIES = np.dtype([("digest", "V32"), ("number", "<u8"), ("frame", "<u4"), ("start", "<u4"), ("length", "<u4")])


@dataclass(frozen=True)
class Index:
    """What a pack holds."""

    image: str
    """Name of the image that it was stored for."""
    pack_sha256: str
    pack_bytes: int
    frames: NDArray[np.void]
    entries: NDArray[np.void]

    def to_bytes(self) -> bytes:
        """The index as it is stored."""
        name = self.image.encode()
        digest = bytes.fromhex(self.pack_sha256)
        head = _HEAD.pack(_MAGIC, VERSION, len(name), self.pack_bytes, digest, len(self.frames), len(self.entries))
        body = head + name + self.frames.tobytes() + self.entries.tobytes()
        return body + hashlib.sha256(body).digest()


def parse_index(data: bytes, source: str) -> Index:
    """Read a stored index.

    Raises:
        IntegrityError: it is none, or was damaged.
    """
    body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if len(data) < _HEAD.size + DIGEST_BYTES or data[:4] != _MAGIC or hashlib.sha256(body).digest() != digest:
        raise IntegrityError(
            f"{source} is no index of a pack, or damaged",
            hint="delete it and its pack, then capture again: what is missing is stored anew; docs/runbooks/clone-failed.md",
        )
    _, version, name_length, pack_bytes, pack, frame_count, entry_count = _HEAD.unpack_from(body)
    if version != VERSION:
        raise IntegrityError(f"{source} has version {version}, this program reads {VERSION}", hint="upgrade akidb-pipelines")
    at = _HEAD.size + name_length
    name = body[_HEAD.size : at].decode()
    frames = np.frombuffer(body, _FRAMES, frame_count, at)
    entries = np.frombuffer(body, _ENTRIES, entry_count, at + frames.nbytes)
    return Index(name, pack.hex(), pack_bytes, frames, entries)


@dataclass(frozen=True)
class Pack:
    """A finished pack."""

    data: bytes
    index: Index


class Packer:
    """Groups blocks into frames and frames into packs. Frames are compressed by a pool; their order is that of the blocks.

    Args:
        image: name of the image that they are for.
        pool: compresses.
        pack_bytes: a pack is closed once it is so long.
    """

    def __init__(self, image: str, pool: ThreadPoolExecutor, pack_bytes: int = PACK_BYTES) -> None:
        self._image, self._pool, self._pack_bytes = image, pool, pack_bytes
        self._blocks: list[tuple[int, bytes, bytes]] = []
        self._length = 0
        self._waiting: list[tuple[list[tuple[int, bytes, int]], Future[bytes]]] = []
        self._frames: list[tuple[list[tuple[int, bytes, int]], bytes]] = []

    def add(self, number: int, digest: bytes, data: bytes) -> Iterator[Pack]:
        """Take a block; yields a pack when one is full."""
        self._blocks.append((number, digest, data))
        self._length += len(data)
        if self._length + BLOCK_BYTES > FRAME_BYTES:
            self._close_frame()
            # Two frames under way keep two cores busy; more would only be memory.
            while len(self._waiting) > 4:
                yield from self._settle()

    def finish(self) -> Iterator[Pack]:
        """Yield what is left."""
        if self._blocks:
            self._close_frame()
        while self._waiting:
            yield from self._settle()
        if self._frames:
            yield self._close_pack()

    def _close_frame(self) -> None:
        blocks, self._blocks, self._length = self._blocks, [], 0
        told = [(number, digest, len(data)) for number, digest, data in blocks]
        self._waiting.append((told, self._pool.submit(_compressed, [data for _, _, data in blocks])))

    def _settle(self) -> Iterator[Pack]:
        told, future = self._waiting.pop(0)
        frame = future.result()
        if self._frames and sum(len(f) for _, f in self._frames) + len(frame) > self._pack_bytes:
            yield self._close_pack()
        self._frames.append((told, frame))

    def _close_pack(self) -> Pack:
        data = b"".join(frame for _, frame in self._frames)
        frames = np.zeros(len(self._frames), _FRAMES)
        entries = np.zeros(sum(len(told) for told, _ in self._frames), _ENTRIES)
        at = row = 0
        for n, (told, frame) in enumerate(self._frames):
            start = 0
            for number, digest, length in told:
                entries[row] = (digest, number, n, start, length)
                start, row = start + length, row + 1
            frames[n] = (at, len(frame), start)
            at += len(frame)
        self._frames = []
        return Pack(data, Index(self._image, hashlib.sha256(data).hexdigest(), len(data), frames, entries))


_THREAD = local()


def _compressed(blocks: list[bytes]) -> bytes:
    if not hasattr(_THREAD, "compressor"):
        _THREAD.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    return bytes(_THREAD.compressor.compress(b"".join(blocks)))


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

    pack_sha256: str
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
        if not len(self._keys):
            return found
        wanted = np.frombuffer(digests.tobytes(), "V32")
        at = np.searchsorted(self._keys, _keys(wanted))
        waiting = np.flatnonzero(at < len(self._keys))
        # Nearly always one look is enough; two digests that begin alike need more.
        while len(waiting):
            rows = self._order[at[waiting]]
            same_key = self._keys[at[waiting]] == _keys(wanted[waiting])
            same = same_key & (_words(self._entries["digest"][rows]) == _words(wanted[waiting])).all(axis=1)
            found[waiting[same]] = rows[same]
            waiting = waiting[same_key & ~same]
            at[waiting] += 1
            waiting = waiting[at[waiting] < len(self._keys)]
        return found

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
            yield Place(index.pack_sha256, start, stored, length, blocks)


def digests_of(array: bytes | bytearray) -> NDArray[np.void]:
    """An array of digests as numpy has it."""
    return np.frombuffer(bytes(array), "V32")


def _keys(digests: NDArray[np.void]) -> NDArray[np.uint64]:
    return _words(digests)[:, 0]


def _words(digests: NDArray[np.void]) -> NDArray[np.uint64]:
    return np.frombuffer(digests.tobytes(), ">u8").reshape(-1, 4).astype(np.uint64)


def merged(places: Iterable[Place], most_bytes: int) -> Iterator[list[Place]]:
    """Frames that lie one behind the other in a pack, in runs of at most so many bytes: one read each."""
    run: list[Place] = []
    for place in places:
        last = run[-1] if run else None
        adjoins = last and last.pack_sha256 == place.pack_sha256 and last.start + last.stored_bytes == place.start
        if run and not (adjoins and place.start + place.stored_bytes - run[0].start <= most_bytes):
            yield run
            run = []
        run.append(place)
    if run:
        yield run
