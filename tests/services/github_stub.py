"""A stub of GitHub's REST API for Actions: the runners, runs and jobs of one repository, in pages, for one token.

It knows what a capacity is counted from, filters runs by status, and counts requests down to its rate limit. It knows neither
organizations nor other filters, nor `link` headers, nor attempts of runs: whatever it does not know it answers with 501. Faults as in
`http_stub`.
"""

from __future__ import annotations

import json
import secrets
from typing import Any
from urllib.parse import unquote

from tests.services.http_stub import Answer, HttpStub, RefusedError, Request

MOST_PER_PAGE = 100
PER_PAGE = 30
RATE_LIMIT = 5000
KNOWN = frozenset({"per_page", "page"})


class GitHubStub(HttpStub):
    """`with GitHubStub() as github: github.add_runner("a1-1")`; `remaining` is what is left of the rate limit."""

    def __init__(self, repository: str = "aifocal/akidb") -> None:
        super().__init__()
        self.repository = repository
        self.token = f"github_pat_{secrets.token_hex(12)}"
        self.remaining = RATE_LIMIT
        self.forbidden: set[str] = set()
        """What the token has no permission for: `runners`, `runs`."""
        self.runners: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.jobs: dict[int, list[dict[str, Any]]] = {}

    # what tests use

    def add_runner(self, name: str, status: str = "online", busy: bool = False) -> None:
        labels = [{"id": n, "name": label, "type": "read-only"} for n, label in enumerate(("self-hosted", "Linux", "ARM64"))]
        number = len(self.runners) + 1
        self.runners.append({"id": number, "name": name, "os": "linux", "status": status, "busy": busy, "labels": labels})

    def add_run(self, status: str, *jobs: tuple[str, list[str]]) -> None:
        """A run with jobs of these statuses and labels."""
        run = len(self.runs) + 1
        self.runs.insert(0, {"id": run, "name": "CI", "status": status, "conclusion": _conclusion(status)})
        self.jobs[run] = [
            {"id": 1000 * run + n, "run_id": run, "name": f"job {n}", "status": of, "conclusion": _conclusion(of), "labels": labels}
            for n, (of, labels) in enumerate(jobs)
        ]

    # what the server asks

    def authenticate(self, request: Request) -> None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secrets.compare_digest(token, self.token):
            raise RefusedError(401, "Bad credentials")

    def serve(self, request: Request) -> Answer:
        if self.remaining <= 0:
            raise RefusedError(403, "API rate limit exceeded for user ID 1.")
        self.remaining -= 1
        match [request.method, *map(unquote, request.path.strip("/").split("/"))]:
            case ["GET", "repos", owner, name, "actions", what, *rest]:
                self._admit(f"{owner}/{name}", what)
                return self._list(request, what, rest)
        raise self._unknown(request)

    def error(self, refused: RefusedError) -> Answer:
        told = {"message": refused.code, "documentation_url": "https://docs.github.com/rest", "status": str(refused.status)}
        return Answer(refused.status, {}, json.dumps(told).encode())

    def sign_off(self, number: int) -> dict[str, str]:
        return {
            "content-type": "application/json; charset=utf-8",
            "x-github-request-id": f"stub-{number}",
            "x-ratelimit-limit": str(RATE_LIMIT),
            "x-ratelimit-remaining": str(self.remaining),
        }

    def _admit(self, repository: str, what: str) -> None:
        if repository != self.repository:
            raise RefusedError(404, "Not Found")
        if what in self.forbidden:
            raise RefusedError(403, "Resource not accessible by personal access token")

    def _list(self, request: Request, what: str, rest: list[str]) -> Answer:
        known = KNOWN | {"status"} if (what, rest) == ("runs", []) else KNOWN
        if not set(request.query) <= known:
            raise self._unknown(request)
        match [what, *rest]:
            case ["runners"]:
                return _page(request, "runners", self.runners)
            case ["runs"]:
                status = request.query.get("status")
                found = [run for run in self.runs if status in (None, run["status"], run["conclusion"])]
                return _page(request, "workflow_runs", found)
            case ["runs", run, "jobs"] if run.isdecimal():
                if int(run) not in self.jobs:
                    raise RefusedError(404, "Not Found")
                return _page(request, "jobs", self.jobs[int(run)])
        raise self._unknown(request)

    @staticmethod
    def _unknown(request: Request) -> RefusedError:
        return RefusedError(501, f"the stub does not know {request.method} {request.target}")


def _page(request: Request, field: str, items: list[dict[str, Any]]) -> Answer:
    size = min(int(request.query.get("per_page", PER_PAGE)), MOST_PER_PAGE)
    start = (int(request.query.get("page", 1)) - 1) * size
    return Answer(200, {}, json.dumps({"total_count": len(items), field: items[start : start + size]}).encode())


def _conclusion(status: str) -> str | None:
    return "success" if status == "completed" else None
