"""Which checks a dump goes through. Names only, so that Dagster can list them without loading their engines."""

from __future__ import annotations

CHECKS = ("restorable", "integrity", "foreign_keys", "row_counts", "age", "columns", "cedar_entities")
BLOCKING_CHECKS = ("restorable", "integrity", "foreign_keys", "row_counts", "columns", "cedar_entities")
"""Those without which a dump is no verified backup. Age is told apart: a dump does not get worse by it."""
LAB = "lab"
"""Name of the Swarm lab's Terraform state, which is begun anew with every lab."""
RPO_S = 93_600
"""Recovery point objective: a day, and two hours for dumping."""
