"""Faults that a guard is tried with: they come and go, grow, and show where the real server would show them."""

from __future__ import annotations

import asyncio
import re

import pytest
from emulator_wire import Answered, ask, until, user

from memos_llm.emulators import FaultBoard, VllmEmulator
from memos_llm.emulators.faults import Fault

CHAT = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}


def chat(emu: VllmEmulator, text: str = "hi") -> asyncio.Task[Answered]:
    return asyncio.create_task(ask(emu.url, "POST", CHAT, messages=user(text), stream=True))


async def numbers(emu: VllmEmulator) -> dict[str, float]:
    page = (await ask(emu.url, "GET", "/metrics")).body.decode()
    shown = re.findall(
        r"^vllm:(num_requests_\w+|kv_cache_usage_perc|\w+_tokens_total(?:_count)?)\{[^}]*\} (\S+)", page, re.M
    )
    return {name: float(value) for name, value in shown}


def test_a_flapping_fault_is_on_and_off_in_turn_until_its_time_is_over() -> None:
    now = 100.0
    board = FaultBoard("vllm", seed=1, clock=lambda: now)
    board.set("status:every_s=10,for_s=35")
    seen = []
    for now in (100.0, 109.9, 110.0, 119.9, 120.0, 130.0, 135.0):  # noqa: B007 - the board's clock reads it
        seen.append(board.take("before") is not None)
    assert seen == [True, True, False, False, True, False, False]
    assert Fault.parse(str(Fault.parse("refuse:every_s=10.0"))) == Fault("refuse", every_s=10.0)


def test_it_is_known_when_a_fault_comes_goes_and_ends() -> None:
    now = 0.0
    board = FaultBoard("vllm", seed=1, clock=lambda: now)
    board.set("hang_engine:every_s=10,for_s=25")
    now = 4.0
    assert (board.next_change_s(), board.active("hang_engine")) == (6.0, True)
    now = 12.0
    assert (board.next_change_s(), board.active("hang_engine")) == (8.0, False)
    now = 22.0
    assert (board.next_change_s(), board.active("hang_engine")) == (3.0, True)


async def test_a_flapping_port_opens_and_closes_by_itself() -> None:
    async with VllmEmulator() as emu:
        emu.faults.set("refuse:every_s=0.1")
        for _ in range(2):
            await until(lambda: not emu.listening)
            await until(lambda: emu.listening)


def test_drift_waits_longer_and_longer() -> None:
    now = 0.0
    board = FaultBoard("ollama", seed=1, clock=lambda: now)
    board.set("drift:seconds=6")
    waits = []
    for now in (0.0, 30.0, 60.0, 600.0):  # noqa: B007 - the board's clock reads it
        fault = board.take("before")
        assert fault is not None
        waits.append(fault.seconds)
    assert waits == [0.0, 3.0, 6.0, 60.0]


async def test_tools_are_refused_and_taken_at_run_time() -> None:
    async with VllmEmulator() as emu:
        for faults, status in ((["no_auto_tools"], 400), ([], 200)):
            emu.faults.set(*faults)
            got = await ask(emu.url, "POST", CHAT, messages=user("tool:f"), tools=[TOOL])
            assert got.status == status
            assert (await ask(emu.url, "POST", CHAT, messages=user("x"))).status == 200


async def test_a_missing_model_is_not_listed_either() -> None:
    async with VllmEmulator(models=["a/b"]) as emu:
        emu.faults.set("model_missing")
        listed = (await ask(emu.url, "GET", "/v1/models")).json["data"]
        assert [card["id"] for card in listed] == ["another/model"]
        emu.faults.set("model_missing:count=1")  # for one request: the server is what it was
        assert (await ask(emu.url, "GET", "/v1/models")).json["data"][0]["id"] == "a/b"


@pytest.mark.parametrize("begun", [True, False], ids=["while it worked", "while it was idle"])
async def test_every_number_of_a_hung_engine_stands_still_whoever_comes_and_leaves(begun: bool) -> None:
    async with VllmEmulator(thinking=False, inter_token_s=0.01) as emu:
        if begun:
            first = chat(emu, "words:500")
            await until(lambda: emu.counters.tokens_generated > 2)
            emu.faults.set("hang_engine")
        else:
            emu.faults.set("hang_engine")
            first = chat(emu)
        await until(lambda: emu.engine_core.running == 1)
        stood = await numbers(emu)
        assert stood["num_requests_running"] == 1
        second = chat(emu)
        await until(lambda: emu.engine_core.running == 2)
        assert await numbers(emu) == stood
        first.cancel()
        second.cancel()
        await until(lambda: emu.engine_core.running == 0)
        assert await numbers(emu) == stood
        assert (await ask(emu.url, "GET", "/health")).status == 200
        emu.faults.clear()
        assert (await numbers(emu))["num_requests_running"] == 0
        assert (await chat(emu)).status == 200


async def test_a_long_prompt_shows_in_the_use_of_the_cache_alone() -> None:
    async with VllmEmulator(ttft_s=60.0) as emu:
        asking = chat(emu, "a long one " * 50)
        await until(lambda: emu.engine_core.running == 1)
        before = await numbers(emu)
        await until(lambda: emu.engine_core.kv_usage() > before["kv_cache_usage_perc"])
        after = await numbers(emu)
        assert {name for name in after if after[name] != before[name]} == {"kv_cache_usage_perc"}
        asking.cancel()
