"""Drills on a real Swarm: each scenario ends as it must, and whatever stops a drill, the lab is whole again afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from akidb_pipelines.backups.terraform import parse_state
from akidb_pipelines.drills.desk import Desk
from akidb_pipelines.drills.drill import Limits, Request
from akidb_pipelines.drills.journal import Cabinet, Journal
from akidb_pipelines.drills.report import PhaseRecord, markdown
from akidb_pipelines.drills.scenarios import DEADLINES, SCENARIOS, Phase, scenario_named
from akidb_pipelines.drills.target import Node
from akidb_pipelines.drills.undo import Undoing
from akidb_pipelines.errors import OutsideError
from akidb_pipelines.lab.swarm.lab import NODES
from akidb_pipelines.lab.swarm.target import LabTarget
from akidb_pipelines.lab.swarm.targets import targets
from akidb_pipelines.store.lease import BusyError
from tests.services.swarm_lab import SwarmForTests

STOPPING = (Phase.DETECT,)
"""Where a drill is stopped in `make test`; in `make test-all` everywhere."""


def desk_of(swarm: SwarmForTests, limits: Limits | None = None) -> Desk:
    from akidb_pipelines.drills.desk import open_desk

    return open_desk(swarm.settings, targets(swarm.settings), limits)


def request(name: str = "node_power_off", **more: object) -> Request:
    return Request(scenario_named(name), "tester", **more)


@pytest.fixture
def desk(swarm) -> Desk:
    desk = desk_of(swarm)
    assert not desk.cabinet.unfinished()
    return desk


# --- scenarios


@pytest.fixture(scope="module")
def self_test(swarm) -> dict[str, object]:
    """Every scenario, one after the other, on one lab."""
    return {done.scenario: done for done in desk_of(swarm).self_test(operator="tester")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_ends_as_it_must(self_test, name):
    done = self_test[name]
    assert done.as_expected, f"{done.verdict}: {done.reason}"
    assert done.verdict == SCENARIOS[name].expected
    assert [p.phase for p in done.phases if p.status == "ok"] == [p for p in SCENARIOS[name].phases if p is not Phase.REPORT]
    assert done.criterion("undo_complete").ok


@pytest.mark.slow
def test_what_is_measured_was_measured(self_test):
    """RTA is shorter than the outage plus a second, RPA is the age of the backup, rows are counted."""
    done = self_test["node_power_off"]
    assert 0 < done.rta_s < 120 and 0 < done.rpa_s < 300
    assert abs(done.service_outage_s - done.rta_s) < 5
    assert done.rows_acknowledged > 10 and done.rows_missing == 0
    assert 0 < done.rows_lost["akidb_canary"] < done.rows_acknowledged, "what was written before the backup is not lost"
    assert done.quorum_before == done.quorum_after == "3 of 3 managers healthy"
    assert done.versions["docker"]


@pytest.mark.slow
def test_a_damaged_copy_is_refused_by_the_node_and_the_backup_before_it_is_used(self_test):
    done = self_test["volume_corruption"]
    (refused,) = done.backup.refused
    assert "what was brought back has digest" in refused and not refused.startswith(done.backup.id)
    assert any("was refused" in f for f in done.findings) and done.corrective_actions


@pytest.mark.slow
def test_a_backup_that_is_too_old_fails_the_drill_for_that_reason_alone(self_test):
    done = self_test["stale_backup"]
    assert [c.name for c in done.criteria if not c.ok] == ["rpo"]
    assert done.rpa_s > done.rpo_target_s


@pytest.mark.slow
def test_the_report_is_kept_here_in_the_catalog_and_in_cold_storage(self_test, swarm):
    done, desk = self_test["node_power_off"], desk_of(swarm)
    assert desk.report(done.drill_id) == done
    assert json.loads(desk.depot.cold.read(f"drills/{done.drill_id}/report.json")) == json.loads(done.to_json())
    assert desk.picture(done.drill_id).read_bytes().startswith(b"\x89PNG")
    row = next(d for d in desk.depot.catalog.drills() if d.drill_id == done.drill_id)
    assert (row.verdict, row.report_sha256, row.target) == ("passed", done.sha256, "lab")
    text = markdown(done)
    assert "no proof for staging" in text and done.backup.sha256 in text and "reconstitution" in text
    (desk.cabinet.folder / done.drill_id / "report.json").unlink()
    assert desk.report(done.drill_id) == done, "from cold storage"


@pytest.mark.slow
def test_the_lab_is_whole_after_all_of_them(self_test, swarm):
    swarm.expect_whole()


def test_a_report_that_cannot_be_kept_elsewhere_is_told_and_kept_later(desk, swarm):
    place = Path(desk.depot.cold.root) / "drills"
    aside = place.with_name("aside")
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(aside)
    place.write_text("in the way")
    known = set(desk.cabinet.ids())
    try:
        with pytest.raises(OutsideError, match=r"passed; its report lies in .*, and could not be kept elsewhere"):
            desk.run("lab", request("lost_terraform_state"))
    finally:
        place.unlink()
        if aside.exists():
            aside.rename(place)
    (new,) = set(desk.cabinet.ids()) - known
    assert new not in [d.drill_id for d in desk.depot.catalog.drills()] and not desk.cabinet.unfinished()
    desk.recover()
    assert new in [d.drill_id for d in desk.depot.catalog.drills()] and (place / new / "report.json").exists()


# --- guards, on the real thing


def test_a_dry_run_touches_nothing(desk, swarm):
    done = desk.run("lab", request(dry_run=True))
    assert done.verdict == "dry_run" and done.fault_at == "" and "inject, detect" in done.reason
    swarm.expect_whole()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("cluster: ", "cluster: another"), "guard allow-list: this is cluster"),
        (lambda text: text.replace("staging-lab-", "other-"), "guard one-target: 0 nodes may be touched"),
    ],
    ids=["another cluster", "not in the list"],
)
def test_what_the_allow_list_does_not_name_is_not_touched(desk, swarm, change, told):
    path = swarm.target.allow_list()
    before = path.read_text()
    path.write_text(change(before))
    try:
        done = desk.run("lab", request())
    finally:
        path.write_text(before)
    assert done.verdict == "aborted" and told in done.reason and done.fault_at == ""


def test_a_node_without_the_tag_is_not_touched(desk, swarm):
    with swarm.target._manager() as client:
        (member,) = [m for m in client.nodes.list() if m.attrs["Description"]["Hostname"] == "staging-lab-3"]
        spec = member.attrs["Spec"]
        member.update({**spec, "Labels": {}})
        try:
            done = desk.run("lab", request(node="staging-lab-3"))
        finally:
            member.reload()
            member.update(spec)
    assert done.verdict == "aborted" and "its tag akidb-drill is not there" in done.reason


def test_a_journal_whose_line_was_cut_short_can_still_be_ended(tmp_path):
    """A full disk, or power that went: neither the half line nor what follows it may keep drills from ever beginning again."""
    journal = Journal(tmp_path)
    journal.write("begin", target="lab")
    with (tmp_path / "journal.jsonl").open("a") as out:
        out.write('{"event": "un')
    assert not journal.is_finished
    journal.write("end")
    assert journal.is_finished and [line["event"] for line in journal.lines()] == ["begin", "end"]


def test_drills_that_begin_in_the_same_second_have_reports_of_their_own(tmp_path):
    now = datetime.now(UTC)
    names = {Cabinet(tmp_path / here).begin("lab", "node_power_off", now).folder.name for here in ("one", "two", "three")}
    assert len(names) == 3


def test_two_drills_at_once_are_refused(desk):
    with desk.cabinet.only_one(), pytest.raises(BusyError, match="another drill is under way"):
        desk.run("lab", request(dry_run=True))


def test_a_state_that_has_no_copy_is_not_lost(desk, swarm, monkeypatch):
    """Truncated, it is no state; nothing is removed."""
    path = swarm.target.terraform_state()
    before = path.read_bytes()
    path.write_bytes(before[:-40])
    try:
        done = desk.run("lab", request("lost_terraform_state"))
    finally:
        path.write_bytes(before)
    assert done.verdict == "aborted" and "no Terraform state, or not all of one" in done.reason
    assert parse_state(path.read_bytes(), "x").serial == 3


# --- stopped on the way


def _at(phase: Phase, what) -> object:
    """A watcher that does something when a phase begins."""

    def watch(record: PhaseRecord) -> None:
        if record.phase == phase and record.status == "running":
            what()

    return watch


@pytest.mark.slow
@pytest.mark.parametrize("phase", STOPPING)
def test_the_kill_switch_stops_a_drill_and_everything_is_put_right(desk, swarm, phase):
    try:
        done = desk.run("lab", request(), _at(phase, desk.cabinet.stop_file.touch))
    finally:
        desk.cabinet.stop_file.unlink(missing_ok=True)
    assert done.verdict == "aborted" and "kill switch" in done.reason
    assert [u.action for u in done.undo] == ["power_on"] and all(u.ok for u in done.undo)
    swarm.expect_whole()


def test_while_the_kill_switch_is_thrown_no_drill_begins(desk):
    desk.cabinet.stop_file.touch()
    try:
        done = desk.run("lab", request())
    finally:
        desk.cabinet.stop_file.unlink()
    assert done.verdict == "aborted" and done.phases == () and "rm " in done.corrective_actions[0]


@pytest.mark.slow
def test_a_phase_that_takes_too_long_fails_the_drill_and_everything_is_put_right(swarm):
    desk = desk_of(swarm, Limits(deadlines={**DEADLINES, Phase.DETECT: 0.5}))
    done = desk.run("lab", request())
    assert done.verdict == "failed" and "detect took longer than 0.5 s, waiting for staging-lab" in done.reason
    assert done.criterion("undo_complete").ok
    swarm.expect_whole()


def test_a_drill_that_takes_too_long_as_a_whole_is_stopped(swarm):
    done = desk_of(swarm, Limits(time_box_s=0.0)).run("lab", request())
    assert done.verdict == "aborted" and "the whole drill took longer than 0 s" in done.reason


@pytest.mark.slow
def test_a_backup_that_is_lost_or_damaged_meanwhile_is_refused_and_the_one_before_it_is_used(desk, swarm):
    """It was verified when the drill began."""
    desk.run("lab", request(node="staging-lab-3", dry_run=True))
    first = desk.depot.take(swarm.target.database("staging-lab-3"))
    assert not [r for r in desk.depot.run_checks(first) if r.holds_back]

    def damage() -> None:
        newest = desk.depot.find("staging-lab-3-metadata")
        path = Path(desk.depot.cold.root) / newest.key.data
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    done = desk.run("lab", request(node="staging-lab-3"), _at(Phase.REBUILD, damage))
    assert done.verdict == "passed", done.reason
    assert done.backup.id == first.id and "its manifest says" in done.backup.refused[0]
    assert done.rows_lost["akidb_canary"] > 0
    swarm.expect_whole()


def _begin(swarm: SwarmForTests) -> subprocess.Popen[str]:
    environment = {**os.environ, "AKIDB_HOME": str(swarm.home)}
    command = [sys.executable, "-m", "akidb_pipelines", "drills", "run", "--json"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(swarm: SwarmForTests, phase: Phase, known: set[str]) -> None:
    """Until a drill that is not known yet has begun a phase."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        for path in (swarm.home / "drills").glob("*/journal.jsonl"):
            if path.parent.name not in known and f'"event": "phase", "phase": "{phase}"' in path.read_text():
                return
        time.sleep(0.02)
    raise AssertionError(f"no drill came to {phase}")


KILLED = [p for p in Phase if p is not Phase.REPORT]


@pytest.mark.slow
@pytest.mark.parametrize("phase", [pytest.param(p, marks=[] if p is Phase.EVICT else pytest.mark.exhaustive) for p in KILLED])
def test_a_drill_that_was_killed_is_put_right_by_recover(swarm, desk, phase):
    known = set(desk.cabinet.ids())
    with _begin(swarm) as process:
        _wait_for(swarm, phase, known)
        process.send_signal(signal.SIGKILL)
    with pytest.raises(BusyError, match="was interrupted and is not undone"):
        desk.run("lab", request())
    ((_, records),) = desk.recover()
    assert all(r.ok for r in records), records
    assert not desk.cabinet.unfinished() and desk.recover() == []
    (new,) = set(desk.cabinet.ids()) - known
    assert desk.report(new).reason == f"it was killed in {phase}, and put right by recover"
    swarm.expect_whole()


@pytest.mark.exhaustive
def test_a_drill_that_is_told_to_end_puts_everything_right_itself(swarm, desk):
    known = set(desk.cabinet.ids())
    with _begin(swarm) as process:
        _wait_for(swarm, Phase.RESCHEDULE, known)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert not desk.cabinet.unfinished()
    (new,) = set(desk.cabinet.ids()) - known
    done = desk.report(new)
    assert done.verdict == "aborted" and "interrupted" in done.reason and all(u.ok for u in done.undo)
    swarm.expect_whole()


def test_nothing_is_put_right_before_the_node_counts_for_the_quorum_again(swarm, desk, tmp_path):
    """A manager is ready a moment before it is reachable: whoever loses another one in that moment loses the cluster."""

    class Rejoining(LabTarget):
        is_reachable = False

        def nodes(self) -> list[Node]:
            return [replace(n, reachable=n.reachable and (self.is_reachable or n.name != NODES[1])) for n in super().nodes()]

    target = Rejoining(swarm.lab)
    journal = Journal(tmp_path)
    journal.write("undo", action="power_on", node=NODES[1])
    undoing = Undoing(target, desk.depot, desk.states, journal, patience_s=1)
    (early,) = undoing.all()
    assert not early.ok and f"{NODES[1]} did not become ready, and as a manager reachable, within 1 s" in early.found
    target.is_reachable = True
    (done,) = undoing.all()
    assert done.ok, done.found


def test_a_survivor_that_is_slow_once_is_not_made_a_cluster_of_its_own(swarm, monkeypatch):
    """One lost node of three takes no quorum along."""
    before = swarm.target.cluster_id(), sorted(n.id for n in swarm.target.nodes())
    monkeypatch.setattr(LabTarget, "_can_say", lambda *_: False)
    swarm.target.reform(NODES[0], [NODES[2]])
    assert (swarm.target.cluster_id(), sorted(n.id for n in swarm.target.nodes())) == before
    swarm.expect_whole()


@pytest.mark.exhaustive
def test_ten_drills_in_a_row_are_green(swarm, desk):
    for _ in range(10):
        done = desk.run("lab", request())
        assert done.verdict == "passed", done.reason
    swarm.expect_whole()


# --- without a lab


def test_without_an_engine_it_says_how_to_start_one(cli):
    with tempfile.TemporaryDirectory(prefix="akidb-") as home:
        told = cli("drills", "run", env={"AKIDB_HOME": home, "AKIDB_LAB_DOCKER_HOST": "unix:///nowhere/docker.sock"})
        assert not list(Path(home).glob("lab/*")), "nothing to remember"
    assert told.code == 3 and "does not answer" in told.err and "systemctl start docker" in told.err


def test_a_home_whose_path_is_too_long_for_a_socket_says_so(cli, tmp_path):
    home = str(tmp_path / ("h" * 100))
    told = cli("lab", "up", "swarm", env={"AKIDB_HOME": home, "AKIDB_LAB_DOCKER_HOST": "unix:///nowhere/docker.sock"})
    assert told.code == 3 and "longer than 107 characters" in told.err and "AKIDB_HOME" in told.err


def test_asking_a_lab_that_is_not_up_says_so(settings):
    from akidb_pipelines.lab.swarm.open import open_swarm

    with pytest.raises(OutsideError, match="the Swarm lab is not up"):
        open_swarm(settings).address(NODES[0])
