"""What a mutation is about, as the log of decisions tells it: names, ids and numbers; no configurations, tags or long texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from akidb_pipelines.operations.access.reach import pairs, tag_lists

_UNTOLD = frozenset(
    {
        "attributes",
        "clientId",
        "clientTime",
        "description",
        "key",
        "metadata",
        "repositoryName",
        "runConfigData",
        "serializedMetadata",
        "title",
        "value",
    }
)
_PARTITION = "dagster/partition"
_OF_A_DENIAL, _LONGEST = 20, 100


def described(arguments: object, names: Mapping[str, str] | None = None, *, in_full: bool = True) -> str:
    """As JSON, by the names of the arguments; what has several values has a list of them.

    Args:
        arguments: as GraphQL has read them, or a report's.
        names: of schedules and sensors, by the ids that some mutations take in their place.
        in_full: all of them; else the first twenty of each: what is denied needs no more, and must not fill the disk.
    """
    found: dict[str, list[str]] = {}
    for key, value in pairs(arguments):
        several = _told(_camel(key), value)
        if several:
            found.setdefault(_camel(key), []).extend(several)
            found.setdefault("name", []).extend(
                names[part] for one in several if names for part in one.split("::") if part in names
            )
    found["partition"] = [str(t["value"]) for tags in tag_lists(arguments) for t in tags if t["key"] == _PARTITION]
    told: dict[str, str | list[str]] = {}
    for key, values in found.items():
        different = list(dict.fromkeys(value[:_LONGEST] for value in values))
        if not in_full and len(different) > _OF_A_DENIAL:
            different[_OF_A_DENIAL:] = [f"{len(different) - _OF_A_DENIAL} more"]
        if different:
            told[key] = different if len(different) > 1 else different[0]
    return json.dumps(told)


def _told(key: str, value: Any) -> list[str]:
    if key in _UNTOLD or value is None:
        return []
    if key == "path":
        return ["/".join(map(str, value))]
    several = value if isinstance(value, list | tuple) else [value]
    return [str(one) for one in several if one is not None and not isinstance(one, Mapping | list | tuple)]


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
