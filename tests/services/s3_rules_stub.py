"""An S3 service in memory that is as strict as OCI's S3 compatibility API: HTTPS on 127.0.0.1, for boto3 to talk to.

It refuses what that API refuses (chunked signing, trailers, checksums it does not know) and verifies every signature and
digest. It does not know presigned URLs, versions, tags, policies, delimiters, or how small a part may be: whatever it does not
know it answers with 501.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import ssl
import tempfile
import time
import uuid
from calendar import timegm
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.etree import ElementTree

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.services.http_stub import Answer, Call, HttpStub, RefusedError, Request, ranged

CLOCK_SKEW_SECONDS = 900
REGION = "eu-frankfurt-1"
ACCESS_KEY = "AXNSSTUB"
XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"
CHUNKED = "AWS chunked encoding not supported."
# What a query may ask for besides listing; the rest of a query only says how.
SUBRESOURCES = ("uploads", "delete", "restore", "uploadId")
PARAMETERS = {"x-id", "list-type", "prefix", "continuation-token", "start-after", "max-keys", "encoding-type", "fetch-owner"} | {
    "key-marker",
    "upload-id-marker",
    "max-uploads",
    "partNumber",
    "part-number-marker",
    "max-parts",
    *SUBRESOURCES,
}


def _md5(body: bytes) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- XML

Content = str | int | list[tuple[str, "Content"]]


def _element(name: str, content: Content) -> ElementTree.Element:
    element = ElementTree.Element(name)
    if isinstance(content, list):
        element.extend([_element(*child) for child in content])
    else:
        element.text = str(content)
    return element


def _xml(status: int, name: str, content: Content) -> Answer:
    root = _element(name, content)
    if name != "Error":
        root.set("xmlns", XMLNS)
    return Answer(status, {"content-type": "application/xml"}, ElementTree.tostring(root, xml_declaration=True, encoding="UTF-8"))


def _flag(value: bool) -> str:
    return "true" if value else "false"


# --- TLS


def _certificate(name: str, key: ec.EllipticCurvePrivateKey, issuer: str, public: ec.EllipticCurvePublicKey):
    """What a certificate of a day has, whoever signs it."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
    )


def _authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """The certificate of an authority made up for this, and a context with one that it signed for 127.0.0.1."""
    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")])
    ca = _certificate("stub authority", authority, "stub authority", authority.public_key()).add_extension(usage, critical=True)
    leaf = _certificate("stub", server, "stub authority", authority.public_key()).add_extension(names, critical=False)
    pem = serialization.Encoding.PEM
    ca_file, chain = folder / "ca.pem", folder / "server.pem"
    ca_file.write_bytes(ca.sign(authority, hashes.SHA256()).public_bytes(pem))
    chain.write_bytes(
        server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + leaf.sign(authority, hashes.SHA256()).public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return ca_file, context


# --- what is held


@dataclass(frozen=True)
class StoredObject:
    """An object as it is held."""

    body: bytes = field(repr=False)
    etag: str
    metadata: dict[str, str]
    storage_class: str = "STANDARD"
    content_type: str = "binary/octet-stream"
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))
    restored: datetime | None = None
    restored_until: datetime | None = None

    @property
    def archived(self) -> bool:
        now = datetime.now(UTC)
        return self.storage_class == "GLACIER" and not (self.restored and self.restored <= now < self.restored_until)

    @property
    def restoring(self) -> bool:
        return self.restored is not None and datetime.now(UTC) < self.restored

    @property
    def headers(self) -> dict[str, str]:
        told = {
            "etag": f'"{self.etag}"',
            "last-modified": format_datetime(self.modified, usegmt=True),
            "content-type": self.content_type,
            "accept-ranges": "bytes",
        }
        if self.storage_class != "STANDARD":
            told["x-amz-storage-class"] = self.storage_class
        if self.restoring:
            told["x-amz-restore"] = 'ongoing-request="true"'
        elif self.restored and not self.archived:
            expiry = format_datetime(self.restored_until, usegmt=True)
            told["x-amz-restore"] = f'ongoing-request="false", expiry-date="{expiry}"'
        return told | self.metadata


@dataclass(frozen=True)
class Part:
    """A part of an upload."""

    body: bytes = field(repr=False)
    etag: str
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Upload:
    """A multipart upload that is neither completed nor aborted."""

    bucket: str
    key: str
    metadata: dict[str, str]
    storage_class: str
    content_type: str
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    parts: dict[int, Part] = field(default_factory=dict)


@dataclass(frozen=True)
class _Call(Call):
    """What is particular to this service."""

    @property
    def metadata(self) -> dict[str, str]:
        return {name: value for name, value in self.headers.items() if name.startswith("x-amz-meta-")}

    @property
    def storage_class(self) -> str:
        return self.headers.get("x-amz-storage-class", "STANDARD")

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "binary/octet-stream")

    def document(self) -> ElementTree.Element:
        try:
            return ElementTree.fromstring(self.request.body)  # noqa: S314 - from the test that runs this
        except ElementTree.ParseError:
            raise RefusedError(400, "MalformedXML", "The XML you provided was not well-formed") from None

    def told(self, name: str) -> str:
        """A name for an answer, quoted if the request asked for that."""
        return quote(name, safe="/") if self.query.get("encoding-type") == "url" else name


class S3RulesStub(HttpStub):
    """The service of one owner. `objects` and `uploads` are there to be looked at; `ca_file` is for AWS_CA_BUNDLE.

    `conditional="ignored"` overwrites in spite of If-None-Match and If-Match, as an endpoint may that does not document them.
    """

    def __init__(
        self,
        conditional: Literal["honoured", "ignored"] = "honoured",
        allow_unsigned: bool = False,
        page_size: int = 1000,
        restore_seconds: float = 0.2,
    ) -> None:
        super().__init__()
        self.conditional = conditional
        self.allow_unsigned = allow_unsigned
        self.page_size = page_size
        self.restore_seconds = restore_seconds
        self.secret = secrets.token_hex(20)
        self.buckets: set[str] = set()
        self.objects: dict[tuple[str, str], StoredObject] = {}
        self.uploads: dict[str, Upload] = {}

    # --- what tests use

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="s3-stub-")
        self.ca_file, self.tls = _authority(Path(self._folder.name))
        return super().__enter__()

    def __exit__(self, *failure: object) -> None:
        super().__exit__(*failure)
        self._folder.cleanup()

    def environment(self) -> dict[str, str]:
        """What makes boto3, and whatever reads its variables, talk to this stub and to nobody else."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_CA_BUNDLE": str(self.ca_file),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_buckets(self, *names: str) -> None:
        self.buckets |= set(names)

    def age(self, bucket: str, key: str, days: float) -> None:
        """Moves an object, and the open uploads of that name, into the past."""
        shift = timedelta(days=days)
        with self._lock:
            if held := self.objects.get((bucket, key)):
                self.objects[bucket, key] = replace(held, modified=held.modified - shift)
            for number, upload in self.uploads.items():
                if (upload.bucket, upload.key) == (bucket, key):
                    self.uploads[number] = replace(upload, created=upload.created - shift)

    # --- authentication: AWS Signature Version 4, in the header and over the whole body

    def authenticate(self, request: Request) -> None:
        self._refuse_what_oci_refuses(request)
        given = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8}/[^/]+/s3/aws4_request), ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]{64})",
            request.headers.get("authorization", ""),
        )
        if given is None:
            raise RefusedError(403, "AccessDenied", "Only requests signed by an Authorization header of version 4 are served")
        access_key, scope, signed, signature = given.groups()
        if access_key != ACCESS_KEY:
            raise RefusedError(403, "InvalidAccessKeyId", f"The access key {access_key} is not known")
        if scope.split("/")[1] != REGION:
            raise RefusedError(400, "AuthorizationHeaderMalformed", f"The region is wrong; expecting '{REGION}'")
        self._check_date(request, scope)
        must = {"host"} | {name for name in request.headers if name.startswith("x-amz-")}
        if not must <= set(signed.split(";")):
            raise RefusedError(403, "AccessDenied", f"Headers not signed: {sorted(must - set(signed.split(';')))}")
        if not hmac.compare_digest(signature, self._signature(request, scope, signed)):
            raise RefusedError(403, "SignatureDoesNotMatch", "The signature calculated does not match the one provided")
        self._check_digests(request)

    def _refuse_what_oci_refuses(self, request: Request) -> None:
        headers = request.headers
        if headers.get("host") != urlsplit(self.endpoint).netloc:
            raise RefusedError(400, "InvalidURI", "The name of a bucket belongs into the path, not into the host")
        streamed = headers.get("x-amz-content-sha256", "").startswith("STREAMING-")
        if streamed or "aws-chunked" in headers.get("content-encoding", "") or "x-amz-trailer" in headers:
            raise RefusedError(501, "NotImplemented", CHUNKED)
        if "transfer-encoding" in headers:
            raise RefusedError(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        unknown = {name for name in headers if re.fullmatch(r"x-amz-checksum-(?!sha256|algorithm|type|mode).*", name)}
        if request.method == "PUT" and unknown:
            raise RefusedError(501, "NotImplemented", f"Checksums not supported: {', '.join(sorted(unknown))}")

    @staticmethod
    def _check_date(request: Request, scope: str) -> None:
        stamp = request.headers.get("x-amz-date", "")
        if not re.fullmatch(r"\d{8}T\d{6}Z", stamp) or not scope.startswith(stamp[:8]):
            raise RefusedError(403, "AccessDenied", "The credential's date is not the request's")
        if abs(time.time() - timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))) > CLOCK_SKEW_SECONDS:
            raise RefusedError(
                403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."
            )

    def _signature(self, request: Request, scope: str, signed: str) -> str:
        query = sorted(
            (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
            for name, value in parse_qsl(urlsplit(request.target).query, keep_blank_values=True)
        )
        canonical = "\n".join(
            [
                request.method,
                quote(unquote(request.path), safe="/-_.~"),
                "&".join(f"{name}={value}" for name, value in query),
                *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in signed.split(";")),
                "",
                signed,
                request.headers.get("x-amz-content-sha256", ""),
            ]
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join(["AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope, digest])
        key = f"AWS4{self.secret}".encode()
        for word in (*scope.split("/"), text):
            key = hmac.new(key, word.encode(), hashlib.sha256).digest()
        return key.hex()

    def _check_digests(self, request: Request) -> None:
        sha256, md5 = hashlib.sha256(request.body).digest(), _md5(request.body)
        given = request.headers.get("x-amz-content-sha256")
        if given == "UNSIGNED-PAYLOAD" and not self.allow_unsigned:
            raise RefusedError(403, "AccessDenied", "This stub serves signed payloads only")
        if given not in ("UNSIGNED-PAYLOAD", sha256.hex()):
            raise RefusedError(400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match")
        for name, digest in (("content-md5", md5), ("x-amz-checksum-sha256", sha256)):
            if request.headers.get(name, _base64(digest)) != _base64(digest):
                raise RefusedError(400, "BadDigest", f"The {name} you specified did not match what we received.")

    # --- requests

    def sign_off(self, number: int) -> dict[str, str]:
        return {"x-amz-request-id": f"stub-{number}", "opc-request-id": f"stub-{number}"}

    def error(self, refused: RefusedError) -> Answer:
        return _xml(refused.status, "Error", [("Code", refused.code), ("Message", refused.message or refused.code)])

    def serve(self, request: Request) -> Answer:
        _, bucket, *rest = unquote(request.path).split("/", 2)
        call = _Call(request, bucket, rest[0] if rest else "")
        asked = next((name for name in SUBRESOURCES if name in call.query), "")
        route = f"{request.method} {'object' if call.name else 'bucket'}" + (f"?{asked}" if asked else "")
        if route == "PUT object" and "x-amz-copy-source" in call.headers:
            route = "COPY object"
        verb = self._verbs.get(route)
        if verb is None or not set(call.query) <= PARAMETERS:
            raise RefusedError(501, "NotImplemented", f"the stub does not know {request.method} {request.target}")
        if bucket not in self.buckets:
            raise RefusedError(404, "NoSuchBucket", "The specified bucket does not exist")
        return verb(self, call)

    def _conditions(self, call: _Call) -> None:
        if self.conditional == "ignored":
            return
        held, wanted = self.objects.get(call.key), call.headers.get("if-match")
        if wanted and held is None:
            raise RefusedError(404, "NoSuchKey", "The specified key does not exist.")
        if (call.headers.get("if-none-match") == "*" and held) or (wanted and wanted.strip('"') != held.etag):
            raise RefusedError(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")

    def _held(self, key: tuple[str, str]) -> StoredObject:
        if key not in self.objects:
            raise RefusedError(404, "NoSuchKey", "The specified key does not exist.")
        return self.objects[key]

    def _limit(self, call: _Call, parameter: str) -> int:
        return min(int(call.query.get(parameter, self.page_size)), self.page_size)

    # --- buckets and objects

    def _head_bucket(self, _: _Call) -> Answer:
        return Answer(200, {"x-amz-bucket-region": REGION})

    def _put_object(self, call: _Call) -> Answer:
        self._conditions(call)
        body = call.request.body
        held = StoredObject(body, _md5(body).hex(), call.metadata, call.storage_class, call.content_type)
        self.objects[call.key] = held
        return Answer(200, {"etag": held.headers["etag"]})

    def _copy_object(self, call: _Call) -> Answer:
        """Copies, usually onto itself to change a storage class: whatever is not named anew stays."""
        bucket, _, name = unquote(call.headers["x-amz-copy-source"]).lstrip("/").partition("/")
        source, replaced = self._held((bucket, name)), call.headers.get("x-amz-metadata-directive") == "REPLACE"
        if source.archived:
            raise RefusedError(403, "ObjectNotInActiveTierError", "The source object is archived and not restored")
        if (bucket, name) == call.key and not replaced and call.storage_class == source.storage_class:
            raise RefusedError(400, "InvalidRequest", "This copy request is illegal because it changes nothing")
        metadata, content_type = (call.metadata, call.content_type) if replaced else (source.metadata, source.content_type)
        held = StoredObject(source.body, _md5(source.body).hex(), metadata, call.storage_class, content_type)
        self.objects[call.key] = held
        return _xml(200, "CopyObjectResult", [("ETag", held.headers["etag"]), ("LastModified", _iso(held.modified))])

    def _get_object(self, call: _Call) -> Answer:
        held = self._held(call.key)
        self._conditions(call)
        if held.archived:
            raise RefusedError(403, "InvalidObjectState", "The operation is not valid for the object's storage class")
        answer = ranged(call.request, held.body)
        return replace(answer, headers=held.headers | answer.headers)

    def _head_object(self, call: _Call) -> Answer:
        held = self._held(call.key)
        return Answer(200, held.headers, held.body)

    def _delete_object(self, call: _Call) -> Answer:
        self.objects.pop(call.key, None)
        return Answer(204)

    def _delete_objects(self, call: _Call) -> Answer:
        if not {"content-md5", "x-amz-checksum-sha256"} & set(call.headers):
            raise RefusedError(
                400,
                "InvalidRequest",
                "Missing required header for this request: Content-MD5 or x-amz-checksum-sha256 or x-amz-checksum-crc32c",
            )
        document = call.document()
        names = [name.text for name in document.iterfind("{*}Object/{*}Key")]
        for name in names:
            self.objects.pop((call.bucket, name), None)
        quiet = document.findtext("{*}Quiet") == "true"
        return _xml(200, "DeleteResult", [] if quiet else [("Deleted", [("Key", name)]) for name in names])

    def _list_objects(self, call: _Call) -> Answer:
        query = call.query
        if query.get("list-type") != "2":
            raise RefusedError(501, "NotImplemented", "the stub lists by version 2 only")
        after = base64.urlsafe_b64decode(query.get("continuation-token", "")).decode() or query.get("start-after", "")
        prefix, size = query.get("prefix", ""), self._limit(call, "max-keys")
        names = sorted(name for bucket, name in self.objects if bucket == call.bucket and name.startswith(prefix) and name > after)
        page, more = names[:size], len(names) > size
        told: list[tuple[str, Content]] = [
            ("Name", call.bucket),
            ("Prefix", call.told(prefix)),
            ("KeyCount", len(page)),
            ("MaxKeys", size),
            ("IsTruncated", _flag(more)),
        ]
        if "encoding-type" in query:
            told.append(("EncodingType", "url"))
        if more:
            told.append(("NextContinuationToken", base64.urlsafe_b64encode(page[-1].encode()).decode()))
        return _xml(200, "ListBucketResult", told + [("Contents", self._summary(call, name)) for name in page])

    def _summary(self, call: _Call, name: str) -> Content:
        held = self.objects[call.bucket, name]
        return [
            ("Key", call.told(name)),
            ("LastModified", _iso(held.modified)),
            ("ETag", held.headers["etag"]),
            ("Size", len(held.body)),
            ("StorageClass", held.storage_class),
        ]

    def _restore_object(self, call: _Call) -> Answer:
        held = self._held(call.key)
        if held.storage_class != "GLACIER":
            raise RefusedError(403, "InvalidObjectState", "Restore is not allowed for the object's current storage class")
        if held.restoring:
            raise RefusedError(409, "RestoreAlreadyInProgress", "Object restore is already in progress")
        days = int(call.document().findtext("{*}Days") or 1)
        now = datetime.now(UTC)
        restored = now + timedelta(seconds=self.restore_seconds) if held.archived else held.restored
        self.objects[call.key] = replace(held, restored=restored, restored_until=restored + timedelta(days=days))
        return Answer(202 if held.archived else 200)

    # --- multipart uploads

    def _upload(self, call: _Call) -> Upload:
        upload = self.uploads.get(call.query["uploadId"])
        if upload is None or (upload.bucket, upload.key) != call.key:
            raise RefusedError(
                404, "NoSuchUpload", "The specified multipart upload does not exist: it may have been completed or aborted"
            )
        return upload

    def _create_upload(self, call: _Call) -> Answer:
        number = uuid.uuid4().hex
        self.uploads[number] = Upload(call.bucket, call.name, call.metadata, call.storage_class, call.content_type)
        told = [("Bucket", call.bucket), ("Key", call.name), ("UploadId", number)]
        return _xml(200, "InitiateMultipartUploadResult", told)

    def _upload_part(self, call: _Call) -> Answer:
        upload, number, body = self._upload(call), int(call.query["partNumber"]), call.request.body
        if not 1 <= number <= 10_000:
            raise RefusedError(400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
        upload.parts[number] = part = Part(body, _md5(body).hex())
        return Answer(200, {"etag": f'"{part.etag}"'})

    def _list_parts(self, call: _Call) -> Answer:
        parts, size = self._upload(call).parts, self._limit(call, "max-parts")
        numbers = [number for number in sorted(parts) if number > int(call.query.get("part-number-marker") or 0)]
        told: list[tuple[str, Content]] = [
            ("Bucket", call.bucket),
            ("Key", call.told(call.name)),
            ("UploadId", call.query["uploadId"]),
            ("IsTruncated", _flag(len(numbers) > size)),
            ("NextPartNumberMarker", numbers[:size][-1] if numbers else 0),
        ]
        for number in numbers[:size]:
            part = parts[number]
            size_and_tag = [("ETag", f'"{part.etag}"'), ("Size", len(part.body)), ("LastModified", _iso(part.modified))]
            told.append(("Part", [("PartNumber", number), *size_and_tag]))
        return _xml(200, "ListPartsResult", told)

    def _list_uploads(self, call: _Call) -> Answer:
        prefix, size = call.query.get("prefix", ""), self._limit(call, "max-uploads")
        after = call.query.get("key-marker", ""), call.query.get("upload-id-marker", "")
        found = sorted(
            (upload.key, number)
            for number, upload in self.uploads.items()
            if upload.bucket == call.bucket and upload.key.startswith(prefix) and (upload.key, number) > after
        )
        page, more = found[:size], len(found) > size
        told: list[tuple[str, Content]] = [("Bucket", call.bucket), ("IsTruncated", _flag(more))]
        if "encoding-type" in call.query:
            told.append(("EncodingType", "url"))
        if more:
            told += [("NextKeyMarker", call.told(page[-1][0])), ("NextUploadIdMarker", page[-1][1])]
        for name, number in page:
            upload = self.uploads[number]
            about = [("Key", call.told(name)), ("UploadId", number), ("Initiated", _iso(upload.created))]
            told.append(("Upload", [*about, ("StorageClass", upload.storage_class)]))
        return _xml(200, "ListMultipartUploadsResult", told)

    def _complete_upload(self, call: _Call) -> Answer:
        upload = self._upload(call)
        self._conditions(call)
        wanted = [
            (int(part.findtext("{*}PartNumber") or 0), (part.findtext("{*}ETag") or "").strip('"'))
            for part in call.document().iterfind("{*}Part")
        ]
        if not wanted:
            raise RefusedError(400, "MalformedXML", "You must specify at least one part")
        if [number for number, _ in wanted] != sorted({number for number, _ in wanted}):
            raise RefusedError(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        if any(number not in upload.parts or upload.parts[number].etag != etag for number, etag in wanted):
            raise RefusedError(400, "InvalidPart", "A part was not uploaded or has another entity tag")
        parts = [upload.parts[number] for number, _ in wanted]
        etag = f"{_md5(b''.join(bytes.fromhex(part.etag) for part in parts)).hex()}-{len(parts)}"
        body = b"".join(part.body for part in parts)
        held = StoredObject(body, etag, upload.metadata, upload.storage_class, upload.content_type)
        self.objects[call.key] = held
        del self.uploads[call.query["uploadId"]]
        told = [("Bucket", call.bucket), ("Key", call.name), ("ETag", held.headers["etag"])]
        return _xml(200, "CompleteMultipartUploadResult", told)

    def _abort_upload(self, call: _Call) -> Answer:
        self._upload(call)
        del self.uploads[call.query["uploadId"]]
        return Answer(204)

    _verbs: dict[str, Callable[[S3RulesStub, _Call], Answer]] = {  # noqa: RUF012 - never changed
        "HEAD bucket": _head_bucket,
        "GET bucket": _list_objects,
        "POST bucket?delete": _delete_objects,
        "GET bucket?uploads": _list_uploads,
        "PUT object": _put_object,
        "COPY object": _copy_object,
        "GET object": _get_object,
        "HEAD object": _head_object,
        "DELETE object": _delete_object,
        "POST object?restore": _restore_object,
        "POST object?uploads": _create_upload,
        "PUT object?uploadId": _upload_part,
        "GET object?uploadId": _list_parts,
        "POST object?uploadId": _complete_upload,
        "DELETE object?uploadId": _abort_upload,
    }
