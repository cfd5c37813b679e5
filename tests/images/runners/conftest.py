"""Exports of Docker images made by hand, and a shelf in a folder."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from akidb_pipelines.images.runners.archive import Archived, archive_docker
from akidb_pipelines.images.runners.build import Built
from akidb_pipelines.images.runners.docker_image import Config
from akidb_pipelines.images.runners.shelf import Shelf, open_shelf
from akidb_pipelines.settings import Settings

W46, W47, W48 = "2026-W46", "2026-W47", "2026-W48"


def layer(files: Mapping[str, bytes], mtime: int = 0) -> bytes:
    """A layer with these files, all of one age, as an engine packs it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), mtime
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def files_of(count: int = 40, seed: int = 1) -> dict[str, bytes]:
    """Files of all sizes from nothing to some pieces, each with content of its own."""
    sizes = random.Random(seed)
    return {f"usr/lib/{n:03}": noise(seed * 1000 + n, int(200_000 * sizes.random() ** 4)) for n in range(count)}


@dataclass(frozen=True)
class Export:
    """What `docker save` would write of an image."""

    config: Config
    layers: tuple[bytes, ...]

    def tar(self, *, blobs: bool = False) -> bytes:
        """In the form of old engines, or with blobs by digest."""
        digests = [d.removeprefix("sha256:") for d in self.config.layers]
        name = self.config.image_id.removeprefix("sha256:")
        config_name = f"blobs/sha256/{name}" if blobs else f"{name}.json"
        layer_names = [f"blobs/sha256/{d}" if blobs else f"{d}/layer.tar" for d in digests]
        manifest = json.dumps([{"Config": config_name, "RepoTags": None, "Layers": layer_names}]).encode()
        named = dict(zip(layer_names, self.layers, strict=True))
        return layer({**named, config_name: self.config.data, "manifest.json": manifest})


def export_of(*layers: bytes, label: str = "") -> Export:
    content = {
        "architecture": "arm64",
        "os": "linux",
        "config": {"Labels": {"note": label}},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]},
    }
    return Export(Config(json.dumps(content).encode()), layers)


def built(export: Export, week: str = W47, runner: str = "docker", **more: Any) -> Built:
    """A build that made this image."""
    facts = {"tools": [{"name": "git", "found": "2.39.5", "wanted": ">=2.39", "ok": True}], "packages": {}, "system": "Debian"}
    made = Built(
        runner=runner,
        week=week,
        builder="docker",
        build_id=f"{week.lower()}-0",
        image=f"akidb/runner-{runner}:{week.lower()}-0",
        image_id=export.config.image_id,
        base="akidb/lab-base:bookworm",
        base_id="",
        packer="1.6.6",
        template_sha256="0" * 64,
        seconds=1.0,
        facts=facts,
    )
    return replace(made, **more)


def archived(shelf: Shelf, export: Export, week: str = W47, *, blobs: bool = False, **more: Any) -> Archived:
    return archive_docker(shelf, built(export, week, **more), io.BytesIO(export.tar(blobs=blobs)))


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    return open_shelf(Settings(home=tmp_path / "home"))
