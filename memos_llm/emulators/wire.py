"""Sockets and bytes: a listener whose port can be closed and reopened, and one HTTP exchange with all its ways to fail.

uvicorn's HTTP protocol does the parsing (vLLM really is uvicorn); the server loop around it is ours, so that an
emulator runs inside the caller's loop, installs no signal handler and can drop its connections at will.

Invariants: after `stop` no task, socket or timer is left; while refused the port stays bound but not listening,
so nobody else can take it; a client that leaves cancels its handler at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, NoReturn

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

Headers = Sequence[tuple[str, str]]
_CONNECTION = "emulator.connection"
_LOG = logging.getLogger("memos_llm.emulators")
_RST_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it arrived. Header names are lower case; a repeated header keeps its last value."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Exchange:
    """One request and the means to answer it; `done` once the response is complete or the connection was cut."""

    request: Received
    send: Callable[[dict[str, Any]], Awaitable[None]]
    connection: _Connection
    extra_headers: list[tuple[str, str]] = field(default_factory=list)
    status: int | None = None
    done: bool = False

    @property
    def started(self) -> bool:
        """Whether the status line was sent."""
        return self.status is not None

    async def reply(self, status: int, body: bytes = b"", headers: Headers = (), *, chunked: bool = False) -> None:
        """Send a whole response; chunked means without Content-Length."""
        length = () if chunked or status == 204 else (("content-length", str(len(body))),)
        await self.start(status, (*headers, *length))
        await self.write(body)
        await self.end()

    async def start(self, status: int, headers: Headers) -> None:
        """Send status line and headers; without a Content-Length the body will be chunked."""
        self.status = status
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in (*headers, *self.extra_headers)]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes) -> None:
        """Send one piece of the body: one write, and one chunk of a chunked body."""
        if data:
            await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """End the body well-formed."""
        self.done = True
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def cut(self, *, reset: bool = False) -> NoReturn:
        """End the connection in the middle, by FIN or RST; does not return."""
        self.done = True
        self.connection.close(reset=reset)
        await forever()

    async def garbage(self) -> NoReturn:
        """Send bytes that are no HTTP and end the connection; does not return."""
        self.connection.transport.write(b"\x00\xffNOT-HTTP \x7f\r\n\r\n")
        await self.cut()


async def forever() -> NoReturn:
    """Wait until cancelled."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody sets this future")


Handler = Callable[[Exchange], Awaitable[None]]


class _Connection(HttpToolsProtocol):
    """uvicorn's connection, counted, without access log, and handed to the application."""

    def __init__(self, config: Config, state: ServerState, listener: Listener) -> None:
        super().__init__(config, state, {})
        self.logger = _LOG
        self.access_log = False
        self._listener = listener

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        self._listener.accepted += 1
        if self._listener.resets_new_connection():
            self.close(reset=True)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves the timer behind after a reset

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {_CONNECTION: self}  # type: ignore[dict-item]  # extensions are ours to name
        self.server_state.default_headers = self._listener.default_headers()

    def close(self, *, reset: bool = False) -> None:
        """Close by FIN after what was written, or by RST at once."""
        if not reset:
            self.transport.close()
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError, ValueError):  # closed already; ValueError is uvloop's word for that
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        self.transport.abort()


_ACCEPTING_TURNS = 4  # of the loop, for what was just accepted


class Listener:
    """One TCP port and its connections.

    Args:
        handler: answers one exchange. server_header: value of the Server header, None for no such header.
        idle_close_s: seconds after which an idle connection is closed.
        resets_new_connection: asked for every accepted connection; True resets it.
        on_gone: called when a client left before its answer was complete.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        server_header: str | None,
        idle_close_s: float,
        resets_new_connection: Callable[[], bool],
        on_gone: Callable[[Received], None],
    ) -> None:
        self._handler = handler
        self._server_header = server_header
        self.resets_new_connection = resets_new_connection
        self._on_gone = on_gone
        self._state = ServerState()
        self._config = Config(
            self._application,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            timeout_keep_alive=idle_close_s,  # type: ignore[arg-type]  # seconds; any number serves call_later
        )
        self._server: asyncio.AbstractServer | None = None
        self._closing: asyncio.Future[None] | None = None
        self._holder: socket.socket | None = None
        self._stopping = False
        self.accepted = 0
        self.host, self.port = "", 0

    @property
    def listening(self) -> bool:
        """Whether the port accepts connections."""
        return self._server is not None

    @property
    def open_connections(self) -> int:
        """Connections open now."""
        return len(self._state.connections)

    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Date, and Server where the server sends one."""
        date = (b"date", formatdate(usegmt=True).encode())
        return [date] if self._server_header is None else [date, (b"server", self._server_header.encode())]

    async def start(self, host: str, port: int) -> None:
        """Bind and listen; port 0 picks a free one."""
        self._config.load()
        self._holder = _bound(host, port)
        self.host, self.port = self._holder.getsockname()[:2]
        await self.listen()

    async def listen(self) -> None:
        """Listen (again) on the port."""
        await self._closed()
        if self._server is not None or self._stopping:
            return
        loop = asyncio.get_running_loop()
        sock = _bound(self.host, self.port)
        self._server = await loop.create_server(
            lambda: _Connection(self._config, self._state, self), sock=sock, backlog=2048
        )

    def refuse(self) -> None:
        """Close the listening socket and reset every connection; the port stays ours."""
        self._close()
        for connection in self._connections():
            connection.close(reset=True)

    def _close(self) -> None:
        """Refuse at once; close the socket when what was just accepted has arrived, for asyncio would lose it."""
        if self._server is None:
            return
        server, self._server = self._server, None
        if not isinstance(server, asyncio.Server):  # uvloop's own, which loses nothing
            server.close()
            return
        for sock in server.sockets:
            asyncio.get_running_loop().remove_reader(sock.fileno())
            with contextlib.suppress(OSError):  # on Linux a socket stops listening so; elsewhere a few turns later
                sock.shutdown(socket.SHUT_RDWR)
        self._closing = asyncio.ensure_future(_close_soon(server))

    async def _closed(self) -> None:
        while self._closing is not None and not self._closing.done():
            await self._closing

    async def stop(self) -> None:
        """Stop listening, cut every connection by FIN, and wait until nothing is left."""
        self._stopping = True
        self._close()
        await self._closed()
        if self._holder is not None:
            self._holder.close()
        for connection in self._connections():
            connection.close()
        await self._settle(0.1)
        for connection in self._connections():
            connection.transport.abort()  # a client that does not read would keep a closing connection open
        await self._settle(5.0)

    async def _settle(self, within_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + within_s
        while self._state.tasks or self._state.connections:
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(0.001 if self._state.tasks else 0)
        await asyncio.sleep(0)  # the transports' own clean-up is one callback behind

    def _connections(self) -> list[_Connection]:
        return [c for c in list(self._state.connections) if isinstance(c, _Connection)]

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        body = await _body(receive)
        if body is None:
            return
        exchange = Exchange(_received(scope, body), send, scope["extensions"][_CONNECTION])
        handler = asyncio.ensure_future(self._handler(exchange))
        watcher = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait({handler, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not exchange.done and not handler.done() and not self._stopping:
                self._on_gone(exchange.request)
            await _finish(handler, wait=exchange.done and not exchange.connection.transport.is_closing())
        finally:
            await _finish(handler, wait=False)
            await _finish(watcher, wait=False)


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only with it
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((host, port))
    except BaseException:  # raised again: only the socket is ours to close
        sock.close()
        raise
    return sock


async def _close_soon(server: asyncio.Server) -> None:
    for _ in range(_ACCEPTING_TURNS):
        await asyncio.sleep(0)
    server.close()


async def _finish(task: asyncio.Future[Any], *, wait: bool) -> None:
    """Await a task, cancelling it first unless it is to run to its end; its own errors are raised."""
    if not wait:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _body(receive: Any) -> bytes | None:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)


async def _disconnect(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _received(scope: Any, body: bytes) -> Received:
    headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
    return Received(scope["method"], scope["path"], scope["query_string"].decode("latin-1"), headers, body)
