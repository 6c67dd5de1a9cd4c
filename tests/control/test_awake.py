"""An event loop that stood still: what was published meanwhile is in force before anything is decided."""

import threading
import time
from pathlib import Path

import pytest
from test_live import HUMAN, Process, Switch, process, put, shift, until

from memos_llm.control.awake import Awake
from memos_llm.core.commands import audit
from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.events import Bus, InternalError
from memos_llm.core.flags import Flags, fresh
from memos_llm.store import SqliteStore
from memos_llm.testing import ManualClock


class Counting(Switch):
    """Counts the looks of those that cannot await; `broken` fails them in a way that nobody foresaw."""

    def __init__(self) -> None:
        super().__init__()
        self.glances, self.broken = 0, False

    def glance(self, within_s: float) -> Flags | None:
        self.glances += 1
        if self.broken:
            raise ValueError
        return super().glance(within_s)


async def unheard(store: Counting, p: Process) -> None:
    """Another process publishes a share of 0, and this one's event loop gets no turn until the next line awaits."""
    await put(store.inner, shift(0).apply(p.live.current(), 1.0))
    assert p.live._current.share_ppm("x"), "it has not heard of it"


def stand_still(p: Process) -> None:
    p.live._awake._until = 0.0  # as after a second of computing


async def test_after_a_stand_still_the_first_who_asks_looks_for_all() -> None:
    store = Counting()
    async with process(store, seed_ppm=500_000) as p:
        await unheard(store, p)
        stand_still(p)
        assert [p.share() for _ in range(50)] == [0] * 50
        assert store.glances == 1
        assert p.revisions == [1, 2], "told, too"
        await until(lambda: p.live.store_state.reachable)
        assert p.revisions == [1, 2], "once"


async def test_a_store_that_is_away_is_looked_at_once_and_the_last_flags_stay() -> None:
    store = Counting()
    async with process(store, seed_ppm=500_000) as p:
        await unheard(store, p)
        store.down = True
        stand_still(p)
        assert [p.share() for _ in range(50)] == [500_000] * 50
        assert store.glances == 1
        assert not p.live.store_state.reachable
        store.down = False
        await until(lambda: p.share() == 0)


async def test_whatever_goes_wrong_in_a_look_reaches_no_request() -> None:
    store = Counting()
    store.broken = True
    errors: list[object] = []
    async with process(store, seed_ppm=500_000) as p:
        p.live._bus = Bus()
        p.live._bus.subscribe("errors", errors.append, InternalError)
        await unheard(store, p)
        stand_still(p)
        assert p.share() == 500_000
        assert [event.error for event in errors if isinstance(event, InternalError)] == ["ValueError"]


async def test_as_long_as_it_runs_nothing_is_looked_at() -> None:
    clock, looks = ManualClock(0.0), 0

    def look() -> None:
        nonlocal looks
        looks += 1

    awake = Awake(0.03, look, clock)
    clock.advance(100.0)
    awake.check()
    assert looks == 0, "it has not begun"
    awake.renew()
    for _ in range(5):
        clock.advance(0.029)
        awake.check()
        await awake.tick()
    assert looks == 0
    clock.advance(0.031)
    await awake.tick()
    awake.check()
    assert looks == 1
    awake.end()
    clock.advance(100.0)
    awake.check()
    assert looks == 1


async def test_a_store_whose_thread_is_stuck_is_waited_for_once(tmp_path: Path) -> None:
    """And not again, before it has answered."""
    store, stuck = SqliteStore(tmp_path / "x.db"), threading.Event()
    try:
        first = fresh("i", "s", 500_000)
        await store.commit(0, first, audit(shift(0), first, first, HUMAN, 1.0))
        assert store.glance(5.0) == first
        store._worker.post(stuck.wait)
        began = time.monotonic()
        assert store.glance(0.05) is None
        assert 0.05 <= time.monotonic() - began < 2.0
        for _ in range(10):
            assert store.glance(60.0) is None
        assert time.monotonic() - began < 10.0
        stuck.set()
        assert await store.load() == first
        assert store.glance(5.0) == first
    finally:
        stuck.set()
        await store.aclose()
    with pytest.raises(StoreUnreachable, match="closed"):
        store.glance(5.0)
