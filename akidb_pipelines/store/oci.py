"""A bucket of OCI Object Storage through its native API and the oci SDK.

The native API has what OCI's S3-compatible endpoint leaves undocumented: conditional writes. Bodies are not part of its signatures, so
each is sent with its SHA-256 (`opc_content_sha256`), which the server checks. `UploadManager` is not used: it puts `if-none-match` on the
wrong request and would overwrite.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.objects import ArchivedError, Availability, MissingObjectError, ObjectInfo, Upload, missing
from akidb_pipelines.store.remote import CutError, Head, RefusedError, StoredPart

_CONNECT_TIMEOUT_S = 10
_BLOCK_BYTES = 1 << 20
_REFUSED = frozenset({"IfNoneMatchFailed", "IfMatchFailed", "NoSuchUpload", "ConcurrentObjectUpdate", "NotUnique"})
_MISSING = frozenset({"ObjectNotFound"})
_NO_BUCKET = frozenset({"BucketNotFound", "NotAuthorizedOrNotFound", "NamespaceNotFound"})
_FIELDS = "name,size,timeModified,etag,md5"

_HINTS = {
    "NotAuthorized": "these credentials may not do this: ask for a policy `allow group ... to manage object-family in compartment ...`",
    "UnmatchedContentSHA256": "bytes were altered on the way: look at the network and the proxies between, then try again",
    "UnmatchedContentMD5": "bytes were altered on the way: look at the network and the proxies between, then try again",
    "BucketAlreadyExists": "the namespace has a bucket of that name elsewhere: choose another base name for AKIDB_STORE",
    "TooManyRequests": "too many requests: try again later, or raise the tenancy's limit",
    "ServiceUnavailable": "the store is overloaded or down: try again later, or look at OCI's status page",
    "InternalServerError": "the store failed inside: try again later, or look at OCI's status page",
    "QuotaExceeded": "the compartment's quota is used up: free room or raise it",
    "LimitExceeded": "the tenancy's limit is reached: free room or raise it",
}
_STATES = {"Archived": Availability.ARCHIVED, "Restoring": Availability.RESTORING}


class OciBucket:
    """See Bucket.

    Args:
        namespace: of Object Storage.
        name: of the bucket.
        settings: how to sign in, and where.
    """

    def __init__(self, namespace: str, name: str, settings: Settings) -> None:
        self.namespace, self.name = namespace, name
        self.url = f"oci://{namespace}/{name}"
        self._compartment = settings.oci_compartment
        self._client = _client(settings, self.url)
        self._where = (namespace, name)

    # --- one object

    def put(self, key: str, data: bytes, sha256: str, *, absent: bool = False, etag: str = "", nonce: str = "") -> None:
        """See Bucket."""
        condition = {"if_none_match": "*"} if absent else {"if_match": etag}
        kept = {"sha256": sha256, **({"nonce": nonce} if nonce else {})}
        with self._telling(f"storing {key}", conditional=True):
            self._client.put_object(*self._where, key, data, opc_meta=kept, **_checked(sha256), **condition)

    def get(self, key: str, start: int, length: int | None) -> tuple[bytes, str]:
        """See Bucket."""
        from oci.exceptions import ServiceError

        if length == 0:
            return b"", ""
        ranged = {"range": f"bytes={start}-{'' if length is None else start + length - 1}"} if start or length is not None else {}
        with self._telling(f"reading {key}", key):
            try:
                answer = self._client.get_object(*self._where, key, **ranged)
            except ServiceError as error:
                if error.status == 416:
                    return b"", ""
                raise
            size = int(answer.headers["content-length"])
            size = size if length is None else min(size, length)
            data = bytearray(size)
            _read_into(answer, memoryview(data))
            return bytes(data), answer.headers["etag"]

    def get_into(self, key: str, start: int, view: memoryview) -> None:
        """See Bucket."""
        from oci.exceptions import ServiceError

        with self._telling(f"reading {key}", key):
            try:
                answer = self._client.get_object(*self._where, key, range=f"bytes={start}-{start + len(view) - 1}")
            except ServiceError as error:
                if error.status == 416:
                    raise CutError(f"nothing from byte {start} on") from error
                raise
            _read_into(answer, view)

    def head(self, key: str) -> Head | None:
        """See Bucket."""
        from oci.exceptions import ServiceError

        try:
            with self._telling(f"looking at {key}", key):
                try:
                    headers = self._client.head_object(*self._where, key).headers
                except ServiceError as error:
                    if error.status == 404:  # the answer to HEAD has no body, hence no code
                        return None
                    raise
        except MissingObjectError:
            return None
        info = ObjectInfo(
            key=key,
            size_bytes=int(headers["content-length"]),
            modified_at=parsedate_to_datetime(headers["last-modified"]).astimezone(UTC),
            sha256=headers.get("opc-meta-sha256", ""),
            availability=_STATES.get(headers.get("archival-state", ""), Availability.READY),
        )
        return Head(info, headers["etag"], headers.get("opc-meta-nonce", ""))

    # --- many objects

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See Bucket."""
        start: str | None = None
        while True:
            further = {"start": start} if start else {}
            with self._telling(f"listing {prefix}"):
                page = self._client.list_objects(*self._where, prefix=prefix, fields=_FIELDS, **further).data
            for found in page.objects:
                modified = found.time_modified.astimezone(UTC)
                yield ObjectInfo(found.name, found.size, modified, etag=found.etag or "", md5=found.md5 or "")
            start = page.next_start_with
            if not start:
                return

    def delete(self, keys: Sequence[str]) -> None:
        """See Bucket."""
        for key in keys:
            try:
                with self._telling(f"deleting {key}", key):
                    self._client.delete_object(*self._where, key)
            except MissingObjectError:
                continue

    # --- uploads in parts

    def begin(self, key: str, sha256: str) -> str:
        """See Bucket."""
        from oci.object_storage.models import CreateMultipartUploadDetails

        # The SDK takes the header's name here, unlike in put_object.
        details = CreateMultipartUploadDetails(object=key, metadata={"opc-meta-sha256": sha256})
        with self._telling(f"beginning to store {key}"):
            return str(self._client.create_multipart_upload(*self._where, details).data.upload_id)

    def uploads(self, prefix: str) -> Iterator[Upload]:
        """See Bucket: OCI lists without prefix."""
        for found in self._pages(self._client.list_multipart_uploads, "listing unfinished uploads"):
            if found.object.startswith(prefix):
                yield Upload(found.object, found.upload_id, found.time_created.astimezone(UTC))

    def parts(self, upload: Upload) -> tuple[StoredPart, ...]:
        """See Bucket."""
        tried = f"looking at the parts of {upload.key}"
        found = self._pages(self._client.list_multipart_upload_parts, tried, upload.key, upload.id)
        return tuple(StoredPart(p.part_number, p.size, p.etag, base64.b64decode(p.md5).hex()) for p in found)

    def _pages(self, call: Any, tried: str, *arguments: str) -> Iterator[Any]:
        page: str | None = None
        while True:
            with self._telling(tried, conditional=bool(arguments)):
                answer = call(*self._where, *arguments, **({"page": page} if page else {}))
            yield from answer.data
            page = answer.next_page
            if not page:
                return

    def put_part(self, upload: Upload, number: int, data: bytearray) -> StoredPart:
        """See Bucket."""
        digest = _checked(hashlib.sha256(data).hexdigest())
        with self._telling(f"storing part {number} of {upload.key}", conditional=True):
            answer = self._client.upload_part(*self._where, upload.key, upload.id, number, bytes(data), **digest)
        return StoredPart(number, len(data), answer.headers["etag"], "")

    def commit(self, upload: Upload, parts: Sequence[StoredPart]) -> None:
        """See Bucket."""
        from oci.object_storage.models import CommitMultipartUploadDetails, CommitMultipartUploadPartDetails

        listed = [CommitMultipartUploadPartDetails(part_num=p.number, etag=p.etag) for p in parts]
        details = CommitMultipartUploadDetails(parts_to_commit=listed)
        with self._telling(f"putting {upload.key} together", conditional=True):
            self._client.commit_multipart_upload(*self._where, upload.key, upload.id, details, if_none_match="*")

    def abort(self, upload: Upload) -> None:
        """See Bucket."""
        with suppress(RefusedError), self._telling(f"giving up storing {upload.key}", conditional=True):
            self._client.abort_multipart_upload(*self._where, upload.key, upload.id)

    # --- the bucket, tiers

    def prepare(self, *, versioned: bool) -> None:
        """See Bucket."""
        from oci.exceptions import ServiceError
        from oci.object_storage.models import CreateBucketDetails

        try:
            with self._telling("looking at the bucket"):
                self._client.get_bucket(*self._where)
            return
        except OutsideError as error:
            if not isinstance(error.__cause__, ServiceError) or error.__cause__.status != 404:
                raise
        versioning = "Enabled" if versioned else "Disabled"
        if not self._compartment:
            raise OutsideError(
                f"store {self.url}: there is no bucket {self.name}, and no compartment is set to make it in",
                hint="set AKIDB_OCI_COMPARTMENT to the compartment's OCID, or run: "
                f"oci os bucket create --name {self.name} --versioning {versioning} --compartment-id ...",
            )
        details = CreateBucketDetails(name=self.name, compartment_id=self._compartment, versioning=versioning)
        with self._telling("making the bucket"):
            self._client.create_bucket(self.namespace, details)

    def archive(self, key: str) -> None:
        """See Bucket."""
        from oci.object_storage.models import UpdateObjectStorageTierDetails

        details = UpdateObjectStorageTierDetails(object_name=key, storage_tier="Archive")
        with self._telling(f"archiving {key}", key):
            self._client.update_object_storage_tier(*self._where, details)

    def restore(self, key: str, days: int) -> None:
        """See Bucket."""
        from oci.object_storage.models import RestoreObjectsDetails

        with self._telling(f"restoring {key}", key):
            self._client.restore_objects(*self._where, RestoreObjectsDetails(object_name=key, hours=24 * days))

    # --- what errors mean

    @contextmanager
    def _telling(self, tried: str, key: str = "", *, conditional: bool = False) -> Iterator[None]:
        """Translate errors; see S3Bucket."""
        from oci.exceptions import ClientError, RequestException, ServiceError

        try:
            yield
        except ServiceError as error:
            raise self._meaning(error, tried, key, conditional) from error
        except (RequestException, ClientError) as error:
            hint = "check network, region and AKIDB_OCI_ENDPOINT; AKIDB_STORE_TIMEOUT_S says how long a silent server is waited for"
            raise OutsideError(f"store {self.url}: {tried}: {error}", hint=hint) from error

    def _meaning(self, error: Any, tried: str, key: str, conditional: bool) -> Exception:
        code = str(error.code)
        if conditional and (code in _REFUSED or error.status == 412):
            return RefusedError(code)
        if key and code in _MISSING:
            return missing(self.url, key)
        if code == "NotRestored":
            return ArchivedError(
                f"store {self.url}: {key} is in an archive tier", hint="restore it first; that takes about an hour"
            )
        if code in _NO_BUCKET:
            hint = f"create bucket {self.name} (`akidb-pipelines registry init`), or ask for a policy that lets this user see it"
        elif error.status == 401:
            hint = _clock_hint(error) or "check user, tenancy, fingerprint and key_file of the OCI config (AKIDB_OCI_PROFILE)"
        else:
            hint = _HINTS.get(code, "ask OCI's support, naming the request id")
        return OutsideError(f"store {self.url}: {tried}: {code} {error.message} (opc-request-id {error.request_id})", hint=hint)


def _client(settings: Settings, url: str) -> Any:
    from oci.object_storage import ObjectStorageClient

    return signed_in(ObjectStorageClient, settings, f"store {url}", settings.oci_endpoint)


def signed_in(client: Callable[..., Any], settings: Settings, what: str, endpoint: str = "") -> Any:
    """A client of the SDK for whoever the settings say.

    Args:
        client: its class.
        settings: how to sign in.
        what: that it is for, for messages.
        endpoint: its address; default: the region's.

    Raises:
        InputError: there are no usable credentials.
    """
    import oci
    from oci.exceptions import ClientError

    options: dict[str, Any] = {
        "timeout": (_CONNECT_TIMEOUT_S, settings.store_timeout_s),
        "retry_strategy": oci.retry.DEFAULT_RETRY_STRATEGY,
        # The SDK's breaker is one for the whole process: a storm in one transfer would fail every other for half a minute.
        "circuit_breaker_strategy": oci.circuit_breaker.NoCircuitBreakerStrategy(),
    }
    if endpoint:
        options["service_endpoint"] = endpoint
    try:
        if settings.oci_auth == "instance_principal":
            signer = oci.auth.signers.InstancePrincipalsSecurityTokenSigner()
            return client({}, signer=signer, **options)
        return client(oci.config.from_file(profile_name=settings.oci_profile), **options)
    except (ClientError, ValueError, OSError) as error:
        hint = "set up ~/.oci/config (`oci setup config`, or OCI_CONFIG_FILE), or AKIDB_OCI_AUTH=instance_principal on an OCI host"
        raise InputError(f"{what}: signing in to OCI: {error}", hint=hint) from error


def _checked(sha256: str) -> dict[str, str]:
    return {"opc_checksum_algorithm": "SHA256", "opc_content_sha256": base64.b64encode(bytes.fromhex(sha256)).decode()}


def _read_into(answer: Any, view: memoryview) -> None:
    """Fill a view from an answer's body; a cut stream is not repeated by the SDK."""
    from urllib3.exceptions import HTTPError

    filled = 0
    try:
        while filled < len(view) and (block := answer.data.raw.read(min(_BLOCK_BYTES, len(view) - filled))):
            view[filled : filled + len(block)] = block
            filled += len(block)
    except (HTTPError, OSError) as error:
        raise CutError(str(error)) from error
    finally:
        answer.data.close()
    if filled < len(view):
        raise CutError(f"{filled} of {len(view)} bytes")


def _clock_hint(error: Any) -> str:
    sent = (error.headers or {}).get("date")
    if not sent:
        return ""
    seconds = int((datetime.now(UTC) - parsedate_to_datetime(sent)).total_seconds())
    if abs(seconds) < 120:
        return ""
    return f"set this machine's clock (chronyc makestep, timedatectl): it is {abs(seconds)} seconds from the server's"
