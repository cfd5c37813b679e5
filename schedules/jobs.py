"""Jobs: which assets are materialized together."""

from __future__ import annotations

import dagster as dg

from assets import fixtures

fixtures_job = dg.define_asset_job(
    "fixtures",
    selection=dg.AssetSelection.assets(fixtures.DATABASES, fixtures.RELEASE),
    description="Build, check and release the fixtures of one week.",
    tags={"pipeline": "fixtures"},
)

observe_sandbox_job = dg.define_asset_job(
    "observe_sandbox",
    selection=dg.AssetSelection.assets(fixtures.SANDBOX),
    description="Record which sandbox is in force; fixtures built for another one become stale.",
    tags={"pipeline": "fixtures"},
)
