"""Packs and indexes in a store: putting them there, finding all of them, reading blocks back verified.

images/packs/ab/<sha256>.pack       written first
images/packs/ab/<sha256>.index      then this; a pack without one does not count yet
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_pipelines.errors import IntegrityError
from akidb_pipelines.files import write_whole
from akidb_pipelines.images.packs import BlockTable, Index, Pack, Place, damaged, decompressed, merged, parse_index
from akidb_pipelines.store.objects import MissingObjectError, ObjectInfo, ObjectStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREFIX = "images/packs/"
_READ_BYTES = 1 << 20
"""Neighbouring frames are read together up to here; decompressed they are some three times as long."""
_WORKERS = 2
_FETCHERS = 8


@dataclass(frozen=True)
class StoredPack:
    """A pack that is whole: it and its index are there."""

    name: str
    pack_bytes: int
    index_bytes: int
    stored_at: datetime
    """Of its index, which came last."""

    @property
    def size_bytes(self) -> int:
        """Of both."""
        return self.pack_bytes + self.index_bytes


@dataclass(frozen=True)
class BlockStore:
    """All packs of a store.

    Args:
        store: area `artifacts`.
        cache: folder for indexes; may be removed at any time.
    """

    store: ObjectStore
    cache: Path

    def put(self, pack: Pack) -> int:
        """Store a pack, then its index; returns the bytes of both.

        Raises:
            OutsideError: the store cannot be written.
        """
        self.store.create(pack_key(pack.name), pack.data)
        self.store.create(index_key(pack.name), pack.index, sha256=pack.name)
        return len(pack.data) + len(pack.index)

    def packs(self) -> list[tuple[StoredPack, Index]]:
        """Every whole pack with its index, newest first. One that was cut short is none: its blocks are stored anew.

        Raises:
            IntegrityError: an index is damaged.
        """
        found = {info.key: info for info in self.store.list(PREFIX)}
        listed = sorted(_whole(found), key=lambda p: (p.stored_at, p.name), reverse=True)
        with ThreadPoolExecutor(_FETCHERS, thread_name_prefix="index") as pool:
            indexes = pool.map(self.index, [p.name for p in listed])
            return [(p, i) for p, i in zip(listed, indexes, strict=True) if i.pack_bytes == p.pack_bytes]

    def names(self) -> set[str]:
        """Of all whole packs, as they are listed now."""
        return {p.name for p in _whole({info.key: info for info in self.store.list(PREFIX)})}

    def halves(self) -> list[ObjectInfo]:
        """Packs without an index, and indexes without a pack: what somebody who was killed has left."""
        found = {info.key: info for info in self.store.list(PREFIX)}
        whole = {p.name for p in _whole(found)}
        return [info for key, info in found.items() if key.rpartition("/")[2].partition(".")[0] not in whole]

    def index(self, name: str) -> Index:
        """The index of a pack.

        Raises:
            IntegrityError: it is damaged.
        """
        kept = self.cache / f"{name}.index"
        try:
            return parse_index(kept.read_bytes(), name, str(kept))
        except (OSError, IntegrityError):
            data = self.store.read(index_key(name))
        index = parse_index(data, name, f"{self.store.url}/{index_key(name)}")
        with suppress(OSError):  # only slower without
            self.cache.mkdir(parents=True, exist_ok=True)
            write_whole(kept, data)
        return index

    def table(self) -> BlockTable:
        """Where every stored block is."""
        return BlockTable([index for _, index in self.packs()])

    def read(
        self, table: BlockTable, rows: NDArray[np.int64], broken: Callable[[IntegrityError], None] | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Read the blocks of some rows, each once, in the order they are stored in; yields row and data, whose digest was compared.

        Args:
            table: in which the rows are.
            rows: which.
            broken: told of what is damaged, which is then left out; by default it is raised.

        Raises:
            IntegrityError: a pack is damaged or gone.
        """

        def blocks(run: list[Place]) -> list[tuple[int, bytes]]:
            try:
                return list(self._blocks(run))
            except IntegrityError as error:
                if broken is None:
                    raise
                broken(error)
                return []

        waiting: deque[Future[list[tuple[int, bytes]]]] = deque()
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="blocks") as pool:
            try:
                for run in merged(table.places(rows), _READ_BYTES):
                    waiting.append(pool.submit(blocks, run))
                    if len(waiting) > _WORKERS:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _blocks(self, run: list[Place]) -> Iterator[tuple[int, bytes]]:
        first, last = run[0], run[-1]
        key = pack_key(first.pack)
        source = f"pack {self.store.url}/{key}"
        try:
            data = self.store.read(key, first.start, last.start + last.stored_bytes - first.start)
        except MissingObjectError as error:
            raise IntegrityError(
                f"{source} is gone",
                hint="capture the device again: what is missing is stored anew; of images that nobody can capture again, restore the pack "
                "from the bucket's backup; docs/runbooks/clone-failed.md",
            ) from error
        view = memoryview(data)
        for place in run:
            start = place.start - first.start
            blocks = decompressed(view[start : start + place.stored_bytes], place.length, source)
            for row, digest, at, length in place.blocks:
                block = blocks[at : at + length]
                if hashlib.sha256(block).digest() != digest:
                    raise damaged(source, f"a block of it has not the digest {digest.hex()[:16]}")
                yield row, block


def _whole(found: dict[str, ObjectInfo]) -> Iterator[StoredPack]:
    for key, info in found.items():
        if key.endswith(".index") and (pack := found.get(f"{key.removesuffix('.index')}.pack")):
            name = key.rpartition("/")[2].removesuffix(".index")
            yield StoredPack(name, pack.size_bytes, info.size_bytes, info.modified_at)


def pack_key(name: str) -> str:
    """Where a pack is."""
    return f"{PREFIX}{name[:2]}/{name}.pack"


def index_key(name: str) -> str:
    """Where the index of a pack is."""
    return f"{PREFIX}{name[:2]}/{name}.index"
