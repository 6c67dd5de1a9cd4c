"""An SQLite store that fails under running processes: what was in force stays, a cut works, nothing is promoted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from outages import Outage, Place, damaged, deleted, disk, full, locked, older, read_only

from memos_llm.control import Live
from memos_llm.core.commands import Actor, Rollback, Shift
from memos_llm.core.errors import Refused, StoreUnreachable
from memos_llm.core.events import Bus, Event, FlagsChanged, InternalError, StoreState
from memos_llm.core.flags import GLOBAL, Flags, fresh
from memos_llm.core.ports import Instance
from memos_llm.core.windows import WindowDelta, WindowKey
from memos_llm.store import SqliteStore

HUMAN = Actor("alice")
OLD, LAST = 900_000, 300_000  # shares: of before, taken back since, and in force when the store fails
KEY = WindowKey(scope=GLOBAL, epoch=1, provider="vllm", model="m", component="synthesis")


class Process:
    def __init__(self, live: Live, events: list[Event]) -> None:
        self.live, self.events = live, events

    def share(self, component: str) -> int:
        return self.live.current().share_ppm(component)

    @property
    def well(self) -> bool:
        state = self.live.store_state
        return state.reachable and not state.regressed

    @property
    def complained(self) -> bool:
        return any(isinstance(event, StoreState) and event.detail for event in self.events)

    def seen(self) -> list[Flags]:
        return [event.flags for event in self.events if isinstance(event, FlagsChanged)]


@contextlib.asynccontextmanager
async def process(place: Place, name: str) -> AsyncIterator[Process]:
    events: list[Event] = []
    bus = Bus()
    bus.subscribe("test", events.append)
    live = Live(
        SqliteStore(place.path, busy_s=0.1, poll_s=0.05),
        bus,
        instance_id=name,
        kind="test",
        last_good=place.folder / f"{name}.json",
        seed=lambda: fresh("installation", "5a" * 16, OLD),
        heartbeat_s=0.05,
        owns_store=True,
    )
    await live.start()
    try:
        yield Process(live, events)
    finally:
        await live.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def prepare(place: Place) -> None:
    """A store whose share was taken back, the copy `older` of before that, and what `a` and `b` remember of it."""
    async with process(place, "a") as a:
        place.save("older")
        async with process(place, "b") as b:
            flags = await a.live.submit(Shift(provider="vllm", share_ppm=LAST), HUMAN)
            await until(lambda: b.live.current() == flags)


async def promoted(p: Process) -> bool:
    try:
        await p.live.submit(Shift(provider="vllm", share_ppm=OLD), HUMAN)
    except (StoreUnreachable, Refused):
        return False
    return True


def cut(p: Process, name: str) -> None:
    p.live.cut(Rollback(provider="vllm", incident=name, scope="synthesis", trigger="error_rate", automatic=True))


async def act(a: Process, b: Process, lasts_s: float) -> None:
    """What must hold while the store is away."""
    await until(lambda: a.complained)
    assert (a.share("x"), a.share("synthesis")) == (LAST, LAST)
    assert not await promoted(a)
    cut(a, "from-a")
    assert (a.share("x"), a.share("synthesis")) == (LAST, 0)
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + lasts_s
    while loop.time() < ends_s:
        assert not await promoted(b)
        assert not await promoted(a)
        cut(b, "from-b")
        assert b.share("synthesis") == 0
        await asyncio.sleep(0.2)


async def recovered(place: Place, a: Process, b: Process) -> None:
    """Without a restart: the latch is in the store, once, and known to all; no share came back; changes work again."""
    await until(lambda: a.well and b.well and not a.share("synthesis") and a.live.current() == b.live.current())
    reader = SqliteStore(place.path)
    flags = a.live.current()
    assert await reader.load() == flags
    latch = flags.scope("synthesis").latch
    assert latch is not None
    assert [record.id for record in await reader.incidents(10)] == [latch.incident]
    for p in (a, b):
        assert {seen.share_ppm("x") for seen in p.seen()} <= {LAST}
        assert {seen.share_ppm("synthesis") for seen in p.seen()} <= {LAST, 0}
        assert {event.error for event in p.events if isinstance(event, InternalError)} <= place.excused
    after = await b.live.submit(Shift(provider="vllm", share_ppm=100_000), HUMAN)
    await until(lambda: a.live.current() == after)
    assert (await a.live.store.merge((WindowDelta(key=KEY, start=int(after.scope("x").since), counts={"n": 1}),))).at
    await reader.aclose()


async def fails_under_running_processes(place: Place, outage: Outage, lasts_s: float) -> None:
    await prepare(place)
    async with process(place, "a") as a, process(place, "b") as b:
        async with outage(place):
            await act(a, b, lasts_s)
        await recovered(place, a, b)


async def fails_before_a_restart(place: Place, outage: Outage, lasts_s: float) -> None:
    await prepare(place)
    async with contextlib.AsyncExitStack() as stack:
        async with outage(place):
            a, b = [await stack.enter_async_context(process(place, name)) for name in "ab"]
            await act(a, b, lasts_s)
        await recovered(place, a, b)


ANYWHERE = {"locked": locked, "damaged": damaged, "deleted": deleted, "older": older}


@pytest.mark.parametrize("outage", ANYWHERE.values(), ids=ANYWHERE)
async def test_a_store_that_fails_under_running_processes(place: Place, outage: Outage) -> None:
    await fails_under_running_processes(place, outage, 0.0)


async def test_a_disk_that_becomes_full(place: Place) -> None:
    with disk(place):
        await fails_under_running_processes(place, full, 0.0)


async def test_a_start_from_a_read_only_store(place: Place) -> None:
    with disk(place):
        await fails_before_a_restart(place, read_only, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("outage", ANYWHERE.values(), ids=ANYWHERE)
async def test_a_store_that_fails_for_long(place: Place, outage: Outage, *, restarted: bool) -> None:
    await (fails_before_a_restart if restarted else fails_under_running_processes)(place, outage, 6.0)


@pytest.mark.slow
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_a_disk_that_is_full_for_long(place: Place, *, restarted: bool) -> None:
    with disk(place):
        await (fails_before_a_restart if restarted else fails_under_running_processes)(place, full, 6.0)


@pytest.mark.slow
async def test_a_start_from_a_store_that_is_read_only_for_long(place: Place) -> None:
    with disk(place):
        await fails_before_a_restart(place, read_only, 6.0)


async def test_an_empty_store_that_is_adopted_gets_the_record_of_everything_that_is_latched(place: Place) -> None:
    await prepare(place)
    async with process(place, "a") as a, process(place, "b") as b:
        cut(a, "before")
        await until(lambda: not b.share("synthesis"))
        place.take_away()
        await until(lambda: a.live.store_state.regressed and b.live.store_state.regressed)
        for p in (a, b):
            p.live.cut(Rollback(provider="vllm", incident=f"of-{p.live.instance_id}", trigger="health", automatic=True))
        proposal = await a.live.propose_adoption("tested")
        assert proposal is not None
        flags = await a.live.adopt_store(proposal, HUMAN)
        await until(lambda: b.live.current() == flags and b.well)
        latched = {name: scope.latch.incident for name, scope in flags.scopes.items() if scope.latch}
        assert latched == {GLOBAL: "before", "synthesis": "before"}, "the wider one joins the first"
        reader = SqliteStore(place.path)
        assert await reader.load() == flags
        assert {record.id for record in await reader.incidents(10)} == set(latched.values())
        assert [line.command for line in await reader.history(10)] == ["adopt", "rollback", "rollback", "seed"]
        await reader.aclose()
        for p in (a, b):
            assert max(seen.share_ppm("x") for seen in p.seen()) == LAST
            assert p.share("x") == 0


async def test_calls_that_queue_up_at_a_lock_do_not_wait_for_it_one_after_the_other(place: Place) -> None:
    await prepare(place)
    busy_s, calls = 1.0, 12
    store = SqliteStore(place.path, busy_s=busy_s)
    beat = Instance(id="p", kind="test", revision=1, at=0.0)
    loop = asyncio.get_running_loop()
    async with locked(place):
        began_s = loop.time()
        ends = await asyncio.gather(*(store.heartbeat(beat) for _ in range(calls)), return_exceptions=True)
        assert [type(end) for end in ends] == [StoreUnreachable] * calls
        assert busy_s <= loop.time() - began_s < busy_s * calls / 2
    await store.heartbeat(beat)
    assert [one.id for one in await store.instances()] == ["p"]
    await store.aclose()
