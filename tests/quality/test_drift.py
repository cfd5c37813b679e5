from __future__ import annotations

import shutil

import apsw
import pytest

from akidb_pipelines.cedar.sandbox import SHIPPED, load_sandbox
from akidb_pipelines.fixtures.migrations import load_migrations
from akidb_pipelines.fixtures.schema_drift import migration_drift
from akidb_pipelines.quality.drift import Severity, adr_draft, compare_with_cedar, markdown_table
from tests.fixtures.test_build import copied_migrations


@pytest.fixture
def edited(tmp_path):
    """Loads the shipped sandbox with edits."""

    def load(*edits: tuple[str, str]):
        folder = tmp_path / "sandbox"
        shutil.copytree(SHIPPED, folder)
        for old, new in edits:
            path = next(p for p in sorted(folder.iterdir(), reverse=True) if old in p.read_text())
            path.write_text(path.read_text().replace(old, new))
        return load_sandbox(folder)

    return load


def find(report, kind, subject):
    found = [f for f in report.findings if (f.kind, f.subject) == (kind, subject)]
    assert found, markdown_table(report.findings)
    return found[0]


def test_the_real_drift_is_reported_with_its_policies_and_blocks_nothing(built, sandbox):
    report = compare_with_cedar(built.database, sandbox)
    role = find(report, "enum values", "User.role")
    assert role.severity is Severity.ADDITIVE
    assert "'support'" in role.expected
    assert "CHECK on users.role" in role.found
    assert role.affected_policies == ("support-looks",)
    assert role.affected_rows == 0
    assert find(report, "missing column", "Collection.sensitivity").severity is Severity.ADDITIVE
    assert find(report, "unmapped table", "collection_tier_state").affected_rows == 14
    assert find(report, "time format", "9 columns of 4 tables").severity is Severity.NOTE
    assert not report.breaking
    assert not report.holds_back
    assert not report.passed


def test_a_value_that_cedar_does_not_know_is_breaking(built, edited):
    report = compare_with_cedar(built.database, edited(('"deactivated"', '"gone"')))
    stored = next(f for f in report.findings if f.subject == "User.status" and f.severity is Severity.BREAKING)
    assert "'deactivated'" in stored.expected
    assert stored.affected_rows > 0
    assert stored.affected_policies == ("inactive-user",)
    assert report.holds_back


def test_a_required_attribute_without_a_column_is_breaking(built, edited):
    sandbox = edited(("sensitivity?: Sensitivity", "sensitivity: Sensitivity"))
    assert (
        find(compare_with_cedar(built.database, sandbox), "missing column", "Collection.sensitivity").severity is Severity.BREAKING
    )


def test_types_ranges_uniqueness_and_references(built, edited):
    sandbox = edited(
        ("schema_version: Long", "schema_version: String"),
        ('@doc("Version of the database\'s own layout.") @min("1")', '@doc("Version.")'),
        ('@max("4096")', '@max("2048")'),
        ('@doc("Login name.")', '@doc("Login name.") @unique'),
    )
    report = compare_with_cedar(built.database, sandbox)
    assert find(report, "type", "Database.schema_version").severity is Severity.BREAKING
    assert find(report, "range", "Collection.dimension").severity is Severity.BREAKING
    assert find(report, "uniqueness", "User").expected == "unique (email)"


def test_missing_and_unmapped_tables_and_columns(tmp_path, built, sandbox):
    changed = tmp_path / "ci.db"
    shutil.copy(built.database, changed)
    db = apsw.Connection(str(changed))
    db.execute("ALTER TABLE users ADD COLUMN nickname TEXT; DROP TABLE api_keys; CREATE TABLE extra (id INTEGER PRIMARY KEY)")
    db.close()
    report = compare_with_cedar(changed, sandbox)
    assert find(report, "missing table", "ApiKey").severity is Severity.BREAKING
    assert find(report, "unmapped column", "User.nickname").severity is Severity.ADDITIVE
    assert find(report, "unmapped table", "extra").severity is Severity.ADDITIVE


def test_migrations_are_compared_with_the_generators_own(tmp_path, sandbox):
    folder = copied_migrations(tmp_path, "ALTER TABLE users ADD COLUMN nickname TEXT; DROP INDEX ux_users_tenant_email;")
    work = tmp_path / "work"
    work.mkdir()
    report = migration_drift(load_migrations(folder), sandbox, work)
    assert find(report, "migration changed", "users.nickname").severity is Severity.ADDITIVE
    assert not report.breaking


def test_a_renamed_column_is_breaking(tmp_path, sandbox):
    folder = copied_migrations(tmp_path, "ALTER TABLE users RENAME COLUMN email TO mail;")
    work = tmp_path / "work"
    work.mkdir()
    report = migration_drift(load_migrations(folder), sandbox, work)
    assert find(report, "migration changed", "users.email").severity is Severity.BREAKING
    assert find(report, "missing column", "User.email").severity is Severity.BREAKING


def test_the_built_in_ddl_has_only_the_known_drift(tmp_path, sandbox):
    report = migration_drift(load_migrations(), sandbox, tmp_path)
    assert {f.subject for f in report.of(Severity.ADDITIVE)} == {"User.role", "Collection.sensitivity", "collection_tier_state"}


def test_the_decision_record_draft_holds_the_findings(built, sandbox):
    report = compare_with_cedar(built.database, sandbox)
    draft = adr_draft(report.findings, week="2026-W46", sandbox=sandbox)
    assert draft.startswith("# ADR draft: schema drift in the fixtures of 2026-W46")
    assert "support-looks" in draft
    assert "**additive**" in draft
