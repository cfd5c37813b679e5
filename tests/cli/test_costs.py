"""The costs commands as ops call them: a file on its own, the lab's bill with nothing configured, and what ends with which code."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path

import pytest

from tests.cli.test_runners import told
from tests.costs.conftest import focus

SEVERAL = [
    {
        "ProviderName": "AWS",
        "ServiceName": "EC2",
        "BilledCost": "468.17049576",
        "EffectiveCost": "468.170495760000000001",
        "Tags": '{"team": "growth", "env": "prod"}',
    },
    {"ProviderName": "AWS", "ServiceName": "S3", "BilledCost": "0.1", "EffectiveCost": "0.1", "Tags": '{"team": "infra"}'},
    {"ProviderName": "Microsoft", "ServiceName": "F", "BilledCost": "227.28753400000005", "EffectiveCost": "0", "Tags": "NULL"},
    {"ProviderName": "Google", "ServiceName": "Q", "BilledCost": "-3.2", "EffectiveCost": "-3.2", "Tags": '{"team": "growth"}'},
]


@pytest.fixture
def costs(cli):
    return lambda *arguments: cli("costs", *arguments)


@pytest.mark.parametrize("name", ["bill.csv", "bill.csv.gz"])
def test_a_single_file_is_added_up_exactly_with_nothing_configured(costs, tmp_path, name):
    text = focus(SEVERAL).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    done = told(costs("import", str(path), "--out-catalog", str(tmp_path / "out"), "--json"))
    assert done["ok"] and done["rows"] == 4
    for column, field in (("BilledCost", "billed_cost"), ("EffectiveCost", "effective_cost")):
        assert Decimal(done[field]) == sum(Decimal(r[column]) for r in SEVERAL)
        for provider, sums in done["by_provider"].items():
            assert Decimal(sums[field]) == sum(Decimal(r[column]) for r in SEVERAL if r["ProviderName"] == provider)
        assert Decimal(done["by_service"]["S3"][field]) == Decimal("0.1")
        assert Decimal(done["by_tag"]["team"]["growth"][field]) == sum(Decimal(r[column]) for r in SEVERAL if "growth" in r["Tags"])
    assert set(done["by_billing_month"]) == {"2026-10"} and set(done["by_tag"]) == {"team", "env"}
    assert any("rows have no tags" in w for w in done["warnings"])
    assert not (tmp_path / "home").exists(), "nothing is kept elsewhere"
    again = told(costs("import", str(path), "--out-catalog", str(tmp_path / "out"), "--json"))
    assert again["billed_cost"] == done["billed_cost"] and not again["files"][0]["new"]


def test_a_file_that_is_refused_ends_with_1_and_names_the_row(costs, tmp_path):
    (tmp_path / "bill.csv").write_text(focus([{}, {"BilledCost": "1,5"}]))
    done = costs("import", str(tmp_path / "bill.csv"), "--json")
    assert done.code == 1
    (note,) = json.loads(done.out)["files"][0]["notes"]
    assert note == "row 2, BilledCost '1,5': is no number, or has more than 20 digits before the point"


def test_the_labs_bill_becomes_a_review_with_nothing_configured(costs, tmp_path):
    done = told(costs("review", "--json"))
    assert done["sample"] and Decimal(done["budget"]) == 8811
    page = Path(done["folder"]) / "review.md"
    assert "**Sample data.**" in page.read_text() and len(done["files"]) == 9
    rolled = told(costs("rollup", "--month", done["past"][-1]["month"], "--json"))
    assert rolled["ok"] and rolled["version"] == 1 and not rolled["changed"]
    assert sum(Decimal(c["billed"]) for c in rolled["cells"]) == Decimal(rolled["totals"]["USD"]["billed_cost"])
    people = costs("forecast")
    assert people.code == 0 and "SAMPLE DATA" in people.out and "Mac mini hosting" in people.out
    files = told(costs("files", "--json"))["files"]
    assert all(f["sample"] for f in files) and {f["state"] for f in files} == {"taken"}


def test_the_plan_is_recomputed_and_the_corrected_one_is_sound(costs):
    done = costs("lint-plan", "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert {f["recomputed"] for f in found["findings"]} >= {"183.96", "328.44", "1147.65", "8798.65"}
    from akidb_pipelines.costs.plan import CORRECTED

    assert told(costs("lint-plan", str(CORRECTED), "--json"))["ok"]


def test_files_are_made_up_to_order_and_taken_in_as_what_they_are(costs, tmp_path):
    made = told(costs("generate", "--rows", "2000", "--month", "2026-10", "--to", str(tmp_path / "bill"), "--json"))
    assert len(made["files"]) == 1
    done = told(costs("import", str(tmp_path / "bill"), "--json"))
    assert done["rows"] == 2000 and set(done["by_provider"]) == {"Oracle"}
    assert all(f["sample"] for f in done["files"])
    gone = told(costs("withdraw", Path(made["files"][0]).name, "--json"))
    assert gone["state"] == "withdrawn"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "/nowhere/bill.csv"), "there is no /nowhere/bill.csv"),
        (("rollup", "--month", "2026-13"), "is no month"),
        (("forecast", "--month", "2020-01"), "no rollup of 2020-01"),
        (("lint-plan", "/nowhere.yaml"), "plan book /nowhere.yaml"),
    ],
)
def test_what_nobody_knows_ends_with_2(costs, arguments, message):
    done = costs(*arguments)
    assert done.code == 2 and message in " ".join(done.err.split()) and "what to do" in done.err
