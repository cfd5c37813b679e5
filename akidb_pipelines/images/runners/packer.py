"""Running Packer: its progress while it works, a reason when it fails, an end when it takes too long or we are told to stop.

Packer cleans up after itself when it is told to end, so that is how every build ends early: by SIGTERM (its outer process ignores SIGINT),
also when this process is killed (`setpriv --pdeathsig`). It first waits for whatever runs in its container, though: `unstick` ends that.
Only a Packer that goes on for its grace after that is killed.
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

_STUCK_SECONDS = 5.0
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
    told = _told([program, "version"], {}, 60)
    match = _VERSION.search(told)
    if not match:
        raise OutsideError(f"{program} version says {told.strip()!r}", hint="is that HashiCorp's Packer?")
    return Packer(program, (int(match[1]), int(match[2]), int(match[3])))


@dataclass
class _Output:
    """What Packer wrote."""

    log: TextIO
    report: Report
    raised: BaseException | None = None
    """What `report` raised; nothing is reported from then on, and it is raised again once Packer has ended."""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=30))
    errors: list[str] = field(default_factory=list)
    artifact: str = ""

    def take(self, lines: subprocess.Popen[str]) -> None:
        """Read until it ends; every line is kept in the log, and what a person waits for is reported.

        Whatever becomes of the log, reading goes on: a Packer whose output nobody takes would wait for ever.
        """
        assert lines.stdout is not None
        for line in lines.stdout:
            if text := self._line(line.rstrip("\n")):
                self._keep(text)
        lines.stdout.close()
        with contextlib.suppress(OSError):
            self.log.close()

    def _keep(self, text: str) -> None:
        try:
            self.log.write(text + "\n")
        except OSError as error:
            told = f"{self.log.name}: {error.strerror}"
            if told not in self.errors:
                self.errors.append(told)

    def _tell(self, stage: str) -> None:
        if self.raised is None:
            try:
                self.report(Progress(f"packer: {stage}"))
            except BaseException as error:  # noqa: BLE001  # raised again once Packer has ended
                self.raised = error

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
            self._tell(match[1])
        elif how == "say" and text.startswith("==> "):
            self._tell(textwrap.shorten(text.removeprefix("==> "), _MOST_TOLD, placeholder=" ..."))
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
    grace_seconds: float = 60,
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
        grace_seconds: that it has to clean up, once it was told to end.

    Raises:
        OutsideError: it failed, or took too long; the message has the reason.
    """
    source = template if packer.fetches_plugins else template / "runner.pkr.hcl"
    if packer.fetches_plugins:
        _told([packer.program, "init", str(template)], environment, 600)
    arguments = [f"-var={name}={value}" for name, value in sorted(variables.items())]
    command = [packer.program, "build", "-machine-readable", "-color=false", *arguments, str(source)]
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig", "TERM", "--", *command]
    try:
        output = _Output(log.open("w", encoding="utf-8", buffering=1), report)
    except OSError as error:
        raise OutsideError(f"log of the build {log}: {error.strerror}", hint="free some space, or move AKIDB_HOME") from error
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
        _end(process, unstick, grace_seconds)
        reader.join(10)
    if output.raised:
        raise output.raised
    if late:
        raise OutsideError(
            f"packer build of {template.name} did not end within {timeout_seconds:g} s; it was ended. Last it said: "
            f"{output.tail[-1] if output.tail else 'nothing'}",
            hint=f"read {log}; if it only needs longer, raise akidb_runner_timeout_seconds",
        )
    if process.returncode != 0:
        reason = "; ".join(dict.fromkeys(output.errors)) or " ".join(output.tail)[-500:] or "it said nothing"
        raise OutsideError(f"packer build of {template.name} ended with {process.returncode}: {reason}", hint=f"read {log}")
    return output.artifact


def _told(command: list[str], environment: Mapping[str, str], seconds: float) -> str:
    """What a short command prints.

    Raises:
        OutsideError: it fails, or does not end in time.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=seconds, env=_environment(environment), errors="replace"
        )
        return done.stdout
    except subprocess.CalledProcessError as error:
        found = f"ended with {error.returncode}: {(error.stderr or error.stdout).strip()[-500:]}"
    except subprocess.TimeoutExpired:
        found = f"did not end within {seconds:g} s"
    raise OutsideError(f"{' '.join(command)} {found}", hint="run it by hand; `packer init` fetches plugins from GitHub")


def _end(process: subprocess.Popen[str], unstick: Callable[[], object], grace_seconds: float) -> None:
    """Tell it to end if it still runs, and wait until it has cleaned up; nothing of its session stays."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STUCK_SECONDS)
    if process.poll() is None:
        unstick()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "CHECKPOINT_DISABLE": "1", "PACKER_NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8", **more}
