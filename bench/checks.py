"""Checks: Cedar's decisions and entity validation, Great Expectations on a million rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from akidb_pipelines.cedar.sandbox import load_sandbox
from akidb_pipelines.quality.matrix import run_policy_latency
from bench.measure import Line, measure

_VALIDATE_SETUP = """
import apsw
from itertools import islice
from akidb_pipelines.cedar.entities import mapping
from akidb_pipelines.cedar.sandbox import PRODUCT, load_sandbox
from akidb_pipelines.cedar.validate import validate_entities
sandbox = load_sandbox(); namespace = sandbox.model.namespace(PRODUCT); entity = namespace.entities["AuditLog"]
db = apsw.Connection({database!r})
columns = [row[1] for row in db.execute("PRAGMA table_info(audit_logs)")]
stream = islice(mapping(namespace, entity, columns).read(db), {rows})
"""
_VALIDATE = "value = validate_entities(stream, sandbox.schema).total"

_GX_SETUP = """
import os; os.environ["GX_ANALYTICS_ENABLED"] = "false"
import great_expectations, great_expectations.expectations
from dataclasses import replace
from pathlib import Path
from akidb_pipelines.cedar.sandbox import PRODUCT, load_sandbox
from akidb_pipelines.quality.run_gx import run_columns
full = load_sandbox().model.namespace(PRODUCT)
kept = {{name: full.entities[name] for name in ("Tenant", "User", "AuditLog")}}
namespace = replace(full, entities=kept)
path = Path({database!r})
"""


def lines(database: Path) -> Iterator[Line]:
    """Run the comparisons on the `.db` of profile load."""
    _, latency = run_policy_latency(load_sandbox())
    p99 = latency.sliced.p99_ms
    told = f"full scan: P99 {latency.full_scan.p99_ms:.1f} ms; agreed on {latency.agreed} of {latency.full_scan.requests}"
    yield Line("Cedar: P99 at 10,000 policies, sliced by tenant", f"{p99:.2f} ms", "< 5 ms", p99 < 5, told)

    few = measure(_VALIDATE, _VALIDATE_SETUP.format(database=str(database), rows=20_000))
    many = measure(_VALIDATE, _VALIDATE_SETUP.format(database=str(database), rows=200_000))
    rate = (many.value or 0) / many.wall_s
    told = f"audit rows, wall time; {(many.value or 0) / many.cpu_s / 1000:.1f}k/s of CPU"
    yield Line("Cedar: entities validated", f"{rate / 1000:.1f}k/s", ">= 12k/s", rate >= 12_000, told)
    growth = many.rss_mb / few.rss_mb - 1
    told = f"{few.rss_mb:.0f} MB and {many.rss_mb:.0f} MB"
    yield Line("Cedar: memory growth at ten times the entities", f"{growth:+.0%}", "< 10%", growth < 0.10, told)

    suite = measure("value = len(run_columns(path, namespace).results)", _GX_SETUP.format(database=str(database)))
    told = f"{int(suite.value or 0)} rules, the import not counted"
    yield Line("Great Expectations on 1M audit rows", f"{suite.cpu_s:.1f} s of CPU", "<= 8 s", suite.cpu_s <= 8, told)
