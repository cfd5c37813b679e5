"""One publisher at a time, and what happens when one is slow, dead or overtaken."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from akidb_pipelines.settings import Settings
from akidb_pipelines.store import lease, metadata
from akidb_pipelines.store.lease import BusyError
from akidb_pipelines.store.local import LocalStore
from akidb_pipelines.store.publisher import open_publisher
from tests.services.places import KIND, content, pull


def test_a_second_publisher_waits_for_the_first(publisher, tmp_path):
    publisher.init()
    told = []
    with lease.hold(publisher.registry.channels, "publishing", "run-1"):
        thread = threading.Thread(
            target=lambda: publisher.publish(
                *content(tmp_path / "a", "2026-W47", db=b"data"), report=lambda p: told.append(p.stage)
            )
        )
        thread.start()
        time.sleep(0.5)
        assert publisher.index().names(KIND) == []
    thread.join(30)
    assert publisher.index().names(KIND) == ["2026-W47"]
    assert "waiting for publishing (run run-1" in told[0]


def test_a_publisher_that_waits_in_vain_says_for_whom(publisher, tmp_path):
    publisher.init()
    with lease.hold(publisher.registry.channels, "publishing", "run-1"):
        impatient = replace(publisher, patience_s=0.1)
        with pytest.raises(BusyError, match="run run-1") as caught:
            impatient.publish(*content(tmp_path / "a", "2026-W47", db=b"data"))
    assert "readers are not concerned" in caught.value.hint


def held_by(publisher, process, **times):
    now = datetime.now(UTC)
    held = lease.Lease("publishing", "run-1", process, "n", now.isoformat(), (now + timedelta(**times)).isoformat())
    before = publisher.registry.channels.read(lease.KEY)
    publisher.registry.channels.swap(lease.KEY, held.to_json(), before)


@pytest.mark.parametrize("minutes", [-1, 60 * 24 * 365], ids=["ran out", "taken by a clock a year ahead"])
def test_a_lease_that_does_not_count_any_more_is_taken_over(publisher, tmp_path, minutes):
    publisher.init()
    held_by(publisher, "otherhost.1", minutes=minutes)
    assert replace(publisher, patience_s=0.1).publish(*content(tmp_path / "a", "2026-W47", db=b"data")).created


def test_a_lease_that_is_none_stops_nobody(publisher, tmp_path):
    publisher.init()
    for junk in (
        b"no json",
        b"{}",
        b'{"purpose": "x", "run_id": "", "process": "x", "nonce": "", "taken_at": "?", "expires_at": "?"}',
    ):
        publisher.registry.channels.swap(lease.KEY, junk, publisher.registry.channels.read(lease.KEY))
        publisher.publish(*content(tmp_path / "a", "2026-W47", db=junk))


def test_the_lease_of_a_dead_process_of_this_host_is_taken_over_at_once(publisher, tmp_path):
    from akidb_pipelines.files import process_name

    publisher.init()
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    held_by(publisher, f"{process_name().rpartition('.')[0]}.{dead.pid}", minutes=10)
    assert replace(publisher, patience_s=0.1).publish(*content(tmp_path / "a", "2026-W47", db=b"data")).created


def test_a_publisher_that_slept_past_its_lease_publishes_nothing(publisher, tmp_path):
    """Its lease is taken over while it stores; the other publishes; then it wakes up."""
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    other = open_publisher(Settings(home=tmp_path / "home", store=publisher.registry.url))

    def overtaken(progress):
        if progress.stage == "committing" and not other.index().newest(KIND, "2026-W48"):
            held_by(publisher, "otherhost.1", minutes=-1)
            other.publish(*content(tmp_path / "c", "2026-W48", db=b"fast"))

    with pytest.raises(BusyError, match="lease was lost"):
        publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"slow"), report=overtaken)
    assert publisher.index().names(KIND) == ["2026-W46", "2026-W48"]
    assert publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"slow")).created


def test_of_two_commits_at_once_the_swap_lets_one_through(publisher, tmp_path, monkeypatch):
    """As above, but the lease check comes too early to notice."""
    publisher.publish(*content(tmp_path / "a", "2026-W46", db=b"data"))
    other = open_publisher(Settings(home=tmp_path / "home", store=publisher.registry.url))
    swap = LocalStore.swap

    def overtaken(store, key, data, expected):
        if key == metadata.TIMESTAMP and not other.index().newest(KIND, "2026-W48"):
            monkeypatch.setattr(LocalStore, "swap", swap)
            held_by(publisher, "otherhost.1", minutes=-1)
            other.publish(*content(tmp_path / "c", "2026-W48", db=b"fast"))
        swap(store, key, data, expected)

    monkeypatch.setattr(LocalStore, "swap", overtaken)
    with pytest.raises(BusyError, match="somebody else published meanwhile"):
        publisher.publish(*content(tmp_path / "b", "2026-W47", db=b"slow"))
    assert publisher.index().names(KIND) == ["2026-W46", "2026-W48"]
    assert pull(publisher, tmp_path).id == "2026-W48/r1"
