"""What only the SQLite store can get wrong with windows, evidence, claims: processes, locks, another life of a file."""

import asyncio
import os
import shutil
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from windows_child import KEY

from memos_llm.core.commands import Actor, Incident, Rollback, Shift, audit, incident
from memos_llm.core.errors import Refused, StoreUnreachable
from memos_llm.core.flags import SCHEMA, fresh
from memos_llm.core.ports import Instance, StateStore
from memos_llm.core.verdicts import Evidence
from memos_llm.core.windows import WindowDelta, WindowKey
from memos_llm.store import MemoryStore, SqliteStore
from memos_llm.store.rows import CROWDED, MAX_KEYS

CHILD = Path(__file__).with_name("windows_child.py")
NOW = 1_700_000_070
GUARD = Actor("gateway-1", "guard")
SEEN = Evidence(at=1.0, by="p", scope="*", trigger="error_rate", rule="r", limit=0.05, n=9, k=9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "x.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    made = opened(path)
    yield made
    await made.aclose()


@pytest.fixture
def outside(path: Path, store: SqliteStore) -> Iterator[sqlite3.Connection]:
    """Another user of the same file."""
    path.parent.mkdir(exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


def opened(path: Path) -> SqliteStore:
    return SqliteStore(path, busy_s=0.2, clock=lambda: NOW + 0.5)


def delta(n: int = 1, start: int = NOW) -> WindowDelta:
    return WindowDelta(key=KEY, start=start, counts={"n": n})


async def total(store: StateStore) -> dict[int, int]:
    """Requests started, by width."""
    sums: dict[int, int] = {}
    for row in (await store.merge(())).rows:
        sums[row.width_s] = sums.get(row.width_s, 0) + row.counts.get("n", 0)
    return sums


async def roll_back(store: SqliteStore, name: str) -> Incident:
    flags = fresh("i", "s", 300_000)
    await store.commit(0, flags, audit(Shift(provider="vllm", share_ppm=0), flags, flags, GUARD, 1.0))
    command = Rollback(provider="vllm", incident=name)
    after = command.apply(flags, 2.0)
    record = incident(command, flags, after, GUARD, 2.0)
    assert record is not None
    await store.commit(1, after, audit(command, flags, after, GUARD, 2.0), record)
    return record


def drop(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


async def test_what_processes_and_threads_add_at_once_adds_up(path: Path) -> None:
    command = (sys.executable, str(CHILD), str(path), str(NOW), "40")
    children = [await asyncio.create_subprocess_exec(*command) for _ in range(3)]

    async def adds(name: int) -> None:
        mine = SqliteStore(path, clock=lambda: NOW + 0.5)
        for _ in range(40):
            await mine.merge((delta(1), delta(1, NOW - name - 1)))
        await mine.aclose()

    threads = [threading.Thread(target=lambda name=name: asyncio.run(adds(name))) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert [await child.wait() for child in children] == [0, 0, 0]
    store = opened(path)
    assert await total(store) == {1: 3 * 40 * 2 + 3 * 40 * 2, 60: 3 * 40 * 2 + 3 * 40 * 2}
    second = next(row for row in (await store.merge(())).rows if (row.width_s, row.start) == (1, NOW))
    assert second.counts == {"n": 3 * 40 * 2 + 3 * 40, "e": 3 * 40}
    await store.aclose()


async def test_a_merge_that_fails_half_way_adds_nothing(store: SqliteStore, outside: sqlite3.Connection) -> None:
    cursor = (await store.merge((delta(),))).cursor
    outside.execute("CREATE TRIGGER bad BEFORE INSERT ON window_merges BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(StoreUnreachable, match="SQLITE_CONSTRAINT"):
        await store.merge((delta(), delta(start=NOW - 1)), cursor)
    outside.execute("DROP TRIGGER bad")
    assert (await store.merge((), cursor)).rows == ()
    assert await total(store) == {1: 1, 60: 1}


async def test_looking_waits_for_no_writer_and_adding_says_who_is_in_the_way(
    store: SqliteStore, outside: sqlite3.Connection
) -> None:
    cursor = (await store.merge((delta(),))).cursor
    outside.execute("BEGIN IMMEDIATE")
    assert (await store.merge((), cursor)).rows == ()
    assert len((await store.merge(())).rows) == 2
    assert await store.claim("p", 30.0) is None
    with pytest.raises(StoreUnreachable, match="another process holds its lock"):
        await store.merge((delta(),), cursor)
    outside.execute("ROLLBACK")
    assert {row.counts["n"] for row in (await store.merge((delta(),), cursor)).rows} == {2}


async def test_a_deleted_store_tells_all_that_the_new_one_has(path: Path, store: SqliteStore) -> None:
    cursor = (await store.merge((delta(5),))).cursor
    drop(path)
    found = await store.merge((), cursor)
    assert (found.rows, found.whole) == ((), True)
    found = await store.merge((delta(1),), cursor)
    assert found.whole
    assert {row.counts["n"] for row in found.rows} == {1}


async def test_an_older_copy_tells_all_even_if_it_has_been_added_to_since(path: Path, tmp_path: Path) -> None:
    store, other = opened(path), opened(path)
    older = (await store.merge((delta(5),))).cursor
    await store.aclose()
    shutil.copy(path, tmp_path / "older.db")
    store = opened(path)
    cursor = (await store.merge((delta(5, NOW - 1),), older)).cursor
    os.replace(tmp_path / "older.db", path)
    drop(Path(f"{path}-wal"))
    for _ in range(3):
        await other.merge((delta(),))
    found = await store.merge((), cursor)
    assert found.whole
    assert {(row.start, row.counts["n"]) for row in found.rows if row.width_s == 1} == {(NOW, 8)}
    assert not (await store.merge((), older)).whole  # who had seen no more than the copy has lost nothing
    await store.aclose()
    await other.aclose()


async def test_an_emptied_table_tells_all(store: SqliteStore, outside: sqlite3.Connection) -> None:
    cursor = (await store.merge((delta(),))).cursor
    outside.executescript("DELETE FROM window_rows; DELETE FROM window_merges; DELETE FROM window_keys")
    found = await store.merge((), cursor)
    assert (found.rows, found.whole) == ((), True)


async def test_a_newer_schema_is_looked_at_and_never_added_to(store: SqliteStore, outside: sqlite3.Connection) -> None:
    record = await roll_back(store, "a")
    cursor = (await store.merge((delta(),))).cursor
    outside.execute("UPDATE flags SET schema = ?", (SCHEMA + 1,))
    with pytest.raises(Refused, match="upgrade"):
        await store.merge((delta(),), cursor)
    with pytest.raises(Refused, match="upgrade"):
        await store.note("a", SEEN)
    assert (await store.merge((), cursor)).rows == ()
    assert await total(store) == {1: 1, 60: 1}
    assert await store.claim("p", 30.0) is None  # a newer process tells of it
    await store.told("a")
    assert list(await store.incidents(10)) == [record]
    outside.execute("UPDATE flags SET schema = ?", (SCHEMA,))
    assert await store.claim("p", 30.0) == record


@pytest.mark.parametrize("counts", [b"{", b'{"\xff":1}', b'{"n":' + b"[" * 100_000])
async def test_damaged_rows_are_named_and_nothing_is_added(
    store: SqliteStore, outside: sqlite3.Connection, counts: bytes
) -> None:
    await store.merge((delta(),))
    outside.execute("UPDATE window_rows SET counts = ? WHERE width = 60", (counts,))
    with pytest.raises(StoreUnreachable, match=r"windows in the store are damaged.*backup"):
        await store.merge((delta(),))
    (fine,) = outside.execute("SELECT counts FROM window_rows WHERE width = 1").fetchone()
    assert fine == b'{"n":1}'


async def test_evidence_and_claims_survive_a_restart(path: Path, store: SqliteStore) -> None:
    await roll_back(store, "a")
    await store.note("a", SEEN)
    await store.claim("p", 30.0)
    await store.aclose()
    again = opened(path)
    assert [record.evidence for record in await again.incidents(1)] == [(SEEN,)]
    assert await again.claim("q", 30.0) is None
    await again.aclose()


async def test_of_several_stores_that_claim_at_once_one_gets_it(path: Path) -> None:
    several = [SqliteStore(path) for _ in range(4)]
    record = await roll_back(several[0], "a")
    claims = await asyncio.gather(*(one.claim(f"p{n}", 30.0) for n, one in enumerate(several * 3)))
    assert [claimed for claimed in claims if claimed is not None] == [record]
    for one in several:
        await one.aclose()


LATER = ("window_keys", "window_rows", "window_merges", "evidence", "untold", "instances_dead")


async def test_a_file_of_before_gets_what_it_lacks_and_nobody_is_told_of_its_incidents(
    path: Path, store: SqliteStore, outside: sqlite3.Connection
) -> None:
    old = await roll_back(store, "old")
    await store.aclose()
    for table in LATER:
        outside.execute(f"DROP TABLE {table}")
    several = [SqliteStore(path, clock=lambda: NOW + 0.5) for _ in range(3)]
    await asyncio.gather(*(one.merge((delta(),)) for one in several))
    assert await total(several[0]) == {1: 3, 60: 3}
    assert list(await several[0].incidents(10)) == [old]
    assert await several[1].claim("p", 30.0) is None
    await several[2].note("old", SEEN)
    assert [record.evidence for record in await several[0].incidents(10)] == [(SEEN,)]
    for one in several:
        await one.aclose()


async def test_programs_of_before_go_on_beating_in_the_same_file(
    store: SqliteStore, outside: sqlite3.Connection
) -> None:
    await store.heartbeat(Instance(id="new", kind="gateway", revision=1, at=0.0, dead=("http://a:1",)))
    outside.execute("INSERT OR REPLACE INTO instances VALUES ('old', 'gateway', 1, ?, 0)", (NOW,))
    assert {one.id: one.dead for one in await store.instances()} == {"new": ("http://a:1",), "old": None}


def key(name: str) -> WindowKey:
    return WindowKey(scope="*", epoch=1, provider="vllm", model=name, component="c")


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_of_too_many_keys_those_go_that_were_added_to_longest_ago(kind: str, path: Path) -> None:
    store = opened(path) if kind == "sqlite" else MemoryStore(clock=lambda: NOW + 0.5)
    await store.merge((delta(),))
    names = [f"m{n}" for n in range(MAX_KEYS + 700)]
    for at in range(0, len(names), 300):
        deltas = (WindowDelta(key=key(name), start=NOW, counts={"n": 1}) for name in names[at : at + 300])
        await store.merge((delta(), *deltas))
        assert len({row.key for row in (await store.merge(())).rows}) <= CROWDED
    left = {row.key for row in (await store.merge(())).rows}
    assert KEY in left
    assert {key(name) for name in names[-600:]} <= left
    assert key(names[0]) not in left
    await store.aclose()
