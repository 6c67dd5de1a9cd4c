"""Every order in which concurrent calls to a store can happen, one after the other, without real time.

`explore` runs a scenario again and again. Each call of a `Gated` store waits at a gate before it takes effect, and on
request again before its caller hears of it. Only when nothing else can run is one of those waiting let through (or the
next timer comes due): which one, is the choice that the runs differ in.
"""

import asyncio
import random
import selectors
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from memos_llm.core.commands import Audit, Incident
from memos_llm.core.flags import Flags
from memos_llm.core.inventory import Recorded, Sighting
from memos_llm.core.ports import Instance
from memos_llm.core.verdicts import Evidence
from memos_llm.core.windows import Merged, WindowDelta
from memos_llm.store import MemoryStore

T = TypeVar("T")

FAR_S = 1.0  # a timer beyond it does not come due while anybody waits at a gate


class Scheduler:
    """`choices`: which of those that could go on goes, in turn; then `pick` decides. `taken`: (chosen, of how many)."""

    def __init__(self, choices: Sequence[int], pick: Callable[[int], int]) -> None:
        self._choices, self._pick = list(choices), pick
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []
        self.taken: list[tuple[int, int]] = []
        self.told: list[str] = []
        self.on = False

    async def gate(self, name: str) -> None:
        if self.on:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((name, future))
            await future

    def idle(self, timer: bool) -> bool:
        """Let one go; False where time must pass instead."""
        waiting = [(name, future) for name, future in self._waiting if not future.done()]
        self._waiting = sorted(waiting, key=lambda one: one[0])  # who is woken first is not the same in every run
        options = len(self._waiting) + timer
        if not self._waiting:
            return False
        if not self.on:
            for _, future in self._waiting:
                future.set_result(None)
            return True
        at = len(self.taken)
        chosen = self._choices[at] if at < len(self._choices) else self._pick(options)
        assert chosen < options
        self.taken.append((chosen, options))
        if chosen == len(self._waiting):
            self.told.append("time")
            return False
        name, future = self._waiting.pop(chosen)
        self.told.append(name)
        future.set_result(None)
        return True


class _Selector(selectors.SelectSelector):
    """Never sleeps: says to the scheduler that nothing else can run, or lets the loop's time jump."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self.scheduler, self.now = scheduler, 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        timer = timeout is not None and timeout < FAR_S
        if self.scheduler.idle(timer):
            return []
        assert timeout is not None, "everybody waits for ever"
        self.now += timeout
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, selector: _Selector) -> None:
        super().__init__(selector)
        self._own = selector

    def time(self) -> float:
        return self._own.now


class Gated:
    """A `StateStore` whose calls wait for the scheduler; heartbeats do not: they are nobody's concern here."""

    def __init__(self, inner: MemoryStore, scheduler: Scheduler, name: str, after: bool) -> None:
        self._inner, self._scheduler, self._name, self._after = inner, scheduler, name, after
        self.committed: list[Flags] = []

    async def _through(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        await self._scheduler.gate(f"{self._name} {what}")
        try:
            return await work()
        finally:
            if self._after:
                await self._scheduler.gate(f"{self._name} has {what}")

    async def gate(self, what: str) -> None:
        await self._scheduler.gate(f"{self._name} {what}")

    async def load(self) -> Flags | None:
        return await self._through("load", self._inner.load)

    def glance(self, within_s: float) -> Flags | None:
        return self._inner.glance(within_s)

    def watch(self) -> AsyncIterator[Flags]:
        return self._watch(self._inner.watch())

    async def _watch(self, watch: AsyncIterator[Flags]) -> AsyncGenerator[Flags, None]:
        async for flags in watch:
            await self._scheduler.gate(f"{self._name} hears {flags.revision}")
            yield flags

    async def commit(self, expected: int, flags: Flags, audit: Audit, incident: Incident | None = None) -> None:
        async def work() -> None:
            await self._inner.commit(expected, flags, audit, incident)
            self.committed.append(flags)

        await self._through(f"commit {flags.revision} {audit.command}", work)

    async def history(self, limit: int) -> Sequence[Audit]:
        return await self._inner.history(limit)

    async def incidents(self, limit: int) -> Sequence[Incident]:
        return await self._through("incidents", lambda: self._inner.incidents(limit))

    async def note(self, incident: str, evidence: Evidence) -> None:
        await self._through("note", lambda: self._inner.note(incident, evidence))

    async def merge(self, deltas: Sequence[WindowDelta], cursor: int = 0) -> Merged:
        return await self._inner.merge(deltas, cursor)

    async def claim(self, by: str, lease_s: float) -> Incident | None:
        return await self._inner.claim(by, lease_s)

    async def renew(self, incident: str, by: str, lease_s: float) -> bool:
        return await self._inner.renew(incident, by, lease_s)

    async def told(self, incident: str) -> None:
        await self._inner.told(incident)

    async def heartbeat(self, instance: Instance) -> None:
        await self._inner.heartbeat(instance)

    async def leave(self, instance_id: str) -> None:
        await self._inner.leave(instance_id)

    async def instances(self) -> Sequence[Instance]:
        return await self._inner.instances()

    async def record(self, sightings: Sequence[Sighting]) -> None:
        await self._inner.record(sightings)

    async def recorded(self, since_day: int = 0) -> Recorded:
        return await self._inner.recorded(since_day)

    async def aclose(self) -> None:
        await self._inner.aclose()


Scenario = Callable[[Scheduler], Awaitable[Any]]


def run(scenario: Scenario, scheduler: Scheduler) -> None:
    random.seed(0)  # the pauses after a conflict
    selector = _Selector(scheduler)
    with asyncio.Runner(loop_factory=lambda: _Loop(selector)) as runner:
        try:
            runner.run(_guarded(scenario, scheduler))
        except BaseException as error:
            error.add_note(f"choices: {[chosen for chosen, _ in scheduler.taken]}")
            error.add_note("\n".join(scheduler.told))
            raise


async def _guarded(scenario: Scenario, scheduler: Scheduler) -> None:
    await scenario(scheduler)


def explore(scenario: Scenario, most: int) -> int:
    """All orders, or `most` of them, the same ones each time; returns how many."""
    return sum(1 for _ in _explored(scenario, most))


def _explored(scenario: Scenario, most: int) -> Iterator[None]:
    todo: list[list[int]] = [[]]
    chance = random.Random(0)
    while todo and most:
        prefix = todo.pop(chance.randrange(len(todo)))  # so that the first ones differ in more than their ends
        scheduler = Scheduler(prefix, lambda options: 0)
        run(scenario, scheduler)
        chosen = [choice for choice, _ in scheduler.taken]
        for depth in range(len(prefix), len(chosen)):
            todo += [[*chosen[:depth], other] for other in range(1, scheduler.taken[depth][1])]
        most -= 1
        yield


def sample(scenario: Scenario, seeds: range) -> None:
    """Orders at random, the same ones each time."""
    for seed in seeds:
        chance = random.Random(seed)
        run(scenario, Scheduler((), chance.randrange))
