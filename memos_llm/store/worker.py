"""One daemon thread that does a store's I/O, so that no event loop ever waits for a disk.

Jobs run in the order in which they were posted; between them, while somebody wants it, a tick. The thread starts with
the first job. It does not survive a fork, and neither may SQLite's connections (https://sqlite.org/howtocorrupt.html
§2.6: even a new connection of the child would share the parent's notion of the locks held). So before a fork every
worker puts its resources away and stands still; parent and child then each start afresh.
"""

import asyncio
import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")
Job = Callable[[], object]

FORK_WAIT_S = 6.0  # longer than one job waits for a lock; a fork does not wait for ever


class Chores(Protocol):
    """What a worker does besides its jobs; all called on its thread."""

    def wants_tick(self) -> bool: ...
    def tick(self) -> None: ...
    def put_away(self) -> None:
        """Close what must not be carried across a fork or past the end; reopened by the next job that needs it."""
        ...

    def forget(self) -> None:
        """In the child of a fork: drop whoever waits in the parent."""
        ...


class Worker:
    """`tick_s`: seconds from tick to tick."""

    def __init__(self, name: str, chores: Chores, *, tick_s: float) -> None:
        self._name = name
        self._chores = chores
        self._tick_s = tick_s
        self._lock = threading.Lock()
        self._resume = threading.Event()
        self._thread: threading.Thread | None = None
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        _WORKERS.add(self)

    async def run(self, job: Callable[[], T]) -> T:
        """The job's result, or what it raised. Cancelling the caller does not stop a job under way."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self.post(lambda: _settle(loop, future, job))
        return await future

    def post(self, job: Job) -> None:
        """Run a job, some time, and nobody waits for it; it must not raise."""
        with self._lock:
            self._jobs.put(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, args=(self._jobs,), daemon=True)
                self._thread.start()

    async def stop(self) -> None:
        """Finish what was posted, put away, end the thread; the next job would start another."""
        thread = self._thread
        if thread is None:
            return
        await self.run(self._chores.put_away)
        with self._lock:
            self._jobs.put(None)
            self._thread = None
        thread.join()  # it has nothing left to do but to return

    def before_fork(self) -> None:
        if self._thread is None:
            return
        away = threading.Event()
        self._resume.clear()
        self.post(lambda: self._stand_still(away, self._resume))
        away.wait(FORK_WAIT_S)

    def after_fork_in_parent(self) -> None:
        self._resume.set()

    def after_fork_in_child(self) -> None:
        """The thread is gone, and the locks are as another thread may have left them."""
        self._lock, self._resume = threading.Lock(), threading.Event()
        self._thread, self._jobs = None, queue.SimpleQueue()
        self._chores.forget()

    def _stand_still(self, away: threading.Event, resume: threading.Event) -> None:
        self._chores.put_away()
        away.set()
        resume.wait()

    def _run(self, jobs: queue.SimpleQueue[Job | None]) -> None:
        due_s = time.monotonic()
        while True:
            ticking = self._chores.wants_tick()
            try:
                job = jobs.get(timeout=max(0.0, due_s - time.monotonic()) if ticking else None)
            except queue.Empty:
                job = _nothing
            if job is None:
                return
            job()
            if ticking and time.monotonic() >= due_s:  # also when jobs come so fast that the queue is never empty
                self._chores.tick()
                due_s = time.monotonic() + self._tick_s


def _nothing() -> None:
    return None


def _settle(loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], job: Callable[[], T]) -> None:
    try:
        result = job()
    except Exception as error:  # noqa: BLE001 - it is the caller's, who gets it
        _deliver(loop, _reject, future, error)
    else:
        _deliver(loop, _resolve, future, result)


def _deliver(loop: asyncio.AbstractEventLoop, act: Callable[..., None], *arguments: object) -> None:
    with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody is left to tell
        loop.call_soon_threadsafe(act, *arguments)


def _resolve(future: asyncio.Future[T], result: T) -> None:
    if not future.done():  # the caller may have been cancelled
        future.set_result(result)


def _reject(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


# The process's only list of them: a fork concerns every worker, whoever owns it.
_WORKERS: weakref.WeakSet[Worker] = weakref.WeakSet()


def _before_fork() -> None:
    for worker in tuple(_WORKERS):
        worker.before_fork()


def _after_fork_in_parent() -> None:
    for worker in tuple(_WORKERS):
        worker.after_fork_in_parent()


def _after_fork_in_child() -> None:
    for worker in tuple(_WORKERS):
        worker.after_fork_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
