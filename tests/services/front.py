"""The UI behind its front, as a real process with the real code location."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any, Self

import httpx

from tests.services.identity import Issuer
from tests.services.server import ROOT, Server, free_port


class Front:
    """`with Front(folder, issuer) as front: front.graphql(query, token)`. Its home, log and journal are below the folder."""

    def __init__(self, folder: Path, issuer: Issuer, **settings: str) -> None:
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

    def __enter__(self) -> Self:
        (self.home / "dagster").mkdir(parents=True, exist_ok=True)
        if not (self.home / "dagster" / "dagster.yaml").exists():
            shutil.copy(ROOT / "dagster.yaml", self.home / "dagster" / "dagster.yaml")
        ports = ["--port", str(self.port), "--metrics-port", str(self.metrics_port)]
        command = [sys.executable, "-m", "akidb_pipelines", "ui", "--auth", *ports]
        self._server = Server(command, self.port, "/server_info", self.home / "front.log", self.environment)
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def graphql(self, query: str, token: str, variables: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        """The answer's JSON, errors included."""
        sent = {"query": query, "variables": variables or {}}
        answer = httpx.post(f"{self.url}/graphql", json=sent, headers={"Authorization": f"Bearer {token}", **headers}, timeout=60)
        return dict(answer.json())
