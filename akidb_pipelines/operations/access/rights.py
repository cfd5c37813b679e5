"""What Dagster's permissions, mutations and owners mean in Cedar's words. Values only; nothing here decides.

Three tables, each complete or the front does not start: every permission of Dagster has a right on the deployment, every mutation of its
schema has one or is decided by what it starts, and every owner label of assets and jobs names the right that starting them takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dagster._core.workspace.permissions import Permissions

DEPLOYMENT = "akidb_pipelines"


@dataclass(frozen=True, order=True)
class Right:
    """An action on a resource of namespace AkiDB::Ops."""

    action: str
    kind: str = "Deployment"
    id: str = DEPLOYMENT

    def __str__(self) -> str:
        return f"{self.action} on {self.kind}::{self.id}"


VIEW, OPERATE, ADMINISTER, AUDIT = Right("view"), Right("operate"), Right("administer"), Right("audit")
MANAGE_SANDBOX = Right("manageSandbox")
OCI_DRILL = Right("launch", "Pipeline", "dr_oci")

STARTS: Mapping[str, Right] = {
    **{f"team:{p}": Right("launch", "Pipeline", p) for p in ("fixtures", "runner_images", "jetson", "dr_lab", "backups", "costs")},
    "team:sandbox": MANAGE_SANDBOX,
    "team:registry": Right("release"),
    "team:reflash": Right("reflash", "Pipeline", "jetson"),
}
"""By the second owner of an asset or job (assets/common.py); what has only a team for its owner is started by who administers."""

SANDBOX_CHECKS = frozenset({"schema_drift", "authorization_matrix", "sandbox_agrees"})
"""Checks that who manages the sandbox may run, though not build what they look at."""

LAUNCH = frozenset(
    {Permissions.LAUNCH_PIPELINE_EXECUTION, Permissions.LAUNCH_PIPELINE_REEXECUTION, Permissions.LAUNCH_PARTITION_BACKFILL}
)
"""Decided by what is started."""

ON_DEPLOYMENT: Mapping[Permissions, Right] = {
    # Whatever it is that would be started: only who may do everything.
    **dict.fromkeys(LAUNCH, ADMINISTER),
    **dict.fromkeys(
        (
            Permissions.START_SCHEDULE,
            Permissions.STOP_RUNNING_SCHEDULE,
            Permissions.SCHEDULE_DRY_RUN,
            Permissions.EDIT_SENSOR,
            Permissions.SENSOR_DRY_RUN,
            Permissions.UPDATE_SENSOR_CURSOR,
            Permissions.TERMINATE_PIPELINE_EXECUTION,
            Permissions.CANCEL_PARTITION_BACKFILL,
            Permissions.RELOAD_REPOSITORY_LOCATION,
            Permissions.RELOAD_WORKSPACE,
        ),
        OPERATE,
    ),
    **dict.fromkeys(
        (
            Permissions.DELETE_PIPELINE_RUN,
            Permissions.WIPE_ASSETS,
            Permissions.REPORT_RUNLESS_ASSET_EVENTS,
            Permissions.EDIT_DYNAMIC_PARTITIONS,
            Permissions.TOGGLE_AUTO_MATERIALIZE,
            Permissions.EDIT_CONCURRENCY_LIMIT,
            Permissions.EDIT_APP_MANAGED_COMPONENTS,
            Permissions.REFRESH_COMPONENT_STATE,
        ),
        ADMINISTER,
    ),
}

MUTATIONS: Mapping[str, Right | None] = {
    # None: decided by what it starts (reach.py), and where Dagster asks for it.
    **dict.fromkeys(
        (
            "launchPipelineExecution",
            "launchRun",
            "launchMultipleRuns",
            "launchPipelineReexecution",
            "launchRunReexecution",
            "launchPartitionBackfill",
            "resumePartitionBackfill",
            "reexecutePartitionBackfill",
        )
    ),
    **dict.fromkeys(
        (
            "startSchedule",
            "stopRunningSchedule",
            "resetSchedule",
            "scheduleDryRun",
            "startSensor",
            "stopSensor",
            "resetSensor",
            "setSensorCursor",
            "sensorDryRun",
            "terminatePipelineExecution",
            "terminateRun",
            "terminateRuns",
            "cancelPartitionBackfill",
            "reloadRepositoryLocation",
            "reloadWorkspace",
            "shutdownRepositoryLocation",
        ),
        OPERATE,
    ),
    **dict.fromkeys(
        (
            "deletePipelineRun",
            "deleteRun",
            "wipeAssets",
            "reportRunlessAssetEvents",
            "reportAssetCheckEvaluations",
            "addDynamicPartition",
            "deleteDynamicPartitions",
            "setAppManagedComponent",
            "deleteAppManagedComponent",
            "refreshComponentState",
            "setAutoMaterializePaused",
            "setConcurrencyLimit",
            "deleteConcurrencyLimit",
            "freeConcurrencySlotsForRun",
            "freeConcurrencySlots",
        ),
        ADMINISTER,
    ),
    # What the UI tells about itself; telemetry is off.
    **dict.fromkeys(("setNuxSeen", "logTelemetry"), VIEW),
}


def starting(owners: Iterable[str]) -> Right | None:
    """The right that starting something takes, by its owners; None leaves it to who administers."""
    return next((STARTS[owner] for owner in owners if owner in STARTS), None)
