"""Dagster as real processes on this machine: a code server, a daemon, a webserver, each of which can be killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import dagster as dg
import httpx
import psutil
import pytest
from dagster._core.scheduler.instigation import TickStatus

from tests.services.server import ROOT, free_port

CODE = ROOT / "tests" / "services" / "chaos_code.py"


def wait(what: Callable[[], Any], seconds: float = 180) -> Any:
    """What it returns once it is true.

    Raises:
        AssertionError: it does not become true in time.
    """
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"{what} does not come to pass within {seconds} s"
        time.sleep(0.1)
    return found


class DagsterMachine:
    """One installation below a folder.

    Args:
        folder: DAGSTER_HOME, marks and logs.
        configuration: the text of its dagster.yaml.
        code: the file of the code location.
        environment: besides this process's own.
        roles: what is started, in order.
    """

    def __init__(
        self,
        folder: Path,
        configuration: str,
        code: Path = CODE,
        environment: dict[str, str] | None = None,
        roles: tuple[str, ...] = ("code", "daemon", "webserver"),
    ) -> None:
        self.folder, self.marks = folder, folder / "marks"
        self.code_port, self.port = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._code, self._roles = code, roles
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AKIDB_", "DAGSTER_"))},
            "DAGSTER_HOME": str(folder / "home"),
            "AKIDB_HOME": str(folder / "akidb"),
            "CHAOS_MARKS": str(self.marks),
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        }
        self.marks.mkdir(parents=True)
        (folder / "home").mkdir()
        (folder / "home" / "dagster.yaml").write_text(configuration)
        self.workspace = folder / "workspace.yaml"
        self.workspace.write_text(
            f"load_from:\n  - grpc_server: {{host: 127.0.0.1, port: {self.code_port}, location_name: chaos}}\n"
        )

    def __enter__(self) -> Self:
        self._patch = pytest.MonkeyPatch()
        for name in ("DAGSTER_HOME", *(k for k in self.environment if k.startswith("AKIDB_"))):
            self._patch.setenv(name, self.environment[name])
        for role in self._roles:
            self.start(role)
        self.instance = dg.DagsterInstance.get()
        return self

    def __exit__(self, *_: object) -> None:
        (self.marks / "go-on").touch()
        for process in self.processes.values():
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
                child.kill()
            process.kill()
            process.wait()
        self.instance.dispose()
        self._patch.undo()

    # --- processes

    @property
    def daemon(self) -> list[str]:
        """The daemon's command."""
        return [str(Path(sys.executable).with_name("dagster-daemon")), "run", "--workspace", str(self.workspace)]

    def start(self, *names: str) -> None:
        """Start, and wait until they serve."""
        commands = {
            "code": ["api", "grpc", "-f", str(self._code), "--host", "127.0.0.1", "--port", str(self.code_port)],
            "daemon": ["daemon", "run"],
            "webserver": ["webserver", "--host", "127.0.0.1", "--port", str(self.port)],
        }
        for name in names:
            log = (self.folder / f"{name}.log").open("ab")
            module, *arguments = commands[name]
            if name == "code":
                command = [sys.executable, "-m", "dagster", module, *arguments]
            else:
                program = str(Path(sys.executable).with_name(f"dagster-{module}"))
                command = [program, *arguments, "--workspace", str(self.workspace)]
            self.processes[name] = subprocess.Popen(command, env=self.environment, cwd=self.folder, stdout=log, stderr=log)
            log.close()
        if "code" in names:
            check = [sys.executable, "-m", "dagster", "api", "grpc-health-check", "--port", str(self.code_port)]
            wait(lambda: subprocess.run(check, capture_output=True, check=False).returncode == 0)
        if "webserver" in names:
            wait(self._serves)
        if "daemon" in names:
            began = time.time()
            with dg.DagsterInstance.get() as instance:
                wait(lambda: [b for b in instance.get_daemon_heartbeats().values() if b.timestamp > began])

    def kill(self, *names: str) -> None:
        """As the kernel does: at once, without a word."""
        for name in names:
            self.processes[name].send_signal(signal.SIGKILL)
        for name in names:
            self.processes[name].wait()

    def _serves(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/server_info", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    # --- runs

    def launch(self, job: str, config: dict[str, Any] | None = None, tags: dict[str, str] | None = None) -> str:
        """Its run id."""
        query = (
            "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) "
            "{ __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"
        )
        repository = {"repositoryName": "__repository__", "repositoryLocationName": "chaos", "jobName": job}
        told = [{"key": k, "value": v} for k, v in (tags or {}).items()]
        params = {"selector": repository, "runConfigData": config or {}, "executionMetadata": {"tags": told}}
        answer = httpx.post(
            f"http://127.0.0.1:{self.port}/graphql", json={"query": query, "variables": {"p": params}}, timeout=60
        ).json()
        assert answer["data"]["launchRun"]["__typename"] == "LaunchRunSuccess", answer
        return str(answer["data"]["launchRun"]["run"]["runId"])

    def launched(self, job: str, tags: dict[str, str] | None = None) -> str:
        """As launch, once the webserver knows a code server that was started anew."""

        def started() -> str | None:
            try:
                return self.launch(job, tags=tags)
            except (AssertionError, KeyError, TypeError, ValueError, httpx.HTTPError):
                return None

        return str(wait(started))

    def in_second_step(self) -> str:
        """A run of job two_steps whose first step is done and whose second lasts."""
        run_id = self.launched("two_steps")
        wait(lambda: self.marked("lasts"))
        return run_id

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        run = self.instance.get_run_by_id(run_id)
        assert run
        return run.status

    def forget(self) -> None:
        """Begin anew: no marks."""
        for path in self.marks.iterdir():
            path.unlink()

    def marked(self, name: str) -> int:
        """How many marks of a name there are."""
        path = self.marks / name
        return len(path.read_text().splitlines()) if path.exists() else 0

    def worker(self, run_id: str) -> psutil.Process:
        """The process of a run, as it told."""
        from dagster import DagsterEventType

        def told() -> int | None:
            for entry in self.instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT):
                message = entry.dagster_event.message or "" if entry.dagster_event else ""
                if "Started process for run (pid: " in message:
                    return int(message.split("pid: ")[1].split(")")[0])
            return None

        return psutil.Process(wait(told))

    def retry_of(self, run_id: str) -> dg.DagsterRun | None:
        """The run that tries it again."""
        return next((r for r in self.instance.get_runs() if r.parent_run_id == run_id), None)

    def ticks(self, sensor: str) -> int:
        """How often a sensor was evaluated."""
        state = next(s for s in self.instance.all_instigator_state() if s.instigator_name == sensor)
        return len(self.instance.get_ticks(state.instigator_origin_id, state.selector_id, statuses=[TickStatus.SKIPPED]))

    def log(self) -> str:
        """What all processes said."""
        return "".join(p.read_text(errors="replace") for p in self.folder.glob("*.log"))
