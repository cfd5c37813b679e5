"""What one person may take of the front at a time, so that there is always something left for the others.

Dagster's webserver has no such limits: whoever may look can ask for an answer without end. Three things are bounded: threads, what one
answer takes (time and size), and the records that one field reads from the database.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import anyio
from graphql import GraphQLSchema, OperationType

from akidb_pipelines.errors import OutsideError

T = TypeVar("T")
THREADS, OF_ONE, WAITING = 32, 8, 100
"""Requests that are worked on at a time, those of one person, and those of one person that may wait. A page of the UI sends some ten."""
SOCKETS, WATCHED = 50, 50
"""Connections that one person may hold open, of which each tab of the UI has one, and runs and logs that they may watch over them."""
LET_GO_S = 15
"""So long a place of the latter stays taken after its end: Dagster may still be reading for it, as long as a statement may take."""
ANSWER_S, ANSWER_VALUES = 30.0, 500_000
"""Of one answer. The UI's largest, a thousand events of a run, has some 40,000 values."""
_CHARACTERS = 256
"""That count as one value."""
RECORDS = 1000
"""That one field reads: Dagster would read all of them where none are counted, and count ticks on until its memory is full."""
LISTS = frozenset(
    {
        "assetCheckExecutions",
        "assetConditionEvaluationRecordsOrError",
        "assetEventHistory",
        "assetMaterializations",
        "assetObservations",
        "autoMaterializeAssetEvaluationsOrError",
        "autoMaterializeTicks",
        "backfills",
        "cancelableRuns",
        "eventConnection",
        "futureTicks",
        "logsForRun",
        "partitionBackfillsOrError",
        "pipelineRunsOrError",
        "potentialTickTimestamps",
        "runIdsOrError",
        "runs",
        "runsFeedOrError",
        "runsOrError",
        "stepStats",
        "ticks",
        "unfinishedRuns",
    }
)
"""Fields whose lists grow with time. Others that take a limit list what the definitions have, or are one value."""


class BusyError(OutsideError):
    """One person has asked for so much that nothing more of theirs is taken on."""


class TooMuchError(BaseException):
    """An answer took too long or grew too large. No `Exception`: GraphQL would write it down for each field, and go on."""


class Meter:
    """Counts what one answer takes.

    Args:
        seconds: after which it ends.
        values: that it may have.
    """

    def __init__(self, seconds: float = ANSWER_S, values: int = ANSWER_VALUES) -> None:
        self._seconds, self._values = seconds, values
        self._until, self._left = time.monotonic() + seconds, values

    def take(self, value: object, *, timed: bool = True) -> None:
        """Another value of it.

        Args:
            value: what a field is.
            timed: whether the time counts, too.

        Raises:
            TooMuchError: that is one too many, or one too late.
        """
        self._left -= 1
        if isinstance(value, str):
            self._left -= len(value) // _CHARACTERS
        elif isinstance(value, list | tuple | dict):
            self._left -= len(value)
        if self._left < 0:
            raise TooMuchError(f"an answer of more than {self._values} values was asked for: ask for less at a time")
        if timed and time.monotonic() > self._until:
            raise TooMuchError(f"the answer took more than {self._seconds:g} s: ask for less at a time")


def metered(resolve: Callable[..., Any], root: object, info: Any, **arguments: Any) -> Any:
    """GraphQL's middleware: each field's value counts. What changes something is not cut off for the time that it takes."""
    value = resolve(root, info, **arguments)
    info.context.meter.take(value, timed=info.operation.operation is not OperationType.MUTATION)
    return value


def bound_lists(schema: GraphQLSchema) -> None:
    """No field reads more than a thousand records."""
    for kind in schema.type_map.values():
        for name, field in getattr(kind, "fields", {}).items():
            if name in LISTS and {"limit", "upperLimit"} & {*getattr(field, "args", ())} and field.resolve:
                field.resolve = _bounded(field.resolve, {*field.args})


def _bounded(resolve: Callable[..., Any], known: Collection[str]) -> Callable[..., Any]:
    def few(root: object, info: Any, **arguments: Any) -> Any:
        # Of what ends by a time, too, no count means something else without one.
        if "limit" in known and ("until" not in known or arguments.get("until")) and arguments.get("limit") is None:
            arguments["limit"] = RECORDS
        for name in {"limit", "upper_limit", "lower_limit"} & arguments.keys():
            if (given := arguments[name]) is not None and not 0 < given <= RECORDS:  # nothing, or less, is all of them
                arguments[name] = RECORDS
        return resolve(root, info, **arguments)

    return few


class Threads:
    """Where requests are worked on."""

    def __init__(self, in_all: int = THREADS, of_one: int = OF_ONE, waiting: int = WAITING) -> None:
        self._all, self._of_one, self._waiting = anyio.CapacityLimiter(in_all), of_one, waiting
        self._each: WeakValueDictionary[str, anyio.CapacityLimiter] = WeakValueDictionary()
        self._at_it: set[asyncio.Task[Any]] = set()

    async def run(self, who: str, work: Callable[[], T], *, however_many: bool = False) -> T:
        """Do that in a thread, when it is the turn of whoever asked.

        Args:
            who: the id of the principal.
            work: what blocks.
            however_many: it is bounded by other means, and waits.

        Raises:
            BusyError: too many of theirs wait already.
        """
        theirs = self._each.get(who) or self._each.setdefault(who, anyio.CapacityLimiter(self._of_one))
        if theirs.statistics().tasks_waiting >= self._waiting and not however_many:
            raise BusyError(f"{self._waiting} of your requests wait already", hint="let them be answered first")
        begun = False

        async def turn() -> T:
            nonlocal begun
            async with theirs:
                begun = True
                return await anyio.to_thread.run_sync(work, limiter=self._all)

        # Nobody can stop a thread: whoever goes away leaves its place taken until it is done.
        task = asyncio.ensure_future(turn())
        self._at_it.add(task)
        task.add_done_callback(self._done)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not begun:
                task.cancel()
            raise

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._at_it.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio would complain that nobody looked at it


class Places:
    """So many for each person."""

    def __init__(self, of_one: int) -> None:
        self._of_one = of_one
        self._taken: Counter[str] = Counter()

    def take(self, who: str) -> bool:
        """Whether there is one."""
        if self._taken[who] >= self._of_one:
            return False
        self._taken[who] += 1
        return True

    def leave(self, who: str) -> None:
        """One is free again."""
        self._taken[who] -= 1
        if not self._taken[who]:
            del self._taken[who]
