"""The review as it is sent, and the checks that hold a month back."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import duckdb
import pytest

from akidb_pipelines.costs.checklist import BLOCKING_CHECKS, ROLLUP_CHECKS
from akidb_pipelines.costs.checks import check_overruns, check_quotas, expect_released, run_month_checks
from akidb_pipelines.costs.ledger import Ledger, open_ledger
from akidb_pipelines.costs.price_book import Invoice
from akidb_pipelines.costs.review import Review, as_json, draw_up, markdown, publish
from akidb_pipelines.costs.sources import Folder
from akidb_pipelines.errors import CheckError, InputError
from akidb_pipelines.lab.billing import refresh
from akidb_pipelines.periods import Month
from akidb_pipelines.settings import Settings
from tests.costs.conftest import TODAY, Desk

NOVEMBER, OCTOBER = Month.parse("2026-11"), Month.parse("2026-10")


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> tuple[Ledger, Settings]:
    """The lab's bill of four months, taken in and added up once. Read-only."""
    home = tmp_path_factory.mktemp("costs")
    settings = Settings(home=home)
    refresh(home / "lab" / "billing", TODAY - timedelta(days=1))
    ledger = open_ledger(settings)
    list(ledger.take_in(Folder(home / "lab" / "billing", sample=True), today=TODAY))
    for month in ledger.months():
        ledger.roll_up(month, TODAY)
    return ledger, settings


@pytest.fixture(scope="module")
def review(lab) -> Review:
    return draw_up(lab[0], TODAY)


def test_a_review_is_of_yesterdays_month_and_adds_up(lab, review):
    assert (review.month, review.as_of) == (NOVEMBER, date(2026, 11, 25))
    assert sum(s.actual for s in review.lines) == review.spent
    assert sum(paid for _, paid in review.teams) == review.spent
    assert review.budget == Decimal(8811), "what was approved, not what it should have been"


def test_the_page_says_what_a_finance_lead_asks_first(review):
    page = markdown(review, ("a.png", "b.png", "c.png", "d.png"))
    first = page.split("| line |")[0]
    assert "Costs of November 2026, as of 2026-11-25" in first and "25 of 30 days" in first
    assert "the plan is $8,811.00" in first and re.search(r"will end at about \*\*\$7,6\d\d\.\d\d\*\*", first)
    assert "Above plan: Not in the plan by $" in first and "owner: nobody" in first
    for heading in ("Who pays", "Quotas", "Days that stand out", "Months before", "How far to trust this"):
        assert f"## {heading}" in page
    assert page.count("![") == 4


def test_what_is_made_up_says_so_on_the_page_and_in_its_data(review):
    assert "**Sample data.**" in markdown(review) and as_json(review)["sample"] is True
    assert "Sample data" not in markdown(replace(review, sample=False))


def test_a_day_that_stands_out_is_on_the_page(review):
    (one,) = [a for a in review.anomalies if a.service == "NETWORK"]
    assert one.day == date(2026, 11, 17) and f"| {one.day} | NETWORK |" in markdown(review)


def test_a_review_lies_here_and_in_cold_storage_with_exact_tables(lab, review):
    ledger, settings = lab
    done = publish(ledger, review, settings.home)
    assert done.folder.name == "sample-2026-11-25", "never mistaken for a real one"
    for name in ("lines.png", "teams.png", "quotas.png", "daily.png"):
        assert (done.folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in (done.folder / "review.md").read_text()
    with (done.folder / "rollup.csv").open() as handle:
        assert sum(Decimal(r["billed"]) for r in csv.DictReader(handle)) == review.spent
    with (done.folder / "allocation.csv").open() as handle:
        assert sum(Decimal(r["billed"]) for r in csv.DictReader(handle)) == review.spent
    (parquet,) = duckdb.connect().execute(f"SELECT sum(billed) FROM read_parquet('{done.folder}/rollup.parquet')").fetchone()
    assert parquet == review.spent
    assert json.loads(ledger.cold.read(f"{done.key}review.json"))["spent"] == as_json(review)["spent"]


def test_the_same_review_again_is_no_further_one_and_another_is(lab, review):
    ledger, settings = lab
    first = publish(ledger, review, settings.home)
    assert publish(ledger, review, settings.home).key == first.key
    other = publish(ledger, replace(review, anomalies=()), settings.home)
    assert other.key != first.key and ledger.cold.read(f"{first.key}review.md") != ledger.cold.read(f"{other.key}review.md")


def test_a_past_month_can_be_reviewed_and_one_without_lines_cannot(lab):
    done = draw_up(lab[0], TODAY, OCTOBER)
    assert done.as_of == date(2026, 10, 31) and all(s.forecast.method == "actual" for s in done.lines)
    with pytest.raises(InputError, match="no rollup of 2025-01; months with lines: 2026-08, 2026-09, 2026-10, 2026-11"):
        draw_up(lab[0], TODAY, Month.parse("2025-01"))


# --- what is told about lines and quotas


def test_a_line_above_its_plan_is_told_with_its_owner_and_the_total_never_is(lab, review):
    report = check_overruns(review)
    assert [b.rule for b in report.broken] == ["Not in the plan stays within its plan"] and report.advisory
    assert review.expected < float(review.budget)


def test_a_quota_is_told_at_four_fifths_and_fails_when_it_is_exceeded(review):
    assert check_quotas(review).passed
    (cores, *rest) = review.burns
    near, over = replace(cores, used=80.0), replace(cores, used=97.0)
    report = check_quotas(replace(review, burns=(near, *rest)))
    assert not report.passed and report.advisory
    assert check_quotas(replace(review, burns=(over, *rest))).holds_back


def test_a_day_that_is_not_complete_is_not_counted_and_another_currency_never(desk):
    """OCI's files come up to a day late, hour by hour."""
    november = {"BillingPeriodStart": "2026-11-01T00:00:00Z", "BillingPeriodEnd": "2026-12-01T00:00:00Z", "BilledCost": "1"}
    hours = [
        {
            **november,
            "ChargePeriodStart": f"2026-11-{d:02d}T{h:02d}:00:00Z",
            "ChargePeriodEnd": (datetime(2026, 11, d, h, tzinfo=UTC) + timedelta(hours=1)).isoformat(),
        }
        for d in range(1, 26)
        for h in range(24 if d < 25 else 9)
    ]
    yen = [{**h, "ProviderName": "Elsewhere", "BillingCurrency": "JPY", "BilledCost": "150000"} for h in hours]
    desk.put("a.csv", [*hours, *yen])
    desk.take_in()
    desk.ledger.roll_up(NOVEMBER, TODAY)
    done = draw_up(desk.ledger, TODAY)
    assert done.as_of == date(2026, 11, 24)
    (line,) = [s for s in done.lines if s.line == "a1"]
    assert line.actual == 24 * 24 + 9 and line.forecast.expected == pytest.approx(30 * 24, rel=0.01)


def test_a_credit_is_no_level_and_counts_as_it_is(desk):
    november = {"BillingPeriodStart": "2026-11-01T00:00:00Z", "BilledCost": "24"}
    days = [
        {**november, "ChargePeriodStart": f"2026-11-{d:02d}T00:00:00Z", "ChargePeriodEnd": f"2026-11-{d + 1:02d}T00:00:00Z"}
        for d in range(1, 26)
    ]
    desk.put("a.csv", [*days, {**days[-1], "ChargeCategory": "Credit", "BilledCost": "-500"}])
    desk.take_in()
    desk.ledger.roll_up(NOVEMBER, TODAY)
    (line,) = [s for s in draw_up(desk.ledger, TODAY).lines if s.line == "a1"]
    assert line.forecast.expected == pytest.approx(30 * 24 - 500, abs=5)


def test_on_the_first_days_of_a_month_the_one_before_is_reviewed(desk):
    desk.put("a.csv", [{}])
    desk.take_in()
    desk.ledger.roll_up(OCTOBER, date(2026, 11, 2))
    assert draw_up(desk.ledger, date(2026, 11, 2)).month == OCTOBER


def test_a_month_that_is_held_back_says_why(desk):
    desk.put("a.csv", [{"Tags": '{"team": "strangers"}'}])
    desk.take_in()
    desk.ledger.roll_up(OCTOBER, TODAY)
    with pytest.raises(CheckError, match="2026-10 is held back: known_owners: team strangers is not known"):
        expect_released(desk.ledger, OCTOBER)


# --- checks of a month


QUICK = tuple(c for c in ROLLUP_CHECKS if c not in {"columns", "cedar_entities"})


def checked(ledger: Ledger, month: Month = OCTOBER, today: date = TODAY, names: tuple[str, ...] = QUICK) -> dict[str, object]:
    unknown = ledger.roll_up(month, today).unknown
    return {r.check: r for r in run_month_checks(ledger, month, names, today=today, unknown=unknown)}


def test_the_labs_months_pass_everything_that_holds_back(lab):
    for month in (OCTOBER, NOVEMBER):
        found = checked(lab[0], month, names=ROLLUP_CHECKS)
        assert set(found) == set(ROLLUP_CHECKS)
        assert [n for n in BLOCKING_CHECKS if not found[n].passed] == []


def test_a_rollup_that_is_not_the_sum_of_its_lines_is_caught(desk: Desk):
    desk.put("a.csv", [{}])
    desk.take_in()
    desk.ledger.roll_up(OCTOBER, TODAY)
    with desk.ledger.catalog.session() as session:
        from sqlalchemy import text

        session.execute(text("UPDATE cost_rollups SET billed = '1.500000000000000001' WHERE provider = 'Oracle'"))
    report = next(r for r in run_month_checks(desk.ledger, OCTOBER, ["exact"], unknown=()))
    assert report.holds_back and "7001.500000000000000001" in report.broken[0].message


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"Tags": '{"team": "strangers"}'}, "team strangers"),
        ({"Tags": '{"tenant": "tenant-9"}'}, "tenant tenant-9"),
        ({"Tags": "", "SubAccountName": "nowhere"}, "compartment nowhere"),
    ],
)
def test_an_owner_that_nobody_knows_holds_the_month_back(desk, row, told):
    desk.put("a.csv", [row])
    desk.take_in()
    report = checked(desk.ledger)["known_owners"]
    assert report.holds_back and told in report.broken[0].message


def test_an_invoice_that_is_not_what_was_rolled_up_holds_the_month_back(desk):
    desk.put("a.csv", [{"BilledCost": "10.004"}])
    desk.take_in()
    for amount, passed in (("10.00", True), ("10.02", False)):
        book = desk.ledger.book.model_copy(
            update={"invoices": (Invoice(provider="Oracle", month="2026-10", amount=Decimal(amount)),)}
        )
        report = checked(replace(desk.ledger, book=book))["invoice"]
        assert report.passed is passed
    assert report.holds_back and "invoices 10.02, its lines come to 10.00" in report.broken[0].message


@pytest.mark.parametrize(
    ("today", "advisory"), [(date(2026, 10, 9), True), (date(2026, 10, 20), False)], ids=["one day ago", "long ago"]
)
def test_a_missing_day_is_news_for_two_days_and_then_a_fault(desk, today, advisory):
    desk.put("a.csv", [{"ChargePeriodStart": f"2026-10-{d:02d}T01:00:00Z"} for d in (5, 6, 7, 9)])
    desk.take_in()
    report = checked(desk.ledger, today=today)["days_complete"]
    assert not report.passed and report.advisory is advisory and "no lines for 2026-10-08" in report.broken[0].message


def test_a_day_that_is_missing_at_the_edge_of_a_month_is_told_where_the_bill_goes_on(desk):
    before = [{"ChargePeriodStart": f"2026-10-{d:02d}T01:00:00Z"} for d in (29, 30)]
    november = {"BillingPeriodStart": "2026-11-01T00:00:00Z"}
    desk.put("a.csv", [*before, *({**november, "ChargePeriodStart": f"2026-11-{d:02d}T01:00:00Z"} for d in (2, 3))])
    desk.take_in()
    assert "2026-10-31" in checked(desk.ledger)["days_complete"].broken[0].message
    assert "2026-11-01" in checked(desk.ledger, NOVEMBER)["days_complete"].broken[0].message


def test_files_that_come_while_a_month_is_checked_are_no_bug(desk):
    desk.put("a.csv", [{"oci_ReferenceNumber": "r1"}])
    desk.take_in()
    desk.ledger.roll_up(OCTOBER, TODAY)
    desk.put("b.csv", [{"oci_ReferenceNumber": "r2"}])
    desk.take_in()
    report = next(run_month_checks(desk.ledger, OCTOBER, ["exact"], unknown=()))
    assert not report.passed and report.advisory and "files came meanwhile" in report.broken[0].message


def test_too_much_without_a_tag_is_told(desk):
    desk.put("a.csv", [{"Tags": "", "SubAccountName": "", "BilledCost": "9000", "ServiceName": "X"}])
    desk.take_in()
    report = checked(desk.ledger)["untagged"]
    assert not report.passed and report.advisory and "56.2 % (9000.00)" in report.broken[0].message


def test_a_service_that_the_plan_lacks_is_told(desk):
    desk.put("a.csv", [{"ServiceName": "STREAMING", "SkuId": "x"}])
    desk.take_in()
    report = checked(desk.ledger)["plan_lines"]
    assert report.advisory and "STREAMING cost 1.50 and is in no line of the plan" in report.broken[0].message


def test_the_same_oddity_of_many_files_is_told_once(desk):
    for n in range(3):
        desk.put(f"{n}.csv", [{"Tags": "", "ConsumedQuantity": str(n)}] * 2)
    desk.take_in()
    messages = [b.message for b in checked(desk.ledger)["oddities"].broken]
    assert "6 rows have no tags" in messages
