"""The data plane: one request from its first byte to its last, as raw ASGI.

Whatever happens before the first byte of the answer becomes a proper error in the client's dialect; whatever happens
after it becomes an in-band error and the end of the stream. A client that leaves cancels upstream at once. What is
particular to a kind of request is its `Work`.
"""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from memos_llm.core.call import Call, Wire
from memos_llm.core.errors import BadRequest, LLMError, ModelNotFound, NotOffered, Overloaded, Unavailable
from memos_llm.core.events import Bus, InternalError, RequestRefused, place_of
from memos_llm.core.ports import Clock, Engine, Exchange
from memos_llm.gateway import calls
from memos_llm.gateway.asgi import (
    BodiesTooLarge,
    BodyTooLarge,
    ClientLeft,
    Connection,
    DisconnectWatch,
    Headers,
    Held,
    Part,
    Receive,
    Scope,
    Send,
    body_to_come,
    connection_of,
    read_body,
    respond,
)
from memos_llm.gateway.errors import Voice, tell
from memos_llm.gateway.paths import Place
from memos_llm.gateway.principal import Principal
from memos_llm.gateway.rules import Rules
from memos_llm.gateway.screening import check_values

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


class Arrival(NamedTuple):
    """A request that was let in: its ASGI parts, where it goes, who sent it, and the rules at that moment."""

    scope: Scope
    receive: Receive
    send: Send
    headers: Mapping[bytes, bytes]
    place: Place
    principal: Principal
    rules: Rules


class Local(NamedTuple):
    """An answer that no back end has to give."""

    status: int
    headers: Headers
    body: bytes


class Work(Protocol):
    """One kind of request."""

    @property
    def voice(self) -> Voice:
        """How its errors are told."""
        ...

    def call(self, arrival: Arrival, body: bytes, *, id: str, accepted_at: float) -> Call:
        """Raises:
        LLMError: the request cannot be understood, or is not allowed.
        """
        ...

    async def play(self, call: Call, exchange: Exchange, reply: "Reply") -> None:
        """Write the answer to its end."""
        ...

    def instead(self, call: Call, error: BadRequest) -> Local | None:
        """What is answered where no back end offers the call or has its model; None: the error.

        Raises:
            LLMError: another error says it better.
        """
        ...


class Inference:
    """Answers requests that the engine carries out."""

    def __init__(self, engine: Engine, bus: Bus, clock: Clock) -> None:
        self._engine, self._bus, self._clock = engine, bus, clock
        self._running = 0
        self._held = Held()

    async def __call__(self, arrival: Arrival, work: Work) -> None:
        accepted_at, connection = self._clock(), connection_of(arrival.scope)
        reply = Reply(arrival.send, work.voice, calls.request_id(arrival.headers))
        call: Call | None = None
        part = Part(self._held, arrival.rules.max_bodies_bytes)
        self._running += 1
        try:
            if self._running > arrival.rules.max_concurrency:
                raise Overloaded("the gateway is at its limit of concurrent requests", retry_after_s=1)
            body = await body_of(arrival, part)
            call = work.call(arrival, body, id=reply.id, accepted_at=accepted_at)
            reply.model = call.model
            await self._answer(call, connection, work, reply)
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
            part.give_back()

    async def _fail(self, reply: "Reply", call: Call | None, error: LLMError) -> None:
        if call is None:  # else the engine tells it
            self._tell_refused(reply, error)
        await reply.fail(error)

    def _tell_refused(self, reply: "Reply", error: LLMError) -> None:
        self._bus.emit(
            RequestRefused(request_id=reply.id, status=error.http_status, error_name=error.name, error_code=error.code)
        )

    async def _answer(self, call: Call, connection: Connection, work: Work, reply: "Reply") -> None:
        watch = DisconnectWatch(connection)
        try:
            exchange = await self._engine.open(call)
            try:
                await work.play(call, exchange, reply)
            finally:
                await exchange.aclose()
        except (NotOffered, ModelNotFound) as error:
            local = self._instead(call, error, work, reply)
            await reply.whole(local.status, [*local.headers, (b"x-request-id", reply.id.encode())], local.body)
        except asyncio.CancelledError:
            if not watch.left:
                raise
        finally:
            watch.stop()

    def _instead(self, call: Call, error: BadRequest, work: Work, reply: "Reply") -> Local:
        """Raises:
        LLMError: nothing is answered instead; told here where the engine never began with the call.
        """
        try:
            local = work.instead(call, error)
            if local is None:
                raise error
        except LLMError as last:
            if error.decision is None:
                self._tell_refused(reply, last)
            raise
        return local


async def body_of(arrival: Arrival, part: Part | None = None) -> bytes:
    """The whole body. `part`: of the room for all bodies.

    Raises:
        PayloadTooLarge, TooManyValues, RequestTimeout, ClientLeft. Overloaded: the bodies together are too large.
    """
    rules, declared = arrival.rules, arrival.headers.get(b"content-length", b"")
    try:
        if declared.isdigit() and int(declared) > rules.max_body_bytes:
            raise BodyTooLarge
        body = await read_body(
            arrival.receive,
            max_bytes=rules.max_body_bytes,
            timeout_s=rules.body_timeout_s,
            waits=body_to_come(arrival.scope),
            part=part,
        )
    except BodyTooLarge:
        raise PayloadTooLarge(f"the request body is larger than {rules.max_body_bytes} bytes") from None
    except TimeoutError:
        raise RequestTimeout(f"the request body did not arrive within {rules.body_timeout_s:g} s") from None
    except BodiesTooLarge:
        raise Overloaded("the gateway is at its limit of large request bodies", retry_after_s=1) from None
    if len(body) > rules.max_json_values:
        await check_values(body, rules.max_json_values)
    return body


class Reply:
    """The response to one request: not begun, begun, or over. `model` is the caller's, once it is known."""

    def __init__(self, send: Send, voice: Voice, id: str) -> None:
        self.id, self.model = id, ""
        self._send, self._voice = send, voice
        self._begun, self._events = False, True

    async def start(self, status: int, headers: Headers, *, events: bool = True) -> None:
        """`events`: what follows is a row of events, so that the last one may be an error."""
        self._events = events
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        self._begun = True

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """A response in one piece, with its length."""
        await respond(self._send, status, headers, body)
        self._begun = True

    async def fail(self, error: LLMError) -> None:
        """An error response; in-band, as the last event, when the answer has begun."""
        if not self._begun:
            await tell(self._send, self._voice, error, self.id, self.model)
        elif self._events:
            await self.end(self._voice.event(error))
        # else: the server closes the connection under an answer without an end, which its reader cannot take for whole
