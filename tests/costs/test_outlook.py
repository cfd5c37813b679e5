"""Forecasts, anomalies, quotas and the price book: decided from values."""

from __future__ import annotations

import csv
import io
import itertools
import math
from datetime import date, timedelta
from decimal import Decimal

import pytest

from akidb_pipelines.costs.anomalies import anomalies
from akidb_pipelines.costs.forecast import backtest, forecast
from akidb_pipelines.costs.plan import PLAN, load_plan
from akidb_pipelines.costs.price_book import PriceBook, focus_csv, load_price_book
from akidb_pipelines.costs.quota import burn_down
from akidb_pipelines.costs.rollup import Day
from akidb_pipelines.errors import InputError
from akidb_pipelines.lab.cost_series import year_of_costs
from akidb_pipelines.periods import Month, is_review_day

NOVEMBER = Month.parse("2026-11")


def days(first: date, *values: float) -> dict[date, float]:
    return {first + timedelta(days=n): v for n, v in enumerate(values)}


# --- forecast


def test_weekends_go_on_as_weekends():
    daily = {date(2026, 10, 1) + timedelta(days=n): 0.0 for n in range(45)}
    daily = {d: 10.0 if d.isoweekday() < 6 else 2.0 for d in daily}
    seen = forecast(daily, NOVEMBER, date(2026, 11, 14))
    assert seen.expected == pytest.approx(21 * 10 + 9 * 2, rel=0.01) and seen.method == "level"


def test_after_a_step_the_new_level_goes_on():
    """Extrapolated spending would still be a third off."""
    daily = {date(2026, 9, 1) + timedelta(days=n): 10.0 for n in range(75)} | {date(2026, 11, d): 20.0 for d in range(12, 15)}
    seen = forecast(daily, NOVEMBER, date(2026, 11, 14))
    assert seen.expected == pytest.approx(11 * 10 + 19 * 20, rel=0.02)


@pytest.mark.parametrize("last", [900.0, -500.0, 0.0, 12.0], ids=["a spike", "a credit", "nothing", "half a day"])
def test_a_single_odd_day_is_no_new_level(last):
    daily = {date(2026, 9, 1) + timedelta(days=n): 100.0 + n % 3 for n in range(75)} | {date(2026, 11, 14): last}
    seen = forecast(daily, NOVEMBER, date(2026, 11, 14))
    assert seen.expected - last == pytest.approx(29 * 101, rel=0.02)
    assert seen.low <= seen.expected <= seen.high


def test_a_month_that_is_over_is_what_it_was():
    seen = forecast(days(date(2026, 11, 1), *[3.0] * 30), NOVEMBER, date(2026, 12, 4))
    assert (seen.expected, seen.low, seen.high, seen.method) == (90.0, 90.0, 90.0, "actual")


def test_with_less_than_a_week_it_is_extrapolated_and_says_so():
    seen = forecast(days(date(2026, 11, 1), 2.0, 4.0), NOVEMBER, date(2026, 11, 2))
    assert seen.method == "run-rate" and seen.expected == pytest.approx(90)


def test_nothing_spent_is_nothing_expected():
    assert forecast({}, NOVEMBER, date(2026, 11, 14)).expected == 0


def test_it_beats_the_run_rate_in_at_least_eight_of_ten_years():
    won, inside = 0, []
    for seed in range(10):
        tested = backtest(year_of_costs(seed, date(2025, 11, 1)), [Month(date(2026, m, 1)) for m in range(1, 13)])
        won += tested.median_error < tested.run_rate_median_error and tested.p90_error < tested.run_rate_p90_error
        inside.append(tested.inside)
    assert won >= 8
    assert 0.7 < math.fsum(inside) / 10 < 0.95


def test_a_backtest_needs_months():
    assert backtest({}, []) is None


# --- anomalies


def series(*, at: date, cost: float, usual: float = 20.0) -> dict[date, float]:
    daily = {
        date(2026, 9, 1) + timedelta(days=n): usual * (0.6 if (date(2026, 9, 1) + timedelta(days=n)).isoweekday() > 5 else 1)
        for n in range(80)
    }
    return daily | {at: cost}


def test_a_day_that_cost_twice_as_much_stands_out():
    (one,) = anomalies("S", series(at=date(2026, 11, 12), cost=45), since=date(2026, 11, 1))
    assert one.day == date(2026, 11, 12) and one.usual == 20 and one.excess == 25


@pytest.mark.parametrize(("cost", "usual"), [(24, 20), (2, 0.5), (12, 20)], ids=["a fifth", "below the floor", "less"])
def test_what_is_little_or_usual_does_not(cost, usual):
    assert anomalies("S", series(at=date(2026, 11, 12), cost=cost, usual=usual), since=date(2026, 11, 1)) == []


def test_a_weekend_is_no_anomaly_and_a_weekday_on_a_weekend_is():
    found = anomalies("S", series(at=date(2026, 11, 14), cost=20.0), since=date(2026, 11, 1))
    assert [a.day for a in found] == [date(2026, 11, 14)]


def test_without_three_weeks_nothing_is_usual():
    assert anomalies("S", days(date(2026, 11, 1), *[1.0] * 14, 100.0), since=date(2026, 11, 1)) == []


# --- quotas


def used(day: date, sku: str, quantity: str, peak: str = "0") -> Day:
    return Day(day, "S", sku, "USD", "", Decimal(0), Decimal(0), Decimal(quantity), Decimal(peak))


def burn(*of: Day, name: str):
    return next(b for b in burn_down(load_plan(PLAN), of, NOVEMBER) if b.quota.id == name)


def test_cores_are_held_against_the_quota_at_their_peak():
    found = burn(*(used(date(2026, 11, d), "B93297", "500", str(40 + d)) for d in range(1, 15)), name="ocpu")
    assert found.used == 54 and found.limit == 96
    assert found.exhausted_on == date(2026, 11, 14) + timedelta(days=42)


def test_egress_is_used_up_from_the_first_of_each_month():
    found = burn(
        *(used(date(2026, 11, d), "B88327", "1000") for d in range(1, 11)),
        used(date(2026, 10, 31), "B88327", "9999"),
        name="egress",
    )
    assert found.used == pytest.approx(10) and found.exhausted_on == date(2026, 11, 20) and found.days_left == 10


def test_on_the_first_days_of_a_month_a_quota_of_it_begins_anew():
    found = burn(*(used(date(2026, 10, d), "B88327", "2000") for d in range(20, 32)), name="egress")
    assert found.used == 0 and found.exhausted_on == date(2026, 11, 10)


def test_storage_is_what_lay_there_on_the_day():
    """Billed by the hour in parts of a GB-month."""
    found = burn(used(date(2026, 11, 10), "B91628", str(Decimal(2000) / 30)), name="object-storage")
    assert found.used == pytest.approx(2.0) and found.exhausted_on is None


def test_without_usage_nothing_is_exhausted():
    found = burn(name="egress")
    assert (found.used, found.exhausted_on, found.days_left) == (0.0, None, None)


# --- price book


def rows(text: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.decode())))


@pytest.mark.parametrize("month", ["2026-02", "2026-10", "2026-11"])
def test_the_days_of_a_month_add_up_to_its_price(month):
    of = Month.parse(month)
    lines = rows(focus_csv(load_price_book(None), of, of.last))
    assert sum(Decimal(r["BilledCost"]) for r in lines) == Decimal(7000)
    assert sum(Decimal(r["ConsumedQuantity"]) for r in lines if r["SkuId"] == "engineer-hour") == Decimal(40)


def test_days_that_have_not_come_are_not_billed():
    lines = rows(focus_csv(load_price_book(None), NOVEMBER, date(2026, 11, 3)))
    assert {r["ChargePeriodStart"][:10] for r in lines} == {"2026-11-01", "2026-11-02", "2026-11-03"}


def test_tiers_and_new_prices_count_from_their_date():
    book = PriceBook.model_validate(
        {
            "format": 1,
            "currency": "USD",
            "items": [
                {
                    "service": "S",
                    "sku": "s",
                    "unit": "u",
                    "prices": [
                        {"from": date(2026, 11, 1), "quantity": 30, "tiers": [{"rate": 2, "up_to": 10}, {"rate": 1}]},
                        {"from": date(2026, 11, 16), "quantity": 60, "tiers": [{"rate": 2}]},
                    ],
                }
            ],
        }
    )
    costs = [Decimal(r["BilledCost"]) for r in rows(focus_csv(book, NOVEMBER, NOVEMBER.last))]
    assert abs(sum(costs[:15]) - 20) <= Decimal("0.05") and sum(costs[15:]) == Decimal(60)
    assert focus_csv(book, Month.parse("2026-10"), date(2026, 10, 31)).count(b"\n") == 1


@pytest.mark.parametrize(
    ("tiers", "told"),
    [
        ("[{rate: 1, up_to: 5}]", "tiers ascend"),
        ("[{rate: 1, up_to: 9}, {rate: 1, up_to: 3}, {rate: 1}]", "tiers ascend"),
        ("[]", "tiers"),
    ],
)
def test_a_price_book_that_is_none_says_where(tmp_path, tiers, told):
    path = tmp_path / "book.yaml"
    path.write_text(
        f"format: 1\ncurrency: USD\nitems: [{{service: S, sku: s, unit: u, prices: [{{from: 2026-01-01, quantity: 1, tiers: {tiers}}}]}}]"
    )
    with pytest.raises(InputError, match=told):
        load_price_book(path)


# --- the bi-weekly review's calendar


def test_a_review_is_due_every_second_monday_also_after_week_53():
    mondays = [date(2025, 11, 10) + timedelta(weeks=n) for n in range(80)]
    due = [d for d in mondays if is_review_day(d)]
    assert due[:2] == [date(2025, 11, 10), date(2025, 11, 24)]
    assert {(b - a).days for a, b in itertools.pairwise(due)} == {14}
    assert date(2026, 12, 21) in due and date(2027, 1, 4) in due, "2026 has a week 53 between them"
