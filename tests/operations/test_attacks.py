"""Ways around the front. Each is refused for the right reason, and leaves the instance as it was.

This is also the contract with Dagster's private classes: whoever raises its version runs this first.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import httpx
import jwt
import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from dagster._core.execution.backfill import BulkActionStatus

from akidb_pipelines.operations.access.rights import MUTATIONS

REPOSITORY = '{repositoryName: "__repository__", repositoryLocationName: "akidb_pipelines"}'
ERRORS = "__typename ... on UnauthorizedError { message } ... on PythonError { message }"


def job(name: str, more: str = "") -> str:
    return f'{{repositoryName: "__repository__", repositoryLocationName: "akidb_pipelines", jobName: "{name}"{more}}}'


def launch(name: str, more: str = "", selector: str = "") -> str:
    return f"launchRun(executionParams: {{selector: {job(name, selector)}{more}}}) {{ {ERRORS} }}"


def instigator(kind: str, name: str) -> str:
    return f'{{repositoryName: "__repository__", repositoryLocationName: "akidb_pipelines", {kind}Name: "{name}"}}'


def again(parent: str) -> str:
    return f'reexecutionParams: {{parentRunId: "{{{parent}}}", strategy: ALL_STEPS}}'


OCI = '{ops: {dr_drill_report: {config: {target: "oci", dry_run: false}}}}'
RUN = "00000000-0000-0000-0000-000000000000"

STRETCH = ', assetSelection: [{path: ["registry_retention"]}, {path: ["image_packs"]}]'
"""Garbage collection, which takes another right than any job of team QA's."""
QUARTER = '{key: "dagster/partition", value: "2026-10-01"}'

RESUMED = 'tags: [{key: "dagster/is_resume_retry", value: "true"}]}'

DOCKER = '{key: "dagster/partition", value: "docker|2026-11-16"}'
SLOT = '{key: "dagster/partition", value: "jetson-a|2026-11-01"}, {key: "dagster/partition/device", value: "jetson-a"}'

# Every mutation, well-formed, on something that team QA may not touch. `{run}` is a run of Platform Engineering's.
MUTATION_ATTACKS = {
    "launchPipelineExecution": f"launchPipelineExecution(executionParams: {{selector: {job('runner_images')}}}) {{ {ERRORS} }}",
    "launchRun": launch("jetson_images"),
    "launchMultipleRuns": f"launchMultipleRuns(executionParamsList: [{{selector: {job('backups')}}}]) {{ "
    f"... on LaunchMultipleRunsResult {{ launchMultipleRunsResult {{ {ERRORS} }} }} }}",
    "launchPipelineReexecution": f"launchPipelineReexecution({again('run')}) {{ {ERRORS} }}",
    "launchRunReexecution": f'launchRunReexecution(reexecutionParams: {{parentRunId: "{{run}}", strategy: FROM_FAILURE}}) {{ {ERRORS} }}',
    "launchPartitionBackfill": 'launchPartitionBackfill(backfillParams: {assetSelection: [{path: ["staging_dumps"]}], '
    f'partitionNames: ["2026-11-01"]}}) {{ {ERRORS} }}',
    "resumePartitionBackfill": f'resumePartitionBackfill(backfillId: "{{backfill}}") {{ {ERRORS} }}',
    "reexecutePartitionBackfill": f'reexecutePartitionBackfill(reexecutionParams: {{parentRunId: "{{ended}}", strategy: ALL_STEPS}}) '
    f"{{ {ERRORS} }}",
    "cancelPartitionBackfill": f'cancelPartitionBackfill(backfillId: "{{backfill}}") {{ {ERRORS} }}',
    "startSchedule": f"startSchedule(scheduleSelector: {instigator('schedule', 'daily_backups')}) {{ {ERRORS} }}",
    "stopRunningSchedule": f'stopRunningSchedule(id: "weekly_fixtures") {{ {ERRORS} }}',
    "resetSchedule": f"resetSchedule(scheduleSelector: {instigator('schedule', 'weekly_fixtures')}) {{ {ERRORS} }}",
    "scheduleDryRun": f"scheduleDryRun(selectorData: {instigator('schedule', 'weekly_fixtures')}, timestamp: 1764000000) {{ {ERRORS} }}",
    "startSensor": f"startSensor(sensorSelector: {instigator('sensor', 'fixture_drift')}) {{ {ERRORS} }}",
    "stopSensor": 'stopSensor(id: "fixture_drift", jobOriginId: "x", jobSelectorId: "y") { __typename }',
    "resetSensor": f"resetSensor(sensorSelector: {instigator('sensor', 'fixture_drift')}) {{ {ERRORS} }}",
    "setSensorCursor": f'setSensorCursor(sensorSelector: {instigator("sensor", "fixture_drift")}, cursor: "x") {{ {ERRORS} }}',
    "sensorDryRun": f'sensorDryRun(selectorData: {instigator("sensor", "fixture_drift")}, cursor: "x") {{ {ERRORS} }}',
    "terminatePipelineExecution": f'terminatePipelineExecution(runId: "{{run}}") {{ {ERRORS} }}',
    "terminateRun": f'terminateRun(runId: "{{run}}", terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) {{ {ERRORS} }}',
    "terminateRuns": 'terminateRuns(runIds: ["{run}"]) { __typename }',
    "deletePipelineRun": f'deletePipelineRun(runId: "{{run}}") {{ {ERRORS} }}',
    "deleteRun": f'deleteRun(runId: "{{run}}") {{ {ERRORS} }}',
    "reloadRepositoryLocation": f'reloadRepositoryLocation(repositoryLocationName: "akidb_pipelines") {{ {ERRORS} }}',
    "reloadWorkspace": f"reloadWorkspace {{ {ERRORS} }}",
    "shutdownRepositoryLocation": f'shutdownRepositoryLocation(repositoryLocationName: "akidb_pipelines") {{ {ERRORS} }}',
    "wipeAssets": f'wipeAssets(assetPartitionRanges: [{{assetKey: {{path: ["fixture_release"]}}}}]) {{ {ERRORS} }}',
    "reportRunlessAssetEvents": "reportRunlessAssetEvents(eventParams: {eventType: ASSET_MATERIALIZATION, "
    f'assetKey: {{path: ["fixture_release"]}}}}) {{ {ERRORS} }}',
    "reportAssetCheckEvaluations": 'reportAssetCheckEvaluations(eventParams: {assetKey: {path: ["fixture_databases"]}, '
    f'checkName: "schema_drift", passed: true}}) {{ {ERRORS} }}',
    "addDynamicPartition": f'addDynamicPartition(repositorySelector: {REPOSITORY}, partitionsDefName: "x", partitionKey: "y") '
    f"{{ {ERRORS} }}",
    "deleteDynamicPartitions": f'deleteDynamicPartitions(repositorySelector: {REPOSITORY}, partitionsDefName: "x", partitionKeys: ["y"]) '
    f"{{ {ERRORS} }}",
    "setAutoMaterializePaused": "setAutoMaterializePaused(paused: false)",
    "setConcurrencyLimit": 'setConcurrencyLimit(concurrencyKey: "dr_drill", limit: 9)',
    "deleteConcurrencyLimit": 'deleteConcurrencyLimit(concurrencyKey: "dr_drill")',
    "freeConcurrencySlotsForRun": 'freeConcurrencySlotsForRun(runId: "{run}")',
    "freeConcurrencySlots": 'freeConcurrencySlots(runId: "{run}")',
    "setAppManagedComponent": "",
    "deleteAppManagedComponent": 'deleteAppManagedComponent(locationName: "akidb_pipelines", componentId: "x") { __typename }',
    "refreshComponentState": 'refreshComponentState(locationName: "akidb_pipelines", defsStateKey: "x") { __typename }',
}

# What team QA may start, bent into what it may not.
LAUNCH_ATTACKS = {
    "a tag by which lost runs are tried again": launch(
        "fixtures", ', executionMetadata: {tags: [{key: "akidb/asked_again", value: "x"}]}'
    ),
    "the place of those that take hours": launch("fixtures", ', executionMetadata: {tags: [{key: "akidb/long", value: "true"}]}'),
    "a drill on OCI": launch("dr_drill", f", runConfigData: {OCI}"),
    "a drill on OCI, as text": launch("dr_drill", ', runConfigData: "ops: {dr_drill_report: {config: {target: oci}}}"'),
    "a drill where the environment says": launch(
        "dr_drill", ', runConfigData: {ops: {dr_drill_report: {config: {target: {env: "WHERE"}}}}}'
    ),
    "a drill on OCI by its asset": launch(
        "__ASSET_JOB", f", runConfigData: {OCI}", ', assetSelection: [{path: ["dr_drill_report"]}]'
    ),
    "a drill on OCI by a backfill": 'launchPartitionBackfill(backfillParams: {assetSelection: [{path: ["dr_drill_report"]}], '
    f'partitionNames: ["2026-10-01"], runConfigData: {OCI}}}) {{ {ERRORS} }}',
    "a drill on OCI once more": f"launchRunReexecution({again('oci_run')}) {{ {ERRORS} }}",
    "a drill on OCI once more, with execution parameters": "launchRunReexecution(executionParams: {selector: "
    f'{job("dr_drill")}, runConfigData: {OCI}, executionMetadata: {{parentRunId: "{{oci_run}}", rootRunId: "{{oci_run}}"}}}}) '
    f"{{ {ERRORS} }}",
    "what is not its own beside what is": launch(
        "__ASSET_JOB", "", ', assetSelection: [{path: ["fixture_databases"]}, {path: ["staging_dumps"]}]'
    ),
    "everything": launch("__ASSET_JOB"),
    "one step of everything": launch("__ASSET_JOB", ', stepKeys: ["staging_dumps"]'),
    "one op of everything": launch("__ASSET_JOB", "", ', solidSelection: ["staging_dumps"]'),
    "a check of what is not its own": launch(
        "__ASSET_JOB", "", ', assetSelection: [], assetCheckSelection: [{assetKey: {path: ["staging_dumps"]}, name: "restorable"}]'
    ),
    "recovery": launch("dr_drill_recovery"),
    "a reflash": launch("jetson_reflash"),
    "garbage collection": launch("registry_gc"),
    "all partitions of a job": 'launchPartitionBackfill(backfillParams: {selector: {partitionSetName: "backups_partition_set", '
    f"repositorySelector: {REPOSITORY}}}, allPartitions: true}}) {{ {ERRORS} }}",
    "a backfill of its own and others' assets": "launchPartitionBackfill(backfillParams: {partitionsByAssets: ["
    '{assetKey: {path: ["fixture_databases"]}}, {assetKey: {path: ["staging_dumps"]}}]}) ' + f"{{ {ERRORS} }}",
    "a job stretched to what is not its own": launch("fixtures", "", STRETCH),
    "a job stretched to a check": launch(
        "fixtures", "", ', assetSelection: [], assetCheckSelection: [{assetKey: {path: ["staging_dumps"]}, name: "restorable"}]'
    ),
    "a job stretched, among others": f"launchMultipleRuns(executionParamsList: [{{selector: {job('fixtures')}}}, "
    f"{{selector: {job('fixtures', STRETCH)}}}]) {{ __typename }}",
    "a job stretched by a backfill": 'launchPartitionBackfill(backfillParams: {selector: {partitionSetName: "fixtures_partition_set", '
    f'repositorySelector: {REPOSITORY}}}, partitionNames: ["2026-11-16"]{STRETCH}}}) {{ {ERRORS} }}',
    "a job stretched when it is run again": f"launchRunReexecution(executionParams: {{selector: {job('fixtures', STRETCH)}, "
    f'executionMetadata: {{parentRunId: "{{own_run}}", rootRunId: "{{own_run}}"}}}}) {{ {ERRORS} }}',
    "a run again that was stretched": f"launchRunReexecution({again('stretched_run')}) {{ {ERRORS} }}",
    "a job by two names": launch("__ASSET_JOB", "", ', pipelineName: "fixtures"' + STRETCH),
    "a job by two names, whose other one it is": launch("registry_gc", "", ', pipelineName: "fixtures"' + STRETCH),
    "a check by two names": launch(
        "__ASSET_JOB",
        "",
        ', pipelineName: "fixtures", assetSelection: [], '
        'assetCheckSelection: [{assetKey: {path: ["staging_dumps"]}, name: "restorable"}]',
    ),
    "a runner's build in another slot": launch(
        "runner_images", f', executionMetadata: {{tags: [{DOCKER}, {{key: "dagster/partition/runner", value: "2026-11-16"}}]}}'
    ),
    "a range of partitions that nobody waits for": launch(
        "fixtures", ', executionMetadata: {tags: [{key: "dagster/asset_partition_range_start", value: "2026-11-16"}]}'
    ),
    "a backfill whose runs have another partition": "launchPartitionBackfill(backfillParams: {assetSelection: [{path: "
    '["fixture_databases"]}], partitionNames: ["2026-11-16"], tags: [{key: "dagster/partition", value: "2026-11-09"}]}) '
    f"{{ {ERRORS} }}",
    "a Jetson's only slot": launch("fixtures", f", executionMetadata: {{tags: [{SLOT}]}}"),
    "a Jetson's only slot, by a second tag": launch("fixtures", f", executionMetadata: {{tags: [{SLOT}, {QUARTER}]}}"),
    "another team's retry": launch("fixtures", ', executionMetadata: {parentRunId: "{own_run}", rootRunId: "{run}"}'),
    "another team's retry, of another job": launch("fixtures", ', executionMetadata: {parentRunId: "{run}", rootRunId: "{run}"}'),
    "a configuration that grows when it is read": launch(
        "dr_drill", ', runConfigData: "a: &a [x, x, x]\\nb: &b [*a, *a, *a]\\nops: [*b, *b]"'
    ),
    "a tag that hides a failure for good, when it is run again": "launchRunReexecution(reexecutionParams: "
    '{parentRunId: "{own_run}", strategy: ALL_STEPS, extraTags: [{key: "dagster/auto_retry_run_id", value: "x"}]}) '
    f"{{ {ERRORS} }}",
    **{
        f"tag {key}": launch("dr_drill", f', executionMetadata: {{tags: [{{key: "{key}", value: "{value}"}}, {QUARTER}]}}')
        for key, value in (
            ("dagster/max_retries", "50"),
            ("dagster/retry_on_asset_or_op_failure", "true"),
            ("dagster/max_runtime", "999999"),
            ("dagster/priority", "100"),
            ("dagster/partition/device", "jetson-a"),
            ("docker/container_id", "postgres"),
            ("dagster-celery/queue", "nowhere"),
            (".dagster/grpc_info", "{}"),
        )
    },
    "a tag that hides a failure": launch("fixtures", ', executionMetadata: {tags: [{key: "dagster/will_retry", value: "true"}]}'),
    "one step that speaks for the whole job": launch(
        "fixtures",
        ', stepKeys: ["fixture_databases"], executionMetadata: {parentRunId: "{own_run}", rootRunId: "{own_run}", ' + RESUMED,
    ),
    "a run that resumes none": launch("fixtures", ", executionMetadata: {" + RESUMED),
    "a run that resumes as nobody does": launch(
        "fixtures", ', executionMetadata: {parentRunId: "{own_run}", rootRunId: "{own_run}", ' + RESUMED.replace("true", "yes")
    ),
    "a tag that claims a sensor": launch("fixtures", ', executionMetadata: {tags: [{key: "dagster/sensor_name", value: "x"}]}'),
    "a tag of a backfill that claims a schedule": "launchPartitionBackfill(backfillParams: {assetSelection: [{path: "
    '["fixture_databases"]}], partitionNames: ["2026-11-16"], tags: [{key: "dagster/schedule_name", value: "weekly_fixtures"}]}) '
    f"{{ {ERRORS} }}",
    "a tag that claims a schedule": launch(
        "backups", ', executionMetadata: {tags: [{key: "dagster/schedule_name", value: "daily_backups"}]}'
    ),
}


@dataclass
class Ground:
    """A front with something on it to attack."""

    front: Any
    issuer: Any
    instance: dg.DagsterInstance
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def qa(self) -> str:
        return self.issuer.token("qa")

    def state(self) -> dict[str, Any]:
        """What an attack could change."""
        instance = self.instance
        return {
            "runs": sorted((r.run_id, r.status.value) for r in instance.get_runs()),
            "backfills": sorted((b.backfill_id, b.status.value) for b in instance.get_backfills()),
            "instigators": sorted((s.instigator_name, s.status.value) for s in instance.all_instigator_state()),
            "pools": sorted((p.name, p.limit) for p in instance.event_log_storage.get_pool_limits()),
            "materialized": instance.get_latest_materialization_event(dg.AssetKey("fixture_release")) is not None,
            "partitions": instance.get_dynamic_partitions("x"),
        }

    def send(self, mutation: str, token: str | None = None) -> dict[str, Any]:
        for name, value in self.ids.items():
            mutation = mutation.replace(f"{{{name}}}", value)
        return self.front.graphql(f"mutation {{ {mutation} }}", token or self.qa)


STARTED = "... on LaunchRunSuccess { run { runId } } " + ERRORS
BACKFILL = 'launchPartitionBackfill(backfillParams: {assetSelection: [{path: ["staging_dumps"]}], partitionNames: ["2026-11-01"]})'
IN_QUARTER = f"{{tags: [{QUARTER}]}}"


@pytest.fixture(scope="module")
def ground(front, issuer, instance):
    ground = Ground(front, issuer, instance)
    started = {
        "run": launch("observe_sandbox"),
        "own_run": launch("fixtures"),
        "stretched_run": launch("fixtures", "", STRETCH),
        "oci_run": launch("dr_drill", f", runConfigData: {OCI}, executionMetadata: {IN_QUARTER}"),
        "backfill": f"{BACKFILL} {{ ... on LaunchBackfillSuccess {{ backfillId }} }}",
        "ended": f"{BACKFILL} {{ ... on LaunchBackfillSuccess {{ backfillId }} }}",
    }
    for name, mutation in started.items():
        answer = ground.send(mutation.replace(ERRORS, STARTED), issuer.token("platform-engineering"))
        (result,) = answer["data"].values()
        ground.ids[name] = result.get("backfillId") or result["run"]["runId"]
    instance.update_backfill(instance.get_backfill(ground.ids["ended"]).with_status(BulkActionStatus.FAILED))
    return ground


@pytest.fixture
def unchanged(ground):
    """Nothing is other than before."""
    before = ground.state()
    yield
    assert ground.state() == before


def refused_by_cedar(answer: dict[str, Any]) -> bool:
    text = json.dumps(answer)
    return ("may not" in text and "(Cedar)" in text) or '"UnauthorizedError"' in text


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", sorted(n for n, m in MUTATION_ATTACKS.items() if m))
def test_a_mutation_on_what_is_not_ones_own(ground, name):
    assert refused_by_cedar(ground.send(MUTATION_ATTACKS[name])), name


def test_every_mutation_of_dagster_is_among_the_attacks():
    assert {*MUTATION_ATTACKS} | {"setNuxSeen", "logTelemetry"} == {*MUTATIONS}


@pytest.mark.usefixtures("unchanged")
def test_setting_a_component(ground):
    answer = ground.send(
        'setAppManagedComponent(locationName: "akidb_pipelines", componentId: "x", componentType: "y", attributesYaml: "z") { __typename }'
    )
    # Its arguments are no contract of ours; whichever they are, nothing is set.
    assert answer.get("errors")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", sorted(LAUNCH_ATTACKS))
def test_a_launch_that_reaches_further_than_it_may(ground, name):
    assert refused_by_cedar(ground.send(LAUNCH_ATTACKS[name])), name


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("ticks", ["futureTick(tickTimestamp: 1764000000)", "futureTicks(limit: 1) { results"])
def test_a_query_that_runs_a_schedule(ground, ticks):
    """What would happen next is found out by running it, and of a sensor likewise: *alerts* would tell everybody anew."""
    on_schedule = f"{ticks} {{ evaluationResult {{ skipReason }} }}" + ("}" if "results" in ticks else "")
    of = instigator("schedule", "weekly_fixtures")
    document = f"{{ scheduleOrError(scheduleSelector: {of}) {{ ... on Schedule {{ {on_schedule} }} }} }}"
    answer = ground.front.graphql(document, ground.qa)
    assert refused_by_cedar(answer), answer
    answer = ground.front.graphql(document, ground.issuer.token("platform-engineering"))
    assert "errors" not in answer, answer
    auditor = {"Authorization": f"Bearer {ground.issuer.token('security')}"}
    asked = httpx.get(f"{ground.front.url}/access/decisions", headers=auditor, timeout=30).text
    assert "evaluationResult" in asked and "weekly_fixtures" in asked


@pytest.mark.parametrize("arguments", ["limit: 2147483647", "until: 99999999999", "until: 99999999999, limit: null"])
def test_a_query_that_counts_ticks_for_ever_is_cut_short(ground, arguments):
    of = instigator("schedule", "runner_capacity")
    ticks = f"futureTicks({arguments}) {{ results {{ timestamp }} }}"
    document = f"{{ scheduleOrError(scheduleSelector: {of}) {{ ... on Schedule {{ {ticks} }} }} }}"
    answer = ground.front.graphql(document, ground.qa)
    assert len(answer["data"]["scheduleOrError"]["futureTicks"]["results"]) == 1000
    ticks = "potentialTickTimestamps(upperLimit: 2147483647, lowerLimit: 2147483647)"
    answer = ground.front.graphql(f"{{ scheduleOrError(scheduleSelector: {of}) {{ ... on Schedule {{ {ticks} }} }} }}", ground.qa)
    assert len(answer["data"]["scheduleOrError"]["potentialTickTimestamps"]) in (1999, 2000)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "document",
    [
        f"mutation {{ harmless: {launch('backups')} }}",
        f"mutation A {{ ...F }} fragment F on Mutation {{ {launch('backups')} }}",
        f"mutation A {{ ... on Mutation {{ {launch('backups')} }} }}",
        f"mutation A {{ a: {launch('backups')} b: {launch('jetson_images')} c: {launch('registry_gc')} }}",
        f"query Q {{ version }} mutation A {{ {launch('backups')} }}",
        'mutation M($n: String!) { launchRun(executionParams: {selector: {repositoryName: "__repository__", '
        f'repositoryLocationName: "akidb_pipelines", jobName: $n}}}}) {{ {ERRORS} }} }}',
        f"mutation @include(if: true) {{ {launch('backups')} }}",
    ],
    ids=["alias", "fragment", "inline fragment", "several", "beside a query", "variable", "directive"],
)
def test_a_mutation_in_disguise(ground, document):
    sent = {"query": document, "variables": {"n": "backups"}, "operationName": None}
    if "query Q" in document:
        sent["operationName"] = "A"
    answer = httpx.post(f"{ground.front.url}/graphql", json=sent, headers={"Authorization": f"Bearer {ground.qa}"}, timeout=30)
    assert refused_by_cedar(answer.json()) or answer.status_code == 400


ALLOWED = f"mutation {{ {launch('fixtures')} }}"
"""What QA may do, sent as it must not be sent."""


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("method", "kwargs", "status"),
    [
        ("GET", {"params": {"query": ALLOWED}}, 405),
        ("GET", {"params": {"query": ALLOWED}, "headers": {"Accept": "text/html"}}, 405),
        ("HEAD", {"params": {"query": ALLOWED}}, 405),
        ("POST", {"params": {"query": ALLOWED}}, 415),
        ("POST", {"data": {"query": ALLOWED}}, 415),
        ("POST", {"content": ALLOWED, "headers": {"Content-Type": "application/graphql"}}, 415),
        ("POST", {"content": json.dumps({"query": ALLOWED}), "headers": {"Content-Type": "text/plain; application/json"}}, 415),
        ("POST", {"content": json.dumps({"query": ALLOWED}), "headers": {"Content-Type": "text/plain"}}, 415),
        ("POST", {"json": [{"query": ALLOWED}, {"query": ALLOWED}]}, 400),
        ("POST", {"json": {"query": [ALLOWED]}}, 400),
        ("POST", {"json": {"query": ALLOWED}, "headers": {"Origin": "https://evil.example"}}, 403),
        ("POST", {"json": {"query": ALLOWED}, "headers": {"Origin": "null"}}, 403),
        ("POST", {"json": {"query": ALLOWED}, "headers": {"Sec-Fetch-Site": "cross-site"}}, 403),
        ("POST", {"json": {"query": ALLOWED + "#" * 70_000}}, 413),
        ("POST", {"content": b'{"query":"' + b" " * 2_000_000, "headers": {"Content-Type": "application/json"}}, 413),
        ("POST", {"content": b"[" * 200_000, "headers": {"Content-Type": "application/json"}}, 400),
        ("PUT", {"json": {"query": ALLOWED}}, 405),
        ("DELETE", {"json": {"query": ALLOWED}}, 405),
    ],
)
def test_a_request_of_the_wrong_kind(ground, method, kwargs, status):
    headers = {"Authorization": f"Bearer {ground.qa}", **kwargs.pop("headers", {})}
    assert httpx.request(method, f"{ground.front.url}/graphql", headers=headers, timeout=30, **kwargs).status_code == status


BAD_TOKENS = (
    "nothing",
    "garbage",
    "alg none",
    "HS256 with a secret of one's own",
    "HS256 with the public key",
    "expired",
    "not yet",
    "without an end",
    "without a subject",
    "of another issuer",
    "without an issuer",
    "for somebody else",
    "signed by another key",
    "with a key id that nobody published",
    "with a key of its own",
    "with groups as text",
)


def _bad_token(issuer, kind):
    now = int(time.time())
    other = generate_private_key(65537, 2048)
    claims = {"iss": issuer.endpoint, "aud": "akidb-pipelines", "sub": "x", "groups": ["platform-engineering"], "exp": now + 600}
    key = base64.urlsafe_b64encode(issuer.public_pem()).decode()
    hmac_head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
    tokens = {
        "nothing": "",
        "garbage": "abc.def.ghi",
        "alg none": issuer.unsigned("platform-engineering"),
        "HS256 with a secret of one's own": jwt.encode(claims, "a secret of more than thirty-two bytes", algorithm="HS256"),
        "HS256 with the public key": f"{hmac_head}.{key}.{key}",
        "expired": issuer.token("platform-engineering", exp=now - 60),
        "not yet": issuer.token("platform-engineering", nbf=now + 3600),
        "without an end": issuer.token("platform-engineering", exp=None),
        "without a subject": issuer.token("platform-engineering", sub=None),
        "of another issuer": issuer.token("platform-engineering", iss="https://evil.example"),
        "without an issuer": issuer.token("platform-engineering", iss=None),
        "for somebody else": issuer.token("platform-engineering", aud="another-service"),
        "signed by another key": issuer.token("platform-engineering", key=other),
        "with a key id that nobody published": issuer.token("platform-engineering", header={"kid": "nobody's"}),
        "with a key of its own": issuer.token(
            "platform-engineering", key=other, header={"kid": "x", "jku": "https://evil.example/keys"}
        ),
        "with groups as text": issuer.token("qa", groups="platform-engineering"),
    }
    assert {*tokens} == {*BAD_TOKENS}
    return tokens[kind]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("kind", BAD_TOKENS)
def test_a_token_that_proves_nothing(ground, kind):
    token = _bad_token(ground.issuer, kind)
    headers = {"Authorization": f"Bearer {token}".strip()}
    for path in ("/", "/graphql", "/runs", "/access/decisions", "/logs/x.err"):
        assert httpx.get(ground.front.url + path, headers=headers, timeout=30).status_code == 401, path
    sent = {"query": f"mutation {{ {launch('fixtures')} }}"}
    assert httpx.post(f"{ground.front.url}/graphql", json=sent, headers=headers, timeout=30).status_code == 401


@pytest.mark.usefixtures("unchanged")
def test_other_headers_than_one_bearer_token(ground):
    good = ground.issuer.token("platform-engineering")
    for headers in (
        [("Authorization", f"Basic {good}")],
        [("Authorization", f"Bearer {ground.qa}"), ("Authorization", f"Bearer {good}")],
        [("Cookie", f"_oauth2_proxy={good}")],
        [
            ("X-Forwarded-Access-Token", good),
            ("X-Forwarded-User", "platform-engineering"),
            ("X-Auth-Request-Groups", "platform-engineering"),
        ],
    ):
        assert httpx.get(f"{ground.front.url}/", headers=headers, timeout=30).status_code == 401


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("groups", [(), ("engineering",), ("Platform-Engineering",), ("platform-engineering ",), ("admin", "*")])
def test_somebody_in_no_team_sees_nothing(ground, groups):
    answer = httpx.get(f"{ground.front.url}/", headers={"Authorization": f"Bearer {ground.issuer.token(*groups)}"}, timeout=30)
    assert answer.status_code == 403


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("what", ["materialization/fixture_release", "observation/fixture_release", "check/fixture_databases"])
@pytest.mark.parametrize("team", ["qa", "security", "application-engineering"])
def test_reports_over_rest(ground, what, team):
    answer = httpx.post(
        f"{ground.front.url}/report_asset_{what}?check_name=schema_drift&passed=true",
        json={},
        headers={"Authorization": f"Bearer {ground.issuer.token(team)}"},
        timeout=30,
    )
    assert answer.status_code == 403


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "path",
    [
        "/notebook?path=/etc/x.ipynb&repoLocName=akidb_pipelines",
        "/logs/../../../../../etc/passwd",
        "/logs/%2e%2e/%2e%2e/dagster.yaml",
        "/dagit/notebook?path=x.ipynb",
    ],
)
def test_files_of_the_server(ground, path):
    answer = httpx.get(ground.front.url + path, headers={"Authorization": f"Bearer {ground.qa}"}, timeout=30)
    assert "root:" not in answer.text
    assert "run_coordinator" not in answer.text
    assert answer.status_code == 404 or "<!doctype html>" in answer.text.lower()  # the UI's own page


async def _over_websocket(ground, document, token, origin=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = ground.front.url.replace("http", "ws") + "/graphql"
    async with websockets.connect(url, subprotocols=["graphql-ws"], additional_headers=headers, origin=origin) as socket:
        await socket.send(json.dumps({"type": "connection_init"}))
        await socket.recv()
        await socket.send(json.dumps({"type": "start", "id": "1", "payload": {"query": document}}))
        return json.loads(await asyncio.wait_for(socket.recv(), 10))


@pytest.mark.usefixtures("unchanged")
def test_a_mutation_over_websocket(ground):
    answer = asyncio.run(_over_websocket(ground, ALLOWED, ground.qa))
    assert answer["type"] == "error"


@pytest.mark.usefixtures("unchanged")
def test_a_mutation_in_the_address_of_a_query(ground):
    """Dagster's own endpoint reads the address when it does not know the content type."""
    answer = httpx.post(
        f"{ground.front.url}/graphql",
        params={"query": ALLOWED},
        content=json.dumps({"query": "{ version }"}),
        headers={"Authorization": f"Bearer {ground.qa}", "Content-Type": "Application/JSON"},
        timeout=30,
    )
    assert answer.json()["data"]["version"]


def test_a_document_that_takes_long_to_check_holds_up_nobody(ground):
    answer = asyncio.run(_over_websocket(ground, "subscription { " + "a " * 250_000 + "}", ground.qa))
    assert answer["type"] == "error"
    assert "at most" in json.dumps(answer)


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("kind", ["no token", "no team", "foreign page"])
def test_a_websocket_that_must_not_open(ground, kind):
    token = {"no token": None, "no team": ground.issuer.token(), "foreign page": ground.qa}[kind]
    origin = "https://evil.example" if kind == "foreign page" else None
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        asyncio.run(_over_websocket(ground, 'subscription { pipelineRunLogs(runId: "x") { __typename } }', token, origin))
    assert refused.value.response.status_code == 403


def test_a_websocket_ends_with_its_token(ground):
    async def watch():
        headers = {"Authorization": f"Bearer {ground.issuer.token('qa', exp=int(time.time()) + 2)}"}
        url = ground.front.url.replace("http", "ws") + "/graphql"
        async with websockets.connect(url, subprotocols=["graphql-ws"], additional_headers=headers) as socket:
            await asyncio.wait_for(socket.wait_closed(), 30)
            return socket.close_code

    assert asyncio.run(watch()) == 4401


def test_a_forged_user_is_overwritten(ground):
    forged = ', executionMetadata: {tags: [{key: "user", value: "platform-engineering@akidb.example"}]}'
    answer = ground.send(launch("fixtures", forged).replace(ERRORS, STARTED))
    run_id = answer["data"]["launchRun"]["run"]["runId"]
    assert ground.instance.get_run_by_id(run_id).tags["user"] == "qa@akidb.example"


def test_a_forged_user_of_a_backfill_is_overwritten(ground):
    answer = ground.send(
        'launchPartitionBackfill(backfillParams: {assetSelection: [{path: ["fixture_databases"]}], partitionNames: ["2026-11-16"], '
        f'tags: [{{key: "user", value: "admin"}}]}}) {{ ... on LaunchBackfillSuccess {{ backfillId }} {ERRORS} }}'
    )
    backfill = ground.instance.get_backfill(answer["data"]["launchPartitionBackfill"]["backfillId"])
    assert backfill.tags["user"] == "qa@akidb.example"
