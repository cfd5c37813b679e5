"""A program that serves HTTP, as a real process on a port of its own."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import httpx

ROOT = Path(__file__).parent.parent.parent
_START_SECONDS = 240


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Server:
    """A program that serves HTTP on a port of its own; `ready` is a path that answers once it does."""

    def __init__(self, command: list[str], port: int, ready: str, log: Path, environment: dict[str, str] | None = None) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command, self._ready, self._log, self._environment = command, ready, log, environment

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                httpx.get(self.url + self._ready, timeout=2).raise_for_status()
                return self
            except httpx.HTTPError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{self._command[0]} does not start: {self._log.read_text()[-2000:]}") from None
                time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def get(self, path: str, **params: str) -> Any:
        """An API's answer."""
        return httpx.get(self.url + path, params=params, timeout=10).raise_for_status().json()
