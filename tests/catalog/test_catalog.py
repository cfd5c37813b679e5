from __future__ import annotations

import multiprocessing
from contextlib import closing
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from akidb_pipelines.catalog.catalog import Catalog, CataloguedFinding, CataloguedRelease, CheckOutcome
from akidb_pipelines.catalog.costs import CataloguedCell, CataloguedCostFile, CataloguedMonth, CostTables, FileState
from akidb_pipelines.catalog.models import Base
from akidb_pipelines.errors import InputError, OutsideError


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").database()
    return f"sqlite:///{tmp_path / 'home' / 'catalog.db'}"


@pytest.fixture
def catalog(url):
    opened = Catalog(url)
    yield opened
    opened.close()


def outcome(passed=True):
    return CheckOutcome("columns", passed, True, 3, "3 rules passed", 0.5)


def test_the_newest_outcome_of_a_check_counts(catalog):
    catalog.record_check("a" * 64, outcome(passed=False))
    catalog.record_check("a" * 64, outcome())
    assert catalog.checks_of("a" * 64) == [outcome()]
    assert catalog.checks_of("b" * 64) == []


def test_a_release_keeps_its_first_publication(catalog):
    release = CataloguedRelease("2026-W47", 1, "m" * 64, "c" * 64, 123, ("ci", "standard"))
    catalog.record_release(release)
    first = catalog.releases()
    catalog.record_release(release)
    assert catalog.releases() == first
    assert first[0].profiles == ("ci", "standard")
    assert first[0].published_at.endswith("Z")


def finding(rows=0):
    return CataloguedFinding("k", "additive", "enum values", "User.role", "x", "y", rows, ("p", "q"), "edit")


def test_a_finding_is_new_once_and_remembers_its_weeks(catalog):
    assert catalog.record_findings("2026-W46", [finding()]) == [finding()]
    assert catalog.record_findings("2026-W47", [finding(5)]) == []
    assert catalog.record_findings("2026-W45", [finding(5)]) == []
    (kept,) = catalog.findings()
    assert (kept.first_week, kept.last_week, kept.affected_rows) == ("2026-W45", "2026-W47", 5)
    catalog.record_findings("2026-W47", [replace(finding(), severity="breaking")])
    assert catalog.findings()[0].severity == "breaking"
    assert kept.affected_policies == ("p", "q")


def test_the_migrations_make_what_the_models_say(catalog):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with catalog.session() as session:
        assert compare_metadata(MigrationContext.configure(session.connection()), Base.metadata) == []


def _open(url):
    with closing(Catalog(url)) as catalog:
        for n in range(20):
            catalog.record_check(f"{n:064d}", outcome())
            catalog.record_findings("2026-W46", [replace(finding(), key=f"k{n}")])
            catalog.record_release(CataloguedRelease("2026-W47", n + 1, "m" * 64, "c" * 64, 123, ("ci",)))


def test_several_processes_may_open_and_fill_a_new_catalog_at_once(url):
    workers = [multiprocessing.get_context("spawn").Process(target=_open, args=(url,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0, 0, 0]
    with closing(Catalog(url)) as catalog:
        assert len(catalog.releases()) == len(catalog.findings()) == 20


def test_an_unusable_url_is_said(tmp_path):
    with pytest.raises(InputError, match="AKIDB_CATALOG"):
        Catalog("not a url")
    with pytest.raises(InputError, match="AKIDB_CATALOG"):
        Catalog("foo://host/x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutsideError):
        Catalog(f"sqlite:///{tmp_path / 'file' / 'catalog.db'}")


def test_a_catalog_of_a_newer_version_is_said(url):
    catalog = Catalog(url)
    with catalog.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    catalog.close()
    with pytest.raises(OutsideError, match="9999") as caught:
        Catalog(url)
    assert "newer version" in caught.value.hint


def test_something_else_than_a_catalog_is_said(tmp_path):
    (tmp_path / "c.db").write_bytes(b"no database" * 100)
    with pytest.raises(OutsideError, match="not a database"):
        Catalog(f"sqlite:///{tmp_path / 'c.db'}")


# --- money


AMOUNTS = st.decimals(min_value=-(10**19), max_value=10**19, places=18, allow_nan=False, allow_infinity=False)


def test_money_comes_back_as_it_went_in(catalog):
    tables = CostTables(catalog)

    @settings(max_examples=50, deadline=None)
    @given(AMOUNTS, AMOUNTS)
    def holds(billed, effective):
        file = CataloguedCostFile(
            "s", "n", "e", False, FileState.TAKEN, "2026-11-26", "now", "d" * 64, 1, billed=billed, effective=effective
        )
        tables.record_file(file)
        (found,) = tables.files()
        assert (found.billed, found.effective) == (billed, effective)

    holds()


def test_a_months_cells_and_versions_are_the_same_on_both(catalog):
    tables = CostTables(catalog)
    month = CataloguedMonth("2026-10", False, 1, True, "f" * 64, 2, "now")
    amounts = (Decimal("12345678901234567890.123456789012345678"), Decimal("-0.000000000000000001"))
    cells = [CataloguedCell("2026-10", False, 1, *"pskteucx", 1, a, a, Decimal(0)) for a in amounts]
    tables.record_version(month, cells)
    tables.record_version(replace(month, files_sha256="g" * 64))
    assert tables.versions(sample=False) == [replace(month, files_sha256="g" * 64)] and tables.versions(sample=True) == []
    assert [c.billed for c in tables.cells("2026-10", sample=False)] == list(amounts)
