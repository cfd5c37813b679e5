"""A folder as an object store. New objects appear by `link`, which fails if the name is taken; pointers change under a lock."""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from akidb_pipelines.errors import InputError
from akidb_pipelines.files import BLOCK_BYTES, sweep, sync_folder, temporary_prefix, write_whole
from akidb_pipelines.store.objects import AlreadyExistsError, MissingObjectError, ObjectInfo, SwapError, unreachable

_INCOMING = ".incoming-"


class LocalStore:
    """Objects as files below one folder.

    Args:
        root: made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"

    def create(self, key: str, source: Path | bytes) -> None:
        """See ObjectStore."""
        target = self._path(key)
        with self._telling(f"storing {key}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            # One folder for all that is being written, so that the next object stored sweeps whatever a dead writer left.
            arriving = self.root / ".incoming"
            arriving.mkdir(exist_ok=True)
            sweep(arriving, _INCOMING)
            incoming = arriving / f"{temporary_prefix(_INCOMING)}{target.name}"
            try:
                self._write(incoming, source)
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

    @staticmethod
    def _write(path: Path, source: Path | bytes) -> None:
        with path.open("wb") as out:
            if isinstance(source, bytes):
                out.write(source)
            else:
                with source.open("rb") as data:
                    shutil.copyfileobj(data, out, BLOCK_BYTES)
            out.flush()
            os.fsync(out.fileno())
        path.chmod(0o444)

    def swap(self, key: str, data: bytes, expected: bytes | None) -> None:
        """See ObjectStore."""
        target = self._path(key)
        with self._telling(f"changing {key}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with (target.parent / ".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if (target.read_bytes() if target.exists() else None) != expected:
                    raise SwapError(f"store {self.url}: {key} was changed by someone else meanwhile", hint="try again")
                write_whole(target, data)

    def read(self, key: str) -> bytes:
        """See ObjectStore."""
        with self._telling(f"reading {key}"):
            try:
                return self._path(key).read_bytes()
            except FileNotFoundError:
                raise self._missing(key) from None

    def fetch(self, key: str, target: Path) -> None:
        """See ObjectStore."""
        with self._telling(f"fetching {key}"):
            try:
                source = self._path(key).open("rb")
            except FileNotFoundError:
                raise self._missing(key) from None
            with source, target.open("wb") as out:
                shutil.copyfileobj(source, out, BLOCK_BYTES)

    def stat(self, key: str) -> ObjectInfo | None:
        """See ObjectStore."""
        with self._telling(f"looking at {key}"):
            path = self._path(key)
            return ObjectInfo(key, path.stat().st_size) if path.is_file() else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        with self._telling(f"listing {prefix}"):
            folder = self.root / Path(prefix).parent if not prefix.endswith("/") else self.root / prefix
            paths = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith("."))
            found = [(p.relative_to(self.root).as_posix(), p.stat().st_size) for p in paths]
        yield from (ObjectInfo(key, size) for key, size in found if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with self._telling(f"deleting {key}"):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise InputError(f"store {self.url}: {key!r} is no key")
        return self.root / key

    def _missing(self, key: str) -> MissingObjectError:
        return MissingObjectError(f"store {self.url}: there is no {key}", hint="check AKIDB_STORE, or release it first")

    @contextmanager
    def _telling(self, tried: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unreachable(self.url, tried, error) from error
