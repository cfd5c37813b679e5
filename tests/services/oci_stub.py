"""An OCI Object Storage in memory: the native API on 127.0.0.1, for the real SDK to talk to.

It verifies signatures and digests, keeps conditional requests atomic, and knows archiving and restoring. It does not know
versions, retention rules, policies, copies between buckets, keys of the customer, or prefixes with a delimiter: whatever it
does not know it answers with 501, never with a guess.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.services.http_stub import (
    Answer,
    Call,
    FlipBit,
    Hang,
    HttpStub,
    RefusedError,
    Request,
    Reset,
    ResetAfterCommit,
    Status,
    Truncate,
    ranged,
)

__all__ = ["FlipBit", "Hang", "OciStub", "Reset", "ResetAfterCommit", "Status", "StoredObject", "Truncate", "Upload"]

CLOCK_SKEW_SECONDS = 300
REGION = "eu-frankfurt-1"
TENANCY = "ocid1.tenancy.oc1..stubtenancy"
USER = "ocid1.user.oc1..stubuser"
TIERS = ("Standard", "InfrequentAccess", "Archive")
WRITES = ("PUT", "POST", "DELETE")
PATH = re.compile(r"/n/(?P<namespace>[^/]+)/b/(?P<bucket>[^/]+)(?:/(?P<collection>[^/]+)(?:/(?P<name>.+))?)?")


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _md5(body: bytes) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


def _etag() -> str:
    return str(uuid.uuid4())


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(status: int, content: object, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, {"content-type": "application/json"} | (headers or {}), json.dumps(content).encode())


@dataclass(frozen=True)
class StoredObject:
    """An object as it is held. `digests` are the headers that tell its digests: they differ by how it was written."""

    body: bytes = field(repr=False)
    metadata: dict[str, str]
    tier: str
    content_type: str
    digests: dict[str, str]
    etag: str = field(default_factory=_etag)
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))
    restored: datetime | None = None
    restored_until: datetime | None = None

    @property
    def archival_state(self) -> str | None:
        now = datetime.now(UTC)
        if self.tier != "Archive":
            return None
        if self.restored is None or now >= self.restored_until:
            return "Archived"
        return "Restoring" if now < self.restored else "Restored"

    @property
    def headers(self) -> dict[str, str]:
        told = {
            "etag": self.etag,
            "last-modified": format_datetime(self.modified, usegmt=True),
            "content-type": self.content_type,
            "storage-tier": self.tier,
        }
        state = {"archival-state": self.archival_state} if self.archival_state else {}
        return told | state | self.digests | self.metadata

    def summary(self, name: str, fields: set[str]) -> dict[str, object]:
        told = {
            "name": name,
            "size": len(self.body),
            "etag": self.etag,
            "md5": self.digests.get("content-md5") or self.digests.get("opc-multipart-md5"),
            "timeCreated": _iso(self.modified),
            "timeModified": _iso(self.modified),
            "storageTier": self.tier,
            "archivalState": self.archival_state,
        }
        return {key: value for key, value in told.items() if key.lower() in fields and value is not None}


@dataclass(frozen=True)
class Part:
    """A part of an upload."""

    body: bytes = field(repr=False)
    etag: str = field(default_factory=_etag)


@dataclass(frozen=True)
class Upload:
    """A multipart upload that is neither committed nor aborted."""

    bucket: str
    key: str
    metadata: dict[str, str]
    tier: str
    content_type: str
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    parts: dict[int, Part] = field(default_factory=dict)


@dataclass(frozen=True)
class Denial:
    """How a bucket refuses somebody who is authenticated but may not."""

    status: int
    code: str
    reads: bool


@dataclass(frozen=True)
class _Call(Call):
    """What is particular to this service."""

    def details(self) -> dict:
        try:
            return json.loads(self.request.body)
        except ValueError:
            raise RefusedError(400, "InvalidJSON", "The body is no JSON") from None


class OciStub(HttpStub):
    """The service of one tenancy with one user. `objects` and `uploads` are there to be looked at."""

    def __init__(self, namespace: str = "axns", page_size: int = 1000, restore_seconds: float = 0.2) -> None:
        super().__init__()
        self.namespace = namespace
        self.page_size = page_size
        self.restore_seconds = restore_seconds
        self.buckets: dict[str, datetime] = {}
        self.objects: dict[tuple[str, str], StoredObject] = {}
        self.uploads: dict[str, Upload] = {}
        self._denials: dict[str, Denial] = {}
        self._private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._public = self._private.public_key()
        der = self._public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.fingerprint = _md5(der).hex(":")

    # --- what tests use

    def config(self) -> dict[str, str]:
        """A configuration of the SDK with the key in it."""
        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return {
            "user": USER,
            "tenancy": TENANCY,
            "fingerprint": self.fingerprint,
            "region": REGION,
            "key_content": pem.decode(),
        }

    def config_file(self, folder: Path) -> Path:
        """Writes what `~/.oci` holds, a configuration with one profile and a key of its own, and says where."""
        settings = self.config()
        key = folder.resolve() / "oci_api_key.pem"
        key.write_text(settings.pop("key_content"))
        key.chmod(0o600)
        path = folder / "config"
        path.write_text("\n".join(["[DEFAULT]", *(f"{k}={v}" for k, v in settings.items()), f"key_file={key}", ""]))
        path.chmod(0o600)
        return path

    def make_buckets(self, *names: str) -> None:
        self.buckets |= dict.fromkeys(names, datetime.now(UTC))

    def deny(self, bucket: str, status: int = 404, code: str = "BucketNotFound", reads: bool = False) -> None:
        """Refuses writes to a bucket, and with `reads` everything."""
        self._denials[bucket] = Denial(status, code, reads)

    def allow(self, bucket: str) -> None:
        self._denials.pop(bucket, None)

    def age(self, bucket: str, key: str, days: float) -> None:
        """Moves an object, and the open uploads of that name, into the past."""
        shift = timedelta(days=days)
        with self._lock:
            if held := self.objects.get((bucket, key)):
                self.objects[bucket, key] = replace(held, modified=held.modified - shift)
            for number, upload in self.uploads.items():
                if (upload.bucket, upload.key) == (bucket, key):
                    self.uploads[number] = replace(upload, created=upload.created - shift)

    # --- authentication: signed headers as in draft-cavage-http-signatures, with RSA and SHA-256

    def authenticate(self, request: Request) -> None:
        why_not = self._distrust(request)
        if why_not:
            raise RefusedError(
                401,
                "NotAuthenticated",
                f"The required information to complete authentication was not provided or was incorrect. ({why_not})",
            )

    def _distrust(self, request: Request) -> str | None:
        """Why a request is not believed. The real service says less."""
        given = dict(re.findall(r'(\w+)="([^"]*)"', request.headers.get("authorization", "")))
        if given.get("keyId") != f"{TENANCY}/{USER}/{self.fingerprint}":
            return "another key id"
        signed = given.get("headers", "").split()
        dated = "x-date" if "x-date" in signed else "date"
        missing = {"(request-target)", "host", dated} - set(signed)
        if request.method == "POST":
            missing |= {"x-content-sha256", "content-type", "content-length"} - set(signed)
        if missing or any(name not in request.headers for name in signed if name != "(request-target)"):
            return f"headers not signed or not sent: {sorted(missing)}"
        values = request.headers | {"(request-target)": f"{request.method.lower()} {request.target}"}
        text = "\n".join(f"{name}: {values[name]}" for name in signed)
        try:
            signature = base64.b64decode(given.get("signature", ""), validate=True)
            self._public.verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())
            off = abs(time.time() - parsedate_to_datetime(request.headers[dated]).timestamp())
        except (InvalidSignature, ValueError):
            return "the signature does not fit"
        if off > CLOCK_SKEW_SECONDS:
            return "the date is off"
        digest = request.headers["x-content-sha256"] if "x-content-sha256" in signed else None
        if digest not in (None, _base64(hashlib.sha256(request.body).digest())):
            return "the body is not what was signed"
        return None

    # --- requests

    def sign_off(self, number: int) -> dict[str, str]:
        return {"opc-request-id": f"stub-{number}"}

    def error(self, refused: RefusedError) -> Answer:
        return _json(refused.status, {"code": refused.code, "message": refused.message or refused.code})

    def serve(self, request: Request) -> Answer:
        if request.method == "GET" and request.path in ("/n", "/n/"):
            return _json(200, self.namespace)
        named = PATH.fullmatch(request.path)
        if named is None:
            raise self._unknown(request)
        call = _Call(request, unquote(named["bucket"]), unquote(named["name"] or ""))
        self._admit(call, unquote(named["namespace"]))
        collection = named["collection"] or "bucket"
        rest = call.name if collection == "actions" else "*"
        verb = self._verbs.get(f"{request.method} {collection}" + (f"/{rest}" if call.name else ""))
        if verb is None:
            raise self._unknown(request)
        return verb(self, call)

    @staticmethod
    def _unknown(request: Request) -> RefusedError:
        return RefusedError(501, "NotImplemented", f"the stub does not know {request.method} {request.path}")

    def _admit(self, call: _Call, namespace: str) -> None:
        denial = self._denials.get(call.bucket)
        denied = denial is not None and (denial.reads or call.request.method in WRITES)
        if namespace != self.namespace:
            raise RefusedError(
                404, "NamespaceNotFound", f"You are not authorized for the namespace '{namespace}' or it does not exist"
            )
        if denied or call.bucket not in self.buckets:
            status, code = (denial.status, denial.code) if denied else (404, "BucketNotFound")
            raise RefusedError(
                status,
                code,
                f"Either the bucket named '{call.bucket}' does not exist in the namespace '{namespace}'"
                " or you are not authorized to access it",
            )

    def _conditions(self, call: _Call, key: tuple[str, str]) -> None:
        held = self.objects.get(key)
        if call.headers.get("if-none-match") == "*" and held:
            raise RefusedError(412, "IfNoneMatchFailed", "The If-None-Match header is '*' but there is an existing entity")
        wanted = call.headers.get("if-match")
        if wanted and wanted != "*" and (held is None or held.etag != wanted):
            raise RefusedError(412, "IfMatchFailed", "The If-Match header does not match the existing entity")

    def _held(self, key: tuple[str, str]) -> StoredObject:
        if key not in self.objects:
            raise RefusedError(404, "ObjectNotFound", f"The object '{key[1]}' was not found in the bucket '{key[0]}'")
        return self.objects[key]

    def _digests(self, call: _Call) -> dict[str, str]:
        """Checks the digests sent with a body and says which headers tell them later."""
        if "transfer-encoding" in call.headers:
            raise RefusedError(411, "MissingContentLength", "Transfer-Encoding is not supported")
        body = call.request.body
        md5, sha256 = _base64(_md5(body)), _base64(hashlib.sha256(body).digest())
        if call.headers.get("content-md5", md5) != md5:
            raise RefusedError(400, "UnmatchedContentMD5", "The computed MD5 of the request body does not match Content-MD5")
        if call.headers.get("opc-content-sha256", sha256) != sha256:
            raise RefusedError(400, "UnmatchedContentSHA256", "The computed SHA-256 of the body does not match opc-content-sha256")
        told = {"content-md5": md5}
        return told | {"opc-content-sha256": sha256} if "opc-content-sha256" in call.headers else told

    @staticmethod
    def _tier(asked: str | None) -> str:
        if asked not in (None, *TIERS):
            raise RefusedError(400, "InvalidStorageTier", f"'{asked}' is no storage tier")
        return asked or "Standard"

    # --- buckets and objects

    def _get_bucket(self, call: _Call) -> Answer:
        sizes = [len(held.body) for (bucket, _), held in self.objects.items() if bucket == call.bucket]
        told = {
            "namespace": self.namespace,
            "name": call.bucket,
            "compartmentId": TENANCY,
            "timeCreated": _iso(self.buckets[call.bucket]),
            "etag": call.bucket,
            "publicAccessType": "NoPublicAccess",
            "storageTier": "Standard",
            "versioning": "Disabled",
            "approximateCount": len(sizes),
            "approximateSize": sum(sizes),
        }
        return _json(200, told, {"etag": call.bucket})

    def _put_object(self, call: _Call) -> Answer:
        self._conditions(call, call.key)
        digests = self._digests(call)
        held = StoredObject(
            body=call.request.body,
            metadata={name: value for name, value in call.headers.items() if name.startswith("opc-meta-")},
            tier=self._tier(call.headers.get("storage-tier")),
            content_type=call.headers.get("content-type", "application/octet-stream"),
            digests=digests,
        )
        self.objects[call.key] = held
        digests = {f"opc-{name.removeprefix('opc-')}": value for name, value in digests.items()}
        return Answer(200, {"etag": held.etag, "last-modified": held.headers["last-modified"]} | digests)

    def _get_object(self, call: _Call) -> Answer:
        held = self._held(call.key)
        self._conditions(call, call.key)
        if held.archival_state in ("Archived", "Restoring"):
            raise RefusedError(409, "NotRestored", f"The object '{call.name}' is archived and must be restored before it is read")
        answer = ranged(call.request, held.body)
        return replace(answer, headers=held.headers | answer.headers)

    def _head_object(self, call: _Call) -> Answer:
        held = self._held(call.key)
        self._conditions(call, call.key)
        return Answer(200, held.headers, held.body)

    def _delete_object(self, call: _Call) -> Answer:
        self._held(call.key)
        self._conditions(call, call.key)
        del self.objects[call.key]
        return Answer(204)

    def _list_objects(self, call: _Call) -> Answer:
        query = call.query
        if "delimiter" in query:
            raise RefusedError(501, "NotImplemented", "the stub lists without delimiters")
        names = sorted(
            name
            for bucket, name in self.objects
            if bucket == call.bucket
            and name.startswith(query.get("prefix", ""))
            and query.get("start", "") <= name
            and name > query.get("startAfter", "")
            and ("end" not in query or name < query["end"])
        )
        size = self._page_size(call)
        fields = {name.strip().lower() for name in query.get("fields", "name").split(",")} | {"name"}
        page = {"objects": [self.objects[call.bucket, name].summary(name, fields) for name in names[:size]], "prefixes": []}
        return _json(200, page | ({"nextStartWith": names[size]} if len(names) > size else {}))

    def _page_size(self, call: _Call) -> int:
        return min(int(call.query.get("limit", self.page_size)), self.page_size)

    # --- archiving

    def _restore_objects(self, call: _Call) -> Answer:
        details = call.details()
        key = call.bucket, details["objectName"]
        held = self._held(key)
        if held.archival_state is None:
            raise RefusedError(400, "InvalidStorageTier", f"The object '{key[1]}' is not archived")
        if held.archival_state != "Archived":
            return Answer(200)
        restored = datetime.now(UTC) + timedelta(seconds=self.restore_seconds)
        until = restored + timedelta(hours=details.get("hours") or 24)
        self.objects[key] = replace(held, restored=restored, restored_until=until)
        return Answer(202)

    def _update_tier(self, call: _Call) -> Answer:
        details = call.details()
        key = call.bucket, details["objectName"]
        held, tier = self._held(key), self._tier(details["storageTier"])
        if held.archival_state in ("Archived", "Restoring") and tier != "Archive":
            raise RefusedError(409, "NotRestored", f"The object '{key[1]}' must be restored before its tier changes")
        self.objects[key] = replace(held, tier=tier, restored=None, restored_until=None)
        return Answer(200)

    # --- multipart uploads

    def _upload(self, call: _Call) -> Upload:
        upload = self.uploads.get(call.query.get("uploadId", ""))
        if upload is None or (upload.bucket, upload.key) != call.key:
            raise RefusedError(404, "NoSuchUpload", "The upload was not found: it may have been committed or aborted")
        return upload

    def _create_upload(self, call: _Call) -> Answer:
        details = call.details()
        name, metadata = details["object"], details.get("metadata") or {}
        self._conditions(call, (call.bucket, name))
        if not all(key.startswith("opc-meta-") for key in metadata):
            raise RefusedError(400, "InvalidMetadata", "Keys of metadata must be in opc-meta-* format")
        content_type = details.get("contentType") or "application/octet-stream"
        upload = Upload(call.bucket, name, metadata, self._tier(details.get("storageTier")), content_type)
        number = str(uuid.uuid4())
        self.uploads[number] = upload
        return _json(200, self._upload_summary(number, upload))

    def _upload_summary(self, number: str, upload: Upload) -> dict[str, object]:
        return {
            "namespace": self.namespace,
            "bucket": upload.bucket,
            "object": upload.key,
            "uploadId": number,
            "timeCreated": _iso(upload.created),
            "storageTier": upload.tier,
        }

    def _upload_part(self, call: _Call) -> Answer:
        upload, number = self._upload(call), int(call.query["uploadPartNum"])
        if not 1 <= number <= 10_000:
            raise RefusedError(400, "InvalidUploadPart", f"{number} is no part number")
        digests = self._digests(call)
        upload.parts[number] = part = Part(call.request.body)
        return Answer(200, {"etag": part.etag} | {f"opc-{name.removeprefix('opc-')}": value for name, value in digests.items()})

    def _list_parts(self, call: _Call) -> Answer:
        parts = self._upload(call).parts
        rest = [number for number in sorted(parts) if number > int(call.query.get("page", "0"))]
        told = [
            {
                "partNumber": number,
                "etag": parts[number].etag,
                "md5": _base64(_md5(parts[number].body)),
                "size": len(parts[number].body),
            }
            for number in rest
        ]
        return self._page(call, told, "partNumber")

    def _list_uploads(self, call: _Call) -> Answer:
        rest = sorted(number for number, upload in self.uploads.items() if upload.bucket == call.bucket)
        told = [self._upload_summary(number, self.uploads[number]) for number in rest if number > call.query.get("page", "")]
        return self._page(call, told, "uploadId")

    def _page(self, call: _Call, rest: list[dict[str, object]], mark: str) -> Answer:
        """A page that ends with its mark, so that what is deleted between two pages makes nobody skip anything."""
        size = self._page_size(call)
        return _json(200, rest[:size], {"opc-next-page": str(rest[size - 1][mark])} if len(rest) > size else {})

    def _commit_upload(self, call: _Call) -> Answer:
        upload, details = self._upload(call), call.details()
        self._conditions(call, call.key)
        wanted = {part["partNum"]: part["etag"] for part in details["partsToCommit"]}
        if not wanted or any(number not in upload.parts or upload.parts[number].etag != etag for number, etag in wanted.items()):
            raise RefusedError(400, "InvalidUploadPart", "A part to commit was not uploaded or has another ETag")
        if set(upload.parts) - set(wanted) != set(details.get("partsToExclude") or []):
            raise RefusedError(400, "InvalidUploadPart", "Every part must be either committed or excluded")
        bodies = [upload.parts[number].body for number in sorted(wanted)]
        md5 = f"{_base64(_md5(b''.join(map(_md5, bodies))))}-{len(bodies)}"
        told = {"opc-multipart-md5": md5}
        held = StoredObject(b"".join(bodies), upload.metadata, upload.tier, upload.content_type, told)
        self.objects[call.key] = held
        del self.uploads[call.query["uploadId"]]
        return Answer(200, {"etag": held.etag, "last-modified": held.headers["last-modified"]} | told)

    def _abort_upload(self, call: _Call) -> Answer:
        self._upload(call)
        del self.uploads[call.query["uploadId"]]
        return Answer(204)

    _verbs: dict[str, Callable[[OciStub, _Call], Answer]] = {  # noqa: RUF012 - never changed
        "GET bucket": _get_bucket,
        "HEAD bucket": _get_bucket,
        "GET o": _list_objects,
        "PUT o/*": _put_object,
        "GET o/*": _get_object,
        "HEAD o/*": _head_object,
        "DELETE o/*": _delete_object,
        "POST actions/restoreObjects": _restore_objects,
        "POST actions/updateObjectStorageTier": _update_tier,
        "GET u": _list_uploads,
        "POST u": _create_upload,
        "GET u/*": _list_parts,
        "PUT u/*": _upload_part,
        "POST u/*": _commit_upload,
        "DELETE u/*": _abort_upload,
    }
