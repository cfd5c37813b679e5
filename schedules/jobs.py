"""Jobs: which assets are materialized together."""

from __future__ import annotations

import dagster as dg

from assets import backups, costs, drills, fixtures, health, jetson, registry, runners
from assets.common import PLATFORM, started_by

_LONG = {"akidb/long": "true"}
"""Takes hours: dagster.yaml lets one such run go on at a time, so that a place stays free."""
_FIRST = {"dagster/priority": "10"}
"""Goes before what else waits: who watches must not be blind behind a backfill, and a dump of today is none tomorrow."""

fixtures_job = dg.define_asset_job(
    "fixtures",
    owners=started_by("fixtures"),
    selection=dg.AssetSelection.assets(fixtures.DATABASES, fixtures.RELEASE, registry.REGISTRY),
    description="Build, check and release the fixtures of one week; pull them back as a stranger would.",
    tags={"pipeline": "fixtures"},
)

observe_sandbox_job = dg.define_asset_job(
    "observe_sandbox",
    owners=started_by("sandbox"),
    selection=dg.AssetSelection.assets(fixtures.SANDBOX),
    description="Record which sandbox is in force; fixtures built for another one become stale.",
    tags={"pipeline": "fixtures"},
)

registry_gc_job = dg.define_asset_job(
    "registry_gc",
    owners=started_by("registry"),
    selection=dg.AssetSelection.assets(registry.REGISTRY, registry.RETENTION, jetson.PACKS),
    description="Retire releases outside retention, remove those whose grace is over, sweep packs. With dry_run it only says so.",
    tags={"pipeline": "registry"},
)

jetson_images_job = dg.define_asset_job(
    "jetson_images",
    owners=started_by("jetson"),
    selection=dg.AssetSelection.assets(jetson.CAPTURE, jetson.GOLDEN_IMAGE),
    description="Capture the drive of one Jetson for one month, check the image, make it golden.",
    # The first image of a large drive takes hours.
    tags={"pipeline": "jetson", "dagster/max_runtime": "86400", **_LONG},
)

runner_images_job = dg.define_asset_job(
    "runner_images",
    owners=started_by("runner_images"),
    selection=dg.AssetSelection.assets(runners.IMAGE_BUILD, runners.ARCHIVE, runners.RELEASE),
    description="Build the image of one CI runner for one week, archive it, boot what was archived, put it into production.",
    # A Mac's image takes hours.
    tags={"pipeline": "runner_images", "dagster/max_runtime": "28800", **_LONG},
)

runner_capacity_job = dg.define_asset_job(
    "runner_capacity",
    owners=started_by("runner_images"),
    selection=dg.AssetSelection.assets(runners.CAPACITY),
    description="Ask GitHub how busy the CI runners are.",
    tags={"pipeline": "runner_images", **_FIRST},
)

backups_job = dg.define_asset_job(
    "backups",
    owners=started_by("backups"),
    selection=dg.AssetSelection.assets(backups.DUMPS, backups.TERRAFORM, backups.DASHBOARDS, backups.RETENTION),
    description="Dump every database of staging and restore each dump as a proof; keep Terraform's state and the dashboards; clear away.",
    tags={"pipeline": "backups", **_FIRST},
)

costs_intake_job = dg.define_asset_job(
    "costs_intake",
    owners=started_by("costs"),
    selection=dg.AssetSelection.assets(costs.FILES, costs.LINES),
    description="Take in every billing file that the ledger does not know.",
    tags={"pipeline": "costs"},
)

costs_rollup_job = dg.define_asset_job(
    "costs_rollup",
    owners=started_by("costs"),
    selection=dg.AssetSelection.assets(costs.ROLLUP, costs.ALLOCATION, costs.FORECAST, costs.QUOTAS),
    description="Add one billing month up, check it, say who pays, forecast its end, hold it against quotas.",
    tags={"pipeline": "costs"},
)

costs_review_job = dg.define_asset_job(
    "costs_review",
    owners=started_by("costs"),
    selection=dg.AssetSelection.assets(costs.REVIEW),
    description="Write the bi-weekly review of what was added up last.",
    tags={"pipeline": "costs"},
)

health_job = dg.define_asset_job(
    "health",
    owners=[PLATFORM],
    selection=dg.AssetSelection.assets(health.OBSERVABILITY, health.STAGING),
    description="Look at the observability stack and at staging.",
    tags={"pipeline": "health", **_FIRST},
)

dr_drill_job = dg.define_asset_job(
    "dr_drill",
    owners=started_by("dr_lab"),
    selection=dg.AssetSelection.assets(drills.REPORT),
    description="Rehearse a disaster: on the lab for real; on OCI as a dry run, unless dry_run is false and confirm says what is lost.",
    # Nobody but a person starts a drill again.
    tags={"pipeline": "dr_lab", "dagster/max_runtime": "10800", "dagster/max_retries": "0"},
)
