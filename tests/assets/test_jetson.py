"""Jetson images inside Dagster: a month captured, checked and made golden in the lab; the guarded reflash."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
import pytest

from akidb_pipelines.definitions import build_defs
from akidb_pipelines.images.checklist import CHECKS
from akidb_pipelines.settings import Settings
from assets.jetson import CAPTURE, GOLDEN_IMAGE
from assets.reflash import REPORT
from tests.services.jetson_lab import need_root, running_lab

OCTOBER, NOVEMBER = (dg.MultiPartitionKey({"month": f"2026-{m}-01", "device": "jetson-a"}) for m in (10, 11))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    need_root()
    with running_lab(tmp_path_factory.mktemp("lab"), size_mib=64) as lab:
        yield lab


@pytest.fixture(scope="module")
def settings(lab):
    return Settings(home=lab.home, inventory=lab.inventory_path)


@pytest.fixture(scope="module")
def instance():
    with dg.instance_for_test() as made:
        yield made


def run(settings, instance, job="jetson_images", **arguments):
    return build_defs(settings).resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False, **arguments)


def drift(lab):
    drive = lab.lab.drive("jetson-a").resolve()
    with drive.open("r+b") as opened:
        opened.seek(20 << 20)
        opened.write(b"drifted" * 40_000)
    return drive


def reflash(settings, instance, **config):
    return run(settings, instance, "jetson_reflash", run_config={"ops": {"reflash_device": {"config": config}}})


@pytest.fixture(scope="module")
def month(settings, instance):
    return run(settings, instance, partition_key=OCTOBER)


def test_a_month_is_captured_checked_and_made_golden(month):
    assert month.success
    checks = {e.check_name: e for e in month.get_asset_check_evaluations()}
    assert set(checks) == set(CHECKS)
    assert all(e.passed for e in checks.values()), {n: e.description for n, e in checks.items() if not e.passed}
    told = month.asset_materializations_for_node("jetson_capture")[0].metadata
    assert told["image"].value == "jetson-a/2026-10/r1"
    assert told["mode"].value.startswith("offline")
    assert told["stored_bytes"].value > 0
    assert "NVIDIA Jetson AGX Orin" in told["board"].value
    golden = month.asset_materializations_for_node("jetson_golden_image")[0]
    assert golden.metadata["golden"].value == "jetson-a/2026-10/r1"


def test_the_next_month_stores_what_changed_and_becomes_golden_and_an_older_one_does_not(month, lab, settings, instance):
    drift(lab)
    result = run(settings, instance, partition_key=NOVEMBER)
    told = result.asset_materializations_for_node("jetson_capture")[0].metadata
    assert told["parent"].value == "jetson-a/2026-10/r1"
    assert 0 < told["new_bytes"].value < 1 << 20
    assert result.asset_materializations_for_node("jetson_golden_image")[0].metadata["golden"].value == "jetson-a/2026-11/r1"
    again = run(settings, instance, partition_key=OCTOBER).asset_materializations_for_node("jetson_golden_image")[0].metadata
    assert again["image"].value == "jetson-a/2026-10/r2"
    assert again["golden"].value == "jetson-a/2026-11/r1"


def test_reflash_only_plans_until_the_device_is_typed(month, lab, settings, instance):
    drive = drift(lab)
    before = drive.read_bytes()
    planned = reflash(settings, instance, device="jetson-a", image="jetson-a/2026-10/r1")
    assert planned.success
    told = planned.asset_materializations_for_node("reflash_device")[0]
    assert (told.asset_key, told.metadata["device"].value) == (REPORT, "jetson-a")
    assert told.metadata["outcome"].value.startswith("planned")
    unconfirmed = reflash(settings, instance, device="jetson-a", image="jetson-a/2026-10/r1", dry_run=False)
    assert not unconfirmed.success
    assert drive.read_bytes() == before
    done = reflash(settings, instance, device="jetson-a", image="jetson-a/2026-10/r1", dry_run=False, confirm="jetson-a")
    assert done.success
    assert done.asset_materializations_for_node("reflash_device")[0].metadata["outcome"].value == "written"
    assert drive.read_bytes() != before


def test_a_device_in_use_is_refused_with_reasons(month, settings, instance):
    told = reflash(settings, instance, device="jetson-b", image="jetson-a/2026-10/r1")
    refused = told.asset_materializations_for_node("reflash_device")[0].metadata["refused"].value
    assert "mounted or in use: /" in refused
    assert "LAB-NVME-B" in refused
    assert not reflash(
        settings, instance, device="jetson-b", image="jetson-a/2026-10/r1", dry_run=False, confirm="jetson-b"
    ).success


def test_the_first_of_a_month_asks_for_every_device(settings):
    repository = build_defs(settings).get_repository_def()
    schedule = repository.get_schedule_def("jetson_images")
    assert schedule.cron_schedule == "0 4 1 * *"
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    moment = datetime(2026, 11, 1, 4, tzinfo=UTC)
    with dg.instance_for_test() as empty:
        context = dg.build_schedule_context(instance=empty, scheduled_execution_time=moment, repository_def=repository)
        asked = schedule.evaluate_tick(context).run_requests
    assert [r.partition_key for r in asked] == ["jetson-a|2026-11-01", "jetson-b|2026-11-01"]


def test_assets_have_owners_runbooks_and_freshness(settings):
    defs = build_defs(settings)
    for key in (CAPTURE, GOLDEN_IMAGE):
        spec = defs.resolve_asset_graph().get(key)
        assert spec.owners == ["team:platform-engineering", "team:jetson"]
        assert "runbook" in spec.tags
