"""Lines, rollup and allocation come to the same to the last digit, whatever the amounts, tags and rules."""

from __future__ import annotations

import shutil
import tempfile
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from akidb_pipelines.costs.allocation import allocate
from akidb_pipelines.costs.intake import read_focus
from akidb_pipelines.costs.money import total
from akidb_pipelines.costs.rollup import Cell, LinesFile, by_day, days_present, line_totals, roll_up
from akidb_pipelines.costs.tagging import Rules, SharedRule, Tagging, expect_known, load_rules, parse_tags
from akidb_pipelines.errors import InputError
from akidb_pipelines.periods import Month
from tests.costs.conftest import focus

OCTOBER = Month.parse("2026-10")
TEAMS = ("application-engineering", "platform-engineering", "qa", "security")
COSTS = st.decimals(min_value=-(10**6), max_value=10**9, places=18, allow_nan=False, allow_infinity=False)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "BilledCost": COSTS.map(lambda d: f"{d:f}"),
            "EffectiveCost": COSTS.map(lambda d: f"{d:f}"),
            "ServiceName": st.sampled_from(["COMPUTE", "OBJECTSTORE", "Engineering hours", "OTHER"]),
            "SubAccountName": st.sampled_from(["staging", "ci", "observability", "elsewhere", ""]),
            "Tags": st.sampled_from(
                ["", '{"team": "qa"}', '{"team": "strangers"}', '{"tenant": "tenant-1"}', "no json", '{"team": "shared"}']
            ),
            "BillingCurrency": st.just("USD"),
        }
    ),
    min_size=1,
    max_size=30,
)
RULES = st.sampled_from(
    [
        SharedRule(services=("*",), by="even"),
        SharedRule(services=("*",), by="usage"),
        SharedRule(services=("*",), by="weights", weights={"qa": Decimal("0.3"), "security": Decimal("0.7")}),
    ]
)


@pytest.fixture
def tagging() -> Tagging:
    return Tagging(load_rules(None), frozenset(TEAMS))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ROWS, RULES)
def test_lines_rollup_and_allocation_are_the_same_sum(rows, rule):
    scratch = Path(tempfile.mkdtemp(prefix="akidb-costs-"))
    try:
        (scratch / "bill.csv").write_text(focus(rows))
        parquet = scratch / "lines.parquet"
        lines = read_focus(scratch / "bill.csv", "bill.csv", parquet, scratch)
        tagging = Tagging(load_rules(None).model_copy(update={"shared": (rule,)}), frozenset(TEAMS))
        files = [LinesFile(parquet, lines.billed_for_effective)]
        cells = roll_up(files, OCTOBER, tagging, scratch).cells
        said = line_totals(files, OCTOBER, scratch)["USD"]
    finally:
        shutil.rmtree(scratch)
    billed = total([Decimal(r["BilledCost"]) for r in rows])
    assert lines.billed == billed and said[1] == billed
    assert total([c.billed for c in cells]) == billed and sum(c.lines for c in cells) == len(rows)
    assert total([c.effective for c in cells]) == said[2]
    shares = allocate(cells, tagging)
    assert total([s.billed for s in shares]) == billed and total([s.effective for s in shares]) == said[2]
    for service in {c.service for c in cells}:
        assert total([s.billed for s in shares if s.service == service]) == total([c.billed for c in cells if c.service == service])
    assert not {s.team for s in shares} - {*TEAMS, "untagged", "unallocated"}, "nothing stays shared"


@pytest.mark.parametrize(
    ("tags", "compartment", "service", "owner"),
    [
        ('{"akidb.team": "qa"}', "ci", "COMPUTE", ("qa", "", "ci")),
        ('{"Team": "qa", "env": "prod"}', "", "X", ("qa", "", "prod")),
        ('[{"key": "team", "value": "security"}]', "", "X", ("security", "", "")),
        ('{"akidb.tenant": "tenant-2"}', "staging", "X", ("platform-engineering", "tenant-2", "staging")),
        ("", "", "Mac mini hosting", ("application-engineering", "", "ci")),
        ("", "", "X", ("untagged", "", "")),
        ('{"colour": "red"}', "nowhere", "X", ("untagged", "", "")),
        ('{"team": "strangers"}', "ci", "X", ("unallocated", "", "ci")),
        ('{"tenant": "tenant-9"}', "ci", "X", ("unallocated", "tenant-9", "ci")),
        ("", "nowhere", "X", ("unallocated", "", "")),
    ],
)
def test_whose_a_cost_is(tagging, tags, compartment, service, owner):
    found = tagging.owner(tags, compartment, service)
    assert (found.team, found.tenant, found.environment) == owner


def test_what_nobody_knows_is_named(tagging):
    assert tagging.owner('{"team": "strangers"}', "", "X").unknown == "team strangers"
    assert tagging.owner('{"tenant": "tenant-9"}', "", "X").unknown == "tenant tenant-9"
    assert tagging.owner("", "nowhere", "X").unknown == "compartment nowhere"


def test_tags_are_read_in_both_forms_and_with_line_breaks():
    assert parse_tags('{"a": "x\ny", "n": 1}') == {"a": "x\ny", "n": "1"}
    assert parse_tags('[{"key": "a", "value": "b"}]') == {"a": "b"}
    assert parse_tags("nonsense") is None and parse_tags('"text"') is None and parse_tags("") == {}


def test_a_rule_for_a_team_that_cedar_does_not_know_is_refused():
    rules = Rules.model_validate({"format": 1, "tags": {}, "compartments": {"ci": {"team": "ghosts"}}})
    with pytest.raises(InputError, match="team ghosts is not known to Cedar"):
        expect_known(rules, TEAMS)


def cell(team: str, service: str, billed: str) -> Cell:
    return Cell("p", service, "", team, "", "", "USD", "", 1, Decimal(billed), Decimal(billed), Decimal(0))


def test_a_shared_cost_follows_usage_and_a_credit_is_no_usage(tagging):
    rules = tagging.rules.model_copy(update={"shared": (SharedRule(services=("*",), by="usage"),)})
    cells = [cell("shared", "S", "10"), cell("qa", "S", "3"), cell("security", "S", "1"), cell("platform-engineering", "S", "-5")]
    shares = allocate(cells, Tagging(rules, tagging.teams))
    assert {s.team: s.billed for s in shares if s.how == "usage"} == {"qa": Decimal("7.5"), "security": Decimal("2.5")}


def test_days_and_peaks_are_of_all_resources_together(read, tmp_path):
    rows = [
        {"ChargePeriodStart": f"2026-10-{day:02d}T{hour:02d}:00:00Z", "ConsumedQuantity": str(used), "ResourceId": name}
        for day, hour, used, name in ((1, 0, 4, "a"), (1, 0, 2, "b"), (1, 1, 5, "a"), (31, 3, 1, "a"), (31, 4, 1, "a"))
    ] + [{"ChargePeriodStart": "2026-09-30T23:00:00Z", "ConsumedQuantity": "1"}]
    read(rows)
    files = [LinesFile(tmp_path / "lines.parquet")]
    found = {d.day: (d.quantity, d.peak) for d in by_day(files, OCTOBER, tmp_path)}
    assert found == {date(2026, 10, 1): (Decimal(12), Decimal(6)), date(2026, 10, 31): (Decimal(2), Decimal(1))}
    assert days_present(files, OCTOBER, tmp_path)["Oracle"] == [date(2026, 9, 30), date(2026, 10, 1), date(2026, 10, 31)]
