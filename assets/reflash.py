"""The guarded job that writes an image onto a Jetson. It is a job of its own, not an asset: nothing else ever starts it.

By default it only plans. To write, the config must say `dry_run: false` and repeat the device's name as `confirm`. No `from __future__
import annotations` here: Dagster reads the annotations of `context` as they stand.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING

import dagster as dg

from akidb_pipelines.errors import InputError
from akidb_pipelines.resources import ImageTools
from assets.common import logging, started_by, telling

if TYPE_CHECKING:
    from akidb_pipelines.images.reflash import ReflashPlan

REPORT = dg.AssetKey("jetson_reflash_report")


report_spec = dg.AssetSpec(
    REPORT,
    group_name="jetson",
    owners=started_by("reflash"),
    description="What job jetson_reflash planned or did, newest first: the image, what was written, what was found afterwards.",
    tags={"runbook": "reflash-a-jetson"},
)


class ReflashConfig(dg.Config):
    """What to write where."""

    device: str
    """A device of the inventory."""
    image: str = "golden"
    """`golden`, or an image such as jetson-a/2026-11/r1."""
    serial: str = ""
    """The drive's serial number, confirmed by somebody who looked, where it is not the inventory's or the image's."""
    dry_run: bool = True
    """Only plan."""
    confirm: str = ""
    """The device's name once more; without it nothing is written."""


@dg.op(description="Plan a reflash; with dry_run: false and confirm, write it, read all of it again, check it.", pool="jetson")
def reflash_device(context: dg.OpExecutionContext, config: ReflashConfig, image_tools: dg.ResourceParam[ImageTools]) -> None:
    """See the module."""
    report = logging(context)(config.device)
    with telling():
        if not config.dry_run and config.confirm != config.device:
            raise InputError(
                f"reflash of {config.device}: confirm says {config.confirm!r}; nothing was written",
                hint=f"set confirm to {config.device} if that is the device that you mean",
            )
        planned = image_tools.plan(config.device, config.image, config.serial, report)
    context.log.info(
        f"{planned.image} onto {planned.drive}: {planned.write_blocks} blocks, {planned.write_bytes / 1e6:.1f} MB to write"
    )
    for refusal in planned.refusals:
        context.log.error(f"refused: {refusal.reason}. What to do: {refusal.to_do}")
    if config.dry_run:
        _tell(context, planned, "planned; nothing was written", _plan_text(planned))
        return
    with telling():
        done, kept = image_tools.reflash(config.device, planned.image, config.serial, report, context.run_id)
    context.log.info(f"report: {kept}")
    _tell(context, planned, "written" if done.ok else "written, but not sound", done.markdown, seconds=done.seconds)
    if not done.ok:
        raise dg.Failure(f"{config.device} holds {planned.image}, but a check of it failed: see its report", allow_retries=False)


def _plan_text(planned: "ReflashPlan") -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in asdict(planned).items() if name != "refusals")
    against = "\n".join(f"- **refused**: {r.reason}. {r.to_do}" for r in planned.refusals)
    return f"| | |\n|---|---|\n{rows}\n\n{against}\n"


def _tell(context: dg.OpExecutionContext, planned: "ReflashPlan", outcome: str, text: str, *, seconds: float = 0.0) -> None:
    """Record it where the UI keeps a history by device."""
    context.log_event(
        dg.AssetMaterialization(
            REPORT,
            description=f"{planned.device}: {outcome}",
            metadata={
                "device": planned.device,
                "outcome": outcome,
                "image": planned.image,
                "drive": f"{planned.drive}, serial number {planned.drive_serial}",
                "refused": "; ".join(r.reason for r in planned.refusals) or "nothing",
                "blocks to write": planned.write_blocks,
                "bytes to write": planned.write_bytes,
                "seconds expected": planned.expected_seconds,
                "seconds": seconds,
                "report": dg.MetadataValue.md(text),
            },
        )
    )


@dg.job(
    name="jetson_reflash",
    owners=started_by("reflash"),
    description="Write an image onto a Jetson's drive. Only plans unless dry_run is false and confirm repeats the device's name.",
    # Writing a large drive takes hours, and nobody but a person starts it again.
    tags={"pipeline": "jetson", "dagster/max_runtime": "86400", "dagster/max_retries": "0"},
)
def reflash_job() -> None:
    """One step."""
    reflash_device()
