"""The access matrix as the sandbox decides it: every right, every team."""

from __future__ import annotations

from pathlib import Path

from akidb_pipelines.cedar.sandbox import OPS, load_sandbox
from akidb_pipelines.operations.access.identity import Principal
from akidb_pipelines.operations.access.judge import Judge
from akidb_pipelines.operations.access.rights import ADMINISTER, AUDIT, OCI_DRILL, OPERATE, STARTS, VIEW, Right


def decide_matrix(folder: Path | None = None) -> dict[Right, dict[str, bool]]:
    """By right: whether each team may.

    Raises:
        InputError: the sandbox is unusable.
    """
    judge = Judge(folder)
    teams = load_sandbox(folder).model.namespace(OPS).enumerations["Team"]
    others = (VIEW, OCI_DRILL, Right("restore", "Pipeline", "dr_oci"), Right("revoke"), OPERATE, ADMINISTER, AUDIT)
    rights = [*dict.fromkeys((*STARTS.values(), *others))]
    return {r: {t: judge.decide(Principal(f"member of {t}", "", (t,), 0), r).allowed for t in teams} for r in rights}
