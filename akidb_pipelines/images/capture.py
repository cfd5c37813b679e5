"""Capturing a drive: read it, keep what no pack has, release the image.

    drive > blocks that differ > not yet in a pack? > frames > packs (and indexes) > release

The stages are `intake`'s; only the digests, 2 MB for each GB, grow with the drive. Whatever a killed capture left in packs is found by the
next one, which sends and stores only the rest.

A drive whose file systems can be frozen is read twice: once as it lives, then, frozen, only for what has changed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter

import numpy as np
import zstandard

from akidb_pipelines import __version__
from akidb_pipelines.errors import CheckError, InputError
from akidb_pipelines.images.agent.serve import VERSION
from akidb_pipelines.images.drives import DIGEST_BYTES, ZERO, Drive, DriveFacts, block_count
from akidb_pipelines.images.image import Board, Counts, Image, Mode, Record, digest_array_sha256, kind_of
from akidb_pipelines.images.intake import Intake
from akidb_pipelines.images.library import Library, same_content
from akidb_pipelines.images.packs import PACK_BYTES, Index, digests_of
from akidb_pipelines.periods import Month
from akidb_pipelines.progress import Progress, Report


@dataclass(frozen=True)
class CaptureRequest:
    """What is to be captured.

    Args:
        name, period: of the image.
        device: name of the device, if it is one of the inventory's; nobody else captures or reflashes it meanwhile.
        serial: what the drive's serial number must be; empty when it does not matter.
        freeze_mounts, readonly_mounts, freeze_seconds: see inventory.Device.
        qspi: where the copy of the device's QSPI flash is.
        run_id: of the Dagster run.
        pack_bytes: see packs.PACK_BYTES.
    """

    name: str
    period: Month
    device: str = ""
    serial: str = ""
    freeze_mounts: tuple[str, ...] = ()
    readonly_mounts: tuple[str, ...] = ()
    freeze_seconds: int = 120
    qspi: str = ""
    run_id: str = ""
    pack_bytes: int = PACK_BYTES


@dataclass(frozen=True)
class Captured:
    """What became of a capture."""

    image: Image
    created: bool
    """False when the period's newest image has the very same blocks, and was captured no less still."""
    counts: Counts
    seconds: float


def capture(library: Library, drive: Drive, request: CaptureRequest, report: Report = lambda _: None) -> Captured:
    """Capture a drive.

    Raises:
        InputError: the name, or the drive, is none.
        BusyError: it is being captured already, or packs are being swept.
        CheckError: it is another drive, or thawed before all was read.
        OutsideError: the drive, the way to it or the store fails. What was stored until then is not stored again.
    """
    kind_of(request.name)
    with library.working_on(request.device or request.name, f"capturing {request.name}", request.run_id) as held:
        work = _Capture(library, drive, request, report)
        work.run()
        held.check()  # whoever slept past the lease may have lost packs to a sweep
        return work.released()


class _Capture:
    """One capture, from its first look at the drive to the release."""

    def __init__(self, library: Library, drive: Drive, request: CaptureRequest, report: Report) -> None:
        self._library, self._drive, self._request, self._report = library, drive, request, report
        self._begun, self._started_at = perf_counter(), _now()
        self._facts = drive.facts()
        _expect_drive(drive, self._facts, request)
        self._blocks = block_count(self._facts.size_bytes)
        report(Progress("looking at what is stored"))
        self._parent = library.latest(request.name)
        self._intake = Intake(library.blocks, request.name, request.pack_bytes)
        since = datetime.fromisoformat(self._parent.published_at) if self._parent else datetime.min.replace(tzinfo=UTC)
        self._digests = self._expected([i for p, i in self._intake.known if i.image == request.name and p.stored_at >= since])
        self._frozen_seconds = 0.0

    def _parent_digests(self) -> bytearray:
        """The parent's digests, cut or filled to the drive's size; zeros without a parent."""
        fitted = bytearray(self._blocks * DIGEST_BYTES)
        if self._parent:
            digests = memoryview(self._library.digests(self._parent))[: len(fitted)]
            fitted[: len(digests)] = digests
        return fitted

    def _expected(self, unreleased: Sequence[Index]) -> bytearray:
        """What the drive is thought to hold: the parent's blocks, and over them what a capture that died has stored since (newest first).

        Whatever lies in no pack any more is left out: the drive then differs there, and it is stored anew.
        """
        expected = self._parent_digests()
        for index in reversed(unreleased):
            for entry in index.entries[index.entries["number"] < self._blocks]:
                at = int(entry["number"]) * DIGEST_BYTES
                expected[at : at + DIGEST_BYTES] = entry["digest"].tobytes()
        for number in self._intake.lost(expected).tolist():
            expected[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES] = ZERO
        return expected

    # --- reading

    def run(self) -> None:
        """Read the drive and store what is new."""
        with self._intake:
            self._read("reading")
            self.mode, self.mode_reason = self._read_still() if self._freezes else self._judged()

    @property
    def _freezes(self) -> bool:
        return bool(self._request.freeze_mounts or self._request.readonly_mounts)

    def _read(self, stage: str) -> None:
        for piece in self._drive.scan(self._digests):
            for found in piece.found:
                at = found.number * DIGEST_BYTES
                self._digests[at : at + DIGEST_BYTES] = found.digest
            self._intake.put((found.number, found.digest, found.data) for found in piece.found if found.data)
            self._report(Progress(stage, piece.position, self._facts.size_bytes, in_bytes=True))

    def _read_still(self) -> tuple[Mode, str]:
        """Freeze the file systems and read what has changed since.

        Raises:
            CheckError: they thawed before all was read.
        """
        request, drive = self._request, self._drive
        begun = perf_counter()
        drive.freeze(request.freeze_mounts, request.readonly_mounts, request.freeze_seconds)
        try:
            first = drive.facts()
            self._read("reading what changed, frozen")
            last = drive.facts()
            still = drive.thaw()
        except BaseException:
            drive.close()
            raise
        self._frozen_seconds = perf_counter() - begun
        if not still:
            raise CheckError(
                f"drive {drive.name} thawed by itself within {request.freeze_seconds} s, before all of it was read",
                hint="capture again: less has changed by now; if that does not help, raise akidb_freeze_seconds",
            )
        mounts = (*first.mounts, *last.mounts)
        quiet = {*request.freeze_mounts, *request.readonly_mounts}
        frozen = {m.device for m in mounts if m.path in request.freeze_mounts}  # wherever else it is mounted, too
        if others := sorted({m.path for m in mounts if not (m.read_only or m.path in quiet or m.device in frozen)}):
            return Mode.LIVE, f"{', '.join(others)} on it could be written while the rest was frozen"
        if first.writes != last.writes:
            return Mode.LIVE, "it was written while its file systems were frozen"
        return Mode.FROZEN, f"{', '.join(sorted(quiet))} frozen for {self._frozen_seconds:.1f} s"

    def _judged(self) -> tuple[Mode, str]:
        """How still a drive was that was not frozen."""
        before, after = self._facts, self._drive.facts()
        mounts = (*before.mounts, *after.mounts)
        if writable := sorted({m.path for m in mounts if not m.read_only}):
            return Mode.LIVE, f"mounted for writing: {', '.join(writable)}"
        if (before.in_use or after.in_use) and not mounts:
            return Mode.LIVE, "something has it in use that cannot be seen from here"
        if before.writes != after.writes:
            return Mode.LIVE, "it was written while it was read"
        return Mode.OFFLINE, "nothing had it mounted for writing, and nothing was written meanwhile"

    # --- releasing

    def released(self) -> Captured:
        """Release what was read.

        Raises:
            IntegrityError: a pack that it counts on is gone.
        """
        digests = self._digests
        self._intake.expect_packs(digests)
        counts, seconds = self._counts(), perf_counter() - self._begun
        parent = self._parent
        unchanged = parent and parent.record.period == str(self._request.period) and same_content(parent, digests)
        if parent and unchanged and (parent.record.mode.is_sound or not self.mode.is_sound):
            return Captured(parent, created=False, counts=counts, seconds=seconds)
        facts = self._facts
        record = Record(
            name=self._request.name,
            period=str(self._request.period),
            source=self._drive.name,
            size_bytes=facts.size_bytes,
            digests_sha256=digest_array_sha256(digests),
            mode=self.mode,
            mode_reason=self.mode_reason,
            parent=parent.id if parent else "",
            parent_root=parent.root_sha256 if parent else "",
            started_at=self._started_at,
            finished_at=_now(),
            seconds=round(seconds, 3),
            frozen_seconds=round(self._frozen_seconds, 3),
            counts=counts,
            board=Board(
                spec=facts.board_spec,
                model=facts.board_model,
                serial=facts.board_serial,
                l4t_release=facts.l4t_release,
                drive_model=facts.drive_model,
                drive_serial=facts.drive_serial,
                efi_entries=facts.efi_entries,
                qspi=self._request.qspi,
            ),
            partitions=facts.partitions,
            tools={"akidb_pipelines": __version__, "agent": str(VERSION), "zstandard": zstandard.__version__},
        )
        self._report(Progress("releasing"))
        return Captured(self._library.publish(record, digests, self._request.run_id), True, counts, seconds)

    def _counts(self) -> Counts:
        array = digests_of(self._digests)
        return Counts(
            blocks=self._blocks,
            zero_blocks=int((array == np.void(ZERO)).sum()),
            changed_blocks=int((array != digests_of(self._parent_digests())).sum()),
            read_bytes=self._drive.read_bytes,
            new_bytes=self._intake.new_bytes,
            stored_bytes=self._intake.stored_bytes,
            sent_bytes=self._drive.sent_bytes,
        )


def _expect_drive(drive: Drive, facts: DriveFacts, request: CaptureRequest) -> None:
    if facts.size_bytes == 0:
        raise InputError(f"drive {drive.name} is empty", hint="check the path")
    if request.serial and facts.drive_serial != request.serial:
        raise CheckError(
            f"drive {drive.name} has serial number {facts.drive_serial or 'none'}, the inventory says {request.serial}",
            hint="another drive was put in, or this is another device: correct akidb_drive_serial, or the cabling",
        )
    there = {m.path for m in facts.mounts}
    if strange := [path for path in (*request.freeze_mounts, *request.readonly_mounts) if path not in there]:
        listed = ", ".join(sorted(there)) or "nothing"
        raise InputError(
            f"drive {drive.name}: {strange[0]} is to be kept still, but does not lie on it; mounted from it: {listed}",
            hint="correct akidb_freeze_mounts and akidb_readonly_mounts of the inventory",
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
