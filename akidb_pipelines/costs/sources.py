"""Where billing files come from: a folder, a bucket of S3, or OCI's own bucket of reports. Listing and fetching; what they hold is intake's.

OCI writes its reports into namespace `bling`, a bucket named as the tenancy, `FOCUS Reports/YYYY/MM/DD/*.csv.gz`, in the home region; they
come up to a day late and under older days, so the whole listing is compared with the ledger, never only what is new by name.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from akidb_pipelines.errors import InputError, IntegrityError, OutsideError
from akidb_pipelines.files import digest_file
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.remote import Bucket, CutError

SUFFIXES = (".csv", ".csv.gz")
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class BillingFile:
    """A file at its source."""

    name: str
    """Below the source."""
    etag: str
    """Changes whenever its content does."""
    size_bytes: int
    md5: str = ""
    """In base64, where the source tells it."""


class Source(Protocol):
    """A place that billing files come from. All verbs raise OutsideError when it cannot be reached."""

    url: str
    sample: bool
    """Whether everything in it is made up."""

    def files(self) -> Iterator[BillingFile]:
        """Every billing file there."""
        ...

    def fetch(self, file: BillingFile, target: Path, report: Report = ...) -> str:
        """Copy a file, and return its SHA-256.

        Raises:
            IntegrityError: it is not what the listing said, or changed meanwhile.
        """
        ...


class Folder:
    """A folder, with everything below it, or one file.

    Args:
        path: it.
        sample: whether everything in it is made up.

    Raises:
        InputError: there is none.
    """

    def __init__(self, path: Path, *, sample: bool = False) -> None:
        self.path, self.sample = path, sample
        self._is_file = path.is_file()
        if not self._is_file and not path.is_dir():
            raise InputError(f"there is no {path}", hint="name a FOCUS file (.csv, .csv.gz), or a folder of such files")
        root = path.parent if self._is_file else path
        self.url = f"file://{root.absolute()}"
        self._root = root

    def files(self) -> Iterator[BillingFile]:
        """See Source. A file's mark is its digest: times of files say little."""
        found = (
            [self.path] if self._is_file else sorted(p for p in self.path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
        )
        for path in found:
            if not any(part.startswith(".") for part in path.relative_to(self._root).parts):
                yield BillingFile(path.relative_to(self._root).as_posix(), _digest(path), path.stat().st_size)

    def fetch(self, file: BillingFile, target: Path, report: Report = lambda _: None) -> str:
        """See Source."""
        path = self._root / file.name
        hashed, done = hashlib.sha256(), 0
        try:
            with path.open("rb") as source, target.open("wb") as out:
                while block := source.read(_CHUNK_BYTES):
                    hashed.update(block)
                    out.write(block)
                    done += len(block)
                    if file.size_bytes > _CHUNK_BYTES:
                        report(Progress(f"reading {file.name}", done, file.size_bytes, in_bytes=True))
        except OSError as error:
            raise OutsideError(f"reading {path}: {error}", hint="free some space, or see who removed it meanwhile") from error
        if hashed.hexdigest() != file.etag:
            raise IntegrityError(
                f"{path} changed while it was read", hint="wait until whoever writes it has finished, then import again"
            )
        return hashed.hexdigest()


class Remote:
    """Objects below a prefix of a bucket.

    Args:
        bucket: of S3 or OCI.
        prefix: a folder, or one file.
    """

    sample = False

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._single = prefix if prefix.endswith(SUFFIXES) else ""
        folder = prefix.rpartition("/")[0] if self._single else prefix.strip("/")
        self._prefix = f"{folder}/" if folder else ""
        self.url = f"{bucket.url}/{folder}".rstrip("/")

    def files(self) -> Iterator[BillingFile]:
        """See Source."""
        for info in self._bucket.list(self._single or self._prefix):
            if info.key == self._single if self._single else info.key.endswith(SUFFIXES):
                yield BillingFile(info.key.removeprefix(self._prefix), info.etag.strip('"'), info.size_bytes, info.md5)

    def fetch(self, file: BillingFile, target: Path, report: Report = lambda _: None) -> str:
        """See Source."""
        key, done = self._prefix + file.name, 0
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        try:
            with target.open("wb") as out:
                while done < file.size_bytes:
                    data, etag = self._bucket.get(key, done, min(_CHUNK_BYTES, file.size_bytes - done))
                    if not data or etag.strip('"') != file.etag:
                        raise IntegrityError(
                            f"{self.url}/{file.name} changed while it was read", hint="import again: the new one is taken then"
                        )
                    for each in (sha256, md5):
                        each.update(data)
                    out.write(data)
                    done += len(data)
                    if file.size_bytes > _CHUNK_BYTES:
                        report(Progress(f"fetching {file.name}", done, file.size_bytes, in_bytes=True))
        except CutError as error:
            raise OutsideError(f"fetching {self.url}/{file.name}: {error}", hint="try again: nothing of it counts yet") from error
        except OSError as error:
            raise OutsideError(
                f"fetching {file.name} to {target}: {error}", hint="free some space, or point AKIDB_HOME elsewhere"
            ) from error
        if file.md5 and "-" not in file.md5 and base64.b64encode(md5.digest()).decode() != file.md5:
            raise IntegrityError(
                f"{self.url}/{file.name} has another MD5 than its listing says",
                hint="try again; look at the network and proxies between",
            )
        return sha256.hexdigest()


def _digest(path: Path) -> str:
    try:
        return digest_file(path)
    except OSError as error:
        raise OutsideError(f"reading {path}: {error}", hint="check its owner and mode") from error


def open_source(where: str, settings: Settings) -> Source:
    """The source that a path or URL means.

    Args:
        where: a path, `file:///...`, `s3://bucket/prefix` or `oci://namespace/bucket/prefix`.
        settings: how to sign in to OCI; timeouts.

    Raises:
        InputError: it is none of these, or not there.
    """
    scheme, separator, rest = where.partition("://")
    if not separator or scheme == "file":
        return Folder(Path(rest if separator else where).expanduser())
    if scheme == "s3" and rest:
        from akidb_pipelines.store.s3 import S3Bucket

        bucket, _, prefix = rest.partition("/")
        return Remote(S3Bucket(bucket, timeout_s=settings.store_timeout_s), prefix)
    if scheme == "oci" and rest.count("/") >= 1:
        from akidb_pipelines.store.oci import OciBucket

        namespace, bucket, *below = rest.split("/", 2)
        return Remote(OciBucket(namespace, bucket, settings), below[0] if below else "")
    raise InputError(
        f"{where!r} is no place of billing files",
        hint="a path, s3://bucket/prefix, or oci://bling/TENANCY-OCID/FOCUS Reports",
    )
