"""What a snapshot of a runner image is: its name, and the record of how it came to be. Values and their text.

A snapshot is a release of kind `runners.<runner>` in the registry, hence immutable, signed, and revoked or pinned like any other:

    snapshot.json   the record below
    digests         32 bytes a piece: of each file in the record's order its contents' pieces, then its headers'; zeros for zeros
    shapes          how each file is laid out (see shape), one after the other
    config.json     a Docker image's configuration, whose digest is the image's id; empty for a disk
    facts.json      tools and packages, as `probe` found them in the image while it was built
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from akidb_pipelines.errors import IntegrityError
from akidb_pipelines.images.image import ImageRef, image_name, kind_of
from akidb_pipelines.store.index import LATEST, PRODUCTION, Version

FORMAT = 1
RECORD, SHAPES, CONFIG, FACTS = "snapshot.json", "shapes", "config.json", "facts.json"
KIND = "runners."


def snapshot_kind(runner: str) -> str:
    """The registry's kind of the snapshots of a runner.

    Raises:
        InputError: it is no name.
    """
    return kind_of(runner, KIND)


def runner_name(kind: str) -> str | None:
    """The runner whose snapshots are of a kind; None for other kinds."""
    return image_name(kind, KIND)


def parse_ref(text: str) -> ImageRef:
    """`docker/2026-W48/r1`, `docker/2026-W48` (its newest), `docker@production`, `docker` (its latest).

    Raises:
        InputError: it is not written so.
    """
    return ImageRef.parse(text, channels=(LATEST, PRODUCTION), example="docker/2026-W48", listing="runners list")


@dataclass(frozen=True)
class StoredFile:
    """A layer, or a disk."""

    name: str
    """`sha256:` and the digest of a layer (its diff_id); else a file name."""
    size_bytes: int
    sha256: str
    shape_bytes: int
    """Of its shape in `shapes`."""
    pieces: int
    """Its digests in `digests`."""


@dataclass(frozen=True)
class Counts:
    """What archiving moved."""

    pieces: int
    read_bytes: int
    new_bytes: int
    """Of pieces that no pack had, before compression."""
    stored_bytes: int
    """Of packs and indexes that were written."""
    sent_bytes: int = 0
    """Over SSH, both ways."""


@dataclass(frozen=True)
class Record:
    """How a snapshot came to be."""

    runner: str
    week: str
    """`2026-W48`."""
    builder: str
    """`docker`, `oci`, `tart`."""
    build_id: str
    image_id: str
    """`sha256:...` of a Docker image's configuration, an OCID, or the name of a Tart machine."""
    architecture: str
    system: str
    tools: Mapping[str, str]
    """Version by tool."""
    base: str
    """What it was built from, as the inventory says it."""
    built_on: str
    """Id of the snapshot that it was built from; empty when that is none of ours."""
    previous: str
    """Id of the runner's snapshot before it; empty for the first."""
    packer: str
    """Its version."""
    template_sha256: str
    """Of template and Ansible role."""
    files: tuple[StoredFile, ...]
    digests_sha256: str
    started_at: str
    finished_at: str
    seconds: float
    """Of archiving."""
    build_seconds: float
    counts: Counts
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(f.size_bytes for f in self.files)

    def to_json(self) -> bytes:
        """Stable bytes."""
        return (json.dumps(asdict(self), sort_keys=True, indent=2) + "\n").encode()


def parse_record(data: bytes, source: str) -> Record:
    """Read a record's bytes; `source` names it in messages.

    Raises:
        IntegrityError: it is none.
    """
    try:
        raw: dict[str, Any] = json.loads(data)
        if raw["format"] != FORMAT:
            raise IntegrityError(f"{source}: format {raw['format']}, this version reads {FORMAT}", hint="upgrade akidb-pipelines")
        files = tuple(StoredFile(**f) for f in raw.pop("files"))
        return Record(files=files, counts=Counts(**raw.pop("counts")), **raw)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{source}: no record of a snapshot: {error!r}", hint="the store is damaged; restore it") from error


@dataclass(frozen=True)
class Snapshot:
    """An archived runner image in the registry."""

    record: Record
    revision: int
    root_sha256: str
    """Digest of the release's manifest, which the registry signs."""
    published_at: str
    in_production: bool = False
    """Whether the channel points at it."""
    pinned: str = ""
    revoked: str = ""

    @property
    def id(self) -> str:
        """`docker/2026-W48/r1`."""
        return f"{self.record.runner}/{self.record.week}/r{self.revision}"

    @property
    def version(self) -> Version:
        """As the registry numbers it."""
        return Version(self.record.week, self.revision)

    @property
    def state(self) -> str:
        """`revoked`, `production` or `candidate`."""
        return "revoked" if self.revoked else PRODUCTION if self.in_production else "candidate"
