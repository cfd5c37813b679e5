"""Dagster resources: settings in, library objects out. Opened when a step first asks, so that loading definitions touches nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from akidb_pipelines.fixtures.build import Report
from akidb_pipelines.fixtures.weekly import Workshop, open_workshop
from akidb_pipelines.settings import Settings


class FixtureTools:
    """What the fixture assets need.

    Args:
        settings: read once by the composition root.
        progress: given a title, returns what is told the progress; None leaves it to log lines.
    """

    def __init__(self, settings: Settings, progress: Callable[[str], Report] | None = None) -> None:
        self.settings = settings
        self.progress = progress

    @cached_property
    def workshop(self) -> Workshop:
        """Sandbox, migrations, store and catalog, opened once a process."""
        return open_workshop(self.settings)
