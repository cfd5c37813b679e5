"""Running Packer: its progress while it works, a reason when it fails, an end when it takes too long or we are told to stop.

Packer cleans up after itself when it is interrupted, so that is how every build ends early: by SIGINT, also when this process is killed
(`setpriv --pdeathsig`). It first waits for whatever runs in its container, though: `unstick` ends that. Only a Packer that goes on for a
minute after that is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import textwrap
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TextIO

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.progress import Progress, Report

_STUCK_SECONDS, _GRACE_SECONDS = 5.0, 60.0
_TASK = re.compile(r"TASK \[(?:\w+ : )?(.+?)\]")
_FATAL = re.compile(r"(?:fatal|failed): \[.*?\]: .*? => (\{.*\})")
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
_COMMA = "%!(PACKER_COMMA)"
_MOST_TOLD = 80
"""Longer lines, such as the command of Ansible, are whole in the log only."""


@dataclass(frozen=True)
class Packer:
    """An installed Packer."""

    program: str
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        """`1.6.6`."""
        return ".".join(str(n) for n in self.version)

    @property
    def fetches_plugins(self) -> bool:
        """Whether templates name their plugins; before 1.7 they were built in, and naming them is an error."""
        return self.version >= (1, 7, 0)


def find_packer() -> Packer:
    """The Packer of this machine.

    Raises:
        OutsideError: there is none.
    """
    program = shutil.which("packer")
    if not program:
        raise OutsideError("building a runner needs Packer, which is not installed", hint="apt-get install packer ansible-core")
    told = subprocess.run([program, "version"], capture_output=True, text=True, check=False, timeout=60, env=_environment({}))
    match = _VERSION.search(told.stdout)
    if not match:
        raise OutsideError(f"{program} version says {told.stdout.strip()!r}", hint="is that HashiCorp's Packer?")
    return Packer(program, (int(match[1]), int(match[2]), int(match[3])))


@dataclass
class _Output:
    """What Packer wrote."""

    log: Path
    report: Report
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=30))
    errors: list[str] = field(default_factory=list)
    artifact: str = ""

    def take(self, lines: subprocess.Popen[str]) -> None:
        """Read until it ends; every line is kept in the log, and what a person waits for is reported.

        Whatever becomes of the log, reading goes on: a Packer whose output nobody takes would wait for ever.
        """
        assert lines.stdout is not None
        log = self.log.open("w", encoding="utf-8", buffering=1)
        try:
            for line in lines.stdout:
                if text := self._line(line.rstrip("\n")):
                    self._keep(log, text)
        finally:
            lines.stdout.close()
            with contextlib.suppress(OSError):
                log.close()

    def _keep(self, log: TextIO, text: str) -> None:
        try:
            log.write(text + "\n")
        except OSError as error:
            if str(error) not in self.errors:
                self.errors.append(f"{self.log}: {error.strerror}")

    def _line(self, line: str) -> str:
        """One line of `-machine-readable`: time, target, type, data."""
        parts = line.split(",", 3)
        if len(parts) < 4:
            return line
        _, _, kind, data = parts
        if kind == "artifact" and ",id," in f",{data}":
            self.artifact = data.split(",")[-1].replace(_COMMA, ",")
        if kind != "ui":
            return ""
        how, _, text = data.partition(",")
        text = text.replace(_COMMA, ",").replace("\\r", "").replace("\\n", "\n").strip()
        if match := _FATAL.search(text):
            self.errors.append(_reason(match[1]))
        elif how == "error":
            self.errors.append(text)
        elif match := _TASK.search(text):
            self.report(Progress(f"packer: {match[1]}"))
        elif how == "say" and text.startswith("==> "):
            self.report(Progress(f"packer: {textwrap.shorten(text.removeprefix('==> '), _MOST_TOLD, placeholder=' ...')}"))
        self.tail.append(text)
        return text


def _reason(result: str) -> str:
    """Why an Ansible task failed."""
    try:
        told = json.loads(result)
    except ValueError:
        return result
    return str(told.get("msg") or told.get("stderr") or result).strip()


def run_packer(
    packer: Packer,
    template: Path,
    variables: Mapping[str, str],
    environment: Mapping[str, str],
    log: Path,
    timeout_seconds: float,
    report: Report = lambda _: None,
    unstick: Callable[[], object] = lambda: None,
) -> str:
    """Build a template; returns the id of the artifact.

    Args:
        packer: the program.
        template: its folder.
        variables: of the template.
        environment: added to this process's.
        log: gets what Packer prints.
        timeout_seconds: it is interrupted after so long.
        report: told every step.
        unstick: ends what runs in the machine that is built.

    Raises:
        OutsideError: it failed, or took too long; the message has the reason.
    """
    source = template if packer.fetches_plugins else template / "runner.pkr.hcl"
    if packer.fetches_plugins:
        _run_init(packer, template, environment)
    arguments = [f"-var={name}={value}" for name, value in sorted(variables.items())]
    command = [packer.program, "build", "-machine-readable", "-color=false", *arguments, str(source)]
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig", "INT", "--", *command]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_environment(environment),
        start_new_session=True,
    )
    output = _Output(log, report)
    reader = threading.Thread(target=output.take, args=(process,), name="packer", daemon=True)
    reader.start()
    late = False
    try:
        begun = monotonic()
        while process.poll() is None:
            if monotonic() - begun > timeout_seconds:
                late = True
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(1.0, timeout_seconds))
    finally:
        _end(process, unstick)
        reader.join(10)
    if late:
        raise OutsideError(
            f"packer build of {template.name} did not end within {timeout_seconds:g} s; it was interrupted. Last it said: "
            f"{output.tail[-1] if output.tail else 'nothing'}",
            hint=f"read {log}; if it only needs longer, raise akidb_runner_timeout_seconds",
        )
    if process.returncode != 0:
        reason = "; ".join(dict.fromkeys(output.errors)) or " ".join(output.tail)[-500:] or "it said nothing"
        raise OutsideError(f"packer build of {template.name} ended with {process.returncode}: {reason}", hint=f"read {log}")
    return output.artifact


def _run_init(packer: Packer, template: Path, environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [packer.program, "init", str(template)],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(environment),
        timeout=600,
    )
    if done.returncode != 0:
        raise OutsideError(
            f"packer init {template}: {(done.stderr or done.stdout).strip()[-500:]}", hint="it fetches plugins from GitHub"
        )


def _end(process: subprocess.Popen[str], unstick: Callable[[], object]) -> None:
    """Interrupt it if it still runs, and wait until it has cleaned up; nothing of its session stays."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STUCK_SECONDS)
    if process.poll() is None:
        unstick()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "CHECKPOINT_DISABLE": "1", "PACKER_NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8", **more}
