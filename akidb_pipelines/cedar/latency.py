"""How long a decision takes with many policies: by full scan, and with the policies sliced by tenant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter_ns

import cedarpy

from akidb_pipelines.cedar.authorize import Authorizer, reference, resource_of, tenant_entities, uid
from akidb_pipelines.cedar.sandbox import PRODUCT, Policy, Sandbox, policy_set


@dataclass(frozen=True)
class Latency:
    """Time of one decision, in milliseconds."""

    p50_ms: float
    p99_ms: float
    requests: int


@dataclass(frozen=True)
class LatencyReport:
    """How long decisions take with many policies, asked plainly and sliced by tenant."""

    policies: int
    full_scan: Latency
    sliced: Latency
    agreed: int
    """Full scans that gave the same answer as the slice: all of them, or slicing is wrong."""


class PolicySlices:
    """Policies grouped by the tenant in their scope, so that a decision reads only its own tenant's and the common ones.

    A policy whose scope says `resource in AkiDB::Tenant::"t"` cannot match a resource of another tenant; leaving it out changes
    no decision. Policies without such a scope are in every slice.
    """

    def __init__(self, policies: Iterable[Policy]) -> None:
        common: list[Policy] = []
        by_tenant: dict[str, list[Policy]] = {}
        for policy in policies:
            tenant = _scoped_tenant(policy)
            (common if tenant is None else by_tenant.setdefault(tenant, [])).append(policy)
        self._common = policy_set(tuple(common))
        self._by_tenant = {t: policy_set((*common, *own)) for t, own in by_tenant.items()}

    def of(self, tenant: str) -> cedarpy.PolicySet:
        """The policies that can matter for a resource of this tenant."""
        return self._by_tenant.get(tenant, self._common)


def _scoped_tenant(policy: Policy) -> str | None:
    scope = policy.json.get("resource", {})
    uid = scope.get("entity", {}) if scope.get("op") in {"in", "=="} else {}
    return uid.get("id") if uid.get("type") == f"{PRODUCT}::Tenant" else None


def measure_latency(sandbox: Sandbox, *, policies: int, requests: int = 400, scans: int = 100) -> LatencyReport:
    """Decide requests with `policies` policies sliced by tenant, the first `scans` of them by full scan too, in this process.

    The common policies are the sandbox's own; the rest are grants of one action to one user within one tenant, 20 a tenant.
    """
    own = sandbox.policies_of(PRODUCT)
    grants = max(0, policies - len(own))
    tenants = [f"t{i}" for i in range(max(1, -(-grants // 20)))]
    actions = sandbox.model.namespace(PRODUCT).concrete_actions
    many = (*own, *(_grant(i, tenants[i // 20], actions[i % len(actions)]) for i in range(grants)))
    everything, slices = policy_set(many), PolicySlices(many)
    asked_tenants = [tenants[i * len(tenants) // 12] for i in range(min(12, len(tenants)))]
    entities = [e for t in asked_tenants for e in tenant_entities(t)]
    full, full_ms = Authorizer(sandbox, entities, everything), []
    by_tenant = {t: Authorizer(sandbox, entities, slices.of(t)) for t in asked_tenants}
    sliced_ms, agreed = [], 0
    for i in range(requests):
        tenant = asked_tenants[i % len(asked_tenants)]
        action = actions[i % len(actions)]
        request = (uid("User", f"{tenant}/user"), action, resource_of(sandbox, action, tenant))
        start = perf_counter_ns()
        sliced = by_tenant[tenant].decide(*request)
        sliced_ms.append((perf_counter_ns() - start) / 1e6)
        if i < scans:
            start = perf_counter_ns()
            scanned = full.decide(*request)
            full_ms.append((perf_counter_ns() - start) / 1e6)
            agreed += scanned.allowed == sliced.allowed
    return LatencyReport(len(many), _percentiles(full_ms), _percentiles(sliced_ms), agreed)


def _grant(number: int, tenant: str, action: str) -> Policy:
    """One synthetic grant, as a tenant's own administration would write it."""
    return Policy(
        f"grant-{number}",
        PRODUCT,
        {
            "effect": "permit",
            "principal": {"op": "==", "entity": reference(uid("User", f"{tenant}/user"))},
            "action": {"op": "==", "entity": {"type": f"{PRODUCT}::Action", "id": action}},
            "resource": {"op": "in", "entity": reference(uid("Tenant", tenant))},
            "conditions": [],
        },
    )


def _percentiles(times: list[float]) -> Latency:
    ordered = sorted(times)
    return Latency(ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], len(ordered))
