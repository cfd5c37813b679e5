"""A stub of the two things that are asked of Loki: its configuration, and the newest line of some streams."""

from __future__ import annotations

import json
import time
from urllib.parse import unquote

import yaml

from tests.services.http_stub import Answer, HttpStub, RefusedError, Request


class LokiStub(HttpStub):
    """`with LokiStub() as loki: loki.newest = time.time()`; None has no lines."""

    def __init__(self) -> None:
        super().__init__()
        self.retention = "30d"
        self.deletes = True
        self.newest: float | None = time.time()

    def authenticate(self, request: Request) -> None:
        """Inside a private network it asks for nothing."""

    def serve(self, request: Request) -> Answer:
        if request.path == "/config":
            told = {"limits_config": {"retention_period": self.retention}, "compactor": {"retention_enabled": self.deletes}}
            return Answer(200, {"content-type": "text/plain"}, yaml.safe_dump(told).encode())
        if request.path == "/loki/api/v1/query_range":
            query = request.query
            if not unquote(query.get("query", "")).startswith("{") or query.get("direction") != "backward":
                raise RefusedError(400, "parse error")
            start, end = int(query["start"]) / 1e9, int(query["end"]) / 1e9
            inside = self.newest is not None and start <= self.newest <= end
            streams = [{"stream": {"job": "x"}, "values": [[str(int(self.newest * 1e9)), "a line"]]}] if inside else []
            return Answer(200, {}, json.dumps({"status": "success", "data": {"resultType": "streams", "result": streams}}).encode())
        raise RefusedError(404, "not found")

    def error(self, refused: RefusedError) -> Answer:
        return Answer(refused.status, {}, refused.code.encode())

    def sign_off(self, number: int) -> dict[str, str]:
        return {"content-type": "application/json"}
