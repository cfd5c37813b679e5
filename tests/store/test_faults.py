"""The store behind a network and a server that misbehave: every fault is caused for real, by a proxy before SeaweedFS or by the OCI stub.

`break_once` and `break_for_good` cause a fault in whichever way the back end under test has; the tests say what a user would notice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from akidb_pipelines.errors import IntegrityError, OutsideError
from akidb_pipelines.store.areas import area
from akidb_pipelines.store.objects import AlreadyExistsError, SwapError
from akidb_pipelines.store.remote import RemoteStore
from tests.services import fault_proxy, http_stub
from tests.services.clock import clock
from tests.services.places import Place, oci_place, place_of, seaweed_place, use

ALWAYS = 1000


@dataclass(frozen=True)
class Rig:
    """A store, and how to break what lies between it and its server."""

    store: RemoteStore
    place: Place
    inject: Callable[..., None]
    faults: Any
    """Module with the kinds of fault."""
    settings: Any

    def reset(self) -> Any:
        return self.faults.Reset() if self.faults is http_stub else self.faults.ResetBefore()

    def truncate(self) -> Any:
        return self.faults.Truncate() if self.faults is http_stub else self.faults.Truncate(after_bytes=3)

    def flip(self) -> Any:
        return self.faults.FlipBit() if self.faults is http_stub else self.faults.FlipBit(offset=2)

    def status(self, code: int, s3: str, oci: str) -> Any:
        return self.faults.Status(code, oci if self.faults is http_stub else s3)


@pytest.fixture(params=["s3", "oci"])
def rig(request, tmp_path, monkeypatch):
    impatient(monkeypatch)
    if request.param == "s3":
        place = seaweed_place(request.getfixturevalue("seaweed"))
        with fault_proxy.FaultProxy.before(place.server.endpoint) as proxy:
            place = Place(place.url, {**place.environment, "AWS_ENDPOINT_URL_S3": proxy.url}, place.server)
            use(place, monkeypatch)
            settings = place.settings(tmp_path / "home", store_timeout_s=1)
            yield Rig(area(settings, "artifacts"), place, proxy.inject, fault_proxy, settings)
    else:
        place = oci_place(request.getfixturevalue("oci_stub"), tmp_path)
        use(place, monkeypatch)
        settings = place.settings(tmp_path / "home", store_timeout_s=1)
        yield Rig(area(settings, "artifacts"), place, place.server.inject, http_stub, settings)


def impatient(monkeypatch):
    """The SDKs wait between their tries for up to half a minute; that they do is theirs to test."""
    import time

    nap = SimpleNamespace(sleep=lambda _: time.sleep(0.01), time=time.time)
    monkeypatch.setattr("botocore.endpoint.time", nap)
    monkeypatch.setattr("oci.retry.retry.time", nap)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def large(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1 << 20) * 40)
    return path, sha256(path.read_bytes())


# --- writing


def test_a_reset_before_a_write_is_tried_again(rig):
    rig.inject(rig.reset(), method="PUT", times=2)
    rig.store.create("k", b"data")
    assert rig.store.read("k") == b"data"


def test_a_reset_in_the_middle_of_an_upload_is_tried_again(seaweed, tmp_path, monkeypatch):
    impatient(monkeypatch)
    place = seaweed_place(seaweed)
    with fault_proxy.FaultProxy.before(seaweed.endpoint) as proxy:
        use(Place(place.url, {**place.environment, "AWS_ENDPOINT_URL_S3": proxy.url}), monkeypatch)
        store = area(place.settings(tmp_path / "home"), "artifacts")
        proxy.inject(fault_proxy.ResetDuringUpload(after_bytes=1 << 20), method="PUT", path="partNumber=2", times=2)
        proxy.inject(fault_proxy.ResetDuringUpload(after_bytes=1000), method="PUT", path="/small")
        path, digest = large(tmp_path)
        store.create("large", path, sha256=digest)
        store.create("small", os.urandom(5000))
        assert sum(seen.fault is not None for seen in proxy.seen) == 3
        store.fetch("large", tmp_path / "out", sha256=digest, size_bytes=path.stat().st_size)


def test_a_create_whose_answer_was_lost_sees_its_own_success(rig):
    """The SDK repeats the write, and the server refuses it: because it is there already, by ourselves."""
    rig.inject(rig.faults.ResetAfterCommit(), method="PUT")
    rig.store.create("k", b"data")
    assert rig.store.read("k") == b"data"
    rig.inject(rig.faults.ResetAfterCommit(), method="PUT")
    with pytest.raises(AlreadyExistsError):
        rig.store.create("k", b"other")


def test_a_swap_whose_answer_was_lost_sees_its_own_success(rig):
    rig.inject(rig.faults.ResetAfterCommit(), method="PUT")
    rig.store.swap("p", b"1", None)
    rig.inject(rig.faults.ResetAfterCommit(), method="PUT")
    rig.store.swap("p", b"2", b"1")
    assert rig.store.read("p") == b"2"


def test_a_swap_that_another_made_with_the_same_bytes_is_not_ours(rig, monkeypatch):
    """Both saw `1` and wrote `2`: one of them counted, the other must hear that it did not."""
    rig.store.swap("p", b"1", None)
    put = rig.store.bucket.put

    def overtaken(key, data, digest, **conditions):
        monkeypatch.setattr(rig.store.bucket, "put", put)
        area(rig.settings, "artifacts").swap("p", b"2", b"1")
        put(key, data, digest, **conditions)

    monkeypatch.setattr(rig.store.bucket, "put", overtaken)
    with pytest.raises(SwapError):
        rig.store.swap("p", b"2", b"1")


def test_an_upload_in_parts_whose_last_answer_was_lost_sees_its_own_success(rig, tmp_path):
    path, digest = large(tmp_path)
    commit = "uploadId=" if rig.faults is fault_proxy else "/u/large"
    rig.inject(rig.faults.ResetAfterCommit(), method="POST", path=commit)
    rig.store.create("large", path, sha256=digest)
    rig.store.fetch("large", tmp_path / "out", sha256=digest, size_bytes=path.stat().st_size)
    assert list(rig.store.unfinished()) == []


def test_an_upload_that_another_finished_first_is_a_no_op(rig, tmp_path, monkeypatch):
    path, digest = large(tmp_path)
    commit = rig.store.bucket.commit

    def overtaken(upload, parts):
        monkeypatch.setattr(rig.store.bucket, "commit", commit)
        other = area(rig.settings, "artifacts")
        monkeypatch.setattr(other.bucket, "uploads", lambda _: iter(()))
        other.create("large", path, sha256=digest)
        commit(upload, parts)

    monkeypatch.setattr(rig.store.bucket, "commit", overtaken)
    rig.store.create("large", path, sha256=digest)
    assert list(rig.store.unfinished()) == []


@pytest.mark.parametrize(
    ("code", "s3", "oci"), [(503, "SlowDown", "ServiceUnavailable"), (429, "TooManyRequests", "TooManyRequests")]
)
def test_a_storm_that_passes_is_waited_for(rig, code, s3, oci):
    rig.inject(rig.status(code, s3, oci), times=4)
    rig.store.create("k", b"data")
    rig.inject(rig.status(code, s3, oci), times=4)
    assert rig.store.read("k") == b"data"


@pytest.mark.parametrize(
    ("code", "s3", "oci"), [(503, "SlowDown", "ServiceUnavailable"), (429, "TooManyRequests", "TooManyRequests")]
)
def test_a_storm_that_does_not_pass_is_said_with_what_to_do(rig, code, s3, oci):
    rig.inject(rig.status(code, s3, oci), times=ALWAYS)
    with pytest.raises(OutsideError, match="storing k") as caught:
        rig.store.create("k", b"data")
    assert "try again later" in caught.value.hint


def test_a_server_that_is_silent_once_is_asked_again(rig):
    rig.inject(rig.faults.Hang(3), method="PUT")
    rig.store.create("k", b"data")
    rig.inject(rig.faults.Hang(3), method="GET")
    assert rig.store.read("k") == b"data"


def test_a_server_that_stays_silent_is_said(rig):
    rig.inject(rig.faults.Hang(3), times=ALWAYS)
    with pytest.raises(OutsideError) as caught:
        rig.store.read("k")
    assert "AKIDB_STORE_TIMEOUT_S" in caught.value.hint


# --- reading


def test_a_cut_answer_is_read_anew(rig, tmp_path):
    rig.store.create("k", b"0123456789")
    rig.inject(rig.truncate(), method="GET", times=2)
    assert rig.store.read("k") == b"0123456789"
    rig.inject(rig.truncate(), method="GET", times=2)
    rig.store.fetch("k", tmp_path / "out", sha256=sha256(b"0123456789"), size_bytes=10)
    assert (tmp_path / "out").read_bytes() == b"0123456789"


def test_answers_that_are_always_cut_are_said(rig, tmp_path):
    rig.store.create("k", b"0123456789")
    rig.inject(rig.truncate(), method="GET", times=ALWAYS)
    with pytest.raises(OutsideError, match="cut") as caught:
        rig.store.read("k")
    assert "proxies on the way" in caught.value.hint
    with pytest.raises(OutsideError, match="cut"):
        rig.store.fetch("k", tmp_path / "out", sha256=sha256(b"0123456789"), size_bytes=10)


def test_a_flipped_bit_is_refused(rig, tmp_path):
    rig.store.create("k", b"0123456789")
    rig.inject(rig.flip(), method="GET")
    with pytest.raises(IntegrityError, match="has digest"):
        rig.store.fetch("k", tmp_path / "out", sha256=sha256(b"0123456789"), size_bytes=10)


def test_an_object_shorter_than_its_manifest_says_is_refused(rig, tmp_path):
    rig.store.create("k", b"0123")
    with pytest.raises(IntegrityError, match="has 4 bytes, its manifest says 10"):
        rig.store.fetch("k", tmp_path / "out", sha256=sha256(b"0123456789"), size_bytes=10)


def test_one_bad_part_of_a_large_object_is_refused(rig, tmp_path):
    path, digest = large(tmp_path)
    rig.store.create("large", path, sha256=digest)
    rig.inject(rig.flip(), method="GET")
    with pytest.raises(IntegrityError, match="has digest"):
        rig.store.fetch("large", tmp_path / "out", sha256=digest, size_bytes=path.stat().st_size)


# --- what is set up wrong


@pytest.mark.parametrize("kind", ["s3", "oci"])
def test_a_wrong_clock_is_named_with_how_far_it_is_off(kind, request, cli, tmp_path):
    """The whole command runs an hour behind, as on a machine whose battery died."""
    place = place_of(kind, request, tmp_path)
    done = cli("store", "doctor", place.url, "--json", env={**place.environment, **clock("-1h")})
    assert done.code == 3, done.err
    (first, *_) = json.loads(done.out)["findings"]
    assert "set this machine's clock" in first["to_do"]
    assert "360" in first["to_do"] or "359" in first["to_do"]


def test_a_wrong_secret_is_named(seaweed, tmp_path, monkeypatch):
    place = seaweed_place(seaweed)
    use(Place(place.url, {**place.environment, "AWS_SECRET_ACCESS_KEY": "wrong"}), monkeypatch)
    with pytest.raises(OutsideError, match="SignatureDoesNotMatch") as caught:
        area(place.settings(tmp_path / "home"), "artifacts").create("k", b"x")
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.hint
    use(Place(place.url, {**place.environment, "AWS_ACCESS_KEY_ID": "nobody"}), monkeypatch)
    with pytest.raises(OutsideError, match="InvalidAccessKeyId") as caught:
        area(place.settings(tmp_path / "home"), "artifacts").create("k", b"x")
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_a_wrong_oci_key_is_named(oci_stub, tmp_path, monkeypatch):
    from tests.services.oci_stub import OciStub

    place = oci_place(oci_stub, tmp_path)
    (tmp_path / "other").mkdir()
    with OciStub() as other:
        use(Place(place.url, {"OCI_CONFIG_FILE": str(other.config_file(tmp_path / "other"))}), monkeypatch)
        with pytest.raises(OutsideError, match="NotAuthenticated") as caught:
            area(place.settings(tmp_path / "home"), "artifacts").create("k", b"x")
    assert "fingerprint" in caught.value.hint
    assert "opc-request-id" in caught.value.message


def test_someone_who_may_only_read_is_told_when_writing(seaweed, tmp_path, monkeypatch):
    place = seaweed_place(seaweed)
    reader = {"AWS_ACCESS_KEY_ID": seaweed.reader_access_key, "AWS_SECRET_ACCESS_KEY": seaweed.reader_secret_key}
    use(Place(place.url, {**place.environment, **reader}), monkeypatch)
    store = area(place.settings(tmp_path / "home"), "artifacts")
    for write in (lambda: store.create("k", b"x"), lambda: store.delete(["k"]), lambda: store.swap("k", b"x", None)):
        with pytest.raises(OutsideError, match=r"AccessDenied|403") as caught:
            write()
        assert "credentials may not" in caught.value.hint


def test_a_missing_bucket_is_named_with_what_makes_it(rig):
    settings = rig.settings.model_copy(update={"store": rig.place.url.rpartition("/")[0] + "/not-there"})
    store = area(settings, "artifacts")
    for verb in (lambda: store.create("k", b"x"), lambda: store.read("k"), lambda: list(store.list(""))):
        with pytest.raises(OutsideError, match=r"(?i)bucket") as caught:
            verb()
        assert "registry init" in caught.value.hint


def test_a_server_that_is_not_there_is_said(tmp_path, monkeypatch):
    impatient(monkeypatch)
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    from akidb_pipelines.settings import Settings

    with pytest.raises(OutsideError, match=r"127\.0\.0\.1:9") as caught:
        area(Settings(home=tmp_path, store="s3://none"), "artifacts").read("k")
    assert "AWS_ENDPOINT_URL_S3" in caught.value.hint


def test_without_credentials_it_says_which_to_set(tmp_path, monkeypatch):
    from akidb_pipelines.settings import Settings

    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(OutsideError) as caught:
        area(Settings(home=tmp_path, store="s3://none"), "artifacts").read("k")
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_a_certificate_that_is_not_trusted_is_said(s3_rules, tmp_path, monkeypatch):
    from tests.services.places import rules_place

    impatient(monkeypatch)
    place = rules_place(s3_rules)
    use(Place(place.url, {k: v for k, v in place.environment.items() if k != "AWS_CA_BUNDLE"}), monkeypatch)
    with pytest.raises(OutsideError) as caught:
        area(place.settings(tmp_path / "home"), "artifacts").read("k")
    assert "AWS_CA_BUNDLE" in caught.value.hint


def test_the_disk_that_is_fetched_to_fills(rig, tmp_path, small_disk):
    path, digest = large(tmp_path)
    rig.store.create("large", path, sha256=digest)
    with pytest.raises(OutsideError, match="No space left") as caught:
        rig.store.fetch("large", small_disk / "out", sha256=digest, size_bytes=path.stat().st_size)
    assert "free some space" in caught.value.hint
