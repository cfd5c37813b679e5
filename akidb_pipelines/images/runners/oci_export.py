"""Getting a custom image out of OCI: exported as QCOW2 into a bucket by a work request, fetched from there, and the object removed.

`ComputeClient.export_image` answers with a work request that can take an hour; it is asked how far it is until it ends or time is up.
Packer's oracle-oci builder has made the image (`create_image`) before.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from akidb_pipelines.errors import IntegrityError, OutsideError
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.settings import Settings
from akidb_pipelines.store.objects import MissingObjectError
from akidb_pipelines.store.oci import OciBucket, signed_in
from akidb_pipelines.store.remote import CutError

_PART = 8 << 20
_TRIES = 5
_ENDED_BADLY = ("FAILED", "CANCELED", "CANCELING")


class OciExporter:
    """Exports images through one bucket.

    Args:
        settings: how to sign in.
        where: `namespace`, `bucket`, and for tests `endpoint`.
        poll_seconds: between two looks at a work request.

    Raises:
        InputError: there are no usable credentials.
    """

    def __init__(self, settings: Settings, where: Mapping[str, str], poll_seconds: float = 15) -> None:
        from oci.core import ComputeClient
        from oci.work_requests import WorkRequestClient

        endpoint = where.get("endpoint", "")
        self._compute = signed_in(ComputeClient, settings, "exporting an image", endpoint)
        self._requests = signed_in(WorkRequestClient, settings, "exporting an image", endpoint)
        self._bucket = OciBucket(where["namespace"], where["bucket"], settings)
        self._poll_seconds = poll_seconds

    def export(self, image_id: str, target: Path, timeout_seconds: float, report: Report = lambda _: None) -> None:
        """Export an image and fetch it into a new file.

        Raises:
            OutsideError: OCI refuses, the work request fails or does not end in time; nothing stays in the bucket, except that OCI goes on
                with an export that was given up: the bucket's lifecycle rule removes what comes of that.
            IntegrityError: other bytes came than the bucket has.
        """
        # A key for every attempt: another one may be under way for the same image.
        key = f"exports/{image_id.rpartition('.')[2]}-{secrets.token_hex(4)}.qcow2"
        request = self._begin(image_id, key)
        try:
            self._wait(image_id, request, timeout_seconds, report)
            self._fetch(key, target, report)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            with suppress(OutsideError):  # whatever went wrong before is what counts; the bucket's lifecycle rule removes leftovers
                self._bucket.delete([key])

    def _begin(self, image_id: str, key: str) -> str:
        from oci.core.models import ExportImageViaObjectStorageTupleDetails
        from oci.exceptions import RequestException, ServiceError

        details = ExportImageViaObjectStorageTupleDetails(
            namespace_name=self._bucket.namespace, bucket_name=self._bucket.name, object_name=key, export_format="QCOW2"
        )
        try:
            return str(self._compute.export_image(image_id, details).headers["opc-work-request-id"])
        except (ServiceError, RequestException) as error:
            raise OutsideError(f"exporting image {image_id}: {_told(error)}", hint=_hint(error)) from error

    def _wait(self, image_id: str, request: str, timeout_seconds: float, report: Report) -> None:
        from oci.exceptions import RequestException, ServiceError

        end = time.monotonic() + timeout_seconds
        while True:
            try:
                state = self._requests.get_work_request(request).data
            except (ServiceError, RequestException) as error:
                raise OutsideError(
                    f"exporting image {image_id}: work request {request}: {_told(error)}", hint="look at it in OCI's console"
                ) from error
            report(Progress("OCI exports the image", int(state.percent_complete or 0), 100))
            if state.status == "SUCCEEDED":
                return
            if state.status in _ENDED_BADLY:
                raise OutsideError(
                    f"exporting image {image_id}: work request {request} {state.status.lower()}: {self._errors(request)}",
                    hint="do what its message asks for, then archive again",
                )
            if time.monotonic() >= end:
                raise OutsideError(
                    f"exporting image {image_id}: work request {request} is {state.status} and at {state.percent_complete or 0:.0f} % "
                    f"after {timeout_seconds:g} s",
                    hint="look at it in OCI's console; raise akidb_runner_timeout_seconds if it only needs longer",
                )
            time.sleep(self._poll_seconds)

    def _errors(self, request: str) -> str:
        from oci.exceptions import RequestException, ServiceError

        try:
            told = [str(e.message) for e in self._requests.list_work_request_errors(request).data]
        except (ServiceError, RequestException) as error:
            told = [_told(error)]
        return "; ".join(told) or "it says no reason"

    def _fetch(self, key: str, target: Path, report: Report) -> None:
        head = self._bucket.head(key)
        if head is None:
            raise OutsideError(f"{self._bucket.url}/{key} is not there, though its export succeeded", hint="archive again")
        size = head.info.size_bytes
        try:
            with target.open("xb") as out:
                for start in range(0, size, _PART):
                    part = self._fetched_part(key, start, min(_PART, size - start))
                    out.write(part)
                    report(Progress("fetching the export", start + len(part), size, in_bytes=True))
        except MissingObjectError as error:
            raise OutsideError(f"{self._bucket.url}/{key} went while it was fetched", hint="archive again") from error
        except OSError as error:
            raise OutsideError(f"fetching {key} to {target}: {error}", hint="free some space, or move AKIDB_HOME") from error

    def _fetched_part(self, key: str, start: int, length: int) -> bytearray:
        """A part that came twice alike: OCI says no digest of an object that it has written itself."""
        parts = [bytearray(length), bytearray(length)]
        for part in parts:
            self._fetch_part(key, start, part)
        if parts[0] != parts[1]:
            raise IntegrityError(
                f"{self._bucket.url}/{key}: other bytes came from byte {start} on when they were read again",
                hint="bytes are altered on the way: look at the network and the proxies between, then archive again",
            )
        return parts[0]

    def _fetch_part(self, key: str, start: int, part: bytearray) -> None:
        for attempt in range(_TRIES):
            try:
                self._bucket.get_into(key, start, memoryview(part))
                return
            except CutError as error:
                if attempt == _TRIES - 1:
                    raise OutsideError(
                        f"{self._bucket.url}/{key}: cut off at byte {start}: {error}", hint="archive again"
                    ) from error


def _told(error: Any) -> str:
    """Code, message and request id, as OCI's support asks for them."""
    if not getattr(error, "code", ""):
        return str(error)
    return f"{error.status} {error.code}: {error.message} (request {error.request_id})"


def _hint(error: Any) -> str:
    if getattr(error, "status", 0) in (403, 404):
        return "the group needs `manage instance-images` in the compartment, and `manage objects` in the bucket"
    if getattr(error, "status", 0) == 401:
        return "sign in: look at ~/.oci/config, the key's fingerprint, and this machine's clock"
    return "try again later, or look at OCI's status page"
