"""Where billing files come from: a folder, a real S3, OCI's bucket of reports by its rules; and what OCI's other APIs say."""

from __future__ import annotations

import gzip
import secrets
from decimal import Decimal
from pathlib import Path

import boto3
import pytest

from akidb_pipelines.costs.ledger import open_ledger
from akidb_pipelines.costs.oci_usage import OciUsage
from akidb_pipelines.costs.plan import PLAN, load_plan
from akidb_pipelines.costs.sources import Folder, open_source
from akidb_pipelines.errors import InputError, IntegrityError, OutsideError
from akidb_pipelines.periods import Month
from tests.costs.conftest import TODAY, focus
from tests.services.oci_stub import TENANCY, Status, StoredObject
from tests.services.oci_usage_stub import OciUsageStub

OCTOBER = Month.parse("2026-10")
REPORTS = "FOCUS Reports/2026/10"


def bill(*references: str, cost: str = "1") -> bytes:
    return gzip.compress(focus([{"oci_ReferenceNumber": r, "BilledCost": cost} for r in references]).encode(), mtime=0)


# --- a folder


def test_a_folder_is_read_with_what_is_below_and_hidden_files_are_left_alone(tmp_path):
    for name in ("a.csv", "2026/10/b.csv.gz", "notes.txt", ".scratch/c.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [f.name for f in Folder(tmp_path).files()] == ["2026/10/b.csv.gz", "a.csv"]


def test_a_single_file_is_a_source_whatever_it_is_called(tmp_path):
    (tmp_path / "export").write_text("x")
    assert [f.name for f in Folder(tmp_path / "export").files()] == ["export"]


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    source = Folder(tmp_path)
    (file,) = source.files()
    (tmp_path / "a.csv").write_text("y")
    with pytest.raises(IntegrityError, match="changed while it was read"):
        source.fetch(file, tmp_path / "out")


@pytest.mark.parametrize("where", ["/nowhere/at/all", "file:///nowhere", "ftp://x/y", "oci://only"])
def test_what_is_no_source_says_what_would_be_one(where, settings):
    with pytest.raises(InputError) as error:
        open_source(where, settings)
    assert error.value.hint


# --- S3


@pytest.fixture
def bucket(seaweed, monkeypatch):
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    name = f"bill{secrets.token_hex(4)}"
    seaweed.make_buckets(name)
    client = boto3.client("s3")
    return name, lambda key, data: client.put_object(Bucket=name, Key=key, Body=data)


def test_files_of_an_s3_bucket_are_taken_in_and_a_replaced_one_is_withdrawn(bucket, settings):
    name, put = bucket
    put("exports/2026/10/a.csv.gz", bill("r1", "r2"))
    put("exports/manifest.json", b"{}")
    put("other/b.csv.gz", bill("r9"))
    source = open_source(f"s3://{name}/exports", settings)
    ledger = open_ledger(settings.model_copy(update={"cost_source": source.url}))
    (done,) = ledger.take_in(source, today=TODAY)
    assert (done.file.name, str(done.file.state)) == ("2026/10/a.csv.gz", "taken")
    assert [d.is_new for d in ledger.take_in(source, today=TODAY)] == [False]
    put("exports/2026/10/a.csv.gz", bill("r1", "r2", "r3", cost="2"))
    list(ledger.take_in(source, today=TODAY))
    assert [str(f.state) for f in ledger.tables.files()] == ["withdrawn", "taken"]
    oracle = [c for c in ledger.roll_up(OCTOBER, TODAY).cells if c.provider == "Oracle"]
    assert sum(c.billed for c in oracle) == Decimal(6)


# --- OCI


@pytest.fixture
def oci(tmp_path, monkeypatch):
    with OciUsageStub() as stub:
        folder = tmp_path / "oci"
        folder.mkdir()
        monkeypatch.setenv("OCI_CONFIG_FILE", str(stub.config_file(folder)))
        stub.make_buckets(TENANCY)
        yield stub


@pytest.fixture
def of_oci(oci, settings):
    addresses = dict.fromkeys(("oci_endpoint", "oci_usage_endpoint", "oci_limits_endpoint"), oci.endpoint)
    return settings.model_copy(update={"cost_source": f"oci://bling/{TENANCY}/FOCUS Reports", **addresses})


def put(oci: OciUsageStub, name: str, body: bytes, md5: str | None = None) -> None:
    import base64
    import hashlib

    told = md5 or base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    oci.objects[TENANCY, f"{REPORTS}/{name}"] = StoredObject(body, {}, "Standard", "application/gzip", {"content-md5": told})


def test_ocis_reports_are_taken_in_also_when_they_come_late_under_an_older_day(oci, of_oci):
    source, ledger = open_source(of_oci.cost_source, of_oci), open_ledger(of_oci)
    put(oci, "06/0002.csv.gz", bill("r2"))
    list(ledger.take_in(source, today=TODAY))
    put(oci, "02/0001.csv.gz", bill("r1"))
    done = list(ledger.take_in(source, today=TODAY))
    assert [(d.file.name, d.is_new) for d in done] == [("2026/10/02/0001.csv.gz", True), ("2026/10/06/0002.csv.gz", False)]


def test_a_listing_of_many_pages_is_read_to_its_end(oci, of_oci):
    oci.page_size = 2
    for n in range(5):
        put(oci, f"0{n + 1}/0.csv.gz", bill(f"r{n}"))
    assert len(list(open_source(of_oci.cost_source, of_oci).files())) == 5


def test_bytes_that_are_not_what_the_listing_says_are_not_taken(oci, of_oci):
    put(oci, "06/0002.csv.gz", bill("r2"), md5="AAAAAAAAAAAAAAAAAAAAAA==")
    with pytest.raises(IntegrityError, match="another MD5 than its listing says"):
        list(open_ledger(of_oci).take_in(open_source(of_oci.cost_source, of_oci), today=TODAY))
    assert open_ledger(of_oci).tables.files() == []


def test_a_bucket_that_may_not_be_read_says_what_to_do(oci, of_oci):
    oci.deny(TENANCY, reads=True)
    with pytest.raises(OutsideError) as error:
        list(open_source(of_oci.cost_source, of_oci).files())
    assert error.value.hint


# --- the Usage API and the Limits API


def test_usage_is_added_up_over_pages_and_floats_do_not_drift(oci, of_oci):
    oci.usage = [("COMPUTE", "USD", 0.1)] * 3 + [("NETWORK", "USD", None), ("COMPUTE", "USD", 0.2)]
    found = {t.service: t.amount for t in OciUsage(of_oci, TENANCY).month(OCTOBER)}
    assert found == {"COMPUTE": Decimal("0.5"), "NETWORK": Decimal(0)}, "the sum of floats would be 0.5000000000000001"


def test_pages_without_an_end_are_given_up(oci, of_oci, monkeypatch):
    monkeypatch.setattr("akidb_pipelines.costs.oci_usage._MOST_PAGES", 5)
    oci.usage, oci.endless = [("COMPUTE", "USD", 1.0)], True
    with pytest.raises(OutsideError, match="pages and no end"):
        OciUsage(of_oci, TENANCY).month(OCTOBER)


def test_limits_are_asked_for_every_quota_that_oci_knows(oci, of_oci):
    oci.limits = {("compute", "standard-a1-core-count"): (38.5, 57.5), ("object-storage", "storage-bytes"): (2.4e12, 7.6e12)}
    found = {u.quota: (u.used, u.available) for u in OciUsage(of_oci, TENANCY).limits(load_plan(PLAN))}
    assert found == {
        "ocpu": (Decimal("38.5"), Decimal("57.5")),
        "object-storage": (Decimal("2400000000000.0"), Decimal("7600000000000.0")),
    }


@pytest.mark.parametrize(("code", "hint"), [(404, "read usage-report"), (401, "clock")])
def test_a_refusal_says_which_policy_is_missing(oci, of_oci, code, hint):
    oci.inject(Status(code, "NotAuthorizedOrNotFound"), path="/20200107/usage", times=9)
    with pytest.raises(OutsideError) as error:
        OciUsage(of_oci, TENANCY).month(OCTOBER)
    assert hint in error.value.hint


def test_the_usage_api_is_compared_with_and_never_booked(oci, of_oci):
    from akidb_pipelines.costs.checks import check_usage_api

    put(oci, "02/0001.csv.gz", bill("r1", "r2", cost="3"))
    ledger = open_ledger(of_oci)
    list(ledger.take_in(open_source(of_oci.cost_source, of_oci), today=TODAY))
    rolled = ledger.roll_up(OCTOBER, TODAY)
    oci.usage = [("COMPUTE", "USD", 6.0000000001)]
    assert check_usage_api(rolled, OciUsage(of_oci, TENANCY).month(OCTOBER)).passed
    oci.usage = [("COMPUTE", "USD", 7.5)]
    report = check_usage_api(rolled, OciUsage(of_oci, TENANCY).month(OCTOBER))
    assert not report.passed and report.advisory and "says 7.50, the lines 6.00" in report.broken[0].message


def test_signatures_are_verified(oci, of_oci, tmp_path, monkeypatch):
    with OciUsageStub() as other:
        folder = tmp_path / "other"
        folder.mkdir()
        monkeypatch.setenv("OCI_CONFIG_FILE", str(other.config_file(folder)))
        with pytest.raises(OutsideError, match="401"):
            OciUsage(of_oci, TENANCY).month(OCTOBER)


def test_a_source_is_found_by_the_path_of_a_file(tmp_path, settings):
    (tmp_path / "a.csv").write_text("x")
    assert open_source(str(tmp_path / "a.csv"), settings).url == f"file://{tmp_path}"
    assert isinstance(open_source(f"file://{tmp_path}", settings), Folder) and Path(tmp_path).is_dir()
