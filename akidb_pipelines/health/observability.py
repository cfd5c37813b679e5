"""What Prometheus and Loki say of themselves: how long they keep data (14 and 30 days), and how old their newest is.

Asked over their HTTP APIs: Prometheus `/api/v1/status/runtimeinfo` and `/api/v1/query`, Loki `/config` and `/loki/api/v1/query_range`. One
that does not answer is a finding here, not an error: that it does not is exactly what somebody must be told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import yaml

from akidb_pipelines.settings import Settings

if TYPE_CHECKING:
    import httpx

METRICS_DAYS, LOGS_DAYS = 14, 30
METRICS_FRESH_S, LOGS_FRESH_S = 600, 900
"""Seconds that the newest data may be old: twenty scrapes, and the quarter of an hour in which something always logs."""
_TIMEOUT_S = 10
_LOOK_BACK_S = 3600
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
_DURATION = re.compile(r"(\d+)(ms|[smhdwy])")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """`metrics_retention`, `metrics_fresh`, `logs_retention` or `logs_fresh`."""
    passed: bool
    told: str
    numbers: Mapping[str, float]


def look_at_observability(settings: Settings, now: datetime | None = None) -> list[Finding]:
    """Look at what is configured; nothing is found where neither is."""
    now = now or datetime.now(UTC)
    found: list[Finding] = []
    if settings.prometheus_url:
        found += _looked("metrics", settings.prometheus_url, lambda client: _prometheus(client, now))
    if settings.loki_url:
        found += _looked("logs", settings.loki_url, lambda client: _loki(client, settings.loki_selector, now))
    return found


def _looked(kind: str, url: str, look: Callable[[httpx.Client], list[Finding]]) -> list[Finding]:
    import httpx

    try:
        with httpx.Client(base_url=url.rstrip("/"), timeout=_TIMEOUT_S) as client:
            return look(client)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return [Finding(f"{kind}_fresh", False, f"{url} does not answer: {str(error) or type(error).__name__}", {})]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, yaml.YAMLError) as error:
        return [Finding(f"{kind}_fresh", False, f"{url} answers something else than was asked: {error!r}", {})]


def _prometheus(client: httpx.Client, now: datetime) -> list[Finding]:
    kept = str(_get(client, "/api/v1/status/runtimeinfo").json()["data"]["storageRetention"])
    found = [_retention("metrics", kept, METRICS_DAYS)]
    # `up` is written at every scrape, whether it succeeds or not: that all of them fail is asked for by itself.
    # An instant query sees five minutes back; what is older is looked for minute by minute.
    newest = _sample(client, "max(timestamp(up)) or max(max_over_time(timestamp(up)[1h:1m]))")
    down, all_targets = _sample(client, "count(up == 0)") or 0.0, _sample(client, "count(up)") or 0.0
    told = f"; {all_targets - down:.0f} of {all_targets:.0f} targets are up"
    fresh = _freshness("metrics", newest, now, METRICS_FRESH_S, told, {"targets": all_targets, "targets_down": down})
    return [*found, replace(fresh, passed=fresh.passed and down < all_targets)]


def _sample(client: httpx.Client, query: str) -> float | None:
    result = _get(client, "/api/v1/query", query=query).json()["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def _loki(client: httpx.Client, selector: str, now: datetime) -> list[Finding]:
    told: Any = yaml.safe_load(_get(client, "/config").text)
    kept = str(told["limits_config"].get("retention_period", "0s"))
    if not told.get("compactor", {}).get("retention_enabled"):
        # Without its compactor Loki deletes nothing itself; what the object store's lifecycle does cannot be seen here.
        retention = Finding("logs_retention", True, "Loki deletes nothing: its compactor's retention is off", {})
    else:
        retention = _retention("logs", kept, LOGS_DAYS)
    start = now - timedelta(seconds=_LOOK_BACK_S)
    answer = _get(
        client,
        "/loki/api/v1/query_range",
        query=selector,
        limit="1",
        direction="backward",
        start=str(int(start.timestamp() * 1e9)),
        end=str(int(now.timestamp() * 1e9)),
    )
    streams = answer.json()["data"]["result"]
    newest = max((int(s["values"][0][0]) / 1e9 for s in streams if s["values"]), default=None)
    return [retention, _freshness("logs", newest, now, LOGS_FRESH_S, "", {})]


def _get(client: httpx.Client, path: str, **params: str) -> httpx.Response:
    return client.get(path, params=params).raise_for_status()


def _retention(kind: str, kept: str, days: int) -> Finding:
    """`2w`, `14d or 10GiB`, `10GiB`, `720h`; Prometheus and Loki take 0 for ever."""
    limits = kept.split(" or ")
    sizes = [limit for limit in limits if limit.endswith("B")]
    seconds = duration_s(next((limit for limit in limits if limit not in sizes), "0"))
    told = f"{kind} are kept for {seconds / 86400:g} days; {days} are wanted" if seconds else f"{kind} are kept for ever"
    if sizes:
        told += f"; less, if they grow beyond {sizes[0]}"
    return Finding(f"{kind}_retention", seconds == 0 or seconds >= days * 86400, told, {"retention_days": seconds / 86400})


def _freshness(
    kind: str, newest: float | None, now: datetime, allowed_s: float, told: str, numbers: Mapping[str, float]
) -> Finding:
    if newest is None:
        return Finding(f"{kind}_fresh", False, f"there are no {kind} of the last hour{told}", numbers)
    age = max(0.0, now.timestamp() - newest)
    return Finding(
        f"{kind}_fresh",
        age <= allowed_s,
        f"the newest {kind} are {age:.0f} s old; {allowed_s:.0f} are allowed{told}",
        {**numbers, "age_seconds": round(age, 1)},
    )


def duration_s(text: str) -> float:
    """Seconds of a duration as Prometheus writes it.

    Raises:
        ValueError: it is none.
    """
    text = text.strip()
    if text in {"0", ""}:
        return 0.0
    if _DURATION.sub("", text):
        raise ValueError(f"{text!r} is no duration")
    return sum(int(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
