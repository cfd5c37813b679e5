"""What runs on a host for a dump of one of its databases, or to put one there: standard library of Python 3.8, sent over SSH each time.

dump PATH               writes <length of what follows, 4 bytes><{"size", "snapshot_at"} or {"error"}><the copy><its SHA-256, 32 bytes>
restore PATH SIZE HEX   reads the database, verifies it, puts it in place; writes <length, 4 bytes><{"ok"} or {"error"}>
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import sqlite3
import struct
import sys

BLOCK = 1 << 20


def tell(told: dict[str, object]) -> None:
    """Say something as JSON, after its length."""
    text = json.dumps(told).encode()
    sys.stdout.buffer.write(struct.pack("<I", len(text)) + text)
    sys.stdout.buffer.flush()


def temporary(path: str, what: str) -> str:
    """A name beside a file, and nothing left there by a process that is gone."""
    folder, name = os.path.split(os.path.abspath(path))
    prefix = f".{name}.akidb-{what}-"
    for entry in os.listdir(folder):
        if entry.startswith(prefix) and not os.path.exists("/proc/" + entry[len(prefix) :]):
            os.unlink(os.path.join(folder, entry))
    return os.path.join(folder, prefix + str(os.getpid()))


def dump(path: str) -> None:
    """See the module."""
    with open(path, "rb") as handle:
        if handle.read(16) != b"SQLite format 3\0":
            raise ValueError("it is no SQLite database")
    copy = temporary(path, "dump")
    try:
        database = sqlite3.connect(path, timeout=30, isolation_level=None)
        moment = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017 - Python 3.8
        database.execute("VACUUM INTO ?", (copy,))
        database.close()
        source = open(copy, "rb")  # noqa: SIM115 - read below, when its name is gone
    finally:
        if os.path.exists(copy):
            os.unlink(copy)  # it stays readable; whoever kills us leaves nothing
    size, digest = os.fstat(source.fileno()).st_size, hashlib.sha256()
    tell({"size": size, "snapshot_at": moment.isoformat()})
    for block in iter(lambda: source.read(BLOCK), b""):
        digest.update(block)
        sys.stdout.buffer.write(block)
    sys.stdout.buffer.write(digest.digest())
    sys.stdout.buffer.flush()


def expect_unused(path: str) -> None:
    """Nobody has it open, as far as an exclusive lock can tell; what is no database, nobody can use."""
    database = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        database.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise ValueError(f"it is in use ({error}): stop what uses it first") from error
    except sqlite3.DatabaseError:
        pass
    finally:
        database.close()


def restore(path: str, size: int, sha256: str) -> None:
    """See the module."""
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    incoming = temporary(path, "restore")
    digest, left = hashlib.sha256(), size
    try:
        with open(incoming, "wb") as out:
            while left:
                block = sys.stdin.buffer.read(min(left, BLOCK))
                if not block:
                    raise ValueError("the connection was lost")
                digest.update(block)
                out.write(block)
                left -= len(block)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != sha256:
            raise ValueError(f"what arrived has digest {digest.hexdigest()}, sent was {sha256}")
        if os.path.exists(path):
            expect_unused(path)
        # As what was there; a new one belongs to whom the folder belongs, and nobody else reads it.
        before = os.stat(path if os.path.exists(path) else folder)
        os.chown(incoming, before.st_uid, before.st_gid)
        os.chmod(incoming, before.st_mode & 0o777 if os.path.exists(path) else 0o600)
        for sidecar in ("-wal", "-shm", "-journal"):
            if os.path.exists(path + sidecar):
                os.unlink(path + sidecar)  # they belong to another file, and would destroy this one
        os.replace(incoming, path)
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    finally:
        if os.path.exists(incoming):
            os.unlink(incoming)
    tell({"ok": True})


def main() -> None:
    """Do what the arguments say; whatever goes wrong is told, not raised."""
    verb, path = sys.argv[1:3]
    try:
        if verb == "dump":
            dump(path)
        elif verb == "exists":
            tell({"exists": os.path.exists(path)})
        else:
            restore(path, int(sys.argv[3]), sys.argv[4])
    except (OSError, ValueError, sqlite3.Error) as error:
        tell({"error": str(error)})


if __name__ == "__main__":
    main()
