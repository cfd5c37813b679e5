"""Dagster's request context, with every permission decided by Cedar.

The UI greys its buttons by what stands here, and Dagster's own resolvers ask it before they change anything. Without a principal nothing is
permitted. While a matter is before the court (a mutation, mostly), decisions go into the journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dagster import AssetCheckKey, AssetKey, MultiPartitionsDefinition
from dagster._core.remote_representation.code_location import is_implicit_asset_job_name
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.permissions import EDITOR_PERMISSIONS, LOCATION_SCOPED_PERMISSIONS, PermissionResult, Permissions
from starlette.requests import HTTPConnection

from akidb_pipelines.cedar.authorize import Decision
from akidb_pipelines.operations.access.identity import Principal
from akidb_pipelines.operations.access.journal import Entry, Journal
from akidb_pipelines.operations.access.judge import Judge
from akidb_pipelines.operations.access.limits import Meter
from akidb_pipelines.operations.access.reach import Execution, Key, Selection, claim
from akidb_pipelines.operations.access.rights import ADMINISTER, LAUNCH, OCI_DRILL, ON_DEPLOYMENT, SANDBOX_CHECKS, Right, starting

USER_TAG = "user"
"""Of a run: who asked for it."""
SCOPE_KEY = "akidb.principal"
"""Where the gate leaves the principal of a connection."""
_NOBODY = Principal("nobody", "", (), 0)


@dataclass(frozen=True)
class Access:
    """What decides, and where that is written down."""

    judge: Judge
    journal: Journal

    def record(self, principal: Principal, right: Right, decision: Decision, matter: Matter, address: str) -> None:
        """Write a decision down.

        Raises:
            OutsideError: it cannot be; what was asked must not be done.
        """
        entry = Entry(
            principal.name,
            principal.id,
            principal.teams,
            matter.asked,
            matter.about if decision.allowed else matter.in_short or matter.about,
            str(right),
            decision.allowed,
            decision.policy,
            address,
        )
        self.journal.write(entry)


@dataclass
class Matter:
    """What is being decided: a mutation, or a page that not everybody may read."""

    asked: str
    about: str = ""
    in_short: str = ""
    """What is written of it if it is denied."""
    written: set[tuple[Right, bool]] = field(default_factory=set)
    """Decisions about it that stand in the journal: the same one twice says no more."""
    denied: tuple[Right, Decision] | None = None
    """The denial that stands if no narrower right is asked for about the same thing."""


class CedarRequestContext(WorkspaceRequestContext):
    """One request of one principal."""

    def __init__(self, access: Access, principal: Principal | None, address: str, **dagster: Any) -> None:
        super().__init__(**dagster)
        self._access, self._address = access, address
        self.principal = principal or _NOBODY
        self.meter = Meter()
        self._matter: Matter | None = None

    @contextmanager
    def deciding(self, asked: str, about: str = "", in_short: str = "") -> Iterator[None]:
        """Decisions in here are about that, and are written down."""
        self._matter = matter = Matter(asked, about, in_short)
        try:
            yield
        finally:
            self._settle(matter)
            self._matter = None

    def may(self, right: Right, *, at_large: bool = False) -> bool:
        """Whether the principal may. It is written down before it is done.

        Args:
            right: what it takes.
            at_large: a narrower right may do as well, and will be asked for if this one is denied.

        Raises:
            OutsideError: the decision cannot be written down.
        """
        decision = self._access.judge.decide(self.principal, right)
        if matter := self._matter:
            if at_large:
                self._settle(matter)  # of the thing before
            matter.denied = (right, decision) if at_large and not decision.allowed else None
            if not matter.denied:
                self._write(matter, right, decision)
        return decision.allowed

    def _settle(self, matter: Matter) -> None:
        if matter.denied:
            self._write(matter, *matter.denied)
            matter.denied = None

    def _write(self, matter: Matter, right: Right, decision: Decision) -> None:
        if (right, decision.allowed) not in matter.written:
            self._access.record(self.principal, right, decision, matter, self._address)
            matter.written.add((right, decision.allowed))

    def instigators(self) -> Mapping[str, str]:
        """Names of schedules and sensors, by the ids under which Dagster keeps them: also of those that are gone."""
        names = {state.instigator_origin_id: state.instigator_name for state in self.instance.all_instigator_state()}
        for location in self.code_locations:
            for repository in location.get_repositories().values():
                names |= {schedule.get_remote_origin_id(): schedule.name for schedule in repository.get_schedules()}
                names |= {sensor.get_remote_origin_id(): sensor.name for sensor in repository.get_sensors()}
        return names

    # --- what Dagster does not ask

    def forbidden(self, execution: Execution) -> str:
        """What of it the principal may not have; empty if they may have it all. Tags that the UI only echoes are taken out."""
        if execution.is_muddled and not self.may(ADMINISTER):
            return "start what names two jobs, or belongs to a run of another one"
        own = {(key, str(value)) for key, value in self._tags_of(execution.job)}
        if (tags := claim(execution, own, self._partitions(execution))) and not self.may(ADMINISTER):
            return f"set {', '.join(tags)}, which only Dagster's daemon and who administers do"
        beyond = (key for selection in execution.selections for key in self._beyond(selection))
        if (key := next((k for k in beyond if not self._may_start(k)), None)) is not None:
            return f"start {key.to_user_string()}"
        return str(OCI_DRILL) if execution.leaves_the_lab and not self.may(OCI_DRILL) else ""

    def _beyond(self, selection: Selection) -> list[Key]:
        """What is selected and no part of the job: whoever may start the job may not start that for it."""
        own = set() if is_implicit_asset_job_name(selection.job) else self._keys_of(selection.job)
        return sorted(selection.keys - own, key=lambda key: key.to_user_string())

    def _keys_of(self, job: str) -> set[Key]:
        checks = self.asset_graph.remote_asset_check_nodes_by_key.items()
        return {
            *(node.key for node in self.asset_graph.asset_nodes if job in node.job_names),
            *(key for key, node in checks if job in node.asset_check.job_names),
        }

    def _partitions(self, execution: Execution) -> MultiPartitionsDefinition | None:
        """Of its job's assets, or of those that it names itself, if they have devices or runners."""
        keys = execution.keys if is_implicit_asset_job_name(execution.job) else self._keys_of(execution.job)
        known = (self.asset_graph.get(key) for key in keys if isinstance(key, AssetKey) and self.asset_graph.has(key))
        return next((p for node in known if isinstance(p := node.partitions_def, MultiPartitionsDefinition)), None)

    def _may_start(self, key: Key) -> bool:
        rights = {right for owner in self.get_owners_for_selector(key) if (right := starting([owner]))}
        return self.may(ADMINISTER, at_large=True) or any(self.may(right) for right in sorted(rights))

    def _tags_of(self, job: str) -> Iterable[tuple[str, str]]:
        """As its definition has them: the UI sends them back."""
        for location in self.code_locations:
            for repository in location.get_repositories().values():
                if repository.has_job(job):
                    yield from repository.get_full_job(job).tags.items()

    # --- what Dagster asks

    @property
    def permissions(self) -> Mapping[str, PermissionResult]:
        """On the deployment."""
        return {p.value: self._result(p, ON_DEPLOYMENT[p]) for p in Permissions}

    def permissions_for_location(self, *, location_name: str) -> Mapping[str, PermissionResult]:
        """There is one location: as on the deployment."""
        return {p.value: self._result(p, ON_DEPLOYMENT[p]) for p in LOCATION_SCOPED_PERMISSIONS}

    def has_permission(self, permission: str) -> bool:
        """One permission, rather than all of them for the sake of one."""
        self._checked_permissions.add(permission)
        which = Permissions(permission)
        return EDITOR_PERMISSIONS[which] and self.may(ON_DEPLOYMENT[which], at_large=which in LAUNCH)

    def has_permission_for_location(self, permission: str, location_name: str) -> bool:
        """There is one location: as on the deployment. About starting something that was asked, and denied, right before."""
        which = Permissions(permission)
        if which in LAUNCH and self._matter and self._matter.denied:
            return False
        return self.has_permission(permission)

    def permissions_for_owner(self, *, owner: str) -> Mapping[str, PermissionResult]:
        """What starting something of this owner takes."""
        right = starting([owner])
        return {p.value: self._result(p, right) for p in LAUNCH} if right else {}

    def has_permission_for_owners(self, permission: str, owners: Sequence[str]) -> bool:
        """Starting is decided by what is started; nothing else is."""
        self._checked_permissions.add(permission)
        if Permissions(permission) not in LAUNCH:
            return False
        # `team:sandbox` is added to the owners of its checks: either right is enough.
        return any(self.may(right) for owner in owners if (right := starting([owner])))

    def get_owners_for_selector(self, selector: Any) -> Sequence[str]:
        """Who manages the sandbox may run its checks."""
        owners = super().get_owners_for_selector(selector)
        if isinstance(selector, AssetCheckKey) and selector.name in SANDBOX_CHECKS:
            return [*owners, "team:sandbox"]
        return owners

    def viewer_has_any_owner_definition_permissions(self) -> bool:
        """Ask about owners."""
        return bool(self.principal.teams)

    def get_viewer_tags(self) -> dict[str, str]:
        """Tags of the backfills that they start."""
        return {USER_TAG: self.principal.name}

    def get_reporting_user_tags(self) -> dict[str, str]:
        """Tags of the events that they report."""
        return self.get_viewer_tags()

    def _result(self, permission: Permissions, right: Right) -> PermissionResult:
        # What this edition of Dagster cannot do, nobody may.
        if EDITOR_PERMISSIONS[permission] and self._access.judge.decide(self.principal, right).allowed:
            return PermissionResult(True, None)
        return PermissionResult(False, f"{self.principal.name} may not {right} (Cedar)")


class CedarProcessContext(WorkspaceProcessContext):
    """Makes the contexts of requests."""

    def __init__(self, access: Access, **dagster: Any) -> None:
        self.access = access
        super().__init__(**dagster)

    def create_request_context(self, source: object | None = None) -> CedarRequestContext:
        """For one connection; what is no connection is nobody's."""
        scope = source.scope if isinstance(source, HTTPConnection) else {}
        client = scope.get("client")
        return CedarRequestContext(
            self.access,
            scope.get(SCOPE_KEY),
            client[0] if client else "",
            instance=self._instance,
            current_workspace=self.get_current_workspace(),
            process_context=self,
            version=self.version,
            source=source,
            read_only=self._read_only,
        )
