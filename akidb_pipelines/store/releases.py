"""Releases: immutable, numbered revisions of named sets of files, and the pointer `latest`.

    artifacts/blobs/sha256/ab/<hex>                             file contents, each once
    artifacts/<kind>/releases/<name>/r<N>/SHA256SUMS            claims the revision
    artifacts/<kind>/releases/<name>/r<N>/manifest.json         makes it a release; the last thing written
    channels/<kind>/latest.json                                 names a release and its manifest's digest

The same bytes again are a no-op; different bytes become the next revision; nothing is overwritten. A publisher that dies leaves blobs
that nothing names, or a claimed revision without a manifest, which readers do not see and the next publisher completes or skips.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from akidb_pipelines.errors import InputError, IntegrityError
from akidb_pipelines.files import digest_file, sweep, sync_folder, temporary_prefix
from akidb_pipelines.store.objects import AlreadyExistsError, MissingObjectError, ObjectStore, SwapError, unreachable

FORMAT = 1
_REVISION = re.compile(r".*/r(\d+)/manifest\.json")
_PULLING = ".pulling-"


@dataclass(frozen=True)
class ReleaseFile:
    """One file of a release."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ReleaseManifest:
    """What a release holds. Says nothing of when or where it was made: the same files have the same manifest."""

    kind: str
    name: str
    files: tuple[ReleaseFile, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)
    """What else identifies it, such as the schema it agrees with."""
    format: int = FORMAT

    def to_json(self) -> bytes:
        """Stable bytes."""
        return (json.dumps(asdict(self), sort_keys=True, indent=2) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Digest of the stable bytes: the identity of the content."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def sums(self) -> bytes:
        """The text of SHA256SUMS, for `sha256sum --check`."""
        return "".join(f"{f.sha256}  {f.name}\n" for f in self.files).encode()

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(f.size_bytes for f in self.files)


def parse_release_manifest(data: bytes, source: str) -> ReleaseManifest:
    """Read a manifest's bytes; `source` names it in messages.

    Raises:
        IntegrityError: it is not one.
    """
    try:
        raw = json.loads(data)
        if raw["format"] != FORMAT:
            raise InputError(f"{source}: format {raw['format']}, this version reads {FORMAT}", hint="upgrade akidb-pipelines")
        files = tuple(ReleaseFile(**f) for f in raw["files"])
        return ReleaseManifest(raw["kind"], raw["name"], files, raw["attributes"])
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{source}: no release manifest: {error!r}", hint="the store is damaged; restore it") from error


@dataclass(frozen=True)
class Release:
    """A published revision."""

    manifest: ReleaseManifest
    revision: int
    created: bool = False
    """Whether this call made it, rather than found the same bytes there."""

    @property
    def id(self) -> str:
        """`2026-W47/r1`."""
        return f"{self.manifest.name}/r{self.revision}"


class Releases:
    """Publishing and reading the releases of one kind.

    Args:
        artifacts: the area of blobs and releases.
        channels: the area of pointers.
        kind: such as `fixtures`.
    """

    def __init__(self, artifacts: ObjectStore, channels: ObjectStore, kind: str) -> None:
        self._artifacts, self._channels, self._kind = artifacts, channels, kind

    # --- publishing

    def publish(self, manifest: ReleaseManifest, folder: Path, report: Callable[[str], None] = lambda _: None) -> Release:
        """Make a release of files in `folder`, or find the one that has the same bytes.

        Raises:
            IntegrityError: a file is not what the manifest says.
            OutsideError: the store cannot be written.
        """
        # Blobs first, also of a release that is there already: releasing again is how a lost blob comes back.
        for file in manifest.files:
            report(file.name)
            self._put_blob(folder / file.name, file)
        newest = self.newest(manifest.name)
        if newest and newest.manifest.sha256 == manifest.sha256:
            self._advance(newest)
            return newest
        revision = newest.revision + 1 if newest else 1
        while True:
            prefix = self._prefix(manifest.name, revision)
            try:
                # The name SHA256SUMS claims the revision; two publishers of different bytes cannot both have it.
                self._artifacts.create(f"{prefix}/SHA256SUMS", manifest.sums)
                self._artifacts.create(f"{prefix}/manifest.json", manifest.to_json())
                break
            except AlreadyExistsError:
                revision += 1
        release = Release(manifest, revision, created=True)
        self._advance(release)
        return release

    def _put_blob(self, path: Path, file: ReleaseFile) -> None:
        key = blob_key(file.sha256)
        there = self._artifacts.stat(key)
        if there and there.size_bytes == file.size_bytes:
            return
        if not path.is_file():
            raise IntegrityError(f"{file.name} is neither in the store nor in {path.parent}", hint="build that profile again")
        found = digest_file(path)
        if found != file.sha256:
            raise IntegrityError(
                f"{path} has digest {found}, its manifest says {file.sha256}",
                hint="the build was changed after it was made: build again",
            )
        self._artifacts.create(key, path)

    def _advance(self, release: Release) -> None:
        """Move `latest` forward to a release, if it is ahead of where it points."""
        key = f"{self._kind}/latest.json"
        while True:
            try:
                held = self._channels.read(key)
            except MissingObjectError:
                held = None
            sequence = 0
            if held is not None:
                pointer = _parse_pointer(held, key)
                if (pointer.name, pointer.revision) >= (release.manifest.name, release.revision):
                    return
                sequence = pointer.sequence
            moved = _Pointer(release.manifest.name, release.revision, release.manifest.sha256, sequence + 1)
            try:
                self._channels.swap(key, moved.to_json(), held)
                return
            except SwapError:
                continue

    # --- reading

    def names(self) -> list[str]:
        """Every name that has a release, in order."""
        prefix = f"{self._kind}/releases/"
        keys = (o.key for o in self._artifacts.list(prefix))
        return sorted({k.removeprefix(prefix).split("/")[0] for k in keys if _REVISION.fullmatch(k)})

    def revisions(self, name: str) -> list[int]:
        """The revisions of a name, in order."""
        keys = (o.key for o in self._artifacts.list(f"{self._kind}/releases/{name}/"))
        return sorted(int(m[1]) for k in keys if (m := _REVISION.fullmatch(k)))

    def newest(self, name: str) -> Release | None:
        """The highest revision of a name, or None."""
        found = self.revisions(name)
        return self.get(name, found[-1]) if found else None

    def get(self, name: str, revision: int) -> Release:
        """One release.

        Raises:
            InputError: there is none.
        """
        key = f"{self._prefix(name, revision)}/manifest.json"
        return Release(parse_release_manifest(self._artifacts.read(key), f"{self._artifacts.url}/{key}"), revision)

    def latest(self) -> Release:
        """What the pointer `latest` names, its manifest verified against the pointer's digest.

        Raises:
            InputError: nothing was released yet.
            IntegrityError: the manifest is not what the pointer says.
        """
        key = f"{self._kind}/latest.json"
        try:
            pointer = _parse_pointer(self._channels.read(key), key)
        except MissingObjectError:
            raise InputError(
                f"store {self._channels.url}: no {self._kind} were released yet", hint="run `make run`, or check AKIDB_STORE"
            ) from None
        release = self.get(pointer.name, pointer.revision)
        if release.manifest.sha256 != pointer.manifest_sha256:
            raise IntegrityError(
                f"{release.id}: the manifest has digest {release.manifest.sha256}, `latest` says {pointer.manifest_sha256}",
                hint="the store was changed by hand: release the week again",
            )
        return release

    def read_file(self, file: ReleaseFile) -> bytes:
        """A small file's content, verified.

        Raises:
            IntegrityError: the store holds other bytes than the manifest says.
        """
        data = self._artifacts.read(blob_key(file.sha256))
        found = hashlib.sha256(data).hexdigest()
        if found != file.sha256:
            raise _damaged(f"{self._artifacts.url}: {file.name}", found, file.sha256)
        return data

    def pull(self, release: Release, folder: Path, report: Callable[[str], None] = lambda _: None) -> list[Path]:
        """Copy a release's files into a folder. All are fetched and verified before the first gets its name, manifests last; files
        that are right already stay.

        Raises:
            IntegrityError: the store holds other bytes than the manifest says; the folder is as it was.
            OutsideError: the folder cannot be written.
        """
        fetched: list[tuple[Path, Path]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder, _PULLING)
            for file in release.manifest.files:
                report(file.name)
                target = folder / file.name
                if target.is_file() and target.stat().st_size == file.size_bytes and digest_file(target) == file.sha256:
                    continue
                incoming = folder / f"{temporary_prefix(_PULLING)}{file.name}"
                fetched.append((incoming, target))
                self._artifacts.fetch(blob_key(file.sha256), incoming)
                found = digest_file(incoming)
                if found != file.sha256:
                    raise _damaged(f"{release.id}: {file.name} in {self._artifacts.url}", found, file.sha256)
            for incoming, target in sorted(fetched, key=lambda pair: pair[1].suffix == ".json"):
                incoming.replace(target)
            sync_folder(folder)
        except OSError as error:
            raise unreachable(str(folder), f"pulling {release.id}", error) from error
        finally:
            for incoming, _ in fetched:
                incoming.unlink(missing_ok=True)
        return [folder / file.name for file in release.manifest.files]

    def _prefix(self, name: str, revision: int) -> str:
        return f"{self._kind}/releases/{name}/r{revision}"


def _damaged(what: str, found: str, expected: str) -> IntegrityError:
    return IntegrityError(
        f"{what} has digest {found}, its manifest says {expected}",
        hint=f"the store was damaged after the release: delete {blob_key(expected)} in it and release the week again",
    )


def blob_key(sha256: str) -> str:
    """Where the bytes of a digest are."""
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def released_file(folder: Path, path: Path) -> ReleaseFile:
    """A file of a folder as a release's entry."""
    return ReleaseFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest_file(path))


def all_releases(releases: Releases) -> Iterator[Release]:
    """Every release of a kind, oldest name first."""
    for name in releases.names():
        for revision in releases.revisions(name):
            yield releases.get(name, revision)


@dataclass(frozen=True)
class _Pointer:
    name: str
    revision: int
    manifest_sha256: str
    sequence: int

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), sort_keys=True) + "\n").encode()


def _parse_pointer(data: bytes, key: str) -> _Pointer:
    try:
        return _Pointer(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise IntegrityError(
            f"{key}: no pointer to a release: {error}", hint="restore it, or release the newest week again"
        ) from error
