"""Grafana's dashboards as files of a git repository: one JSON a dashboard, the same bytes for the same dashboard, a commit when one changed.

What Grafana counts (`id`, `version`, `iteration`) is left out: it changes without the dashboard changing, and means nothing elsewhere.
API: https://grafana.com/docs/grafana/latest/developers/http_api/dashboard/
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akidb_pipelines.catalog.catalog import CataloguedBackup
from akidb_pipelines.errors import CheckError, InputError, OutsideError
from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    import httpx

_PAGE, _MOST_PAGES = 500, 100
_COUNTED = ("id", "version", "iteration")
_SUFFIX = ".json"


@dataclass(frozen=True)
class Dashboard:
    """One dashboard."""

    uid: str
    title: str
    folder: str
    text: bytes
    """Normalised JSON."""

    @property
    def file(self) -> str:
        """Below the repository: `dashboards/build-success-a1b2.json`."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")[:60] or "untitled"
        return f"dashboards/{slug}-{re.sub(r'[^A-Za-z0-9_-]', '_', self.uid)}{_SUFFIX}"


@dataclass(frozen=True)
class Exported:
    """What an export changed."""

    dashboards: int
    changed: tuple[str, ...]
    """Files that came, changed or went, with a letter as git has it: `M dashboards/x.json`."""
    commit: str
    """That has them all."""
    count: int
    """Commits up to it."""
    sha256: str
    """Of all files' names and digests."""
    size_bytes: int
    committed_at: str
    """RFC 3339."""

    def catalogued(self) -> CataloguedBackup:
        """As the catalog keeps it: a backup like any other."""
        return CataloguedBackup(
            backup_id=f"dashboards/{self.committed_at[:10]}/r{self.count}",
            database="dashboards",
            day=self.committed_at[:10],
            revision=self.count,
            record_sha256=hashlib.sha256(self.commit.encode()).hexdigest(),
            sha256=self.sha256,
            size_bytes=self.size_bytes,
            stored_bytes=self.size_bytes,
            row_count=self.dashboards,
            canary=None,
            snapshot_at=self.committed_at,
        )


@dataclass(frozen=True)
class Grafana:
    """Grafana's HTTP API.

    Args:
        url: of Grafana.
        token: of a service account that may view dashboards.
        timeout_s: of a request.
    """

    url: str
    token: str
    timeout_s: float = 30

    def dashboards(self) -> Iterator[Dashboard]:
        """Every dashboard that the token may see.

        Raises:
            OutsideError: Grafana does not answer, or refuses.
        """
        import httpx

        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            with httpx.Client(base_url=self.url, headers=headers, timeout=self.timeout_s, follow_redirects=True) as client:
                for uid in self._uids(client):
                    told = self._ask(client, f"/api/dashboards/uid/{uid}")
                    yield normalised(told["dashboard"], str(told.get("meta", {}).get("folderTitle") or "General"))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OutsideError(f"Grafana {self.url}: {error}", hint="check AKIDB_GRAFANA_URL and the network") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise OutsideError(
                f"Grafana {self.url}: this is no answer of Grafana's API: {error!r}",
                hint="check AKIDB_GRAFANA_URL, and the proxies between",
            ) from error

    def _uids(self, client: httpx.Client) -> list[str]:
        uids: list[str] = []
        for page in range(1, _MOST_PAGES + 1):
            found = self._ask(client, "/api/search", type="dash-db", limit=_PAGE, page=page)
            uids += [str(item["uid"]) for item in found]
            if len(found) < _PAGE:
                break
        return sorted(set(uids))

    def _ask(self, client: httpx.Client, path: str, **query: str | int) -> Any:
        answer = client.get(path, params=query)
        if answer.status_code != 200:
            hint = "look at Grafana's log"
            if answer.status_code in (401, 403):
                hint = "AKIDB_GRAFANA_TOKEN must be of a service account with the role Viewer"
            raise OutsideError(f"Grafana {self.url}{path}: {answer.status_code}: {answer.text[:300]}", hint=hint)
        try:
            return answer.json()
        except ValueError as error:
            raise OutsideError(
                f"Grafana {self.url}{path}: this is no JSON: {answer.text[:200]!r}",
                hint="check AKIDB_GRAFANA_URL, and the proxies between",
            ) from error


def normalised(dashboard: dict[str, Any], folder: str) -> Dashboard:
    """A dashboard in the form in which it is kept."""
    model = {k: v for k, v in dashboard.items() if k not in _COUNTED}
    text = json.dumps({"folder": folder, "dashboard": model}, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    return Dashboard(str(dashboard["uid"]), str(dashboard.get("title", "")), folder, text.encode())


@dataclass(frozen=True)
class DashboardRepository:
    """The git repository that dashboards are kept in.

    Args:
        folder: its work tree; made when it is not there. If its branch follows one elsewhere, commits are pushed there.
    """

    folder: Path

    def commit(self, dashboards: list[Dashboard], source: str) -> Exported:
        """Make the repository say what the dashboards say.

        Raises:
            CheckError: there is no dashboard at all, and the repository has some.
            InputError: somebody else's changes lie in the folder.
            OutsideError: git does not do it; what was committed before is as it was.
        """
        self._prepare()
        below = self.folder / "dashboards"
        before = sorted(p.relative_to(self.folder).as_posix() for p in below.glob(f"*{_SUFFIX}"))
        if before and not dashboards:
            raise CheckError(
                f"Grafana tells no dashboard, and {self.folder} has {len(before)}: nothing was removed",
                hint="check what the token may see; if they are really gone, remove them from the repository by hand",
            )
        below.mkdir(exist_ok=True)
        named = {d.file: d for d in dashboards}
        for file, dashboard in named.items():
            (self.folder / file).write_bytes(dashboard.text)
        for file in set(before) - set(named):
            (self.folder / file).unlink()
        self._git("add", "--all", "dashboards")
        changed = tuple(line.replace("\t", " ") for line in self._git("diff", "--cached", "--name-status").splitlines())
        if changed:
            self._git("commit", "--quiet", "-m", f"Dashboards of {source}: {len(changed)} changed")
        if self._follows():
            self._git("push", "--quiet")
        return self._exported(changed)

    def _exported(self, changed: tuple[str, ...]) -> Exported:
        """What HEAD has, read back from git: what is not committed is no backup."""
        listed, size = hashlib.sha256(), 0
        files = self._git("ls-tree", "--name-only", "HEAD", "dashboards/").splitlines()
        for file in files:
            text = self._git("show", f"HEAD:{file}")
            json.loads(text)
            listed.update(f"{file} {hashlib.sha256(text.encode()).hexdigest()}\n".encode())
            size += len(text.encode())
        commit, seconds = self._git("show", "--no-patch", "--format=%H %ct", "HEAD").split()
        moment = datetime.fromtimestamp(int(seconds), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        count = int(self._git("rev-list", "--count", "HEAD"))
        return Exported(len(files), changed, commit, count, listed.hexdigest(), size, moment)

    def _prepare(self) -> None:
        if not (self.folder / ".git").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._git("init", "--quiet")
            self._git("commit", "--quiet", "--allow-empty", "-m", "Begin")
        staged = self._git("diff", "--cached", "--name-only").splitlines()
        if others := [name for name in staged if not name.startswith("dashboards/")]:
            raise InputError(f"{self.folder}: {others[0]} is staged and not committed", hint="commit or unstage it")
        if staged:  # by an export that was killed: it is written again
            self._git("reset", "--quiet", "HEAD", "--", "dashboards")

    def _follows(self) -> bool:
        try:
            self._git("rev-parse", "--abbrev-ref", "@{upstream}")
        except OutsideError:
            return False
        return True

    def _git(self, *arguments: str) -> str:
        own = ["-c", "user.name=akidb-pipelines", "-c", "user.email=akidb-pipelines@localhost", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(self.folder), *own, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OutsideError(f"git {arguments[0]} in {self.folder}: {error}", hint="apt-get install git") from error
        if done.returncode != 0:
            raise OutsideError(f"git {arguments[0]} in {self.folder}: {done.stderr.strip()}", hint="do what its message asks for")
        return done.stdout


def export(settings: Settings) -> Exported | None:
    """Export what settings name; None when they name no Grafana.

    Raises:
        CheckError, InputError, OutsideError: see Grafana.dashboards, DashboardRepository.commit.
    """
    if not settings.grafana_url or not settings.grafana_token.get_secret_value():
        return None
    grafana = Grafana(settings.grafana_url.rstrip("/"), settings.grafana_token.get_secret_value())
    return DashboardRepository(settings.dashboards_path).commit(list(grafana.dashboards()), grafana.url)
