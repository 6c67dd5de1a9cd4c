"""The guard on a switch: the product as it ships, but that what its guard hears of requests can be cut off.

What it costs is measured in two parts. On the requests' way: one process hears of them and does not, in turns so short
that whatever else the machine does meets both alike. Beside it: the CPU time of the guard's own tasks, step by step,
and of the store's thread, all of which is put down to it though the flags are read there too. Left out is what is too
little to be told apart: the loop's own timers for these tasks, a look at what the probers say.

Where the wiring makes its guard it makes one of these; looked up late, since this package sits below the wiring.
"""

import asyncio
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from importlib import import_module
from typing import Any

from memos_llm.core.events import AttemptEnded, AttemptStarted, Bus, ContentBegan, Event, Listener, RequestEnded
from memos_llm.guard.watch import Guard

ON, OFF, USED = "on", "off", "used"
OF_REQUESTS = {AttemptStarted, ContentBegan, AttemptEnded, RequestEnded}
TASKS, STORE = "Guard.", "memos_llm store"  # how the names of its coroutines begin, and that of the store's thread


class Ear(Bus):
    """The guard's bus: what it says and hears there is as on the process's own; of requests it hears while it is on."""

    def __init__(self, bus: Bus) -> None:
        super().__init__()
        self._bus = bus
        self._of_requests: list[tuple[str, Listener, type[Event]]] = []
        self._off: list[Callable[[], None]] = []

    def emit(self, event: Event) -> None:
        self._bus.emit(event)

    def subscribe(self, part: str, listener: Listener, *kinds: type[Event]) -> Callable[[], None]:
        off = self._bus.subscribe(part, listener, *kinds)
        if not OF_REQUESTS.issuperset(kinds):
            return off
        self._of_requests += [(part, listener, kind) for kind in kinds]
        self._off.append(off)
        return self._deafen

    def turn(self, to: str) -> None:
        assert self._of_requests, "nobody hears of requests alone: there is nothing to turn off"
        self._deafen()
        if to == ON:
            self._off = [self._bus.subscribe(*wanted) for wanted in self._of_requests]

    def _deafen(self) -> None:
        while self._off:
            self._off.pop()()


class Metered:
    """A task factory that adds up the CPU time of the guard's tasks, in `ns`."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self, loop: asyncio.AbstractEventLoop, coroutine: Any, /, **more: Any) -> asyncio.Task[Any]:
        if getattr(coroutine, "__qualname__", "").startswith(TASKS):
            coroutine = self._run(coroutine)
        return asyncio.Task(coroutine, loop=loop, **more)

    async def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return await self._stepped(coroutine)

    @types.coroutine
    def _stepped(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Awaits it, with a look at the clock before and after each of its steps."""
        sent: Any = None
        thrown: BaseException | None = None
        while True:
            began = time.thread_time_ns()
            try:
                awaited = coroutine.send(sent) if thrown is None else coroutine.throw(thrown)
            except StopIteration as end:
                return end.value
            finally:
                self.ns += time.thread_time_ns() - began
            sent = thrown = None
            try:
                sent = yield awaited
            except BaseException as error:  # noqa: BLE001 - a cancellation too is the coroutine's to hear
                thrown = error


class Switch:
    """Stands where a process's `Guard` does, and is switched on at first."""

    def __init__(self, live: Any, store: Any, bus: Bus, *parts: Any, **options: Any) -> None:
        self._ear, self._metered = Ear(bus), Metered()
        self._guard = Guard(live, store, self._ear, *parts, **options)
        self.dead, self.aclose = self._guard.dead, self._guard.aclose

    def start(self) -> None:
        asyncio.get_running_loop().set_task_factory(self._metered)
        self._guard.start()

    def answer(self, line: str) -> str:
        """Does what a line says. To `ON` and `OFF` the answer is the line; to `USED` the line and the nanoseconds of
        CPU time that the guard has used beside the requests until now.
        """
        if line != USED:
            self._ear.turn(line)
            return line
        store = [thread for thread in threading.enumerate() if thread.name.startswith(STORE)]
        assert store, "no thread is named as the store's is: there is nothing to measure"
        assert self._metered.ns, "no task is named as the guard's are: there is nothing to measure"
        clocks = [time.pthread_getcpuclockid(thread.ident) for thread in store if thread.ident is not None]
        return f"{USED} {self._metered.ns + sum(map(time.clock_gettime_ns, clocks))}"


def install(kind: type[Switch] = Switch) -> list[Switch]:
    """From now on each guard of this process is a switch; the list gets those that are made."""
    made: list[Switch] = []

    def make(*parts: Any, **options: Any) -> Switch:
        made.append(kind(*parts, **options))
        return made[-1]

    vars(import_module("memos_llm.wiring"))["Guard"] = make
    return made
