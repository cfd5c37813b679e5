"""The runners commands as ops call them, on the lab's engine."""

from __future__ import annotations

import json

import pytest

WEEK = ("--week", "2026-W47")


def told(done, code: int = 0) -> dict:
    assert done.code == code, done.err
    return json.loads(done.out)


@pytest.mark.slow
def test_a_runner_is_built_archived_booted_promoted_restored_and_withdrawn(cli, runner_home, tmp_path):
    def runners(*arguments: str):
        return cli("runners", *arguments, env={"AKIDB_HOME": str(runner_home)})

    built = told(runners("build", "docker", *WEEK, "--json"))
    archived = told(runners("archive", "docker", *WEEK, "--json"))
    assert archived["id"] == "docker/2026-W47/r1"
    assert archived["image_id"] == built["image_id"]
    assert set(built["tools"]) == {"git", "nodejs", "python3", "sqlite3"}
    again = told(runners("archive", "docker", *WEEK, "--json"))
    assert (again["id"], again["created"]) == (archived["id"], False)
    nothing = runners("archive", "docker", "--week", "2026-W40")
    assert nothing.code == 2
    assert "was not built for 2026-W40" in nothing.err
    early = runners("promote", "docker")
    assert early.code == 1
    assert "tools was not run" in early.err

    booted = told(runners("boot-test", "docker", "--json"))
    assert [c["check"] for c in booted["checks"]] == ["restored", "tools", "smoke_job"]
    assert told(runners("verify", "docker", "--json"))["ok"]
    assert "docker/2026-W47/r1 is in production" in runners("promote", "docker").out
    (listed,) = told(runners("list", "--json"))["snapshots"]
    assert (listed["id"], listed["state"], listed["tools"]) == ("docker/2026-W47/r1", "production", built["tools"])
    assert "docker/2026-W47/r1" in runners("list").out
    assert told(runners("diff", "docker/2026-W47", "--json"))["summary"] == "0 added, 0 removed, 0 changed"

    assert told(runners("restore", "docker", "--load", "--json"))["target"] == built["image_id"]
    told(runners("restore", "docker@production", "--to", str(tmp_path / "image.tar"), "--json"))
    assert (tmp_path / "image.tar").stat().st_size > archived["size_bytes"]
    gone = runners("revoke", "docker", "--reason", "jobs hang in it").out
    assert "docker/2026-W47/r1 is revoked" in gone
    assert "docker@production is nothing" in gone


def test_a_runner_that_nobody_knows_is_told(cli):
    done = cli("runners", "build", "mainframe")

    assert done.code == 2
    assert "there are docker" in done.err


def test_a_snapshot_that_is_not_there_is_told(cli):
    done = cli("runners", "restore", "docker", "--load")

    assert done.code == 2
    assert "there is no image docker" in done.err


def test_an_empty_list_says_how_to_begin(cli):
    assert "runners build docker" in cli("runners", "list").err
