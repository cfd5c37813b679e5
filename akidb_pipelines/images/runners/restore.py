"""Bringing a snapshot back: a Docker image as an archive that any engine loads, a disk as a file. Every piece is verified by its digest,
and every layer by its own, before the file gets its name."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from akidb_pipelines.errors import InputError, IntegrityError, OutsideError
from akidb_pipelines.files import sync_folder
from akidb_pipelines.images.drives import ZERO
from akidb_pipelines.images.packs import BlockTable
from akidb_pipelines.images.runners.docker_image import Config, Slot, lay_out
from akidb_pipelines.images.runners.shape import PIECE_BYTES
from akidb_pipelines.images.runners.shelf import FileContent, Shelf
from akidb_pipelines.images.runners.snapshot import CONFIG, Snapshot
from akidb_pipelines.progress import Progress, Report

_CHUNK = 4 << 20


@dataclass(frozen=True)
class Restored:
    """What a restore wrote."""

    target: str
    size_bytes: int
    seconds: float


def restore(shelf: Shelf, snapshot: Snapshot, target: Path, *, replace: bool = False, report: Report = lambda _: None) -> Restored:
    """Write a snapshot; it appears when it is whole.

    Args:
        shelf, snapshot: what.
        target: a new file, an archive for `docker load`; of a virtual machine a new folder, which gets its files.
        replace: whether what is there may be replaced.
        report: told the progress.

    Raises:
        InputError: the target is there.
        IntegrityError: a piece is damaged or gone, or a layer has not its digest.
        OutsideError: no room, or no permission.
    """
    started = perf_counter()
    if target.exists() and not replace:
        raise InputError(f"{target} is there already", hint="choose another, or say --replace: what it holds is lost")
    part = target.parent / f".{target.name}-{secrets.token_hex(4)}.part"
    table = shelf.library.blocks.table()
    try:
        if snapshot.record.builder == "docker":
            _write_archive(shelf, snapshot, table, part, report)
        else:
            part.mkdir()
            for content in shelf.contents(snapshot):
                (part / content.file.name).touch(exist_ok=False)
                _fill(shelf, snapshot, table, content, part / content.file.name, 0, report)
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise OutsideError(
            f"restoring {snapshot.id} to {target}: {error}", hint="choose a folder with room that may be written"
        ) from error
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)
    return Restored(str(target), snapshot.record.size_bytes, perf_counter() - started)


def _write_archive(shelf: Shelf, snapshot: Snapshot, table: BlockTable, path: Path, report: Report) -> None:
    config = Config(shelf.read(snapshot, CONFIG))
    contents = {c.file.name: c for c in shelf.contents(snapshot)}
    record = snapshot.record
    if config.image_id != record.image_id or set(config.layers) != set(contents):
        raise IntegrityError(f"{snapshot.id}: its configuration is not that of its layers", hint="use another snapshot")
    name = f"akidb/runner-{record.runner}:{record.week.lower()}-r{snapshot.revision}"
    for slot in lay_out(path, config, {n: c.file.size_bytes for n, c in contents.items()}, [name]):
        _fill(shelf, snapshot, table, contents[slot.layer], path, slot.start, report)
        _expect_digest(path, slot, snapshot)


def _fill(
    shelf: Shelf, snapshot: Snapshot, table: BlockTable, content: FileContent, path: Path, start: int, report: Report
) -> None:
    """Write a file's content into another, from a place on. Pieces come in the order they are stored in; headers are laid between last."""
    shape, rows = content.shape, table.rows(content.digests)
    if lost := int(((rows < 0) & (content.digests != np.void(ZERO))).sum()):
        raise IntegrityError(
            f"{snapshot.id}: {lost} of the {len(rows)} pieces of {content.file.name} lie in no pack",
            hint="a pack is gone from the store: use another snapshot, or build the runner again; docs/runbooks/bad-runner-image.md",
        )
    stage = f"restoring {content.file.name[:19]}"
    begins, _ = shape.content_pieces()
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    done = 0
    # The header stream is laid in between at the end. In a file until then: an image of many small files has a lot of it.
    with path.open("r+b") as out, tempfile.TemporaryFile(dir=path.parent) as headers:
        out.truncate(max(start + shape.size_bytes, os.fstat(out.fileno()).st_size))
        for row, data in shelf.library.blocks.read(table, ordered[ordered >= 0]):
            first, last = np.searchsorted(ordered, [row, row + 1])
            for number in order[first:last].tolist():
                if number < len(begins):
                    os.pwrite(out.fileno(), data, start + int(begins[number]))
                else:
                    os.pwrite(headers.fileno(), data, (number - len(begins)) * PIECE_BYTES)
                done += len(data)
            report(Progress(stage, done, shape.size_bytes, in_bytes=True))
        for at, taken, length in shape.headers():
            os.pwrite(out.fileno(), os.pread(headers.fileno(), length, taken), start + at)
        os.fsync(out.fileno())
    report(Progress(stage, shape.size_bytes, shape.size_bytes, in_bytes=True))


def _expect_digest(path: Path, slot: Slot, snapshot: Snapshot) -> None:
    digest, left = hashlib.sha256(), slot.size_bytes
    with path.open("rb") as stream:
        stream.seek(slot.start)
        while left:
            data = stream.read(min(_CHUNK, left))
            digest.update(data)
            left -= len(data)
    if f"sha256:{digest.hexdigest()}" != slot.layer:
        raise IntegrityError(
            f"{snapshot.id}: layer {slot.layer} came back as sha256:{digest.hexdigest()}",
            hint="use another snapshot, and report this: every piece of it was right",
        )
