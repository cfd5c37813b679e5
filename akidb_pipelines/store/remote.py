"""What every server behind HTTP needs, once: conditional writes that survive a lost answer, verified reads, uploads that are resumed.

`RemoteStore` fulfils ObjectStore on top of a `Bucket`, the few calls that S3 and OCI both have. What belongs into a Bucket: one request a
verb, and the translation of its SDK's errors. What belongs here: what to make of the answers. The facts behind it:

- A write that was committed and whose answer got lost is repeated by the SDK, and then *refused* by its own success: so after a refusal
  we look whether the object is ours (length and digest).
- A flipped bit in an answer goes unnoticed by either SDK: so every byte that is read has its digest compared.
- A stream that was cut raises and is not repeated by the SDKs: so we start it anew.
- The digest stands in our own metadata. An ETag is only ever compared with itself.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from akidb_pipelines.errors import IntegrityError, OutsideError
from akidb_pipelines.files import digest_file
from akidb_pipelines.store.objects import (
    AlreadyExistsError,
    MissingObjectError,
    Moved,
    ObjectInfo,
    SwapError,
    Upload,
    missing,
    other_digest,
    unreachable,
    untold,
)
from akidb_pipelines.store.transfer import PART_BYTES, Part, parts_of, receive, send

T = TypeVar("T")

_READS = 4
"""How often a cut stream is started anew."""


class RefusedError(Exception):
    """The server refused a conditional write, or knows nothing of an upload any more: what is there must be looked at."""


class CutError(Exception):
    """An answer ended before its length, or could not be read to its end."""


@dataclass(frozen=True)
class Head:
    """An object's description with the server's own mark of its content."""

    info: ObjectInfo
    etag: str
    nonce: str = ""
    """Of the write that made it."""


@dataclass(frozen=True)
class StoredPart:
    """A part that the server has of an unfinished upload."""

    number: int
    size_bytes: int
    etag: str
    md5: str
    """In hex, as the server computed it; empty where it does not say."""


class Bucket(Protocol):
    """One request a verb. All raise OutsideError with a hint when the server refuses or cannot be reached after the SDK's retries."""

    url: str

    def put(self, key: str, data: bytes, sha256: str, *, absent: bool = False, etag: str = "", nonce: str = "") -> None:
        """Store bytes, whose digest the server checks, only if the key is absent or has an etag.

        Args:
            sha256, nonce: kept with the object.

        Raises:
            RefusedError: the condition does not hold.
        """
        ...

    def get(self, key: str, start: int, length: int | None) -> tuple[bytes, str]:
        """A range of an object, and its etag.

        Raises:
            MissingObjectError, ArchivedError, CutError.
        """
        ...

    def get_into(self, key: str, start: int, view: memoryview) -> None:
        """Fill a view from a range of an object.

        Raises:
            MissingObjectError, ArchivedError, CutError.
        """
        ...

    def head(self, key: str) -> Head | None:
        """See ObjectStore.stat."""
        ...

    def prepare(self, *, versioned: bool) -> None:
        """See ObjectStore.prepare."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore.list."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """See ObjectStore.delete."""
        ...

    def begin(self, key: str, sha256: str) -> str:
        """Begin an upload in parts; returns its id."""
        ...

    def uploads(self, prefix: str) -> Iterator[Upload]:
        """Unfinished uploads below a prefix."""
        ...

    def parts(self, upload: Upload) -> tuple[StoredPart, ...]:
        """What the server has of an unfinished upload.

        Raises:
            RefusedError: it is gone.
        """
        ...

    def put_part(self, upload: Upload, number: int, data: bytearray) -> StoredPart:
        """Store a part, whose digest the server checks.

        Raises:
            RefusedError: the upload is gone.
        """
        ...

    def commit(self, upload: Upload, parts: Sequence[StoredPart]) -> None:
        """Make the object of its parts, only if the key is absent.

        Raises:
            RefusedError: the key is taken, or the upload is gone.
        """
        ...

    def abort(self, upload: Upload) -> None:
        """See ObjectStore.abort."""
        ...

    def archive(self, key: str) -> None:
        """See ObjectStore.archive."""
        ...

    def restore(self, key: str, days: int) -> None:
        """See ObjectStore.restore."""
        ...


class RemoteStore:
    """An area in a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.url = bucket.url

    def prepare(self, *, versioned: bool) -> None:
        """See ObjectStore."""
        self.bucket.prepare(versioned=versioned)

    # --- writing

    def create(self, key: str, source: Path | bytes | memoryview, *, sha256: str = "", moved: Moved = untold) -> None:
        """See ObjectStore."""
        try:
            if isinstance(source, Path) and (size := source.stat().st_size) > PART_BYTES:
                self._create_in_parts(key, source, size, sha256, moved)
                return
            data = source.read_bytes() if isinstance(source, Path) else bytes(source)
        except OSError as error:
            raise unreachable(self.url, f"storing {key} from {source if isinstance(source, Path) else 'memory'}", error) from error
        found = hashlib.sha256(data).hexdigest()
        if sha256 and found != sha256:
            raise other_digest(str(source) if isinstance(source, Path) else key, found, sha256)
        try:
            self.bucket.put(key, data, found, absent=True)
        except RefusedError:
            self._expect_ours(key, len(data), found)
        except OutsideError:
            # Perhaps only the answer was lost, at every try.
            if not self._is_ours(key, len(data), found):
                raise
        moved(len(data))

    def _create_in_parts(self, key: str, path: Path, size: int, sha256: str, moved: Moved) -> None:
        sha256 = sha256 or digest_file(path)
        if self.bucket.head(key):
            # Not worth sending again what would be refused at its end.
            self._expect_ours(key, size, sha256)
            moved(size)
            return
        upload, stored = self._resume(key, sha256)
        done: dict[int, StoredPart] = {}

        def put(part: Part, data: bytearray) -> None:
            had = stored.get(part.number)
            if had and had.size_bytes == part.length and had.md5 == hashlib.md5(data, usedforsecurity=False).hexdigest():
                done[part.number] = had
            else:
                done[part.number] = self.bucket.put_part(upload, part.number, data)

        try:
            with path.open("rb") as source:
                found = send(source, parts_of(size), put, moved)
            if found != sha256:
                self.bucket.abort(upload)
                raise other_digest(str(path), found, sha256)
            self.bucket.commit(upload, [done[n] for n in sorted(done)])
        except RefusedError:
            self._expect_ours(key, size, sha256)
            self.bucket.abort(upload)
        except OutsideError:
            if not self._is_ours(key, size, sha256):
                raise
        # The parts' digests were checked by the server; that they were put together as meant, we look at ourselves.
        self._expect_ours(key, size, sha256)

    def _resume(self, key: str, sha256: str) -> tuple[Upload, dict[int, StoredPart]]:
        """An unfinished upload of a key with what the server has of it, or a new one."""
        for upload in self.bucket.uploads(key):
            if upload.key == key:
                try:
                    return upload, {p.number: p for p in self.bucket.parts(upload)}
                except RefusedError:
                    continue  # finished or aborted just now
        id_ = self.bucket.begin(key, sha256)
        return Upload(key, id_, datetime.now(UTC)), {}

    def _is_ours(self, key: str, size: int, sha256: str) -> bool:
        try:
            head = self.bucket.head(key)
            return head is not None and head.info.size_bytes == size and self._sha256(head.info) == sha256
        except OutsideError:
            return False

    def _expect_ours(self, key: str, size: int, sha256: str) -> None:
        head = self.bucket.head(key)
        if head is None:
            raise OutsideError(f"store {self.url}: {key} was refused and is not there", hint="another writer deleted it: try again")
        if head.info.size_bytes != size or self._sha256(head.info) != sha256:
            raise AlreadyExistsError(f"store {self.url}: {key} exists and holds other bytes", hint="stored objects never change")

    def _sha256(self, info: ObjectInfo) -> str:
        """The digest that stands beside an object; of one that somebody else stored, computed."""
        if info.sha256:
            return info.sha256
        return hashlib.sha256(self.read(info.key)).hexdigest()

    def swap(self, key: str, data: bytes, expected: bytes | None) -> None:
        """See ObjectStore."""
        held, etag = self._held(key)
        if held != expected:
            raise self._lost(key)
        sha256, nonce = hashlib.sha256(data).hexdigest(), secrets.token_hex(8)
        try:
            self.bucket.put(key, data, sha256, absent=held is None, etag=etag, nonce=nonce)
        except (RefusedError, OutsideError) as error:
            # The nonce tells our own success from that of another who wrote the same bytes.
            head = self.bucket.head(key)
            if head and head.nonce == nonce:
                return
            if isinstance(error, RefusedError):
                raise self._lost(key) from None
            raise

    def _held(self, key: str) -> tuple[bytes | None, str]:
        try:
            return self._read(key, 0, None)
        except MissingObjectError:
            return None, ""

    def _lost(self, key: str) -> SwapError:
        return SwapError(f"store {self.url}: {key} was changed by someone else meanwhile", hint="try again")

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore."""
        if listed := list(keys):
            self.bucket.delete(listed)

    # --- reading

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See ObjectStore."""
        return self._read(key, start, length)[0]

    def _read(self, key: str, start: int, length: int | None) -> tuple[bytes, str]:
        try:
            return _anew(lambda: self.bucket.get(key, start, length))
        except CutError as error:
            raise self._cut(key, error) from error

    def fetch(self, key: str, target: Path, *, sha256: str, size_bytes: int, moved: Moved = untold) -> None:
        """See ObjectStore."""

        def get(part: Part, view: memoryview) -> None:
            try:
                _anew(lambda: self.bucket.get_into(key, part.start, view))
            except CutError as error:
                # Cut at every try: is it the connection, or is the object shorter than it should be?
                head = self.bucket.head(key)
                if head and head.info.size_bytes != size_bytes:
                    told = f"{key} in {self.url} has {head.info.size_bytes} bytes, its manifest says {size_bytes}"
                    raise IntegrityError(told, hint="delete it, release it again (runbooks/pull-fails.md)") from error
                raise self._cut(key, error) from error

        try:
            if size_bytes == 0 and self.bucket.head(key) is None:
                raise missing(self.url, key)
            found = receive(target, parts_of(size_bytes), get, moved)
        except OSError as error:
            raise unreachable(str(target.parent), f"fetching {key}", error) from error
        if found != sha256:
            raise other_digest(f"{key} in {self.url}", found, sha256)

    def _cut(self, key: str, error: CutError) -> OutsideError:
        return OutsideError(
            f"store {self.url}: reading {key}: the answer was cut {_READS} times ({error})",
            hint="look at the network and the proxies on the way, then try again",
        )

    def stat(self, key: str) -> ObjectInfo | None:
        """See ObjectStore."""
        head = self.bucket.head(key)
        return head.info if head else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        return self.bucket.list(prefix)

    # --- unfinished uploads, tiers

    def unfinished(self) -> Iterator[Upload]:
        """See ObjectStore."""
        return self.bucket.uploads("")

    def abort(self, upload: Upload) -> None:
        """See ObjectStore."""
        self.bucket.abort(upload)

    def archive(self, key: str) -> None:
        """See ObjectStore."""
        self.bucket.archive(key)

    def restore(self, key: str, days: int) -> None:
        """See ObjectStore."""
        self.bucket.restore(key, days)


def _anew(read: Callable[[], T]) -> T:
    """Read, and start anew when the answer is cut.

    Raises:
        CutError: it was cut each time.
    """
    for _ in range(_READS - 1):
        try:
            return read()
        except CutError:
            continue
    return read()
