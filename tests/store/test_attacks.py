"""What somebody who may write the store, but may not sign, could try: named as in the TUF specification."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from akidb_pipelines.errors import IntegrityError, OutsideError, PipelineError
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.local import LocalStore
from akidb_pipelines.store.manifest import blob_key
from akidb_pipelines.store.metadata import METADATA, TIMESTAMP
from akidb_pipelines.store.publisher import open_publisher
from akidb_pipelines.store.pull import Puller, Wanted
from akidb_pipelines.store.registry import open_registry
from tests.services.places import content

KIND = "fixtures"


@pytest.fixture
def root_file(publisher, tmp_path):
    """The root as a client got it, apart from the store that the attacker writes."""
    publisher.publish(*content(tmp_path / "w46", "2026-W46", db=b"old"))
    publisher.publish(*content(tmp_path / "w47", "2026-W47", db=b"new", more=b"more"))
    path = tmp_path / "root.json"
    shutil.copy(publisher.registry.own_root, path)
    return path


@pytest.fixture
def client(publisher, root_file, tmp_path):
    registry = open_registry(Settings(home=tmp_path / "client", store=publisher.registry.url), root=root_file)
    return Puller(registry, tmp_path / "client" / "cache")


def metadata_folder(tmp_path):
    return tmp_path / "store" / "channels" / "tuf" / "metadata"


def overwrite(path, data: bytes):
    path.chmod(0o644)
    path.write_bytes(data)


def test_rollback_an_older_state_is_put_back(client, publisher, tmp_path):
    before = metadata_folder(tmp_path)
    shutil.copytree(before, tmp_path / "kept")
    publisher.publish(*content(tmp_path / "w48", "2026-W48", db=b"newest"))
    assert client.pull(Wanted(KIND), tmp_path / "out").id == "2026-W48/r1"
    shutil.rmtree(before)
    shutil.copytree(tmp_path / "kept", before)
    with pytest.raises(IntegrityError, match="went back") as caught:
        client.pull(Wanted(KIND), tmp_path / "out")
    assert "replays it" in caught.value.hint
    assert (tmp_path / "out" / "db").read_bytes() == b"newest"


def test_rollback_the_publisher_refuses_to_build_on_an_older_state_that_it_has_seen_newer(publisher, root_file, tmp_path):
    shutil.copytree(metadata_folder(tmp_path), tmp_path / "kept")
    publisher.publish(*content(tmp_path / "w48", "2026-W48", db=b"newest"))
    publisher.registry.index()
    shutil.rmtree(metadata_folder(tmp_path))
    shutil.copytree(tmp_path / "kept", metadata_folder(tmp_path))
    with pytest.raises(IntegrityError, match="this machine has seen"):
        publisher.publish(*content(tmp_path / "w49", "2026-W49", db=b"built on sand"))


def test_freeze_nothing_newer_is_let_through_until_the_end(publisher, root_file, client, tmp_path):
    """Everything verifies, and stands still: the client notices at the timestamp's end."""
    assert client.pull(Wanted(KIND), tmp_path / "out").id == "2026-W47/r1"
    old = replace(publisher, now=lambda: datetime.now(UTC) - timedelta(days=36))
    old.refresh()
    with pytest.raises(OutsideError, match="expired") as caught:
        client.pull(Wanted(KIND), tmp_path / "out")
    assert "holds newer metadata back" in caught.value.hint


def test_mix_and_match_documents_of_two_states(client, publisher, tmp_path):
    folder = metadata_folder(tmp_path)
    timestamp = json.loads((folder / "timestamp.json").read_bytes())
    version = timestamp["signed"]["meta"]["snapshot.json"]["version"]
    overwrite(folder / f"{version}.snapshot.json", (folder / f"{version - 1}.snapshot.json").read_bytes())
    with pytest.raises(IntegrityError, match="does not verify"):
        client.pull(Wanted(KIND), tmp_path / "out")


def test_mix_and_match_a_manifest_of_another_release(client, tmp_path):
    releases = tmp_path / "store" / "artifacts" / "fixtures" / "releases"
    overwrite(releases / "2026-W47" / "r1" / "manifest.json", (releases / "2026-W46" / "r1" / "manifest.json").read_bytes())
    with pytest.raises(IntegrityError, match="the registry says"):
        client.pull(Wanted(KIND), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arbitrary_software_a_blob_is_replaced(client, publisher, tmp_path):
    entry = publisher.index().newest(KIND, "2026-W47")
    manifest = publisher.registry.release(entry).manifest
    overwrite(tmp_path / "store" / "artifacts" / blob_key(manifest.files[0].sha256), b"bad")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "db").write_bytes(b"last week's")
    with pytest.raises(IntegrityError, match="has digest"):
        client.pull(Wanted(KIND), tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {"db": b"last week's"}


def test_arbitrary_software_the_channel_is_edited(client, tmp_path):
    """In the index, which every signature only names by its digest."""
    for path in (tmp_path / "store" / "channels" / "tuf" / "targets" / "fixtures").glob("*.index.json"):
        overwrite(path, path.read_bytes().replace(b'"version": "2026-W47/r1"', b'"version": "2026-W46/r1"'))
    with pytest.raises(IntegrityError, match="is not the signed one"):
        client.pull(Wanted(KIND), tmp_path / "out")


def test_arbitrary_software_the_list_of_targets_is_edited(client, tmp_path):
    folder = metadata_folder(tmp_path)
    path = max(folder.glob("*.targets.json"), key=lambda p: int(p.name.split(".")[0]))
    data = path.read_bytes()
    overwrite(path, data.replace(b"2026-W47", b"2026-W74"))
    with pytest.raises(IntegrityError, match="does not verify"):
        client.pull(Wanted(KIND), tmp_path / "out")


def test_forged_key_everything_is_signed_by_somebody_else(client, tmp_path):
    """The attacker makes a registry of his own over ours, with a release of ours renamed."""
    shutil.rmtree(tmp_path / "store" / "channels")
    forger = open_publisher(Settings(home=tmp_path / "forger", store=f"file://{tmp_path / 'store'}"))
    forger.init()
    for _ in range(5):
        forger.refresh()
    with pytest.raises(IntegrityError, match="does not verify"):
        client.pull(Wanted(KIND), tmp_path / "out")


def test_forged_key_a_new_root_that_the_old_one_did_not_sign(client, publisher, tmp_path):
    forger = open_publisher(Settings(home=tmp_path / "forger", store=f"file://{tmp_path / 'forged'}"))
    forger.init()
    forged = json.loads(forger.registry.own_root.read_bytes())
    forged["signed"]["version"] = 2
    (metadata_folder(tmp_path) / "2.root.json").write_text(json.dumps(forged))
    with pytest.raises(IntegrityError, match="does not verify"):
        client.pull(Wanted(KIND), tmp_path / "out")
    with pytest.raises(IntegrityError, match="does not verify"):
        publisher.publish(*content(tmp_path / "w48", "2026-W48", db=b"signed nothing"))


def test_the_publisher_signs_nothing_that_it_did_not_find_signed(publisher, root_file, tmp_path):
    """Else an attacker would plant a release and wait for the next weekly run to sign it."""
    for path in (tmp_path / "store" / "channels" / "tuf" / "targets" / "fixtures").glob("*.index.json"):
        overwrite(path, path.read_bytes().replace(b"2026-W46", b"2026-W66"))
    with pytest.raises(IntegrityError, match="is not the signed one"):
        publisher.publish(*content(tmp_path / "w48", "2026-W48", db=b"x"))


def test_endless_data_a_document_that_never_ends_is_not_read_to_its_end(client, tmp_path):
    with (metadata_folder(tmp_path) / "timestamp.json").open("wb") as out:
        out.truncate(1 << 40)
    with pytest.raises(IntegrityError, match="longer than"):
        client.pull(Wanted(KIND), tmp_path / "out")


def test_endless_data_a_manifest_that_never_ends_is_not_read_to_its_end(client, publisher, tmp_path):
    path = tmp_path / "store" / "artifacts" / "fixtures" / "releases" / "2026-W47" / "r1" / "manifest.json"
    path.chmod(0o644)
    with path.open("wb") as out:
        out.truncate(1 << 40)
    with pytest.raises(IntegrityError, match="the registry says"):
        client.pull(Wanted(KIND), tmp_path / "out")
    with (metadata_folder(tmp_path) / "timestamp.json").open("wb") as out:
        out.truncate(1 << 40)
    with pytest.raises(IntegrityError, match="longer than"):
        publisher.index()


def test_a_file_name_that_leads_out_of_the_folder_is_refused(publisher, tmp_path):
    """By whoever can sign, even."""
    manifest, folder = content(tmp_path / "a", "2026-W49", db=b"data")
    evil = replace(manifest, files=(replace(manifest.files[0], name="../escaped"),))
    (folder / "../escaped").write_bytes(b"data")
    publisher.publish(evil, folder)
    (tmp_path / "escaped").unlink()
    with pytest.raises(IntegrityError, match="no plain file name"):
        Puller(publisher.registry, tmp_path / "cache").pull(Wanted(KIND), tmp_path / "out")


def test_deletion_a_vanished_timestamp_is_not_taken_for_an_empty_registry(client, publisher, tmp_path):
    """Else the publisher would adopt, and sign, whatever lies in the store: a planted release, a revoked one."""
    client.pull(Wanted(KIND), tmp_path / "out")
    planted, folder = content(tmp_path / "evil", "2027-W01", db=b"evil")
    artifacts = publisher.registry.artifacts
    artifacts.create(blob_key(planted.files[0].sha256), folder / "db")
    artifacts.create("fixtures/releases/2027-W01/r1/manifest.json", planted.to_json())
    LocalStore(tmp_path / "store" / "channels").delete([TIMESTAMP])
    with pytest.raises(IntegrityError, match=r"timestamp\.json is gone"):
        client.pull(Wanted(KIND), tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    for act in (publisher.init, publisher.index, lambda: publisher.publish(*content(tmp_path / "w48", "2026-W48", db=b"x"))):
        with pytest.raises(IntegrityError, match=r"timestamp\.json is gone") as caught:
            act()
        assert "newest good version back" in caught.value.hint


def test_deletion_a_vanished_document_is_named(client, tmp_path):
    for path in metadata_folder(tmp_path).glob("*.snapshot.json"):
        path.unlink()
    with pytest.raises(IntegrityError, match=r"snapshot\.json is gone"):
        client.pull(Wanted(KIND), tmp_path / "out")


def test_deletion_a_vanished_index_is_not_taken_for_an_empty_registry(client, publisher, tmp_path):
    for path in (tmp_path / "store" / "channels" / "tuf" / "targets" / "fixtures").glob("*.index.json"):
        path.unlink()
    for act in (lambda: client.pull(Wanted(KIND), tmp_path / "out"), publisher.index):
        with pytest.raises(IntegrityError, match="though the signed metadata names it"):
            act()


def test_a_planted_document_of_an_odd_name_stops_nobody(publisher, root_file, tmp_path):
    folder = metadata_folder(tmp_path)
    newest = max(int(p.name.split(".")[0]) for p in folder.glob("*.targets.json"))
    (folder / f"{newest + 1}.targets.json").write_text("planted")
    (folder / "odd.targets.json").write_text("planted")
    assert publisher.publish(*content(tmp_path / "w48", "2026-W48", db=b"x")).created


def test_rollback_a_revocation_cannot_be_undone_by_putting_the_state_before_back(publisher, root_file, tmp_path):
    """The publisher remembers what it committed, though it never pulled."""
    from akidb_pipelines.store.index import Version

    folder = metadata_folder(tmp_path)
    kept = (folder / "timestamp.json").read_bytes()
    publisher.revoke(KIND, Version("2026-W47", 1), "leak")
    (folder / "timestamp.json").write_bytes(kept)
    with pytest.raises(IntegrityError, match="this machine has seen"):
        publisher.publish(*content(tmp_path / "w48", "2026-W48", db=b"x"))


def test_every_document_altered_by_one_byte_is_refused(publisher, root_file, tmp_path):
    """Whichever it is: nobody pulls what is not signed."""
    folder = tmp_path / "store"
    documents = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name != "SHA256SUMS"]
    refused = 0
    newest = max(int(p.name.split(".")[0]) for p in documents if p.name.endswith(".targets.json"))
    live = [p for p in documents if METADATA not in p.as_posix() or p.name.split(".")[0] in {"timestamp", str(newest)}]
    for number, path in enumerate(live):
        good = path.read_bytes()
        data = bytearray(good)
        data[len(data) // 2] ^= 1
        overwrite(path, bytes(data))
        registry = open_registry(Settings(home=tmp_path / f"c{number}", store=publisher.registry.url), root=root_file)
        try:
            pulled = Puller(registry, tmp_path / f"c{number}" / "cache").pull(Wanted(KIND), tmp_path / f"o{number}")
            assert (tmp_path / f"o{number}" / "db").read_bytes() == b"new"
            assert pulled.id == "2026-W47/r1"
        except PipelineError:
            refused += 1
        overwrite(path, good)
    assert refused >= 6, "timestamp, snapshot, targets, manifest, provenance, two blobs"
