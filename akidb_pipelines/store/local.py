"""A folder as an object store. New objects appear by `link`, which fails if the name is taken; pointers change under a lock."""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from akidb_pipelines.errors import InputError
from akidb_pipelines.files import BLOCK_BYTES, sweep, sync_folder, temporary_prefix, write_whole
from akidb_pipelines.store.objects import (
    AlreadyExistsError,
    Moved,
    ObjectInfo,
    SwapError,
    Upload,
    missing,
    no_tiers,
    other_digest,
    unreachable,
    untold,
)

_INCOMING = ".incoming-"


class LocalStore:
    """Objects as files below one folder.

    Args:
        root: made when first written to.
        private: whether only its owner may look into it.
    """

    def __init__(self, root: Path, *, private: bool = False) -> None:
        self.root = root
        self._mode = 0o700 if private else 0o777
        self.url = f"file://{root}"

    def prepare(self, *, versioned: bool) -> None:
        """See ObjectStore: a folder keeps no versions."""
        with self._telling("making the folder"):
            self._make()

    def _make(self) -> None:
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(mode=self._mode, exist_ok=True)
        if self._mode == 0o700 and self.root.stat().st_mode & 0o077:
            self.root.chmod(self._mode)

    def create(self, key: str, source: Path | bytes | memoryview, *, sha256: str = "", moved: Moved = untold) -> None:
        """See ObjectStore."""
        target = self._path(key)
        with self._telling(f"storing {key}"):
            self._make()
            target.parent.mkdir(parents=True, exist_ok=True)
            # One folder for all that is being written, so that the next object stored sweeps whatever a dead writer left.
            arriving = self.root / ".incoming"
            arriving.mkdir(exist_ok=True)
            sweep(arriving, _INCOMING)
            incoming = arriving / f"{temporary_prefix(_INCOMING)}{secrets.token_hex(4)}"
            try:
                with incoming.open("wb") as out:
                    found = _write(source, out, moved)
                    out.flush()
                    os.fsync(out.fileno())
                if sha256 and found != sha256:
                    raise other_digest(str(source) if isinstance(source, Path) else key, found, sha256)
                incoming.chmod(0o444)
                try:
                    os.link(incoming, target)
                except FileExistsError:
                    if not filecmp.cmp(incoming, target, shallow=False):
                        raise AlreadyExistsError(
                            f"store {self.url}: {key} exists and holds other bytes", hint="stored objects never change"
                        ) from None
            finally:
                incoming.unlink(missing_ok=True)
            sync_folder(target.parent)

    def swap(self, key: str, data: bytes, expected: bytes | None) -> None:
        """See ObjectStore."""
        target = self._path(key)
        with self._telling(f"changing {key}"):
            self._make()
            target.parent.mkdir(parents=True, exist_ok=True)
            with (target.parent / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if (target.read_bytes() if target.exists() else None) != expected:
                    raise SwapError(f"store {self.url}: {key} was changed by someone else meanwhile", hint="try again")
                write_whole(target, data)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """See ObjectStore."""
        with self._telling(f"reading {key}"), self._open(key) as source:
            source.seek(start)
            return source.read(-1 if length is None else length)

    def fetch(self, key: str, target: Path, *, sha256: str, size_bytes: int, moved: Moved = untold) -> None:
        """See ObjectStore."""
        with self._telling(f"fetching {key}"), self._open(key) as source, target.open("wb") as out:
            found = _copy(source, out, moved)
        if found != sha256:
            raise other_digest(f"{key} in {self.url}", found, sha256)

    def stat(self, key: str) -> ObjectInfo | None:
        """See ObjectStore."""
        with self._telling(f"looking at {key}"):
            path = self._path(key)
            return self._info(path) if path.is_file() else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        with self._telling(f"listing {prefix}"):
            folder = self.root / Path(prefix).parent if not prefix.endswith("/") else self.root / prefix
            paths = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
            found = [self._info(p) for p in paths]
        yield from (info for info in found if info.key.startswith(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore."""
        for key in keys:
            with self._telling(f"deleting {key}"):
                self._path(key).unlink(missing_ok=True)

    def unfinished(self) -> Iterator[Upload]:
        """See ObjectStore: here the next object stored sweeps them."""
        return iter(())

    def abort(self, upload: Upload) -> None:
        """See ObjectStore."""

    def archive(self, key: str) -> None:
        """See ObjectStore."""
        raise no_tiers(self.url)

    def restore(self, key: str, days: int) -> None:
        """See ObjectStore."""
        raise no_tiers(self.url)

    def _path(self, key: str) -> Path:
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise InputError(f"store {self.url}: {key!r} is no key")
        return self.root / key

    def _open(self, key: str) -> BinaryIO:
        try:
            return self._path(key).open("rb")
        except FileNotFoundError:
            raise missing(self.url, key) from None

    def _info(self, path: Path) -> ObjectInfo:
        found = path.stat()
        return ObjectInfo(path.relative_to(self.root).as_posix(), found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    @contextmanager
    def _telling(self, tried: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unreachable(self.url, tried, error) from error


def _write(source: Path | bytes | memoryview, out: BinaryIO, moved: Moved) -> str:
    """Write everything; returns the digest of what was written."""
    if isinstance(source, Path):
        with source.open("rb") as data:
            return _copy(data, out, moved)
    out.write(source)
    moved(len(source))
    return hashlib.sha256(source).hexdigest()


def _copy(source: BinaryIO, out: BinaryIO, moved: Moved) -> str:
    """Copy everything; returns the digest of what was copied."""
    digest = hashlib.sha256()
    while block := source.read(BLOCK_BYTES):
        digest.update(block)
        out.write(block)
        moved(len(block))
    return digest.hexdigest()
