"""Releasing, and moving channels. Every change is one commit under the lease.

    lease > blobs > SHA256SUMS, manifest (created once) > provenance, N.targets, N.snapshot (created once) > timestamp.json (swapped)

The last step is the only one that readers see. A publisher that dies before it leaves objects that nothing names: the next publisher uses or
skips them, and the garbage collector removes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from akidb_pipelines.errors import CheckError, IntegrityError, PipelineError
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.settings import Settings
from akidb_pipelines.store import metadata
from akidb_pipelines.store.areas import AREAS, area
from akidb_pipelines.store.ceremony import Keeper
from akidb_pipelines.store.editing import Edit
from akidb_pipelines.store.index import LATEST, Change, Entry, Head, Index, Version
from akidb_pipelines.store.keys import open_keys
from akidb_pipelines.store.manifest import Release, ReleaseFile, ReleaseManifest, blob_key, release_key
from akidb_pipelines.store.objects import AlreadyExistsError, MissingObjectError
from akidb_pipelines.store.provenance import Origin, statement
from akidb_pipelines.store.registry import Registry, open_registry


@dataclass(frozen=True)
class Publisher(Keeper):
    """A keeper who releases."""

    # --- releases

    def publish(self, manifest: ReleaseManifest, folder: Path, *, run_id: str = "", report: Report = lambda _: None) -> Release:
        """Make a release of files in `folder`, or find the one that has the same bytes; `latest` moves forward to it.

        Raises:
            IntegrityError: a file is not what the manifest says, or the registry does not verify.
            CheckError: the same bytes were revoked.
            BusyError: another publisher did not finish, or was faster.
            OutsideError: the store cannot be written.
        """
        with self.hold(f"publishing {manifest.kind} {manifest.name}", run_id, report) as held:
            if self.registry.is_local:
                self.ensure_made(held, report)
            edit = Edit(self, held, self.state())
            # Blobs first, also of a release that is there already: releasing again is how a lost blob comes back.
            for file in manifest.files:
                self._put_blob(folder, file, report)
            self._expect_not_revoked(edit.index, manifest)
            last = edit.index.last(manifest.kind, manifest.name)
            if last and last.manifest_sha256 == manifest.sha256:
                self._found_again(edit, manifest, last)
                return Release(manifest, last.version.revision)
            entry = self._put_release(manifest, last.version.revision + 1 if last else 1, run_id)
            report(Progress("committing"))
            edit.commit(edit.index.with_entry(entry).advanced(LATEST, entry, entry.published_at, f"released {entry.version}"))
            return Release(manifest, entry.version.revision, created=True)

    @staticmethod
    def _expect_not_revoked(index: Index, manifest: ReleaseManifest) -> None:
        for entry in index.of(manifest.kind):
            if entry.revoked and entry.manifest_sha256 == manifest.sha256:
                raise CheckError(
                    f"{entry.version} has these very bytes and was revoked: {entry.revoked}",
                    hint="correct what it was revoked for, then build and release again",
                )

    def _found_again(self, edit: Edit, manifest: ReleaseManifest, entry: Entry) -> None:
        """Nothing to release; but what was lost of it is put right, and metadata that ends soon is renewed."""
        try:
            self._put_claim(manifest, entry.version.revision)
        except AlreadyExistsError as error:
            raise IntegrityError(
                f"{entry.version} is damaged: {error.message}", hint="delete that object, then release again"
            ) from error
        self._restore_provenance(entry)
        index = edit.index.with_entry(replace(entry, retired_at=""))
        index = index.advanced(LATEST, entry, self.now_text(), f"released {entry.version}")
        if index != edit.index or self.ends_soon(edit.state):
            edit.commit(index)

    def _restore_provenance(self, entry: Entry) -> None:
        """Put a lost provenance back from the copy beside the release, if that is the one that was signed."""
        channels, key = self.registry.channels, metadata.target_key(entry.path, entry.provenance_sha256)
        if channels.stat(key):
            return
        try:
            copy = self.registry.artifacts.read(_provenance_key(entry.kind, entry.version))
        except MissingObjectError:
            copy = b""
        if hashlib.sha256(copy).hexdigest() != entry.provenance_sha256:
            raise IntegrityError(
                f"{entry.version}: its provenance is gone from {channels.url}/{key}, and there is no copy of it",
                hint="put that object's last version back, or revoke the release",
            )
        channels.create(key, copy)

    def _put_blob(self, folder: Path, file: ReleaseFile, report: Report) -> None:
        key, path = blob_key(file.sha256), folder / file.name
        stage = f"storing {file.name}"
        there = self.registry.artifacts.stat(key)
        if there:
            if there.size_bytes != file.size_bytes or there.sha256 not in ("", file.sha256):
                told = (
                    f"{self.registry.artifacts.url}: {key} holds something else ({there.size_bytes} bytes, digest {there.sha256})"
                )
                raise IntegrityError(told, hint="delete that object, then release again")
            report(Progress(stage, file.size_bytes, file.size_bytes, in_bytes=True))
            return
        if not path.is_file():
            raise IntegrityError(f"{file.name} is neither in the store nor in {folder}", hint="build that profile again")
        self.registry.artifacts.create(key, path, sha256=file.sha256, moved=_counting(stage, file.size_bytes, report))

    def _put_release(self, manifest: ReleaseManifest, revision: int, run_id: str) -> Entry:
        """Store manifest and provenance under the first revision, from this one on, that nobody else has."""
        while True:
            try:
                self._put_claim(manifest, revision)
                break
            except AlreadyExistsError:
                revision += 1
        version, now = Version(manifest.name, revision), self.now_text()
        provenance = statement(manifest, Origin(run_id, now))
        entry = metadata.put_entry(self.registry.channels, manifest, version, provenance, now)
        with suppress(AlreadyExistsError):
            # A copy for people; what counts is the target, which is signed. A dead publisher may have left another.
            self.registry.artifacts.create(_provenance_key(manifest.kind, version), provenance)
        return entry

    def _put_claim(self, manifest: ReleaseManifest, revision: int) -> None:
        """The name SHA256SUMS claims the revision; two publishers of different bytes cannot both have it.

        Raises:
            AlreadyExistsError: the revision has other bytes.
        """
        for file, data in (("SHA256SUMS", manifest.sums), ("manifest.json", manifest.to_json())):
            self.registry.artifacts.create(release_key(manifest.kind, manifest.name, revision, file), data)

    # --- channels and releases, by hand

    def promote(self, kind: str, version: Version, channel: str, reason: str) -> Head:
        """Move a channel forward to a release.

        Raises:
            InputError: it is not ahead, revoked, or not there.
        """
        now = self.now_text()
        index = self.change(f"promoting {version}", lambda index: index.promoted(channel, index.get(kind, version), now, reason))
        return index.heads[kind, channel]

    def roll_back(self, kind: str, channel: str, to: Version | None, reason: str) -> Head:
        """Move a channel back, as a new sequence number.

        Raises:
            InputError: there is nothing to go back to.
        """
        now = self.now_text()
        index = self.change(f"rolling back {channel}", lambda index: index.rolled_back(kind, channel, to, now, reason))
        return index.heads[kind, channel]

    def revoke(self, kind: str, version: Version, reason: str) -> Index:
        """Withdraw a release; channels leave it.

        Raises:
            InputError: there is no such release.
        """
        now = self.now_text()
        return self.change(f"revoking {version}", lambda index: index.revoked(index.get(kind, version), now, reason))

    def pin(self, kind: str, version: Version, why: str) -> None:
        """Keep a release for ever; without a reason, no longer.

        Raises:
            InputError: there is no such release.
        """
        self.change(
            f"pinning {version}", lambda index: index.with_entry(replace(index.get(kind, version), pinned=why, retired_at=""))
        )

    def change(self, purpose: str, change: Change) -> Index:
        """Commit a change of the index, if it changes anything."""
        with self.editing(purpose) as edit:
            index = change(edit.index)
            if index != edit.index:
                edit.commit(index)
            return index


def _counting(stage: str, total: int, report: Report) -> Callable[[int], None]:
    """Turns "so many bytes more" into "so many of all"."""
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        report(Progress(stage, done, total, in_bytes=True))

    return moved


def _provenance_key(kind: str, version: Version) -> str:
    return release_key(kind, version.name, version.revision, "provenance.json")


def open_publisher(settings: Settings, registry: Registry | None = None) -> Publisher:
    """The publisher that settings describe."""
    registry = registry or open_registry(settings)
    return Publisher(registry, open_keys(settings.registry_keys, registry.folder / "keys"))


def prepare_areas(settings: Settings, url: str) -> list[PipelineError]:
    """Make all areas of a store; returns what could not be made, each saying what to create by hand."""
    failed = []
    for name, versioned in AREAS.items():
        try:
            area(settings, name, url).prepare(versioned=versioned)
        except PipelineError as error:
            failed.append(error)
    return failed
