"""Whether a store keeps the promises that the registry rests on: proved by doing it, on small objects that are removed afterwards.

Each promise is one function that raises when it is broken. A promise that a server breaks silently (a create-only write that overwrites) is
found by looking at what happened, not at what the server said.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from akidb_pipelines.errors import OutsideError, PipelineError
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.areas import AREAS, ARTIFACTS, CHANNELS, area
from akidb_pipelines.store.objects import AlreadyExistsError, ObjectStore, SwapError
from akidb_pipelines.store.remote import RefusedError, RemoteStore
from akidb_pipelines.store.transfer import PART_BYTES

_CLOCK_SLACK = timedelta(minutes=2)


@dataclass(frozen=True)
class StoreFinding:
    """One promise, tried."""

    area: str
    promise: str
    ok: bool
    found: str
    to_do: str = ""


class BrokenPromiseError(PipelineError):
    """The store did something else than it must."""


def examine_store(settings: Settings, url: str = "") -> list[StoreFinding]:
    """Try every area. An area that cannot be reached is one finding; the others are tried all the same.

    Raises:
        InputError: the URL is unusable.
    """
    findings = []
    for name in AREAS:
        store = area(settings, name, url)
        prefix = f".doctor/{secrets.token_hex(6)}"
        try:
            promises = [p for p in _PROMISES if name in p[2]]
            for promise, prove, _ in promises:
                finding = _try(name, promise, prove, store, prefix)
                findings.append(finding)
                if not finding.ok and promise == _PROMISES[0][0]:
                    break  # without permission, the rest says the same again
        finally:
            _tidy(store, prefix)
    return findings


def _try(name: str, promise: str, prove: Callable[[ObjectStore, str], str], store: ObjectStore, prefix: str) -> StoreFinding:
    try:
        return StoreFinding(name, promise, True, prove(store, prefix))
    except PipelineError as error:
        return StoreFinding(name, promise, False, error.message, error.hint)


def _tidy(store: ObjectStore, prefix: str) -> None:
    try:
        for upload in store.unfinished():
            if upload.key.startswith(prefix):
                store.abort(upload)
        store.delete([info.key for info in store.list(f"{prefix}/")])
    except PipelineError:
        return  # what forbids deleting was a finding already


# --- the promises


def _permissions(store: ObjectStore, prefix: str) -> str:
    key = f"{prefix}/permissions"
    store.create(key, b"x")
    if store.read(key) != b"x":
        raise BrokenPromiseError(
            f"{store.url}: what was written is not what is read", hint="use another server, or ask its operators"
        )
    listed = [info.key for info in store.list(f"{prefix}/")]
    store.delete([key])
    if listed != [key] or store.stat(key):
        raise BrokenPromiseError(
            f"{store.url}: a new object is not listed, or a deleted one is still there",
            hint="the server must be consistent from write to read and list; use another server, or ask its operators",
        )
    return "put, get, list and delete"


def _create_only(store: ObjectStore, prefix: str) -> str:
    key = f"{prefix}/create-only"
    store.create(key, b"first")
    try:
        store.create(key, b"other")
    except AlreadyExistsError:
        if store.read(key) == b"first":
            return "a second write was refused"
    raise BrokenPromiseError(
        f"{store.url}: If-None-Match: * was ignored, and the second write replaced the first",
        hint="the server does not know conditional writes: upgrade it (SeaweedFS, MinIO), or on OCI use oci://namespace/name instead "
        "of the S3-compatible endpoint",
    )


def _compare_and_swap(store: ObjectStore, prefix: str) -> str:
    key = f"{prefix}/swap"
    store.swap(key, b"1", None)
    store.swap(key, b"2", b"1")
    try:
        store.swap(key, b"3", b"1")
    except SwapError:
        _stale_etag(store, key)
        if store.read(key) == b"2":
            return "a stale write was refused"
    raise BrokenPromiseError(
        f"{store.url}: If-Match was ignored, and a stale write replaced a newer one",
        hint="the server does not know conditional writes: upgrade it, or on OCI use oci://namespace/name",
    )


def _stale_etag(store: ObjectStore, key: str) -> None:
    """`swap` looks before it writes; the server's own comparison is what counts when two are at it, so it is asked by itself."""
    if not isinstance(store, RemoteStore):
        return
    _, etag = store.bucket.get(key, 0, None)
    data = b"2"
    store.bucket.put(key, data, hashlib.sha256(data).hexdigest(), etag=etag)
    stale = '"00000000000000000000000000000000"'
    try:
        store.bucket.put(key, b"4", hashlib.sha256(b"4").hexdigest(), etag=stale)
    except RefusedError:
        return


def _ranges(store: ObjectStore, prefix: str) -> str:
    key, data = f"{prefix}/ranges", bytes(range(256))
    store.create(key, data)
    got = (store.read(key, 10, 5), store.read(key, 250, 100), store.read(key, 256, 10))
    if got != (data[10:15], data[250:], b""):
        raise BrokenPromiseError(
            f"{store.url}: a range of an object came back as something else",
            hint="a proxy on the way may drop Range headers: go round it, or ask its operators",
        )
    return "ranges come back exactly"


def _checksums(store: ObjectStore, prefix: str) -> str:
    key, data = f"{prefix}/checksums", os.urandom(1024)
    if not isinstance(store, RemoteStore):
        return "read back and compared"
    try:
        store.bucket.put(key, data, hashlib.sha256(b"other").hexdigest(), absent=True)
    except OutsideError:
        return "bytes that do not match their digest were refused"
    raise BrokenPromiseError(
        f"{store.url}: bytes that do not match the digest sent with them were stored",
        hint="the server does not check x-amz-checksum-sha256: upgrade it; until then only the fresh pull after each release finds "
        "what was altered on the way",
    )


def _parts(store: ObjectStore, prefix: str) -> str:
    key = f"{prefix}/parts"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        size = PART_BYTES + 1
        with path.open("wb") as out:
            out.truncate(size)
        store.create(key, path)
        info = store.stat(key)
        if info is None or info.size_bytes != size or store.read(key, PART_BYTES, 10) != b"\0":
            raise BrokenPromiseError(
                f"{store.url}: an object uploaded in parts is not whole", hint="use another server, or ask its operators"
            )
    return f"{size / 1e6:.0f} MB in two parts"


def _clock(store: ObjectStore, prefix: str) -> str:
    key = f"{prefix}/clock"
    store.create(key, b"x")
    info = store.stat(key)
    if info is None:
        raise BrokenPromiseError(f"{store.url}: a new object is not there", hint="use another server, or ask its operators")
    skew = info.modified_at - datetime.now(UTC)
    if abs(skew) > _CLOCK_SLACK:
        raise BrokenPromiseError(
            f"{store.url}: the store's clock is {skew.total_seconds():+.0f} s from this machine's",
            hint="set this machine's clock (chronyc makestep, timedatectl), or have the server's set: signatures and expiries go wrong",
        )
    return f"{abs(skew).total_seconds():.0f} s apart"


_SIGNED = (ARTIFACTS, CHANNELS)
_PROMISES: tuple[tuple[str, Callable[[ObjectStore, str], str], Collection[str]], ...] = (
    ("permissions", _permissions, AREAS),
    ("create-only writes", _create_only, _SIGNED),
    ("compare-and-swap", _compare_and_swap, _SIGNED),
    ("ranged reads", _ranges, _SIGNED),
    ("checksums", _checksums, _SIGNED),
    ("uploads in parts", _parts, (ARTIFACTS,)),  # a versioned area would keep them
    ("clock", _clock, _SIGNED),
)
"""Each with how it is proved and the areas that need it."""
