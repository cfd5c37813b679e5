"""Taking blocks in: what no pack has yet is compressed, packed and stored, while the caller goes on reading.

Every stage works beside the others with a bounded number of pieces in between. Whatever a killed intake left in packs is known to the next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from akidb_pipelines.errors import IntegrityError
from akidb_pipelines.images.block_store import BlockStore, StoredPack
from akidb_pipelines.images.drives import ZERO
from akidb_pipelines.images.packs import PACK_BYTES, BlockTable, Index, Pack, Packer, digests_of

_UPLOADS = 2
"""So many packs are on their way into the store at once."""
_COMPRESSORS = 2

Blocks = Iterable[tuple[int, bytes, bytes | memoryview]]
"""Number, digest, data. The data is copied."""


class Intake:
    """One intake: within `with`, blocks are put; when it ends without an error, all of them are stored.

    Args:
        blocks: where to.
        name: of what they belong to; stands in the indexes of their packs.
        pack_bytes: see packs.PACK_BYTES.

    Raises:
        IntegrityError: an index is damaged.
    """

    def __init__(self, blocks: BlockStore, name: str, pack_bytes: int = PACK_BYTES) -> None:
        self._blocks, self._name, self._pack_bytes = blocks, name, pack_bytes
        self.known: Sequence[tuple[StoredPack, Index]] = blocks.packs()
        """Every pack that was there at the beginning, newest first."""
        self.table = BlockTable([index for _, index in self.known])
        self.new_bytes = 0
        """Of blocks that no pack had, before compression."""
        self.stored_bytes = 0
        """Of packs and indexes that were written; whole once the intake has ended."""
        self._new: set[bytes] = set()
        self._waiting: deque[Future[int]] = deque()

    def __enter__(self) -> Self:
        self._uploads = ThreadPoolExecutor(_UPLOADS, thread_name_prefix="upload")
        self._compressors = ThreadPoolExecutor(_COMPRESSORS, thread_name_prefix="compress")
        self._packer = Packer(self._name, self._compressors, self._pack_bytes)
        return self

    def put(self, batch: Blocks) -> None:
        """Store those that no pack has."""
        blocks = list(batch)
        if not blocks:
            return
        known = self.table.has(digests_of(b"".join(digest for _, digest, _ in blocks)))
        for (number, digest, data), is_known in zip(blocks, known.tolist(), strict=True):
            if is_known or digest in self._new:
                continue
            self._new.add(digest)
            self.new_bytes += len(data)
            for pack in self._packer.add(number, digest, data):
                self._upload(pack)

    def _upload(self, pack: Pack) -> None:
        while len(self._waiting) >= _UPLOADS:
            self._settle()
        self._waiting.append(self._uploads.submit(self._blocks.put, pack))

    def _settle(self) -> None:
        self.stored_bytes += self._waiting.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                for pack in self._packer.finish():
                    self._upload(pack)
                while self._waiting:
                    self._settle()
        finally:
            self._compressors.shutdown(wait=True, cancel_futures=True)
            self._uploads.shutdown(wait=True)

    def expect_packs(self, digests: bytes | bytearray) -> None:
        """That every older pack which these blocks count on is still there: a sweep of another machine may have been at work.

        Raises:
            IntegrityError: one is gone.
        """
        rows = self.table.rows(digests_of(digests))
        used = {self.known[n][0].name for n in np.unique(self.table.packs_of(rows[rows >= 0])).tolist()}
        gone = used - self._blocks.names()
        if gone:
            raise IntegrityError(
                f"{len(gone)} packs that {self._name} counts on went while it was read, such as {min(gone)[:16]}",
                hint="capture again: what is missing is stored anew",
            )

    def lost(self, digests: bytes | bytearray) -> NDArray[np.int64]:
        """Numbers of those digests that are in no pack, and not of zeros."""
        array = digests_of(digests)
        return np.flatnonzero(~self.table.has(array) & (array != np.void(ZERO)))
