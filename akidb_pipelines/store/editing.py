"""Changing the signed metadata: one editor at a time, building only on what verifies, one commit that readers see.

What belongs here: the lease around an edit, the verified state that it starts from, the commit, and the memory of what this machine has
seen, which an older state put back is held to. What is changed and why is the business of `ceremony`, `publisher` and `retention`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_pipelines.errors import InputError, IntegrityError
from akidb_pipelines.files import write_whole
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.store import metadata
from akidb_pipelines.store.index import Index
from akidb_pipelines.store.keys import KeyRing
from akidb_pipelines.store.lease import PATIENCE_S, BusyError, Held, hold
from akidb_pipelines.store.objects import MissingObjectError, SwapError
from akidb_pipelines.store.registry import Registry

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from tuf.api.metadata import Metadata, Root, Timestamp


@dataclass(frozen=True)
class Editor:
    """Whoever may sign.

    Args:
        registry: what is changed.
        keys: what signs.
        patience_s: how long another editor is waited for.
        now: the clock.
    """

    registry: Registry
    keys: KeyRing
    patience_s: float = PATIENCE_S
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def index(self) -> Index:
        """What is released, verified; unlike a client's view it may have ended, because renewing it is the publisher's job. Empty where
        there is no registry yet.

        Raises:
            InputError: there is no root to trust.
            IntegrityError: what is there does not verify.
        """
        return self.state().index if self.registry.root() else Index()

    def state(self) -> metadata.State:
        """The metadata as it stands, verified.

        Raises:
            InputError: there is no registry.
            IntegrityError: what is there does not verify, or is older than what this machine has seen.
        """
        root = self.registry.root()
        if root is None:
            raise InputError(f"registry {self.registry.url}: nothing was released yet", hint="run `make run`, or check AKIDB_STORE")
        state = metadata.load(self.registry.channels, root)
        if state is None:
            raise IntegrityError(
                f"registry {self.registry.url}: {metadata.TIMESTAMP} is gone",
                hint="put its newest good version back (docs/runbooks/pull-fails.md); if `akidb-pipelines registry init` was interrupted, "
                "run it again on the same machine",
            )
        if (seen := self.remembered(state.root.signed)) > state.timestamp.signed.version:
            raise IntegrityError(
                f"registry {self.registry.url}: it is at version {state.timestamp.signed.version}, this machine has seen {seen}",
                hint="an older copy of the store was put back: restore the newest; docs/runbooks/pull-fails.md",
            )
        return state

    def remembered(self, root: Root) -> int:
        """The newest version that this machine has committed or pulled and that still counts under a root; 0 if none."""
        from tuf.api.exceptions import RepositoryError
        from tuf.api.metadata import Metadata

        newest = 0
        for path in (self.memory, self.registry.folder / "trust" / "timestamp.json"):
            try:
                seen: Metadata[Timestamp] = Metadata.from_bytes(path.read_bytes())
                root.verify_delegate("timestamp", seen.signed_bytes, seen.signatures)
            except (OSError, RepositoryError):
                continue
            newest = max(newest, seen.signed.version)
        return newest

    @property
    def memory(self) -> Path:
        """The timestamp that this machine committed last."""
        return self.registry.folder / "committed.json"

    def hold(self, purpose: str, run_id: str = "", report: Report = lambda _: None) -> AbstractContextManager[Held]:
        """Hold the lease; `report` is told who is waited for.

        Raises:
            BusyError: another one did not finish in time.
        """
        channels = self.registry.channels
        return hold(channels, purpose, run_id, patience_s=self.patience_s, report=lambda what: report(Progress(what)))

    @contextmanager
    def editing(self, purpose: str, run_id: str = "", report: Report = lambda _: None) -> Iterator[Edit]:
        """Hold the lease and the verified state while the block runs.

        Raises:
            BusyError: another one did not finish in time.
            InputError, IntegrityError: see `state`.
        """
        with self.hold(purpose, run_id, report) as held:
            yield Edit(self, held, self.state())


class Edit:
    """A registry while its lease is held.

    Args:
        editor: who edits.
        held: the lease.
        state: verified metadata to begin with; `commit` moves it on.
    """

    def __init__(self, editor: Editor, held: Held, state: metadata.State) -> None:
        self._editor, self._held, self.state = editor, held, state
        self._channels = editor.registry.channels

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
        editor = self._editor
        try:
            self.state = metadata.commit(self._channels, self.state, index, editor.keys, editor.now())
        except SwapError as error:
            raise self._overtaken() from error
        try:
            write_whole(editor.memory, self.state.timestamp_bytes)
        except OSError:
            return  # committed all the same; the state before is still remembered

    def expect_current(self) -> None:
        """That nobody has committed since, and the lease is still ours: before something is removed that others might name by now.

        Raises:
            BusyError: somebody has, or it is not.
        """
        self._held.check()
        try:
            there = self._channels.read(metadata.TIMESTAMP)
        except MissingObjectError:
            there = b""
        if there != self.state.timestamp_bytes:
            raise self._overtaken()

    def _overtaken(self) -> BusyError:
        url = self._editor.registry.url
        return BusyError(f"registry {url}: somebody else published meanwhile", hint="run it again: what they published stands")

    def change_root(self, roles: Sequence[str], *, drop: bool = False, add: bool = False) -> None:
        """Store the next root metadata, see metadata.change_root.

        Raises:
            BusyError: the lease was lost.
        """
        self._held.check()
        editor = self._editor
        self.state = metadata.change_root(self._channels, self.state, editor.keys, editor.now(), roles, drop=drop, add=add)
