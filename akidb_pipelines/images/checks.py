"""What an image is held to before it may become golden: is it of one moment, is all of it there, does it start from what was restored.

`columns` and `cedar_entities` are those of the catalog's rows (quality.catalogue); the others are here. Each is a function of an image and
its library, and says what it found as rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

from akidb_pipelines.images.drives import LocalDrive
from akidb_pipelines.images.image import Image
from akidb_pipelines.images.library import Library, same_content
from akidb_pipelines.images.restore import content_of, restore, verify
from akidb_pipelines.progress import Report
from akidb_pipelines.quality.result import CheckReport, RuleResult, Status

_ENTITY = "JetsonImage"
_HISTORY = 6
_TIMES = 3
_MOST_QUIET_BYTES = 256 << 20
"""A month's increment may vary by so much without anybody asking."""


def check_mode(image: Image) -> CheckReport:
    """The drive was still while it was read."""
    started = perf_counter()
    record = image.record
    rule = _rule("captured frozen or offline", record.mode.is_sound, f"{record.mode}: {record.mode_reason}", "mode")
    return CheckReport("mode", (rule,), perf_counter() - started, {"mode": record.mode.value, "reason": record.mode_reason})


def check_digests(library: Library, image: Image) -> CheckReport:
    """The digests are those of the record, and every block lies in a pack."""
    started = perf_counter()
    digests = library.digests(image)
    content = content_of(library, image)
    missing = len(content.missing)
    blocks = image.record.counts.blocks
    results = (
        _rule("digests are those that the record names", same_content(image, digests), f"{len(digests)} bytes", "digests_sha256"),
        _rule(
            "a digest a block", len(content.digests) == blocks, f"{len(content.digests)} digests, {blocks} blocks", "digests_sha256"
        ),
        _rule("every block lies in a pack", missing == 0, f"{missing} lie in none", "digests_sha256", missing),
    )
    return CheckReport("digests", results, perf_counter() - started, {"blocks": blocks, "root_sha256": image.root_sha256})


def check_restore_sample(library: Library, image: Image, report: Report = lambda _: None) -> CheckReport:
    """Blocks read back from the store have their digests."""
    # Another sample for every image, the same one when it is checked again.
    verified = verify(library, image, everything=False, seed=int(image.root_sha256[:8], 16), report=report)
    results = tuple(_rule("reads back as it was", False, problem) for problem in verified.problems) or (
        _rule("reads back as it was", True, ""),
    )
    facts = {"blocks": verified.blocks, "of_blocks": verified.of_blocks, "bytes": verified.read_bytes}
    return CheckReport("restore_sample", results, verified.seconds, facts)


def check_filesystem(library: Library, image: Image, folder: Path, report: Report = lambda _: None) -> CheckReport:
    """A restored copy has a sound partition table and sound ext file systems; `folder` needs room for what the image holds."""
    started = perf_counter()
    copy = folder / "restored.img"
    restored = restore(library, image, copy, report=report)
    found = LocalDrive(copy).check(image.record.partitions) if image.record.partitions else ()
    results = tuple(_rule(f"{c.what} is sound", c.ok, c.found) for c in found) or (
        _rule("has partitions", False, "the drive had no partition table: nothing could be checked"),
    )
    facts: dict[str, str | int | float] = {c.what: c.found for c in found}
    facts |= {"restored_bytes": restored.written_bytes, "restore_seconds": round(restored.seconds, 2)}
    return CheckReport("filesystem", results, perf_counter() - started, facts)


def check_increment(image: Image, earlier: Sequence[Image]) -> CheckReport:
    """What is new is about as much as in other months. News, no fault: an upgrade of the system is one reason.

    Args:
        image: the one to judge.
        earlier: images of the same name before it, oldest first.
    """
    started = perf_counter()
    counts = image.record.counts
    usual = [i.record.counts.new_bytes for i in earlier if i.record.parent][-_HISTORY:]
    typical = int(median(usual)) if usual else 0
    most = max(_TIMES * typical, typical + _MOST_QUIET_BYTES)
    results = []
    if image.record.parent and usual:
        told = f"{counts.new_bytes / 1e6:.0f} MB are new, in other months {typical / 1e6:.0f} MB"
        results.append(_rule("grows as in other months", counts.new_bytes <= most, told, "new_bytes"))
    if image.record.parent:
        results.append(
            _rule("something changed", counts.changed_blocks > 0, "no block differs from the parent: is the device in use?")
        )
    facts: dict[str, str | int | float] = {
        "new_bytes": counts.new_bytes,
        "typical_bytes": typical,
        "changed_blocks": counts.changed_blocks,
    }
    return CheckReport("increment", tuple(results), perf_counter() - started, facts, advisory=True)


def _rule(rule: str, ok: bool, found: str, attribute: str = "", count: int = 1) -> RuleResult:
    return RuleResult(rule, _ENTITY, attribute) if ok else RuleResult(rule, _ENTITY, attribute, Status.FAIL, count, message=found)
