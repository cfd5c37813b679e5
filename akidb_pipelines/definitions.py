"""Composition root: puts assets, schedules and resources together. The only module of the library that imports them."""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg

from akidb_pipelines.images.inventory import open_inventory
from akidb_pipelines.progress import Report
from akidb_pipelines.resources import FixtureTools, ImageTools, RegistryTools
from akidb_pipelines.settings import Settings
from assets import fixtures, jetson, reflash, registry
from schedules import jobs, schedules, sensors


def build_defs(settings: Settings | None = None, progress: Callable[[str], Report] | None = None) -> dg.Definitions:
    """Everything, assembled.

    Args:
        settings: default: from environment and file.
        progress: who is told how far a build is; default: log lines.

    Raises:
        InputError: a setting, or the inventory of the Jetsons, is unusable.
    """
    settings = settings or Settings.load()
    # The devices are partitions, hence read while loading: from a file, and nothing is connected to.
    devices = tuple(open_inventory(settings).devices)
    of_jetsons = jetson.jetson_assets(devices)
    return dg.Definitions(
        assets=[
            fixtures.cedar_sandbox_schema,
            fixtures.fixture_databases,
            fixtures.fixture_release,
            registry.artifact_registry,
            registry.registry_retention,
            *of_jetsons.assets,
            jetson.image_packs,
            reflash.report_spec,
        ],
        asset_checks=[fixtures.fixture_checks, fixtures.fresh_pull, registry.metadata_expiry, *of_jetsons.checks],
        jobs=[jobs.fixtures_job, jobs.observe_sandbox_job, jobs.registry_gc_job, jobs.jetson_images_job, reflash.reflash_job],
        schedules=[
            schedules.weekly_fixtures(settings.weekly_fixtures_cron),
            schedules.registry_gc(settings.registry_gc_cron),
            schedules.jetson_images(settings.jetson_images_cron, devices),
        ],
        sensors=[sensors.fixture_drift, sensors.registry_expiry],
        resources={
            "fixture_tools": FixtureTools(settings, progress),
            "registry_tools": RegistryTools(settings),
            "image_tools": ImageTools(settings),
        },
        # Every check is a step, and a process a step would cost 3 s each.
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads."""
    return build_defs()
