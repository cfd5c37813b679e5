from __future__ import annotations

import apsw
import pytest

from akidb_pipelines.cedar.entities import cedar_time, derived_entities, id_text, mapping
from akidb_pipelines.cedar.sandbox import PRODUCT
from akidb_pipelines.cedar.validate import validate_entities


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ("2025-11-03T00:00:00.123456+00:00", "2025-11-03T00:00:00.123Z"),
        ("2025-11-03T00:00:00+00:00", "2025-11-03T00:00:00.000Z"),
        ("2025-11-03T00:00:00.123456789+00:00", "2025-11-03T00:00:00.123Z"),
        ("2025-11-03T00:00:00.123Z", "2025-11-03T00:00:00.123Z"),
        ("2025-11-03 00:00:00", "2025-11-03 00:00:00"),
        ("2025-11-03T00:00:00.5+02:00", "2025-11-03T00:00:00.5+02:00"),
    ],
)
def test_times_are_converted_in_form_only(stored, told):
    assert cedar_time(stored) == told


def test_keys_become_uuid_text():
    assert id_text(bytes.fromhex("0190a0b0c0d070008000000000000001")) == "0190a0b0-c0d0-7000-8000-000000000001"
    assert id_text(b"\x01") == "01"
    assert id_text("2026-W47/r1") == "2026-W47/r1"


def test_a_collection_knows_its_tenant_through_its_database(sandbox, built):
    namespace = sandbox.model.namespace(PRODUCT)
    db = apsw.Connection(str(built.database))
    entity = namespace.entities["Collection"]
    columns = [row[1] for row in db.execute("PRAGMA table_info(collections)")]
    first = next(mapping(namespace, entity, columns).read(db))
    tenants = {id_text(t) for (t,) in db.execute("SELECT tenant_id FROM tenants")}
    assert first["attrs"]["tenant"]["id"] in tenants
    assert first["parents"] == [first["attrs"]["database"]]


def test_a_tenants_tier_comes_from_its_metadata(sandbox, built):
    namespace = sandbox.model.namespace(PRODUCT)
    db = apsw.Connection(str(built.database))
    columns = [row[1] for row in db.execute("PRAGMA table_info(tenants)")]
    tiers = {e["attrs"]["slug"]: e["attrs"].get("tier") for e in mapping(namespace, namespace.entities["Tenant"], columns).read(db)}
    assert tiers["aurora"] == "enterprise"
    assert tiers["default"] is None


def test_roles_are_derived_from_users(sandbox, built):
    namespace = sandbox.model.namespace(PRODUCT)
    db = apsw.Connection(str(built.database))
    roles = list(derived_entities(namespace, namespace.entities["Role"], db))
    ((pairs,),) = db.execute("SELECT count(*) FROM (SELECT DISTINCT tenant_id, role FROM users)")
    assert len(roles) == pairs
    assert validate_entities(roles, sandbox.schema).failed == {}


def test_failures_are_named_explained_and_counted(sandbox):
    def user(number: int, status: str) -> dict[str, object]:
        moment = "2025-11-03T00:00:00.000Z"
        return {
            "uid": {"type": "AkiDB::User", "id": f"user-{number}"},
            "attrs": {
                "tenant": {"type": "AkiDB::Tenant", "id": "t"},
                "email": "x@y.example",
                "role": {"type": "AkiDB::RoleName", "id": "viewer"},
                "status": {"type": "AkiDB::UserStatus", "id": status},
                "created_at": moment,
                "updated_at": moment,
            },
            "parents": [],
        }

    many = (user(n, "banned" if n % 100 == 7 else "active") for n in range(1_000))
    found = validate_entities(many, sandbox.schema, samples=3)
    assert found.total == 1_000
    assert found.failed == {"AkiDB::User": 10}
    assert [f.id for f in found.samples] == ["user-7", "user-107", "user-207"]
    assert "banned" in found.samples[0].cause
