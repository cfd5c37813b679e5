"""The drills commands as ops call them, on the lab."""

from __future__ import annotations

import pytest

from tests.cli.test_runners import told


@pytest.fixture
def drills(cli, swarm):
    return lambda *arguments: cli("drills", *arguments, env={"AKIDB_HOME": str(swarm.home)})


def test_a_drill_is_run_listed_and_reported(drills):
    done = told(drills("run", "--scenario", "lost_terraform_state", "--json"))
    assert done["verdict"] == "passed" and done["terraform"]["serial_after"] == 3
    assert done["drill_id"] in [d["drill_id"] for d in told(drills("list", "--json"))["drills"]]
    assert told(drills("report", done["drill_id"], "--json")) == done
    text = drills("report", done["drill_id"])
    assert text.code == 0 and f"# DR drill {done['drill_id']}: PASSED" in text.out


def test_a_drill_that_is_stopped_ends_with_1_and_tells_people_why(drills, swarm):
    stop = swarm.home / "drills" / "STOP"
    stop.parent.mkdir(exist_ok=True)
    stop.touch()
    try:
        done = drills("run")
    finally:
        stop.unlink()
    assert done.code == 1 and "kill switch" in done.out and "no proof for staging" in done.out


def test_what_nobody_knows_ends_with_2(drills, cli):
    unknown = drills("run", "--scenario", "meteor")
    assert unknown.code == 2 and "node_power_off" in unknown.err
    assert drills("report", "20200101T000000Z-lab-node_power_off").code == 2
    oci = drills("run", "--target", "oci")
    assert oci.code == 2 and "AKIDB_DRILL_ALLOW_LIST" in oci.err


def test_the_lab_tells_its_nodes(cli, swarm):
    done = cli("lab", "status", "swarm", "--json", env={"AKIDB_HOME": str(swarm.home)})
    assert [n["ready"] for n in told(done)["nodes"]] == [True] * 3
