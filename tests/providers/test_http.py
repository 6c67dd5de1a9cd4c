"""The transport itself: accounting, bounds, and what it does when an endpoint dies under a request."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from rawserver import Connection, Play, RawServer, closed_port
from stack import until

from memos_llm.core.call import Feature, Wire, WireRequest
from memos_llm.core.errors import AttemptFailed, ConfigError
from memos_llm.core.events import AttemptEnded, Bus
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.policy import Endpoint, ProviderSpec
from memos_llm.providers import KINDS, AiohttpClient, open_transport
from memos_llm.providers import http as module
from memos_llm.providers.http import HttpTransport

REQUEST = WireRequest("r-1", Wire.OPENAI_CHAT, "m", b'{"model":"m"}', False)
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def client() -> AsyncIterator[AiohttpClient]:
    client = AiohttpClient()
    yield client
    await client.aclose()


def transport_to(client: AiohttpClient, *urls: str, bus: Bus | None = None, kind: str = "vllm") -> HttpTransport:
    endpoints = tuple(Endpoint(url) for url in urls)
    spec = ProviderSpec(name="p", kind=kind, endpoints=endpoints, api_key="secret", own_loads=False)
    transport = open_transport(spec, client, bus or Bus(), clock=time.monotonic)
    assert isinstance(transport, HttpTransport)
    return transport


def in_flight(transport: HttpTransport) -> int:
    return sum(state.in_flight for state in transport._pool)


async def failure(transport: HttpTransport, request: WireRequest = REQUEST) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as caught:
        await transport.open(request)
    return caught.value


def chunked(*parts: bytes, ends: bool = True) -> Play:
    async def play(connection: Connection) -> None:
        while True:
            await connection.request()
            await connection.send(HEAD)
            for part in parts:
                await connection.send(b"%x\r\n%s\r\n" % (len(part), part))
            if not ends:
                return
            await connection.send(b"0\r\n\r\n")

    return play


async def arrived(server: RawServer) -> None:
    async with asyncio.timeout(2.0):
        while not server.accepted:
            await asyncio.sleep(0)


async def silence(connection: Connection) -> None:
    await connection.request()
    await connection.gone()


def test_an_unknown_kind_names_the_choices(client: AiohttpClient) -> None:
    spec = ProviderSpec(name="mine", kind="vlm", endpoints=(Endpoint("http://a"),))
    with pytest.raises(ConfigError, match=r"providers\.mine\.kind: 'vlm' is not known; choices: ollama, vllm"):
        open_transport(spec, client, Bus(), clock=time.monotonic)


def test_vllm_is_not_offered_what_it_lacks(client: AiohttpClient) -> None:
    offer = transport_to(client, "http://a").offer("m")
    assert offer.wires == {Wire.OPENAI_CHAT, Wire.OPENAI_COMPLETION, Wire.OPENAI_EMBEDDINGS, Wire.PASSTHROUGH}
    assert not offer.features & (Feature.LOAD | Feature.CONTEXT | Feature.GO_TEMPLATE)
    assert transport_to(client, "http://a", kind="ollama").offer("m").features == Feature.ALL


async def test_a_wire_that_it_does_not_speak_is_a_fault_of_configuration(client: AiohttpClient) -> None:
    failed = await failure(transport_to(client, "http://a"), WireRequest("r", Wire.OLLAMA_CHAT, "m", b"", False))
    assert failed.outcome == Outcome(kind=Kind.CONFIG, code="wire")


PATHS = [
    ("ollama", Wire.OLLAMA_CHAT, "/api/chat"),
    ("ollama", Wire.OLLAMA_GENERATE, "/api/generate"),
    ("ollama", Wire.OPENAI_CHAT, "/v1/chat/completions"),
    ("ollama", Wire.OPENAI_COMPLETION, "/v1/completions"),
    ("ollama", Wire.OPENAI_EMBEDDINGS, "/v1/embeddings"),
    ("ollama", Wire.OLLAMA_EMBED, "/api/embed"),
    ("ollama", Wire.OLLAMA_EMBEDDINGS, "/api/embeddings"),
    ("vllm", Wire.OPENAI_CHAT, "/v1/chat/completions"),
    ("vllm", Wire.OPENAI_COMPLETION, "/v1/completions"),
    ("vllm", Wire.OPENAI_EMBEDDINGS, "/v1/embeddings"),
]


def test_the_paths_are_all_there() -> None:
    assert [(kind, wire, path) for kind, profile in KINDS.items() for wire, path in profile.paths.items()] == PATHS


@pytest.mark.parametrize(("kind", "wire", "path"), PATHS)
async def test_a_wire_has_its_path(client: AiohttpClient, kind: str, wire: Wire, path: str) -> None:
    lines: list[str] = []

    async def play(connection: Connection) -> None:
        lines.append((await connection.request())[0].partition("\r\n")[0])
        await connection.answer(b"{}")

    async with RawServer(play) as server:
        reply = await transport_to(client, server.url, kind=kind).open(WireRequest("r", wire, "m", b"{}", False))
        await reply.aclose()
    assert lines == [f"POST {path} HTTP/1.1"]


async def test_the_key_goes_out_and_shows_nowhere(client: AiohttpClient) -> None:
    heads: list[str] = []

    async def play(connection: Connection) -> None:
        heads.append((await connection.request())[0])
        await connection.answer(b"{}", "401 Unauthorized")

    async with RawServer(play) as server:
        failed = await failure(transport_to(client, server.url))
    assert "authorization: bearer secret" in heads[0].lower()
    assert "secret" not in repr(failed)


@pytest.mark.parametrize("way", ["read to the end", "closed early", "cut", "refused", "error status", "cancelled"])
async def test_a_request_is_in_flight_until_it_ends(client: AiohttpClient, way: str) -> None:
    async def error(connection: Connection) -> None:
        await connection.request()
        await connection.answer(b"no", "500 No")

    plays = {"cut": chunked(b"part", ends=False), "error status": error, "cancelled": silence}
    async with RawServer(plays.get(way, chunked(b"part"))) as server:
        transport = transport_to(client, await closed_port() if way == "refused" else server.url)
        opening = asyncio.create_task(transport.open(REQUEST))
        await asyncio.sleep(0)
        assert in_flight(transport) == 1
        if way == "cancelled":
            await arrived(server)
            opening.cancel()
        if way in ("refused", "error status", "cancelled"):
            with pytest.raises((AttemptFailed, asyncio.CancelledError)):
                await opening
            assert in_flight(transport) == 0
            return
        reply = await opening
        assert in_flight(transport) == 1
        assert await reply.read() == b"part"
        if way == "cut":
            with pytest.raises(AttemptFailed):
                await reply.read()
        if way == "read to the end":
            assert await reply.read() == b""
        if way == "closed early":
            await reply.aclose()
        assert in_flight(transport) == 0
        await reply.aclose()
        await reply.aclose()
        assert in_flight(transport) == 0


async def test_requests_spread_over_endpoints(client: AiohttpClient) -> None:
    async with RawServer(chunked(b"a")) as a, RawServer(chunked(b"b")) as b:
        transport = transport_to(client, a.url, b.url)
        replies = [await transport.open(REQUEST) for _ in range(4)]
        assert sorted(reply.endpoint for reply in replies) == sorted([a.url, a.url, b.url, b.url])
        for reply in replies:
            await reply.aclose()


async def test_it_goes_where_the_request_says(client: AiohttpClient) -> None:
    async with RawServer(chunked(b"a")) as a, RawServer(chunked(b"b")) as b:
        transport = transport_to(client, a.url, b.url)
        for _ in range(3):
            reply = await transport.open(WireRequest("r", Wire.OPENAI_CHAT, "m", b"{}", False, endpoint=b.url))
            assert reply.endpoint == b.url
            await reply.aclose()


async def test_an_endless_error_body_is_cut(client: AiohttpClient) -> None:
    left = asyncio.Event()

    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                await connection.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        except ConnectionError:
            left.set()
            raise

    async with RawServer(play) as server:
        failed = await failure(transport_to(client, server.url))
        await asyncio.wait_for(left.wait(), 2.0)
    assert failed.outcome == Outcome(kind=Kind.SERVER, status=500, code="status")
    assert failed.client_body == b""


@pytest.mark.parametrize(("size", "whole"), [(module.MAX_ERROR_BYTES, True), (module.MAX_ERROR_BYTES + 1, False)])
async def test_an_error_body_within_the_limit_is_the_caller_s(client: AiohttpClient, size: int, whole: bool) -> None:
    body = b'{"error":"no"%s}' % (b" " * (size - 14))

    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.answer(body, "400 No")

    async with RawServer(play) as server:
        failed = await failure(transport_to(client, server.url))
    assert failed.client_body == (body if whole else b"")
    assert failed.client_text == ("no" if whole else '{"error":"no"')


@pytest.mark.parametrize("ending", ["stays open", "breaks off"])
async def test_an_error_body_that_does_not_end_is_used_as_far_as_it_came(
    client: AiohttpClient, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(module, "MAX_ERROR_S", 0.05)

    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 503 No\r\nContent-Length: 99\r\n\r\nserver busy")
        if ending == "stays open":
            await connection.gone()

    async with RawServer(play) as server:
        failed = await failure(transport_to(client, server.url))
    assert (failed.outcome.kind, failed.client_text) == (Kind.SATURATED, "server busy")


async def test_a_document_is_fetched_from_a_live_endpoint(client: AiohttpClient) -> None:
    async with RawServer(chunked(b'{"models":', b"[]}")) as server:
        transport = transport_to(client, await closed_port(), server.url)
        dead, _ = transport._pool
        dead.up = False
        assert await transport.fetch("/api/tags") == b'{"models":[]}'


async def test_a_document_is_bounded_in_bytes_and_time(client: AiohttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 10)
    monkeypatch.setattr(module, "DOCUMENT_S", 0.05)
    for play, kind in ((chunked(b"x" * 11), Kind.MALFORMED), (silence, Kind.TIMEOUT)):
        async with RawServer(play) as server:
            with pytest.raises(AttemptFailed) as caught:
                await transport_to(client, server.url).fetch("/")
            assert caught.value.outcome.kind is kind


# --- an endpoint that is found dead -----------------------------------------------------------------------------------


async def test_requests_that_wait_for_a_dead_endpoint_end_at_once(client: AiohttpClient) -> None:
    async with RawServer(silence) as server:
        transport = transport_to(client, server.url)
        (state,) = transport._pool
        opening = asyncio.create_task(failure(transport))
        await arrived(server)
        state.cut_waiting()
        state.cut_waiting()
        failed = await asyncio.wait_for(opening, 0.25)
        assert failed.outcome == Outcome(kind=Kind.TIMEOUT, code="endpoint_down")
        assert not opening.cancelling()
    assert (in_flight(transport), state.waiting, state.cut) == (0, set(), set())


async def test_a_cut_and_a_cancellation_at_once_is_a_cancellation(client: AiohttpClient) -> None:
    async with RawServer(silence) as server:
        transport = transport_to(client, server.url)
        (state,) = transport._pool
        opening = asyncio.create_task(transport.open(REQUEST))
        await arrived(server)
        state.cut_waiting()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening


async def test_a_cut_within_a_time_limit_is_not_taken_for_the_limit(client: AiohttpClient) -> None:
    async def limited() -> AttemptFailed:
        async with asyncio.timeout(5.0):
            return await failure(transport)

    async with RawServer(silence) as server:
        transport = transport_to(client, server.url)
        opening = asyncio.create_task(limited())
        await arrived(server)
        next(iter(transport._pool)).cut_waiting()
        assert (await opening).outcome.code == "endpoint_down"


async def head_only(connection: Connection) -> None:
    await connection.request()
    await connection.send(HEAD)
    await connection.gone()


DOWN = Outcome(kind=Kind.TIMEOUT, code="endpoint_down")


async def test_a_stream_without_content_ends_at_once_when_its_endpoint_is_found_dead(client: AiohttpClient) -> None:
    async def read() -> AttemptFailed:
        async with asyncio.timeout(5.0):
            with pytest.raises(AttemptFailed) as caught:
                await reply.read()
        return caught.value

    async with RawServer(head_only) as server:
        transport = transport_to(client, server.url)
        (state,) = transport._pool
        reply = await transport.open(REQUEST)
        reading = asyncio.create_task(read())
        await until(lambda: state.waiting)
        state.cut_waiting()
        assert (await reading).outcome == DOWN
        assert not reading.cancelling()
        assert (in_flight(transport), state.waiting, state.cut) == (0, set(), set())
        await reply.aclose()


async def test_a_reply_whose_endpoint_died_between_two_reads_ends_with_the_next(client: AiohttpClient) -> None:
    async with RawServer(chunked(b"part")) as server:
        transport = transport_to(client, server.url)
        reply = await transport.open(REQUEST)
        next(iter(transport._pool)).cut_waiting()
        with pytest.raises(AttemptFailed) as caught:
            await reply.read()
        assert (caught.value.outcome, in_flight(transport)) == (DOWN, 0)
        await reply.aclose()


async def test_a_request_to_an_endpoint_that_was_down_before_is_not_cut_for_it(client: AiohttpClient) -> None:
    async with RawServer(chunked(b"part")) as server:
        transport = transport_to(client, server.url)
        (state,) = transport._pool
        state.up = False
        state.cut_waiting()
        reply = await transport.open(REQUEST)
        assert await reply.read() == b"part"
        await reply.aclose()


async def test_a_read_that_is_cut_and_cancelled_at_once_is_cancelled(client: AiohttpClient) -> None:
    async with RawServer(head_only) as server:
        transport = transport_to(client, server.url)
        (state,) = transport._pool
        reply = await transport.open(REQUEST)
        reading = asyncio.create_task(reply.read())
        await until(lambda: state.waiting)
        state.cut_waiting()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await reply.aclose()


async def test_committed_replies_are_left_alone(client: AiohttpClient) -> None:
    resumes = asyncio.Event()

    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.send(HEAD + b"4\r\npart\r\n")
        await resumes.wait()
        await connection.send(b"4\r\nrest\r\n")
        await connection.gone()

    async with RawServer(play) as server:
        transport = transport_to(client, server.url)
        (state,) = transport._pool
        reply = await transport.open(REQUEST)
        assert await reply.read() == b"part"
        reply.committed()
        state.cut_waiting()
        reading = asyncio.create_task(reply.read())
        await asyncio.sleep(0)  # its first step: it waits for more
        state.cut_waiting()
        resumes.set()
        assert await reading == b"rest"
        await reply.aclose()


async def test_the_breaker_hears_of_attempts_from_the_bus_only(client: AiohttpClient) -> None:
    bus, url = Bus(), await closed_port()
    transport = transport_to(client, url, bus=bus)
    for _ in range(9):
        assert (await failure(transport)).outcome.kind is Kind.CONNECT
    assert transport.offer("m").refused is None
    for _ in range(5):
        bus.emit(
            AttemptEnded(
                request_id="r",
                provider="p",
                endpoint=url,
                arm="candidate",
                component="c",
                model="m",
                outcome=Outcome(kind=Kind.CONNECT),
                duration_s=0.0,
                at=0.0,
            )
        )
    assert transport.offer("m").refused == "breaker-open"
    assert (await failure(transport)).outcome.kind is Kind.CONNECT  # a best effort all the same
