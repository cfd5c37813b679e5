"""The client's side of the signed metadata: tuf's Updater, fed from an object store, its errors told in our words.

What is checked is written in the TUF specification, section 5 (https://theupdateframework.github.io/specification/latest/#detailed-client-workflow):
signatures against the root, no going back (rollback), no standing still past the expiry (freeze), no mixing of documents (mix-and-match).
What was verified is kept in a folder, so that the next refresh is held to it.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from akidb_pipelines.errors import IntegrityError, OutsideError, PipelineError
from akidb_pipelines.files import write_whole
from akidb_pipelines.store.index import Entry, Index
from akidb_pipelines.store.metadata import METADATA, TIMESTAMP, read_index, read_target
from akidb_pipelines.store.objects import MissingObjectError, ObjectStore, unreachable

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile
    from tuf.ngclient import FetcherInterface


class Trust:
    """What a client believes of a registry.

    Args:
        channels: where the metadata is.
        folder: what was verified before; made when needed.
        root: root metadata to begin with.
    """

    def __init__(self, channels: ObjectStore, folder: Path, root: bytes) -> None:
        self._channels, self._folder, self._root = channels, folder, root

    def refresh(self) -> Index:
        """Fetch what is new, verify it, and return what is released.

        Raises:
            IntegrityError: the metadata is not what the trusted root, or what was seen before, allows.
            OutsideError: the registry cannot be reached, or nobody renewed it in time.
        """
        from tuf.api.metadata import Metadata, Targets
        from tuf.ngclient import Updater

        fetcher = _fetcher(self._channels)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / ".lock").open("a") as lock, self._telling(fetcher):
                # tuf keeps its folder to one process at a time.
                fcntl.flock(lock, fcntl.LOCK_EX)
                Updater(str(self._folder), METADATA, fetcher=fetcher, bootstrap=self._root).refresh()
                verified: Metadata[Targets] = Metadata.from_bytes((self._folder / "targets.json").read_bytes())
            return read_index(verified.signed, self._document)
        except OSError as error:
            raise unreachable(str(self._folder), "keeping verified metadata", error) from error

    def _document(self, target: TargetFile) -> bytes:
        """A target's content, kept until the next one of its path is read."""
        from tuf.api.exceptions import LengthOrHashMismatchError

        kept = self._folder / target.path.replace("/", "-")
        try:
            data = kept.read_bytes()
            target.verify_length_and_hashes(data)
        except (FileNotFoundError, LengthOrHashMismatchError):
            data = read_target(self._channels, target)
            write_whole(kept, data)
        return data

    def provenance(self, entry: Entry) -> bytes:
        """The provenance of a release, verified.

        Raises:
            IntegrityError: it is not what the signed index names.
        """
        from tuf.api.metadata import TargetFile

        return read_target(self._channels, TargetFile(entry.provenance_bytes, {"sha256": entry.provenance_sha256}, entry.path))

    @contextmanager
    def _telling(self, fetcher: FetcherInterface) -> Iterator[None]:
        from tuf.api import exceptions as tuf

        where = f"registry {self._channels.url}"
        try:
            yield
        except tuf.DownloadError as error:
            if isinstance(cause := getattr(fetcher, "failed", None), PipelineError):
                raise cause from error
            if isinstance(error, tuf.DownloadHTTPError):
                wanted = getattr(fetcher, "wanted", "")
                if wanted == TIMESTAMP and not (self._folder / "timestamp.json").is_file():
                    raise MissingObjectError(
                        f"{where}: nothing was released yet", hint="run `make run`, or check AKIDB_STORE"
                    ) from error
                told = f"{where}: {wanted} is gone"
                raise IntegrityError(told, hint="put its newest good version back; docs/runbooks/pull-fails.md") from error
            raise IntegrityError(f"{where}: {error}", hint=_ALTERED) from error
        except tuf.ExpiredMetadataError as error:
            raise OutsideError(
                f"{where}: {str(error).removesuffix('.')}; by this machine's clock it is {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
                hint="if that clock is right, nobody published for five weeks (`akidb-pipelines registry refresh` renews it), or somebody "
                "holds newer metadata back; docs/runbooks/pull-fails.md",
            ) from error
        except tuf.BadVersionNumberError as error:
            raise IntegrityError(
                f"{where}: it went back: {error}",
                hint="an older copy of the store was put back, or somebody replays it; docs/runbooks/pull-fails.md",
            ) from error
        except tuf.RepositoryError as error:
            raise IntegrityError(f"{where}: its metadata does not verify: {error}", hint=_ALTERED) from error


_ALTERED = "somebody who may not sign changed the store, or the trusted root is another registry's; docs/runbooks/pull-fails.md"


def _fetcher(channels: ObjectStore) -> FetcherInterface:
    """tuf's network, on an object store. A class inside a function: tuf is imported only when somebody pulls."""
    from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError
    from tuf.ngclient import FetcherInterface

    class StoreFetcher(FetcherInterface):
        failed: PipelineError | None = None
        wanted = TIMESTAMP

        def download_bytes(self, url: str, max_length: int) -> bytes:
            self.wanted = url
            try:
                # One byte more than allowed is enough to know: an endless answer is not waited for.
                data = channels.read(url, 0, max_length + 1)
            except MissingObjectError as error:
                raise DownloadHTTPError(str(error), 404) from error
            except PipelineError as error:
                self.failed = error
                raise DownloadError(str(error)) from error
            if len(data) > max_length:
                raise DownloadLengthMismatchError(f"{url} is longer than {max_length} bytes")
            return data

        def _fetch(self, url: str) -> Iterator[bytes]:
            yield self.download_bytes(url, 1 << 20)

    return StoreFetcher()
