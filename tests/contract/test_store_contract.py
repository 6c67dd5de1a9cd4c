"""What every store must do, whichever it is (`stores.STORES`): flags, history, instances, the inventory."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import stores
from msgspec.structs import replace
from stores import ManualClock

from memos_llm.core.commands import Actor, Audit, Incident, Rollback, Shift, audit, incident
from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.flags import Flags, fresh
from memos_llm.core.inventory import KEEP_DAYS, MAX_LINES, REST, Line, Recorded, Sighting, What
from memos_llm.core.ports import Conflict, Instance, StateStore

HUMAN = Actor("tester")

clock, store = stores.clock, stores.store  # where pytest finds its fixtures


def entry(flags: Flags, before: Flags | None = None) -> Audit:
    return audit(Shift(provider="vllm", share_ppm=0), before or flags, flags, HUMAN, 1.0)


async def seed(store: StateStore, share_ppm: int = 0) -> Flags:
    flags = fresh("i" * 16, "5a" * 16, share_ppm)
    await store.commit(0, flags, entry(flags))
    return flags


async def shift(store: StateStore, share_ppm: int) -> Flags:
    before = await store.load()
    assert before is not None
    command = Shift(provider="vllm", share_ppm=share_ppm)
    after = command.apply(before, 1.0)
    await store.commit(before.revision, after, audit(command, before, after, HUMAN, 1.0))
    return after


async def roll_back(store: StateStore, name: str) -> Incident:
    before = await store.load()
    assert before is not None
    command = Rollback(provider="vllm", incident=name, scope=f"component-{name}", trigger="test")
    after = command.apply(before, 2.0)
    record = incident(command, before, after, HUMAN, 2.0)
    assert record is not None
    await store.commit(before.revision, after, audit(command, before, after, HUMAN, 2.0), record)
    return record


async def soon(watch: AsyncIterator[Flags]) -> Flags:
    async with asyncio.timeout(5):
        return await anext(watch)


async def test_a_new_store_is_empty(store: StateStore) -> None:
    assert await store.load() is None
    assert list(await store.history(10)) == []
    assert list(await store.incidents(10)) == []
    assert list(await store.instances()) == []


async def test_what_was_committed_is_what_is_loaded(store: StateStore) -> None:
    await seed(store, 300_000)
    record = await roll_back(store, "a")
    loaded = await store.load()
    assert loaded is not None
    assert loaded.revision == 2
    assert loaded.share_ppm("other") == 300_000
    latch = loaded.scopes["component-a"].latch
    assert latch is not None
    assert latch.incident == record.id
    assert list(await store.incidents(10)) == [record]


async def test_a_commit_on_another_revision_is_a_conflict_and_changes_nothing(store: StateStore) -> None:
    first = await seed(store)
    await shift(store, 100_000)
    late = replace(first, revision=2)
    with pytest.raises(Conflict):
        await store.commit(1, late, entry(late))
    again = replace(first, revision=1)
    with pytest.raises(Conflict):
        await store.commit(0, again, entry(again))
    loaded = await store.load()
    assert loaded is not None
    assert loaded.share_ppm("x") == 100_000
    assert [line.revision for line in await store.history(10)] == [2, 1]


async def test_a_conflicting_rollback_leaves_neither_history_nor_incident(store: StateStore) -> None:
    first = await seed(store)
    await shift(store, 100_000)
    command = Rollback(provider="vllm", incident="late", trigger="test")
    after = command.apply(first, 2.0)
    record = incident(command, first, after, HUMAN, 2.0)
    with pytest.raises(Conflict):
        await store.commit(1, after, audit(command, first, after, HUMAN, 2.0), record)
    assert list(await store.incidents(10)) == []
    assert len(await store.history(10)) == 2


async def test_a_revision_that_does_not_grow_is_the_callers_mistake(store: StateStore) -> None:
    flags = await seed(store)
    with pytest.raises(ValueError, match="revision 1"):
        await store.commit(1, flags, entry(flags))


async def test_history_and_incidents_come_newest_first_and_limited(store: StateStore) -> None:
    await seed(store)
    for name in "abc":
        await roll_back(store, name)
    assert [line.revision for line in await store.history(2)] == [4, 3]
    assert [record.id for record in await store.incidents(2)] == ["c", "b"]
    assert len(await store.history(100)) == 4


async def test_the_first_record_of_an_incident_stands(store: StateStore) -> None:
    flags = await seed(store)
    first = await roll_back(store, "a")
    second = replace(flags, revision=3)
    await store.commit(2, second, entry(second), replace(first, reason="another"))
    assert list(await store.incidents(10)) == [first]


async def test_no_update_is_lost_among_racing_committers(store: StateStore) -> None:
    await seed(store)

    async def increment() -> int:
        conflicts = 0
        while True:
            before = await store.load()
            assert before is not None
            after = Shift(provider="vllm", share_ppm=before.share_ppm("x") + 1).apply(before, 1.0)
            try:
                await store.commit(before.revision, after, entry(after, before))
            except Conflict:
                conflicts += 1
                continue
            return conflicts

    await asyncio.gather(*(increment() for _ in range(30)))
    loaded = await store.load()
    assert loaded is not None
    assert (loaded.revision, loaded.share_ppm("x")) == (31, 30)
    assert [line.revision for line in await store.history(100)] == list(range(31, 0, -1))


async def test_a_watcher_hears_what_comes_after_its_call_and_not_before(store: StateStore) -> None:
    await seed(store)
    watch = store.watch()
    after = await shift(store, 200_000)
    assert await soon(watch) == after


async def test_a_watcher_hears_of_the_first_flags_of_a_new_store(store: StateStore) -> None:
    watch = store.watch()
    assert await soon_after(watch, seed(store)) == await store.load()


async def soon_after(watch: AsyncIterator[Flags], act: object) -> Flags:
    assert asyncio.iscoroutine(act)
    await act
    return await soon(watch)


async def test_a_slow_watcher_gets_the_newest_only(store: StateStore) -> None:
    await seed(store)
    watch = store.watch()
    for share in (100_000, 200_000, 300_000):
        await shift(store, share)
    seen = await soon(watch)
    while seen.revision < 4:
        seen = await soon(watch)
    assert seen.share_ppm("x") == 300_000
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await anext(watch)


async def test_every_watcher_hears_at_once_of_an_own_commit(store: StateStore) -> None:
    await seed(store)
    watches = [store.watch() for _ in range(3)]
    for share in (100_000, 200_000, 300_000):
        flags = await shift(store, share)
        assert [await soon(watch) for watch in watches] == [flags] * len(watches)


async def test_a_watch_ends_with_its_store(store: StateStore) -> None:
    await seed(store)
    watch = store.watch()
    await store.load()
    await store.aclose()
    with pytest.raises(StopAsyncIteration):
        await soon(watch)


async def test_instances_are_live_for_five_seconds_by_the_stores_clock(store: StateStore, clock: ManualClock) -> None:
    started = clock.now
    await store.heartbeat(Instance(id="a", kind="gateway", revision=3, at=0.0))
    clock.now += 4.0
    await store.heartbeat(Instance(id="b", kind="cli", revision=4, at=0.0, ephemeral=True))
    a, b = sorted(await store.instances(), key=lambda instance: instance.id)
    assert a == Instance(id="a", kind="gateway", revision=3, at=started)
    assert b == Instance(id="b", kind="cli", revision=4, at=started + 4.0, ephemeral=True)
    clock.now += 1.0
    assert [instance.id for instance in await store.instances()] == ["b"]
    await store.heartbeat(Instance(id="a", kind="gateway", revision=5, at=0.0))
    assert {instance.revision for instance in await store.instances()} == {4, 5}


async def test_an_instance_tells_which_endpoints_are_dead_to_it_or_that_it_does_not_probe(store: StateStore) -> None:
    told: list[tuple[str, ...] | None] = [None, (), ("http://a:1", "http://b:2"), ("http://b:2",), None]
    for dead in told:
        await store.heartbeat(Instance(id="a", kind="gateway", revision=3, at=0.0, dead=dead))
        assert [instance.dead for instance in await store.instances()] == [dead]


async def test_who_leaves_is_gone_and_leaving_twice_is_harmless(store: StateStore) -> None:
    await store.heartbeat(Instance(id="a", kind="gateway", revision=3, at=0.0))
    await store.leave("a")
    await store.leave("a")
    assert list(await store.instances()) == []


async def test_long_dead_instances_are_forgotten_even_if_the_clock_goes_back(
    store: StateStore, clock: ManualClock
) -> None:
    await store.heartbeat(Instance(id="old", kind="gateway", revision=1, at=0.0))
    clock.now += 3601.0
    await store.heartbeat(Instance(id="new", kind="gateway", revision=1, at=0.0))
    clock.now -= 3601.0
    assert [instance.id for instance in await store.instances()] == ["new"]


async def test_closing_twice_is_harmless_and_a_closed_store_says_so(store: StateStore) -> None:
    await seed(store)
    await store.aclose()
    await store.aclose()
    with pytest.raises(StoreUnreachable, match="closed"):
        await store.load()
    with pytest.raises(StoreUnreachable, match="closed"):
        await store.heartbeat(Instance(id="a", kind="gateway", revision=3, at=0.0))
    with pytest.raises(StoreUnreachable, match="closed"):
        await soon(store.watch())


DAY = 20_000
LINE = Line("synthesis", "qwen3:8b", "openai.chat", "", "team-a")


def sighting(
    n: int, *, line: Line = LINE, day: int = DAY, what: What = What.REQUEST, detail: str = "split"
) -> Sighting:
    at = day * 86_400.0 + n
    return Sighting(day=day, line=line, what=what, provider="ollama", detail=detail, n=n, first=at, last=at + 1)


@pytest.fixture
def on_that_day(clock: ManualClock) -> ManualClock:
    clock.now = DAY * 86_400.0 + 3_600
    return clock


async def test_a_store_into_which_nobody_has_recorded_says_so(store: StateStore) -> None:
    assert await store.recorded() == Recorded(since=None, sightings=())


async def test_the_beginning_of_the_record_is_dated_once(store: StateStore, on_that_day: ManualClock) -> None:
    began = on_that_day.now
    await store.record(())
    on_that_day.now += 60
    await store.record((sighting(1),))
    found = await store.recorded()
    assert (found.since, len(found.sightings)) == (began, 1)


async def test_counts_of_many_writers_add_up(store: StateStore, on_that_day: ManualClock) -> None:
    other = replace(LINE, component="analysis")
    writes = [(sighting(n), sighting(n, line=other), sighting(1, what=What.WARNING, detail="x")) for n in range(1, 21)]
    await asyncio.gather(*(store.record(write) for write in writes))
    found = {(one.line, one.what): one for one in (await store.recorded()).sightings}
    assert {key: one.n for key, one in found.items()} == {
        (LINE, What.REQUEST): 210,
        (other, What.REQUEST): 210,
        (LINE, What.WARNING): 20,
    }
    requests = found[LINE, What.REQUEST]
    assert (requests.first, requests.last) == (DAY * 86_400 + 1, DAY * 86_400 + 21)


async def test_counts_are_kept_by_day_and_read_from_a_day_on(store: StateStore, on_that_day: ManualClock) -> None:
    await store.record((sighting(1, day=DAY - 2), sighting(2, day=DAY - 1), sighting(4)))
    read = [sum(one.n for one in (await store.recorded(day)).sightings) for day in (DAY - 2, DAY - 1, DAY, DAY + 1)]
    assert read == [7, 6, 4, 0]
    (whole,) = (await store.recorded(DAY - 2)).sightings
    assert (whole.day, whole.first, whole.last) == (DAY, (DAY - 2) * 86_400 + 1, DAY * 86_400 + 5)


async def test_days_older_than_ninety_are_dropped(store: StateStore, on_that_day: ManualClock) -> None:
    await store.record((sighting(1, day=DAY - KEEP_DAYS), sighting(2)))
    assert sum(one.n for one in (await store.recorded()).sightings) == 3
    on_that_day.now += 86_400
    await store.record(())
    assert [one.n for one in (await store.recorded()).sightings] == [2]


async def test_lines_beyond_the_bound_are_counted_together_and_no_count_is_lost(
    store: StateStore, on_that_day: ManualClock
) -> None:
    many = [sighting(1, line=replace(LINE, caller=f"key-{n}")) for n in range(MAX_LINES + 50)]
    await store.record(many[: MAX_LINES - 1])
    await store.record(many[MAX_LINES - 1 :])
    await store.record(many)
    found = (await store.recorded()).sightings
    assert len(found) == MAX_LINES + 1
    assert sum(one.n for one in found) == 2 * len(many)
    assert [one.n for one in found if one.line == REST] == [100]


async def test_a_line_that_was_forgotten_leaves_its_place_to_another(
    store: StateStore, on_that_day: ManualClock
) -> None:
    await store.record([sighting(1, line=replace(LINE, caller=f"key-{n}")) for n in range(MAX_LINES)])
    on_that_day.now += (KEEP_DAYS + 1) * 86_400
    await store.record(())
    await store.record((sighting(1, day=DAY + KEEP_DAYS + 1),))
    assert [one.line for one in (await store.recorded()).sightings] == [LINE]
