"""Drills on the Swarm lab: how long it takes to come up, how long a whole drill takes, and what is left when it is down."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

from akidb_pipelines.drills.drill import Request
from akidb_pipelines.drills.scenarios import DEFAULT, scenario_named
from akidb_pipelines.lab.swarm.open import bring_up, open_swarm, seed_database
from akidb_pipelines.lab.swarm.targets import open_drills
from akidb_pipelines.settings import Settings
from bench.measure import Line

_ROUNDS = 3
_LAB_S, _DRILL_S = 30, 40


def lines(work: Path) -> Iterator[Line]:
    del work  # a socket's name must fit into 107 characters
    home = Path(tempfile.mkdtemp(prefix="akidb-"))
    settings = Settings(home=home)
    before = _left()
    ups, downs, drills, rtas = [], [], [], []
    try:
        seed_database(settings)
        for _ in range(_ROUNDS):
            ups.append(_timed(lambda: bring_up(settings)))
            desk = open_drills(settings)
            started = perf_counter()
            done = desk.run("lab", Request(scenario_named(DEFAULT), "bench"))
            drills.append(perf_counter() - started)
            assert done.verdict == "passed" and done.rta_s, done.reason
            rtas.append(done.rta_s)
            downs.append(_timed(open_swarm(settings).down))
    finally:
        open_swarm(settings).down()
        shutil.rmtree(home, ignore_errors=True)
    up, drill = median(ups), median(drills)
    yield Line("Swarm lab up", f"{up:.1f} s", f"<= {_LAB_S} s", up <= _LAB_S, f"down {median(downs):.1f} s")
    detail = f"heartbeat 1 s; RTA {median(rtas):.1f} s; the first with imports {drills[0]:.1f} s"
    yield Line(f"drill {DEFAULT}, with its backup", f"{drill:.1f} s", f"<= {_DRILL_S} s", drill <= _DRILL_S, detail)
    left = _left() - before
    yield Line("left after lab down", f"{len(left)}", "0", not left, ", ".join(sorted(left)) or "no link, mount, control group")


def _timed(work: object) -> float:
    assert callable(work)
    started = perf_counter()
    work()
    return perf_counter() - started


def _left() -> set[str]:
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    groups = Path("/sys/fs/cgroup").rglob("akidb-lab-*")
    return {line.split(":")[1].strip() for line in links.splitlines()} | {m.split()[4] for m in mounts} | {str(g) for g in groups}
