"""Asking Cedar for decisions about AkiDB: single requests and the whole role table.

A `NoDecision`, or a denial with evaluation errors, is a broken input and raises; it never counts as "denied".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cedarpy

from akidb_pipelines.cedar.sandbox import PRODUCT, Sandbox
from akidb_pipelines.errors import CheckError

Uid = tuple[str, str]
"""Entity type (qualified) and id."""

DEFAULT_DENY = "default-deny"
"""Named as the deciding policy where no policy permits."""

ROLES = ("admin", "developer", "viewer", "auditor")
STATUSES = ("active", "suspended", "deactivated")

ROLE_MODEL: Mapping[str, frozenset[str]] = {
    "developer": frozenset(
        {"database::read"}
        | {f"collection::{verb}" for verb in ("create", "read", "update", "delete")}
        | {f"document::{verb}" for verb in ("insert", "search", "update", "delete")}
    ),
    "viewer": frozenset({"database::read", "collection::read", "document::search"}),
    "auditor": frozenset({"database::read", "collection::read", "audit::read"}),
}
"""What AkiDB itself permits an active user in its own tenant (UserDescriptor::has_permission); an admin may do everything."""


def expected(role: str, status: str, action: str, *, own_tenant: bool) -> bool:
    """AkiDB's own answer, which the sandbox's policies must give too."""
    return status == "active" and own_tenant and (role == "admin" or action in ROLE_MODEL.get(role, frozenset()))


@dataclass(frozen=True)
class Decision:
    """Cedar's answer and the policy that gave it."""

    allowed: bool
    policy: str


@dataclass(frozen=True, order=True)
class Case:
    """One row of the role table."""

    role: str
    status: str
    action: str
    own_tenant: bool


def entity(uid: Uid, attrs: Mapping[str, Any], *parents: Uid) -> dict[str, Any]:
    """An entity in Cedar's JSON form."""
    return {"uid": reference(uid), "attrs": dict(attrs), "parents": [reference(p) for p in parents]}


def reference(uid: Uid) -> dict[str, str]:
    """A reference to an entity in Cedar's JSON form."""
    return {"type": uid[0], "id": uid[1]}


class Authorizer:
    """Decides requests against one namespace's policies over a fixed set of entities.

    Args:
        sandbox: schema and policies.
        entities: Cedar JSON entities; every one that a request leads to must be among them.
        policies: ask these instead of all policies of the namespace.
        namespace: whose actions and policies.

    Raises:
        CheckError: an entity does not fit the schema.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        entities: Iterable[dict[str, Any]],
        policies: cedarpy.PolicySet | None = None,
        namespace: str = PRODUCT,
    ) -> None:
        self._namespace = namespace
        self._policies = policies or sandbox.policy_set(namespace)
        try:
            # With the schema: without it references become plain records and every decision quietly turns to Deny.
            self._entities = cedarpy.Entities.from_json_str(json.dumps(list(entities)), sandbox.schema)
        except ValueError as error:
            raise CheckError(f"Cedar refuses the entities of an authorization: {error}") from error

    def decide(self, principal: Uid, action: str, resource: Uid) -> Decision:
        """Ask Cedar.

        Raises:
            CheckError: Cedar could not evaluate the request.
        """
        request = {
            "principal": reference(principal),
            "action": {"type": f"{self._namespace}::Action", "id": action},
            "resource": reference(resource),
            "context": {},
        }
        result = cedarpy.is_authorized(request, self._policies, self._entities)
        errors = result.diagnostics.errors
        if result.decision == cedarpy.Decision.NoDecision or errors:
            raise CheckError(
                f"Cedar cannot decide {principal} {action} {resource}: {'; '.join(errors) or 'no decision'}",
                hint="the request, an entity or a policy is broken; this is no denial",
            )
        reasons = sorted(result.diagnostics.reasons)
        return Decision(result.allowed, reasons[0] if reasons else DEFAULT_DENY)


def tenant_entities(tenant: str) -> list[dict[str, Any]]:
    """A tenant with one of everything that an action can be asked on; ids are made from the tenant's."""
    moment = "2025-11-03T00:00:00.000Z"
    stamps = {"created_at": moment, "updated_at": moment}
    t, d, c = (uid("Tenant", tenant), uid("Database", f"{tenant}/db"), uid("Collection", f"{tenant}/db/c"))
    role = uid("Role", f"{tenant}#viewer")
    return [
        entity(
            t,
            {
                "name": tenant,
                "slug": tenant,
                "status": _enum("TenantStatus", "active"),
                "memory_quota_bytes": 0,
                "storage_quota_bytes": 0,
                "qps_quota": 0,
                **stamps,
            },
        ),
        entity(role, {"tenant": reference(t), "role": _enum("RoleName", "viewer")}, t),
        user_entity(tenant, "viewer", "active", f"{tenant}/user"),
        entity(
            d,
            {
                "tenant": reference(t),
                "name": "db",
                "state": _enum("DatabaseState", "ready"),
                "schema_version": 1,
                **stamps,
            },
            t,
        ),
        entity(
            c,
            {
                "tenant": reference(t),
                "database": reference(d),
                "name": "c",
                "dimension": 128,
                "metric": _enum("Metric", "cosine"),
                "embedding_model": "none",
                "hnsw_m": 32,
                "hnsw_ef_construction": 200,
                "max_doc_count": 10_000,
                **stamps,
            },
            d,
        ),
        entity(
            uid("Document", f"{tenant}/db/c/doc"),
            {"collection": reference(c), "inserted_at": moment, "updated_at": moment},
            c,
        ),
    ]


def user_entity(tenant: str, role: str, status: str, user_id: str) -> dict[str, Any]:
    """A user of a tenant."""
    moment = "2025-11-03T00:00:00.000Z"
    return entity(
        uid("User", user_id),
        {
            "tenant": reference(uid("Tenant", tenant)),
            "email": f"{role}@example.com",
            "role": _enum("RoleName", role),
            "status": _enum("UserStatus", status),
            "created_at": moment,
            "updated_at": moment,
        },
        uid("Tenant", tenant),
    )


def resource_of(sandbox: Sandbox, action: str, tenant: str) -> Uid:
    """What `tenant_entities` offers for an action: the first resource type that the action applies to."""
    kind = sandbox.model.namespace(PRODUCT).actions[action].resources[0]
    ids = {
        "Tenant": tenant,
        "User": f"{tenant}/user",
        "Database": f"{tenant}/db",
        "Collection": f"{tenant}/db/c",
        "Document": f"{tenant}/db/c/doc",
    }
    if kind not in ids:
        raise CheckError(
            f"action {action} applies to {kind}, which the role table has no sample of",
            hint="the sandbox changed its actions: extend tenant_entities in akidb_pipelines/cedar/authorize.py",
        )
    return uid(kind, ids[kind])


def role_table(sandbox: Sandbox) -> dict[Case, Decision]:
    """Cedar's decision for every role, status, action, and own or other tenant: 408 cases with the shipped sandbox.

    Raises:
        CheckError: the sandbox does not know a role or status that AkiDB stores.
    """
    namespace = sandbox.model.namespace(PRODUCT)
    for name, stored in (("RoleName", ROLES), ("UserStatus", STATUSES)):
        if lacking := set(stored) - set(namespace.enumerations.get(name, ())):
            raise CheckError(
                f"{name} of the sandbox lacks {', '.join(repr(v) for v in sorted(lacking))}, which AkiDB stores: Cedar cannot decide",
                hint="breaking drift: run `akidb-pipelines fixtures drift`, and put it back or migrate AkiDB first",
            )
    actions = namespace.concrete_actions
    users = [(role, status) for role in ROLES for status in STATUSES]
    people = [user_entity("own", role, status, f"{role}-{status}") for role, status in users]
    cedar = Authorizer(sandbox, [*tenant_entities("own"), *tenant_entities("other"), *people])
    return {
        Case(role, status, action, tenant == "own"): cedar.decide(
            uid("User", f"{role}-{status}"), action, resource_of(sandbox, action, tenant)
        )
        for role, status in users
        for action in actions
        for tenant in ("own", "other")
    }


def disagreements(table: Mapping[Case, Decision]) -> Iterator[tuple[Case, Decision]]:
    """The cases in which the policies decide otherwise than AkiDB itself."""
    for case, decision in table.items():
        if decision.allowed != expected(case.role, case.status, case.action, own_tenant=case.own_tenant):
            yield case, decision


def uid(kind: str, entity_id: str) -> Uid:
    """An entity of namespace AkiDB."""
    return (f"{PRODUCT}::{kind}", entity_id)


def _enum(kind: str, value: str) -> dict[str, str]:
    return reference(uid(kind, value))
