"""What a snapshot of a runner image is held to before it goes into production: does it come back as it was, boot, and do a job.

`columns` and `cedar_entities` are those of the catalog's rows (quality.catalogue); the others are here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from akidb_pipelines.images.runners.probe import judged
from akidb_pipelines.images.runners.snapshot import Snapshot
from akidb_pipelines.quality.result import CheckReport, RuleResult, Status

_ENTITY = "RunnerImage"
_HISTORY = 6
_SHARE = 0.2
"""An image may be so much larger or smaller than usual without anybody asking."""


def check_restored(snapshot: Snapshot, loaded_id: str, layers: Sequence[str], seconds: float) -> CheckReport:
    """The image that was restored and loaded is the one that was built.

    Args:
        snapshot: which.
        loaded_id: what the engine says it loaded.
        layers: digests of its layers, as the engine says.
        seconds: that it took.
    """
    record = snapshot.record
    expected = [f.name for f in record.files]
    results = (
        _rule(
            "has the image id that was built", loaded_id == record.image_id, f"{loaded_id}, built was {record.image_id}", "image_id"
        ),
        _rule(
            "has the layers that were archived",
            list(dict.fromkeys(layers)) == expected,
            f"{len(layers)} layers, archived were {len(expected)}",
            "digests_sha256",
        ),
    )
    return CheckReport(
        "restored", results, seconds, {"image_id": loaded_id, "layers": len(layers), "size_bytes": record.size_bytes}
    )


def check_files_restored(snapshot: Snapshot, seconds: float) -> CheckReport:
    """A virtual machine's files were restored, every piece with its digest. Raised before this if they were not."""
    return CheckReport(
        "restored", (_rule("every piece has its digest", True, ""),), seconds, {"size_bytes": snapshot.record.size_bytes}
    )


def check_tools(found: Mapping[str, Any], seconds: float, *, alone: bool) -> CheckReport:
    """Every tool of the restored image answers, in a version that is wanted.

    Args:
        found: what the probe says.
        seconds: that the boot took.
        alone: whether it must have had no network at all, as a container can.
    """
    results = [_rule(f"{t['name']} {t['wanted'] or 'any version'}", bool(t["ok"]), judged(t), "tools") for t in found["tools"]]
    if alone and (up := found["interfaces"]):
        results.append(_rule("booted without network", False, f"has {', '.join(up)}"))
    versions: dict[str, str | int | float] = {t["name"]: t["found"] or "missing" for t in found["tools"]}
    return CheckReport("tools", tuple(results), seconds, {**versions, "system": str(found["system"])})


def check_smoke_job(found: Mapping[str, Any]) -> CheckReport:
    """A CI job runs in the restored image."""
    job = found["smoke"] or {"ok": False, "code": -1, "output": "it was not run", "seconds": 0.0}
    told = f"ended with {job['code']}: {str(job['output']).strip()[-500:]}"
    return CheckReport(
        "smoke_job",
        (_rule("the job ends well", bool(job["ok"]), told),),
        float(job["seconds"]),
        {"output": str(job["output"])[-1000:]},
    )


def check_size(snapshot: Snapshot, earlier: Sequence[Snapshot]) -> CheckReport:
    """The image is about as large as in other weeks. News, no fault: a new tool is one reason.

    Args:
        snapshot: the one to judge.
        earlier: snapshots of the same runner before it, oldest first.
    """
    sizes = [s.record.size_bytes for s in earlier][-_HISTORY:]
    usual = int(median(sizes)) if sizes else 0
    size = snapshot.record.size_bytes
    results = []
    if usual:
        told = f"{size / 1e6:.0f} MB, in other weeks {usual / 1e6:.0f} MB"
        results.append(_rule("about as large as in other weeks", abs(size - usual) <= _SHARE * usual, told, "size_bytes"))
    facts: dict[str, str | int | float] = {"size_bytes": size, "usual_bytes": usual, "new_bytes": snapshot.record.counts.new_bytes}
    return CheckReport("size", tuple(results), 0.0, facts, advisory=True)


def _rule(rule: str, ok: bool, found: str, attribute: str = "") -> RuleResult:
    return RuleResult(rule, _ENTITY, attribute) if ok else RuleResult(rule, _ENTITY, attribute, Status.FAIL, 1, message=found)
