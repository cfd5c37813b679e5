"""What leaves a registry, and when: mark, wait, sweep.

A release is kept while a channel points at it, somebody pinned it, or it is one of the newest weeks of its kind. One that nothing keeps any
more is *retired* (a mark in the signed index) and can be pulled for another week of grace; then it leaves the index, and its manifest and
the contents that only it had are removed. Its SHA256SUMS stays: a revision's number is never given twice. Contents that no release names
(a dead publisher's) and unfinished uploads go when they are older than the grace.

Deciding (`plan`) is a function of values. `collect` acts on the plan under the lease, and commits before it removes anything: a publisher
that slept past its lease then loses the swap instead of naming contents that are gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from akidb_pipelines.periods import Week
from akidb_pipelines.store.index import Entry, Index
from akidb_pipelines.store.lease import YOUNG, BusyError, read
from akidb_pipelines.store.manifest import blob_key, release_key
from akidb_pipelines.store.metadata import METADATA, TARGETS, State, live_keys, named_by
from akidb_pipelines.store.objects import ObjectInfo, ObjectStore, Upload
from akidb_pipelines.store.publisher import Publisher
from akidb_pipelines.store.registry import Registry

GRACE = timedelta(days=7)
_BATCH = 200
"""So many objects go between two looks at whether the lease and the commit still stand."""
_VERSIONED = re.compile(rf"{METADATA}(\d+)\.(targets|snapshot)\.json")


@dataclass(frozen=True)
class Policy:
    """How long the releases of a kind are kept."""

    newest: int
    """So many names (weeks, months), with all their revisions."""
    grace: timedelta = GRACE
    """So long a retired release can still be pulled."""
    monthly: int = 0
    """Of so many months the last week as well; for kinds that are named by weeks."""
    previous: bool = False
    """Whether the release that a channel pointed at before is kept: what a rollback goes to."""


_PACKS_GRACE = timedelta(days=14)
POLICIES: Mapping[str, Policy] = {
    "fixtures": Policy(newest=8),
    "images.": Policy(newest=12, grace=_PACKS_GRACE),
    "runners.": Policy(newest=8, grace=_PACKS_GRACE, monthly=6, previous=True),
}
"""By kind, or by the beginning of kinds. Others are kept for ever."""


@dataclass(frozen=True)
class Decision:
    """What becomes of one release or object, and why."""

    what: str
    action: str
    """`keep`, `retire`, `unretire`, `remove`."""
    why: str
    size_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """What a collection does."""

    decisions: tuple[Decision, ...]
    index: Index
    """As it will be."""
    objects: tuple[str, ...]
    """Keys in area `artifacts` that go."""
    uploads: tuple[Upload, ...]
    """Unfinished uploads that are given up."""
    documents: tuple[str, ...] = ()
    """Keys in area `channels` of superseded metadata that go."""

    @property
    def removed_bytes(self) -> int:
        """What becomes free."""
        return sum(d.size_bytes for d in self.decisions if d.action == "remove")


def plan(
    index: Index,
    contents: Mapping[tuple[str, str], Iterable[str]],
    stored: Iterable[ObjectInfo],
    uploads: Iterable[Upload],
    now: datetime,
    policies: Mapping[str, Policy] = POLICIES,
) -> Plan:
    """Decide.

    Args:
        index: what is released.
        contents: digests of the files of each release, by kind and version.
        stored: contents, manifests and provenances in area `artifacts`.
        uploads: what was begun and not finished.
        now: the moment to decide for.
        policies: by kind.
    """
    decisions: list[Decision] = []
    after, gone = index, []
    policy_of = {kind: next((p for begin, p in policies.items() if kind.startswith(begin)), None) for kind in index.kinds()}
    newest = {kind: _newest(index, kind, policy_of[kind]) for kind in index.kinds()}
    for entry in (e for kind in index.kinds() for e in index.of(kind)):
        what = f"{entry.kind} {entry.version}"
        policy = policy_of[entry.kind]
        grace = policy.grace if policy else GRACE
        kept = _kept_because(index, entry, newest[entry.kind], policy)
        if kept and entry.retired_at:
            after = after.with_entry(replace(entry, retired_at=""))
            decisions.append(Decision(what, "unretire", kept))
        elif kept:
            decisions.append(Decision(what, "keep", kept))
        elif not entry.retired_at:
            after = after.with_entry(replace(entry, retired_at=_text(now)))
            decisions.append(Decision(what, "retire", f"nothing keeps it; removed in {grace.days} days"))
        elif now - datetime.fromisoformat(entry.retired_at) < grace:
            decisions.append(Decision(what, "keep", f"retired {entry.retired_at}, within the grace of {grace.days} days"))
        else:
            gone.append(entry)
            decisions.append(Decision(what, "remove", f"retired {entry.retired_at}"))
    after = after.without(gone)
    live = {_key(e, file) for e in after.entries.values() for file in ("manifest.json", "provenance.json")}
    live |= {blob_key(digest) for e in after.entries.values() for digest in contents[e.kind, str(e.version)]}
    dying = {blob_key(digest) for e in gone for digest in contents[e.kind, str(e.version)]}
    dying |= {_key(e, file) for e in gone for file in ("manifest.json", "provenance.json")}
    keys = []
    for info in stored:
        if info.key in live:
            continue
        old = now - info.modified_at >= GRACE
        if info.key in dying or old:
            keys.append(info.key)
            why = "only removed releases had it" if info.key in dying else "no release names it"
            decisions.append(Decision(info.key, "remove", why, info.size_bytes))
        else:
            decisions.append(Decision(info.key, "keep", f"no release names it, but it is younger than {GRACE.days} days"))
    old_uploads = tuple(u for u in uploads if now - u.begun_at >= GRACE)
    decisions += [Decision(f"unfinished upload of {u.key}", "remove", f"begun {_text(u.begun_at)}") for u in old_uploads]
    return Plan(tuple(decisions), after, tuple(keys), old_uploads)


def _key(entry: Entry, file: str) -> str:
    return release_key(entry.kind, entry.version.name, entry.version.revision, file)


def _newest(index: Index, kind: str, policy: Policy | None) -> set[str] | None:
    """The names that a policy keeps; None where there is no policy, and everything is kept."""
    if policy is None:
        return None
    names = sorted({e.version.name for e in index.of(kind)}, reverse=True)
    last: dict[str, str] = {}
    for name in names if policy.monthly else ():
        last.setdefault(Week.parse(name).key[:7], name)
    return {*names[: policy.newest], *list(last.values())[: policy.monthly]}


def _kept_because(index: Index, entry: Entry, newest: set[str] | None, policy: Policy | None) -> str:
    if entry.pinned:
        return f"pinned: {entry.pinned}"
    heads = [h for h in index.heads.values() if h.kind == entry.kind]
    if pointing := sorted(h.channel for h in heads if h.version == entry.version):
        return f"channel {', '.join(pointing)} points at it"
    if newest is None or policy is None:
        return "this kind is kept for ever"
    if policy.previous and (before := sorted(h.channel for h in heads if h.history[-1:] == (str(entry.version),))):
        return f"channel {', '.join(before)} pointed at it before"
    if entry.version.name not in newest:
        return ""
    weekly = policy.newest if policy.monthly else len(newest)
    return f"one of the newest {weekly}" + (f", or the last of one of {policy.monthly} months" if policy.monthly else "")


def survey(registry: Registry, index: Index, state: State, now: datetime) -> Plan:
    """Look at a registry and decide.

    Args:
        registry: where.
        index: what is released.
        state: the metadata in force.
        now: the moment to decide for.
    """
    contents = {(e.kind, str(e.version)): [f.sha256 for f in registry.release(e).manifest.files] for e in index.entries.values()}
    stored = [info for info in registry.artifacts.list("") if _is_collected(info.key)]
    found = plan(index, contents, stored, registry.artifacts.unfinished(), now)
    documents = superseded(registry.channels, state, now)
    if documents:
        told = Decision("superseded metadata", "remove", f"{len(documents)} documents superseded more than {GRACE.days} days ago")
        return replace(found, documents=documents, decisions=(*found.decisions, told))
    return found


def _is_collected(key: str) -> bool:
    """Contents, and what is said of releases; the claim of a revision stays."""
    return key.startswith("blobs/") or ("/releases/" in key and key.endswith(("/manifest.json", "/provenance.json")))


def superseded(channels: ObjectStore, state: State, now: datetime) -> tuple[str, ...]:
    """Documents of area `channels` that nothing names any more, by any metadata that a slow reader may still be half way through.

    Metadata may go when its successor is older than the grace. Roots stay for ever: a client that slept for years follows them one by one.
    """
    stored = {info.key: info for info in channels.list("tuf/")}
    kept, gone = live_keys(state), []
    for key, info in stored.items():
        match = _VERSIONED.fullmatch(key)
        if not match or key in kept:
            continue
        successor = stored.get(f"{METADATA}{int(match[1]) + 1}.{match[2]}.json")
        if now - (successor or info).modified_at >= GRACE:
            gone.append(key)
        elif match[2] == "targets":
            kept |= named_by(channels.read(key))
    targets = [key for key, info in stored.items() if key.startswith(TARGETS) and now - info.modified_at >= GRACE]
    return (*gone, *(key for key in targets if key not in kept))


def collect(publisher: Publisher, *, dry_run: bool = False, report: Callable[[str], None] = lambda _: None) -> Plan:
    """Decide, and unless it is a dry run, do it.

    Raises:
        BusyError: a publisher is at work, or died less than a day ago.
        IntegrityError: a manifest is not what the index names; nothing is removed while that is so.
    """
    registry, now = publisher.registry, publisher.now()
    if registry.root() is None:
        return Plan((), Index(), (), ())
    if dry_run:
        state = publisher.state()
        return survey(registry, state.index, state, now)
    holder = read(registry.channels)
    if holder and not holder.released and now - datetime.fromisoformat(holder.taken_at) < YOUNG:
        raise BusyError(
            f"registry {registry.url}: {holder} did not give its lease back",
            hint=f"run it again when that publisher has ended; of a dead one, {YOUNG.total_seconds() / 3600:.0f} hours after",
        )
    with publisher.editing("collecting garbage") as edit:
        found = survey(registry, edit.index, edit.state, now)
        if found.index != edit.index or found.objects:
            edit.commit(found.index)
        report(f"removing {len(found.objects)} objects, {found.removed_bytes / 1e6:.1f} MB")
        # The commit may have named again what an index of long ago said.
        documents = [key for key in found.documents if key not in live_keys(edit.state)]
        for store, keys in ((registry.artifacts, found.objects), (registry.channels, documents)):
            for start in range(0, len(keys), _BATCH):
                edit.expect_current()
                store.delete(keys[start : start + _BATCH])
        for upload in found.uploads:
            registry.artifacts.abort(upload)
    return found


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
