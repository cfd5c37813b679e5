"""The UI behind its front, as a real process with the real code location."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx

from tests.services.identity import Issuer

ROOT = Path(__file__).parent.parent.parent
_START_SECONDS = 240


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Front:
    """`with Front(folder, issuer) as front: front.graphql(query, token)`. Its home, log and journal are below the folder."""

    def __init__(self, folder: Path, issuer: Issuer, workspace: Path | None = None, **settings: str) -> None:
        self.home = folder
        self.port, self.metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AKIDB_", "DAGSTER_"))},
            "AKIDB_HOME": str(folder),
            "DAGSTER_HOME": str(folder / "dagster"),
            **issuer.environment(),
            **settings,
        }
        self._workspace = workspace
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        (self.home / "dagster").mkdir(parents=True, exist_ok=True)
        if not (self.home / "dagster" / "dagster.yaml").exists():
            shutil.copy(ROOT / "dagster.yaml", self.home / "dagster" / "dagster.yaml")
        ports = ["--port", str(self.port), "--metrics-port", str(self.metrics_port)]
        more = ["--workspace", str(self._workspace)] if self._workspace else []
        command = [sys.executable, "-m", "akidb_pipelines", "ui", "--auth", *ports, *more]
        self.log = self.home / "front.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, env=self.environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                httpx.get(f"{self.url}/server_info", timeout=2).raise_for_status()
                return self
            except httpx.HTTPError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the front does not start: {self.log.read_text()[-3000:]}") from None
                time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        assert self._process
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def graphql(self, query: str, token: str, variables: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        """The answer's JSON, errors included."""
        sent = {"query": query, "variables": variables or {}}
        answer = httpx.post(f"{self.url}/graphql", json=sent, headers={"Authorization": f"Bearer {token}", **headers}, timeout=60)
        return dict(answer.json())
