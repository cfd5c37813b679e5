"""Tells PagerDuty (Events API v2), Slack and Security's webhook that an alert is on or off. One short request each, with a time limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.operations.alerts.decide import Alert
from akidb_pipelines.operations.alerts.table import Receiver, Rule
from akidb_pipelines.settings import Settings

_TIMEOUT_S = 5
_SOURCE = "akidb_pipelines"
_PAGERDUTY_KEY_LENGTH = 255


class RefusedAlertError(OutsideError):
    """The receiver is there, and does not take this very alert."""


class Line(Protocol):
    """A way to tell somebody."""

    def tell(self, alert: Alert, rule: Rule, *, on: bool) -> None:
        """Tell it. Telling the same again does no harm.

        Raises:
            OutsideError: nobody took it.
        """
        ...


class PagerDuty:
    """Events API v2: trigger and resolve meet by their `dedup_key`."""

    def __init__(self, url: str, routing_key: str, settings: Settings) -> None:
        self._url, self._routing_key, self._settings = f"{url.rstrip('/')}/v2/enqueue", routing_key, settings

    def tell(self, alert: Alert, rule: Rule, *, on: bool) -> None:
        """See `Line`."""
        event: dict[str, Any] = {
            "routing_key": self._routing_key,
            "event_action": "trigger" if on else "resolve",
            "dedup_key": alert.key[:_PAGERDUTY_KEY_LENGTH],
        }
        if on:
            event |= {
                "payload": {
                    "summary": f"{alert.rule}: {alert.told}"[:1024],
                    "source": _SOURCE,
                    "severity": rule.severity,
                    "component": alert.subject,
                    "class": alert.rule,
                    "custom_details": {"summary": rule.summary, "run": _run(alert, self._settings)},
                },
                "links": [{"href": self._settings.runbook(rule.runbook), "text": "Runbook"}],
            }
        _post("PagerDuty", self._url, event)


class Slack:
    """An incoming webhook of #akidb-infra."""

    def __init__(self, webhook: str, settings: Settings) -> None:
        self._webhook, self._settings = webhook, settings

    def tell(self, alert: Alert, rule: Rule, *, on: bool) -> None:
        """See `Line`."""
        if not on:
            _post("Slack", self._webhook, {"text": f":white_check_mark: resolved: *{alert.rule}* {_plain(alert.subject)}"})
            return
        mark = ":rotating_light:" if rule.severity == "critical" else ":warning:"
        links = [f"<{self._settings.runbook(rule.runbook)}|runbook>"]
        if run := _run(alert, self._settings):
            links.append(f"<{run}|run>" if run.startswith("http") else run)
        text = f"{mark} *{alert.rule}* ({rule.severity})\n{_plain(alert.told)}\n{' · '.join(links)}"
        _post("Slack", self._webhook, {"text": text})


class Webhook:
    """Team Security's own: the alert as JSON."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._url, self._settings = url, settings

    def tell(self, alert: Alert, rule: Rule, *, on: bool) -> None:
        """See `Line`."""
        told = {
            "status": "firing" if on else "resolved",
            "dedup_key": alert.key,
            "rule": alert.rule,
            "severity": rule.severity,
            "subject": alert.subject,
            "found": alert.told,
            "runbook": self._settings.runbook(rule.runbook),
        }
        _post("Security's webhook", self._url, told)


def open_lines(settings: Settings) -> Mapping[Receiver, Line]:
    """Those that are configured; none by default."""
    lines: dict[Receiver, Line] = {}
    if key := settings.pagerduty_routing_key.get_secret_value():
        lines["pagerduty"] = PagerDuty(settings.pagerduty_url, key, settings)
    if webhook := settings.slack_webhook.get_secret_value():
        lines["slack"] = Slack(webhook, settings)
    if webhook := settings.security_webhook.get_secret_value():
        lines["security"] = Webhook(webhook, settings)
    return lines


def _post(whom: str, url: str, body: Mapping[str, Any]) -> None:
    """Raises OutsideError without the address: in Slack's case it is the secret."""
    import httpx

    try:
        answer = httpx.post(url, json=body, timeout=_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OutsideError(
            f"{whom} was not told: {type(error).__name__}",
            hint="does this host reach it, and is its address right? The sensor tries again at every tick",
        ) from error
    if not answer.is_success:
        told = answer.text[:200] if whom == "PagerDuty" else ""
        mine = answer.is_client_error and answer.status_code != httpx.codes.TOO_MANY_REQUESTS
        kind = RefusedAlertError if mine else OutsideError
        raise kind(
            f"{whom} was not told: HTTP {answer.status_code} {told}".rstrip(),
            hint="is its key or webhook still valid? The sensor tries again at every tick",
        )


def _run(alert: Alert, settings: Settings) -> str:
    if not alert.run_id:
        return ""
    return f"{settings.ui_url.rstrip('/')}/runs/{alert.run_id}" if settings.ui_url else f"run {alert.run_id}"


def _plain(text: str) -> str:
    """Slack reads &, < and > as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
