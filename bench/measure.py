"""Running a piece of work in a process of its own, and what it took: CPU seconds and peak memory, by the operating system's count."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from statistics import median
from typing import Any

_FRAME = """
import json, resource, sys, time
{setup}
_before = resource.getrusage(resource.RUSAGE_SELF)
_wall = time.perf_counter()
{work}
_after = resource.getrusage(resource.RUSAGE_SELF)
_cpu = _after.ru_utime + _after.ru_stime - _before.ru_utime - _before.ru_stime
_wall = time.perf_counter() - _wall
# A process started from a larger one inherits that one's ru_maxrss (getrusage(2)); the kernel's own mark of this address space does not.
_status = open("/proc/self/status").read() if sys.platform == "linux" else ""
_mark = [line for line in _status.splitlines() if line.startswith("VmHWM")]
_rss = int(_mark[0].split()[1]) / 1024 if _mark else _after.ru_maxrss / 1024
_told = {{"cpu_s": _cpu, "wall_s": _wall, "rss_mb": _rss}}
print("RESULT" + json.dumps({{**_told, "value": globals().get("value")}}))
"""


@dataclass(frozen=True)
class Took:
    """What a piece of work took."""

    cpu_s: float
    wall_s: float
    rss_mb: float
    """Peak of the process, imports included."""
    value: Any = None
    """What the work left in a variable `value`."""


def measure(work: str, setup: str = "", *, runs: int = 1) -> Took:
    """Run Python text in fresh processes; the median run by CPU. Imports belong into `setup`, which is not counted."""
    taken = []
    for _ in range(runs):
        command = [sys.executable, "-W", "ignore", "-c", _FRAME.format(setup=setup, work=work)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT")), None)
        if line is None:
            raise SystemExit(f"bench: a measured process failed\n{done.stderr}")
        taken.append(Took(**json.loads(line.removeprefix("RESULT"))))
    middle = median(t.cpu_s for t in taken)
    return min(taken, key=lambda t: abs(t.cpu_s - middle))


@dataclass(frozen=True)
class Line:
    """One comparison."""

    what: str
    measured: str
    goal: str
    met: bool | None
    """None where there is no goal."""
    detail: str = ""
