"""Who may change a registry now: one object that is taken over by compare-and-swap. Readers never look at it.

The lease keeps well-behaved publishers and collectors out of each other's way. That nothing is lost when one of them sleeps past its end is
the business of the swap of `timestamp.json`, which only one of two can win.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Event, Thread

from akidb_pipelines.errors import OutsideError, PipelineError
from akidb_pipelines.files import is_dead, process_name
from akidb_pipelines.store.objects import MissingObjectError, ObjectStore, SwapError

KEY = "lease.json"
"""Of the registry as a whole. Captures and the sweeper of packs have leases of their own."""
LIFETIME = timedelta(minutes=15)
PATIENCE_S = 600.0
"""How long a publisher waits for another one."""
YOUNG = timedelta(hours=24)
"""While a lease that was not given back is younger, nothing is collected or swept: its holder may still be alive somewhere."""
_RENEW_EVERY_S = 240.0
_POLL_S = 1.0


class BusyError(OutsideError):
    """Another publisher or collector is at work."""


@dataclass(frozen=True)
class Lease:
    """What the object says."""

    purpose: str
    run_id: str
    process: str
    """`<host>.<pid>`, see files.process_name."""
    nonce: str
    taken_at: str
    expires_at: str
    released: bool = False

    def to_json(self) -> bytes:
        """Stable bytes; the nonce makes each its own."""
        return (json.dumps(asdict(self), sort_keys=True) + "\n").encode()

    def is_free(self, now: datetime) -> bool:
        """Whether it may be taken over: given back, run out, held by a process of this host that is dead, or taken by somebody whose
        clock is so far ahead that it would never run out."""
        end = datetime.fromisoformat(self.expires_at)
        return self.released or not now < end < now + 2 * LIFETIME or is_dead(self.process)

    def may_be_at_work(self, now: datetime) -> bool:
        """Whether its holder may still count on what there is: it holds it, or let it run out less than a day ago and may only sleep."""
        if self.released or is_dead(self.process):
            return False
        return not self.is_free(now) or now - datetime.fromisoformat(self.taken_at) < YOUNG

    def __str__(self) -> str:
        return f"{self.purpose} (run {self.run_id}, process {self.process}, until {self.expires_at})"


class Held:
    """A lease that is held and renewed in the background.

    Raises nothing by itself: whoever commits asks `check` first.
    """

    def __init__(self, channels: ObjectStore, key: str, lease: Lease) -> None:
        self._channels, self._key, self._lease = channels, key, lease
        self._lost: PipelineError | None = None
        self._stop = Event()
        self._thread = Thread(target=self._renewing, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """That the lease is still ours.

        Raises:
            BusyError: it was taken over; nothing must be committed any more.
        """
        held = read(self._channels, self._key)
        if self._lost or held is None or held.nonce != self._lease.nonce:
            raise BusyError(
                f"registry {self._channels.url}: the lease was lost to {held or 'somebody'}",
                hint="run it again: nothing was published",
            )

    def _renewing(self) -> None:
        while not self._stop.wait(_RENEW_EVERY_S):
            try:
                self._swap(replace(self._lease, expires_at=_text(datetime.now(UTC) + LIFETIME)))
            except SwapError as error:
                self._lost = error
                return
            except OutsideError:
                continue  # tried again before the lease runs out; `check` asks the store itself

    def _swap(self, new: Lease) -> None:
        self._channels.swap(self._key, new.to_json(), self._lease.to_json())
        self._lease = new

    def release(self) -> None:
        """Give it back. If the store cannot be reached, it runs out by itself."""
        self._stop.set()
        self._thread.join()
        try:
            self._swap(replace(self._lease, released=True))
        except (SwapError, OutsideError):
            return


def read(channels: ObjectStore, key: str = KEY) -> Lease | None:
    """The lease as it stands; None when there never was one, or nobody can read it."""
    try:
        return _parse(channels.read(key))
    except MissingObjectError:
        return None


def _parse(data: bytes) -> Lease | None:
    """What a lease says; None if it is none, which is as good as no lease."""
    try:
        lease = Lease(**json.loads(data))
        times = (datetime.fromisoformat(lease.taken_at), datetime.fromisoformat(lease.expires_at))
    except (ValueError, TypeError):
        return None
    return lease if all(t.tzinfo for t in times) else None


@contextmanager
def hold(
    channels: ObjectStore,
    purpose: str,
    run_id: str = "",
    *,
    key: str = KEY,
    patience_s: float = PATIENCE_S,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[Held]:
    """Hold the lease while the block runs; waits for whoever has it.

    Raises:
        BusyError: it was not given back within the patience.
    """
    held = _take(channels, key, purpose, run_id, patience_s, report)
    try:
        yield held
    finally:
        held.release()


def _take(channels: ObjectStore, key: str, purpose: str, run_id: str, patience_s: float, report: Callable[[str], None]) -> Held:
    deadline = time.monotonic() + patience_s
    told = ""
    while True:
        now = datetime.now(UTC)
        try:
            before: bytes | None = channels.read(key)
        except MissingObjectError:
            before = None
        holder = _parse(before) if before else None
        if holder is None or holder.is_free(now):
            process = process_name()
            mine = Lease(purpose, run_id or process, process, secrets.token_hex(8), _text(now), _text(now + LIFETIME))
            try:
                channels.swap(key, mine.to_json(), before)
                return Held(channels, key, mine)
            except SwapError:
                holder = read(channels, key)
        if time.monotonic() >= deadline:
            raise BusyError(
                f"registry {channels.url}: {purpose} waited {patience_s:.0f} s for {holder}",
                hint="let the other one finish, or wait until its lease runs out; readers are not concerned",
            )
        if str(holder) != told:
            told = str(holder)
            report(f"waiting for {told}")
        time.sleep(_POLL_S)


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
