"""All sensors of ours in a real daemon: each is evaluated and none fails, on a machine where nothing is configured."""

from __future__ import annotations

import pytest
from dagster._core.scheduler.instigation import InstigatorType, TickStatus

from akidb_pipelines.definitions import build_defs
from tests.services.dagster_machine import DagsterMachine, wait
from tests.services.server import ROOT

CODE = "from akidb_pipelines.definitions import build_defs\n\ndefs = build_defs()\n"


@pytest.mark.slow
def test_every_sensor_is_evaluated_by_the_daemon_and_none_fails(tmp_path):
    code = tmp_path / "ours.py"
    code.write_text(CODE)
    with DagsterMachine(tmp_path / "machine", (ROOT / "dagster.yaml").read_text(), code, roles=("code", "daemon")) as machine:
        ours = {s.name for s in build_defs().sensors}

        def ticks():
            """Of each sensor those that have ended."""
            states = machine.instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
            found = {s.name: machine.instance.get_ticks(s.instigator_origin_id, s.selector_id) for s in states}
            return {name: [t for t in ts if t.status is not TickStatus.STARTED] for name, ts in found.items()}

        # Once more for the one that looks at how the others fare.
        wait(lambda: ours <= {n for n, ts in ticks().items() if ts} and len(ticks()["alerts"]) > 1)
        assert {name: t.error for name, ts in ticks().items() for t in ts if t.status is TickStatus.FAILURE} == {}
