"""Several gateway processes on one address: a parent that binds, starts, replaces and stops them, and serves nothing.

The parent has no threads and no event loop, so that it can fork at any time. The listener is shared: whichever worker
is free accepts, and what waits while one is killed is accepted by another. Every worker has a place (`1` … `N`), which
its successor takes over. A worker that loses its parent drains and ends.
"""

import os
import pickle
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType

from msgspec import Struct

from memos_llm.config import Settings
from memos_llm.core.ports import Clock
from memos_llm.telemetry import shared
from memos_llm.telemetry.logs import say
from memos_llm.telemetry.shared import Shared

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
STEADY_S = 30.0  # a worker that lived this long is replaced as if it were the first to die
KILL_AFTER_S = 10.0  # beyond the drain time
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Worker(Struct, frozen=True, kw_only=True):
    """What a worker is told: where its metrics go, and a file descriptor that ends when its parent does.

    `ready` is to be called once, when requests are taken.
    """

    shared: Shared
    lifeline: int
    ready: Callable[[], None]


Work = Callable[[Worker], None]
"""Serves until SIGTERM. What it raises before it is ready ends everything, and is raised by `supervise`."""


class Terminal:
    """Whether the terminal that this process was started from has been closed since. Make it at the start."""

    def __init__(self) -> None:
        self._was_there = os.isatty(0)

    def closed(self) -> bool:
        return self._was_there and not os.isatty(0)


def divide(settings: Settings, workers: int) -> Settings:
    """The settings of one worker: what is limited per gateway is limited to its part here, at least 1."""
    if workers == 1:
        return settings
    gateway = settings.gateway
    keys = tuple(
        key.model_copy(update={"rate_per_minute": max(1, key.rate_per_minute // workers)})
        if key.rate_per_minute is not None
        else key
        for key in gateway.api_keys
    )
    shared = ("max_connections", "max_concurrency", "max_bodies_bytes")
    part = {name: max(1, getattr(gateway, name) // workers) for name in shared} | {"api_keys": keys}
    return settings.model_copy(update={"gateway": gateway.model_copy(update=part)})


def pause_s(deaths: int) -> float:
    """How long a place stays empty after so many deaths in a row: the first successor comes at once."""
    return 0.0 if deaths <= 1 else float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(deaths - 2, 16)))


def supervise(work: Work, count: int, listener: socket.socket, *, drain_s: float, ready: Callable[[], None]) -> None:
    """Keep `count` workers at work until SIGTERM or SIGINT; returns when all have drained.

    Args:
        listener: inherited by the workers; closed here as soon as the end begins.
        ready: called once, when all take requests.

    Raises:
        Exception: what a worker raised before all were ready.
    """
    lifeline, held = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="memos_llm-metrics-") as folder, _signals() as told:
            supervisor = _Supervisor(work, count, Path(folder), (lifeline, held), told, drain_s + KILL_AFTER_S)
            supervisor.run(ready, listener)
    finally:
        os.close(lifeline)
        os.close(held)


class _Place:
    """One place and the process in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process: ForkProcess | None = None
        self.reports: Connection | None = None
        self.ready = False
        self.deaths = 0
        self.started_at = 0.0
        self.due_at: float | None = None  # when the next process is to be started


class _Supervisor:
    def __init__(
        self,
        work: Work,
        count: int,
        folder: Path,
        lifeline: tuple[int, int],
        told: socket.socket,
        patience_s: float,
        clock: Clock = time.monotonic,
    ) -> None:
        self._work, self._folder, self._lifeline, self._told = work, folder, lifeline, told
        self._patience_s, self._clock = patience_s, clock
        self._places = [_Place(str(number + 1)) for number in range(count)]
        self._terminal = Terminal()
        self._all_ready = False
        self._stop_by: float | None = None

    def run(self, ready: Callable[[], None], listener: socket.socket) -> None:
        try:
            self._start(self._places[0])  # alone: what is wrong for all is said once
            while any(place.process or place.due_at is not None for place in self._places):
                self._turn()
                if self._stop_by is not None:
                    listener.close()
                elif not self._all_ready and all(place.ready for place in self._places):
                    self._all_ready = True
                    ready()
        finally:
            self._kill()

    def _turn(self) -> None:
        """Wait for what happens next, and deal with it."""
        running = [place for place in self._places if place.process is not None]
        reports = {place.reports: place for place in running if place.reports is not None}
        sentinels = {place.process.sentinel: place for place in running if place.process is not None}
        happened = connection.wait([self._told, *reports, *sentinels], self._wait_s())
        if self._told in happened:
            self._pass_on()
        for place in [reports[one] for one in happened if isinstance(one, Connection)]:
            self._hear(place)
        for place in [sentinels[one] for one in happened if isinstance(one, int)]:
            self._bury(place)
        self._keep_time()

    def _wait_s(self) -> float | None:
        due = [place.due_at for place in self._places if place.due_at is not None]
        due += [self._stop_by] if self._stop_by is not None else []
        return max(0.0, min(due) - self._clock()) if due else None

    def _keep_time(self) -> None:
        now = self._clock()
        for place in self._places:
            if place.due_at is not None and place.due_at <= now:
                self._start(place)
        if self._stop_by is not None and self._stop_by <= now:
            self._kill()

    # What happens

    def _pass_on(self) -> None:
        """The signals that came; a worker that is not there yet needs none."""
        for number in self._told.recv(64):
            if number not in SIGNALS:
                continue
            number = signal.SIGTERM if self._terminal.closed() else number
            for place in self._places:
                if place.process is not None and place.process.pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(place.process.pid, number)
            if number != signal.SIGHUP:
                self._stop_by = self._stop_by or self._clock() + self._patience_s
                for place in self._places:
                    place.due_at = None

    def _hear(self, place: _Place) -> None:
        assert place.reports is not None
        try:
            report = pickle.loads(place.reports.recv_bytes())
        except EOFError:
            place.reports.close()
            place.reports = None
            return
        if report is None:
            place.ready = True
            for other in self._places:
                if other.process is None and other.due_at is None and self._stop_by is None:
                    self._start(other)
        elif not self._all_ready:
            raise report
        else:
            say("error", "worker-failed", {"worker": place.name, "error": type(report).__name__})

    def _bury(self, place: _Place) -> None:
        assert place.process is not None
        place.process.join()
        if place.reports is not None:
            while place.reports is not None and place.reports.poll():
                self._hear(place)
        code, now = place.process.exitcode, self._clock()
        place.process.close()
        place.process, place.ready = None, False
        shared.leave(self._folder, place.name)
        if self._stop_by is not None:
            return
        if not self._all_ready:
            raise RuntimeError(f"worker {place.name} ended with {code} before it served")
        place.deaths = 1 if now - place.started_at > STEADY_S else place.deaths + 1
        place.due_at = now + pause_s(place.deaths)
        say(
            "error",
            "worker-died",
            {"worker": place.name, "exit_code": code, "restart_in_s": round(place.due_at - now, 3)},
        )

    # Starting and ending

    def _start(self, place: _Place) -> None:
        context = get_context("fork")
        place.reports, theirs = context.Pipe(duplex=False)
        place.process = context.Process(target=self._be, args=(place.name, theirs), name=f"worker-{place.name}")
        place.due_at, place.started_at = None, self._clock()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the child's first ones would be told to us, and lost to it
        try:
            place.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        theirs.close()

    def _be(self, name: str, reports: Connection) -> None:
        """The child's life."""
        os.setpgid(0, 0)  # Ctrl-C reaches the parent only, which passes it on
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        lifeline, held = self._lifeline
        os.close(held)
        place = Shared(folder=self._folder, place=name, workers=len(self._places))
        try:
            self._work(Worker(shared=place, lifeline=lifeline, ready=lambda: reports.send_bytes(pickle.dumps(None))))
        except Exception as error:  # noqa: BLE001 - the parent says it, once for all
            reports.send_bytes(_packed(error))
            raise SystemExit(1) from None

    def _kill(self) -> None:
        for place in self._places:
            if place.process is not None:
                place.process.kill()
                place.process.join()
                place.process.close()
                place.process = None


def _packed(error: Exception) -> bytes:
    try:
        return pickle.dumps(error)
    except Exception:  # noqa: BLE001 - whatever cannot be sent is told by its type
        return pickle.dumps(RuntimeError(type(error).__name__))


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Signals as bytes to read: their numbers."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    before = {number: signal.signal(number, _nothing) for number in SIGNALS}
    earlier = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(earlier)
        for number, handler in before.items():
            signal.signal(number, handler)
        ours.close()
        theirs.close()


def _nothing(number: int, frame: FrameType | None) -> None:
    """The wake-up is all."""


__all__: Sequence[str] = ("Worker", "divide", "pause_s", "supervise")
