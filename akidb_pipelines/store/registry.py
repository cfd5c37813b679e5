"""Reading a registry: what is released, where channels point, and the bytes, each verified down to the trusted root.

    trusted root > timestamp > snapshot > targets (the index) > manifest > blobs

Needs the registry's URL and its root metadata, no key. Which root is trusted, in this order:

1. the file that AKIDB_REGISTRY_ROOT (or --root) names;
2. of a `file://` store, the root that lies in it: whoever may write that folder is trusted anyway (docs/registry.md names the limits);
3. `root.json` of the registry's folder under AKIDB_HOME, where `registry init` leaves it on the machine that made the registry.

Never the root that a server offers.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from akidb_pipelines.errors import InputError, IntegrityError
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.areas import ARTIFACTS, CHANNELS, area
from akidb_pipelines.store.index import LATEST, Entry, Index, Version
from akidb_pipelines.store.manifest import Release, ReleaseFile, blob_key, parse_release_manifest, release_key
from akidb_pipelines.store.metadata import root_key
from akidb_pipelines.store.objects import MissingObjectError, ObjectStore, other_digest
from akidb_pipelines.store.provenance import check_statement
from akidb_pipelines.store.trust import Trust

_MOST_BYTES = 16 << 20
"""No manifest is longer: what is, is not read to its end."""


@dataclass(frozen=True)
class Registry:
    """One registry, seen from one machine.

    Args:
        url: base URL of its store.
        artifacts, channels: its areas.
        folder: what this machine keeps of it: root, verified metadata, keys.
        root_file: root metadata that is to be trusted; None looks where the module says.
    """

    url: str
    artifacts: ObjectStore
    channels: ObjectStore
    folder: Path
    root_file: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return self.url.startswith("file://")

    @property
    def own_root(self) -> Path:
        """Where the machine that made the registry keeps its root."""
        return self.folder / "root.json"

    def root(self) -> bytes | None:
        """The root metadata to trust; None for a folder that is no registry yet.

        Raises:
            InputError: there is none for a store that is not a folder, or the file cannot be read.
        """
        if self.root_file:
            try:
                return self.root_file.read_bytes()
            except OSError as error:
                hint = "set AKIDB_REGISTRY_ROOT (or --root) to the registry's root.json"
                raise InputError(f"trusted root {self.root_file}: {error.strerror}", hint=hint) from error
        if self.is_local:
            try:
                return self.channels.read(root_key(1))
            except MissingObjectError:
                return None
        if self.own_root.is_file():
            return self.own_root.read_bytes()
        raise InputError(
            f"registry {self.url}: no root metadata to trust",
            hint="ask Platform Engineering for its root.json and set AKIDB_REGISTRY_ROOT (or --root) to it; "
            "if there is no registry yet: akidb-pipelines registry init",
        )

    def trust(self, root: bytes) -> Trust:
        """The client's verification, beginning with a root."""
        return Trust(self.channels, self.folder / "trust", root)

    def index(self) -> Index:
        """Everything that is released, as of now; empty when nothing was ever released.

        Raises:
            IntegrityError, OutsideError: see Trust.refresh.
        """
        root = self.root()
        if root is None:
            return Index()
        try:
            return self.trust(root).refresh()
        except MissingObjectError:
            # Raised for a timestamp that nobody has seen here: a registry that was made and holds nothing yet.
            return Index()

    # --- one release

    def newest(self, kind: str, name: str) -> Release | None:
        """The highest revision of a name that may be used, or None."""
        entry = self.index().newest(kind, name)
        return self.release(entry) if entry else None

    def get(self, kind: str, version: Version) -> Release:
        """One release.

        Raises:
            InputError: there is none.
        """
        return self.release(self.index().get(kind, version))

    def head(self, kind: str, channel: str = LATEST) -> Release:
        """What a channel points at.

        Raises:
            InputError: nothing.
        """
        index = self.index()
        head = index.head(kind, channel)
        if head is None:
            hint = "run `make run`, or check AKIDB_STORE" if channel == LATEST else "akidb-pipelines registry promote RELEASE"
            raise InputError(f"registry {self.url}: channel {channel} of {kind} points at nothing yet", hint=hint)
        return self.release(index.get(kind, head.version))

    def release(self, entry: Entry) -> Release:
        """The release behind an entry of the index, its manifest verified.

        Raises:
            IntegrityError: the store holds another manifest than the index names.
        """
        key = release_key(entry.kind, entry.version.name, entry.version.revision, "manifest.json")
        source = f"{self.artifacts.url}/{key}"
        try:
            data = self.artifacts.read(key, 0, _MOST_BYTES + 1)
        except MissingObjectError as error:
            told = f"{error.message}, though the registry names it"
            raise IntegrityError(told, hint="release it again: the same bytes fill the gap; docs/runbooks/pull-fails.md") from error
        found = hashlib.sha256(data).hexdigest()
        if found != entry.manifest_sha256:
            raise IntegrityError(
                f"{source} has digest {found}, the registry says {entry.manifest_sha256}",
                hint="the store was changed by hand: release the week again; docs/runbooks/pull-fails.md",
            )
        return Release(parse_release_manifest(data, source), entry.version.revision)

    def check_provenance(self, entry: Entry, release: Release) -> None:
        """That the signed provenance speaks of this very release.

        Raises:
            IntegrityError: it does not.
        """
        root = self.root()
        assert root is not None, "an entry comes from an index, and that from a root"
        check_statement(self.trust(root).provenance(entry), release.manifest, f"{release.id}/provenance.json")

    def read_file(self, file: ReleaseFile) -> bytes:
        """A small file's content, verified.

        Raises:
            IntegrityError: the store holds other bytes than the manifest says.
        """
        data = self.artifacts.read(blob_key(file.sha256))
        found = hashlib.sha256(data).hexdigest()
        if found != file.sha256:
            raise other_digest(f"{self.artifacts.url}: {file.name}", found, file.sha256)
        return data


def open_registry(settings: Settings, url: str = "", root: Path | None = None) -> Registry:
    """The registry of a store (default: the settings').

    Raises:
        InputError: the URL is unusable.
    """
    url = (url or settings.store_url).rstrip("/")
    return Registry(
        url=url,
        artifacts=area(settings, ARTIFACTS, url),
        channels=area(settings, CHANNELS, url),
        folder=settings.home / "registry" / _folder_name(url),
        root_file=root or settings.registry_root,
    )


def _folder_name(url: str) -> str:
    readable = re.sub(r"[^a-z0-9]+", "-", url.lower()).strip("-")[-40:]
    return f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
