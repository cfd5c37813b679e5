"""Serves the metrics, and asks Cedar for one decision a minute so that its latency is known when nobody uses the UI."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import dagster as dg
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from akidb_pipelines.errors import OutsideError
from akidb_pipelines.operations.access.identity import Principal
from akidb_pipelines.operations.access.judge import Judge, decision_times
from akidb_pipelines.operations.access.rights import VIEW
from akidb_pipelines.operations.facts import Watched, collect
from akidb_pipelines.operations.metrics.families import PREFIX, families

_PROBE_S = 60
_PROBED = Principal("probe", "", ("platform-engineering",), 0)
_log = logging.getLogger(__name__)


class PipelineCollector(Collector):
    """Collects at every scrape. An instance that cannot be read is told as such, and nothing stale is served in its place.

    Args:
        instance: Dagster's.
        watched: what the definitions have.
    """

    def __init__(self, instance: dg.DagsterInstance, watched: Watched) -> None:
        self._instance, self._watched = instance, watched

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry would collect in order to learn names."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """One look at the instance."""
        began = perf_counter()
        found: list[Metric] = []
        try:
            found = list(families(collect(self._instance, self._watched)))
        except Exception:  # noqa: BLE001 - whatever its database raises: the exporter tells it, and lives on
            _log.exception("the Dagster instance cannot be read")
        up = GaugeMetricFamily(f"{PREFIX}_instance_up", "1 while the Dagster instance can be read.")
        up.add_metric([], float(bool(found)))
        seconds = GaugeMetricFamily(f"{PREFIX}_scrape_seconds", "How long this look took.")
        seconds.add_metric([], perf_counter() - began)
        yield from (*found, up, seconds)


def serve_metrics(watched: Watched, sandbox: Path | None, host: str, port: int, stop: threading.Event) -> None:
    """Serve until told to end.

    Args:
        watched: what the definitions have.
        sandbox: another Cedar sandbox than the shipped one.
        host: address to listen on.
        port: of `/metrics`.
        stop: ends it.

    Raises:
        InputError: the sandbox is unusable.
        OutsideError: the port cannot be had.
    """
    registry = CollectorRegistry()
    times = decision_times(registry).labels(source="probe")
    with dg.DagsterInstance.get() as instance:
        registry.register(PipelineCollector(instance, watched))
        try:
            server, thread = start_http_server(port, host, registry)
        except OSError as error:
            raise OutsideError(f"metrics at {host}:{port}: {error}", hint="choose another --port") from error
        try:
            judge = Judge(sandbox, times.observe)
            while True:
                # A minute later it has forgotten the answer.
                judge.decide(_PROBED, VIEW)
                if stop.wait(_PROBE_S):
                    return
        finally:
            server.shutdown()
            thread.join()
