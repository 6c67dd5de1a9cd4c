"""The client against the upstream: both are measuring instruments, so both must be right."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from memos_llm.bench.load import Client, WrongAnswer
from memos_llm.bench.upstream import Streams, Upstream
from memos_llm.bench.wire import CHAT, NATIVE, VLLM_MODEL, requests


@asynccontextmanager
async def upstream() -> AsyncIterator[Client]:
    streams, opened = Streams(tick_s=0.001), list[Upstream]()

    def connection() -> Upstream:
        opened.append(Upstream(streams))
        return opened[-1]

    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
    ticking = asyncio.create_task(streams.run())
    client = Client(server.sockets[0].getsockname()[1])
    try:
        yield client
    finally:
        client.close()
        ticking.cancel()
        server.close()
        while not all(connection._transport.is_closing() for connection in opened):
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # a closing transport lets go of its socket in the loop's next turn
        await server.wait_closed()


async def test_a_whole_answer_is_a_completion_of_the_model_that_was_asked_for() -> None:
    (request,) = requests(CHAT, 1, stream=False, tokens=8)
    async with upstream() as client:
        answer = await client.ask(request.replace(b"qwen3:8b", b"qwen3:9b"))
    assert answer.status == 200
    assert msgspec.json.decode(answer.body)["model"] == "qwen3:9b"


async def test_a_stream_has_its_tokens_and_three_events_around_them() -> None:
    (request,) = requests(CHAT, 1, stream=True, tokens=8)
    async with upstream() as client:
        answer = await client.ask(request)
    assert answer.events == 8 + 3  # role, finish, [DONE]
    assert answer.body.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_usage_comes_only_when_asked_for() -> None:
    (request,) = requests(CHAT, 1, stream=True, tokens=2)
    body = request.partition(b"\r\n\r\n")[2]
    asked = body.replace(b'"stream":true', b'"stream":true,"stream_options":{"include_usage":true}')
    longer = request.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % len(asked))
    async with upstream() as client:
        without = await client.ask(request)
        having = await client.ask(longer.replace(body, asked))
    assert (without.events, having.events) == (2 + 3, 2 + 4)
    assert b'"usage"' not in without.body


async def test_a_native_stream_is_one_record_a_line() -> None:
    (request,) = requests(NATIVE, 1, stream=True, tokens=3)
    async with upstream() as client:
        answer = await client.ask(request)
    assert answer.events == 3 + 1
    assert answer.body.count(b'"done":true') == 1


async def test_the_documents_that_probes_ask_for_are_there() -> None:
    async with upstream() as client:
        models = await client.ask(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        nothing = await client.ask(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert msgspec.json.decode(models.body)["data"][0]["id"] == VLLM_MODEL
    assert nothing.status == 404


async def test_a_burst_counts_every_answer_and_reuses_its_connections() -> None:
    prepared = requests(CHAT, 4, stream=True, tokens=2)
    async with upstream() as client:
        first = await client.burst(prepared, connections=3, count=10, least_events=2)
        second = await client.burst(prepared, connections=3, count=10)
        assert len(client._idle) == 3
    assert (first.answers, first.events, len(first.whole_s)) == (10, 10 * 5, 10)
    first.add(second)
    assert first.answers == 20


@pytest.mark.parametrize(("path", "least_events"), [("/nothing", 0), (CHAT, 99)])
async def test_a_wrong_answer_ends_the_run(path: str, least_events: int) -> None:
    prepared = requests(path, 1, stream=path == CHAT, tokens=2)
    async with upstream() as client:
        with pytest.raises(WrongAnswer):
            await client.burst(prepared, connections=2, count=4, least_events=least_events)
