"""The driver: what is in force here, whatever the store does."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from memos_llm.control import Live, last_good
from memos_llm.control.adopt import Cut, View
from memos_llm.core.commands import Actor, Audit, Incident, Rearm, Rollback, Shift, audit
from memos_llm.core.errors import Refused, StoreUnreachable
from memos_llm.core.events import Bus, Event, FlagsChanged, InternalError, RollbackHeld, StoreState
from memos_llm.core.flags import GLOBAL, PPM, Flags, fresh
from memos_llm.core.inventory import Recorded, Sighting
from memos_llm.core.ports import Conflict, Instance, LiveFlags
from memos_llm.core.verdicts import Evidence
from memos_llm.core.windows import Merged, WindowDelta
from memos_llm.store import MemoryStore

HUMAN = Actor("alice")


class Switch:
    """A memory store that can be switched off, emptied, and made to conflict."""

    def __init__(self, inner: MemoryStore | None = None) -> None:
        self.inner = inner or MemoryStore()
        self.down = False
        self.conflicts = 0
        self.gate = asyncio.Event()  # a reading is held back while it is clear
        self.gate.set()

    def check(self) -> None:
        if self.down:
            raise StoreUnreachable("switched off")

    async def load(self) -> Flags | None:
        self.check()
        read = await self.inner.load()
        await self.gate.wait()
        return read

    def glance(self, within_s: float) -> Flags | None:
        self.check()
        return self.inner.glance(within_s)

    def watch(self) -> AsyncIterator[Flags]:
        return self._watch(self.inner.watch())

    async def _watch(self, watch: AsyncIterator[Flags]) -> AsyncGenerator[Flags, None]:
        async for flags in watch:
            self.check()
            yield flags

    async def commit(self, expected: int, flags: Flags, audit: Audit, incident: Incident | None = None) -> None:
        self.check()
        if self.conflicts:
            self.conflicts -= 1
            raise Conflict
        await self.inner.commit(expected, flags, audit, incident)

    async def history(self, limit: int) -> Sequence[Audit]:
        self.check()
        return await self.inner.history(limit)

    async def incidents(self, limit: int) -> Sequence[Incident]:
        self.check()
        return await self.inner.incidents(limit)

    async def note(self, incident: str, evidence: Evidence) -> None:
        self.check()
        await self.inner.note(incident, evidence)

    async def merge(self, deltas: Sequence[WindowDelta], cursor: int = 0) -> Merged:
        self.check()
        return await self.inner.merge(deltas, cursor)

    async def claim(self, by: str, lease_s: float) -> Incident | None:
        self.check()
        return await self.inner.claim(by, lease_s)

    async def renew(self, incident: str, by: str, lease_s: float) -> bool:
        self.check()
        return await self.inner.renew(incident, by, lease_s)

    async def told(self, incident: str) -> None:
        self.check()
        await self.inner.told(incident)

    async def heartbeat(self, instance: Instance) -> None:
        self.check()
        await self.inner.heartbeat(instance)

    async def leave(self, instance_id: str) -> None:
        self.check()
        await self.inner.leave(instance_id)

    async def instances(self) -> Sequence[Instance]:
        self.check()
        return await self.inner.instances()

    async def record(self, sightings: Sequence[Sighting]) -> None:
        self.check()
        await self.inner.record(sightings)

    async def recorded(self, since_day: int = 0) -> Recorded:
        self.check()
        return await self.inner.recorded(since_day)

    async def aclose(self) -> None:
        await self.inner.aclose()


class Process:
    """A `Live` and everything that it told."""

    def __init__(self, live: Live, events: list[Event]) -> None:
        self.live, self.events = live, events

    @property
    def revisions(self) -> list[int]:
        return [event.flags.revision for event in self.events if isinstance(event, FlagsChanged)]

    @property
    def states(self) -> list[StoreState]:
        return [event for event in self.events if isinstance(event, StoreState)]

    def share(self, component: str = "x") -> int:
        return self.live.current().share_ppm(component)


@asynccontextmanager
async def process(
    store: Switch | MemoryStore,
    *,
    name: str = "p1",
    last_good: Path | None = None,
    seed_ppm: int | None = None,
    ephemeral: bool = False,
) -> AsyncIterator[Process]:
    events: list[Event] = []
    bus = Bus()
    bus.subscribe("test", events.append)
    live = Live(
        store,
        bus,
        instance_id=name,
        kind="test",
        last_good=last_good,
        seed=None if seed_ppm is None else lambda: fresh(f"installation-{name}", f"salt-{name}", seed_ppm),
        ephemeral=ephemeral,
        heartbeat_s=0.05,
    )
    await live.start()
    try:
        yield Process(live, events)
    finally:
        await live.aclose()
    assert not [event for event in events if isinstance(event, InternalError)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def shift(share_ppm: int, scope: str = GLOBAL) -> Shift:
    return Shift(provider="vllm", share_ppm=share_ppm, scope=scope)


def rollback(name: str = "i1", scope: str = GLOBAL) -> Rollback:
    return Rollback(provider="vllm", incident=name, scope=scope, trigger="error_rate")


async def put(store: MemoryStore, flags: Flags) -> None:
    """Publish as another process would."""
    await store.commit(flags.revision - 1, flags, audit(shift(0), flags, flags, HUMAN, 1.0))


async def test_it_is_a_live_flags() -> None:
    async with process(MemoryStore()) as p:
        live: LiveFlags = p.live
        assert live.current() is live.current()


async def test_a_new_store_without_a_seed_is_baseline_only_and_a_later_seeding_is_picked_up() -> None:
    store = MemoryStore()
    async with process(store) as p:
        assert (p.share(), p.live.current().revision) == (0, 0)
        assert await store.load() is None
        await put(store, fresh("i", "s", 300_000))
        await until(lambda: p.share() == 300_000)
        assert p.revisions == [0, 1]


async def test_a_seed_makes_the_first_flags_and_says_so_in_the_history() -> None:
    store = MemoryStore()
    async with process(store, seed_ppm=300_000) as p:
        assert p.share() == 300_000
        (line,) = await store.history(10)
        assert (line.command, line.share_before, line.share_after, line.revision) == ("seed", 0.0, 0.3, 1)
        assert p.revisions == [1]


async def test_of_many_seeders_one_wins_and_all_follow_it() -> None:
    store = MemoryStore()
    async with process(store, name="a", seed_ppm=100_000) as a, process(store, name="b", seed_ppm=900_000) as b:
        assert a.live.current() == b.live.current() == await store.load()
        assert b.share() == 100_000


async def test_a_seed_never_touches_a_store_that_has_flags() -> None:
    store = MemoryStore()
    await put(store, fresh("i", "s", 0))
    async with process(store, seed_ppm=900_000) as p:
        assert p.share() == 0


async def test_the_first_command_of_a_new_store_founds_it_at_share_zero() -> None:
    store = MemoryStore()
    async with process(store) as p:
        flags = await p.live.submit(shift(200_000), HUMAN)
        assert (flags.revision, p.share()) == (1, 200_000)
        assert flags.installation
        assert flags.salt
        (line,) = await store.history(10)
        assert (line.share_before, line.share_after, line.actor) == (0.0, 0.2, "alice")


async def test_a_submit_is_in_force_here_at_once_and_everywhere_soon_and_told_once() -> None:
    store = MemoryStore()
    async with process(store, name="a", seed_ppm=0) as a, process(store, name="b") as b:
        flags = await a.live.submit(shift(200_000), HUMAN)
        assert a.live.current() == flags
        await until(lambda: b.share() == 200_000)
        await a.live.confirm(2, 5.0)
        assert a.revisions == b.revisions == [1, 2]


async def test_racing_commands_are_all_applied_in_one_line_of_revisions() -> None:
    store = MemoryStore()
    async with process(store, name="a", seed_ppm=0) as a, process(store, name="b") as b:
        work = [live.submit(shift(n + 1, f"c{n}"), HUMAN) for n in range(20) for live in (a.live, b.live)]
        await asyncio.gather(*work)
        await until(lambda: a.live.current() == b.live.current())
        assert [a.share(f"c{n}") for n in range(20)] == [n + 1 for n in range(20)]
        assert [line.revision for line in await store.history(100)] == list(range(41, 0, -1))
        assert a.revisions == sorted(set(a.revisions))


async def test_a_reading_that_was_overtaken_does_not_bring_older_flags_back() -> None:
    store = Switch()
    async with process(store, seed_ppm=0) as p:
        older = shift(100_000).apply(p.live.current(), 1.0)
        old = shift(200_000).apply(older, 1.0)
        new = shift(300_000).apply(old, 1.0)
        await put(store.inner, older)
        await until(lambda: p.live.current() == older)  # it watches now
        store.gate.clear()
        await put(store.inner, old)
        late = asyncio.create_task(p.live.submit(shift(100_000, "analysis"), HUMAN))
        await until(lambda: p.live.current() == old)
        await put(store.inner, new)
        await until(lambda: p.live.current() == new)
        store.gate.set()
        assert (await late).revision == 5
        assert p.revisions == [1, 2, 3, 4, 5]


async def test_endless_conflicts_are_refused_in_the_end_but_never_a_rollback() -> None:
    store = Switch()
    async with process(store, seed_ppm=500_000) as p:
        store.conflicts = 1_000
        with pytest.raises(Refused, match="try again"):
            await p.live.submit(shift(0), HUMAN)
        store.conflicts = 45
        await p.live.submit(rollback(), HUMAN)
        assert p.share() == 0


async def test_only_a_human_rearms() -> None:
    async with process(MemoryStore(), seed_ppm=500_000) as p:
        await p.live.submit(rollback(), HUMAN)
        with pytest.raises(Refused, match="only a human"):
            await p.live.submit(Rearm(provider="vllm"), Actor("plan-1", "plan"))
        await p.live.submit(Rearm(provider="vllm"), HUMAN)
        assert p.live.current().scope(GLOBAL).latch is None


async def test_a_refused_command_changes_nothing() -> None:
    store = MemoryStore()
    async with process(store, seed_ppm=500_000) as p:
        with pytest.raises(Refused):
            await p.live.submit(shift(PPM + 1), HUMAN)
        assert p.live.current() == await store.load()
        assert len(await store.history(10)) == 1


# Cuts


async def test_a_cut_is_in_force_before_the_next_line_and_then_published_with_its_incident() -> None:
    store = MemoryStore()
    async with process(store, name="a", seed_ppm=500_000) as a, process(store, name="b") as b:
        a.live.cut(rollback())
        assert a.share() == 0
        await until(lambda: b.share() == 0)
        (record,) = await store.incidents(10)
        assert (record.id, record.trigger, record.actor) == ("i1", "error_rate", "a")
        assert record.shares_before == {GLOBAL: 0.5}
        assert a.live.current() == b.live.current()


async def test_replicas_that_cut_at_once_make_one_incident() -> None:
    store = MemoryStore()
    async with process(store, name="a", seed_ppm=500_000) as a, process(store, name="b") as b:
        a.live.cut(rollback("from-a"))
        b.live.cut(rollback("from-b"))
        await until(lambda: a.live.current() == b.live.current())
        assert a.live.current().revision == 2
        assert len(await store.incidents(10)) == 1


async def test_a_cut_holds_over_what_is_published_while_it_cannot_be() -> None:
    inner = MemoryStore()
    ours = Switch(inner)
    async with process(ours, name="a", seed_ppm=500_000) as a, process(inner, name="b") as b:
        ours.down = True
        a.live.cut(rollback())
        await b.live.submit(shift(900_000), HUMAN)
        with pytest.raises(StoreUnreachable):
            await a.live.submit(shift(0), HUMAN)
        assert (a.share(), b.share()) == (0, 900_000)
        ours.down = False
        await until(lambda: b.share() == 0)
        await until(lambda: a.live.current() == b.live.current())


async def test_a_cut_yields_to_a_rearm_that_came_after_it() -> None:
    inner = MemoryStore()
    ours = Switch(inner)
    async with process(ours, name="a", seed_ppm=500_000) as a, process(inner, name="b") as b:
        ours.down = True
        a.live.cut(rollback("from-a"))
        await b.live.submit(rollback("from-b"), HUMAN)
        await b.live.submit(Rearm(provider="vllm"), HUMAN)
        flags = await b.live.submit(shift(100_000), HUMAN)
        ours.down = False
        await until(lambda: a.live.current() == flags)
        assert [record.id for record in await inner.incidents(10)] == ["from-b"]
        assert await inner.load() == flags


async def test_a_rearm_by_a_clock_that_is_ahead_does_not_hinder_the_cuts_after_it() -> None:
    store = MemoryStore()
    async with process(store, seed_ppm=500_000) as p:
        p.live.cut(rollback("first"))
        while not (flags := await store.load()) or flags.scope(GLOBAL).latch is None:
            await asyncio.sleep(0.005)
        ahead = Rearm(provider="vllm").apply(flags, time.time() + 600)
        await put(store, shift(300_000).apply(replace(ahead, revision=flags.revision), time.time() + 600))
        await until(lambda: p.share() == 300_000)
        p.live.cut(rollback("second"))
        assert p.share() == 0
    assert [record.id for record in await store.incidents(10)] == ["second", "first"]


async def test_an_unpublished_cut_survives_a_restart(tmp_path: Path) -> None:
    store, file = Switch(), tmp_path / "last_good.json"
    async with process(store, seed_ppm=500_000, last_good=file) as p:
        store.down = True
        p.live.cut(rollback())
    async with process(store, last_good=file) as p:
        assert p.share() == 0
        store.down = False
        await until(lambda: not last_good.read(file).cuts)
    flags = await store.load()
    assert flags is not None
    assert flags.scope(GLOBAL).latch is not None


async def test_a_cut_that_nobody_confirmed_for_longer_than_any_holddown_ends_once_the_store_is_there(
    tmp_path: Path,
) -> None:
    store, file = Switch(), tmp_path / "last_good.json"
    async with process(store, seed_ppm=500_000, last_good=file) as p:
        flags = p.live.current()
    young, old = (
        Cut(rollback(name, scope), time.time() - age_s, Actor("p0", "guard"))
        for name, scope, age_s in (("young", "analysis", 23 * 3600), ("old", GLOBAL, 25 * 3600))
    )
    last_good.write(file, View(flags, (young, old)))
    store.down = True
    async with process(store, last_good=file) as p:
        assert p.share() == 0, "without the store nothing is known that is newer"
        store.down = False
        await until(lambda: p.share() == 500_000)
        await until(lambda: p.live.current().scope("analysis").latch is not None)
        assert [(e.scope, e.why) for e in p.events if isinstance(e, RollbackHeld)] == [(GLOBAL, "too-old")]
        await until(lambda: not last_good.read(file).cuts)
    assert [record.id for record in await store.incidents(10)] == ["young"]


async def test_closing_publishes_a_cut() -> None:
    store = MemoryStore()
    async with process(store, seed_ppm=500_000) as p:
        p.live.cut(rollback())
    flags = await store.load()
    assert flags is not None
    assert flags.scope(GLOBAL).latch is not None


# A store that is away


async def test_a_start_without_store_or_last_good_is_baseline_only_and_heals(tmp_path: Path) -> None:
    store = Switch()
    store.down = True
    async with process(store, seed_ppm=300_000, last_good=tmp_path / "none.json") as p:
        assert (p.share(), p.live.current().revision) == (0, 0)
        assert p.states == [StoreState(reachable=False, detail="switched off")]
        with pytest.raises(StoreUnreachable):
            await p.live.submit(shift(1), HUMAN)
        store.down = False
        await until(lambda: p.share() == 300_000)
        assert p.states[1:] == [StoreState(reachable=True)]
        assert p.revisions == [0, 1]


async def test_a_start_without_the_store_uses_the_last_good_flags(tmp_path: Path) -> None:
    store, file = Switch(), tmp_path / "last_good.json"
    async with process(store, seed_ppm=300_000, last_good=file) as p:
        await p.live.submit(rollback("i1", "analysis"), HUMAN)
    store.down = True
    async with process(store, last_good=file) as p:
        assert (p.share(), p.share("analysis"), p.live.current().revision) == (300_000, 0, 2)
        assert p.live.current().salt == "salt-p1"
        assert p.revisions == [2]
        store.down = False
        await until(lambda: p.live.store_state.reachable)
        assert p.revisions == [2]  # the store says the same: nothing new


@pytest.mark.parametrize("damage", [b'{"flags":"\xff"}', b'{"x":' + b"[" * 100_000])
async def test_a_damaged_last_good_file_is_as_good_as_none_and_is_replaced(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "last_good.json"
    file.write_bytes(damage)
    async with process(MemoryStore(), seed_ppm=500_000, last_good=file) as p:
        assert p.share() == 500_000
        await until(lambda: last_good.read(file).published == p.live.current())


async def test_the_last_good_file_follows_every_change(tmp_path: Path) -> None:
    file = tmp_path / "last_good.json"
    async with process(MemoryStore(), seed_ppm=300_000, last_good=file) as p:
        await until(lambda: last_good.read(file).published.revision == 1)
        flags = await p.live.submit(shift(400_000), HUMAN)
        await until(lambda: last_good.read(file).published == flags)


async def test_a_store_that_goes_and_comes_back_loses_nothing() -> None:
    inner = MemoryStore()
    ours = Switch(inner)
    async with process(ours, name="a", seed_ppm=300_000) as a, process(inner, name="b") as b:
        ours.down = True
        await until(lambda: not a.live.store_state.reachable)
        await b.live.submit(shift(100_000), HUMAN)
        assert a.share() == 300_000
        ours.down = False
        await until(lambda: a.share() == 100_000)


# A store that has regressed


async def regressed(tmp_path: Path, told: Flags | None) -> tuple[MemoryStore, Path]:
    """A last-good file of revision 3 with `analysis` latched, and a store that says `told`."""
    store, file = MemoryStore(), tmp_path / "last_good.json"
    async with process(MemoryStore(), seed_ppm=300_000, last_good=file) as p:
        await p.live.submit(shift(400_000), HUMAN)
        await p.live.submit(rollback("i1", "analysis"), HUMAN)
    if told is not None:
        await store.commit(0, told, audit(shift(0), told, told, HUMAN, 1.0))
    return store, file


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (None, "it is empty"),
        (fresh("other", "other", PPM), "another installation"),
        (fresh("installation-p1", "salt-p1", PPM), "gone back to revision 1"),
        (replace(fresh("installation-p1", "salt-p1", PPM), revision=3), "revision 3 is not the one"),
    ],
)
async def test_a_regressed_store_is_not_believed_and_not_raised(tmp_path: Path, told: Flags | None, why: str) -> None:
    store, file = await regressed(tmp_path, told)
    async with process(store, last_good=file, seed_ppm=PPM) as p:
        assert (p.share(), p.share("analysis"), p.live.current().revision) == (400_000, 0, 3)
        assert p.live.store_state.reachable
        assert p.live.store_state.regressed
        assert why in p.live.store_state.detail
        with pytest.raises(Refused, match=r"regressed.*if this one is meant.*only a rollback"):
            await p.live.submit(shift(PPM), HUMAN)
        (instance,) = await store.instances()
        assert instance.revision == 0  # it confirms nothing of that store
        assert p.share() == 400_000
    assert last_good.read(file).published.revision == 3


async def test_a_regressed_store_gets_the_latches_again_and_a_rollback_still_works(tmp_path: Path) -> None:
    store, file = await regressed(tmp_path, fresh("other", "other", PPM))
    async with process(store, last_good=file) as p:
        await p.live.submit(rollback("i2"), HUMAN)
        assert p.share() == 0
    flags = await store.load()
    assert flags is not None
    assert {name for name, scope in flags.scopes.items() if scope.latch is not None} == {GLOBAL, "analysis"}


async def test_a_store_that_regresses_under_a_running_process_is_noticed_and_may_catch_up() -> None:
    store = Switch()
    async with process(store, seed_ppm=300_000) as p:
        flags = await p.live.submit(shift(400_000), HUMAN)
        old, store.inner = store.inner, MemoryStore()
        with pytest.raises(Refused, match="it is empty"):
            await p.live.submit(shift(500_000), HUMAN)
        store.inner = old
        await put(old, shift(100_000).apply(flags, 1.0))
        await until(lambda: p.share() == 100_000)
        assert not p.live.store_state.regressed


# The fleet


async def test_confirm_waits_for_every_live_lasting_instance() -> None:
    store = MemoryStore()
    async with (
        process(store, name="a", seed_ppm=0) as a,
        process(store, name="b"),
        process(store, name="cli", ephemeral=True) as cli,
    ):
        flags = await cli.live.submit(shift(100_000), HUMAN)
        found = await cli.live.confirm(flags.revision, 5.0)
        assert found == (("a", "b"), ())
        assert a.share() == 100_000


async def test_confirm_names_who_has_not_followed() -> None:
    store = MemoryStore()
    async with process(store, name="a", seed_ppm=0) as a:
        await store.heartbeat(Instance(id="stuck", kind="gateway", revision=1, at=0.0))
        flags = await a.live.submit(shift(100_000), HUMAN)
        assert await a.live.confirm(flags.revision, 0.3) == (("a",), ("stuck",))


async def test_a_process_that_closes_is_no_longer_among_the_instances() -> None:
    store = MemoryStore()
    async with process(store) as p:
        assert [instance.id for instance in await store.instances()] == ["p1"]
    await p.live.aclose()
    assert list(await store.instances()) == []


async def test_closing_leaves_the_store_open_unless_it_is_owned() -> None:
    for owned in (False, True):
        store = MemoryStore()
        live = Live(store, Bus(), instance_id="a", kind="test", owns_store=owned)
        await live.start()
        await live.aclose()
        if owned:
            with pytest.raises(StoreUnreachable, match="closed"):
                await store.load()
        else:
            await store.load()


async def test_closing_without_the_store_is_quiet() -> None:
    store = Switch()
    async with process(store, seed_ppm=0):
        store.down = True


class Hung(Switch):
    """While the gate is closed it answers nothing."""

    async def leave(self, instance_id: str) -> None:
        await self.gate.wait()
        await super().leave(instance_id)

    async def aclose(self) -> None:
        await self.gate.wait()
        await super().aclose()


async def test_a_store_that_hangs_does_not_keep_a_process_from_ending_and_what_it_owes_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memos_llm.control.live.CLOSE_S", 0.05)
    monkeypatch.setattr("memos_llm.control.live.LEAVE_S", 0.05)
    store, file = Hung(), tmp_path / "last_good.json"
    async with process(store, last_good=file, seed_ppm=500_000) as p:
        p.live._owns_store = True
        store.gate.clear()
        p.live.cut(rollback())
        async with asyncio.timeout(5):
            await p.live.aclose()
    assert not p.live.store_state.reachable
    assert "did not answer in time" in p.live.store_state.detail
    store.gate.set()
    async with process(store, name="p2", last_good=file) as successor:
        assert successor.share() == 0, "at once"
        await until(lambda: successor.live.current().revision == 2)
    (_, line) = sorted(await store.history(10), key=lambda one: one.revision)
    assert line.command == "rollback"
