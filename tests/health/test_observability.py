"""Retention and freshness, asked of a real Prometheus and a stub of Loki."""

from __future__ import annotations

import time
from dataclasses import replace

import dagster as dg
import pytest
from prometheus_client import CollectorRegistry, start_http_server

from akidb_pipelines.definitions import build_defs
from akidb_pipelines.drills.target import Node
from akidb_pipelines.health.observability import _retention, duration_s, look_at_observability
from akidb_pipelines.health.staging import Probe, StagingHealth
from akidb_pipelines.resources import HealthTools
from akidb_pipelines.settings import Settings
from assets.health import OBSERVABILITY, STAGING
from tests.services.http_stub import Status
from tests.services.loki_stub import LokiStub
from tests.services.prometheus import prometheus
from tests.services.server import free_port


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A Prometheus that scrapes two targets, of which one is down, and a Loki."""
    folder = tmp_path_factory.mktemp("prometheus")
    port = free_port()
    start_http_server(port, "127.0.0.1", CollectorRegistry())
    targets = {"exporter:9464": f"127.0.0.1:{port}", "webserver:9465": "127.0.0.1:1"}
    with prometheus(folder, targets) as server, LokiStub() as loki:
        end = time.monotonic() + 30
        while len(server.get("/api/v1/query", query="up")["data"]["result"]) < 2:
            assert time.monotonic() < end
            time.sleep(0.2)
        yield server, loki


@pytest.fixture
def loki(stack):
    _, loki = stack
    loki.retention, loki.deletes, loki.newest = "30d", True, time.time()
    return loki


@pytest.fixture
def settings(stack, loki, tmp_path):
    return Settings(home=tmp_path, prometheus_url=stack[0].url, loki_url=loki.endpoint)


def outcomes(settings):
    return {f.check: f.passed for f in look_at_observability(settings)}


def test_a_stack_as_planned(settings):
    found = {f.check: f for f in look_at_observability(settings)}
    assert {name: f.passed for name, f in found.items()} == dict.fromkeys(
        ("metrics_retention", "metrics_fresh", "logs_retention", "logs_fresh"), True
    )
    assert "kept for 14 days" in found["metrics_retention"].told
    assert "1 of 2 targets are up" in found["metrics_fresh"].told


def test_metrics_that_are_kept_too_short(tmp_path):
    with prometheus(tmp_path, {}, retention="7d") as server:
        found = {f.check: f for f in look_at_observability(Settings(prometheus_url=server.url))}
    assert not found["metrics_retention"].passed
    assert "7 days; 14 are wanted" in found["metrics_retention"].told


@pytest.mark.parametrize(
    ("retention", "deletes", "passed"), [("720h", True, True), ("29d", True, False), ("0s", True, True), ("7d", False, True)]
)
def test_how_long_logs_are_kept(settings, loki, retention, deletes, passed):
    loki.retention, loki.deletes = retention, deletes
    assert outcomes(settings)["logs_retention"] == passed


@pytest.mark.parametrize("age", [1200, 7200, None])
def test_logs_that_stopped_coming(settings, loki, age):
    loki.newest = None if age is None else time.time() - age
    assert not outcomes(settings)["logs_fresh"]


def test_one_that_is_away_is_found_and_the_other_is_still_asked(settings, loki):
    gone = settings.model_copy(update={"prometheus_url": "http://127.0.0.1:1"})
    found = {f.check: f for f in look_at_observability(gone)}
    assert not found["metrics_fresh"].passed
    assert "does not answer" in found["metrics_fresh"].told
    assert found["logs_fresh"].passed


def test_one_that_answers_nonsense_is_found(settings, loki):
    elsewhere = settings.model_copy(update={"prometheus_url": loki.endpoint, "loki_url": ""})
    assert outcomes(elsewhere) == {"metrics_fresh": False}
    loki.inject(Status(500), path="/config")
    assert not outcomes(settings)["logs_fresh"]


def test_a_prometheus_whose_targets_are_all_down_is_blind(tmp_path):
    with prometheus(tmp_path, {"exporter:9464": "127.0.0.1:1", "webserver:9465": "127.0.0.1:1"}) as server:
        end = time.monotonic() + 30
        while len(server.get("/api/v1/query", query="up")["data"]["result"]) < 2:
            assert time.monotonic() < end
            time.sleep(0.2)
        found = {f.check: f for f in look_at_observability(Settings(prometheus_url=server.url))}
    assert not found["metrics_fresh"].passed
    assert "0 of 2 targets are up" in found["metrics_fresh"].told


def test_a_limit_by_size_alone_is_no_limit_by_time():
    assert _retention("metrics", "10GiB", 14).passed
    assert "beyond 10GiB" in _retention("metrics", "14d or 10GiB", 14).told
    assert not _retention("metrics", "7d or 10GiB", 14).passed


@pytest.mark.parametrize(
    ("text", "seconds"), [("14d", 1209600), ("2w", 1209600), ("1d12h", 129600), ("0s", 0), ("720h0m0s", 2592000)]
)
def test_durations(text, seconds):
    assert duration_s(text) == seconds


def test_the_asset_tells_it_and_what_is_not_configured_is_not_green(settings, tmp_path):
    with dg.instance_for_test() as instance:
        for chosen, expected in ((Settings(home=tmp_path), 0), (settings, 4)):
            done = look(chosen, instance)
            evaluations = done.get_asset_check_evaluations()
            assert len([e for e in evaluations if e.passed]) == len(evaluations) == expected
            assert bool(done.asset_materializations_for_node("observability_retention")) == bool(expected)


def test_what_is_no_longer_configured_is_over_and_does_not_grow_stale(tmp_path):
    away = Settings(home=tmp_path, prometheus_url="http://127.0.0.1:1", loki_url="http://127.0.0.1:1")
    with dg.instance_for_test() as instance:
        assert {e.passed for e in look(away, instance).get_asset_check_evaluations()} == {False}
        done = look(away.model_copy(update={"loki_url": None}), instance)
        assert {e.check_name: e.passed for e in done.get_asset_check_evaluations()} == {
            "metrics_fresh": False,
            "logs_fresh": True,
        }
        done = look(Settings(home=tmp_path), instance)
        assert {e.check_name: e.passed for e in done.get_asset_check_evaluations()} == {"metrics_fresh": True}
        (made,) = done.asset_materializations_for_node("observability_retention")
        assert "no longer configured" in str(made.metadata["found"].value)
        done = look(Settings(home=tmp_path), instance)
        assert done.get_asset_check_evaluations() == []
        assert done.asset_materializations_for_node("observability_retention")


def test_what_was_found_stands_while_the_server_does_not_answer(settings, loki, tmp_path):
    loki.retention = "7d"
    with dg.instance_for_test() as instance:
        found = {e.check_name: e.passed for e in look(settings, instance).get_asset_check_evaluations()}
        assert not found["logs_retention"]
        away = settings.model_copy(update={"loki_url": "http://127.0.0.1:1"})
        found = {e.check_name: e.passed for e in look(away, instance).get_asset_check_evaluations()}
        assert "logs_retention" not in found, "that nobody answers mends no retention"
        assert not found["logs_fresh"]


def test_staging_that_cannot_be_asked_answers_no_better_than_before(tmp_path, monkeypatch):
    probe = Probe("staging-1", "http://127.0.0.1:1", False, "refused", 0.1)
    silent = StagingHealth("lab", "lab", (), (Node("staging-1", "id", "127.0.0.1", True),), (probe,))
    with dg.instance_for_test() as instance:
        for health, expected in (
            (silent, {"replicas": True, "answers": False}),
            (replace(silent, nodes=(), probes=(), error="connection refused"), {"replicas": False}),
            (replace(silent, probes=()), {"replicas": True, "answers": True}),
        ):
            monkeypatch.setattr(HealthTools, "look_at_staging", lambda _, health=health: health)
            done = look(Settings(home=tmp_path), instance, STAGING)
            assert {e.check_name: e.passed for e in done.get_asset_check_evaluations()} == expected


def look(settings, instance, asset=OBSERVABILITY):
    done = build_defs(settings).resolve_job_def("health").execute_in_process(instance=instance, asset_selection=[asset])
    assert done.success
    return done
