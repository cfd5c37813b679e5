"""The port that every back end fulfils: few verbs, each whole or not at all.

Keys are relative paths with forward slashes (`blobs/sha256/ab/abcd...`). An area (`artifacts`, `channels`) is a store of its own. What
belongs here is the contract; what an object means is the business of `registry` and `publisher`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from akidb_pipelines.errors import InputError, IntegrityError, OutsideError, PipelineError

Moved = Callable[[int], None]
"""Told how many bytes have just been moved."""


class AlreadyExistsError(PipelineError):
    """The key holds other bytes already; nothing was changed."""


class SwapError(PipelineError):
    """The object is not what the caller last saw; nothing was changed."""


class MissingObjectError(InputError):
    """There is no object of that key."""


class ArchivedError(OutsideError):
    """The object is in an archive tier and must be restored before it can be read."""


class Availability(StrEnum):
    """Whether an object can be read now."""

    READY = "ready"
    ARCHIVED = "archived"
    RESTORING = "restoring"


@dataclass(frozen=True)
class ObjectInfo:
    """What a back end knows of an object without reading it."""

    key: str
    size_bytes: int
    modified_at: datetime
    sha256: str = ""
    """As it was stored with the object; empty where the back end does not keep it, and in listings."""
    availability: Availability = Availability.READY
    """In listings always `ready`: only `stat` asks."""
    etag: str = ""
    """The server's own mark of this content, only ever compared with itself; in listings of S3 and OCI."""
    md5: str = ""
    """In base64, in listings of OCI."""


@dataclass(frozen=True)
class Upload:
    """An upload in parts that was begun and neither finished nor aborted."""

    key: str
    id: str
    begun_at: datetime


class ObjectStore(Protocol):
    """One area of the artifact store.

    Every verb raises OutsideError when the store cannot be reached, refuses permission or has no room.
    """

    url: str

    def prepare(self, *, versioned: bool) -> None:
        """Make the area if there is none yet.

        Args:
            versioned: whether earlier contents of an object are to be kept, where the back end can.

        Raises:
            OutsideError: it cannot be made from here; the hint says how to make it.
        """
        ...

    def create(self, key: str, source: Path | bytes | memoryview, *, sha256: str = "", moved: Moved = ...) -> None:
        """Store an object that must not change any more. The same bytes again are a no-op; an upload in parts that died is resumed.

        Args:
            sha256: what the bytes must have for a digest.

        Raises:
            AlreadyExistsError: the key holds other bytes.
            IntegrityError: the source has another digest; nothing was stored.
        """
        ...

    def swap(self, key: str, data: bytes, expected: bytes | None) -> None:
        """Replace a small object if it still holds `expected` (None: if it is absent).

        Raises:
            SwapError: it holds something else.
        """
        ...

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """A small object's content, or a part of it; what lies past its end is left out.

        Raises:
            MissingObjectError: there is none.
            ArchivedError: it must be restored first.
        """
        ...

    def fetch(self, key: str, target: Path, *, sha256: str, size_bytes: int, moved: Moved = ...) -> None:
        """Copy an object into a file, which is overwritten, and verify every byte on the way.

        Raises:
            MissingObjectError: there is none.
            ArchivedError: it must be restored first.
            IntegrityError: it has another length or digest. The file then holds no use.
        """
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """What is known of an object, or None if there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below a prefix, in any order."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; no error for those that are not there."""
        ...

    def unfinished(self) -> Iterator[Upload]:
        """Uploads in parts that died. They cost room, and are resumed by the next `create` of their key."""
        ...

    def abort(self, upload: Upload) -> None:
        """Give an unfinished upload up; no error if it is gone."""
        ...

    def archive(self, key: str) -> None:
        """Move an object to the cheapest tier, from which it must be restored before it can be read.

        Raises:
            InputError: this back end has no tiers.
        """
        ...

    def restore(self, key: str, days: int) -> None:
        """Ask for an archived object back for some days; `stat` says when it is ready (minutes to hours).

        Raises:
            InputError: this back end has no tiers.
        """
        ...


def untold(_: int) -> None:
    """For transfers whose progress nobody watches."""


def other_digest(what: str, found: str, expected: str) -> IntegrityError:
    """What to tell when bytes were not what their digest says."""
    return IntegrityError(
        f"{what} has digest {found}, its manifest says {expected}",
        hint="try again; the same again means that the stored object is damaged: delete it, release it again (runbooks/pull-fails.md)",
    )


def no_tiers(url: str) -> InputError:
    """What to tell of a back end without storage tiers."""
    return InputError(f"store {url} has no archive tier", hint="archiving needs s3:// or oci://")


def missing(url: str, key: str) -> MissingObjectError:
    """What to tell when there is no object."""
    return MissingObjectError(f"store {url}: there is no {key}", hint="check AKIDB_STORE, or release it first")


def unreachable(url: str, tried: str, error: OSError) -> OutsideError:
    """What to tell when the operating system refuses."""
    hints = {
        28: "the disk is full: free some space",
        30: "the store is mounted read-only: mount it writable, or point AKIDB_STORE elsewhere",
        13: "this user may not: check the owner and mode of the store's folder",
    }
    hint = hints.get(error.errno or 0, "check the store's folder")
    return OutsideError(f"store {url}: {tried}: {error.strerror or error}", hint=f"{hint}; what was released before is untouched")
