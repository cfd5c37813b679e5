"""Exporting an image out of OCI: the real SDK against a Compute, Work Requests and an Object Storage that check what they are sent."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest

from akidb_pipelines.errors import IntegrityError, OutsideError
from akidb_pipelines.images.runners import oci_export
from akidb_pipelines.images.runners.oci_export import OciExporter
from akidb_pipelines.settings import Settings
from tests.services.http_stub import FlipBit, ResetAfterCommit, Truncate
from tests.services.oci_compute_stub import OciComputeStub, Step

BUCKET = "exports-of-tests"
COMPARTMENT = "ocid1.compartment.oc1..stub"
IMAGE = "ocid1.image.oc1.eu-frankfurt-1.aaaatest"
CONTENT = random.Random(17).randbytes((8 << 20) + 4321)  # more than is fetched at once
KEY = "exports/aaaatest-00000000.qcow2"
EXPORT_PATH = "/actions/export"


@pytest.fixture
def stub(tmp_path, monkeypatch):
    with OciComputeStub() as stub:
        stub.make_buckets(BUCKET)
        monkeypatch.setenv("OCI_CONFIG_FILE", str(stub.config_file(tmp_path)))
        yield stub


@pytest.fixture
def exporter(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(oci_export, "secrets", SimpleNamespace(token_hex=lambda count: "00" * count))
    where = {"namespace": stub.namespace, "bucket": BUCKET, "compartment": COMPARTMENT, "endpoint": stub.endpoint}
    return OciExporter(Settings(home=tmp_path / "home", oci_endpoint=stub.endpoint), where, poll_seconds=0.01)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "disk.qcow2"


def requests_of(stub, method: str, path: str) -> list:
    return [e.request for e in stub.log if e.request.method == method and path in e.request.target.replace("%2F", "/")]


def test_an_exported_image_is_fetched_byte_for_byte_and_its_object_removed(stub, exporter, target):
    stub.make_image(IMAGE, CONTENT)
    exporter.export(IMAGE, target, timeout_seconds=20)
    assert target.read_bytes() == CONTENT
    assert stub.objects == {}
    (asked,) = requests_of(stub, "POST", EXPORT_PATH)
    assert asked.path == f"/20160918/images/{IMAGE}/actions/export"
    assert json.loads(asked.body) == {
        "destinationType": "objectStorageTuple",
        "namespaceName": stub.namespace,
        "bucketName": BUCKET,
        "objectName": KEY,
        "exportFormat": "QCOW2",
    }


def test_progress_is_told_of_the_export_and_of_the_fetch(stub, exporter, target):
    stub.make_image(IMAGE, CONTENT)
    told = []
    exporter.export(IMAGE, target, timeout_seconds=20, report=told.append)
    assert [(p.stage, p.done, p.total, p.in_bytes) for p in told] == [
        ("OCI exports the image", 0, 100, False),
        ("OCI exports the image", 40, 100, False),
        ("OCI exports the image", 100, 100, False),
        ("fetching the export", 8 << 20, len(CONTENT), True),
        ("fetching the export", len(CONTENT), len(CONTENT), True),
    ]


@pytest.mark.parametrize(
    ("status", "reasons", "told"),
    [
        ("FAILED", ("No space left.", "Disk 2 is gone."), "failed: No space left.; Disk 2 is gone."),
        ("FAILED", (), "failed: it says no reason"),
        ("CANCELED", ("Somebody cancelled it.",), "canceled: Somebody cancelled it."),
    ],
)
def test_a_work_request_that_fails_is_told_with_its_reasons_and_leaves_nothing(stub, exporter, target, status, reasons, told):
    stub.make_image(IMAGE, b"half", (Step("IN_PROGRESS", 60, writes=True), Step(status, 60)), reasons)
    with pytest.raises(OutsideError) as caught:
        exporter.export(IMAGE, target, timeout_seconds=20)
    (request,) = stub.requests
    assert caught.value.message == f"exporting image {IMAGE}: work request {request} {told}"
    assert caught.value.hint
    assert stub.objects == {}
    assert requests_of(stub, "DELETE", KEY)
    assert not target.exists()


def test_a_work_request_that_never_ends_is_given_up_after_the_timeout(stub, exporter, target):
    stub.make_image(IMAGE, b"half", (Step("ACCEPTED"), Step("IN_PROGRESS", 40.4, writes=True)))
    with pytest.raises(OutsideError) as caught:
        exporter.export(IMAGE, target, timeout_seconds=0.1)
    (request,) = stub.requests
    assert f"work request {request} is IN_PROGRESS and at 40 % after 0.1 s" in caught.value.message
    assert "akidb_runner_timeout_seconds" in caught.value.hint
    assert stub.objects == {}
    assert not target.exists()


def test_a_refused_export_says_which_image_and_which_permissions_are_needed(stub, exporter, target):
    stub.make_image("ocid1.image.oc1..another", CONTENT)
    with pytest.raises(OutsideError) as caught:
        exporter.export(IMAGE, target, timeout_seconds=20)
    assert IMAGE in caught.value.message
    assert "Authorization failed or requested resource not found." in caught.value.message
    assert "`manage instance-images`" in caught.value.hint
    assert "`manage objects`" in caught.value.hint
    assert len(requests_of(stub, "POST", EXPORT_PATH)) == 1
    assert stub.requests == {}


def test_an_export_whose_answer_is_lost_is_begun_once(stub, exporter, target):
    stub.make_image(IMAGE, b"content")
    stub.inject(ResetAfterCommit(), "POST", EXPORT_PATH)
    exporter.export(IMAGE, target, timeout_seconds=20)
    assert target.read_bytes() == b"content"
    assert len(requests_of(stub, "POST", EXPORT_PATH)) == 2
    assert len(stub.requests) == 1


def test_a_fetch_that_is_cut_off_is_repeated(stub, exporter, target):
    stub.make_image(IMAGE, CONTENT)
    stub.inject(Truncate(), "GET", KEY, times=2)
    exporter.export(IMAGE, target, timeout_seconds=20)
    assert target.read_bytes() == CONTENT
    assert [r.headers["range"] for r in requests_of(stub, "GET", KEY)] == [
        *["bytes=0-8388607"] * 4,  # each part is read twice, and two were cut off
        *[f"bytes=8388608-{len(CONTENT) - 1}"] * 2,
    ]
    assert stub.objects == {}


def test_bytes_that_were_altered_on_the_way_are_noticed(stub, exporter, target):
    stub.make_image(IMAGE, CONTENT)
    stub.inject(FlipBit(), "GET", KEY)
    with pytest.raises(IntegrityError, match="other bytes came from byte 0 on"):
        exporter.export(IMAGE, target, timeout_seconds=20)
    assert not target.exists()


def test_a_fetch_that_is_cut_off_again_and_again_is_told(stub, exporter, target):
    stub.make_image(IMAGE, b"content")
    stub.inject(Truncate(), "GET", KEY, times=100)
    with pytest.raises(OutsideError, match=f"oci://{stub.namespace}/{BUCKET}/{KEY}: cut off at byte 0"):
        exporter.export(IMAGE, target, timeout_seconds=20)
    assert stub.objects == {}


def test_an_object_that_is_not_there_after_its_export_is_told(stub, exporter, target):
    stub.make_image(IMAGE, CONTENT, (Step("SUCCEEDED", 100),))
    with pytest.raises(OutsideError, match=f"{BUCKET}/{KEY} is not there, though its export succeeded") as caught:
        exporter.export(IMAGE, target, timeout_seconds=20)
    assert caught.value.hint == "archive again"
    assert not target.exists()
