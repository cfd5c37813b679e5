"""A database that is written to, and a depot in a folder."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from akidb_pipelines.backups.depot import Depot, open_depot
from akidb_pipelines.backups.dump import Dump
from akidb_pipelines.backups.sources import LocalDatabase

NAME = "staging-1-metadata"


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Autocommit, with foreign keys as staging has them."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA foreign_keys = ON")
        yield db


def make_database(path: Path, rows: int = 50) -> Path:
    """Collections and documents with BLOBs, in WAL mode, with a canary."""
    with opened(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE collections (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT")
        db.execute(
            "CREATE TABLE documents (id INTEGER PRIMARY KEY, collection INTEGER NOT NULL REFERENCES collections, vector BLOB) STRICT"
        )
        db.execute("CREATE TABLE akidb_canary (sequence INTEGER PRIMARY KEY, written_at TEXT NOT NULL) STRICT")
        db.execute("INSERT INTO collections VALUES (1, 'products'), (2, 'tickets')")
        db.executemany("INSERT INTO documents VALUES (?, ?, ?)", [(n, 1 + n % 2, b"V%07d" % n * 512) for n in range(rows)])
        write_canary(db, 1)
    return path


def write_canary(db: sqlite3.Connection, sequence: int) -> None:
    db.execute("INSERT INTO akidb_canary VALUES (?, '2026-11-26T01:00:00Z')", (sequence,))


@pytest.fixture
def live(tmp_path) -> Path:
    (tmp_path / "live").mkdir()
    return make_database(tmp_path / "live" / "metadata.db")


@pytest.fixture
def depot(settings) -> Depot:
    return open_depot(settings)


@pytest.fixture
def dump(depot, live) -> Dump:
    return depot.take(LocalDatabase(NAME, live))


def failed(depot: Depot, dump: Dump) -> dict[str, str]:
    """Checks that do not pass, with what they found."""
    return {r.check: "; ".join(b.message for b in r.broken) for r in depot.run_checks(dump) if not r.passed}
