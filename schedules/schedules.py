"""Schedules. All in UTC; every one is created stopped except `weekly_fixtures`. Crons come from the settings."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from akidb_pipelines.periods import Month, Quarter, Week, is_review_day
from assets.drills import asked_for_oci
from assets.partitions import DEVICE, MONTH, RUNNER, WEEK
from schedules.jobs import (
    backups_job,
    costs_intake_job,
    costs_review_job,
    dr_drill_job,
    fixtures_job,
    health_job,
    jetson_images_job,
    registry_gc_job,
    runner_capacity_job,
    runner_images_job,
)


def weekly_fixtures(cron: str) -> dg.ScheduleDefinition:
    """Every Monday the week that has just begun: its start is the fixtures' "now"."""

    @dg.schedule(
        name="weekly_fixtures",
        job=fixtures_job,
        cron_schedule=cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Monday 02:00 UTC: build, check and release this week's fixtures.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        key = Week.containing(context.scheduled_execution_time).key
        return dg.RunRequest(run_key=key, partition_key=key)

    return schedule


def registry_gc(cron: str) -> dg.ScheduleDefinition:
    """Once a week, away from the Monday on which releases are made."""
    return dg.ScheduleDefinition(
        name="registry_gc",
        job=registry_gc_job,
        cron_schedule=cron,
        execution_timezone="UTC",
        description="By default Wednesday 05:00 UTC: retire what is outside retention, remove what was retired a week ago.",
    )


def jetson_images(cron: str, devices: Sequence[str]) -> dg.ScheduleDefinition:
    """On the first of a month, every device, for the month that has just begun."""
    description = "By default the 1st of a month 04:00 UTC: capture every Jetson of the inventory, one run a device."
    return _each("jetson_images", jetson_images_job, cron, description, MONTH, Month.containing, DEVICE, devices)


def runner_images(cron: str, runners: Sequence[str]) -> dg.ScheduleDefinition:
    """On Sundays, every runner, for the running week."""
    description = (
        "By default Sunday 03:00 UTC: build, archive, boot and release every CI runner of the inventory, one run a runner."
    )
    return _each("runner_images", runner_images_job, cron, description, WEEK, Week.containing, RUNNER, runners)


def _each(
    name: str,
    job: UnresolvedAssetJobDefinition,
    cron: str,
    description: str,
    period: str,
    containing: Callable[[datetime], Week | Month],
    dimension: str,
    members: Sequence[str],
) -> dg.ScheduleDefinition:
    """One run for every member of a dimension, for the period that the tick falls into."""

    @dg.schedule(name=name, job=job, cron_schedule=cron, execution_timezone="UTC", description=description)
    def schedule(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
        running = containing(context.scheduled_execution_time).key
        keys = [dg.MultiPartitionKey({period: running, dimension: member}) for member in members]
        return [dg.RunRequest(run_key=key, partition_key=key) for key in keys]

    return schedule


def runner_capacity(cron: str) -> dg.ScheduleDefinition:
    """Every quarter of an hour."""
    return dg.ScheduleDefinition(
        name="runner_capacity",
        job=runner_capacity_job,
        cron_schedule=cron,
        execution_timezone="UTC",
        description="By default every 15 minutes: how many CI jobs run and wait, which runners are offline.",
    )


def health(cron: str) -> dg.ScheduleDefinition:
    """Every half hour: half of what the alerts allow."""
    return dg.ScheduleDefinition(
        name="health",
        job=health_job,
        cron_schedule=cron,
        execution_timezone="UTC",
        description="By default every 30 minutes: how long metrics and logs are kept and how new they are; whether staging runs.",
    )


def daily_backups(cron: str) -> dg.ScheduleDefinition:
    """Every day, filed under that day."""

    @dg.schedule(
        name="daily_backups",
        job=backups_job,
        cron_schedule=cron,
        execution_timezone="UTC",
        description="By default 01:00 UTC: dump every database, keep Terraform's state and the dashboards, clear away.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        key = context.scheduled_execution_time.date().isoformat()
        return dg.RunRequest(run_key=key, partition_key=key)

    return schedule


def costs_intake(cron: str) -> dg.ScheduleDefinition:
    """Every morning what arrived the day before, filed under that day."""

    @dg.schedule(
        name="costs_intake",
        job=costs_intake_job,
        cron_schedule=cron,
        execution_timezone="UTC",
        description="By default 06:00 UTC: take in the billing files of yesterday, and whatever else is new.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        key = (context.scheduled_execution_time.date() - timedelta(days=1)).isoformat()
        return dg.RunRequest(run_key=key, partition_key=key)

    return schedule


def costs_review(cron: str) -> dg.ScheduleDefinition:
    """Every second week, counted from an anchor: week numbers of years with 53 weeks would skip or repeat one."""

    @dg.schedule(
        name="costs_review",
        job=costs_review_job,
        cron_schedule=cron,
        execution_timezone="UTC",
        description="By default every other Monday 08:00 UTC: the review of costs.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        day = context.scheduled_execution_time.date()
        if not is_review_day(day):
            return dg.SkipReason(f"the next review is due on {day + timedelta(days=7)}")
        return dg.RunRequest(run_key=day.isoformat())

    return schedule


def dr_drill(cron: str) -> dg.ScheduleDefinition:
    """In the middle of every quarter: for real on the lab; staging's own drill is asked for, never started."""

    @dg.schedule(
        name="dr_drill",
        job=dr_drill_job,
        cron_schedule=cron,
        execution_timezone="UTC",
        description="By default 15 February, May, August and November 09:00 UTC: a drill on the lab, and a request for the one on OCI.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        quarter = Quarter.containing(context.scheduled_execution_time)
        context.log.warning(asked_for_oci(quarter.iso))
        return dg.RunRequest(run_key=quarter.key, partition_key=quarter.key, tags={"asks_for": f"oci drill of {quarter.iso}"})

    return schedule
