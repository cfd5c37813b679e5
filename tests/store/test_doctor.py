"""The store's doctor: what it proves on good stores, and what it says of broken ones."""

from __future__ import annotations

import pytest

from akidb_pipelines.store.areas import AREAS
from akidb_pipelines.store.doctor import examine_store
from akidb_pipelines.store.publisher import prepare_areas
from tests.services.places import Place, oci_place, use
from tests.services.s3_rules_stub import S3RulesStub

PROMISES = ("permissions", "create-only writes", "compare-and-swap", "ranged reads", "checksums", "uploads in parts", "clock")


def prepared(place, tmp_path):
    settings = place.settings(tmp_path / "home")
    if place.server:
        base = place.url.rpartition("/")[2]
        place.server.make_buckets(f"{base}-cold", f"{base}-tfstate")
    assert prepare_areas(settings, place.url) == []
    return settings


def test_a_good_store_keeps_every_promise_and_is_left_as_it_was(place, tmp_path):
    settings = prepared(place, tmp_path)
    findings = examine_store(settings, place.url)
    assert [f for f in findings if not f.ok] == []
    assert tuple(f.promise for f in findings if f.area == "artifacts") == PROMISES
    assert tuple(f.promise for f in findings if f.area == "channels") == tuple(p for p in PROMISES if p != "uploads in parts")
    assert {f.area for f in findings} == set(AREAS)
    from akidb_pipelines.store.areas import area as area_of

    for name in AREAS:
        assert list(area_of(settings, name).list("")) == []


def test_an_endpoint_that_ignores_conditions_is_found_though_it_says_nothing(tmp_path, monkeypatch):
    """As OCI's S3-compatible endpoint may: every write answers 200."""
    with S3RulesStub(conditional="ignored") as stub:
        stub.make_buckets(*(f"test-{a}" for a in AREAS))
        place = Place("s3://test", stub.environment())
        use(place, monkeypatch)
        broken = {(f.area, f.promise): f for f in examine_store(place.settings(tmp_path / "home"), place.url) if not f.ok}
    for area in ("artifacts", "channels"):
        assert "If-None-Match: * was ignored" in broken[area, "create-only writes"].found
        assert "oci://namespace/name" in broken[area, "create-only writes"].to_do
        assert (area, "compare-and-swap") in broken


def test_a_server_that_does_not_check_digests_is_found(oci_stub, tmp_path, monkeypatch):
    """As a proxy that drops the header would make it."""
    from akidb_pipelines.store import oci

    place = oci_place(oci_stub, tmp_path)
    use(place, monkeypatch)
    monkeypatch.setattr(oci, "_checked", lambda _: {})
    broken = {f.promise: f for f in examine_store(place.settings(tmp_path / "home"), place.url) if not f.ok}
    assert "were stored" in broken["checksums"].found


def test_someone_who_may_only_read_is_one_finding_an_area(seaweed, tmp_path, monkeypatch):
    from tests.services.places import seaweed_place

    place = seaweed_place(seaweed)
    seaweed.make_buckets(*(f"{place.url.removeprefix('s3://')}-{a}" for a in ("cold", "tfstate")))
    reader = {"AWS_ACCESS_KEY_ID": seaweed.reader_access_key, "AWS_SECRET_ACCESS_KEY": seaweed.reader_secret_key}
    use(Place(place.url, {**place.environment, **reader}), monkeypatch)
    findings = examine_store(place.settings(tmp_path / "home"), place.url)
    assert [(f.promise, f.ok) for f in findings] == [("permissions", False)] * 4
    assert all("credentials may not" in f.to_do for f in findings)


def test_a_policy_that_hides_the_bucket_is_named(oci_stub, tmp_path, monkeypatch):
    place = oci_place(oci_stub, tmp_path)
    use(place, monkeypatch)
    oci_stub.deny("test-artifacts")
    findings = {f.area: f for f in examine_store(place.settings(tmp_path / "home"), place.url) if not f.ok}
    assert "create bucket test-artifacts" in findings["artifacts"].to_do
    assert "create bucket test-cold" in findings["cold"].to_do


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_folder_whose_clock_is_off_is_found(seconds, tmp_path, monkeypatch):
    """A network drive whose server's clock runs apart."""
    import os
    from pathlib import Path

    real = Path.stat

    def skewed(path, **options):
        found = list(real(path, **options))
        found[8] += seconds
        return os.stat_result(found)

    place = Place(f"file://{tmp_path / 'store'}", {})
    settings = place.settings(tmp_path / "home")
    prepare_areas(settings, place.url)
    monkeypatch.setattr(Path, "stat", skewed)
    broken = [f for f in examine_store(settings, place.url) if not f.ok]
    assert {f.promise for f in broken} == {"clock"}
    assert "clock" in broken[0].to_do
