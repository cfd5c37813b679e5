"""How busy the CI runners are: jobs that run and wait, runners online. From the GitHub Actions API (https://docs.github.com/en/rest/actions).

The plan has 6 jobs at once, and bursts of 12. Capacity is exhausted when jobs wait although nothing is idle, or the burst is reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from akidb_pipelines.errors import InputError, OutsideError
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
            with httpx.Client(base_url=self.url, headers=headers, timeout=self.timeout_s, follow_redirects=True) as client:
                runners = list(self._all(client, "runners", "runners"))
                # Those that wait first: a run that starts meanwhile is then seen twice, and not missed.
                runs = [
                    run["id"] for status in ("queued", "in_progress") for run in self._all(client, "runs", "workflow_runs", status)
                ]
                jobs = [job for run in dict.fromkeys(runs) for job in self._all(client, f"runs/{run}/jobs", "jobs")]
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OutsideError(
                f"GitHub {self.url}, {self.repository}: {error}", hint="check AKIDB_GITHUB_URL and the network"
            ) from error
        labels = [{str(label["name"]).lower() for label in runner.get("labels", ())} for runner in runners]
        ours = [job for job in jobs if _is_ours({str(label).lower() for label in job["labels"]}, labels)]
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
            try:
                items = answer.json()[field]
            except (ValueError, KeyError, TypeError) as error:
                raise OutsideError(
                    f"GitHub {self.url}{path}: this is no answer of GitHub's API: {answer.text[:200]!r}",
                    hint="check AKIDB_GITHUB_URL, and the proxies between",
                ) from error
            yield from items
            if len(items) < _PAGE:
                return


def _is_ours(wanted: set[str], runners: list[set[str]]) -> bool:
    """Whether a job with these labels waits for a self-hosted runner."""
    return "self-hosted" in wanted or (bool(wanted) and any(wanted <= labels for labels in runners))


def _hint(answer: httpx.Response) -> str:
    limited = answer.headers.get("x-ratelimit-remaining") == "0" or "retry-after" in answer.headers
    if answer.status_code == 429 or (answer.status_code == 403 and limited):
        return "the token's rate limit is used up: it is asked again at the next tick"
    if answer.status_code in (401, 403, 404):
        return "AKIDB_GITHUB_TOKEN needs `actions: read` and `administration: read` for AKIDB_GITHUB_REPOSITORY"
    return "look at GitHub's status page"


def open_actions(settings: Settings) -> Actions | None:
    """The Actions that settings describe; None when no repository is set.

    Raises:
        InputError: there is no token that can be sent.
    """
    if not settings.github_repository:
        return None
    token = settings.github_token.get_secret_value().strip()
    if not token or not (token.isascii() and token.isprintable()):
        found = "none that can be sent" if token else "empty"
        raise InputError(
            f"AKIDB_GITHUB_REPOSITORY is {settings.github_repository}, and AKIDB_GITHUB_TOKEN is {found}",
            hint="set it to a token with `actions: read` and `administration: read`",
        )
    return Actions(settings.github_url or _API, settings.github_repository, token)
