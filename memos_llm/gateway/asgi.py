"""The few ASGI moves that the data plane makes by hand."""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol
from urllib.parse import quote

from memos_llm.router.idle import IdleWatch

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class ClientLeft(Exception):
    """The client closed its connection."""


class BodyTooLarge(Exception):
    """The request body passed its limit."""


class BodiesTooLarge(Exception):
    """All bodies together passed theirs."""


class Held:
    """Bytes that the larger bodies of all requests hold together (those that came in one piece are bounded by it)."""

    def __init__(self) -> None:
        self.size_bytes = 0


class Part:
    """One request's part of them. `limit_bytes`: of all together."""

    def __init__(self, held: Held, limit_bytes: int) -> None:
        self._held, self._limit_bytes, self._size_bytes = held, limit_bytes, 0

    def take(self, size_bytes: int) -> None:
        """Raises:
        BodiesTooLarge.
        """
        self._held.size_bytes += size_bytes
        self._size_bytes += size_bytes
        if self._held.size_bytes > self._limit_bytes:
            raise BodiesTooLarge

    def give_back(self) -> None:
        self._held.size_bytes -= self._size_bytes
        self._size_bytes = 0


async def read_body(
    receive: Receive, *, max_bytes: int, timeout_s: float, waits: bool = True, part: Part | None = None
) -> bytes:
    """The whole request body.

    Args:
        waits: False where it is known to be there, so that it takes no time limit.
        part: takes what it holds of the room for all bodies; the caller gives it back.

    Raises:
        BodyTooLarge, BodiesTooLarge, ClientLeft, TimeoutError.
    """
    if not waits:
        return await _whole(receive, max_bytes, part)
    limit = IdleWatch(timeout_s)
    try:
        return await limit.read(lambda: _whole(receive, max_bytes, part))
    finally:
        limit.close()


async def _whole(receive: Receive, max_bytes: int, part: Part | None) -> bytes:
    first = await _chunk(receive, max_bytes)
    if not first.get("more_body"):
        return bytes(first.get("body", b""))
    chunks, left = [first["body"]], max_bytes - len(first["body"])
    while True:
        message = await _chunk(receive, left)
        chunks.append(message.get("body", b""))
        left -= len(chunks[-1])
        if part is not None:
            part.take(len(chunks[-1]))
        if not message.get("more_body"):
            return b"".join(chunks)


async def _chunk(receive: Receive, max_bytes: int) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeft
    if len(message.get("body", b"")) > max_bytes:
        raise BodyTooLarge
    return message


CONNECTION = "memos_llm.connection"
"""The key of the client's connection among a scope's extensions; `gateway.server` puts it there."""


REQUEST = "memos_llm.request"
"""The same for what the server keeps of the request."""


class Received(Protocol):
    """A request as far as it is there."""

    more_body: bool


def body_to_come(scope: Scope) -> bool:
    """Whether a part of the request's body may not have arrived yet."""
    received: Received | None = scope["extensions"].get(REQUEST)
    return received is None or received.more_body


class Connection(Protocol):
    """A client's connection. `lost`: it is no more; `on_left` is called when it is lost while set."""

    on_left: Callable[[], None] | None

    @property
    def lost(self) -> bool: ...


def connection_of(scope: Scope) -> Connection:
    """The client's connection.

    Raises:
        RuntimeError: another server runs the application.
    """
    connection: Connection | None = (scope.get("extensions") or {}).get(CONNECTION)
    if connection is None:
        raise RuntimeError("only memos_llm.gateway.server tells when a client leaves: serve the gateway with it")
    return connection


class DisconnectWatch:
    """Cancels the current task when the client leaves; `left` tells that from any other cancellation.

    Hooked into the connection itself: a task that waits in `receive` for it would cost a tenth of a request.
    """

    def __init__(self, connection: Connection) -> None:
        """Raises:
        ClientLeft: it has left already.
        """
        if connection.lost:
            raise ClientLeft
        self.left = False
        self._owner = asyncio.current_task()
        self._connection = connection
        self._connection.on_left = self._leave

    def _leave(self) -> None:
        self.left = True
        if self._owner is not None:
            self._owner.cancel()

    def stop(self) -> None:
        if self._connection.on_left == self._leave:  # the connection's next request may watch by now
            self._connection.on_left = None


_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
MAX_HEADER_CHARS = 2048


def header_value(text: str) -> bytes:
    """Text that others made up as a header's value: control characters percent-encoded, what Latin-1 lacks as `?`."""
    clean = _CONTROLS.sub(lambda found: quote(found[0]), text[:MAX_HEADER_CHARS].strip())
    return clean.encode("latin-1", "replace")


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """A whole response at once."""
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers, "body": body})
