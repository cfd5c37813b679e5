"""Alerts as people get them: decided from the facts, told once, resolved, and never in a run's way."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta

import dagster as dg
import httpx
import pytest
import yaml
from dagster._core.code_pointer import FileCodePointer
from dagster._core.origin import RepositoryPythonOrigin
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._utils.error import SerializableErrorInfo

from akidb_pipelines.definitions import build_defs
from akidb_pipelines.errors import InputError
from akidb_pipelines.operations.alerts.decide import Alert, firing
from akidb_pipelines.operations.alerts.ledger import Ledger, tell
from akidb_pipelines.operations.alerts.sender import open_lines
from akidb_pipelines.operations.alerts.table import load_table
from akidb_pipelines.operations.facts import AssetFact, CheckFact, Facts, JobFact, SensorFact, collect, watched_of
from akidb_pipelines.operations.metrics.families import CHECK_NAMED, NAMED, families
from akidb_pipelines.settings import Settings
from tests.services.http_stub import Hang, Reset, Status
from tests.services.prometheus import CONFIGURATION, alertmanager, prometheus
from tests.services.receivers import Receivers
from tests.services.server import ROOT, Server, free_port

NOW = 1_800_000_000.0


def check(key: str, passed: bool = False, blocking: bool = False, severity: str = "ERROR") -> CheckFact:
    asset, name = key.split("/")
    return CheckFact(asset, name, "", passed, blocking, severity, "what was found", NOW, "run-1", {})


def facts(**what) -> Facts:
    return replace(Facts(NOW, (), (), (), (), {}, 0, {}), **what)


def rules_on(found: Facts) -> set[str]:
    return {a.rule for a in firing(found, load_table())}


# --- deciding


@pytest.mark.parametrize(
    ("name", "key", "severity"),
    [(name, key, s) for name, rule in load_table().rules.items() for key in rule.checks for s in rule.check_severity],
)
def test_every_named_check_turns_its_own_alert_on_and_no_other(name, key, severity):
    assert rules_on(facts(checks=(check(key, blocking=True, severity=severity),))) == {name}
    assert rules_on(facts(checks=(check(key, passed=True),))) == set()


def test_every_check_that_the_table_names_exists():
    keys = {f"{k.asset_key.to_user_string()}/{k.name}" for k in build_defs(Settings()).resolve_asset_graph().asset_check_keys}
    named = {key for rule in load_table().rules.values() for key in rule.checks}
    assert named <= keys


def test_additive_drift_which_is_there_from_the_beginning_is_no_alert():
    assert rules_on(facts(checks=(check("fixture_databases/schema_drift", blocking=True, severity="WARN"),))) == set()
    assert rules_on(facts(checks=(check("fixture_databases/schema_drift", blocking=True),))) == {"fixture.drift.breaking"}


def test_a_blocking_check_that_only_warned_is_no_alert():
    assert rules_on(facts(checks=(check("staging_dumps/restorable", blocking=True),))) == {"pipeline.check.failed"}
    assert rules_on(facts(checks=(check("staging_dumps/restorable", blocking=True, severity="WARN"),))) == set()


def test_a_check_that_holds_nothing_back_is_told_until_morning():
    assert rules_on(facts(checks=(check("dr_drill_report/rto"),))) == {"pipeline.check.nonblocking"}
    assert rules_on(facts(checks=(check("dr_drill_report/rto", severity="WARN"),))) == set()
    assert load_table().receivers("pipeline.check.nonblocking") == ("slack",)


def test_a_failed_run_is_an_alert_until_the_job_succeeds():
    failed = JobFact("backups", False, NOW, "0123456789", "2026-11-26")
    (alert,) = firing(facts(jobs=(failed,)), load_table())
    assert (alert.rule, alert.subject) == ("pipeline.run.failed", "backups")
    assert "2026-11-26" in alert.told
    assert rules_on(facts(jobs=(replace(failed, succeeded=True),))) == set()


def test_what_has_no_limit_is_never_stale():
    old = AssetFact("staging_dumps", "", NOW - 3 * 86400, 26 * 3600, {})
    assert rules_on(facts(assets=(old,))) == {"pipeline.stale"}
    assert rules_on(facts(assets=(replace(old, fresh_for_s=None), replace(old, last_success=NOW - 60)))) == set()


def test_a_broken_table_is_refused_by_name(tmp_path):
    path = tmp_path / "alerts.yaml"
    path.write_text("routes: {critical: [pagerduty], warning: [carrier pigeon]}\nrules: {}\n")
    with pytest.raises(InputError, match="carrier pigeon"):
        load_table(path)


# --- the facts of a real instance


@dg.asset(freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=1)))
def fresh() -> dg.MaterializeResult:
    return dg.MaterializeResult(metadata={"rows": 3, "share": 0.5, "name": "x", "ok": True})


class _Config(dg.Config):
    fail: bool = False


@dg.asset(check_specs=[dg.AssetCheckSpec("sound", asset="judged", blocking=True)])
def judged(config: _Config):
    yield dg.MaterializeResult()
    yield dg.AssetCheckResult(passed=not config.fail, description="looked at", metadata={"ratio": 1.5})


@dg.asset
def breaks(config: _Config) -> None:
    if config.fail:
        raise dg.Failure("as asked")


SMALL = dg.Definitions(assets=[fresh, judged, breaks], jobs=[dg.define_asset_job("nightly", selection=["breaks"])])


def run(instance, *, fail=False):
    config = {"ops": {"judged": {"config": {"fail": fail}}}}
    SMALL.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, run_config=config, asset_selection=[dg.AssetKey("judged"), dg.AssetKey("fresh")], raise_on_error=False
    )
    SMALL.resolve_job_def("nightly").execute_in_process(
        instance=instance, run_config={"ops": {"breaks": {"config": {"fail": fail}}}}, raise_on_error=False
    )


def test_facts_of_an_instance():
    watched = watched_of(SMALL.get_repository_def())
    with dg.instance_for_test() as instance:
        assert collect(instance, watched).assets == ()
        run(instance, fail=True)
        found = collect(instance, watched)
        (asset,) = [a for a in found.assets if a.name == "fresh"]
        assert asset.numbers == {"rows": 3, "share": 0.5}
        assert asset.fresh_for_s == 3600
        (sound,) = found.checks
        assert (sound.key, sound.passed, sound.blocking, sound.told, sound.numbers) == (
            "judged/sound",
            False,
            True,
            "looked at",
            {"ratio": 1.5},
        )
        assert {j.name: j.succeeded for j in found.jobs}["nightly"] is False
        assert rules_on(found) == {"pipeline.run.failed", "pipeline.check.failed"}
        assert rules_on(collect(instance, watched, now=time.time() + 7200)) >= {"pipeline.stale"}
        run(instance)
        assert rules_on(collect(instance, watched)) == set()


def test_a_run_that_is_tried_again_is_no_alert_unless_nobody_does():
    watched = watched_of(SMALL.get_repository_def())
    with dg.instance_for_test() as instance:
        job = SMALL.resolve_job_def("nightly")
        failed = instance.create_run_for_job(job, tags={"dagster/will_retry": "true"})
        instance.report_run_failed(failed)
        assert collect(instance, watched).jobs == ()
        assert [j.succeeded for j in collect(instance, watched, now=time.time() + 300).jobs] == [False]
        instance.add_run_tags(failed.run_id, {"dagster/auto_retry_run_id": "another"})
        assert collect(instance, watched, now=time.time() + 300).jobs == ()


def test_a_weekly_failure_is_not_pushed_out_of_sight_by_what_runs_all_the_time():
    watched = watched_of(SMALL.get_repository_def())
    with dg.instance_for_test() as instance:
        failed = instance.create_run_for_job(SMALL.resolve_job_def("nightly"))
        instance.report_run_failed(failed)
        often = SMALL.resolve_implicit_global_asset_job_def()
        for _ in range(40):
            instance.create_run_for_job(often, status=dg.DagsterRunStatus.SUCCESS)
        assert rules_on(collect(instance, watched)) == {"pipeline.run.failed"}


RUNNERS = dg.MultiPartitionsDefinition(
    {"week": dg.StaticPartitionsDefinition(["w1", "w2"]), "runner": dg.StaticPartitionsDefinition(["docker", "mac"])}
)


@dg.asset(
    partitions_def=RUNNERS,
    check_specs=[dg.AssetCheckSpec("tools", asset="image", blocking=True)],
    freshness_policy=dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=1)),
)
def image(config: _Config):
    yield dg.MaterializeResult()
    yield dg.AssetCheckResult(passed=not config.fail)


FLEET = dg.Definitions(assets=[image, fresh], jobs=[dg.define_asset_job("images", selection=["image"])])


def snap(instance, week, runner, *, fail=False):
    FLEET.resolve_job_def("images").execute_in_process(
        instance=instance,
        partition_key=dg.MultiPartitionKey({"week": week, "runner": runner}),
        run_config={"ops": {"image": {"config": {"fail": fail}}}},
        raise_on_error=False,
    )


def test_a_runner_that_passes_says_nothing_about_another_that_failed():
    watched = watched_of(FLEET.get_repository_def())
    with dg.instance_for_test() as instance:
        snap(instance, "w1", "docker", fail=True)
        snap(instance, "w1", "mac")
        on = firing(collect(instance, watched), load_table())
        assert [a.key for a in on] == ["pipeline.check.failed/image/tools/docker", "pipeline.run.failed/images/docker"]
        snap(instance, "w2", "docker")
        assert rules_on(collect(instance, watched)) == set()
        snap(instance, "w2", "docker", fail=True)
        retired = replace(watched, members={k: replace(m, names=frozenset({"mac"})) for k, m in watched.members.items()})
        assert rules_on(collect(instance, retired)) == set(), "a runner that is no longer in the inventory"


def test_making_up_an_old_week_makes_nothing_fresh_nor_does_another_runner():
    watched = watched_of(FLEET.get_repository_def())
    with dg.instance_for_test() as instance:
        snap(instance, "w2", "docker")
        snap(instance, "w2", "mac")
        before = {a.label: a.last_success for a in collect(instance, watched).assets}
        time.sleep(0.1)
        snap(instance, "w1", "docker")
        snap(instance, "w2", "mac")
        after = {a.label: a.last_success for a in collect(instance, watched).assets}
        assert after["image/docker"] == before["image/docker"]
        assert after["image/mac"] > before["image/mac"]


def test_what_failed_when_started_by_hand_is_over_when_its_assets_succeed():
    watched = watched_of(SMALL.get_repository_def())
    with dg.instance_for_test() as instance:
        SMALL.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            run_config={"ops": {"breaks": {"config": {"fail": True}}}},
            asset_selection=[dg.AssetKey("breaks")],
            raise_on_error=False,
        )
        assert rules_on(collect(instance, watched)) == {"pipeline.run.failed"}
        SMALL.resolve_job_def("nightly").execute_in_process(instance=instance, run_config={"ops": {"breaks": {"config": {}}}})
        assert rules_on(collect(instance, watched)) == set()


def test_a_part_of_a_job_that_succeeds_does_not_end_its_alert():
    both = dg.Definitions(assets=[breaks, judged], jobs=[dg.define_asset_job("both", selection=["breaks", "judged"])])
    watched, job = watched_of(both.get_repository_def()), both.resolve_job_def("both")

    def go(*names, fail=False):
        job.execute_in_process(
            instance=instance,
            run_config={"ops": {name: {"config": {"fail": fail and name == "breaks"}} for name in names}},
            asset_selection=[dg.AssetKey(name) for name in names],
            raise_on_error=False,
        )

    with dg.instance_for_test() as instance:
        go("breaks", "judged", fail=True)
        assert rules_on(collect(instance, watched)) == {"pipeline.run.failed"}
        go("judged")
        assert rules_on(collect(instance, watched)) == {"pipeline.run.failed"}
        go("breaks", "judged")
        assert rules_on(collect(instance, watched)) == set()


def as_the_ui(instance, job, status, tags, **more) -> str:
    """The id of a run with what Dagster's shortcut for tests has no arguments for."""
    made = instance.create_run_for_job(job, status=status, tags=tags)
    instance.delete_run(made.run_id)
    instance.add_run(made._replace(**more))
    return made.run_id


def test_steps_that_are_run_again_alone_do_not_end_the_alert_of_their_job():
    both = dg.Definitions(assets=[breaks, judged], jobs=[dg.define_asset_job("both", selection=["breaks", "judged"])])
    watched, job = watched_of(both.get_repository_def()), both.resolve_job_def("both")

    def again(parent, steps, status, **tags):
        as_the_ui(instance, job, status, tags, parent_run_id=parent, root_run_id=parent, step_keys_to_execute=steps)

    with dg.instance_for_test() as instance:
        failed = instance.create_run_for_job(job, status=dg.DagsterRunStatus.FAILURE).run_id
        again(failed, ["judged"], dg.DagsterRunStatus.SUCCESS)
        assert [a.subject for a in firing(collect(instance, watched), load_table())] == ["both"]
        again(failed, ["judged"], dg.DagsterRunStatus.FAILURE)
        assert [a.subject for a in firing(collect(instance, watched), load_table())] == ["both", "judged"]
        # From the failure on is the whole job, and ends both.
        again(failed, ["breaks"], dg.DagsterRunStatus.SUCCESS, **{"dagster/is_resume_retry": "true"})
        assert rules_on(collect(instance, watched)) == set()


@pytest.mark.parametrize("ended", [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])
def test_what_goes_on_from_a_part_is_that_part_however_the_whole_began(ended):
    both = dg.Definitions(assets=[breaks, judged], jobs=[dg.define_asset_job("both", selection=["breaks", "judged"])])
    watched, job = watched_of(both.get_repository_def()), both.resolve_job_def("both")
    with dg.instance_for_test() as instance:
        whole = instance.create_run_for_job(job, status=dg.DagsterRunStatus.FAILURE).run_id
        of_it = {"root_run_id": whole, "step_keys_to_execute": ["judged"]}
        part = as_the_ui(instance, job, ended, {}, parent_run_id=whole, **of_it)
        as_the_ui(instance, job, dg.DagsterRunStatus.SUCCESS, {"dagster/is_resume_retry": "true"}, parent_run_id=part, **of_it)
        assert [a.subject for a in firing(collect(instance, watched), load_table())] == ["both"]


def test_a_job_that_the_ui_launched_is_the_whole_job_and_a_part_that_goes_on_is_a_part():
    """The UI names all assets and checks."""
    both = dg.Definitions(assets=[breaks, judged], jobs=[dg.define_asset_job("both", selection=["breaks", "judged"])])
    watched, job = watched_of(both.get_repository_def()), both.resolve_job_def("both")
    one, every = frozenset({dg.AssetKey("breaks")}), frozenset({dg.AssetKey("breaks"), dg.AssetKey("judged")})
    checks = frozenset({dg.AssetCheckKey(dg.AssetKey("judged"), "sound")})

    def launched(status, assets, root=None, **tags):
        chosen = {"asset_selection": assets, "asset_check_selection": checks if assets == every else frozenset()}
        return as_the_ui(instance, job, status, tags, parent_run_id=root, root_run_id=root, **chosen)

    def on():
        return [a.subject for a in firing(collect(instance, watched), load_table())]

    with dg.instance_for_test() as instance:
        instance.create_run_for_job(job, status=dg.DagsterRunStatus.FAILURE)
        part = launched(dg.DagsterRunStatus.FAILURE, one)
        assert on() == ["both", "breaks"]
        launched(dg.DagsterRunStatus.SUCCESS, one, part, **{"dagster/is_asset_resume_retry": "true"})
        assert on() == ["both"]
        launched(dg.DagsterRunStatus.SUCCESS, every)
        assert on() == []


def test_what_takes_hours_may_wait_for_hours():
    watched, job = watched_of(SMALL.get_repository_def()), SMALL.resolve_job_def("nightly")
    server = GrpcServerCodeLocationOrigin(host="127.0.0.1", port=1, location_name="anywhere")
    queued = {
        "status": dg.DagsterRunStatus.QUEUED,
        "remote_job_origin": RemoteRepositoryOrigin(server, "__repository__").get_job_origin("nightly"),
        "job_code_origin": RepositoryPythonOrigin(sys.executable, FileCodePointer("x.py", "defs")).get_job_origin("nightly"),
    }
    with dg.instance_for_test() as instance:
        for _ in range(20):
            instance.create_run_for_job(job, tags={"akidb/long": "true"}, **queued)
        assert collect(instance, watched, now=time.time() + 7200).oldest_queued_s == 0
        instance.create_run_for_job(job, **queued)
        assert collect(instance, watched, now=time.time() + 7200).oldest_queued_s > 7000


def test_a_run_of_a_job_that_is_gone_is_no_alert():
    watched = watched_of(FLEET.get_repository_def())
    with dg.instance_for_test() as instance:
        snap(instance, "w1", "docker", fail=True)
        gone = replace(watched, jobs=tuple(j for j in watched.jobs if j != "images"))
        assert collect(instance, gone).jobs == ()


def test_a_backfill_of_one_runner_pushes_no_other_out_of_sight():
    watched, job = watched_of(FLEET.get_repository_def()), FLEET.resolve_job_def("images")
    with dg.instance_for_test() as instance:
        snap(instance, "w1", "mac", fail=True)
        before = rules_on(collect(instance, watched))
        for n in range(40):
            of_docker = {"dagster/partition": f"docker|w{n}", "dagster/partition/runner": "docker"}
            instance.create_run_for_job(job, status=dg.DagsterRunStatus.SUCCESS, tags=of_docker)
        assert rules_on(collect(instance, watched)) == before == {"pipeline.run.failed", "pipeline.check.failed"}


def test_builds_that_fail_before_their_checks_do_not_end_the_alert_of_a_failed_check():
    watched, job = watched_of(FLEET.get_repository_def()), FLEET.resolve_job_def("images")
    with dg.instance_for_test() as instance:
        snap(instance, "w1", "mac", fail=True)
        for n in range(40):
            of_mac = {"dagster/partition": f"mac|w{n}", "dagster/partition/runner": "mac"}
            instance.create_run_for_job(job, status=dg.DagsterRunStatus.FAILURE, tags=of_mac)
        assert "pipeline.check.failed" in rules_on(collect(instance, watched))


def test_a_check_that_nothing_has_come_to_yet_is_not_looked_for_in_run_after_run(monkeypatch):
    watched, job = watched_of(FLEET.get_repository_def()), FLEET.resolve_job_def("images")
    new = dg.AssetCheckKey(dg.AssetKey("image"), "new")
    watched = replace(watched, checks={new: True})
    with dg.instance_for_test() as instance:
        for n in range(30):
            of_mac = {"dagster/partition": f"mac|w{n}", "dagster/partition/runner": "mac"}
            instance.create_run_for_job(job, status=dg.DagsterRunStatus.SUCCESS, tags=of_mac)
        read, asked = instance.get_records_for_run, []
        monkeypatch.setattr(instance, "get_records_for_run", lambda run_id, **rest: asked.append(run_id) or read(run_id, **rest))
        collect(instance, watched)
        assert len(asked) == 10


def test_an_image_of_a_runner_that_left_the_inventory_is_not_stale():
    watched = watched_of(FLEET.get_repository_def())
    with dg.instance_for_test() as instance:
        snap(instance, "w1", "docker")
        for names in ({"new"}, set()):
            members = {k: replace(m, names=frozenset(names)) for k, m in watched.members.items()}
            found = collect(instance, replace(watched, members=members), now=time.time() + 7200)
            assert [a.label for a in found.assets] == []


def test_a_check_that_an_asset_no_longer_has_is_forgotten():
    """Its name stands on another asset still: Dagster's query finds both."""

    @dg.asset(check_specs=[dg.AssetCheckSpec("sane", asset="other")])
    def other():
        yield dg.MaterializeResult()
        yield dg.AssetCheckResult(passed=True)

    watched = watched_of(dg.Definitions(assets=[judged, other]).get_repository_def())
    with dg.instance_for_test() as instance:
        for asset, name in (("other", "sound"), ("judged", "sound")):
            instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(asset_key=dg.AssetKey(asset), check_name=name, passed=False)
            )
        assert [c.key for c in collect(instance, watched).checks] == ["judged/sound"]


def test_a_sensor_that_fails_at_every_tick_is_told():
    sensor = SensorFact("drill_overdue", NOW, True)
    (alert,) = firing(facts(sensors=(sensor, replace(sensor, name="alerts", failing=False))), load_table())
    assert (alert.rule, alert.subject) == ("pipelines.sensor.failing", "drill_overdue")


@pytest.mark.parametrize(
    ("ticks", "failing"),
    [("FFF", True), ("FFS", False), ("SFFF", True), ("FFFB", True), ("FF", False)],
    ids=["all failed", "skipped last", "failed lately", "one has just begun", "too few to say"],
)
def test_a_sensor_fails_when_its_last_three_ticks_that_ended_have(ticks, failing):
    status = {"F": TickStatus.FAILURE, "S": TickStatus.SKIPPED, "B": TickStatus.STARTED}
    location = GrpcServerCodeLocationOrigin(host="127.0.0.1", port=1, location_name="akidb")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), "drill_overdue")
    with dg.instance_for_test() as instance:
        data = SensorInstigatorData(last_tick_timestamp=NOW, min_interval=30)
        kind = InstigatorType.SENSOR
        instance.add_instigator_state(InstigatorState(origin, kind, InstigatorStatus.DECLARED_IN_CODE, data))
        for number, letter in enumerate(ticks):
            error = SerializableErrorInfo("boom", [], None) if letter == "F" else None
            selector = origin.get_selector().get_id()
            told = TickData(origin.get_id(), "drill_overdue", kind, status[letter], NOW + number, selector_id=selector, error=error)
            instance.create_tick(told)
        sensor = dg.SensorDefinition(name="drill_overdue", evaluation_fn=lambda: None, asset_selection="*")
        watched = watched_of(dg.Definitions(sensors=[sensor]).get_repository_def())
        assert collect(instance, watched).sensors == (SensorFact("drill_overdue", NOW, failing),)
        without = watched_of(dg.Definitions().get_repository_def())
        assert collect(instance, without).sensors == (), "a sensor that is gone fails no more, whatever Dagster keeps of it"


def test_every_asset_with_a_freshness_policy_has_a_limit():
    watched = watched_of(build_defs(Settings()).get_repository_def())
    limits = {key.to_user_string(): limit for key, limit in watched.assets.items() if limit}
    assert limits["fixture_release"] == 7 * 86400 + 4 * 3600
    assert limits["staging_dumps"] == 26 * 3600


# --- telling


@pytest.fixture
def receivers():
    with Receivers() as receivers:
        yield receivers


@pytest.fixture
def lines(receivers, monkeypatch):
    for name, value in receivers.environment().items():
        monkeypatch.setenv(name, value)
    return open_lines(Settings())


DRIFT = Alert("fixture.drift", "fixture_release/sandbox_agrees", "the sandbox is now <other>")
FAILED = Alert("pipeline.run.failed", "backups", "run 01234567 of backups failed", "0123")


def test_each_is_told_once_by_severity_and_resolved(receivers, lines):
    table = load_table()
    first = tell([DRIFT, FAILED], Ledger({}), table, lines)
    again = tell([DRIFT, FAILED], Ledger.parse(first.ledger.text()), table, lines)
    assert not first.failures
    assert again.lines == ()
    assert [*receivers.open] == ["pipeline.run.failed/backups"]
    incident = receivers.open["pipeline.run.failed/backups"]
    assert (incident.severity, incident.triggers) == ("critical", 1)
    assert incident.links[0]["href"].endswith("docs/runbooks/run-failed.md")
    assert len(receivers.slack) == 2
    assert any("&lt;other&gt;" in text for text in receivers.slack)
    assert [s["rule"] for s in receivers.security] == ["fixture.drift"]
    done = tell([], again.ledger, table, lines)
    assert done.ledger.entries == {}
    assert not receivers.open
    assert receivers.security[-1]["status"] == "resolved"
    assert any("resolved" in text for text in receivers.slack)


def test_what_lasts_is_told_again_twice_a_day(receivers, lines):
    """Somebody resolved it by hand in PagerDuty, and every night's dumps failed again."""
    table, began = load_table(), time.time()
    told = tell([FAILED], Ledger({}), table, lines, now=lambda: began)
    receivers.open.clear()
    for hours, lines_told in ((11, 0), (13, 2), (14, 0), (26, 2)):
        told = tell([FAILED], Ledger.parse(told.ledger.text()), table, lines, now=lambda hours=hours: began + hours * 3600)
        assert len(told.lines) == lines_told, hours
    assert [*receivers.open] == [FAILED.key]
    # Its end reaches also those who could not be told again.
    receivers.inject(Status(503), times=2)
    told = tell([FAILED], told.ledger, table, lines, now=lambda: began + 50 * 3600)
    assert told.lines == ()
    tell([], told.ledger, table, lines)
    assert not receivers.open


@pytest.mark.parametrize("fault", [Status(500), Status(429), Reset()], ids=["500", "429", "reset"])
def test_what_was_not_delivered_stays_due(receivers, lines, fault):
    table = load_table()
    receivers.inject(fault, path="/v2/enqueue")
    first = tell([FAILED], Ledger({}), table, lines)
    assert "PagerDuty was not told" in first.failures[0]
    assert len(receivers.slack) == 1
    second = tell([FAILED], first.ledger, table, lines)
    assert [*receivers.open] == [FAILED.key]
    assert len(receivers.slack) == 1
    assert second.lines == (f"pagerduty: {FAILED.key} is on",)


def test_a_resolve_that_was_not_delivered_stays_due(receivers, lines):
    table = load_table()
    first = tell([FAILED], Ledger({}), table, lines)
    receivers.inject(Status(500), path="/v2/enqueue")
    second = tell([], first.ledger, table, lines)
    assert [*receivers.open] == [FAILED.key]
    assert tell([], second.ledger, table, lines).ledger.entries == {}
    assert not receivers.open


def test_a_receiver_that_hangs_costs_one_time_limit_and_no_more(receivers, lines):
    receivers.inject(Hang(30), path="/v2/enqueue", times=3)
    many = [replace(FAILED, subject=f"job-{n}") for n in range(10)]
    began = time.monotonic()
    told = tell(many, Ledger({}), load_table(), {"pagerduty": lines["pagerduty"]})
    assert time.monotonic() - began < 10
    assert len(told.failures) == 1


def test_slow_receivers_do_not_cost_the_whole_tick_and_nothing_is_lost(receivers, lines):
    """Dagster ends a tick after a minute: what had been told would be told again, and again."""
    table, ticks = load_table(), iter(range(0, 10_000, 7))
    many = [replace(FAILED, subject=f"job-{n:02}") for n in range(10)]
    first = tell(many, Ledger({}), table, lines, clock=lambda: next(ticks))
    assert 0 < len(first.lines) < 10
    second = tell(many, first.ledger, table, lines)
    assert len(first.lines) + len(second.lines) == 20
    assert len(receivers.slack) == 10


def test_a_rule_that_left_the_table_takes_its_incident_along(receivers, lines):
    table = load_table()
    first = tell([FAILED], Ledger({}), table, lines)
    without = table.model_copy(update={"rules": {n: r for n, r in table.rules.items() if n != FAILED.rule}})
    assert tell([], first.ledger, without, lines).ledger.entries == {}
    assert not receivers.open


def test_one_that_ended_before_anybody_heard_of_it_is_not_resolved(receivers, lines):
    receivers.inject(Status(500), path="/", times=9)
    table = load_table()
    first = tell([FAILED], Ledger({}), table, lines)
    tell([], first.ledger, table, lines)
    assert receivers.incidents == {}


def test_an_alert_that_is_refused_holds_up_no_other(receivers, lines):
    receivers.inject(Status(400), path="/v2/enqueue")
    told = tell([FAILED, replace(FAILED, subject="costs")], Ledger({}), load_table(), {"pagerduty": lines["pagerduty"]})
    assert len(told.failures) == 1
    assert len(receivers.open) == 1


def test_secrets_are_in_no_error_and_no_ledger(receivers, lines):
    receivers.inject(Status(403), path="/", times=9)
    told = tell([FAILED, DRIFT], Ledger({}), load_table(), lines)
    shown = told.ledger.text() + "".join(told.failures)
    assert receivers.routing_key not in shown
    assert receivers.slack_path not in shown


def test_a_damaged_cursor_tells_again_rather_than_nothing():
    for text in ("", "[]", "{", '{"a": 1}', '{"a": {"alert": {"rule": "x"}, "told": []}}'):
        assert Ledger.parse(text).entries == {}


def test_the_sensor_tells_and_keeps_what_it_told_in_its_cursor(receivers, lines):
    repository = build_defs(Settings()).get_repository_def()
    sensor = repository.get_sensor_def("alerts")
    with dg.instance_for_test() as instance:
        failed = dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey("staging_dumps"), check_name="restorable", passed=False, severity=dg.AssetCheckSeverity.ERROR
        )
        instance.report_runless_asset_event(failed)
        context = dg.build_sensor_context(instance=instance, repository_def=repository)
        result = sensor(context)
        assert [*receivers.open] == ["pipeline.check.failed/staging_dumps/restorable"]
        instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(asset_key=dg.AssetKey("staging_dumps"), check_name="restorable", passed=True)
        )
        sensor(dg.build_sensor_context(instance=instance, repository_def=repository, cursor=result.cursor))
        assert not receivers.open


def test_without_a_receiver_the_sensor_says_so():
    repository = build_defs(Settings()).get_repository_def()
    with dg.instance_for_test() as instance:
        result = repository.get_sensor_def("alerts")(dg.build_sensor_context(instance=instance, repository_def=repository))
    assert "no alert is on" in str(result.skip_reason)
    assert "no receiver is configured" in str(result.skip_reason)


# --- Prometheus and Alertmanager


def _prometheus_rules():
    (group,) = yaml.safe_load((CONFIGURATION / "rules.yaml").read_text())["groups"]
    return group["rules"]


def test_prometheus_has_the_rules_of_the_table():
    table, rules = load_table(), {r["labels"]["rule"]: r for r in _prometheus_rules() if "alert" in r}
    assert {*rules} == {*table.rules}
    for name, rule in rules.items():
        assert rule["labels"]["severity"] == table.rules[name].severity, name
        assert (rule["labels"].get("notify") == "security") == ("security" in table.rules[name].also), name
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/{table.rules[name].runbook}"), name
        for key in table.rules[name].checks:
            assert all(part in rule["expr"] for part in key.split("/")), name


def test_what_prometheus_leaves_to_other_rules_is_what_the_table_does():
    """By name alone: PromQL's pattern has no assets in it, so no name may be both."""
    keys = build_defs(Settings()).resolve_asset_graph()
    named = {key.split("/")[1] for rule in load_table().rules.values() for key in rule.checks}
    for alert, blocking in (("PipelineCheckFailed", True), ("PipelineCheckNonblocking", False)):
        (rule,) = (r for r in _prometheus_rules() if r.get("alert") == alert)
        left_out = re.compile(re.search('check!~"([^"]*)"', rule["expr"])[1])
        of_kind = {k.name for k in keys.asset_check_keys if keys.get(k).blocking is blocking}
        assert {name for name in of_kind if left_out.fullmatch(name)} == named & of_kind


def test_every_alert_has_its_runbook():
    for rule in load_table().rules.values():
        assert (ROOT / "docs" / rule.runbook).is_file(), rule.runbook


def _exported() -> set[str]:
    """Every metric name that the exporter and the front can have."""
    everything = facts(
        assets=tuple(AssetFact(a, "", NOW, 1, {k: 1.0 for x, k in NAMED if x == a}) for a in {a for a, _ in NAMED}),
        checks=tuple(replace(check(c), numbers={k: 1.0}) for c, k in CHECK_NAMED),
    )
    names = {family.name for family in families(everything)}
    return names | {
        "akidb_pipelines_instance_up",
        "akidb_pipelines_scrape_seconds",
        "akidb_pipelines_front_served_timestamp_seconds",
        "akidb_pipelines_cedar_decision_seconds_bucket",
    }


def test_rules_name_only_metrics_that_are_exported():
    recorded = {r["record"] for r in _prometheus_rules() if "record" in r}
    for rule in _prometheus_rules():
        used = set(re.findall(r"akidb_pipelines[\w:]*", re.sub(r'"[^"]*"', "", rule["expr"])))
        assert used <= _exported() | recorded, rule


def test_promtool_and_amtool_accept_what_is_shipped():
    for command in (
        ["promtool", "check", "rules", "rules.yaml"],
        ["promtool", "test", "rules", "rules-test.yaml"],
        ["promtool", "check", "config", "--syntax-only", "prometheus.yaml"],
        ["amtool", "check-config", "alertmanager.yaml"],
    ):
        done = subprocess.run(command, cwd=CONFIGURATION, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def _expressions():
    for path in sorted((ROOT / "deploy" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield path.stem, target["expr"]


def test_dashboards_are_those_of_their_script(tmp_path):
    code = "import dashboards, pathlib, sys; dashboards.FOLDER = pathlib.Path(sys.argv[1]); dashboards.main()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT / "scripts", check=True, capture_output=True)
    shipped = {p.name: p.read_text() for p in (ROOT / "deploy" / "dashboards").glob("*.json")}
    assert {p.name: p.read_text() for p in tmp_path.glob("*.json")} == shipped
    assert {*shipped} == {f"{n}.json" for n in ("builds", "cedar", "migrations", "jetson", "pipelines")}


def test_every_expression_of_a_dashboard_is_promql_over_metrics_that_exist(tmp_path):
    known = _exported() | {r["record"] for r in _prometheus_rules() if "record" in r}
    known |= {"akidb_pipelines_cedar_decision_seconds_count", "jetson_gpu_utilization_percent"}
    with prometheus(tmp_path, {}) as server:
        for board, expression in _expressions():
            assert server.get("/api/v1/format_query", query=expression)["status"] == "success"
            used = set(re.findall(r"(?:akidb_pipelines|jetson_gpu)[\w:]*", re.sub(r'"[^"]*"', "", expression)))
            assert used, (board, expression)
            assert used <= known, (board, used - known)


@pytest.mark.parametrize("rule", sorted(load_table().rules))
def test_alertmanager_routes_as_the_table_says(rule):
    table = load_table()
    labels = [f"rule={rule}", f"severity={table.rules[rule].severity}"]
    labels += ["notify=security"] if "security" in table.rules[rule].also else []
    command = ["amtool", "config", "routes", "test", "--config.file=alertmanager.yaml", *labels]
    done = subprocess.run(command, cwd=CONFIGURATION, capture_output=True, text=True, check=True)
    assert {*done.stdout.strip().split(",")} == {*table.receivers(rule)}


def test_metrics_of_an_instance(tmp_path, monkeypatch):
    """Through the real command, as Prometheus scrapes it."""
    port = free_port()
    monkeypatch.setenv("AKIDB_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    command = [sys.executable, "-m", "akidb_pipelines", "metrics", "serve", "--port", str(port)]
    with Server(command, port, "/metrics", tmp_path / "log") as exporter:
        with dg.DagsterInstance.get() as instance:
            passed = dg.AssetCheckEvaluation(asset_key=dg.AssetKey("fixture_databases"), check_name="schema_drift", passed=True)
            instance.report_runless_asset_event(passed)
            made = dg.AssetMaterialization("dr_drill_report", metadata={"rta_s": 14.2})
            instance.report_runless_asset_event(made)
        text = httpx.get(f"{exporter.url}/metrics").text
    assert "akidb_pipelines_instance_up 1.0" in text
    assert "akidb_pipelines_drill_rta_seconds 14.2" in text
    assert (
        'akidb_pipelines_check_failed{asset="fixture_databases",blocking="true",check="schema_drift",member="",severity="ERROR"} 0.0'
        in text
    )
    assert 'akidb_pipelines_last_success_timestamp_seconds{asset="dr_drill_report"}' in text
    assert 'akidb_pipelines_cedar_decision_seconds_count{source="probe"} 1.0' in text
    # Far below the alert's limit: reading schema and policies is no part of a decision.
    assert 'akidb_pipelines_cedar_decision_seconds_bucket{le="0.005",source="probe"} 1.0' in text


def wait(what, seconds=180):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it does not come to pass"
        time.sleep(0.3)


def _about(receivers, word):
    """Keys of open incidents that say a word."""
    return [key for key, incident in receivers.open.items() if word in incident.summary]


@pytest.mark.slow
def test_from_the_instance_through_prometheus_to_people_and_back(tmp_path, receivers, monkeypatch):
    """Exporter, Prometheus, Alertmanager, PagerDuty, Slack, Security: on, and off again with the same dedup key."""
    monkeypatch.setenv("AKIDB_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    port = free_port()
    command = [sys.executable, "-m", "akidb_pipelines", "metrics", "serve", "--port", str(port)]
    with (
        Server(command, port, "/metrics", tmp_path / "exporter.log"),
        alertmanager(tmp_path / "am", receivers) as manager,
        prometheus(
            tmp_path / "prometheus", {"exporter:9464": f"127.0.0.1:{port}", "webserver:9465": "127.0.0.1:1"}, manager.url[7:]
        ),
        dg.DagsterInstance.get() as instance,
    ):
        # One critical, one warning of which Security hears.
        outcomes = [("staging_dumps", "restorable"), ("fixture_release", "sandbox_agrees")]
        for asset, name in outcomes:
            instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(
                    asset_key=dg.AssetKey(asset), check_name=name, passed=False, severity=dg.AssetCheckSeverity.ERROR
                )
            )
        # Nobody runs a daemon here: that is told, too, and is another incident.
        wait(lambda: _about(receivers, "restorable") and receivers.security)
        (key,) = _about(receivers, "restorable")
        assert receivers.open[key].severity == "critical"
        assert "restorable" in receivers.open[key].summary
        assert receivers.security[0]["commonLabels"]["rule"] == "fixture.drift"
        wait(
            lambda: (
                {"pipeline.check.failed", "fixture.drift"}
                <= {r for r in load_table().rules if any(r in t for t in receivers.slack)}
            )
        )
        for asset, name in outcomes:
            instance.report_runless_asset_event(dg.AssetCheckEvaluation(asset_key=dg.AssetKey(asset), check_name=name, passed=True))
        wait(lambda: not _about(receivers, "restorable"))
        assert receivers.incidents[key].resolved
        wait(lambda: receivers.security[-1]["status"] == "resolved")
