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

from memos_llm.core.call import Call, Frame, Target, Wire
from memos_llm.core.errors import (
    EXHAUSTED,
    AttemptFailed,
    BadRequest,
    LLMError,
    ModelNotFound,
    NotOffered,
    StreamBroken,
)
from memos_llm.core.events import Bus
from memos_llm.core.outcome import MODEL_NOT_FOUND, Kind, Outcome
from memos_llm.core.policy import Endpoint, ProviderSpec, Timeouts
from memos_llm.core.ports import BackendClient, Clock, Codecs, Reply, Transport
from memos_llm.core.responses import Chat, EmbeddingResponse, LLMResponse, Options, StreamChunk
from memos_llm.dialects.codecs import CODECS
from memos_llm.dialects.edge import DIALECTS
from memos_llm.dialects.typed import ChunkReader, chat_body, parse_answer
from memos_llm.providers import ollama, vllm
from memos_llm.providers.client import AiohttpClient
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
    ) -> None:
        self.name = transport.name
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
        call = self._call(messages, False, max_tokens, temperature, options)
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
        call = self._call(messages, True, max_tokens, temperature, options)
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
        """Not offered yet."""
        raise NotOffered(f"embeddings are not offered through {self.name!r} yet", provider=self.name)

    async def aclose(self) -> None:
        await self._transport.aclose()
        if self._client is not None:
            await self._client.aclose()

    def _call(
        self, messages: Chat, stream: bool, max_tokens: int | None, temperature: float | None, options: Options
    ) -> Call:
        model = options.get("model") or self._model
        if not model:
            raise BadRequest("no model was given: pass model=…, or name one when making the provider")
        try:
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
        now, id = self._clock(), os.urandom(12).hex()
        parsed = DIALECTS[Wire.OPENAI_CHAT].parse(body)
        return Call(
            id=id,
            wire=Wire.OPENAI_CHAT,
            head=parsed.head,
            body=body,
            model=model,
            stream=stream,
            component="",
            key=b"",
            accepted_at=now,
            deadline=now + self._limits.total_s,
            needs=parsed.needs,
        )

    async def _whole(self, call: Call) -> bytes:
        async with aclosing(self._frames(call, _Progress())) as frames:
            return b"".join([frame.data async for frame in frames])

    async def _frames(self, call: Call, progress: _Progress) -> AsyncGenerator[Frame, None]:
        offer = self._transport.offer(call.model)
        codec = self._codecs.find(call, offer)
        if codec is None:
            raise NotOffered(f"{self.name!r} cannot do this call for {call.model!r}", provider=self.name)
        target = Target(self.name, call.model)
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
            raise _error(failed, self.name, call.id, begun) from failed


def _error(failed: AttemptFailed, provider: str, request_id: str, begun: bool) -> LLMError:
    outcome = failed.outcome
    kind = StreamBroken if begun else EXHAUSTED[outcome.kind]
    if outcome.code == MODEL_NOT_FOUND:
        kind = ModelNotFound
    refused = issubclass(kind, BadRequest)
    return kind(
        f"{provider}: {outcome.kind.value}{f' ({outcome.code})' if outcome.code else ''}",
        provider=provider,
        request_id=request_id,
        http_status=outcome.status if refused else None,
        client_text=failed.client_text,
        client_body=failed.client_body if refused else b"",
        retry_after_s=outcome.retry_after_s,
    )


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
        super().__init__(transport, model=model, timeouts=timeouts, client=client)


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
        super().__init__(transport, model=model, timeouts=timeouts, client=client)


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
