"""Writes deploy/dashboards/*.json for Grafana from what stands here: `make dashboards`. A test holds the files to it.

The plan's four (builds, Cedar's latency, migrations, GPUs) and the pipelines' own. Metrics are those of
akidb_pipelines/operations/metrics/families.py; jetson_gpu_utilization_percent comes from the Jetsons' own exporters, once there are some.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef

FOLDER = Path(__file__).parent.parent / "deploy" / "dashboards"
_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_HALF, _THIRD, _HEIGHT = 12, 8, 8


def _query(expression: str, legend: str = "") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).legend_format(legend or "__auto")


def lines(title: str, unit: str, *queries: tuple[str, str], about: str = "", span: int = _HALF) -> timeseries.Panel:
    """Values over time."""
    panel = timeseries.Panel().title(title).description(about).unit(unit).datasource(_SOURCE).span(span).height(_HEIGHT).min(0)
    for expression, legend in queries:
        panel = panel.with_target(_query(expression, legend))
    return panel


def number(title: str, unit: str, expression: str, about: str = "", span: int = _THIRD, decimals: int | None = None) -> stat.Panel:
    """One value now."""
    panel = stat.Panel().title(title).description(about).unit(unit).datasource(_SOURCE).span(span).height(4)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.with_target(_query(expression))
    return panel if decimals is None else panel.decimals(decimals)


def rows(title: str, expression: str, about: str = "") -> table.Panel:
    """What is there now, a row each."""
    query = prometheus.Dataquery().expr(expression).instant().format("table")
    return table.Panel().title(title).description(about).datasource(_SOURCE).span(24).height(_HEIGHT).with_target(query)


def board(uid: str, title: str, period: str, *parts: str | timeseries.Panel | stat.Panel | table.Panel) -> dashboard.Dashboard:
    """A dashboard: a text begins a row."""
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    made = dashboard.Dashboard(title).uid(uid).tags(["akidb"]).refresh("1m").time(period, "now").timezone("utc").readonly()
    made = made.tooltip(DashboardCursorSync.CROSSHAIR).with_variable(source)
    for part in parts:
        made = made.with_row(dashboard.Row(part)) if isinstance(part, str) else made.with_panel(part)
    return made


P = "akidb_pipelines"

BOARDS = {
    "builds": board(
        "akidb-builds",
        "AkiDB builds",
        "now-30d",
        number("Jobs whose newest run failed", "short", f"sum({P}_job_failed) or vector(0)"),
        number("CI jobs waiting", "short", f"{P}_ci_jobs_queued"),
        number("CI runners free", "short", f"{P}_ci_runners_idle"),
        lines(
            "Builds that succeeded and failed",
            "short",
            (f"sum(1 - {P}_job_failed)", "succeeded"),
            (f"sum({P}_job_failed)", "failed"),
        ),
        lines("CI jobs", "short", (f"{P}_ci_jobs_running", "running"), (f"{P}_ci_jobs_queued", "waiting")),
        lines("Time of a fixture build", "s", (f"{P}_fixture_build_seconds", "all profiles")),
        lines("Stored by a runner snapshot", "bytes", (f"{P}_snapshot_stored_bytes", "last")),
        rows("Newest outcome of each job", f"{P}_job_failed", "0 succeeded, 1 failed."),
    ),
    "cedar": board(
        "akidb-cedar",
        "AkiDB Cedar",
        "now-7d",
        number("P50 now", "s", f"max({P}:cedar_decision_seconds:p50)", decimals=6),
        number("P99 now", "s", f"max({P}:cedar_decision_seconds:p99)", "The alert's limit is 5 ms for 15 minutes.", decimals=6),
        number("P99 at 10,000 policies", "s", f"{P}_cedar_p99_seconds", "As the weekly fixtures' check measured it.", decimals=6),
        lines(
            "Time of a decision",
            "s",
            (f"{P}:cedar_decision_seconds:p50", "P50 {{source}}"),
            (f"{P}:cedar_decision_seconds:p99", "P99 {{source}}"),
            span=24,
        ),
        lines(
            "Decisions a second", "ops", (f"sum by (source) (rate({P}_cedar_decision_seconds_count[5m]))", "{{source}}"), span=24
        ),
    ),
    "migrations": board(
        "akidb-migrations",
        "AkiDB migrations",
        "now-90d",
        number("Last", "s", f"{P}_migration_seconds", decimals=4),
        lines("Time of AkiDB's migrations on an empty database", "s", (f"{P}_migration_seconds", "all"), span=24),
    ),
    "jetson": board(
        "akidb-jetson",
        "AkiDB Jetson",
        "now-7d",
        lines(
            "GPU utilisation",
            "percent",
            ("jetson_gpu_utilization_percent", "{{instance}}"),
            about="From the Jetsons' own exporters.",
            span=24,
        ),
        number(
            "Age of the newest golden image",
            "s",
            f'min(time() - {P}_last_success_timestamp_seconds{{asset=~"jetson_golden_image/.+"}})',
        ),
        lines("Stored by an image", "bytes", (f"{P}_capture_stored_bytes", "last"), span=24),
    ),
    "pipelines": board(
        "akidb-pipelines",
        "AkiDB pipelines",
        "now-30d",
        "Now",
        number("Runs in flight", "short", f"sum({P}_runs)"),
        number("Oldest run in the queue", "s", f"{P}_oldest_queued_seconds"),
        number("Daemon's last heartbeat", "s", f"time() - max({P}_daemon_heartbeat_timestamp_seconds)"),
        rows("Checks whose newest outcome is a failure", f"{P}_check_failed == 1"),
        "Freshness",
        lines("Age of the last success", "s", (f"time() - {P}_last_success_timestamp_seconds", "{{asset}}")),
        lines(
            "Share of the allowed age that is used",
            "percentunit",
            (f"(time() - {P}_last_success_timestamp_seconds) / on (asset) {P}_expected_interval_seconds", "{{asset}}"),
            about="Above 100 % the alert pipeline.stale is on.",
        ),
        "Recovery",
        lines(
            "Recovery of the last drill", "s", (f"{P}_drill_rta_seconds", "time (2 h)"), (f"{P}_drill_rpa_seconds", "point (26 h)")
        ),
        lines("Stored by a day's dumps", "bytes", (f"{P}_dump_stored_bytes", "last")),
        "Costs",
        lines(
            "This month",
            "currencyUSD",
            (f"{P}_cost_spent", "spent"),
            (f"{P}_cost_expected", "expected"),
            (f"{P}_cost_planned", "planned"),
        ),
        number("Expected over planned", "percentunit", f"{P}_cost_variance_ratio", span=_HALF),
        "The exporter",
        lines("Time of a look at the instance", "s", (f"{P}_scrape_seconds", "scrape"), span=24),
    ),
}


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, made in BOARDS.items():
        text = JSONEncoder(sort_keys=True, indent=2).encode(made.build())
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"wrote {name}.json", file=sys.stderr)


if __name__ == "__main__":
    main()
