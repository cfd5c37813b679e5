"""Weekly fixtures: the sandbox schema they agree with, the databases, their checks, the release.

No `from __future__ import annotations` here: Dagster reads the annotations of `context` as they stand.
"""

import warnings
from collections.abc import Iterator, Sequence
from datetime import timedelta

import dagster as dg

from akidb_pipelines.cedar.sandbox import OPS, PRODUCT
from akidb_pipelines.errors import PipelineError
from akidb_pipelines.fixtures.checklist import BLOCKING_CHECKS, CHECKS, KIND
from akidb_pipelines.fixtures.stale import affected_weeks
from akidb_pipelines.periods import Week
from akidb_pipelines.progress import Progress
from akidb_pipelines.resources import FixtureTools
from assets.checks import check_result, drift_of
from assets.common import BUILD, SECURITY, built_metadata, logging, newest_partition, started_by, telling
from assets.fixture_metadata import build_metadata, drift_metadata
from assets.partitions import WEEKS

GROUP = "fixtures"
SANDBOX = dg.AssetKey("cedar_sandbox_schema")
DATABASES = dg.AssetKey("fixture_databases")
RELEASE = dg.AssetKey("fixture_release")
AGREES = "sandbox_agrees"

Tools = dg.ResourceParam[FixtureTools]


def _week(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, asset: dg.AssetKey) -> Week:
    """The week that a step is about."""
    key = newest_partition(context, asset)
    with telling():
        return Week.parse(key)


class FixtureConfig(dg.Config):
    """What to build."""

    profiles: list[str] = []  # noqa: RUF012 - pydantic copies defaults
    """Of ci, standard, load; empty takes the setting AKIDB_PROFILES (ci and standard)."""


_SANDBOX_SPEC = dg.AssetSpec(
    SANDBOX,
    group_name=GROUP,
    description="Schema and policies of the Cedar sandbox. Its data version is the digest of namespace AkiDB and its policies.",
    owners=started_by("sandbox", SECURITY),
    kinds={"cedar"},
    tags={"runbook": "fixture-drift"},
)
with warnings.catch_warnings():
    # The stable decorator for one observable asset takes no owners; this one does, and warns that it is beta.
    warnings.simplefilter("ignore", dg.BetaWarning)
    observable = dg.multi_observable_source_asset(name="observe_cedar_sandbox", specs=[_SANDBOX_SPEC])


@observable  # type: ignore[untyped-decorator]
def cedar_sandbox_schema(context: dg.AssetExecutionContext, fixture_tools: Tools) -> dg.ObserveResult:
    """Read the sandbox and tell its digest; fixtures built for another one become stale."""
    with telling():
        sandbox = fixture_tools.open_workshop().sandbox
    namespace = sandbox.model.namespace(PRODUCT)
    context.log.info(f"{sandbox.source}: {len(namespace.entities)} entity types, {len(sandbox.policies)} policies")
    return dg.ObserveResult(
        asset_key=SANDBOX,
        data_version=dg.DataVersion(sandbox.sha256(PRODUCT)),
        metadata={
            "source": sandbox.source,
            "entity types": len(namespace.entities),
            "actions": len(namespace.concrete_actions),
            "policies": dg.MetadataValue.text(", ".join(p.id for p in sandbox.policies_of(PRODUCT))),
            "digest of AkiDB::Ops": sandbox.sha256(OPS),
        },
    )


@dg.asset(
    key=DATABASES,
    partitions_def=WEEKS,
    deps=[SANDBOX],
    group_name=GROUP,
    owners=started_by("fixtures"),
    kinds={"sqlite", "python"},
    code_version="1",
    description="SQLite test databases of a week: five tenants, users, vectors with exact ground truth, a week of audited requests.",
    tags={"runbook": "weekly-fixtures-failed"},
)
def fixture_databases(context: dg.AssetExecutionContext, config: FixtureConfig, fixture_tools: Tools) -> dg.MaterializeResult[None]:
    """Build the week's profiles. Nothing is published before the checks have passed."""
    week = _week(context, DATABASES)
    with telling():
        profiles = config.profiles or list(fixture_tools.settings.profiles)
        build = fixture_tools.open_workshop().build(week, profiles, fixture_tools.progress or logging(context))
    return dg.MaterializeResult(data_version=dg.DataVersion(build.sha256), metadata=build_metadata(build, fixture_tools))


_ABOUT_CHECKS = {
    "columns": "Every table by Great Expectations, generated from the Cedar schema, and what AkiDB's own readers demand.",
    "cedar_entities": "Every row as an entity, judged by Cedar.",
    "authorization_matrix": "Policies, users and audit rows against AkiDB's role model.",
    "schema_drift": "Sandbox schema against the database's DDL, and both against last week's. Breaking drift holds the release back.",
    "policy_latency": "P99 of a Cedar decision at 10,000 policies: below 5 ms when sliced by tenant.",
    "ground_truth": "Shipped neighbours against a new search by brute force.",
}


@dg.multi_asset_check(
    name="fixture_checks",
    specs=[
        dg.AssetCheckSpec(name, asset=DATABASES, blocking=name in BLOCKING_CHECKS, description=_ABOUT_CHECKS[name])
        for name in CHECKS
    ],
    can_subset=True,
)
def fixture_checks(context: dg.AssetCheckExecutionContext, fixture_tools: Tools) -> Iterator[dg.AssetCheckResult]:
    """One step for all checks, so that Great Expectations is imported once."""
    week = _week(context, DATABASES)
    names = [key.name for key in context.selected_asset_check_keys]
    with telling():
        workshop = fixture_tools.open_workshop()
        build = workshop.find(week, built_metadata(context, DATABASES, week.key, BUILD))
        told = (fixture_tools.progress or (lambda _: lambda _: None))("checks")
        for number, report in enumerate(workshop.run_checks(build, [c for c in CHECKS if c in names])):
            told(Progress(report.check, number + 1, len(names)))
            context.log.info(f"{week} {report.check}: {report.summary}")
            extra: dict[str, dg.MetadataValue] = {
                "partition_key": dg.MetadataValue.text(week.key),
                BUILD: dg.MetadataValue.text(build.sha256),
                "cedar_sha256": dg.MetadataValue.text(workshop.sandbox.sha256(PRODUCT)),
            }
            if findings := drift_of(report):
                extra |= drift_metadata(findings, week, workshop.sandbox, fixture_tools.settings)
            yield check_result(report, DATABASES, **extra)


@dg.asset(
    key=RELEASE,
    partitions_def=WEEKS,
    deps=[DATABASES],
    group_name=GROUP,
    owners=started_by("fixtures"),
    kinds={"sqlite"},
    code_version="1",
    description="The week's fixtures as an immutable, signed revision in the artifact registry; `latest` moves forward to it.",
    tags={"runbook": "weekly-fixtures-failed"},
    freshness_policy=dg.FreshnessPolicy.cron(deadline_cron="0 6 * * 1", lower_bound_delta=timedelta(hours=4), timezone="UTC"),
)
def fixture_release(context: dg.AssetExecutionContext, fixture_tools: Tools) -> dg.MaterializeResult[None]:
    """Publish what was built and checked; refuses bytes whose blocking checks did not pass."""
    week = _week(context, RELEASE)
    with telling():
        workshop = fixture_tools.open_workshop()
        build = workshop.find(week, built_metadata(context, DATABASES, week.key, BUILD))
        report = (fixture_tools.progress or logging(context))("release")
        release = workshop.publish(build, run_id=context.run.run_id, report=report)
        latest = workshop.registry.head(KIND)
    context.log.info(f"{release.id} {'released' if release.created else 'was released before: same bytes'}; latest is {latest.id}")
    return dg.MaterializeResult(
        data_version=dg.DataVersion(release.manifest.sha256),
        metadata={
            "release": release.id,
            "new revision": release.created,
            "latest": latest.id,
            "manifest_sha256": release.manifest.sha256,
            "size_bytes": release.manifest.size_bytes,
            "SHA256SUMS": dg.MetadataValue.md(f"```\n{release.manifest.sums.decode()}```"),
            "registry": workshop.registry.url,
            "pull": f"akidb-pipelines fixtures pull --week {week.iso} --dest fixtures",
            "runbook": dg.MetadataValue.url(fixture_tools.settings.runbook("runbooks/weekly-fixtures-failed.md")),
        },
    )


@dg.asset_check(
    name="fresh_pull",
    asset=RELEASE,
    description="A client with an empty home, given only the registry's URL and root, pulls the week and verifies every byte.",
)
def fresh_pull(context: dg.AssetCheckExecutionContext, fixture_tools: Tools) -> dg.AssetCheckResult:
    """Read everything back the way an engineer's machine does."""
    week = _week(context, RELEASE)
    try:
        pulled, seconds = fixture_tools.open_workshop().pull_afresh(week)
    except PipelineError as error:
        # What a stranger would be told is the outcome of this check, and no failure of it.
        return dg.AssetCheckResult(passed=False, description=error.message, metadata={"what to do": error.hint})
    return dg.AssetCheckResult(
        passed=True,
        description=f"{pulled.id}: {len(pulled.paths)} files, {pulled.fetched_bytes / 1e6:.1f} MB, verified in {seconds:.1f} s",
        metadata={"bytes": pulled.fetched_bytes, "seconds": round(seconds, 2), "manifest_sha256": pulled.manifest.sha256},
    )


# --- drift between runs


def agreement(weeks: Sequence[Week], digest: str) -> tuple[bool, str]:
    """Whether every watched release was built for the sandbox that is in force, and that in one sentence."""
    if not weeks:
        return True, f"all releases agree with sandbox {digest[:16]}"
    return False, (
        f"the sandbox is now {digest[:16]}; {len(weeks)} released weeks were built for another one: {', '.join(w.iso for w in weeks)}. "
        f"To rebuild them: backfill partitions {weeks[0].key} to {weeks[-1].key} of job fixtures, or set AKIDB_AUTO_BACKFILL=true."
    )


@dg.asset_check(name=AGREES, asset=RELEASE, description="The newest releases were built for the sandbox that is in force.")
def sandbox_agrees(fixture_tools: Tools) -> dg.AssetCheckResult:
    """The same as the drift sensor asks, by hand."""
    with telling():
        workshop = fixture_tools.open_workshop()
        digest = workshop.sandbox.sha256(PRODUCT)
        passed, told = agreement(affected_weeks(workshop.catalog.releases(), digest), digest)
    runbook = dg.MetadataValue.url(fixture_tools.settings.runbook("runbooks/fixture-drift.md"))
    return dg.AssetCheckResult(passed=passed, severity=dg.AssetCheckSeverity.WARN, description=told, metadata={"runbook": runbook})
