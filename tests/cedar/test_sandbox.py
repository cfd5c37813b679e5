from __future__ import annotations

import json
import shutil

import cedarpy
import pytest

from akidb_pipelines.cedar.model import build_model
from akidb_pipelines.cedar.parse import canonical, schema_json
from akidb_pipelines.cedar.sandbox import OPS, PRODUCT, SHIPPED, load_sandbox
from akidb_pipelines.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped sandbox, to break."""
    copied = tmp_path / "sandbox"
    shutil.copytree(SHIPPED, copied)
    return copied


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_shipped_sandbox_has_all_that_the_plan_names(sandbox):
    product = sandbox.model.namespace(PRODUCT)
    assert {"Tenant", "Role", "User", "Database", "Collection", "AuditLog", "ApiKey", "Document"} == set(product.entities)
    assert len(product.concrete_actions) == 17
    assert {"collection::write", "user::manage"} == {a.name for a in product.actions.values() if not a.resources}
    assert sandbox.model.namespace(OPS).enumerations["Team"] == (
        "platform-engineering",
        "application-engineering",
        "security",
        "qa",
    )


def test_every_type_and_attribute_is_documented(sandbox):
    for namespace in sandbox.model.namespaces.values():
        for name, declared in namespace.source["entityTypes"].items():
            assert declared.get("annotations", {}).get("doc"), name
        for entity in namespace.entities.values():
            for attribute in entity.attributes:
                assert attribute.doc, f"{entity.name}.{attribute.name}"
        assert all(action.doc for action in namespace.actions.values())


AWKWARD = """
@doc("tabs\\t, quotes \\" and \\u{e9}, {braces}; and @signs")
namespace Odd::Space {
  type Stamp = { at: datetime, "by whom"?: String };
  entity Colour enum ["red", "dark blue"];
  @unique entity A, B in [B, A] = { "odd name": Set<Set<Long>>, nested: { deep: { er: Bool } }, s: Stamp, c?: Colour } tags Set<String>;
  action "do it", undo in ["all", Other::Action::"x y"] appliesTo { principal: A, resource: [A, B], context: Stamp };
  action "all";
}
namespace Other { entity T; action "x y"; }
entity Root in [Other::T];
action top appliesTo { principal: Root, resource: Root, context: { ip: ipaddr, d: decimal } };
"""


@pytest.mark.parametrize("text", [AWKWARD, "entity Lonely;", (SHIPPED / "akidb.cedarschema").read_text()])
def test_the_parser_agrees_with_cedar(text):
    parsed = schema_json(text, "test")
    assert str(cedarpy.Schema.from_json_str(json.dumps(parsed))) == canonical(text, "test")
    build_model(parsed)


def test_comments_docs_and_order_do_not_change_the_digest(folder, sandbox):
    schema = folder / "akidb.cedarschema"
    edit(schema, "Life cycle of a tenant.", "How a tenant lives.")
    schema.write_text("// a comment\n" + schema.read_text())
    edit(folder / "akidb.cedar", "A viewer reads and searches.", "Reads.")
    assert load_sandbox(folder).sha256(PRODUCT) == sandbox.sha256(PRODUCT)


def test_an_ops_change_leaves_the_product_digest(folder, sandbox):
    edit(folder / "ops.cedar", 'AkiDB::Ops::Action::"reflash",', "")
    changed = load_sandbox(folder)
    assert changed.sha256(PRODUCT) == sandbox.sha256(PRODUCT)
    assert changed.sha256(OPS) != sandbox.sha256(OPS)


def test_a_changed_policy_or_attribute_changes_the_digest(folder, sandbox):
    edit(folder / "akidb.cedar", 'RoleName::"viewer"', 'RoleName::"auditor"')
    assert load_sandbox(folder).sha256(PRODUCT) != sandbox.sha256(PRODUCT)


def test_an_unparsable_schema_is_refused_with_cedars_words(folder):
    edit(folder / "akidb.cedarschema", "entity Role in [Tenant]", "entity Role inside [Tenant]")
    with pytest.raises(InputError, match=r"akidb\.cedarschema: Cedar cannot read the schema"):
        load_sandbox(folder)


def test_an_unreadable_schema_is_refused(folder):
    (folder / "akidb.cedarschema").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_sandbox(folder)


def test_a_policy_that_does_not_validate_is_named_by_its_id(folder):
    edit(folder / "akidb.cedar", "principal.status ==", "principal.state ==")
    with pytest.raises(InputError, match=r'@id\("inactive-user"\): .*`state`'):
        load_sandbox(folder)


@pytest.mark.parametrize("remove", ["akidb.cedarschema", "akidb.cedar"])
def test_a_missing_part_is_said(folder, remove):
    (folder / remove).unlink()
    if remove == "akidb.cedar":
        (folder / "ops.cedar").unlink()
    with pytest.raises(InputError):
        load_sandbox(folder)


def test_two_policies_of_one_id_are_refused(folder):
    edit(folder / "akidb.cedar", '@id("viewer-reads")', '@id("auditor-reviews")')
    with pytest.raises(InputError, match="auditor-reviews"):
        load_sandbox(folder)


def test_an_unknown_annotation_value_is_refused(folder):
    edit(folder / "akidb.cedarschema", '@format("sha256-hex")', '@format("md5")')
    with pytest.raises(InputError, match=r"key_hash: @format\('md5'\)"):
        load_sandbox(folder)
