"""The dumps in cold storage: taking one, finding one, bringing one back, checking it, clearing away.

A dump counts once its record is stored, which is the last thing that happens. What a killed run has left (a compressed database without a
record) is removed by the next `prune`, a day later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter

from akidb_pipelines.backups.checklist import BLOCKING_CHECKS, CHECKS
from akidb_pipelines.backups.checks import check_age, check_foreign_keys, check_integrity, check_restorable, check_row_counts
from akidb_pipelines.backups.dump import ROOT, Dump, DumpKey, Record, Wanted, database_name, parse_record
from akidb_pipelines.backups.packing import pack, unpack
from akidb_pipelines.backups.retention import Decision, Kept, plan
from akidb_pipelines.backups.sources import Database
from akidb_pipelines.backups.sqlite import Examination, content_of, examine, put_in_place
from akidb_pipelines.catalog.catalog import Catalog, CataloguedBackup, CheckOutcome
from akidb_pipelines.cedar.sandbox import Sandbox, load_sandbox
from akidb_pipelines.errors import InputError, IntegrityError, OutsideError, PipelineError
from akidb_pipelines.files import scratch_folder, writing_out
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.quality.catalogue import ENGINES, run_catalogue_checks
from akidb_pipelines.quality.result import CheckReport
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.areas import COLD, area
from akidb_pipelines.store.objects import AlreadyExistsError, Availability, MissingObjectError, ObjectStore

_ENTITY = "Backup"
_ORPHAN_AGE = timedelta(days=1)
_POLL_S = 15.0
_DAYS_AT_HAND = 2
"""So long an archived dump that was asked for stays readable."""


@dataclass(frozen=True)
class Brought:
    """A dump as a database file again, and what is in it."""

    path: Path
    found: Examination
    seconds: float


@dataclass(frozen=True)
class Restored:
    """A database that was put in its place."""

    dump: Dump
    target: Path
    seconds: float


@dataclass(frozen=True)
class Depot:
    """All dumps of a store.

    Args:
        cold: area of the store.
        catalog: what is known of them, and what checks said.
        sandbox: what that is held to.
        scratch: folder for temporary work.
    """

    cold: ObjectStore
    catalog: Catalog
    sandbox: Sandbox
    scratch: Path

    # --- taking one

    def take(self, source: Database, report: Report = lambda _: None) -> Dump:
        """Dump a database and store it under today.

        Raises:
            InputError: it is no database.
            OutsideError: it cannot be reached, or there is no room, here or in the store; nothing counts as a dump then.
        """
        started, database = perf_counter(), database_name(source.name)
        with scratch_folder(self.scratch) as folder:
            raw, packed = folder / "dump.db", folder / "dump.db.zst"
            report(Progress(f"dumping {database}"))
            moment = source.dump(raw)
            content = content_of(raw)
            size, sha256, stored, stored_sha256 = pack(raw, packed, f"packing {database}", report)
            record = Record(
                database=database,
                day=moment.date().isoformat(),
                source=source.where,
                snapshot_at=_text(moment),
                finished_at=_text(datetime.now(UTC)),
                seconds=round(perf_counter() - started, 3),
                sha256=sha256,
                size_bytes=size,
                stored_sha256=stored_sha256,
                stored_bytes=stored,
                rows=content.rows,
                canary=content.canary,
            )
            report(Progress(f"storing {database}", 0, stored, in_bytes=True))
            key = self._store(record, packed)
            report(Progress(f"storing {database}", stored, stored, in_bytes=True))
        self.record(database)
        return Dump(key, record)

    def _store(self, record: Record, packed: Path) -> DumpKey:
        key = DumpKey(record.database, record.day, 1)
        taken = [k.revision for k in self._keys(f"{record.database}/{record.day}/")]
        while True:
            key = DumpKey(record.database, record.day, max([key.revision - 1, *taken]) + 1)
            try:
                self.cold.create(key.data, packed, sha256=record.stored_sha256)
                self.cold.create(key.record, record.to_json())
                return key
            except AlreadyExistsError:  # another run is at it, or one died before its record
                taken.append(key.revision)

    # --- finding one

    def _keys(self, below: str = "") -> list[DumpKey]:
        return sorted(k for info in self.cold.list(f"{ROOT}{below}") if (k := DumpKey.of_record(info.key)))

    def dumps(self, database: str = "") -> list[Dump]:
        """Every dump (of a database), oldest first. One whose record is damaged is none, and must not hide the others."""
        found = []
        for key in self._keys(f"{database_name(database)}/" if database else ""):
            with suppress(IntegrityError, MissingObjectError):
                found.append(self._load(key))
        return found

    def databases(self) -> list[str]:
        """Every database that has a dump."""
        return sorted({k.database for k in self._keys()})

    def find(self, text: str) -> Dump:
        """The newest dump that a text means, see dump.Wanted.

        Raises:
            InputError: there is none.
            IntegrityError: its record is damaged.
        """
        wanted = Wanted.parse(text)
        keys = self._keys(f"{wanted.database}/")
        found = [k for k in keys if wanted.means(k)]
        if not found:
            have = ", ".join(k.id for k in keys[-3:]) or "none"
            known = "" if keys else f"; databases with dumps are: {', '.join(self.databases()) or 'none'}"
            raise InputError(f"there is no dump {text}; the newest are {have}{known}", hint="akidb-pipelines backups list")
        return self._load(found[-1])

    def _load(self, key: DumpKey) -> Dump:
        source = f"{self.cold.url}/{key.record}"
        record = parse_record(self.cold.read(key.record), source)
        if (record.database, record.day) != (key.database, key.day):
            raise IntegrityError(
                f"{source} is the record of another dump, of {record.database} {record.day}", hint="use another backup"
            )
        return Dump(key, record)

    def before(self, dump: Dump) -> Dump | None:
        """The dump of the same database before it; one of the same name that was taken elsewhere is of another."""
        earlier = (d for d in reversed(self.dumps(dump.key.database)) if d.key < dump.key)
        return next((d for d in earlier if d.record.source == dump.record.source), None)

    def is_verified(self, dump: Dump) -> bool:
        """Whether every check that a backup needs has passed on this very dump."""
        failed, missing = self.catalog.objections(dump.root_sha256, BLOCKING_CHECKS)
        return not failed and not missing

    # --- bringing one back

    def ask_for(self, dump: Dump) -> Availability:
        """Ask the store for an archived dump; returns how it is now. Does nothing if it can be read, or was asked for."""
        info = self.cold.stat(dump.key.data)
        if info is None:
            raise MissingObjectError(f"store {self.cold.url}: there is no {dump.key.data}", hint="use another backup")
        if info.availability is Availability.ARCHIVED:
            self.cold.restore(dump.key.data, _DAYS_AT_HAND)
            return Availability.RESTORING
        return info.availability

    def wait_for(
        self,
        dump: Dump,
        timeout_s: float,
        report: Report = lambda _: None,
        poll_s: float = _POLL_S,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until an archived dump can be read; `check` is asked between two looks and may raise.

        Raises:
            OutsideError: it cannot within the time.
        """
        end = time.monotonic() + timeout_s
        while (state := self.ask_for(dump)) is not Availability.READY:
            if time.monotonic() >= end:
                raise OutsideError(
                    f"{dump.id} is {state.value} and did not come back within {timeout_s:.0f} s",
                    hint="an archive takes up to an hour: try again then, or use one of the newest seven days",
                )
            report(Progress(f"{dump.id} is {state.value}: waiting"))
            check()
            time.sleep(poll_s)

    def bring(self, dump: Dump, folder: Path, report: Report = lambda _: None, *, durable: bool = False) -> Brought:
        """Fetch a dump, unpack it and look at it in all four ways; a durable one is on the disk afterwards.

        Raises:
            ArchivedError: it must be asked for first.
            IntegrityError: the store has other bytes than were stored.
            MissingObjectError: they are gone.
            OutsideError: the store cannot be reached, or there is no room.
        """
        started, record = perf_counter(), dump.record
        packed, raw = folder / "fetched.db.zst", folder / "fetched.db"
        done = 0

        def moved(count: int) -> None:
            nonlocal done
            done += count
            report(Progress(f"fetching {dump.id}", done, record.stored_bytes, in_bytes=True))

        self.cold.fetch(dump.key.data, packed, sha256=record.stored_sha256, size_bytes=record.stored_bytes, moved=moved)
        report(Progress(f"unpacking {dump.id}"))
        unpack(packed, raw)
        packed.unlink()
        report(Progress(f"verifying {dump.id}"))
        try:
            with writing_out(raw) if durable else nullcontext():
                found = examine(raw)
        except OSError as error:
            raise OutsideError(f"writing {raw}: {error}", hint="free some space, or restore elsewhere") from error
        return Brought(raw, found, perf_counter() - started)

    def sound(self, dump: Dump, folder: Path, report: Report = lambda _: None, *, durable: bool = False) -> Brought:
        """Bring a dump, and refuse it unless it is what was dumped and sound.

        Raises:
            IntegrityError: it is not; the message names what is wrong first.
        """
        brought = self.bring(dump, folder, report, durable=durable)
        expect_sound(dump, brought.found)
        return brought

    def restore(self, dump: Dump, target: Path, *, replace: bool = False, report: Report = lambda _: None) -> Restored:
        """Put a dump where a database belongs. What is there stays untouched until the dump is verified.

        Raises:
            InputError: something is there, and is not to be replaced.
            IntegrityError: the dump is not sound.
            OutsideError: somebody uses what is there; the store cannot be reached; there is no room.
        """
        started = perf_counter()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutsideError(f"restoring to {target}: {error}", hint="name a folder that you may write") from error
        if target.exists() and not replace:
            raise InputError(f"{target} exists", hint="--replace puts the backup in its place, once nobody uses it any more")
        # Beside the target, so that the last step is a change of name.
        beside = target.parent / ".akidb-restoring"
        try:
            with scratch_folder(beside) as folder:
                brought = self.sound(dump, folder, report, durable=True)
                put_in_place(brought.path, target, replace=replace)
        finally:
            with suppress(OSError):  # another restore is at work there
                beside.rmdir()
        return Restored(dump, target, perf_counter() - started)

    # --- checks

    def run_checks(self, dump: Dump, names: Iterable[str] = CHECKS, report: Report = lambda _: None) -> Iterator[CheckReport]:
        """Restore a dump into a temporary folder, check it, and keep each outcome in the catalog.

        Raises:
            OutsideError: the store cannot be reached, or there is no room: nothing is said of the dump then.
        """
        wanted = tuple(names)
        with scratch_folder(self.scratch) as folder:
            for found in self._reports(dump, wanted, folder, report):
                if found.check in wanted:
                    outcome = CheckOutcome(
                        found.check,
                        not found.holds_back,
                        found.check in BLOCKING_CHECKS,
                        len(found.results),
                        found.summary,
                        found.seconds,
                    )
                    self.catalog.record_check(dump.root_sha256, outcome)
                    yield found

    def _reports(self, dump: Dump, names: Sequence[str], folder: Path, report: Report) -> Iterator[CheckReport]:
        if {"restorable", "integrity", "foreign_keys", "row_counts"} & set(names):
            try:
                brought = self.bring(dump, folder, report)
            except (IntegrityError, MissingObjectError, InputError) as error:
                # It may have passed once; what cannot be brought back any more is no backup.
                yield _not_restorable(error)
            else:
                yield check_restorable(dump.record, brought.found, brought.seconds)
                yield check_integrity(brought.found)
                yield check_foreign_keys(brought.found)
                yield check_row_counts(dump.record, brought.found, self.before(dump))
                brought.path.unlink()
        if "age" in names:
            yield check_age(dump, datetime.now(UTC))
        if engines := tuple(n for n in ENGINES if n in names):
            self.record(dump.key.database)
            yield from run_catalogue_checks(self.catalog, self.sandbox, _ENTITY, engines, folder)

    # --- keeping house

    def record(self, database: str) -> None:
        """Tell the catalog what dumps there are of a database."""
        self.catalog.record_backups(database, [_catalogued(d) for d in self.dumps(database)])

    def prune(self, *, dry_run: bool = False, report: Report = lambda _: None) -> list[Decision]:
        """Archive and remove what retention says, and what killed runs have left.

        Raises:
            OutsideError: the store cannot be written.
        """
        objects = {info.key: info for info in self.cold.list(ROOT)}
        # A record that cannot be read is left alone: somebody may still bring its dump back by hand.
        decisions = plan(Kept(d.key, d.record.source, self.is_verified(d)) for d in self.dumps())
        known = {name for n in objects if (k := DumpKey.of_record(n)) for name in (k.data, k.record)}
        now = datetime.now(UTC)
        orphans = [name for name, info in objects.items() if name not in known and now - info.modified_at > _ORPHAN_AGE]
        if not dry_run:
            for decision in decisions:
                if decision.action == "remove":
                    report(Progress(f"removing {decision.key.id}"))
                    self.cold.delete([decision.key.record, decision.key.data])  # the record first: half a dump is none
                elif decision.action == "archive":
                    self._archive(decision.key)
            self.cold.delete(orphans)
            for database in {d.key.database for d in decisions if d.action == "remove"}:
                self.record(database)
        return decisions

    def _archive(self, key: DumpKey) -> None:
        if self.cold.url.startswith("file://"):
            return  # a folder has no tiers
        info = self.cold.stat(key.data)
        if info and info.availability is Availability.READY:
            self.cold.archive(key.data)


def expect_sound(dump: Dump, found: Examination) -> None:
    """Refuse what is not what was dumped, or not sound.

    Raises:
        IntegrityError: it is not; the message names what is wrong first.
    """
    reports = (
        check_restorable(dump.record, found, 0),
        check_integrity(found),
        check_foreign_keys(found),
        check_row_counts(dump.record, found, None),
    )
    broken = [f"{b.rule}: {b.message}" for r in reports for b in r.broken]
    if broken:
        raise IntegrityError(
            f"{dump.id} is refused: {'; '.join(broken)}", hint="use an earlier backup: akidb-pipelines backups list"
        )


def _not_restorable(error: PipelineError) -> CheckReport:
    from akidb_pipelines.quality.result import RuleResult, Status

    return CheckReport("restorable", (RuleResult("can be brought back", _ENTITY, "", Status.FAIL, 1, message=error.message),), 0.0)


def _catalogued(dump: Dump) -> CataloguedBackup:
    record = dump.record
    return CataloguedBackup(
        backup_id=dump.id,
        database=record.database,
        day=record.day,
        revision=dump.key.revision,
        record_sha256=dump.root_sha256,
        sha256=record.sha256,
        size_bytes=record.size_bytes,
        stored_bytes=record.stored_bytes,
        row_count=sum(record.rows.values()),
        canary=record.canary,
        snapshot_at=record.snapshot_at,
    )


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def open_depot(settings: Settings, cold: ObjectStore | None = None) -> Depot:
    """The depot that settings describe.

    Args:
        settings: they.
        cold: another place for the dumps.

    Raises:
        InputError: the store's URL, the sandbox or the catalog's URL is unusable.
        OutsideError: the catalog cannot be opened.
    """
    return Depot(
        cold=cold or area(settings, COLD),
        catalog=Catalog(settings.catalog_url),
        sandbox=load_sandbox(settings.cedar_sandbox),
        scratch=settings.home / "tmp",
    )
