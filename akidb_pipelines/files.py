"""Small certainties about files that several packages need: digests, whole-or-nothing writes, sweeping after the dead."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from akidb_pipelines.errors import OutsideError

BLOCK_BYTES = 1 << 20
_DAY_S = 24 * 3600


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_whole(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a reader, or a machine that loses power, sees the old content or the new and never a part."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing_out(path: Path) -> Iterator[None]:
    """Bring a file's bytes to the disk while the block runs: what would be waited for afterwards happens beside it.

    Raises:
        OSError: they cannot be written.
    """
    with path.open("rb") as handle, ThreadPoolExecutor(1) as beside:
        done = beside.submit(os.fsync, handle.fileno())
        yield
        done.result()


def temporary_prefix(prefix: str) -> str:
    """Begin a temporary name with its owner, for `sweep`: `<prefix><host>.<pid>-`."""
    return f"{prefix}{process_name()}-"


def process_name() -> str:
    """This process as `<host>.<pid>`."""
    return f"{_host()}.{os.getpid()}"


def is_dead(process: str) -> bool:
    """Whether a process of this host, as `process_name` wrote it, is gone. Of other hosts one cannot know: False."""
    host, _, pid = process.rpartition(".")
    return host == _host() and not _alive(int(pid))


def sweep(folder: Path, prefix: str) -> None:
    """Remove what dead processes left: entries named by `temporary_prefix` whose process on this host is gone.

    Of other hosts, or other containers, that share the folder one cannot know; theirs go after a day.
    """
    for path in folder.glob(f"{prefix}*"):
        match = re.match(r"(.*\.\d+)-", path.name.removeprefix(prefix))
        if not match:
            continue
        try:
            ours = match[1].startswith(f"{_host()}.")
            dead = is_dead(match[1]) if ours else time.time() - path.stat().st_mtime > _DAY_S
        except FileNotFoundError:
            continue  # its owner was faster
        if dead and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif dead:
            path.unlink(missing_ok=True)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder for temporary work, gone afterwards; also sweeps what dead processes left there.

    Raises:
        OutsideError: it cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent, "work-")
        folder = Path(tempfile.mkdtemp(prefix=temporary_prefix("work-"), dir=parent))
    except OSError as error:
        raise OutsideError(f"temporary work in {parent}: {error}", hint="point AKIDB_HOME at a folder you may write") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _host() -> str:
    """This machine and process namespace: host names repeat (`localhost`, containers of one compose file), and a pid means something in its
    own namespace only. Stays the same over a reboot, whose dead processes must be known as dead."""
    machine, namespace = Path("/etc/machine-id"), Path("/proc/self/ns/pid")
    marks = [machine.read_text() if machine.is_file() else "", str(namespace.readlink()) if namespace.is_symlink() else ""]
    told = hashlib.sha256("".join(marks).encode()).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9]", "_", f"{socket.gethostname()}_{told}")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
