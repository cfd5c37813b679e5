"""Where tests publish to and pull from: a folder, a real SeaweedFS, and stubs that hold S3 and OCI clients to OCI's rules."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from akidb_pipelines.settings import Settings
from akidb_pipelines.store.areas import ARTIFACTS, CHANNELS, COLD, TFSTATE
from akidb_pipelines.store.manifest import ReleaseManifest, released_file
from akidb_pipelines.store.publisher import Publisher
from akidb_pipelines.store.pull import Pulled, Puller, Wanted
from tests.services.oci_stub import OciStub
from tests.services.s3_rules_stub import S3RulesStub
from tests.services.seaweed import Seaweed


@dataclass(frozen=True)
class Place:
    """A base URL and what a process needs in its environment to use it."""

    url: str
    environment: dict[str, str]
    server: Any = None

    def settings(self, home: Path, **more: Any) -> Settings:
        told = {n.removeprefix("AKIDB_").lower(): v for n, v in self.environment.items() if n.startswith("AKIDB_")}
        return Settings(home=home, store=self.url, **{**told, **more})


def seaweed_place(server: Seaweed) -> Place:
    name = f"t{secrets.token_hex(4)}"
    server.make_buckets(*(f"{name}-{a}" for a in (ARTIFACTS, CHANNELS)))
    return Place(f"s3://{name}", server.environment(), server)


def rules_place(stub: S3RulesStub) -> Place:
    stub.make_buckets(*(f"test-{a}" for a in (ARTIFACTS, CHANNELS)))
    return Place("s3://test", stub.environment(), stub)


def oci_place(stub: OciStub, folder: Path) -> Place:
    stub.make_buckets(*(f"test-{a}" for a in (ARTIFACTS, CHANNELS)))
    environment = {"OCI_CONFIG_FILE": str(stub.config_file(folder)), "AKIDB_OCI_ENDPOINT": stub.endpoint}
    return Place("oci://axns/test", environment, stub)


def place_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> Place:
    if kind == "local":
        return Place(f"file://{folder / 'store'}", {})
    if kind == "s3":
        return seaweed_place(request.getfixturevalue("seaweed"))
    if kind == "s3 by OCI's rules":
        return rules_place(request.getfixturevalue("s3_rules"))
    return oci_place(request.getfixturevalue("oci_stub"), folder)


def with_cold(place: Place) -> Place:
    """With the buckets that backups go to, too."""
    if place.server:
        base = place.url.rpartition("/")[2]
        place.server.make_buckets(f"{base}-{COLD}", f"{base}-{TFSTATE}")
    return place


BACK_ENDS = ("local", "s3", "s3 by OCI's rules", "oci")


def use(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a place's credentials into this process's environment."""
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)


def content(folder: Path, name: str, **files: bytes) -> tuple[ReleaseManifest, Path]:
    """Files in a folder, and the manifest of their release."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for file, data in files.items():
        (folder / file).write_bytes(data)
        entries.append(released_file(folder, folder / file))
    return ReleaseManifest("fixtures", name, tuple(entries)), folder


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of ours, for programs that are started."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AKIDB_", "DAGSTER_", "AWS_", "OCI_"))}
    return {**kept, **more}


KIND = "fixtures"


def pull(publisher: Publisher, folder: Path, **wanted: str) -> Pulled:
    """Pull as the machine that publishes: its cache and its `out` below a folder."""
    return Puller(publisher.registry, folder / "cache").pull(Wanted(KIND, **wanted), folder / "out")


def three_weeks(publisher: Publisher, folder: Path) -> None:
    """Release three small weeks."""
    for week in ("2026-W46", "2026-W47", "2026-W48"):
        publisher.publish(*content(folder / week, week, db=week.encode()))
