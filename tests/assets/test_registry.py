"""The registry inside Dagster: what ops see of channels, of signatures that end, and of retention."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from akidb_pipelines.definitions import build_defs
from akidb_pipelines.periods import Week
from akidb_pipelines.resources import RegistryTools
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.index import Version
from akidb_pipelines.store.manifest import blob_key
from akidb_pipelines.store.publisher import open_publisher
from assets.registry import REGISTRY
from schedules.sensors import registry_expiry
from tests.services.places import content, place_of, use


@pytest.fixture
def instance():
    with dg.instance_for_test() as made:
        yield made


@pytest.fixture
def publisher(settings, tmp_path):
    publisher = open_publisher(settings)
    for n in range(9):
        week = Week.parse("2026-W38").shift(n).iso
        publisher.publish(*content(tmp_path / week, week, db=week.encode()))
    return publisher


def collected(settings, instance, **config):
    job = build_defs(settings).resolve_job_def("registry_gc")
    configured = {"ops": {"registry_retention": {"config": config}}}
    return job.execute_in_process(instance=instance, run_config=configured, raise_on_error=False)


def records(metadata, name):
    return [r.data for r in metadata[name].value.records]


def test_the_registry_shows_heads_sizes_and_when_signatures_end(settings, publisher, instance):
    publisher.promote("fixtures", Version("2026-W40", 1), "stable", "tried by QA")
    result = collected(settings, instance, dry_run=True)
    assert result.success
    told = result.asset_materializations_for_node("artifact_registry")[0].metadata
    assert [(h["channel"], h["release"], h["why"]) for h in records(told, "channels")] == [
        ("latest", "2026-W46/r1", "released 2026-W46/r1"),
        ("stable", "2026-W40/r1", "tried by QA"),
    ]
    assert told["release_count"].value == 9
    assert told["size_bytes"].value == 9 * 8
    assert 34 < told["timestamp_days_left"].value <= 35
    assert len(told["root fingerprint"].value.split()) == 8


def test_a_dry_run_says_what_and_why_and_changes_nothing(settings, publisher, instance):
    result = collected(settings, instance, dry_run=True)
    told = result.asset_materializations_for_node("registry_retention")[0].metadata
    assert records(told, "decisions")[0] == {
        "action": "retire",
        "what": "fixtures 2026-W38/r1",
        "why": "nothing keeps it; removed in 7 days",
        "megabytes": 0.0,
    }
    assert publisher.index().get("fixtures", Version("2026-W38", 1)).retired_at == ""
    assert collected(settings, instance).success
    assert publisher.index().get("fixtures", Version("2026-W38", 1)).retired_at


def test_a_collection_beside_a_publisher_fails_in_words(settings, publisher, instance):
    from akidb_pipelines.store import lease

    with lease.hold(publisher.registry.channels, "publishing fixtures 2026-W48", "run-5"):
        result = collected(settings, instance)
    (failure,) = result.get_step_failure_events()
    assert "run-5" in failure.step_failure_data.user_failure_data.description


def sensed(settings, cursor=None):
    with dg.build_sensor_context(cursor=cursor, resources={"registry_tools": RegistryTools(settings)}) as context:
        return registry_expiry(context)


def test_the_expiry_sensor_warns_ten_days_ahead_and_once(settings, publisher):
    quiet = sensed(settings)
    assert quiet.asset_events[0].passed
    assert "first to end: timestamp" in quiet.skip_reason.skip_message
    assert sensed(settings, quiet.cursor).asset_events == []

    replace(publisher, now=lambda: datetime.now(UTC) - timedelta(days=26)).refresh()
    soon = sensed(settings, quiet.cursor)
    (evaluation,) = soon.asset_events
    assert (evaluation.asset_key, evaluation.check_name, evaluation.passed) == (REGISTRY, "metadata_expiry", False)
    assert evaluation.severity is dg.AssetCheckSeverity.WARN
    assert "registry refresh" in evaluation.description
    assert sensed(settings, soon.cursor).asset_events == []

    replace(publisher, now=lambda: datetime.now(UTC) - timedelta(days=36)).refresh()
    assert sensed(settings, soon.cursor).asset_events[0].severity is dg.AssetCheckSeverity.ERROR


def test_the_sensor_says_when_the_registry_does_not_verify(settings, publisher):
    path = settings.home / "store" / "channels" / "tuf" / "metadata" / "timestamp.json"
    path.write_bytes(path.read_bytes().replace(b'"version":', b'"version": '))
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(dg.Failure, match="does not verify"):
        sensed(settings)


def test_the_sensor_turns_red_when_the_timestamp_is_gone(settings, publisher):
    (settings.home / "store" / "channels" / "tuf" / "metadata" / "timestamp.json").unlink()
    (evaluation,) = sensed(settings).asset_events
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "put its newest good version back" in evaluation.description


def test_an_empty_registry_is_no_trouble(settings, instance):
    assert collected(settings, instance).success
    assert "nothing is signed yet" in sensed(settings).skip_reason.skip_message


def test_a_release_that_cannot_be_pulled_back_fails_its_check(settings, publisher, instance):
    """The store lost a blob after the release: a stranger notices, and so does the check, run by hand."""
    from assets.fixtures import RELEASE

    manifest = publisher.registry.get("fixtures", Version("2026-W46", 1)).manifest
    publisher.registry.artifacts.delete([blob_key(manifest.files[0].sha256)])
    instance.report_runless_asset_event(dg.AssetMaterialization(RELEASE, partition="2026-11-09"))
    job = build_defs(settings).resolve_implicit_global_asset_job_def()
    checked = job.get_subset(asset_selection=set(), asset_check_selection={dg.AssetCheckKey(RELEASE, "fresh_pull")})
    result = checked.execute_in_process(instance=instance, raise_on_error=False)
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed
    assert "there is no blobs/" in evaluation.description
    assert evaluation.metadata["what to do"].value


@pytest.mark.parametrize("kind", ["s3", "oci"])
def test_the_release_goes_to_another_store_by_configuration_alone(kind, request, tmp_path, instance, monkeypatch):
    place = place_of(kind, request, tmp_path)
    use(place, monkeypatch)
    settings = place.settings(tmp_path / "home", profiles=("ci",))
    assert isinstance(settings, Settings)
    open_publisher(settings).init()
    job = build_defs(settings).resolve_job_def("fixtures")
    result = job.execute_in_process(instance=instance, partition_key="2026-11-09", raise_on_error=False)
    assert result.success
    told = result.asset_materializations_for_node("fixture_release")[0].metadata
    assert (told["release"].value, told["registry"].value) == ("2026-W46/r1", place.url)
    assert {e.check_name: e.passed for e in result.get_asset_check_evaluations()}["fresh_pull"]
