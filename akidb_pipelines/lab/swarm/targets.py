"""Where drills can take place as settings say: the lab always, staging on OCI where it is described."""

from __future__ import annotations

from collections.abc import Mapping

from akidb_pipelines.drills.desk import Desk, OpenTarget, open_desk
from akidb_pipelines.drills.oci_staging import open_staging
from akidb_pipelines.drills.target import Target
from akidb_pipelines.errors import InputError
from akidb_pipelines.lab.swarm.open import open_lab_target, sweep_temporary
from akidb_pipelines.progress import Report
from akidb_pipelines.settings import Settings


def open_drills(settings: Settings) -> Desk:
    """The desk, with every target.

    Raises:
        InputError, OutsideError: see open_desk.
    """
    return open_desk(settings, targets(settings), sweep=lambda: sweep_temporary(settings))


def targets(settings: Settings) -> Mapping[str, OpenTarget]:
    """How each target is opened, by name."""

    def lab(report: Report) -> Target:
        return open_lab_target(settings, report)

    def oci(report: Report) -> Target:
        del report
        if staging := open_staging(settings):
            return staging
        raise InputError("staging on OCI is not configured", hint="set AKIDB_DRILL_ALLOW_LIST; docs/dr-plan.md")

    return {"lab": lab, "oci": oci}
