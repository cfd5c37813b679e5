"""A registry at a glance: where channels point, what is released, when the signed metadata ends. For the command, the UI and its checks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from akidb_pipelines.store.index import Entry, Head
from akidb_pipelines.store.metadata import TIMESTAMP, WARN_BEFORE, load
from akidb_pipelines.store.registry import Registry


@dataclass(frozen=True)
class RegistryReport:
    """What there is to see."""

    url: str
    heads: tuple[Head, ...]
    entries: tuple[Entry, ...]
    """Oldest first."""
    expires: Mapping[str, datetime]
    """When each role's metadata ends; empty when nothing was ever signed."""
    root_fingerprint: str
    warnings: tuple[str, ...]
    """What ends within ten days, has ended, or is gone."""

    @property
    def size_bytes(self) -> int:
        """All releases together, shared contents counted each time."""
        return sum(e.size_bytes for e in self.entries)


def examine(registry: Registry, now: datetime) -> RegistryReport:
    """Look at a registry; also at one whose metadata has ended.

    Raises:
        InputError: there is no root to trust.
        IntegrityError: the metadata does not verify.
        OutsideError: the store cannot be reached.
    """
    root = registry.root()
    if root is None:
        return RegistryReport(registry.url, (), (), {}, "", ())
    state = load(registry.channels, root)
    if state is None:
        told = f"{TIMESTAMP} is gone: nobody can pull; put its newest good version back (docs/runbooks/pull-fails.md)"
        return RegistryReport(registry.url, (), (), {}, fingerprint(root), (told,))
    index, expires = state.index, state.expiries()
    return RegistryReport(
        url=registry.url,
        heads=tuple(sorted(index.heads.values(), key=lambda h: (h.kind, h.channel))),
        entries=tuple(e for kind in index.kinds() for e in index.of(kind)),
        expires=expires,
        root_fingerprint=fingerprint(root),
        warnings=tuple(_warning(role, end, now) for role, end in expires.items() if end - now <= WARN_BEFORE),
    )


def _warning(role: str, end: datetime, now: datetime) -> str:
    renew = "refresh, with the root key in place" if role == "root" else "refresh"
    what = f"ended on {end:%Y-%m-%d}: nobody can pull" if end <= now else f"ends on {end:%Y-%m-%d}, then nobody can pull"
    return f"the metadata of role {role} {what}; run: akidb-pipelines registry {renew}"


def fingerprint(root: bytes) -> str:
    """What two people compare by voice: the digest of root.json."""
    digest = hashlib.sha256(root).hexdigest()
    return " ".join(digest[n : n + 8] for n in range(0, 64, 8))
