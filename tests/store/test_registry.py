"""What a registry promises: immutable releases, channels that move forward, one publisher at a time, keys that can be replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from akidb_pipelines.errors import CheckError, InputError, IntegrityError, OutsideError
from akidb_pipelines.settings import Settings
from akidb_pipelines.store import lease, metadata
from akidb_pipelines.store.index import Version
from akidb_pipelines.store.lease import BusyError
from akidb_pipelines.store.local import LocalStore
from akidb_pipelines.store.manifest import blob_key
from akidb_pipelines.store.publisher import open_publisher, prepare_areas
from akidb_pipelines.store.pull import Puller, Wanted
from akidb_pipelines.store.registry import open_registry
from akidb_pipelines.store.report import examine
from tests.services.places import content

KIND = "fixtures"


def pull(publisher, folder, **wanted):
    return Puller(publisher.registry, folder / "cache").pull(Wanted(KIND, **wanted), folder / "out")


# --- on every back end


def test_a_release_is_published_and_a_stranger_pulls_it(place, tmp_path):
    """The machine that pulls has nothing but the URL, its credentials and the root."""
    settings = place.settings(tmp_path / "home")
    publisher = open_publisher(settings)
    publisher.init()
    data = os.urandom(200_000)
    release = publisher.publish(*content(tmp_path / "a", "2026-W47", **{"ci.db": data, "ci.manifest.json": b"{}"}))
    assert (release.id, release.created) == ("2026-W47/r1", True)

    stranger = open_registry(place.settings(tmp_path / "other-home"), root=publisher.registry.own_root)
    pulled = Puller(stranger, tmp_path / "other-cache").pull(Wanted(KIND), tmp_path / "out")
    assert {p.name: p.read_bytes() for p in pulled.paths} == {"ci.db": data, "ci.manifest.json": b"{}"}
    assert (pulled.id, pulled.fetched_bytes, pulled.offline) == ("2026-W47/r1", 200_002, "")

    again = publisher.publish(*content(tmp_path / "b", "2026-W47", **{"ci.db": data, "ci.manifest.json": b"{}"}))
    assert (again.id, again.created) == ("2026-W47/r1", False)
    other = publisher.publish(*content(tmp_path / "c", "2026-W47", **{"ci.db": b"other"}))
    assert (other.id, other.created) == ("2026-W47/r2", True)
    assert Puller(stranger, tmp_path / "other-cache").pull(Wanted(KIND), tmp_path / "out").id == "2026-W47/r2"


def test_without_a_root_nothing_of_a_server_is_trusted(oci_stub, tmp_path, monkeypatch):
    from tests.services.places import oci_place, use

    place = oci_place(oci_stub, tmp_path)
    use(place, monkeypatch)
    open_publisher(place.settings(tmp_path / "home")).init()
    stranger = open_registry(place.settings(tmp_path / "other-home"))
    with pytest.raises(InputError, match="no root metadata to trust") as caught:
        stranger.index()
    assert "AKIDB_REGISTRY_ROOT" in caught.value.hint


def test_init_makes_the_areas_or_says_what_to_create(oci_stub, s3_rules, seaweed, tmp_path, monkeypatch):
    from tests.services.places import Place, use

    config = str(oci_stub.config_file(tmp_path))
    place = Place("oci://axns/new", {"OCI_CONFIG_FILE": config, "AKIDB_OCI_ENDPOINT": oci_stub.endpoint})
    use(place, monkeypatch)
    told = prepare_areas(place.settings(tmp_path / "home"), place.url)
    assert len(told) == 4
    assert "oci os bucket create --name new-artifacts" in told[0].hint
    use(Place("s3://made", seaweed.environment()), monkeypatch)
    assert prepare_areas(Settings(home=tmp_path / "home"), f"s3://made-{tmp_path.name[:20].replace('_', '-')}") == []


# --- releases


def test_the_same_bytes_are_a_no_op_and_other_bytes_the_next_revision(publisher, tmp_path):
    first = publisher.publish(*content(tmp_path / "a", "2026-W47", db=b"one"))
    again = publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"one"))
    other = publisher.publish(*content(tmp_path / "c", "2026-W47", db=b"two"))
    assert [(r.id, r.created) for r in (first, again, other)] == [
        ("2026-W47/r1", True),
        ("2026-W47/r1", False),
        ("2026-W47/r2", True),
    ]


def test_latest_moves_forward_only(publisher, tmp_path):
    publisher.publish(*content(tmp_path / "a", "2026-W47", db=b"new"))
    publisher.publish(*content(tmp_path / "b", "2026-W40", db=b"backfilled"))
    assert publisher.registry.head(KIND).id == "2026-W47/r1"
    publisher.publish(*content(tmp_path / "c", "2026-W47", db=b"newer"))
    assert publisher.registry.head(KIND).id == "2026-W47/r2"
    publisher.publish(*content(tmp_path / "d", "2026-W48", db=b"next week"))
    assert publisher.registry.head(KIND).id == "2026-W48/r1"
    assert publisher.index().names(KIND) == ["2026-W40", "2026-W47", "2026-W48"]


def test_nothing_released_yet_is_said(publisher, tmp_path):
    with pytest.raises(InputError, match="points at nothing yet"):
        publisher.registry.head(KIND)
    with pytest.raises(InputError, match="no fixtures were released yet"):
        pull(publisher, tmp_path)


def test_a_file_changed_after_its_manifest_is_not_released(publisher, tmp_path):
    manifest, folder = content(tmp_path / "a", "2026-W47", db=b"data")
    (folder / "db").write_bytes(b"DATA")
    with pytest.raises(IntegrityError, match="digest"):
        publisher.publish(manifest, folder)
    assert publisher.index().names(KIND) == []


def test_what_a_dead_publisher_left_of_other_bytes_is_skipped(publisher, tmp_path):
    manifest, _ = content(tmp_path / "a", "2026-W47", db=b"dead")
    publisher.registry.artifacts.create("fixtures/releases/2026-W47/r1/SHA256SUMS", manifest.sums)
    assert publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"alive")).id == "2026-W47/r2"


def test_what_a_dead_publisher_left_of_the_same_bytes_is_used(publisher, tmp_path):
    from akidb_pipelines.store.provenance import Origin, statement

    publisher.init()
    manifest, folder = content(tmp_path / "a", "2026-W47", db=b"same")
    for file, data in {
        "SHA256SUMS": manifest.sums,
        "manifest.json": manifest.to_json(),
        "provenance.json": statement(manifest, Origin("dead run", "2026-11-20T00:00:00Z")),
    }.items():
        publisher.registry.artifacts.create(f"fixtures/releases/2026-W47/r1/{file}", data)
    release = publisher.publish(manifest, folder, run_id="mine")
    assert (release.id, release.created) == ("2026-W47/r1", True)
    assert pull(publisher, tmp_path).id == "2026-W47/r1"
    assert signed_provenance(publisher)["predicate"]["runDetails"]["metadata"]["invocationId"] == "mine"


def test_a_provenance_that_somebody_planted_is_not_signed(publisher, tmp_path):
    manifest, folder = content(tmp_path / "a", "2026-W47", db=b"same")
    publisher.registry.artifacts.create("fixtures/releases/2026-W47/r1/provenance.json", b'{"planted": true}')
    publisher.publish(manifest, folder)
    assert "planted" not in signed_provenance(publisher)
    assert pull(publisher, tmp_path).id == "2026-W47/r1"


def signed_provenance(publisher, name="2026-W47"):
    registry = publisher.registry
    return json.loads(registry.trust(registry.root()).provenance(publisher.index().newest(KIND, name)))


def test_the_provenance_says_from_what_and_by_whom(publisher, tmp_path):
    manifest, folder = content(tmp_path / "a", "2026-W47", db=b"data")
    manifest = replace(manifest, attributes={"cedar_sha256": "c" * 64, "seed": "2025"})
    publisher.publish(manifest, folder, run_id="run-7")
    told = signed_provenance(publisher)
    assert told["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {s["name"] for s in told["subject"]} == {"manifest.json", "db"}
    definition = told["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {"name": "2026-W47", "seed": "2025"}
    assert definition["resolvedDependencies"] == [{"name": "cedar", "digest": {"sha256": "c" * 64}}]
    assert told["predicate"]["runDetails"]["metadata"]["invocationId"] == "run-7"
    stored = publisher.registry.artifacts.read("fixtures/releases/2026-W47/r1/provenance.json")
    assert json.loads(stored) == told


def test_any_tuf_client_can_follow_a_channel_and_check_a_provenance(publisher, tmp_path):
    """python-tuf's own client, over files, knowing nothing of our index."""
    from tuf.ngclient import FetcherInterface, Updater

    publisher.publish(*content(tmp_path / "a", "2026-W47", db=b"data"))
    base = tmp_path / "store" / "channels" / "tuf"

    class Files(FetcherInterface):
        def _fetch(self, url):
            from tuf.api.exceptions import DownloadHTTPError

            path = base / url
            if not path.is_file():
                raise DownloadHTTPError("", 404)
            yield path.read_bytes()

    (tmp_path / "targets").mkdir()
    updater = Updater(
        str(tmp_path / "client"),
        "metadata/",
        str(tmp_path / "targets"),
        "targets/",
        fetcher=Files(),
        bootstrap=publisher.registry.own_root.read_bytes(),
    )
    told = {}
    for path in ("fixtures/channels/latest.json", "fixtures/releases/2026-W47/r1/provenance.json"):
        told[path] = json.loads(Path(updater.download_target(updater.get_targetinfo(path))).read_bytes())
    head = told["fixtures/channels/latest.json"]
    assert (head["version"], head["sequence"]) == ("2026-W47/r1", 1)
    subjects = told["fixtures/releases/2026-W47/r1/provenance.json"]["subject"]
    assert {"name": "manifest.json", "digest": {"sha256": head["manifest_sha256"]}} in subjects


def test_a_lost_manifest_and_provenance_are_put_back_by_releasing_again(publisher, tmp_path):
    publisher.publish(*content(tmp_path / "a", "2026-W47", db=b"data"))
    entry = publisher.index().newest(KIND, "2026-W47")
    publisher.registry.artifacts.delete(["fixtures/releases/2026-W47/r1/manifest.json"])
    publisher.registry.channels.delete([metadata.target_key(entry.path, entry.provenance_sha256)])
    with pytest.raises(IntegrityError, match=r"manifest\.json, though the registry names it") as caught:
        pull(publisher, tmp_path)
    assert "release it again" in caught.value.hint
    assert not publisher.publish(*content(tmp_path / "a", "2026-W47", db=b"data")).created
    assert pull(publisher, tmp_path).id == "2026-W47/r1"


def test_a_damaged_blob_in_the_store_is_not_taken_for_the_right_one(oci_stub, tmp_path, monkeypatch):
    from tests.services.places import oci_place, use

    place = oci_place(oci_stub, tmp_path)
    use(place, monkeypatch)
    publisher = open_publisher(place.settings(tmp_path / "home"))
    publisher.init()
    manifest, folder = content(tmp_path / "a", "2026-W47", db=b"data")
    publisher.registry.artifacts.create(blob_key(manifest.files[0].sha256), b"dbta")
    with pytest.raises(IntegrityError, match="holds something else"):
        publisher.publish(manifest, folder)


# --- channels by hand


def three_weeks(publisher, tmp_path):
    for week in ("2026-W46", "2026-W47", "2026-W48"):
        publisher.publish(*content(tmp_path / week, week, db=week.encode()))


def test_stable_is_promoted_by_hand_and_only_forward(publisher, tmp_path):
    three_weeks(publisher, tmp_path)
    with pytest.raises(InputError, match="channel stable of fixtures points at nothing yet"):
        pull(publisher, tmp_path, channel="stable")
    publisher.promote(KIND, Version("2026-W47", 1), "stable", "tried by QA")
    assert pull(publisher, tmp_path, channel="stable").id == "2026-W47/r1"
    with pytest.raises(InputError, match="ahead of 2026-W46/r1") as caught:
        publisher.promote(KIND, Version("2026-W46", 1), "stable", "oops")
    assert "rollback" in caught.value.hint
    with pytest.raises(InputError, match="no release 2026-W99/r1"):
        publisher.promote(KIND, Version("2026-W99", 1), "stable", "typo")


def test_a_rollback_is_a_new_sequence_that_clients_follow_and_the_next_release_ends(publisher, tmp_path):
    three_weeks(publisher, tmp_path)
    assert pull(publisher, tmp_path).id == "2026-W48/r1"
    head = publisher.roll_back(KIND, "latest", None, "W48 breaks the importer")
    assert (str(head.version), head.sequence, head.reason) == ("2026-W47/r1", 4, "W48 breaks the importer")
    assert pull(publisher, tmp_path).id == "2026-W47/r1"
    publisher.publish(*content(tmp_path / "again", "2026-W48", db=b"2026-W48"))
    assert publisher.registry.head(KIND).id == "2026-W47/r1", "releasing the same bytes does not bring them back"
    publisher.publish(*content(tmp_path / "fixed", "2026-W48", db=b"fixed"))
    assert pull(publisher, tmp_path).id == "2026-W48/r2"
    publisher.roll_back(KIND, "latest", Version("2026-W46", 1), "further")
    assert pull(publisher, tmp_path).id == "2026-W46/r1"
    with pytest.raises(InputError, match="cannot go back"):
        publisher.roll_back(KIND, "latest", None, "too far")
    with pytest.raises(InputError, match="points at nothing"):
        publisher.roll_back(KIND, "stable", None, "never promoted")
    head = publisher.promote(KIND, Version("2026-W47", 1), "latest", "good after all")
    assert head.sequence == 7


def test_a_revocation_does_not_bring_back_what_was_rolled_away_from(publisher, tmp_path):
    three_weeks(publisher, tmp_path)
    publisher.promote(KIND, Version("2026-W46", 1), "stable", "tried")
    publisher.roll_back(KIND, "latest", None, "W48 breaks the importer")
    publisher.publish(*content(tmp_path / "next", "2026-W49", db=b"next"))
    publisher.promote(KIND, Version("2026-W49", 1), "stable", "tried")
    publisher.revoke(KIND, Version("2026-W49", 1), "worse")
    assert pull(publisher, tmp_path).id == "2026-W47/r1"
    assert pull(publisher, tmp_path, channel="stable").id == "2026-W46/r1", "not a week that nobody promoted"


def test_a_revoked_release_cannot_be_pulled_and_channels_leave_it(publisher, tmp_path):
    three_weeks(publisher, tmp_path)
    publisher.promote(KIND, Version("2026-W47", 1), "stable", "tried")
    publisher.promote(KIND, Version("2026-W48", 1), "stable", "too early")
    publisher.revoke(KIND, Version("2026-W48", 1), "leaks a real address")
    for channel in ("latest", "stable"):
        assert pull(publisher, tmp_path, channel=channel).id == "2026-W47/r1"
    with pytest.raises(CheckError, match="revoked: leaks a real address"):
        pull(publisher, tmp_path, name="2026-W48")
    digest = publisher.index().get(KIND, Version("2026-W48", 1)).manifest_sha256
    with pytest.raises(CheckError, match="revoked"):
        pull(publisher, tmp_path, manifest_sha256=digest)
    with pytest.raises(CheckError, match="has these very bytes and was revoked"):
        publisher.publish(*content(tmp_path / "again", "2026-W48", db=b"2026-W48"))
    publisher.publish(*content(tmp_path / "fixed", "2026-W48", db=b"fixed"))
    assert pull(publisher, tmp_path, name="2026-W48").id == "2026-W48/r2"
    with pytest.raises(CheckError, match="has these very bytes and was revoked"):
        publisher.publish(*content(tmp_path / "again", "2026-W48", db=b"2026-W48"))
    for version in ("2026-W46", "2026-W47"):
        publisher.revoke(KIND, Version(version, 1), "all of them")
    publisher.revoke(KIND, Version("2026-W48", 2), "all of them")
    with pytest.raises(InputError):
        pull(publisher, tmp_path)


# --- how long metadata lasts


def later(publisher, **delta):
    return replace(publisher, now=lambda: datetime.now(UTC) + timedelta(**delta))


def test_a_missed_week_stops_nobody_and_publishing_again_renews(publisher, tmp_path):
    publisher.publish(*content(tmp_path / "a", "2026-W47", db=b"data"))
    report = examine(publisher.registry, datetime.now(UTC) + timedelta(days=24))
    assert report.warnings == ()
    report = examine(publisher.registry, datetime.now(UTC) + timedelta(days=26))
    assert "timestamp ends on" in report.warnings[0]
    assert "registry refresh" in report.warnings[0]
    report = examine(publisher.registry, datetime.now(UTC) + timedelta(days=36))
    assert "nobody can pull" in report.warnings[0]
    later(publisher, days=10).publish(*content(tmp_path / "b", "2026-W47", db=b"data"))
    assert examine(publisher.registry, datetime.now(UTC) + timedelta(days=34)).warnings == ()


def test_ended_metadata_stops_pulls_and_not_the_publisher(publisher, tmp_path):
    later(publisher, days=-40).publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    with pytest.raises(OutsideError, match=r"timestamp\.json is expired; by this machine's clock") as caught:
        pull(publisher, tmp_path)
    assert "registry refresh" in caught.value.hint
    publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"data"))
    assert pull(publisher, tmp_path).id == "2026-W47/r1"


def test_a_root_that_ends_soon_is_renewed_with_its_key(publisher, tmp_path):
    later(publisher, days=-400).publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    state = publisher.refresh()
    assert state.root.signed.version == 2
    assert pull(publisher, tmp_path).id == "2026-W46/r1"


# --- keys


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_every_key_can_be_replaced_and_clients_follow(publisher, tmp_path, role):
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    pull(publisher, tmp_path)
    before = {p.name for p in publisher.keys.folder.iterdir()}
    publisher.rotate_keys([role])
    (new,) = {p.name for p in publisher.keys.folder.iterdir()} - before
    assert new.startswith(f"{role}-")
    for old in before:
        if old.startswith(f"{role}-"):
            (publisher.keys.folder / old).unlink()
    publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"more"))
    assert pull(publisher, tmp_path).id == "2026-W47/r1"
    stranger = open_registry(Settings(home=tmp_path / "other", store=publisher.registry.url))
    assert Puller(stranger, tmp_path / "c2").pull(Wanted(KIND), tmp_path / "o2").id == "2026-W47/r1"


def test_a_lost_online_key_is_replaced_with_the_root_key(publisher, tmp_path):
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    for path in publisher.keys.folder.glob("targets-*.pem"):
        path.unlink()
    with pytest.raises(CheckError, match="no key to sign role targets") as caught:
        publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"more"))
    assert "registry-key-lost.md" in caught.value.hint
    assert pull(publisher, tmp_path).id == "2026-W46/r1"
    publisher.rotate_keys(["targets"])
    publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"more"))
    assert pull(publisher, tmp_path).id == "2026-W47/r1"


def test_a_damaged_key_file_is_named(publisher, tmp_path):
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    path = next(publisher.keys.folder.glob("snapshot-*.pem"))
    path.write_text("no key")
    with pytest.raises(InputError, match=path.name):
        publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"more"))


def test_keys_are_readable_by_their_owner_only(publisher, tmp_path):
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    assert {p.stat().st_mode & 0o777 for p in publisher.keys.folder.iterdir()} == {0o600}
    assert publisher.keys.folder.stat().st_mode & 0o777 == 0o700


def interrupt(monkeypatch, function):
    """The process is stopped when it comes to a function of the signed metadata."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(metadata, function, stop)


def test_keys_that_are_all_lost_are_replaced_together(publisher, tmp_path):
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    for role in ("targets", "snapshot", "timestamp"):
        for path in publisher.keys.folder.glob(f"{role}-*.pem"):
            path.unlink()
    publisher.rotate_keys(["targets", "snapshot", "timestamp"])
    publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"more"))
    assert pull(publisher, tmp_path).id == "2026-W47/r1"


def test_everyday_work_goes_on_for_years_without_the_root_key(publisher, tmp_path):
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    (root,) = publisher.keys.folder.glob("root-*.pem")
    root.rename(tmp_path / "root.pem")
    late = later(publisher, days=500)
    state = late.refresh()
    assert state.expiries()["timestamp"] > datetime.now(UTC) + timedelta(days=530)
    (tmp_path / "root.pem").rename(root)
    assert late.refresh().expiries()["root"] > datetime.now(UTC) + timedelta(days=1000)


def test_a_rotation_that_dies_half_way_leaves_a_registry_that_verifies(publisher, tmp_path, monkeypatch):
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    interrupt(monkeypatch, "commit")
    with pytest.raises(KeyboardInterrupt):
        publisher.rotate_keys(["timestamp"])
    monkeypatch.undo()
    assert pull(publisher, tmp_path).id == "2026-W46/r1"
    publisher.rotate_keys(["timestamp"])
    assert pull(publisher, tmp_path).id == "2026-W46/r1"


# --- adoption


def test_releases_from_before_the_registry_are_adopted(publisher, tmp_path):
    artifacts = publisher.registry.artifacts
    for week, data in (("2026-W45", b"old"), ("2026-W46", b"newer")):
        manifest, folder = content(tmp_path / week, week, db=data)
        artifacts.create(blob_key(manifest.files[0].sha256), folder / "db")
        artifacts.create(f"fixtures/releases/{week}/r1/SHA256SUMS", manifest.sums)
        artifacts.create(f"fixtures/releases/{week}/r1/manifest.json", manifest.to_json())
    publisher.registry.channels.swap("fixtures/latest.json", b"{}", None)
    assert publisher.init() is True
    assert pull(publisher, tmp_path).id == "2026-W46/r1"
    assert pull(publisher, tmp_path, name="2026-W45").id == "2026-W45/r1"
    assert publisher.registry.channels.stat("fixtures/latest.json") is None, "nobody follows a pointer that stands still"
    assert publisher.init() is False


def test_a_release_with_damaged_contents_is_not_adopted_and_named(publisher, tmp_path):
    artifacts, told = publisher.registry.artifacts, []
    manifest, _ = content(tmp_path / "a", "2026-W45", db=b"data")
    artifacts.create(blob_key(manifest.files[0].sha256), b"dbta")
    artifacts.create("fixtures/releases/2026-W45/r1/manifest.json", manifest.to_json())
    artifacts.create("fixtures/releases/2026-W44/r1/manifest.json", b"{}")
    artifacts.create("fixtures/releases/2026-W46/r1/manifest.json", manifest.to_json())
    artifacts.create("fixtures/releases/backup/old/manifest.json", b"not ours")
    publisher.init(lambda progress: told.append(progress.stage))
    assert [t.partition(" is not adopted")[0] for t in told] == [
        "fixtures 2026-W44/r1",
        "fixtures 2026-W45/r1",
        "fixtures 2026-W46/r1",
        "fixtures backup/old",
    ]
    assert publisher.index().names(KIND) == []


def test_a_store_that_was_removed_begins_anew(publisher, tmp_path):
    import shutil

    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    pull(publisher, tmp_path)
    shutil.rmtree(tmp_path / "store")
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    assert pull(publisher, tmp_path).id == "2026-W46/r1"


# --- one at a time


def test_a_second_publisher_waits_for_the_first(publisher, tmp_path):
    publisher.init()
    told = []
    with lease.hold(publisher.registry.channels, "publishing", "run-1"):
        thread = threading.Thread(
            target=lambda: publisher.publish(
                *content(tmp_path / "a", "2026-W47", db=b"data"), report=lambda p: told.append(p.stage)
            )
        )
        thread.start()
        time.sleep(0.5)
        assert publisher.index().names(KIND) == []
    thread.join(30)
    assert publisher.index().names(KIND) == ["2026-W47"]
    assert "waiting for publishing (run run-1" in told[0]


def test_a_publisher_that_waits_in_vain_says_for_whom(publisher, tmp_path):
    publisher.init()
    with lease.hold(publisher.registry.channels, "publishing", "run-1"):
        impatient = replace(publisher, patience_s=0.1)
        with pytest.raises(BusyError, match="run run-1") as caught:
            impatient.publish(*content(tmp_path / "a", "2026-W47", db=b"data"))
    assert "readers are not concerned" in caught.value.hint


def held_by(publisher, process, **times):
    now = datetime.now(UTC)
    held = lease.Lease("publishing", "run-1", process, "n", now.isoformat(), (now + timedelta(**times)).isoformat())
    before = publisher.registry.channels.read(lease.KEY)
    publisher.registry.channels.swap(lease.KEY, held.to_json(), before)


@pytest.mark.parametrize("minutes", [-1, 60 * 24 * 365], ids=["ran out", "taken by a clock a year ahead"])
def test_a_lease_that_does_not_count_any_more_is_taken_over(publisher, tmp_path, minutes):
    publisher.init()
    held_by(publisher, "otherhost.1", minutes=minutes)
    assert replace(publisher, patience_s=0.1).publish(*content(tmp_path / "a", "2026-W47", db=b"data")).created


def test_a_lease_that_is_none_stops_nobody(publisher, tmp_path):
    publisher.init()
    for junk in (
        b"no json",
        b"{}",
        b'{"purpose": "x", "run_id": "", "process": "x", "nonce": "", "taken_at": "?", "expires_at": "?"}',
    ):
        publisher.registry.channels.swap(lease.KEY, junk, publisher.registry.channels.read(lease.KEY))
        publisher.publish(*content(tmp_path / "a", "2026-W47", db=junk))


def test_the_lease_of_a_dead_process_of_this_host_is_taken_over_at_once(publisher, tmp_path):
    from akidb_pipelines.files import process_name

    publisher.init()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    held_by(publisher, f"{process_name().rpartition('.')[0]}.{dead.pid}", minutes=10)
    assert replace(publisher, patience_s=0.1).publish(*content(tmp_path / "a", "2026-W47", db=b"data")).created


def test_a_publisher_that_slept_past_its_lease_publishes_nothing(publisher, tmp_path):
    """Its lease is taken over while it stores; the other publishes; then it wakes up."""
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    other = open_publisher(Settings(home=tmp_path / "home", store=publisher.registry.url))

    def overtaken(progress):
        if progress.stage == "committing" and not other.index().newest(KIND, "2026-W48"):
            held_by(publisher, "otherhost.1", minutes=-1)
            other.publish(*content(tmp_path / "c", "2026-W48", db=b"fast"))

    with pytest.raises(BusyError, match="lease was lost"):
        publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"slow"), report=overtaken)
    assert publisher.index().names(KIND) == ["2026-W46", "2026-W48"]
    assert publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"slow")).created


def test_of_two_commits_at_once_the_swap_lets_one_through(publisher, tmp_path, monkeypatch):
    """As above, but the lease check comes too early to notice."""
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    other = open_publisher(Settings(home=tmp_path / "home", store=publisher.registry.url))
    swap = LocalStore.swap

    def overtaken(store, key, data, expected):
        if key == metadata.TIMESTAMP and not other.index().newest(KIND, "2026-W48"):
            monkeypatch.setattr(LocalStore, "swap", swap)
            held_by(publisher, "otherhost.1", minutes=-1)
            other.publish(*content(tmp_path / "c", "2026-W48", db=b"fast"))
        swap(store, key, data, expected)

    monkeypatch.setattr(LocalStore, "swap", overtaken)
    with pytest.raises(BusyError, match="somebody else published meanwhile"):
        publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"slow"))
    assert publisher.index().names(KIND) == ["2026-W46", "2026-W48"]
    assert pull(publisher, tmp_path).id == "2026-W48/r1"


# --- the root key is lost or stolen


def test_a_registry_that_starts_anew_keeps_what_it_knows_and_needs_a_new_root(publisher, tmp_path):
    import shutil

    three_weeks(publisher, tmp_path)
    publisher.revoke(KIND, Version("2026-W48", 1), "leak")
    old_root = tmp_path / "old-root.json"
    shutil.copy(publisher.registry.own_root, old_root)
    client = Puller(open_registry(Settings(home=tmp_path / "c", store=publisher.registry.url), root=old_root), tmp_path / "cc")
    client.pull(Wanted(KIND), tmp_path / "o")
    for path in publisher.keys.folder.glob("root-*.pem"):
        path.unlink()
    with pytest.raises(CheckError, match="no key to sign role root"):
        publisher.rotate_keys(["timestamp"])
    publisher.start_anew()
    with pytest.raises(IntegrityError, match="does not verify"):
        client.pull(Wanted(KIND), tmp_path / "o")
    new = open_registry(Settings(home=tmp_path / "c", store=publisher.registry.url), root=publisher.registry.own_root)
    assert Puller(new, tmp_path / "cc").pull(Wanted(KIND), tmp_path / "o").id == "2026-W47/r1"
    with pytest.raises(CheckError, match="leak"):
        Puller(new, tmp_path / "cc").pull(Wanted(KIND, name="2026-W48"), tmp_path / "o")
    publisher.rotate_keys(["timestamp"])


@pytest.mark.parametrize("step", ["new_root", "commit"])
def test_starting_anew_that_is_interrupted_is_run_again_and_forgets_nothing(publisher, tmp_path, monkeypatch, step):
    """No key can be made (a sealed Vault), or the machine stops with the old metadata gone already."""
    three_weeks(publisher, tmp_path)
    publisher.revoke(KIND, Version("2026-W48", 1), "leak")
    publisher.pin(KIND, Version("2026-W46", 1), "baseline")
    before = publisher.index()
    interrupt(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        publisher.start_anew()
    monkeypatch.undo()
    if step == "new_root":
        assert publisher.index() == before
    publisher.start_anew()
    assert publisher.index() == before
    assert pull(publisher, tmp_path).id == "2026-W47/r1"


def test_a_new_root_is_not_made_where_another_is_trusted(publisher, tmp_path):
    three_weeks(publisher, tmp_path)
    root = tmp_path / "trusted.json"
    root.write_bytes(publisher.registry.own_root.read_bytes())
    told = replace(publisher, registry=replace(publisher.registry, root_file=root))
    with pytest.raises(InputError, match="AKIDB_REGISTRY_ROOT names"):
        told.start_anew()
    assert pull(publisher, tmp_path).id == "2026-W48/r1"


@pytest.mark.parametrize("step", ["root stored", "commit"])
def test_making_a_registry_that_is_interrupted_is_run_again(oci_stub, tmp_path, monkeypatch, step):
    from tests.services.places import oci_place, use

    place = oci_place(oci_stub, tmp_path)
    use(place, monkeypatch)
    publisher = open_publisher(place.settings(tmp_path / "home"))
    create = type(publisher.registry.channels).create

    def stop(store, key, *arguments, **options):
        create(store, key, *arguments, **options)
        if key == metadata.root_key(1):
            raise KeyboardInterrupt

    if step == "root stored":
        monkeypatch.setattr(type(publisher.registry.channels), "create", stop)
    else:
        interrupt(monkeypatch, "commit")
    with pytest.raises(KeyboardInterrupt):
        publisher.init()
    monkeypatch.undo()
    use(place, monkeypatch)
    assert publisher.init() is True
    assert publisher.init() is False
    publisher.publish(*content(tmp_path / "a", "2026-W47", db=b"data"))


def test_a_store_of_the_same_name_elsewhere_does_not_overwrite_this_ones_keys(seaweed, tmp_path, monkeypatch):
    """The endpoint of another environment was set by mistake."""
    from tests.services.places import seaweed_place, use

    place = seaweed_place(seaweed)
    use(place, monkeypatch)
    publisher = open_publisher(place.settings(tmp_path / "home"))
    publisher.init()
    root = publisher.registry.own_root.read_bytes()
    channels = publisher.registry.channels
    channels.delete([o.key for o in channels.list("tuf/")])
    with pytest.raises(InputError, match="keeps the root and keys") as caught:
        publisher.init()
    assert "check the endpoint" in caught.value.hint
    assert publisher.registry.own_root.read_bytes() == root


def test_a_registry_whose_metadata_is_gone_is_made_again_of_its_releases(publisher, tmp_path):
    import shutil

    three_weeks(publisher, tmp_path)
    shutil.rmtree(tmp_path / "store" / "channels")
    assert publisher.init() is True
    assert pull(publisher, tmp_path).id == "2026-W48/r1"
    assert publisher.index().names(KIND) == ["2026-W46", "2026-W47", "2026-W48"]
