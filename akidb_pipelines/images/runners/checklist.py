"""Which checks a snapshot goes through. Names only, so that Dagster can list them without loading their engines."""

from __future__ import annotations

CHECKS = ("restored", "tools", "smoke_job", "size", "columns", "cedar_entities")
BLOCKING_CHECKS = ("restored", "tools", "smoke_job", "columns", "cedar_entities")
"""Those that production waits for."""
BOOT_CHECKS = ("tools", "smoke_job")
"""Those that need the restored image to run."""
