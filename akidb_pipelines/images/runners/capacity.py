"""How busy the CI runners are: jobs that run and wait, runners online. From the GitHub Actions API (https://docs.github.com/en/rest/actions).

The plan has 6 jobs at once, and bursts of 12. Capacity is exhausted when jobs wait although nothing is idle, or the burst is reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    import httpx

_API = "https://api.github.com"
_PAGE = 100
_MOST_PAGES = 20


@dataclass(frozen=True)
class Capacity:
    """Jobs and runners at one moment."""

    running: int
    """Jobs on self-hosted runners."""
    queued: int
    """Jobs that wait for one."""
    online: tuple[str, ...]
    offline: tuple[str, ...]
    busy: int
    """Runners that are at work."""
    baseline: int
    burst: int

    @property
    def idle(self) -> int:
        """Runners that are online and wait for jobs."""
        return len(self.online) - self.busy

    @property
    def is_exhausted(self) -> bool:
        """Whether CI waits: what alert `ci-runner.capacity.exhausted` fires on."""
        return self.running >= self.burst or (self.queued > 0 and self.idle <= 0)

    @property
    def summary(self) -> str:
        """One line."""
        told = f"{self.running} jobs run, {self.queued} wait; {len(self.online)} runners online, {self.idle} idle"
        return f"{told}; offline: {', '.join(self.offline)}" if self.offline else told


@dataclass(frozen=True)
class Actions:
    """GitHub Actions of one repository.

    Args:
        url: of the API.
        repository: `owner/name`.
        token: may read Actions and self-hosted runners (a fine-grained token with `actions: read` and `administration: read`).
        timeout_s: of a request.
    """

    url: str
    repository: str
    token: str
    timeout_s: float = 30

    def capacity(self, baseline: int, burst: int) -> Capacity:
        """As it is now.

        Raises:
            OutsideError: GitHub does not answer, or refuses.
        """
        import httpx

        headers = {
            "Authorization": f"Bearer {self.token}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        try:
            with httpx.Client(base_url=self.url, headers=headers, timeout=self.timeout_s) as client:
                runners = list(self._all(client, "runners", "runners"))
                runs = [
                    run["id"] for status in ("in_progress", "queued") for run in self._all(client, "runs", "workflow_runs", status)
                ]
                jobs = [job for run in dict.fromkeys(runs) for job in self._all(client, f"runs/{run}/jobs", "jobs")]
        except httpx.HTTPError as error:
            raise OutsideError(
                f"GitHub {self.url}, {self.repository}: {error}", hint="check AKIDB_GITHUB_URL and the network"
            ) from error
        ours = [job for job in jobs if "self-hosted" in job["labels"]]
        return Capacity(
            running=sum(job["status"] == "in_progress" for job in ours),
            queued=sum(job["status"] == "queued" for job in ours),
            online=tuple(r["name"] for r in runners if r["status"] == "online"),
            offline=tuple(r["name"] for r in runners if r["status"] != "online"),
            busy=sum(bool(r["busy"]) for r in runners if r["status"] == "online"),
            baseline=baseline,
            burst=burst,
        )

    def _all(self, client: httpx.Client, what: str, field: str, status: str = "") -> Iterator[dict[str, Any]]:
        """Every item of a list, page after page."""
        path = f"/repos/{self.repository}/actions/{what}"
        for page in range(1, _MOST_PAGES + 1):
            asked: dict[str, str | int] = {"per_page": _PAGE, "page": page, **({"status": status} if status else {})}
            answer = client.get(path, params=asked)
            if answer.status_code != 200:
                raise OutsideError(f"GitHub {self.url}{path}: {answer.status_code}: {answer.text[:300]}", hint=_hint(answer))
            items = answer.json()[field]
            yield from items
            if len(items) < _PAGE:
                return


def _hint(answer: httpx.Response) -> str:
    if answer.status_code in (403, 429) and answer.headers.get("x-ratelimit-remaining") == "0":
        return "the token's rate limit is used up: it is asked again at the next tick"
    if answer.status_code in (401, 403, 404):
        return "AKIDB_GITHUB_TOKEN needs `actions: read` and `administration: read` for AKIDB_GITHUB_REPOSITORY"
    return "look at GitHub's status page"


def open_actions(settings: Settings) -> Actions | None:
    """The Actions that settings describe; None when no repository is set."""
    if not settings.github_repository:
        return None
    return Actions(settings.github_url or _API, settings.github_repository, settings.github_token.get_secret_value())
