"""Jobs: which assets are materialized together."""

from __future__ import annotations

import dagster as dg

from assets import fixtures, registry

fixtures_job = dg.define_asset_job(
    "fixtures",
    selection=dg.AssetSelection.assets(fixtures.DATABASES, fixtures.RELEASE, registry.REGISTRY),
    description="Build, check and release the fixtures of one week; pull them back as a stranger would.",
    tags={"pipeline": "fixtures"},
)

observe_sandbox_job = dg.define_asset_job(
    "observe_sandbox",
    selection=dg.AssetSelection.assets(fixtures.SANDBOX),
    description="Record which sandbox is in force; fixtures built for another one become stale.",
    tags={"pipeline": "fixtures"},
)

registry_gc_job = dg.define_asset_job(
    "registry_gc",
    selection=dg.AssetSelection.assets(registry.REGISTRY, registry.RETENTION),
    description="Retire releases outside retention, and remove those whose grace is over. Config dry_run only says what it would do.",
    tags={"pipeline": "registry"},
)
