"""Where dumps are taken: a file of this machine, a file of a host over SSH, the fixtures that are released.

Which databases staging has stands in the inventory: `akidb_databases: {metadata: /var/lib/akidb/data/metadata.db}` of a host.
"""

from __future__ import annotations

import errno
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from akidb_pipelines.backups.dump import database_name
from akidb_pipelines.backups.sqlite import snapshot
from akidb_pipelines.errors import InputError, IntegrityError, OutsideError
from akidb_pipelines.machines.inventory import Inventory, open_inventory
from akidb_pipelines.machines.ssh import Connection, Process
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.index import LATEST
from akidb_pipelines.store.pull import Puller
from akidb_pipelines.store.registry import Registry, open_registry

DATABASES = "akidb_databases"
"""Variable of a host in the inventory: path by name."""
_FIXTURES = "fixtures"
_PATIENCE_S = 900.0
"""A host that says nothing for so long is given up; VACUUM INTO of some gigabytes takes minutes."""
_PIECE = 1 << 20
_MOST_BYTES = 1 << 20
"""No answer is longer."""


class Database(Protocol):
    """A database that can be dumped."""

    @property
    def name(self) -> str:
        """Of its dumps: lower-case letters, digits and dashes."""
        ...

    @property
    def where(self) -> str:
        """Where it lives, for people."""
        ...

    def dump(self, target: Path) -> datetime:
        """Copy it into a new file; says as of when: all that was committed before is in it.

        Raises:
            InputError: it is no database.
            OutsideError: it cannot be reached, or there is no room.
        """
        ...


@dataclass(frozen=True)
class LocalDatabase:
    """A file of this machine."""

    name: str
    path: Path

    @property
    def where(self) -> str:
        """See Database."""
        return f"file://{self.path}"

    def dump(self, target: Path) -> datetime:
        """See Database."""
        return snapshot(self.path, target)


@dataclass(frozen=True)
class HostDatabase:
    """A file of a host that is reached over SSH."""

    name: str
    connection: Connection
    path: str

    @property
    def where(self) -> str:
        """See Database."""
        return f"ssh://{self.connection.host.name}{self.path}"

    def dump(self, target: Path) -> datetime:
        """See Database."""
        tried = f"dumping {self.path}"
        process = self._run("dump", self.path)
        try:
            told = self._reply(process, tried)
            digest, left = hashlib.sha256(), int(told["size"])
            with target.open("wb") as out:
                while left:
                    block = process.read(min(left, _PIECE), _PATIENCE_S)
                    digest.update(block)
                    out.write(block)
                    left -= len(block)
            if process.read(32, _PATIENCE_S) != digest.digest():
                raise IntegrityError(f"{self.where}: other bytes arrived than were sent", hint="try again; look at the network")
        except OSError as error:
            target.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise OutsideError(
                    f"{tried}: writing {target}: {error}", hint="free some space, or point AKIDB_HOME elsewhere"
                ) from error
            raise process.lost(tried, error) from error
        finally:
            process.close()
        return datetime.fromisoformat(str(told["snapshot_at"])).astimezone(UTC)

    def exists(self) -> bool:
        """Whether it is there.

        Raises:
            OutsideError: the host cannot be asked.
        """
        process = self._run("exists", self.path)
        try:
            return bool(self._reply(process, "looking")["exists"])
        except OSError as error:
            raise process.lost("looking", error) from error
        finally:
            process.close()

    def put(self, database: Path, sha256: str) -> None:
        """Put a database there, in the place of what is there; whoever uses that must have been stopped.

        Raises:
            IntegrityError: other bytes arrived.
            OutsideError: it cannot be reached or written, or somebody uses what is there; that is as it was.
        """
        tried = f"restoring {self.path}"
        process = self._run("restore", self.path, str(database.stat().st_size), sha256)
        try:
            with database.open("rb") as source:
                while block := source.read(_PIECE):
                    process.write(block, _PATIENCE_S)
            self._reply(process, tried)
        except OSError as error:
            raise process.lost(tried, error) from error
        finally:
            process.close()

    def _run(self, *arguments: str) -> Process:
        text = Path(__file__).with_name("host_agent.py").read_text(encoding="utf-8")
        return self.connection.run([self.connection.host.python, "-c", text, *arguments])

    def _reply(self, process: Process, tried: str) -> dict[str, Any]:
        (length,) = struct.unpack("<I", process.read(4, _PATIENCE_S))
        if length > _MOST_BYTES:
            raise OutsideError(
                f"{self.where}: {tried}: it said something else", hint="a login shell must print nothing before the command"
            )
        told: dict[str, Any] = json.loads(process.read(length, _PATIENCE_S))
        if "error" in told:
            if "has digest" in str(told["error"]):
                raise IntegrityError(f"{self.where}: {told['error']}", hint="try again; look at the network")
            raise OutsideError(
                f"{self.where}: {tried}: {told['error']}", hint=f"look at it: ssh {self.connection.host.name} ls -l {self.path}"
            )
        return told


@dataclass(frozen=True)
class ReleasedFixture:
    """The newest released fixture of a profile: a database that is there without any staging."""

    name: str
    registry: Registry
    cache: Path
    file: str

    @property
    def where(self) -> str:
        """See Database."""
        return f"{self.registry.url}: {_FIXTURES} {LATEST}, {self.file}"

    def dump(self, target: Path) -> datetime:
        """See Database."""
        moment = datetime.now(UTC)
        release = self.registry.head(_FIXTURES)
        only = tuple(f for f in release.manifest.files if f.name == self.file)
        if not only:
            raise InputError(f"{self.where} is no longer released", hint="akidb-pipelines fixtures build")
        folder = target.parent / "pulled"
        Puller(self.registry, self.cache).place(replace(release.manifest, files=only), release.id, folder)
        snapshot(folder / self.file, target)
        return moment


def open_databases(settings: Settings) -> list[Database]:
    """Every database that settings describe: of the inventory's hosts, and the released fixtures.

    Raises:
        InputError: the inventory says something wrong.
        OutsideError: the registry cannot be reached.
    """
    return [*databases_of(open_inventory(settings)), *_fixtures(settings)]


def databases_of(inventory: Inventory) -> Iterator[Database]:
    """Every database of an inventory.

    Raises:
        InputError: something is wrong; the message names the host.
    """
    for host, told in inventory.variables.items():
        databases = told.get(DATABASES, {})
        if not isinstance(databases, dict) or not all(str(path).startswith("/") for path in databases.values()):
            raise InputError(
                f"inventory {inventory.source}: {host}: {DATABASES} is {databases!r}",
                hint="write a mapping of names to absolute paths, such as {metadata: /var/lib/akidb/data/metadata.db}",
            )
        for label, path in databases.items():
            name = database_name(f"{host}-{label}")
            if told.get("ansible_connection") == "local":
                yield LocalDatabase(name, Path(str(path)))
            else:
                yield HostDatabase(name, Connection(inventory.hosts[host], inventory.hosts), str(path))


def _fixtures(settings: Settings) -> Iterator[Database]:
    registry = open_registry(settings)
    if registry.index().head(_FIXTURES, LATEST) is None:
        return
    for file in registry.head(_FIXTURES).manifest.files:
        if file.name.endswith(".db"):
            yield ReleasedFixture(f"{_FIXTURES}-{Path(file.name).stem.lower()}", registry, settings.cache, file.name)
