"""Taking billing files in: each is known by its place and mark, and counts from the transaction that enters it, which comes last.

costs/files/<sha256>            a billing file as it came, also one that was refused
costs/lines/<sha256>.parquet    its lines, typed
What a killed import has left is an object without an entry, and the same import again writes the same one. Files of one listing may replace
each other's lines, so one whose lines count already elsewhere waits until the others are in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

from akidb_pipelines.catalog.costs import CataloguedCostFile, CostTables, FileState, now_text
from akidb_pipelines.costs import engine
from akidb_pipelines.costs.intake import Group, Lines, Reason, RefusedFileError, groups_of, read_focus
from akidb_pipelines.costs.oddities import counted_already, whole_again
from akidb_pipelines.costs.rollup import LinesFile
from akidb_pipelines.costs.sources import BillingFile, Source
from akidb_pipelines.errors import InputError
from akidb_pipelines.files import scratch_folder
from akidb_pipelines.progress import Report
from akidb_pipelines.store.lease import Held, hold
from akidb_pipelines.store.objects import ObjectStore

ROOT = "costs/"
ELSEWHERE = "count already"
"""In the reason of a file that is refused for what other files hold: it may be taken when those change."""


@dataclass(frozen=True)
class Imported:
    """What became of one file."""

    file: CataloguedCostFile
    groups: tuple[Group, ...] = ()
    """What it holds; of a file that was known before, see Arrivals.groups."""
    reasons: tuple[Reason, ...] = ()
    is_new: bool = True


@dataclass(frozen=True)
class Arrivals:
    """Billing files and their lines in cold storage, and the ledger's entries of them.

    Args:
        cold: area of the store.
        tables: of the catalog.
        scratch: folder for temporary work.
        cache: folder of lines that were fetched before.
    """

    cold: ObjectStore
    tables: CostTables
    scratch: Path
    cache: Path

    # --- taking in

    def take_in(
        self, source: Source, report: Report = lambda _: None, *, today: date | None = None, again: bool = False
    ) -> Iterator[Imported]:
        """Take in every file of a source that the ledger does not know. One that is refused does not keep the others out.

        Args:
            source: it.
            report: told the progress of large files.
            today: the day they are filed under.
            again: look at refused files once more; those that were refused for what other files hold are looked at always.

        Raises:
            OutsideError: the source or the store cannot be reached, or there is no room.
            BusyError: somebody else takes files in.
        """
        day = (today or datetime.now(UTC).date()).isoformat()
        with hold(self.cold, "cost intake", key=f"{ROOT}lease.json") as held:
            waiting: list[BillingFile] = []
            known = {(f.location, f.etag): f for f in self.tables.files()}
            for file in source.files():
                entry = known.get((f"{source.url}/{file.name}", file.etag))
                if entry and not self._is_to_be_read(entry, again):
                    yield Imported(self._still_good(entry, known.values()), is_new=False)
                elif done := self._take_in(source, file, report, day, held, may_wait=True):
                    yield done
                else:
                    waiting.append(file)
            yield from self._waiting(source, waiting, report, day, held)

    def _waiting(self, source: Source, files: list[BillingFile], report: Report, day: str, held: Held) -> Iterator[Imported]:
        """Those whose lines counted elsewhere, as often as that changes anything."""
        moved = True
        while files and moved:
            left = []
            for file in files:
                if done := self._take_in(source, file, report, day, held, may_wait=True):
                    yield done
                else:
                    left.append(file)
            moved = len(left) < len(files)
            files = left
        for file in files:
            if done := self._take_in(source, file, report, day, held, may_wait=False):
                yield done

    def _is_to_be_read(self, entry: CataloguedCostFile, again: bool) -> bool:
        """Whether a file that is known may be something else now."""
        if entry.state is FileState.QUARANTINED:
            return again or any(ELSEWHERE in note for note in entry.notes)
        if entry.state is FileState.DUPLICATE:
            return self._twin(entry.sha256, entry.location, entry.sample) is None
        return entry.state is FileState.WITHDRAWN

    def _still_good(self, entry: CataloguedCostFile, known: Iterable[CataloguedCostFile]) -> CataloguedCostFile:
        """The entry; entered anew where a later file of its name was refused, and the good one has been put back."""
        refused = [f for f in known if f.location == entry.location and f.state is FileState.QUARANTINED]
        if entry.state is FileState.TAKEN and any(f.imported_at > entry.imported_at for f in refused):
            entry = replace(entry, imported_at=now_text())
            self.tables.record_file(entry)
        return entry

    def _twin(self, sha256: str, location: str, sample: bool) -> CataloguedCostFile | None:
        """Another file of the same bytes that counts."""
        counted = self.tables.files(sample=sample, states=(FileState.TAKEN,))
        return next((f for f in counted if f.sha256 == sha256 and f.location != location), None)

    def _take_in(
        self, source: Source, file: BillingFile, report: Report, day: str, held: Held, *, may_wait: bool
    ) -> Imported | None:
        """One file; None if it waits for others."""
        with scratch_folder(self.scratch) as folder:
            path, parquet = folder / "file", folder / "lines.parquet"
            sha256 = source.fetch(file, path, report)
            entry = CataloguedCostFile(
                source=source.url,
                name=file.name,
                etag=file.etag,
                sample=source.sample,
                state=FileState.QUARANTINED,
                arrived=day,
                imported_at=now_text(),
                sha256=sha256,
                size_bytes=file.size_bytes,
            )
            self.cold.create(f"{ROOT}files/{sha256}", path, sha256=sha256)
            try:
                lines = read_focus(path, file.name, parquet, folder)
            except RefusedFileError as error:
                return self._refuse(entry, error.reasons, held)
            entry = replace(entry, sample=source.sample or lines.sample)
            if twin := self._twin(sha256, entry.location, entry.sample):
                note = f"the same bytes count already as {twin.location}"
                held.check()
                self.tables.record_file(replace(entry, state=FileState.DUPLICATE, notes=(note,)))
                return Imported(replace(entry, state=FileState.DUPLICATE, notes=(note,)), lines.groups)
            if told := self._elsewhere(entry, parquet, lines, folder):
                return None if may_wait else self._refuse(entry, (Reason(told),), held)
            with parquet.open("rb") as handle:
                lines_sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
            self.cold.create(_lines_key(lines_sha256), parquet, sha256=lines_sha256)
            entry = replace(
                entry,
                state=FileState.TAKEN,
                lines_sha256=lines_sha256,
                lines_bytes=parquet.stat().st_size,
                line_count=lines.rows,
                billed=lines.billed,
                effective=lines.effective,
                months=lines.months,
                billed_for_effective=lines.billed_for_effective,
                notes=tuple(o.message for o in lines.oddities),
            )
            held.check()
            self.tables.record_file(entry)
            return Imported(entry, lines.groups)

    def _refuse(self, entry: CataloguedCostFile, reasons: tuple[Reason, ...], held: Held) -> Imported:
        entry = replace(entry, notes=tuple(str(r) for r in reasons))
        held.check()
        self.tables.record_file(entry)
        return Imported(entry, reasons=reasons)

    def _elsewhere(self, entry: CataloguedCostFile, parquet: Path, lines: Lines, folder: Path) -> str:
        """What of its lines counts already in other files; nothing if nothing does."""
        counted = self.tables.files(sample=entry.sample, states=(FileState.TAKEN,))
        others = [f for f in counted if f.location != entry.location and set(f.months) & set(lines.months)]
        if not others or not lines.rows:
            return ""
        by_path = {str(self.lines(f).path): f for f in others}
        with engine.duck(folder) as db:
            if found := counted_already(db, parquet, list(by_path)):
                return f"{found[0]} of its lines {ELSEWHERE} in another file, such as {found[1]}"
            if again := whole_again(db, parquet, list(by_path)):
                what = f"all lines of {by_path[again].location} are in it, and" if again in by_path else "all of its lines"
                return f"{what} {ELSEWHERE}"
        return ""

    def withdraw(self, name: str) -> CataloguedCostFile:
        """Let a file count no more. If its source still has it, the next intake takes it in again.

        Args:
            name: of one file that counts, or the end of it.

        Raises:
            InputError: none is called so, or several are.
        """
        found = [f for f in self.tables.files(states=(FileState.TAKEN,)) if f.location == name or f.location.endswith(f"/{name}")]
        if len(found) != 1:
            told = f"{len(found)} files that count are called {name}" if found else f"no file that counts is called {name}"
            raise InputError(told, hint="akidb-pipelines costs files lists them; write more of its path")
        gone = replace(found[0], state=FileState.WITHDRAWN)
        with hold(self.cold, "cost intake", key=f"{ROOT}lease.json"):
            self.tables.record_file(gone)
        return gone

    # --- lines

    def lines(self, file: CataloguedCostFile) -> LinesFile:
        """The lines of a file that counts, here.

        Raises:
            IntegrityError: the store has other bytes than were stored.
            OutsideError: they cannot be fetched.
        """
        path = self.cache / f"{file.lines_sha256}.parquet"
        if not path.exists() or path.stat().st_size != file.lines_bytes:
            self.cache.mkdir(parents=True, exist_ok=True)
            with scratch_folder(self.cache) as folder:
                fetched = folder / "lines"
                self.cold.fetch(_lines_key(file.lines_sha256), fetched, sha256=file.lines_sha256, size_bytes=file.lines_bytes)
                fetched.replace(path)
        return LinesFile(path, file.billed_for_effective)

    def groups(self, file: CataloguedCostFile) -> tuple[Group, ...]:
        """What a file holds that counts, or whose twin does; nothing of others."""
        if file.state is FileState.DUPLICATE and (twin := self._twin(file.sha256, file.location, file.sample)):
            file = twin
        if file.state is not FileState.TAKEN:
            return ()
        with scratch_folder(self.scratch) as folder:
            return groups_of(self.lines(file).path, folder)


def _lines_key(sha256: str) -> str:
    return f"{ROOT}lines/{sha256}.parquet"
