"""Making a registry, what it adopts, how long its signatures last, and keys that are replaced, lost or stolen."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from akidb_pipelines.errors import CheckError, InputError, IntegrityError, OutsideError
from akidb_pipelines.settings import Settings
from akidb_pipelines.store import metadata
from akidb_pipelines.store.index import Version
from akidb_pipelines.store.manifest import blob_key
from akidb_pipelines.store.publisher import open_publisher
from akidb_pipelines.store.pull import Puller, Wanted
from akidb_pipelines.store.registry import open_registry
from akidb_pipelines.store.report import examine
from tests.services.places import KIND, content, pull, three_weeks

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
    assert [t.partition(" is not adopted")[0] for t in told if "is not adopted" in t] == [
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
