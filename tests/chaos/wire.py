"""One HTTP exchange as it really was: every byte, when it came, on which local port, and how its client behaved.

No SDK and no client library: what is judged is what was on the wire. A connection is kept for the next request only
while that is young, so that the server never closes it under one.
"""

import asyncio
import contextlib
import json
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import httptools

from chaos.asking import Asked

REUSE_S = 2.0  # the gateway keeps idle connections for longer
PATIENCE_S = 60.0  # longer than anything that the gateway allows itself
SLOW_BUFFER, SLOW_BYTES, SLOW_S = 4096, 1024, 0.03


@dataclass(kw_only=True)
class Exchange:
    """What came of a request. Times are of the monotonic clock.

    Attributes:
        port: the client's; `opened` is when that connection was made.
        complete: the response ended as HTTP wants it. error: why there is none, or not all of it.
        left: the client went away before the end.
    """

    asked: Asked
    port: int = 0
    opened: float = 0.0
    started: float = 0.0
    head_at: float | None = None
    ended: float = 0.0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False
    left: bool = False
    error: str = ""
    raw: bytes = b""


class _Reader:
    """httptools' callbacks."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.keeps = True

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        self._exchange.headers[key] = value.decode("latin-1")
        if key == "connection" and value.lower() == b"close":
            self.keeps = False

    def on_headers_complete(self) -> None:
        self._exchange.head_at = time.monotonic()

    def on_body(self, data: bytes) -> None:
        self._exchange.body += data

    def on_message_complete(self) -> None:
        self._exchange.complete = True


class Client:
    """One client with at most one connection. `close` it."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._opened = self._idle_since = 0.0
        self._local = 0

    def close(self, *, reset: bool = False) -> None:
        writer, self._writer, self._reader = self._writer, None, None
        if writer is None:
            return
        if reset:
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()

    async def ask(self, asked: Asked, *, early_s: float = 0.0, events: int = 0, reset: bool = False) -> Exchange:
        """One exchange.

        Args:
            early_s: when a client that leaves early does. events: after how many lines one that leaves midway does.
            reset: it leaves by RST.
        """
        exchange = Exchange(asked=asked)
        try:
            await self._connect(slow=asked.patience == "slow")
        except OSError as error:
            exchange.started = exchange.ended = time.monotonic()
            exchange.error = f"connect: {error}"
            return exchange
        exchange.port, exchange.opened, exchange.started = self._local, self._opened, time.monotonic()
        keeps = False
        try:
            assert self._writer is not None
            self._writer.write(_request(asked, self._host, self._port))
            limit_s = early_s if asked.patience == "leaves-early" else PATIENCE_S
            async with asyncio.timeout(limit_s):
                keeps = await self._read(exchange, events if asked.patience == "leaves-midway" else 0)
        except TimeoutError:
            exchange.left = asked.patience == "leaves-early"
            exchange.error = "" if exchange.left else f"nothing for {PATIENCE_S:g} s"
        except OSError as error:
            exchange.error = f"{type(error).__name__}: {error}"
        except httptools.HttpParserError as error:
            exchange.error = f"not HTTP: {error}"
        finally:
            exchange.ended = self._idle_since = time.monotonic()
            if not keeps:
                self.close(reset=reset and exchange.left)
        return exchange

    async def _connect(self, *, slow: bool) -> None:
        stale = time.monotonic() - self._idle_since > REUSE_S or slow
        if self._reader is not None and not stale and not self._reader.at_eof():
            return
        self.close()
        raw = socket.socket()
        raw.setblocking(False)
        if slow:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER)
        self._opened = time.monotonic()
        try:
            await asyncio.get_running_loop().sock_connect(raw, (self._host, self._port))
        except BaseException:  # raised again: the socket is ours to close
            raw.close()
            raise
        self._local = raw.getsockname()[1]
        self._reader, self._writer = await asyncio.open_connection(sock=raw, limit=SLOW_BUFFER if slow else 2**16)

    async def _read(self, exchange: Exchange, leave_after: int) -> bool:
        """Read to the end, or to where the client leaves; whether the connection may be used again."""
        assert self._reader is not None
        reader, slow = _Reader(exchange), exchange.asked.patience == "slow"
        parser = httptools.HttpResponseParser(reader)
        while not exchange.complete:
            if slow:
                await asyncio.sleep(SLOW_S)
            data = await self._reader.read(SLOW_BYTES if slow else 65536)
            if not data:
                exchange.error = "the connection ended" + (" before an answer" if exchange.head_at is None else "")
                return False
            exchange.raw += data
            parser.feed_data(data)
            if exchange.head_at is not None:
                exchange.status = parser.get_status_code()
            if leave_after and exchange.body.count(b"\n") >= leave_after and not exchange.complete:
                exchange.left = True
                return False
        return reader.keeps and not slow


def _request(asked: Asked, host: str, port: int) -> bytes:
    body = b"" if asked.body is None else json.dumps(asked.body, ensure_ascii=False).encode()
    headers: dict[str, Any] = {"host": f"{host}:{port}", "x-request-id": asked.id, **asked.headers}
    if asked.body is not None:
        headers |= {"content-type": "application/json", "content-length": len(body)}
    lines = [f"{'GET' if asked.body is None else 'POST'} {asked.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
