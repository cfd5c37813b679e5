"""What a mutation reaches for: assets and checks, drill targets, tags, the runs that it repeats. Nothing here decides.

Dagster lets a named job run any asset of the repository, and asks only for the job's owners: so what a job is stretched to is read here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from dagster import AssetCheckKey, AssetKey, DagsterInstance
from dagster._core.execution.backfill import PartitionBackfill
from dagster._core.remote_representation.external_data import job_name_for_partition_set_snap_name

Key = AssetKey | AssetCheckKey


@dataclass(frozen=True)
class Selection:
    """Assets and checks that are named beside a job, or instead of one."""

    job: str
    """Empty where none is named."""
    keys: frozenset[Key]


@dataclass(frozen=True)
class Reach:
    """All of it."""

    selections: tuple[Selection, ...]
    leaves_the_lab: bool
    """Whether it may start a drill elsewhere than on the lab."""
    tags: frozenset[tuple[str, str]]
    jobs: frozenset[str]
    """That are named."""


def reach_of(arguments: object, instance: DagsterInstance) -> Reach:
    """Of a mutation with these arguments, and of the runs and backfills that it repeats.

    Args:
        arguments: as GraphQL has read them.
        instance: has those runs and backfills.
    """
    selections, configurations = [*_selections(arguments)], [*_values(arguments, "runConfigData")]
    for parent in (str(value) for key in ("parentRunId", "backfillId") for value in _values(arguments, key) if value):
        run = instance.get_run_by_id(parent)
        backfill = None if run else instance.get_backfill(parent)
        if run:
            configurations.append(run.run_config)
            selections.append(
                Selection(run.job_name, frozenset({*(run.asset_selection or ()), *(run.asset_check_selection or ())}))
            )
        elif backfill:
            configurations.append(backfill.run_config)
            selections.append(Selection(_job_of(backfill), frozenset(backfill.asset_selection or ())))
    return Reach(
        tuple(s for s in selections if s.keys),
        any(leaves_the_lab(c) for c in configurations if c),
        frozenset(_tags(arguments)),
        frozenset(str(value) for key in ("jobName", "pipelineName") for value in _values(arguments, key) if value),
    )


def leaves_the_lab(run_config: object) -> bool:
    """Whether a run configuration names another drill target than the lab.

    The target of a drill is the one thing in a run's configuration that decides who may start it. Whatever is not plainly `lab`
    counts: an environment variable, a list, text that cannot be read.
    """
    if isinstance(run_config, str | bytes):
        try:
            run_config = yaml.safe_load(run_config)
        except yaml.YAMLError:
            return True
        if isinstance(run_config, str):
            return True
    return any(value != "lab" for value in _values(run_config, "target"))


_PEOPLES = frozenset(
    {
        "dagster/partition",
        "dagster/partition_set",
        "dagster/asset_partition_range_start",
        "dagster/asset_partition_range_end",
        "dagster/parent_run_id",
        "dagster/root_run_id",
        "dagster/is_resume_retry",
        "dagster/step_selection",
        "dagster/op_selection",
        "dagster/solid_selection",
        "dagster/preset_name",
        "dagster/from_ui",
    }
)
"""What the UI itself sends."""
_SYSTEMS = ("dagster/", ".dagster/", "dagster-", "docker/", "celery")
_DIMENSION = "dagster/partition/"


def claimed(tags: Collection[tuple[str, str]], own: Collection[tuple[str, str]]) -> list[str]:
    """Names of the tags that people have no business with: they say who started a run, whether its failure matters, where and when it runs.

    Args:
        tags: that are sent.
        own: those of the jobs' definitions, which the UI sends back.
    """
    parts = {part for key, value in tags if key == "dagster/partition" for part in value.split("|")}

    def is_claimed(key: str, value: str) -> bool:
        if key.startswith(_DIMENSION):
            return value not in parts
        return key.startswith(_SYSTEMS) and key not in _PEOPLES

    return sorted({key for key, value in tags if (key, value) not in own and is_claimed(key, value)})


_NAMES = (
    "jobName",
    "pipelineName",
    "partitionSetName",
    "path",
    "checkName",
    "name",
    "scheduleName",
    "sensorName",
    "runId",
    "runIds",
    "parentRunId",
    "backfillId",
    "repositoryLocationName",
    "concurrencyKey",
    "partitionNames",
)
_LISTED, _LONGEST = 20, 100


def described(arguments: object) -> str:
    """What a mutation is about, for the journal: names and ids as JSON, never configurations or tags; of many, the first twenty."""
    found: dict[str, list[str]] = {name: [] for name in _NAMES}
    for key, value in _pairs(arguments):
        if key in found and value is not None:
            several = ["/".join(map(str, value))] if key == "path" else value if isinstance(value, list | tuple) else [value]
            found[key] += [str(one)[:_LONGEST] for one in several]
    told: dict[str, str | list[str]] = {}
    for key, values in found.items():
        different = list(dict.fromkeys(values))
        if len(different) > _LISTED:
            different[_LISTED:] = [f"{len(different) - _LISTED} more"]
        if different:
            told[key] = different if len(different) > 1 else different[0]
    return json.dumps(told)


def _selections(tree: object) -> Iterator[Selection]:
    for node in _nodes(tree):
        keys = {_asset(each) for each in node.get("assetSelection") or ()}
        keys |= {_asset(each.get("assetKey")) for each in node.get("partitionsByAssets") or ()}
        checks = {
            AssetCheckKey(_asset(each.get("assetKey")), str(each.get("name"))) for each in node.get("assetCheckSelection") or ()
        }
        yield Selection(str(node.get("jobName") or node.get("pipelineName") or ""), frozenset({*keys, *checks}))


def _asset(told: Any) -> AssetKey:
    return AssetKey([str(part) for part in told["path"]])


def _job_of(backfill: PartitionBackfill) -> str:
    return job_name_for_partition_set_snap_name(backfill.partition_set_name) if backfill.partition_set_name else ""


def _tags(tree: object) -> Iterator[tuple[str, str]]:
    """Whatever the list is called that they are in."""
    for node in _nodes(tree):
        if {*node} == {"key", "value"}:
            yield str(node["key"]), str(node["value"])


def _values(tree: object, key: str) -> Iterator[Any]:
    yield from (node[key] for node in _nodes(tree) if key in node)


def _pairs(tree: object) -> Iterator[tuple[str, Any]]:
    for node in _nodes(tree):
        yield from node.items()


def _nodes(tree: object) -> Iterator[Mapping[str, Any]]:
    """Every mapping in a tree, outermost first, but none of a run configuration inside arguments."""
    if isinstance(tree, Mapping):
        yield tree
        for key, value in tree.items():
            if key != "runConfigData":
                yield from _nodes(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _nodes(value)
