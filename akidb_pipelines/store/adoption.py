"""Taking releases that lie in a store already into a registry that is being made: from before there was one, or after its keys were lost.

What is adopted was never signed, or not by a key that still counts: each release is read to its last byte, and its provenance says that how
it was built is known from its manifest only. What does not verify stays where it is, and out of the index.
"""

from __future__ import annotations

from collections.abc import Iterator

from akidb_pipelines.errors import InputError, IntegrityError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.store.index import LATEST, Index, Version
from akidb_pipelines.store.manifest import ReleaseManifest, blob_key, parse_release_manifest
from akidb_pipelines.store.metadata import put_entry
from akidb_pipelines.store.provenance import Origin, statement
from akidb_pipelines.store.registry import Registry


def adopt(registry: Registry, now: str, report: Report) -> Index:
    """An index of every release in the store that verifies; `latest` points at the newest of each kind.

    Args:
        registry: where; provenances are stored there as targets.
        now: RFC 3339.
        report: told what stays out and why.
    """
    index = Index()
    for key, kind, name, revision in sorted(_manifests(registry), key=lambda found: found[1:]):
        try:
            version = Version.parse(f"{name}/{revision}")
            manifest = parse_release_manifest(registry.artifacts.read(key), key)
            if (manifest.kind, manifest.name) != (kind, name):
                raise IntegrityError(f"{key} is the manifest of {manifest.kind} {manifest.name}")
            _read_all(registry, manifest)
        except (IntegrityError, InputError) as error:
            report(Progress(f"{kind} {name}/{revision} is not adopted: {error.message}"))
            continue
        provenance = statement(manifest, Origin("", now, adopted=True))
        entry = put_entry(registry.channels, manifest, version, provenance, now)
        index = index.with_entry(entry).advanced(LATEST, entry, now, "adopted")
    return index


def _manifests(registry: Registry) -> Iterator[tuple[str, str, str, str]]:
    """Key, kind, name and revision of everything that looks like a release."""
    for info in registry.artifacts.list(""):
        parts = info.key.split("/")
        if len(parts) == 5 and parts[1] == "releases" and parts[-1] == "manifest.json":
            yield info.key, parts[0], parts[2], parts[3]


def _read_all(registry: Registry, manifest: ReleaseManifest) -> None:
    with scratch_folder(registry.folder) as work:
        for file in manifest.files:
            key = blob_key(file.sha256)
            registry.artifacts.fetch(key, work / file.name, sha256=file.sha256, size_bytes=file.size_bytes)
            (work / file.name).unlink()


def forget_old_pointers(registry: Registry) -> None:
    """Remove the unsigned pointers of versions before the registry: whoever followed them would stand still without knowing."""
    old = [i.key for i in registry.channels.list("") if i.key.endswith("/latest.json") and not i.key.startswith("tuf/")]
    registry.channels.delete(old)
