"""The registry on a real S3 server: transfers against boto3's own, and what releasing and pulling cost as a registry grows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.measure import Line, measure
from tests.services.seaweed import Seaweed

_SIZE = 1 << 30

_SETUP = """
import hashlib, os, time
from pathlib import Path
from statistics import median
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.areas import area
from akidb_pipelines.store.index import Entry, Index, Version
from akidb_pipelines.store.manifest import ReleaseManifest, released_file, blob_key
from akidb_pipelines.store.publisher import open_publisher
from akidb_pipelines.store.pull import Puller, Wanted
import akidb_pipelines.store.trust, tuf.api.metadata, tuf.ngclient, securesystemslib.signer
os.environ.update({environment!r})
folder = Path({folder!r})
settings = Settings(home=folder / "home", store="s3://bench")
store = area(settings, "artifacts")
path, digest, size = folder / "large", {digest!r}, {size}
import boto3
from botocore.config import Config
plain = boto3.Session().client("s3", config=Config(s3={{"addressing_style": "path"}}, signature_version="s3v4"))
"""

_OURS_UP = "store.create({key!r}, path, sha256=digest)"
_BOTO_UP = "plain.upload_file(str(path), 'bench-artifacts', {key!r})"
_OURS_DOWN = "store.fetch({key!r}, folder / 'down', sha256=digest, size_bytes=size)"
_BOTO_DOWN = "plain.download_file('bench-artifacts', {key!r}, str(folder / 'down'))"

_REGISTRY = """
import threading
def small(name, *contents):
    source = folder / "small"
    source.mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        (source / f"f{number}").write_bytes(content)
    files = tuple(released_file(source, p) for p in sorted(source.iterdir()))
    return ReleaseManifest("fixtures", name, files), source

def fill(publisher, count):
    publisher.init()
    def add(index):
        for n in range(count):
            name = f"{2000 + n // 50}-W{n % 50 + 1:02}"
            entry = Entry("fixtures", Version(name, 1), "c" * 64, 70_000_000, "2026-11-24T00:00:00Z", "d" * 64, 3000)
            index = index.with_entry(entry)
        return index
    publisher.change("filling", add)
"""

_GROWN = (
    _REGISTRY
    + """
import shutil
value = {}
for count in (10, 1000):
    place = Settings(home=folder / f"home-{count}", store=f"s3://bench{count}")
    publisher = open_publisher(place)
    fill(publisher, count)
    publishing, pulling = [], []
    for n in range(7):
        manifest, source = small(f"2030-W{n + 10}", os.urandom(1000))
        began = time.perf_counter()
        publisher.publish(manifest, source)
        publishing.append(time.perf_counter() - began)
        began = time.perf_counter()
        Puller(publisher.registry, folder / f"cache-{count}").pull(Wanted("fixtures"), folder / f"out-{count}")
        pulling.append(time.perf_counter() - began)
    value[f"publish {count}"], value[f"pull {count}"] = median(publishing), median(pulling)
"""
)

_UNCHANGED = (
    _REGISTRY
    + """
publisher = open_publisher(settings)
publisher.init()
manifest, source = small("2026-W47", os.urandom(2_000_000), os.urandom(65_000_000), os.urandom(20_000))
publisher.publish(manifest, source)
moved = 0
def count(request, **_):
    global moved
    moved += int(request.headers.get("Content-Length") or 0) + sum(len(k) + len(v) for k, v in request.headers.items())
def count_answer(http_response, model, **_):
    global moved
    moved += sum(len(k) + len(v) for k, v in http_response.headers.items())
    moved += int(http_response.headers.get("content-length") or 0) if model.name != "HeadObject" else 0
for c in publisher.registry.artifacts.bucket._client, publisher.registry.channels.bucket._client:
    c.meta.events.register("before-send.s3", count)
    c.meta.events.register("after-call.s3", count_answer)
publisher.publish(manifest, source)
released = moved
puller = Puller(publisher.registry, folder / "cache")
puller.pull(Wanted("fixtures"), folder / "out")
taken = []
for _ in range(15):
    began = time.perf_counter()
    puller.pull(Wanted("fixtures"), folder / "out")
    taken.append(time.perf_counter() - began)
value = {"moved": released, "pull": median(taken)}
"""
)


def lines(work: Path) -> Iterator[Line]:
    """Run the comparisons; `work` needs room for some 6 GiB."""
    folder = work / "registry"
    folder.mkdir()
    digest = _large(folder / "large")
    with Seaweed(folder / "server") as server:
        server.make_buckets(*(f"bench{n}-{area}" for n in ("", 10, 1000) for area in ("artifacts", "channels")))
        setup = _SETUP.format(environment=server.environment(), folder=str(folder), digest=digest, size=_SIZE)
        yield from _transfers(setup)
        unchanged = measure(_UNCHANGED, setup).value
        moved = unchanged["moved"]
        told = "both ways, headers included"
        yield Line("an unchanged week released again: moved", f"{moved / 1000:.1f} kB", "< 100 kB", moved < 100_000, told)
        pull = unchanged["pull"] * 1000
        yield Line(
            "an unchanged week pulled again, imports not counted", f"{pull:.1f} ms", "<= 50 ms", pull <= 50, "67 MB in 3 files"
        )
        grown = measure(_GROWN, setup).value
        for verb in ("publish", "pull"):
            few, many = grown[f"{verb} 10"], grown[f"{verb} 1000"]
            told = f"{few * 1000:.0f} ms and {many * 1000:.0f} ms"
            yield Line(f"{verb}: 1,000 releases / 10 releases", f"{many / few:.2f}x", "<= 2x", many / few <= 2, told)


def _transfers(setup: str) -> Iterator[Line]:
    """Both ways in turn, so that a machine that slows down slows both."""
    pairs = {"up": (_OURS_UP, _BOTO_UP, 1.15), "down": (_OURS_DOWN, _BOTO_DOWN, 1.1)}
    told = {
        "up": ("upload of 1 GiB / boto3 upload_file", "digests checked by the server"),
        "down": ("verified download / download_file", ""),
    }
    for way, (ours, boto, goal) in pairs.items():
        taken: dict[str, list[float]] = {"ours": [], "boto": []}
        rss = 0.0
        for n in range(3):
            for who, work in (("boto", boto), ("ours", ours)):
                key = f"{who}-{n if way == 'up' else 0}"
                took = measure(work.format(key=key), setup)
                taken[who].append(took.wall_s)
                rss = max(rss, took.rss_mb) if who == "ours" else rss
        one, other = sorted(taken["ours"])[1], sorted(taken["boto"])[1]
        what, note = told[way]
        detail = "; ".join(filter(None, (f"{one:.1f} s against {other:.1f} s", note)))
        yield Line(what, f"{one / other:.2f}x", f"<= {goal}x", one / other <= goal, detail)
        yield Line(f"memory of that {way}load", f"{rss:.0f} MB", "<= 200 MB", rss <= 200)


def _large(path: Path) -> str:
    import hashlib
    import os

    digest = hashlib.sha256()
    block = os.urandom(64 << 20)
    with path.open("wb") as out:
        for n in range(_SIZE // len(block)):
            piece = n.to_bytes(8) + block[8:]
            digest.update(piece)
            out.write(piece)
    return digest.hexdigest()
