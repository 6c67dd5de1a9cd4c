"""The few ASGI moves that the data plane makes by hand."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class ClientLeft(Exception):
    """The client closed its connection."""


class BodyTooLarge(Exception):
    """The request body passed its limit."""


async def read_body(receive: Receive, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole request body.

    Raises:
        BodyTooLarge, ClientLeft, TimeoutError.
    """
    async with asyncio.timeout(timeout_s):
        first = await _chunk(receive, max_bytes)
        if not first.get("more_body"):
            return bytes(first.get("body", b""))
        chunks, left = [first["body"]], max_bytes - len(first["body"])
        while True:
            message = await _chunk(receive, left)
            chunks.append(message.get("body", b""))
            left -= len(chunks[-1])
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


class Connection(Protocol):
    """A client's connection. `on_left` is called when it is lost while set."""

    on_left: Callable[[], None] | None


class DisconnectWatch:
    """Cancels the current task when the client leaves; `left` tells that from any other cancellation.

    Hooked into the connection itself: a task that waits in `receive` for it would cost a tenth of a request.
    """

    def __init__(self, scope: Scope) -> None:
        self.left = False
        self._owner = asyncio.current_task()
        self._connection: Connection = scope["extensions"][CONNECTION]
        self._connection.on_left = self._leave

    def _leave(self) -> None:
        self.left = True
        if self._owner is not None:
            self._owner.cancel()

    def stop(self) -> None:
        self._connection.on_left = None


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """A whole response at once."""
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
