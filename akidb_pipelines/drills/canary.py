"""Two watchers outside: a writer that notes what was acknowledged, and a prober that notes when the service did not answer.

What the writer was told is committed lies in a file here, not on the node: after a node is lost, what is missing is counted, not guessed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Lock, Thread

import httpx

from akidb_pipelines.errors import OutsideError

Urls = Mapping[str, Callable[[], str]]
_EVERY_S = 0.05
_LOOK_S = 2.0
"""So long after a failure it is asked again where the service is."""
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Acknowledged:
    """A row that the service said is committed."""

    node: str
    sequence: int
    at: datetime
    """When it said so."""


class Writer:
    """Writes canary rows to some nodes' services until stopped; goes on after the last acknowledged one when started again.

    Args:
        urls: says where the service is, by node; a node that was built anew may be elsewhere.
        record: file of acknowledgements, one JSON object a line.
    """

    def __init__(self, urls: Urls, record: Path) -> None:
        self._urls, self._record = urls, record
        self._acknowledged: list[Acknowledged] = []
        self._lock, self._stop = Lock(), Event()
        self._threads: list[Thread] = []

    def start(self) -> None:
        """Begin, or go on."""
        self._stop = Event()
        self._threads = [Thread(target=self._write, args=(node, url, self._stop), daemon=True) for node, url in self._urls.items()]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop; returns when the last answer is noted."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * _PATIENCE_S)
        self._threads = []

    def acknowledged(self, node: str) -> list[Acknowledged]:
        """Rows that a node's service acknowledged, in order."""
        with self._lock:
            return [a for a in self._acknowledged if a.node == node]

    def _write(self, node: str, url: Callable[[], str], stop: Event) -> None:
        where = _Where(url)
        done = self.acknowledged(node)
        sequence = done[-1].sequence + 1 if done else self._first(where.url)
        with httpx.Client(timeout=_PATIENCE_S) as client:
            while not stop.wait(_EVERY_S):
                row = {"sequence": sequence, "written_at": datetime.now(UTC).isoformat()}
                try:
                    written = client.post(f"{where.url}/canary", json=row).status_code == 201
                except (httpx.HTTPError, httpx.InvalidURL):
                    written = False
                    where.look_again()
                if written:
                    self._note(Acknowledged(node, sequence, datetime.now(UTC)))
                    sequence += 1

    def _first(self, url: str) -> int:
        """After whatever an earlier drill has left."""
        try:
            return int(httpx.get(f"{url}/canary", timeout=_PATIENCE_S).json()["last"]) + 1
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError):
            return 1

    def _note(self, row: Acknowledged) -> None:
        with self._lock:
            with self._record.open("a", encoding="ascii") as out:
                out.write(json.dumps({"node": row.node, "sequence": row.sequence, "at": row.at.isoformat()}) + "\n")
                out.flush()
                os.fsync(out.fileno())
            self._acknowledged.append(row)


@dataclass
class _Seen:
    last_up: float = 0.0
    down_since: float | None = None
    outages: list[float] = field(default_factory=list)


class Prober:
    """Asks services for their health, and notes how long each did not answer.

    Args:
        urls: says where the service is, by node.
    """

    def __init__(self, urls: Urls) -> None:
        self._urls = urls
        self._seen = {node: _Seen() for node in urls}
        self._stop = Event()
        self._threads: list[Thread] = []

    def start(self) -> None:
        """Begin."""
        self._threads = [Thread(target=self._probe, args=(node, url), daemon=True) for node, url in self._urls.items()]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * _PATIENCE_S)

    def outage_s(self) -> float | None:
        """The longest time that one of them did not answer: from the last answer before to the first after. None while one does not."""
        if any(seen.down_since is not None for seen in self._seen.values()):
            return None
        return max((max(seen.outages, default=0.0) for seen in self._seen.values()), default=0.0)

    def answers(self, node: str) -> bool:
        """Whether a node's service answered when it was last asked."""
        seen = self._seen[node]
        return seen.last_up > 0 and seen.down_since is None

    def _probe(self, node: str, url: Callable[[], str]) -> None:
        seen, where = self._seen[node], _Where(url)
        with httpx.Client(timeout=1) as client:
            while not self._stop.wait(_EVERY_S):
                try:
                    up = client.get(f"{where.url}/health").status_code == 200
                except (httpx.HTTPError, httpx.InvalidURL):
                    up = False
                    where.look_again()
                now = time.monotonic()
                if up:
                    if seen.down_since is not None:
                        seen.outages.append(now - seen.down_since)
                    seen.last_up, seen.down_since = now, None
                elif seen.down_since is None and seen.last_up:
                    seen.down_since = seen.last_up


class _Where:
    """Where a service is, looked up again now and then while it does not answer."""

    def __init__(self, ask: Callable[[], str]) -> None:
        self._ask, self._looked = ask, time.monotonic()
        self.url = self._answer("")

    def look_again(self) -> None:
        if time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            self.url = self._answer(self.url)

    def _answer(self, before: str) -> str:
        try:
            return self._ask() or before
        except OutsideError:  # while it is being built anew
            return before
