"""What `Http1Client` does by itself where the other client has a library: one answer per request, whatever is sent."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from rawserver import Connection, RawServer

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.providers.connections import Origin
from memos_llm.providers.http1 import PAUSE_BYTES, Http1Client, Http1Reply

NOT_HTTP = Outcome(kind=Kind.MALFORMED, code="http")
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture
async def client() -> AsyncIterator[Http1Client]:
    client = Http1Client()
    yield client
    await client.aclose()


async def send(client: Http1Client, url: str, method: str = "POST", **headers: str) -> Http1Reply:
    return await client.send(method, url + "/x", headers, b"{}" if method == "POST" else b"", connect_s=3.0)


async def read_all(reply: Http1Reply) -> bytes:
    body = b""
    while chunk := await reply.read():
        body += chunk
    await reply.aclose()
    return body


def says(*pieces: bytes, then_close: bool = False) -> "object":
    """A server that answers each request with the same pieces, each in a write of its own."""

    async def play(connection: Connection) -> None:
        while True:
            await connection.request()
            for piece in pieces:
                await connection.send(piece)
            if then_close:
                return

    return play


def server(*plays: object) -> RawServer:
    return RawServer(*plays)  # type: ignore[arg-type]  # scripts wider than their type


async def outcome(client: Http1Client, url: str) -> Outcome:
    with pytest.raises(AttemptFailed) as caught:
        await read_all(await send(client, url))
    return caught.value.outcome


# --- one answer per request -------------------------------------------------------------------------------------------


SURPLUS = [HELLO, b"HTTP/1.1 204 No Content\r\n\r\n", b"x", b"\0" * 100]


@pytest.mark.parametrize("surplus", SURPLUS)
async def test_what_follows_an_answer_reaches_nobody(client: Http1Client, surplus: bytes) -> None:
    async with server(says(HELLO.replace(b"hello", b"first") + surplus), says(HELLO)) as back_end:
        assert await read_all(await send(client, back_end.url)) == b"first"
        assert await read_all(await send(client, back_end.url)) == b"hello"
        assert back_end.accepted == 2


@pytest.mark.parametrize("surplus", SURPLUS)
async def test_what_is_sent_before_anybody_asks_reaches_nobody(client: Http1Client, surplus: bytes) -> None:
    ended = asyncio.Event()

    async def talkative(connection: Connection) -> None:
        await connection.request()
        await connection.send(HELLO.replace(b"hello", b"first"))
        await asyncio.sleep(0.01)  # another write, whatever the kernel makes of it
        await connection.send(surplus)
        await connection.gone()
        ended.set()

    async with server(talkative, says(HELLO)) as back_end:
        assert await read_all(await send(client, back_end.url)) == b"first"
        await asyncio.wait_for(ended.wait(), 5)
        assert await read_all(await send(client, back_end.url)) == b"hello"
        assert back_end.accepted == 2


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"]
)
async def test_an_interim_answer_is_passed_over(client: Http1Client, interim: bytes) -> None:
    async with server(says(interim, interim, HELLO)) as back_end:
        for _ in range(2):
            reply = await send(client, back_end.url)
            assert (reply.status, "link" in reply.headers, await read_all(reply)) == (200, False, b"hello")
        assert back_end.accepted == 1


async def test_interim_answers_without_end_are_cut_off(client: Http1Client) -> None:
    async def play(connection: Connection) -> None:
        await connection.request()
        while True:
            await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    async with server(play) as back_end:
        assert await outcome(client, back_end.url) == NOT_HTTP


async def test_nobody_changes_the_protocol(client: Http1Client) -> None:
    answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    async with server(says(answer)) as back_end:
        assert await outcome(client, back_end.url) == NOT_HTTP


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: +5",
        b"Content-Length: 5, 5",
        b"X: a\r\n folded",
    ],
)
async def test_a_head_that_two_readers_would_read_differently_is_none(client: Http1Client, head: bytes) -> None:
    async with server(says(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\nhello")) as back_end:
        assert await outcome(client, back_end.url) == NOT_HTTP


# --- where a body ends ------------------------------------------------------------------------------------------------


async def test_a_body_may_end_with_the_connection(client: Http1Client) -> None:
    async with server(says(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", then_close=True)) as back_end:
        for _ in range(2):
            assert await read_all(await send(client, back_end.url)) == b"hello"
        assert back_end.accepted == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
)
async def test_a_connection_that_is_to_close_is_not_used_again(client: Http1Client, answer: bytes) -> None:
    async with server(says(answer)) as back_end:
        for _ in range(2):
            assert await read_all(await send(client, back_end.url)) == b"hello"
        assert back_end.accepted == 2


async def test_chunks_trailers_and_all(client: Http1Client) -> None:
    pieces = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"3;a=b\r\nhel\r\n2",
        b"\r\nlo\r\n0\r\nX-End: 1\r\n\r\n",
    )
    async with server(says(*pieces)) as back_end:
        for _ in range(2):
            reply = await send(client, back_end.url)
            assert (await read_all(reply), "x-end" in reply.headers) == (b"hello", False)
        assert back_end.accepted == 1


@pytest.mark.parametrize("endless", [b"X-More: and more\r\n" * 100, b"more" * 1000])
async def test_trailers_without_end_are_cut_off(client: Http1Client, endless: bytes) -> None:
    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: ")
        while True:
            await connection.send(endless)

    async with server(play) as back_end:
        reply = await send(client, back_end.url)
        assert await reply.read() == b"hello"
        with pytest.raises(AttemptFailed) as caught:
            await reply.read()
        assert caught.value.outcome == Outcome(kind=Kind.TRUNCATED, code="cut")


async def test_a_chunk_that_is_none_breaks_the_body(client: Http1Client) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"
    async with server(says(answer)) as back_end:
        assert await outcome(client, back_end.url) == Outcome(kind=Kind.TRUNCATED, code="cut")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_an_answer_without_a_body_keeps_the_connection(client: Http1Client, status: str) -> None:
    async with server(says(f"HTTP/1.1 {status}\r\n\r\n".encode())) as back_end:
        for _ in range(2):
            assert await read_all(await send(client, back_end.url)) == b""
        assert back_end.accepted == 1


async def test_the_body_of_a_head_request_s_answer_reaches_nobody(client: Http1Client) -> None:
    async with server(says(HELLO)) as back_end:
        reply = await send(client, back_end.url, "HEAD")
        assert (reply.headers["Content-Length"], await read_all(reply)) == ("5", b"")
        assert await read_all(await send(client, back_end.url)) == b"hello"


# --- slow readers and early answers -----------------------------------------------------------------------------------


async def test_who_does_not_read_makes_the_back_end_wait(client: Http1Client) -> None:
    size = 64 * PAUSE_BYTES
    sent = 0

    async def play(connection: Connection) -> None:
        nonlocal sent
        await connection.request()
        await connection.send(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(64):
            await connection.send(b"x" * PAUSE_BYTES)
            sent += PAUSE_BYTES

    async with server(play) as back_end:
        reply = await send(client, back_end.url)
        before = -1
        while before != sent or not sent:  # until it stands still
            before = sent
            await asyncio.sleep(0.05)
        assert sent < size
        assert len(await read_all(reply)) == size


async def test_an_answer_that_comes_before_the_request_is_sent_is_taken_and_the_connection_left(
    client: Http1Client,
) -> None:
    async def hasty(connection: Connection) -> None:
        await connection.reader.readuntil(b"\r\n\r\n")
        await connection.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await asyncio.sleep(60)

    async with server(hasty, says(HELLO)) as back_end:
        reply = await client.send("POST", back_end.url, {}, b"x" * 50_000_000, connect_s=3.0)
        assert (reply.status, await read_all(reply)) == (413, b"no")
        assert await read_all(await send(client, back_end.url)) == b"hello"
        assert back_end.accepted == 2


# --- connections ------------------------------------------------------------------------------------------------------


async def test_who_waits_for_a_connection_gets_the_next_that_is_free() -> None:
    client = Http1Client(max_connections=1)
    async with server(says(HELLO[:-5])) as back_end:
        reply = await send(client, back_end.url)
        waiting = [asyncio.create_task(send(client, back_end.url)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        for task in waiting[1:]:
            await reply.aclose()
            reply = await asyncio.wait_for(task, 5)
        await reply.aclose()
        assert back_end.accepted == 3
    await client.aclose()


async def test_who_waits_gets_the_connection_that_comes_back_and_nobody_goes_before() -> None:
    client = Http1Client(max_connections=1)
    async with server(says(HELLO)) as back_end:
        begun: list[int] = []

        async def one(number: int) -> bytes:
            reply = await send(client, back_end.url)
            begun.append(number)
            return await read_all(reply)

        reply = await send(client, back_end.url)
        waiting = [asyncio.create_task(one(number)) for number in range(2)]
        await asyncio.sleep(0)
        await read_all(reply)
        newcomer = asyncio.create_task(one(2))
        assert await asyncio.wait_for(asyncio.gather(*waiting, newcomer), 5) == [b"hello"] * 3
        assert (begun, back_end.accepted) == ([0, 1, 2], 1)
    await client.aclose()


async def test_a_connection_that_comes_back_only_to_end_is_not_told_of_either() -> None:
    async def once(connection: Connection) -> None:
        await connection.request()
        await connection.send(HELLO)
        await connection.request()

    async def ask() -> bytes:
        return await read_all(await send(client, back_end.url))

    client = Http1Client(max_connections=1)
    async with server(once, once, says(HELLO)) as back_end:
        await ask()
        assert set(await asyncio.wait_for(asyncio.gather(ask(), ask()), 5)) == {b"hello"}
        assert back_end.accepted == 3
    await client.aclose()


async def test_closing_the_client_ends_what_is_in_use() -> None:
    client = Http1Client()
    async with server(says(HELLO[:-5])) as back_end:
        reply = await send(client, back_end.url)
        await client.aclose()
        with pytest.raises(AttemptFailed):
            await reply.read()


async def test_no_value_begins_a_header_of_its_own(client: Http1Client) -> None:
    async with server(says(HELLO)) as back_end:
        for value in ("a\r\nX-Evil: 1", "a\nb", "a\rb", "a\0"):
            with pytest.raises(AttemptFailed) as caught:
                await send(client, back_end.url, **{"X-Request-Id": value})
            assert caught.value.outcome == Outcome(kind=Kind.CONFIG, code="header")
        assert back_end.accepted == 0


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("http://a", "a", "/"),
        ("http://a:80/x", "a", "/x"),
        ("https://a/x", "a", "/x"),
        ("https://a:80/x", "a:80", "/x"),
        ("http://[::1]:8000//evil.example/x?a=%2F", "[::1]:8000", "//evil.example/x?a=%2F"),
        ("http://A.b:1/@evil.example", "a.b:1", "/@evil.example"),
    ],
)
def test_the_target_is_as_it_was_spelt(url: str, host: str, target: str) -> None:
    origin, found = Origin.of(url)
    assert (origin.host_header, found) == (host, target)


@pytest.mark.parametrize("url", ["a", "ftp://a", "http://", "http://a:b/", "http://u:p@a/", "http://" + "a" * 70])
async def test_what_is_no_address_is_a_fault_of_configuration(client: Http1Client, url: str) -> None:
    with pytest.raises(AttemptFailed) as caught:
        await client.send("GET", url, {}, b"", connect_s=1.0)
    assert caught.value.outcome == Outcome(kind=Kind.CONFIG, code="url")
