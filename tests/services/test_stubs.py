"""The stubs against the real SDKs: what they refuse is what makes other tests worth something."""

from __future__ import annotations

import base64
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import boto3
import oci
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from oci.object_storage import ObjectStorageClient, models

from tests.services.oci_stub import FlipBit, Hang, OciStub, Reset, ResetAfterCommit, Status, Truncate
from tests.services.s3_rules_stub import S3RulesStub

BUCKET = ("axns", "b")
CAREFUL = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}


@pytest.fixture
def stub(request):
    with getattr(request, "param", OciStub)(page_size=2) as stub:
        stub.make_buckets("b")
        yield stub


def native(stub, timeout=5, **changes):
    once = oci.retry.NoneRetryStrategy()
    return ObjectStorageClient(stub.config() | changes, service_endpoint=stub.endpoint, retry_strategy=once, timeout=timeout)


def s3(stub, signed=True, checksums=CAREFUL, **changes):
    env = stub.environment() | changes
    style = {"addressing_style": "path", "payload_signing_enabled": signed}
    config = Config(signature_version="s3v4", s3=style, retries={"total_max_attempts": 1}, **checksums)
    session = boto3.Session(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], region_name=env["AWS_DEFAULT_REGION"])
    return session.client("s3", endpoint_url=env["AWS_ENDPOINT_URL_S3"], verify=env["AWS_CA_BUNDLE"], config=config)


def refused(call, *arguments, **named):
    with pytest.raises((oci.exceptions.ServiceError, ClientError)) as caught:
        call(*arguments, **named)
    e = caught.value
    return e.response["Error"]["Code"] if isinstance(e, ClientError) else (e.status, e.code)


def test_oci_believes_its_own_key_only(stub, tmp_path):
    ours = oci.config.from_file(str(stub.config_file(tmp_path)))
    assert ObjectStorageClient(ours, service_endpoint=stub.endpoint).get_namespace().data == "axns"
    for strange in ({"key_content": OciStub().config()["key_content"]}, {"user": "ocid1.user.oc1..other"}):
        assert refused(native(stub, **strange).get_bucket, *BUCKET) == (401, "NotAuthenticated")


def test_oci_objects_keep_their_conditions_and_digests(stub):
    put, get, head = (partial(getattr(native(stub), f"{verb}_object"), *BUCKET) for verb in ("put", "get", "head"))
    digest = base64.b64encode(hashlib.sha256(b"one").digest()).decode()
    etag = put("k", b"one", if_none_match="*", opc_content_sha256=digest).headers["etag"]
    assert refused(put, "k", b"two", if_none_match="*") == (412, "IfNoneMatchFailed")
    assert refused(put, "k", b"two", if_match="x") == (412, "IfMatchFailed")
    assert refused(put, "x", b"1", opc_content_sha256=digest) == (400, "UnmatchedContentSHA256")
    put("k", b"three", if_match=etag)
    assert get("k", range="bytes=1-2").data.content == b"hr"
    assert refused(get, "k", range="bytes=5-") == (416, "InvalidRange")
    assert refused(head, "x") == (404, None)
    assert refused(native(stub).list_objects, "axns", "other") == (404, "BucketNotFound")
    stub.deny("b", 403, "NotAuthorizedOrNotFound")
    assert refused(put, "x", b"") == (403, "NotAuthorizedOrNotFound")


def test_oci_lets_one_of_many_creations_win_and_lists_in_pages(stub):
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(native(stub).put_object, *BUCKET, f"p/{n // 4}", b"x", if_none_match="*") for n in range(20)]
    assert sum(job.exception() is None for job in jobs) == 5
    stub.age("b", "p/3", days=10)
    pages = oci.pagination.list_call_get_all_results(native(stub).list_objects, *BUCKET, prefix="p/", fields="timeModified")
    ages = {o.name: round((time.time() - o.time_modified.timestamp()) / 86_400) for o in pages.data.objects}
    assert ages == {"p/0": 0, "p/1": 0, "p/2": 0, "p/3": 10, "p/4": 0}


def test_oci_commits_parts_on_condition_and_restores_what_is_archived(stub):
    store, name = native(stub), (*BUCKET, "big")
    details = models.CreateMultipartUploadDetails(object="big", storage_tier="Archive")
    upload = (*name, store.create_multipart_upload(*BUCKET, details).data.upload_id)
    etags = [store.upload_part(*upload, n, b"part%d" % n).headers["etag"] for n in (1, 2, 3)]
    listed = oci.pagination.list_call_get_all_results(store.list_multipart_upload_parts, *upload).data
    assert [(part.part_number, part.etag) for part in listed] == list(enumerate(etags, 1))
    parts = [models.CommitMultipartUploadPartDetails(part_num=part.part_number, etag=part.etag) for part in listed]
    commit = partial(store.commit_multipart_upload, *upload, models.CommitMultipartUploadDetails(parts_to_commit=parts))
    store.put_object(*name, b"faster")
    assert refused(commit, if_none_match="*") == (412, "IfNoneMatchFailed")
    store.delete_object(*name)
    commit(if_none_match="*")
    assert refused(commit) == (404, "NoSuchUpload")
    assert refused(store.get_object, *name) == (409, "NotRestored")
    store.restore_objects(*BUCKET, models.RestoreObjectsDetails(object_name="big"))
    assert store.head_object(*name).headers["archival-state"] == "Restoring"
    time.sleep(stub.restore_seconds)
    assert store.get_object(*name).data.content == b"part1part2part3"


@pytest.mark.parametrize(("fault", "kept"), [(Reset(), False), (ResetAfterCommit(), True), (Hang(1), False)])
def test_faults_are_met_once_and_where_they_were_put(stub, fault, kept):
    store = native(stub, timeout=(1, 0.3))
    stub.inject(fault, "PUT", "/o/k")
    with pytest.raises(oci.exceptions.RequestException):
        store.put_object(*BUCKET, "k", b"content")
    assert (("b", "k") in stub.objects) is kept
    store.put_object(*BUCKET, "k", b"content")
    stub.inject(Status(503), "GET")
    assert refused(store.get_object, *BUCKET, "k") == (503, "InternalServerError")
    stub.inject(FlipBit(), "GET")
    assert store.get_object(*BUCKET, "k").data.content == b"conuent"
    stub.inject(Truncate(), "GET")
    with pytest.raises(oci._vendor.requests.exceptions.ChunkedEncodingError):
        _ = store.get_object(*BUCKET, "k").data.content


@pytest.mark.parametrize("stub", [S3RulesStub, partial(S3RulesStub, conditional="ignored")], indirect=True)
def test_s3_follows_ocis_rules(stub):
    store, where, honoured = s3(stub), {"Bucket": "b", "Key": "a/b c+ü"}, stub.conditional == "honoured"
    put = where | {"Body": b"cold", "StorageClass": "GLACIER", "Metadata": {"k": "v"}}
    upload = where | {"UploadId": store.create_multipart_upload(**where)["UploadId"]}
    part = {"PartNumber": 1, "ETag": store.upload_part(**upload, PartNumber=1, Body=b"two")["ETag"]}
    assert refused(s3(stub, AWS_SECRET_ACCESS_KEY="x").put_object, **put) == "SignatureDoesNotMatch"
    assert refused(s3(stub, signed=False).put_object, **put) == "AccessDenied"
    assert refused(s3(stub, checksums={}).put_object, **put) == "NotImplemented"
    assert refused(store.put_object, **put, ChecksumSHA256="AAAA") == "BadDigest"
    store.put_object(**put)
    assert refused(store.get_object, **where) == "InvalidObjectState"
    store.restore_object(**where, RestoreRequest={"Days": 1})
    assert store.head_object(**where)["Restore"] == 'ongoing-request="true"'
    time.sleep(stub.restore_seconds)
    store.copy_object(**where, CopySource=where, StorageClass="STANDARD")
    assert (stub.objects["b", where["Key"]].storage_class, store.head_object(**where)["Metadata"]) == ("STANDARD", {"k": "v"})
    finish = partial(store.complete_multipart_upload, **upload, MultipartUpload={"Parts": [part]}, IfNoneMatch="*")
    assert (refused(finish) == "PreconditionFailed") if honoured else finish()["ETag"].endswith('-1"')
    assert store.get_object(**where, Range="bytes=1-2")["Body"].read() == (b"ol" if honoured else b"wo")
    names = [where["Key"], "b1", "b2", "b3", "b4"]
    for name in names[1:]:
        store.put_object(Bucket="b", Key=name, Body=b"")
    assert [o["Key"] for page in store.get_paginator("list_objects_v2").paginate(Bucket="b") for o in page["Contents"]] == names
    deletion = {"Bucket": "b", "Delete": {"Objects": [{"Key": name} for name in names]}}
    assert refused(store.delete_objects, **deletion) == "InvalidRequest"
    assert len(store.delete_objects(**deletion, ChecksumAlgorithm="SHA256")["Deleted"]) == 5
