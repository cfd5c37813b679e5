"""Archiving a built runner image: read it, keep what no pack has, release the snapshot.

    layers (or disks) > pieces > not yet in a pack? > frames > packs > release

Whatever a killed archive left in packs is found by the next one. What is read must be what was built: the digest of every layer is compared
with the image's configuration, and a disk must not be written meanwhile, before anything is released.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import BinaryIO

from akidb_pipelines.errors import CheckError, IntegrityError
from akidb_pipelines.images.drives import DIGEST_BYTES, ZERO, Drive
from akidb_pipelines.images.image import digest_array_sha256
from akidb_pipelines.images.intake import Intake
from akidb_pipelines.images.packs import PACK_BYTES
from akidb_pipelines.images.runners.build import Built
from akidb_pipelines.images.runners.docker_image import LayerReader, take_apart
from akidb_pipelines.images.runners.shape import Piece, Shape
from akidb_pipelines.images.runners.shelf import Shelf
from akidb_pipelines.images.runners.snapshot import Counts, Record, Snapshot, StoredFile, snapshot_kind
from akidb_pipelines.progress import Progress, Report

_BATCH_BYTES = 2 << 20
"""Pieces are hashed so many together: a future each would cost more than the hash."""


@dataclass(frozen=True)
class Archived:
    """What became of it."""

    snapshot: Snapshot
    created: bool
    """False when the very same snapshot is there already."""
    counts: Counts
    seconds: float


@dataclass(frozen=True)
class _File:
    """A file that was read."""

    name: str
    sha256: str
    shape: Shape
    digests: bytes


@dataclass
class _Read:
    """All that was read of an image."""

    config: bytes = b""
    architecture: str = ""
    files: dict[str, _File] = field(default_factory=dict)
    read_bytes: int = 0
    sent_bytes: int = 0


def archive_docker(
    shelf: Shelf, built: Built, stream: BinaryIO, report: Report = lambda _: None, run_id: str = "", pack_bytes: int = PACK_BYTES
) -> Archived:
    """Archive a Docker image.

    Args:
        shelf: where to.
        built: the build that it comes from.
        stream: what `docker save` writes.
        report: told the progress.
        run_id: of the Dagster run.
        pack_bytes: see packs.PACK_BYTES.

    Raises:
        BusyError: the runner is being archived already, or packs are being swept.
        IntegrityError: the image is cut short, or a layer is not what the configuration says.
        OutsideError: the engine or the store fails. What was stored until then is not stored again.
    """
    read = _Read()
    with shelf.library.working_on(snapshot_kind(built.runner), f"archiving {built.runner} {built.week}", run_id) as held:
        archive = _Archive(shelf, built)
        with Intake(shelf.library.blocks, snapshot_kind(built.runner), pack_bytes) as intake:
            with ThreadPoolExecutor(2, thread_name_prefix="hash") as pool:
                config = take_apart(stream, lambda layer: _take_layer(read, layer, intake, pool, report))
            if config.image_id != built.image_id:
                raise IntegrityError(
                    f"{built.image} is {config.image_id} now, and {built.image_id} was built", hint="build the runner again"
                )
        read.config, read.architecture = config.data, config.architecture
        held.check()  # whoever slept past the lease may have lost packs to a sweep
        return archive.released(intake, read, list(dict.fromkeys(config.layers)), run_id)


def _take_layer(read: _Read, layer: LayerReader, intake: Intake, pool: ThreadPoolExecutor, report: Report) -> str:
    contents, headers = bytearray(), bytearray()
    stage, done = f"layer {len(read.files) + 1}", 0

    def take(batch: list[Piece], digests: list[bytes]) -> None:
        nonlocal done
        for piece, digest in zip(batch, digests, strict=True):
            (headers if piece.is_header else contents).extend(digest)
        stored = [(0, d, p.data) for p, d in zip(batch, digests, strict=True) if d != ZERO]
        intake.put(stored)
        done += sum(len(p.data) for p in batch)
        report(Progress(stage, done, layer.size_bytes, in_bytes=True))

    waiting: deque[tuple[list[Piece], Future[list[bytes]]]] = deque()
    for batch in _batches(layer.pieces()):
        waiting.append((batch, pool.submit(_hashed, batch)))
        if len(waiting) > 3:
            pieces, future = waiting.popleft()
            take(pieces, future.result())
    for pieces, future in waiting:
        take(pieces, future.result())
    name, shape = layer.finished()
    read.files[name] = _File(name, name.removeprefix("sha256:"), shape, bytes(contents + headers))
    read.read_bytes += layer.size_bytes
    return name


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.data)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _hashed(batch: Sequence[Piece]) -> list[bytes]:
    return [ZERO if not any(p.data[:1]) and not any(p.data) else hashlib.sha256(p.data).digest() for p in batch]


def archive_disks(
    shelf: Shelf,
    built: Built,
    disks: Mapping[str, Drive],
    report: Report = lambda _: None,
    run_id: str = "",
    pack_bytes: int = PACK_BYTES,
) -> Archived:
    """Archive an image that is files: disks of a virtual machine, here or on another machine.

    Args:
        shelf, built, report, run_id, pack_bytes: see archive_docker.
        disks: the files by name.

    Raises:
        BusyError, OutsideError: see archive_docker.
        CheckError: somebody wrote to one while it was read.
    """
    read = _Read(architecture=str(built.facts.get("architecture", "")))
    with shelf.library.working_on(snapshot_kind(built.runner), f"archiving {built.runner} {built.week}", run_id) as held:
        archive = _Archive(shelf, built)
        before = _previous_digests(shelf, built.runner)
        with Intake(shelf.library.blocks, snapshot_kind(built.runner), pack_bytes) as intake:
            for name, drive in disks.items():
                _take_disk(read, name, drive, intake, before.get(name, b""), report)
        held.check()
        return archive.released(intake, read, list(disks), run_id)


def _previous_digests(shelf: Shelf, runner: str) -> dict[str, bytes]:
    """Of the files of the runner's newest snapshot: what is the same is not even sent."""
    latest = shelf.latest(runner)
    return {c.file.name: c.digests.tobytes() for c in shelf.contents(latest)} if latest else {}


def _take_disk(read: _Read, name: str, drive: Drive, intake: Intake, before: bytes, report: Report) -> None:
    facts = drive.facts()
    size_bytes = facts.size_bytes
    shape = Shape.plain(size_bytes)
    digests = bytearray(shape.piece_count * DIGEST_BYTES)
    digests[: len(before)] = before[: len(digests)]
    for number in intake.lost(digests).tolist():
        digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES] = ZERO
    for scanned in drive.scan(digests):
        for found in scanned.found:
            digests[found.number * DIGEST_BYTES : (found.number + 1) * DIGEST_BYTES] = found.digest
        intake.put((found.number, found.digest, found.data) for found in scanned.found if found.data)
        report(Progress(f"reading {name}", scanned.position, size_bytes, in_bytes=True))
    if drive.facts().writes != facts.writes:
        raise CheckError(f"{drive.name} was written while it was read", hint="shut the machine down, then archive again")
    # A disk has no digest of its own to be held to: that of its pieces' digests names its content.
    read.files[name] = _File(name, digest_array_sha256(digests), shape, bytes(digests))
    read.read_bytes += drive.read_bytes
    read.sent_bytes += drive.sent_bytes


class _Archive:
    """One archive, from its beginning to the release."""

    def __init__(self, shelf: Shelf, built: Built) -> None:
        self._shelf, self._built = shelf, built
        self._begun, self._started_at = perf_counter(), _now()

    def released(self, intake: Intake, read: _Read, order: Sequence[str], run_id: str) -> Archived:
        """Release what was read, its files in this order.

        Raises:
            IntegrityError: a pack that it counts on is gone.
        """
        shelf, built = self._shelf, self._built
        files = [read.files[name] for name in order]
        digests = b"".join(f.digests for f in files)
        shapes = [f.shape.to_bytes() for f in files]
        intake.expect_packs(digests)
        previous = shelf.latest(built.runner, built.week)
        counts = Counts(len(digests) // DIGEST_BYTES, read.read_bytes, intake.new_bytes, intake.stored_bytes, read.sent_bytes)
        seconds = perf_counter() - self._begun
        if previous and previous.record.week == built.week and _same(previous.record, built, digests):
            return Archived(previous, created=False, counts=counts, seconds=seconds)
        record = Record(
            runner=built.runner,
            week=built.week,
            builder=built.builder,
            build_id=built.build_id,
            image_id=built.image_id,
            architecture=read.architecture,
            system=str(built.facts.get("system", "")),
            tools={t["name"]: t["found"] for t in built.facts.get("tools", ())},
            base=built.base,
            built_on=_ancestor(shelf.readable(), built, order),
            previous=previous.id if previous else "",
            packer=built.packer,
            template_sha256=built.template_sha256,
            files=tuple(
                StoredFile(f.name, f.shape.size_bytes, f.sha256, len(shape), f.shape.piece_count)
                for f, shape in zip(files, shapes, strict=True)
            ),
            digests_sha256=digest_array_sha256(digests),
            started_at=self._started_at,
            finished_at=_now(),
            seconds=round(seconds, 3),
            build_seconds=round(built.seconds, 3),
            counts=counts,
        )
        facts = (json.dumps(built.facts, sort_keys=True, indent=2) + "\n").encode()
        snapshot, created = shelf.publish(record, digests, b"".join(shapes), read.config, facts, run_id)
        return Archived(snapshot, created, counts, seconds)


def _same(record: Record, built: Built, digests: bytes) -> bool:
    return record.image_id == built.image_id and record.digests_sha256 == digest_array_sha256(digests)


def _ancestor(snapshots: Sequence[Snapshot], built: Built, layers: Sequence[str]) -> str:
    """Id of the snapshot that an image was built on: the one it was built from, or the one with most of its layers, from the lowest on."""
    found, most = "", 0
    for snapshot in snapshots:
        theirs = [f.name for f in snapshot.record.files]
        if snapshot.record.image_id == built.image_id:
            continue
        if built.base_id and snapshot.record.image_id == built.base_id:
            return snapshot.id
        docker = built.builder == snapshot.record.builder == "docker"
        if docker and most < len(theirs) < len(layers) and list(layers[: len(theirs)]) == theirs:
            found, most = snapshot.id, len(theirs)
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
