"""The Dagster instance of one machine: where DAGSTER_HOME is, and its first configuration."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.settings import Settings

_SOURCES = (Path(__file__).parent.parent / "dagster.yaml", Path(__file__).parent / "dagster.yaml")
"""In a checkout beside the package; in a wheel inside it."""
_WORKSPACES = tuple(source.with_name("workspace.yaml") for source in _SOURCES)


def workspace_file() -> Path:
    """The workspace that loads this project's code: of a checkout, or of the wheel."""
    return next((w for w in _WORKSPACES if w.is_file()), _WORKSPACES[0])


def dagster_home(settings: Settings) -> Path:
    """DAGSTER_HOME; default `$AKIDB_HOME/dagster`."""
    return Path(os.environ.get("DAGSTER_HOME") or settings.home / "dagster").expanduser().absolute()


def prepare_dagster_home(settings: Settings) -> Path:
    """Set DAGSTER_HOME, and give it the one-machine configuration unless it has one.

    Raises:
        OutsideError: the folder cannot be written.
    """
    home = dagster_home(settings)
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "dagster.yaml").exists():
            shutil.copy(next(s for s in _SOURCES if s.is_file()), home / "dagster.yaml")
    except OSError as error:
        raise OutsideError(f"DAGSTER_HOME {home}: {error}", hint="point DAGSTER_HOME at a folder you may write") from error
    os.environ["DAGSTER_HOME"] = str(home)
    return home
