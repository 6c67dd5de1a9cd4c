"""Bounds of the transport: places at an endpoint, connections altogether; passages that stay where they belong."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rawserver import Connection, RawServer
from stack import until

from memos_llm.core.call import Passage, Quirk, Wire, WireRequest
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import AttemptEnded, BreakerChanged, Bus
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.policy import Endpoint, ProviderSpec
from memos_llm.emulators import VllmEmulator
from memos_llm.providers import AiohttpClient, open_transport
from memos_llm.providers.http import HttpTransport
from memos_llm.testing import ManualClock, Recorder

REQUEST = WireRequest("r-1", Wire.OPENAI_CHAT, "m", b'{"model":"m"}', False)


@pytest.fixture
async def client() -> AsyncIterator[AiohttpClient]:
    client = AiohttpClient(max_connections=2)
    yield client
    await client.aclose()


def transport_to(client: AiohttpClient, *urls: str, bus: Bus | None = None, **spec: Any) -> HttpTransport:
    given = ProviderSpec(name="p", kind="vllm", endpoints=tuple(Endpoint(url) for url in urls), **spec)
    transport = open_transport(given, client, bus or Bus(), clock=time.monotonic)
    assert isinstance(transport, HttpTransport)
    return transport


async def silence(connection: Connection) -> None:
    await connection.request()
    await connection.gone()


async def arrived(server: RawServer, count: int) -> None:
    async with asyncio.timeout(2.0):
        while server.accepted < count:
            await asyncio.sleep(0.001)


async def answers(connection: Connection) -> None:
    while True:
        await connection.request()
        await connection.answer(b"{}")


async def failure(opening: Any) -> Outcome:
    with pytest.raises(AttemptFailed) as caught:
        await opening
    return caught.value.outcome


async def test_no_more_than_the_limit_reach_an_endpoint_and_the_rest_are_told_to_come_again(
    client: AiohttpClient,
) -> None:
    async with RawServer(silence) as server:
        transport = transport_to(client, server.url, max_inflight=1, queue_s=0.05)
        first = asyncio.create_task(transport.open(REQUEST))
        await arrived(server, 1)
        outcome = await failure(transport.open(REQUEST))
        assert outcome == Outcome(kind=Kind.SATURATED, code="inflight", retry_after_s=1.0)
        assert server.accepted == 1
        first.cancel()
        await asyncio.wait([first])
        assert sum(state.in_flight for state in transport._pool) == 0


async def test_a_place_comes_free_with_the_end_of_an_answer(client: AiohttpClient) -> None:
    async with RawServer(answers) as server:
        transport = transport_to(client, server.url, max_inflight=1)
        reply = await transport.open(REQUEST)
        waiting = asyncio.create_task(transport.open(REQUEST))
        (state,) = transport._pool
        assert state.places is not None
        line = state.places._line
        await until(lambda: len(line) == 1)
        assert not waiting.done()
        while await reply.read():
            pass
        await (await waiting).aclose()


async def test_connections_are_bounded_over_all_back_ends(client: AiohttpClient) -> None:
    """What waits for one in vain was never sent: the next target may have it, and nobody is blamed for being slow."""
    async with RawServer(silence) as one, RawServer(silence) as two:
        opening = [
            asyncio.create_task(client.send("POST", server.url, {}, b"", connect_s=1.0)) for server in (one, two)
        ]
        await arrived(one, 1)
        await arrived(two, 1)
        outcome = await failure(client.send("POST", one.url, {}, b"", connect_s=0.05))
        assert outcome == Outcome(kind=Kind.SATURATED, code="connections")
        assert one.accepted == 1
        for task in opening:
            task.cancel()
        await asyncio.wait(opening)


# --- passages ---------------------------------------------------------------------------------------------------------


def passage(target: str, method: str = "GET") -> WireRequest:
    return WireRequest("r", Wire.PASSTHROUGH, "", b"", False, passage=Passage(method, target))


TARGETS = [
    "/api/show",
    "/v1/models/Qwen%2FQwen3-8B",
    "/v1/files?after=a%2Cb&x=%7E~&empty=&%C3%A9=1",
    "/api/blobs/sha256:abc",
    "/v1/a//b;c=d?q=/?x:@",
    "//evil.example/x",
    "/@evil.example",
]


@pytest.mark.parametrize("target", TARGETS)
async def test_a_passage_has_its_path_as_the_caller_spelt_it(client: AiohttpClient, target: str) -> None:
    lines: list[str] = []

    async def play(connection: Connection) -> None:
        lines.append((await connection.request())[0].partition("\r\n")[0])
        await connection.answer(b"no", "404 Not Found")

    async with RawServer(play) as server:
        reply = await transport_to(client, server.url).open(passage(target))
        assert (reply.status, await reply.read()) == (404, b"no")
        await reply.aclose()
    assert lines == [f"GET {target} HTTP/1.1"]


@pytest.mark.parametrize(
    "target",
    [
        *[
            "",
            "@evil.example/",
            ".evil.example/",
            ":80/",
            "http://evil.example/",
            "/a b",
            "/a\r\nX: y",
            "/a#b",
            "/\u00e9",
        ],
        *["/v1/../api/delete", "/v1/%2e%2E/api", "/v1/..", "/./x", "/v1/..?x"],
    ],
)
async def test_what_is_no_path_of_the_back_end_is_refused(client: AiohttpClient, target: str) -> None:
    outcome = await failure(transport_to(client, "http://127.0.0.1:9").open(passage(target)))
    assert (outcome.kind, outcome.code) == (Kind.CLIENT, "path")


async def test_a_head_request_is_passed_on(client: AiohttpClient) -> None:
    async def play(connection: Connection) -> None:
        head, _ = await connection.request()
        assert head.startswith("HEAD / ")
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n")
        await connection.gone()

    async with RawServer(play) as server:
        reply = await transport_to(client, server.url).open(passage("/", "HEAD"))
        assert (reply.status, reply.headers["content-length"], await reply.read()) == (200, "17", b"")
        await reply.aclose()


async def test_the_paths_of_passages_do_not_pile_up(client: AiohttpClient) -> None:
    for n in range(2_500):
        client._parsed(f"http://a/{n}")
    assert len(client._urls) <= 1_000


# --- what is offered, and what a look leaves alone --------------------------------------------------------------------


async def test_the_offer_tells_context_and_release(client: AiohttpClient) -> None:
    async with VllmEmulator(models=["m"], version="0.11.0") as vllm:
        transport = transport_to(client, vllm.url)
        assert (transport.offer("m").context_tokens, transport.offer("m").quirks) == (None, Quirk.NONE)
        await transport.probe()
        offer = transport.offer("m")
        assert isinstance(offer.context_tokens, int)
        assert Quirk.OLD_REASONING in offer.quirks
        assert transport.offer("m") is offer


async def test_the_shortest_context_of_the_replicas_holds_and_a_lora_has_its_parents(client: AiohttpClient) -> None:
    def cards(length: int) -> Any:
        async def play(connection: Connection) -> None:
            while True:
                await connection.request()
                await connection.answer(
                    b'{"data":[{"id":"m","max_model_len":%d},'
                    b'{"id":"lora","max_model_len":null,"parent":"m"}],"version":"1.0"}' % length
                )

        return play

    async with RawServer(cards(8192)) as one, RawServer(cards(4096)) as two:
        transport = transport_to(client, one.url, two.url)
        await transport.probe()
        assert [transport.offer(model).context_tokens for model in ("m", "lora", "other")] == [4096, 4096, None]


async def test_asking_what_would_happen_half_opens_nothing(client: AiohttpClient) -> None:
    bus, told, clock = Bus(), Recorder(), ManualClock()
    bus.subscribe("test", told)
    spec = ProviderSpec(name="p", kind="vllm", endpoints=(Endpoint("http://a"),))
    transport = open_transport(spec, client, bus, clock=clock)
    for _ in range(5):
        bus.emit(
            AttemptEnded(
                request_id="r", provider="p", endpoint="http://a", arm="candidate", component="c", model="m",
                outcome=Outcome(kind=Kind.CONNECT), duration_s=0.0, at=0.0,
            )
        )  # fmt: skip
    assert transport.offer("m").refused == "breaker-open"
    clock.advance(60.0)
    assert transport.offer("m").refused is None
    assert [event.state for event in told.of(BreakerChanged)] == ["open"]
    transport.pick("m")
    assert [event.state for event in told.of(BreakerChanged)] == ["open", "half_open"]


async def test_a_closed_transport_hears_no_more(client: AiohttpClient) -> None:
    bus = Bus()
    transport = transport_to(client, "http://a", bus=bus)
    assert bus._subscriptions
    await transport.aclose()
    await transport.aclose()
    assert bus._subscriptions == []
