"""Backfills that somebody takes up again: their runs carry that name from then on, where Dagster keeps the one of whoever began.

The row of a backfill is the daemon's, too, which writes down how far it is: nothing of that may be lost. It is changed only while it still
is as it was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dagster import DagsterInstance
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionStatus, PartitionBackfill
from dagster._core.storage.runs.schema import BulkActionsTable
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from dagster_shared.serdes import deserialize_value, serialize_value
from sqlalchemy import select

from akidb_pipelines.errors import InputError, OutsideError

_TRIES = 10
"""The daemon writes every few seconds."""


def resume(instance: DagsterInstance, backfill_id: str, tags: Mapping[str, str]) -> None:
    """Have the daemon go on with a backfill that has ended, under these tags.

    Dagster's own way would write it back as it had been, also beside a daemon that is at it, and runs would come twice.

    Raises:
        InputError: it is in progress.
        OutsideError: see `retag`.
    """

    def resumed(backfill: PartitionBackfill) -> PartitionBackfill:
        if backfill.status not in BULK_ACTION_TERMINAL_STATUSES:
            raise InputError(f"backfill {backfill_id} is still in progress", hint="cancel it, or let it come to its end")
        return _tagged(backfill, tags)._replace(status=BulkActionStatus.REQUESTED)

    _change(instance, backfill_id, resumed)


def retag(instance: DagsterInstance, backfill_id: str, tags: Mapping[str, str]) -> None:
    """Give a backfill these tags besides its own. The UI's filter of backfills keeps the old ones, its runs have the new.

    Raises:
        OutsideError: there is none, or something else changed it each time that it was looked at.
    """
    _change(instance, backfill_id, lambda backfill: _tagged(backfill, tags))


def _tagged(backfill: PartitionBackfill, tags: Mapping[str, str]) -> PartitionBackfill:
    return backfill._replace(tags={**(backfill.tags or {}), **tags})


def _change(instance: DagsterInstance, backfill_id: str, change: Callable[[PartitionBackfill], PartitionBackfill]) -> None:
    storage = instance.run_storage
    assert isinstance(storage, SqlRunStorage)  # as every storage of Dagster's is
    of_it = BulkActionsTable.c.key == backfill_id
    for _ in range(_TRIES):
        with storage.connect() as connection:
            if (body := connection.execute(select(BulkActionsTable.c.body).where(of_it)).scalar()) is None:
                break
            changed = change(deserialize_value(body, PartitionBackfill))
            as_read = BulkActionsTable.update().where(of_it & (BulkActionsTable.c.body == body))
            if connection.execute(as_read.values(body=serialize_value(changed), status=changed.status.value)).rowcount == 1:
                return
    raise OutsideError(f"backfill {backfill_id} was not changed: it is gone, or is being changed without end")
