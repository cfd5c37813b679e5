"""`make bench`: every comparison, one line each, as it is measured; `python -m bench registry` runs that part alone."""

from __future__ import annotations

import sys
import tempfile
from itertools import chain
from pathlib import Path

from bench import backups, checks, costs, drills, fixtures, images, loading, operations, registry, runners


def main() -> None:
    """Print the lines; ends with 1 when a goal is missed."""
    missed = 0
    with tempfile.TemporaryDirectory(prefix="akidb-bench-", dir=_room()) as folder:
        work = Path(folder)
        # fixtures first: its load.db is what the checks read.
        parts = {
            "loading": loading.lines,
            "fixtures": lambda: chain(fixtures.lines(work), checks.lines(work / "load.db")),
            "registry": lambda: registry.lines(work),
            "images": lambda: images.lines(work),
            "runners": lambda: runners.lines(work),
            "backups": lambda: backups.lines(work),
            "drills": lambda: drills.lines(work),
            "costs": lambda: costs.lines(work),
            "operations": operations.lines,
        }
        for line in chain.from_iterable(parts[name]() for name in sys.argv[1:] or parts):
            missed += line.met is False
            mark = {True: "ok", False: "MISSED", None: ""}[line.met]
            print(
                f"{mark:<6} {line.what:<52} {line.measured:>16}  goal {line.goal:<10} {line.detail}",
                flush=True,
            )
    sys.exit(1 if missed else 0)


def _room() -> Path:
    """Beside the other state, not in /tmp, which may be small or in memory."""
    room = Path("var") / "bench"
    room.mkdir(parents=True, exist_ok=True)
    return room


if __name__ == "__main__":
    main()
