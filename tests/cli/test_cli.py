"""The command as its users call it: exit codes, JSON on standard output and nothing else there, messages that say what to do."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys

import pytest

from akidb_pipelines.cedar.sandbox import SHIPPED

WEEK = ("--week", "2026-W46")


def test_a_built_fixture_passes_the_foreign_key_check_and_verifies(cli, tmp_path):
    done = cli("fixtures", "build", *WEEK, "--profile", "ci", "--out", "x", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["manifest"]["week"] == "2026-W46"
    connection = sqlite3.connect(tmp_path / "x" / "ci.db")
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    verified = cli("fixtures", "verify", "x/ci.db", "--rebuild", "--json")
    assert verified.code == 0, verified.err
    assert json.loads(verified.out) == {
        "ok": True,
        "fixtures": [{"profile": "ci", "week": "2026-W46", "files": 2, "rebuilt": True, "problems": []}],
    }


def test_one_changed_row_is_found_and_its_table_named(cli, tmp_path):
    assert cli("fixtures", "build", *WEEK, "--out", "x").code == 0
    connection = sqlite3.connect(tmp_path / "x" / "ci.db")
    connection.execute("PRAGMA foreign_keys = off")
    connection.execute("UPDATE databases SET state = 'migrating', updated_at = '2026-01-01T00:00:00.000Z' WHERE rowid = 3")
    connection.commit()
    connection.close()
    done = cli("fixtures", "verify", "x", "--json")
    assert done.code == 1
    (problem,) = json.loads(done.out)["fixtures"][0]["problems"]
    assert "other content in databases" in problem


def test_subsets_by_tenant_and_scale(cli):
    done = cli("fixtures", "build", *WEEK, "--tenant", "ember", "--scale", "0.5", "--seed", "9", "--out", "x", "--json")
    manifest = json.loads(done.out)["manifest"]
    assert (manifest["tenants"], manifest["scale"], manifest["seed"]) == (["ember"], "1/2", 9)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("fixtures", "build", "--week", "2026-W54", "--out", "x"), "2026 has weeks 01 to 53"),
        (("fixtures", "build", "--week", "2026-11-17", "--out", "x"), "Tuesday"),
        (("fixtures", "build", *WEEK, "--profile", "huge", "--out", "x"), "ci, standard, load"),
        (("fixtures", "build", *WEEK, "--scale", "lots", "--out", "x"), "no number"),
        (("fixtures", "build", *WEEK, "--scale", "0", "--out", "x"), "out of range"),
        (("fixtures", "build", *WEEK, "--tenant", "acme", "--out", "x"), "there is no tenant acme"),
        (("fixtures", "verify", "nowhere.db"), "cannot be read"),
        (("fixtures", "verify", "."), "no *.manifest.json there"),
        (("fixtures", "pull", "--dest", "x"), "no fixtures were released yet"),
        (("fixtures", "pull", *WEEK, "--dest", "x"), "was never released"),
        (("fixtures", "pull", "--channel", "nightly", "--dest", "x"), "there is no channel"),
        (("fixtures", "drift", "--migrations", "nowhere"), "no such folder"),
        (("cedar", "check", "--sandbox", "nowhere"), "no such folder"),
        (("fixtures", "build", "--week", "1969-W10", "--out", "x"), "this century"),
        (("run", "--week", "2024-W10"), "no week that is released"),
        (("run", "--week", "2099-W10"), "no week that is released"),
        (("run", "--profile", "huge"), "there is no profile 'huge'"),
        (("hooks", "install", "."), "no git repository"),
        (("fixtures", "nonsense"), "No such command"),
    ],
)
def test_unusable_input_ends_with_2_and_a_message(cli, arguments, told):
    done = cli(*arguments)
    assert done.code == 2, done.err
    assert told in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("AKIDB_STORE", "ftp://x", "unknown kind of store"),
        ("AKIDB_CEDAR_SANDBOX", "nowhere", "no such folder"),
        ("AKIDB_CATALOG", "foo://x", "AKIDB_CATALOG"),
        ("AKIDB_SEED", "-1", "AKIDB_SEED"),
    ],
)
def test_an_unusable_setting_ends_the_main_job_with_2(cli, setting, value, told):
    done = cli("run", *WEEK, "--profile", "ci", env={setting: value})
    assert done.code == 2, done.err
    assert told in done.err
    assert "Traceback" not in done.err


def test_a_disk_that_fills_during_the_main_job_ends_with_3(cli, small_disk):
    done = cli(
        "run", *WEEK, "--profile", "ci", env={"AKIDB_HOME": str(small_disk), "DAGSTER_HOME": str(small_disk.parent / "dagster")}
    )
    assert done.code == 3, done.err
    assert "disk is full" in done.err


def test_a_fixture_can_be_checked_by_itself(cli, tmp_path):
    assert cli("fixtures", "build", *WEEK, "--out", "x").code == 0
    done = cli("fixtures", "check", "x", "--full", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["ok"]
    assert [c["check"] for c in told["checks"]][:2] == ["columns", "cedar_entities"]
    manifest = tmp_path / "x" / "ci.manifest.json"
    manifest.write_text(manifest.read_text().replace("fixture-password-03", "changed"))
    assert cli("fixtures", "verify", "x", "--rebuild").code == 1


def test_what_is_no_database_is_said(cli, tmp_path):
    (tmp_path / "x.db").write_text("hello")
    done = cli("fixtures", "verify", "x.db")
    assert done.code == 2
    assert "is no SQLite database" in done.err


def test_a_folder_that_cannot_be_written_ends_with_3(cli, tmp_path):
    (tmp_path / "file").write_text("")
    done = cli("fixtures", "build", *WEEK, "--out", "file/x")
    assert done.code == 3
    assert "what to do" in done.err


def test_the_main_job_releases_and_pulling_verifies(cli, tmp_path):
    done = cli("run", *WEEK, "--profile", "ci", timeout=200)
    assert done.code == 0, done.err
    assert "2026-W46/r1 released" in done.out
    for part in ("ci.db", "audit rows", "sha256", "6 of 6", "seconds", "root fingerprint"):
        assert part in done.out
    assert (tmp_path / "home" / "dagster" / "dagster.yaml").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"home"}, "state lives under AKIDB_HOME and nowhere else"
    listed = json.loads(cli("fixtures", "list", "--json").out)
    assert [r["id"] for r in listed["releases"]] == ["2026-W46/r1"]

    pulled = cli("fixtures", "pull", "--dest", "here", "--json")
    assert pulled.code == 0, pulled.err
    assert json.loads(pulled.out)["release"] == "2026-W46/r1"
    assert cli("fixtures", "verify", "here").code == 0

    # One byte altered in the store: refused, by whoever does not have it in the cache.
    shutil.rmtree(tmp_path / "home" / "cache")
    blob = max((tmp_path / "home" / "store" / "artifacts" / "blobs").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    refused = cli("fixtures", "pull", "--dest", "there")
    assert refused.code == 1
    assert "has digest" in refused.err
    assert not [p for p in (tmp_path / "there").iterdir() if p.name.startswith(".")]


def test_the_main_job_that_fails_says_why_and_ends_with_1(cli, tmp_path):
    folder = tmp_path / "sandbox"
    shutil.copytree(SHIPPED, folder)
    policies = folder / "akidb.cedar"
    policies.write_text(policies.read_text().replace('RoleName::"auditor" };', 'RoleName::"viewer" };'))
    done = cli("run", *WEEK, "--profile", "ci", env={"AKIDB_CEDAR_SANDBOX": str(folder)}, timeout=200)
    assert done.code == 1
    assert "authorization_matrix failed" in done.err
    assert "weekly-fixtures-failed.md" in done.err
    assert cli("fixtures", "list").out == ""


def test_a_killed_main_job_is_told_as_failed_by_the_next_one(cli, tmp_path):
    import signal
    import time

    import dagster as dg

    home = tmp_path / "home"
    environment = {**os.environ, "AKIDB_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    command = [sys.executable, "-m", "akidb_pipelines", "run", *WEEK, "--profile", "ci"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(home.glob("builds/2026-W46/*/manifest.json")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert cli("fixtures", "list").out == "", "nothing half-published"
    done = cli("run", *WEEK, "--profile", "ci", timeout=200)
    assert "2026-W46/r1 released" in done.out, done.err
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        statuses = sorted(r.status.value for r in instance.get_runs() if r.job_name == "fixtures")
    assert statuses == ["FAILURE", "SUCCESS"]


def test_drift_is_a_warning_when_additive_and_1_when_breaking(cli, tmp_path):
    done = cli("fixtures", "drift", "--json")
    assert done.code == 0
    told = json.loads(done.out)
    assert not told["breaking"]
    assert any(f["affected_policies"] == ["support-looks"] for f in told["findings"])
    folder = tmp_path / "sandbox"
    shutil.copytree(SHIPPED, folder)
    schema = folder / "akidb.cedarschema"
    schema.write_text(schema.read_text().replace("sensitivity?: Sensitivity", "sensitivity: Sensitivity"))
    broken = cli("fixtures", "drift", env={"AKIDB_CEDAR_SANDBOX": str(folder)})
    assert broken.code == 1
    assert "breaking" in broken.out


def test_negative_fixtures_are_written_with_their_labels(cli, tmp_path):
    done = cli("fixtures", "negative", *WEEK, "--out", "bad", "--json")
    assert done.code == 0, done.err
    assert len(json.loads(done.out)["fixtures"]) == len(list((tmp_path / "bad").glob("*.db")))
    assert (tmp_path / "bad" / "negative.json").is_file()


def test_the_shipped_sandbox_can_be_copied_and_changed(cli, tmp_path):
    assert cli("cedar", "copy", "mine").code == 0
    (tmp_path / "mine" / "freeze.cedar").write_text('@id("freeze") forbid (principal, action, resource);')
    assert "13 policies validate" in cli("cedar", "check", env={"AKIDB_CEDAR_SANDBOX": str(tmp_path / "mine")}).out
    again = cli("cedar", "copy", "mine")
    assert again.code == 2
    assert "is there already" in again.err


def test_an_instance_where_nothing_ever_ran_is_not_all_clear(cli):
    """Somebody who looks at another instance than the one that runs must not be told that nothing is wrong."""
    told = cli("alerts", "list")
    assert told.code == 3
    assert "nothing ever ran in" in told.err


def test_cedar_check_matrix_and_latency(cli):
    assert "12 policies validate" in cli("cedar", "check").out
    matrix = json.loads(cli("cedar", "matrix", "--json").out)
    assert (matrix["cases"], matrix["allowed"], matrix["disagreements"]) == (408, 32, 0)
    latency = json.loads(cli("cedar", "latency", "--policies", "500", "--json").out)
    assert latency["policies"] == 500
    assert latency["sliced"]["p99_ms"] > 0


def test_a_policy_that_does_not_validate_fails_the_check_with_its_name(cli, tmp_path):
    folder = tmp_path / "sandbox"
    shutil.copytree(SHIPPED, folder)
    policies = folder / "akidb.cedar"
    policies.write_text(policies.read_text().replace("principal.status", "principal.state"))
    done = cli("cedar", "check", "--sandbox", str(folder))
    assert done.code == 2
    assert '@id("inactive-user")' in done.err


def test_doctor_lists_what_is_there_and_what_to_do(cli):
    done = cli("doctor", "--json")
    told = json.loads(done.out)
    lines = {line["what"]: line for line in told["lines"]}
    assert lines["git"]["state"] == "ok"
    assert lines["Cedar sandbox policies"]["state"] == "ok"
    assert lines["fixtures"]["state"] == "missing"
    assert lines["GitHub reachable"]["state"] == "not configured"
    assert "AKIDB_GRAFANA_URL" in lines["Grafana reachable"]["to_do"]
    assert all(line["to_do"] for line in told["lines"] if line["state"] == "missing")
    assert done.code == (0 if told["ok"] else 3) == 3


def test_the_hook_stops_a_commit_with_a_broken_policy(cli, tmp_path):
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    done = cli("hooks", "install", str(repository))
    assert done.code == 0, done.err
    hook = repository / ".git" / "hooks" / "pre-commit"
    assert hook.stat().st_mode & stat.S_IXUSR
    assert cli("hooks", "install", str(repository)).code == 0, "installing again replaces our own hook"

    shutil.copytree(SHIPPED, repository / "policies")
    policies = repository / "policies" / "akidb.cedar"
    environment = {
        **os.environ,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }

    def commit():
        subprocess.run(["git", "-C", str(repository), "add", "-A"], check=True)
        command = ["git", "-C", str(repository), "commit", "-q", "-m", "x"]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    good = policies.read_text()
    policies.write_text(good.replace("principal.status", "principal.state"))
    refused = commit()
    assert refused.returncode != 0
    assert "inactive-user" in refused.stderr
    policies.write_text(good)
    assert commit().returncode == 0


def test_somebody_elses_hook_is_left_alone(cli, tmp_path):
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.write_text("#!/bin/sh\nexit 0\n")
    done = cli("hooks", "install", str(repository))
    assert done.code == 2
    assert hook.read_text() == "#!/bin/sh\nexit 0\n"


def test_the_ui_serves_the_assets_that_a_run_filled(cli, tmp_path):
    """The webserver as `make ui` starts it, asked over HTTP."""
    import socket
    import time
    import urllib.request

    assert cli("run", *WEEK, "--profile", "ci", timeout=200).code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = tmp_path / "home"
    environment = {**os.environ, "AKIDB_HOME": str(home), "DAGSTER_HOME": str(home / "dagster")}
    command = [sys.executable, "-m", "dagster_webserver", "-m", "akidb_pipelines.definitions", "-h", "127.0.0.1", "-p", str(port)]
    query = json.dumps(
        {
            "query": "{ assetNodes { assetKey { path } partitionStats { numMaterialized } hasAssetChecks } "
            "runsOrError { ... on Runs { results { jobName status } } } }"
        }
    ).encode()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(120):
                try:
                    request = urllib.request.Request(
                        f"http://127.0.0.1:{port}/graphql", query, {"Content-Type": "application/json"}
                    )
                    with urllib.request.urlopen(request, timeout=10) as answer:
                        data = json.load(answer)["data"]
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                pytest.fail("the webserver did not answer within a minute")
        finally:
            server.terminate()
    nodes = {n["assetKey"]["path"][0]: n for n in data["assetNodes"]}
    assert nodes["fixture_databases"]["hasAssetChecks"]
    assert nodes["fixture_release"]["partitionStats"]["numMaterialized"] == 1
    assert {(r["jobName"], r["status"]) for r in data["runsOrError"]["results"]} == {
        ("fixtures", "SUCCESS"),
        ("observe_sandbox", "SUCCESS"),
    }
