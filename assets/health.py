"""What the pipelines stand beside: the observability stack and staging. Both feed alerts of the plan; neither is ever touched.

No `from __future__ import annotations` here: Dagster reads the annotations of `context` as they stand.
"""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from akidb_pipelines.resources import HealthTools
from assets.common import PLATFORM, ended_checks, not_configured, table, telling

GROUP = "health"
OBSERVABILITY = dg.AssetKey("observability_retention")
STAGING = dg.AssetKey("staging_health")

Tools = dg.ResourceParam[HealthTools]

_OBSERVED = {
    "metrics_retention": "Prometheus keeps metrics for 14 days.",
    "metrics_fresh": "The newest metrics are less than ten minutes old: feeds the alert observability.pipeline.stalled.",
    "logs_retention": "Loki keeps logs for 30 days.",
    "logs_fresh": "The newest log line is less than a quarter of an hour old: feeds the alert observability.pipeline.stalled.",
}
_STAGED = {
    "replicas": "Every service runs as often as it should, on nodes that are ready: feeds the alert staging.deployment.failure.",
    "answers": "The service answers over HTTP on every node: feeds the alert staging.deployment.failure.",
}


@dg.multi_asset(
    name="observability_retention",
    can_subset=True,  # hence nothing has to come of it: what is not configured is neither there nor green
    specs=[
        dg.AssetSpec(
            OBSERVABILITY,
            group_name=GROUP,
            owners=[PLATFORM],
            kinds={"prometheus", "loki"},
            description="How long Prometheus and Loki keep metrics and logs, and how old their newest are.",
            tags={"runbook": "observability-gaps"},
            skippable=True,
            freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=2)),
        )
    ],
    check_specs=[dg.AssetCheckSpec(name, asset=OBSERVABILITY, description=about) for name, about in _OBSERVED.items()],
)
def observability_retention(
    context: dg.AssetExecutionContext, health_tools: Tools
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Ask both; one that does not answer fails its check, not the run."""
    found = health_tools.look_at_observability()
    if not found:
        yield from not_configured(context, OBSERVABILITY, _OBSERVED, "set AKIDB_PROMETHEUS_URL and AKIDB_LOKI_URL")
        return
    runbook = dg.MetadataValue.url(health_tools.settings.runbook("runbooks/observability-gaps.md"))
    numbers = {f"{f.check.partition('_')[0]}_{name}": value for f in found for name, value in f.numbers.items()}
    rows = ((f.check, "ok" if f.passed else "wrong", f.told) for f in found)
    yield dg.MaterializeResult(
        asset_key=OBSERVABILITY,
        metadata={
            "found": table(dict.fromkeys(("check", "outcome", "told"), "string"), rows),
            "runbook": runbook,
            **{name: dg.MetadataValue.float(value) for name, value in numbers.items()},
        },
    )
    for f in found:
        severity = dg.AssetCheckSeverity.ERROR if f.check.endswith("_fresh") else dg.AssetCheckSeverity.WARN
        yield dg.AssetCheckResult(
            asset_key=OBSERVABILITY,
            check_name=f.check,
            passed=f.passed,
            severity=severity,
            description=f.told,
            metadata={"runbook": runbook},
        )
    # Of a server that is configured and does not answer, what was found last still stands.
    looked_at = {f.check.partition("_")[0] for f in found}
    yield from ended_checks(context, OBSERVABILITY, [name for name in _OBSERVED if name.partition("_")[0] not in looked_at])


@dg.multi_asset(
    name="staging_health",
    can_subset=True,
    specs=[
        dg.AssetSpec(
            STAGING,
            group_name=GROUP,
            owners=[PLATFORM],
            kinds={"docker"},
            description="Desired against running replicas of staging's services, its nodes, and whether it answers.",
            tags={"runbook": "staging-deployment-failed"},
            skippable=True,
            freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=2)),
        )
    ],
    check_specs=[dg.AssetCheckSpec(name, asset=STAGING, description=about) for name, about in _STAGED.items()],
)
def staging_health(
    context: dg.AssetExecutionContext, health_tools: Tools
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Look at staging as drills see it: OCI's where it is described, else a lab that is up."""
    with telling():
        health = health_tools.look_at_staging()
    if health is None:
        told = "set AKIDB_DRILL_ALLOW_LIST (docs/dr-plan.md), or akidb-pipelines lab up swarm"
        yield from not_configured(context, STAGING, _STAGED, told)
        return
    runbook = dg.MetadataValue.url(health_tools.settings.runbook("runbooks/staging-deployment-failed.md"))
    services = ((s.name, s.desired, s.running) for s in health.services)
    nodes = ((n.name, n.address, "ready" if n.ready else "not ready", "manager" if n.manager else "") for n in health.nodes)
    probes = ((p.node, p.url, "ok" if p.ok else p.told, round(p.seconds, 3)) for p in health.probes)
    yield dg.MaterializeResult(
        asset_key=STAGING,
        metadata={
            "target": dg.MetadataValue.text(f"{health.target}: {health.environment}"),
            "services": table({"service": "string", "desired": "int", "running": "int"}, services),
            "nodes": table(dict.fromkeys(("node", "address", "state", "role"), "string"), nodes),
            "probes": table({"node": "string", "url": "string", "answer": "string", "seconds": "float"}, probes),
            "replicas_desired": dg.MetadataValue.int(sum(s.desired for s in health.services)),
            "replicas_running": dg.MetadataValue.int(sum(s.running for s in health.services)),
            "nodes_ready": dg.MetadataValue.int(sum(n.ready for n in health.nodes)),
            "runbook": runbook,
        },
    )
    for name, outcome in (("replicas", health.replicas), ("answers", health.answers)):
        if outcome is None:
            if not health.error:  # else nobody could look: what was found last still stands
                yield from ended_checks(context, STAGING, [name])
        else:
            passed, told = outcome
            yield dg.AssetCheckResult(
                asset_key=STAGING, check_name=name, passed=passed, description=told, metadata={"runbook": runbook}
            )
