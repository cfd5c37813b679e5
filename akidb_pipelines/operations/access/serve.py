"""Serving the UI behind the front: Dagster's instance and workspace, Cedar, the journal, uvicorn."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import anyio
import uvicorn
from dagster import DagsterInstance
from dagster import __version__ as dagster_version
from dagster._core.workspace.load_target import WorkspaceFileTarget
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.operations.access.asked import MESSAGE_BYTES
from akidb_pipelines.operations.access.context import Access, CedarProcessContext
from akidb_pipelines.operations.access.front import GuardedWebserver
from akidb_pipelines.operations.access.identity import open_doorkeeper
from akidb_pipelines.operations.access.journal import open_journal
from akidb_pipelines.operations.access.judge import Judge, decision_times
from akidb_pipelines.operations.coordinator import NamingRunCoordinator
from akidb_pipelines.settings import Settings

_POOL_RECYCLE_S, _STATEMENT_MS, _POOL_OVERFLOW = 3600, 15_000, 20
_TURN_S = 5


def serve_front(settings: Settings, workspace: Path, host: str, port: int, metrics_port: int) -> None:
    """Serve until told to end.

    Args:
        settings: issuer, audience, teams, sandbox, journal.
        workspace: workspace.yaml with the code locations.
        host: address to listen on.
        port: for the UI and its API.
        metrics_port: for Prometheus, on the same address; 0 serves none.

    Raises:
        InputError: a setting, the sandbox or the instance's configuration is unusable.
        OutsideError: a port cannot be had.
    """
    registry = CollectorRegistry()
    access = Access(Judge(settings.cedar_sandbox, decision_times(registry).labels(source="front").observe), open_journal(settings))
    doorkeeper = open_doorkeeper(settings)
    with ExitStack() as stack:
        instance = stack.enter_context(DagsterInstance.get())
        if not isinstance(instance.run_coordinator, NamingRunCoordinator):
            raise InputError(
                f"runs of this instance are queued by {type(instance.run_coordinator).__name__}, which does not name who asked",
                hint="take run_coordinator from the project's dagster.yaml into DAGSTER_HOME/dagster.yaml",
            )
        instance.optimize_for_webserver(_STATEMENT_MS, _POOL_RECYCLE_S, _POOL_OVERFLOW)
        target = WorkspaceFileTarget([str(workspace)])
        context = stack.enter_context(
            CedarProcessContext(access, instance=instance, version=dagster_version, read_only=False, workspace_load_target=target)
        )
        front = GuardedWebserver(context, doorkeeper, settings.ui_url)
        if metrics_port:
            try:
                start_http_server(metrics_port, host, registry)
            except OSError as error:
                raise OutsideError(f"metrics at {host}:{metrics_port}: {error}", hint="choose another --metrics-port") from error
        # Metrics have a thread of their own: that they answer does not say that the UI does.
        told = "When a request would last have been answered by the UI."
        served = Gauge("akidb_pipelines_front_served_timestamp_seconds", told, registry=registry)

        async def turn() -> None:
            with anyio.move_on_after(_TURN_S):
                await front.turn()
                served.set_to_current_time()

        config = uvicorn.Config(
            front.create_asgi_app(),
            host=host,
            port=port,
            log_level="warning",
            proxy_headers=False,
            ws_max_size=MESSAGE_BYTES,
            callback_notify=turn,
            timeout_notify=_TURN_S,
        )
        uvicorn.Server(config).run()
