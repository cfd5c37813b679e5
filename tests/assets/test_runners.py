"""Runner images inside Dagster: a week built, archived, booted by Dagster Pipes and put into production; and the CI's capacity."""

from __future__ import annotations

import dagster as dg
import pytest
from pydantic import SecretStr

from akidb_pipelines.definitions import build_defs
from akidb_pipelines.images.runners.checklist import CHECKS
from akidb_pipelines.images.runners.foundry import open_foundry
from akidb_pipelines.settings import Settings
from assets.runners import ARCHIVE, CAPACITY, IMAGE_BUILD, RELEASE
from tests.services.github_stub import GitHubStub

W46, W47 = (dg.MultiPartitionKey({"week": week, "runner": "docker"}) for week in ("2026-11-09", "2026-11-16"))


@pytest.fixture(scope="module")
def settings(runner_lab):
    return Settings(home=runner_lab.folder.parents[1])


@pytest.fixture(scope="module")
def instance():
    with dg.instance_for_test() as made:
        yield made


def run(settings, instance, job="runner_images", **arguments):
    return build_defs(settings).resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False, **arguments)


def metadata(done, asset):
    (event,) = [e for e in done.get_asset_materialization_events() if e.asset_key == asset]
    return {name: value.value for name, value in event.materialization.metadata.items()}


@pytest.fixture(scope="module")
def weeks(settings, instance):
    """Two weeks, one after the other."""
    return run(settings, instance, partition_key=W46), run(settings, instance, partition_key=W47)


@pytest.mark.slow
def test_a_week_is_built_archived_booted_and_put_into_production(weeks, settings):
    first, second = weeks

    for done in weeks:
        assert done.success
        assert {e.check_name for e in done.get_asset_check_evaluations() if e.passed} == set(CHECKS)
    tools = {e.check_name: e for e in second.get_asset_check_evaluations()}["tools"].metadata
    assert tools["git"].value.startswith("2.")
    assert metadata(second, RELEASE)["production"] == "docker/2026-W47/r1"
    assert open_foundry(settings).shelf.find("docker@production").id == "docker/2026-W47/r1"
    assert metadata(first, IMAGE_BUILD)["packages"] > 100


@pytest.mark.slow
def test_the_second_week_stores_little_and_says_what_is_other(weeks):
    first, second = (metadata(done, ARCHIVE) for done in weeks)

    assert first["stored_bytes"] > 100_000_000
    assert second["stored_bytes"] < 0.15 * first["stored_bytes"]
    assert second["previous"] == first["snapshot"] == "docker/2026-W46/r1"
    assert "changed since docker/2026-W46/r1" in second


@pytest.mark.slow
def test_an_image_that_was_withdrawn_is_not_put_into_production_again(weeks, settings, instance):
    foundry = open_foundry(settings)
    foundry.revoke(foundry.shelf.find("docker/2026-W47"), "jobs hang in it")
    assert foundry.shelf.find("docker@production").id == "docker/2026-W46/r1"

    defs = build_defs(settings)
    done = defs.resolve_job_def("runner_images").execute_in_process(
        instance=instance, partition_key=W47, asset_selection=[RELEASE], raise_on_error=False
    )

    assert not done.success
    assert foundry.shelf.find("docker@production").id == "docker/2026-W46/r1"


def test_capacity_that_is_not_configured_is_not_green(tmp_path, instance):
    done = run(Settings(home=tmp_path), instance, "runner_capacity")

    assert done.success
    assert done.get_asset_materialization_events() == []
    assert done.get_asset_check_evaluations() == []


def test_capacity_that_is_exhausted_fails_its_check(tmp_path, instance):
    with GitHubStub() as github:
        github.add_runner("a1-1", busy=True)
        github.add_run("in_progress", ("in_progress", ["self-hosted"]), ("queued", ["self-hosted"]))
        settings = Settings(
            home=tmp_path, github_url=github.endpoint, github_repository="aifocal/akidb", github_token=SecretStr(github.token)
        )
        done = run(settings, instance, "runner_capacity")

    checks = {e.check_name: e for e in done.get_asset_check_evaluations()}
    assert not checks["capacity"].passed
    assert checks["capacity"].description.startswith("ci-runner.capacity.exhausted: ")
    assert metadata(done, CAPACITY)["queued"] == 1
