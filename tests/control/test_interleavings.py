"""Rollbacks, shifts and re-arms of several processes, in every order that their calls to the store can take."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from typing import TypeVar

import pytest
from checker import check, check_flags
from orders import Gated, Scheduler, explore, sample

from memos_llm.control import Live
from memos_llm.core.commands import Actor, Incident, Rearm, Rollback, Shift
from memos_llm.core.errors import Refused
from memos_llm.core.events import Bus, Event, IncidentOpened, InternalError, RollbackHeld
from memos_llm.core.flags import GLOBAL, fresh
from memos_llm.core.ports import Clock
from memos_llm.core.verdicts import Evidence, Trigger
from memos_llm.store import MemoryStore

T = TypeVar("T", bound=Event)

HUMAN = Actor("alice")


class Process:
    """A `Live` behind a gated store, and what it told."""

    def __init__(self, name: str, live: Live, store: Gated, events: list[Event], clock: Clock) -> None:
        self.name, self.live, self.store, self.events, self.clock = name, live, store, events, clock
        self.cuts: list[Rollback] = []

    async def cut(self, scope: str = GLOBAL, trigger: str = Trigger.ERROR_RATE) -> None:
        """The guard's act; in force here before the next line."""
        await self.store.gate(f"cut {scope}")
        at = self.clock()
        evidence = Evidence(
            at=at, by=self.name, scope=scope, trigger=trigger, rule="too many failed", limit=0.05, n=9, k=9
        )
        speaker, judged = self.live.current().effective(scope)
        rollback = Rollback(
            provider="vllm",
            incident=f"inc-{self.name}-{scope}",
            scope=scope,
            trigger=trigger,
            automatic=True,
            epochs={speaker: judged.epoch},
            evidence=evidence,
        )
        self.cuts.append(rollback)
        self.live.cut(rollback)
        assert self.live.current().share_ppm(scope) == 0

    async def shift(self, share_ppm: int, scope: str = GLOBAL) -> None:
        with suppress(Refused):
            await self.live.submit(Shift(provider="vllm", share_ppm=share_ppm, scope=scope), HUMAN)

    async def rearm(self, scope: str = GLOBAL) -> None:
        with suppress(Refused):
            await self.live.submit(Rearm(provider="vllm", scope=scope, force=True, reason="tested"), HUMAN)

    async def roll_back(self, scope: str = GLOBAL) -> None:
        await self.live.submit(Rollback(provider="vllm", incident=f"inc-human-{self.name}", scope=scope), HUMAN)

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def process(
    inner: MemoryStore, scheduler: Scheduler, name: str, *, after: bool, clock: Clock
) -> AsyncIterator[Process]:
    events: list[Event] = []
    bus = Bus()
    bus.subscribe("test", events.append, IncidentOpened, InternalError, RollbackHeld)
    store = Gated(inner, scheduler, name, after)
    live = Live(
        store,
        bus,
        instance_id=name,
        kind="test",
        seed=lambda: fresh("i", "s", 500_000, "vllm"),
        clock=clock,
        heartbeat_s=1e6,
        stale_s=1e7,
    )
    await live.start()
    try:
        yield Process(name, live, store, events, clock)
    finally:
        await live.aclose()


Acts = Callable[[Sequence[Process]], Sequence[Awaitable[None]]]


class Race:
    """Processes that act at once; then all is read back."""

    def __init__(self, acts: Acts, *, processes: int = 2, after: bool = False) -> None:
        self._acts, self._processes, self._after = acts, processes, after
        self.endings: set[tuple[int, bool]] = set()

    async def __call__(self, scheduler: Scheduler) -> None:
        async with AsyncExitStack() as stack:
            inner, ticks, loop = MemoryStore(), count(), asyncio.get_running_loop()

            def clock() -> float:  # no two readings are the same
                return 1_000.0 + loop.time() + next(ticks) * 1e-6

            fleet = [
                await stack.enter_async_context(process(inner, scheduler, name, after=self._after, clock=clock))
                for name in "abc"[: self._processes]
            ]
            await asyncio.sleep(1)  # all of them watch
            scheduler.on = True
            await asyncio.gather(*self._acts(fleet))
            await asyncio.sleep(5)  # until nobody waits: what is owed is brought
            scheduler.on = False
            await self._agree(inner, fleet)

    async def _agree(self, inner: MemoryStore, fleet: Sequence[Process]) -> None:
        flags, history, incidents = await check(inner)
        for each in fleet:
            assert each.live.current() == flags
            assert not each.of(InternalError)
        known = {record.id for record in incidents}
        documents = sorted((flags for each in fleet for flags in each.store.committed), key=lambda one: one.revision)
        assert [one.revision for one in documents] == [line.revision for line in history]
        for one in documents:
            check_flags(one, known)
        told = [event.incident.id for each in fleet for event in each.of(IncidentOpened)]
        assert sorted(told) == sorted(known), "each is told of once, by who opened it"
        for each in fleet:
            for cut in each.cuts:
                accounted(each, cut, incidents)
        self.endings.add((len(incidents), flags.scope(GLOBAL).latch is not None))


def accounted(process: Process, cut: Rollback, incidents: Sequence[Incident]) -> None:
    """Its evidence is in one incident, or it was withdrawn and that was said."""
    assert cut.evidence is not None
    key = (process.name, cut.scope)
    found = [record.id for record in incidents for seen in record.evidence if (seen.by, seen.scope) == key]
    held = [event for event in process.of(RollbackHeld) if event.why == "newer-epoch" and event.scope == cut.scope]
    assert len(found) + len(held) == 1, (found, held)


def guards(fleet: Sequence[Process]) -> Sequence[Awaitable[None]]:
    return [each.cut() for each in fleet]


def guard_and_human(fleet: Sequence[Process]) -> Sequence[Awaitable[None]]:
    return [fleet[0].cut(), fleet[1].roll_back()]


def guard_and_raise(fleet: Sequence[Process]) -> Sequence[Awaitable[None]]:
    return [fleet[0].cut(), fleet[1].shift(900_000)]


def narrow_and_wide(fleet: Sequence[Process]) -> Sequence[Awaitable[None]]:
    return [fleet[0].cut("synthesis"), fleet[1].cut()]


def guard_and_rearm(fleet: Sequence[Process]) -> Sequence[Awaitable[None]]:
    async def human() -> None:
        await fleet[1].roll_back()
        await fleet[1].rearm()

    return [fleet[0].cut(), human()]


def everything(fleet: Sequence[Process]) -> Sequence[Awaitable[None]]:
    async def human() -> None:
        await fleet[2].rearm()
        await fleet[2].shift(700_000, "synthesis")

    return [fleet[0].cut("synthesis"), fleet[0].cut(trigger=Trigger.TIMEOUTS), fleet[1].roll_back(), human()]


@pytest.mark.parametrize(
    ("acts", "incidents"),
    [(guards, {1}), (guard_and_human, {1}), (guard_and_raise, {1}), (narrow_and_wide, {1}), (guard_and_rearm, {1, 2})],
)
def test_every_order_of_two(acts: Acts, incidents: set[int]) -> None:
    race = Race(acts)
    assert explore(race, 700) > 400
    assert {count for count, _ in race.endings} == incidents
    if acts is not guard_and_rearm:
        assert {latched for _, latched in race.endings} == {True}


@pytest.mark.parametrize("acts", [guards, guard_and_human, guard_and_raise, narrow_and_wide, guard_and_rearm])
def test_orders_at_random_with_answers_that_come_late(acts: Acts) -> None:
    sample(Race(acts, after=True), range(60))


@pytest.mark.parametrize("acts", [guards, everything])
def test_three_processes(acts: Acts) -> None:
    sample(Race(acts, processes=3, after=True), range(60))
    sample(Race(acts, processes=3), range(100, 160))


@pytest.mark.slow
@pytest.mark.parametrize("acts", [guards, guard_and_human, guard_and_raise, narrow_and_wide, guard_and_rearm])
def test_every_order_of_two_and_of_their_answers(acts: Acts) -> None:
    explore(Race(acts, after=True), 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("acts", [guards, everything])
def test_many_orders_of_three(acts: Acts) -> None:
    sample(Race(acts, processes=3, after=True), range(5_000))
