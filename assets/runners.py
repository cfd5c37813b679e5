"""Weekly CI runner images: built, archived, booted from the archive, put into production; and how busy the runners are.

Runners are partitions, so the assets are made from the inventory (`runner_assets`). No `from __future__ import annotations` here: Dagster
reads the annotations of `context` as they stand.
"""

import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster_docker import PipesDockerClient

from akidb_pipelines.errors import OutsideError, PipelineError
from akidb_pipelines.images.runners.checklist import BLOCKING_CHECKS, CHECKS
from akidb_pipelines.periods import Week
from akidb_pipelines.resources import RunnerTools
from akidb_pipelines.settings import Settings
from assets.checks import check_result
from assets.common import BUILD, built_metadata, logging, member_partition, not_configured, started_by, telling
from assets.partitions import runner_weeks

if TYPE_CHECKING:
    from akidb_pipelines.images.runners.archive import Archived
    from akidb_pipelines.images.runners.build import Built
    from akidb_pipelines.images.runners.capacity import Capacity
    from akidb_pipelines.images.runners.difference import Difference
    from akidb_pipelines.images.runners.engine import Engine
    from akidb_pipelines.images.runners.foundry import Boot

GROUP = "runners"
IMAGE_BUILD = dg.AssetKey("runner_image_build")
ARCHIVE = dg.AssetKey("runner_image_archive")
RELEASE = dg.AssetKey("runner_image_release")
CAPACITY = dg.AssetKey("ci_runner_capacity")
CAPACITY_CHECK, _ONLINE = "capacity", "online"
POOL = "runner"
_SNAPSHOT = "snapshot"
_RUNBOOK = "runbooks/bad-runner-image.md"
_BOOT_SECONDS = 600
_ROWS = 200

Tools = dg.ResourceParam[RunnerTools]
Pipes = dg.ResourceParam[PipesDockerClient]

_ABOUT_CHECKS = {
    "restored": "Restored from the store and loaded, it has the id and the layers that were built.",
    "tools": "Booted without network, every tool answers in a version that the inventory wants.",
    "smoke_job": "A CI job runs in it: clone, build, test, look at a database.",
    "columns": "The catalog's rows of snapshots by Great Expectations, generated from the Cedar schema.",
    "cedar_entities": "The catalog's rows of snapshots as AkiDB::Ops::RunnerImage entities, judged by Cedar.",
    "size": "About as large as in other weeks. News, no fault: a new tool is one reason.",
}


@dataclass(frozen=True)
class RunnerAssets:
    """What there is for the runners of an inventory."""

    assets: tuple[dg.AssetsDefinition, ...]
    checks: tuple[dg.AssetChecksDefinition, ...]


def _subject(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> tuple[Week, str, str]:
    """Week, runner and partition key that a step is about."""
    runner, week, key = member_partition(context, ARCHIVE)
    with telling():
        return Week.parse(week), runner, key


def runner_assets(runners: Sequence[str]) -> RunnerAssets:
    """Assets and checks whose partitions are weeks times these runners."""
    partitions = runner_weeks(runners)

    @dg.asset(
        key=IMAGE_BUILD,
        partitions_def=partitions,
        group_name=GROUP,
        owners=started_by("runner_images"),
        kinds={"docker", "ansible"},
        pool=POOL,
        code_version="1",
        retry_policy=dg.RetryPolicy(max_retries=1, delay=60),
        description="A CI runner's image, built by Packer and Ansible, which ask every tool for its version.",
        tags={"runbook": "bad-runner-image"},
    )
    def runner_image_build(context: dg.AssetExecutionContext, runner_tools: Tools) -> dg.MaterializeResult[None]:
        """Build one runner for one week."""
        week, runner, _ = _subject(context)
        with telling(retry=True):
            built = runner_tools.open_foundry().build(
                runner_tools.runner(runner), week, logging(context)(runner), context.run.run_id
            )
        context.log.info(f"{built.image} built in {built.seconds:.0f} s")
        return dg.MaterializeResult(data_version=dg.DataVersion(built.image_id), metadata=_build_metadata(built))

    @dg.asset(
        key=ARCHIVE,
        partitions_def=partitions,
        deps=[IMAGE_BUILD],
        group_name=GROUP,
        owners=started_by("runner_images"),
        kinds={"python"},
        pool=POOL,
        code_version="1",
        retry_policy=dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL),
        description="The image in the artifact store, layer by layer; only what no snapshot has yet is stored.",
        tags={"runbook": "bad-runner-image"},
    )
    def runner_image_archive(context: dg.AssetExecutionContext, runner_tools: Tools) -> dg.MaterializeResult[None]:
        """Archive what was built."""
        week, runner, _ = _subject(context)
        with telling(retry=True):
            foundry = runner_tools.open_foundry()
            archived = foundry.archive(runner_tools.runner(runner), week, logging(context)(runner), context.run.run_id)
        changed = None
        try:
            changed = runner_tools.difference(foundry, archived.snapshot)
        except PipelineError as error:  # news only: the image is archived
            context.log.warning(f"what has changed could not be told: {error}")
        told = "archived" if archived.created else "unchanged: the same image is there already"
        context.log.info(f"{archived.snapshot.id} {told}" + (f"; {changed.summary}" if changed else ""))
        return dg.MaterializeResult(
            data_version=dg.DataVersion(archived.snapshot.record.digests_sha256),
            metadata=_archive_metadata(archived, changed, runner_tools.settings),
        )

    @dg.multi_asset_check(
        name="runner_checks",
        specs=[
            dg.AssetCheckSpec(name, asset=ARCHIVE, blocking=name in BLOCKING_CHECKS, description=_ABOUT_CHECKS[name])
            for name in CHECKS
        ],
        can_subset=True,
        pool=POOL,
    )
    def runner_checks(
        context: dg.AssetCheckExecutionContext, runner_tools: Tools, pipes_docker: Pipes
    ) -> Iterator[dg.AssetCheckResult]:
        """One step for all checks: the image is restored once."""
        _, runner, key = _subject(context)
        names = [k.name for k in context.selected_asset_check_keys]
        with telling():
            foundry = runner_tools.open_foundry()
            snapshot = foundry.shelf.find(built_metadata(context, ARCHIVE, key, _SNAPSHOT))
            boot = _piped(context, pipes_docker, runner)
            wanted = [c for c in CHECKS if c in names]
            for report in foundry.run_checks(
                runner_tools.runner(runner), snapshot, wanted, logging(context)(runner), boot, context.run.run_id
            ):
                context.log.info(f"{snapshot.id} {report.check}: {report.summary}")
                about = {"partition_key": dg.MetadataValue.text(key), _SNAPSHOT: dg.MetadataValue.text(snapshot.id)}
                yield check_result(report, ARCHIVE, **about)

    @dg.asset(
        key=RELEASE,
        partitions_def=partitions,
        deps=[ARCHIVE],
        group_name=GROUP,
        owners=started_by("runner_images"),
        kinds={"tuf"},
        code_version="1",
        description="The week's image in production: what CI runners start from. An older week never takes a newer one's place.",
        tags={"runbook": "bad-runner-image"},
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=8)),
    )
    def runner_image_release(context: dg.AssetExecutionContext, runner_tools: Tools) -> dg.MaterializeResult[None]:
        """Promote what was archived and checked."""
        week, runner, key = _subject(context)
        with telling():
            foundry = runner_tools.open_foundry()
            snapshot = foundry.shelf.find(built_metadata(context, ARCHIVE, key, _SNAPSHOT))
            production = foundry.shelf.production(runner)
            if production is None or production.version < snapshot.version:
                production = foundry.promote(snapshot, f"built for {week}, all checks passed")
        told = "is in production" if production.id == snapshot.id else f"is older than {production.id}, which stays in production"
        context.log.info(f"{snapshot.id} {told}")
        return dg.MaterializeResult(
            data_version=dg.DataVersion(production.root_sha256),
            metadata={
                _SNAPSHOT: dg.MetadataValue.text(snapshot.id),
                "production": dg.MetadataValue.text(production.id),
                "root_sha256": dg.MetadataValue.text(production.root_sha256),
                "restore": dg.MetadataValue.text(f"akidb-pipelines runners restore {production.id} --load"),
                "roll back": dg.MetadataValue.text(f"akidb-pipelines runners revoke {production.id} --reason WHY"),
                "runbook": dg.MetadataValue.url(runner_tools.settings.runbook(_RUNBOOK)),
            },
        )

    return RunnerAssets((runner_image_build, runner_image_archive, runner_image_release), (runner_checks,))


# --- booting by Dagster Pipes


def _piped(context: dg.AssetCheckExecutionContext, pipes: PipesDockerClient, runner: str) -> "Boot":
    """Start the image by Dagster Pipes: what the probe in it logs stands in the run's log."""

    def boot(engine: "Engine", image: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        from dagster_pipes import DagsterPipesError
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        from akidb_pipelines.images.runners.engine import PROBE_PATH, PROBING_LABEL, probe_volumes

        options = {
            "entrypoint": [],
            "network_mode": "none",
            "labels": {PROBING_LABEL: runner},
            "volumes": probe_volumes(),
        }
        late = threading.Event()

        def stop() -> None:
            late.set()
            with suppress(PipelineError):  # then Pipes goes on, and the run's own limit ends it
                engine.sweep_containers(runner)

        timer = threading.Timer(_BOOT_SECONDS, stop)
        timer.start()
        try:
            with _docker_host(engine.url), warnings.catch_warnings():
                warnings.simplefilter("ignore", dg.PreviewWarning)  # of Pipes itself
                done = pipes.run(
                    context=context.op_execution_context,
                    image=image,
                    command=["python3", PROBE_PATH],
                    extras={"request": request},
                    container_kwargs=options,
                )
            if told := done.get_custom_messages():
                return dict(told[-1])
            found = "the probe said nothing"
        except (DagsterPipesError, DockerException, RequestException) as error:
            found = f"did not answer within {_BOOT_SECONDS} s" if late.is_set() else str(error)
        finally:
            timer.cancel()
            engine.sweep_containers(runner)  # Pipes leaves its container
        raise OutsideError(
            f"image {image}: booted by Dagster Pipes: {found}", hint="an image needs python3; akidb-pipelines runners boot-test"
        )

    return boot


@contextmanager
def _docker_host(url: str) -> Iterator[None]:
    """Pipes takes the engine from the environment, and from nowhere else."""
    before = os.environ.get("DOCKER_HOST")
    if url:
        os.environ["DOCKER_HOST"] = url
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("DOCKER_HOST", None)
        else:
            os.environ["DOCKER_HOST"] = before


# --- metadata


def _build_metadata(built: "Built") -> dict[str, dg.MetadataValue]:
    tools = [dg.TableRecord({"tool": t["name"], "wanted": t["wanted"] or "any", "found": t["found"]}) for t in built.facts["tools"]]
    return {
        "image": dg.MetadataValue.text(built.image),
        "image_id": dg.MetadataValue.text(built.image_id),
        "base": dg.MetadataValue.text(built.base),
        "packer": dg.MetadataValue.text(built.packer),
        "tools": dg.MetadataValue.table(tools, dg.TableSchema([dg.TableColumn(c) for c in ("tool", "wanted", "found")])),
        "packages": dg.MetadataValue.int(len(built.facts["packages"])),
        "seconds": dg.MetadataValue.float(round(built.seconds, 1)),
    }


def _archive_metadata(archived: "Archived", changed: "Difference | None", settings: Settings) -> dict[str, dg.MetadataValue]:
    snapshot, counts = archived.snapshot, archived.counts
    record = snapshot.record
    metadata: dict[str, dg.MetadataValue] = {
        _SNAPSHOT: dg.MetadataValue.text(snapshot.id),
        BUILD: dg.MetadataValue.text(snapshot.root_sha256),
        "new snapshot": dg.MetadataValue.bool(archived.created),
        "image_id": dg.MetadataValue.text(record.image_id),
        "built on": dg.MetadataValue.text(record.built_on or record.base),
        "previous": dg.MetadataValue.text(record.previous or "none: the first"),
        "system": dg.MetadataValue.text(f"{record.system}, {record.architecture}"),
        # Numbers by week: the asset's Plots tab draws them.
        "size_bytes": dg.MetadataValue.int(record.size_bytes),
        "new_bytes": dg.MetadataValue.int(counts.new_bytes),
        "stored_bytes": dg.MetadataValue.int(counts.stored_bytes),
        "stored_share": dg.MetadataValue.float(round(counts.stored_bytes / max(record.size_bytes, 1), 4)),
        "seconds": dg.MetadataValue.float(round(archived.seconds, 2)),
        "build_seconds": dg.MetadataValue.float(record.build_seconds),
        "runbook": dg.MetadataValue.url(settings.runbook(_RUNBOOK)),
    }
    if changed:
        names = ("what", "kind", "name", "before", "after")
        rows = [dg.TableRecord({n: str(getattr(c, n)) for n in names}) for c in changed.changed[:_ROWS]]
        metadata[f"changed since {changed.before}"] = dg.MetadataValue.table(
            rows, dg.TableSchema([dg.TableColumn(n) for n in names])
        )
        metadata["difference"] = dg.MetadataValue.text(changed.summary)
        metadata["changed_packages"] = dg.MetadataValue.int(len(changed.changed))
    return metadata


# --- capacity


@dg.multi_asset(
    name="ci_runner_capacity",
    specs=[
        dg.AssetSpec(
            CAPACITY,
            group_name=GROUP,
            owners=started_by("runner_images"),
            kinds={"github"},
            description="Jobs that run and wait on the CI runners, and which are online, from GitHub Actions.",
            tags={"runbook": "ci-runner-offline"},
            skippable=True,
            freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=2)),
        )
    ],
    can_subset=True,  # hence nothing has to come of it: what is not configured is neither there nor green
    check_specs=[
        dg.AssetCheckSpec(
            CAPACITY_CHECK, asset=CAPACITY, description="CI jobs do not wait: feeds the alert ci-runner.capacity.exhausted."
        ),
        dg.AssetCheckSpec(_ONLINE, asset=CAPACITY, description="Every registered runner is online."),
    ],
)
def ci_runner_capacity(
    context: dg.AssetExecutionContext, runner_tools: Tools
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Ask GitHub; without a repository to ask about, nothing is materialized."""
    with telling():
        found = runner_tools.capacity()
    if found is None:
        told = "set AKIDB_GITHUB_REPOSITORY and AKIDB_GITHUB_TOKEN"
        yield from not_configured(context, CAPACITY, (CAPACITY_CHECK, _ONLINE), told)
        return
    yield dg.MaterializeResult(asset_key=CAPACITY, metadata=_capacity_metadata(found, runner_tools.settings))
    yield dg.AssetCheckResult(
        asset_key=CAPACITY,
        check_name=CAPACITY_CHECK,
        passed=not found.is_exhausted,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"ci-runner.capacity.exhausted: {found.summary}" if found.is_exhausted else found.summary,
    )
    yield dg.AssetCheckResult(
        asset_key=CAPACITY,
        check_name=_ONLINE,
        passed=not found.offline,
        severity=dg.AssetCheckSeverity.WARN,
        description=found.summary,
        metadata={"runbook": dg.MetadataValue.url(runner_tools.settings.runbook("runbooks/ci-runner-offline.md"))},
    )


def _capacity_metadata(found: "Capacity", settings: Settings) -> dict[str, dg.MetadataValue]:
    return {
        "running": dg.MetadataValue.int(found.running),
        "queued": dg.MetadataValue.int(found.queued),
        "online": dg.MetadataValue.int(len(found.online)),
        "idle": dg.MetadataValue.int(found.idle),
        "offline": dg.MetadataValue.text(", ".join(found.offline) or "none"),
        "baseline": dg.MetadataValue.int(found.baseline),
        "burst": dg.MetadataValue.int(found.burst),
        "runbook": dg.MetadataValue.url(settings.runbook("runbooks/ci-runner-offline.md")),
    }
