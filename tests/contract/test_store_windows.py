"""What every store must do, whichever it is (`stores.STORES`): the windows' rows."""

import asyncio
import random
from collections.abc import Iterable, Mapping

import pytest
import stores
from stores import ManualClock

from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.ports import StateStore
from memos_llm.core.windows import (
    COARSE_S,
    FINE_S,
    KEEP_COARSE_S,
    KEEP_FINE_S,
    Counts,
    Merged,
    WindowDelta,
    WindowKey,
    WindowRow,
)
from memos_llm.store import MemoryStore

NOW = 1_700_000_070  # in the middle of a minute

clock, store = stores.clock, stores.store  # where pytest finds its fixtures
MINUTE = NOW // 60 * 60

KEY = WindowKey(scope="*", epoch=3, provider="vllm", model="qwen3:8b", component="synthesis")
OTHER = WindowKey(scope="analysis", epoch=1, provider="ollama", model="qwen3:8b", component="analysis")

Place = tuple[WindowKey, int, int]


@pytest.fixture(autouse=True)
def at_that_time(clock: ManualClock) -> None:
    clock.now = NOW + 0.25


def delta(start: int = NOW, key: WindowKey = KEY, **counts: int) -> WindowDelta:
    return WindowDelta(key=key, start=start, counts=counts or {"n": 1})


def by_place(rows: Iterable[WindowRow]) -> dict[Place, Counts]:
    """Each row once; a count of 0 is as good as none."""
    found = [(row.key, row.width_s, row.start) for row in rows]
    assert len(found) == len(set(found))
    return {
        (row.key, row.width_s, row.start): {field: n for field, n in row.counts.items() if n}
        for row in rows
        if any(row.counts.values())
    }


class Reader:
    """What a process knows that keeps what it is told."""

    def __init__(self) -> None:
        self.cursor = 0
        self.rows: dict[Place, WindowRow] = {}

    def learn(self, merged: Merged) -> None:
        if merged.whole:
            self.rows = {}
        self.rows |= {(row.key, row.width_s, row.start): row for row in merged.rows}
        self.cursor = merged.cursor

    @property
    def known(self) -> Mapping[Place, Counts]:
        return by_place(self.rows.values())


async def test_a_store_without_rows_has_none_to_tell(store: StateStore, clock: ManualClock) -> None:
    found = await store.merge(())
    assert (found.rows, found.whole, found.at) == ((), True, clock.now)
    assert (await store.merge((), found.cursor)).rows == ()


async def test_a_delta_is_added_to_its_second_and_to_its_minute(store: StateStore) -> None:
    found = await store.merge((delta(NOW - 1, n=2, k=1), delta(NOW, n=3), delta(NOW - 60, OTHER, e=1)))
    assert by_place(found.rows) == {
        (KEY, FINE_S, NOW - 1): {"n": 2, "k": 1},
        (KEY, FINE_S, NOW): {"n": 3},
        (KEY, COARSE_S, MINUTE): {"n": 5, "k": 1},
        (OTHER, FINE_S, NOW - 60): {"e": 1},
        (OTHER, COARSE_S, MINUTE - 60): {"e": 1},
    }


async def test_rows_are_told_as_they_are_and_not_what_was_added(store: StateStore) -> None:
    before = await store.merge((delta(n=2, k=1),))
    after = await store.merge((delta(n=1),), before.cursor)
    assert by_place(after.rows) == {(KEY, FINE_S, NOW): {"n": 3, "k": 1}, (KEY, COARSE_S, MINUTE): {"n": 3, "k": 1}}
    assert not after.whole


async def test_what_was_added_can_be_taken_back(store: StateStore) -> None:
    cursor = (await store.merge((delta(n=2, k=1),))).cursor
    less = await store.merge((delta(n=-1, k=-1),), cursor)
    assert by_place(less.rows)[KEY, FINE_S, NOW] == {"n": 1}
    nothing = await store.merge((delta(n=-1),), less.cursor)
    assert {(row.width_s, row.counts.get("n", 0)) for row in nothing.rows} == {(FINE_S, 0), (COARSE_S, 0)}
    early = await store.merge((delta(NOW - 5, n=-2),), nothing.cursor)  # its start comes with another process's flush
    assert by_place(early.rows)[KEY, FINE_S, NOW - 5] == {"n": -2}


async def test_only_what_changed_since_the_cursor_is_told(store: StateStore) -> None:
    reader = Reader()
    reader.learn(await store.merge((delta(), delta(NOW - 1))))
    await store.merge((delta(NOW - 1),))
    await store.merge((delta(NOW - 120, OTHER),))
    news = await store.merge((), reader.cursor)
    assert set(by_place(news.rows)) == {
        (KEY, FINE_S, NOW - 1),
        (KEY, COARSE_S, MINUTE),
        (OTHER, FINE_S, NOW - 120),
        (OTHER, COARSE_S, MINUTE - 120),
    }
    assert not news.whole
    again = await store.merge((), news.cursor)
    assert (again.rows, again.whole) == ((), False)


async def test_a_cursor_of_no_or_another_store_is_told_all(store: StateStore) -> None:
    other = MemoryStore()
    foreign = (await other.merge((delta(),))).cursor
    mine = (await store.merge((delta(), delta(NOW - 1)))).cursor
    for cursor in (0, foreign, mine + 12_345_678, 7):
        found = await store.merge((), cursor)
        assert (len(found.rows), found.whole) == (3, True)


async def test_what_many_writers_add_at_once_adds_up(store: StateStore) -> None:
    writes = [(delta(n=1, k=n % 2), delta(NOW - 1, OTHER, e=n)) for n in range(50)]
    await asyncio.gather(*(store.merge(write) for write in writes))
    assert by_place((await store.merge(())).rows) == {
        (KEY, FINE_S, NOW): {"n": 50, "k": 25},
        (KEY, COARSE_S, MINUTE): {"n": 50, "k": 25},
        (OTHER, FINE_S, NOW - 1): {"e": 1225},
        (OTHER, COARSE_S, MINUTE): {"e": 1225},
    }


async def test_whoever_reads_when_knows_in_the_end_what_a_naive_recount_finds(store: StateStore) -> None:
    rng = random.Random(6)
    readers, naive = [Reader() for _ in range(3)], dict[Place, dict[str, int]]()
    for _ in range(150):
        deltas = [some(rng) for _ in range(rng.randrange(4))]
        reader = rng.choice(readers)
        reader.learn(await store.merge(deltas, reader.cursor))
        for one in deltas:
            for place in ((one.key, FINE_S, one.start), (one.key, COARSE_S, one.start // 60 * 60)):
                row = naive.setdefault(place, {})
                for field, n in one.counts.items():
                    row[field] = row.get(field, 0) + n
    recount = {place: {f: n for f, n in row.items() if n} for place, row in naive.items() if any(row.values())}
    for reader in readers:
        reader.learn(await store.merge((), reader.cursor))
        assert reader.known == recount


def some(rng: random.Random) -> WindowDelta:
    counts = {field: rng.randint(-2, 3) for field in rng.sample(("n", "e", "k", "k.timeout", "h.12"), 2)}
    return WindowDelta(key=rng.choice((KEY, OTHER)), start=NOW - rng.randrange(90), counts=counts)


async def test_seconds_and_minutes_that_are_too_old_are_dropped(store: StateStore, clock: ManualClock) -> None:
    cursor = (await store.merge((delta(),))).cursor
    for later, kept in ((KEEP_FINE_S - 1, 2), (KEEP_FINE_S + 2, 1), (KEEP_COARSE_S - 61, 1), (KEEP_COARSE_S + 1, 0)):
        clock.now = NOW + later
        for found in (await store.merge(()), await store.merge((delta(NOW + later, OTHER),)), await store.merge(())):
            assert len([row for row in found.rows if row.key == KEY]) == kept
    assert not [row for row in (await store.merge((), cursor)).rows if row.key == KEY]


async def test_what_comes_late_does_not_begin_a_dropped_row_anew(store: StateStore, clock: ManualClock) -> None:
    await store.merge((delta(n=5),))
    clock.now = NOW + KEEP_FINE_S + 2.0
    found = await store.merge((delta(k=1), delta(NOW - KEEP_COARSE_S, OTHER)))
    assert by_place(found.rows) == {(KEY, COARSE_S, MINUTE): {"n": 5, "k": 1}}
    clock.now = NOW  # as another host sees it
    assert (KEY, FINE_S, NOW) not in {
        place for place, row in by_place((await store.merge(())).rows).items() if "k" in row
    }


async def test_nothing_to_add_is_only_a_look(store: StateStore) -> None:
    cursor = (await store.merge((delta(),))).cursor
    for nothing in ((), (WindowDelta(key=KEY, start=NOW, counts={}),)):
        found = await store.merge(nothing, cursor)
        assert (found.rows, found.whole, found.cursor) == ((), False, cursor)


async def test_a_closed_store_takes_no_rows(store: StateStore) -> None:
    await store.aclose()
    with pytest.raises(StoreUnreachable, match="closed"):
        await store.merge((delta(),))
