"""Reflashing: make a drive hold an image, writing only what differs, and prove it.

    facts > refusals > compare > write > read all of it again > partition table, file systems > report

Nothing is written while anything speaks against it. The first block, with the partition table, is cleared first and written last: a drive
that lost power in between has no partitions, so nobody starts or mounts a half-written one. Running it again writes the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from akidb_pipelines.errors import CheckError
from akidb_pipelines.files import write_whole
from akidb_pipelines.images.drives import BLOCK_BYTES, Checked, Drive, DriveFacts, Written
from akidb_pipelines.images.image import Image
from akidb_pipelines.images.library import Library
from akidb_pipelines.images.restore import Content, content_of, differing, in_safe_order
from akidb_pipelines.progress import Progress, Report

NO_SERIAL = "none"
"""What is confirmed of a drive that has no serial number."""
_WRITING = 0.5
"""Drives are assumed to be written half as fast as they were read: the estimate says so."""


@dataclass(frozen=True)
class Reflash:
    """What is to be done to which drive.

    Args:
        device: name of the device.
        drive: its drive.
        image: what it shall hold.
        serial: what the inventory says of the drive; empty when it says nothing.
        confirmed_serial: of the drive that is really meant, typed by somebody who looked: overrides the inventory and the image.
    """

    device: str
    drive: Drive
    image: Image
    serial: str = ""
    confirmed_serial: str = ""


@dataclass(frozen=True)
class Refusal:
    """What speaks against it, and what to do about that."""

    reason: str
    to_do: str


@dataclass(frozen=True)
class ReflashPlan:
    """What a reflash would write."""

    device: str
    drive: str
    drive_serial: str
    image: str
    root_sha256: str
    refusals: tuple[Refusal, ...]
    blocks: int
    same_blocks: int
    write_blocks: int
    write_bytes: int
    zero_blocks: int
    zero_bytes: int
    scan_seconds: float
    expected_seconds: float
    """Of writing (at half the speed that the drive was read with) and reading it all again."""


@dataclass(frozen=True)
class Flashed:
    """The report of a reflash."""

    plan: ReflashPlan
    written_bytes: int
    zeroed_bytes: int
    checks: tuple[Checked, ...]
    note: str
    started_at: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether all that was looked at afterwards is sound."""
        return all(c.ok for c in self.checks)

    @property
    def markdown(self) -> str:
        """For people."""
        plan = self.plan
        lines = [
            f"# Reflash of {plan.device}: {'done' if self.ok else 'DONE, BUT NOT SOUND'}",
            "",
            f"- image **{plan.image}**, root `{plan.root_sha256}`",
            f"- drive {plan.drive}, serial number {plan.drive_serial or 'unknown'}",
            f"- begun {self.started_at}, {self.seconds:.1f} s (expected {plan.expected_seconds:.0f} s)",
            f"- {plan.same_blocks:,} of {plan.blocks:,} blocks were right already; written {self.written_bytes / 1e6:.1f} MB, "
            f"zeroed {self.zeroed_bytes / 1e6:.1f} MB",
            "",
            "| what | | found |",
            "|---|---|---|",
            *(f"| {c.what} | {'ok' if c.ok else '**wrong**'} | {c.found.replace('|', '/')} |" for c in self.checks),
            *(["", self.note] if self.note else []),
        ]
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """For programs."""
        return json.dumps({"ok": self.ok, **asdict(self)}, indent=2) + "\n"

    def save(self, folder: Path) -> Path:
        """Keep it as JSON and Markdown; returns the path of the latter."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{self.plan.device}-{self.started_at.replace(':', '').replace('-', '')[:15]}"
        write_whole(folder / f"{stem}.json", self.to_json().encode())
        write_whole(folder / f"{stem}.md", self.markdown.encode())
        return folder / f"{stem}.md"


# --- deciding


def refusals(image: Image, facts: DriveFacts, serial: str = "", confirmed_serial: str = "") -> tuple[Refusal, ...]:
    """What speaks against writing an image to a drive.

    Args:
        image, facts: what, and where.
        serial, confirmed_serial: see Reflash.
    """
    return tuple(_refusals(image, facts, serial, confirmed_serial))


def _refusals(image: Image, facts: DriveFacts, serial: str, confirmed_serial: str) -> Iterator[Refusal]:
    record, board = image.record, image.record.board
    if image.revoked:
        yield Refusal(f"image {image.id} was revoked: {image.revoked}", "choose another image: akidb-pipelines images list")
    if not record.mode.is_sound:
        yield Refusal(f"image {image.id} was captured live: {record.mode_reason}", "choose one that was captured frozen or offline")
    if facts.mounts or facts.in_use:
        where = ", ".join(m.path for m in facts.mounts) or "where it cannot be seen from here"
        yield Refusal(
            f"the drive is mounted or in use: {where}",
            "unmount it, or start the board from another medium; a reflash that lost its connection lets go within ten minutes",
        )
    if facts.size_bytes < record.size_bytes:
        yield Refusal(
            f"the drive has {facts.size_bytes:,} bytes, the image {record.size_bytes:,}", "put in a drive that is no smaller"
        )
    if board.spec and board.spec != facts.board_spec:
        yield Refusal(
            f"the image is of board {board.spec}, this is {facts.board_spec or 'a board that does not say'}",
            "an image starts on the board that it was taken from only: choose one of this board",
        )
    found = facts.drive_serial
    if confirmed_serial and confirmed_serial != (found or NO_SERIAL):
        yield Refusal(
            f"serial number {confirmed_serial} was confirmed, the drive's is {found or 'none'}", "look again which drive is meant"
        )
    elif not confirmed_serial:
        for owner, expected in (("the inventory says", serial), ("the image was taken from", board.drive_serial)):
            if expected and expected != found:
                yield Refusal(
                    f"the drive's serial number is {found or 'none'}, {owner} {expected}",
                    f"if this drive is meant all the same, confirm it: --serial {found or NO_SERIAL}",
                )


def plan(library: Library, reflash: Reflash, report: Report = lambda _: None) -> ReflashPlan:
    """Compare a drive with an image; writes nothing.

    Raises:
        IntegrityError: the image is not whole.
        OutsideError: the drive or the store fails.
    """
    return _planned(library, reflash, report)[0]


def _planned(library: Library, reflash: Reflash, report: Report) -> tuple[ReflashPlan, Content, NDArray[np.int64]]:
    image, drive = reflash.image, reflash.drive
    facts = drive.facts()
    against = refusals(image, facts, reflash.serial, reflash.confirmed_serial)
    content = content_of(library, image)
    content.expect_whole()
    begun = perf_counter()
    numbers = differing(drive, content, report)
    seconds = perf_counter() - begun
    zero = content.rows[numbers] < 0
    lengths = np.full(len(content.rows), BLOCK_BYTES, np.int64)
    lengths[-1] = content.length(len(lengths) - 1)
    write_bytes, zero_bytes = int(lengths[numbers[~zero]].sum()), int(lengths[numbers[zero]].sum())
    rate = facts.size_bytes / max(seconds, 0.001)
    planned = ReflashPlan(
        device=reflash.device,
        drive=drive.name,
        drive_serial=facts.drive_serial,
        image=image.id,
        root_sha256=image.root_sha256,
        refusals=against,
        blocks=len(content.rows),
        same_blocks=len(content.rows) - len(numbers),
        write_blocks=int((~zero).sum()),
        write_bytes=write_bytes,
        zero_blocks=int(zero.sum()),
        zero_bytes=zero_bytes,
        scan_seconds=round(seconds, 2),
        expected_seconds=round((write_bytes + zero_bytes) / (rate * _WRITING) + seconds, 1),
    )
    return planned, content, numbers


# --- doing


def reflash(library: Library, what: Reflash, report: Report = lambda _: None, run_id: str = "") -> Flashed:
    """Make a drive hold an image, and prove it; whether it does, the report says.

    Raises:
        CheckError: something speaks against it; nothing was written.
        IntegrityError: the image is not whole.
        BusyError: somebody else captures or reflashes the device.
        OutsideError: the drive, the way to it or the store fails. Run it again: it writes the rest.
    """
    begun, started_at = perf_counter(), datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    with library.working_on(what.device, f"reflashing {what.device}", run_id) as held:
        planned, content, numbers = _planned(library, what, report)
        if planned.refusals:
            raise refused(planned)
        held.check()
        written = what.drive.write(in_safe_order(content, numbers, report)) if len(numbers) else Written(0, 0)
        left = differing(what.drive, content, report, "reading all of it again")
        report(Progress("checking partitions and file systems"))
        record = what.image.record
        checks = (_read_again(planned, left), *(what.drive.check(record.partitions) if record.partitions else ()))
        larger = what.drive.facts().size_bytes > record.size_bytes
    note = (
        "The drive is larger than the image: `sfdisk --relocate gpt-bak-std` moves the spare partition table to its end."
        if larger
        else ""
    )
    return Flashed(planned, written.written_bytes, written.zeroed_bytes, checks, note, started_at, round(perf_counter() - begun, 2))


def _read_again(planned: ReflashPlan, left: NDArray[np.int64]) -> Checked:
    """What reading all of the drive again found."""
    if not len(left):
        return Checked("all blocks", ok=True, found=f"{planned.blocks:,} read again, each as the image has it")
    told = f"{len(left)} are not what was written, the first at byte {int(left[0]) * BLOCK_BYTES}: the drive is failing, replace it"
    return Checked("all blocks", ok=False, found=told)


def refused(planned: ReflashPlan) -> CheckError:
    """What to tell of a plan that something speaks against."""
    told = "".join(f"\n    - {r.reason}" for r in planned.refusals)
    return CheckError(
        f"{planned.device} is not reflashed with {planned.image}; nothing was written:{told}",
        hint="; ".join(dict.fromkeys(r.to_do for r in planned.refusals)),
    )
