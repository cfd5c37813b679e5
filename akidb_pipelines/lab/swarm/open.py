"""Opening the Swarm lab that settings describe: with a small AkiDB database on every node, and as the target of a drill."""

from __future__ import annotations

import shutil
from pathlib import Path

import apsw

from akidb_pipelines import __version__
from akidb_pipelines.backups.sources import Database
from akidb_pipelines.backups.sqlite import CANARY_TABLE
from akidb_pipelines.backups.terraform import NAME, State, parse_state, read_source
from akidb_pipelines.cedar.sandbox import load_sandbox
from akidb_pipelines.drills.journal import Cabinet
from akidb_pipelines.errors import OutsideError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.fixtures.build import build_fixture
from akidb_pipelines.fixtures.migrations import load_migrations
from akidb_pipelines.fixtures.profiles import profile_named
from akidb_pipelines.fixtures.world import Request
from akidb_pipelines.lab.swarm.lab import NODES, SwarmLab
from akidb_pipelines.lab.swarm.target import LabTarget
from akidb_pipelines.periods import FIRST_WEEK
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.settings import Settings

_PROFILE = "ci"
_TEMPORARY = "temporary"
"""Beside the lab's state while it lasts for one drill only; `down` removes it with the rest."""


def open_swarm(settings: Settings) -> SwarmLab:
    """The lab, up or not."""
    return SwarmLab(settings.home / "lab" / "swarm", settings.lab_docker_host, settings.lab_heartbeat_s)


def bring_up(settings: Settings, report: Report = lambda _: None) -> SwarmLab:
    """The lab, up.

    Raises:
        OutsideError: there is no Docker engine, a program or room is missing.
    """
    lab = open_swarm(settings)
    with Cabinet(settings.home / "drills").only_one():  # a drill that is under way has good reason to miss a node
        if not lab.running():
            lab.up(lambda: seed_database(settings, report), report)
        (lab.folder / _TEMPORARY).unlink(missing_ok=True)  # somebody asked for it: it stays
    return lab


def open_lab_target(settings: Settings, report: Report = lambda _: None) -> LabTarget:
    """The lab as a target: the one that runs, or one that is made for this drill and goes with it.

    Raises:
        OutsideError: see bring_up.
    """
    lab = open_swarm(settings)
    mark = lab.folder / _TEMPORARY
    if not lab.swarm_is_made():
        mark.parent.mkdir(parents=True, exist_ok=True)
        try:
            lab.up(lambda: seed_database(settings, report), report, mark=mark)
        except BaseException:
            lab.down()
            raise
    return LabTarget(lab, temporary=mark.exists())


def running_lab_target(settings: Settings) -> LabTarget | None:
    """The lab as a target if it stands; one that misses a node stands, too. None where there is none."""
    lab = open_swarm(settings)
    return LabTarget(lab) if lab.swarm_is_made() else None


def sweep_temporary(settings: Settings) -> None:
    """Take down a lab that was made for one drill and outlived it."""
    lab = open_swarm(settings)
    if (lab.folder / _TEMPORARY).exists():
        lab.down()


def lab_databases(settings: Settings) -> list[Database]:
    """The databases of a lab that is up; none where it is not."""
    lab = open_swarm(settings)
    if not lab.running():
        return []
    target = LabTarget(lab)
    return [target.database(name) for name in NODES]


def terraform_states(settings: Settings) -> dict[str, State]:
    """Terraform's state that settings name, and that of a lab that is up, by environment.

    Raises:
        InputError, IntegrityError, OutsideError: see read_source.
    """
    found = {}
    if state := read_source(settings):
        found[NAME] = state
    lab = open_swarm(settings)
    if lab.swarm_is_made():
        target = LabTarget(lab)
        path = target.terraform_state()
        found[target.environment] = parse_state(path.read_bytes(), str(path))
    return found


def seed_database(settings: Settings, report: Report = lambda _: None) -> Path:
    """What every node begins with: the fixture of profile ci with a canary, built once for each version of this project.

    Raises:
        OutsideError: there is no room.
    """
    path = settings.cache / f"lab-staging-{__version__}.db"
    if path.exists():
        return path
    report(Progress("lab: building a database to begin with"))
    sandbox, migrations = load_sandbox(), load_migrations()
    with scratch_folder(settings.home / "tmp") as folder:
        built = build_fixture(Request(FIRST_WEEK, profile_named(_PROFILE), 2025), sandbox, migrations, folder)
        source = built.database
        db = apsw.Connection(str(source))
        try:
            db.execute(f"CREATE TABLE {CANARY_TABLE} (sequence INTEGER PRIMARY KEY, written_at TEXT NOT NULL) STRICT")
        finally:
            db.close()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            shutil.copyfile(source, part)
            part.replace(path)
        except OSError as error:
            raise OutsideError(f"lab: {path}: {error}", hint="free some space, or point AKIDB_HOME elsewhere") from error
    return path
