"""What every asset module shares: where runbooks are, how errors are told, which build a step is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from akidb_pipelines.errors import PipelineError
from akidb_pipelines.periods import Week

PLATFORM = "team:platform-engineering"
SECURITY = "team:security"
BUILD = "build_sha256"
"""Metadata entry of a materialization: the digest that names what was built."""


@contextmanager
def telling() -> Iterator[None]:
    """Turn an error that a user can act on into a Dagster failure that says so, without the trace of a bug and without retries."""
    try:
        yield
    except PipelineError as error:
        metadata = {"what to do": dg.MetadataValue.text(error.hint), "exit code": dg.MetadataValue.int(int(error.exit_code))}
        raise dg.Failure(description=str(error), metadata=metadata, allow_retries=False) from error


def partition_week(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, asset: dg.AssetKey) -> Week:
    """The week a step is about: its partition, or, for a check run by hand, the newest week that is materialized.

    Raises:
        dg.Failure: the key is no Monday, or nothing was materialized yet.
    """
    key = context.run.tags.get("dagster/partition")
    if key is None:
        done = context.instance.get_materialized_partitions(asset)
        if not done:
            raise dg.Failure(f"{asset.to_user_string()} was not materialized yet: there is nothing to check", allow_retries=False)
        key = max(done)
    with telling():
        return Week.parse(key)


def built_digest(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, asset: dg.AssetKey, week: Week) -> str:
    """The digest of what this run built for a week, or, if it built nothing, of the newest build.

    Raises:
        dg.Failure: nothing was built for that week.
    """
    wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[week.key])
    records = context.instance.fetch_materializations(wanted, limit=20).records
    own = [r for r in records if r.run_id == context.run.run_id]
    for record in own or records:
        if record.asset_materialization and (value := record.asset_materialization.metadata.get(BUILD)):
            return str(value.value)
    raise dg.Failure(f"{asset.to_user_string()} of {week} was not materialized yet", allow_retries=False)
