"""The store of tests and of `memory://`: everything in this process, gone with it.

Any number of `LiveFlags` may share one instance, also from several threads. It keeps the contract of the others
to the letter (one conformance suite runs over all), so that what passes on it passes on them.
"""

import threading
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from math import inf

from msgspec.structs import replace

from memos_llm.core.commands import Audit, Incident
from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.flags import Flags
from memos_llm.core.inventory import KEEP_DAYS, Ledger, Recorded, Sighting, day_of
from memos_llm.core.ports import MOST_EVIDENCE, Clock, Conflict, Instance
from memos_llm.core.verdicts import Evidence
from memos_llm.core.windows import Merged, WindowDelta
from memos_llm.store.documents import FORGET_S, check_commit, is_live, with_evidence
from memos_llm.store.rows import Rows
from memos_llm.store.subscription import Subscription


class MemoryStore:
    """`clock` is the store's wall clock (Unix seconds); it dates heartbeats."""

    def __init__(self, *, clock: Clock = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._flags: Flags | None = None
        self._history: list[Audit] = []
        self._incidents: dict[str, Incident] = {}
        self._instances: dict[str, Instance] = {}
        self._untold: dict[str, tuple[str, float]] = {}  # incidents: by whom each is claimed, and until when
        self._rows = Rows()
        self._ledger = Ledger()
        self._recording_since: float | None = None
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._closed = False

    async def load(self) -> Flags | None:
        self._check_open()
        return self._flags

    def glance(self, within_s: float) -> Flags | None:
        self._check_open()
        return self._flags

    def watch(self) -> AsyncIterator[Flags]:
        subscription = Subscription()
        with self._lock:
            if self._closed:
                subscription.fail(_closed())
            else:
                self._subscriptions.add(subscription)
        return subscription

    async def commit(self, expected: int, flags: Flags, audit: Audit, incident: Incident | None = None) -> None:
        self._check_open()
        check_commit(expected, flags, audit)
        with self._lock:
            found = 0 if self._flags is None else self._flags.revision
            if found != expected:
                raise Conflict(f"the store holds revision {found}, not {expected}")
            self._flags = flags
            self._history.append(audit)
            if incident is not None and incident.id not in self._incidents:
                self._incidents[incident.id] = incident
                self._untold[incident.id] = "", -inf
            for subscription in self._subscriptions:
                subscription.offer(flags)

    async def history(self, limit: int) -> Sequence[Audit]:
        self._check_open()
        return tuple(reversed(self._history))[:limit]

    async def incidents(self, limit: int) -> Sequence[Incident]:
        self._check_open()
        return tuple(reversed(self._incidents.values()))[:limit]

    async def note(self, incident: str, evidence: Evidence) -> None:
        self._check_open()
        with self._lock:
            found = self._incidents.get(incident)
            if found is not None and len(found.evidence) < MOST_EVIDENCE:
                self._incidents[incident] = with_evidence(found, (evidence,))

    async def merge(self, deltas: Sequence[WindowDelta], cursor: int = 0) -> Merged:
        self._check_open()
        now = self._clock()
        with self._lock:
            return self._rows.merge(deltas, cursor, now)

    async def claim(self, by: str, lease_s: float) -> Incident | None:
        self._check_open()
        now = self._clock()
        with self._lock:
            name = next((name for name, (_, until) in self._untold.items() if until <= now), None)
            if name is None:
                return None
            self._untold[name] = by, now + lease_s
            return self._incidents[name]

    async def renew(self, incident: str, by: str, lease_s: float) -> bool:
        self._check_open()
        now = self._clock()
        with self._lock:
            mine = incident in self._untold and self._untold[incident][0] == by
            if mine:
                self._untold[incident] = by, now + lease_s
            return mine

    async def told(self, incident: str) -> None:
        self._check_open()
        with self._lock:
            self._untold.pop(incident, None)

    async def heartbeat(self, instance: Instance) -> None:
        self._check_open()
        now = self._clock()
        with self._lock:
            rows = {**self._instances, instance.id: replace(instance, at=now)}
            self._instances = {name: row for name, row in rows.items() if now - row.at <= FORGET_S}

    async def leave(self, instance_id: str) -> None:
        self._check_open()
        with self._lock:
            self._instances.pop(instance_id, None)

    async def instances(self) -> Sequence[Instance]:
        self._check_open()
        now = self._clock()
        with self._lock:
            return tuple(row for row in self._instances.values() if is_live(row, now))

    async def record(self, sightings: Sequence[Sighting]) -> None:
        self._check_open()
        now = self._clock()
        with self._lock:
            self._recording_since = now if self._recording_since is None else self._recording_since
            self._ledger.add(sightings)
            self._ledger.forget(day_of(now) - KEEP_DAYS)

    async def recorded(self, since_day: int = 0) -> Recorded:
        self._check_open()
        with self._lock:
            return Recorded(since=self._recording_since, sightings=self._ledger.sums(since_day))

    async def aclose(self) -> None:
        with self._lock:
            self._closed = True
            for subscription in self._subscriptions:
                subscription.end()

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()


def _closed() -> StoreUnreachable:
    return StoreUnreachable("this store has been closed")
