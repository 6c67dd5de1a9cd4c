"""Hostile clients: whatever bytes, over a socket of their own, and what came back."""

import asyncio
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HOST = b"host: 127.0.0.1\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
CHAT = b'{"model":"qwen3:8b","messages":[{"role":"user","content":"hi"}],"stream":false}'
NEXT = b"GET /api/version HTTP/1.1\r\n" + HOST + b"connection: close\r\n\r\n"

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)")


def head(
    path: bytes = b"/api/chat",
    headers: bytes = b"",
    *,
    method: bytes = b"POST",
    version: bytes = b"HTTP/1.1",
    host: bytes = HOST,
) -> bytes:
    return b"%b %b %b\r\n%b%b\r\n" % (method, path, version, host, headers)


def post(path: bytes = b"/api/chat", headers: bytes = b"", body: bytes = CHAT, *, host: bytes = HOST) -> bytes:
    return head(path, headers + b"content-length: %d\r\n" % len(body), host=host) + body


def chunks(body: bytes = CHAT, *, extension: bytes = b"", end: bytes = b"0\r\n\r\n") -> bytes:
    return b"%x%b\r\n%b\r\n%b" % (len(body), extension, body, end)


class Answer(NamedTuple):
    """One answer; status 0: the connection was closed without one."""

    status: int
    head: bytes
    body: bytes


class Line:
    """A connection of a hostile client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, url: str) -> "Line":
        return cls(*await asyncio.open_connection("127.0.0.1", port_of(url), limit=1 << 26))

    async def send(self, *pieces: bytes) -> None:
        """A gateway that has refused need not read on."""
        try:
            for piece in pieces:
                self._writer.write(piece)
                await self._writer.drain()
        except ConnectionError:
            return

    async def answer(self, timeout_s: float = 10.0) -> Answer:
        async with asyncio.timeout(timeout_s):
            try:
                start = await self._reader.readuntil(b"\r\n\r\n")
                if start.startswith(b"HTTP/1.1 100"):
                    start = await self._reader.readuntil(b"\r\n\r\n")
                length = _LENGTH.search(start)
                if b" 204 " in start[:14]:
                    body = b""
                elif length:
                    body = await self._reader.readexactly(int(length[1]))
                else:
                    body = await self._reader.readuntil(b"0\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                return Answer(0, b"", b"")
        return Answer(int(start[9:12]), start, body)

    async def rest(self, timeout_s: float = 10.0) -> bytes:
        """What comes until the connection ends."""
        async with asyncio.timeout(timeout_s):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    def close(self) -> None:
        self._writer.close()


class Played(NamedTuple):
    """What became of a shape: its answer, and whether the gateway closed behind it."""

    answer: Answer
    closed: bool
    took_s: float


async def play(url: str, *pieces: bytes) -> Played:
    """Send, read one answer, and see that a good request behind it is answered as the one it is, or not at all."""
    started, line = time.monotonic(), await Line.to(url)
    try:
        await line.send(*pieces)
        answer = await line.answer()
        took_s = time.monotonic() - started
        await line.send(NEXT)
        after = await line.answer()
        assert after.status in (0, 200), after
        assert after.status == 0 or b'"version"' in after.body, after
        assert await line.rest() == b""
        return Played(answer, after.status == 0, took_s)
    finally:
        line.close()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def memory_mb(pid: int, what: str = "VmHWM") -> float:
    """A process's memory now (VmRSS), or at its peak (VmHWM)."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]
