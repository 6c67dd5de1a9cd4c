"""The other join of a provider's two faces: a `JoinedTransport` is a `Transport` over one `LLMProvider`.

So the engine drives what a third party wrote. It speaks OpenAI's chat and embeddings wires, and everything else that a
codec translates to them. A provider has one endpoint, itself, with a breaker like any other; what it raises is told
as an outcome here, its words only to the caller.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Protocol, TypeVar, runtime_checkable

from memos_llm.core.call import Feature, Wire, WireRequest
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed, BadRequest, InvalidResponse, LLMError
from memos_llm.core.events import Bus, InternalError, ProbeEnded, place_of
from memos_llm.core.outcome import BREAKER_OPEN, Kind, Outcome
from memos_llm.core.policy import Endpoint, ProviderSpec
from memos_llm.core.ports import Clock, LLMProvider
from memos_llm.core.responses import StreamChunk
from memos_llm.dialects.typed import parse_answer
from memos_llm.dialects.typed_serving import ChunkWriter, Stamp, answer_body, read_chat, read_embed, vectors_body
from memos_llm.providers.endpoint import EndpointState, Lease, gone
from memos_llm.providers.endpoints import DOWN, Pool
from memos_llm.providers.failures import PROVIDER, outcome_of
from memos_llm.providers.health import Finding, check, note

T = TypeVar("T")

WIRES = frozenset({Wire.OPENAI_CHAT, Wire.OPENAI_EMBEDDINGS})
CLOSING_S = 5.0  # for a provider to close what it holds
FEATURES = Feature.NONE  # what goes beyond the common is for those that are known to have it


@runtime_checkable
class Probed(Protocol):
    """A provider that can tell cheaply how it is; without this it counts as up unless its calls fail."""

    async def health(self) -> None:
        """Raises:
        LLMError: it is down. (An overload, or a wrong key or model, is no reason to count it so.)
        """
        ...


class JoinedTransport:
    """A `Transport` over `provider`, which is closed with it.

    Args:
        spec: its name, its limit of requests in flight, and the address that metrics and logs call its one endpoint.
        now: Unix seconds, for the answers' `created`.
    """

    def __init__(
        self, provider: LLMProvider, spec: ProviderSpec, bus: Bus, *, clock: Clock, rng: Random, now: Clock = time.time
    ) -> None:
        self.name = spec.name
        self._provider, self._bus, self._clock, self._now = provider, bus, clock, now
        address = spec.endpoints[0].url if spec.endpoints else spec.name
        self._pool = Pool(
            spec.name,
            (Endpoint(address),),
            bus,
            clock=clock,
            rng=rng,
            max_inflight=spec.max_inflight,
            queue_s=spec.queue_s,
        )
        (self._state,) = self._pool
        self._offers = {why: Offer(WIRES, FEATURES, why) for why in (None, DOWN, BREAKER_OPEN)}

    def offer(self, model: str) -> Offer:
        return self._offers[self._pool.refusal((self._state,))]

    async def acquaint(self, model: str) -> Offer:
        return self.offer(model)

    def serving(self, model: str) -> Sequence[str]:
        return (self._state.url,)

    def content_at(self, endpoint: str) -> float:
        return self._state.answered_at

    def pick(self, model: str, key: bytes = b"") -> str:
        return self._pool.pick(model).url

    async def open(self, request: WireRequest) -> "JoinedReply":
        state = self._pool.find(request.endpoint or self.pick(request.model))
        lease = state.begin()
        try:
            await lease.place()
            return await self._opened(request, lease)
        except BaseException:  # raised again: a cancelled request is no longer in flight either
            lease.end()
            raise

    async def fetch(self, path: str, body: bytes | None = None) -> bytes:
        """It has no documents."""
        raise AttemptFailed(Outcome(kind=Kind.CONFIG, code="route"))

    async def probe(self) -> Sequence[ProbeEnded]:
        found = await check(self.fetch, lambda _: self._health())
        failure = note(self._pool, self._state, found, self._clock())
        up = self._state.up is not False
        ended = ProbeEnded(
            provider=self.name, endpoint=self._state.url, up=up, failure=failure, detail=found.detail or failure
        )
        return (ended,)

    def retire(self) -> None:
        self._pool.close()

    async def aclose(self) -> None:
        """What goes wrong in closing a third party's provider is told on the bus, and keeps nothing else open."""
        self._pool.close()
        with suppress(AttemptFailed):
            await self.told(asyncio.wait_for(self._provider.aclose(), CLOSING_S))

    async def told(self, work: Awaitable[T]) -> T:
        """What the provider does, and what it raises as the engine wants it.

        Raises:
            AttemptFailed: its text may repeat the prompt, so that only what a caller may read is kept of it.
        """
        try:
            return await work
        except AttemptFailed:
            raise
        except LLMError as error:
            raise outcome_of(error) from error
        except TimeoutError:
            raise AttemptFailed(Outcome(kind=Kind.TIMEOUT, code=PROVIDER)) from None
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            raise self._fault(error) from None  # something of its own was cancelled, nobody's call
        except Exception as error:  # noqa: BLE001 - a third party's code: whatever it raises is told as its failure
            raise self._fault(error) from None

    def _fault(self, error: BaseException) -> AttemptFailed:
        self._bus.emit(
            InternalError(part=f"provider.{self.name}", error=type(error).__name__, where=place_of(error)),
        )
        return AttemptFailed(Outcome(kind=Kind.SERVER, code="exception"))

    async def _health(self) -> Finding:
        if isinstance(self._provider, Probed):
            await self.told(self._provider.health())
        return Finding()

    async def _opened(self, request: WireRequest, lease: Lease) -> "JoinedReply":
        stamp = Stamp(f"chatcmpl-{request.id}", int(self._now()), request.model)
        with lease.state.patience():
            if request.wire is Wire.OPENAI_EMBEDDINGS:
                return JoinedReply(self, lease, self._clock, await self.told(self._embed(request, stamp)))
            if request.wire is not Wire.OPENAI_CHAT:
                raise AttemptFailed(Outcome(kind=Kind.CONFIG, code="wire"))
            if not request.stream:
                return JoinedReply(self, lease, self._clock, await self.told(self._chat(request, stamp)))
            stream = self._stream(request, stamp)
            first = await stream.next()
            return JoinedReply(self, lease, self._clock, first, stream)

    async def _chat(self, request: WireRequest, stamp: Stamp) -> bytes:
        try:
            asked = read_chat(request.body, request.model)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        answer = await self._provider.chat(
            asked.messages, max_tokens=asked.max_tokens, temperature=asked.temperature, **asked.options
        )
        body = answer_body(answer, stamp)
        parse_answer(body)  # what is no text where text belongs is this attempt's failure, not the caller's surprise
        return body

    def _stream(self, request: WireRequest, stamp: Stamp) -> "_Stream":
        try:
            asked = read_chat(request.body, request.model)
        except ValueError as error:
            raise outcome_of(BadRequest(str(error))) from None

        async def chunks() -> AsyncIterator[StreamChunk]:
            """From within, so that a provider that raises before its first chunk is told of like any other."""
            stream = self._provider.stream(
                asked.messages, max_tokens=asked.max_tokens, temperature=asked.temperature, **asked.options
            )
            try:
                async for chunk in stream:
                    yield chunk
            finally:
                close = getattr(stream, "aclose", None)  # an iterator need not have it
                if close is not None:
                    await close()

        return _Stream(self, chunks(), ChunkWriter(stamp, include_usage=asked.include_usage))

    async def _embed(self, request: WireRequest, stamp: Stamp) -> bytes:
        try:
            asked = read_embed(request.body)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        answer = await self._provider.embed(asked.texts, model=request.model)
        if len(answer.vectors) != len(asked.texts):
            raise InvalidResponse(f"{len(answer.vectors)} vectors for {len(asked.texts)} texts", provider=self.name)
        if not all(math.isfinite(sum(vector)) for vector in answer.vectors):  # JSON has no word for it
            raise InvalidResponse("a vector holds what is no finite number", provider=self.name)
        return vectors_body(answer, stamp, as_base64=asked.base64)


class _Stream:
    """A provider's chunks as bytes."""

    def __init__(self, transport: JoinedTransport, chunks: AsyncIterator[StreamChunk], writer: ChunkWriter) -> None:
        self._transport, self._chunks, self._writer = transport, chunks, writer
        self._ended = False

    async def next(self) -> bytes:
        """Empty at the end.

        Raises:
            AttemptFailed: the provider failed.
        """
        data = b""
        while not data and not self._ended:
            data = await self._transport.told(self._next())
        return data

    async def aclose(self) -> None:
        await self._transport.told(self._chunks.aclose())  # type: ignore[attr-defined]  # our generator, typed as its iterator

    async def _next(self) -> bytes:
        chunk = await anext(self._chunks, None)
        if chunk is not None:
            if not isinstance(chunk.text, str) or not isinstance(chunk.reasoning, str):
                raise InvalidResponse("a chunk's text is none", provider=self._transport.name)
            return self._writer.feed(chunk)
        self._ended = True
        return self._writer.eof()


class JoinedReply:
    """A `Reply` whose end is also the end of its lease. Until it is committed, its endpoint can take it down."""

    status = 200

    def __init__(
        self, transport: JoinedTransport, lease: Lease, clock: Clock, first: bytes, stream: _Stream | None = None
    ) -> None:
        self.endpoint = lease.state.url
        self._lease, self._clock, self._first, self._stream = lease, clock, first, stream
        self._committed, self._downs = False, lease.state.downs

    @property
    def headers(self) -> Mapping[str, str]:
        return {}

    def committed(self) -> None:
        self._committed = True

    async def read(self) -> bytes:
        data, self._first = self._first, b""
        try:
            data = data or await self._next(self._lease.state)
        except AttemptFailed:
            self._lease.end()
            raise
        if data:
            self._lease.heard(self._clock(), content=True)
        else:
            self._lease.end()
        return data

    async def aclose(self) -> None:
        self._lease.end()
        stream, self._stream = self._stream, None
        if stream is not None:
            try:
                await stream.aclose()
            except AttemptFailed:  # it was told on the bus, and the call is over anyway
                return

    async def _next(self, state: EndpointState) -> bytes:
        if self._stream is None:
            return b""
        if self._committed:
            return await self._stream.next()
        if state.downs != self._downs:  # found down between two reads
            raise gone(state.why)
        with state.patience():
            return await self._stream.next()


def _is_cancelled() -> bool:
    """Whether someone wants this task to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
