"""The monthly job without its scheduler: capture a device, judge the image, make it golden; and reflash one.

Checks of an image are written to the catalog under its root; promoting asks the catalog whether the checks of that very image passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from akidb_pipelines.catalog.catalog import Catalog, CataloguedImage, CheckOutcome
from akidb_pipelines.cedar.sandbox import Sandbox, load_sandbox
from akidb_pipelines.errors import CheckError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.images.capture import Captured, CaptureRequest, capture
from akidb_pipelines.images.checklist import BLOCKING_CHECKS, CHECKS
from akidb_pipelines.images.checks import check_digests, check_filesystem, check_increment, check_mode, check_restore_sample
from akidb_pipelines.images.drives import Drive, LocalDrive
from akidb_pipelines.images.image import Image
from akidb_pipelines.images.library import Library, open_library
from akidb_pipelines.images.reflash import Flashed, Reflash, ReflashPlan, plan, reflash
from akidb_pipelines.images.remote import RemoteDrive
from akidb_pipelines.machines.inventory import Device, Inventory
from akidb_pipelines.machines.ssh import Connection, parse_source
from akidb_pipelines.periods import Month
from akidb_pipelines.progress import Report
from akidb_pipelines.quality.catalogue import ENGINES, run_catalogue_checks
from akidb_pipelines.quality.result import CheckReport
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.index import GOLDEN

_ENTITY = "JetsonImage"


@dataclass(frozen=True)
class Studio:
    """What images are made and used with.

    Args:
        library: all images.
        catalog: what is known of them.
        sandbox: what that is held to.
        scratch: folder for temporary files.
        reports: folder where reports of reflashes are kept.
    """

    library: Library
    catalog: Catalog
    sandbox: Sandbox
    scratch: Path
    reports: Path

    # --- capture

    def capture(self, drive: Drive, request: CaptureRequest, report: Report = lambda _: None) -> Captured:
        """Capture a drive, and tell the catalog. See capture.capture."""
        with closing(drive):
            captured = capture(self.library, drive, request, report)
        self.record(request.name)
        return captured

    def record(self, name: str) -> None:
        """Tell the catalog what images there are of a name."""
        self.catalog.record_images(name, [_catalogued(image) for image in self.library.images(name)])

    # --- checks

    def run_checks(
        self, image: Image, names: Iterable[str] = CHECKS, report: Callable[[str], Report] = lambda _: lambda _: None
    ) -> Iterator[CheckReport]:
        """Run checks on an image, and keep each outcome in the catalog.

        Args:
            image: which.
            names: of CHECKS.
            report: given a check's name, returns what is told its progress.

        Raises:
            IntegrityError: the image cannot be read.
        """
        wanted = tuple(names)
        with scratch_folder(self.scratch) as folder:
            for found in self._reports(image, wanted, folder, report):
                blocking = found.check in BLOCKING_CHECKS
                self.catalog.record_check(
                    image.root_sha256,
                    CheckOutcome(found.check, not found.holds_back, blocking, len(found.results), found.summary, found.seconds),
                )
                yield found

    def _reports(
        self, image: Image, names: tuple[str, ...], folder: Path, report: Callable[[str], Report]
    ) -> Iterator[CheckReport]:
        library = self.library
        if "mode" in names:
            yield check_mode(image)
        if "digests" in names:
            yield check_digests(library, image)
        if "restore_sample" in names:
            yield check_restore_sample(library, image, report("restore_sample"))
        if "filesystem" in names:
            yield check_filesystem(library, image, folder, report("filesystem"))
        if "increment" in names:
            yield check_increment(image, [i for i in library.images(image.record.name) if i.version < image.version])
        if engines := tuple(n for n in ENGINES if n in names):
            self.record(image.record.name)
            yield from run_catalogue_checks(self.catalog, self.sandbox, _ENTITY, engines, folder)

    # --- golden

    def promote(self, image: Image, reason: str) -> Image:
        """Make an image golden if it was captured frozen or offline and its blocking checks passed.

        Raises:
            CheckError: it was not, a check failed, or was not run.
            InputError: it is revoked, or older than the golden one.
        """
        failed, missing = self.catalog.objections(image.root_sha256, BLOCKING_CHECKS)
        if failed or missing:
            hint = f"akidb-pipelines images check {image.id}" if not failed else "capture the device again; the golden image stays"
            raise CheckError(f"{image.id} does not become golden: {'; '.join(failed + missing)}", hint=hint)
        promoted = self.library.promote(image, reason)
        self.record(image.record.name)
        return promoted

    def revoke(self, image: Image, reason: str) -> Image:
        """Withdraw an image: nothing is reflashed with it any more; `golden` goes back to where it pointed before."""
        revoked = self.library.revoke(image, reason)
        self.record(image.record.name)
        return revoked

    # --- reflash

    def plan(self, what: Reflash, report: Report = lambda _: None) -> ReflashPlan:
        """What a reflash would write. See reflash.plan."""
        with closing(what.drive):
            return plan(self.library, what, report)

    def reflash(self, what: Reflash, report: Report = lambda _: None, run_id: str = "") -> tuple[Flashed, Path]:
        """Make a drive hold an image; returns the report and where it is kept. See reflash.reflash."""
        with closing(what.drive):
            done = reflash(self.library, what, report, run_id)
        return done, done.save(self.reports)


def _catalogued(image: Image) -> CataloguedImage:
    record = image.record
    return CataloguedImage(
        image_id=image.id,
        name=record.name,
        period=record.period,
        revision=image.revision,
        root_sha256=image.root_sha256,
        digests_sha256=record.digests_sha256,
        parent_id=record.parent or None,
        mode=record.mode.value,
        state=image.state,
        board_spec=record.board.spec or None,
        l4t_release=record.board.l4t_release or None,
        drive_serial=record.board.drive_serial or None,
        size_bytes=record.size_bytes,
        new_bytes=record.counts.new_bytes,
        stored_bytes=record.counts.stored_bytes,
        changed_blocks=record.counts.changed_blocks,
        captured_at=record.finished_at,
    )


# --- what a person names, as what the library takes


def device_drive(inventory: Inventory, device: Device) -> RemoteDrive:
    """The drive of a device of the inventory."""
    return RemoteDrive(Connection(device.host, inventory.hosts), device.drive, device.facts_root)


def device_request(device: Device, name: str, period: Month, run_id: str = "") -> CaptureRequest:
    """How a device of the inventory is captured."""
    return CaptureRequest(
        name=name,
        period=period,
        device=device.name,
        serial=device.serial,
        freeze_mounts=device.freeze_mounts,
        readonly_mounts=device.readonly_mounts,
        freeze_seconds=device.freeze_seconds,
        qspi=device.qspi,
        run_id=run_id,
    )


def source_drive(source: str) -> Drive:
    """A drive by its path on this machine, or by `ssh://USER@HOST:PORT/dev/...`.

    Raises:
        InputError: there is no such file, or it is not written so.
    """
    if source.startswith("ssh://"):
        connection, path = parse_source(source)
        return RemoteDrive(connection, path)
    return LocalDrive(Path(source))


def device_reflash(studio: Studio, inventory: Inventory, device: Device, image: str, serial: str = "") -> Reflash:
    """How a device of the inventory is reflashed.

    Args:
        studio: has the images.
        inventory, device: where.
        image: `golden` means the golden image of the device's own name; else see ImageRef.
        serial: of the drive that is meant, confirmed by somebody who looked.

    Raises:
        InputError: there is no such image.
    """
    found = studio.library.find(f"{device.name}@{GOLDEN}" if image == GOLDEN else image)
    return Reflash(device.name, device_drive(inventory, device), found, device.serial, serial)


def open_studio(settings: Settings) -> Studio:
    """The studio that settings describe.

    Raises:
        InputError: the store's URL, the sandbox or the catalog's URL is unusable.
        OutsideError: the catalog cannot be opened.
    """
    return Studio(
        library=open_library(settings),
        catalog=Catalog(settings.catalog_url),
        sandbox=load_sandbox(settings.cedar_sandbox),
        scratch=settings.home / "tmp",
        reports=settings.home / "reports" / "reflash",
    )
