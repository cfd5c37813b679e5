"""An OCI with a staging in it: instances of Compute, their network cards and availability domains, on the same host as `OciStub`'s buckets.

It keeps etags, refuses `if-match` that is out of date, changes states a step a look, and has no room where a test says so. Whatever else is
asked it answers with 501, never with a guess.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from tests.services.http_stub import Answer, RefusedError, Request
from tests.services.oci_stub import TENANCY, OciStub

VERSION = "20160918"
COMPARTMENT = "ocid1.compartment.oc1..staging"
DOMAINS = ("kIdk:EU-FRANKFURT-1-AD-1", "kIdk:EU-FRANKFURT-1-AD-2", "kIdk:EU-FRANKFURT-1-AD-3")
SHAPE = "VM.Standard.A1.Flex"
_STEPS = {"STOPPING": "STOPPED", "STARTING": "RUNNING", "PROVISIONING": "RUNNING", "TERMINATING": "TERMINATED"}


@dataclass
class StubInstance:
    """An instance. `stuck` keeps it from ever leaving a state that passes by itself."""

    id: str
    name: str
    domain: str
    state: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    etag: str = field(default_factory=lambda: str(uuid.uuid4()))
    looks: int = 0
    stuck: bool = False
    address: str = "10.0.0.10"


class OciStagingStub(OciStub):
    """`instances` is there to be looked at and changed; what was asked for stands in the log."""

    def __init__(self, page_size: int = 2) -> None:
        super().__init__(restore_seconds=0.3)
        self.instances: dict[str, StubInstance] = {}
        self.full: set[str] = set()
        """Availability domains without room."""
        self.launch_error: tuple[int, str, str] | None = None
        self.launched_stuck = False
        self._instances_page = page_size
        self._launch_tokens: dict[str, str] = {}

    # what tests use

    def make_instance(self, name: str, **more: Any) -> StubInstance:
        made = StubInstance(f"ocid1.instance.oc1..{name}{len(self.instances)}", name, DOMAINS[0], **more)
        made.address = f"10.0.0.{10 + len(self.instances)}"
        self.instances[made.id] = made
        return made

    def named(self, name: str) -> list[StubInstance]:
        """Those of a name that are not terminated."""
        return [i for i in self.instances.values() if i.name == name and i.state not in ("TERMINATING", "TERMINATED")]

    # what the server asks

    def serve(self, request: Request) -> Answer:  # noqa: PLR0911 - one return a verb
        match [request.method, *map(unquote, request.path.strip("/").split("/"))]:
            case ["GET", version, "instances"] if version == VERSION:
                return self._list_instances(request)
            case ["POST", version, "instances"] if version == VERSION:
                return self._launch(request)
            case ["GET", version, "instances", number] if version == VERSION:
                return self._told(self._pass(self._instance(number)))
            case ["POST", version, "instances", number] if version == VERSION:
                return self._act(request, self._instance(number))
            case ["DELETE", version, "instances", number] if version == VERSION:
                return self._terminate(request, self._instance(number))
            case ["GET", version, "vnicAttachments"] if version == VERSION:
                return self._attachments(request)
            case ["GET", version, "vnics", number] if version == VERSION:
                held = self._instance(number.removeprefix("vnic-"))
                return _json(
                    {"id": number, "privateIp": held.address, "subnetId": "ocid1.subnet.oc1..a", "nsgIds": ["ocid1.nsg.oc1..a"]}
                )
            case ["GET", version, "availabilityDomains"] if version == VERSION:
                return _json([{"name": name, "compartmentId": TENANCY, "id": f"id-{name}"} for name in DOMAINS])
        return super().serve(request)

    def _instance(self, number: str) -> StubInstance:
        if number not in self.instances:
            raise RefusedError(404, "NotAuthorizedOrNotFound", "Authorization failed or requested resource not found.")
        return self.instances[number]

    def _pass(self, held: StubInstance) -> StubInstance:
        """A state that passes by itself does so at the second look."""
        held.looks += 1
        if held.state in _STEPS and held.looks > 1 and not held.stuck:
            self._change(held, _STEPS[held.state])
        return held

    @staticmethod
    def _change(held: StubInstance, state: str) -> None:
        held.state, held.looks, held.etag = state, 0, str(uuid.uuid4())

    def _list_instances(self, request: Request) -> Answer:
        found = [i for i in self.instances.values() if request.query.get("displayName") in (None, i.name)]
        if request.query.get("compartmentId") != COMPARTMENT:
            raise RefusedError(404, "NotAuthorizedOrNotFound", "Authorization failed or requested resource not found.")
        start = int(request.query.get("page", 0))
        more = {"opc-next-page": str(start + self._instances_page)} if start + self._instances_page < len(found) else {}
        return _json([self._content(i) for i in found[start : start + self._instances_page]], more)

    def _content(self, held: StubInstance) -> dict[str, Any]:
        return {
            "id": held.id,
            "displayName": held.name,
            "compartmentId": COMPARTMENT,
            "availabilityDomain": held.domain,
            "region": "eu-frankfurt-1",
            "lifecycleState": held.state,
            "freeformTags": held.tags,
            "shape": SHAPE,
            "shapeConfig": {"ocpus": 4.0, "memoryInGBs": 24.0},
            "sourceDetails": {"sourceType": "image", "imageId": "ocid1.image.oc1..ubuntu"},
            "metadata": {"user_data": "I2Nsb3VkLWNvbmZpZwo="},
            "timeCreated": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }

    def _told(self, held: StubInstance) -> Answer:
        return _json(self._content(held), {"etag": held.etag})

    def _expect_current(self, request: Request, held: StubInstance) -> None:
        if request.headers.get("if-match", held.etag) != held.etag:
            raise RefusedError(412, "NoEtagMatch", "The If-Match header does not match the existing entity")

    def _act(self, request: Request, held: StubInstance) -> Answer:
        self._expect_current(request, held)
        action = request.query.get("action")
        before, state = {"STOP": ("RUNNING", "STOPPING"), "START": ("STOPPED", "STARTING")}.get(str(action), ("", ""))
        if not state:
            raise self._unknown(request)
        if held.state != before:
            raise RefusedError(409, "IncorrectState", f"The instance is {held.state}")
        self._change(held, state)
        return self._told(held)

    def _terminate(self, request: Request, held: StubInstance) -> Answer:
        if "if-match" not in request.headers:
            raise RefusedError(400, "MissingParameter", "this stub wants if-match of whoever terminates")
        self._expect_current(request, held)
        self._change(held, "TERMINATING")
        return Answer(204)

    def _launch(self, request: Request) -> Answer:
        details = json.loads(request.body)
        token = request.headers.get("opc-retry-token", "")
        if known := self._launch_tokens.get(token):
            return self._told(self.instances[known])
        if self.launch_error:
            raise RefusedError(*self.launch_error)
        if details["availabilityDomain"] in self.full:
            raise RefusedError(500, "InternalError", "Out of host capacity.")
        made = self.make_instance(details["displayName"], state="PROVISIONING", tags=details["freeformTags"])
        made.domain, made.stuck = details["availabilityDomain"], self.launched_stuck
        if token:
            self._launch_tokens[token] = made.id
        return self._told(made)

    def _attachments(self, request: Request) -> Answer:
        held = self._instance(request.query["instanceId"])
        told = {"id": f"attachment-{held.id}", "vnicId": f"vnic-{held.id}", "instanceId": held.id, "compartmentId": COMPARTMENT}
        return _json(
            [
                told
                | {
                    "lifecycleState": "ATTACHED",
                    "availabilityDomain": held.domain,
                    "subnetId": "s",
                    "timeCreated": "2026-01-01T00:00:00Z",
                }
            ]
        )


def _json(content: object, headers: dict[str, str] | None = None) -> Answer:
    return Answer(200, {"content-type": "application/json"} | (headers or {}), json.dumps(content).encode())
