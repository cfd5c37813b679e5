"""The lab's bill: OCI's columns and layout, the oddities of real bills, the same bytes for the same seed, nothing twice."""

from __future__ import annotations

import csv
import gzip
import io
from datetime import date
from pathlib import Path

import pytest

from akidb_pipelines.costs.intake import read_focus
from akidb_pipelines.costs.sources import Folder
from akidb_pipelines.lab import billing
from akidb_pipelines.lab.billing import Batch, generate, meters, refresh

OCTOBER = Batch(date(2026, 10, 1), 31)


def rows(*paths: Path) -> list[dict[str, str]]:
    return [row for path in paths for row in csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode()))]


@pytest.fixture(scope="module")
def october(tmp_path_factory) -> list[dict[str, str]]:
    return rows(*generate(tmp_path_factory.mktemp("bill"), OCTOBER))


def test_it_has_ocis_49_columns_and_every_resource_in_every_hour(october):
    assert len(october[0]) == 49 and "oci_BackReferenceNumber" in october[0] and "UsageQuantity" in october[0]
    assert len(october) == len(meters()) * 31 * 24


def test_it_has_what_makes_real_bills_hard_to_read(october):
    assert all(r["ChargePeriodStart"].endswith("00Z") and len(r["ChargePeriodStart"]) == 17 for r in october), "no seconds"
    assert {r["ChargeFrequency"] for r in october} == {"Usage-based"}
    assert all("." not in r["EffectiveCost"] for r in october)
    assert any(r["ChargePeriodStart"].startswith("2026-09-30") for r in october)
    assert any("\n" in r["Tags"] and '\\"' in r["Tags"] for r in october) and any(not r["Tags"] for r in october)
    corrections = [r for r in october if r["oci_BackReferenceNumber"]]
    references = {r["oci_ReferenceNumber"] for r in october}
    assert corrections and all(r["BilledCost"].startswith("-") and r["oci_BackReferenceNumber"] in references for r in corrections)
    assert len(references) == len(october)


def test_the_intake_takes_it_and_tells_its_oddities(tmp_path):
    (path,) = generate(tmp_path, OCTOBER)
    lines = read_focus(path, path.name, tmp_path / "lines.parquet", tmp_path)
    assert lines.months == ("2026-10",) and lines.billed_for_effective == ("Oracle",)
    assert {"negative usage", "corrections", "untagged", "other month"} <= {o.kind for o in lines.oddities}


def test_the_same_seed_makes_the_same_lines_and_another_one_others(tmp_path):
    made = [generate(tmp_path / str(n), Batch(date(2026, 11, 2), 1), seed=seed) for n, seed in enumerate((7, 7, 8))]
    first, again, other = (rows(*paths) for paths in made)
    assert first == again != other


@pytest.mark.parametrize("wanted", [1, 999, 70_001])
def test_any_number_of_rows_can_be_made_and_their_references_are_their_own(tmp_path, wanted):
    made = rows(*generate(tmp_path, OCTOBER, rows=wanted))
    assert len(made) == len({r["oci_ReferenceNumber"] for r in made}) == wanted


def test_a_long_file_is_split(tmp_path, monkeypatch):
    monkeypatch.setattr(billing, "_SPLIT_ROWS", 10_000)
    paths = generate(tmp_path, OCTOBER)
    assert [len(rows(p)) for p in paths] == [10_000, 10_000, len(meters()) * 744 - 20_000]
    assert [p.name for p in paths] == [f"20261001-31d-{n:05d}.csv.gz" for n in (1, 2, 3)]


def test_the_bill_is_brought_up_to_a_day_and_nothing_comes_twice(tmp_path):
    refresh(tmp_path, date(2026, 11, 2), months=2)
    before = {f.name: f.etag for f in Folder(tmp_path).files()}
    assert len(before) == 3, "October whole, and two days"
    assert refresh(tmp_path, date(2026, 11, 2), months=2) == []
    refresh(tmp_path, date(2026, 12, 1), months=2)
    after = {f.name: f.etag for f in Folder(tmp_path).files()}
    assert before.items() <= after.items() and len(after) == 3 + 28 + 1, "November stays by day"
    days = [r["ChargePeriodStart"] + r["ResourceName"] for r in rows(*(tmp_path / n for n in after if "/2026/11/" in n))]
    assert len(days) == len(set(days)) == 30 * 24 * len(meters())
