"""Taking a process's parts apart: what we cut never counts, and nothing stays open."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stack import document, settings, until

import memos_llm
from memos_llm import SyncRouter, wiring
from memos_llm.config import Settings
from memos_llm.control.live import Live
from memos_llm.core.call import Call
from memos_llm.core.decision import Decision
from memos_llm.core.events import AttemptEnded, RequestEnded
from memos_llm.core.outcome import Kind
from memos_llm.emulators import OllamaEmulator
from memos_llm.providers.health import Prober
from memos_llm.providers.http import HttpTransport
from memos_llm.providers.http1 import Http1Client
from memos_llm.store import MemoryStore
from memos_llm.telemetry.logs import RequestLog
from memos_llm.testing import Recorder
from memos_llm.wiring import open_runtime

QUESTION = [{"role": "user", "content": "Why?"}]


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaEmulator]:
    async with OllamaEmulator(port=0, models=["qwen3:8b"]) as emulator:
        yield emulator


@pytest.fixture
def config(ollama: OllamaEmulator, tmp_path: Path) -> Settings:
    models: dict[str, Any] = {"qwen3:8b": {}}
    return settings(tmp_path, document(ollama.url, "http://127.0.0.1:9", tmp_path, models=models, store="memory://"))


def heard(router: SyncRouter) -> Recorder:
    told = Recorder()
    router._router._runtime.bus.subscribe("told", told)
    return told


def ends(told: Recorder) -> list[Kind]:
    tries = [event.outcome.kind for event in told.of(AttemptEnded)]
    return tries + [event.outcome.kind for event in told.of(RequestEnded)]


@contextmanager
def in_thread(work: Callable[[], object]) -> Iterator[list[object]]:
    """Its result, or what it raised, once the block has ended."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - whatever it raises is its result, Ctrl-C too
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield results
    thread.join(5)
    assert not thread.is_alive()


async def test_closing_cancels_the_calls_of_other_threads(ollama: OllamaEmulator, config: Settings) -> None:
    ollama.timing.ttft_s = 30.0
    router = await asyncio.to_thread(SyncRouter.open, config, probe=False)
    told = heard(router)
    with (
        in_thread(lambda: router.generate("Why?")) as one,
        in_thread(lambda: next(iter(router.stream(QUESTION)))) as two,
    ):
        await until(lambda: ollama.counters.requests["/api/chat"] == 2)
        await asyncio.to_thread(router.close)
        await until(lambda: one and two)
    assert [type(result) for result in (*one, *two)] == [memos_llm.ControlError] * 2
    assert "closed" in str(one[0])
    assert ends(told) == [Kind.CANCELLED] * 4


async def test_closing_cancels_a_stream_that_waits_to_be_pulled(ollama: OllamaEmulator, config: Settings) -> None:
    ollama.timing.inter_token_s = 0.2

    def work() -> Recorder:
        router = SyncRouter.open(config, probe=False)
        told = heard(router)
        stream = router.stream(QUESTION)
        next(stream)
        router.close()
        with pytest.raises(memos_llm.ControlError, match="closed"):
            next(stream)
        stream.close()  # type: ignore[attr-defined]  # a generator, typed as its iterator
        return told

    assert ends(await asyncio.to_thread(work)) == [Kind.CANCELLED] * 2
    await until(lambda: ollama.counters.aborted == 1)


async def test_a_stream_left_or_dropped_is_cancelled_upstream(ollama: OllamaEmulator, config: Settings) -> None:
    router = await asyncio.to_thread(SyncRouter.open, config, probe=False)

    def leave() -> int:
        router.generate("Why?")  # so that the model is loaded, and what is aborted from now on is the stream
        before, ollama.timing.inter_token_s = ollama.counters.aborted, 0.2
        for _ in router.stream(QUESTION):
            break
        return before

    before = await asyncio.to_thread(leave)
    gc.collect()
    await until(lambda: ollama.counters.aborted == before + 1)
    await until(lambda: not router._calls)
    assert router._streams == set()
    await asyncio.to_thread(router.close)


async def test_closing_ends_what_is_under_way_and_counts_it_against_nobody(
    ollama: OllamaEmulator, config: Settings
) -> None:
    ollama.timing.inter_token_s = 0.2
    router = await memos_llm.Router.open(config, probe=False)
    told = Recorder()
    router._runtime.bus.subscribe("told", told)
    stream = router.stream(QUESTION)
    await anext(stream)
    ollama.timing.ttft_s = 30.0
    waiting = asyncio.create_task(router.chat(QUESTION))
    pulling = router.stream(QUESTION)
    pulls = asyncio.ensure_future(anext(pulling))
    await until(lambda: ollama.counters.requests["/api/chat"] == 3)
    await router.aclose()
    for call in (waiting, pulls, asyncio.ensure_future(anext(stream))):
        with pytest.raises(memos_llm.ControlError, match="closed"):
            await call
    assert waiting.cancelling() == 0
    assert set(ends(told)) == {Kind.CANCELLED}


async def test_a_cancellation_of_the_callers_own_stays_one(ollama: OllamaEmulator, config: Settings) -> None:
    ollama.timing.ttft_s = 30.0
    async with memos_llm.Router.open(config, probe=False) as router:
        call = asyncio.create_task(router.chat(QUESTION))
        await until(lambda: ollama.counters.requests["/api/chat"] == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
async def test_a_forked_process_is_told_to_open_its_own() -> None:
    program = FORKING
    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False
    )
    assert ran.stdout.splitlines() == ["ControlError: open one after the fork", "parent closed"], ran.stderr


FORKING = """
import os
from memos_llm import ControlError, SyncRouter
from memos_llm.config import parse
router = SyncRouter.open(parse(b"models: {m: {}}\\nstore: 'memory://'", {}), probe=False)
child = os.fork()
if not child:
    try:
        router.generate("Why?", timeout_s=1)
    except ControlError as error:
        print("ControlError:", str(error).split(": ")[-1], flush=True)
    router.close()
    os._exit(0)
os.waitpid(child, 0)
router.close()
print("parent closed")
"""


@pytest.mark.filterwarnings("error")
async def test_a_closed_sync_router_says_so(config: Settings) -> None:
    router = await asyncio.to_thread(SyncRouter.open, config, probe=False)
    await asyncio.to_thread(router.close)
    router.close()
    calls: list[Callable[[], object]] = [
        lambda: router.generate("Why?"),
        lambda: router.chat(QUESTION),
        lambda: list(router.stream(QUESTION)),
        router.explain,
    ]
    for call in calls:
        with pytest.raises(memos_llm.ControlError, match="the router is closed"):
            call()
    gc.collect()


async def test_explain_decides_on_the_routers_own_thread(config: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    router = await asyncio.to_thread(SyncRouter.open, config, probe=False)
    threads: list[str] = []
    engine = router._router._runtime.engine
    decide = engine.decide

    def noted(call: Call) -> Decision:
        threads.append(threading.current_thread().name)
        return decide(call)

    monkeypatch.setattr(engine, "decide", noted)
    await asyncio.to_thread(router.explain)
    await asyncio.to_thread(router.close)
    assert threads == ["memos_llm-router"]


PARTS: list[tuple[type, str]] = [
    (Prober, "aclose"),
    (HttpTransport, "aclose"),
    (Http1Client, "aclose"),
    (Live, "aclose"),
    (RequestLog, "close"),
]


@pytest.fixture
def closings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts closed so far, in order."""
    closed: list[str] = []

    def noted(part: type, real: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def close(self: Any) -> Any:
            closed.append(part.__name__)
            return real(self)

        return close

    for part, name in PARTS:
        monkeypatch.setattr(part, name, noted(part, getattr(part, name)))
    return closed


async def test_every_part_is_closed_in_order_even_when_one_fails(
    config: Settings, closings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Prober) -> None:
        closings.append("Prober")
        raise OSError("no")

    monkeypatch.setattr(Prober, "aclose", fail)
    handlers = list(logging.getLogger().handlers)
    runtime = await open_runtime(config, kind="test", log=True)
    with pytest.raises(OSError, match="no"):
        await runtime.aclose()
    assert closings == ["Prober", "HttpTransport", "HttpTransport", "Http1Client", "Live", "RequestLog"]
    assert logging.getLogger().handlers == handlers
    await runtime.aclose()
    assert len(closings) == 6


@pytest.mark.parametrize("broken", ["live", "transport"])
async def test_what_cannot_be_opened_leaves_nothing_open(
    config: Settings, closings: list[str], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    async def start(self: Live) -> None:
        raise OSError("no")

    def open_transport(*args: object, **kwargs: object) -> None:
        raise OSError("no")

    if broken == "live":
        monkeypatch.setattr(Live, "start", start)
    else:
        monkeypatch.setattr(wiring, "open_transport", open_transport)
    stores: list[str] = []

    async def close(self: MemoryStore) -> None:
        stores.append("closed")

    monkeypatch.setattr(MemoryStore, "aclose", close)
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(OSError, match="no"):
        await open_runtime(config, kind="test", log=True)
    assert closings[-3:] == ["Http1Client", "Live", "RequestLog"]
    assert stores == ["closed"]
    assert logging.getLogger().handlers == handlers
