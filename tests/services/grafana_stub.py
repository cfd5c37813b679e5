"""A stub of Grafana's HTTP API: dashboards searched page by page, and one by uid, for one token. Whatever else is asked: 501."""

from __future__ import annotations

import json
import secrets
from typing import Any
from urllib.parse import unquote

from tests.services.http_stub import Answer, HttpStub, RefusedError, Request


class GrafanaStub(HttpStub):
    """`with GrafanaStub() as grafana: grafana.save("abc", "Build success")`."""

    def __init__(self, most_per_page: int = 5000) -> None:
        super().__init__()
        self.token = f"glsa_{secrets.token_hex(16)}"
        self.most_per_page = most_per_page
        self.saved: dict[str, dict[str, Any]] = {}

    def save(self, uid: str, title: str, folder: str = "", **model: Any) -> None:
        """Save a dashboard as its users do: the version counts up each time, whether something changed or not."""
        version = self.saved[uid]["dashboard"]["version"] + 1 if uid in self.saved else 1
        dashboard = {
            "id": len(self.saved) + 7,
            "uid": uid,
            "title": title,
            "version": version,
            "schemaVersion": 39,
            "panels": [],
            **model,
        }
        self.saved[uid] = {"meta": {"folderTitle": folder, "version": version, "updated": f"v{version}"}, "dashboard": dashboard}

    def authenticate(self, request: Request) -> None:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            raise RefusedError(401, "Unauthorized")

    def serve(self, request: Request) -> Answer:
        match [request.method, *map(unquote, request.path.strip("/").split("/"))]:
            case ["GET", "api", "search"] if request.query.get("type") == "dash-db":
                limit = min(int(request.query.get("limit", 1000)), self.most_per_page)
                start = (int(request.query.get("page", 1)) - 1) * limit
                found = [{"uid": uid, "type": "dash-db"} for uid in sorted(self.saved)][start : start + limit]
                return _json(200, found)
            case ["GET", "api", "dashboards", "uid", uid]:
                if uid not in self.saved:
                    raise RefusedError(404, "Dashboard not found")
                return _json(200, self.saved[uid])
        raise RefusedError(501, f"the stub does not know {request.method} {request.target}")

    def error(self, refused: RefusedError) -> Answer:
        return _json(refused.status, {"message": refused.code})

    def sign_off(self, number: int) -> dict[str, str]:
        return {"x-request-number": str(number)}


def _json(status: int, content: object) -> Answer:
    return Answer(status, {"content-type": "application/json"}, json.dumps(content).encode())
