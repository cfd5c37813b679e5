"""A bucket behind the S3 protocol, through boto3: AWS, SeaweedFS, MinIO, and OCI's S3-compatible endpoint.

Endpoint, region and credentials come the way boto3 looks for them (`AWS_ENDPOINT_URL_S3`, `AWS_ACCESS_KEY_ID`, profiles, ...). Chosen so
that OCI's endpoint is served too: path style, no checksum trailers (it refuses `aws-chunked`), SHA-256 for batch deletes. The payload is
always signed and its SHA-256 sent along, so the server checks every byte it is sent.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.store.objects import ArchivedError, Availability, MissingObjectError, ObjectInfo, Upload, missing
from akidb_pipelines.store.remote import CutError, Head, RefusedError, StoredPart
from akidb_pipelines.store.transfer import WORKERS

_TRIES = 6
_CONNECT_TIMEOUT_S = 10
_ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})
_MD5 = re.compile(r"[0-9a-f]{32}")
_BATCH = 1000

_REFUSED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "NoSuchUpload", "412", "409"})
_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})

_HINTS = {
    "NoSuchBucket": "create the bucket: `akidb-pipelines registry init` makes all four areas where it may",
    "AccessDenied": "these credentials may not do this: allow get, put, list and delete on the bucket, or use others",
    "403": "these credentials may not do this: allow get, put, list and delete on the bucket, or use others",
    "InvalidAccessKeyId": "the access key is not known there: check AWS_ACCESS_KEY_ID (on OCI: the Customer Secret Key's id)",
    "SignatureDoesNotMatch": "the secret key is wrong: check AWS_SECRET_ACCESS_KEY (on OCI: the Customer Secret Key) and AWS_DEFAULT_REGION",
    "ExpiredToken": "the credentials have expired: sign in again (aws sso login), or get new ones",
    "PermanentRedirect": "the bucket is in another region: check AWS_DEFAULT_REGION and AWS_ENDPOINT_URL_S3",
    "AuthorizationHeaderMalformed": "the region is another one: check AWS_DEFAULT_REGION",
    "IllegalLocationConstraintException": "the region is another one: check AWS_DEFAULT_REGION",
    "BucketAlreadyExists": "somebody else has a bucket of that name: choose another base name for AKIDB_STORE",
    "NotImplemented": "the server does not know this request: `akidb-pipelines store doctor` says what it lacks",
    "SlowDown": "the store is overloaded: try again later, or ask its operators",
    "ServiceUnavailable": "the store is overloaded or down: try again later, or ask its operators",
    "TooManyRequests": "too many requests: try again later, or raise the limit",
    "InternalError": "the store failed inside: try again later, or ask its operators",
    "XAmzContentSHA256Mismatch": "bytes were altered on the way: look at the network and the proxies between, then try again",
    "BadDigest": "bytes were altered on the way: look at the network and the proxies between, then try again",
    "InvalidDigest": "bytes were altered on the way: look at the network and the proxies between, then try again",
}
_BY_STATUS = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}


class S3Bucket:
    """See Bucket.

    Args:
        name: of the bucket.
        timeout_s: longest silence of the server that is put up with.
    """

    def __init__(self, name: str, *, timeout_s: float) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self.name = name
        self.url = f"s3://{name}"
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path", "payload_signing_enabled": True},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"mode": "standard", "total_max_attempts": _TRIES},
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=timeout_s,
            max_pool_connections=WORKERS + 1,
        )
        try:
            self._client: Any = boto3.Session().client("s3", config=config)
            for verb in ("PutObject", "UploadPart"):
                self._client.meta.events.register(f"choose-signer.s3.{verb}", lambda **_: _hashed_once())
        except (BotoCoreError, ValueError) as error:
            hint = "check AWS_PROFILE, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL_S3"
            raise OutsideError(f"store {self.url}: {error}", hint=hint) from error

    # --- one object

    def put(self, key: str, data: bytes, sha256: str, *, absent: bool = False, etag: str = "", nonce: str = "") -> None:
        """See Bucket."""
        condition = {"IfNoneMatch": "*"} if absent else {"IfMatch": etag}
        kept = {"sha256": sha256, **({"nonce": nonce} if nonce else {})}
        try:
            with self._telling(f"storing {key}", key, conditional=True):
                self._client.put_object(Bucket=self.name, Key=key, Body=data, Metadata=kept, **_checked(sha256), **condition)
        except MissingObjectError as error:
            raise RefusedError(key) from error  # so AWS answers If-Match on a key that is gone

    def get(self, key: str, start: int, length: int | None) -> tuple[bytes, str]:
        """See Bucket."""
        from botocore.exceptions import ClientError

        wanted = {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"} if start or length is not None else {}
        if length == 0:
            return b"", ""
        with self._telling(f"reading {key}", key):
            try:
                answer = self._client.get_object(Bucket=self.name, Key=key, **wanted)
            except ClientError as error:
                if _code(error) in {"InvalidRange", "416"}:
                    return b"", ""
                raise
            with closing(answer["Body"]) as body, _reading():
                return body.read(length), answer["ETag"]

    def get_into(self, key: str, start: int, view: memoryview) -> None:
        """See Bucket."""
        from botocore.exceptions import ClientError

        with self._telling(f"reading {key}", key):
            try:
                answer = self._client.get_object(Bucket=self.name, Key=key, Range=f"bytes={start}-{start + len(view) - 1}")
            except ClientError as error:
                if _code(error) in {"InvalidRange", "416"}:
                    raise CutError(f"nothing from byte {start} on") from error
                raise
            with closing(answer["Body"]) as body, _reading():
                filled = 0
                while filled < len(view) and (count := body.readinto(view[filled:])):
                    filled += count
            if filled < len(view):
                raise CutError(f"{filled} of {len(view)} bytes from byte {start} on")

    def head(self, key: str) -> Head | None:
        """See Bucket."""
        try:
            with self._telling(f"looking at {key}", key):
                answer = self._client.head_object(Bucket=self.name, Key=key)
        except MissingObjectError:
            return None
        info = ObjectInfo(
            key=key,
            size_bytes=answer["ContentLength"],
            modified_at=answer["LastModified"].astimezone(UTC),
            sha256=answer.get("Metadata", {}).get("sha256", ""),
            availability=_availability(answer.get("StorageClass", ""), answer.get("Restore", "")),
        )
        return Head(info, answer["ETag"], answer.get("Metadata", {}).get("nonce", ""))

    # --- many objects

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See Bucket."""
        with self._telling(f"listing {prefix}"):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
                for found in page.get("Contents", []):
                    yield ObjectInfo(found["Key"], found["Size"], found["LastModified"].astimezone(UTC), etag=found["ETag"])

    def delete(self, keys: Sequence[str]) -> None:
        """See Bucket."""
        for batch in _batched(keys, _BATCH):
            with self._telling(f"deleting {len(batch)} objects"):
                answer = self._client.delete_objects(
                    Bucket=self.name,
                    Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True},
                    ChecksumAlgorithm="SHA256",
                )
            if failed := [e for e in answer.get("Errors", []) if e.get("Code") not in _MISSING]:
                first = failed[0]
                raise OutsideError(
                    f"store {self.url}: deleting {first['Key']}: {first.get('Code')} {first.get('Message', '')}".rstrip(),
                    hint=_HINTS.get(first.get("Code", ""), "see the server's log"),
                )

    # --- uploads in parts

    def begin(self, key: str, sha256: str) -> str:
        """See Bucket."""
        with self._telling(f"beginning to store {key}"):
            return str(self._client.create_multipart_upload(Bucket=self.name, Key=key, Metadata={"sha256": sha256})["UploadId"])

    def uploads(self, prefix: str) -> Iterator[Upload]:
        """See Bucket."""
        with self._telling("listing unfinished uploads"):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=prefix):
                for found in page.get("Uploads", []):
                    yield Upload(found["Key"], found["UploadId"], found["Initiated"].astimezone(UTC))

    def parts(self, upload: Upload) -> tuple[StoredPart, ...]:
        """See Bucket."""
        with self._telling(f"looking at the parts of {upload.key}", conditional=True):
            pages = self._client.get_paginator("list_parts").paginate(Bucket=self.name, Key=upload.key, UploadId=upload.id)
            found = (part for page in pages for part in page.get("Parts", []))
            return tuple(_part(part["PartNumber"], part["Size"], part["ETag"]) for part in found)

    def put_part(self, upload: Upload, number: int, data: bytearray) -> StoredPart:
        """See Bucket."""
        with self._telling(f"storing part {number} of {upload.key}", conditional=True):
            where = {"Bucket": self.name, "Key": upload.key, "UploadId": upload.id, "PartNumber": number}
            answer = self._client.upload_part(**where, Body=data, **_checked(hashlib.sha256(data).hexdigest()))
        return _part(number, len(data), answer["ETag"])

    def commit(self, upload: Upload, parts: Sequence[StoredPart]) -> None:
        """See Bucket."""
        listed = {"Parts": [{"PartNumber": p.number, "ETag": p.etag} for p in parts]}
        with self._telling(f"putting {upload.key} together", conditional=True):
            self._client.complete_multipart_upload(
                Bucket=self.name, Key=upload.key, UploadId=upload.id, MultipartUpload=listed, IfNoneMatch="*"
            )

    def abort(self, upload: Upload) -> None:
        """See Bucket."""
        with suppress(RefusedError), self._telling(f"giving up storing {upload.key}", conditional=True):
            self._client.abort_multipart_upload(Bucket=self.name, Key=upload.key, UploadId=upload.id)

    # --- the bucket, tiers

    def prepare(self, *, versioned: bool) -> None:
        """See Bucket."""
        from botocore.exceptions import ClientError

        with self._telling("making the bucket"):
            try:
                self._client.head_bucket(Bucket=self.name)
            except ClientError as error:
                if _code(error) not in {*_MISSING, "NoSuchBucket"}:
                    raise
                self._client.create_bucket(Bucket=self.name, **self._place())
            if versioned:
                self._keep_versions()

    def _place(self) -> dict[str, Any]:
        """AWS wants to be told the region in which a bucket is made, unless it is the oldest one."""
        region = self._client.meta.region_name
        if ".amazonaws.com" not in self._client.meta.endpoint_url or region in (None, "us-east-1", "aws-global"):
            return {}
        return {"CreateBucketConfiguration": {"LocationConstraint": region}}

    def _keep_versions(self) -> None:
        from botocore.exceptions import ClientError

        kept = {"Status": "Enabled"}
        try:
            self._client.put_bucket_versioning(Bucket=self.name, VersioningConfiguration=kept, ChecksumAlgorithm="SHA256")
        except ClientError as error:
            if _code(error) != "NotImplemented":  # what this server cannot, it need not
                raise

    def archive(self, key: str) -> None:
        """See Bucket. S3 copies the object onto itself, which ends at 5 GiB."""
        with self._telling(f"archiving {key}", key):
            self._client.copy_object(
                Bucket=self.name,
                Key=key,
                CopySource={"Bucket": self.name, "Key": key},
                StorageClass="GLACIER",
                MetadataDirective="COPY",
            )

    def restore(self, key: str, days: int) -> None:
        """See Bucket."""
        from botocore.exceptions import ClientError

        with self._telling(f"restoring {key}", key):
            try:
                self._client.restore_object(Bucket=self.name, Key=key, RestoreRequest={"Days": days})
            except ClientError as error:
                if _code(error) != "RestoreAlreadyInProgress":
                    raise

    # --- what errors mean

    @contextmanager
    def _telling(self, tried: str, key: str = "", *, conditional: bool = False) -> Iterator[None]:
        """Translate errors.

        Args:
            tried: for messages.
            key: of the object that must be there.
            conditional: whether a refusal is an answer, rather than trouble.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise self._meaning(error, tried, key, conditional) from error
        except BotoCoreError as error:
            raise OutsideError(f"store {self.url}: {tried}: {error}", hint=_connection_hint(error)) from error

    def _meaning(self, error: Any, tried: str, key: str, conditional: bool) -> Exception:
        code = _code(error)
        if conditional and code in _REFUSED:
            return RefusedError(code)
        if key and code in _MISSING:
            return missing(self.url, key)
        if code == "InvalidObjectState":
            return ArchivedError(
                f"store {self.url}: {key} is in an archive tier", hint="restore it first; that takes minutes to hours"
            )
        told = error.response.get("Error", {}).get("Message", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in {"RequestTimeTooSkewed", "RequestExpired"}:
            hint = f"set this machine's clock (chronyc makestep, timedatectl): it is {_skew(error)} the server's"
        else:
            hint = _HINTS.get(code) or _HINTS.get(_BY_STATUS.get(status, ""), "see the server's log")
        return OutsideError(f"store {self.url}: {tried}: {code} {told}".rstrip(), hint=hint)


@cache
def _hashed_once() -> str:
    """The name of a signer that takes the payload's digest from the checksum header, which is the same digest: botocore would read and hash
    every byte a second time, which made uploads a tenth slower."""
    from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth

    class HashedOnceAuth(S3SigV4Auth):  # type: ignore[misc]  # botocore has no types
        def payload(self, request: Any) -> str:
            known = request.headers.get("x-amz-checksum-sha256")
            return base64.b64decode(known).hex() if known else super().payload(request)

    name = "akidb-s3v4"
    AUTH_TYPE_MAPS[name] = HashedOnceAuth
    return name


def _checked(sha256: str) -> dict[str, str]:
    """The digest as a header of its own: some servers (SeaweedFS) do not compare the signed one with what they got."""
    return {"ChecksumSHA256": base64.b64encode(bytes.fromhex(sha256)).decode()}


@contextmanager
def _reading() -> Iterator[None]:
    """Errors while an answer's body is read: a cut stream, which boto3 does not repeat."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    try:
        yield
    except (HTTPClientError, IncompleteReadError, OSError) as error:
        raise CutError(str(error)) from error


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _skew(error: Any) -> str:
    sent = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if not sent:
        return "far from"
    seconds = int((datetime.now(UTC) - parsedate_to_datetime(sent)).total_seconds())
    return f"{abs(seconds)} seconds {'before' if seconds < 0 else 'after'}"


def _connection_hint(error: Exception) -> str:
    from botocore import exceptions as known

    if isinstance(error, known.NoCredentialsError | known.PartialCredentialsError):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, known.SSOError | known.CredentialRetrievalError | known.TokenRetrievalError):
        return "the credentials have expired or cannot be had: sign in again (aws sso login), or check AWS_PROFILE"
    if isinstance(error, known.SSLError):
        return "the server's certificate is not trusted here: set AWS_CA_BUNDLE to its authority's file"
    if isinstance(error, known.ReadTimeoutError | known.ConnectTimeoutError):
        return "the server is silent: check network and server; AKIDB_STORE_TIMEOUT_S says how long it is waited for"
    return "check AWS_ENDPOINT_URL_S3, network and server"


def _availability(storage_class: str, restore: str) -> Availability:
    if storage_class not in _ARCHIVE_CLASSES or 'ongoing-request="false"' in restore:
        return Availability.READY
    return Availability.RESTORING if restore else Availability.ARCHIVED


def _part(number: int, size: int, etag: str) -> StoredPart:
    plain = etag.strip('"')
    return StoredPart(number, size, etag, plain if _MD5.fullmatch(plain) else "")


def _batched(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[n : n + size] for n in range(0, len(keys), size))
