"""The checks of a billing month, by name; light, because a code location lists them at every load."""

INTAKE_CHECKS = ("quarantine", "header_drift")
ROLLUP_CHECKS = (
    "exact",
    "known_owners",
    "invoice",
    "days_complete",
    "oddities",
    "untagged",
    "plan_lines",
    "columns",
    "cedar_entities",
)
BLOCKING_CHECKS = ("exact", "known_owners", "invoice", "columns", "cedar_entities")
"""A month that fails one of these is not released into a review."""
