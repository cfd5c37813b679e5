"""What is rehearsed: scenarios as values. Which phases each goes through, which guards it waives in the lab, what must come of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from akidb_pipelines.errors import InputError

RTO_S, RPO_S = 7_200, 93_600
"""Recovery time and recovery point objectives: two hours; a day, and two hours for dumping."""


class Phase(StrEnum):
    """In the order in which they come."""

    PREFLIGHT = "preflight"
    BASELINE = "baseline"
    INJECT = "inject"
    DETECT = "detect"
    RESCHEDULE = "reschedule"
    EVICT = "evict"
    REBUILD = "rebuild"
    JOIN = "join"
    RESTORE = "restore"
    VERIFY = "verify"
    RECONSTITUTE = "reconstitute"
    REPORT = "report"


class Verdict(StrEnum):
    """What came of a drill."""

    PASSED = "passed"
    FAILED = "failed"
    """The recovery did not do what it must."""
    ABORTED = "aborted"
    """A guard, the kill switch or the operator stopped it."""
    DRY_RUN = "dry_run"
    """Nothing was touched."""


class Guard(StrEnum):
    """What stops a drill before it touches anything."""

    ALLOW_LIST = "allow-list"
    ONE_TARGET = "one-target"
    QUORUM = "quorum"
    BACKUP = "verified-backup"
    BACKUP_AGE = "backup-age"
    CONFIRM = "confirm"
    TOOLS = "tools"


class Fault(StrEnum):
    """What is done to a node, or to the state."""

    POWER_OFF = "power_off"
    ISOLATE = "isolate"
    LOSE_STATE = "lose_state"


_NODE = tuple(Phase)
_PARTITION = tuple(p for p in Phase if p not in {Phase.EVICT, Phase.REBUILD, Phase.RESTORE})
_STATE = (
    *(Phase.PREFLIGHT, Phase.BASELINE, Phase.INJECT, Phase.DETECT),
    *(Phase.RESTORE, Phase.VERIFY, Phase.RECONSTITUTE, Phase.REPORT),
)


@dataclass(frozen=True)
class Scenario:
    """One thing that can go wrong."""

    name: str
    summary: str
    fault: Fault = Fault.POWER_OFF
    victims: int = 1
    leader: bool = False
    """Whether the leader is to be lost; else a follower is preferred."""
    waived: frozenset[Guard] = frozenset()
    """In the lab only."""
    phases: tuple[Phase, ...] = _NODE
    expected: Verdict = Verdict.PASSED
    fails: str = ""
    """The criterion that must fail, where the drill must."""
    corrupts: bool = False
    """Whether the first copy that is brought back is damaged on its way into the volume."""
    stale: bool = False
    """Whether only a backup older than the recovery point objective is there."""

    @property
    def is_for_the_lab(self) -> bool:
        """Whether it waives a guard, or spoils something on purpose."""
        return bool(self.waived) or self.corrupts or self.stale


SCENARIOS = {
    s.name: s
    for s in (
        Scenario("node_power_off", "A node loses its power and never comes back."),
        Scenario("leader_power_off", "The leader of the managers loses its power.", leader=True),
        Scenario(
            "partition",
            "A node is cut off the network; what runs on it goes on until it is heard of again.",
            fault=Fault.ISOLATE,
            phases=_PARTITION,
        ),
        Scenario(
            "quorum_loss",
            "Two of three managers lose their power: nobody can decide any more.",
            victims=2,
            waived=frozenset({Guard.ONE_TARGET, Guard.QUORUM}),
        ),
        Scenario(
            "volume_corruption",
            "A node is lost, and the first copy of its database is damaged on the way back.",
            corrupts=True,
        ),
        Scenario(
            "stale_backup",
            "A node is lost, and its newest backup is too old. The check of the check: this must fail.",
            waived=frozenset({Guard.BACKUP_AGE}),
            expected=Verdict.FAILED,
            fails="rpo",
            stale=True,
        ),
        Scenario(
            "lost_terraform_state",
            "Terraform's state is gone.",
            fault=Fault.LOSE_STATE,
            victims=0,
            waived=frozenset({Guard.ONE_TARGET}),
            phases=_STATE,
        ),
    )
}
"""By name. The first is the one of the quarterly schedule."""
DEFAULT = "node_power_off"


def scenario_named(name: str) -> Scenario:
    """One scenario.

    Raises:
        InputError: there is none of that name.
    """
    if scenario := SCENARIOS.get(name):
        return scenario
    raise InputError(f"there is no scenario {name!r}", hint=f"choose among {', '.join(SCENARIOS)}")


DEADLINES: dict[Phase, float] = {
    Phase.PREFLIGHT: 600,
    Phase.BASELINE: 120,
    Phase.INJECT: 120,
    Phase.DETECT: 300,
    Phase.RESCHEDULE: 300,
    Phase.EVICT: 120,
    Phase.REBUILD: 3600,
    Phase.JOIN: 600,
    Phase.RESTORE: 4500,
    Phase.VERIFY: 900,
    Phase.RECONSTITUTE: 600,
    Phase.REPORT: 120,
}
"""Seconds that a phase may take. Rebuilding, and an archive that must come back, take an hour each; the objective holds for the whole."""
TIME_BOX_S = 9_000.0
"""A drill is stopped after so long, whatever it does."""
