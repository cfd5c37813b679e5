"""How a release was made, as an in-toto statement with the SLSA v1 predicate (https://slsa.dev/spec/v1.0/provenance).

The statement's subjects are the release's manifest and every file that it names. It is a TUF target, hence signed with everything else;
it carries no signature of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from akidb_pipelines import __version__
from akidb_pipelines.errors import IntegrityError
from akidb_pipelines.store.manifest import ReleaseManifest

_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://slsa.dev/provenance/v1"
_PROJECT = "https://github.com/aifocal/akidb_pipelines"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Origin:
    """Who made a release, and when."""

    run_id: str
    """Of the Dagster run, or of the process."""
    finished_at: str
    """RFC 3339."""
    adopted: bool = False
    """Whether the release was found in the store when the registry was made, and how it was built is only what its manifest says."""


def statement(manifest: ReleaseManifest, origin: Origin) -> bytes:
    """The provenance of a release.

    Manifest attributes that end in `_sha256` are what it was built from; the others are how.
    """
    inputs = {k: v for k, v in manifest.attributes.items() if k.endswith("_sha256")}
    subjects = [(MANIFEST, manifest.sha256), *((f.name, f.sha256) for f in manifest.files)]
    content: dict[str, Any] = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects],
        "predicateType": _PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": f"{_PROJECT}/{manifest.kind}/v1",
                "externalParameters": {
                    "name": manifest.name,
                    **{k: v for k, v in manifest.attributes.items() if k not in inputs},
                },
                "resolvedDependencies": [
                    {"name": name.removesuffix("_sha256"), "digest": {"sha256": digest}} for name, digest in sorted(inputs.items())
                ],
            },
            "runDetails": {
                "builder": {
                    "id": f"{_PROJECT}/{'adopted' if origin.adopted else 'publisher'}",
                    "version": {"akidb-pipelines": __version__},
                },
                "metadata": {"invocationId": origin.run_id, "finishedOn": origin.finished_at},
            },
        },
    }
    return (json.dumps(content, sort_keys=True, indent=2) + "\n").encode()


def check_statement(data: bytes, manifest: ReleaseManifest, source: str) -> None:
    """That a provenance is one, and speaks of this very release.

    Raises:
        IntegrityError: it does not.
    """
    try:
        content = json.loads(data)
        told = {s["name"]: s["digest"]["sha256"] for s in content["subject"]}
        known = (content["_type"], content["predicateType"]) == (_STATEMENT, _PREDICATE)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{source}: no provenance: {error!r}", hint="do not use this release; ask Platform Engineering"
        ) from error
    expected = {MANIFEST: manifest.sha256, **{f.name: f.sha256 for f in manifest.files}}
    if not known or told != expected:
        raise IntegrityError(
            f"{source}: the provenance speaks of something else than the release",
            hint="do not use this release; ask Platform Engineering",
        )
