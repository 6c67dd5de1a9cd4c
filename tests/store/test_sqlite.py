"""What only the SQLite store can get wrong: files, locks, damage, other processes, forks."""

import asyncio
import errno
import os
import sqlite3
import stat
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from memos_llm.core.commands import Actor, Shift, audit
from memos_llm.core.errors import ConfigError, Refused, StoreUnreachable
from memos_llm.core.flags import SCHEMA, Flags, fresh
from memos_llm.core.inventory import Line, Recorded, Sighting
from memos_llm.core.ports import Instance
from memos_llm.store import SqliteStore, files
from memos_llm.store.database import FIXES, unreachable

HUMAN = Actor("tester")
DAMAGED = [b"{", b'{"salt":"\xff"}', b'{"x":' + b"[" * 100_000]
"""No JSON, no text, and nested too deep."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "x.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(path, busy_s=0.2)
    yield made
    await made.aclose()


@pytest.fixture
def outside(path: Path, store: SqliteStore) -> Iterator[sqlite3.Connection]:
    """Another user of the same file."""
    path.parent.mkdir(exist_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


async def put(store: SqliteStore, share_ppm: int) -> Flags:
    before = await store.load()
    command = Shift(provider="vllm", share_ppm=share_ppm)
    after = fresh("i", "s", share_ppm) if before is None else command.apply(before, 1.0)
    await store.commit(after.revision - 1, after, audit(command, before or after, after, HUMAN, 1.0))
    return after


def remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


async def test_everything_is_there_after_reopening(path: Path, store: SqliteStore) -> None:
    flags = await put(store, 300_000)
    await store.aclose()
    again = SqliteStore(path)
    assert await again.load() == flags
    assert len(await again.history(10)) == 1
    await again.aclose()


async def test_files_are_the_owners_alone(path: Path, store: SqliteStore) -> None:
    await put(store, 0)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_another_owners_file_is_refused(path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(store, 0)
    await store.aclose()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    again = SqliteStore(path)
    with pytest.raises(StoreUnreachable, match=rf"belongs to user id {os.getuid()} .*chown"):
        await again.load()
    await again.aclose()


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_network_file_system_is_refused(kind: str, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path}/far\\040away {kind} rw 0 0\n")
    with pytest.raises(ConfigError, match=f"network file system \\({kind}\\)"):
        SqliteStore(tmp_path / "far away" / "x.db", mounts=mounts)
    SqliteStore(tmp_path / "far away from it" / "x.db", mounts=mounts)
    SqliteStore(tmp_path / "x.db", mounts=tmp_path / "no-such-table")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/x.db", "nfs"),
        ("/data/local/x.db", "xfs"),
        ("/database/x.db", "ext4"),
        ("/over/x.db", "tmpfs"),
        ("x", ""),
    ],
)
def test_the_longest_mount_point_speaks_and_the_later_hides_the_earlier(path: str, kind: str) -> None:
    table = "a / ext4\nb /data nfs\nc /data/local xfs\nd /over nfs\ne /over tmpfs\nbroken\n"
    assert files.file_system(path, table) == kind


async def test_a_damaged_file_is_named_and_a_restored_one_works_without_a_restart(
    path: Path, store: SqliteStore
) -> None:
    flags = await put(store, 300_000)
    await store.aclose()
    good = path.read_bytes()  # noqa: ASYNC240 - a test may wait for its own disk
    path.write_bytes(b"no database at all " * 500)  # noqa: ASYNC240
    again = SqliteStore(path)
    for _ in range(2):
        with pytest.raises(StoreUnreachable, match=r"damaged.*restore a backup") as caught:
            await again.load()
        assert str(path) in caught.value.message
    path.write_bytes(good)  # noqa: ASYNC240
    assert await again.load() == flags
    await again.aclose()


@pytest.mark.parametrize("document", DAMAGED)
async def test_damaged_flags_are_named(store: SqliteStore, outside: sqlite3.Connection, document: bytes) -> None:
    await put(store, 0)
    outside.execute("UPDATE flags SET document = ?", (document,))
    with pytest.raises(StoreUnreachable, match="flags in the store are damaged"):
        await store.load()


@pytest.mark.parametrize("document", DAMAGED)
async def test_a_damaged_history_is_named(store: SqliteStore, outside: sqlite3.Connection, document: bytes) -> None:
    await put(store, 0)
    outside.execute("UPDATE history SET document = ?", (document,))
    with pytest.raises(StoreUnreachable, match="history is damaged"):
        await store.history(10)


async def test_another_programs_database_is_left_alone(store: SqliteStore, outside: sqlite3.Connection) -> None:
    outside.execute("CREATE TABLE theirs (x)")
    for _ in range(2):
        with pytest.raises(StoreUnreachable, match="another program's database"):
            await store.load()
    assert outside.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


async def test_a_locked_store_reads_says_who_is_in_the_way_and_works_again(
    store: SqliteStore, outside: sqlite3.Connection
) -> None:
    before = await put(store, 0)
    outside.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnreachable, match=r"another process holds its lock.*SQLITE_BUSY"):
        await put(store, 100_000)
    assert await store.load() == before
    outside.execute("ROLLBACK")
    assert (await put(store, 100_000)).revision == 2


async def test_a_commit_that_fails_half_way_leaves_nothing(store: SqliteStore, outside: sqlite3.Connection) -> None:
    before = await put(store, 0)
    outside.execute("CREATE TRIGGER bad BEFORE INSERT ON history BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(StoreUnreachable, match="SQLITE_CONSTRAINT"):
        await put(store, 100_000)
    assert await store.load() == before
    assert len(await store.history(10)) == 1
    outside.execute("DROP TRIGGER bad")
    assert (await put(store, 100_000)).revision == 2


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "full.db", isolation_level=None)
    connection.execute("CREATE TABLE t (x)")
    connection.execute("PRAGMA max_page_count = 2")
    with pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert "disk is full" in unreachable(caught.value, tmp_path).message
    connection.close()


def test_a_read_only_file_is_named(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "ro.db").close()
    connection = sqlite3.connect(f"file:{tmp_path}/ro.db?mode=ro", uri=True)
    with pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("CREATE TABLE t (x)")
    assert "owner and mode" in unreachable(caught.value, tmp_path).message
    connection.close()


@pytest.mark.parametrize("code", sorted(FIXES))
def test_every_mapped_code_also_maps_with_its_extension(code: int) -> None:
    error = sqlite3.OperationalError("secret words of SQLite")
    error.sqlite_errorcode, error.sqlite_errorname = code | 3 << 8, "SQLITE_X"
    message = unreachable(error, Path("/a/x.db")).message
    assert FIXES[code] in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("number", "text"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (0, "refuses")]
)
def test_errors_of_the_system_are_named(number: int, text: str) -> None:
    assert text in unreachable(OSError(number, "words"), Path("/a/x.db")).message


async def test_a_directory_that_cannot_be_made_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = SqliteStore(tmp_path / "file" / "x.db")
    with pytest.raises(StoreUnreachable, match="cannot be used"):
        await store.load()
    await store.aclose()


async def test_a_newer_schema_is_read_and_never_written(store: SqliteStore, outside: sqlite3.Connection) -> None:
    flags = replace(await put(store, 300_000), schema=SCHEMA + 1)
    document = msgspec.json.encode({**msgspec.to_builtins(flags), "unknown": 1})
    outside.execute("UPDATE flags SET schema = ?, document = ?", (SCHEMA + 1, document))
    assert await store.load() == flags
    with pytest.raises(Refused, match=f"schema {SCHEMA + 1}, this version knows {SCHEMA}.*upgrade"):
        await put(store, 0)
    await store.heartbeat(Instance(id="a", kind="gateway", revision=1, at=0.0))
    assert list(await store.instances()) == []
    assert await store.load() == flags


async def test_a_newer_schema_that_cannot_be_read_says_so(
    path: Path, store: SqliteStore, outside: sqlite3.Connection
) -> None:
    await put(store, 0)
    outside.execute("UPDATE flags SET schema = ?, document = ?", (SCHEMA + 1, b'{"flags": 1}'))
    with pytest.raises(StoreUnreachable, match="cannot be read: a newer memos_llm"):
        await store.load()
    await store.aclose()
    outside.executescript(f"ALTER TABLE flags RENAME TO flags2; PRAGMA user_version = {SCHEMA + 1}")
    again = SqliteStore(path)
    with pytest.raises(StoreUnreachable, match="cannot be read: a newer memos_llm"):
        await again.load()
    await again.aclose()


async def test_an_own_commit_is_heard_without_a_look_at_the_file(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "unpolled.db", poll_s=3600.0)
    await put(store, 0)
    watch = store.watch()
    await store.load()  # one thing after the other: it watches by now
    flags = await put(store, 100_000)
    async with asyncio.timeout(5):
        assert await anext(watch) == flags
    await store.aclose()


async def test_a_change_by_another_process_is_heard_within_a_second(path: Path, store: SqliteStore) -> None:
    other = SqliteStore(path)
    await put(store, 0)
    watch = other.watch()
    assert await other.load() == await store.load()
    took = []
    for share in (100_000, 200_000, 300_000):  # best of three: the machine may be busy
        flags = await put(store, share)
        started = time.monotonic()
        async with asyncio.timeout(5):
            assert await anext(watch) == flags
        took.append(time.monotonic() - started)
    assert min(took) < 1.0
    await other.aclose()


async def test_heartbeats_of_others_are_no_news(path: Path, store: SqliteStore) -> None:
    other = SqliteStore(path)
    await put(store, 0)
    watch = other.watch()
    for _ in range(5):
        await store.heartbeat(Instance(id="a", kind="gateway", revision=1, at=0.0))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await anext(watch)
    await other.aclose()


async def test_a_watch_of_a_store_that_fails_raises_and_a_new_one_works(
    path: Path, store: SqliteStore, outside: sqlite3.Connection
) -> None:
    await put(store, 0)
    (good,) = outside.execute("SELECT document FROM flags").fetchone()
    watch = store.watch()
    await store.load()
    outside.execute("UPDATE flags SET document = x'7B00'")
    with pytest.raises(StoreUnreachable):
        async with asyncio.timeout(5):
            await anext(watch)
    outside.execute("UPDATE flags SET document = ?", (good,))
    watch = store.watch()
    flags = await put(store, 100_000)
    async with asyncio.timeout(5):
        assert await anext(watch) == flags


async def test_a_store_that_is_replaced_is_noticed(path: Path, store: SqliteStore, tmp_path: Path) -> None:
    await put(store, 0)
    other = SqliteStore(tmp_path / "other.db")
    flags = await put(other, 400_000)
    await other.aclose()
    watch = store.watch()
    await store.load()
    remove(path)
    os.replace(tmp_path / "other.db", path)
    assert await store.load() == flags
    async with asyncio.timeout(5):
        assert await anext(watch) == flags


async def test_a_store_that_is_deleted_ends_the_watch_and_is_new_again(path: Path, store: SqliteStore) -> None:
    await put(store, 0)
    watch = store.watch()
    await store.load()
    remove(path)
    with pytest.raises(StoreUnreachable, match="vanished"):
        async with asyncio.timeout(5):
            await anext(watch)
    assert await store.load() is None


async def test_a_watcher_that_is_dropped_costs_nothing(store: SqliteStore) -> None:
    await put(store, 0)
    watch = store.watch()
    await store.load()
    assert store._watchers.wants_tick()
    del watch
    await store.load()
    assert not store._watchers.wants_tick()


async def test_a_caller_that_is_cancelled_does_not_harm_the_store(store: SqliteStore) -> None:
    await put(store, 0)
    task = asyncio.create_task(store.history(10))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await put(store, 100_000)).revision == 2


async def test_the_thread_ends_with_the_store(path: Path) -> None:
    store = SqliteStore(path)
    await store.load()
    mine = [thread for thread in threading.enumerate() if "store x.db" in thread.name]
    assert len(mine) == 1
    await store.aclose()
    assert not mine[0].is_alive()
    assert not os.path.exists(f"{path}-wal")  # noqa: ASYNC240 - the last to leave puts the log back into the file


def test_it_works_on_several_event_loops_one_after_the_other(path: Path) -> None:
    store = SqliteStore(path)
    asyncio.run(put_and_leave(store, 0))
    asyncio.run(put_and_leave(store, 100_000))
    assert asyncio.run(store.load()) is not None
    asyncio.run(store.aclose())


async def put_and_leave(store: SqliteStore, share_ppm: int) -> None:
    await put(store, share_ppm)


async def test_after_an_error_the_next_call_starts_with_a_new_connection(
    store: SqliteStore, outside: sqlite3.Connection
) -> None:
    await put(store, 0)
    before = store._database._connection
    assert before is not None
    outside.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnreachable):
        await put(store, 100_000)
    assert store._database._connection is None
    outside.execute("ROLLBACK")
    await store.load()
    assert store._database._connection not in (None, before)


def open_files(path: Path) -> list[str]:
    """What this process holds open of a store (Linux)."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return [name for name in (os.readlink(link) for link in links if os.path.islink(link)) if str(path) in name]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux's /proc")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_no_connection_is_carried_across_a_fork(path: Path) -> None:
    store = SqliteStore(path)
    asyncio.run(put_and_leave(store, 0))
    assert open_files(path)
    child = os.fork()
    if child == 0:
        os._exit(len(open_files(path)))
    _, status = os.waitpid(child, 0)
    assert status == 0
    asyncio.run(store.aclose())
    assert not open_files(path)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_parent_and_child_of_a_fork_both_go_on(path: Path) -> None:
    store = SqliteStore(path)
    asyncio.run(put_and_leave(store, 0))
    child = os.fork()
    if child == 0:
        done = 1
        try:
            asyncio.run(put_and_leave(store, 100_000))
            asyncio.run(store.aclose())
            done = 0
        finally:
            os._exit(done)
    _, status = os.waitpid(child, 0)
    assert status == 0
    flags = asyncio.run(store.load())
    assert flags is not None
    assert flags.revision == 2
    asyncio.run(put_and_leave(store, 200_000))
    assert len(asyncio.run(store.history(10))) == 3
    asyncio.run(store.aclose())


def seen(n: int) -> Sighting:
    line = Line("synthesis", "qwen3:8b", "openai.chat", "", "team-a")
    return Sighting(day=20_000, line=line, what="request", provider="ollama", detail="split", n=n, first=1.0, last=2.0)


async def test_a_file_of_before_there_was_an_inventory_gets_one_and_keeps_what_it_has(
    path: Path, store: SqliteStore, outside: sqlite3.Connection
) -> None:
    flags = await put(store, 300_000)
    await store.aclose()
    outside.executescript("DROP TABLE inventory; DROP TABLE inventory_lines; DROP TABLE inventory_since")
    several = [SqliteStore(path) for _ in range(3)]
    await asyncio.gather(*(one.record((seen(1),)) for one in several))
    assert [one.n for one in (await several[0].recorded()).sightings] == []  # long past: dropped at once
    assert (await several[0].recorded()).since is not None
    assert await several[1].load() == flags
    for one in several:
        await one.aclose()


async def test_counts_of_several_processes_stores_add_up(path: Path) -> None:
    several = [SqliteStore(path, clock=lambda: 20_000 * 86_400.0) for _ in range(4)]
    await asyncio.gather(*(one.record((seen(n),)) for one in several for n in range(1, 11)))
    (found,) = (await several[0].recorded()).sightings
    assert found.n == 4 * 55
    for one in several:
        await one.aclose()


async def test_counts_are_not_written_into_a_newer_schema(store: SqliteStore, outside: sqlite3.Connection) -> None:
    await put(store, 0)
    outside.execute("UPDATE flags SET schema = ?", (SCHEMA + 1,))
    with pytest.raises(Refused, match="upgrade"):
        await store.record((seen(1),))
    assert await store.recorded() == Recorded(since=None, sightings=())


async def test_counts_that_fail_half_way_leave_nothing(store: SqliteStore, outside: sqlite3.Connection) -> None:
    await store.load()
    outside.execute("CREATE TRIGGER bad BEFORE INSERT ON inventory BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(StoreUnreachable, match="SQLITE_CONSTRAINT"):
        await store.record((seen(1),))
    assert await store.recorded() == Recorded(since=None, sightings=())
