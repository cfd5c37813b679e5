"""The onboarding checklist, asked of this machine: what is there, what is missing, and what to do about it.

Nothing is installed or changed. What is not configured says so and is not counted as missing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import httpx

from akidb_pipelines.cedar.sandbox import PRODUCT, load_sandbox
from akidb_pipelines.errors import PipelineError
from akidb_pipelines.fixtures.checklist import KIND
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.registry import open_registry

_TIMEOUT_S = 10


class State(StrEnum):
    """Outcome of one line of the list."""

    OK = "ok"
    MISSING = "missing"
    NOT_CONFIGURED = "not configured"


@dataclass(frozen=True)
class Line:
    """One line of the list."""

    what: str
    state: State
    found: str
    to_do: str = ""


def examine(settings: Settings) -> Iterator[Line]:
    """Go through the list."""
    yield _tool("Node 20", ["node", "--version"], r"v(2\d|[3-9]\d)\.", "install Node 20 or newer (nodejs.org, or nvm install 20)")
    yield _tool(
        "Rust stable",
        ["rustc", "--version"],
        r"rustc \d+\.\d+\.\d+ ",
        "install Rust with rustup (rustup.rs): rustup default stable",
    )
    yield _tool(
        "Docker", ["docker", "--version"], r"Docker version", "install Docker Engine; on a Mac, Colima: brew install colima docker"
    )
    yield _tool("cedar-policy-cli", ["cedar", "--version"], r"cedar", "cargo install cedar-policy-cli")
    yield _tool("git", ["git", "--version"], r"git version", "install git")
    yield _policies(settings)
    yield _fixtures(settings)
    yield _arm64()
    yield _reach("GitHub", settings.github_url, "AKIDB_GITHUB_URL")
    yield _reach("Grafana", settings.grafana_url, "AKIDB_GRAFANA_URL")
    yield _hooks()


def _run(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _tool(what: str, command: list[str], version: str, to_do: str) -> Line:
    told = _run(command)
    if told is None:
        return Line(what, State.MISSING, f"{command[0]} does not run", to_do)
    first = told.splitlines()[0] if told else ""
    return Line(what, State.OK, first) if re.search(version, first) else Line(what, State.MISSING, f"found {first}", to_do)


def _telling(what: str, ask: Callable[[], str]) -> Line:
    try:
        return Line(what, State.OK, ask())
    except PipelineError as error:
        return Line(what, State.MISSING, error.message, error.hint)


def _policies(settings: Settings) -> Line:
    def ask() -> str:
        sandbox = load_sandbox(settings.cedar_sandbox)
        return f"{len(sandbox.policies)} policies validate, digest {sandbox.sha256(PRODUCT)[:12]}"

    return _telling("Cedar sandbox policies", ask)


def _fixtures(settings: Settings) -> Line:
    def ask() -> str:
        release = open_registry(settings).head(KIND)
        return f"{release.id} in {settings.store_url}"

    return _telling("fixtures", ask)


def _arm64() -> Line:
    platforms = _run(["docker", "buildx", "inspect"])
    if platforms is None:
        told = "start Docker with buildx; on a Mac: colima start --arch aarch64"
        return Line("arm64 Docker builds", State.MISSING, "docker buildx inspect does not run", told)
    if "linux/arm64" in platforms:
        return Line("arm64 Docker builds", State.OK, "linux/arm64")
    told = "docker run --privileged --rm tonistiigi/binfmt --install arm64"
    return Line("arm64 Docker builds", State.MISSING, "the builder has no linux/arm64", told)


def _reach(what: str, url: str, setting: str) -> Line:
    if not url:
        return Line(f"{what} reachable", State.NOT_CONFIGURED, "", f"set {setting} to its address")
    try:
        answer = httpx.get(url, timeout=_TIMEOUT_S, follow_redirects=True)
    except httpx.HTTPError as error:
        return Line(f"{what} reachable", State.MISSING, f"{url}: {error}", "check VPN, proxy and address")
    if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        return Line(f"{what} reachable", State.MISSING, f"{url} answers {answer.status_code}", "ask Platform Engineering")
    return Line(f"{what} reachable", State.OK, f"{url} answers {answer.status_code}")


def _hooks() -> Line:
    what = "pre-commit hook"
    folder = _run(["git", "rev-parse", "--git-path", "hooks"]) if shutil.which("git") else None
    hook = Path(folder) / "pre-commit" if folder else None
    if hook and hook.is_file():
        return Line(what, State.OK, str(hook))
    return Line(what, State.MISSING, "none in this repository", "akidb-pipelines hooks install")
