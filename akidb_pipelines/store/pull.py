"""Copying a release into a folder: from the cache what was pulled before, from the store the rest, every byte verified on the way.

    $AKIDB_HOME/cache/artifacts/blobs/sha256/ab/<hex>     contents, as in the store
    $AKIDB_HOME/cache/artifacts/manifests/<hex>.json      manifests of the releases that were pulled last
    $AKIDB_HOME/cache/pulled/<hex>.json                   what lies in a folder that was pulled into, and when it was last verified

The cache makes a pull by digest work without network: who names the manifest's digest needs no signature. It is a copy, not a link, because
AkiDB writes to the databases that engineers open.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from akidb_pipelines.errors import CheckError, InputError, IntegrityError, OutsideError
from akidb_pipelines.files import digest_file, sweep, sync_folder, temporary_prefix, write_whole
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.store.index import LATEST, Entry, Index, known_channel
from akidb_pipelines.store.local import LocalStore
from akidb_pipelines.store.manifest import ReleaseFile, ReleaseManifest, blob_key, parse_release_manifest
from akidb_pipelines.store.objects import MissingObjectError, unreachable
from akidb_pipelines.store.registry import Registry

_PULLING = ".pulling-"
_KEPT = 4
"""So many releases stay in the cache."""


@dataclass(frozen=True)
class Wanted:
    """Which release is asked for: the newest revision of a name, a manifest's digest, or else a channel's head."""

    kind: str
    channel: str = LATEST
    name: str = ""
    manifest_sha256: str = ""


@dataclass(frozen=True)
class Pulled:
    """What a pull brought."""

    manifest: ReleaseManifest
    id: str
    """`2026-W47/r1`; of a release that came from the cache without network, the name alone."""
    paths: tuple[Path, ...]
    fetched_bytes: int
    """What had to come from the store."""
    offline: str = ""
    """Why the registry was not asked; empty if it was."""


class Puller:
    """Pulls releases of a registry.

    Args:
        registry: where from.
        cache: folder of the cache; made when needed.
    """

    def __init__(self, registry: Registry, cache: Path) -> None:
        self._registry = registry
        self._cache = LocalStore(cache / "artifacts")
        self._stamps = cache / "pulled"

    def pull(self, wanted: Wanted, folder: Path, report: Report = lambda _: None) -> Pulled:
        """Bring a release into a folder. All files are there and verified before the first gets its name, manifests last; files that are
        right already stay.

        Raises:
            InputError: there is no such release.
            IntegrityError: something is not what the signed metadata names; the folder is as it was.
            CheckError: the release was revoked.
            OutsideError: the registry cannot be reached, or the folder cannot be written.
        """
        try:
            entry, offline = _choose(self._registry.index(), wanted), ""
        except OutsideError as error:
            if not wanted.manifest_sha256 or not self._has(wanted.manifest_sha256):
                raise
            entry, offline = None, error.message
        if entry is None:
            manifest = self._cached_manifest(wanted.manifest_sha256)
            id_ = manifest.name
        else:
            manifest, id_ = self._manifest(entry), str(entry.version)
        paths, fetched = self.place(manifest, id_, folder, report)
        if entry is not None:
            self._keep(manifest)
        return Pulled(manifest, id_, paths, fetched, offline)

    # --- manifests

    def _manifest(self, entry: Entry) -> ReleaseManifest:
        """A release's manifest, with its provenance: from the cache if both were verified before."""
        if self._has(entry.manifest_sha256):
            return self._cached_manifest(entry.manifest_sha256)
        release = self._registry.release(entry)
        self._registry.check_provenance(entry, release)
        return release.manifest

    def _has(self, sha256: str) -> bool:
        return self._cache.stat(_manifest_key(sha256)) is not None

    def _cached_manifest(self, sha256: str) -> ReleaseManifest:
        data = self._cache.read(_manifest_key(sha256))
        if hashlib.sha256(data).hexdigest() != sha256:
            self._cache.delete([_manifest_key(sha256)])
            raise IntegrityError(
                f"cache {self._cache.url}: the manifest {sha256[:16]} is damaged", hint="it was removed: pull again"
            )
        return parse_release_manifest(data, f"{self._cache.url}/{_manifest_key(sha256)}")

    # --- files

    def place(
        self, manifest: ReleaseManifest, id_: str, folder: Path, report: Report = lambda _: None
    ) -> tuple[tuple[Path, ...], int]:
        """Bring the files of a verified manifest into a folder, see `pull`; returns their paths and how much came from the store."""
        arrived: list[tuple[Path, Path]] = []
        fetched = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder, _PULLING)
            stamps = _Stamps(self._stamps, folder)
            for file in manifest.files:
                target = folder / file.name
                if stamps.is_right(target, file) and not _leftovers(target):
                    continue
                incoming = folder / f"{temporary_prefix(_PULLING)}{file.name}"
                arrived.append((incoming, target))
                fetched += self._bring(file, incoming, report)
            for incoming, target in sorted(arrived, key=lambda pair: pair[1].suffix == ".json"):
                for leftover in _leftovers(target):
                    leftover.unlink(missing_ok=True)
                incoming.replace(target)
            if arrived:
                sync_folder(folder)
            stamps.write(folder, manifest.files)
        except OSError as error:
            raise unreachable(str(folder), f"pulling {id_}", error) from error
        finally:
            for incoming, _ in arrived:
                incoming.unlink(missing_ok=True)
        return tuple(folder / file.name for file in manifest.files), fetched

    def _bring(self, file: ReleaseFile, incoming: Path, report: Report) -> int:
        """Copy a file from the cache, or fetch it from the store; returns how many bytes came from the store."""
        key, done = blob_key(file.sha256), 0

        def moved(count: int) -> None:
            nonlocal done
            done += count
            report(Progress(file.name, done, file.size_bytes, in_bytes=True))

        if self._cache.stat(key):
            try:
                self._cache.fetch(key, incoming, sha256=file.sha256, size_bytes=file.size_bytes, moved=moved)
                return 0
            except (IntegrityError, MissingObjectError):
                self._cache.delete([key])  # damaged here: the store has it whole
                done = 0
        try:
            self._registry.artifacts.fetch(key, incoming, sha256=file.sha256, size_bytes=file.size_bytes, moved=moved)
        except MissingObjectError as error:
            told = f"{file.name}: {error.message}, though the release names it"
            raise IntegrityError(
                told, hint="release the week again: the same bytes fill the gap; docs/runbooks/pull-fails.md"
            ) from error
        self._remember(key, incoming, file)
        return file.size_bytes

    def _remember(self, key: str, path: Path, file: ReleaseFile) -> None:
        try:
            self._cache.create(key, path, sha256=file.sha256)
        except OutsideError:
            return  # no room for a cache is no reason to fail a pull

    # --- the cache

    def _keep(self, manifest: ReleaseManifest) -> None:
        """Remember a release that was pulled, and forget what only earlier ones had."""
        key = _manifest_key(manifest.sha256)
        try:
            self._cache.create(key, manifest.to_json())
            os.utime(self._cache.root / key)
            kept = sorted(self._cache.list("manifests/"), key=lambda info: info.modified_at, reverse=True)
            if len(kept) > _KEPT:
                self._forget([info.key for info in kept[:_KEPT]], [info.key for info in kept[_KEPT:]])
        except (OutsideError, OSError):
            return  # see _remember

    def _forget(self, kept: Iterable[str], gone: Iterable[str]) -> None:
        named = {blob_key(file.sha256) for key in kept for file in parse_release_manifest(self._cache.read(key), key).files}
        self._cache.delete(gone)
        self._cache.delete([info.key for info in self._cache.list("blobs/") if info.key not in named])


def pull_afresh(registry: Registry, wanted: Wanted, work: Path) -> Pulled:
    """Pull as a machine that has seen nothing of the registry but its root, into an empty folder.

    Raises: see Puller.pull.
    """
    root = registry.root()
    root_file = None
    if root is not None:
        root_file = work / "root.json"
        root_file.write_bytes(root)
    stranger = replace(registry, folder=work / "registry", root_file=root_file)
    return Puller(stranger, work / "cache").pull(wanted, work / "pulled")


def _choose(index: Index, wanted: Wanted) -> Entry:
    kind = wanted.kind
    if wanted.manifest_sha256:
        entry = next((e for e in index.of(kind) if e.manifest_sha256 == wanted.manifest_sha256), None)
        if entry is None:
            told = f"no release of {kind} has the manifest digest {wanted.manifest_sha256}"
            raise InputError(told, hint="check the digest; the release may have left retention")
    elif wanted.name:
        entry = index.newest(kind, wanted.name) or index.last(kind, wanted.name)
        if entry is None:
            have = ", ".join(index.names(kind)[-5:]) or "none"
            raise InputError(
                f"{wanted.name} was never released, or has left retention; the newest are {have}",
                hint="pull one of these, or backfill it",
            )
    else:
        head = index.head(kind, known_channel(wanted.channel))
        if head is None and not index.of(kind):
            raise InputError(f"no {kind} were released yet", hint="run `make run`, or check AKIDB_STORE")
        if head is None:
            hint = "pull another channel, or: akidb-pipelines registry promote RELEASE"
            raise InputError(f"channel {wanted.channel} of {kind} points at nothing yet", hint=hint)
        entry = index.get(kind, head.version)
    if entry.revoked:
        raise CheckError(f"{entry.version} was revoked: {entry.revoked}", hint="pull the channel, or another week")
    return entry


def _manifest_key(sha256: str) -> str:
    return f"manifests/{sha256}.json"


def _leftovers(target: Path) -> list[Path]:
    """What a program that died left beside a database: SQLite would read it as part of the next one."""
    if target.suffix != ".db":
        return []
    found = (target.with_name(target.name + ending) for ending in ("-wal", "-shm", "-journal"))
    return [path for path in found if path.exists()]


class _Stamps:
    """What lies in a folder as it was when last verified, so that a file that nobody touched is not read again.

    A stamp holds size, inode and times of modification and change; the last cannot be set by a program. Whoever wants every byte read uses
    `akidb-pipelines fixtures verify`.
    """

    def __init__(self, folder: Path, of: Path) -> None:
        self._path = folder / f"{hashlib.sha256(str(of.resolve()).encode()).hexdigest()[:32]}.json"
        self._stamps: dict[str, list[object]] = {}
        self._right: dict[str, list[object]] = {}
        try:
            read = json.loads(self._path.read_bytes())
            self._stamps = read if isinstance(read, dict) else {}
        except (OSError, ValueError):
            return  # none, or damaged: every file is read

    def is_right(self, path: Path, file: ReleaseFile) -> bool:
        try:
            stamp = _stamp(path, file)
            right = stamp == self._stamps.get(file.name) or (stamp[0] == file.size_bytes and digest_file(path) == file.sha256)
        except OSError:
            return False
        if right:
            # The stamp from before the file was read: a change while it was read must show the next time.
            self._right[file.name] = stamp
        return right

    def write(self, folder: Path, files: Iterable[ReleaseFile]) -> None:
        """Keep the stamps of files that were just found right, or have just arrived."""
        stamps = {file.name: self._right.get(file.name) or _stamp(folder / file.name, file) for file in files}
        if stamps != self._stamps:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self._path, json.dumps(stamps).encode())
            except OSError:
                return  # the next pull reads the files again


def _stamp(path: Path, file: ReleaseFile) -> list[object]:
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, file.sha256]
