"""The registry's commands as ops and engineers call them, on a real S3 server and on a folder."""

from __future__ import annotations

import json

import pytest

from akidb_pipelines.settings import Settings
from akidb_pipelines.store.publisher import open_publisher
from tests.services.clock import clock
from tests.services.places import content, seaweed_place

WEEK = ("--week", "2026-W46", "--profile", "ci")


def test_the_main_job_publishes_to_s3_and_an_empty_home_pulls_it(cli, seaweed, tmp_path):
    place = seaweed_place(seaweed)
    environment = {**place.environment, "AKIDB_STORE": place.url}
    refused = cli("run", *WEEK, env=environment)
    assert refused.code == 2
    assert "registry init" in refused.err

    made = cli("registry", "init", place.url, "--json", env=place.environment)
    assert made.code == 0, made.err
    root = json.loads(made.out)["root"]
    assert cli("store", "doctor", place.url, env=place.environment).code == 0

    done = cli("run", *WEEK, env=environment, timeout=200)
    assert done.code == 0, done.err
    assert "2026-W46/r1 released" in done.out

    stranger = {**environment, "AKIDB_HOME": str(tmp_path / "empty-home")}
    refused = cli("fixtures", "pull", "--dest", "x", env=stranger)
    assert refused.code == 2
    assert "AKIDB_REGISTRY_ROOT" in refused.err
    pulled = cli("fixtures", "pull", "--dest", "x", "--root", root, "--json", env=stranger)
    assert pulled.code == 0, pulled.err
    told = json.loads(pulled.out)
    assert told["release"] == "2026-W46/r1"
    assert told["fetched_bytes"] > 1_000_000
    assert cli("fixtures", "verify", "x", env=stranger).code == 0

    # Offline, with the digest that was pulled: from the cache. Without it: no.
    offline = {**stranger, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AKIDB_REGISTRY_ROOT": root, "AWS_MAX_ATTEMPTS": "1"}
    pinned = cli("fixtures", "pull", "--dest", "y", "--manifest-sha256", told["manifest_sha256"], env=offline)
    assert pinned.code == 0, pinned.err
    assert "not asked whether it was revoked" in pinned.err
    assert (tmp_path / "y" / "ci.db").read_bytes() == (tmp_path / "x" / "ci.db").read_bytes()
    assert cli("fixtures", "pull", "--dest", "z", env=offline).code == 3


@pytest.fixture
def weeks(tmp_path):
    """Three small releases in the command's own home."""
    publisher = open_publisher(Settings(home=tmp_path / "home"))
    for week in ("2026-W45", "2026-W46", "2026-W47"):
        publisher.publish(*content(tmp_path / week, week, db=week.encode()))
    return publisher


def test_channels_are_moved_and_releases_withdrawn_by_hand(cli, weeks, tmp_path):
    for release in ("2026-W45/r1", "2026-W46/r1"):
        assert cli("registry", "promote", release, "--reason", "tried").code == 0
    back = cli("registry", "rollback", "--reason", "W47 breaks the importer")
    assert "latest now points at 2026-W46/r1 (sequence 4)" in back.out
    revoked = cli("registry", "revoke", "2026-W46/r1", "--reason", "leak")
    assert "stable points at 2026-W45/r1" in revoked.out
    assert cli("registry", "pin", "2026-W45/r1", "--reason", "baseline").code == 0
    told = json.loads(cli("registry", "status", "--json").out)
    assert {h["channel"]: h["version"] for h in told["heads"]} == {"latest": "2026-W45/r1", "stable": "2026-W45/r1"}
    assert [(e["version"], e["revoked"], e["pinned"]) for e in told["releases"]] == [
        ("2026-W45/r1", "", "baseline"),
        ("2026-W46/r1", "leak", ""),
        ("2026-W47/r1", "", ""),
    ]
    shown = cli("registry", "status")
    assert "revoked: leak" in shown.out
    assert "timestamp" in shown.out
    assert cli("registry", "unpin", "2026-W45/r1").code == 0
    refused = cli("fixtures", "pull", "--week", "2026-W46", "--dest", "x")
    assert refused.code == 1
    assert "leak" in refused.err
    listed = cli("fixtures", "list")
    assert "revoked: leak" in listed.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("registry", "promote", "W46"), "write it as 2026-W47/r1"),
        (("registry", "promote", "2026-W99/r1"), "there is no release 2026-W99/r1"),
        (("registry", "promote", "2026-W46/r1", "--channel", "nightly"), "there is no channel 'nightly'"),
        (("registry", "rollback", "--reason", "x", "--to", "2026-W47/r1"), "is not before"),
        (("registry", "rotate-key", "everything"), "there is no role"),
        (("registry", "init", "--anew"), "cuts off every client"),
        (("registry", "revoke", "2026-W46/r1"), "--reason"),
        (("store", "doctor", "ftp://x"), "unknown kind of store"),
        (("fixtures", "pull", "--dest", "x", "--root", "nowhere.json"), "trusted root nowhere.json"),
        (("fixtures", "pull", "--dest", "x", "--channel", "stable"), "channel stable of fixtures points at nothing yet"),
    ],
)
def test_unusable_input_ends_with_2_and_a_message(cli, weeks, arguments, told):
    done = cli(*arguments)
    assert done.code == 2, done.err
    assert told in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_collecting_says_what_and_why(cli, weeks):
    dry = json.loads(cli("registry", "gc", "--dry-run", "--json").out)
    assert dry["dry_run"]
    assert {d["why"] for d in dry["decisions"]} == {"channel latest points at it", "one of the newest 3"}
    assert "one of the newest 3" in cli("registry", "gc").out


def test_keys_are_replaced_and_the_root_key_can_be_kept_elsewhere(cli, weeks, tmp_path):
    keys = weeks.keys.folder
    assert cli("registry", "rotate-key", "targets", "timestamp").code == 0
    assert cli("fixtures", "pull", "--dest", "x").code == 0
    (root,) = keys.glob("root-*.pem")
    root.rename(tmp_path / "on-a-stick.pem")
    assert cli("registry", "refresh").code == 0, "everyday work needs no root key"
    refused = cli("registry", "rotate-key", "targets")
    assert refused.code == 1
    assert "no key to sign role root" in refused.err
    anew = cli("registry", "init", f"file://{tmp_path / 'home' / 'store'}", "--anew")
    assert anew.code == 0, anew.err
    assert "fingerprint" in anew.out
    assert cli("fixtures", "pull", "--dest", "x").code == 0


def test_status_warns_and_ends_with_1_when_signatures_end_soon(cli, weeks):
    done = cli("registry", "status", env=clock("+30d"))
    assert done.code == 1
    assert "registry refresh" in done.err
    late = cli("fixtures", "pull", "--dest", "x", env=clock("+40d"))
    assert late.code == 3
    assert "by this machine's clock it is" in late.err


def test_the_doctor_of_a_broken_store_ends_with_3(cli, seaweed):
    environment = {**seaweed.environment(), "AWS_SECRET_ACCESS_KEY": "wrong"}
    done = cli("store", "doctor", "s3://some", "--json", env=environment)
    assert done.code == 3
    told = json.loads(done.out)
    assert not told["ok"]
    assert all("AWS_SECRET_ACCESS_KEY" in f["to_do"] for f in told["findings"])
