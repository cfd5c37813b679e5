"""What a registry says: every release, and where each channel points. Values and their text; no store, no keys.

One document a kind, `<kind>/index.json`, is the truth. It is a TUF target, hence signed; so are, for whoever follows a channel or checks a
provenance with any TUF client (https://theupdateframework.github.io/specification/latest/), two kinds of targets that follow from it:

    <kind>/channels/<channel>.json                  names a release and its manifest's digest
    <kind>/releases/<name>/r<N>/provenance.json     the SLSA provenance of a release

(Not every release a target with a `custom` field: TUF's canonical JSON is slow, and a thousand targets made pulling three times as dear.)

A channel moves forward only. `high` is the furthest release it ever reached: a rollback moves the head back under a new sequence number and
leaves `high`, so that releasing the withdrawn bytes again does not bring them back. `history` is where it may go back to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from akidb_pipelines.errors import InputError, IntegrityError

LATEST, STABLE, GOLDEN, PRODUCTION = "latest", "stable", "golden", "production"
CHANNELS = (LATEST, STABLE, GOLDEN, PRODUCTION)
"""`latest` follows every new release; `stable` is promoted by hand; `golden`, of Jetson images, and `production`, of runner images, once all
checks have passed."""


HISTORY = 8
"""So many earlier releases a channel remembers."""


def known_channel(name: str) -> str:
    """The name of a channel, if it is one.

    Raises:
        InputError: it is not.
    """
    if name not in CHANNELS:
        raise InputError(f"there is no channel {name!r}", hint=f"choose among {', '.join(CHANNELS)}")
    return name


_ID = re.compile(r"([^/]+)/r(\d+)")


@dataclass(frozen=True, order=True)
class Version:
    """A revision of a named release. Names sort by age, so versions do."""

    name: str
    revision: int

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read `2026-W47/r1`.

        Raises:
            InputError: it is not written so.
        """
        match = _ID.fullmatch(text)
        if not match:
            raise InputError(
                f"{text!r} names no release", hint="write it as 2026-W47/r1; `akidb-pipelines registry status` lists them"
            )
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        return f"{self.name}/r{self.revision}"


@dataclass(frozen=True)
class Entry:
    """A release as the registry vouches for it."""

    kind: str
    version: Version
    manifest_sha256: str
    size_bytes: int
    published_at: str
    """RFC 3339."""
    provenance_sha256: str
    provenance_bytes: int
    revoked: str = ""
    """Why it must not be used any more; empty when it may."""
    pinned: str = ""
    """Why it is kept for ever; empty when it is not."""
    retired_at: str = ""
    """Since when nothing keeps it any more; after the grace it is removed."""

    @property
    def path(self) -> str:
        """Of its target."""
        return f"{self.kind}/releases/{self.version}/provenance.json"

    @property
    def note(self) -> str:
        """What is special about it, in a few words; mostly nothing."""
        told = (("revoked", self.revoked), ("pinned", self.pinned), ("retired", self.retired_at))
        return "; ".join(f"{what}: {value}" for what, value in told if value)


@dataclass(frozen=True)
class Head:
    """Where a channel points."""

    kind: str
    channel: str
    version: Version
    manifest_sha256: str
    sequence: int
    """One more with every move."""
    moved_at: str
    high: Version
    """The furthest release it ever pointed at."""
    reason: str = ""
    history: tuple[str, ...] = ()
    """Releases that it pointed at before, oldest first, without those that it was rolled back from."""

    @property
    def path(self) -> str:
        """Of its target."""
        return f"{self.kind}/channels/{self.channel}.json"

    def to_json(self) -> bytes:
        """The target's content."""
        return (json.dumps(_fields(self), sort_keys=True, indent=2) + "\n").encode()


@dataclass(frozen=True)
class Index:
    """Everything that is released."""

    entries: Mapping[tuple[str, Version], Entry] = field(default_factory=dict)
    heads: Mapping[tuple[str, str], Head] = field(default_factory=dict)

    # --- asking

    def kinds(self) -> list[str]:
        """Every kind that has a release, in order."""
        return sorted({kind for kind, _ in self.entries})

    def of(self, kind: str) -> list[Entry]:
        """The releases of a kind, oldest first."""
        return sorted((e for e in self.entries.values() if e.kind == kind), key=lambda e: e.version)

    def names(self, kind: str) -> list[str]:
        """Every name that has a release which may be used, in order."""
        return sorted({e.version.name for e in self.of(kind) if not e.revoked})

    def newest(self, kind: str, name: str) -> Entry | None:
        """The highest revision of a name that may be used."""
        return max((e for e in self._revisions(kind, name) if not e.revoked), key=lambda e: e.version, default=None)

    def last(self, kind: str, name: str) -> Entry | None:
        """The highest revision of a name, withdrawn or not."""
        return max(self._revisions(kind, name), key=lambda e: e.version, default=None)

    def _revisions(self, kind: str, name: str) -> list[Entry]:
        return [e for e in self.entries.values() if e.kind == kind and e.version.name == name]

    def get(self, kind: str, version: Version) -> Entry:
        """One release.

        Raises:
            InputError: there is none.
        """
        if entry := self.entries.get((kind, version)):
            return entry
        have = ", ".join(str(e.version) for e in self.of(kind)[-5:]) or "none"
        raise InputError(f"there is no release {version} of {kind}; the newest are {have}", hint="choose one of these")

    def head(self, kind: str, channel: str) -> Head | None:
        """Where a channel points, or None if it was never moved or all it pointed at was withdrawn."""
        return self.heads.get((kind, channel))

    # --- changing: each returns a new index

    def with_entry(self, entry: Entry) -> Index:
        """Add or replace a release."""
        return replace(self, entries={**self.entries, (entry.kind, entry.version): entry})

    def without(self, entries: Iterable[Entry]) -> Index:
        """Take releases out."""
        gone = {(e.kind, e.version) for e in entries}
        return replace(self, entries={k: e for k, e in self.entries.items() if k not in gone})

    def advanced(self, channel: str, entry: Entry, now: str, reason: str) -> Index:
        """Move a channel forward to a release, if that is further than it ever was; else as it is."""
        head = self.head(entry.kind, channel)
        if head and head.high >= entry.version:
            return self
        return self._forward(channel, head, entry, now, reason)

    def promoted(self, channel: str, entry: Entry, now: str, reason: str) -> Index:
        """Move a channel forward to a release because somebody says so; also to one that it was rolled back from.

        Raises:
            InputError: the release is withdrawn, or not ahead of where the channel points.
        """
        if entry.revoked:
            raise InputError(f"{entry.version} was revoked: {entry.revoked}", hint="promote another release")
        head = self.head(entry.kind, channel)
        if head and head.version == entry.version:
            return self
        if head and head.version > entry.version:
            told = f"channel {channel} of {entry.kind} points at {head.version}, which is ahead of {entry.version}"
            raise InputError(
                told, hint="channels move forward only; to go back on purpose, use `akidb-pipelines registry rollback`"
            )
        return self._forward(channel, head, entry, now, reason)

    def _forward(self, channel: str, head: Head | None, entry: Entry, now: str, reason: str) -> Index:
        if head is None:
            return self._moved(Head(entry.kind, channel, entry.version, entry.manifest_sha256, 1, now, entry.version, reason))
        history = (*head.history, str(head.version))[-HISTORY:]
        high = max(head.high, entry.version)
        return self._moved(replace(_pointing(head, entry, now, reason), high=high, history=history))

    def rolled_back(self, kind: str, channel: str, to: Version | None, now: str, reason: str) -> Index:
        """Move a channel back to an earlier release (default: where it pointed before), under a new sequence number.

        Raises:
            InputError: the channel points nowhere, or there is no such earlier release that may be used.
        """
        head = self.head(kind, channel)
        if head is None:
            raise InputError(f"channel {channel} of {kind} points at nothing", hint="there is nothing to roll back")
        entry = self.get(kind, to) if to else self._before(head)
        if entry is None or entry.version >= head.version or entry.revoked:
            what = "is revoked" if entry and entry.revoked else f"is not before {head.version}" if entry else "is not there"
            raise InputError(
                f"channel {channel} of {kind} cannot go back: {to or 'an earlier release'} {what}",
                hint="name an earlier release with --to; `akidb-pipelines registry status` lists them",
            )
        return self._moved(_pointing(head, entry, now, reason))

    def revoked(self, entry: Entry, now: str, reason: str) -> Index:
        """Withdraw a release; channels that point at it go back to where they pointed before, or point nowhere if they never did."""
        index = self.with_entry(replace(entry, revoked=reason))
        for head in [h for h in self.heads.values() if h.kind == entry.kind and h.version == entry.version]:
            before = index._before(head)
            if before:
                index = index._moved(_pointing(head, before, now, f"{entry.version} revoked: {reason}"))
            else:
                index = replace(index, heads={k: h for k, h in index.heads.items() if h != head})
        return index

    def _before(self, head: Head) -> Entry | None:
        """The release that a channel pointed at last, of those that may still be used."""
        known = (self.entries.get((head.kind, Version.parse(text))) for text in reversed(head.history))
        return next((e for e in known if e and not e.revoked and e.version < head.version), None)

    def _moved(self, head: Head) -> Index:
        return replace(self, heads={**self.heads, (head.kind, head.channel): head})


def _pointing(head: Head, entry: Entry, now: str, reason: str) -> Head:
    """A head moved to a release; what it leaves is forgotten unless the caller adds it to the history."""
    return replace(
        head,
        version=entry.version,
        manifest_sha256=entry.manifest_sha256,
        sequence=head.sequence + 1,
        moved_at=now,
        reason=reason,
        history=tuple(text for text in head.history if Version.parse(text) < entry.version),
    )


# --- as documents

PROVENANCE_TARGETS = 32
"""So many of a kind's newest releases have their provenance listed as a target, besides those that channels and pins name. The index names
the digest of every provenance."""


def index_path(kind: str) -> str:
    """The target that holds a kind's index."""
    return f"{kind}/index.json"


def kind_of(path: str) -> str | None:
    """The kind whose index a target holds, or None if it holds something else."""
    kind, _, rest = path.partition("/")
    return kind if rest == "index.json" else None


def to_documents(index: Index) -> dict[str, bytes]:
    """The documents that say what an index says, by target path."""
    documents = {head.path: head.to_json() for head in index.heads.values()}
    for kind in sorted({kind for kind, _ in (*index.entries, *index.heads)}):
        content = {
            "releases": [_fields(e, without=("kind",)) for e in index.of(kind)],
            "channels": [_fields(h, without=("kind",)) for h in index.heads.values() if h.kind == kind],
        }
        documents[index_path(kind)] = (json.dumps(content, sort_keys=True) + "\n").encode()
    return documents


def listed_provenances(index: Index) -> list[Entry]:
    """The releases whose provenance is a target."""
    pointed = {(h.kind, h.version) for h in index.heads.values()}
    listed = []
    for kind in index.kinds():
        entries = index.of(kind)
        older, newest = entries[:-PROVENANCE_TARGETS], entries[-PROVENANCE_TARGETS:]
        listed += [e for e in older if e.pinned or (kind, e.version) in pointed] + newest
    return listed


def from_documents(documents: Mapping[str, bytes]) -> Index:
    """Read verified indexes, by kind.

    Raises:
        IntegrityError: one is none; whoever signed it used another version.
    """
    entries: dict[tuple[str, Version], Entry] = {}
    heads: dict[tuple[str, str], Head] = {}
    for kind, data in documents.items():
        try:
            content = json.loads(data)
            for fields in content["releases"]:
                version = Version.parse(fields.pop("version"))
                entries[kind, version] = Entry(kind=kind, version=version, **fields)
            for fields in content["channels"]:
                version, high = Version.parse(fields.pop("version")), Version.parse(fields.pop("high"))
                history = tuple(fields.pop("history", ()))
                heads[kind, fields["channel"]] = Head(kind=kind, version=version, high=high, history=history, **fields)
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise IntegrityError(f"registry: the index of {kind} is none: {error!r}", hint="upgrade akidb-pipelines") from error
    return Index(entries, heads)


def _fields(value: Entry | Head, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A value's fields as JSON has them; what is empty is left out."""
    fields = {name: value for name, value in vars(value).items() if name not in without and value not in ("", ())}
    return {name: str(value) if isinstance(value, Version) else value for name, value in fields.items()}


Change = Callable[[Index], Index]
"""What a publisher does to the index: given the newest verified one, returns the next."""
