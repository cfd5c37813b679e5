"""Monthly Jetson images: a device's drive captured, the image checked, made golden; and the packs that nothing needs any more.

Devices are partitions, so the assets are made from the inventory (`jetson_assets`). No `from __future__ import annotations` here: Dagster
reads the annotations of `context` as they stand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from akidb_pipelines.images.checklist import BLOCKING_CHECKS, CHECKS
from akidb_pipelines.periods import Month
from akidb_pipelines.resources import ImageTools
from akidb_pipelines.settings import Settings
from assets.checks import check_result
from assets.common import BUILD, built_metadata, logging, member_partition, started_by, telling
from assets.partitions import jetson_months
from assets.registry import RETENTION

if TYPE_CHECKING:
    from akidb_pipelines.images.capture import Captured
    from akidb_pipelines.images.image import Image

GROUP = "jetson"
CAPTURE = dg.AssetKey("jetson_capture")
GOLDEN_IMAGE = dg.AssetKey("jetson_golden_image")
PACKS = dg.AssetKey("image_packs")
POOL = "jetson"
_IMAGE = "image"
_RUNBOOK = "runbooks/clone-failed.md"

Tools = dg.ResourceParam[ImageTools]

_ABOUT_CHECKS = {
    "mode": "The drive was still while it was read: frozen or offline. A live capture never becomes golden.",
    "digests": "The digests are those that the signed record names, and every block lies in a pack.",
    "restore_sample": "256 MiB of it, drawn at random, read back from the store with the digests they should have.",
    "filesystem": "A restored copy has a sound partition table, and e2fsck finds nothing to repair.",
    "columns": "The catalog's rows of images by Great Expectations, generated from the Cedar schema.",
    "cedar_entities": "The catalog's rows of images as AkiDB::Ops::JetsonImage entities, judged by Cedar.",
    "increment": "About as much is new as in other months. News, no fault: an upgrade of the system is one reason.",
}


@dataclass(frozen=True)
class JetsonAssets:
    """What there is for the devices of an inventory."""

    assets: tuple[dg.AssetsDefinition, ...]
    checks: tuple[dg.AssetChecksDefinition, ...]


def _subject(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> tuple[Month, str, str]:
    """Month, device and partition key that a step is about."""
    device, month, key = member_partition(context, CAPTURE)
    with telling():
        return Month.parse(month), device, key


def jetson_assets(devices: Sequence[str]) -> JetsonAssets:
    """Assets and checks whose partitions are months times these devices."""
    partitions = jetson_months(devices)

    @dg.asset(
        key=CAPTURE,
        partitions_def=partitions,
        group_name=GROUP,
        owners=started_by("jetson"),
        kinds={"python"},
        pool=POOL,
        code_version="1",
        retry_policy=dg.RetryPolicy(max_retries=2, delay=120, backoff=dg.Backoff.EXPONENTIAL),
        description="A Jetson's drive, block by block over SSH; only what no image has yet is sent and stored.",
        tags={"runbook": "clone-failed"},
    )
    def jetson_capture(context: dg.AssetExecutionContext, image_tools: Tools) -> dg.MaterializeResult[None]:
        """Capture one device for one month."""
        month, device, _ = _subject(context)
        with telling(retry=True):
            captured = image_tools.capture(device, month, context.run.run_id, logging(context)(device))
        told = "captured" if captured.created else "unchanged: the same blocks are there already"
        context.log.info(f"{captured.image.id} {told}; {captured.image.record.mode}: {captured.image.record.mode_reason}")
        return dg.MaterializeResult(
            data_version=dg.DataVersion(captured.image.record.digests_sha256),
            metadata=_capture_metadata(captured, image_tools.dedupe_ratio(device), image_tools.settings),
        )

    @dg.multi_asset_check(
        name="jetson_checks",
        specs=[
            dg.AssetCheckSpec(name, asset=CAPTURE, blocking=name in BLOCKING_CHECKS, description=_ABOUT_CHECKS[name])
            for name in CHECKS
        ],
        can_subset=True,
    )
    def jetson_checks(context: dg.AssetCheckExecutionContext, image_tools: Tools) -> Iterator[dg.AssetCheckResult]:
        """One step for all checks, so that Great Expectations is imported once."""
        _, _, key = _subject(context)
        names = [k.name for k in context.selected_asset_check_keys]
        with telling():
            studio = image_tools.open_studio()
            image = studio.library.find(built_metadata(context, CAPTURE, key, _IMAGE))
            for report in studio.run_checks(image, [c for c in CHECKS if c in names], logging(context)):
                context.log.info(f"{image.id} {report.check}: {report.summary}")
                about = {"partition_key": dg.MetadataValue.text(key), _IMAGE: dg.MetadataValue.text(image.id)}
                yield check_result(report, CAPTURE, **about)

    @dg.asset(
        key=GOLDEN_IMAGE,
        partitions_def=partitions,
        deps=[CAPTURE],
        group_name=GROUP,
        owners=started_by("jetson"),
        kinds={"tuf"},
        code_version="1",
        description="The month's image as the golden one of its device, from which it is reflashed; kept for ever.",
        tags={"runbook": "reflash-a-jetson"},
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(days=35)),
    )
    def jetson_golden_image(context: dg.AssetExecutionContext, image_tools: Tools) -> dg.MaterializeResult[None]:
        """Promote what was captured and checked; an older month never takes a newer one's place."""
        month, _, key = _subject(context)
        with telling():
            studio = image_tools.open_studio()
            image = studio.library.find(built_metadata(context, CAPTURE, key, _IMAGE))
            golden = next((i for i in studio.library.images(image.record.name) if i.golden), None)
            if golden is None or golden.version < image.version:
                golden = studio.promote(image, f"captured for {month}, all checks passed")
        told = "is golden now" if golden.id == image.id else f"is older than {golden.id}, which stays golden"
        context.log.info(f"{image.id} {told}")
        return dg.MaterializeResult(
            data_version=dg.DataVersion(golden.root_sha256), metadata=_golden_metadata(image, golden, image_tools.settings)
        )

    return JetsonAssets((jetson_capture, jetson_golden_image), (jetson_checks,))


def _capture_metadata(captured: "Captured", dedupe_ratio: float, settings: Settings) -> dict[str, dg.MetadataValue]:
    image, counts = captured.image, captured.counts
    record = image.record
    board = record.board
    partitions = [
        dg.TableRecord({"name": p.name, "type": p.type, "start_bytes": p.start_bytes, "size_bytes": p.size_bytes, "uuid": p.uuid})
        for p in record.partitions
    ]
    kinds = {"start_bytes": "int", "size_bytes": "int"}
    columns = [dg.TableColumn(c, kinds.get(c, "string")) for c in ("name", "type", "start_bytes", "size_bytes", "uuid")]
    return {
        _IMAGE: dg.MetadataValue.text(image.id),
        BUILD: dg.MetadataValue.text(image.root_sha256),
        "new image": dg.MetadataValue.bool(captured.created),
        "mode": dg.MetadataValue.text(f"{record.mode}: {record.mode_reason}"),
        "parent": dg.MetadataValue.text(record.parent or "none: the first"),
        "board": dg.MetadataValue.text(f"{board.model} ({board.spec}), {board.l4t_release}"),
        "drive": dg.MetadataValue.text(f"{record.source}: {board.drive_model}, serial number {board.drive_serial}"),
        "EFI entries": dg.MetadataValue.text("; ".join(board.efi_entries) or "none seen"),
        "QSPI": dg.MetadataValue.text(board.qspi or "no copy is named: a drive alone may not boot (runbooks/qspi-and-boot.md)"),
        "partitions": dg.MetadataValue.table(partitions, dg.TableSchema(columns)),
        # Numbers by month: the asset's Plots tab draws them.
        "size_bytes": dg.MetadataValue.int(record.size_bytes),
        "used_bytes": dg.MetadataValue.int(record.used_bytes),
        "read_bytes": dg.MetadataValue.int(counts.read_bytes),
        "sent_bytes": dg.MetadataValue.int(counts.sent_bytes),
        "new_bytes": dg.MetadataValue.int(counts.new_bytes),
        "stored_bytes": dg.MetadataValue.int(counts.stored_bytes),
        "changed_blocks": dg.MetadataValue.int(counts.changed_blocks),
        "dedupe_ratio": dg.MetadataValue.float(dedupe_ratio),
        "seconds": dg.MetadataValue.float(round(captured.seconds, 2)),
        "frozen_seconds": dg.MetadataValue.float(record.frozen_seconds),
        "megabytes_per_second": dg.MetadataValue.float(round(counts.read_bytes / 1e6 / max(captured.seconds, 0.001), 1)),
        "runbook": dg.MetadataValue.url(settings.runbook(_RUNBOOK)),
    }


def _golden_metadata(image: "Image", golden: "Image", settings: Settings) -> dict[str, dg.MetadataValue]:
    return {
        _IMAGE: dg.MetadataValue.text(image.id),
        "golden": dg.MetadataValue.text(golden.id),
        "root_sha256": dg.MetadataValue.text(golden.root_sha256),
        "reflash": dg.MetadataValue.text(f"akidb-pipelines images reflash --device DEVICE --image {golden.id}"),
        "restore": dg.MetadataValue.text(f"akidb-pipelines images restore {golden.id} --to FILE"),
        "runbook": dg.MetadataValue.url(settings.runbook("runbooks/reflash-a-jetson.md")),
    }


class PruneConfig(dg.Config):
    """How to sweep."""

    dry_run: bool = False
    """Only say what would be removed and why."""


@dg.asset(
    key=PACKS,
    deps=[RETENTION],
    group_name=GROUP,
    owners=started_by("registry"),
    kinds={"python"},
    description="Packs of blocks: those that no image needs are removed after 14 days, those mostly not needed are packed anew.",
    tags={"runbook": "clone-failed"},
)
def image_packs(context: dg.AssetExecutionContext, config: PruneConfig, image_tools: Tools) -> dg.MaterializeResult[None]:
    """Sweep and repack. Stops while somebody captures or reflashes."""
    with telling():
        pruned = image_tools.prune(dry_run=config.dry_run, report=logging(context)("packs"))
    rows = [
        dg.TableRecord({"action": s.action, "pack": s.pack.name[:16], "why": s.why, "megabytes": round(s.pack.size_bytes / 1e6, 2)})
        for s in sorted(pruned.sweeps, key=lambda s: s.action == "keep")[:100]
    ]
    columns = [dg.TableColumn(c, "float" if c == "megabytes" else "string") for c in ("action", "pack", "why", "megabytes")]
    return dg.MaterializeResult(
        metadata={
            "packs": dg.MetadataValue.table(rows, dg.TableSchema(columns)),
            "dry run": dg.MetadataValue.bool(config.dry_run),
            "pack_count": dg.MetadataValue.int(len(pruned.sweeps)),
            "size_bytes": dg.MetadataValue.int(sum(s.pack.size_bytes for s in pruned.sweeps)),
            "removed_bytes": dg.MetadataValue.int(pruned.removed_bytes),
            "repacked_bytes": dg.MetadataValue.int(pruned.repacked_bytes),
        }
    )
