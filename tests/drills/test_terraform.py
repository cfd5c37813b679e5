"""One node is built anew by Terraform and nothing else: with a program that says what the real one says, since no provider can be had."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from akidb_pipelines.drills.terraform import Terraform
from akidb_pipelines.errors import OutsideError

NODE = 'oci_core_instance.staging["staging-2"]'
OTHER = 'oci_core_instance.staging["staging-1"]'


@pytest.fixture
def terraform(tmp_path, monkeypatch):
    """In a folder, with the plan that `plan(...)` sets, and what was asked of it in `asked()`."""
    programs, folder = tmp_path / "bin", tmp_path / "staging"
    programs.mkdir()
    folder.mkdir()
    program = programs / "terraform"
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$2" >> {tmp_path}/asked\n'
        f'case "$2" in\nshow) cat {tmp_path}/plan.json;;\napply) cat {tmp_path}/refuses >&2 2>/dev/null && exit 1; true;;\nesac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return Terraform(folder, "staging.yaml")


def plans(tmp_path: Path, **changes: list[str]) -> None:
    named = {"node": NODE, "other": OTHER, "attachment": "oci_core_volume_attachment.data", "bucket": "oci_objectstorage_bucket.a"}
    told = [
        {"address": named[n], "type": named[n].partition(".")[0], "change": {"actions": actions}} for n, actions in changes.items()
    ]
    (tmp_path / "plan.json").write_text(json.dumps({"resource_changes": told}))


def asked(tmp_path: Path) -> list[str]:
    return (tmp_path / "asked").read_text().split()


def test_a_node_is_built_anew_with_what_hangs_on_it(terraform, tmp_path):
    plans(tmp_path, node=["delete", "create"], other=["no-op"], attachment=["delete", "create"])
    assert terraform.hindrance("staging-2") == "" and asked(tmp_path) == ["plan", "show"]
    terraform.replace("staging-2")
    assert asked(tmp_path)[2:] == ["plan", "show", "apply"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"node": ["delete", "create"], "other": ["delete", "create"]}, f"would also change {OTHER} (delete+create)"),
        ({"node": ["create"], "other": ["update"]}, f"would also change {OTHER} (update)"),
        ({"node": ["create", "delete"], "bucket": ["delete"]}, "would also change oci_objectstorage_bucket.a (delete)"),
        ({"node": ["update"]}, "Terraform does not know it"),
        ({"other": ["no-op"]}, "Terraform does not know it"),
    ],
    ids=["a new image for all", "another is changed", "something is removed", "not by that address", "not at all"],
)
def test_a_plan_that_does_anything_else_to_staging_is_not_applied(terraform, tmp_path, changes, told):
    plans(tmp_path, **changes)
    assert told in terraform.hindrance("staging-2"), "before anything is lost"
    with pytest.raises(OutsideError, match="terraform plan -replace=") as error:
        terraform.replace("staging-2")
    assert told in str(error.value) and "apply" not in asked(tmp_path)


def test_a_plan_that_cannot_be_read_is_not_applied(terraform, tmp_path):
    (tmp_path / "plan.json").write_text("Usage: terraform [global options] show")
    with pytest.raises(OutsideError, match=r"terraform show -json says no plan.*Usage: terraform"):
        terraform.replace("staging-2")
    assert "apply" not in asked(tmp_path)


def test_what_terraform_refuses_is_told(terraform, tmp_path):
    plans(tmp_path, node=["delete", "create"])
    (tmp_path / "refuses").write_text("Error: Error acquiring the state lock")
    with pytest.raises(OutsideError, match="terraform apply ended with 1: Error: Error acquiring the state lock"):
        terraform.replace("staging-2")


def test_what_is_missing_is_told(terraform, tmp_path, monkeypatch):
    nowhere = Terraform(tmp_path / "nowhere", "staging.yaml")
    assert "nowhere, the folder of staging.yaml for terraform, is not on this machine" in nowhere.hindrance("staging-2")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert terraform.hindrance("staging-2") == "the program terraform is not on this machine"
