"""Making a registry, and looking after its root and keys. Each step leaves something that verifies, or that can be run again.

What must survive an interruption is on this machine before the store is touched: new keys, the root that they are in, and, when a registry
starts anew, what the old one knew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

from akidb_pipelines.errors import InputError
from akidb_pipelines.files import write_whole
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.store import metadata
from akidb_pipelines.store.adoption import adopt, forget_old_pointers
from akidb_pipelines.store.editing import Edit, Editor
from akidb_pipelines.store.index import from_documents, index_path, to_documents
from akidb_pipelines.store.lease import Held
from akidb_pipelines.store.objects import AlreadyExistsError, unreachable


@dataclass(frozen=True)
class Keeper(Editor):
    """An editor who may also make the registry and replace its keys."""

    # --- making it

    def init(self, report: Report = lambda _: None) -> bool:
        """Make the registry, or finish making it; releases that lie in the store already are adopted. Returns whether it was made now.

        Raises:
            InputError: it was made by somebody else, whose root is not trusted here.
            IntegrityError: it was made, and does not verify.
        """
        with self.hold("making the registry", report=report) as held:
            made = self.ensure_made(held, report)
            self.state()
            return made

    def ensure_made(self, held: Held, report: Report) -> bool:
        """See `init`; for whoever holds the lease already."""
        channels = self.registry.channels
        new = channels.stat(metadata.root_key(1)) is None
        if new:
            self._store_root(self._new_root())
            report(Progress(f"made registry {self.registry.url}; its root is {self.registry.own_root}"))
        elif channels.stat(metadata.TIMESTAMP) or not self._was_interrupted():
            return False
        Edit(self, held, metadata.empty_state(self.registry.own_root.read_bytes())).commit(
            adopt(self.registry, self.now_text(), report)
        )
        forget_old_pointers(self.registry)
        return True

    def _was_interrupted(self) -> bool:
        """Whether this machine made the root that is there and never committed anything under it. Else a missing timestamp is a loss, or an
        attack: signing what lies in the store would be the wrong answer to either."""
        from tuf.api.metadata import Metadata, Root

        own = self.registry.own_root
        if not own.is_file() or own.read_bytes() != self.registry.channels.read(metadata.root_key(1)):
            return False
        root: Metadata[Root] = Metadata.from_bytes(own.read_bytes())
        return self.remembered(root.signed) == 0

    def _new_root(self, *, anew: bool = False) -> bytes:
        """A root with new keys, kept on this machine; the store is not touched."""
        registry = self.registry
        if registry.root_file:
            raise InputError(
                f"registry {registry.url}: a new root is needed, and AKIDB_REGISTRY_ROOT names {registry.root_file}",
                hint="unset it for this command; afterwards set it to the new root.json",
            )
        if registry.own_root.is_file() and self.memory.is_file() and not registry.is_local and not anew:
            raise InputError(
                f"registry {registry.url} is not there, and this machine keeps the root and keys of one of that name in {registry.folder}",
                hint="check the endpoint and the buckets; to make another registry all the same, move that folder away first",
            )
        root = metadata.new_root(self.keys, self.now())
        self._keep(registry.own_root, root)
        return root

    def _keep(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
        except OSError as error:
            raise unreachable(str(path.parent), f"keeping {path.name}", error) from error

    def _store_root(self, root: bytes) -> None:
        try:
            self.registry.channels.create(metadata.root_key(1), root)
        except AlreadyExistsError:
            self.registry.own_root.unlink()
            raise

    # --- making it anew

    def start_anew(self, report: Report = lambda _: None) -> None:
        """Replace the registry by one with new keys and a new root: when the root key is lost or stolen. Every client needs the new root.

        What the old metadata says of releases is taken over. Interrupted, it is run again.

        Raises:
            IntegrityError: the old metadata does not verify any more: remove `tuf/` from area channels, then `init` adopts the releases.
        """
        channels, kept = self.registry.channels, self.registry.folder / "starting-anew.json"
        with self.hold("starting the registry anew", report=report) as held:
            if not kept.is_file():
                known = to_documents(self.state().index)
                kinds = {path.partition("/")[0] for path in known}
                self._keep(kept, json.dumps({kind: known[index_path(kind)].decode() for kind in kinds}).encode())
            index = from_documents({kind: text.encode() for kind, text in json.loads(kept.read_bytes()).items()})
            root = self._new_root(anew=True)
            channels.delete([info.key for info in channels.list(metadata.METADATA)])
            self._store_root(root)
            Edit(self, held, metadata.empty_state(root)).commit(index)
            kept.unlink()

    # --- keys

    def rotate_keys(self, roles: Sequence[str]) -> dict[str, str]:
        """Replace the keys of roles; returns each role's new key id.

        Three steps, each of which leaves a registry that verifies: trust the old keys and new ones, sign everything with both, trust the
        new ones alone. Run again after an interruption. Roles whose keys are all lost must be named together, since everything is signed.
        """
        with self.editing(f"rotating the keys of {', '.join(roles)}") as edit:
            edit.change_root(roles, add=True)
            edit.commit(edit.index)
            edit.change_root(roles, drop=True)
            return {role: str(edit.state.root.signed.roles[role].keyids[-1]) for role in roles}

    def refresh(self, *, force: bool = True) -> metadata.State:
        """Sign what is there anew, so that it lasts its whole time again; without `force` only what ends soon. The root, which lasts longest
        and whose key is best kept elsewhere, only if its key is there."""
        with self.editing("renewing the metadata") as edit:
            if force or self.ends_soon(edit.state):
                edit.commit(edit.index)
            if self._is_due(edit.state, "root") and metadata.holds_key(edit.state, self.keys, "root"):
                edit.change_root(("root",))
            return edit.state

    def ends_soon(self, state: metadata.State) -> bool:
        """Whether what is signed anew with every commit is past a good part of its time."""
        return any(self._is_due(state, role) for role in ("targets", "snapshot", "timestamp"))

    def _is_due(self, state: metadata.State, role: str) -> bool:
        return bool(state.expiries()[role] - self.now() < metadata.RENEW_BEFORE[role])

    def now_text(self) -> str:
        """The moment, RFC 3339."""
        return self.now().astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
