"""Quarterly DR drills: a drill with its report, what decided as checks, and the job that puts right what an interrupted one has left.

A lab's pass is no proof for staging: the target stands in every verdict, and overdue alarms are kept apart. No `from __future__ import
annotations` here: Dagster reads the annotations of `context` as they stand.
"""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.periods import Quarter
from akidb_pipelines.resources import DrillTools
from assets.checks import check_result
from assets.common import PLATFORM, logging, started_by, telling
from assets.partitions import QUARTERS

if TYPE_CHECKING:
    from akidb_pipelines.drills.desk import Desk
    from akidb_pipelines.drills.report import Report

GROUP = "drills"
REPORT = dg.AssetKey("dr_drill_report")
POOL = "dr_drill"
OVERDUE_DAYS = 100
RECENT = {"lab": "lab_drill_recent", "oci": "oci_drill_recent"}
_RUNBOOK = "runbooks/drill-failed.md"
_LOSE_A_NODE = ("node_power_off", "leader_power_off", "quorum_loss", "volume_corruption")
"""Scenarios that prove what is promised: a node is rebuilt in two hours."""

Tools = dg.ResourceParam[DrillTools]

_CRITERIA = {
    "rto": "From the fault until what was restored was verified: less than two hours.",
    "rpo": "The backup's snapshot was younger than 26 hours at the fault.",
    "data_loss": "Every row that was acknowledged before the backup's snapshot is in what was restored.",
    "quorum_restored": "As many healthy managers as before.",
    "backup_verified": "What is served is what was backed up: digest, integrity, foreign keys, rows.",
    "undo_complete": "Nothing of the drill is left.",
}
_CATALOGUE = {
    "columns": "The catalog's rows of drills by Great Expectations, generated from the Cedar schema.",
    "cedar_entities": "The catalog's rows of drills as AkiDB::Ops::DrillReport entities, judged by Cedar.",
}


class DrillConfig(dg.Config):
    """What to rehearse."""

    scenario: str = "node_power_off"
    """node_power_off, leader_power_off, partition, quorum_loss, volume_corruption, stale_backup, lost_terraform_state."""
    target: str = "lab"
    """lab or oci."""
    node: str = ""
    """The node to lose; empty leaves it to the scenario."""
    dry_run: bool | None = None
    """Ask every guard and touch nothing; default: for oci."""
    confirm: str = ""
    """For oci, with dry_run: false: environment/node/today, such as staging/staging-2/2026-11-15."""


@dg.multi_asset(
    name="dr_drill_report",
    partitions_def=QUARTERS,
    can_subset=True,  # a dry run is no drill: nothing comes of it
    pool=POOL,
    specs=[
        dg.AssetSpec(
            REPORT,
            group_name=GROUP,
            owners=started_by("dr_lab"),
            kinds={"docker", "oracle"},
            description="A DR drill's report: a node is lost, built anew, its data brought back from our backups; against RTO and RPO.",
            tags={"runbook": "drill-failed"},
            skippable=True,
        )
    ],
    check_specs=[dg.AssetCheckSpec(name, asset=REPORT, description=about) for name, about in {**_CRITERIA, **_CATALOGUE}.items()],
    op_tags={"dagster/max_retries": "0"},
)
def dr_drill_report(
    context: dg.AssetExecutionContext, config: DrillConfig, drill_tools: Tools
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Run one drill, and say what came of it."""
    from akidb_pipelines.drills.drill import Request
    from akidb_pipelines.drills.scenarios import scenario_named

    dry = config.target != "lab" if config.dry_run is None else config.dry_run
    who = context.run.tags.get("user") or f"Dagster run {context.run.run_id[:8]}"
    with telling():
        if (running := Quarter.containing(datetime.now(UTC))).key != context.partition_key:
            raise InputError(
                f"a drill of {context.partition_key} cannot be run: it is {running}", hint=f"launch partition {running.key}"
            )
        desk = drill_tools.open_desk()
        request = Request(scenario_named(config.scenario), who, config.node, dry, config.confirm, context.run.run_id)
        done = desk.run(config.target, request, lambda phase: _tell_phase(context, phase), logging(context)(config.scenario))
    context.log.info(f"{done.drill_id}: {done.verdict}: {done.reason}")
    if config.target == "lab":
        context.log.warning(f"a lab's drill is no proof for staging. {asked_for_oci(done.quarter)}")
    if done.dry_run:
        context.log_event(
            dg.AssetObservation(REPORT, description=f"dry run: {done.reason}", metadata=_metadata(desk, done, drill_tools))
        )
        _fail_unless(done, "dry_run")
        return
    yield dg.MaterializeResult(asset_key=REPORT, metadata=_metadata(desk, done, drill_tools))
    for name in _CRITERIA:
        found = done.criterion(name)
        if found or name not in _not_asked(done):
            yield dg.AssetCheckResult(
                asset_key=REPORT,
                check_name=name,
                passed=found is not None and found.ok,
                description=f"{done.target}: {found.found}" if found else f"{done.target}: it did not come to that: {done.reason}",
                metadata={
                    "drill": done.drill_id,
                    "target": done.target,
                    "runbook": dg.MetadataValue.url(drill_tools.settings.runbook(_RUNBOOK)),
                },
            )
    with telling():
        for report in drill_tools.check_reports():
            yield check_result(report, REPORT)
    _fail_unless(done, "passed")


def _fail_unless(done: "Report", verdict: str) -> None:
    if done.verdict != verdict:
        raise dg.Failure(
            description=f"{done.drill_id}: {done.verdict}: {done.reason}",
            metadata={"what to do": dg.MetadataValue.text("; ".join(done.corrective_actions) or "see the report")},
            allow_retries=False,
        )


def asked_for_oci(quarter: str) -> str:
    """What ops are asked to do for the quarter's proof."""
    return (
        f"Staging's own drill of {quarter} is yours to start: launch dr_drill_report with target: oci, first as it is (a dry run), "
        "then with dry_run: false and confirm; docs/dr-plan.md"
    )


def _not_asked(done: "Report") -> set[str]:
    """Criteria that a scenario has no use for."""
    if done.scenario == "lost_terraform_state":
        return {"rpo", "data_loss", "quorum_restored"}
    return {"rpo", "backup_verified"} if done.scenario == "partition" else set()


def _tell_phase(context: dg.AssetExecutionContext, phase: object) -> None:
    status, name = getattr(phase, "status", ""), getattr(phase, "phase", "")
    if status == "running":
        context.log.info(f"{name} begins")
    else:
        context.log.info(f"{name}: {status}, {getattr(phase, 'seconds', 0):.1f} s: {getattr(phase, 'told', '')}")


def _metadata(desk: "Desk", done: "Report", tools: DrillTools) -> dict[str, dg.MetadataValue]:
    from akidb_pipelines.drills.report import markdown, stage_of
    from akidb_pipelines.drills.timeline import history, timeline

    drills = desk.depot.catalog.drills()
    columns = ("stage", "phase", "began", "seconds", "deadline", "status", "found")
    phases = []
    for p in done.phases:
        cells = (stage_of(p.phase), p.phase, p.started_at[11:23], p.seconds, p.deadline_s, p.status, p.told)
        phases.append(dg.TableRecord(dict(zip(columns, cells, strict=True))))
    kinds = {"seconds": "float", "deadline": "float"}
    metadata: dict[str, dg.MetadataValue] = {
        "verdict": dg.MetadataValue.text(f"{done.verdict} on {done.target}"),
        "drill": dg.MetadataValue.text(done.drill_id),
        "scenario": dg.MetadataValue.text(done.scenario),
        "nodes lost": dg.MetadataValue.text(", ".join(done.nodes) or "none"),
        "timeline": dg.MetadataValue.md(_picture("phases over time", timeline(done))),
        "phases": dg.MetadataValue.table(phases, dg.TableSchema([dg.TableColumn(c, kinds.get(c, "string")) for c in columns])),
        "over the quarters": dg.MetadataValue.md(_picture("RTA and RPA over past drills", history(drills))),
        "report": dg.MetadataValue.md(markdown(done, "")),
        "findings": dg.MetadataValue.text("; ".join(done.findings) or "none"),
        "corrective actions": dg.MetadataValue.text("; ".join(done.corrective_actions) or "none"),
        "report_sha256": dg.MetadataValue.text(done.sha256),
        "backup": dg.MetadataValue.text(done.backup.id if done.backup else "none"),
        "rto_target_s": dg.MetadataValue.int(done.rto_target_s),
        "rpo_target_s": dg.MetadataValue.int(done.rpo_target_s),
        "read it": dg.MetadataValue.text(f"akidb-pipelines drills report {done.drill_id}"),
        "staging's own drill": dg.MetadataValue.text(asked_for_oci(done.quarter) if done.target == "lab" else "this is it"),
        "runbook": dg.MetadataValue.url(tools.settings.runbook(_RUNBOOK)),
    }
    # Numbers by quarter: the asset's Plots tab draws them.
    for name, value in (("rta_s", done.rta_s), ("rpa_s", done.rpa_s), ("service_outage_s", done.service_outage_s)):
        if value is not None:
            metadata[name] = dg.MetadataValue.float(round(value, 3))
    if done.rows_lost:
        metadata["rows_lost"] = dg.MetadataValue.int(sum(done.rows_lost.values()))
    return metadata


def _picture(text: str, png: bytes) -> str:
    return f"![{text}](data:image/png;base64,{base64.b64encode(png).decode()})"


# --- overdue


def recent_evaluations(tools: DrillTools, now: datetime) -> list[dg.AssetCheckEvaluation]:
    """For each target that there is: whether a drill passed on it within the last 100 days. Of a lab that nobody ever used, nothing."""
    desk = tools.open_desk()
    drills = desk.depot.catalog.drills()
    found = []
    for target in tools.targets:
        if target == "lab" and not any(d.target == target for d in drills):
            continue  # not everywhere is there a machine for it
        passed = [d for d in drills if d.target == target and d.verdict == "passed" and d.scenario in _LOSE_A_NODE]
        last = datetime.fromisoformat(passed[-1].finished_at) if passed else None
        days = (now - last).days if last else None
        told = f"{target}: the last one that passed was {days} days ago" if passed else f"{target}: none has passed yet"
        found.append(
            dg.AssetCheckEvaluation(
                asset_key=REPORT,
                check_name=RECENT[target],
                passed=days is not None and days <= OVERDUE_DAYS,
                severity=dg.AssetCheckSeverity.ERROR if target == "oci" else dg.AssetCheckSeverity.WARN,
                description=f"{told}; {OVERDUE_DAYS} are allowed",
                metadata={"runbook": dg.MetadataValue.url(tools.settings.runbook("dr-plan.md"))},
            )
        )
    return found


@dg.multi_asset_check(
    name="drills_recent",
    specs=[
        dg.AssetCheckSpec(name, asset=REPORT, description=f"A drill passed on {target} within the last {OVERDUE_DAYS} days.")
        for target, name in RECENT.items()
    ],
    can_subset=True,
)
def drills_recent(context: dg.AssetCheckExecutionContext, drill_tools: Tools) -> Iterator[dg.AssetCheckResult]:
    """The same as the sensor asks, by hand."""
    wanted = {k.name for k in context.selected_asset_check_keys}
    with telling():
        found = recent_evaluations(drill_tools, datetime.now(UTC))
    # Of a target that is not configured nothing: nobody could end an alert about it.
    for e in found:
        if e.check_name in wanted:
            yield dg.AssetCheckResult(
                asset_key=REPORT, check_name=e.check_name, passed=e.passed, severity=e.severity, description=e.description
            )


# --- recovery


@dg.op(description="Put right what interrupted drills have left; fails while something cannot be.", pool=POOL)
def recover_drills(context: dg.OpExecutionContext, drill_tools: Tools) -> None:
    """See the module."""
    with telling():
        done = drill_tools.open_desk().recover(logging(context)("recovery"))
        for name, records in done:
            for record in records:
                context.log.info(f"{name}: {record.action} {record.node}: {record.found}")
        left = [f"{name}: {r.action} {r.node}: {r.found}" for name, records in done for r in records if not r.ok]
        if left:
            raise OutsideError(f"not put right: {'; '.join(left)}", hint="docs/runbooks/drill-interrupted.md")
    context.log.info(json.dumps([name for name, _ in done]) if done else "nothing to recover: every drill was finished")


@dg.job(
    name="dr_drill_recovery",
    owners=[PLATFORM],
    description="Put right what an interrupted drill has left: nodes on, joined, their databases served. Harmless when there is nothing.",
    tags={"pipeline": "dr_lab"},
)
def recovery_job() -> None:
    """One step."""
    recover_drills()
