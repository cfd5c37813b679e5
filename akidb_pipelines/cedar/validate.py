"""Whether entities conform to the sandbox schema, in Cedar's own judgement, naming each that does not and why."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import cedarpy

from akidb_pipelines.cedar.entities import JsonEntity

BATCH = 50
"""Entities a call. A handle holds 15 kB an entity; at 1,000 a call one takes half as long again as at 50."""
_WORKERS = min(4, os.cpu_count() or 1)

_EMPTY = cedarpy.PolicySet.from_str("")
_PROBE = {
    "principal": {"type": "Probe", "id": "x"},
    "action": {"type": "Action", "id": "x"},
    "resource": {"type": "Probe", "id": "x"},
    "context": {},
}


@dataclass(frozen=True)
class EntityFailure:
    """One entity that Cedar refuses."""

    entity_type: str
    """Qualified."""
    id: str
    cause: str
    """Cedar's own words."""


@dataclass(frozen=True)
class Validation:
    """What a pass over many entities found."""

    checked: Mapping[str, int]
    """Entities by qualified type."""
    failed: Mapping[str, int]
    """Refused entities by qualified type."""
    samples: tuple[EntityFailure, ...] = field(default=())
    """The first failures, in the order met."""

    @property
    def total(self) -> int:
        """Entities looked at."""
        return sum(self.checked.values())


def validate_entities(
    entities: Iterable[JsonEntity],
    schema: cedarpy.Schema,
    *,
    samples: int = 50,
    progress: Callable[[int], None] = lambda _: None,
) -> Validation:
    """Check every entity; memory stays flat however many there are.

    Args:
        entities: Cedar JSON entities.
        schema: Cedar's handle of the sandbox schema.
        samples: explain at most so many failures; the rest are counted.
        progress: told the number of entities done so far, batch by batch.
    """
    checked: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    explained: list[EntityFailure] = []
    for batch, refused in _judged(entities, schema):
        checked.update(e["uid"]["type"] for e in batch)
        for entity in batch if refused else ():
            if conforms(entity, schema):
                continue
            uid = entity["uid"]
            failed[uid["type"]] += 1
            if len(explained) < samples:
                explained.append(EntityFailure(uid["type"], uid["id"], explain(entity, schema)))
        progress(sum(checked.values()))
    return Validation(dict(checked), dict(failed), tuple(explained))


def _judged(entities: Iterable[JsonEntity], schema: cedarpy.Schema) -> Iterator[tuple[list[JsonEntity], bool]]:
    """Batches in their order, each with whether Cedar refuses it. Cedar works without the GIL, so it runs beside the reading."""
    stream = iter(entities)
    waiting: deque[tuple[list[JsonEntity], Future[bool]]] = deque()
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="cedar") as pool:
        while batch := list(islice(stream, BATCH)):
            waiting.append((batch, pool.submit(_refused, json.dumps(batch), schema)))
            if len(waiting) > 2 * _WORKERS:
                done, verdict = waiting.popleft()
                yield done, verdict.result()
        for done, verdict in waiting:
            yield done, verdict.result()


def _refused(batch: str, schema: cedarpy.Schema) -> bool:
    try:
        cedarpy.Entities.from_json_str(batch, schema, release_gil=True)
    except ValueError:
        return True
    return False


def conforms(entity: JsonEntity, schema: cedarpy.Schema) -> bool:
    """Whether Cedar takes one entity."""
    return not _refused(json.dumps([entity]), schema)


def explain(entity: JsonEntity, schema: cedarpy.Schema) -> str:
    """Why Cedar refuses one entity. Building a handle does not say; asking for a decision with it does."""
    text = json.dumps([entity])
    errors = cedarpy.is_authorized(_PROBE, _EMPTY, text, schema).diagnostics.errors
    cause = errors[0] if errors else "entity does not conform to the schema"
    return cause.removeprefix(f"failed to parse entities from:\n{text}: ")
