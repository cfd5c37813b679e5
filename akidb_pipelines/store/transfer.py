"""Moving one large object in parts: several at a time, in bounded memory, each byte hashed once on the way.

What belongs here: how parts are cut, read, hashed and handed to threads. What a part is to a server is the business of the back end,
which comes in as a function. Limits of the servers: 10,000 parts an object (S3 and OCI), 5 MiB the smallest part (S3).
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from akidb_pipelines.store.objects import Moved

_MIB = 1 << 20
_MOST_PARTS = 10_000

PART_BYTES = 8 * _MIB
"""As fast as 16 MiB and faster than 32 on two cores (`make bench`), in half the memory."""
WORKERS = 4
"""Three were slower, six no faster."""
_WINDOW = WORKERS + 1
"""Parts in memory: one for each worker, and the one that is being read, or hashed and written."""


@dataclass(frozen=True)
class Part:
    """A piece of an object."""

    number: int
    """From 1."""
    start: int
    length: int


def parts_of(size_bytes: int) -> list[Part]:
    """Cut an object of a size. The same size is always cut alike, so that a dead upload can be resumed by another process."""
    step = max(PART_BYTES, -(-size_bytes // (_MOST_PARTS * _MIB)) * _MIB)
    return [Part(n + 1, start, min(step, size_bytes - start)) for n, start in enumerate(range(0, size_bytes, step))]


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """Threads that end with their work; after an error what has not begun is dropped, what has is waited for."""
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="transfer")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def send(source: BufferedReader, parts: list[Part], put: Callable[[Part, bytearray], None], moved: Moved) -> str:
    """Read a file part by part and hand each to `put`, several at a time. A part's buffer is used again once `put` has returned: new memory
    for each would cost more than reading it. (A bytearray, because botocore makes a file of bytes, and sends that in pieces of 16 KiB.)

    Returns:
        The digest of the whole file as it was read.
    """
    digest = hashlib.sha256()
    largest = max((p.length for p in parts), default=0)
    free = deque(bytearray(largest) for _ in range(min(_WINDOW, len(parts))))
    waiting: deque[tuple[Part, bytearray, Future[None]]] = deque()

    def settle() -> None:
        part, buffer, future = waiting.popleft()
        future.result()
        moved(part.length)
        free.append(buffer)

    with _workers() as pool:
        for part in parts:
            while not free:
                settle()
            buffer = free.popleft()
            view = memoryview(buffer)[: part.length]
            _read_all(source, view)
            digest.update(view)
            data = buffer if part.length == largest else bytearray(view)
            waiting.append((part, buffer, pool.submit(put, part, data)))
        while waiting:
            settle()
    return digest.hexdigest()


def _read_all(source: BufferedReader, view: memoryview) -> None:
    """Fill a view. What a file that shrank meanwhile cannot fill stays as it was: the digest tells."""
    while view and (count := source.readinto(view)):
        view = view[count:]


def receive(target: Path, parts: list[Part], get: Callable[[Part, memoryview], None], moved: Moved) -> str:
    """Fill a file part by part from `get`, several at a time; written and hashed in order.

    Returns:
        The digest of the whole file as it was written.
    """
    digest = hashlib.sha256()
    largest = max((p.length for p in parts), default=0)
    free = deque(bytearray(largest) for _ in range(min(_WINDOW, len(parts))))
    waiting: deque[tuple[Part, bytearray, Future[None]]] = deque()
    with _workers() as pool, target.open("wb", buffering=0) as out:

        def settle() -> None:
            part, buffer, future = waiting.popleft()
            future.result()
            view = memoryview(buffer)[: part.length]
            digest.update(view)
            _write_all(out.fileno(), view)
            moved(part.length)
            free.append(buffer)

        for part in parts:
            while not free:
                settle()
            buffer = free.popleft()
            waiting.append((part, buffer, pool.submit(get, part, memoryview(buffer)[: part.length])))
        while waiting:
            settle()
    return digest.hexdigest()


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]
