"""Asks a runner what is on it: its tools against the versions that are wanted, its packages, and whether a CI job runs.

This file is sent into images and run there by whatever Python they have: standard library only, 3.8 and later. Ansible runs it while an
image is built; Docker, or Dagster Pipes, in the image that was restored. It prints one JSON object and always ends with 0: what was found is
judged by whoever asked.

    probe.py '{"tools": [{"name": "git", "command": "git --version", "wanted": ">=2.39"}], "smoke": "", "packages": true}'
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_VERSION = re.compile(r"(?<![\w.])v?(\d+(?:\.\d+)+|\d+)")
_RANGE = re.compile(r"\s*(>=|<=|==|>|<)\s*(\d+(?:\.\d+)*)\s*")
_COMMAND_SECONDS = 60
_OUTPUT, _LITTLE = 2000, 200


def version_in(text: str) -> str:
    """The first version number in what a program printed; empty if there is none."""
    match = _VERSION.search(text)
    return match.group(1) if match else ""


def parsed_range(wanted: str) -> list[tuple[str, tuple[int, ...]]]:
    """`>=2.39,<3` as comparisons; empty text as none.

    Raises:
        ValueError: it is not written so.
    """
    found = []
    for part in filter(None, (p.strip() for p in wanted.split(","))):
        match = _RANGE.fullmatch(part)
        if not match:
            raise ValueError(f"{wanted!r} is no range of versions; write it as >=2.39,<3")
        found.append((match.group(1), _numbers(match.group(2))))
    return found


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version lies in a range. Missing numbers count as zeros: 3 is 3.0."""
    have = _numbers(version)
    return all(_compare(have, sign, limit) for sign, limit in parsed_range(wanted))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in version.split("."))


def _compare(have: tuple[int, ...], sign: str, limit: tuple[int, ...]) -> bool:
    longest = max(len(have), len(limit))
    a, b = (n + (0,) * (longest - len(n)) for n in (have, limit))
    return {">=": a >= b, "<=": a <= b, "==": a == b, ">": a > b, "<": a < b}[sign]


def ask(tool: dict[str, str]) -> dict[str, Any]:
    """Run a tool's command and judge what it prints."""
    code, output = _run(tool["command"], _COMMAND_SECONDS)
    found = version_in(output) if code == 0 else ""
    ok = bool(found) and satisfies(found, tool["wanted"])
    return dict(tool, found=found, ok=ok, output=output[: _LITTLE if ok else _OUTPUT])


def judged(tool: dict[str, Any]) -> str:
    """What was asked of a tool, as people read it: which, wanted, found."""
    found = tool["found"] or ("nothing: " + (tool["output"].strip().splitlines() or ["it printed nothing"])[-1])
    return f"{tool['name']}: wanted {tool['wanted'] or 'any version'}, found {found}"


def packages() -> dict[str, str]:
    """Installed packages and their versions: dpkg's, or Homebrew's."""
    for command in ("dpkg-query -W -f '${Package} ${Version}\\n'", "brew list --versions"):
        code, output = _run(command, _COMMAND_SECONDS)
        if code == 0 and output.strip():
            return dict(line.split(" ", 1) for line in output.splitlines() if " " in line)
    return {}


def smoke(script: str, seconds: int) -> dict[str, Any]:
    """Run a CI job in an empty folder, as a shell script that stops at its first failure."""
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.sh"
        job.write_text(script)
        code, output = _run(f"HOME={folder} sh -eu {job}", seconds, folder)
    return {"ok": code == 0, "code": code, "output": output[-_OUTPUT:], "seconds": round(time.time() - started, 2)}


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """All that a request asks."""
    tools = [ask(tool) for tool in request.get("tools", [])]
    job = smoke(request["smoke"], request.get("smoke_seconds", 300)) if request.get("smoke") else None
    return {
        "tools": tools,
        "problems": [judged(tool) for tool in tools if not tool["ok"]],
        "smoke": job,
        "packages": packages() if request.get("packages") else {},
        "system": _system(),
        "architecture": platform.machine(),
        "interfaces": _interfaces(),
    }


def _system() -> str:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
        told = dict(line.split("=", 1) for line in lines if "=" in line)
        return told.get("PRETTY_NAME", "").strip('"')
    except OSError:
        return platform.platform()


def _interfaces() -> list[str]:
    """Network interfaces that are up, besides the loopback: a container without network has none."""
    try:
        there = [p for p in Path("/sys/class/net").iterdir() if p.name != "lo"]
        return sorted(p.name for p in there if int((p / "flags").read_text(), 16) & 1)
    except (OSError, ValueError):
        return []


def _run(command: str, seconds: int, folder: str | None = None) -> tuple[int, str]:
    try:
        done = subprocess.run(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            cwd=folder,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 124, f"{command} did not end within {seconds} s"
    return done.returncode, done.stdout.decode("utf-8", "replace")


def main() -> None:
    """Answer the request of the command line, or, started by Dagster Pipes, that of the context."""
    if "DAGSTER_PIPES_CONTEXT" in os.environ:
        from dagster_pipes import open_dagster_pipes  # mounted beside this file

        with open_dagster_pipes() as pipes:
            found = probe(pipes.get_extra("request"))
            for problem in found["problems"]:
                pipes.log.error(problem)
            pipes.report_custom_message(found)
    else:
        json.dump(probe(json.loads(sys.argv[1])), sys.stdout)


if __name__ == "__main__":
    main()
