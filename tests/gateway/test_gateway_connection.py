"""One client's connection: whoever leaves or falls silent holds nothing for long, whatever he had sent before."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attacking import HOST, Line, port_of, post
from stack import Stack, open_stack

from memos_llm.core.events import RequestStarted
from memos_llm.gateway import admin_events, connection, inference, server

TOKEN = "test-admin-token-0123456789"
VERSION = b"GET /api/version HTTP/1.1\r\n" + HOST + b"\r\n"
LONG = b'{"model":"qwen3:8b","messages":[{"role":"user","content":"words:6000"}],"stream":false}'


# --- who leaves -------------------------------------------------------------------------------------------------------


async def test_who_leaves_while_his_body_is_counted_is_not_asked_for(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, lost, told = asyncio.Event(), asyncio.Event(), connection.ClientConnection.connection_lost

    async def count(body: bytes, limit: int) -> None:
        counting.set()
        await lost.wait()

    def lose(self: connection.ClientConnection, exc: Exception | None) -> None:
        told(self, exc)
        lost.set()

    monkeypatch.setattr(inference, "check_values", count)
    monkeypatch.setattr(connection.ClientConnection, "connection_lost", lose)
    line = await Line.to(stack.url)
    await line.send(post(body=b'{"model":"qwen3:8b","messages":[],"x":"' + b"y" * 300_000 + b'"}'))
    await counting.wait()
    line.close()
    await lost.wait()
    other = await Line.to(stack.url)
    await other.send(post(headers=b"x-request-id: other\r\n"))
    assert (await other.answer()).status == 200
    assert [event.request_id for event in stack.told.of(RequestStarted)] == ["other"]
    other.close()


async def test_a_listener_who_asked_for_more_behind_the_events_is_seen_to_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMOS_LLM_ADMIN_TOKEN", TOKEN)
    for name, value in {"MOST": 1, "HEARTBEAT_S": 0.02, "LOOK_S": 0.02}.items():
        monkeypatch.setattr(admin_events, name, value)
    bearer = {"authorization": f"Bearer {TOKEN}"}
    async with open_stack(tmp_path) as stack, stack.client(headers=bearer) as client:

        async def status() -> int:
            async with client.stream("GET", "/admin/v1/events") as response:
                return response.status_code

        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(stack.url))
        events = b"GET /admin/v1/events HTTP/1.1\r\n" + HOST + b"authorization: Bearer %b\r\n\r\n" % TOKEN.encode()
        writer.write(events + VERSION)
        await asyncio.wait_for(reader.readuntil(b": listening"), 5)
        assert await status() == 503
        writer.transport.abort()
        async with asyncio.timeout(5):
            while await status() != 200:
                await asyncio.sleep(0.02)


# --- who falls silent -------------------------------------------------------------------------------------------------


async def test_an_empty_line_behind_an_answer_keeps_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.3)
    async with open_stack(tmp_path) as stack:
        line = await Line.to(stack.url)
        await line.send(VERSION)
        assert (await line.answer()).status == 200
        await line.send(b"\r\n")
        assert await line.rest(5) == b""
        line.close()


async def test_who_had_begun_to_ask_behind_an_answer_is_not_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.2)
    async with open_stack(tmp_path, ollama={"ttft_s": 0.4}) as stack:
        line = await Line.to(stack.url)
        await line.send(post() + post()[:20])
        assert (await line.answer()).status == 200
        await line.send(post()[20:])
        assert (await line.answer()).status == 200
        line.close()


@contextmanager
def deaf(url: str, sent: bytes) -> Iterator[None]:
    """A client with small buffers that reads nothing."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port_of(url)))
        client.sendall(sent)
        yield


ENDINGS = {
    "its last request": post(body=LONG, headers=b"connection: close\r\n"),
    "nothing more": post(body=LONG),
    "a fault": post(body=LONG) + b"GARBAGE\r\n\r\n",
}


@pytest.mark.parametrize("sent", ENDINGS.values(), ids=ENDINGS)
async def test_who_does_not_read_the_end_holds_no_connection(
    sent: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less is unread than makes an answer wait, and a transport that is closed waits for it to be read."""
    bind = server.bind

    def small(host: str, port: int) -> socket.socket:
        listener = bind(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listener

    monkeypatch.setattr(server, "bind", small)
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.2)
    monkeypatch.setattr(connection, "LINGER_S", 0.1)
    monkeypatch.setattr(connection, "STUCK_S", 0.2)
    async with open_stack(tmp_path, config={"gateway": {"max_connections": 1}}) as stack:

        async def status() -> int:
            line = await Line.to(stack.url)
            await line.send(VERSION)
            status = (await line.answer()).status
            line.close()
            return status

        with deaf(stack.url, sent):
            await stack.ended()
            assert await status() == 503
            async with asyncio.timeout(5):
                while await status() != 200:
                    await asyncio.sleep(0.02)
