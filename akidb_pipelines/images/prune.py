"""Sweeping packs: what no image needs goes, what few need is packed anew.

    mark     the blocks of every image that the registry has
    sweep    a pack without any of them, once it is older than the grace
    repack   a pack of which less than 60 % is needed: its needed blocks are stored in a new one; the old one goes once the new one is
             older than the grace, so that nobody who is reading loses it

Which images there are is decided elsewhere: retention retires and removes them (`registry gc`: 12 months, and all that ever were golden).
Deciding (`decide`) is a function of values. Captures and reflashes keep a sweep waiting, and it them (see Library.sweeping).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from akidb_pipelines.images.block_store import StoredPack, index_key, pack_key
from akidb_pipelines.images.drives import BLOCK_BYTES, ZERO
from akidb_pipelines.images.library import Library
from akidb_pipelines.images.packs import BlockTable, Index, Packer, digests_of
from akidb_pipelines.progress import Progress, Report
from akidb_pipelines.store.objects import ObjectInfo

GRACE = timedelta(days=14)
_BATCH = 200
"""So many objects go between two looks at whether the lease is still ours."""
LEAST_LIVE = 0.6
"""A pack of which less is needed is packed anew."""


@dataclass(frozen=True)
class Sweep:
    """What becomes of one pack."""

    pack: StoredPack
    action: str
    """`keep`, `repack`, `remove`."""
    why: str
    live: float
    """Share of its blocks, by bytes, that an image needs and no newer pack has."""


@dataclass(frozen=True)
class Pruned:
    """What a sweep did, or would do."""

    sweeps: tuple[Sweep, ...]
    removed_bytes: int
    repacked_bytes: int
    """Written to new packs."""
    halves: int = 0
    """Packs without an index, and indexes without a pack, that somebody who was killed had left."""


def decide(
    packs: Sequence[StoredPack], indexes: Sequence[Index], live: NDArray[np.void], now: datetime, grace: timedelta = GRACE
) -> list[Sweep]:
    """What becomes of each pack.

    Args:
        packs, indexes: all there are, newest first.
        live: digests that an image needs.
        now: the moment to decide for.
        grace: younger packs are kept: a capture that has not ended may need them.
    """
    table = BlockTable(indexes)
    rows = np.unique(table.rows(live))
    rows = rows[rows >= 0]
    owners = table.packs_of(rows)  # of a block in several packs the newest: the earlier ones can go
    lengths = table.lengths_of(rows)
    needed = np.bincount(owners, weights=lengths, minlength=len(packs)) if len(packs) else np.zeros(0)
    sweeps = []
    wanted = _as_bytes(live)
    for number, (pack, index) in enumerate(zip(packs, indexes, strict=True)):
        total = int(index.entries["length"].sum())
        share = float(needed[number]) / total if total else 0.0
        young = now - pack.stored_at < grace
        if share == 0:
            # The newer packs that took its blocks over must be past the grace too: somebody may be reading this one still.
            mine = index.entries["digest"][np.isin(_as_bytes(index.entries["digest"]), wanted)]
            heirs = {int(n) for n in table.packs_of(table.rows(mine))} if len(mine) else set()
            young_heir = any(now - packs[n].stored_at < grace for n in heirs)
            why = "no image needs it" if not heirs else "newer packs have what is needed of it"
            if young or young_heir:
                sweeps.append(Sweep(pack, "keep", f"{why}, but it is within the grace of {grace.days} days", share))
            else:
                sweeps.append(Sweep(pack, "remove", why, share))
        elif share < LEAST_LIVE and not young:
            sweeps.append(Sweep(pack, "repack", f"{share:.0%} of it is needed", share))
        else:
            sweeps.append(Sweep(pack, "keep", f"{share:.0%} of it is needed", share))
    return sweeps


def _as_bytes(digests: NDArray[np.void]) -> NDArray[np.bytes_]:
    """Digests as numpy can compare and sort them."""
    return np.frombuffer(digests.tobytes(), "S32")


def prune(library: Library, *, dry_run: bool = False, grace: timedelta = GRACE, report: Report = lambda _: None) -> Pruned:
    """Sweep and repack.

    Raises:
        BusyError: somebody captures or reflashes.
        InputError: there are packs and no registry.
        IntegrityError: the registry's metadata is gone; an image's digests, or a pack, is damaged; nothing is removed while that is so.
    """
    if dry_run:
        sweeps = _survey(library, grace, report)[0]
        halves = _old_halves(library, grace)
        removed = sum(s.pack.size_bytes for s in sweeps if s.action == "remove") + sum(h.size_bytes for h in halves)
        return Pruned(tuple(sweeps), removed, 0, len(halves))
    with library.sweeping("sweeping packs") as held:
        sweeps, indexes, live = _survey(library, grace, report)
        repacked = _repack(library, [i for s, i in zip(sweeps, indexes, strict=True) if s.action == "repack"], live, report)
        gone = [s.pack for s in sweeps if s.action == "remove"]
        halves = _old_halves(library, grace)
        report(Progress(f"removing {len(gone)} packs"))
        # The index first: a pack without one does not count, and nobody finds half of it.
        keys = [*(h.key for h in halves), *(index_key(p.name) for p in gone), *(pack_key(p.name) for p in gone)]
        for start in range(0, len(keys), _BATCH):
            held.check()
            library.blocks.store.delete(keys[start : start + _BATCH])
    removed = sum(p.size_bytes for p in gone) + sum(h.size_bytes for h in halves)
    return Pruned(tuple(sweeps), removed, repacked, len(halves))


def _old_halves(library: Library, grace: timedelta) -> list[ObjectInfo]:
    now = datetime.now(UTC)
    return [info for info in library.blocks.halves() if now - info.modified_at >= grace]


def _survey(library: Library, grace: timedelta, report: Report) -> tuple[list[Sweep], list[Index], NDArray[np.void]]:
    report(Progress("looking at images and packs"))
    stored = library.blocks.packs()
    packs, indexes = [pack for pack, _ in stored], [index for _, index in stored]
    # Whoever sweeps must have seen what is released: a registry that is gone would make all packs look useless.
    arrays = [np.unique(_as_bytes(digests_of(digests))) for digests in (library.digest_arrays() if packs else ())]
    merged = np.unique(np.concatenate(arrays)) if arrays else np.zeros(0, "S32")
    live = np.frombuffer(merged.tobytes(), "V32")
    live = live[live != np.void(ZERO)]
    return decide(packs, indexes, live, datetime.now(UTC), grace), indexes, live


def _repack(library: Library, indexes: Sequence[Index], live: NDArray[np.void], report: Report) -> int:
    """Store what is needed of some packs in new ones; returns the bytes written."""
    if not indexes:
        return 0
    table = BlockTable(indexes)
    rows = table.rows(live)
    written = 0
    with ThreadPoolExecutor(2, thread_name_prefix="compress") as pool:
        packer = Packer("", pool)
        wanted = np.unique(rows[rows >= 0])
        for done, (row, data) in enumerate(library.blocks.read(table, wanted)):
            number, digest = table.entry(row)
            for pack in packer.add(number, digest, data):
                written += library.blocks.put(pack)
            if done % 256 == 0:
                report(Progress("packing anew", done * BLOCK_BYTES, len(wanted) * BLOCK_BYTES, in_bytes=True))
        for pack in packer.finish():
            written += library.blocks.put(pack)
    return written
