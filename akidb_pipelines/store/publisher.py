"""Changing a registry: releases, channels, keys. Every change is one commit under the lease.

    lease > blobs > SHA256SUMS, manifest, provenance (created once) > N.targets, N.snapshot (created once) > timestamp.json (swapped)

The last step is the only one that readers see. A publisher that dies before it leaves objects that nothing names: the next publisher uses or
skips them, and the garbage collector removes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from akidb_pipelines.errors import CheckError, InputError, IntegrityError, PipelineError
from akidb_pipelines.files import write_whole
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.settings import Settings
from akidb_pipelines.store import metadata
from akidb_pipelines.store.adoption import adopt, forget_old_pointers
from akidb_pipelines.store.areas import AREAS, area
from akidb_pipelines.store.index import LATEST, Change, Entry, Head, Index, Version
from akidb_pipelines.store.keys import KeyRing, open_keys
from akidb_pipelines.store.lease import PATIENCE_S, BusyError, Held, hold
from akidb_pipelines.store.manifest import Release, ReleaseFile, ReleaseManifest, blob_key, release_key
from akidb_pipelines.store.objects import AlreadyExistsError, SwapError, unreachable
from akidb_pipelines.store.provenance import Origin, same_origin, statement
from akidb_pipelines.store.registry import Registry, open_registry


class Edit:
    """A registry while its lease is held.

    Args:
        publisher: who edits.
        held: the lease.
        state: verified metadata, as it was when the lease was taken; `commit` moves it on.
        made: whether the registry was made just now.
    """

    def __init__(self, publisher: Publisher, held: Held, state: metadata.State, made: bool) -> None:
        self._publisher, self._held = publisher, held
        self.state, self.made = state, made

    @property
    def index(self) -> Index:
        """What is released."""
        return self.state.index

    def commit(self, index: Index) -> None:
        """Make an index the one that readers see.

        Raises:
            BusyError: the lease was lost, or somebody else published; readers see what they saw.
        """
        self._held.check()
        publisher = self._publisher
        channels = publisher.registry.channels
        try:
            self.state = metadata.commit(channels, self.state, index, publisher.keys, publisher.now())
        except SwapError as error:
            raise BusyError(
                f"registry {publisher.registry.url}: somebody else published meanwhile", hint="run it again: nothing was published"
            ) from error

    def change_root(self, role: str, *, drop: bool, add: bool) -> None:
        """Store the next root metadata, see metadata.change_root."""
        publisher = self._publisher
        self.state = metadata.change_root(
            publisher.registry.channels, self.state, publisher.keys, publisher.now(), role, drop=drop, add=add
        )


@dataclass(frozen=True)
class Publisher:
    """Whoever may sign.

    Args:
        registry: what is changed.
        keys: what signs.
        patience_s: how long another publisher is waited for.
        now: the clock.
    """

    registry: Registry
    keys: KeyRing
    patience_s: float = PATIENCE_S
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def index(self) -> Index:
        """What is released, verified; unlike a client's view it may have ended, because renewing it is the publisher's job.

        Raises:
            InputError: there is no root to trust.
            IntegrityError: what is there does not verify.
        """
        return self.state().index if self.registry.root() else Index()

    def state(self) -> metadata.State:
        """The metadata as it stands, verified; that of a registry without a first commit is empty.

        Raises:
            InputError: there is no registry.
            IntegrityError: what is there does not verify, or is older than what this machine has seen.
        """
        root = self.registry.root()
        if root is None:
            raise InputError(f"registry {self.registry.url}: nothing was released yet", hint="run `make run`, or check AKIDB_STORE")
        state = metadata.load(self.registry.channels, root)
        if state is None:
            return metadata.empty_state(root)
        seen = self.registry.trust(root).last_seen(state.root.signed)
        if seen > state.timestamp.signed.version:
            raise IntegrityError(
                f"registry {self.registry.url}: it is at version {state.timestamp.signed.version}, this machine has seen {seen}",
                hint="an older copy of the store was put back: restore the newest; docs/runbooks/pull-fails.md",
            )
        return state

    # --- releases

    def publish(self, manifest: ReleaseManifest, folder: Path, *, run_id: str = "", report: Report = lambda _: None) -> Release:
        """Make a release of files in `folder`, or find the one that has the same bytes; `latest` moves forward to it.

        Raises:
            IntegrityError: a file is not what the manifest says, or the registry does not verify.
            CheckError: the same bytes were revoked.
            BusyError: another publisher did not finish, or was faster.
            OutsideError: the store cannot be written.
        """
        purpose = f"publishing {manifest.kind} {manifest.name}"
        with self.editing(purpose, run_id, make=self.registry.is_local, report=report) as edit:
            # Blobs first, also of a release that is there already: releasing again is how a lost blob comes back.
            for file in manifest.files:
                self._put_blob(folder, file, report)
            last = edit.index.last(manifest.kind, manifest.name)
            if last and last.manifest_sha256 == manifest.sha256:
                self._found_again(edit, last)
                return Release(manifest, last.version.revision)
            entry = self._put_release(manifest, last.version.revision + 1 if last else 1, run_id)
            report(Progress("committing"))
            edit.commit(edit.index.with_entry(entry).advanced(LATEST, entry, entry.published_at, f"released {entry.version}"))
            return Release(manifest, entry.version.revision, created=True)

    def _found_again(self, edit: Edit, entry: Entry) -> None:
        """Nothing to release; but what a dead publisher left behind is put right, and metadata that ends soon is renewed."""
        if entry.revoked:
            raise CheckError(
                f"{entry.version} has these very bytes and was revoked: {entry.revoked}",
                hint="correct what it was revoked for, then build and release again",
            )
        index = edit.index.with_entry(replace(entry, retired_at=""))
        index = index.advanced(LATEST, entry, self._now_text(), f"released {entry.version}")
        if index != edit.index or self._ends_soon(edit.state):
            edit.commit(index)

    def _put_blob(self, folder: Path, file: ReleaseFile, report: Report) -> None:
        key, path = blob_key(file.sha256), folder / file.name
        stage = f"storing {file.name}"
        there = self.registry.artifacts.stat(key)
        if there and there.size_bytes == file.size_bytes:
            report(Progress(stage, file.size_bytes, file.size_bytes))
            return
        if not path.is_file():
            raise IntegrityError(f"{file.name} is neither in the store nor in {folder}", hint="build that profile again")
        self.registry.artifacts.create(key, path, sha256=file.sha256, moved=_counting(stage, file.size_bytes, report))

    def _put_release(self, manifest: ReleaseManifest, revision: int, run_id: str) -> Entry:
        """Store manifest and provenance under the first revision, from this one on, that nobody else has."""
        artifacts, now = self.registry.artifacts, self._now_text()
        provenance = statement(manifest, Origin(run_id, now))
        while True:
            try:
                # The name SHA256SUMS claims the revision; two publishers of different bytes cannot both have it.
                for file, data in (("SHA256SUMS", manifest.sums), ("manifest.json", manifest.to_json())):
                    artifacts.create(release_key(manifest.kind, manifest.name, revision, file), data)
                provenance = self._put_provenance(manifest, revision, provenance)
                break
            except AlreadyExistsError:
                revision += 1
        return metadata.put_entry(self.registry.channels, manifest, Version(manifest.name, revision), provenance, now)

    def _put_provenance(self, manifest: ReleaseManifest, revision: int, data: bytes) -> bytes:
        key = release_key(manifest.kind, manifest.name, revision, "provenance.json")
        try:
            self.registry.artifacts.create(key, data)
        except AlreadyExistsError:
            # Of a dead publisher of the same bytes: its account of the same build is as good.
            theirs = self.registry.artifacts.read(key)
            if not same_origin(data, theirs):
                raise
            return theirs
        return data

    # --- channels and releases, by hand

    def promote(self, kind: str, version: Version, channel: str, reason: str) -> Head:
        """Move a channel forward to a release.

        Raises:
            InputError: it is not ahead, revoked, or not there.
        """
        now = self._now_text()
        index = self.change(f"promoting {version}", lambda index: index.promoted(channel, index.get(kind, version), now, reason))
        return index.heads[kind, channel]

    def roll_back(self, kind: str, channel: str, to: Version | None, reason: str) -> Head:
        """Move a channel back, as a new sequence number.

        Raises:
            InputError: there is nothing to go back to.
        """
        now = self._now_text()
        index = self.change(f"rolling back {channel}", lambda index: index.rolled_back(kind, channel, to, now, reason))
        return index.heads[kind, channel]

    def revoke(self, kind: str, version: Version, reason: str) -> Index:
        """Withdraw a release; channels leave it.

        Raises:
            InputError: there is no such release.
        """
        now = self._now_text()
        return self.change(f"revoking {version}", lambda index: index.revoked(index.get(kind, version), now, reason))

    def pin(self, kind: str, version: Version, why: str) -> None:
        """Keep a release for ever; without a reason, no longer.

        Raises:
            InputError: there is no such release.
        """
        self.change(
            f"pinning {version}", lambda index: index.with_entry(replace(index.get(kind, version), pinned=why, retired_at=""))
        )

    def change(self, purpose: str, change: Change) -> Index:
        """Commit a change of the index, if it changes anything."""
        with self.editing(purpose) as edit:
            index = change(edit.index)
            if index != edit.index:
                edit.commit(index)
            return index

    def refresh(self, *, force: bool = True) -> metadata.State:
        """Sign what is there anew, so that it lasts its whole time again; without `force` only what ends soon."""
        with self.editing("renewing the metadata") as edit:
            if self._is_due(edit.state, "root"):
                edit.change_root("root", drop=False, add=False)
            if force or self._ends_soon(edit.state):
                edit.commit(edit.index)
            return edit.state

    # --- the registry and its keys

    def init(self, report: Report = lambda _: None) -> bool:
        """Make the registry, or finish making it; releases that lie in the store already are adopted. Returns whether it was made now.

        Raises:
            InputError: it was made by somebody else, whose root is not trusted here.
        """
        with self.editing("making the registry", make=True, report=report) as edit:
            return edit.made

    def start_anew(self, report: Report = lambda _: None) -> None:
        """Replace the whole registry by one with new keys and a new root: when the root key is lost or stolen.

        What the old metadata says of releases is taken over. Every client needs the new root.

        Raises:
            IntegrityError: the old metadata does not verify any more: remove `tuf/` from area channels, then `init` adopts the releases.
        """
        with self.editing("starting the registry anew", report=report) as edit:
            channels, index = self.registry.channels, edit.index
            channels.delete([info.key for info in channels.list(metadata.METADATA)])
            self._make_root()
            fresh = metadata.empty_state(self.registry.own_root.read_bytes())
            edit.state = fresh
            edit.commit(index)

    def rotate_key(self, role: str) -> str:
        """Replace the key of a role; returns the new key's id.

        Three steps, each of which leaves a registry that verifies: trust the old key and a new one, sign everything with both, trust the
        new one alone. Run again after an interruption.
        """
        with self.editing(f"rotating the key of {role}") as edit:
            edit.change_root(role, drop=False, add=True)
            edit.commit(edit.index)
            edit.change_root(role, drop=True, add=False)
            return str(edit.state.root.signed.roles[role].keyids[-1])

    def _ensure_made(self, held: Held, report: Report) -> bool:
        new = self.registry.channels.stat(metadata.root_key(1)) is None
        if new:
            self._make_root()
        elif self.registry.channels.stat(metadata.TIMESTAMP):
            return False
        Edit(self, held, self.state(), new).commit(adopt(self.registry, self._now_text(), report))
        forget_old_pointers(self.registry)
        return new

    def _make_root(self) -> None:
        root = metadata.create_root(self.registry.channels, self.keys, self.now())
        try:
            self.registry.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.registry.own_root, root)
        except OSError as error:
            raise unreachable(str(self.registry.folder), "keeping the registry's root", error) from error

    # --- under the lease

    @contextmanager
    def editing(self, purpose: str, run_id: str = "", *, make: bool = False, report: Report = lambda _: None) -> Iterator[Edit]:
        """Hold the lease and the verified state while the block runs.

        Args:
            purpose: told to whoever waits.
            run_id: of the Dagster run, if it is one.
            make: whether to make the registry if it is none yet.
            report: told who is waited for.

        Raises:
            BusyError: another one did not finish in time.
            IntegrityError: what is there does not verify.
            InputError: there is no registry.
        """
        channels = self.registry.channels
        with hold(channels, purpose, run_id, patience_s=self.patience_s, report=lambda what: report(Progress(what))) as held:
            made = make and self._ensure_made(held, report)
            yield Edit(self, held, self.state(), made)

    def _ends_soon(self, state: metadata.State) -> bool:
        return any(self._is_due(state, role) for role in ("targets", "snapshot", "timestamp"))

    def _is_due(self, state: metadata.State, role: str) -> bool:
        return bool(state.expiries()[role] - self.now() < metadata.RENEW_BEFORE[role])

    def _now_text(self) -> str:
        return self.now().astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _counting(stage: str, total: int, report: Report) -> Callable[[int], None]:
    """Turns "so many bytes more" into "so many of all"."""
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        report(Progress(stage, done, total))

    return moved


def open_publisher(settings: Settings, registry: Registry | None = None) -> Publisher:
    """The publisher that settings describe."""
    registry = registry or open_registry(settings)
    return Publisher(registry, open_keys(settings.registry_keys, registry.folder / "keys"))


def prepare_areas(settings: Settings, url: str) -> list[PipelineError]:
    """Make all areas of a store; returns what could not be made, each saying what to create by hand."""
    failed = []
    for name, versioned in AREAS.items():
        try:
            area(settings, name, url).prepare(versioned=versioned)
        except PipelineError as error:
            failed.append(error)
    return failed
