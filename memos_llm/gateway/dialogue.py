"""Requests on the wires that we read: chats, completions, embeddings in OpenAI's and Ollama's words."""

from collections.abc import Callable

from memos_llm.core.call import Call, Feature, Wire
from memos_llm.core.errors import BadRequest
from memos_llm.core.ports import Exchange, Routes
from memos_llm.dialects.edge import DIALECTS, Dialect
from memos_llm.gateway import calls, loading
from memos_llm.gateway.asgi import Headers, header_value
from memos_llm.gateway.errors import VOICES, Voice
from memos_llm.gateway.inference import Arrival, Local, Reply


class Dialogue:
    """The `Work` of one wire."""

    def __init__(self, wire: Wire, routes: Callable[[], Routes]) -> None:
        self._dialect: Dialect = DIALECTS[wire]
        self._routes = routes
        self.voice: Voice = VOICES[wire]

    def call(self, arrival: Arrival, body: bytes, *, id: str, accepted_at: float) -> Call:
        return calls.build(
            self._dialect,
            body,
            arrival.headers,
            arrival.place,
            self._routes().policy,
            id=id,
            accepted_at=accepted_at,
            principal=arrival.principal,
            rules=arrival.rules,
        )

    async def play(self, call: Call, exchange: Exchange, reply: Reply) -> None:
        """Write the answer as it comes; a whole one in one piece with its length."""
        headers = told(exchange, reply.id, self._dialect.media_type(stream=exchange.stream))
        frame = await exchange.next()
        if not call.stream:
            body = frame.data if frame else b""
            await reply.whole(200, headers, body)
            await exchange.next()  # its end: also an answer that was passed on unfinished has been delivered
            return
        await reply.start(200, headers)
        while frame is not None:
            if frame.data:  # a usage event that only we asked for leaves nothing to write
                await reply.write(frame.data)
            frame = await exchange.next()
        await reply.end()

    def instead(self, call: Call, error: BadRequest) -> Local | None:
        """Load and unload of a model that no Ollama has."""
        return loading.answer(call, self._routes(), self._dialect) if call.needs & Feature.LOAD else None


def told(exchange: Exchange, id: str, media_type: bytes) -> Headers:
    """Who answered, and why."""
    decision, served = exchange.decision, exchange.served
    headers: Headers = [
        (b"content-type", media_type),
        (b"x-request-id", id.encode()),
        (b"x-memos-provider", header_value(served.provider)),
        (b"x-memos-arm", decision.arm.encode()),
        (b"x-memos-model", header_value(served.model)),
        (b"x-memos-attempts", b"%d" % exchange.attempts),
        (b"x-memos-reason", decision.reason.encode()),
    ]
    if exchange.warnings:
        headers.append((b"x-memos-warnings", header_value(", ".join(exchange.warnings))))
    return headers
