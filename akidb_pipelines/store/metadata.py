"""The publisher's side of the signed metadata (https://theupdateframework.github.io/specification/latest/, tuf's metadata API).

    channels/tuf/metadata/{N.root,N.targets,N.snapshot}.json     written once
    channels/tuf/metadata/timestamp.json                         compared and swapped: the only commit
    channels/tuf/targets/<folder>/<sha256>.<file>                contents of targets

`load` verifies what is there before anything is built on it, so that a publisher never signs what somebody else put into the store. Unlike a
client it does not mind expired metadata: renewing it is its job. Whoever dies between N.targets and timestamp.json leaves files that
nothing names; the next takes the next free number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from akidb_pipelines.errors import CheckError, IntegrityError, OutsideError
from akidb_pipelines.store.index import Entry, Index, Version, from_documents, kind_of, listed_provenances, to_documents
from akidb_pipelines.store.keys import ROLES, KeyRing
from akidb_pipelines.store.manifest import ReleaseManifest
from akidb_pipelines.store.objects import AlreadyExistsError, MissingObjectError, ObjectStore

if TYPE_CHECKING:
    from securesystemslib.signer import Signer
    from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

METADATA = "tuf/metadata/"
TARGETS = "tuf/targets/"
TIMESTAMP = f"{METADATA}timestamp.json"

LIFETIMES = {
    "root": timedelta(days=730),
    "targets": timedelta(days=365),
    "snapshot": timedelta(days=365),
    "timestamp": timedelta(days=35),  # one missed week stops nobody's CI
}
RENEW_BEFORE = {role: lifetime / 2 for role, lifetime in LIFETIMES.items()} | {"timestamp": timedelta(days=28)}
"""How long before its end a role is signed anew when somebody publishes anyway."""
WARN_BEFORE = timedelta(days=10)

_MOST_ROOTS = 1000
_MOST_BYTES = {"root": 512_000, "timestamp": 16_384, "snapshot": 2_000_000, "targets": 5_000_000}
"""tuf's client's limits: what is longer is not read to its end."""


@dataclass(frozen=True)
class State:
    """Verified metadata as it stands in the store."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    timestamp_bytes: bytes
    index: Index

    def next_version(self, role: str) -> int:
        """The version of a role that the next commit makes."""
        return int(getattr(self, role).signed.version) + 1 if self.timestamp_bytes else 1

    def expiries(self) -> dict[str, datetime]:
        """When each role's metadata ends."""
        return {role: getattr(self, role).signed.expires for role in ROLES}


def root_key(version: int) -> str:
    """Where a version of the root metadata is."""
    return f"{METADATA}{version}.root.json"


def target_key(path: str, sha256: str) -> str:
    """Where a target's content is: TUF's consistent snapshots name it by its digest."""
    folder, _, file = path.rpartition("/")
    return f"{TARGETS}{folder}/{sha256}.{file}"


def live_keys(state: State) -> set[str]:
    """Where everything is that the state names."""
    targets = {target_key(path, target.hashes["sha256"]) for path, target in state.targets.signed.targets.items()}
    listed = {target_key(e.path, e.provenance_sha256) for e in state.index.entries.values()}
    versions = {f"{METADATA}{getattr(state, role).signed.version}.{role}.json" for role in ("targets", "snapshot")}
    return {TIMESTAMP, *targets, *listed, *versions}


def named_by(targets: bytes) -> set[str]:
    """Where everything is that some earlier role `targets` names."""
    from tuf.api.metadata import Metadata

    role: Metadata[Targets] = Metadata.from_bytes(targets)
    return {target_key(path, target.hashes["sha256"]) for path, target in role.signed.targets.items()}


_PUT_BACK = "put its newest good version back, see docs/runbooks/pull-fails.md"

# --- reading


def load(channels: ObjectStore, trusted_root: bytes) -> State | None:
    """Read and verify everything, beginning with a root that is trusted; None when nothing was ever committed.

    Raises:
        IntegrityError: something is not signed as the root demands, or not what the document above it names.
    """
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata

    try:
        root: Metadata[Root] = Metadata.from_bytes(trusted_root)
        _verify(root, "root", root)
        for version in range(root.signed.version + 1, _MOST_ROOTS):
            try:
                data = _read(channels, root_key(version), "root")
            except MissingObjectError:
                break
            newer: Metadata[Root] = Metadata.from_bytes(data)
            _verify(root, "root", newer)
            _verify(newer, "root", newer)
            if newer.signed.version != version:
                raise RepositoryError(f"{root_key(version)} has version {newer.signed.version}")
            root = newer
        try:
            timestamp_bytes = _read(channels, TIMESTAMP, "timestamp")
        except MissingObjectError:
            return None
        timestamp: Metadata[Timestamp] = Metadata.from_bytes(timestamp_bytes)
        _verify(root, "timestamp", timestamp)
        named = timestamp.signed.snapshot_meta
        data = _read(channels, f"{METADATA}{named.version}.snapshot.json", "snapshot")
        named.verify_length_and_hashes(data)
        snapshot: Metadata[Snapshot] = Metadata.from_bytes(data)
        _verify(root, "snapshot", snapshot)
        named = snapshot.signed.meta["targets.json"]
        data = _read(channels, f"{METADATA}{named.version}.targets.json", "targets")
        named.verify_length_and_hashes(data)
        targets: Metadata[Targets] = Metadata.from_bytes(data)
        _verify(root, "targets", targets)
    except MissingObjectError as error:
        raise IntegrityError(f"{error.message}, though the signed metadata names it", hint=_PUT_BACK) from error
    except (RepositoryError, ValueError, KeyError) as error:
        raise IntegrityError(
            f"registry {channels.url}: its metadata does not verify: {error}",
            hint="somebody changed it by hand, or the trusted root is another registry's; docs/runbooks/pull-fails.md",
        ) from error
    index = read_index(targets.signed, lambda target: read_target(channels, target))
    return State(root, targets, snapshot, timestamp, timestamp_bytes, index)


def read_index(targets: Targets, read: Callable[[TargetFile], bytes]) -> Index:
    """The index that a verified role `targets` names; `read` brings a target's content and verifies it."""
    kinds = {kind: target for path, target in targets.targets.items() if (kind := kind_of(path))}
    return from_documents({kind: read(target) for kind, target in kinds.items()})


def read_target(channels: ObjectStore, target: TargetFile) -> bytes:
    """A target's content.

    Raises:
        IntegrityError: it is not what the signed metadata names.
    """
    from tuf.api.exceptions import LengthOrHashMismatchError

    try:
        # One byte more than there should be is enough to know: an endless answer is not waited for.
        data = channels.read(target_key(target.path, target.hashes["sha256"]), 0, target.length + 1)
    except MissingObjectError as error:
        raise IntegrityError(f"{error.message}, though the signed metadata names it", hint=_PUT_BACK) from error
    try:
        target.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        hint = "somebody who may not sign changed the store; docs/runbooks/pull-fails.md"
        raise IntegrityError(f"registry {channels.url}: {target.path} is not the signed one: {error}", hint=hint) from error
    return data


def _read(channels: ObjectStore, key: str, role: str) -> bytes:
    data = channels.read(key, 0, _MOST_BYTES[role] + 1)
    if len(data) > _MOST_BYTES[role]:
        raise IntegrityError(f"registry {channels.url}: {key} is longer than {_MOST_BYTES[role]} bytes", hint=_PUT_BACK)
    return data


def _verify(root: Metadata[Root], role: str, metadata: Metadata[Any]) -> None:
    root.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


# --- writing


def commit(channels: ObjectStore, state: State, index: Index, keys: KeyRing, now: datetime) -> State:
    """Make an index the one that clients see: sign and store targets and snapshot, then swap the timestamp.

    Provenances must be there already (`put_entry`).

    Raises:
        SwapError: somebody else published meanwhile; nothing that clients see was changed.
        CheckError: a key that the root demands is not in the ring.
    """
    from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

    signers = _signers(state.root.signed, keys, ("targets", "snapshot", "timestamp"))
    targets = Targets(expires=_end(now, "targets"), targets=_put_targets(channels, index))
    targets_bytes = _put_next(channels, "targets", Metadata(targets), state.next_version("targets"), signers["targets"])
    snapshot = Snapshot(expires=_end(now, "snapshot"), meta={"targets.json": _named(targets.version, targets_bytes)})
    snapshot_bytes = _put_next(channels, "snapshot", Metadata(snapshot), state.next_version("snapshot"), signers["snapshot"])
    timestamp: Metadata[Timestamp] = Metadata(
        Timestamp(
            version=state.next_version("timestamp"),
            expires=_end(now, "timestamp"),
            snapshot_meta=MetaFile(snapshot.version, len(snapshot_bytes), {"sha256": _sha256(snapshot_bytes)}),
        )
    )
    timestamp_bytes = _signed(timestamp, signers["timestamp"])
    channels.swap(TIMESTAMP, timestamp_bytes, state.timestamp_bytes or None)
    return State(state.root, Metadata(targets), Metadata(snapshot), timestamp, timestamp_bytes, index)


def put_entry(channels: ObjectStore, manifest: ReleaseManifest, version: Version, provenance: bytes, now: str) -> Entry:
    """Store a release's provenance as a target; returns the index's entry of the release."""
    entry = Entry(manifest.kind, version, manifest.sha256, manifest.size_bytes, now, _sha256(provenance), len(provenance))
    channels.create(target_key(entry.path, entry.provenance_sha256), provenance)
    return entry


def _put_targets(channels: ObjectStore, index: Index) -> dict[str, TargetFile]:
    """Store an index's documents; returns them as targets, with the provenances."""
    from tuf.api.metadata import TargetFile

    targets = {}
    for path, content in to_documents(index).items():
        targets[path] = TargetFile(len(content), {"sha256": _sha256(content)}, path)
        channels.create(target_key(path, _sha256(content)), content)
    for entry in listed_provenances(index):
        targets[entry.path] = TargetFile(entry.provenance_bytes, {"sha256": entry.provenance_sha256}, entry.path)
    return targets


def _put_next(channels: ObjectStore, role: str, metadata: Metadata[Any], version: int, signers: list[Signer]) -> bytes:
    """Store metadata under the next free version, at least `version`."""
    skipped = False
    while True:
        metadata.signed.version = version
        data = _signed(metadata, signers)
        try:
            channels.create(f"{METADATA}{version}.{role}.json", data)
            return data
        except AlreadyExistsError:
            # A dead publisher's. There may be many: look once, then only count.
            version = version + 1 if skipped else max(version, _highest(channels, role)) + 1
            skipped = True


def _highest(channels: ObjectStore, role: str) -> int:
    ending = f".{role}.json"
    numbers = (o.key.removeprefix(METADATA).removesuffix(ending) for o in channels.list(METADATA) if o.key.endswith(ending))
    return max((int(n) for n in numbers if n.isdecimal()), default=0)


# --- the ceremony


def new_root(keys: KeyRing, now: datetime) -> bytes:
    """Make keys for every role and a first root metadata of them. Nothing is stored but the keys."""
    from tuf.api.metadata import Metadata, Root

    root = Root(expires=_end(now, "root"), consistent_snapshot=True)
    for role in ROLES:
        root.add_key(keys.generate(role), role)
    return _signed(Metadata(root), _signers(root, keys, ("root",))["root"])


def empty_state(root: bytes) -> State:
    """What a registry holds before its first commit."""
    from tuf.api.metadata import Metadata, Snapshot, Targets, Timestamp

    return State(
        root=Metadata.from_bytes(root),
        targets=Metadata(Targets(version=1)),
        snapshot=Metadata(Snapshot(version=1)),
        timestamp=Metadata(Timestamp(version=1)),
        timestamp_bytes=b"",
        index=Index(),
    )


def change_root(
    channels: ObjectStore, state: State, keys: KeyRing, now: datetime, roles: Sequence[str], *, drop: bool, add: bool
) -> State:
    """Store the next root metadata, in which roles get a new key each, or lose all but their newest.

    Clients accept it when the keys of the root before *and* its own have signed it.
    """
    from tuf.api.metadata import Metadata

    root: Root = Metadata.from_bytes(state.root.to_bytes()).signed
    earlier = _signers(root, keys, ("root",))["root"]
    root.version += 1
    root.expires = _end(now, "root")
    for role in roles:
        if drop:
            for keyid in root.roles[role].keyids[:-1]:
                root.revoke_key(keyid, role)
        if add:
            root.add_key(keys.generate(role), role)
    signers = {s.public_key.keyid: s for s in (*earlier, *_signers(root, keys, ("root",))["root"])}
    metadata: Metadata[Root] = Metadata(root)
    channels.create(root_key(root.version), _signed(metadata, list(signers.values())))
    return State(metadata, state.targets, state.snapshot, state.timestamp, state.timestamp_bytes, state.index)


def holds_key(state: State, keys: KeyRing, role: str) -> bool:
    """Whether a ring has a key that signs for a role."""
    return any(keyid in keys.signers() for keyid in state.root.signed.roles[role].keyids)


def _signers(root: Root, keys: KeyRing, roles: tuple[str, ...]) -> dict[str, list[Signer]]:
    """For each role the signers that the root demands and the ring has."""
    held = keys.signers()
    found = {role: [held[k] for k in root.roles[role].keyids if k in held] for role in roles}
    for role, signers in found.items():
        if len(signers) < root.roles[role].threshold:
            wanted = ", ".join(k[:8] for k in root.roles[role].keyids)
            raise CheckError(
                f"no key to sign role {role}: the registry demands {wanted}; {keys.where} holds {len(held)} others",
                hint="restore the key from its backup, or point AKIDB_REGISTRY_KEYS at it; docs/runbooks/registry-key-lost.md",
            )
    return found


def _signed(metadata: Metadata[Any], signers: list[Signer]) -> bytes:
    from securesystemslib.exceptions import Error as SigningError
    from tuf.api.exceptions import RepositoryError
    from tuf.api.serialization.json import JSONSerializer

    metadata.signatures.clear()
    try:
        for signer in signers:
            metadata.sign(signer, append=True)
    except (RepositoryError, SigningError) as error:
        raise OutsideError(f"signing: {error}: {error.__cause__ or ''}", hint="check the key store, then try again") from error
    return metadata.to_bytes(JSONSerializer(compact=True))


def _named(version: int, data: bytes) -> Any:
    from tuf.api.metadata import MetaFile

    return MetaFile(version, len(data), {"sha256": _sha256(data)})


def _end(now: datetime, role: str) -> datetime:
    return (now + LIFETIMES[role]).astimezone(UTC).replace(microsecond=0)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
