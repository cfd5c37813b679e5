"""What retention keeps, retires and removes, and that a collection beside a publisher loses nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from akidb_pipelines.errors import InputError
from akidb_pipelines.periods import Week
from akidb_pipelines.settings import Settings
from akidb_pipelines.store import lease
from akidb_pipelines.store.index import Version
from akidb_pipelines.store.lease import BusyError
from akidb_pipelines.store.local import LocalStore
from akidb_pipelines.store.manifest import blob_key
from akidb_pipelines.store.publisher import open_publisher
from akidb_pipelines.store.pull import Puller, Wanted
from akidb_pipelines.store.retention import GRACE, collect
from tests.services.places import Place, content, oci_place, rules_place, seaweed_place, use

KIND = "fixtures"
FIRST = Week.parse("2026-W30")


def publish_weeks(publisher, tmp_path, count, start=0):
    for n in range(start, start + count):
        week = FIRST.shift(n).iso
        publisher.publish(*content(tmp_path / week, week, db=week.encode(), common=b"common"))


def later(publisher, **delta):
    return replace(publisher, now=lambda: datetime.now(UTC) + timedelta(**delta))


def actions(plan):
    return {d.what.removeprefix("fixtures "): d.action for d in plan.decisions if d.what.startswith("fixtures ")}


def test_the_newest_eight_pins_and_channel_targets_are_kept_and_others_retired(publisher, tmp_path):
    publish_weeks(publisher, tmp_path, 12)
    publisher.pin(KIND, Version("2026-W31", 1), "baseline of the benchmark")
    publisher.promote(KIND, Version("2026-W32", 1), "stable", "long tried")
    plan = collect(publisher, dry_run=True)
    assert {what for what, action in actions(plan).items() if action == "retire"} == {"2026-W30/r1", "2026-W33/r1"}
    whys = {d.what: d.why for d in plan.decisions}
    assert whys["fixtures 2026-W31/r1"] == "pinned: baseline of the benchmark"
    assert whys["fixtures 2026-W32/r1"] == "channel stable points at it"
    assert whys["fixtures 2026-W34/r1"] == "one of the newest 8"
    assert publisher.index().get(KIND, Version("2026-W30", 1)).retired_at == "", "a dry run changes nothing"


def test_a_retired_release_can_be_pulled_for_a_week_and_then_it_is_gone(publisher, tmp_path):
    publish_weeks(publisher, tmp_path, 9)
    stored = {o.key for o in publisher.registry.artifacts.list("blobs/")}
    collect(publisher)
    puller = Puller(publisher.registry, tmp_path / "cache")
    assert puller.pull(Wanted(KIND, name="2026-W30"), tmp_path / "out").id == "2026-W30/r1"
    early = collect(later(publisher, days=6))
    assert actions(early)["2026-W30/r1"] == "keep"
    done = collect(later(publisher, days=8))
    assert actions(done)["2026-W30/r1"] == "remove"
    assert sum(d.size_bytes for d in done.decisions if d.action == "remove" and d.what.startswith("blobs/")) == len("2026-W30")
    gone = stored - {o.key for o in publisher.registry.artifacts.list("blobs/")}
    assert len(gone) == 1, "what other weeks have in common stays"
    left = sorted(o.key for o in publisher.registry.artifacts.list("fixtures/releases/2026-W30/"))
    assert left == ["fixtures/releases/2026-W30/r1/SHA256SUMS"]
    with pytest.raises(InputError, match="has left retention"):
        puller.pull(Wanted(KIND, name="2026-W30"), tmp_path / "out2")
    for n in range(1, 9):
        assert puller.pull(Wanted(KIND, name=FIRST.shift(n).iso), tmp_path / f"o{n}").paths


def test_the_number_of_a_removed_revision_is_not_given_again(publisher, tmp_path):
    publish_weeks(publisher, tmp_path, 9)
    collect(publisher)
    collect(later(publisher, days=8))
    assert publisher.publish(*content(tmp_path / "other", "2026-W30", db=b"other bytes")).id == "2026-W30/r2"


def test_a_release_that_is_pinned_in_its_grace_stays(publisher, tmp_path):
    publish_weeks(publisher, tmp_path, 9)
    collect(publisher)
    publisher.pin(KIND, Version("2026-W30", 1), "still needed")
    assert actions(collect(later(publisher, days=20)))["2026-W30/r1"] == "keep"
    publisher.pin(KIND, Version("2026-W30", 1), "")
    assert actions(collect(later(publisher, days=20)))["2026-W30/r1"] == "retire"


@pytest.mark.parametrize("kind", ["local", "s3", "s3 by OCI's rules", "oci"])
def test_what_no_release_names_goes_when_it_is_old(kind, request, tmp_path, monkeypatch):
    makers = {
        "local": lambda: Place(f"file://{tmp_path / 'store'}", {}),
        "s3": lambda: seaweed_place(request.getfixturevalue("seaweed")),
        "s3 by OCI's rules": lambda: rules_place(request.getfixturevalue("s3_rules")),
        "oci": lambda: oci_place(request.getfixturevalue("oci_stub"), tmp_path),
    }
    place = makers[kind]()
    use(place, monkeypatch)
    publisher = open_publisher(place.settings(tmp_path / "home"))
    publisher.init()
    publisher.publish(*content(tmp_path / "a", "2026-W47", db=b"data"))
    orphan = blob_key("f" * 64)
    publisher.registry.artifacts.create(orphan, b"a dead publisher's")
    if kind != "local":
        publisher.registry.artifacts.bucket.begin(blob_key("e" * 64), "e" * 64)
    young = collect(publisher)
    assert young.objects == ()
    assert publisher.registry.artifacts.stat(orphan)
    old = collect(later(publisher, days=8))
    assert old.objects == (orphan,)
    assert publisher.registry.artifacts.stat(orphan) is None
    assert list(publisher.registry.artifacts.unfinished()) == []
    assert Puller(publisher.registry, tmp_path / "c").pull(Wanted(KIND), tmp_path / "o").id == "2026-W47/r1"


def test_kinds_without_a_policy_are_kept_for_ever(publisher, tmp_path):
    for n in range(10):
        manifest, folder = content(tmp_path / str(n), f"2026-W{30 + n}", db=str(n).encode())
        publisher.publish(replace(manifest, kind="runner-images"), folder)
    plan = collect(later(publisher, days=100), dry_run=True)
    assert {d.action for d in plan.decisions if d.what.startswith(("runner", "blobs"))} == {"keep"}


def test_superseded_metadata_goes_and_roots_stay(publisher, tmp_path):
    publish_weeks(publisher, tmp_path, 3)
    publisher.rotate_keys(["timestamp"])
    plan = collect(later(publisher, days=8))
    assert "superseded metadata" in {d.what for d in plan.decisions}
    left = {o.key.removeprefix("tuf/metadata/") for o in publisher.registry.channels.list("tuf/metadata/")}
    assert {name for name in left if "root" in name} == {"1.root.json", "2.root.json", "3.root.json"}
    assert len(left) == 3 + 3, "roots, and timestamp, snapshot and targets in force"
    puller = Puller(publisher.registry, tmp_path / "cache")
    for n in range(3):
        assert puller.pull(Wanted(KIND, name=FIRST.shift(n).iso), tmp_path / str(n)).paths
    publish_weeks(publisher, tmp_path, 1, start=3)
    assert puller.pull(Wanted(KIND), tmp_path / "o").id == f"{FIRST.shift(3).iso}/r1"


# --- beside a publisher


def test_a_collection_stops_while_a_publisher_is_at_work(publisher, tmp_path):
    publish_weeks(publisher, tmp_path, 1)
    with lease.hold(publisher.registry.channels, "publishing", "run-9"), pytest.raises(BusyError, match="run-9") as caught:
        collect(publisher)
    assert "24 hours" in caught.value.hint
    collect(publisher)


def test_a_collection_stops_for_a_day_after_a_publisher_died(publisher, tmp_path):
    publish_weeks(publisher, tmp_path, 1)
    channels, now = publisher.registry.channels, datetime.now(UTC)
    for hours, stops in ((23, True), (25, False)):
        taken = now - timedelta(hours=hours)
        dead = lease.Lease("publishing", "run-9", "otherhost.1", "n", taken.isoformat(), (taken + lease.LIFETIME).isoformat())
        channels.swap(lease.KEY, dead.to_json(), channels.read(lease.KEY))
        if stops:
            with pytest.raises(BusyError):
                collect(publisher)
        else:
            collect(publisher)


def test_a_publisher_that_was_overtaken_by_a_collection_does_not_name_what_is_gone(publisher, tmp_path, monkeypatch):
    """It found an old blob in the store and did not send it; then it slept past its lease, and the blob was collected."""
    publish_weeks(publisher, tmp_path, 1)
    data = b"stored long ago by a publisher that died"
    manifest, folder = content(tmp_path / "new", "2026-W50", db=data)
    key = blob_key(manifest.files[0].sha256)
    publisher.registry.artifacts.create(key, data)
    blob = tmp_path / "store" / "artifacts" / key
    os.utime(blob, (0, 0))
    other = open_publisher(Settings(home=tmp_path / "home", store=publisher.registry.url))
    real, channels = LocalStore.swap, publisher.registry.channels

    def sleep_past_the_lease(store, name, new, expected):
        if name == "tuf/metadata/timestamp.json":
            monkeypatch.setattr(LocalStore, "swap", real)
            past = datetime.now(UTC) - timedelta(hours=30)
            ended = lease.Lease("publishing", "r", "otherhost.1", "n", past.isoformat(), (past + lease.LIFETIME).isoformat())
            real(channels, lease.KEY, ended.to_json(), channels.read(lease.KEY))
            assert key in collect(other).objects
        real(store, name, new, expected)

    monkeypatch.setattr(LocalStore, "swap", sleep_past_the_lease)
    with pytest.raises(BusyError, match="somebody else published meanwhile"):
        publisher.publish(manifest, folder)
    assert publisher.index().names(KIND) == ["2026-W30"]
    publisher.publish(manifest, folder)
    assert Puller(publisher.registry, tmp_path / "c").pull(Wanted(KIND), tmp_path / "o").id == "2026-W50/r1"


def test_a_collector_that_slept_past_its_lease_removes_nothing_that_was_named_since(publisher, tmp_path):
    """It has decided and committed; then a publisher finds the blob in the store, and names it."""
    publish_weeks(publisher, tmp_path, 1)
    data = b"an orphan that somebody needs after all"
    manifest, folder = content(tmp_path / "new", "2026-W50", db=data)
    key = blob_key(manifest.files[0].sha256)
    publisher.registry.artifacts.create(key, data)
    os.utime(tmp_path / "store" / "artifacts" / key, (0, 0))
    other = open_publisher(Settings(home=tmp_path / "home", store=publisher.registry.url))
    channels = publisher.registry.channels

    def sleep(_):
        past = datetime.now(UTC) - timedelta(hours=30)
        ended = lease.Lease("collecting", "r", "otherhost.1", "n", past.isoformat(), (past + lease.LIFETIME).isoformat())
        channels.swap(lease.KEY, ended.to_json(), channels.read(lease.KEY))
        other.publish(manifest, folder)

    with pytest.raises(BusyError):
        collect(publisher, report=sleep)
    assert Puller(publisher.registry, tmp_path / "c").pull(Wanted(KIND), tmp_path / "o").id == "2026-W50/r1"


def test_metadata_that_was_superseded_a_moment_ago_stays_for_slow_readers(publisher, tmp_path):
    """It was written long ago; a reader may be half way through it all the same."""
    publish_weeks(publisher, tmp_path, 2)
    for path in (tmp_path / "store" / "channels" / "tuf").rglob("*.json"):
        os.utime(path, (0, 0))
    before = {o.key for o in publisher.registry.channels.list("tuf/")}
    newest = {key for key in before if key.endswith(".snapshot.json")}
    publish_weeks(publisher, tmp_path, 1, start=2)
    collect(publisher)
    left = {o.key for o in publisher.registry.channels.list("tuf/")}
    assert max(newest) in left
    assert min(newest) not in left


def test_what_a_dead_publisher_said_of_a_release_goes_too_and_its_claim_stays(publisher, tmp_path):
    publish_weeks(publisher, tmp_path, 1)
    manifest, _ = content(tmp_path / "dead", "2026-W50", db=b"dead")
    prefix = "fixtures/releases/2026-W50/r1"
    for file, data in (("SHA256SUMS", manifest.sums), ("manifest.json", manifest.to_json())):
        publisher.registry.artifacts.create(f"{prefix}/{file}", data)
    collect(later(publisher, days=8))
    assert [o.key for o in publisher.registry.artifacts.list(f"{prefix}/")] == [f"{prefix}/SHA256SUMS"]


def test_the_grace_is_a_week():
    assert timedelta(days=7) == GRACE
