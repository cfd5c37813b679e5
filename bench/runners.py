"""Images of runners: 800 MiB archived, and the same rebuilt a week later, against `docker save | zstd`, and against fixed blocks."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.lab.runner import RunnerLab
from bench.images import Content
from bench.measure import Line, Took, measure

_SIZE = 800 << 20
_CHANGED, _ADDED = 0.015, 0.005
_ROUNDS = 3

_SETUP = """
import os, subprocess
from contextlib import closing
from pathlib import Path
from akidb_pipelines.images.capture import CaptureRequest, capture
from akidb_pipelines.images.drives import LocalDrive
from akidb_pipelines.images.library import open_library
from akidb_pipelines.images.runners.archive import archive_docker
from akidb_pipelines.images.runners.build import Built
from akidb_pipelines.images.runners.engine import Engine
from akidb_pipelines.images.runners.restore import restore
from akidb_pipelines.images.runners.shelf import open_shelf
from akidb_pipelines.periods import Month
from akidb_pipelines.settings import Settings
import akidb_pipelines.store.trust, tuf.api.metadata, tuf.ngclient, securesystemslib.signer, docker
folder = Path({folder!r})
os.environ["DOCKER_HOST"] = {engine!r}
engine = Engine({engine!r})
def settings(home):
    return Settings(home=folder / home, store=f"file://{{folder / home}}/store")
def archived(home, week):
    name = f"bench/runner:{{week}}"
    built = Built("docker", f"2026-W{{week}}", "docker", "0", name, engine.image_id(name), "bench", "", "", "", 0.0)
    with engine.exported(name) as stream:
        return archive_docker(open_shelf(settings(home)), built, stream)
os.sync()
"""
_ARCHIVE = "value = archived({home!r}, {week}).counts.stored_bytes"
_SAVE = "subprocess.run('docker save bench/runner:46 | zstd -3 -T2 -q -f -o image.zst', shell=True, check=True, cwd=folder)"
_RESTORE = """
shelf = open_shelf(settings({home!r}))
snapshot = shelf.find("docker/2026-W47")
restore(shelf, snapshot, folder / "restored.tar")
"""
_LOAD = (
    _RESTORE
    + """
engine.remove(snapshot.record.image_id)
value = [engine.image_id(snapshot.record.image_id), engine.load(folder / "restored.tar"), snapshot.record.image_id]
"""
)
_BLOCKS = """
library = open_library(settings("blocks"))
def blocks(week, month):
    return capture(library, LocalDrive(folder / f"{week}.tar"), CaptureRequest("layer", Month.parse(month))).counts.stored_bytes
blocks(46, "2026-10")
value = blocks(47, "2026-11")
"""


def lines(work: Path) -> Iterator[Line]:
    """Run the comparisons; `work` needs room for some 8 GiB. Needs root, docker.io and debootstrap."""
    folder = work.resolve() / "runners"
    folder.mkdir()
    try:
        with _engine(folder) as url:
            yield from _measured(folder, url)
    except OutsideError as error:
        yield Line("archive of a runner image", "not measured", "", None, error.message)
    shutil.rmtree(folder)


@contextmanager
def _engine(folder: Path) -> Iterator[str]:
    """An engine of our own, without the lab's base image."""
    home = Path(tempfile.mkdtemp(prefix="akidb-"))  # a socket's path must be short
    lab = RunnerLab(home / "lab", folder)
    try:
        lab.start()
        yield lab.url
    finally:
        lab.down()
        shutil.rmtree(home)


def _measured(folder: Path, url: str) -> Iterator[Line]:
    for week, path in _layers(folder):
        subprocess.run(["docker", "--host", url, "import", path, f"bench/runner:{week}"], check=True, capture_output=True)
    setup = _SETUP.format(folder=str(folder), engine=url)
    save: list[Took] = []
    ours: list[Took] = []
    has_zstd = shutil.which("zstd") is not None
    measure(_SAVE, setup)  # an engine's first export of an image is slower than all later ones
    for n in range(_ROUNDS):
        if has_zstd:
            save.append(measure(_SAVE, setup))
        ours.append(measure(_ARCHIVE.format(home=f"home-{n}", week=46), setup))
    seconds = median(t.wall_s for t in ours)
    if has_zstd:
        other = median(t.wall_s for t in save)
        told = f"{seconds:.2f} s against {other:.2f} s, medians of {_ROUNDS}"
        yield Line(
            "archive, week 1 / docker save | zstd -3 -T2", f"{seconds / other:.2f}x", "<= 1.3x", seconds <= 1.3 * other, told
        )
    second = measure(_ARCHIVE.format(home="home-0", week=47), setup)
    mib = second.value / (1 << 20)
    told = f"{second.value / 1e6:.1f} MB in {second.wall_s:.2f} s; week 1 stored {ours[0].value / 1e6:.0f} MB"
    yield Line("archive, week 2: stored", f"{mib:.1f} MiB", "<= 40 MiB", mib <= 40, told)
    fixed = measure(_BLOCKS, setup).value
    ratio = second.value / fixed
    yield Line("the same / fixed blocks of 64 KiB", f"{ratio:.3f}x", "<= 0.15x", ratio <= 0.15, f"{fixed / 1e6:.0f} MB")
    loaded = measure(_LOAD.format(home="home-0"), setup)
    before, after, built = loaded.value
    same = not before and after == built
    yield Line("restore and docker load: the id that was built", "yes" if same else "no", "yes", same, f"{loaded.wall_s:.1f} s")
    memory = max(t.rss_mb for t in (*ours, second, loaded))
    told = f"archive {max(t.rss_mb for t in ours):.0f} MB, week 2 {second.rss_mb:.0f} MB, restore {loaded.rss_mb:.0f} MB"
    yield Line("memory of archives and a restore", f"{memory:.0f} MB", "<= 250 MB", memory <= 250, told)


def _layers(folder: Path) -> Iterator[tuple[int, Path]]:
    """A file system of 800 MiB in two weeks, as tars. Files have 45 KB in the mean, as in Debian; all are rebuilt, few are other."""
    random = np.random.default_rng(2026)
    content = Content(random)
    files: list[bytes] = []
    size = 0
    while size < _SIZE:
        files.append(content.of(int(3000 / max(random.random(), 0.002) ** 1.25)))
        size += len(files[-1])
    for week in (46, 47):
        path = folder / f"{week}.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for number, data in enumerate(files):
                member = tarfile.TarInfo(f"usr/{number // 200:04}/{number % 200:03}")
                member.size, member.mtime = len(data), 1_700_000_000 + week * 604_800
                archive.addfile(member, io.BytesIO(data))
        yield week, path
        for number in random.integers(len(files), size=int(len(files) * _CHANGED)).tolist():
            files[number] = content.of(len(files[number]))
        for number in random.integers(len(files), size=int(len(files) * _ADDED)).tolist():
            files.insert(number, content.of(len(files[number])))
