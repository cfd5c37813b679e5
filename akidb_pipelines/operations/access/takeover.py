"""Backfills that somebody takes up again: their runs carry that name from then on, where Dagster keeps the one of whoever began.

The row of a backfill is the daemon's, too, which writes down how far it is: nothing of that may be lost. A name is written only into a row
that is still as it was read.
"""

from __future__ import annotations

from collections.abc import Mapping

from dagster import DagsterInstance
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, PartitionBackfill
from dagster._core.storage.runs.schema import BulkActionsTable
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from dagster_shared.serdes import deserialize_value, serialize_value
from sqlalchemy import select

from akidb_pipelines.errors import InputError, OutsideError

_TRIES = 10
"""The daemon writes every few seconds."""


def must_have_ended(instance: DagsterInstance, backfill_id: str) -> None:
    """Of a backfill that is to be resumed. Dagster would write it back as it was, beside a daemon that is at it, and runs would come twice.

    Raises:
        InputError: it is in progress.
    """
    backfill = instance.get_backfill(backfill_id)
    if backfill and backfill.status not in BULK_ACTION_TERMINAL_STATUSES:
        raise InputError(f"backfill {backfill_id} is still in progress", hint="cancel it, or let it come to its end")


def retag(instance: DagsterInstance, backfill_id: str, tags: Mapping[str, str]) -> Mapping[str, str]:
    """Give a backfill these tags besides its own.

    Returns:
        What those names meant before.

    Raises:
        OutsideError: there is none, or something changed it each time that it was looked at.
    """
    storage = instance.run_storage
    assert isinstance(storage, SqlRunStorage)  # as every storage of Dagster's is
    of_it = BulkActionsTable.c.key == backfill_id
    for _ in range(_TRIES):
        with storage.connect() as connection:
            if (body := connection.execute(select(BulkActionsTable.c.body).where(of_it)).scalar()) is None:
                break
            backfill = deserialize_value(body, PartitionBackfill)
            before = backfill.tags or {}
            after = serialize_value(backfill._replace(tags={**before, **tags}))
            as_read = of_it & (BulkActionsTable.c.body == body)
            if connection.execute(BulkActionsTable.update().where(as_read).values(body=after)).rowcount == 1:
                return {key: before[key] for key in tags if key in before}
    raise OutsideError(f"backfill {backfill_id} was not given {dict(tags)}: it is gone, or is being changed without end")
