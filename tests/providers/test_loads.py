"""Ollama's cold loads: one for all who wait, owned by nobody who may leave; and models that are kept loaded."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from rawserver import Connection, RawServer

from memos_llm.core.call import Wire, WireRequest
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import Bus, FlagsChanged, InternalError
from memos_llm.core.flags import PPM, fresh
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.policy import Endpoint, ProviderSpec
from memos_llm.emulators import OllamaEmulator
from memos_llm.providers import AiohttpClient, open_transport
from memos_llm.providers.http import HttpTransport
from memos_llm.providers.warm import Pace
from memos_llm.testing import Recorder

CHAT = b'{"model":"%s","stream":false,"messages":[{"role":"user","content":"hi"}]%s}'
EMBED = b'{"model":"mxbai-embed-large","input":["x"]}'


def chat(model: str = "qwen3:8b", more: bytes = b"") -> WireRequest:
    return WireRequest("r", Wire.OLLAMA_CHAT, model, CHAT % (model.encode(), more), False)


async def until(condition: Any) -> None:
    async with asyncio.timeout(5.0):
        while not condition():
            await asyncio.sleep(0.005)


class Open:
    """A transport to one server, and what it told."""

    def __init__(self, transport: HttpTransport, bus: Bus, told: Recorder) -> None:
        self.transport, self.bus, self.told = transport, bus, told

    async def answer(self, request: WireRequest) -> bytes:
        reply = await self.transport.open(request)
        body = b""
        while chunk := await reply.read():
            body += chunk
        return body


@asynccontextmanager
async def opened(*urls: str, **spec: Any) -> AsyncIterator[Open]:
    bus, told, client = Bus(), Recorder(), AiohttpClient()
    bus.subscribe("test", told)
    given = ProviderSpec(name="p", kind="ollama", endpoints=tuple(Endpoint(url) for url in urls), **spec)
    transport = open_transport(given, client, bus, clock=time.monotonic)
    assert isinstance(transport, HttpTransport)
    try:
        yield Open(transport, bus, told)
    finally:
        await transport.aclose()
        await client.aclose()
    assert told.of(InternalError) == []


@asynccontextmanager
async def pair(*, load_s: float = 0.0, **spec: Any) -> AsyncIterator[tuple[OllamaEmulator, Open]]:
    async with OllamaEmulator(load_s=load_s) as ollama, opened(ollama.url, **spec) as ours:
        yield ollama, ours


def loads(ollama: OllamaEmulator) -> tuple[int, int]:
    return ollama.counters.loads, ollama.counters.load_aborts


async def test_everyone_who_waits_leaves_and_the_load_goes_on() -> None:
    async with pair(load_s=0.4) as (ollama, ours):
        waiting = [asyncio.create_task(ours.answer(chat())) for _ in range(5)]
        await until(lambda: ollama.counters.loads)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await until(lambda: ollama.counters.loads_completed.total())
        assert b"done" in await ours.answer(chat())
        assert loads(ollama) == (1, 0)


async def test_one_load_serves_all_who_wait() -> None:
    async with pair(load_s=0.1) as (ollama, ours):
        answers = await asyncio.gather(*(ours.answer(chat()) for _ in range(5)))
        assert all(b"done" in answer for answer in answers)
        assert loads(ollama) == (1, 0)
        assert ollama.counters.requests["/api/generate"] == 1


async def test_a_warm_model_costs_no_further_request() -> None:
    async with pair() as (ollama, ours):
        await ours.answer(chat())
        before = ollama.counters.requests.copy()
        for _ in range(3):
            await ours.answer(chat())
        assert ollama.counters.requests - before == {"/api/chat": 3}


async def test_what_ollama_has_loaded_already_is_not_loaded_again() -> None:
    async with pair() as (ollama, ours), opened(ollama.url) as earlier:
        await earlier.answer(chat())
        ollama.counters.requests.clear()
        await ours.answer(chat())
        assert ollama.counters.requests == {"/api/ps": 1, "/api/chat": 1}


async def test_the_load_is_the_one_that_the_request_needs() -> None:
    """Else the request would load the model a second time, on its own account."""
    async with pair() as (ollama, ours):
        await ours.answer(chat(more=b',"options":{"num_ctx":2048,"temperature":0.1}'))
        assert loads(ollama) == (1, 0)
        await ours.answer(chat(more=b',"options":{"num_ctx":1024}'))
        assert loads(ollama) == (2, 0)
        assert ollama.counters.requests["/api/generate"] == 2


@pytest.mark.parametrize("wire", [Wire.OLLAMA_EMBED, Wire.OPENAI_EMBEDDINGS])
async def test_embedding_models_are_loaded_too(wire: Wire) -> None:
    async with pair(load_s=0.05) as (ollama, ours):
        await ours.answer(WireRequest("r", wire, "mxbai-embed-large", EMBED, False))
        assert loads(ollama) == (1, 0)
        assert ollama.counters.requests["/api/embed"] == (2 if wire is Wire.OLLAMA_EMBED else 1)


async def test_an_unload_loads_nothing_and_is_remembered() -> None:
    async with pair() as (ollama, ours):
        unload = WireRequest("r", Wire.OLLAMA_CHAT, "qwen3:8b", b'{"model":"qwen3:8b","keep_alive":0}', False)
        await ours.answer(unload)
        assert loads(ollama) == (0, 0)
        await ours.answer(chat())
        await ours.answer(unload)
        await ours.answer(chat())
        assert ollama.counters.requests["/api/generate"] == 2


async def test_a_model_that_is_not_there_is_refused_in_its_own_words() -> None:
    async with pair() as (_, ours):
        failures = await asyncio.gather(*(ours.answer(chat("nobody")) for _ in range(3)), return_exceptions=True)
        for failed in failures:
            assert isinstance(failed, AttemptFailed)
            assert failed.outcome == Outcome(kind=Kind.CONFIG, status=404, code="model_not_found")
            assert failed.client_body == b'{"error":"model \'nobody\' not found"}'


async def test_a_load_that_fails_is_told_to_all_and_not_tried_again() -> None:
    posted: list[str] = []

    async def play(connection: Connection) -> None:
        while True:
            head, _ = await connection.request()
            path = head.split()[1]
            if path == "/api/ps":
                await connection.answer(b'{"models":[]}')
                continue
            posted.append(path)
            await asyncio.sleep(0.05)
            await connection.answer(b'{"error":"out of memory"}', "500 No")

    async with RawServer(play) as server, opened(server.url) as ours:
        failures = await asyncio.gather(*(ours.answer(chat()) for _ in range(4)), return_exceptions=True)
    for failed in failures:
        assert isinstance(failed, AttemptFailed)
        assert (failed.outcome.kind, failed.outcome.status, failed.client_text) == (Kind.SERVER, 500, "out of memory")
    assert posted == ["/api/generate"]


async def test_who_waits_for_a_load_does_so_within_his_own_limit() -> None:
    async with pair(load_s=0.3) as (ollama, ours):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await ours.answer(chat())
        await ours.answer(chat())
        assert loads(ollama) == (1, 0)


async def test_who_waits_for_a_load_ends_when_the_endpoint_is_found_dead() -> None:
    async with pair(load_s=5.0) as (ollama, ours):
        opening = asyncio.create_task(ours.answer(chat()))
        await until(lambda: ollama.counters.loads)
        next(iter(ours.transport._pool)).cut_waiting()
        with pytest.raises(AttemptFailed) as caught:
            await opening
        assert caught.value.outcome == Outcome(kind=Kind.TIMEOUT, code="endpoint_down")


async def test_closing_ends_the_loads() -> None:
    async with pair(load_s=30.0) as (ollama, ours):
        opening = asyncio.create_task(ours.answer(chat()))
        await until(lambda: ollama.counters.loads)
        await ours.transport.aclose()
        with pytest.raises(AttemptFailed):
            await opening
        await until(lambda: ollama.counters.load_aborts)


async def test_a_load_that_ollama_forgot_is_asked_for_again() -> None:
    async with pair() as (ollama, ours):
        ollama.faults.add("hang:count=1")
        waiting = asyncio.create_task(ours.answer(chat()))
        await until(lambda: ollama.faults.fired["hang"])
        for _ in range(2):
            await ours.transport.probe()
        assert ollama.counters.requests["/api/generate"] == 1
        await ours.transport.probe()
        assert b"done" in await asyncio.wait_for(waiting, 5.0)
        assert loads(ollama) == (1, 0)


async def test_a_load_that_is_under_way_is_never_asked_for_again() -> None:
    async with pair(load_s=0.5) as (ollama, ours):
        waiting = asyncio.create_task(ours.answer(chat()))
        await until(lambda: ollama.counters.loads)
        for _ in range(4):
            await ours.transport.probe()
        assert b"done" in await waiting
        assert (loads(ollama), ollama.counters.requests["/api/generate"]) == ((1, 0), 1)


async def test_a_forgotten_load_ends_when_the_model_serves() -> None:
    async with pair() as (ollama, ours), opened(ollama.url) as other:
        ollama.faults.add("hang:count=1")
        waiting = asyncio.create_task(ours.answer(chat()))
        await until(lambda: ollama.faults.fired["hang"])
        await other.answer(chat())
        await ours.transport.probe()  # lists what the other one loaded
        assert b"done" in await ours.answer(chat())
        assert b"done" in await asyncio.wait_for(waiting, 5.0)
        await until(lambda: not ollama.counters.in_flight)


async def test_it_can_be_switched_off() -> None:
    async with pair(own_loads=False) as (ollama, ours):
        await ours.answer(chat())
        assert ollama.counters.requests == {"/api/chat": 1}


@pytest.mark.parametrize("model", ["gpt-oss:120b-cloud", "glm:cloud"])
async def test_what_runs_elsewhere_is_not_loaded(model: str) -> None:
    async with pair() as (ollama, ours):
        with pytest.raises(AttemptFailed):
            await ours.answer(chat(model))
        assert ollama.counters.requests == {"/api/chat": 1}


async def test_a_probe_tells_that_ollama_was_restarted() -> None:
    async with OllamaEmulator() as first, opened(first.url) as ours:
        await ours.answer(chat())
        port = first.port
        await first.stop()
        async with OllamaEmulator(port=port) as second:
            await ours.transport.probe()
            await ours.answer(chat())
            assert second.counters.requests["/api/generate"] == 1


# --- keep_warm --------------------------------------------------------------------------------------------------------


def flags(share: float) -> FlagsChanged:
    return FlagsChanged(flags=fresh("i", "00", round(share * PPM)))


async def test_a_model_is_kept_loaded_while_the_candidate_has_a_share() -> None:
    async with pair(keep_warm=("llama3.2:3b",)) as (ollama, ours):
        ours.bus.emit(flags(0.0))
        await asyncio.sleep(0)
        assert ollama.counters.requests.total() == 0
        ours.bus.emit(flags(0.1))
        await until(lambda: ollama.counters.loads_completed.total())
        ours.bus.emit(flags(0.2))
        assert loads(ollama) == (1, 0)
        (body,) = [r.body for r in ollama.requests if r.path == "/api/embed"]
        assert b'"keep_alive":"10m"' in body


async def test_it_is_loaded_as_its_last_request_had_it() -> None:
    async with pair(keep_warm=("qwen3:8b",)) as (ollama, ours):
        await ours.answer(chat(more=b',"options":{"num_ctx":2048},"keep_alive":"0s"'))
        ours.transport._loads.warmth(next(iter(ours.transport._pool))).clear()
        ours.bus.emit(flags(0.1))
        await until(lambda: any(b"10m" in r.body for r in ollama.requests))
        body = next(r.body for r in ollama.requests if b"10m" in r.body)
        assert b'"num_ctx":2048' in body


async def test_what_is_loaded_is_left_alone() -> None:
    async with pair(keep_warm=("qwen3:8b",)) as (ollama, ours):
        await ours.answer(chat())
        ollama.counters.requests.clear()
        for _ in range(3):
            await ours.transport._keep_warm.round()
        assert ollama.counters.requests == {"/api/ps": 3}


def test_a_model_that_does_not_stay_is_loaded_less_and_less_often() -> None:
    pace, now, at = Pace(), 0.0, []
    while now < 3_600.0:
        if pace.may(now):
            pace.loaded(now)
            at.append(now)
        now += 15.0
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert gaps[:4] == [30.0, 60.0, 120.0, 240.0]
    assert gaps[-1] == 600.0


async def test_a_list_that_does_not_come_means_that_something_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Since 0.32.4 it waits for the load to end; the endpoint is well, and its silence is no hang."""
    monkeypatch.setattr("memos_llm.providers.loads.PS_S", 0.05)
    async with (
        OllamaEmulator(load_s=0.4) as ollama,
        opened(ollama.url, own_loads=False) as other,
        opened(ollama.url) as ours,
    ):
        (state,) = ours.transport._pool
        loading = asyncio.create_task(other.answer(chat()))
        await until(lambda: ollama.counters.loads)
        (ended,) = await ours.transport.probe()
        assert (ended.up, state.loading) == (True, True)
        await loading
        await ours.transport.probe()
        assert not state.loading
