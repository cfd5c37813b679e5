"""What a registry promises: immutable releases, and channels that move forward."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from akidb_pipelines.errors import CheckError, InputError, IntegrityError
from akidb_pipelines.settings import Settings
from akidb_pipelines.store import metadata
from akidb_pipelines.store.index import Version
from akidb_pipelines.store.manifest import blob_key
from akidb_pipelines.store.publisher import open_publisher, prepare_areas
from akidb_pipelines.store.pull import Puller, Wanted
from akidb_pipelines.store.registry import open_registry
from tests.services.places import KIND, content, pull, three_weeks

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
