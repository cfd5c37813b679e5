"""All images of a store: finding them, publishing a capture, moving the golden channel, withdrawing.

What belongs here is the meeting of images and registry. How blocks get into packs is `capture`'s business, how they come back `restore`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from akidb_pipelines.errors import CheckError, InputError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.images.block_store import BlockStore
from akidb_pipelines.images.image import (
    DIGESTS,
    RECORD,
    Image,
    ImageRef,
    Record,
    digest_array_sha256,
    image_name,
    kind_of,
    parse_record,
)
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.index import GOLDEN, LATEST, Entry, Index, Version
from akidb_pipelines.store.lease import BusyError, Held, hold, read
from akidb_pipelines.store.manifest import Release, ReleaseManifest, released_file
from akidb_pipelines.store.publisher import Publisher, open_publisher
from akidb_pipelines.store.registry import Registry, open_registry

_LEASES = "images/leases/"
_PRUNING = "images/sweeping.json"


@dataclass(frozen=True)
class Library:
    """The images of a store.

    Args:
        registry, publisher: where they are released, read and written.
        blocks: their packs.
        scratch: folder for temporary files.
    """

    registry: Registry
    publisher: Publisher
    blocks: BlockStore
    scratch: Path

    # --- finding

    def images(self, name: str = "", index: Index | None = None) -> list[Image]:
        """Every image (of a name), oldest first.

        Args:
            name: empty for all.
            index: what is released; default: as a client sees it now.
        """
        index = index or self.registry.index()
        names = [name] if name else [n for kind in index.kinds() if (n := image_name(kind))]
        return [self._image(index, entry) for n in names for entry in index.of(kind_of(n))]

    def digest_arrays(self) -> Iterator[bytes]:
        """The blocks of whatever lives off packs, one release after the other: images of drives, and of runners.

        For whoever removes what nothing needs: a registry that cannot be read is never an empty one.

        Raises:
            InputError: there is no registry.
            IntegrityError: its metadata is gone, or does not verify.
        """
        for entry in self.publisher.state().index.entries.values():
            for file in self.registry.release(entry).manifest.files:
                if file.name == DIGESTS:
                    yield self.registry.read_file(file)

    def find(self, text: str) -> Image:
        """The image that a text names, see ImageRef.

        Raises:
            InputError: there is none.
            IntegrityError: what is there does not verify.
        """
        index = self.registry.index()
        wanted = ImageRef.parse(text)
        return self._image(index, entry_of(index, kind_of(wanted.name), wanted, text, "images"))

    def _image(self, index: Index, entry: Entry) -> Image:
        release = self.registry.release(entry)
        file = next(f for f in release.manifest.files if f.name == RECORD)
        record = parse_record(self.registry.read_file(file), f"{entry.kind} {entry.version}/{RECORD}")
        head = index.head(entry.kind, GOLDEN)
        return Image(
            record=record,
            revision=entry.version.revision,
            root_sha256=release.manifest.sha256,
            published_at=entry.published_at,
            golden=head is not None and head.version == entry.version,
            pinned=entry.pinned,
            revoked=entry.revoked,
        )

    def digests(self, image: Image) -> bytes:
        """The digest array of an image, verified.

        Raises:
            IntegrityError: the store has other bytes.
        """
        release = self.registry.get(kind_of(image.record.name), image.version)
        return self.registry.read_file(next(f for f in release.manifest.files if f.name == DIGESTS))

    def latest(self, name: str) -> Image | None:
        """The newest image of a name that may be used, also when the registry's signatures have ended; None if there is none."""
        index = self.publisher.index()
        usable = [e for e in index.of(kind_of(name)) if not e.revoked]
        return self._image(index, usable[-1]) if usable else None

    # --- changing

    def publish(self, record: Record, digests: bytes | bytearray, run_id: str = "") -> Image:
        """Release a capture.

        Raises:
            BusyError: another publisher did not finish.
            OutsideError: the store cannot be written.
        """
        with scratch_folder(self.scratch) as folder:
            (folder / RECORD).write_bytes(record.to_json())
            (folder / DIGESTS).write_bytes(digests)
            files = tuple(released_file(folder, folder / name) for name in (DIGESTS, RECORD))
            attributes = {"mode": record.mode.value, "source": record.source, "parent": record.parent}
            manifest = ReleaseManifest(kind_of(record.name), record.period, files, attributes)
            release: Release = self.publisher.publish(manifest, folder, run_id=run_id)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Image(record, release.revision, release.manifest.sha256, now)

    def promote(self, image: Image, reason: str) -> Image:
        """Make an image the golden one; it is kept for ever from then on. Whether its checks passed, the caller knows.

        Raises:
            CheckError: it was captured live.
            InputError: it is revoked, or older than the golden one.
        """
        if not image.record.mode.is_sound:
            raise CheckError(
                f"{image.id} was captured {image.record.mode}: {image.record.mode_reason}",
                hint="a golden image must be of one moment: capture it frozen, or offline",
            )
        kind = kind_of(image.record.name)
        now = self.publisher.now_text()

        def change(index: Index) -> Index:
            index = index.promoted(GOLDEN, index.get(kind, image.version), now, reason)
            entry = index.get(kind, image.version)
            return index.with_entry(replace(entry, pinned=entry.pinned or f"golden since {now[:10]}", retired_at=""))

        self.publisher.change(f"promoting {image.id}", change)
        return self.find(image.id)

    def revoke(self, image: Image, reason: str) -> Image:
        """Withdraw an image; the channels leave it."""
        self.publisher.revoke(kind_of(image.record.name), image.version, reason)
        return self.find(image.id)

    # --- who is at work

    @contextmanager
    def working_on(self, what: str, purpose: str, run_id: str = "") -> Iterator[Held]:
        """Be the only one who captures or reflashes a device (or captures an image name), while nobody sweeps packs.

        Raises:
            BusyError: somebody else does, or sweeps.
        """
        with self._holding(f"{_LEASES}{what}.json", purpose, run_id) as held:
            sweeper = read(self.registry.channels, _PRUNING)
            if sweeper and not sweeper.is_free(datetime.now(UTC)):
                raise BusyError(f"{purpose}: packs are being swept: {sweeper}", hint="try again when that has ended")
            yield held

    @contextmanager
    def sweeping(self, purpose: str) -> Iterator[Held]:
        """Be the only one who sweeps packs, while nobody captures or reflashes.

        Raises:
            BusyError: somebody does, or died at it less than a day ago.
        """
        with self._holding(_PRUNING, purpose, "") as held:
            now = datetime.now(UTC)
            for info in self.registry.channels.list(_LEASES):
                lease = read(self.registry.channels, info.key)
                if lease and lease.may_be_at_work(now):
                    raise BusyError(
                        f"{purpose}: somebody is at work: {lease}",
                        hint="run it again when that has ended; of a dead one, when its device was captured again, or a day after",
                    )
            yield held

    def _holding(self, key: str, purpose: str, run_id: str) -> AbstractContextManager[Held]:
        return hold(self.registry.channels, purpose, run_id, key=key, patience_s=0)


def entry_of(index: Index, kind: str, wanted: ImageRef, text: str, command: str) -> Entry:
    """The release that a reference names.

    Args:
        index: what is released.
        kind: of which it is one.
        wanted: the reference.
        text: as it was written, for messages.
        command: of the command line, that promotes.

    Raises:
        InputError: there is none.
    """
    if wanted.revision:
        return index.get(kind, Version(wanted.period, wanted.revision))
    if wanted.period:
        found = index.newest(kind, wanted.period)
    else:
        head = index.head(kind, wanted.channel)
        found = index.get(kind, head.version) if head else None
    if found is None:
        have = [f"{wanted.name}/{e.version}" for e in index.of(kind)[-5:]]
        promotable = have and wanted.channel not in ("", LATEST)
        hint = f"promote one: akidb-pipelines {command} promote ID" if promotable else "make one first; docs/images.md"
        raise InputError(f"there is no image {text}; of {wanted.name} there are: {', '.join(have) or 'none'}", hint=hint)
    return found


def same_content(image: Image, digests: bytes | bytearray) -> bool:
    """Whether an image has these very blocks."""
    return image.record.digests_sha256 == digest_array_sha256(digests)


def open_library(settings: Settings) -> Library:
    """The library that settings describe.

    Raises:
        InputError: the store's URL is unusable.
    """
    registry = open_registry(settings)
    return Library(
        registry=registry,
        publisher=open_publisher(settings, registry),
        blocks=BlockStore(registry.artifacts, settings.cache / "images"),
        scratch=settings.home / "tmp",
    )
