"""The data plane: one inference request from its first byte to its last, as raw ASGI.

Whatever happens before the first byte of the answer becomes a proper error in the client's dialect; whatever happens
after it becomes an in-band error and the end of the stream. A client that leaves cancels upstream at once.
"""

import asyncio
from collections.abc import Callable, Mapping

from memos_llm.core.call import Call, Wire
from memos_llm.core.errors import BadRequest, LLMError, NotOffered, Overloaded, Unavailable
from memos_llm.core.events import Bus, InternalError, RequestRefused, place_of
from memos_llm.core.policy import Policy
from memos_llm.core.ports import Clock, Engine, Exchange
from memos_llm.dialects.edge import DIALECTS, Dialect
from memos_llm.gateway import calls
from memos_llm.gateway.asgi import (
    BodyTooLarge,
    ClientLeft,
    Connection,
    DisconnectWatch,
    Headers,
    Receive,
    Scope,
    Send,
    connection_of,
    header_value,
    read_body,
    respond,
)
from memos_llm.gateway.paths import Place

WIRES: Mapping[str, Wire] = {
    "/v1/chat/completions": Wire.OPENAI_CHAT,
    "/v1/completions": Wire.OPENAI_COMPLETION,
    "/v1/embeddings": Wire.OPENAI_EMBEDDINGS,
    "/api/chat": Wire.OLLAMA_CHAT,
    "/api/generate": Wire.OLLAMA_GENERATE,
    "/api/embed": Wire.OLLAMA_EMBED,
    "/api/embeddings": Wire.OLLAMA_EMBEDDINGS,
}


class PayloadTooLarge(BadRequest):
    """The request body is over `gateway.max_body_bytes`."""

    status = 413


class RequestTimeout(BadRequest):
    """The request body did not arrive within `gateway.body_timeout_s`."""

    status = 408


class Inference:
    """Answers inference requests. `max_concurrency`, `max_body_bytes`, `body_timeout_s` are the gateway's settings."""

    def __init__(
        self,
        engine: Engine,
        policy: Callable[[], Policy],
        bus: Bus,
        clock: Clock,
        *,
        max_concurrency: int,
        max_body_bytes: int,
        body_timeout_s: float,
    ) -> None:
        self._engine, self._policy, self._bus, self._clock = engine, policy, bus, clock
        self._max_concurrency, self._max_body_bytes = max_concurrency, max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send, wire: Wire, place: Place) -> None:
        accepted_at, headers, connection = self._clock(), dict(scope["headers"]), connection_of(scope)
        reply = _Reply(send, DIALECTS[wire], calls.request_id(headers))
        call: Call | None = None
        self._running += 1
        try:
            if self._running > self._max_concurrency:
                raise Overloaded("the gateway is at its limit of concurrent requests", retry_after_s=1)
            body = await self._body(receive, headers)
            call = calls.build(
                reply.dialect, body, headers, place, self._policy(), id=reply.id, accepted_at=accepted_at
            )
            await self._answer(call, connection, reply)
        except ClientLeft:
            return
        except asyncio.CancelledError:  # the server's only other reason: the drain time is over
            await self._fail(reply, call, Unavailable("the gateway is shutting down: ask again"))
        except LLMError as error:
            await self._fail(reply, call, error)
        except Exception as error:  # noqa: BLE001 - the last line of defence: counted, and never a traceback for the client
            self._bus.emit(InternalError(part="gateway", error=type(error).__name__, where=place_of(error)))
            await reply.fail(LLMError("internal error of the gateway"))
        finally:
            self._running -= 1

    async def _fail(self, reply: "_Reply", call: Call | None, error: LLMError) -> None:
        if call is None or isinstance(error, NotOffered):  # any other end of a call is told by the engine
            self._bus.emit(
                RequestRefused(
                    request_id=reply.id, status=error.http_status, error_name=error.name, error_code=error.code
                )
            )
        await reply.fail(error)

    async def _body(self, receive: Receive, headers: Mapping[bytes, bytes]) -> bytes:
        declared = headers.get(b"content-length", b"")
        try:
            if declared.isdigit() and int(declared) > self._max_body_bytes:
                raise BodyTooLarge
            return await read_body(receive, max_bytes=self._max_body_bytes, timeout_s=self._body_timeout_s)
        except BodyTooLarge:
            raise PayloadTooLarge(f"the request body is larger than {self._max_body_bytes} bytes") from None
        except TimeoutError:
            raise RequestTimeout(f"the request body did not arrive within {self._body_timeout_s:g} s") from None

    async def _answer(self, call: Call, connection: Connection, reply: "_Reply") -> None:
        watch = DisconnectWatch(connection)
        try:
            exchange = await self._engine.open(call)
            try:
                await reply.play(call, exchange)
            finally:
                await exchange.aclose()
        except asyncio.CancelledError:
            if not watch.left:
                raise
        finally:
            watch.stop()


class _Reply:
    """The response to one request: not begun, begun, or over."""

    def __init__(self, send: Send, dialect: Dialect, id: str) -> None:
        self.dialect, self.id = dialect, id
        self._send, self._begun = send, False

    async def play(self, call: Call, exchange: Exchange) -> None:
        """Write the answer as it comes; a whole one in one piece with its length."""
        headers = self._headers(exchange)
        frame = await exchange.next()
        if not call.stream:
            body = frame.data if frame else b""
            headers.append((b"content-length", b"%d" % len(body)))
            await self._start(headers)
            await self._send({"type": "http.response.body", "body": body})
            await exchange.next()  # its end: also an answer that was passed on unfinished has been delivered
            return
        await self._start(headers)
        while frame is not None:
            if frame.data:  # a usage event that only we asked for leaves nothing to write
                await self._send({"type": "http.response.body", "body": frame.data, "more_body": True})
            frame = await exchange.next()
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, headers: Headers) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._begun = True

    async def fail(self, error: LLMError) -> None:
        """An error response; in-band, as the last event, when the answer has begun."""
        if self._begun:
            await self._send({"type": "http.response.body", "body": self.dialect.stream_error(error)})
            return
        headers: Headers = [
            (b"content-type", self.dialect.media_type(stream=False)),
            (b"x-request-id", self.id.encode()),
            (b"x-memos-error-code", error.code.encode()),
            (b"x-should-retry", b"false"),
        ]
        if error.provider:
            headers.append((b"x-memos-provider", header_value(error.provider)))
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
        await respond(self._send, error.http_status, headers, self.dialect.error_body(error))

    def _headers(self, exchange: Exchange) -> Headers:
        decision, served = exchange.decision, exchange.served
        headers: Headers = [
            (b"content-type", self.dialect.media_type(stream=exchange.stream)),
            (b"x-request-id", self.id.encode()),
            (b"x-memos-provider", header_value(served.provider)),
            (b"x-memos-arm", decision.arm.encode()),
            (b"x-memos-model", header_value(served.model)),
            (b"x-memos-attempts", b"%d" % exchange.attempts),
            (b"x-memos-reason", decision.reason.encode()),
        ]
        if exchange.warnings:
            headers.append((b"x-memos-warnings", header_value(", ".join(exchange.warnings))))
        return headers
