"""The plan book and its linter: the findings of week 0 to the cent, and plans that are none."""

from __future__ import annotations

from decimal import Decimal

import pytest

from akidb_pipelines.costs.lint import Kind, is_sound, lint, load_prices
from akidb_pipelines.costs.plan import CORRECTED, PLAN, Plan, load_plan, read_model
from akidb_pipelines.errors import InputError
from akidb_pipelines.periods import Month

LINE = """
  - {id: a, title: A, kind: cloud, owner: qa, quantities: {GB: 10}, rate: 0.1, effective_from: 2025-11-01}
"""


def plan(lines: str = LINE, more: str = "") -> str:
    return f"format: 1\ntitle: T\ncurrency: USD\ntb: 1000 GB\n{more}\nlines:{lines}"


@pytest.fixture(scope="module")
def findings():
    return lint(load_plan(PLAN), load_prices())


def found(findings, line: str, kind: Kind):
    return [f for f in findings if f.line == line and f.kind is kind]


def test_the_a1_line_is_recomputed(findings):
    (one,) = found(findings, "a1", Kind.DIFFERS)
    assert one.recomputed == Decimal("183.96") and one.difference == Decimal("416.04")
    assert "78.3 OCPU" in one.message


def test_a1_memory_is_missed_and_what_is_free_is_counted(findings):
    (one,) = found(findings, "a1", Kind.MISSING)
    for figure in ("175.20", "210.24", "385.44", "328.44"):
        assert figure in one.message


def test_a_tb_that_is_not_defined_is_told_both_ways(findings):
    (one,) = found(findings, "object-storage", Kind.UNDEFINED)
    assert "51.00 at 1000 GB" in one.message and "52.224 at 1024 GB" in one.message
    (free,) = found(findings, "object-storage", Kind.PRICE)
    assert "50.745" in free.message and "51.969" in free.message


def test_contingency_and_total_are_of_what_the_plan_states(findings):
    (contingency,) = found(findings, "contingency", Kind.DIFFERS)
    assert contingency.recomputed == Decimal("1147.65")
    assert found(findings, "total", Kind.DIFFERS)[0].recomputed == Decimal("8798.65")


def test_what_no_line_covers_is_named(findings):
    assert {f.line for f in findings if f.kind is Kind.MISSING} == {
        "a1",
        "a1-memory",
        "block-volume",
        "egress",
        "burst-runners",
        "infrequent-storage",
    }


def test_labour_hides_the_cloud(findings):
    (note,) = [f for f in findings if f.kind is Kind.NOTE]
    assert "68 %" in note.message and "7 %" in note.message


def test_the_corrected_plan_is_sound():
    corrected = load_plan(CORRECTED)
    assert is_sound(lint(corrected, load_prices()))
    assert corrected.amount(corrected.line("a1-memory")) == Decimal("183.24")


def test_a_cost_belongs_to_the_line_of_its_sku_before_that_of_its_service():
    corrected = load_plan(CORRECTED)
    assert corrected.line_of("COMPUTE", "B93298").id == "a1-memory"
    assert corrected.line_of("COMPUTE", "B93297").id == "a1"
    assert corrected.line_of("COMPUTE", "other").id == "a1"
    assert corrected.line_of("STREAMING", "x") is None


def test_a_line_counts_from_its_date():
    book = read_model(Plan, plan(LINE + LINE.replace("id: a", "id: b").replace("2025-11-01", "2027-01-01")), "p.yaml")
    assert [line.id for line in book.effective(Month.parse("2026-12"))] == ["a"]
    assert book.total(Month.parse("2027-01")) == Decimal("2.0")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lines: [", "is no YAML"),
        ("[]", "p.yaml: Input should be a valid dictionary"),
        (plan().replace("tb: 1000 GB", "tb: 1 kB"), "tb: "),
        (plan().replace("rate: 0.1", "rate: much"), "lines[1].rate: "),
        (plan().replace("owner: qa", "ownr: qa"), "lines[1].ownr: Extra inputs"),
        (plan(LINE + LINE), "line a occurs twice"),
        (plan().replace("quantities: {GB: 10}, rate: 0.1", "percent: 5, percent_of: [z]"), "percentage of z, which there is not"),
        (plan().replace("quantities: {GB: 10}, ", ""), "needs either quantities and a rate"),
    ],
)
def test_a_plan_that_is_none_says_where(text, told):
    with pytest.raises(InputError) as error:
        read_model(Plan, text, "p.yaml")
    assert told in error.value.message


def test_a_plan_that_is_not_there_says_which_setting(tmp_path):
    with pytest.raises(InputError) as error:
        load_plan(tmp_path / "none.yaml")
    assert "AKIDB_COST_PLAN" in error.value.hint
