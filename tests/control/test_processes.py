"""Real processes on one SQLite store: how fast a shift arrives, and what a kill -9 can lose (nothing)."""

import asyncio
import json
import random
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from memos_llm.control import Live
from memos_llm.core.commands import Actor, Shift
from memos_llm.core.events import Bus
from memos_llm.core.flags import PPM, Flags, fresh
from memos_llm.store import SqliteStore

CHILD = Path(__file__).with_name("live_child.py")
HUMAN = Actor("tester")


@asynccontextmanager
async def child(mode: str, path: Path, name: str) -> AsyncIterator[Process]:
    command = (sys.executable, "-W", "error", str(CHILD), mode, f"sqlite:///{path}", name)
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        told: dict[str, Any] = json.loads(await process.stdout.readline())
    return told


async def arrival(process: Process, revision: int) -> float:
    while (told := await line(process))["revision"] < revision:
        pass
    assert told["revision"] == revision  # each once, none skipped by a slow reader here
    return float(told["at"])


@asynccontextmanager
async def controller(path: Path) -> AsyncIterator[Live]:
    store = SqliteStore(path)
    live = Live(
        store,
        Bus(),
        instance_id="controller",
        kind="cli",
        ephemeral=True,
        owns_store=True,
        seed=lambda: fresh("i", "s"),
    )
    await live.start()
    yield live
    await live.aclose()


async def test_a_shift_is_live_in_four_processes_within_a_second(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.db"  # all of them make it at once
    async with AsyncExitStack() as stack:
        names = [f"p{n}" for n in range(4)]
        followers = [await stack.enter_async_context(child("follow", path, name)) for name in names]
        live = await stack.enter_async_context(controller(path))
        for follower in followers:
            await arrival(follower, 1)
        took: list[float] = []
        for share in (100_000, 200_000, 300_000):  # best of three: the machine may be busy
            started = time.time()
            flags = await live.submit(Shift(provider="vllm", share_ppm=share), HUMAN)
            assert await live.confirm(flags.revision, 10.0) == (tuple(names), ())
            took.append(max([await arrival(follower, flags.revision) for follower in followers]) - started)
        assert min(took) < 1.0, took
        for follower in followers:
            assert follower.stdin is not None
            follower.stdin.close()
            assert await follower.wait() == 0


async def test_kill_9_during_shifts_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with controller(path):
        pass
    acknowledged: dict[int, int] = {1: 0}
    for kill in range(8):
        async with child("hammer", path, f"a{kill}") as a, child("hammer", path, f"b{kill}") as b:
            for process in (a, b):
                told = await line(process)
                acknowledged[told["revision"]] = told["share_ppm"]
            await asyncio.sleep(random.uniform(0.0, 0.1))  # any moment will do: that is the point
            a.kill()
            await asyncio.sleep(random.uniform(0.0, 0.02))
            b.kill()
            for process in (a, b):
                acknowledged |= await rest(process)
        await check(path, acknowledged)


async def rest(process: Process) -> dict[int, int]:
    """What it had acknowledged before it died; the last line may be cut off."""
    assert process.stdout is not None
    lines = (await process.stdout.read()).splitlines(keepends=True)
    told = [json.loads(text) for text in lines if text.endswith(b"\n")]
    return {entry["revision"]: entry["share_ppm"] for entry in told}


async def check(path: Path, acknowledged: dict[int, int]) -> None:
    """Flags and history agree, and hold everything that anybody was told was done."""
    store = SqliteStore(path)
    flags = await store.load()
    history = await store.history(1_000_000)
    await store.aclose()
    assert flags is not None
    agree(flags, [(entry.revision, round(entry.share_after * PPM)) for entry in history])
    known = {entry.revision: round(entry.share_after * PPM) for entry in history}
    assert acknowledged.items() <= known.items()


def agree(flags: Flags, history: Sequence[tuple[int, int]]) -> None:
    assert [revision for revision, _ in history] == list(range(flags.revision, 0, -1))
    assert history[0][1] == flags.share_ppm("x")
