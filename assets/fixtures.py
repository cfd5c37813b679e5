"""Weekly fixtures: the sandbox schema they agree with, the databases, their checks, the release.

No `from __future__ import annotations` here: Dagster reads the annotations of `context` as they stand.
"""

import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta

import dagster as dg

from akidb_pipelines.cedar.sandbox import OPS, PRODUCT
from akidb_pipelines.files import write_whole
from akidb_pipelines.fixtures.build import Progress, Report
from akidb_pipelines.fixtures.manifest import Manifest
from akidb_pipelines.fixtures.weekly import BLOCKING_CHECKS, CHECKS, WeekBuild
from akidb_pipelines.periods import Week
from akidb_pipelines.quality.drift import DriftReport, adr_draft
from akidb_pipelines.resources import FixtureTools
from assets.checks import check_result
from assets.common import BUILD, PLATFORM, SECURITY, built_digest, partition_week, telling
from assets.partitions import WEEKS

GROUP = "fixtures"
SANDBOX = dg.AssetKey("cedar_sandbox_schema")
DATABASES = dg.AssetKey("fixture_databases")
RELEASE = dg.AssetKey("fixture_release")

Tools = dg.ResourceParam[FixtureTools]


class FixtureConfig(dg.Config):
    """What to build."""

    profiles: list[str] = []  # noqa: RUF012 - pydantic copies defaults
    """Of ci, standard, load; empty takes the setting AKIDB_PROFILES (ci and standard)."""


_SANDBOX_SPEC = dg.AssetSpec(
    SANDBOX,
    group_name=GROUP,
    description="Schema and policies of the Cedar sandbox. Its data version is the digest of namespace AkiDB and its policies.",
    owners=[SECURITY],
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
        sandbox = fixture_tools.workshop.sandbox
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
    owners=[PLATFORM],
    kinds={"sqlite", "python"},
    code_version="1",
    description="SQLite test databases of a week: five tenants, users, vectors with exact ground truth, a week of audited requests.",
    tags={"runbook": "weekly-fixtures-failed"},
)
def fixture_databases(context: dg.AssetExecutionContext, config: FixtureConfig, fixture_tools: Tools) -> dg.MaterializeResult[None]:
    """Build the week's profiles. Nothing is published before the checks have passed."""
    week = partition_week(context, DATABASES)
    with telling():
        profiles = config.profiles or list(fixture_tools.settings.profiles)
        build = fixture_tools.workshop.build(week, profiles, fixture_tools.progress or _logging(context))
    return dg.MaterializeResult(data_version=dg.DataVersion(build.sha256), metadata=_build_metadata(build, fixture_tools))


def _logging(context: dg.AssetExecutionContext) -> Callable[[str], Report]:
    """Progress as log lines: each stage once, and every fifth of a long one."""

    def of_profile(profile: str) -> Report:
        told: set[tuple[str, int]] = set()

        def report(progress: Progress) -> None:
            fifth = 5 * progress.done // progress.total if progress.total else 0
            if (progress.stage, fifth) not in told:
                told.add((progress.stage, fifth))
                amount = f": {progress.done:,} of {progress.total:,}" if progress.total else ""
                context.log.info(f"{profile}: {progress.stage}{amount}")

        return report

    return of_profile


def _build_metadata(build: WeekBuild, tools: FixtureTools) -> dict[str, dg.MetadataValue]:
    manifests = [b.manifest for b in build.fixtures]
    metadata: dict[str, dg.MetadataValue] = {
        BUILD: dg.MetadataValue.text(build.sha256),
        "fixtures": _fixture_table(build),
        "tables": _row_table(manifests),
        "dagster/row_count": dg.MetadataValue.int(sum(t.rows for m in manifests for t in m.tables.values())),
        "dagster/column_schema": dg.MetadataValue.table_schema(_column_schema(manifests[0])),
        "size_bytes": dg.MetadataValue.int(build.release.size_bytes),
        "seconds": dg.MetadataValue.float(round(sum(b.seconds for b in build.fixtures), 2)),
        "folder": dg.MetadataValue.path(build.folder),
        "runbook": dg.MetadataValue.url(tools.settings.runbook("runbooks/weekly-fixtures-failed.md")),
    }
    for built in build.fixtures:
        metadata[f"{built.manifest.profile}_seconds"] = dg.MetadataValue.float(round(built.seconds, 2))
    for manifest in manifests:
        for table in ("users", "vector_documents", "audit_logs"):
            # Numbers by week: the asset's Plots tab draws them.
            metadata[f"{manifest.profile}_{table}_rows"] = dg.MetadataValue.int(manifest.tables[table].rows)
    return metadata


def _fixture_table(build: WeekBuild) -> dg.MetadataValue:
    rows = [
        dg.TableRecord(
            {
                "file": b.manifest.database.name,
                "megabytes": round(b.manifest.database.size_bytes / 1e6, 2),
                "rows": sum(t.rows for t in b.manifest.tables.values()),
                "ground truth queries": b.manifest.truth_queries,
                "sha256": b.manifest.database.sha256,
                "seconds": round(b.seconds, 2),
            }
        )
        for b in build.fixtures
    ]
    kinds = {"megabytes": "float", "rows": "int", "ground truth queries": "int", "seconds": "float"}
    columns = ("file", "megabytes", "rows", "ground truth queries", "sha256", "seconds")
    return dg.MetadataValue.table(rows, dg.TableSchema([dg.TableColumn(c, kinds.get(c, "string")) for c in columns]))


def _row_table(manifests: list[Manifest]) -> dg.MetadataValue:
    """Rows of every table, one column a profile."""
    rows = [
        dg.TableRecord({"table": table, **{m.profile: m.tables[table].rows for m in manifests}})
        for table in sorted(manifests[0].tables)
    ]
    columns = [dg.TableColumn("table", "string"), *(dg.TableColumn(m.profile, "int") for m in manifests)]
    return dg.MetadataValue.table(rows, dg.TableSchema(columns))


def _column_schema(manifest: Manifest) -> dg.TableSchema:
    """Every column of every table, as `users.email`."""
    facts = manifest.facts["database"]
    return dg.TableSchema([dg.TableColumn(name, fact) for name, fact in facts.items() if " " not in name])


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
    week = partition_week(context, DATABASES)
    names = [key.name for key in context.selected_asset_check_keys]
    with telling():
        workshop = fixture_tools.workshop
        build = workshop.find(week, built_digest(context, DATABASES, week))
        told = (fixture_tools.progress or (lambda _: lambda _: None))("checks")
        for number, report in enumerate(workshop.run_checks(build, [c for c in CHECKS if c in names])):
            told(Progress(report.check, number + 1, len(names)))
            context.log.info(f"{week} {report.check}: {report.summary}")
            extra: dict[str, dg.MetadataValue] = {
                "partition_key": dg.MetadataValue.text(week.key),
                BUILD: dg.MetadataValue.text(build.sha256),
                "cedar_sha256": dg.MetadataValue.text(workshop.sandbox.sha256(PRODUCT)),
            }
            if isinstance(report, DriftReport):
                extra |= _drift_metadata(report, week, fixture_tools)
            yield check_result(report, DATABASES, **extra)


def _drift_metadata(report: DriftReport, week: Week, tools: FixtureTools) -> dict[str, dg.MetadataValue]:
    """A draft of the decision record that drift asks for, and where to read on."""
    draft = tools.settings.home / "adr-drafts" / f"{week.iso}-schema-drift.md"
    draft.parent.mkdir(parents=True, exist_ok=True)
    write_whole(draft, adr_draft(report.findings, week=week.iso, sandbox=tools.workshop.sandbox).encode())
    return {
        "ADR draft": dg.MetadataValue.path(draft),
        "runbook": dg.MetadataValue.url(tools.settings.runbook("runbooks/fixture-drift.md")),
    }


@dg.asset(
    key=RELEASE,
    partitions_def=WEEKS,
    deps=[DATABASES],
    group_name=GROUP,
    owners=[PLATFORM],
    kinds={"sqlite"},
    code_version="1",
    description="The week's fixtures as an immutable revision in the artifact store; `latest` moves forward to it.",
    tags={"runbook": "weekly-fixtures-failed"},
    freshness_policy=dg.FreshnessPolicy.cron(deadline_cron="0 6 * * 1", lower_bound_delta=timedelta(hours=4), timezone="UTC"),
)
def fixture_release(context: dg.AssetExecutionContext, fixture_tools: Tools) -> dg.MaterializeResult[None]:
    """Publish what was built and checked; refuses bytes whose blocking checks did not pass."""
    week = partition_week(context, RELEASE)
    with telling():
        workshop = fixture_tools.workshop
        build = workshop.find(week, built_digest(context, DATABASES, week))
        release = workshop.publish(build, lambda name: context.log.info(f"storing {name}"))
        latest = workshop.releases.latest()
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
            "pull": f"akidb-pipelines fixtures pull --week {week.iso} --dest fixtures",
            "runbook": dg.MetadataValue.url(fixture_tools.settings.runbook("runbooks/weekly-fixtures-failed.md")),
        },
    )
