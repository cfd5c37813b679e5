"""An OCI that also exports images: Compute and Work Requests on the same host as the Object Storage of `OciStub`.

It knows exporting by namespace, bucket and name, and the work requests of exports. It neither makes nor lists images, and does not know
destinations that are URLs, pages of errors, or conditions: whatever it does not know it answers with 501, never with a guess.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import unquote

from tests.services.http_stub import Answer, RefusedError, Request
from tests.services.oci_stub import TENANCY, OciStub, StoredObject

VERSION = "20160918"
FORMATS = ("QCOW2", "VMDK", "OCI", "VHD", "VDI")
REQUESTS = "ocid1.coreservicesworkrequest.oc1.eu-frankfurt-1.stub"


@dataclass(frozen=True)
class Step:
    """What one look at a work request finds."""

    status: str
    percent: float = 0
    writes: bool = False
    """Whether the object appears in the bucket at this step."""


EXPORTED = (Step("ACCEPTED"), Step("IN_PROGRESS", 40.5), Step("SUCCEEDED", 100, writes=True))


@dataclass(frozen=True)
class ImageOnShelf:
    """An image, and what becomes of its export: a step a look, the last one for ever."""

    content: bytes = field(repr=False)
    steps: tuple[Step, ...]
    reasons: tuple[str, ...]


@dataclass
class WorkRequest:
    """An export under way."""

    image: ImageOnShelf
    destination: tuple[str, str]
    looks: int = 0
    accepted: datetime = field(default_factory=lambda: datetime.now(UTC))


class OciComputeStub(OciStub):
    """The tenancy of `OciStub`. `requests` is there to be looked at; what was asked for stands in the log."""

    def __init__(self) -> None:
        super().__init__()
        self.images: dict[str, ImageOnShelf] = {}
        self.requests: dict[str, WorkRequest] = {}
        self._tokens: dict[str, str] = {}

    # what tests use

    def make_image(
        self, image_id: str, content: bytes = b"", steps: tuple[Step, ...] = EXPORTED, reasons: tuple[str, ...] = ()
    ) -> None:
        """An image, what its export writes, how that goes, and the messages of its errors."""
        self.images[image_id] = ImageOnShelf(content, steps, reasons)

    # what the server asks

    def serve(self, request: Request) -> Answer:
        match [request.method, *map(unquote, request.path.strip("/").split("/"))]:
            case ["POST", version, "images", image_id, "actions", "export"] if version == VERSION:
                return self._export(request, image_id)
            case ["GET", version, "workRequests", number] if version == VERSION:
                return self._work_request(number)
            case ["GET", version, "workRequests", number, "errors"] if version == VERSION:
                return self._errors(request, number)
        return super().serve(request)

    def _export(self, request: Request, image_id: str) -> Answer:
        image = self.images.get(image_id)
        if image is None:
            raise _not_found()
        number = f"{REQUESTS}{len(self.requests) + 1}"
        number = self._tokens.setdefault(request.headers.get("opc-retry-token", number), number)  # a repeated request does nothing
        work = self.requests.setdefault(number, WorkRequest(image, self._destination(request)))
        told = {
            "id": image_id,
            "compartmentId": TENANCY,
            "createImageAllowed": True,
            "lifecycleState": "EXPORTING",
            "operatingSystem": "Custom",
            "operatingSystemVersion": "Custom",
            "timeCreated": _iso(work.accepted),
        }
        return _json(told, {"opc-work-request-id": number})

    def _destination(self, request: Request) -> tuple[str, str]:
        try:
            details = json.loads(request.body)
        except ValueError:
            raise RefusedError(400, "CannotParseRequest", "The body is no JSON") from None
        if details.get("destinationType") == "objectStorageUri" or "if-match" in request.headers:
            raise self._unknown(request)
        if details.get("destinationType") != "objectStorageTuple":
            raise RefusedError(400, "InvalidParameter", f"{details.get('destinationType')} is no destinationType")
        if details.get("exportFormat", "OCI") not in FORMATS:
            raise RefusedError(400, "InvalidParameter", f"{details['exportFormat']} is no exportFormat")
        missing = [name for name in ("namespaceName", "bucketName", "objectName") if not details.get(name)]
        if missing:
            raise RefusedError(400, "MissingParameter", f"{', '.join(missing)} must not be empty")
        bucket = details["bucketName"]
        if details["namespaceName"] != self.namespace or bucket not in self.buckets or bucket in self._denials:
            raise _not_found()
        return bucket, details["objectName"]

    def _held_request(self, number: str) -> WorkRequest:
        if number not in self.requests:
            raise _not_found()
        return self.requests[number]

    def _work_request(self, number: str) -> Answer:
        work = self._held_request(number)
        step = work.image.steps[min(work.looks, len(work.image.steps) - 1)]
        work.looks += 1
        if step.writes and work.looks <= len(work.image.steps):
            self.objects[work.destination] = StoredObject(work.image.content, {}, "Standard", "application/octet-stream", {})
        told = {
            "operationType": "ExportImage",
            "status": step.status,
            "id": number,
            "compartmentId": TENANCY,
            "resources": [],
            "percentComplete": step.percent,
            "timeAccepted": _iso(work.accepted),
        }
        return _json(told)

    def _errors(self, request: Request, number: str) -> Answer:
        if request.query:
            raise self._unknown(request)
        reasons = self._held_request(number).image.reasons
        return _json([{"code": "InternalError", "message": reason, "timestamp": _iso(datetime.now(UTC))} for reason in reasons])


def _not_found() -> RefusedError:
    """What Compute says of whatever it does not want to speak of."""
    return RefusedError(404, "NotAuthorizedOrNotFound", "Authorization failed or requested resource not found.")


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(content: object, headers: dict[str, str] | None = None) -> Answer:
    return Answer(200, {"content-type": "application/json"} | (headers or {}), json.dumps(content).encode())
