"""Composition root: puts assets, schedules and resources together. The only module of the library that imports them."""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg
from dagster_docker import PipesDockerClient

from akidb_pipelines.images.runners.fleet import fleet_of
from akidb_pipelines.machines.inventory import open_inventory
from akidb_pipelines.progress import Report
from akidb_pipelines.resources import (
    BackupTools,
    CostTools,
    DrillTools,
    FixtureTools,
    HealthTools,
    ImageTools,
    RegistryTools,
    RunnerTools,
)
from akidb_pipelines.settings import Settings
from assets import backups, costs, drills, fixtures, health, jetson, reflash, registry, runners
from schedules import alerts, jobs, retries, schedules, sensors


def build_defs(settings: Settings | None = None, progress: Callable[[str], Report] | None = None) -> dg.Definitions:
    """Everything, assembled.

    Args:
        settings: default: from environment and file.
        progress: who is told how far a build is; default: log lines.

    Raises:
        InputError: a setting, or the inventory of the Jetsons, is unusable.
    """
    settings = settings or Settings.load()
    # Devices and runners are partitions, hence read while loading: from a file, and nothing is connected to.
    inventory = open_inventory(settings)
    devices, fleet = tuple(inventory.devices), tuple(fleet_of(inventory, settings.deploy).runners)
    of_jetsons, of_runners = jetson.jetson_assets(devices), runners.runner_assets(fleet)
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
            *of_runners.assets,
            runners.ci_runner_capacity,
            backups.staging_dumps,
            backups.terraform_state_backup,
            backups.dashboard_export,
            backups.dump_retention,
            drills.dr_drill_report,
            health.observability_retention,
            health.staging_health,
            costs.cost_intake,
            costs.cost_rollup,
            costs.cost_allocation,
            costs.cost_forecast,
            costs.quota_burndown,
            costs.cost_review,
        ],
        asset_checks=[
            fixtures.fixture_checks,
            fixtures.fresh_pull,
            fixtures.sandbox_agrees,
            registry.metadata_expiry,
            *of_jetsons.checks,
            *of_runners.checks,
            backups.backup_checks,
            drills.drills_recent,
            costs.cost_checks,
        ],
        jobs=[
            jobs.fixtures_job,
            jobs.observe_sandbox_job,
            jobs.registry_gc_job,
            jobs.jetson_images_job,
            reflash.reflash_job,
            jobs.runner_images_job,
            jobs.runner_capacity_job,
            jobs.backups_job,
            jobs.dr_drill_job,
            jobs.health_job,
            jobs.costs_intake_job,
            jobs.costs_rollup_job,
            jobs.costs_review_job,
            drills.recovery_job,
        ],
        schedules=[
            schedules.weekly_fixtures(settings.weekly_fixtures_cron),
            schedules.registry_gc(settings.registry_gc_cron),
            schedules.jetson_images(settings.jetson_images_cron, devices),
            schedules.runner_images(settings.runner_images_cron, fleet),
            schedules.runner_capacity(settings.runner_capacity_cron),
            schedules.daily_backups(settings.daily_backups_cron),
            schedules.dr_drill(settings.dr_drill_cron),
            schedules.health(settings.health_cron),
            schedules.costs_intake(settings.cost_intake_cron),
            schedules.costs_review(settings.cost_review_cron),
        ],
        sensors=[
            sensors.fixture_drift,
            sensors.registry_expiry,
            sensors.drill_overdue,
            sensors.failed_drill,
            sensors.interrupted_drill,
            sensors.costs_restatement,
            alerts.alerts(settings),
            retries.lost_retries,
        ],
        resources={
            "fixture_tools": FixtureTools(settings, progress),
            "registry_tools": RegistryTools(settings),
            "image_tools": ImageTools(settings),
            "runner_tools": RunnerTools(settings),
            "backup_tools": BackupTools(settings),
            "drill_tools": DrillTools(settings),
            "cost_tools": CostTools(settings),
            "health_tools": HealthTools(settings),
            "pipes_docker": PipesDockerClient(),
        },
        # Every check is a step, and a process a step would cost 3 s each.
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads."""
    return build_defs()
