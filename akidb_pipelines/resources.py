"""Dagster resources: settings in, library objects out.

The workshop is opened when a step asks, and its modules load only then: a code location must come up fast. It is opened anew each time,
because a code server lives for weeks and the sandbox is exactly what changes meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from akidb_pipelines.progress import Report
from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    from akidb_pipelines.fixtures.weekly import Workshop
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
