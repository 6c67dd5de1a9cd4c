"""One client's connection: uvicorn's protocol, held to what HTTP asks for, and bounded in bytes and time.

What cannot be read as HTTP/1.1 is answered in the words of the path's API and told like any other refusal; the answer
comes in its turn behind those to the requests before it, and the connection ends with it. An answer that is out before
its request was read whole ends the connection, too: what still comes is read for a moment and thrown away, so that the
answer is not lost to a reset (RFC 9112, 9.6).
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from memos_llm.gateway.asgi import CONNECTION, REQUEST, Headers, Message

MAX_HEAD_BYTES = 65_536
STUCK_S = 60.0  # who has read nothing for so long, though more was there, is gone or means harm
LINGER_S = 2.0
HEAD_PIECE_BYTES = 8192  # the parser cannot be paused: so many requests at most as fit in there are begun at once
BODY_PIECE_BYTES = 65_536
MAX_REFUSED_AT_A_TIME = 256  # connections beyond the limit that are told so; who comes on top is told nothing

_TOO_MUCH, _TOO_SLOW, _FAULTY, _TOO_MANY = 431, 408, 400, 503


class HeadTooLarge(Exception):
    """The request line and headers passed `MAX_HEAD_BYTES`."""


class Faulty(Exception):
    """A head that the parser lets pass and HTTP does not; the text says why."""


class Front(Protocol):
    """What the application says of connections: how long a head may take (seconds), how many there may be, and the
    answer where there is no request that it could be asked about.

    `target` is what is known of the path, `why` of the reason; a response's bytes are returned.
    """

    @property
    def header_timeout_s(self) -> float: ...

    @property
    def max_connections(self) -> int: ...

    def refused_head(self, status: int, target: str, why: str = "") -> bytes: ...


class _Outlet:
    """As much of a transport as an answer needs; the connection decides what its end means."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write, self.is_closing, self.close = transport.write, transport.is_closing, close


def _stay() -> None:
    """Under an answer that ends it the connection is closed when its client had time to read."""


class Cycle(RequestResponseCycle):
    """uvicorn's request and response, which also takes a whole answer in one message.

    A `http.response.start` with a `body` is all there is: it leaves in one write, and without the checks that an
    answer in pieces needs. Each write is a system call, and costs as much as the parsing of a request.
    """

    ends = False  # the connection: it answers a request that was not read whole

    def send(self, message: Message) -> Awaitable[None]:  # type: ignore[override]  # a coroutine less for each event
        if self.more_body and not self.response_started:
            self.ends, self.keep_alive = True, False
            self.transport = _Outlet(self.transport, _stay)  # type: ignore[assignment]  # all that an answer uses
        return self._whole(message) if "body" in message and not self.response_started else super().send(message)  # type: ignore[arg-type]  # uvicorn's own dicts

    async def _whole(self, message: Message) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        self.response_started = self.response_complete = True
        body = message["body"] if self.scope["method"] != "HEAD" else b""
        headers: Headers = message["headers"]
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
            raise RuntimeError("a header's value would begin a header of its own")
        closing = b"" if self.keep_alive else b"connection: close\r\n"
        self.transport.write(STATUS_LINE[message["status"]] + lines + closing + b"\r\n" + body)
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


class ClientConnection(HttpToolsProtocol):
    """uvicorn's protocol, bounded and strict; it also tells a running request that its client has left."""

    cycle: Cycle
    on_left: Callable[[], None] | None = None
    lost = False
    _outlet: _Outlet
    _running: Cycle | None = None  # or the last that ran; `cycle` is the one that came last
    _late: asyncio.TimerHandle | None = None  # runs while a head is not whole, and while the end lingers
    _head: object = None  # what tells the head being read from any other; None between heads
    _head_bytes = 0
    _unparsed_bytes = 0
    _extensions: dict[str, Any]
    _stuck: asyncio.TimerHandle | None = None  # runs while the client does not read what was written
    _unread: memoryview | bytes = b""  # what is not given to the parser yet
    _over = False  # nothing that comes is read any more
    _last: bytes | None = None  # what is still to be said when the requests before are answered
    _upgrade = False
    _task: asyncio.Task[None] | None = None  # of the request that came last, unless it came behind another

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._outlet = _Outlet(transport, self._close)
        front: Front = self.app
        excess = len(self.connections) - front.max_connections
        if excess > MAX_REFUSED_AT_A_TIME:
            transport.abort()
        elif excess > 0:
            self._refuse(_TOO_MANY)
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        if not self._unread and len(data) <= HEAD_PIECE_BYTES:
            self._feed(data)
            return
        self._unread = memoryview(bytes(self._unread) + data if self._unread else data)
        self._read_on()

    def _read_on(self) -> None:
        while self._unread and not self.pipeline and not self._over:
            size = BODY_PIECE_BYTES if self._in_body() else HEAD_PIECE_BYTES
            piece, self._unread = self._unread[:size], self._unread[size:]
            self._feed(piece)
        if self._unread and not self._over:
            self.flow.pause_reading()

    def _in_body(self) -> bool:
        return self._head is None and self.cycle is not None and self.cycle.more_body

    def _feed(self, data: bytes | memoryview) -> None:
        head = self._head
        self._unparsed_bytes += len(data)  # the parser keeps a header to itself until it is whole
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as found:
            self._decline_upgrade(bytes(data[found.args[0] :]))
            return
        except httptools.HttpParserError as error:
            self._refuse(*_fault(error))
            return
        if self._head is not None:
            if self._late is None:  # most heads come at once, and cost no timer
                self._await_head()
            late = head is self._head and self._unparsed_bytes > MAX_HEAD_BYTES
        else:
            late = self._unparsed_bytes > MAX_HEAD_BYTES and self._in_body()
        if late:
            self._refuse(_TOO_MUCH)

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read the request again without the wish for another protocol, which a server may leave out of account (RFC
        9110, 7.8): the parser takes its body for that protocol's, and would read requests out of it.
        """
        self._upgrade = False
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(lines))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self._feed(head + rest)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self.timeout_keep_alive_task is not None:  # not before: an empty line is no request
            self._unset_keepalive_if_required()
        self._extensions = {CONNECTION: self}
        self.scope["extensions"] = self._extensions
        self._head, self._head_bytes, self._unparsed_bytes = self.headers, 0, 0

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge  # to the parser, whose error uvicorn answers with `send_400_response`
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """uvicorn's own, with the bound: a request has two dozen of them, so that a call more for each shows."""
        self._head_bytes += len(name) + len(value) + 4  # with what separates them
        if self._head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """uvicorn's own, less what is switched off here: upgrades, its limit of connections, a root path."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise Faulty("this is no proxy: there is no CONNECT here")
            self._upgrade = True
            return
        self._head = None
        if self._late is not None:
            self._forget_timer()
        scope, version = self.scope, self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        scope["method"] = self.parser.get_method().decode("ascii")
        if version != "1.1" or url.schema is not None:
            self._check_rarities(version, url.schema)
        path = (url.path or b"/").decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path or b"/"
        scope["query_string"] = url.query or b""
        self.headers = []  # for the trailers, which nobody asked for: the scope has the others
        before, self.cycle = self.cycle, self._cycle(keep_alive=version != "1.0" and self.parser.should_keep_alive())
        self._extensions[REQUEST] = self.cycle
        if before is None or before.response_complete:
            self._running = self.cycle
            self._task = task = self.loop.create_task(self.cycle.run_asgi(self.app))
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)
        else:  # pipelined: uvicorn begins it when the answer before it is out
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _check_rarities(self, version: str, schema: bytes | None) -> None:
        """Raises:
        Faulty: neither HTTP/1.1 nor 1.0, or a transfer coding that 1.0 has not (RFC 9112, 6.1).
        """
        if version not in ("1.0", "1.1"):
            raise Faulty("only HTTP/1.1 and HTTP/1.0 are spoken here")
        if version == "1.0" and any(name == b"transfer-encoding" for name, _ in self.headers):
            raise Faulty("HTTP/1.0 has no Transfer-Encoding")
        if schema is not None:  # the whole address as the target: its host counts, whatever `Host` says (RFC 9112, 3.2)
            authority = self.url.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0]
            said = [header for header in self.headers if header[0] == b"host"]
            self.headers[:] = [header for header in self.headers if header not in said[:1]] + [(b"host", authority)]

    def _cycle(self, *, keep_alive: bool) -> Cycle:
        return Cycle(
            scope=self.scope,
            transport=self._outlet,  # type: ignore[arg-type]  # all that an answer uses
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade:
            return
        super().on_message_complete()
        if (
            not self.pipeline and not self._unread
        ):  # uvicorn stops reading behind a large body, and then sees nobody leave
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        if self.cycle.ends and self.cycle.response_complete:
            self._linger()
            return
        was_last = not self.pipeline
        if not was_last:
            self._running = self.pipeline[-1][0]  # type: ignore[assignment]  # cycles of ours
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._head is not None:  # it has a time limit of its own
            self._unset_keepalive_if_required()
        if self.pipeline:
            self.flow.pause_reading()
        elif self._unread:
            self._read_on()
        elif self._last is not None and was_last:
            self._end_with(self._last)

    def _refuse(self, status: int, why: str = "") -> None:
        """End the connection with that, behind the answers that are still to come."""
        if self._over or self.transport.is_closing():
            return
        target = self.url if self._head is not None else b""
        waits = bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)
        if self._in_body():
            target, waits = self.cycle.scope["raw_path"], self._abandon()
        self._over, self._unread = True, b""
        self._forget_timer()
        front: Front = self.app
        answer = front.refused_head(status, target.decode("latin-1"), why)
        if waits:
            self._last = answer
        else:
            self._end_with(answer)

    def _abandon(self) -> bool:
        """Give up the request whose body is being read; whether there are others to be answered before it."""
        if self.pipeline:
            self.pipeline.popleft()
            return True
        if self._task is not None:
            running = self._task.get_coro()
            if inspect.iscoroutine(running) and inspect.getcoroutinestate(running) == inspect.CORO_CREATED:
                self._task.cancel()  # refused before anyone saw it
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        return False

    def _end_with(self, answer: bytes) -> None:
        self._last = None
        if not self.transport.is_closing():
            self.transport.write(answer)
            self._linger()

    def _linger(self) -> None:
        self._over, self._unread = True, b""
        if self.transport.is_closing():
            return
        self._forget_timer()
        self._unset_keepalive_if_required()
        self.transport.write_eof()
        self.flow.resume_reading()
        self._late = self.loop.call_later(LINGER_S, self._close)

    def _await_head(self) -> None:
        front: Front = self.app
        self._late = self.loop.call_later(front.header_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._late = None
        if self.pipeline or self._unread:  # it waits for us
            self._await_head()
        elif self._head is None:  # nothing came on this connection: nobody waits for words
            self._close()
        else:
            self._refuse(_TOO_SLOW)

    def _forget_timer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def _close(self) -> None:
        """A transport stays until its client has read everything: who does not is waited for no longer than before."""
        self.transport.close()
        if self._stuck is None and not self.lost:
            self._await_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._forget_reader()

    def _await_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._stuck = self.loop.call_later(STUCK_S, self._look_at_reader, left)

    def _look_at_reader(self, left_bytes: int) -> None:
        """Slow is allowed; a client that reads nothing would keep its request, and the back end's, for as long."""
        if self.transport.get_write_buffer_size() < left_bytes:
            self._await_reader()
        else:
            self._stuck = None
            self.transport.abort()

    def _forget_reader(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._forget_timer()
        self._forget_reader()
        self.pipeline.clear()
        if self._running is not None:
            self.cycle = self._running  # uvicorn tells that one
        super().connection_lost(exc)
        if self.on_left is not None:
            self.on_left()


def _fault(error: httptools.HttpParserError) -> tuple[int, str]:
    """The status that a head or a body deserves which the parser gave up, and why."""
    reason = error.__context__
    if isinstance(reason, HeadTooLarge):
        return _TOO_MUCH, ""
    if isinstance(reason, Faulty):
        return _FAULTY, str(reason)
    if reason is not None or isinstance(error, httptools.HttpParserInvalidURLError):
        return _FAULTY, "the request's target is no path"
    return _FAULTY, f"the request is not HTTP/1.1: {error}"
