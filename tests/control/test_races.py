"""Eight real processes on one store, rolling back, shifting and re-arming at random; then all of it is read back."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from checker import check
from redis_server import redis_server

from memos_llm.store import open_store

CHILD = Path(__file__).with_name("race_child.py")
PROCESSES = 8


async def racer(url: str, number: int, seconds: float) -> dict[str, Any]:
    command = (sys.executable, "-W", "error", str(CHILD), url, f"p{number}", str(seconds), str(number))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    try:
        async with asyncio.timeout(seconds + 60):
            told, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(told)
    return found


async def race(url: str, seconds: float) -> None:
    racers: Sequence[dict[str, Any]] = await asyncio.gather(*(racer(url, n, seconds) for n in range(PROCESSES)))
    store = open_store(url)
    try:
        _, history, incidents = await check(store)
    finally:
        await store.aclose()
    assert not [error for one in racers for error in one["errors"]]
    done = sum((Counter(one["done"]) for one in racers), Counter[str]())
    assert {"cut", "roll back", "shift", "rearm"} <= set(done), done
    opened = [incident for one in racers for incident in one["opened"]]
    assert sorted(opened) == sorted(record.id for record in incidents)
    lines = Counter(line.command for line in history)
    unheard = done["unreachable"]  # of these the store may have carried out any
    assert lines["shift"] + lines["rearm"] <= done["shift"] + done["rearm"] + unheard, "none that was not asked for"
    assert lines["shift"] >= done["shift"], "each that was acknowledged"
    assert lines["rearm"] >= done["rearm"], "each that was acknowledged"


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'x.db'}"
        return
    with redis_server() as server:
        yield server.url()


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
async def test_everything_at_random_from_eight_processes(url: str, seconds: float) -> None:
    await race(url, seconds)
