"""Joins the two faces of a provider: a `TypedProvider` is an `LLMProvider` over one `Transport`.

For a pipeline that wants one back end and no routing: no split, no fallback, no retries, nothing counted. The answers
are those of the routed path, byte for byte and field for field, since the same codecs read them.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from random import Random
from typing import TypeVar, Unpack

from msgspec.structs import replace

from memos_llm.core.call import Call, Frame, ModelSettings, Operation, Target, Wire
from memos_llm.core.errors import AttemptFailed, BadRequest, NotOffered
from memos_llm.core.events import Bus
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.policy import Endpoint, ProviderSpec, Timeouts
from memos_llm.core.ports import BackendClient, Clock, Codecs, Reply, Transport
from memos_llm.core.responses import Chat, EmbeddingResponse, LLMResponse, Options, StreamChunk
from memos_llm.dialects.codecs import CODECS
from memos_llm.dialects.codecs.repairs import BY_KIND
from memos_llm.dialects.edge import DIALECTS
from memos_llm.dialects.typed import ChunkReader, chat_body, check_names, embed_body, parse_answer, parse_vectors
from memos_llm.providers import ollama, vllm
from memos_llm.providers.client import AiohttpClient
from memos_llm.providers.failures import error_of
from memos_llm.providers.http import HttpTransport, Profile

T = TypeVar("T")


class _Progress:
    """How far a stream has come: whether the caller has begun to use it."""

    def __init__(self) -> None:
        self.reply: Reply | None = None
        self.begun = False

    def begin(self) -> None:
        if not self.begun and self.reply is not None:
            self.reply.committed()
        self.begun = True


class TypedProvider:
    """An `LLMProvider` over one transport. Closing it closes the transport (and `client`, if it was given one to own).

    Args:
        model: the back end's own name for the model of calls that name none.
        timeouts: `total_s` bounds a whole answer, and a stream up to its first bytes; `idle_s` each later read.
        kind: of the back end: what has to be repaired in requests to it (`dialects.codecs.repairs.BY_KIND`).
    """

    def __init__(
        self,
        transport: Transport,
        *,
        model: str = "",
        timeouts: Timeouts | None = None,
        client: BackendClient | None = None,
        codecs: Codecs = CODECS,
        clock: Clock = time.monotonic,
        kind: str = "",
    ) -> None:
        self.name = transport.name
        self._settings = ModelSettings(repairs=BY_KIND.get(kind, frozenset()))
        self._transport, self._client, self._codecs, self._clock = transport, client, codecs, clock
        self._model = model
        self._limits = timeouts or Timeouts()

    async def generate(
        self,
        prompt: str,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> LLMResponse:
        """One prompt, one answer."""
        messages = [{"role": "user", "content": prompt}]
        return await self.chat(messages, max_tokens=max_tokens, temperature=temperature, **options)

    async def chat(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> LLMResponse:
        """One conversation, the next message."""
        call = self._chat(messages, False, max_tokens, temperature, options)
        with self._told(call):
            answer = parse_answer(await _within(self._limits.total_s, "total", self._whole(call)))
        return replace(
            answer,
            provider=self.name,
            model=call.model,
            request_id=call.id,
            duration_s=self._clock() - call.accepted_at,
        )

    async def stream(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[Options],
    ) -> AsyncIterator[StreamChunk]:
        """The next message, piece by piece. Closing the iterator cancels the call upstream."""
        call = self._chat(messages, True, max_tokens, temperature, options)
        reader, progress = ChunkReader(), _Progress()
        async with aclosing(self._frames(call, progress)) as frames:
            while True:
                with self._told(call, begun=progress.begun):
                    frame = await anext(frames, None)
                    chunks = reader.feed(frame.data) if frame else reader.eof()
                for chunk in chunks:
                    progress.begin()
                    yield chunk
                if frame is None:
                    return

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> EmbeddingResponse:
        """One vector for each text; none, and nothing sent, for no texts.

        Raises:
            EmbeddingServiceError: the back end did not give them; what it refuses is a `BadRequest`.
        """
        named = self._named(model)
        try:
            body = embed_body(texts, named)
        except TypeError as error:
            raise BadRequest(str(error), provider=self.name) from error
        call = self._call(Wire.OPENAI_EMBEDDINGS, body, named, stream=False)
        if not texts:
            return EmbeddingResponse(vectors=[], provider=self.name, model=named, request_id=call.id)
        with self._told(call):
            answer = parse_vectors(await _within(self._limits.total_s, "total", self._whole(call)), len(texts))
        return replace(answer, provider=self.name, model=named, request_id=call.id)

    async def aclose(self) -> None:
        """Close the transport, and the connections if they are its own. Harmless when repeated."""
        await self._transport.aclose()
        if self._client is not None:
            await self._client.aclose()

    def _named(self, model: str | None) -> str:
        named = model or self._model
        if not named:
            raise BadRequest("no model was given: pass model=…, or name one when making the provider")
        return named

    def _chat(
        self, messages: Chat, stream: bool, max_tokens: int | None, temperature: float | None, options: Options
    ) -> Call:
        model = self._named(options.get("model"))
        try:
            check_names(options, Options.__annotations__)
            body = chat_body(
                messages,
                stream=stream,
                model=model,
                max_tokens=max_tokens,
                temperature=temperature,
                options=options,
            )
        except TypeError as error:
            raise BadRequest(str(error), provider=self.name) from error
        return self._call(Wire.OPENAI_CHAT, body, model, stream=stream)

    def _call(self, wire: Wire, body: bytes, model: str, *, stream: bool) -> Call:
        now, parsed = self._clock(), DIALECTS[wire].parse(body)
        return Call(
            id=os.urandom(12).hex(),
            wire=wire,
            head=parsed.head,
            body=body,
            model=model,
            stream=stream,
            component="",
            key=b"",
            accepted_at=now,
            deadline=now + self._limits.total_s,
            needs=parsed.needs,
            typed=True,
        )

    async def _whole(self, call: Call) -> bytes:
        async with aclosing(self._frames(call, _Progress())) as frames:
            return b"".join([frame.data async for frame in frames])

    async def _frames(self, call: Call, progress: _Progress) -> AsyncGenerator[Frame, None]:
        offer = self._transport.offer(call.model)
        if not offer.known:
            offer = await self._transport.acquaint(call.model)
        codec = self._codecs.find(call, offer)
        if codec is None:
            raise NotOffered(f"{self.name!r} cannot do this call for {call.model!r}", provider=self.name)
        target = Target(self.name, call.model, self._settings)
        request, _ = codec.request(call, target, offer)
        decoder = codec.decoder(call, target)
        limits = self._limits
        reply = progress.reply = await _within(limits.total_s, "total", self._transport.open(request))
        try:
            idle_s = limits.idle_s if call.stream else None
            while chunk := await _within(idle_s, "idle", reply.read()):
                for frame in decoder.feed(chunk):
                    yield frame
            for frame in decoder.eof():
                yield frame
        finally:
            await reply.aclose()

    @contextmanager
    def _told(self, call: Call, *, begun: bool = False) -> Iterator[None]:
        """A failed attempt, as the error that a caller of the library sees."""
        try:
            yield
        except AttemptFailed as failed:
            embeds = call.operation is Operation.EMBEDDINGS
            raise error_of(failed, self.name, call.id, begun=begun, embeds=embeds) from failed


async def _within(limit_s: float | None, code: str, work: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(limit_s):
            return await work
    except TimeoutError:
        raise AttemptFailed(Outcome(kind=Kind.TIMEOUT, code=code)) from None


class OllamaProvider(TypedProvider):
    """One Ollama server, used directly.

    Args:
        base_url: with or without `/v1`.
        model: Ollama's name of the model for calls that name none.
        name: how it calls itself in answers and errors.
    """

    def __init__(
        self,
        base_url: str = ollama.DEFAULT_URL,
        *,
        model: str = "",
        timeouts: Timeouts | None = None,
        name: str = "ollama",
    ) -> None:
        client = AiohttpClient()
        transport = _alone(name, "ollama", ollama.PROFILE, client, base_url, "", timeouts)
        super().__init__(transport, model=model, timeouts=timeouts, client=client, kind="ollama")


class VllmProvider(TypedProvider):
    """One vLLM server, used directly.

    Args:
        base_url: with or without `/v1`.
        api_key: what the server was started with, if anything.
        model: the served name for calls that name none.
        name: how it calls itself in answers and errors.
    """

    def __init__(
        self,
        base_url: str = vllm.DEFAULT_URL,
        *,
        api_key: str = "",
        model: str = "",
        timeouts: Timeouts | None = None,
        name: str = "vllm",
    ) -> None:
        client = AiohttpClient()
        transport = _alone(name, "vllm", vllm.PROFILE, client, base_url, api_key, timeouts)
        super().__init__(transport, model=model, timeouts=timeouts, client=client, kind="vllm")


def _alone(
    name: str,
    kind: str,
    profile: Profile,
    client: BackendClient,
    base_url: str,
    api_key: str,
    timeouts: Timeouts | None,
) -> HttpTransport:
    """A transport with one endpoint and a bus that nobody listens to."""
    url = base_url.rstrip("/").removesuffix("/v1")
    spec = ProviderSpec(
        name=name, kind=kind, endpoints=(Endpoint(url),), api_key=api_key, timeouts=timeouts or Timeouts()
    )
    return HttpTransport(spec, profile, client, Bus(), clock=time.monotonic, rng=Random())
