"""`make soak`: real runs through a real daemon for memory, growth and queue latency; then a year of history for the UI and prune."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

import dagster as dg
import httpx
import psutil

from akidb_pipelines.definitions import build_defs
from akidb_pipelines.operations.facts import collect, watched_of
from akidb_pipelines.operations.metrics.families import families
from akidb_pipelines.operations.pruning import prune
from akidb_pipelines.settings import Settings
from bench.history import write_year
from tests.services.dagster_machine import DagsterMachine, wait
from tests.services.server import ROOT

_RUNS_PAGE = (
    "{ runsOrError(limit: 25) { ... on Runs { results { runId status jobName tags { key value } stats { __typename } } } } }"
)


def main() -> None:
    """Print what was seen; nothing is held to a limit here but that every run succeeds once."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    configuration = (ROOT / "dagster.yaml").read_text()
    with (
        tempfile.TemporaryDirectory(prefix="akidb-soak-") as folder,
        DagsterMachine(Path(folder) / "machine", configuration) as machine,
    ):
        _run_many(machine, runs)
        _year(machine)


def _run_many(machine: DagsterMachine, number: int) -> None:
    config = {"ops": {"short": {"config": {"name": "soak"}}}}
    wait(lambda: machine.launch("burst", config))
    wait(lambda: machine.marked("soak") == 1)
    before, stored = _memory(machine), _stored(machine.folder / "home")
    halfway: dict[str, float] = {}
    latencies = []
    for n in range(number):
        run_id = machine.launch("burst", config)
        wait(lambda run_id=run_id: machine.status(run_id) is dg.DagsterRunStatus.SUCCESS, 120)
        record = machine.instance.get_run_record_by_id(run_id)
        assert record
        assert record.start_time
        latencies.append(record.start_time - record.create_timestamp.timestamp())
        if n == number // 2:
            halfway = _memory(machine)
    after = _memory(machine)
    print(f"{number} runs, each succeeded once: {machine.marked('soak') == number + 1}")
    print(f"from asked for to started: median {median(latencies):.1f} s, p90 {quantiles(latencies, n=10)[-1]:.1f} s")
    print(f"growth: {(_stored(machine.folder / 'home') - stored) / number / 1000:.0f} kB a run")
    for name in after:
        slope = (after[name] - halfway[name]) / (number - number // 2)
        print(
            f"memory of {name}: {before[name]:.0f} MB, {halfway[name]:.0f} MB halfway, {after[name]:.0f} MB; {slope * 1000:.0f} kB a run"
        )


def _year(machine: DagsterMachine) -> None:
    watched = watched_of(build_defs(Settings(home=machine.folder / "akidb")).get_repository_def())
    began = time.perf_counter()
    written = write_year(machine.instance, watched)
    print(
        f"a year: {written.runs} runs, {written.events} events, {written.bytes / 1e6:.0f} MB, in {time.perf_counter() - began:.0f} s"
    )
    url = f"http://127.0.0.1:{machine.port}/graphql"
    taken = []
    for _ in range(10):
        began = time.perf_counter()
        httpx.post(url, json={"query": _RUNS_PAGE}, timeout=60).raise_for_status()
        taken.append((time.perf_counter() - began) * 1000)
    print(f"the UI's page of runs: {median(taken):.0f} ms")
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        list(families(collect(machine.instance, watched)))
        taken.append((time.perf_counter() - began) * 1000)
    print(f"a scrape: {median(taken):.0f} ms")
    began = time.perf_counter()
    done = prune(machine.instance, watched, 1, dry_run=False)
    print(f"instance prune --keep 1: {len(done.deleted)} runs in {time.perf_counter() - began:.1f} s, {done.kept} kept")
    print(f"left: {_stored(machine.folder / 'home') / 1e6:.0f} MB")


def _memory(machine: DagsterMachine) -> dict[str, float]:
    return {name: psutil.Process(p.pid).memory_info().rss / 1e6 for name, p in machine.processes.items()}


def _stored(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


if __name__ == "__main__":
    main()
