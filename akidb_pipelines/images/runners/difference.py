"""What differs between two snapshots of a runner: packages and tools that came, went, or have another version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from akidb_pipelines.images.runners.shelf import Shelf
from akidb_pipelines.images.runners.snapshot import FACTS, Snapshot


@dataclass(frozen=True)
class Changed:
    """One difference."""

    kind: str
    """`tool` or `package`."""
    name: str
    before: str
    """Version; empty when it was not there."""
    after: str

    @property
    def what(self) -> str:
        """`added`, `removed` or `changed`."""
        return "added" if not self.before else "removed" if not self.after else "changed"


@dataclass(frozen=True)
class Difference:
    """Two snapshots compared."""

    before: str
    after: str
    changed: tuple[Changed, ...]
    before_bytes: int
    after_bytes: int

    @property
    def summary(self) -> str:
        """`3 added, 1 removed, 12 changed`."""
        counts = {what: sum(c.what == what for c in self.changed) for what in ("added", "removed", "changed")}
        return ", ".join(f"{count} {what}" for what, count in counts.items())


def difference(shelf: Shelf, before: Snapshot, after: Snapshot) -> Difference:
    """Compare two snapshots by what was found in them while they were built.

    Raises:
        IntegrityError: the store has other bytes.
    """
    old, new = (json.loads(shelf.read(s, FACTS)) for s in (before, after))
    tools = _changed("tool", before.record.tools, after.record.tools)
    packages = _changed("package", old.get("packages", {}), new.get("packages", {}))
    return Difference(before.id, after.id, tools + packages, before.record.size_bytes, after.record.size_bytes)


def _changed(kind: str, before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Changed, ...]:
    names = sorted({*before, *after})
    found = (Changed(kind, name, before.get(name, ""), after.get(name, "")) for name in names)
    return tuple(c for c in found if c.before != c.after)
