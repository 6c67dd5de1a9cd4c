"""The parts of the admin API whose promises need time or a slow client: nothing half-opens, nobody holds others up."""

import asyncio
import json
from pathlib import Path
from random import Random

import pytest

from memos_llm.config import load
from memos_llm.core.errors import Overloaded
from memos_llm.core.events import (
    AttemptEnded,
    BreakerChanged,
    Bus,
    InternalError,
    ProbeEnded,
    RequestRefused,
    StoreState,
)
from memos_llm.core.flags import PPM, fresh
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.ports import Routes
from memos_llm.gateway.admin_events import MOST, Feed
from memos_llm.operate.explain import explain, offers_of
from memos_llm.operate.orders import ExplainOrder
from memos_llm.providers import open_transport
from memos_llm.providers.client import AiohttpClient
from memos_llm.testing import ManualClock, Recorder

FLAGS = fresh("i", "00" * 16, PPM)


def failed(provider: str, endpoint: str) -> AttemptEnded:
    return AttemptEnded(
        request_id="r",
        provider=provider,
        endpoint=endpoint,
        arm="candidate",
        component="default",
        model="qwen3:8b",
        outcome=Outcome(kind=Kind.CONNECT),
        duration_s=0.0,
        at=0.0,
    )


def test_explaining_never_half_opens_a_breaker(tmp_path: Path) -> None:
    path = tmp_path / "memos_llm.yaml"
    path.write_text("models: {'qwen3:8b': {vllm: Qwen/Qwen3-8B}}\n")
    settings = load(path, {})
    clock, bus, told = ManualClock(), Bus(), Recorder()
    specs = {spec.name: spec for spec in settings.provider_specs()}
    transports = {
        name: open_transport(spec, AiohttpClient(), bus, clock=clock, rng=Random(1)) for name, spec in specs.items()
    }
    bus.subscribe("told", told)
    routes = Routes(settings.policy(), transports)
    for _ in range(5):
        bus.emit(failed("vllm", specs["vllm"].endpoints[0].url))
    assert [event.state for event in told.of(BreakerChanged)] == ["open"]
    order = ExplainOrder(session="s", model="qwen3:8b")
    said = explain(order, FLAGS, routes.policy, offers_of(routes))
    assert (said.reason, said.provider) == ("diverted", "ollama")
    assert [(one.provider, one.reason) for one in said.diverted] == [("vllm", "breaker-open")]

    clock.advance(3600.0)
    assert explain(order, FLAGS, routes.policy, offers_of(routes)).provider == "vllm"
    assert len(told.of(BreakerChanged)) == 1, "asking for an explanation let a trial through"
    transports["vllm"].pick("Qwen/Qwen3-8B")
    assert told.of(BreakerChanged)[-1].state == "half_open", "else this test could not fail"


def test_embeddings_are_explained_as_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "memos_llm.yaml"
    path.write_text("models: {nomic-embed-text: {vllm: nomic-ai/nomic-embed-text-v1.5}}\n")
    settings = load(path, {})
    transports = {
        spec.name: open_transport(spec, AiohttpClient(), Bus(), clock=ManualClock())
        for spec in settings.provider_specs()
    }
    routes = Routes(settings.policy(), transports)
    said = explain(ExplainOrder(), FLAGS, routes.policy, offers_of(routes))
    assert (said.operation, said.component, said.provider) == ("embeddings", "embedding", "ollama")


async def test_a_slow_client_is_dropped_and_counted_and_the_others_go_on() -> None:
    bus, told = Bus(), Recorder()
    bus.subscribe("told", told)
    feed = Feed(bus, lambda: False, queue=4)
    slow, quick = feed.open().lines(), feed.open().lines()
    assert await anext(slow) == await anext(quick) == b": listening\n\n"
    for number in range(6):
        bus.emit(StoreState(reachable=False, detail=str(number)))
        line = await anext(quick)
        assert json.loads(line.partition(b"data: ")[2])["detail"] == str(number)
    assert [(e.part, e.error) for e in told.of(InternalError)] == [("admin.events", "SlowClient")]
    assert len([line async for line in slow]) < 6


async def test_a_flood_of_refusals_drops_nobody_and_hides_nothing_else() -> None:
    bus, told = Bus(), Recorder()
    bus.subscribe("told", told)
    lines = Feed(bus, lambda: False, queue=4).open().lines()
    await anext(lines)
    for _ in range(100):
        bus.emit(RequestRefused(request_id="r", status=401, error_name="n", error_code="c"))
    bus.emit(StoreState(reachable=False))
    events = [(await anext(lines)).partition(b"\n")[0] for _ in range(3)]
    assert events == [b"event: refused", b"event: refused", b"event: store"]
    assert not told.of(InternalError)


async def test_a_stream_ends_with_the_server_and_is_forgotten() -> None:
    ending = False
    feed = Feed(Bus(), lambda: ending)
    lines = feed.open().lines()
    assert await anext(lines)
    waiting = asyncio.ensure_future(anext(lines, b"the end"))
    await asyncio.sleep(0)
    ending = True
    assert await asyncio.wait_for(waiting, 5) == b"the end"


async def test_a_stream_ends_when_the_keys_change_and_a_new_one_may_be_opened() -> None:
    keys = ("a",)
    feed = Feed(Bus(), lambda: False, keys=lambda: keys)
    lines = feed.open().lines()
    assert await anext(lines)
    waiting = asyncio.ensure_future(anext(lines, b"the end"))
    await asyncio.sleep(0)
    keys = ("b",)
    assert await asyncio.wait_for(waiting, 5) == b"the end"
    assert await anext(feed.open().lines())


async def test_there_are_only_so_many_listeners() -> None:
    feed = Feed(Bus(), lambda: False)
    opened = [feed.open().lines() for _ in range(MOST)]
    for lines in opened:
        await anext(lines)
    with pytest.raises(Overloaded):
        feed.open()
    await opened[0].aclose()
    feed.open()


async def test_of_probes_only_what_is_new_is_told() -> None:
    bus = Bus()
    lines = Feed(bus, lambda: False).open().lines()
    await anext(lines)
    found = ProbeEnded(provider="vllm", endpoint="http://v", up=True)
    for event in (found, found, ProbeEnded(provider="vllm", endpoint="http://v", up=False), found):
        bus.emit(event)
    ups = [json.loads((await anext(lines)).partition(b"data: ")[2])["up"] for _ in range(3)]
    assert ups == [True, False, True]
