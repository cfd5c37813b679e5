"""One node of staging built anew by Terraform, and nothing else: the plan is read before it is applied.

`-replace` only adds a node to whatever else a folder's plan would do, such as a new image for every node.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akidb_pipelines.errors import OutsideError

_TIMEOUT_S = 5400
_INSTANCE = "oci_core_instance"


@dataclass(frozen=True)
class Terraform:
    """Terraform in a folder, whose instances are `oci_core_instance.staging["NODE"]`.

    Args:
        folder: of staging's configuration.
        told_in: the file that names the folder.
    """

    folder: Path
    told_in: str

    def _missing(self) -> str:
        """What is not on this machine; empty when nothing is."""
        if not shutil.which("terraform"):
            return "the program terraform is not on this machine"
        return "" if self.folder.is_dir() else f"{self.folder}, the folder of {self.told_in} for terraform, is not on this machine"

    def hindrance(self, node: str) -> str:
        """Why a node could not be built anew, or not it alone; empty when it could.

        Raises:
            OutsideError: Terraform cannot say.
        """
        if missing := self._missing():
            return missing
        with self._planned(node) as (_, others):
            return others

    def replace(self, node: str) -> None:
        """Build a node anew.

        Raises:
            OutsideError: Terraform fails, or would change another node; nothing is applied then.
        """
        with self._planned(node) as (plan, others):
            if others:
                raise OutsideError(others, hint="apply what is pending first; then akidb-pipelines drills recover")
            self._run("apply", "-input=false", "-no-color", str(plan))

    @contextmanager
    def _planned(self, node: str) -> Iterator[tuple[Path, str]]:
        """The plan, and what it would do to others."""
        address = f'{_INSTANCE}.staging["{node}"]'
        with tempfile.TemporaryDirectory(prefix="akidb-plan-") as folder:  # a plan has secrets in it
            plan = Path(folder) / "plan"
            self._run("plan", "-input=false", "-no-color", f"-out={plan}", f"-replace={address}")
            told = self._run("show", "-json", str(plan))
            try:
                others = _others(address, json.loads(told).get("resource_changes", ()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise OutsideError(
                    f"terraform show -json says no plan: {error!r}: {told[:200]}", hint="terraform version; run it by hand"
                ) from error
            yield plan, others

    def _run(self, *arguments: str) -> str:
        tried = f"terraform {' '.join(a for a in arguments if not a.startswith(('-out', '-input', '-no-color', '/')))}"
        command = ["terraform", f"-chdir={self.folder}", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OutsideError(f"{tried}: {error}", hint="run it by hand, then akidb-pipelines drills recover") from error
        if done.returncode != 0:
            raise OutsideError(
                f"{tried} ended with {done.returncode}: {done.stderr.strip()[-1000:]}",
                hint="do what its message asks for, then akidb-pipelines drills recover",
            )
        return done.stdout


def _others(address: str, changes: list[dict[str, Any]]) -> str:
    """What a plan does besides building one node anew. What hangs on the node, such as its attachments, changes with it."""
    actions = {str(c["address"]): (str(c["type"]), list(c["change"]["actions"])) for c in changes}
    if "create" not in actions.pop(address, ("", []))[1]:
        return f"terraform plan -replace={address} does not build it: Terraform does not know it"
    pending = [
        f"{other} ({'+'.join(done)})"
        for other, (kind, done) in actions.items()
        if (kind == _INSTANCE and done not in (["no-op"], ["read"])) or done == ["delete"]
    ]
    return f"terraform plan -replace={address} would also change {', '.join(pending)}" if pending else ""
