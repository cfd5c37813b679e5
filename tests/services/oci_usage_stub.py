"""An OCI that also tells usage and limits: the Usage API and the Limits API on the same host as the Object Storage of `OciStub`.

Usage comes in pages; amounts are floats, as they are in truth. It knows monthly sums of cost by service and the availability of resources,
nothing else: whatever it does not know it answers with 501, never with a guess.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime

from tests.services.http_stub import Answer, RefusedError, Request
from tests.services.oci_stub import TENANCY, OciStub

_AVAILABILITY = re.compile(r"/20190729/services/(?P<service>[^/]+)/limits/(?P<limit>[^/]+)/resourceAvailability")


@dataclass
class OciUsageStub(OciStub):
    """The tenancy of `OciStub`. `usage` and `limits` are there to be filled."""

    usage: list[tuple[str, str, float | None]] = field(default_factory=list)
    """Service, currency, amount."""
    limits: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    """Service and limit name -> used and available."""
    page_length: int = 2
    endless: bool = False

    def __post_init__(self) -> None:
        super().__init__(namespace="bling")

    def serve(self, request: Request) -> Answer:
        if request.method == "POST" and request.path == "/20200107/usage":
            return self._usage(request)
        if (match := _AVAILABILITY.fullmatch(request.path)) and request.method == "GET":
            return self._availability(request, match)
        return super().serve(request)

    def _usage(self, request: Request) -> Answer:
        asked = json.loads(request.body)
        if asked["tenantId"] != TENANCY or (asked["granularity"], asked["queryType"]) != ("MONTHLY", "COST"):
            raise RefusedError(501, "NotImplemented", "the stub knows monthly costs of its tenancy only")
        for name in ("timeUsageStarted", "timeUsageEnded"):
            moment = datetime.fromisoformat(asked[name].replace("Z", "+00:00"))
            if (moment.hour, moment.minute, moment.second, moment.microsecond) != (0, 0, 0, 0):
                raise RefusedError(400, "InvalidParameter", f"UTC date does not have the right precision: {name}")
        start = int(request.query.get("page", "0"))
        end = start + self.page_length
        items = [
            {"service": service, "currency": currency, "computedAmount": amount, "timeUsageStarted": asked["timeUsageStarted"]}
            for service, currency, amount in self.usage[start:end]
        ]
        headers = {"content-type": "application/json"}
        if self.endless or end < len(self.usage):
            headers["opc-next-page"] = str(0 if self.endless else end)
        return Answer(200, headers, json.dumps({"groupBy": asked["groupBy"], "items": items}).encode())

    def _availability(self, request: Request, match: re.Match[str]) -> Answer:
        found = self.limits.get((match["service"], match["limit"]))
        if request.query.get("compartmentId") != TENANCY or found is None:
            raise RefusedError(404, "NotAuthorizedOrNotFound", "Authorization failed or requested resource not found")
        used, available = found
        told = {"used": int(used), "available": int(available), "fractionalUsage": used, "fractionalAvailability": available}
        return Answer(200, {"content-type": "application/json"}, json.dumps(told).encode())
