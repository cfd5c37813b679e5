"""Terraform's state: what it says of itself, and copies of it in the versioned area `tfstate`.

    terraform/<name>/<lineage>/<serial>-<digest>.tfstate    a copy, never changed
    terraform/<name>/newest.json                            which is the newest; moves forward only

A state names its `lineage` (one for each time a state was begun) and a `serial` that counts up. `terraform plan` finds nothing wrong with
a stale state, so what decides is serial and lineage. A state holds secrets: the area is to be readable by few.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from akidb_pipelines.catalog.catalog import CataloguedBackup
from akidb_pipelines.errors import CheckError, InputError, IntegrityError, OutsideError
from akidb_pipelines.files import write_whole
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.areas import TFSTATE, area
from akidb_pipelines.store.objects import MissingObjectError, ObjectStore

NAME = "staging"
_ROOT = "terraform/"
_VERSION = 4


@dataclass(frozen=True)
class State:
    """A state, parsed as far as backups need it."""

    serial: int
    lineage: str
    terraform: str
    """Version that wrote it."""
    resources: tuple[str, ...]
    """Addresses such as `oci_core_instance.staging`; the inventory of what it manages."""
    data: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        """Of its bytes."""
        return hashlib.sha256(self.data).hexdigest()


def parse_state(data: bytes, source: str) -> State:
    """Read a state's bytes; `source` names it in messages.

    Raises:
        IntegrityError: it is truncated, or no state.
    """
    try:
        raw: dict[str, Any] = json.loads(data)
        if raw["version"] != _VERSION:
            raise IntegrityError(f"{source}: state format {raw['version']}, {_VERSION} is known", hint="upgrade akidb-pipelines")
        resources = tuple(f"{r['type']}.{r['name']}" for r in raw["resources"] if r["mode"] == "managed")
        serial, lineage = raw["serial"], raw["lineage"]
        if not isinstance(serial, int) or not isinstance(lineage, str) or not lineage:
            raise ValueError("serial or lineage is missing")
        return State(serial, lineage, str(raw.get("terraform_version", "")), resources, data)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{source}: this is no Terraform state, or not all of one ({len(data)} bytes): {error!r}",
            hint="nothing was kept; fetch it again, or bring the last copy back: akidb-pipelines backups restore terraform",
        ) from error


@dataclass(frozen=True)
class Kept:
    """A copy of a state."""

    name: str
    serial: int
    lineage: str
    sha256: str
    size_bytes: int
    resources: int
    taken_at: str
    """RFC 3339."""

    @property
    def key(self) -> str:
        """Where it lies."""
        return f"{_ROOT}{self.name}/{self.lineage}/{self.serial:08}-{self.sha256[:12]}.tfstate"

    def to_json(self) -> bytes:
        """Stable bytes."""
        return (json.dumps(asdict(self), sort_keys=True) + "\n").encode()

    def catalogued(self) -> CataloguedBackup:
        """As the catalog keeps it: a backup like any other."""
        return CataloguedBackup(
            backup_id=f"terraform-{self.name}/{self.taken_at[:10]}/r{self.serial}",
            database=f"terraform-{self.name}",
            day=self.taken_at[:10],
            revision=max(self.serial, 1),
            record_sha256=hashlib.sha256(self.to_json()).hexdigest(),
            sha256=self.sha256,
            size_bytes=self.size_bytes,
            stored_bytes=self.size_bytes,
            row_count=self.resources,
            canary=None,
            snapshot_at=self.taken_at,
        )


@dataclass(frozen=True)
class StateShelf:
    """The copies of states in an area of the store."""

    area: ObjectStore

    def keep(self, state: State, name: str = NAME, *, new_lineage: bool = False) -> tuple[Kept, bool]:
        """Copy a state; also says whether it is new.

        Args:
            state: it.
            name: which one it is of.
            new_lineage: whether it was begun anew on purpose.

        Raises:
            CheckError: it is older than the newest copy, was changed without a new serial, or is of another lineage: nothing is kept.
        """
        before, document = self._newest(name)
        if before:
            _expect_next(before, state, new_lineage=new_lineage)
            if before.sha256 == state.sha256:
                return before, False
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        kept = Kept(name, state.serial, state.lineage, state.sha256, len(state.data), len(state.resources), now)
        self.area.create(kept.key, state.data, sha256=state.sha256)
        self.area.swap(f"{_ROOT}{name}/newest.json", kept.to_json(), document)
        return kept, True

    def newest(self, name: str = NAME) -> Kept | None:
        """The newest copy, or None."""
        return self._newest(name)[0]

    def _newest(self, name: str) -> tuple[Kept | None, bytes | None]:
        try:
            document = self.area.read(f"{_ROOT}{name}/newest.json")
            return Kept(**json.loads(document)), document
        except MissingObjectError:
            return None, None
        except (ValueError, TypeError) as error:
            raise IntegrityError(
                f"{self.area.url}: {_ROOT}{name}/newest.json is damaged: {error}", hint="put the object's last version back"
            ) from error

    def state(self, kept: Kept) -> State:
        """The state of a copy, verified.

        Raises:
            IntegrityError: other bytes lie there.
            MissingObjectError: none do.
        """
        data = self.area.read(kept.key)
        state = parse_state(data, f"{self.area.url}/{kept.key}")
        if (state.sha256, state.serial, state.lineage) != (kept.sha256, kept.serial, kept.lineage):
            raise IntegrityError(
                f"{self.area.url}/{kept.key} is not what was kept: serial {state.serial}, lineage {state.lineage}",
                hint="put the object's last version back: the area keeps versions",
            )
        return state

    def restore(self, kept: Kept, target: Path, *, replace: bool = False) -> State:
        """Write a verified copy into a file that only its owner may read.

        Raises:
            InputError: something is there, and is not to be replaced.
            OutsideError: it cannot be written.
        """
        state = self.state(kept)
        if target.exists() and not replace:
            raise InputError(f"{target} exists", hint="--replace puts the copy in its place")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, state.data, mode=0o600)
        except OSError as error:
            raise OutsideError(
                f"restoring Terraform's state to {target}: {error}", hint="check the folder's owner and disk"
            ) from error
        return state

    def copies(self, name: str = NAME) -> Iterator[str]:
        """Keys of all copies."""
        yield from sorted(i.key for i in self.area.list(f"{_ROOT}{name}/") if i.key.endswith(".tfstate"))


def _expect_next(before: Kept, state: State, *, new_lineage: bool) -> None:
    if state.lineage != before.lineage:
        if new_lineage:
            return
        raise CheckError(
            f"Terraform's state is of lineage {state.lineage}, the newest copy of {before.lineage} (serial {before.serial})",
            hint="begun anew on purpose? akidb-pipelines backups run terraform --new-lineage",
        )
    if state.serial < before.serial:
        raise CheckError(
            f"Terraform's state has serial {state.serial}, the newest copy {before.serial}: it is stale",
            hint="bring the copy back: akidb-pipelines backups restore terraform --to FILE, then terraform state push FILE",
        )
    if state.serial == before.serial and state.sha256 != before.sha256:
        raise CheckError(
            f"Terraform's state has serial {state.serial} like the newest copy, and other content: somebody changed it by hand",
            hint="compare both (akidb-pipelines backups restore terraform --to FILE), correct the state, and raise its serial",
        )


def open_states(settings: Settings) -> StateShelf:
    """The copies in the store that settings describe."""
    return StateShelf(area(settings, TFSTATE))


def read_source(settings: Settings) -> State | None:
    """The state that settings name; None when they name none.

    Raises:
        InputError: it is not there.
        IntegrityError: it is truncated, or no state.
        OutsideError: the bucket cannot be reached.
    """
    where = settings.terraform_state
    if not where:
        return None
    scheme, separator, rest = where.partition("://")
    if not separator or scheme == "file":
        path = Path(rest if separator else where).expanduser()
        try:
            return parse_state(path.read_bytes(), str(path))
        except OSError as error:
            raise InputError(
                f"Terraform's state {path}: {os.strerror(error.errno or 0)}",
                hint="check AKIDB_TERRAFORM_STATE; if it is lost: akidb-pipelines backups restore terraform --to FILE",
            ) from error
    return parse_state(_from_bucket(settings, where, scheme, rest), where)


def _from_bucket(settings: Settings, where: str, scheme: str, rest: str) -> bytes:
    if scheme == "s3":
        bucket, _, key = rest.partition("/")
        if bucket and key:
            from akidb_pipelines.store.s3 import S3Bucket

            return S3Bucket(bucket, timeout_s=settings.store_timeout_s).get(key, 0, None)[0]
    if scheme == "oci":
        namespace, _, more = rest.partition("/")
        bucket, _, key = more.partition("/")
        if namespace and bucket and key:
            from akidb_pipelines.store.oci import OciBucket

            return OciBucket(namespace, bucket, settings).get(key, 0, None)[0]
    raise InputError(f"AKIDB_TERRAFORM_STATE is {where!r}", hint="write a path, s3://bucket/key or oci://namespace/bucket/key")
