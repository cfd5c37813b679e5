"""The servers and stubs do what tests rely on: they serve, they refuse, and each fault is the fault that it says."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import hvac
import pytest
from botocore.exceptions import ClientError, HTTPClientError, ReadTimeoutError, ResponseStreamingError
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import VaultSigner

from tests.services import fault_proxy as faults
from tests.services.seaweed import Seaweed
from tests.services.vault_stub import VaultStub

MIB = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory):
    with Seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        server.make_buckets("bucket")
        yield server


@pytest.fixture
def proxy(seaweed):
    with faults.FaultProxy.before(seaweed.endpoint) as proxy:
        yield proxy


@pytest.fixture
def through(seaweed, proxy):
    """A client whose requests go through the proxy."""
    return seaweed.client(endpoint=proxy.url)


def put(client, key, body=b"body"):
    return client.put_object(Bucket="bucket", Key=key, Body=body)


def get(client, key):
    return client.get_object(Bucket="bucket", Key=key)["Body"].read()


def exists(client, key):
    return client.list_objects_v2(Bucket="bucket", Prefix=key)["KeyCount"] == 1


def refused(call, *arguments):
    with pytest.raises(ClientError) as caught:
        call(*arguments)
    return caught.value.response["ResponseMetadata"]["HTTPStatusCode"], caught.value.response["Error"]["Code"]


def test_seaweed_serves_its_writer_and_refuses_others(seaweed):
    put(seaweed.client(), "k")
    reader = seaweed.client(seaweed.reader_access_key, seaweed.reader_secret_key)
    assert get(reader, "k") == b"body"
    assert refused(put, reader, "k") == (403, "AccessDenied")
    assert refused(get, seaweed.client(secret_key="wrong"), "k") == (403, "SignatureDoesNotMatch")
    assert refused(get, seaweed.client("nobody"), "k") == (403, "InvalidAccessKeyId")


def test_seaweed_stops_and_starts_again_with_its_objects(tmp_path):
    with Seaweed(tmp_path) as server:
        server.make_buckets("bucket")
        put(server.client(), "k")
        server.stop()
        assert server.process.poll() is not None
        server.start()
        assert get(server.client(), "k") == b"body"


def test_without_a_fault_all_goes_through_side_by_side(proxy, through):
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda n: put(through, f"many/{n}", MIB * n), range(10)))
        assert list(pool.map(lambda n: get(through, f"many/{n}"), range(10))) == [MIB * n for n in range(10)]
    assert refused(get, through, "nothing") == (404, "NoSuchKey")
    assert through.head_object(Bucket="bucket", Key="many/2")["ContentLength"] == 2 << 20
    through.delete_object(Bucket="bucket", Key="many/2")
    assert {seen.fault for seen in proxy.seen} == {None}
    assert proxy.seen[-1].line.startswith("DELETE /bucket/many/2")


@pytest.mark.parametrize("fault", [faults.ResetBefore(), faults.ResetDuringUpload(100_000), faults.ResetAfterCommit()], ids=str)
def test_resets_are_resets(seaweed, proxy, through, fault):
    key = type(fault).__name__
    proxy.inject(fault, method="PUT", path=key)
    with pytest.raises(HTTPClientError):
        put(through, key, MIB)
    assert exists(seaweed.client(), key) is (fault == faults.ResetAfterCommit())
    put(through, key, MIB)
    assert [seen.fault for seen in proxy.seen] == [fault, None]
    proxy.inject(faults.ResetBefore())
    with pytest.raises(ConnectionResetError):  # no client library in between: a real RST
        urlopen(proxy.url)


def test_statuses_are_answered_in_the_upstreams_stead(seaweed, proxy, through):
    proxy.inject(faults.Status(503, "SlowDown", retry_after=1), times=2)
    assert refused(put, through, "slow", MIB) == (503, "SlowDown")
    assert refused(get, through, "slow") == (503, "SlowDown")
    assert not exists(seaweed.client(), "slow")


def test_answers_are_damaged_as_asked(proxy, through):
    put(through, "damaged", MIB)
    proxy.inject(faults.Truncate(100_000), method="GET")
    proxy.inject(faults.FlipBit(500_000), method="GET")
    with pytest.raises(ResponseStreamingError):
        get(through, "damaged")
    assert [n for n, (a, b) in enumerate(zip(get(through, "damaged"), MIB, strict=True)) if a != b] == [500_000]
    assert get(through, "damaged") == MIB


def test_hanging_is_longer_than_patience_and_a_delay_is_not(seaweed, proxy, through):
    put(through, "late")
    proxy.inject(faults.Hang(60), method="GET")
    with pytest.raises(ReadTimeoutError):
        get(seaweed.client(endpoint=proxy.url, read_timeout=2), "late")
    proxy.inject(faults.Delay(0.5))
    begun = time.monotonic()
    assert get(through, "late") == b"body"
    assert time.monotonic() - begun >= 0.5


def test_vault_signs_with_the_version_asked_for(monkeypatch):
    with VaultStub() as vault:
        for name, value in vault.environment().items():
            monkeypatch.setenv(name, value)
        transit = hvac.Client().secrets.transit
        transit.create_key("root", key_type="ed25519")
        uri, public = VaultSigner.import_("root")
        transit.rotate_key("root")
        newer, other = VaultSigner.import_("root")
        assert (uri, newer) == ("hv:root/1", "hv:root/2")
        signature = VaultSigner.from_priv_key_uri(uri, public).sign(b"payload")
        public.verify_signature(signature, b"payload")
        with pytest.raises(UnverifiedSignatureError):
            other.verify_signature(signature, b"payload")
        with pytest.raises(hvac.exceptions.InvalidPath):
            VaultSigner.import_("nothing")
        monkeypatch.setenv("VAULT_TOKEN", "wrong")
        with pytest.raises(hvac.exceptions.Forbidden):
            VaultSigner.import_("root")
