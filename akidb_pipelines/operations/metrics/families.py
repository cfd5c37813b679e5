"""The facts as metric families. Names are a contract with deploy/prometheus/rules.yaml and the dashboards; a test holds them together.

Everything is a gauge of what is: the exporter counts nothing itself, so a restart loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily

from akidb_pipelines.operations.facts import AssetFact, CheckFact, Facts

PREFIX = "akidb_pipelines"

NAMED: Mapping[tuple[str, str], tuple[str, str, float]] = {
    ("dr_drill_report", "rta_s"): ("drill_rta_seconds", "Recovery time of the last drill.", 1),
    ("dr_drill_report", "rpa_s"): ("drill_rpa_seconds", "Recovery point of the last drill.", 1),
    ("fixture_databases", "seconds"): ("fixture_build_seconds", "Time of the last build of all profiles.", 1),
    ("fixture_databases", "migration_seconds"): ("migration_seconds", "Time of AkiDB's migrations on an empty database.", 1),
    ("runner_image_archive", "stored_bytes"): ("snapshot_stored_bytes", "What the last runner snapshot took in the store.", 1),
    ("jetson_capture", "stored_bytes"): ("capture_stored_bytes", "What the last Jetson image took in the store.", 1),
    ("staging_dumps", "stored_bytes"): ("dump_stored_bytes", "What the last dumps took in the store.", 1),
    ("ci_runner_capacity", "queued"): ("ci_jobs_queued", "CI jobs that wait for a runner.", 1),
    ("ci_runner_capacity", "running"): ("ci_jobs_running", "CI jobs that run.", 1),
    ("ci_runner_capacity", "online"): ("ci_runners_online", "CI runners that are online.", 1),
    ("ci_runner_capacity", "idle"): ("ci_runners_idle", "CI runners that are online and free.", 1),
    ("cost_forecast", "expected"): ("cost_expected", "What the month will have cost.", 1),
    ("cost_forecast", "planned"): ("cost_planned", "What the month was planned to cost.", 1),
    ("cost_forecast", "spent"): ("cost_spent", "What the month has cost so far.", 1),
}
"""What dashboards name, by asset and metadata entry: its own metric, what it is, and what to multiply with."""

CHECK_NAMED: Mapping[tuple[str, str], tuple[str, str, float]] = {
    ("fixture_databases/policy_latency", "p99_sliced_ms"): (
        "cedar_p99_seconds",
        "P99 of a Cedar decision at 10,000 policies, as the weekly check measured it.",
        0.001,
    ),
}


def families(facts: Facts) -> Iterator[GaugeMetricFamily]:
    """All of them."""
    yield _gauge("daemon_heartbeat_timestamp_seconds", "Last heartbeat of Dagster's daemons.", ["daemon"], facts.heartbeats.items())
    yield _gauge("runs", "Runs in flight.", ["status"], facts.runs.items())
    waited = "How long the oldest run in the queue has waited, but for those that take hours."
    yield _gauge("oldest_queued_seconds", waited, [], [((), facts.oldest_queued_s)])
    yield _gauge(
        "last_success_timestamp_seconds",
        "When an asset was last materialized.",
        ["asset"],
        ((a.label, a.last_success) for a in facts.assets),
    )
    yield _gauge(
        "expected_interval_seconds",
        "After how long a success is too old.",
        ["asset"],
        ((a.label, a.fresh_for_s) for a in facts.assets if a.fresh_for_s is not None),
    )
    yield _gauge(
        "check_failed",
        "1 while the newest outcome of a check is a failure.",
        ["asset", "check", "member", "severity", "blocking"],
        (((c.asset, c.name, c.member, c.severity, str(c.blocking).lower()), float(not c.passed)) for c in facts.checks),
    )
    yield _gauge(
        "job_failed",
        "1 while the newest finished run of a job is a failure.",
        ["dagster_job"],
        ((j.name, float(not j.succeeded)) for j in facts.jobs),
    )
    yield _gauge(
        "job_finished_timestamp_seconds",
        "When the newest finished run of a job ended.",
        ["dagster_job"],
        ((j.name, j.at) for j in facts.jobs),
    )
    yield _gauge(
        "sensor_tick_timestamp_seconds",
        "When a sensor that is switched on was last evaluated.",
        ["sensor"],
        ((s.name, s.at) for s in facts.sensors),
    )
    yield _gauge(
        "sensor_failing", "1 while a sensor fails at every tick.", ["sensor"], ((s.name, float(s.failing)) for s in facts.sensors)
    )
    yield from _named(facts.assets, facts.checks)
    rest = ((a.label, key, value) for a in facts.assets for key, value in a.numbers.items() if (a.name, key) not in NAMED)
    yield _gauge(
        "asset_metadata",
        "Numbers of an asset's newest materialization.",
        ["asset", "entry"],
        (((asset, _label(key)), value) for asset, key, value in rest),
    )


def _named(assets: Iterable[AssetFact], checks: Iterable[CheckFact]) -> Iterator[GaugeMetricFamily]:
    # Of several devices or runners, the newest.
    by_age = sorted(assets, key=lambda a: a.last_success)
    found = {(a.name, key): value for a in by_age for key, value in a.numbers.items()}
    for key, (name, about, factor) in NAMED.items():
        if key in found:
            yield _gauge(name, about, [], [((), found[key] * factor)])
    if expected := found.get(("cost_forecast", "expected")):
        planned = found.get(("cost_forecast", "planned"))
        if planned:
            yield _gauge(
                "cost_variance_ratio", "Expected cost of the month over planned, less one.", [], [((), expected / planned - 1)]
            )
    measured = {(c.key, key): value for c in checks for key, value in c.numbers.items()}
    for key, (name, about, factor) in CHECK_NAMED.items():
        if key in measured:
            yield _gauge(name, about, [], [((), measured[key] * factor)])


def _gauge(name: str, about: str, labels: list[str], values: Iterable[tuple[str | tuple[str, ...], float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", about, labels=labels)
    for label, value in values:
        family.add_metric([label] if isinstance(label, str) else list(label), value)
    return family


def _label(entry: str) -> str:
    """`lab: resources` as `lab_resources`."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", entry).strip("_").lower()
