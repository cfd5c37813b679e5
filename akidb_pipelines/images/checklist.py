"""Which checks an image goes through. Names only, so that Dagster can list them without loading their engines."""

from __future__ import annotations

BLOCKING_CHECKS = ("mode", "digests", "restore_sample", "filesystem", "columns", "cedar_entities")
"""An image that fails one of these does not become golden."""
CHECKS = (*BLOCKING_CHECKS, "increment")
