"""Both `BackendClient`s against servers that misbehave on the wire."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from rawserver import Connection, RawServer, closed_port

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.ports import BackendClient, RawReply
from memos_llm.providers.client import FAULTS, AiohttpClient, translate
from memos_llm.providers.connections import KEEP_ALIVE_S
from memos_llm.providers.http1 import Http1Client

HEADERS = {"Accept-Encoding": "identity", "Content-Type": "application/json", "X-Request-Id": "r-1"}


Made = type[AiohttpClient] | type[Http1Client]


@pytest.fixture(params=[AiohttpClient, Http1Client])
def made(request: pytest.FixtureRequest) -> Made:
    kind: Made = request.param
    return kind


@pytest.fixture
async def client(made: Made) -> AsyncIterator[BackendClient]:
    client = made()
    yield client
    await client.aclose()


async def post(client: BackendClient, url: str, body: bytes = b"{}", *, connect_s: float = 3.0) -> RawReply:
    return await client.send("POST", url + "/x", HEADERS, body, connect_s=connect_s)


async def read_all(reply: RawReply) -> bytes:
    body = b""
    while chunk := await reply.read():
        body += chunk
    await reply.aclose()
    return body


async def outcome_of(client: BackendClient, url: str, *, connect_s: float = 3.0) -> Outcome:
    with pytest.raises(AttemptFailed) as caught:
        await post(client, url, connect_s=connect_s)
    return caught.value.outcome


async def serve(connection: Connection) -> None:
    while True:
        await connection.request()
        await connection.answer(b"hello")


async def test_a_request_carries_our_headers_and_no_others(client: BackendClient) -> None:
    heads: list[str] = []

    async def play(connection: Connection) -> None:
        heads.append((await connection.request())[0])
        await connection.answer(b"", "200 OK", "Set-Cookie: a=b")
        heads.append((await connection.request())[0])
        await connection.answer(b"")

    async with RawServer(play) as server:
        await read_all(await post(client, server.url))
        await read_all(await post(client, server.url))
    names = [sorted(line.partition(":")[0].lower() for line in head.split("\r\n")[1:] if line) for head in heads]
    assert names == [["accept-encoding", "content-length", "content-type", "host", "x-request-id"]] * 2


async def test_reads_bytes_as_they_came_and_does_not_decompress(client: BackendClient) -> None:
    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.answer(b"\x1f\x8bnot really", "200 OK", "Content-Encoding: gzip")

    async with RawServer(play) as server:
        assert await read_all(await post(client, server.url)) == b"\x1f\x8bnot really"


async def test_a_large_body_arrives_whole_and_without_a_warning(client: BackendClient) -> None:
    body = b"x" * 3_000_000
    got: list[bytes] = []

    async def play(connection: Connection) -> None:
        got.append((await connection.request())[1])
        await connection.answer(b"ok")

    async with RawServer(play) as server:
        assert await read_all(await post(client, server.url, body)) == b"ok"
    assert got == [body]


async def test_follows_no_redirect(client: BackendClient) -> None:
    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.answer(b"", "307 Temporary Redirect", "Location: /elsewhere")

    async with RawServer(play) as server:
        reply = await post(client, server.url)
        assert reply.status == 307
        await reply.aclose()
        assert server.accepted == 1


async def test_heeds_no_proxy_of_the_environment(client: BackendClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", await closed_port())
    monkeypatch.setenv("HTTP_PROXY", await closed_port())
    async with RawServer(serve) as server:
        assert await read_all(await post(client, server.url)) == b"hello"


async def test_a_connection_is_used_again(client: BackendClient) -> None:
    async with RawServer(serve) as server:
        for _ in range(3):
            await read_all(await post(client, server.url))
        assert server.accepted == 1


async def test_an_idle_connection_expires(made: Made) -> None:
    client = made(keep_alive_s=0.01)
    async with RawServer(serve) as server:
        await read_all(await post(client, server.url))
        await asyncio.sleep(0.02)  # longer than it may be idle
        await read_all(await post(client, server.url))
        assert server.accepted == 2
    await client.aclose()


async def answer_once_then_hang_up_on_the_next(connection: Connection) -> None:
    """vLLM's keep-alive race: the idle connection is closed at the very moment of its reuse."""
    await connection.request()
    await connection.answer(b"first")
    await connection.request()


async def reset_on_the_next(connection: Connection) -> None:
    await answer_once_then_hang_up_on_the_next(connection)
    connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.reset()


@pytest.mark.parametrize("play", [answer_once_then_hang_up_on_the_next, reset_on_the_next])
async def test_a_reused_connection_that_ends_before_any_byte_is_tried_once_more(
    client: BackendClient, play: object
) -> None:
    async with RawServer(play, serve) as server:  # type: ignore[arg-type]  # a script wider than its type
        assert await read_all(await post(client, server.url)) == b"first"
        assert await read_all(await post(client, server.url)) == b"hello"
        assert server.accepted == 2


async def test_the_retry_uses_no_other_pooled_connection(client: BackendClient) -> None:
    all_there = asyncio.Event()

    async def stale(connection: Connection) -> None:
        await connection.request()
        if server.accepted == 3:
            all_there.set()
        await all_there.wait()
        await connection.answer(b"first")
        await connection.request()

    async with RawServer(stale, stale, stale, serve) as server:
        for reply in await asyncio.gather(*(post(client, server.url) for _ in range(3))):
            await read_all(reply)
        assert await read_all(await post(client, server.url)) == b"hello"
        assert server.accepted == 4


async def test_the_retry_happens_once(client: BackendClient) -> None:
    async def hang_up(connection: Connection) -> None:
        await connection.request()

    async with RawServer(answer_once_then_hang_up_on_the_next, hang_up) as server:
        await read_all(await post(client, server.url))
        outcome = await outcome_of(client, server.url)
        assert (outcome.kind, outcome.code, server.accepted) == (Kind.TRUNCATED, "no_answer", 2)


async def test_a_reused_connection_that_ends_within_the_head_is_not_tried_again(client: BackendClient) -> None:
    async def play(connection: Connection) -> None:
        await answer_once_then_hang_up_on_the_next(connection)
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-")

    async with RawServer(play, serve) as server:
        await read_all(await post(client, server.url))
        outcome = await outcome_of(client, server.url)
        assert outcome.kind in (Kind.TRUNCATED, Kind.MALFORMED)
        assert server.accepted == 1


async def test_a_fresh_connection_that_ends_before_any_byte_is_not_tried_again(client: BackendClient) -> None:
    async def hang_up(connection: Connection) -> None:
        await connection.request()

    async with RawServer(hang_up) as server:
        outcome = await outcome_of(client, server.url)
        assert (outcome.kind, outcome.code, server.accepted) == (Kind.TRUNCATED, "no_answer", 1)


async def test_a_refused_connection_says_so(client: BackendClient) -> None:
    assert await outcome_of(client, await closed_port()) == Outcome(kind=Kind.CONNECT, code="refused")


async def test_a_name_that_does_not_resolve_says_so(client: BackendClient) -> None:
    assert await outcome_of(client, "http://no-such-host.invalid") == Outcome(kind=Kind.CONNECT, code="dns")


async def test_tls_with_a_server_that_speaks_none_says_so(client: BackendClient) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await connection.gone()

    async with RawServer(play) as server:
        assert await outcome_of(client, server.url.replace("http", "https")) == Outcome(kind=Kind.CONNECT, code="tls")


async def test_a_connect_that_nobody_accepts_times_out(client: BackendClient) -> None:
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):  # fills the backlog: the next handshake is left hanging
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert await outcome_of(client, url, connect_s=0.1) == Outcome(kind=Kind.TIMEOUT, code="connect")


async def test_endless_headers_are_cut_off(client: BackendClient) -> None:
    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await connection.send(b"X-More: and more\r\n" * 100)

    async with RawServer(play) as server:
        assert await outcome_of(client, server.url) == Outcome(kind=Kind.MALFORMED, code="http")


async def test_an_endless_header_line_is_cut_off(client: BackendClient) -> None:
    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nX-More: ")
        while True:
            await connection.send(b"more" * 1000)

    async with RawServer(play) as server:
        assert await outcome_of(client, server.url) == Outcome(kind=Kind.MALFORMED, code="http")


async def test_what_is_not_http_is_malformed_and_not_quoted(client: BackendClient) -> None:
    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"CANARY and more\r\n\r\n")

    async with RawServer(play) as server:
        with pytest.raises(AttemptFailed) as caught:
            await post(client, server.url)
    assert caught.value.outcome.kind is Kind.MALFORMED
    assert "CANARY" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "part",
    [
        b"Content-Length: 100\r\n\r\npart",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
    ],
)
async def test_a_body_that_breaks_off_is_truncated(client: BackendClient, part: bytes) -> None:
    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n" + part)

    async with RawServer(play) as server:
        reply = await post(client, server.url)
        with pytest.raises(AttemptFailed) as caught:
            await read_all(reply)
        await reply.aclose()
    assert caught.value.outcome == Outcome(kind=Kind.TRUNCATED, code="cut")


@pytest.mark.parametrize("moment", ["before the head", "before the body", "within the body"])
async def test_leaving_early_closes_the_connection_at_once(client: BackendClient, moment: str) -> None:
    left = asyncio.Event()
    sent = asyncio.Event()

    async def play(connection: Connection) -> None:
        await connection.request()
        if moment != "before the head":
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        if moment == "within the body":
            await connection.send(b"part")
        sent.set()
        await connection.gone()
        left.set()

    async with RawServer(play) as server:
        sending = asyncio.create_task(post(client, server.url))
        await sent.wait()
        if moment == "before the head":
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
        else:
            reply = await sending
            if moment == "within the body":
                assert await reply.read() == b"part"
            await reply.aclose()
            await reply.aclose()
        await asyncio.wait_for(left.wait(), 0.25)


async def test_closing_twice_is_harmless(made: Made) -> None:
    client = made()
    await client.aclose()
    async with RawServer(serve) as server:
        await read_all(await post(client, server.url))
    await client.aclose()
    await client.aclose()


def subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for child in base.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_exception_of_aiohttp_is_mapped() -> None:
    ours = {c.__name__ for c in subclasses(aiohttp.ClientError) if "aiohttp." in c.__module__}
    assert len(ours) > 20
    assert ours - set(FAULTS) == set()


def test_an_unknown_error_of_the_system_is_still_translated() -> None:
    assert translate(ssl.SSLError("x")).kind is Kind.TRUNCATED
    assert translate(TimeoutError()).kind is Kind.TIMEOUT
    assert KEEP_ALIVE_S < 5.0
