"""What `Http1Client` makes of a back end that means harm: bounds, and answers that belong to nobody."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from hostile import ATTACKS, BEFORE, HARMLESS, HostileServer, Script, hostile, sized
from rawserver import Connection, RawServer

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.providers import Http1Client
from memos_llm.providers.http1 import PAUSE_BYTES, PIECE_BYTES, Http1Reply

PATH = "/v1/chat/completions"
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
NOT_HTTP, CUT = Outcome(kind=Kind.MALFORMED, code="http"), Outcome(kind=Kind.TRUNCATED, code="cut")
NO_ANSWER = Outcome(kind=Kind.TRUNCATED, code="no_answer")
LIMIT_S = 0.3  # for what drips or hangs


@pytest.fixture
async def client() -> AsyncIterator[Http1Client]:
    client = Http1Client()
    yield client
    await client.aclose()


async def ask(client: Http1Client, url: str, body: bytes = b'{"stream":true}') -> Http1Reply:
    return await client.send("POST", url + PATH, {}, body, connect_s=3.0)


async def read_all(reply: Http1Reply) -> bytes:
    body = b""
    while chunk := await reply.read():
        body += chunk
    await reply.aclose()
    return body


async def outcome(client: Http1Client, server: HostileServer) -> Outcome | None:
    """How an answer failed that is read no further than an answer may be long, and for no longer than `LIMIT_S`."""
    reply = None
    try:
        async with asyncio.timeout(LIMIT_S):
            reply = await ask(client, server.url)
            size = 0
            while (chunk := await reply.read()) and size < 2**20:
                size += len(chunk)
    except (AttemptFailed, TimeoutError) as error:
        return error.outcome if isinstance(error, AttemptFailed) else None
    finally:
        if reply is not None:
            await reply.aclose()
    return None


HEADS = [
    name for name, (_, kind) in BEFORE.items() if kind == "malformed" and "text" not in name and "JSON" not in name
]


@pytest.mark.parametrize("attack", HEADS)
async def test_what_is_no_head_is_refused_at_once(attack: str, client: Http1Client) -> None:
    async with hostile(BEFORE[attack][0]) as server:
        found = await outcome(client, server)
        assert found == NOT_HTTP or "999" in attack  # that is a head, and a status that the transport refuses
        while server.open:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("attack", ATTACKS)
async def test_after_any_attack_the_next_answer_is_the_next_request_s(attack: str, client: Http1Client) -> None:
    async with hostile(ATTACKS[attack]) as server:
        await outcome(client, server)
        await outcome(client, server)
        for n in range(3):
            body = json.dumps({"n": n}).encode()
            server.attack = lambda h, body=body: Script(sized(h, body=body), ends="stays")  # type: ignore[misc]  # of this turn
            assert await read_all(await ask(client, server.url)) == body


async def test_an_answer_that_came_before_it_was_asked_for_is_never_taken(client: Http1Client) -> None:
    """It is in the kernel's hands when the request is sent, and the event loop has not looked yet."""
    async with hostile() as server:
        for n in range(50):
            server.attack = lambda h: Script(sized(h), ends="stays", later=sized(h, body=b"poison"))
            await read_all(await ask(client, server.url))
            body = b"%d" % n
            server.attack = lambda h, body=body: Script(sized(h, body=body), ends="stays")  # type: ignore[misc]  # of this turn
            server.speak()
            assert await read_all(await ask(client, server.url)) == body


async def test_a_connection_that_the_kernel_knows_to_be_closed_is_not_used(client: Http1Client) -> None:
    async with hostile() as server:
        await read_all(await ask(client, server.url))
        server.hang_up()
        assert await read_all(await ask(client, server.url))
        assert (server.accepted, server.served) == (2, 2)  # nothing was sent twice


async def test_one_read_gives_no_more_than_a_piece_and_others_have_their_turn_between(client: Http1Client) -> None:
    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.answer(b"x" * 2**20)

    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with RawServer(play) as back_end:
        reply = await ask(client, back_end.url)
        counting = asyncio.create_task(count())
        pieces = []
        while piece := await reply.read():
            pieces.append(piece)
        counting.cancel()
        assert b"".join(pieces) == b"x" * 2**20
        assert max(map(len, pieces)) == PIECE_BYTES
        assert turns > len(pieces) // 2  # but for those that came by themselves


async def test_a_body_of_single_bytes_is_held_back_like_any_other(client: Http1Client) -> None:
    """What keeping a chunk costs counts, not only what is in it."""
    sent = 0

    async def play(connection: Connection) -> None:
        nonlocal sent
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.writer.transport.set_write_buffer_limits(0)
        while True:
            await connection.send(b"1\r\nx\r\n" * 1000)
            sent += 1000

    async with RawServer(play) as back_end:
        reply = await ask(client, back_end.url)
        before = -1
        while before != sent or not sent:
            before = sent
            await asyncio.sleep(0.05)
        held = len(await reply.read())
        assert held * 64 < PAUSE_BYTES + 64 * 262_144 / 6  # and what one read of the socket brought
        await reply.aclose()


async def test_a_body_that_ends_with_the_connection_is_not_whole_because_we_end_it() -> None:
    client = Http1Client()

    async def play(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await connection.gone()

    async with RawServer(play) as back_end:
        reply = await ask(client, back_end.url)
        assert await reply.read() == b"half"
        reading = asyncio.create_task(reply.read())
        await asyncio.sleep(0)
        await client.aclose()
        with pytest.raises(AttemptFailed) as caught:
            await reading
        assert caught.value.outcome == CUT


async def test_who_says_that_he_says_no_more_has_not_answered(client: Http1Client) -> None:
    """Half-closed: its side is over, ours would still be open."""

    async def play(connection: Connection) -> None:
        await connection.request()
        connection.writer.write_eof()
        await connection.gone()

    async with RawServer(play) as back_end:
        with pytest.raises(AttemptFailed) as caught:
            await ask(client, back_end.url)
        assert caught.value.outcome == NO_ANSWER


async def test_a_connection_that_dies_again_and_again_is_tried_once_more_only(client: Http1Client) -> None:
    async def once(connection: Connection) -> None:
        await connection.request()
        await connection.send(HELLO)
        await connection.request()

    async with RawServer(once, lambda connection: connection.request()) as back_end:  # type: ignore[arg-type,return-value]  # what it read is of no use
        await read_all(await ask(client, back_end.url))
        with pytest.raises(AttemptFailed) as caught:
            await ask(client, back_end.url)
        assert caught.value.outcome == NO_ANSWER
        assert back_end.accepted == 2


async def test_who_leaves_at_any_moment_leaves_a_client_that_works(client: Http1Client) -> None:
    """A cancelled request gives its connection to nobody, and its turn to the next."""
    client = Http1Client(max_connections=2)

    async def slow(connection: Connection) -> None:
        while True:
            await connection.request()
            for byte in HELLO:
                await connection.send(bytes([byte]))
                await asyncio.sleep(0)

    async with RawServer(slow) as back_end:
        for steps in range(60):
            tasks = [asyncio.create_task(_whole(client, back_end.url)) for _ in range(4)]
            for _ in range(steps):
                await asyncio.sleep(0)
            tasks[steps % 4].cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert [one for one in done if one not in (b"hello",) and not isinstance(one, asyncio.CancelledError)] == []
    await client.aclose()


async def _whole(client: Http1Client, url: str) -> bytes:
    return await read_all(await ask(client, url))


async def test_a_client_belongs_to_its_loop_alone_and_another_works_in_the_next() -> None:
    async with hostile(HARMLESS["interim answers"]) as server:
        url = server.url

        def elsewhere() -> bytes:
            async def main() -> bytes:
                client = Http1Client()
                try:
                    return await _whole(client, url)
                finally:
                    await client.aclose()

            return asyncio.run(main())

        answers = [await asyncio.to_thread(elsewhere) for _ in range(2)]
        assert answers[0] == answers[1] != b""


async def test_a_server_that_takes_nothing_keeps_nobody_longer_than_he_waits(client: Http1Client) -> None:
    """An upload that fills the socket's buffers: who leaves is free at once, and so is the connection."""
    left, ended, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    async def deaf(connection: Connection) -> None:
        waits.reschedule(loop.time() + 0.1)  # its buffers are full by then
        await left.wait()
        await connection.gone()
        ended.set()

    async with RawServer(deaf) as back_end:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5) as waits:
                await ask(client, back_end.url, b"x" * 50_000_000)
        assert loop.time() - (waits.when() or 0.0) < 2.0  # at once, and what a busy machine takes
        left.set()
        await asyncio.wait_for(ended.wait(), 5)
