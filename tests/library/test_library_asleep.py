"""A router whose event loop has stood still, as a notebook's does, decides by the flags of now."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from stack import ME, VLLM_MODEL, document, settings

from memos_llm import Router
from memos_llm.config import Settings
from memos_llm.core.commands import Rollback, Shift
from memos_llm.core.events import Bus
from memos_llm.core.flags import PPM
from memos_llm.core.ports import Instance
from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.library.calls import CallOptions
from memos_llm.store import path_of
from memos_llm.wiring import open_live

CALL: CallOptions = {"component": "synthesis", "model": "qwen3:8b"}


@pytest.fixture
async def config(tmp_path: Path) -> AsyncIterator[Settings]:
    async with (
        OllamaEmulator(port=0, models=["qwen3:8b"]) as ollama,
        VllmEmulator(port=0, models=[VLLM_MODEL]) as vllm,
    ):
        models = {"qwen3:8b": {"vllm": VLLM_MODEL}}
        yield settings(tmp_path, document(ollama.url, vllm.url, tmp_path, models=models))


async def answered_by(router: Router, count: int = 1) -> set[str]:
    answers = await asyncio.gather(*(router.generate("Why?", max_tokens=8, **CALL) for _ in range(count)))
    return {answer.provider for answer in answers}


async def roll_back(config: Settings) -> None:
    live = open_live(config, Bus(), kind="operator", ephemeral=True)
    await live.start()
    try:
        await live.submit(Rollback(provider="vllm", incident="inc-1"), ME)
    finally:
        await live.aclose()


@pytest.mark.parametrize("explained", [False, True])
async def test_what_was_rolled_back_meanwhile_is_not_asked_by_the_first_call(
    config: Settings, *, explained: bool
) -> None:
    async with Router.open(config, probe=False) as router:
        await router._runtime.live.submit(Shift(provider="vllm", share_ppm=PPM), ME)
        assert await answered_by(router) == {"vllm"}
        other = threading.Thread(target=lambda: asyncio.run(roll_back(config)))
        other.start()
        time.sleep(1.3)  # noqa: ASYNC251 - the point: nothing of this loop runs
        other.join()
        if explained:
            assert router.explain(**CALL).reason == "latched"
        assert await answered_by(router, 8) == {"ollama"}


async def test_a_locked_store_holds_no_call_up(config: Settings) -> None:
    path = path_of(config.store_url)
    assert path is not None
    async with Router.open(config, probe=False) as router:
        live = router._runtime.live
        await live.submit(Shift(provider="vllm", share_ppm=PPM), ME)
        with closing(sqlite3.connect(path, isolation_level=None)) as outside:
            outside.execute("BEGIN IMMEDIATE")
            waiting = asyncio.create_task(live.store.heartbeat(Instance(id="x", kind="test", revision=1, at=0.0)))
            await asyncio.sleep(0)  # its thread waits for the lock now, 5 s long
            time.sleep(1.0)  # noqa: ASYNC251 - the point: this loop stands still
            began = time.monotonic()
            assert router.explain(**CALL).arm == "candidate", "by the last known flags"
            assert time.monotonic() - began < 2.0
            assert await answered_by(router) == {"vllm"}
            assert not waiting.done()
            outside.execute("ROLLBACK")
        await waiting
