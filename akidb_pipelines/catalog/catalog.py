"""Reading and writing the catalog. SQLite by default, PostgreSQL for a team; Alembic keeps either at the newest form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, delete, event, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.orm import Session

from akidb_pipelines.catalog.models import (
    BackupRow,
    Base,
    CheckRow,
    DrillReportRow,
    FindingRow,
    FixtureReleaseRow,
    JetsonImageRow,
    RunnerImageRow,
)
from akidb_pipelines.errors import InputError, OutsideError

_MIGRATIONS = Path(__file__).parent / "migrations"
_VERSION_TABLE = "alembic_version"
_MIGRATION_LOCK = 0x616B696462
"""Of PostgreSQL's advisory locks, the one that whoever migrates holds."""


@dataclass(frozen=True)
class CheckOutcome:
    """What a check said of a build."""

    check: str
    passed: bool
    blocking: bool
    rules: int
    summary: str
    seconds: float


@dataclass(frozen=True)
class CataloguedRelease:
    """A release as the catalog knows it."""

    week: str
    revision: int
    manifest_sha256: str
    cedar_sha256: str
    size_bytes: int
    profiles: tuple[str, ...]
    published_at: str = ""


@dataclass(frozen=True)
class CataloguedFinding:
    """A drift finding and the weeks it was seen in."""

    key: str
    severity: str
    kind: str
    subject: str
    expected: str
    found: str
    affected_rows: int
    affected_policies: tuple[str, ...]
    suggestion: str
    first_week: str = ""
    last_week: str = ""


@dataclass(frozen=True)
class CataloguedImage:
    """An image as the catalog knows it."""

    image_id: str
    name: str
    period: str
    revision: int
    root_sha256: str
    digests_sha256: str
    parent_id: str | None
    mode: str
    state: str
    board_spec: str | None
    l4t_release: str | None
    drive_serial: str | None
    size_bytes: int
    new_bytes: int
    stored_bytes: int
    changed_blocks: int
    captured_at: str


@dataclass(frozen=True)
class CataloguedRunnerImage:
    """A snapshot of a runner image as the catalog knows it."""

    snapshot_id: str
    runner: str
    week: str
    revision: int
    root_sha256: str
    digests_sha256: str
    template_sha256: str
    builder: str
    state: str
    image_id: str
    architecture: str
    tools: tuple[str, ...]
    built_on: str | None
    size_bytes: int
    new_bytes: int
    stored_bytes: int
    archived_at: str


@dataclass(frozen=True)
class CataloguedBackup:
    """A dump of a database as the catalog knows it."""

    backup_id: str
    database: str
    day: str
    revision: int
    record_sha256: str
    sha256: str
    size_bytes: int
    stored_bytes: int
    row_count: int
    canary: int | None
    snapshot_at: str


@dataclass(frozen=True)
class CataloguedDrill:
    """A drill as the catalog knows it."""

    drill_id: str
    quarter: str
    scenario: str
    target: str
    verdict: str
    operator: str
    dry_run: bool
    rto_target_s: int
    rpo_target_s: int
    rta_ms: int | None
    rpa_ms: int | None
    outage_ms: int | None
    rows_lost: int | None
    backup_id: str | None
    report_sha256: str
    started_at: str
    finished_at: str


class Catalog:
    """The catalog behind one URL; brought to the newest form when opened.

    Args:
        url: SQLAlchemy URL; the folder of a SQLite file is made.

    Raises:
        InputError: the URL is none.
        OutsideError: the database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            self._where = parsed.render_as_string(hide_password=True)
            if parsed.get_backend_name() == "sqlite" and parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self._engine: Engine = create_engine(parsed)
            if parsed.get_backend_name() == "sqlite":
                event.listen(self._engine, "connect", _wait_for_locks)
        except (ArgumentError, ModuleNotFoundError) as error:
            hint = "give an SQLAlchemy URL such as sqlite:////var/lib/akidb/catalog.db, and install its driver"
            raise InputError(f"AKIDB_CATALOG: {error}", hint=hint) from error
        except OSError as error:
            raise OutsideError(f"catalog {self._where}: {error}", hint="check AKIDB_CATALOG, permissions and disk") from error
        try:
            with self._telling():
                self._upgrade()
        except OutsideError:
            self.close()
            raise

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            raise OutsideError(f"catalog {self._where}: {error}", hint="check AKIDB_CATALOG, permissions and disk") from error

    def _upgrade(self) -> None:
        with self._engine.begin() as connection:
            if connection.dialect.has_table(connection, _VERSION_TABLE):
                found = connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).scalar()
                if found == _newest_migration():
                    return  # Alembic takes half a second to load, and is not needed
        self._migrate()

    def _migrate(self) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self._engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                # Two processes may open a new catalog at once: the second waits here, and finds the work done.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            known = MigrationContext.configure(connection).get_current_revision()
            if known != ScriptDirectory.from_config(config).get_current_head():
                config.attributes["connection"] = connection
                try:
                    command.upgrade(config, "head")
                except CommandError as error:
                    hint = "it was made by a newer version: upgrade akidb-pipelines"
                    raise OutsideError(f"catalog {self._where}: {error}", hint=hint) from error

    def close(self) -> None:
        """Let go of connections."""
        self._engine.dispose()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction; what the database refuses becomes an OutsideError."""
        with self._telling(), Session(self._engine) as session, session.begin():
            yield session

    def put(self, session: Session, model: type[Base], values: dict[str, Any], *, keep: bool = False) -> None:
        """Insert a row, or replace (`keep`: leave) the one of its key; two processes may do so at once."""
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        statement = insert(model).values(**values)
        keys = [column.name for column in model.__table__.primary_key]
        others = {name: statement.excluded[name] for name in values if name not in keys}
        if keep:
            session.execute(statement.on_conflict_do_nothing(index_elements=keys))
        else:
            session.execute(statement.on_conflict_do_update(index_elements=keys, set_=others))

    # --- checks

    def record_check(self, build_sha256: str, outcome: CheckOutcome) -> None:
        """Keep what a check said; a later run of the same check on the same build replaces it."""
        with self.session() as session:
            self.put(session, CheckRow, {"build_sha256": build_sha256, "checked_at": _now(), **vars(outcome)})

    def checks_of(self, build_sha256: str) -> list[CheckOutcome]:
        """The outcomes for a build, by name."""
        with self.session() as session:
            rows = session.scalars(select(CheckRow).where(CheckRow.build_sha256 == build_sha256).order_by(CheckRow.check))
            return [CheckOutcome(r.check, r.passed, r.blocking, r.rules, r.summary, r.seconds) for r in rows]

    def objections(self, build_sha256: str, required: Sequence[str]) -> tuple[list[str], list[str]]:
        """What stands against using a build: blocking checks that failed on it, with what they found; required ones that were not run."""
        outcomes = {o.check: o for o in self.checks_of(build_sha256)}
        failed = [f"{o.check}: {o.summary}" for o in outcomes.values() if o.blocking and not o.passed]
        return failed, [f"{check} was not run" for check in required if check not in outcomes]

    # --- releases

    def record_release(self, release: CataloguedRelease) -> None:
        """Keep that a release exists; its first publication time stays."""
        values = {**vars(release), "profiles": json.dumps(release.profiles), "published_at": _now()}
        with self.session() as session:
            self.put(session, FixtureReleaseRow, {"release_id": f"{release.week}/r{release.revision}", **values}, keep=True)

    def releases(self) -> list[CataloguedRelease]:
        """Every release, newest week first."""
        order = (FixtureReleaseRow.week.desc(), FixtureReleaseRow.revision.desc())
        with self.session() as session:
            return [
                CataloguedRelease(
                    r.week,
                    r.revision,
                    r.manifest_sha256,
                    r.cedar_sha256,
                    r.size_bytes,
                    tuple(json.loads(r.profiles)),
                    r.published_at,
                )
                for r in session.scalars(select(FixtureReleaseRow).order_by(*order))
            ]

    # --- images

    def record_images(self, name: str, images: Sequence[CataloguedImage]) -> None:
        """Keep what images there are of a name, in the place of what was known before."""
        with self.session() as session:
            session.execute(delete(JetsonImageRow).where(JetsonImageRow.name == name))
            session.add_all(JetsonImageRow(**vars(image)) for image in images)

    def record_runner_images(self, runner: str, images: Sequence[CataloguedRunnerImage]) -> None:
        """Keep what snapshots there are of a runner, in the place of what was known before."""
        with self.session() as session:
            session.execute(delete(RunnerImageRow).where(RunnerImageRow.runner == runner))
            session.add_all(RunnerImageRow(**{**vars(image), "tools": json.dumps(image.tools)}) for image in images)

    # --- backups and drills

    def record_backups(self, database: str, backups: Sequence[CataloguedBackup]) -> None:
        """Keep what dumps there are of a database, in the place of what was known before; two processes may do so at once."""
        ids = [b.backup_id for b in backups]
        with self.session() as session:
            session.execute(delete(BackupRow).where(BackupRow.database == database, BackupRow.backup_id.not_in(ids)))
            for backup in backups:
                self.put(session, BackupRow, vars(backup))

    def record_drill(self, drill: CataloguedDrill) -> None:
        """Keep what came of a drill."""
        with self.session() as session:
            self.put(session, DrillReportRow, vars(drill))

    def drills(self) -> list[CataloguedDrill]:
        """Every drill, oldest first."""
        names = [f.name for f in fields(CataloguedDrill)]
        with self.session() as session:
            rows = session.scalars(select(DrillReportRow).order_by(DrillReportRow.started_at))
            return [CataloguedDrill(**{n: getattr(r, n) for n in names}) for r in rows]

    # --- as data to be checked

    def export(self, table: str, path: Path) -> None:
        """Copy a table into a new SQLite file, for checks that read files; works for whatever database this is."""
        source = Base.metadata.tables[table]
        engine = create_engine(f"sqlite:///{path}")
        try:
            source.create(engine)
            with self._telling(), self._engine.connect() as reading, engine.begin() as writing:
                rows = [dict(row) for row in reading.execute(select(source)).mappings()]
                if rows:
                    writing.execute(source.insert(), rows)
        finally:
            engine.dispose()

    # --- findings

    def record_findings(self, week: str, findings: Sequence[CataloguedFinding]) -> list[CataloguedFinding]:
        """Keep findings; returns those never seen before."""
        new = []
        with self.session() as session:
            for finding in findings:
                row = session.get(FindingRow, finding.key)
                if row is None:
                    new.append(finding)
                weeks = {
                    "first_week": min(row.first_week, week) if row else week,
                    "last_week": max(row.last_week, week) if row else week,
                }
                values = {**vars(finding), "affected_policies": ", ".join(finding.affected_policies), **weeks}
                self.put(session, FindingRow, values)
        return new

    def findings(self) -> list[CataloguedFinding]:
        """Every finding, by subject."""
        with self.session() as session:
            return [
                CataloguedFinding(
                    r.key,
                    r.severity,
                    r.kind,
                    r.subject,
                    r.expected,
                    r.found,
                    r.affected_rows,
                    tuple(p for p in r.affected_policies.split(", ") if p),
                    r.suggestion,
                    r.first_week,
                    r.last_week,
                )
                for r in session.scalars(select(FindingRow).order_by(FindingRow.subject, FindingRow.key))
            ]


def _newest_migration() -> str:
    """The revision that migrations lead to: their files begin with it."""
    return max(path.name.partition("_")[0] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


def _wait_for_locks(connection: object, _: object) -> None:
    """SQLite: wait for other writers instead of failing."""
    connection.execute("PRAGMA busy_timeout = 30000")  # type: ignore[attr-defined]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
