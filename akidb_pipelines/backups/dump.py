"""What a dump is: its name, and the record of how it came to be. Values and their text.

In area `cold` of the store, written once and never changed; the record comes last, and what has none is no dump:

    dumps/<database>/<day>/r<N>.db.zst    the database, compressed by zstd
    dumps/<database>/<day>/r<N>.json      the record below
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

from akidb_pipelines.errors import InputError, IntegrityError

FORMAT = 1
ROOT = "dumps/"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_RECORD = re.compile(rf"{ROOT}([^/]+)/(\d{{4}}-\d\d-\d\d)/r(\d+)\.json")
_ID = re.compile(r"([^/]+)(?:/(\d{4}-\d\d-\d\d)(?:/r(\d+))?)?")


def database_name(text: str) -> str:
    """A name of a database, if it is one.

    Raises:
        InputError: it is not.
    """
    if not _NAME.fullmatch(text):
        raise InputError(f"{text!r} is no name for a database", hint="use lower-case letters, digits and dashes")
    return text


@dataclass(frozen=True, order=True)
class DumpKey:
    """Which dump. Keys of a database sort by age."""

    database: str
    day: str
    """`2026-11-26`."""
    revision: int

    @property
    def id(self) -> str:
        """`staging-1-metadata/2026-11-26/r1`."""
        return f"{self.database}/{self.day}/r{self.revision}"

    @property
    def data(self) -> str:
        """Key of the compressed database."""
        return f"{ROOT}{self.id}.db.zst"

    @property
    def record(self) -> str:
        """Key of the record."""
        return f"{ROOT}{self.id}.json"

    @classmethod
    def of_record(cls, key: str) -> DumpKey | None:
        """The dump whose record an object is; None for other objects."""
        match = _RECORD.fullmatch(key)
        return cls(match[1], match[2], int(match[3])) if match else None


@dataclass(frozen=True)
class Wanted:
    """Which dump is asked for: an exact one, the newest of a day, or the newest."""

    database: str
    day: str = ""
    revision: int = 0

    @classmethod
    def parse(cls, text: str) -> Wanted:
        """Read `staging-1-metadata/2026-11-26/r1`, `staging-1-metadata/2026-11-26`, or `staging-1-metadata`.

        Raises:
            InputError: it is not written so.
        """
        match = _ID.fullmatch(text)
        if not match or not _NAME.fullmatch(match[1]):
            raise InputError(
                f"{text!r} names no dump", hint="write it as staging-1-metadata/2026-11-26/r1; akidb-pipelines backups list"
            )
        if match[2]:
            try:
                date.fromisoformat(match[2])
            except ValueError:
                raise InputError(f"{match[2]} is no day of the calendar", hint="write a day such as 2026-11-26") from None
        return cls(match[1], match[2] or "", int(match[3] or 0))

    def means(self, key: DumpKey) -> bool:
        """Whether a dump is one of those."""
        return key.database == self.database and self.day in ("", key.day) and self.revision in (0, key.revision)


@dataclass(frozen=True)
class Record:
    """How a dump came to be, and what is in it."""

    database: str
    day: str
    source: str
    """Where it was taken."""
    snapshot_at: str
    """All that was committed before this moment is in it. RFC 3339."""
    finished_at: str
    seconds: float
    sha256: str
    """Of the database."""
    size_bytes: int
    stored_sha256: str
    """Of the compressed database."""
    stored_bytes: int
    rows: Mapping[str, int]
    """By table."""
    canary: int | None
    """The highest canary sequence in it; None where there is no canary."""
    format: int = FORMAT

    def to_json(self) -> bytes:
        """Stable bytes."""
        return (json.dumps(asdict(self), sort_keys=True, indent=2) + "\n").encode()

    @property
    def taken_at(self) -> datetime:
        """`snapshot_at` as a moment."""
        return datetime.fromisoformat(self.snapshot_at)


def parse_record(data: bytes, source: str) -> Record:
    """Read a record's bytes; `source` names it in messages.

    Raises:
        IntegrityError: it is none.
    """
    try:
        raw: dict[str, Any] = json.loads(data)
        if raw["format"] != FORMAT:
            raise IntegrityError(f"{source}: format {raw['format']}, this version reads {FORMAT}", hint="upgrade akidb-pipelines")
        record = Record(**raw)
        if record.taken_at.tzinfo is None:
            raise ValueError("snapshot_at has no time zone")
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{source}: no record of a dump: {error!r}", hint="use another backup") from error
    return record


@dataclass(frozen=True)
class Dump:
    """A dump in the store."""

    key: DumpKey
    record: Record

    @property
    def id(self) -> str:
        """See DumpKey.id."""
        return self.key.id

    @property
    def root_sha256(self) -> str:
        """Digest of the record, which names the database by digest: what checks are kept under."""
        return hashlib.sha256(self.record.to_json()).hexdigest()

    def age_s(self, now: datetime) -> float:
        """Seconds since its snapshot."""
        return (now - self.record.taken_at).total_seconds()
