"""uvicorn with a graceful end.

SIGTERM or SIGINT: `/ready` says 503, a short predrain lets load balancers notice, the listener closes, running
streams finish within the drain time, the runtime flushes and deregisters, exit 0. A second signal cuts short.
"""

import asyncio
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from memos_llm.gateway.asgi import CONNECTION, REQUEST, Headers, Message

MAX_HEAD_BYTES = 65_536
PREDRAIN_S = 0.5
FAREWELL_S = 1.0
STUCK_S = 60.0  # who has read nothing for so long, though more was there, is gone or means harm


class HeadTooLarge(Exception):
    """The request line and headers passed `MAX_HEAD_BYTES`."""


class HeadRefused(Protocol):
    """What an application may offer: how long a head may take (seconds), and the answer to one that was no good.

    `target` is what is known of the path, a response's bytes are returned.
    """

    @property
    def header_timeout_s(self) -> float: ...

    def refused_head(self, status: int, target: str) -> bytes: ...


class Cycle(RequestResponseCycle):
    """uvicorn's request and response, which also takes a whole answer in one message.

    A `http.response.start` with a `body` is all there is: it leaves in one write, and without the checks that an
    answer in pieces needs. Each write is a system call, and costs as much as the parsing of a request.
    """

    def send(self, message: Message) -> Awaitable[None]:  # type: ignore[override]  # a coroutine less for each event
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
    """uvicorn's protocol, which also bounds a request's head and tells a running request that its client has left."""

    on_left: Callable[[], None] | None = None
    _late: asyncio.TimerHandle | None = None  # runs while a head is not whole
    _head: object = None  # what tells the head being read from any other; None between heads
    _head_bytes = 0
    _unparsed_bytes = 0
    _extensions: dict[str, Any]
    _stuck: asyncio.TimerHandle | None = None  # runs while the client does not read what was written

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        head = self._head
        super().data_received(data)
        if self._head is not None and self._late is None:  # most heads come at once, and cost no timer
            self._await_head()
        if head is None or head is not self._head or self.transport.is_closing():
            return
        self._unparsed_bytes += len(data)  # the parser keeps a header to itself until it is whole
        if self._unparsed_bytes > MAX_HEAD_BYTES:
            self.logger.warning("Request head too large.")
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
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
        self._head = None
        if self._late is not None:
            self._forget_timer()
        scope, version = self.scope, self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        before, self.cycle = self.cycle, self._cycle(keep_alive=version != "1.0" and self.parser.should_keep_alive())
        self._extensions[REQUEST] = self.cycle
        if before is None or before.response_complete:
            task = self.loop.create_task(self.cycle.run_asgi(self.app))
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)
        else:  # pipelined: uvicorn begins it when the answer before it is out
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _cycle(self, *, keep_alive: bool) -> Cycle:
        return Cycle(
            scope=self.scope,
            transport=self.transport,
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

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self.pipeline:  # uvicorn stops reading behind a large body, and who does not read sees nobody leave
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _refuse_head(self, status: int = 431) -> None:
        if self.transport.is_closing():
            return
        front: HeadRefused = self.app
        self.transport.write(front.refused_head(status, self.url.decode("latin-1") if self._head is not None else ""))
        self.transport.close()

    def _await_head(self) -> None:
        front: HeadRefused = self.app
        self._late = self.loop.call_later(front.header_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._late = None
        if self._head is None:  # nothing came on this connection: nobody waits for words
            self.transport.close()
        else:
            self._refuse_head(408)

    def _forget_timer(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
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
        self._forget_timer()
        self._forget_reader()
        super().connection_lost(exc)
        if self.on_left is not None:
            self.on_left()


class Server(uvicorn.Server):
    """A uvicorn server that drains. `draining` turns true at the first signal; `ready` is called once it serves."""

    draining = False
    ready: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.ready is not None and self.started:
            self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.draining:
            self.force_exit = True
            self.should_exit = True
            return
        self.draining = True
        asyncio.get_event_loop().call_later(PREDRAIN_S, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What is cut, by the drain time or a second signal, still tells its client so, if that client reads."""
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would leave them running
            for task in self.server_state.tasks:
                task.cancel()
        await self._wait_for_tasks()
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        await self._wait_for_tasks()

    async def _wait_for_tasks(self) -> None:
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=FAREWELL_S)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises the signal again after a graceful end; ours ends with exit code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def build(app: object, *, drain_s: float) -> Server:
    """The server for an ASGI application: uvloop and httptools; no access log, the runtime writes a line a request."""
    return Server(
        uvicorn.Config(
            app,  # type: ignore[arg-type]  # our ASGI types are narrower than uvicorn's
            http=ClientConnection,
            ws="none",  # nothing here is a web socket
            loop="uvloop",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, round(drain_s)),
        )
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only with it
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    listener.listen(2048)
    listener.setblocking(False)
    return listener
