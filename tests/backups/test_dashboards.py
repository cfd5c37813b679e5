"""Dashboards are committed when somebody changed one, and only then; nothing that Grafana merely counts is a change."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from pydantic import SecretStr

from akidb_pipelines.backups.dashboards import DashboardRepository, export
from akidb_pipelines.errors import CheckError, InputError, OutsideError
from tests.services.grafana_stub import GrafanaStub
from tests.services.http_stub import Status, Truncate


@pytest.fixture
def grafana():
    with GrafanaStub() as stub:
        stub.save("bs1", "Build success / fail", "CI", panels=[{"id": 1, "type": "stat"}])
        stub.save("gpu", "GPU utilisation")
        yield stub


@pytest.fixture
def with_grafana(settings, grafana):
    return settings.model_copy(update={"grafana_url": grafana.endpoint, "grafana_token": SecretStr(grafana.token)})


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


def test_a_change_is_a_commit_and_nothing_else_is(with_grafana, grafana):
    folder = with_grafana.dashboards_path
    first = export(with_grafana)
    assert first.dashboards == 2
    assert first.changed == ("A dashboards/build-success-fail-bs1.json", "A dashboards/gpu-utilisation-gpu.json")
    told = json.loads((folder / "dashboards/build-success-fail-bs1.json").read_text())
    assert told["folder"] == "CI" and not {"id", "version"} & set(told["dashboard"])
    grafana.save("gpu", "GPU utilisation")
    again = export(with_grafana)
    assert again.changed == () and again.commit == first.commit, "saved without a change"
    grafana.save("gpu", "GPU utilisation", panels=[{"id": 2}])
    del grafana.saved["bs1"]
    changed = export(with_grafana)
    assert changed.changed == ("D dashboards/build-success-fail-bs1.json", "M dashboards/gpu-utilisation-gpu.json")
    assert git(folder, "show", f"{first.commit}:dashboards/build-success-fail-bs1.json"), "history has what is gone"
    assert git(folder, "status", "--porcelain") == ""


def test_more_than_a_page_is_read(with_grafana, grafana):
    for n in range(520):
        grafana.saved[f"d{n}"] = {"meta": {}, "dashboard": {"uid": f"d{n}", "title": f"D {n}", "version": 1}}
    assert export(with_grafana).dashboards == 522


def test_without_grafana_nothing_is_exported(settings):
    assert export(settings) is None and not settings.dashboards_path.exists()


def test_a_grafana_that_shows_nothing_removes_nothing(with_grafana, grafana):
    before = export(with_grafana)
    grafana.saved.clear()
    with pytest.raises(CheckError, match=r"tells no dashboard, and .* has 2: nothing was removed"):
        export(with_grafana)
    assert git(with_grafana.dashboards_path, "rev-parse", "HEAD").strip() == before.commit


@pytest.mark.parametrize(
    ("fault", "told"), [(Status(503, "down"), "503"), (Truncate(), "Grafana"), (Status(403, "denied"), "403")], ids=str
)
def test_a_grafana_that_fails_half_way_changes_nothing(with_grafana, grafana, fault, told):
    export(with_grafana)
    grafana.save("gpu", "GPU utilisation", panels=[{"id": 3}])
    grafana.inject(fault, path="/uid/gpu")
    with pytest.raises(OutsideError, match=told):
        export(with_grafana)
    assert git(with_grafana.dashboards_path, "status", "--porcelain") == ""
    assert export(with_grafana).changed == ("M dashboards/gpu-utilisation-gpu.json",)


def test_a_wrong_token_says_which_setting(with_grafana):
    with pytest.raises(OutsideError) as refused:
        export(with_grafana.model_copy(update={"grafana_token": SecretStr("wrong")}))
    assert "401" in refused.value.message and "AKIDB_GRAFANA_TOKEN" in refused.value.hint


def test_what_a_killed_export_staged_is_written_again_and_others_changes_are_respected(with_grafana):
    folder = with_grafana.dashboards_path
    export(with_grafana)
    (folder / "dashboards" / "half.json").write_text("{")
    git(folder, "add", "dashboards/half.json")
    assert export(with_grafana).changed == ()
    assert not (folder / "dashboards" / "half.json").exists()
    (folder / "README.md").write_text("mine")
    git(folder, "add", "README.md")
    with pytest.raises(InputError, match=r"README\.md is staged and not committed"):
        export(with_grafana)


def test_commits_are_pushed_where_the_branch_follows_one(with_grafana, grafana, tmp_path):
    origin = tmp_path / "origin.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(origin)], check=True)
    export(with_grafana)
    folder = with_grafana.dashboards_path
    git(folder, "remote", "add", "origin", str(origin))
    git(folder, "push", "--quiet", "--set-upstream", "origin", "HEAD")
    grafana.save("gpu", "GPU utilisation", panels=[{"id": 9}])
    done = export(with_grafana)
    assert done.commit in git(origin, "log", "--all", "--format=%H")
    git(folder, "remote", "set-url", "origin", str(tmp_path / "gone.git"))
    grafana.save("gpu", "GPU utilisation", panels=[{"id": 10}])
    with pytest.raises(OutsideError, match="git push"):
        export(with_grafana)
    assert DashboardRepository(folder).folder.exists() and git(folder, "status", "--porcelain") == "", "the commit is there"
