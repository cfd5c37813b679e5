"""What a release is: named files with their digests. Values and their text, no store.

artifacts/blobs/sha256/ab/<hex>                             file contents, each once
artifacts/<kind>/releases/<name>/r<N>/SHA256SUMS            claims the revision, for ever
artifacts/<kind>/releases/<name>/r<N>/manifest.json         what the release holds
artifacts/<kind>/releases/<name>/r<N>/provenance.json       how it was made
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from akidb_pipelines.errors import InputError, IntegrityError
from akidb_pipelines.files import digest_file

FORMAT = 1


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
        if unsafe := [f.name for f in files if Path(f.name).name != f.name or f.name.startswith(".")]:
            raise IntegrityError(f"{source}: {unsafe[0]!r} is no plain file name", hint="do not use this release")
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


def release_key(kind: str, name: str, revision: int, file: str) -> str:
    """Where a file about a release is."""
    return f"{kind}/releases/{name}/r{revision}/{file}"


def blob_key(sha256: str) -> str:
    """Where the bytes of a digest are."""
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def released_file(folder: Path, path: Path) -> ReleaseFile:
    """A file of a folder as a release's entry."""
    return ReleaseFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest_file(path))
