"""Dagster resources: settings in, library objects out.

The workshop is opened when a step asks, and its modules load only then: a code location must come up fast. It is opened anew each time,
because a code server lives for weeks and the sandbox is exactly what changes meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from akidb_pipelines.progress import Report
from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from akidb_pipelines.backups.dashboards import Exported
    from akidb_pipelines.backups.depot import Depot
    from akidb_pipelines.backups.sources import Database
    from akidb_pipelines.backups.terraform import State, StateShelf
    from akidb_pipelines.costs.arrivals import Imported
    from akidb_pipelines.costs.ledger import Ledger
    from akidb_pipelines.costs.oci_usage import OciUsage
    from akidb_pipelines.costs.review import Review
    from akidb_pipelines.drills.desk import Desk
    from akidb_pipelines.drills.journal import Cabinet
    from akidb_pipelines.fixtures.weekly import Workshop
    from akidb_pipelines.health.observability import Finding
    from akidb_pipelines.health.staging import StagingHealth
    from akidb_pipelines.images.capture import Captured
    from akidb_pipelines.images.prune import Pruned
    from akidb_pipelines.images.reflash import Flashed, ReflashPlan
    from akidb_pipelines.images.runners.capacity import Capacity
    from akidb_pipelines.images.runners.difference import Difference
    from akidb_pipelines.images.runners.fleet import Runner
    from akidb_pipelines.images.runners.foundry import Foundry
    from akidb_pipelines.images.runners.snapshot import Snapshot
    from akidb_pipelines.images.studio import Studio
    from akidb_pipelines.periods import Month
    from akidb_pipelines.quality.result import CheckReport
    from akidb_pipelines.store.report import RegistryReport
    from akidb_pipelines.store.retention import Plan


class FixtureTools:
    """What the fixture assets need.

    Args:
        settings: read once by the composition root.
        progress: given a title, returns what is told the progress; None leaves it to log lines.
    """

    def __init__(self, settings: Settings, progress: Callable[[str], Report] | None = None) -> None:
        self.settings = settings
        self.progress = progress

    def open_workshop(self) -> Workshop:
        """Sandbox, migrations, store and catalog, as they are now."""
        from akidb_pipelines.fixtures.weekly import open_workshop

        return open_workshop(self.settings)


class RegistryTools:
    """What the registry assets need.

    Args:
        settings: read once by the composition root.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def examine(self) -> RegistryReport:
        """The registry at a glance, as it is now."""
        from akidb_pipelines.store.registry import open_registry
        from akidb_pipelines.store.report import examine

        return examine(open_registry(self.settings), datetime.now(UTC))

    def collect(self, *, dry_run: bool, report: Callable[[str], None]) -> Plan:
        """Collect garbage."""
        from akidb_pipelines.store.publisher import open_publisher
        from akidb_pipelines.store.retention import collect

        return collect(open_publisher(self.settings), dry_run=dry_run, report=report)


class ImageTools:
    """What the assets of Jetson images need.

    Args:
        settings: read once by the composition root.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def open_studio(self) -> Studio:
        """Images, catalog and sandbox, as they are now."""
        from akidb_pipelines.images.studio import open_studio

        return open_studio(self.settings)

    def capture(self, device: str, month: Month, run_id: str, report: Report) -> Captured:
        """Capture a device under its own name."""
        from akidb_pipelines.images.studio import device_drive, device_request
        from akidb_pipelines.machines.inventory import open_inventory

        inventory = open_inventory(self.settings)
        known = inventory.device(device)
        request = device_request(known, device, month, run_id)
        return self.open_studio().capture(device_drive(inventory, known), request, report)

    def dedupe_ratio(self, name: str) -> float:
        """How much larger all images of a name are than what they took in the store."""
        records = [image.record for image in self.open_studio().library.images(name)]
        return round(sum(r.used_bytes for r in records) / max(sum(r.counts.stored_bytes for r in records), 1), 2)

    def plan(self, device: str, image: str, serial: str, report: Report) -> ReflashPlan:
        """What a reflash would write."""
        from akidb_pipelines.images.studio import device_reflash
        from akidb_pipelines.machines.inventory import open_inventory

        inventory, studio = open_inventory(self.settings), self.open_studio()
        return studio.plan(device_reflash(studio, inventory, inventory.device(device), image, serial), report)

    def reflash(self, device: str, image: str, serial: str, report: Report, run_id: str) -> tuple[Flashed, Path]:
        """Write an image onto a device."""
        from akidb_pipelines.images.studio import device_reflash
        from akidb_pipelines.machines.inventory import open_inventory

        inventory, studio = open_inventory(self.settings), self.open_studio()
        return studio.reflash(device_reflash(studio, inventory, inventory.device(device), image, serial), report, run_id)

    def prune(self, *, dry_run: bool, report: Report) -> Pruned:
        """Sweep packs."""
        from akidb_pipelines.images.library import open_library
        from akidb_pipelines.images.prune import prune

        return prune(open_library(self.settings), dry_run=dry_run, report=report)


class RunnerTools:
    """What the assets of CI runner images need.

    Args:
        settings: read once by the composition root.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def open_foundry(self) -> Foundry:
        """Snapshots, catalog and sandbox, as they are now."""
        from akidb_pipelines.images.runners.foundry import open_foundry

        return open_foundry(self.settings)

    def runner(self, name: str) -> Runner:
        """A runner of the inventory, as it is now."""
        from akidb_pipelines.images.runners.fleet import open_fleet

        return open_fleet(self.settings).runner(name)

    def difference(self, foundry: Foundry, snapshot: Snapshot) -> Difference | None:
        """What is other than in the runner's snapshot before; None for the first."""
        from akidb_pipelines.images.runners.difference import difference

        if not snapshot.record.previous:
            return None
        return difference(foundry.shelf, foundry.shelf.find(snapshot.record.previous), snapshot)

    def capacity(self) -> Capacity | None:
        """How busy the CI runners are; None when no repository is set.

        Raises:
            OutsideError: GitHub does not answer, or refuses.
        """
        from akidb_pipelines.images.runners.capacity import open_actions

        actions = open_actions(self.settings)
        return actions.capacity(self.settings.runner_jobs_baseline, self.settings.runner_jobs_burst) if actions else None


class BackupTools:
    """What the backup assets need.

    Args:
        settings: read once by the composition root.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def open_depot(self) -> Depot:
        """Dumps, catalog and sandbox, as they are now."""
        from akidb_pipelines.backups.depot import open_depot

        return open_depot(self.settings)

    def databases(self) -> list[Database]:
        """Every database that can be dumped now: the inventory's, the released fixtures, those of a lab that is up."""
        from akidb_pipelines.backups.sources import open_databases
        from akidb_pipelines.lab.swarm.open import lab_databases

        return [*open_databases(self.settings), *lab_databases(self.settings)]

    def terraform_states(self) -> dict[str, State]:
        """Terraform's states by environment."""
        from akidb_pipelines.lab.swarm.open import terraform_states

        return terraform_states(self.settings)

    def open_states(self) -> StateShelf:
        """Copies of Terraform's states."""
        from akidb_pipelines.backups.terraform import open_states

        return open_states(self.settings)

    def export_dashboards(self) -> Exported | None:
        """Export Grafana's dashboards; None when it is not configured."""
        from akidb_pipelines.backups.dashboards import export

        return export(self.settings)

    def check_backups(self) -> Iterator[CheckReport]:
        """Checks `columns` and `cedar_entities` of what the catalog says of backups."""
        from akidb_pipelines.files import scratch_folder
        from akidb_pipelines.quality.catalogue import ENGINES, run_catalogue_checks

        depot = self.open_depot()
        with scratch_folder(depot.scratch) as folder:
            yield from run_catalogue_checks(depot.catalog, depot.sandbox, "Backup", ENGINES, folder)


class CostTools:
    """What the cost assets need.

    Args:
        settings: read once by the composition root.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def open_ledger(self) -> Ledger:
        """Billing files, rollups, plan and rules, as they are now."""
        from akidb_pipelines.costs.ledger import open_ledger

        return open_ledger(self.settings)

    def take_in(self, ledger: Ledger, report: Report) -> Iterator[Imported]:
        """Take in what is new at the source that is configured, or in the lab's bill; and the price book's lines up to yesterday."""
        from akidb_pipelines.lab.billing import billing_source

        today = datetime.now(UTC).date()
        if self.settings.cost_source or ledger.sample:
            yield from ledger.take_in(billing_source(self.settings, today, report), report)
        yield from ledger.price(today)

    def review(self, month: Month | None = None) -> Review:
        """The review as of yesterday."""
        from akidb_pipelines.costs.review import draw_up

        return draw_up(self.open_ledger(), datetime.now(UTC).date(), month)

    def usage(self) -> OciUsage | None:
        """OCI's own figures to compare with, where billing files come from OCI."""
        from akidb_pipelines.costs.oci_usage import OciUsage

        scheme, _, rest = self.settings.cost_source.partition("://")
        return OciUsage(self.settings, rest.split("/")[1]) if scheme == "oci" else None


class HealthTools:
    """What the assets of health need.

    Args:
        settings: read once by the composition root.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def look_at_observability(self) -> list[Finding]:
        """Prometheus and Loki as they are now; nothing where they are not configured."""
        from akidb_pipelines.health.observability import look_at_observability

        return look_at_observability(self.settings)

    def look_at_staging(self) -> StagingHealth | None:
        """Staging as it is now: OCI's where it is described, else a lab that stands; None where there is neither."""
        from akidb_pipelines.drills.oci_staging import open_staging
        from akidb_pipelines.health.staging import look_at_staging
        from akidb_pipelines.lab.swarm.open import running_lab_target

        target = open_staging(self.settings) or running_lab_target(self.settings)
        return look_at_staging(target) if target else None


class DrillTools:
    """What the drill assets need.

    Args:
        settings: read once by the composition root.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def open_desk(self) -> Desk:
        """Drills on every target, as they are now."""
        from akidb_pipelines.lab.swarm.targets import open_drills

        return open_drills(self.settings)

    @property
    def targets(self) -> tuple[str, ...]:
        """Where drills can take place."""
        return ("lab", "oci") if self.settings.drill_allow_list else ("lab",)

    def cabinet(self) -> Cabinet:
        """Journals of drills."""
        from akidb_pipelines.drills.journal import Cabinet

        return Cabinet(self.settings.home / "drills")

    def check_reports(self) -> Iterator[CheckReport]:
        """Checks `columns` and `cedar_entities` of what the catalog says of drills."""
        from akidb_pipelines.files import scratch_folder
        from akidb_pipelines.quality.catalogue import ENGINES, run_catalogue_checks

        depot = self.open_desk().depot
        with scratch_folder(depot.scratch) as folder:
            yield from run_catalogue_checks(depot.catalog, depot.sandbox, "DrillReport", ENGINES, folder)
