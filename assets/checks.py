"""Library check reports as Dagster check results: one line that says it all, a table of what broke, the facts for an auditor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from akidb_pipelines.quality.result import CheckReport, worst

if TYPE_CHECKING:
    from akidb_pipelines.quality.drift import DriftReport

_ROWS = 50


def check_result(report: CheckReport, asset: dg.AssetKey, **extra: dg.MetadataValue) -> dg.AssetCheckResult:
    """A check result; `extra` is further metadata."""
    metadata: dict[str, dg.MetadataValue] = {**extra, "seconds": dg.MetadataValue.float(round(report.seconds, 3))}
    if drift := drift_of(report):
        metadata |= {"findings": drift_table(drift), "as Markdown": dg.MetadataValue.md(drift.markdown)}
    elif report.broken:
        metadata["broken"] = failure_table(report)
    for name, value in report.facts.items():
        metadata[name] = dg.MetadataValue.float(value) if isinstance(value, float) else _plain(value)
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=report.check,
        passed=report.passed,
        severity=dg.AssetCheckSeverity.WARN if report.advisory else dg.AssetCheckSeverity.ERROR,
        description=report.summary,
        metadata=metadata,
    )


def _plain(value: str | int | float) -> dg.MetadataValue:
    return dg.MetadataValue.text(value) if isinstance(value, str) else dg.MetadataValue.int(int(value))


def drift_of(report: CheckReport) -> DriftReport | None:
    """The report as a drift report, if it is one."""
    from akidb_pipelines.quality.drift import DriftReport

    return report if isinstance(report, DriftReport) else None


def failure_table(report: CheckReport) -> dg.MetadataValue:
    """What broke: one row a sample, at most 50."""
    rows = []
    for result in worst(report.broken):
        samples = result.samples or ()
        first = {"subject": result.subject, "rule": result.rule, "status": result.status.value, "rows": result.count}
        if not samples:
            rows.append(dg.TableRecord({**first, "id": "", "found": result.message}))
        for sample in samples:
            rows.append(dg.TableRecord({**first, "id": sample.id, "found": sample.found}))
    columns = [dg.TableColumn(c, "int" if c == "rows" else "string") for c in ("subject", "rule", "status", "rows", "id", "found")]
    return dg.MetadataValue.table(rows[:_ROWS], dg.TableSchema(columns))


def drift_table(report: DriftReport) -> dg.MetadataValue:
    """The drift report as a table that the UI shows in line."""
    names = ("severity", "kind", "subject", "cedar says", "database says", "rows", "policies", "suggested edit")
    rows = [
        dg.TableRecord(
            dict(
                zip(
                    names,
                    (
                        f.severity.value,
                        f.kind,
                        f.subject,
                        f.expected,
                        f.found,
                        f.affected_rows,
                        ", ".join(f.affected_policies),
                        f.suggestion,
                    ),
                    strict=True,
                )
            )
        )
        for f in report.findings
    ]
    return dg.MetadataValue.table(rows, dg.TableSchema([dg.TableColumn(n, "int" if n == "rows" else "string") for n in names]))
