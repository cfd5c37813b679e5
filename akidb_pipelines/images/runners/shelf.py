"""All snapshots of runner images: finding them, releasing one, moving production, withdrawing one and what was built on it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from akidb_pipelines.errors import CheckError, IntegrityError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.images.image import DIGESTS, digest_array_sha256
from akidb_pipelines.images.library import Library, entry_of, open_library
from akidb_pipelines.images.packs import digests_of
from akidb_pipelines.images.runners.shape import Shape, parse_shape
from akidb_pipelines.images.runners.snapshot import (
    CONFIG,
    FACTS,
    RECORD,
    SHAPES,
    Record,
    Snapshot,
    StoredFile,
    parse_record,
    parse_ref,
    runner_name,
    snapshot_kind,
)
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.index import PRODUCTION, Entry, Index
from akidb_pipelines.store.manifest import ReleaseManifest, released_file


@dataclass(frozen=True)
class FileContent:
    """A file of a snapshot: how it is laid out, and its pieces."""

    file: StoredFile
    shape: Shape
    digests: NDArray[np.void]
    """Of its pieces: those of contents, then those of the header stream."""


@dataclass(frozen=True)
class Shelf:
    """The snapshots of a store; `library` has its registry and packs."""

    library: Library

    # --- finding

    def snapshots(self, runner: str = "", index: Index | None = None) -> list[Snapshot]:
        """Every snapshot (of a runner), oldest first."""
        index = index or self.library.registry.index()
        names = [runner] if runner else [n for kind in index.kinds() if (n := runner_name(kind))]
        return [self._snapshot(index, entry) for n in names for entry in index.of(snapshot_kind(n))]

    def find(self, text: str) -> Snapshot:
        """The snapshot that a text names, see snapshot.parse_ref.

        Raises:
            InputError: there is none.
            IntegrityError: what is there does not verify.
        """
        index, wanted = self.library.registry.index(), parse_ref(text)
        return self._snapshot(index, entry_of(index, snapshot_kind(wanted.name), wanted, text, "runners"))

    def latest(self, runner: str, week: str = "") -> Snapshot | None:
        """The runner's newest snapshot that may be used; of those up to a week, if one is named."""
        index = self.library.publisher.index()
        usable = [e for e in index.of(snapshot_kind(runner)) if not e.revoked and (not week or e.version.name <= week)]
        return self._snapshot(index, usable[-1]) if usable else None

    def production(self, runner: str) -> Snapshot | None:
        """The runner's snapshot in production."""
        index, kind = self.library.registry.index(), snapshot_kind(runner)
        head = index.head(kind, PRODUCTION)
        return self._snapshot(index, index.get(kind, head.version)) if head else None

    def readable(self, index: Index | None = None) -> list[Snapshot]:
        """Every snapshot of every runner whose record can be read: a damaged one of another runner must not stop a rollback.

        By default as the publisher sees them, also when the registry's signatures have ended.
        """
        index = index or self.library.publisher.index()
        found = []
        for kind in (k for k in index.kinds() if runner_name(k)):
            for entry in index.of(kind):
                with suppress(IntegrityError):
                    found.append(self._snapshot(index, entry))
        return found

    def _snapshot(self, index: Index, entry: Entry) -> Snapshot:
        release = self.library.registry.release(entry)
        record = parse_record(self._read(release.manifest, RECORD), f"{entry.kind} {entry.version}/{RECORD}")
        head = index.head(entry.kind, PRODUCTION)
        return Snapshot(
            record=record,
            revision=entry.version.revision,
            root_sha256=release.manifest.sha256,
            published_at=entry.published_at,
            in_production=head is not None and head.version == entry.version,
            pinned=entry.pinned,
            revoked=entry.revoked,
        )

    def read(self, snapshot: Snapshot, name: str) -> bytes:
        """A file of the release itself (CONFIG, FACTS), verified.

        Raises:
            IntegrityError: the store has other bytes.
        """
        return self._read(self.library.registry.get(snapshot_kind(snapshot.record.runner), snapshot.version).manifest, name)

    def _read(self, manifest: ReleaseManifest, name: str) -> bytes:
        return self.library.registry.read_file(next(f for f in manifest.files if f.name == name))

    def contents(self, snapshot: Snapshot) -> list[FileContent]:
        """How its files are laid out, and their pieces.

        Raises:
            IntegrityError: they do not agree with the record.
        """
        digests, shapes = self.read(snapshot, DIGESTS), self.read(snapshot, SHAPES)
        record, found = snapshot.record, []
        if digest_array_sha256(digests) != record.digests_sha256:
            raise _disagrees(snapshot, "its digests are not those that the record names")
        pieces = digests_of(digests)
        at = shape_at = 0
        for file in record.files:
            shape = parse_shape(shapes[shape_at : shape_at + file.shape_bytes], f"{snapshot.id}: {file.name}")
            if shape.piece_count != file.pieces or shape.size_bytes != file.size_bytes:
                raise _disagrees(snapshot, f"the shape of {file.name} is of another file")
            found.append(FileContent(file, shape, pieces[at : at + file.pieces]))
            at, shape_at = at + file.pieces, shape_at + file.shape_bytes
        return found

    # --- changing

    def publish(
        self, record: Record, digests: bytes, shapes: bytes, config: bytes, facts: bytes, run_id: str = ""
    ) -> tuple[Snapshot, bool]:
        """Release a snapshot; also returns whether it is new.

        Raises:
            CheckError: these very bytes were revoked.
            BusyError: another publisher did not finish.
            OutsideError: the store cannot be written.
        """
        named = {RECORD: record.to_json(), DIGESTS: digests, SHAPES: shapes, CONFIG: config, FACTS: facts}
        with scratch_folder(self.library.scratch) as folder:
            for name, data in named.items():
                (folder / name).write_bytes(data)
            files = tuple(released_file(folder, folder / name) for name in sorted(named))
            attributes = {"builder": record.builder, "image_id": record.image_id, "built_on": record.built_on}
            manifest = ReleaseManifest(snapshot_kind(record.runner), record.week, files, attributes)
            release = self.library.publisher.publish(manifest, folder, run_id=run_id)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Snapshot(record, release.revision, release.manifest.sha256, now), release.created

    def promote(self, snapshot: Snapshot, reason: str) -> Snapshot:
        """Put a snapshot into production. Whether its checks passed, the caller knows.

        Raises:
            CheckError: what it was built on, or the very same image, was revoked.
            InputError: it is revoked, or older than what is in production.
        """
        self._expect_untainted(snapshot)
        publisher, kind = self.library.publisher, snapshot_kind(snapshot.record.runner)
        now = publisher.now_text()

        def change(index: Index) -> Index:
            index = index.promoted(PRODUCTION, index.get(kind, snapshot.version), now, reason)
            return index.with_entry(replace(index.get(kind, snapshot.version), retired_at=""))

        publisher.change(f"promoting {snapshot.id}", change)
        return self.find(snapshot.id)

    def _expect_untainted(self, snapshot: Snapshot) -> None:
        known = self.readable()
        by_id = {s.id: s for s in known}
        bad = next((s for s in known if s.revoked and s.record.image_id == snapshot.record.image_id and s.id != snapshot.id), None)
        above = by_id.get(snapshot.record.built_on)
        while above and not bad:
            bad, above = above if above.revoked else None, by_id.get(above.record.built_on)
        if bad:
            how = "is the same image" if bad.record.image_id == snapshot.record.image_id else "is what it was built on"
            raise CheckError(
                f"{snapshot.id} does not go into production: {bad.id} {how}, and was revoked: {bad.revoked}",
                hint="correct what that was revoked for, then build the runner again",
            )

    def descendants(self, snapshot: Snapshot) -> list[Snapshot]:
        """Every snapshot that was built on this one, or on one of those, of whatever runner."""
        everything = self.readable()
        found: list[Snapshot] = []
        above = [snapshot.id]
        while above:
            parent = above.pop()
            for other in everything:
                if other.record.built_on == parent and other.id not in {s.id for s in found}:
                    found.append(other)
                    above.append(other.id)
        return found

    def revoke(self, snapshot: Snapshot, reason: str) -> list[Snapshot]:
        """Withdraw a snapshot and all that was built on it, in one step; production goes back to where it pointed before.

        Returns those that were withdrawn.
        """
        gone = [snapshot, *(s for s in self.descendants(snapshot) if not s.revoked)]
        publisher = self.library.publisher
        now = publisher.now_text()

        def change(index: Index) -> Index:
            for s in gone:
                why = reason if s.id == snapshot.id else f"built on {snapshot.id}: {reason}"
                index = index.revoked(index.get(snapshot_kind(s.record.runner), s.version), now, why)
            return index

        publisher.change(f"revoking {snapshot.id}", change)
        return [self.find(s.id) for s in gone]


def _disagrees(snapshot: Snapshot, found: str) -> IntegrityError:
    return IntegrityError(f"{snapshot.id}: {found}", hint="archive the runner again, or use another snapshot")


def open_shelf(settings: Settings) -> Shelf:
    """The shelf that settings describe.

    Raises:
        InputError: the store's URL is unusable.
    """
    return Shelf(open_library(settings))
