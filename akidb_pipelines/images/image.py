"""What an image is: its name, and the record of its capture. Values and their text.

An image is a release of kind `images.<name>` in the registry, hence immutable, signed, and revoked or pinned like any other:

    image.json      the record below; the digest of the release's manifest, which names it, is the image's signed root
    digests         32 bytes a block, in order; zeros for a block of zeros
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from akidb_pipelines.errors import InputError, IntegrityError
from akidb_pipelines.images.drives import BLOCK_BYTES, Partition
from akidb_pipelines.store.index import GOLDEN, LATEST, Version

FORMAT = 1
RECORD, DIGESTS = "image.json", "digests"
_KIND = "images."
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
_ID = re.compile(r"(?P<name>[^/@]+)(?:/(?P<period>[^/@]+)(?:/r(?P<revision>\d+))?|@(?P<channel>\w+))?")


class Mode(StrEnum):
    """How still the drive was while it was read."""

    FROZEN = "frozen"
    """Its file systems were frozen while what had changed was read again."""
    OFFLINE = "offline"
    """Nothing had it mounted for writing, and nobody wrote."""
    LIVE = "live"
    """Somebody could write meanwhile: file systems on it may be broken. Never golden."""

    @property
    def is_sound(self) -> bool:
        """Whether the image is of one moment."""
        return self is not Mode.LIVE


def kind_of(name: str, prefix: str = _KIND) -> str:
    """The registry's kind of the images of a name; `prefix` for images of another sort.

    Raises:
        InputError: it is no name for images.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for an image", hint="use lower-case letters, digits and dashes, such as jetson-a")
    return prefix + name


def image_name(kind: str, prefix: str = _KIND) -> str | None:
    """The name whose images are of a kind; None for other kinds."""
    return kind.removeprefix(prefix) if kind.startswith(prefix) else None


@dataclass(frozen=True)
class ImageRef:
    """How an image is asked for: `jetson-a/2026-11/r1`, `jetson-a/2026-11` (its newest), `jetson-a@golden`, `jetson-a` (its latest)."""

    name: str
    period: str = ""
    revision: int = 0
    channel: str = ""

    @classmethod
    def parse(
        cls,
        text: str,
        channels: tuple[str, str] = (LATEST, GOLDEN),
        example: str = "jetson-a/2026-11",
        listing: str = "images list",
    ) -> ImageRef:
        """Read it.

        Args:
            text: as written.
            channels: that may be named.
            example: of a name and a period, for messages.
            listing: the command that has all.

        Raises:
            InputError: it is not written so.
        """
        match = _ID.fullmatch(text)
        if not match or (match["channel"] or LATEST) not in channels:
            name = example.partition("/")[0]
            hint = f"write it as {example}/r1, {example}, {name}@{channels[-1]} or {name}; `akidb-pipelines {listing}` has all"
            raise InputError(f"{text!r} names no image", hint=hint)
        kind_of(match["name"])
        channel = match["channel"] or ("" if match["period"] else LATEST)
        return cls(match["name"], match["period"] or "", int(match["revision"] or 0), channel)


@dataclass(frozen=True)
class Board:
    """The board and the drive that an image was taken from; empty for what was no device."""

    spec: str = ""
    model: str = ""
    serial: str = ""
    l4t_release: str = ""
    drive_model: str = ""
    drive_serial: str = ""
    efi_entries: tuple[str, ...] = ()
    qspi: str = ""
    """Where the copy of its QSPI flash is: a drive alone may not boot."""


@dataclass(frozen=True)
class Counts:
    """What a capture moved."""

    blocks: int
    zero_blocks: int
    changed_blocks: int
    """Not as in the parent."""
    read_bytes: int
    """From the drive, in all passes."""
    new_bytes: int
    """Of blocks that no pack had, before compression."""
    stored_bytes: int
    """Of packs and indexes that were written."""
    sent_bytes: int
    """Over the wire, both ways; 0 where there was none."""


@dataclass(frozen=True)
class Record:
    """The record of a capture."""

    name: str
    period: str
    source: str
    """The drive, as the capture reached it."""
    size_bytes: int
    digests_sha256: str
    mode: Mode
    mode_reason: str
    """Why it is that mode."""
    parent: str
    """Id of the image that this one was compared with; empty for the first."""
    parent_root: str
    started_at: str
    finished_at: str
    seconds: float
    frozen_seconds: float
    counts: Counts
    board: Board
    partitions: tuple[Partition, ...]
    tools: Mapping[str, str] = field(default_factory=dict)
    block_bytes: int = BLOCK_BYTES
    algorithm: str = "sha256"
    format: int = FORMAT

    @property
    def used_bytes(self) -> int:
        """Of the blocks that are not zeros."""
        return (self.counts.blocks - self.counts.zero_blocks) * self.block_bytes

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
        if (raw["format"], raw["block_bytes"], raw["algorithm"]) != (FORMAT, BLOCK_BYTES, "sha256"):
            raise InputError(
                f"{source}: format {raw['format']}, blocks of {raw['block_bytes']} bytes by {raw['algorithm']}; this version reads "
                f"{FORMAT}, {BLOCK_BYTES}, sha256",
                hint="upgrade akidb-pipelines",
            )
        board = raw.pop("board")
        return Record(
            mode=Mode(raw.pop("mode")),
            counts=Counts(**raw.pop("counts")),
            board=Board(**{**board, "efi_entries": tuple(board["efi_entries"])}),
            partitions=tuple(Partition(**p) for p in raw.pop("partitions")),
            **raw,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{source}: no record of a capture: {error!r}", hint="the store is damaged; restore it") from error


@dataclass(frozen=True)
class Image:
    """A captured image in the registry."""

    record: Record
    revision: int
    root_sha256: str
    """Digest of the release's manifest, which the registry signs."""
    published_at: str
    golden: bool = False
    """Whether the channel points at it."""
    pinned: str = ""
    revoked: str = ""

    @property
    def id(self) -> str:
        """`jetson-a/2026-11/r1`."""
        return f"{self.record.name}/{self.record.period}/r{self.revision}"

    @property
    def version(self) -> Version:
        """As the registry numbers it."""
        return Version(self.record.period, self.revision)

    @property
    def state(self) -> str:
        """`revoked`, `golden` or `candidate`."""
        return "revoked" if self.revoked else GOLDEN if self.golden else "candidate"


def digest_array_sha256(digests: bytes | bytearray) -> str:
    """What names an image's content."""
    return hashlib.sha256(digests).hexdigest()
