"""Reading a FOCUS file: every version's names, everything that real files have, and every reason to refuse one."""

from __future__ import annotations

import gzip
from datetime import datetime
from decimal import Decimal

import duckdb
import pytest

from akidb_pipelines.costs.focus import read_header
from akidb_pipelines.costs.intake import RefusedFileError
from akidb_pipelines.errors import InputError
from tests.costs.conftest import focus

PREVIEW = (
    "BilledCost,BillingCurrency,BillingPeriodEnd,BillingPeriodStart,ChargeCategory,ChargePeriodEnd,ChargePeriodStart,ChargeSubcategory,"
    "EffectiveCost,Provider,Publisher,InvoiceIssuer,Region,ServiceName,UsageQuantity,UsageUnit,oci_ReferenceNumber,oci_CompartmentName"
)
ROW = (
    "1,USD,2022-09-01T00:00Z,2022-08-01T00:00Z,Usage,2022-08-19T02:00Z,2022-08-19T01:00Z,On-Demand,"
    "1,Oracle,Oracle,Oracle,fra,COMPUTE,3,h,r1,ci"
)


def parquet(tmp_path) -> list[dict[str, object]]:
    found = duckdb.connect().execute(f"SELECT * FROM read_parquet('{tmp_path}/lines.parquet')")
    names = [d[0] for d in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


# --- headers


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("Provider", "Provider"),
        ("ProviderName", "Provider"),
        ("ServiceProviderName", "Provider"),
        ("UsageQuantity", "ConsumedQuantity"),
        ("ConsumedQuantity", "ConsumedQuantity"),
        ("ChargeSubCategory", "ChargeClass"),
        ("x_oci_CompartmentName", "oci_CompartmentName"),
        ("BILLEDCOST", "BilledCost"),
    ],
)
def test_a_column_is_known_by_every_name_it_had(name, ours):
    base = ["ServiceName", "EffectiveCost", "BillingCurrency", "BillingPeriodStart", "ChargePeriodStart", "ChargeCategory"]
    needed = [
        n for n in ("ProviderName", "BilledCost") if ours not in {n, "Provider"} or (ours == "Provider" and n != "ProviderName")
    ]
    header = read_header([*base, *(n for n in needed if n.lower() != name.lower()), name], "f")
    assert ours in header.sources and header.extra == ()


def test_ocis_own_names_of_1_0_preview_are_read(read, tmp_path):
    read(f"{PREVIEW}\n{ROW}\n")
    (row,) = parquet(tmp_path)
    assert row["Provider"] == "Oracle" and row["ConsumedQuantity"] == 3 and row["oci_CompartmentName"] == "ci"
    assert row["ChargePeriodStart"] == datetime(2022, 8, 19, 1), "without seconds"


def test_where_old_and_new_name_stand_side_by_side_the_new_one_counts_unless_it_is_empty(read):
    lines = read([{"ServiceProviderName": "New", "ProviderName": "Old"}, {"ServiceProviderName": "", "ProviderName": "Old"}])
    assert {g.provider for g in lines.groups} == {"New", "Old"}


def test_columns_that_nobody_knows_are_told(read):
    lines = read([{"x_Surprise": "1", "InvoiceId": "known since 1.2"}])
    assert [o.message for o in lines.oddities if o.kind == "extra columns"] == ["columns that FOCUS does not have: x_Surprise"]


@pytest.mark.parametrize("column", ["BilledCost", "EffectiveCost", "ProviderName", "BillingPeriodStart", "ServiceName"])
def test_a_file_without_a_column_that_is_needed_is_refused(read, column):
    with pytest.raises(RefusedFileError, match=f"lacks the column .*{column}"):
        read([{}], drop=(column,))


def test_a_column_that_occurs_twice_is_refused():
    with pytest.raises(InputError, match="column BilledCost occurs twice"):
        read_header(["BilledCost", "BilledCost"], "f")


# --- what real files have


def test_sums_are_exact_to_the_last_of_18_places(read):
    lines = read([{"BilledCost": "0.100000000000000001"}] * 3 + [{"BilledCost": "12345678901234567890.5"}])
    assert lines.billed == Decimal("12345678901234567890.800000000000000003")


def test_empty_and_null_are_nothing_and_bom_crlf_quotes_and_line_breaks_are_put_up_with(read, tmp_path):
    rows = [
        {"ConsumedQuantity": "NULL", "SkuId": "", "Tags": '{"note": "said ""hi"",\nthere"}'},
        {"ConsumedQuantity": "", "SkuId": "NULL", "Tags": "NULL"},
    ]
    lines = read("\ufeff" + focus(rows, ending="\r\n"))
    assert lines.rows == 2
    assert all(row["ConsumedQuantity"] is None and row["SkuId"] is None for row in parquet(tmp_path))
    assert sorted(g.tags for g in lines.groups) == ["", '{"note": "said ""hi"",\nthere"}']


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-10-05T01:00Z", datetime(2026, 10, 5, 1)),
        ("2026-10-05 01:00:00", datetime(2026, 10, 5, 1)),
        ("2026-10-05T03:00:00+02:00", datetime(2026, 10, 5, 1)),
        ("2026-10-05", datetime(2026, 10, 5)),
    ],
)
def test_times_are_read_as_utc_however_they_are_written(read, tmp_path, written, meant):
    read([{"ChargePeriodStart": written}])
    assert parquet(tmp_path)[0]["ChargePeriodStart"] == meant


@pytest.mark.parametrize(
    ("written", "meant"), [("1E-7", "0.0000001"), ("1.50", "1.5"), ("0.1000000000000000000000", "0.1"), ("-2.5", "-2.5")]
)
def test_numbers_are_read_exactly_however_they_are_written(read, written, meant):
    assert read([{"BilledCost": written}]).billed == Decimal(meant)


def test_a_row_counts_in_the_month_it_is_billed_in(read):
    lines = read([{"ChargePeriodStart": "2026-09-30T23:00:00Z"}])
    assert lines.months == ("2026-10",)
    assert "other month" in {o.kind for o in lines.oddities}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"ConsumedQuantity": "-1", "BilledCost": "-2"}, "negative usage"),
        ({"ChargeCategory": "Credit", "BilledCost": "-5"}, "credits"),
        ({"ChargeClass": "Correction"}, "corrections"),
        ({"oci_BackReferenceNumber": "r0"}, "corrections"),
        ({"ContractedUnitPrice": "1", "ContractedCost": ""}, "no contracted cost"),
        ({"EffectiveCost": ""}, "no effective cost"),
        ({"Tags": ""}, "untagged"),
        ({"ListUnitPrice": "2", "PricingQuantity": "3", "ListCost": "6.1"}, "unit price"),
    ],
)
def test_what_is_odd_is_accepted_and_told(read, row, kind):
    lines = read([row, {}])
    assert lines.rows == 2 and kind in {o.kind for o in lines.oddities}


def test_an_effective_cost_of_zero_means_nothing_also_where_billed_costs_are_whole(read):
    assert read([{"EffectiveCost": "0", "BilledCost": "5"}] * 2).billed_for_effective == ("Oracle",)
    assert read([{"EffectiveCost": "0", "BilledCost": "0"}] * 2).billed_for_effective == ()


@pytest.mark.parametrize("costs", [("0", "0.0"), ("3", "7")])
def test_an_effective_cost_that_means_nothing_is_noticed(read, costs):
    lines = read([{"EffectiveCost": c, "BilledCost": "1.5"} for c in costs] + [{"ProviderName": "AWS"}])
    assert lines.billed_for_effective == ("Oracle",)
    assert lines.effective == sum(Decimal(c) for c in costs) + Decimal("1.25"), "sums of the file are as they stand there"


def test_gzip_in_several_members_is_one_file(read):
    text = focus([{}, {}])
    head, tail = text[: len(text) // 2], text[len(text) // 2 :]
    assert read(gzip.compress(head.encode()) + gzip.compress(tail.encode()), "bill.csv.gz").rows == 2


# --- reasons to refuse one


def test_a_truncated_file_is_refused(read):
    data = gzip.compress(focus([{}] * 1000).encode())
    with pytest.raises(RefusedFileError, match="it is cut short"):
        read(data[:-20], "bill.csv.gz")


def test_a_bit_that_flipped_is_noticed(read):
    """DuckDB does not compare the checksum of gzip."""
    data = bytearray(gzip.compress(focus([{"ServiceName": str(n)} for n in range(1000)]).encode(), compresslevel=0))
    data[len(data) // 2] ^= 1
    with pytest.raises(RefusedFileError, match="compression is damaged"):
        read(bytes(data), "bill.csv.gz")


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("BilledCost", "12,50", "is no number"),
        ("BilledCost", "free", "is no number"),
        ("BilledCost", "0.12345678901234567890", "has more than 18 decimal places"),
        ("EffectiveCost", "1.5e-18", "has more than 18 decimal places"),
        ("BilledCost", "123456789012345678901", "more than 20 digits before the point"),
        ("ChargePeriodStart", "05/10/2026", "is no time"),
        ("BillingPeriodStart", "2026-13-01T00:00Z", "is no time"),
    ],
)
def test_a_value_that_cannot_be_kept_refuses_the_file_and_names_the_row(read, tmp_path, column, value, told):
    with pytest.raises(RefusedFileError) as error:
        read([{}, {column: value}, {}])
    (reason,) = error.value.reasons
    assert (reason.row, reason.column, reason.value) == (2, column, value) and told in reason.message
    assert not (tmp_path / "lines.parquet").exists()


@pytest.mark.parametrize("price", ["2.7777777777777779e-06", "on request", "NaN"])
def test_a_unit_price_is_only_compared_with_and_refuses_nothing(read, price):
    assert read([{"ListUnitPrice": price, "ConsumedQuantity": "0.33333333333333333333333"}]).billed == Decimal("1.5")


def test_every_bad_row_is_named_up_to_a_limit(read):
    with pytest.raises(RefusedFileError) as error:
        read([{"BilledCost": "x"}] * 100)
    assert [r.row for r in error.value.reasons] == list(range(1, 21))


@pytest.mark.parametrize("column", ["BilledCost", "ProviderName", "BillingPeriodStart"])
def test_a_row_without_its_cost_provider_or_month_refuses_the_file(read, column):
    with pytest.raises(RefusedFileError, match="is empty in 1 rows"):
        read([{}, {column: ""}])


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "0044-03-15", "290000-01-01"])
def test_a_time_that_no_bill_can_have_refuses_the_file(read, moment):
    with pytest.raises(RefusedFileError, match=r"is not between 2000 and 2100|is no time"):
        read([{}, {"BillingPeriodStart": moment}])


def test_a_column_that_somebody_will_miss_is_told(read):
    lines = read([{}], drop=("Tags", "SkuId"))
    assert any("it lacks" in o.message and "Tags, SkuId" in o.message for o in lines.oddities)


def test_two_currencies_of_one_provider_refuse_the_file_and_of_two_providers_do_not(read):
    with pytest.raises(RefusedFileError, match="Oracle is billed in EUR and USD"):
        read([{}, {"BillingCurrency": "EUR"}])
    assert read([{}, {"ProviderName": "AWS", "BillingCurrency": "EUR"}]).rows == 2


def test_a_line_of_oci_that_occurs_twice_refuses_the_file(read):
    with pytest.raises(RefusedFileError, match=r"1 line keys occur more than once: COMPUTE r1 at 2026-10-05T01:00Z 2 times"):
        read([{"oci_ReferenceNumber": "r1"}, {"oci_ReferenceNumber": "r1"}, {"oci_ReferenceNumber": "r2"}])


def test_equal_rows_of_a_provider_without_keys_are_two_charges(read):
    assert read([{"ProviderName": "AWS"}, {"ProviderName": "AWS"}]).rows == 2


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda t: t.rstrip("\n") + ",one more\n", "Expected Number of Columns"),
        (lambda t: t.rstrip("\n") + '\n"never closed', "unterminated|Expected Number"),
        (lambda t: "", "lacks the column"),
        (lambda t: "\x00\xff\xfe", "lacks the column|cannot be read"),
    ],
)
def test_what_is_no_csv_is_refused(read, damage, told):
    with pytest.raises(RefusedFileError, match=told):
        read(damage(focus([{}])).encode("utf-8", "surrogateescape"))


def test_bytes_that_are_no_utf_8_refuse_the_file(read):
    with pytest.raises(RefusedFileError):
        read(focus([{"ResourceId": "PLACE"}]).encode().replace(b"PLACE", b"\xff\xfe"))
