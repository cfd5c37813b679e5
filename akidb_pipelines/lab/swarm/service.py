"""What the lab's nodes run in the place of AkiDB: a small HTTP service over a SQLite database. Standard library only, one file.

    GET  /health         200 and what the database holds, or 503 and why there is none
    GET  /canary         {"last": highest sequence, "count": rows}
    POST /canary         {"sequence": n, "written_at": "..."}: committed before it is answered
    GET  /dump           the database by VACUUM INTO, with its digest and its moment as headers

    service.py serve     all of that, on port 8080
    service.py gateway   only /health, on port 8081: what is moved to another node when one is lost

A database that is brought back lies in /data/incoming, its digest beside it, until it is verified: another digest is refused and said, and
nothing of it is ever served.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATA = os.environ.get("AKIDB_DATA", "/data")
PORT, GATEWAY_PORT = 8080, 8081
DATABASE, INCOMING = "metadata.db", "incoming"
_BLOCK = 1 << 20


class RefusedError(Exception):
    """There is no database to serve; says why."""


class Store:
    """The database of this node."""

    def __init__(self, folder: str) -> None:
        self._path, self._incoming = os.path.join(folder, DATABASE), os.path.join(folder, INCOMING)
        self._lock = threading.Lock()
        self._open: sqlite3.Connection | None = None
        self._refused = ""

    def ask(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        """Run one statement, durably."""
        with self._lock:
            return self._database().execute(sql, values).fetchall()

    def copy(self, target: str) -> str:
        """VACUUM INTO a file; returns the moment before."""
        with self._lock:
            database = self._database()
            moment = datetime.now(UTC).isoformat()
            database.execute("VACUUM INTO ?", (target,))
        return moment

    def _database(self) -> sqlite3.Connection:
        if self._open is None:
            if not os.path.exists(self._path):
                self._adopt()
            self._open = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._open.execute("PRAGMA journal_mode = WAL")
            self._open.execute("PRAGMA synchronous = FULL")
            self._open.execute("PRAGMA foreign_keys = ON")
        return self._open

    def _adopt(self) -> None:
        """Take what was brought back, if its digest is the one that was sent along."""
        file, told = os.path.join(self._incoming, DATABASE), os.path.join(self._incoming, "sha256")
        if not os.path.exists(told):
            raise RefusedError(self._refused or "no database")
        with open(told, encoding="ascii") as source:
            expected = source.read().strip()
        found = _digest(file)
        os.unlink(told)
        if found != expected:
            os.unlink(file)
            self._refused = f"refused: what was brought back has digest {found}, sent was {expected}"
            raise RefusedError(self._refused)
        os.replace(file, self._path)
        self._refused = ""


def _digest(path: str) -> str:
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    store: Store | None
    node = os.environ.get("NODE", "")

    def log_message(self, *_: object) -> None:
        """Nothing: a prober asks ten times a second."""

    def do_GET(self) -> None:
        """See the module."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """See the module."""
        self._answer(self._post)

    def _answer(self, how: Callable[[], tuple[int, dict[str, object] | None]]) -> None:
        told: dict[str, object] | None
        try:
            status, told = how()
        except RefusedError as error:
            status, told = 503, {"node": self.node, "error": str(error)}
        except (sqlite3.Error, OSError, ValueError, KeyError) as error:
            status, told = 500, {"node": self.node, "error": str(error)}
        if told is not None:
            body = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _get(self) -> tuple[int, dict[str, object] | None]:
        if self.store is None:
            return 200, {"node": self.node}
        if self.path == "/health":
            ((tenants,),) = self.store.ask("SELECT count(*) FROM tenants")
            return 200, {"node": self.node, "tenants": tenants}
        if self.path == "/canary":
            ((last, count),) = self.store.ask("SELECT ifnull(max(sequence), 0), count(*) FROM akidb_canary")
            return 200, {"node": self.node, "last": last, "count": count}
        if self.path == "/dump":
            self._dump(self.store)
            return 200, None
        return 404, {"error": f"there is no {self.path}"}

    def _post(self) -> tuple[int, dict[str, object] | None]:
        told = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.store is None or self.path != "/canary":
            return 404, {"error": f"there is no {self.path}"}
        values = (int(told["sequence"]), str(told["written_at"]))
        self.store.ask("INSERT INTO akidb_canary (sequence, written_at) VALUES (?, ?) ON CONFLICT DO NOTHING", *values)
        return 201, {"node": self.node, "sequence": values[0]}

    def _dump(self, store: Store) -> None:
        copy = os.path.join(DATA, f".dump-{threading.get_ident()}")
        if os.path.exists(copy):
            os.unlink(copy)
        try:
            moment = store.copy(copy)
            with open(copy, "rb") as source:
                self.send_response(200)
                self.send_header("content-length", str(os.fstat(source.fileno()).st_size))
                self.send_header("x-snapshot-at", moment)
                self.send_header("x-sha256", _digest(copy))
                self.end_headers()
                while block := source.read(_BLOCK):
                    self.wfile.write(block)
        finally:
            if os.path.exists(copy):
                os.unlink(copy)


def main() -> None:
    """Serve until ended."""
    serving = sys.argv[1] == "serve"
    Handler.store = Store(DATA) if serving else None
    ThreadingHTTPServer.request_queue_size = 64
    ThreadingHTTPServer(("", PORT if serving else GATEWAY_PORT), Handler).serve_forever()


if __name__ == "__main__":
    main()
