"""Backups: a dump of a database of 228 MB against VACUUM INTO and `zstd -3`, and its verified restore against a raw copy and its digest."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import apsw
import numpy as np

from akidb_pipelines.backups.depot import open_depot
from akidb_pipelines.backups.dump import Dump
from akidb_pipelines.backups.sources import LocalDatabase
from akidb_pipelines.settings import Settings
from bench.measure import Line

_BYTES = 228_000_000
_VECTOR = 1536
_ROUNDS = 3


def lines(work: Path) -> Iterator[Line]:
    folder = (work / "backups").absolute()
    folder.mkdir()
    database = _database(folder / "metadata.db")
    depot = open_depot(Settings(home=folder / "home"))
    dumps: list[Dump] = []

    def take() -> None:
        dumps.append(depot.take(LocalDatabase("bench", database)))

    def restore() -> None:
        depot.restore(dumps[-1], folder / "restored.db", replace=True)

    take()  # so that neither side pays for imports and a new catalog
    size = database.stat().st_size / 1e6
    ours, peer = _medians(take, lambda: _dump_by_hand(database, folder))
    yield _line("dump / VACUUM INTO and zstd -3", ours, peer, 2.0, f"{size:.0f} MB")
    ours, peer = _medians(restore, lambda: _copy_by_hand(database, folder))
    yield _line("restore with four looks / raw copy and sha256", ours, peer, 2.5, "fetched, unpacked, verified, put in place")
    shutil.rmtree(folder)


def _line(what: str, ours: float, peer: float, goal: float, detail: str) -> Line:
    ratio = ours / peer
    return Line(what, f"{ratio:.2f}x", f"<= {goal}x", ratio <= goal, f"{ours:.2f} s against {peer:.2f} s; {detail}")


def _medians(ours: Callable[[], None], peer: Callable[[], None]) -> tuple[float, float]:
    """Wall-clock medians, one after the other, so that both see the same machine."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for side, work in zip(taken, (ours, peer), strict=True):
            started = perf_counter()
            work()
            side.append(perf_counter() - started)
    return median(taken[0]), median(taken[1])


def _database(path: Path) -> Path:
    """Documents with vectors, which hardly compress, and metadata, which does."""
    random = np.random.default_rng(7)
    db = apsw.Connection(str(path))
    db.execute("CREATE TABLE documents (id INTEGER PRIMARY KEY, metadata TEXT, vector BLOB) STRICT")
    with db:
        rows = _BYTES // (_VECTOR + 330)
        for start in range(0, rows, 4096):
            vectors = random.integers(0, 256, (4096, _VECTOR), dtype=np.uint8)
            text = "{'source': 'bench', 'note': '" + "lorem ipsum dolor " * 15 + "', 'n': %d}"
            db.executemany(
                "INSERT INTO documents VALUES (?, ?, ?)", ((start + n, text % n, v.tobytes()) for n, v in enumerate(vectors))
            )
    db.close()
    return path


def _dump_by_hand(database: Path, folder: Path) -> None:
    copy = folder / "copy.db"
    db = apsw.Connection(str(database))
    db.execute("VACUUM INTO ?", (str(copy),))
    db.close()
    subprocess.run(["zstd", "-3", "-q", "-f", str(copy), "-o", str(folder / "copy.zst")], check=True)
    copy.unlink()


def _copy_by_hand(database: Path, folder: Path) -> None:
    copy = folder / "copy.db"
    shutil.copyfile(database, copy)
    with copy.open("rb") as handle:
        hashlib.file_digest(handle, "sha256").hexdigest()
    copy.unlink()
