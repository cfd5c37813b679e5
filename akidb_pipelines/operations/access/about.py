"""What a mutation is about, as the log of decisions tells it: names, ids and numbers; no configurations, tags or long texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from akidb_pipelines.operations.access.reach import PARTITION, tag_lists

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
_OF_A_REPORT = ("partition", "check_name", "passed", "severity", "data_version")
_OF_A_DENIAL, _LONGEST = 20, 100


def described(arguments: Mapping[str, Any], names: Mapping[str, str] | None = None, *, in_full: bool = True) -> str:
    """As JSON, by the names of the arguments; what has several values has a list of them.

    Args:
        arguments: as GraphQL has read them.
        names: of schedules and sensors, by the ids that some mutations take in their place.
        in_full: all of them; else the first twenty of each: what is denied needs no more, and must not fill the disk.
    """
    found: dict[str, list[str]] = {}
    for key, values in _leaves(arguments):
        found.setdefault(key, []).extend(values)
        if names:
            found.setdefault("name", []).extend(names[part] for one in values for part in one.split("::") if part in names)
    of_tags = [str(tag["value"]) for tags in tag_lists(arguments) for tag in tags if tag["key"] == PARTITION]
    found.setdefault("partition", []).extend(of_tags)
    told: dict[str, str | list[str]] = {}
    for key, values in found.items():
        different = list(dict.fromkeys(value[:_LONGEST] for value in values))
        if not in_full and len(different) > _OF_A_DENIAL:
            different[_OF_A_DENIAL:] = [f"{len(different) - _OF_A_DENIAL} more"]
        if different:
            told[key] = different if len(different) > 1 else different[0]
    return json.dumps(told)


def reported(asset: str, told: Mapping[str, object]) -> str:
    """The same of a report over REST.

    Args:
        asset: that its address names; empty leaves it to what it tells.
        told: by its body or, where that says nothing, its address.
    """
    key = told.get("asset_key")
    parts = "/".join(str(part) for part in key) if isinstance(key, list) else key
    known = {"asset": asset or parts, **{name: told.get(name) for name in _OF_A_REPORT}}
    # Dagster refuses what is more than a word, and it must not fill the log.
    return described({name: value for name, value in known.items() if isinstance(value, str | int | float)})


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Names with their values, of whatever is not left out, nor is below it."""
    for name, value in tree.items():
        several = value if isinstance(value, list | tuple) else [value]
        if (key := _camel(name)) in _UNTOLD:
            continue
        for inner in several:
            if isinstance(inner, Mapping):
                yield from _leaves(inner)
        plain = [str(one) for one in several if isinstance(one, str | int | float)]
        if plain:
            yield key, ["/".join(plain)] if key == "path" else plain


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
