"""Running the generated rules with Great Expectations on a SQLite file, read-only, by push-down to SQL.

Importing Great Expectations costs some seconds and 230 MB, so it happens inside `run_columns`, never when this module loads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from sqlalchemy import Connection, create_engine, inspect

from akidb_pipelines.cedar.entities import id_text
from akidb_pipelines.cedar.model import Namespace
from akidb_pipelines.quality.database import read_only_url, require_database
from akidb_pipelines.quality.result import CheckReport, RuleResult, Sample, Status
from akidb_pipelines.quality.suites import SHOWN, Rule, rules_of


def run_columns(database: Path, namespace: Namespace, report: Callable[[str], None] = lambda _: None) -> CheckReport:
    """Check every table that the namespace's entity types live in.

    Args:
        database: a SQLite file.
        namespace: entity types with their annotations.
        report: told each table as it starts.

    Raises:
        InputError: the file is no SQLite database.
    """
    started = perf_counter()
    require_database(database)
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_sqlite("fixture", connection_string=read_only_url(database), create_temp_table=False)
    engine = create_engine(read_only_url(database))
    results: list[RuleResult] = []
    rows = 0
    try:
        tables = inspect(engine)
        present = set(tables.get_table_names())
        for entity in namespace.tables:
            table = str(entity.table)
            if table not in present:
                results.append(RuleResult("table present", entity.name, status=Status.FAIL, count=1, message=f"no table {table}"))
                continue
            report(table)
            rules = list(rules_of(namespace, entity, {c["name"] for c in tables.get_columns(table)}))
            suite = gx.ExpectationSuite(name=table, expectations=[_expectation(gxe, rule, n) for n, rule in enumerate(rules)])
            batch = source.add_table_asset(table, table_name=table).add_batch_definition_whole_table("all").get_batch()
            form = {
                "result_format": "SUMMARY",
                "unexpected_index_column_names": list(entity.key),
                "partial_unexpected_count": SHOWN,
            }
            validated = batch.validate(suite, result_format=form)
            by_number = {r.expectation_config.meta["rule"]: r for r in validated.results if r.expectation_config}
            with engine.connect() as connection:
                results += [_result(connection, table, rule, by_number[n], entity.key) for n, rule in enumerate(rules)]
                rows += connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
    finally:
        engine.dispose()
        source_engine = source.get_execution_engine()
        source_engine.close()
    facts: dict[str, str | int | float] = {"rows": rows, "rules": len(results), "great_expectations": gx.__version__}
    return CheckReport("columns", tuple(results), perf_counter() - started, facts)


def _expectation(gxe: Any, rule: Rule, number: int) -> Any:
    meta = {"rule": number, "cedar": f"{rule.entity}.{rule.attribute}"}
    if rule.query:
        return gxe.UnexpectedRowsExpectation(
            unexpected_rows_query=rule.query, description=f"{rule.entity}.{rule.attribute} {rule.name}", meta=meta
        )
    return getattr(gxe, rule.expectation)(**rule.arguments, meta=meta)


def _result(connection: Connection, table: str, rule: Rule, validated: Any, key: tuple[str, ...]) -> RuleResult:
    if validated.success:
        return RuleResult(rule.name, rule.entity, rule.attribute, sql=rule.query)
    found = validated.result or {}
    raised = validated.exception_info or {}
    if not found:
        return RuleResult(rule.name, rule.entity, rule.attribute, Status.ERROR, message=_exception(raised), sql=rule.query)
    if rule.query:
        # In the summary form Great Expectations tells how many rows the query gave, not which; asking again is cheap.
        sql = rule.query.replace("{batch}", table)
        broken = connection.exec_driver_sql(sql).all()
        samples = tuple(Sample(str(row.id), str(row.found)) for row in broken)
        return RuleResult(rule.name, rule.entity, rule.attribute, Status.FAIL, broken[0].total, samples, sql=sql)
    listed = found.get("partial_unexpected_index_list") or []
    column = rule.arguments["column"]
    samples = tuple(Sample("/".join(_hex(row.get(k)) for k in key), str(row.get(column))) for row in listed[:SHOWN])
    return RuleResult(rule.name, rule.entity, rule.attribute, Status.FAIL, int(found.get("unexpected_count") or 0), samples)


def _hex(value: Any) -> str:
    return value.hex().upper() if isinstance(value, bytes) else id_text(value)


def _exception(raised: dict[str, Any]) -> str:
    """The message of the first exception that Great Expectations caught."""
    infos = [raised] if "exception_message" in raised else [v for v in raised.values() if isinstance(v, dict)]
    return next((str(i["exception_message"]) for i in infos if i.get("exception_message")), "the rule could not be evaluated")
