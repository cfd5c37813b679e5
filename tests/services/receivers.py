"""Stand-ins for PagerDuty's Events API v2, a Slack webhook and Security's webhook. They check what they are sent as the real ones do."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from tests.services.http_stub import Answer, HttpStub, RefusedError, Request

_SEVERITIES = {"critical", "error", "warning", "info"}


@dataclass
class Incident:
    """What PagerDuty has open, or had."""

    summary: str
    severity: str
    triggers: int = 1
    resolved: bool = False
    links: list[dict[str, str]] = field(default_factory=list)


class Receivers(HttpStub):
    """All three: `with Receivers() as receivers: ... receivers.incidents`."""

    def __init__(self) -> None:
        super().__init__()
        self.routing_key = secrets.token_hex(16)
        self.slack_path = f"/services/T0/B0/{secrets.token_hex(12)}"
        self.security_token = secrets.token_hex(12)
        self.incidents: dict[str, Incident] = {}
        """By dedup key."""
        self.slack: list[str] = []
        self.security: list[dict[str, Any]] = []

    def environment(self) -> dict[str, str]:
        """What our own sender needs."""
        return {
            "AKIDB_PAGERDUTY_URL": self.endpoint,
            "AKIDB_PAGERDUTY_ROUTING_KEY": self.routing_key,
            "AKIDB_SLACK_WEBHOOK": self.endpoint + self.slack_path,
            "AKIDB_SECURITY_WEBHOOK": f"{self.endpoint}/security",
        }

    @property
    def open(self) -> dict[str, Incident]:
        """Incidents that are not resolved."""
        return {key: i for key, i in self.incidents.items() if not i.resolved}

    def authenticate(self, request: Request) -> None:
        """Keys are in bodies and paths."""

    def serve(self, request: Request) -> Answer:
        if request.method != "POST" or not request.headers.get("content-type", "").startswith("application/json"):
            raise RefusedError(400, "bad request")
        sent = json.loads(request.body)
        if request.path == "/v2/enqueue":
            return self._enqueue(sent)
        if request.path == self.slack_path:
            text = sent.get("text") or " ".join(f"{a.get('title', '')} {a.get('text', '')}" for a in sent.get("attachments", []))
            if not text.strip():
                raise RefusedError(400, "no_text")
            self.slack.append(text)
            return Answer(200, {"content-type": "text/plain"}, b"ok")
        if request.path == "/security":
            self.security.append(sent)
            return Answer(200)
        raise RefusedError(404, "no_service")

    def _enqueue(self, event: dict[str, Any]) -> Answer:
        if event.get("routing_key") != self.routing_key:
            raise RefusedError(400, "invalid routing key")
        key, action = event.get("dedup_key", ""), event.get("event_action")
        if not key or len(key) > 255 or action not in {"trigger", "resolve"}:
            raise RefusedError(400, "invalid event")
        if action == "resolve":
            if key in self.incidents:
                self.incidents[key].resolved = True
            return self._accepted(key)
        payload = event.get("payload", {})
        if (
            not payload.get("summary")
            or len(payload["summary"]) > 1024
            or not payload.get("source")
            or payload.get("severity") not in _SEVERITIES
        ):
            raise RefusedError(400, "invalid event", "payload needs summary, source and a severity")
        known = self.incidents.get(key)
        if known and not known.resolved:
            known.triggers += 1
        else:
            self.incidents[key] = Incident(payload["summary"], payload["severity"], links=event.get("links", []))
        return self._accepted(key)

    @staticmethod
    def _accepted(key: str) -> Answer:
        return Answer(202, {}, json.dumps({"status": "success", "message": "Event processed", "dedup_key": key}).encode())

    def error(self, refused: RefusedError) -> Answer:
        return Answer(refused.status, {}, json.dumps({"status": refused.code, "errors": [refused.message]}).encode())

    def sign_off(self, number: int) -> dict[str, str]:
        return {"content-type": "application/json"}
