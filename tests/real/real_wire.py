"""One exchange with a server, as bytes: what was asked, and every piece of the answer with the time it took to come."""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

ANSWER_S = 90.0


@dataclass(frozen=True, slots=True)
class Case:
    """One request. `body`: JSON unless it is bytes, None for none; `at`: names of the servers that get it."""

    name: str
    path: str
    body: Any = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    at: tuple[str, ...] = ()

    def payload(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return b"" if self.body is None else json.dumps(self.body, ensure_ascii=False).encode()


@dataclass(slots=True)
class Exchange:
    """What came back.

    `pieces`: chunks of a chunked body, or the body, each with the milliseconds since the one before.
    `ended`: "complete", "cut", "reset", "nothing", or "silent" for a server that did not answer in time.
    """

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    ended: str = "nothing"

    @property
    def body(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


async def exchange(url: str, case: Case) -> Exchange:
    """Send one request on a connection of its own."""
    parts = urlsplit(url)
    data = case.payload()
    sent = {"Host": parts.netloc, **({"Content-Type": "application/json"} if data else {}), **case.headers}
    if case.method not in ("GET", "HEAD"):
        sent["Content-Length"] = str(len(data))
    head = f"{case.method} {case.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in sent.items()) + "\r\n"
    got = Exchange()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**24)
    try:
        writer.write(head.encode() + data)
        async with asyncio.timeout(ANSWER_S):
            await _read(reader, got, case.method)
    except TimeoutError:
        got.ended = "silent"
    except ConnectionResetError:
        got.ended = "reset"
    except asyncio.IncompleteReadError:
        got.ended = "cut" if got.status else "nothing"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return got


async def _read(reader: asyncio.StreamReader, got: Exchange, method: str) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    got.status = int(first.split(" ")[1])
    got.headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    last = time.perf_counter()

    def take(piece: bytes) -> None:
        nonlocal last
        now = time.perf_counter()
        got.pieces.append((round((now - last) * 1000, 1), piece))
        last = now

    if got.header("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            take((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
    elif method != "HEAD" and (length := int(got.header("content-length") or 0)):
        take(await reader.readexactly(length))
    got.ended = "complete"
