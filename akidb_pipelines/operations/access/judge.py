"""Asks Cedar: may this principal do that? The sandbox's policies of namespace AkiDB::Ops answer, and nothing else.

Policies that change on disk hold from the next look on, at most five seconds later. While the files are broken the last good ones hold, and
the log says so; the front does not start with broken ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import cedarpy
from prometheus_client import CollectorRegistry, Histogram

from akidb_pipelines.cedar.authorize import Authorizer, Decision, entity
from akidb_pipelines.cedar.sandbox import OPS, Sandbox, load_sandbox
from akidb_pipelines.errors import CheckError, InputError
from akidb_pipelines.operations.access.identity import Principal
from akidb_pipelines.operations.access.rights import Right

_LOOK_S = 5
_REMEMBERED_S = 30
"""A decision is asked for anew after so long: a page of the UI asks the same a hundred times."""
_MOST_REMEMBERED = 20_000
_BUCKETS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Seconds. 5 ms is the alert's limit and must be a bound."""
_log = logging.getLogger(__name__)


class Judge:
    """Decides.

    Args:
        folder: another sandbox than the shipped one.
        measured: told how long each of Cedar's evaluations took, in seconds.
        clock: seconds that only grow.

    Raises:
        InputError: the sandbox is unusable.
    """

    def __init__(
        self,
        folder: Path | None = None,
        measured: Callable[[float], None] = lambda seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._measured, self._clock = folder, measured, clock
        self._lock = threading.Lock()
        self._stamp = self._files()
        self._sandbox = load_sandbox(folder)
        self._policies = self._sandbox.policy_set(OPS)
        self._looked = self._began = clock()
        self._remembered: dict[tuple[Principal, Right], Decision] = {}
        self._asking: dict[Principal, Authorizer] = {}

    def decide(self, principal: Principal, right: Right) -> Decision:
        """Cedar's decision. What Cedar cannot evaluate is denied, under the name of what went wrong."""
        with self._lock:
            self._look()
            sandbox, policies, cedar = self._sandbox, self._policies, self._asking.get(principal)
            if known := self._remembered.get((principal, right)):
                return known
        try:
            # Reading the principal into Cedar is no part of a decision, and is done once for each.
            cedar = cedar or _asking(sandbox, policies, principal)
            began = perf_counter()
            decision = cedar.decide((f"{OPS}::User", principal.id), right.action, (f"{OPS}::{right.kind}", right.id))
            self._measured(perf_counter() - began)
        except CheckError as error:
            _log.error("%s", error)
            decision = Decision(False, f"error: {error}")
        with self._lock:
            if cedar and sandbox is self._sandbox:
                self._remembered[principal, right] = decision
                self._asking[principal] = cedar
        return decision

    def _look(self) -> None:
        """Take up other policies, and forget old decisions."""
        now = self._clock()
        if now - self._began > _REMEMBERED_S or len(self._remembered) > _MOST_REMEMBERED:
            self._forget()
            self._began = now
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        if (stamp := self._files()) == self._stamp:
            return
        try:
            sandbox = load_sandbox(self._folder)
        except InputError as error:
            _log.error("the policies were changed and are broken; those of before stay in force: %s", error)
            return
        self._stamp, self._sandbox, self._policies = stamp, sandbox, sandbox.policy_set(OPS)
        self._forget()
        _log.warning("the policies were changed: AkiDB::Ops is now %s", sandbox.sha256(OPS)[:16])

    def _forget(self) -> None:
        self._remembered.clear()
        self._asking.clear()

    def _files(self) -> tuple[tuple[str, int, int], ...]:
        if self._folder is None:
            return ()
        found = sorted(self._folder.glob("*.cedar*"))
        try:
            return tuple((p.name, s.st_mtime_ns, s.st_size) for p in found if (s := p.stat()))
        except OSError:  # one that is gone: whoever loads them says which
            return ()


def _asking(sandbox: Sandbox, policies: cedarpy.PolicySet, principal: Principal) -> Authorizer:
    """Cedar, knowing this principal."""
    user = (f"{OPS}::User", principal.id)
    teams = [(f"{OPS}::Team", team) for team in principal.teams]
    return Authorizer(sandbox, [entity(user, {"email": principal.email}, *teams)], policies, OPS)


def decision_times(registry: CollectorRegistry) -> Histogram:
    """How long Cedar takes for a decision, as the alert cedar.latency.p99>5ms reads it; by `source`, front or probe."""
    return Histogram(
        "akidb_pipelines_cedar_decision_seconds",
        "Time of one evaluation by Cedar.",
        ["source"],
        buckets=_BUCKETS,
        registry=registry,
    )
