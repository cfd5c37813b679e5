"""Another time for a process and its children."""

from pathlib import Path


def clock(told: str) -> dict[str, str]:
    """The environment in which it is another time, told as libfaketime is told: `+30d`, `@2026-11-27 12:00:00`.

    The library without its command `faketime`: that leaves a semaphore named by its process id behind, and the next process with that id
    does not start.

    Raises:
        ValueError: libfaketime is not installed (scripts/test-packages).
    """
    (library, *_) = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return {"LD_PRELOAD": str(library), "FAKETIME": told, "FAKETIME_DISABLE_SHM": "1"}
