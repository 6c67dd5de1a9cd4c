"""A client that leaves is gone upstream within 250 ms: streaming or not, before and after the first token."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from stack import Stack, open_stack, until

from memos_llm.core.events import RequestEnded
from memos_llm.gateway import connection

LIMIT_S = 0.25
DIALECTS = {
    "openai": "/v1/chat/completions",
    "chat": "/api/chat",
    "generate": "/api/generate",
}
MOMENTS = {  # emulator timing, streaming, bytes of the answer to wait for
    "stream, before the first token": ({"ttft_s": 30.0}, True, 0),
    "stream, after the first token": ({"inter_token_s": 0.05}, True, 1),
    "whole, before the answer": ({"ttft_s": 30.0}, False, 0),
    "whole, while it is generated": ({"inter_token_s": 1.0}, False, 0),
}


async def leave(
    stack: Stack, path: str, stream: bool, wait_bytes: int, emulator: Any, prompt: str = "Tell me a long story."
) -> float:
    """Send, wait until the back end is at work (and some bytes came), close; seconds until the back end noticed."""
    port = int(stack.url.rpartition(":")[2])
    await until(lambda: emulator.counters.in_flight == 0)  # who left before us is gone
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    messages = [{"role": "user", "content": prompt}]
    body = json.dumps({"model": "qwen3:8b", "messages": messages, "prompt": prompt, "stream": stream}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    before = emulator.counters.aborted
    await until(lambda: emulator.counters.in_flight > 0)
    if wait_bytes:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(wait_bytes)
    writer.transport.abort()
    left_at = time.monotonic()
    await until(lambda: emulator.counters.aborted > before)
    return float(emulator.counters.last_abort_monotonic - left_at)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("share", [0.0, 1.0], ids=["ollama", "vllm"])
async def test_a_client_that_leaves_is_gone_upstream_at_once(moment: str, share: float, tmp_path: Path) -> None:
    timing, stream, wait_bytes = MOMENTS[moment]
    async with open_stack(tmp_path, ollama=timing, vllm=timing) as stack:
        await stack.shift(share)
        emulator = stack.vllm if share else stack.ollama
        for path in DIALECTS.values():
            best = min([await leave(stack, path, stream, wait_bytes, emulator) for _ in range(3)])
            assert best <= LIMIT_S, path
        ended = await stack.ended(3 * len(DIALECTS))
        assert {end.outcome.kind.value for end in ended} == {"cancelled"}
        await until(lambda: emulator.counters.in_flight == 0)


@pytest.mark.parametrize("size", [1_000, 200_000, 2_000_000])
async def test_a_client_with_a_body_of_any_size_is_seen_to_leave(size: int, tmp_path: Path) -> None:
    async with open_stack(tmp_path, ollama={"ttft_s": 30.0}) as stack:
        best = min([await leave(stack, "/api/generate", False, 0, stack.ollama, "x" * size) for _ in range(3)])
        assert best <= LIMIT_S


async def test_a_client_that_leaves_while_a_fallback_is_tried_is_gone_too(tmp_path: Path) -> None:
    async with open_stack(tmp_path, ollama={"ttft_s": 30.0}) as stack:
        await stack.shift(1.0)
        stack.vllm.faults.set("status:code=500")
        assert await leave(stack, "/api/chat", True, 0, stack.ollama) <= 5.0
        await stack.ended()
        assert stack.attempts() == [("vllm", "server"), ("ollama", "cancelled")]


async def ask_for_much(stack: Stack, client: socket.socket) -> None:
    """A client with small buffers that asks for a long stream and has read nothing of it yet."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", int(stack.url.rpartition(":")[2])))
    messages = [{"role": "user", "content": "words:100000"}]
    body = json.dumps({"model": "qwen3:8b", "messages": messages, "stream": True}).encode()
    await loop.sock_sendall(
        client, b"POST /api/chat HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    await loop.sock_sendall(client, body)


async def test_who_reads_nothing_is_cut_and_who_reads_slowly_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STUCK_S", 1.0)
    async with open_stack(tmp_path, ollama={"inter_token_s": 0.0}) as stack:
        with socket.socket() as slow, socket.socket() as deaf:
            await ask_for_much(stack, slow)
            await ask_for_much(stack, deaf)

            async def read_on() -> None:
                while await asyncio.get_running_loop().sock_recv(slow, 16384):
                    await asyncio.sleep(0.01)

            reading = asyncio.create_task(read_on())
            await until(lambda: bool(stack.told.of(RequestEnded)), 20)  # the buffers in between take much
            (end,) = stack.told.of(RequestEnded)
            assert end.outcome.kind.value == "cancelled"
            await until(lambda: stack.ollama.counters.in_flight == 1)
            assert not reading.done()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
