"""What stops a drill before anything is touched. A guard is a function of values that raises GuardError; `preparing` asks the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from akidb_pipelines.backups.dump import Dump
from akidb_pipelines.drills.scenarios import Guard, Scenario
from akidb_pipelines.drills.target import ALLOWED, TAG, Node
from akidb_pipelines.errors import CheckError, InputError


class GuardError(CheckError):
    """A guard stopped the drill; nothing was touched.

    Args:
        guard: which.
        message: what it found.
        hint: what to do.
    """

    def __init__(self, guard: Guard, message: str, *, hint: str) -> None:
        super().__init__(f"guard {guard.value}: {message}; nothing was touched", hint=hint)
        self.guard = guard


@dataclass(frozen=True)
class AllowList:
    """What may be touched, as its file says."""

    source: str
    environment: str
    cluster: str
    targets: tuple[str, ...]


def read_allow_list(path: Path) -> AllowList:
    """Read an allow-list.

    Raises:
        InputError: it is not there, or says something else.
    """
    import yaml

    try:
        told: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        targets = told["targets"]
        if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
            raise ValueError(f"targets is {targets!r}")
        return AllowList(str(path), str(told["environment"]), str(told["cluster"]), tuple(targets))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(
            f"allow-list {path}: {error!r}", hint="it names environment, cluster and targets; docs/dr-plan.md has one to copy"
        ) from error


def choose(scenario: Scenario, nodes: Sequence[Node], allowed: AllowList, named: str) -> list[Node]:
    """The nodes that are to be lost: as many as the scenario says, of those that may be touched.

    Args:
        scenario: what is rehearsed.
        nodes: all there are.
        allowed: what may be touched.
        named: the one that somebody named; empty leaves it to the scenario.

    Raises:
        GuardError: not exactly so many may be touched.
    """
    if not scenario.victims:
        return []
    names = [n.name for n in nodes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        ids = ", ".join(n.id for n in nodes if n.name == twice[0])
        raise GuardError(
            Guard.ONE_TARGET,
            f"node {twice[0]}: several have that name: {ids}",
            hint="rename or terminate all but one; a ghost in the swarm: docker node demote ID; docker node rm ID",
        )
    if named:
        meant = [n for n in nodes if n.name == named]
        if not meant:
            found = "there is none"
            raise GuardError(
                Guard.ONE_TARGET, f"node {named}: {found}", hint=f"name one of {', '.join(sorted({n.name for n in nodes}))}"
            )
        expect_allowed(meant[0], allowed)
        if scenario.victims == 1:
            return meant
    else:
        meant = []
    may = [n for n in nodes if n.ready and n.name in allowed.targets and n.tags.get(TAG) == ALLOWED and n not in meant]
    may.sort(key=lambda n: (n.leader is not scenario.leader, n.name))
    if scenario.leader and may and not may[0].leader:
        raise GuardError(
            Guard.ALLOW_LIST, "the leader may not be touched", hint=f"add it to {allowed.source}, and tag it {TAG}={ALLOWED}"
        )
    chosen = [*meant, *may][: scenario.victims]
    if len(chosen) < scenario.victims:
        raise GuardError(
            Guard.ONE_TARGET,
            f"{len(chosen)} nodes may be touched, {scenario.name} needs {scenario.victims}",
            hint=f"a node must be ready, stand in {allowed.source} and carry the tag {TAG}={ALLOWED}",
        )
    return chosen


def expect_allowed(node: Node, allowed: AllowList) -> None:
    """That a node stands in the allow-list and carries the tag.

    Raises:
        GuardError: one of both is not so.
    """
    if node.name not in allowed.targets:
        raise GuardError(
            Guard.ALLOW_LIST, f"{node.name} does not stand in {allowed.source}", hint="add it there, if it may be lost"
        )
    if node.tags.get(TAG) != ALLOWED:
        found = node.tags.get(TAG, "not there")
        raise GuardError(
            Guard.ALLOW_LIST, f"{node.name}: its tag {TAG} is {found}", hint=f"tag it {TAG}={ALLOWED}, if it may be lost"
        )


def expect_cluster(found: str, allowed: AllowList) -> None:
    """That the allow-list is of this very cluster.

    Raises:
        GuardError: it is of another one.
    """
    if found != allowed.cluster:
        raise GuardError(
            Guard.ALLOW_LIST,
            f"this is cluster {found}, {allowed.source} is of {allowed.cluster}",
            hint="look where you are; then correct it",
        )


def expect_tools(hindrance: str) -> None:
    """That whoever takes a node down here can build it anew here, and it alone.

    Raises:
        GuardError: something is in the way.
    """
    if hindrance:
        raise GuardError(
            Guard.TOOLS,
            hindrance,
            hint="drill where Terraform is and has nothing else to do; recover a drill there, too (docs/dr-plan.md)",
        )


def expect_quorum(nodes: Sequence[Node], victims: Sequence[Node]) -> None:
    """That those who stay are a majority of all managers; distinct addresses count, so that a ghost counts once.

    Raises:
        GuardError: they are not.
    """
    all_managers = {n.address for n in nodes if n.manager}
    lost = {n.address for n in victims}
    stay = {n.address for n in nodes if n.is_healthy_manager} - lost
    needed = len(all_managers) // 2 + 1
    if all_managers and len(stay) < needed:
        raise GuardError(
            Guard.QUORUM,
            f"{len(stay)} healthy managers would stay of {len(all_managers)}, {needed} are needed",
            hint="heal the cluster first: docker node ls",
        )


def expect_backup(dump: Dump | None, where: str, *, verified: bool) -> None:
    """That there is a verified backup of this very database.

    Raises:
        GuardError: there is none.
    """
    if dump is None:
        raise GuardError(Guard.BACKUP, f"there is no backup of {where}", hint="akidb-pipelines backups run")
    if not verified:
        raise GuardError(Guard.BACKUP, f"{dump.id} is not verified", hint=f"akidb-pipelines backups verify {dump.id}")


def expect_young(dump: Dump, now: datetime, rpo_s: float) -> None:
    """That a backup is younger than the recovery point objective.

    Raises:
        GuardError: it is older.
    """
    age = dump.age_s(now)
    if age > rpo_s:
        raise GuardError(
            Guard.BACKUP_AGE,
            f"{dump.id} is {age / 3600:.1f} h old, {rpo_s / 3600:.0f} h are allowed",
            hint="akidb-pipelines backups run",
        )


def expect_confirmed(confirm: str, environment: str, node: str, today: date) -> None:
    """That somebody wrote down what is about to be lost, today.

    Raises:
        GuardError: other, or nothing, was written.
    """
    expected = f"{environment}/{node}/{today.isoformat()}"
    if confirm != expected:
        raise GuardError(Guard.CONFIRM, f"confirm is {confirm!r}", hint=f"if you mean it: --confirm {expected}")
