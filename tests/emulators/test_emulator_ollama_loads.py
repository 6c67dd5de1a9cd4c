"""Cold loads, who waits for them, what they are made with, and what `ps` tells of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from emulator_wire import Answered, ask, until, user

from memos_llm.emulators import OllamaEmulator, OllamaModel

MODEL, OTHER, THIRD = "llama3.2:3b", "qwen3:8b", "gemma3:4b"
BUSY = "server busy, please try again.  maximum pending requests exceeded"


def chat(emu: OllamaEmulator, model: str = MODEL, **more: Any) -> asyncio.Task[Answered]:
    return asyncio.create_task(
        ask(emu.url, "POST", "/api/chat", model=model, messages=user("hi"), stream=False, **more)
    )


async def loaded(emu: OllamaEmulator) -> list[str]:
    return [m["name"] for m in (await ask(emu.url, "GET", "/api/ps")).json["models"]]


async def test_a_client_that_leaves_aborts_the_load_and_a_waiter_starts_it_afresh() -> None:
    async with OllamaEmulator(load_s=0.1) as emu:
        impatient, patient = chat(emu), chat(emu)
        await until(lambda: len(emu.requests) == 2 and emu.counters.loads_started[MODEL] == 1)
        impatient.cancel()
        assert (await patient).status == 200
        assert (emu.counters.loads_started[MODEL], emu.counters.loads_aborted[MODEL]) == (2, 1)
        assert emu.counters.loads_completed[MODEL] == 1
        assert [load.state for load in emu.loads] == ["aborted", "done"]


async def test_models_load_one_at_a_time_and_each_takes_its_own_time() -> None:
    models = [OllamaModel(MODEL, load_s=60.0), OllamaModel(OTHER, load_s=0.0)]
    async with OllamaEmulator(models=models) as emu:
        slow = chat(emu)
        await until(lambda: emu.counters.loads_started[MODEL] == 1)
        quick = chat(emu, OTHER)
        await until(lambda: len(emu.requests) == 2)
        assert emu.counters.loads_started[OTHER] == 0
        slow.cancel()
        assert (await quick).status == 200
        assert emu.counters.loads_completed == {OTHER: 1}


@pytest.mark.parametrize(
    ("change", "reloads"),
    [
        ({"options": {"num_ctx": 64}}, True),
        ({"options": {"num_gpu": 1}}, True),
        ({"options": {"num_ctx": 4096}}, False),  # the default, said aloud
        ({"options": {"temperature": 0.1, "num_predict": 3}}, False),
        ({"shift": False}, True),
        ({"keep_alive": 60}, False),
    ],
)
async def test_a_changed_load_option_reloads(change: dict[str, Any], reloads: bool) -> None:
    async with OllamaEmulator() as emu:
        await chat(emu)
        await chat(emu, **change)
        assert emu.counters.loads == 1 + reloads
        await chat(emu)
        assert emu.counters.loads == 1 + 2 * reloads  # and back again
        assert emu.loads[0].options == {"num_ctx": 4096}


async def test_num_ctx_is_held_between_4_and_the_trained_length() -> None:
    async with OllamaEmulator(models=[OllamaModel(MODEL, context_length=1000)]) as emu:
        for asked, held in ((1, 4), (9999, 1000)):
            await ask(emu.url, "POST", "/api/chat", model=MODEL, options={"num_ctx": asked})
            assert (await ask(emu.url, "GET", "/api/ps")).json["models"][0]["context_length"] == held


async def test_keep_alive_ends_and_a_request_replaces_it() -> None:
    async with OllamaEmulator(keep_alive_s=0.05) as emu:
        await chat(emu)
        async with asyncio.timeout(3):
            while await loaded(emu):
                await asyncio.sleep(0.005)
        await chat(emu, keep_alive="1h")
        assert await loaded(emu) == [MODEL]
        await chat(emu, keep_alive=0)
        assert await loaded(emu) == []


async def test_unload_while_busy_answers_at_once_and_ps_keeps_the_model_until_then() -> None:
    async with OllamaEmulator(inter_token_s=0.02, words=8) as emu:
        running = chat(emu)
        await until(lambda: emu.counters.tokens_generated == 1)
        gone = await ask(emu.url, "POST", "/api/generate", model=MODEL, keep_alive=0)
        assert gone.json["done_reason"] == "unload"
        assert not running.done()
        assert await loaded(emu) == [MODEL]
        assert (await running).status == 200
        assert await loaded(emu) == []


async def test_a_fourth_model_evicts_the_one_that_expires_first() -> None:
    names = ["a", "b", "c", "d"]
    async with OllamaEmulator(models=names) as emu:
        for name, keep in zip(names, ("3h", "1h", "2h", "1h"), strict=True):
            await chat(emu, name, keep_alive=keep)
        assert await loaded(emu) == ["a:latest", "c:latest", "d:latest"]


async def test_a_waiter_that_left_keeps_its_place_in_the_queue() -> None:
    async with OllamaEmulator(load_s=0.2, max_queue=1) as emu:
        first = chat(emu)
        await until(lambda: emu.counters.loads == 1)
        second = chat(emu, OTHER)
        await until(lambda: len(emu.requests) == 2)
        second.cancel()
        await until(lambda: emu.counters.aborted == 1)
        third = await chat(emu, THIRD)
        assert (third.status, third.json["error"]) == (503, BUSY)
        assert (await first).status == 200
        assert (await chat(emu, THIRD)).status == 200


async def test_names_of_one_file_share_a_runner() -> None:
    async with OllamaEmulator() as emu:
        assert (await ask(emu.url, "POST", "/api/copy", source=MODEL, destination="mine")).body == b""
        assert (await chat(emu)).status == (await chat(emu, "mine")).status == 200
        assert emu.counters.loads == 1
        assert await loaded(emu) == [MODEL]
        await chat(emu, "mine", options={"num_ctx": 64})
        assert await loaded(emu) == ["mine:latest"]
