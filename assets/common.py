"""What every asset module shares: how errors and progress are told, which partition and which build a step is about."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus as Outcome

from akidb_pipelines.errors import OutsideError, PipelineError
from akidb_pipelines.progress import Progress, Report

# Owners decide who may start a job (docs/access.md); of jobs they are beta in this Dagster, and it says so at every load.
warnings.filterwarnings("ignore", message="Parameter `owners`", category=dg.BetaWarning)

PLATFORM = "team:platform-engineering"
SECURITY = "team:security"


def started_by(group: str, team: str = PLATFORM) -> list[str]:
    """Owners of an asset or job: the team that answers for it, and the group of those who may start it (docs/access.md).

    Args:
        group: a pipeline of AkiDB::Ops, or `sandbox`, `registry`, `reflash`; akidb_pipelines/operations/access/rights.py has them all.
        team: who answers.
    """
    return [team, f"team:{group}"]


_SHOWN = 200
BUILD = "build_sha256"
"""Metadata entry of a materialization: the digest that names what was built."""


@contextmanager
def telling(*, retry: bool = False) -> Iterator[None]:
    """Turn an error that a user can act on into a Dagster failure that says so, without the trace of a bug.

    Args:
        retry: whether what lies outside (a device, a network) is worth another try; nothing else ever is.
    """
    try:
        yield
    except PipelineError as error:
        metadata = {"what to do": dg.MetadataValue.text(error.hint), "exit code": dg.MetadataValue.int(int(error.exit_code))}
        again = retry and isinstance(error, OutsideError)
        raise dg.Failure(description=str(error), metadata=metadata, allow_retries=again) from error


def logging(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext | dg.OpExecutionContext) -> Callable[[str], Report]:
    """Progress as log lines, each under the title of its part: every stage once, and every fifth of a long one."""

    def of_part(title: str) -> Report:
        told: set[tuple[str, int]] = set()

        def report(progress: Progress) -> None:
            fifth = 5 * progress.done // progress.total if progress.total else 0
            if (progress.stage, fifth) not in told:
                told.add((progress.stage, fifth))
                amount = f": {progress.amount}" if progress.amount else ""
                context.log.info(f"{title}: {progress.stage}{amount}")

        return report

    return of_part


def not_configured(
    context: dg.AssetExecutionContext, asset: dg.AssetKey, checks: Collection[str], told: str
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Of what is not configured nothing, unless it was once: then that it is no more. Else its age and last findings would stand for ever.

    Args:
        context: of the step.
        asset: that has nothing to look at.
        checks: its checks.
        told: what to set.
    """
    context.log.warning(f"not configured: {told}")
    if context.instance.get_latest_materialization_event(asset):
        yield dg.MaterializeResult(asset_key=asset, metadata={"found": dg.MetadataValue.text(f"no longer configured: {told}")})
        yield from ended_checks(context, asset, checks)


def ended_checks(context: dg.AssetExecutionContext, asset: dg.AssetKey, checks: Collection[str]) -> Iterator[dg.AssetCheckResult]:
    """For each check that has nothing to look at and failed when it had: that this is over."""
    for name in failed_checks(context.instance, asset, checks):
        yield dg.AssetCheckResult(asset_key=asset, check_name=name, passed=True, description="no longer configured")


def failed_checks(instance: dg.DagsterInstance, asset: dg.AssetKey, checks: Collection[str]) -> list[str]:
    """Those whose newest outcome is a failure; what is planned or under way has none."""
    ask, ended = instance.event_log_storage.get_asset_check_execution_history, {Outcome.SUCCEEDED, Outcome.FAILED}
    newest = {name: ask(dg.AssetCheckKey(asset, name), limit=1, status=ended) for name in checks}
    return sorted(name for name, found in newest.items() if found and found[0].status is Outcome.FAILED)


def newest_partition(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, asset: dg.AssetKey) -> str:
    """Key of the partition that a step is about: its run's, or, for a check run by hand, the newest that is materialized.

    Of devices or runners that is the one that was materialized last.

    Raises:
        dg.Failure: nothing was materialized yet.
    """
    key = context.run.tags.get("dagster/partition")
    if key is None:
        done = context.instance.get_materialized_partitions(asset)
        if not done:
            raise dg.Failure(f"{asset.to_user_string()} was not materialized yet: there is nothing to check", allow_retries=False)
        # Keys of two dimensions begin with the device or runner, and do not sort by age.
        newest = context.instance.fetch_materializations(asset, limit=1).records[0].partition_key
        key = newest if newest and "|" in newest else max(done)
    return key


def member_partition(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, asset: dg.AssetKey) -> tuple[str, str, str]:
    """Device or runner, period, and partition key (`jetson-a|2026-11-01`) that a step is about. See newest_partition."""
    key = newest_partition(context, asset)
    member, _, period = key.partition("|")
    return member, period, key


def built_metadata(
    context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, asset: dg.AssetKey, partition: str, entry: str
) -> str:
    """What this run told of a partition when it materialized it, or, if it did not, what the newest run told.

    Raises:
        dg.Failure: nothing was materialized for that partition.
    """
    wanted = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[partition])
    records = context.instance.fetch_materializations(wanted, limit=20).records
    own = [r for r in records if r.run_id == context.run.run_id]
    for record in own or records:
        if record.asset_materialization and (value := record.asset_materialization.metadata.get(entry)):
            return str(value.value)
    raise dg.Failure(f"{asset.to_user_string()} of {partition} was not materialized yet", allow_retries=False)


def table(columns: Mapping[str, str], rows: Iterable[Sequence[str | int | float]]) -> dg.MetadataValue:
    """A table in the UI.

    Args:
        columns: their names, and `string`, `int` or `float`.
        rows: values in the order of the columns; at most 200 are shown.
    """
    records = [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in islice(rows, _SHOWN)]
    return dg.MetadataValue.table(records, dg.TableSchema([dg.TableColumn(name, kind) for name, kind in columns.items()]))


def picture(what: str, png: bytes) -> dg.MetadataValue:
    """A picture in the UI."""
    return dg.MetadataValue.md(f"![{what}](data:image/png;base64,{base64.b64encode(png).decode()})")
