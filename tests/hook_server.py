"""A receiver of webhooks on a free loopback port: answers as it is told to, and keeps what it got."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import NamedTuple

HANG = 0  # instead of a status: it takes the request and never answers


class Got(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class HookServer:
    """`answers`: statuses, one a request, the last one repeated. `location`: where its redirects lead."""

    def __init__(self, answers: Iterable[int] = (200,), location: str = "") -> None:
        self.got: list[Got] = []
        self.url = ""
        self._answers, self._location = deque(answers), location
        self._connections: set[asyncio.Task[None]] = set()

    def answer(self, *answers: int) -> None:
        """From now on."""
        self._answers = deque(answers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side has gone, or the test is over
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.got.append(Got(method, path, headers, body))
        status = self._answers.popleft() if len(self._answers) > 1 else self._answers[0]
        if status == HANG:
            await asyncio.Event().wait()
        location = f"location: {self._location}\r\n" if self._location else ""
        writer.write(f"HTTP/1.1 {status} X\r\n{location}content-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()

    async def aclose(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


@asynccontextmanager
async def open_hook(*answers: int, location: str = "", path: str = "/hook") -> AsyncIterator[HookServer]:
    hook = HookServer(answers or (200,), location)
    server = await asyncio.start_server(hook.serve, "127.0.0.1", 0)
    hook.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}"
    try:
        yield hook
    finally:
        server.close()
        await hook.aclose()
        await server.wait_closed()
