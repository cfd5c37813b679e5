"""What a mutation reaches for: jobs, assets and checks, drill targets, tags, the runs that it repeats. Nothing here decides.

Dagster lets a named job run any asset of the repository, and asks only for the job's owners: so what a job is stretched to is read here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from dagster import AssetCheckKey, AssetKey, DagsterInstance, DagsterRun, MultiPartitionsDefinition
from dagster._core.execution.backfill import PartitionBackfill
from dagster._core.remote_representation.external_data import job_name_for_partition_set_snap_name

Key = AssetKey | AssetCheckKey
_OF_BACKFILLS = frozenset({"partitionSetName", "partitionNames", "partitionsByAssets", "allPartitions", "fromFailure"})
_CONFIGURATION_LENGTH = 1 << 15


@dataclass(frozen=True)
class Selection:
    """Assets and checks that are named beside a job, or instead of one."""

    job: str
    """Empty where none is named."""
    keys: frozenset[Key]


@dataclass(frozen=True)
class Execution:
    """One thing that a mutation starts."""

    jobs: frozenset[str]
    """That it names: one, or it is not to be trusted, for Dagster may read another name than who judges it."""
    keys: frozenset[Key]
    tag_lists: tuple[list[Any], ...]
    """Lists of `{key, value}`, as Dagster will read them."""
    configurations: tuple[object, ...]
    repeats: tuple[DagsterRun | PartitionBackfill, ...]
    parent_run_id: str
    root_run_id: str
    """That it claims to belong to; empty for none."""
    is_backfill: bool
    names_steps: bool

    @property
    def job(self) -> str:
        """That it names, or whose run it repeats; empty where there is none."""
        return next(iter(self.jobs), "") or next((past.job_name for past in self.repeats if isinstance(past, DagsterRun)), "")

    @property
    def tags(self) -> list[tuple[str, str]]:
        """All that are sent."""
        return [_tag(told) for tags in self.tag_lists for told in tags]

    @property
    def selections(self) -> Iterator[Selection]:
        """Of itself and of what it repeats."""
        yield Selection(self.job, self.keys)
        for past in self.repeats:
            if isinstance(past, DagsterRun):
                yield Selection(past.job_name, frozenset({*(past.asset_selection or ()), *(past.asset_check_selection or ())}))
            else:
                yield Selection(_job_of(past), frozenset(past.asset_selection or ()))

    @property
    def leaves_the_lab(self) -> bool:
        """Whether it may start a drill elsewhere than on the lab."""
        return any(leaves_the_lab(c) for c in (*self.configurations, *(past.run_config for past in self.repeats)) if c)

    @property
    def is_muddled(self) -> bool:
        """Whether it names two jobs, repeats what is of another one, or claims to belong to another run than the one it repeats."""
        runs = [past for past in self.repeats if isinstance(past, DagsterRun)]
        roots = {root for run in runs for root in (run.root_run_id or run.run_id, run.run_id)}
        return (
            len(self.jobs) > 1
            or any(self.job not in {"", run.job_name} for run in runs)
            or bool(self.root_run_id and self.root_run_id not in roots)
        )


def executions_of(arguments: Mapping[str, Any], instance: DagsterInstance) -> list[Execution]:
    """Of a mutation with these arguments.

    Args:
        arguments: as GraphQL has read them.
        instance: has the runs and backfills that are repeated.
    """
    each = ((name, one) for name, value in arguments.items() for one in (value if isinstance(value, list | tuple) else [value]))
    return [_execution(one if isinstance(one, Mapping) else {name: one}, instance) for name, one in each]


def _execution(tree: Mapping[str, Any], instance: DagsterInstance) -> Execution:
    past = (str(value) for key in ("parentRunId", "backfillId") for value in _values(tree, key) if value)
    return Execution(
        frozenset(str(value) for key in ("jobName", "pipelineName") for value in _values(tree, key) if value),
        frozenset(_keys(tree)),
        tuple(tag_lists(tree)),
        tuple(_values(tree, "runConfigData")),
        tuple(found for id_ in past if (found := instance.get_run_by_id(id_) or instance.get_backfill(id_))),
        _first(tree, "parentRunId"),
        _first(tree, "rootRunId"),
        any(key in _OF_BACKFILLS for key, _ in _pairs(tree)),
        any(_values(tree, "stepKeys")),
    )


def leaves_the_lab(run_config: object) -> bool:
    """Whether a run configuration names another drill target than the lab.

    The target of a drill is the one thing in a run's configuration that decides who may start it. Whatever is not plainly `lab`
    counts: an environment variable, a list, text that cannot be read, is long or has aliases (a few lines of which are gigabytes).
    """
    if isinstance(run_config, str | bytes):
        try:
            if len(run_config) > _CONFIGURATION_LENGTH or any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(run_config)):
                return True
            run_config = yaml.safe_load(run_config)
        except (yaml.YAMLError, RecursionError):
            return True
        if isinstance(run_config, str):
            return True
    return any(value != "lab" for value in _values(run_config, "target"))


_PEOPLES = frozenset(
    {
        "dagster/partition",
        "dagster/partition_set",
        "dagster/step_selection",
        "dagster/op_selection",
        "dagster/solid_selection",
        "dagster/preset_name",
        "dagster/from_ui",
    }
)
"""What the UI itself sends."""
_SYSTEMS = ("dagster/", ".dagster/", "dagster-", "docker/", "celery", "akidb/")
PARTITION = "dagster/partition"
_GOES_ON = ("dagster/is_resume_retry", "true")
"""Of a run that does what its parent left: its success ends that one's alert. With steps of its own choosing it does less."""


def claim(execution: Execution, own: Collection[tuple[str, str]], partitions: MultiPartitionsDefinition | None) -> list[str]:
    """Names of the tags that people have no business with: they say who started a run, whether its failure matters, where and when it runs.

    Two things are put right in the lists. The UI sends back all tags of a run that is run again: those of the daemon's are about that run
    alone and are taken out. And a run of a device or runner gets the tags by which it waits for its turn, which Dagster leaves to the UI.

    Args:
        execution: what is sent.
        own: tags of its job's definition, which the UI sends back, too.
        partitions: of what is started, where it has devices or runners.
    """
    if execution.is_backfill:  # which writes them itself
        return sorted({key for key, _ in execution.tags if key.startswith(_SYSTEMS) and key != "dagster/from_ui"})
    accepted = {*own, ("dagster/parent_run_id", execution.parent_run_id), ("dagster/root_run_id", execution.root_run_id)}
    if execution.parent_run_id and not execution.names_steps:
        accepted.add(_GOES_ON)
    past = {
        tag
        for run in execution.repeats
        if isinstance(run, DagsterRun) and run.job_name == execution.job
        for tag in run.tags.items()
    }
    for tags in execution.tag_lists:
        tags[:] = [t for t in tags if (tag := _tag(t)) not in past or tag in accepted or not _is_systems(tag[0])]
        for partition in [value for key, value in map(_tag, tags) if key == PARTITION and partitions]:
            accepted |= (right := _of_dimensions(partition, partitions))
            tags += [{"key": key, "value": value} for key, value in sorted(right - {*map(_tag, tags)})]
    names = [key for key, _ in execution.tags]

    def is_claimed(key: str) -> bool:
        # Of two values Dagster decides which one counts.
        return _is_systems(key) or (names.count(key) > 1 and key.startswith(_SYSTEMS))

    return sorted(
        {key for key, value in execution.tags if is_claimed(key) and ((key, value) not in accepted or names.count(key) > 1)}
    )


def _of_dimensions(partition: str, partitions: MultiPartitionsDefinition | None) -> set[tuple[str, str]]:
    """Of `docker|2026-11-16`: tags `dagster/partition/runner` and `/week`."""
    dimensions = sorted(partitions.partition_dimension_names) if partitions else []
    parts = partition.split("|")
    return (
        {(f"{PARTITION}/{d}", part) for d, part in zip(dimensions, parts, strict=True)} if len(parts) == len(dimensions) else set()
    )


def _tag(told: Any) -> tuple[str, str]:
    return str(told["key"]), str(told["value"])


def _is_systems(key: str) -> bool:
    return key.startswith(_SYSTEMS) and key not in _PEOPLES


def _keys(tree: object) -> Iterator[Key]:
    for node in _nodes(tree):
        yield from (_asset(each) for each in node.get("assetSelection") or ())
        yield from (_asset((each or {}).get("assetKey")) for each in node.get("partitionsByAssets") or ())
        for each in node.get("assetCheckSelection") or ():
            yield AssetCheckKey(_asset((each or {}).get("assetKey")), str((each or {}).get("name")))


def _asset(told: Any) -> AssetKey:
    """What is none is a key that nobody has."""
    return AssetKey([str(part) for part in (told or {}).get("path") or ["?"]])


def _job_of(backfill: PartitionBackfill) -> str:
    return job_name_for_partition_set_snap_name(backfill.partition_set_name) if backfill.partition_set_name else ""


def tag_lists(tree: object) -> Iterator[list[Any]]:
    """Lists of `{key, value}`, whatever they are called."""
    for _, value in _pairs(tree):
        if isinstance(value, list) and value and all(isinstance(t, Mapping) and {*t} == {"key", "value"} for t in value):
            yield value


def _values(tree: object, key: str) -> Iterator[Any]:
    yield from (node[key] for node in _nodes(tree) if key in node)


def _first(tree: object, key: str) -> str:
    return next((str(value) for value in _values(tree, key) if value), "")


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
