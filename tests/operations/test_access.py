"""Through the real front: each team sees and does exactly what the matrix of docs/access.md says, and the journal tells it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import dagster as dg
import httpx
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from akidb_pipelines.cedar.authorize import Decision
from akidb_pipelines.cedar.sandbox import SHIPPED
from akidb_pipelines.definitions import build_defs
from akidb_pipelines.errors import InputError, OutsideError
from akidb_pipelines.operations.access import front as front_module
from akidb_pipelines.operations.access import takeover
from akidb_pipelines.operations.access.front import Gate
from akidb_pipelines.operations.access.identity import Doorkeeper, Principal, PublishedKeys, RefusedTokenError
from akidb_pipelines.operations.access.journal import Entry, Journal
from akidb_pipelines.operations.access.judge import Judge
from akidb_pipelines.operations.access.matrix import decide_matrix
from akidb_pipelines.operations.access.reach import leaves_the_lab
from akidb_pipelines.operations.access.rights import ADMINISTER, STARTS, VIEW, Right
from akidb_pipelines.settings import Settings
from tests.services.front import Front
from tests.services.identity import Issuer, SignInProxy

TEAMS = ("platform-engineering", "application-engineering", "security", "qa")

# Who may start which job: platform, application, security, qa.
JOBS = {
    "fixtures": "yyny",
    "observe_sandbox": "ynyn",
    "runner_images": "yynn",
    "runner_capacity": "yynn",
    "registry_gc": "ynnn",
    "jetson_images": "ynnn",
    "jetson_reflash": "ynnn",
    "dr_drill": "yyny",
    "dr_drill_recovery": "ynnn",
    "backups": "ynnn",
    "costs_intake": "yynn",
    "costs_rollup": "yynn",
    "costs_review": "yynn",
    "health": "ynnn",
}
ASSETS = {
    "fixture_databases": "yyny",
    "fixture_release": "yyny",
    "cedar_sandbox_schema": "ynyn",
    "registry_retention": "ynnn",
    "image_packs": "ynnn",
    "jetson_capture": "ynnn",
    "runner_image_build": "yynn",
    "staging_dumps": "ynnn",
    "dr_drill_report": "yyny",
    "cost_review": "yynn",
}
SEEN = """{
  repositoriesOrError { ... on RepositoryConnection { nodes {
    jobs { name hasLaunchExecutionPermission hasLaunchReexecutionPermission }
    schedules { name scheduleState { hasStartPermission hasStopPermission } }
    sensors { name hasCursorUpdatePermissions sensorState { hasStartPermission hasStopPermission } }
  } } }
  assetNodes { assetKey { path } hasMaterializePermission hasWipePermission hasReportRunlessAssetEventPermission }
  permissions { permission value }
  canBulkTerminate
}"""


@pytest.fixture(scope="module")
def seen(front, issuer):
    """What the API tells each team's UI."""
    return {team: front.graphql(SEEN, issuer.token(team))["data"] for team in TEAMS}


@pytest.mark.parametrize("job", sorted(JOBS))
def test_who_may_start_a_job(seen, job):
    for team, may in zip(TEAMS, JOBS[job], strict=True):
        (told,) = [j for j in seen[team]["repositoriesOrError"]["nodes"][0]["jobs"] if j["name"] == job]
        assert told["hasLaunchExecutionPermission"] == told["hasLaunchReexecutionPermission"] == (may == "y"), team


def test_every_job_is_in_the_table(seen):
    jobs = {j["name"] for j in seen["platform-engineering"]["repositoriesOrError"]["nodes"][0]["jobs"]}
    assert jobs - {"__ASSET_JOB"} == {*JOBS}


@pytest.mark.parametrize("asset", sorted(ASSETS))
def test_who_may_materialize_an_asset(seen, asset):
    for team, may in zip(TEAMS, ASSETS[asset], strict=True):
        (told,) = [a for a in seen[team]["assetNodes"] if a["assetKey"]["path"] == [asset]]
        assert told["hasMaterializePermission"] == (may == "y"), team
        assert told["hasWipePermission"] == told["hasReportRunlessAssetEventPermission"] == (team == "platform-engineering")


@pytest.mark.parametrize("team", TEAMS)
def test_who_may_operate(seen, team):
    platform = team == "platform-engineering"
    node = seen[team]["repositoriesOrError"]["nodes"][0]
    assert {s["scheduleState"]["hasStartPermission"] for s in node["schedules"]} == {platform}
    assert {s["sensorState"]["hasStopPermission"] for s in node["sensors"]} == {platform}
    assert {s["hasCursorUpdatePermissions"] for s in node["sensors"]} == {platform}
    assert seen[team]["canBulkTerminate"] == platform
    # Components are edited in another edition of Dagster only.
    allowed = {p["permission"] for p in seen[team]["permissions"] if p["value"]}
    assert ("edit_app_managed_components" not in allowed) and bool(allowed) == platform


def _selector(job, more=""):
    return f'{{repositoryName: "__repository__", repositoryLocationName: "akidb_pipelines", jobName: "{job}"{more}}}'


def _launching(job, more="", tags=""):
    wanted = "__typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }"
    sent = f"selector: {_selector(job, more)}, executionMetadata: {{tags: [{tags}]}}"
    return f"mutation {{ launchRun(executionParams: {{{sent}}}) {{ {wanted} }} }}"


def _launch(front, token, job, more="", tags=""):
    return front.graphql(_launching(job, more, tags), token)["data"]["launchRun"]


def test_security_runs_the_drift_check_and_not_the_build(front, issuer):
    token = issuer.token("security")
    check = ', assetSelection: [], assetCheckSelection: [{assetKey: {path: ["fixture_databases"]}, name: "schema_drift"}]'
    assert _launch(front, token, "__ASSET_JOB", check)["__typename"] == "LaunchRunSuccess"
    for other in (check.replace("schema_drift", "ground_truth"), ', assetSelection: [{path: ["fixture_databases"]}]'):
        (error,) = front.graphql(_launching("__ASSET_JOB", other), token)["errors"]
        assert "security@akidb.example may not start fixture_databases" in error["message"]
        assert "extensions" not in error, "no stack"


def test_a_run_carries_the_name_of_who_started_it(front, issuer, instance):
    started = _launch(front, issuer.token("qa"), "fixtures")
    assert instance.get_run_by_id(started["run"]["runId"]).tags["user"] == "qa@akidb.example"


def test_what_the_ui_sends_along_is_no_attack(front, issuer):
    """Some assets of the job itself, the tags of its definition, and those of a partition."""
    own = ', assetSelection: [{path: ["fixture_databases"]}]'
    own += ', assetCheckSelection: [{assetKey: {path: ["fixture_databases"]}, name: "columns"}]'
    assert _launch(front, issuer.token("qa"), "fixtures", own)["__typename"] == "LaunchRunSuccess"
    tags = '{key: "dagster/max_retries", value: "0"}, {key: "dagster/partition", value: "2026-10-01"}'
    assert _launch(front, issuer.token("qa"), "dr_drill", tags=tags)["__typename"] == "LaunchRunSuccess"
    tags = '{key: "dagster/partition", value: "docker|2026-11-16"}, {key: "dagster/partition/runner", value: "docker"}'
    assert _launch(front, issuer.token("application-engineering"), "runner_images", tags=tags)["__typename"] == "LaunchRunSuccess"


def test_a_run_of_a_runner_always_waits_for_its_turn(front, issuer, instance):
    tags = '{key: "dagster/partition", value: "docker|2026-11-16"}'
    started = _launch(front, issuer.token("application-engineering"), "runner_images", tags=tags)
    assert instance.get_run_by_id(started["run"]["runId"]).tags["dagster/partition/runner"] == "docker"


def test_running_selected_steps_again_sends_all_tags_of_the_run_back(front, issuer, instance):
    """As the UI does it; what the daemon wrote about the first run does not get onto the second."""
    token = issuer.token("qa")
    first = _launch(front, token, "fixtures", tags='{key: "dagster/partition", value: "2026-11-16"}')["run"]["runId"]
    instance.add_run_tags(first, {"dagster/schedule_name": "weekly_fixtures", "dagster/retry_number": "1"})
    new = {"dagster/parent_run_id": first, "dagster/root_run_id": first, "dagster/step_selection": "x", "dagster/from_ui": "true"}
    echoed = {**instance.get_run_by_id(first).tags, **new}
    tags = ", ".join(f"{{key: {json.dumps(k)}, value: {json.dumps(v)}}}" for k, v in echoed.items() if not k.startswith("."))
    metadata = f'executionMetadata: {{parentRunId: "{first}", rootRunId: "{first}", tags: [{tags}]}}'
    sent = f'executionParams: {{selector: {_selector("fixtures")}, stepKeys: ["fixture_databases"], {metadata}}}'
    wanted = "__typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }"
    answer = front.graphql(f"mutation {{ launchRunReexecution({sent}) {{ {wanted} }} }}", token)
    second = instance.get_run_by_id(answer["data"]["launchRunReexecution"]["run"]["runId"])
    assert second.tags["dagster/partition"] == "2026-11-16"
    assert not {"dagster/schedule_name", "dagster/retry_number"} & {*second.tags}
    assert second.tags["user"] == "qa@akidb.example"


def test_going_on_from_a_failure_is_no_attack(front, issuer, instance):
    """As the API's older callers do it: with a tag, and without steps of their own choosing."""
    token = issuer.token("qa")
    first = _launch(front, token, "fixtures")["run"]["runId"]
    tag = '{key: "dagster/is_resume_retry", value: "true"}'
    metadata = f'executionMetadata: {{parentRunId: "{first}", rootRunId: "{first}", tags: [{tag}]}}'
    sent = f"executionParams: {{selector: {_selector('fixtures')}, {metadata}}}"
    answer = front.graphql(f"mutation {{ launchRunReexecution({sent}) {{ __typename }} }}", token)
    assert "Cedar" not in json.dumps(answer), answer
    (*_, last) = Journal(front.home / "access").entries(datetime.now(UTC).date())
    assert (last["asked"], last["allowed"]) == ("launchRunReexecution", True)


def test_of_several_things_each_decision_is_written_down(front, issuer):
    jobs = ", ".join(f"{{selector: {_selector(job)}}}" for job in ("fixtures", "health", "dr_drill_recovery"))
    front.graphql(f"mutation {{ launchMultipleRuns(executionParamsList: [{jobs}]) {{ __typename }} }}", issuer.token("qa"))
    entries = [e for e in Journal(front.home / "access").entries(datetime.now(UTC).date()) if e["asked"] == "launchMultipleRuns"]
    assert {(e["right"], e["allowed"]) for e in entries} == {
        ("launch on Pipeline::fixtures", True),
        ("administer on Deployment::akidb_pipelines", False),
    }
    assert json.loads(entries[0]["about"])["jobName"] == ["fixtures", "health", "dr_drill_recovery"]


def _newest(front, asked):
    entries = Journal(front.home / "access").entries(datetime.now(UTC).date())
    newest = [entry for entry in entries if entry["asked"] == asked][-1]
    return newest | {"about": json.loads(newest["about"])}


def test_what_a_mutation_was_about_is_written_down(front, issuer, instance):
    """By name also where Dagster takes an id; all of what was allowed."""
    token = issuer.token("platform-engineering")
    of = '{repositoryName: "__repository__", repositoryLocationName: "akidb_pipelines", scheduleName: "weekly_fixtures"}'
    state = f"scheduleOrError(scheduleSelector: {of}) {{ ... on Schedule {{ scheduleState {{ id }} }} }}"
    id_ = front.graphql(f"{{ {state} }}", token)["data"]["scheduleOrError"]["scheduleState"]["id"]
    front.graphql(f"mutation {{ startSchedule(scheduleSelector: {of}) {{ __typename }} }}", token)
    front.graphql(f'mutation {{ stopRunningSchedule(id: "{id_}") {{ __typename }} }}', token)
    stopped = _newest(front, "stopRunningSchedule")
    assert stopped["about"]["name"] == "weekly_fixtures"
    assert (stopped["subject"], stopped["user"]) == ("00u-platform-engineering", "platform-engineering@akidb.example")

    ids = [f"00000000-0000-0000-0000-{number:012}" for number in range(50)]
    document = f"mutation {{ terminateRuns(runIds: {json.dumps(ids)}) {{ __typename }} }}"
    front.graphql(document, token)
    assert _newest(front, "terminateRuns")["about"]["runIds"] == ids
    front.graphql(document, issuer.token("qa"))
    assert _newest(front, "terminateRuns")["about"]["runIds"] == [*ids[:20], "30 more"]

    _launch(front, token, "fixtures", tags='{key: "dagster/partition", value: "2026-11-16"}')
    assert _newest(front, "launchRun")["about"]["partition"] == "2026-11-16"

    sent = {"check_name": "schema_drift", "passed": True}
    reported = f"{front.url}/report_asset_check/fixture_databases?asset=another&partition=2026-11-16"
    sent |= {"metadata": {"password": "hunter2"}, "asset": "another"}
    answer = httpx.post(reported, json=sent, headers={"Authorization": f"Bearer {token}"}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert _newest(front, "report_asset_check")["about"] == {
        "asset": "fixture_databases",
        "checkName": "schema_drift",
        "partition": "2026-11-16",
        "passed": "True",
    }


def test_a_report_that_is_denied_leaves_a_short_line(front, issuer):
    """Whatever is in it, and wherever it says so."""
    headers = {"Authorization": f"Bearer {issuer.token('qa')}"}
    long = {
        "partition": [f"w{number}" for number in range(5000)],
        "check_name": {"nested": {"deeper": "x" * 5000}},
        "y": "z" * 5000,
    }
    address = f"{front.url}/report_asset_check/fixture_databases?partition=w1"
    assert httpx.post(address, json=long, headers=headers, timeout=30).status_code == 403
    assert _newest(front, "report_asset_check")["about"] == {"asset": "fixture_databases"}
    # Without its content type Dagster does not look at the body.
    assert httpx.post(address, content=json.dumps({"partition": "w2"}), headers=headers, timeout=30).status_code == 403
    assert _newest(front, "report_asset_check")["about"] == {"asset": "fixture_databases", "partition": "w1"}


def test_many_changes_in_one_document_are_refused(front, issuer):
    changes = " ".join(f'c{number}: setConcurrencyLimit(concurrencyKey: "x{number}", limit: 3)' for number in range(21))
    for document in (f"mutation {{ {changes} }}", f"mutation {{ ...F }} fragment F on Mutation {{ {changes} }}"):
        answer = front.graphql(document, issuer.token("platform-engineering"))
        assert "more than 20 changes" in answer["errors"][0]["message"]
        assert not answer.get("data")


def test_a_tag_that_was_refused_is_written_down(front, issuer):
    tags = '{key: "dagster/sensor_name", value: "x"}'
    answer = front.graphql(_launching("fixtures", tags=tags), issuer.token("qa"))
    assert "dagster/sensor_name" in answer["errors"][0]["message"]
    (*_, last) = Journal(front.home / "access").entries(datetime.now(UTC).date())
    assert (last["user"], last["allowed"], last["right"]) == ("qa@akidb.example", False, str(ADMINISTER))


def test_a_backfill_that_somebody_takes_up_again_carries_their_name(front, issuer, instance):
    of = '{assetSelection: [{path: ["fixture_databases"]}], partitionNames: ["2026-11-16"]}'
    wanted = "... on LaunchBackfillSuccess { backfillId }"
    asked = f"mutation {{ launchPartitionBackfill(backfillParams: {of}) {{ {wanted} }} }}"
    first = front.graphql(asked, issuer.token("platform-engineering"))["data"]["launchPartitionBackfill"]["backfillId"]
    assert instance.get_backfill(first).tags["user"] == "platform-engineering@akidb.example"
    instance.update_backfill(instance.get_backfill(first).with_status(BulkActionStatus.COMPLETED_FAILED))
    again = f'reexecutePartitionBackfill(reexecutionParams: {{parentRunId: "{first}", strategy: ALL_STEPS}}) {{ {wanted} }}'
    answer = front.graphql(f"mutation {{ {again} }}", issuer.token("qa"))["data"]["reexecutePartitionBackfill"]
    assert instance.get_backfill(answer["backfillId"]).tags["user"] == "qa@akidb.example"
    resume = f'mutation {{ resumePartitionBackfill(backfillId: "{first}") {{ __typename }} }}'
    assert front.graphql(resume, issuer.token("qa"))["data"]["resumePartitionBackfill"]["__typename"] == "ResumeBackfillSuccess"
    assert instance.get_backfill(first).tags["user"] == "qa@akidb.example"
    assert instance.get_backfill(first).status is BulkActionStatus.REQUESTED
    again = front.graphql(resume, issuer.token("platform-engineering"))
    assert "still in progress" in again["errors"][0]["message"]
    assert instance.get_backfill(first).tags["user"] == "qa@akidb.example"


def test_who_may_not_take_a_backfill_up_again_leaves_no_name_on_it(front, issuer, instance):
    instance.add_backfill(PartitionBackfill("others", BulkActionStatus.FAILED, from_failure=False, tags={}, backfill_timestamp=0.0))
    resume = 'mutation { resumePartitionBackfill(backfillId: "others") { __typename } }'
    assert front.graphql(resume, issuer.token("qa"))["data"]["resumePartitionBackfill"]["__typename"] == "UnauthorizedError"
    assert (instance.get_backfill("others").tags, instance.get_backfill("others").status) == ({}, BulkActionStatus.FAILED)


def test_a_name_on_a_backfill_undoes_nothing_that_the_daemon_wrote(monkeypatch):
    began = PartitionBackfill("abc", BulkActionStatus.REQUESTED, from_failure=False, tags={"user": "a"}, backfill_timestamp=0.0)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_backfill(began)
        read, wrote = takeover.deserialize_value, []

        def and_then_the_daemon_writes(body, kind):
            found = read(body, kind)
            if not wrote:
                wrote.append(instance.update_backfill(found.with_failure_count(7)))
            return found

        monkeypatch.setattr(takeover, "deserialize_value", and_then_the_daemon_writes)
        takeover.retag(instance, "abc", {"user": "b"})
        monkeypatch.undo()
        after = instance.get_backfill("abc")
        assert (after.tags, after.failure_count) == ({"user": "b"}, 7)
        with pytest.raises(OutsideError, match="gone"):
            takeover.retag(instance, "def", {"user": "b"})


def test_the_journal_tells_what_was_decided_and_to_whom_it_may_be_told(front, issuer):
    _launch(front, issuer.token("qa"), "fixtures")
    _launch(front, issuer.token("qa"), "backups")
    with httpx.Client(base_url=front.url) as client:
        page = client.get("/access/decisions?format=jsonl", headers={"Authorization": f"Bearer {issuer.token('security')}"})
        entries = [json.loads(line) for line in page.text.splitlines()]
        qa = [e for e in entries if e["user"] == "qa@akidb.example" and e["asked"] == "launchRun"]
        assert [(e["allowed"], e["policy"]) for e in qa[-2:]] == [(True, "qa-launches"), (False, "default-deny")]
        assert json.loads(qa[-1]["about"])["jobName"] == "backups"
        assert qa[-2]["right"] == "launch on Pipeline::fixtures"
        html = client.get("/access/decisions", headers={"Authorization": f"Bearer {issuer.token('security')}"})
        assert "default-deny" in html.text
        for team in ("qa", "application-engineering"):
            refused = client.get("/access/decisions", headers={"Authorization": f"Bearer {issuer.token(team)}"})
            assert refused.status_code == 403


def test_greying_buttons_writes_nothing_down(front, issuer):
    journal = Journal(front.home / "access")
    today = datetime.now(UTC).date()
    before = sum(1 for _ in journal.read(today))
    front.graphql(SEEN, issuer.token("qa"))
    assert sum(1 for _ in journal.read(today)) == before


def test_the_time_of_decisions_is_measured_for_prometheus(front, issuer):
    front.graphql(SEEN, issuer.token("qa"))
    text = httpx.get(f"http://127.0.0.1:{front.metrics_port}/metrics").text
    assert 'akidb_pipelines_cedar_decision_seconds_bucket{le="0.005",source="front"}' in text


def test_what_cannot_be_written_down_is_not_done(issuer, tmp_path):
    """The journal's folder is a file: nobody can change anything, and everybody is told why."""
    (tmp_path / "blocked").write_text("")
    with Front(tmp_path / "home", issuer, AKIDB_ACCESS_LOG=str(tmp_path / "blocked" / "log")) as front:
        answer = front.graphql(
            'mutation { setConcurrencyLimit(concurrencyKey: "x", limit: 3) }', issuer.token("platform-engineering")
        )
        assert "log of decisions" in answer["errors"][0]["message"]
        assert front.graphql("{ version }", issuer.token("qa"))["data"]["version"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("team", "asset", "enabled"),
    [
        ("platform-engineering", "staging_dumps", True),
        ("application-engineering", "staging_dumps", False),
        ("application-engineering", "fixture_databases", True),
        ("security", "fixture_databases", False),
        ("qa", "fixture_databases", True),
        ("qa", "staging_dumps", False),
    ],
)
def test_buttons_in_a_browser(front, issuer, tmp_path, team, asset, enabled):
    """Through a proxy that signs people in, as oauth2-proxy does."""
    with SignInProxy(front.port, issuer.token(team)) as proxy:
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        more = f"--disable-component-update --disable-sync --user-data-dir={tmp_path} --virtual-time-budget=20000 --dump-dom"
        command = ["chromium", *flags.split(), *more.split(), f"{proxy.url}/assets/{asset}"]
        page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    buttons = [b for b in re.findall(r"<button\b.*?</button>", page, re.DOTALL) if "Materialize" in b]
    assert buttons
    assert all("disabled" not in b.split(">")[0] for b in buttons) == enabled


# --- the parts


def test_every_asset_and_job_says_who_may_start_it():
    defs = build_defs(Settings())
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        owners = graph.get(key).owners
        assert len([o for o in owners if o in STARTS]) <= 1
        assert owners, key
    for job in defs.jobs or ():
        assert set(job.owners or ()) & {*STARTS, "team:platform-engineering"}, job.name


def test_the_whole_matrix_as_the_policies_decide_it():
    rows = decide_matrix()
    assert {str(r): "".join("y" if teams[t] else "n" for t in TEAMS) for r, teams in rows.items()} == {
        "launch on Pipeline::fixtures": "yyny",
        "launch on Pipeline::runner_images": "yynn",
        "launch on Pipeline::jetson": "ynnn",
        "launch on Pipeline::dr_lab": "yyny",
        "launch on Pipeline::dr_oci": "ynnn",
        "launch on Pipeline::backups": "ynnn",
        "launch on Pipeline::costs": "yynn",
        "manageSandbox on Deployment::akidb_pipelines": "ynyn",
        "release on Deployment::akidb_pipelines": "ynnn",
        "revoke on Deployment::akidb_pipelines": "ynyn",
        "reflash on Pipeline::jetson": "ynnn",
        "restore on Pipeline::dr_oci": "ynnn",
        "view on Deployment::akidb_pipelines": "yyyy",
        "operate on Deployment::akidb_pipelines": "ynnn",
        "administer on Deployment::akidb_pipelines": "ynnn",
        "audit on Deployment::akidb_pipelines": "ynyn",
    }


def _member(team):
    return Principal(f"00u-{team}", f"{team}@akidb.example", (team,), 0)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_other_policies_hold_without_a_restart(tmp_path):
    sandbox = tmp_path / "sandbox"
    shutil.copytree(SHIPPED, sandbox)
    clock = Clock()
    judge = Judge(sandbox, clock=clock)
    fixtures = Right("launch", "Pipeline", "fixtures")
    assert judge.decide(_member("qa"), fixtures).allowed
    policies = sandbox / "ops.cedar"
    policies.write_text(
        policies.read_text() + '\n@id("freeze")\nforbid (principal, action == AkiDB::Ops::Action::"launch", resource);\n'
    )
    clock.now = 6
    assert judge.decide(_member("qa"), fixtures).policy == "freeze"


def test_a_forbid_that_names_nothing_holds_here_too(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "sandbox")
    (tmp_path / "sandbox" / "freeze.cedar").write_text('@id("freeze") forbid (principal, action, resource);')
    judge = Judge(tmp_path / "sandbox")
    assert judge.decide(_member("platform-engineering"), VIEW).policy == "freeze"


def _unreadable(sandbox):
    (sandbox / "ops.cedar").write_text("permit (")


def _too_deep(sandbox):
    everybody = " || ".join(f'principal.email == "u{number}@akidb.example"' for number in range(60))
    scope = 'principal is AkiDB::Ops::User, action == AkiDB::Ops::Action::"administer", resource'
    (sandbox / "many.cedar").write_text(f'@id("many") permit ({scope}) when {{ {everybody} }};')


def _vanished(sandbox):
    (sandbox / ".#ops.cedar").symlink_to("nowhere")  # as editors leave


@pytest.mark.parametrize("broken", [_unreadable, _too_deep, _vanished])
def test_broken_policies_leave_those_of_before_in_force(broken, tmp_path, caplog):
    sandbox = tmp_path / "sandbox"
    shutil.copytree(SHIPPED, sandbox)
    clock = Clock()
    judge = Judge(sandbox, clock=clock)
    broken(sandbox)
    clock.now = 6
    assert not judge.decide(_member("qa"), ADMINISTER).allowed
    assert judge.decide(_member("qa"), VIEW).allowed
    assert "stay in force" in caplog.text
    with pytest.raises(InputError):
        Judge(sandbox)


def test_an_open_page_ends_when_its_user_may_no_longer_look(monkeypatch):
    monkeypatch.setattr(front_module, "_LOOK_AGAIN_S", 0.02)
    member = replace(_member("qa"), expires=time.time() + 3600)
    may_look, sent = [True], []
    judge = SimpleNamespace(decide=lambda *_: Decision(may_look[0], "a policy"))

    async def page(scope, receive, send):
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def look():
        context = SimpleNamespace(access=SimpleNamespace(judge=judge))
        gate = Gate(page, SimpleNamespace(admit=lambda _: member), context)
        opened = asyncio.ensure_future(gate({"type": "websocket", "path": "/graphql", "headers": []}, None, send))
        await asyncio.sleep(0.3)
        assert not opened.done()
        may_look[0] = False
        await asyncio.wait_for(opened, 10)

    asyncio.run(look())
    assert [m["code"] for m in sent] == [4403]


def test_keys_are_kept_while_the_issuer_is_away_and_taken_anew_when_it_rotates():
    clock = Clock()
    with Issuer() as issuer:
        keeper = Doorkeeper(issuer.endpoint, "akidb-pipelines", PublishedKeys(f"{issuer.endpoint}/keys", clock), {"qa": "qa"})
        old = issuer.token("qa")
        assert keeper.admit([f"Bearer {old}"]).teams == ("qa",)
        issuer.rotate()
        with pytest.raises(RefusedTokenError, match="no key"):
            keeper.admit([f"Bearer {issuer.token('qa')}"])
        clock.now = 31
        assert keeper.admit([f"Bearer {issuer.token('qa')}"]).teams == ("qa",)
        with pytest.raises(RefusedTokenError, match="no key"):
            keeper.admit([f"Bearer {old}"])
        late = issuer.token("qa")
    clock.now = 10_000
    assert keeper.admit([f"Bearer {late}"]).email == "qa@akidb.example"


def test_tokens_with_made_up_keys_do_not_make_the_front_ask_again_and_again():
    clock = Clock()
    with Issuer() as issuer:
        keeper = Doorkeeper(issuer.endpoint, "akidb-pipelines", PublishedKeys(f"{issuer.endpoint}/keys", clock), {})
        for n in range(50):
            with pytest.raises(RefusedTokenError):
                keeper.admit([f"Bearer {issuer.token('qa', header={'kid': str(n)})}"])
        assert len(issuer.log) == 1


def test_an_issuer_that_hangs_holds_up_nobody_whose_key_is_known():
    clock, asking, hung = Clock(), threading.Event(), threading.Event()
    with Issuer() as issuer:
        keys = PublishedKeys(f"{issuer.endpoint}/keys", clock)
        keeper = Doorkeeper(issuer.endpoint, "akidb-pipelines", keys, {"qa": "qa"})
        token, made_up = issuer.token("qa"), issuer.token("qa", header={"kid": "made up"})
        keeper.admit([f"Bearer {token}"])
        clock.now = 60

        def hang():
            asking.set()
            hung.wait(30)

        keys._ask = hang

        def attack():
            with contextlib.suppress(RefusedTokenError):
                keeper.admit([f"Bearer {made_up}"])

        attacker = threading.Thread(target=attack)
        attacker.start()
        assert asking.wait(10)
        assert keeper.admit([f"Bearer {token}"]).teams == ("qa",)
        hung.set()
        attacker.join()


def test_groups_are_teams_only_by_the_mapping():
    with Issuer() as issuer:
        keeper = Doorkeeper(issuer.endpoint, "akidb-pipelines", PublishedKeys(f"{issuer.endpoint}/keys"), {"okta-akidb-qa": "qa"})
        assert keeper.admit([f"Bearer {issuer.token('okta-akidb-qa', 'platform-engineering')}"]).teams == ("qa",)


def test_a_flood_of_refused_tokens_does_not_fill_the_disk(tmp_path):
    journal = Journal(tmp_path, lambda: datetime(2026, 11, 26, 12, tzinfo=UTC))
    for _ in range(500):
        journal.refuse("no token", "/", "192.0.2.1")
    lines = list(journal.read(datetime(2026, 11, 26, tzinfo=UTC).date()))
    assert len(lines) == 61
    assert "not written down" in lines[-1]


def test_a_flood_of_denials_of_one_person_hides_nobody_elses(tmp_path):
    noon = datetime(2026, 11, 26, 12, tzinfo=UTC)
    journal = Journal(tmp_path, lambda: noon)
    denied = Entry("u", "00u", (), "launchRun", "{}", "r", False, "default-deny", "")
    for _ in range(500):
        journal.write(denied)
    journal.write(replace(denied, allowed=True))
    journal.write(replace(denied, user="v", subject="00v"))
    *_, more, allowed, other = entries = list(journal.entries(noon.date()))
    assert len(entries) == 63
    assert "not written down" in more["policy"]
    assert allowed["allowed"]
    assert other["user"] == "v"


def test_a_token_of_nobody_is_refused():
    with Issuer() as issuer:
        keeper = Doorkeeper(issuer.endpoint, "akidb-pipelines", PublishedKeys(f"{issuer.endpoint}/keys"), {"qa": "qa"})
        with pytest.raises(RefusedTokenError, match="sub"):
            keeper.admit([f"Bearer {issuer.token('qa', sub='')}"])


@pytest.mark.parametrize(
    ("verified", "name"), [(None, "qa@akidb.example"), (True, "qa@akidb.example"), (False, "00u-qa"), ("true", "00u-qa")]
)
def test_an_address_that_the_issuer_has_not_verified_names_nobody(verified, name):
    with Issuer() as issuer:
        keeper = Doorkeeper(issuer.endpoint, "akidb-pipelines", PublishedKeys(f"{issuer.endpoint}/keys"), {"qa": "qa"})
        assert keeper.admit([f"Bearer {issuer.token('qa', email_verified=verified)}"]).name == name


def test_a_journal_without_room_refuses(tmp_path):
    journal = Journal(tmp_path / "file" / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutsideError, match="log of decisions"):
        journal.write(Entry("u", "00u", (), "a", "", "r", True, "p", ""))


def test_half_a_line_of_a_full_disk_spoils_no_other(tmp_path):
    noon = datetime(2026, 11, 26, 12, tzinfo=UTC)
    journal, entry = Journal(tmp_path, lambda: noon), Entry("u", "00u", (), "asked", "", "r", True, "p", "")
    journal.write(entry)
    with (tmp_path / "decisions-2026-11-26.jsonl").open("a") as lines:
        lines.write('{"time":"2026')
    Journal(tmp_path, lambda: noon).write(entry)  # after a restart
    assert [e["allowed"] for e in journal.entries(noon.date())] == [True, False, True]
    (tmp_path / "decisions-of-mine.jsonl").write_text("")
    assert journal.days() == [noon.date()]


@pytest.mark.parametrize(
    ("config", "leaves"),
    [
        (None, False),
        ({}, False),
        ({"ops": {"dr_drill_report": {"config": {"scenario": "partition"}}}}, False),
        ({"ops": {"dr_drill_report": {"config": {"target": "lab"}}}}, False),
        ({"ops": {"dr_drill_report": {"config": {"target": "oci"}}}}, True),
        ({"ops": {"dr_drill_report": {"config": {"target": ["lab"]}}}}, True),
        ("ops: {dr_drill_report: {config: {target: lab}}}", False),
        ("ops: {dr_drill_report: {config: {target: oci}}}", True),
        ('{"ops": {"dr_drill_report": {"config": {"target": "oci"}}}}', True),
        ("{", True),
    ],
)
def test_what_counts_as_a_drill_elsewhere(config, leaves):
    assert leaves_the_lab(config) == leaves


def test_a_decision_is_quick_enough_to_be_taken_a_hundred_times_a_page():
    """Remembered, it takes no time worth naming: the ratio to Cedar's own is what is held here."""
    spent: list[float] = []
    judge = Judge(measured=spent.append)
    for _ in range(1000):
        judge.decide(_member("qa"), VIEW)
    assert len(spent) == 1
