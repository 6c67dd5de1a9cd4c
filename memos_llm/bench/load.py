"""The client: as little Python as will do, so that it is never what limits.

Connections stay open from burst to burst. Every answer is checked: a status other than 200 or a missing event ends
the run, because the fastest gateway is one that answers nothing.
"""

import asyncio
from collections.abc import Sequence
from time import perf_counter

from msgspec import Struct

EVENTS = {b"text/event-stream": b"data: ", b"application/x-ndjson": b'"done":'}
"""What tells one event of a stream from the next."""


class WrongAnswer(Exception):
    """What was measured did not do its work."""


class Answer(Struct):
    """One answer as it came. Times in seconds since the request was written."""

    status: int
    events: int
    reads: int
    first_s: float
    whole_s: float
    body: bytes


class Burst(Struct):
    """Many answers. `reads` counts the pieces that their bytes arrived in."""

    answers: int = 0
    events: int = 0
    reads: int = 0
    first_s: list[float] = []
    whole_s: list[float] = []

    def add(self, other: "Burst") -> None:
        self.answers += other.answers
        self.events += other.events
        self.reads += other.reads
        self.first_s += other.first_s
        self.whole_s += other.whole_s


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[Answer] | None = None
        self._received = bytearray()
        self._reads = 0
        self._head_end = 0
        self._length: int | None = None  # of head and body; None: chunked
        self._sent_at = self._first_at = 0.0
        self.closed = False

    async def ask(self, request: bytes) -> Answer:
        """Send a request, ready as bytes, and return its answer once it is whole."""
        self._waiter = asyncio.get_running_loop().create_future()
        self._received.clear()
        self._reads = self._head_end = 0
        self._sent_at = perf_counter()
        self._transport.write(request)
        return await self._waiter

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # asyncio types it too widely

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(WrongAnswer("the connection was closed before the answer was whole"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._reads += 1
        if not self._head_end and not self._read_head():
            return
        whole = self._received.endswith(b"0\r\n\r\n") if self._length is None else len(self._received) >= self._length
        if whole and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(self._answer())

    def _read_head(self) -> bool:
        end = self._received.find(b"\r\n\r\n") + 4
        if end < 4:
            return False
        self._head_end, self._first_at = end, perf_counter()
        head = bytes(self._received[:end]).lower()
        _, found, rest = head.partition(b"content-length:")
        self._length = end + int(rest[: rest.index(b"\r")]) if found else None
        return True

    def _answer(self) -> Answer:
        head, body = bytes(self._received[: self._head_end]).lower(), bytes(self._received[self._head_end :])
        mark = next((mark for media, mark in EVENTS.items() if media in head), None)
        return Answer(
            status=int(head[9:12]),
            events=body.count(mark) if mark else 0,
            reads=self._reads,
            first_s=self._first_at - self._sent_at,
            whole_s=perf_counter() - self._sent_at,
            body=body,
        )


class Client:
    """The connections to one address."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []

    async def ask(self, request: bytes) -> Answer:
        (connection,) = await self._take(1)
        try:
            return await connection.ask(request)
        finally:
            self._idle.append(connection)

    async def burst(self, requests: Sequence[bytes], *, connections: int, count: int, least_events: int = 0) -> Burst:
        """`count` requests, taken in turn, over so many connections at once.

        Raises:
            WrongAnswer: one of them was not answered with 200 and `least_events` events.
        """
        burst = Burst()
        left = iter(range(count))
        taken = await self._take(connections)

        async def work(connection: Connection) -> None:
            for number in left:
                answer = await connection.ask(requests[number % len(requests)])
                if answer.status != 200 or answer.events < least_events:
                    raise WrongAnswer(f"{answer.status}, {answer.events} events: {answer.body[:300].decode()}")
                burst.answers += 1
                burst.events += answer.events
                burst.reads += answer.reads
                burst.first_s.append(answer.first_s)
                burst.whole_s.append(answer.whole_s)

        try:
            async with asyncio.TaskGroup() as group:
                for connection in taken:
                    group.create_task(work(connection))
        except* WrongAnswer as wrong:
            raise wrong.exceptions[0] from None
        finally:
            self._idle += taken
        return burst

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    async def _take(self, count: int) -> list[Connection]:
        taken = [connection for connection in self._idle if not connection.closed][:count]
        self._idle = [connection for connection in self._idle if connection not in taken]
        loop = asyncio.get_running_loop()
        while len(taken) < count:
            _, connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
            taken.append(connection)
        return taken
