"""The weekly job without its scheduler: build a runner image, archive it, boot what was archived, put it into production.

Checks of a snapshot are written to the catalog under its root; promoting asks the catalog whether the checks of that very snapshot passed.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from akidb_pipelines.catalog.catalog import Catalog, CataloguedRunnerImage, CheckOutcome
from akidb_pipelines.cedar.sandbox import Sandbox, load_sandbox
from akidb_pipelines.errors import CheckError, InputError, IntegrityError, OutsideError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.images.drives import Drive, LocalDrive
from akidb_pipelines.images.remote import RemoteDrive
from akidb_pipelines.images.runners import probe
from akidb_pipelines.images.runners.archive import Archived, archive_disks, archive_docker
from akidb_pipelines.images.runners.build import Built, Workplace
from akidb_pipelines.images.runners.checklist import BLOCKING_CHECKS, BOOT_CHECKS, CHECKS
from akidb_pipelines.images.runners.checks import check_files_restored, check_restored, check_size, check_smoke_job, check_tools
from akidb_pipelines.images.runners.engine import Engine
from akidb_pipelines.images.runners.fleet import Runner
from akidb_pipelines.images.runners.oci_export import OciExporter
from akidb_pipelines.images.runners.restore import restore
from akidb_pipelines.images.runners.shelf import Shelf, open_shelf
from akidb_pipelines.images.runners.snapshot import Counts, Snapshot
from akidb_pipelines.machines.inventory import open_inventory
from akidb_pipelines.machines.ssh import Connection
from akidb_pipelines.periods import Week
from akidb_pipelines.progress import Report
from akidb_pipelines.quality.catalogue import ENGINES, run_catalogue_checks
from akidb_pipelines.quality.result import CheckReport
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.lease import Held, hold

_ENTITY = "RunnerImage"
_BOOT_SECONDS = 600
_HERE = ("127.0.0.1", "::1", "localhost")
_SMOKE = Path(__file__).parent / "smoke.sh"

Boot = Callable[[Engine, str, Mapping[str, Any]], Mapping[str, Any]]
"""Starts an image of an engine without network and returns what the probe in it says."""


@dataclass(frozen=True)
class Foundry:
    """What runner images are made and used with.

    Args:
        settings: how to sign in to OCI, and the inventory's machines.
        shelf: all snapshots.
        catalog: what is known of them.
        sandbox: what that is held to.
        workplace: where builds happen.
    """

    settings: Settings
    shelf: Shelf
    catalog: Catalog
    sandbox: Sandbox
    workplace: Workplace

    # --- build and archive

    def build(self, runner: Runner, week: Week, report: Report = lambda _: None, run_id: str = "") -> Built:
        """Build a runner for a week. See Workplace.build.

        Raises:
            BusyError: somebody else builds, archives or boots it.
        """
        with self._at_work(runner, f"building {runner.name} {week}", run_id):
            return self.workplace.build(runner, week, report)

    def _at_work(self, runner: Runner, purpose: str, run_id: str) -> AbstractContextManager[Held]:
        """Be the only one who works on a runner: each step removes what an earlier one that was killed has left."""
        key = f"runners/leases/{runner.name}.json"
        return hold(self.shelf.library.registry.channels, purpose, run_id, key=key, patience_s=0)

    def archive(self, runner: Runner, week: Week, report: Report = lambda _: None, run_id: str = "") -> Archived:
        """Archive what was built for a week; again, and nothing was built since, it is what is archived already.

        Raises:
            InputError: nothing was built.
            BusyError, IntegrityError, OutsideError: see archive.archive_docker.
        """
        with self._at_work(runner, f"archiving {runner.name} {week}", run_id):
            try:
                built = self.workplace.load(runner.name, week)
            except InputError:
                latest = self.shelf.latest(runner.name, week.iso)
                if latest is None or latest.record.week != week.iso:
                    raise
                archived = Archived(latest, False, Counts(latest.record.counts.pieces, 0, 0, 0), 0.0)
            else:
                archived = self._archived(runner, built, report, run_id)
            self.record(runner.name)
            self.workplace.forget(runner.name, week)  # last: whoever is killed before tries again
            return archived

    def _archived(self, runner: Runner, built: Built, report: Report, run_id: str) -> Archived:
        if runner.builder == "docker":
            with closing(Engine(runner.docker_host)) as engine, engine.exported(built.image_id) as stream:
                return archive_docker(self.shelf, built, stream, report, run_id)
        if runner.builder == "oci":
            with scratch_folder(self.workplace.scratch) as folder:
                disk = folder / "disk.qcow2"
                OciExporter(self.settings, runner.oci or {}).export(built.image_id, disk, runner.timeout_seconds, report)
                return archive_disks(self.shelf, built, {disk.name: LocalDrive(disk)}, report, run_id)
        connection = Connection(runner.hosts[0], open_inventory(self.settings).hosts)
        paths = [f.replace("{machine}", built.image) for f in runner.files]
        here = runner.hosts[0].address in _HERE
        drives: dict[str, Drive] = {Path(p).name: LocalDrive(Path(p)) if here else RemoteDrive(connection, p) for p in paths}
        try:
            return archive_disks(self.shelf, built, drives, report, run_id)
        finally:
            for drive in drives.values():
                drive.close()

    def record(self, runner: str) -> None:
        """Tell the catalog what snapshots there are of a runner."""
        self.catalog.record_runner_images(runner, [_catalogued(s) for s in self.shelf.snapshots(runner)])

    # --- checks

    def run_checks(
        self,
        runner: Runner,
        snapshot: Snapshot,
        names: Iterable[str] = CHECKS,
        report: Report = lambda _: None,
        boot: Boot | None = None,
        run_id: str = "",
    ) -> Iterator[CheckReport]:
        """Run checks on a snapshot, and keep each outcome in the catalog.

        Args:
            runner: whose snapshot it is.
            snapshot: which.
            names: of CHECKS.
            report: told the progress.
            boot: how a Docker image is started; default: by the engine.
            run_id: of the Dagster run.

        Raises:
            BusyError: somebody builds, archives or boots this runner.
            IntegrityError: the snapshot does not come back as it was.
            OutsideError: the engine fails.
        """
        wanted = tuple(names)
        with self._at_work(runner, f"checking {snapshot.id}", run_id), scratch_folder(self.workplace.scratch) as folder:
            try:
                for found in self._reports(runner, snapshot, wanted, folder, report, boot):
                    if found.check in wanted:
                        self._keep(snapshot, found.check, not found.holds_back, len(found.results), found.summary, found.seconds)
                        yield found
            except IntegrityError as error:
                # It may have passed once; what cannot be restored any more is not promoted.
                self._keep(snapshot, "restored", False, 1, error.message, 0.0)
                raise

    def _keep(self, snapshot: Snapshot, check: str, passed: bool, rules: int, summary: str, seconds: float) -> None:
        outcome = CheckOutcome(check, passed, check in BLOCKING_CHECKS, rules, summary, seconds)
        self.catalog.record_check(snapshot.root_sha256, outcome)

    def _reports(
        self, runner: Runner, snapshot: Snapshot, names: tuple[str, ...], folder: Path, report: Report, boot: Boot | None
    ) -> Iterator[CheckReport]:
        if {"restored", *BOOT_CHECKS} & set(names):
            if runner.builder == "docker":
                yield from self._booted(runner, snapshot, names, folder, report, boot)
            else:
                yield from self._booted_machine(runner, snapshot, names, folder, report)
        if "size" in names:
            yield check_size(snapshot, [s for s in self.shelf.snapshots(runner.name) if s.version < snapshot.version])
        if engines := tuple(n for n in ENGINES if n in names):
            self.record(runner.name)
            yield from run_catalogue_checks(self.catalog, self.sandbox, _ENTITY, engines, folder)

    def _booted(
        self, runner: Runner, snapshot: Snapshot, names: tuple[str, ...], folder: Path, report: Report, boot: Boot | None
    ) -> Iterator[CheckReport]:
        """What was archived, and nothing else: the engine's own copy goes first."""
        started = perf_counter()
        with closing(Engine(runner.docker_host)) as engine, self._loaded(engine, snapshot, folder, report) as loaded:
            yield check_restored(snapshot, loaded, engine.layers(loaded), perf_counter() - started)
            if set(BOOT_CHECKS) & set(names):
                request = boot_request(runner)
                started = perf_counter()
                found = boot(engine, loaded, request) if boot else engine.probe(loaded, request, runner.name, _BOOT_SECONDS)
                yield check_tools(found, perf_counter() - started, alone=True)
                yield check_smoke_job(found)

    @contextmanager
    def _loaded(self, engine: Engine, snapshot: Snapshot, folder: Path, report: Report) -> Iterator[str]:
        archive = folder / "image.tar"
        restore(self.shelf, snapshot, archive, replace=True, report=report)
        names = engine.names(snapshot.record.image_id)  # somebody may have loaded it here for use
        engine.remove(snapshot.record.image_id)
        try:
            loaded = engine.load(archive)
            archive.unlink()
            yield loaded
        finally:
            if names:
                engine.name(snapshot.record.image_id, names)
            else:
                engine.remove(snapshot.record.image_id)

    def _booted_machine(
        self, runner: Runner, snapshot: Snapshot, names: tuple[str, ...], folder: Path, report: Report
    ) -> Iterator[CheckReport]:
        """A virtual machine: whoever runs this has a command that boots it."""
        files = folder / "machine"
        done = restore(self.shelf, snapshot, files, report=report)
        yield check_files_restored(snapshot, done.seconds)
        if set(BOOT_CHECKS) & set(names):
            started = perf_counter()
            found = _boot_machine(runner, files)
            yield check_tools(found, perf_counter() - started, alone=False)
            yield check_smoke_job(found)

    # --- production

    def promote(self, snapshot: Snapshot, reason: str) -> Snapshot:
        """Put a snapshot into production if its blocking checks passed.

        Raises:
            CheckError: one did not, or was not run.
            InputError: it is revoked, or older than what is in production.
        """
        failed, missing = self.catalog.objections(snapshot.root_sha256, BLOCKING_CHECKS)
        if failed or missing:
            hint = (
                f"akidb-pipelines runners verify {snapshot.id}"
                if not failed
                else "build the runner again; production stays as it is"
            )
            raise CheckError(f"{snapshot.id} does not go into production: {'; '.join(failed + missing)}", hint=hint)
        promoted = self.shelf.promote(snapshot, reason)
        self.record(snapshot.record.runner)
        return promoted

    def revoke(self, snapshot: Snapshot, reason: str) -> list[Snapshot]:
        """Withdraw a snapshot and all that was built on it. See Shelf.revoke."""
        gone = self.shelf.revoke(snapshot, reason)
        for runner in {s.record.runner for s in gone}:
            self.record(runner)
        return gone


def boot_request(runner: Runner) -> dict[str, Any]:
    """What the probe is asked in a restored image: every tool, and a CI job."""
    job = (runner.smoke or _SMOKE).read_text(encoding="utf-8")
    return {"tools": [asdict(tool) for tool in runner.tools], "smoke": job}


def _boot_machine(runner: Runner, files: Path) -> dict[str, Any]:
    """Run the command that boots a machine's files and prints what the probe in it says.

    Raises:
        OutsideError: there is none, it fails, or prints something else.
    """
    if not runner.boot_command:
        raise OutsideError(
            f"runner {runner.name}: not configured how a restored machine is booted",
            hint="set akidb_runner_boot_command; docs/runner-images.md has what it gets and must print",
        )
    environment = {**os.environ, "AKIDB_IMAGE": str(files), "AKIDB_PROBE": probe.__file__}
    try:
        done = subprocess.run(
            ["sh", "-c", runner.boot_command],
            input=json.dumps(boot_request(runner)),
            capture_output=True,
            text=True,
            check=True,
            timeout=runner.timeout_seconds,
            env=environment,
        )
        return dict(json.loads(done.stdout))
    except subprocess.CalledProcessError as error:
        found = f"ended with {error.returncode}: {error.stderr.strip()[-500:]}"
    except subprocess.TimeoutExpired:
        found = f"did not end within {runner.timeout_seconds} s"
    except ValueError as error:
        found = f"did not print what the probe says: {error}"
    raise OutsideError(f"runner {runner.name}: its boot command {found}", hint="run it by hand: see docs/runner-images.md")


def _catalogued(snapshot: Snapshot) -> CataloguedRunnerImage:
    record = snapshot.record
    return CataloguedRunnerImage(
        snapshot_id=snapshot.id,
        runner=record.runner,
        week=record.week,
        revision=snapshot.revision,
        root_sha256=snapshot.root_sha256,
        digests_sha256=record.digests_sha256,
        template_sha256=record.template_sha256,
        builder=record.builder,
        state=snapshot.state,
        image_id=record.image_id,
        architecture=record.architecture,
        tools=tuple(f"{name}={version}" for name, version in sorted(record.tools.items())),
        built_on=record.built_on or None,
        size_bytes=record.size_bytes,
        new_bytes=record.counts.new_bytes,
        stored_bytes=record.counts.stored_bytes,
        archived_at=record.finished_at,
    )


def open_foundry(settings: Settings) -> Foundry:
    """The foundry that settings describe.

    Raises:
        InputError: the store's URL, the sandbox or the catalog's URL is unusable.
        OutsideError: the catalog cannot be opened.
    """
    return Foundry(
        settings=settings,
        shelf=open_shelf(settings),
        catalog=Catalog(settings.catalog_url),
        sandbox=load_sandbox(settings.cedar_sandbox),
        workplace=Workplace(settings.builds / "runners", settings.home / "tmp", settings.deploy),
    )
