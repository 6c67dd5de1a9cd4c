"""The default store: one file, many processes on one host.

Every call is a job on the store's own thread (`store.worker`); this class is the async face of `store.database` and
tells watchers. A change by another process is seen by polling `PRAGMA data_version` (a few µs) every `poll_s`; one of
our own is told at once. Nothing is polled while nobody watches.
"""

import contextlib
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from memos_llm.core.commands import Audit, Incident
from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.flags import Flags
from memos_llm.core.inventory import Recorded, Sighting
from memos_llm.core.ports import Clock, Instance
from memos_llm.core.verdicts import Evidence
from memos_llm.core.windows import Merged, WindowDelta
from memos_llm.store import documents, files
from memos_llm.store.database import Database
from memos_llm.store.subscription import Subscription
from memos_llm.store.worker import Worker

T = TypeVar("T")

BUSY_S = 5.0
POLL_S = 0.2


class SqliteStore:
    """A `StateStore` in one SQLite file.

    Args:
        path: absolute; file and directory are made (0600, 0700) when missing.
        clock: the host's wall clock (Unix seconds).
        busy_s: how long a call waits for another process's lock before it is `StoreUnreachable`.
        poll_s: seconds between two looks for changes by other processes.
        mounts: the table of mounts, as in proc(5).

    Raises:
        ConfigError: the path is on a network file system.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock = time.time,
        busy_s: float = BUSY_S,
        poll_s: float = POLL_S,
        mounts: Path = files.MOUNTS,
    ) -> None:
        files.refuse_network(path, mounts)
        self._database = Database(path, busy_s=busy_s, clock=clock)
        self._watchers = _Watchers(self._database)
        self._worker = Worker(f"memos_llm store {path.name}", self._watchers, tick_s=poll_s)
        self._glanced: Future[Flags | None] | None = None
        self._closed = False

    async def load(self) -> Flags | None:
        return await self._do(self._database.load)

    def glance(self, within_s: float) -> Flags | None:
        """While one that was given up has no answer yet, nothing more is asked."""
        if self._closed:
            raise _closed()
        if self._glanced is not None and not self._glanced.done():
            return None
        self._glanced = asked = Future[Flags | None]()
        self._worker.post(lambda: _answer(asked, self._database.load))
        with contextlib.suppress(TimeoutError):
            return asked.result(within_s)
        return None

    def watch(self) -> AsyncIterator[Flags]:
        subscription = Subscription()
        if self._closed:
            subscription.fail(_closed())
        else:
            self._worker.post(lambda: self._watchers.add(subscription))
        return subscription

    async def commit(self, expected: int, flags: Flags, audit: Audit, incident: Incident | None = None) -> None:
        def job() -> None:
            self._database.commit(expected, flags, audit, incident)
            self._watchers.tell(flags)

        await self._do(job)

    async def history(self, limit: int) -> Sequence[Audit]:
        return await self._do(lambda: self._database.history(limit))

    async def incidents(self, limit: int) -> Sequence[Incident]:
        return await self._do(lambda: self._database.incidents(limit))

    async def note(self, incident: str, evidence: Evidence) -> None:
        await self._do(lambda: self._database.note(incident, evidence))

    async def merge(self, deltas: Sequence[WindowDelta], cursor: int = 0) -> Merged:
        return await self._do(lambda: self._database.merge(deltas, cursor))

    async def claim(self, by: str, lease_s: float) -> Incident | None:
        return await self._do(lambda: self._database.claim(by, lease_s))

    async def renew(self, incident: str, by: str, lease_s: float) -> bool:
        return await self._do(lambda: self._database.renew(incident, by, lease_s))

    async def told(self, incident: str) -> None:
        await self._do(lambda: self._database.told(incident))

    async def heartbeat(self, instance: Instance) -> None:
        await self._do(lambda: self._database.heartbeat(instance))

    async def leave(self, instance_id: str) -> None:
        await self._do(lambda: self._database.leave(instance_id))

    async def instances(self) -> Sequence[Instance]:
        return await self._do(self._database.instances)

    async def record(self, sightings: Sequence[Sighting]) -> None:
        await self._do(lambda: self._database.record(sightings))

    async def recorded(self, since_day: int = 0) -> Recorded:
        return await self._do(lambda: self._database.recorded(since_day))

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._worker.post(self._watchers.end)
        await self._worker.stop()

    async def _do(self, job: Callable[[], T]) -> T:
        if self._closed:
            raise _closed()
        return await self._worker.run(job)


class _Watchers:
    """Who is to be told of new flags, and what they were told last. On the worker's thread only."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._told: tuple[bytes, int] | None = None

    def wants_tick(self) -> bool:
        return bool(self._subscriptions)

    def tick(self) -> None:
        try:
            self._poll()
        except StoreUnreachable as error:
            self._fail(error)

    def put_away(self) -> None:
        self._database.close()

    def forget(self) -> None:
        self._database.close()  # nothing, unless the parent's thread was stuck
        self._subscriptions.clear()

    def add(self, subscription: Subscription) -> None:
        """What was there before is no news to it, but may be to the others."""
        try:
            self._poll()
        except StoreUnreachable as error:
            subscription.fail(error)
            self._fail(error)
        else:
            self._subscriptions.add(subscription)

    def tell(self, flags: Flags) -> None:
        self._told = (documents.encode(flags), flags.schema)
        for subscription in tuple(self._subscriptions):
            subscription.offer(flags)

    def end(self) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.end()

    def _poll(self) -> None:
        if not self._database.touched():
            return
        stored = self._database.stored()
        if stored == self._told:  # a heartbeat, most of the time
            return
        if stored is None:
            self._told = None
            raise StoreUnreachable("the flags have vanished from the store")  # watchers cannot be told None: load again
        self.tell(documents.decode_flags(*stored))
        self._told = stored

    def _fail(self, error: StoreUnreachable) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.fail(error)
        self._subscriptions.clear()


def _closed() -> StoreUnreachable:
    return StoreUnreachable("this store has been closed")


def _answer(asked: Future[T], job: Callable[[], T]) -> None:
    try:
        asked.set_result(job())
    except Exception as error:  # noqa: BLE001 - it is the caller's, who gets it
        asked.set_exception(error)
