"""HTTP/1.1 to a back end, on asyncio and httptools (llhttp): the `BackendClient` that the programs use.

It does what a call to a back end takes and no more: no redirects, no proxies, no cookies, no decompression. A general
client library costs about twice as much for every request and every event, which is most of what a gateway costs.

One answer per request: what a back end sends beyond it, at any time, ends the connection and reaches nobody. A
connection is used again only after an answer whose end its own framing told, to a request that was sent to its end,
and only if nothing came on it since, not even to the kernel.

A back end that floods costs its own reader, and nobody else: what waits to be read is bounded, and is handed out in
pieces between which others have their turn.

Keep-alive: vLLM closes an idle connection after 5 s, so ours expire sooner. The race that is left (it closed while our
request was on its way) shows as a *reused* connection that ends before any byte; such a request is sent again at once,
on a new connection.
"""

import asyncio
import select
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import httptools

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.providers.connections import KEEP_ALIVE_S, MAX_CONNECTIONS, Origin, Pool, connect

MAX_SILENT_BYTES = 65_536  # a head, trailers, or anything else between two pieces of a body
MAX_FIELDS = 256  # of a head
PAUSE_BYTES = 131_072  # of an answer that nobody reads: then the back end has to wait
PIECE_BYTES = 8_192  # the most that one read gives: to take it apart must not keep others waiting

_MAX_ADDRESSES = 1_000  # kept parsed: endpoints are few, but a passage's path is anything
_PER_CHUNK = 64  # bytes that keeping one costs besides what is in it
_JOINED_BYTES = 65_536  # up to this a copy is cheaper than a second buffer to send
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # methods that say no length of a body that is not there

NO_ANSWER = Outcome(kind=Kind.TRUNCATED, code="no_answer")  # the connection ended before a head was complete
CUT = Outcome(kind=Kind.TRUNCATED, code="cut")  # and within the body
NOT_HTTP = Outcome(kind=Kind.MALFORMED, code="http")
STALE = Outcome(kind=Kind.TRUNCATED, code="reused")  # it came from the pool and ended before any byte; never told


class _Address(NamedTuple):
    """What of a URL is the same for every request: where it goes, and how its head ends its first line."""

    origin: Origin
    line: str


class Headers(Mapping[str, str]):
    """An answer's, by lower-case or any other spelling of their names; of equal ones the first."""

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        self._values: dict[str, str] = {}
        for name, value in raw:
            self._values.setdefault(name.decode("latin-1").lower(), value.decode("utf-8", "surrogateescape"))

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Http1Reply:
    """A `RawReply`, filled by its connection. `failure` is why no more will come."""

    __slots__ = ("_chunks", "_connection", "_left", "_size", "_waiter", "ended", "failure", "fields", "status")

    def __init__(self, connection: "Http1Connection") -> None:
        self._connection = connection
        self._chunks: list[bytes] = []
        self._left = b""  # of what was too much for one read
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self.status = 0  # until the head is there
        self.fields: list[tuple[bytes, bytes]] = []
        self.ended = False
        self.failure: Outcome | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        return Headers(self.fields)

    @property
    def ready(self) -> bool:
        return bool(self._chunks or self._left) or self.ended or self.failure is not None

    async def read(self) -> bytes:
        if self._left:
            await asyncio.sleep(0)
            data, self._left = self._left, b""
        else:
            while not self._chunks:
                if self.ended:
                    return b""
                if self.failure is not None:
                    raise AttemptFailed(self.failure)
                await self.news()
            data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
        if len(data) > PIECE_BYTES:
            data, self._left = data[:PIECE_BYTES], data[PIECE_BYTES:]
            return data
        if self._size >= PAUSE_BYTES:
            self._connection.go_on()
        self._size = 0
        return data

    async def aclose(self) -> None:
        if not self.ended:
            self._connection.abort()

    def add(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data) + _PER_CHUNK
        if self._size >= PAUSE_BYTES:
            self._connection.hold()
        if self._waiter is not None:
            self.tell()

    def end(self) -> None:
        self.ended = True
        if self._waiter is not None:
            self.tell()

    def fail(self, why: Outcome) -> None:
        self.failure = why
        self.tell()

    def tell(self) -> None:
        """Wake who waits."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def news(self) -> None:
        """Wait until anything has changed."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class Http1Connection(asyncio.Protocol):
    """One connection, one request at a time. The methods from `on_message_begin` on are the parser's."""

    def __init__(self, pool: "Pool[Http1Connection]", origin: Origin) -> None:
        self.origin, self.reused = origin, False
        self.idle_since = 0.0
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pool = pool
        self._transport: asyncio.Transport
        self._parser: Any = httptools.HttpResponseParser(self)
        self._reply: Http1Reply | None = None  # to the request under way
        self._headless = False  # that request was a HEAD: its answer ends with its head
        self._keeps = self._heard = self._whole = self._held = self._aborted = False
        self._silent_bytes = 0
        self._unread = select.poll()
        self._fields: list[tuple[bytes, bytes]] = []

    # --- for who uses it ----------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether it may be used again: nothing has come that the event loop has yet to tell of, neither its end nor
        an answer to nobody, which would be taken for the answer to who asks next.
        """
        return not self._transport.is_closing() and not self._unread.poll(0)

    def ask(self, head: bytes, body: bytes, *, headless: bool) -> Http1Reply:
        """Send a request; its answer fills the reply."""
        reply = self._reply = Http1Reply(self)
        self._headless = headless
        self._keeps = self._heard = self._whole = False
        self._silent_bytes = 0
        if len(body) <= _JOINED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return reply

    def abort(self) -> None:
        """At once: `close` would first wait for what is still to be sent."""
        self._aborted = True
        self._transport.abort()

    def hold(self) -> None:
        if not self._held and not self._transport.is_closing():
            self._held = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        if self._held and not self._transport.is_closing():
            self._held = False
            self._transport.resume_reading()

    # --- for the event loop -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # asyncio types it too widely
        self._unread.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        if self._reply is None:  # nobody asked
            self.abort()
            return
        self._heard = True
        self._silent_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._broken(NOT_HTTP)
            return
        if self._whole:
            self._leave()
        elif self._silent_bytes > MAX_SILENT_BYTES:
            self._broken(NOT_HTTP)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        self._parser = None  # it refers to this object
        self._pool.forget(self)
        if self._reply is not None:
            self._broken_off(self._reply, clean=error is None and not self._aborted)

    # --- for the parser -----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._whole:
            raise _Surplus
        self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self._fields) >= MAX_FIELDS:
            raise _Surplus
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        status, reply = self._parser.get_status_code(), self._reply
        if reply is None or status < 100:
            raise _Surplus
        if status < 200:
            return
        self._silent_bytes = 0
        self._keeps = self._parser.should_keep_alive() and not self._headless
        reply.status, reply.fields, self._fields = status, self._fields, []  # what comes from here on are trailers
        if self._headless:
            self._whole = True
            reply.end()
        else:
            reply.tell()

    def on_body(self, data: bytes) -> None:
        if self._whole or self._reply is None:
            raise _Surplus
        self._silent_bytes = 0
        self._reply.add(data)

    def on_message_complete(self) -> None:
        reply = self._reply
        if reply is not None and reply.status:  # else it was an interim answer (RFC 9110, 15.2)
            self._whole = True
            reply.end()

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """The answer is whole. Used again only if the request went out whole, too."""
        self._reply = None
        if self._held:
            self.go_on()
        if self._keeps and not self._transport.get_write_buffer_size() and not self._transport.is_closing():
            self.reused = True
            self._pool.give_back(self)
        else:
            self.abort()

    def _broken(self, why: Outcome) -> None:
        """What came is nothing that we take; an answer that was whole before stays so."""
        reply, self._reply = self._reply, None
        self.abort()
        if reply is not None and not reply.ended:
            reply.fail(why if not reply.status else CUT)

    def _broken_off(self, reply: Http1Reply, *, clean: bool) -> None:
        self._reply = None
        if reply.ended:
            return
        if not reply.status:
            reply.fail(STALE if self.reused and not self._heard else NO_ANSWER)
        elif clean and not _tells_its_end(reply.fields):
            reply.end()
        else:
            reply.fail(CUT)


class _Surplus(Exception):
    """More than one answer to one request, or more than an answer has. (The parser makes it its own error.)"""


def _tells_its_end(fields: list[tuple[bytes, bytes]]) -> bool:
    """Whether a body has a length or chunks; otherwise the end of the connection is its end (RFC 9112, 6.3)."""
    for name, value in fields:
        name = name.lower()
        if name == b"content-length" or (name == b"transfer-encoding" and value.lower().rstrip().endswith(b"chunked")):
            return True
    return False


class Http1Client:
    """A `BackendClient`. One for all providers; made anywhere, it belongs to the loop of its first request.

    Args:
        keep_alive_s: how long an idle connection may be used again.
        max_connections: in use at once, over all back ends; who finds none free waits for `connect_s`.
    """

    def __init__(self, *, keep_alive_s: float = KEEP_ALIVE_S, max_connections: int = MAX_CONNECTIONS) -> None:
        self._pool: Pool[Http1Connection] = Pool(keep_alive_s, max_connections)
        self._addresses: dict[tuple[str, str], _Address] = {}
        self._tls: ssl.SSLContext | None = None

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, *, connect_s: float
    ) -> Http1Reply:
        address = self._addresses.get((method, url)) or self._parsed(method, url)
        head = _head(address.line, headers, len(body) if body or method not in _BODILESS else None)
        connection = self._pool.take(address.origin) or await self._connected(address.origin, connect_s)
        reply = await _answered(connection, head, body, method)
        while reply.failure is STALE:
            connection = await self._connected(address.origin, connect_s)
            reply = await _answered(connection, head, body, method)
        if reply.status:
            return reply
        assert reply.failure is not None
        raise AttemptFailed(reply.failure) from None

    async def aclose(self) -> None:
        """Every connection, idle or in use."""
        await self._pool.aclose()

    async def _connected(self, origin: Origin, connect_s: float) -> Http1Connection:
        if origin.tls and self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        tls = self._tls if origin.tls else None
        return await connect(origin, tls, self._pool, lambda: Http1Connection(self._pool, origin), connect_s)

    def _parsed(self, method: str, url: str) -> _Address:
        """As it is: what is in a path is the caller's.

        Raises:
            AttemptFailed: `config`, it is no URL that a request can be sent to.
        """
        origin, target = Origin.of(url)
        if len(self._addresses) >= _MAX_ADDRESSES:
            self._addresses.clear()
        line = f"{method} {target} HTTP/1.1\r\nHost: {origin.host_header}\r\n"
        return self._addresses.setdefault((method, url), _Address(origin, line))


async def _answered(connection: Http1Connection, head: bytes, body: bytes, method: str) -> Http1Reply:
    """Ask, and wait for the head of the answer or for why there is none."""
    reply = connection.ask(head, body, headless=method == "HEAD")
    try:
        while not reply.status and reply.failure is None:
            await reply.news()
    except BaseException:  # raised again: who leaves before the answer ends the request
        connection.abort()
        raise
    return reply


def _head(line: str, headers: Mapping[str, str], length: int | None) -> bytes:
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if fields.count("\n") != len(headers) or fields.count("\r") != len(headers) or "\0" in fields:
        raise AttemptFailed(Outcome(kind=Kind.CONFIG, code="header"))  # a value would begin a header of its own
    sized = "" if length is None else f"Content-Length: {length}\r\n"
    return f"{line}{fields}{sized}\r\n".encode()
