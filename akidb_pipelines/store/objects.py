"""The port that every back end fulfils: few verbs, each whole or not at all.

Keys are relative paths with forward slashes (`blobs/sha256/ab/abcd...`). An area (`artifacts`, `channels`) is a store of its own. What
belongs here is the contract; what an object means is the business of `releases`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from akidb_pipelines.errors import InputError, OutsideError, PipelineError


class AlreadyExistsError(PipelineError):
    """The key holds other bytes already; nothing was changed."""


class SwapError(PipelineError):
    """The object is not what the caller last saw; nothing was changed."""


class MissingObjectError(InputError):
    """There is no object of that key."""


@dataclass(frozen=True)
class ObjectInfo:
    """What a back end knows of an object without reading it."""

    key: str
    size_bytes: int


class ObjectStore(Protocol):
    """One area of the artifact store.

    Every verb raises OutsideError when the store cannot be reached, refuses permission or has no room.
    """

    url: str

    def create(self, key: str, source: Path | bytes) -> None:
        """Store an object that must not change any more. The same bytes again are a no-op.

        Raises:
            AlreadyExistsError: the key holds other bytes.
        """
        ...

    def swap(self, key: str, data: bytes, expected: bytes | None) -> None:
        """Replace a small object if it still holds `expected` (None: if it is absent).

        Raises:
            SwapError: it holds something else.
        """
        ...

    def read(self, key: str) -> bytes:
        """A small object's content.

        Raises:
            MissingObjectError: there is none.
        """
        ...

    def fetch(self, key: str, target: Path) -> None:
        """Copy an object into a file, which is overwritten. The caller verifies the digest.

        Raises:
            MissingObjectError: there is none.
        """
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """What is known of an object, or None if there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below a prefix, in the order of keys."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; no error if there is none."""
        ...


def unreachable(url: str, tried: str, error: OSError) -> OutsideError:
    """What to tell when the operating system refuses."""
    hints = {
        28: "the disk is full: free some space",
        30: "the store is mounted read-only: mount it writable, or point AKIDB_STORE elsewhere",
        13: "this user may not: check the owner and mode of the store's folder",
    }
    hint = hints.get(error.errno or 0, "check the store's folder")
    return OutsideError(f"store {url}: {tried}: {error.strerror or error}", hint=f"{hint}; what was released before is untouched")
