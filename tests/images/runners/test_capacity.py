"""How busy CI's runners are, asked of a GitHub that checks tokens, gives pages and limits rates."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.images.runners.capacity import Capacity, open_actions
from akidb_pipelines.settings import Settings
from tests.services.github_stub import GitHubStub

OURS = ["self-hosted", "linux", "arm64"]
GITHUBS = ["ubuntu-24.04"]
BASELINE, BURST = 6, 12


@pytest.fixture
def github():
    with GitHubStub() as stub:
        yield stub


def capacity_of(github: GitHubStub, token: str = "", repository: str = "") -> Capacity:
    settings = Settings(
        github_url=github.endpoint,
        github_repository=repository or github.repository,
        github_token=SecretStr(token or github.token),
    )
    return open_actions(settings).capacity(BASELINE, BURST)


def test_jobs_of_self_hosted_runners_are_counted_and_those_of_githubs_own_are_not(github):
    for name, busy in (("a1-1", True), ("a1-2", True), ("a1-3", False)):
        github.add_runner(name, busy=busy)
    github.add_run("in_progress", ("in_progress", OURS), ("in_progress", GITHUBS), ("queued", OURS), ("completed", OURS))
    github.add_run("in_progress", ("in_progress", OURS), ("waiting", OURS))
    github.add_run("queued", ("queued", OURS), ("queued", OURS), ("queued", GITHUBS))
    github.add_run("completed", ("completed", OURS))
    found = capacity_of(github)
    assert (found.running, found.queued, found.busy, found.idle) == (2, 3, 2, 1)
    assert (found.online, found.offline) == (("a1-1", "a1-2", "a1-3"), ())
    assert (found.baseline, found.burst) == (BASELINE, BURST)
    assert found.summary == "2 jobs run, 3 wait; 3 runners online, 1 idle"


def test_a_repository_where_nothing_runs_has_no_jobs(github):
    github.add_runner("a1-1")
    github.add_run("completed", ("completed", OURS))
    found = capacity_of(github)
    assert (found.running, found.queued, found.idle, found.is_exhausted) == (0, 0, 1, False)


@pytest.mark.parametrize("count", [100, 101, 230])
def test_every_page_of_runners_is_read(github, count):
    for number in range(count):
        github.add_runner(f"a1-{number}")
    assert capacity_of(github).online == tuple(f"a1-{number}" for number in range(count))


def test_every_page_of_jobs_and_of_runs_is_read(github):
    github.add_run("in_progress", *[("in_progress", OURS)] * 103, *[("queued", OURS)] * 104)
    for _ in range(102):
        github.add_run("queued", ("queued", OURS))
    found = capacity_of(github)
    assert (found.running, found.queued) == (103, 104 + 102)


@pytest.mark.parametrize(
    ("running", "queued", "busy", "exhausted"),
    [
        (2, 1, (True, True), True),
        (2, 0, (True, True), False),
        (1, 1, (True, False), False),
        (BURST - 1, 0, (True, False), False),
        (BURST, 0, (True, False), True),
        (0, 1, (), True),
        (0, 0, (), False),
    ],
    ids=["waits", "nobody waits", "one is idle", "below the burst", "burst", "no runner at all", "nothing to do"],
)
def test_capacity_is_exhausted_when_jobs_wait_and_nothing_is_idle_or_the_burst_is_reached(github, running, queued, busy, exhausted):
    for number, is_busy in enumerate(busy):
        github.add_runner(f"a1-{number}", busy=is_busy)
    github.add_run("in_progress", *[("in_progress", OURS)] * running, *[("queued", OURS)] * queued)
    assert capacity_of(github).is_exhausted is exhausted


def test_offline_runners_are_named_and_never_idle(github):
    github.add_runner("a1-1", busy=True)
    github.add_runner("a1-2", status="offline")
    github.add_runner("mac-1", status="offline", busy=True)
    github.add_run("queued", ("queued", OURS))
    found = capacity_of(github)
    assert (found.online, found.offline, found.busy, found.idle) == (("a1-1",), ("a1-2", "mac-1"), 1, 0)
    assert found.summary.endswith("1 runners online, 0 idle; offline: a1-2, mac-1")
    assert found.is_exhausted


def test_a_wrong_token_says_which_permissions_are_needed(github):
    with pytest.raises(OutsideError, match=f"{github.repository}/actions/runners: 401: .*Bad credentials") as caught:
        capacity_of(github, token="github_pat_wrong")
    assert "`actions: read` and `administration: read`" in caught.value.hint
    assert "github_pat_wrong" not in str(caught.value)


@pytest.mark.parametrize("what", ["runners", "runs"])
def test_a_token_that_may_not_read_everything_says_which_permissions_are_needed(github, what):
    github.forbidden.add(what)
    with pytest.raises(OutsideError, match=f"actions/{what}: 403: .*not accessible") as caught:
        capacity_of(github)
    assert "`actions: read` and `administration: read`" in caught.value.hint


def test_a_repository_that_the_token_does_not_see_says_which_permissions_are_needed(github):
    with pytest.raises(OutsideError, match="someone/else/actions/runners: 404") as caught:
        capacity_of(github, repository="someone/else")
    assert "AKIDB_GITHUB_REPOSITORY" in caught.value.hint


@pytest.mark.parametrize("remaining", [0, 2])
def test_an_exhausted_rate_limit_says_so(github, remaining):
    github.remaining = remaining
    with pytest.raises(OutsideError, match=r"403: .*API rate limit exceeded") as caught:
        capacity_of(github)
    assert "rate limit is used up" in caught.value.hint


def test_a_github_that_does_not_answer_is_told():
    with GitHubStub() as gone:
        pass
    with pytest.raises(OutsideError, match=gone.repository) as caught:
        capacity_of(gone)
    assert "AKIDB_GITHUB_URL" in caught.value.hint


def test_without_a_repository_there_are_no_actions_to_ask(monkeypatch):
    monkeypatch.delenv("AKIDB_GITHUB_REPOSITORY", raising=False)
    assert open_actions(Settings(github_token=SecretStr("token"))) is None


def test_a_repository_is_asked_of_github_itself_unless_another_is_set(monkeypatch):
    monkeypatch.delenv("AKIDB_GITHUB_URL", raising=False)
    assert open_actions(Settings(github_repository="aifocal/akidb", github_token=SecretStr("t"))).url == "https://api.github.com"


def test_a_token_that_cannot_be_sent_is_never_told(tmp_path):
    def settings(token):
        return Settings(home=tmp_path, github_repository="aifocal/akidb", github_token=SecretStr(token))

    assert open_actions(settings("github_pat_secret\n")).token == "github_pat_secret"
    for token in ("", "  ", "github_pat_ge\u0445eim", "github_pat_secret\ngithub_pat_other"):
        with pytest.raises(InputError, match="AKIDB_GITHUB_TOKEN is") as caught:
            open_actions(settings(token))
        assert "github_pat" not in str(caught.value)
