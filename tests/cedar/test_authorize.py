from __future__ import annotations

import json

import cedarpy
import pytest

from akidb_pipelines.cedar.authorize import (
    Authorizer,
    disagreements,
    role_table,
    tenant_entities,
)
from akidb_pipelines.cedar.latency import measure_latency
from akidb_pipelines.cedar.sandbox import OPS
from akidb_pipelines.errors import CheckError


def test_the_role_table_is_akidbs_own(sandbox):
    table = role_table(sandbox)
    assert len(table) == 408
    assert sum(d.allowed for d in table.values()) == 32
    assert list(disagreements(table)) == []


def test_denials_name_what_denied(sandbox):
    table = {(c.role, c.status, c.action, c.own_tenant): d for c, d in role_table(sandbox).items()}
    assert table["viewer", "active", "document::insert", True].policy == "default-deny"
    assert table["viewer", "active", "document::search", False].policy == "tenant-boundary"
    assert table["admin", "suspended", "user::create", True].policy == "inactive-user"
    assert table["viewer", "active", "document::search", True].policy == "viewer-reads"


def test_a_request_that_cannot_be_evaluated_is_an_error_and_no_denial(sandbox):
    cedar = Authorizer(sandbox, tenant_entities("own"))
    with pytest.raises(CheckError, match="no denial"):
        cedar.decide(("AkiDB::User", "nobody"), "document::search", ("AkiDB::Collection", "own/db/c"))


def test_entities_that_break_the_schema_are_refused(sandbox):
    entities = tenant_entities("own")
    del entities[0]["attrs"]["slug"]
    with pytest.raises(CheckError, match="refuses"):
        Authorizer(sandbox, entities)


def test_slicing_by_tenant_changes_no_decision(sandbox):
    report = measure_latency(sandbox, policies=400, requests=200, scans=200)
    assert report.policies == 400
    assert report.agreed == 200


TEAMS = ("platform-engineering", "application-engineering", "security", "qa")
D, P = "Deployment", "Pipeline"
# action, resource type, resource, who may: platform, application, security, qa
ACCESS = [
    ("view", D, "akidb_pipelines", "yyyy"),
    ("launch", P, "fixtures", "yyny"),
    ("manageSandbox", D, "akidb_pipelines", "ynyn"),
    ("launch", P, "runner_images", "yynn"),
    ("release", D, "akidb_pipelines", "ynnn"),
    ("revoke", D, "akidb_pipelines", "ynyn"),
    ("launch", P, "jetson", "ynnn"),
    ("reflash", P, "jetson", "ynnn"),
    ("launch", P, "dr_lab", "yyny"),
    ("launch", P, "dr_oci", "ynnn"),
    ("restore", P, "dr_oci", "ynnn"),
    ("launch", P, "backups", "ynnn"),
    ("launch", P, "costs", "yynn"),
    ("operate", D, "akidb_pipelines", "ynnn"),
    ("administer", D, "akidb_pipelines", "ynnn"),
    ("audit", D, "akidb_pipelines", "ynyn"),
]


@pytest.mark.parametrize(("action", "kind", "resource", "who"), ACCESS)
def test_the_access_matrix(sandbox, action, kind, resource, who):
    for team, may in zip(TEAMS, who, strict=True):
        user = {
            "uid": {"type": f"{OPS}::User", "id": "u"},
            "attrs": {"email": "u@akidb.example"},
            "parents": [{"type": f"{OPS}::Team", "id": team}],
        }
        request = {
            "principal": user["uid"],
            "action": {"type": f"{OPS}::Action", "id": action},
            "resource": {"type": f"{OPS}::{kind}", "id": resource},
            "context": {},
        }
        entities = cedarpy.Entities.from_json_str(json.dumps([user]), sandbox.schema)
        result = cedarpy.is_authorized(request, sandbox.policy_set(OPS), entities)
        assert not result.diagnostics.errors
        assert result.allowed == (may == "y"), team


def test_somebody_without_a_team_may_not_even_look(sandbox):
    user = {"uid": {"type": f"{OPS}::User", "id": "u"}, "attrs": {"email": "u@akidb.example"}, "parents": []}
    request = {
        "principal": user["uid"],
        "action": {"type": f"{OPS}::Action", "id": "view"},
        "resource": {"type": f"{OPS}::Deployment", "id": "akidb_pipelines"},
        "context": {},
    }
    assert not cedarpy.is_authorized(request, sandbox.policy_set(OPS), [user], sandbox.schema).allowed
