"""Starts each run in a container of its own, with the settings that it needs."""

from __future__ import annotations

import os

from dagster import DagsterRun
from dagster_docker import DockerRunLauncher
from dagster_docker.container_context import DockerContainerContext

from akidb_pipelines.operations.secrets import NOT_FOR_RUNS

_FOR_RUNS = ("AKIDB_", "AWS_", "DAGSTER_HOME", "DAGSTER_REDACT_", "VAULT_")


class ContainerRunLauncher(DockerRunLauncher):
    """For the tier of a team: every run in a container of its own. Dagster notices there by itself when one is gone.

    Runs get the settings that this process has, so that one place configures all; not those that only the daemon and the front need.
    """

    def get_container_context(self, dagster_run: DagsterRun) -> DockerContainerContext:
        """With the names of the settings, whose values are read from the environment when the container is made."""
        context = super().get_container_context(dagster_run)
        names = [n for n in os.environ if n.startswith(_FOR_RUNS) and not n.startswith(NOT_FOR_RUNS)]
        return context._replace(env_vars=sorted({*context.env_vars, *names}))
