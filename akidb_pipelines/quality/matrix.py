"""Checks `authorization_matrix` and `policy_latency`: do the sandbox's policies decide as AkiDB does, for these users, in this log?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import apsw

from akidb_pipelines.cedar.authorize import (
    Authorizer,
    Case,
    Decision,
    disagreements,
    expected,
    resource_of,
    role_table,
    tenant_entities,
)
from akidb_pipelines.cedar.entities import JsonEntity, mapping
from akidb_pipelines.cedar.latency import LatencyReport, measure_latency
from akidb_pipelines.cedar.sandbox import PRODUCT, Sandbox
from akidb_pipelines.cedar.validate import conforms, explain
from akidb_pipelines.quality.database import open_read_only
from akidb_pipelines.quality.result import CheckReport, RuleResult, Sample, Status

LATENCY_LIMIT_MS = 5.0
LATENCY_POLICIES = 10_000
_SHOWN = 50


def run_authorization_matrix(database: Path, sandbox: Sandbox) -> CheckReport:
    """The role table against AkiDB's role model, every user through Cedar, and every audit row against the decision it records.

    Raises:
        InputError: the file is no SQLite database.
        CheckError: Cedar could not evaluate a request.
    """
    started = perf_counter()
    table = role_table(sandbox)
    db = open_read_only(database)
    try:
        users, results = _users(db, sandbox)
        rows, audited = _audit_rows(db, table)
    finally:
        db.close()
    wrong = list(disagreements(table))
    cases = RuleResult(
        "policies decide as AkiDB does",
        "Role",
        status=Status.FAIL if wrong else Status.PASS,
        count=len(wrong),
        samples=tuple(Sample(_case_text(c), f"Cedar says {_said(d)}") for c, d in wrong[:_SHOWN]),
    )
    facts: dict[str, str | int | float] = {
        "cases": len(table),
        "allowed": sum(d.allowed for d in table.values()),
        "users": users,
        "audit_rows": rows,
    }
    return CheckReport("authorization_matrix", (cases, results, *audited), perf_counter() - started, facts)


def _case_text(case: Case) -> str:
    return f"{case.status} {case.role} {case.action} in {'its own' if case.own_tenant else 'another'} tenant"


def _said(decision: Decision) -> str:
    return f"{'allowed' if decision.allowed else 'denied'} by {decision.policy}"


def _users(db: apsw.Connection, sandbox: Sandbox) -> tuple[int, RuleResult]:
    """Ask Cedar what every user may do, through the user's own row: 34 decisions each, some milliseconds."""
    namespace = sandbox.model.namespace(PRODUCT)
    columns = [row[1] for row in db.execute("PRAGMA table_info(users)")]
    asked, wrong, samples = 0, 0, []
    stream = mapping(namespace, namespace.entities["User"], columns).read(db)
    while group := tuple(islice(stream, 200)):
        for user, difference in _differences(sandbox, group):
            asked += 1
            if difference:
                wrong += 1
                samples.append(Sample(user, difference))
    status = Status.FAIL if wrong else Status.PASS
    return asked, RuleResult("every user may do what its role says", "User", "", status, wrong, tuple(samples[:_SHOWN]))


def _differences(sandbox: Sandbox, users: tuple[JsonEntity, ...]) -> Iterator[tuple[str, str]]:
    """For each user its id, and the first decision that is not AkiDB's (empty if all are)."""
    usable = []
    for user in users:
        # Without the role as a parent: no policy asks for it, and the samples' entities do not hold it.
        plain = {**user, "parents": [p for p in user["parents"] if p["type"] == f"{PRODUCT}::Tenant"]}
        if conforms(plain, sandbox.schema):
            usable.append(plain)
        else:
            yield user["uid"]["id"], f"cannot be asked about: {explain(plain, sandbox.schema)}"
    tenants = sorted({u["attrs"]["tenant"]["id"] for u in usable})
    cedar = Authorizer(sandbox, [*usable, *(e for t in (*tenants, "another") for e in tenant_entities(t))])
    actions = sandbox.model.namespace(PRODUCT).concrete_actions
    for user in usable:
        attrs, uid = user["attrs"], user["uid"]
        role, status, own = attrs["role"]["id"], attrs["status"]["id"], attrs["tenant"]["id"]
        difference = ""
        for action in actions:
            for tenant in (own, "another"):
                decision = cedar.decide((uid["type"], uid["id"]), action, resource_of(sandbox, action, tenant))
                if decision.allowed != expected(role, status, action, own_tenant=tenant == own) and not difference:
                    difference = f"{_case_text(Case(role, status, action, tenant == own))}: Cedar says {_said(decision)}"
        yield uid["id"], difference


# The tenant of the thing that a row names; NULL when the thing is not in this file. AkiDB keeps no reference, so by kind and id.
_AUDIT = """
WITH named AS MATERIALIZED (
    SELECT rowid AS r, unhex(replace(resource_id, '-', '')) AS thing FROM audit_logs
)
SELECT u.role, u.status, a.action, a.result, a.reason, a.user_id IS NULL AS nobody, u.user_id IS NULL AS stranger,
    coalesce(CASE a.resource_type
        WHEN 'collection' THEN (
            SELECT d.tenant_id FROM collections c JOIN databases d USING (database_id) WHERE c.collection_id = thing)
        WHEN 'database' THEN (SELECT tenant_id FROM databases WHERE database_id = thing)
        WHEN 'user' THEN (SELECT tenant_id FROM users WHERE user_id = thing)
        WHEN 'audit_log' THEN (SELECT tenant_id FROM tenants WHERE tenant_id = thing)
        WHEN 'document' THEN (
            SELECT d.tenant_id FROM temp.documents v JOIN collections c USING (collection_id) JOIN databases d USING (database_id)
            WHERE v.doc_id = thing)
    END = a.tenant_id, 0) AS own,
    count(*), min(hex(a.audit_log_id))
FROM audit_logs a JOIN named ON named.r = a.rowid
LEFT JOIN users u ON u.user_id = a.user_id AND u.tenant_id = a.tenant_id
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
"""
# Documents have no index by id alone; only the few that the log names are looked for.
_NAMED_DOCUMENTS = """
CREATE TEMP TABLE documents AS
SELECT doc_id, collection_id FROM vector_documents
WHERE doc_id IN (SELECT unhex(replace(resource_id, '-', '')) FROM audit_logs WHERE resource_type = 'document')
"""


def _audit_rows(db: apsw.Connection, table: dict[Case, Decision]) -> tuple[int, list[RuleResult]]:
    """Whether each row's result, and the policy it names, are what Cedar decides for its user, action and tenant."""
    db.execute("PRAGMA temp_store = memory")
    db.execute(_NAMED_DOCUMENTS)
    db.execute("CREATE INDEX temp.documents_by_id ON documents (doc_id)")
    rows = 0
    broken: dict[str, list[tuple[int, Sample]]] = {"users belong to their row's tenant": [], "results agree with Cedar": []}
    for role, status, action, result, reason, nobody, stranger, own, count, first in db.execute(_AUDIT):
        rows += count
        if stranger and not nobody:
            broken["users belong to their row's tenant"].append((count, Sample(first, f"{action} {result}")))
            continue
        difference = _audit_difference(table, role, status, action, result, reason, own=bool(own), nobody=bool(nobody))
        if difference:
            broken["results agree with Cedar"].append((count, Sample(first, difference)))
    return rows, [
        RuleResult(
            rule,
            "AuditLog",
            status=Status.FAIL if groups else Status.PASS,
            count=sum(count for count, _ in groups),
            samples=tuple(sample for _, sample in groups[:_SHOWN]),
        )
        for rule, groups in broken.items()
    ]


def _audit_difference(
    table: dict[Case, Decision], role: str, status: str, action: str, result: str, reason: Any, *, own: bool, nobody: bool
) -> str:
    if nobody:
        return "" if result == "denied" else f"{action} {result} without a user"
    case = Case(role, status, action, own)
    decision = table.get(case)
    if decision is None:
        return f"{_case_text(case)}: Cedar knows no such case"
    if result != ("allowed" if decision.allowed else "denied"):
        return f"{_case_text(case)}: the log says {result}, Cedar says {_said(decision)}"
    if str(reason).startswith("policy:") and reason != f"policy:{decision.policy}":
        return f"{_case_text(case)}: the log names {reason}, Cedar {decision.policy}"
    return ""


def run_policy_latency(sandbox: Sandbox, *, policies: int = LATENCY_POLICIES) -> tuple[CheckReport, LatencyReport]:
    """P99 of a decision at 10,000 policies, sliced by tenant; the full scan is reported beside it."""
    started = perf_counter()
    found = measure_latency(sandbox, policies=policies)
    p99 = found.sliced.p99_ms
    slow = RuleResult(
        f"P99 below {LATENCY_LIMIT_MS:g} ms",
        "Policies",
        status=Status.PASS if p99 < LATENCY_LIMIT_MS else Status.FAIL,
        count=int(p99 >= LATENCY_LIMIT_MS),
        message=f"{p99:.3f} ms sliced by tenant, {found.full_scan.p99_ms:.1f} ms by full scan",
    )
    agree = RuleResult(
        "slices decide as the full set does",
        "Policies",
        status=Status.PASS if found.agreed == found.full_scan.requests else Status.FAIL,
        count=found.full_scan.requests - found.agreed,
    )
    facts: dict[str, str | int | float] = {
        "policies": found.policies,
        "requests": found.sliced.requests,
        "p50_sliced_ms": round(found.sliced.p50_ms, 3),
        "p99_sliced_ms": round(p99, 3),
        "p50_full_scan_ms": round(found.full_scan.p50_ms, 3),
        "p99_full_scan_ms": round(found.full_scan.p99_ms, 3),
    }
    return CheckReport("policy_latency", (slow, agree), perf_counter() - started, facts, advisory=True), found
