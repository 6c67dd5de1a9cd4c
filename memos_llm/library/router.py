"""`Router`: the engine's answers as Python values; `BoundRouter`: one component's view of it."""

from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from msgspec.structs import replace

from memos_llm.config import Settings, Source, load
from memos_llm.core.call import Call, Frame, Operation
from memos_llm.core.decision import Decision
from memos_llm.core.errors import AttemptFailed, EmbeddingServiceError, InvalidResponse, LLMError
from memos_llm.core.ports import Exchange
from memos_llm.core.responses import Chat, EmbeddingResponse, LLMResponse, StreamChunk
from memos_llm.dialects.typed import ChunkReader, parse_answer, parse_vectors
from memos_llm.library.calls import CallOptions, Place, build, build_embed
from memos_llm.library.under_way import UnderWay
from memos_llm.wiring import Runtime, open_runtime


class Router:
    """Routes calls of this process. `async with Router.open("config/memos_llm.yaml") as router: …`

    Raises:
        LLMError: and only that, from every call; see `memos_llm.core.errors`.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._under_way = UnderWay()
        self.name = "router"

    @classmethod
    def open(cls, config: str | Path | Settings | None = None, *, probe: bool = True) -> "_Opening":
        """An `async with` (or `await`) that opens a router.

        Args:
            config: a YAML file, ready settings, or None to search the usual places.
            probe: ask the providers every few seconds how they are, so that a dead one is avoided beforehand.
        """
        return _Opening(cls, config, probe)

    async def generate(
        self,
        prompt: str,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[CallOptions],
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
        **options: Unpack[CallOptions],
    ) -> LLMResponse:
        """One conversation, the next message."""
        call = self._call(messages, False, max_tokens, temperature, options)
        exchange, body = await self._whole(call)
        with _understood(call, exchange):
            answer = parse_answer(body)
        return replace(
            answer,
            provider=exchange.served.provider,
            model=exchange.served.model,
            arm=exchange.decision.arm.value,
            attempts=exchange.attempts,
            request_id=call.id,
            duration_s=self._runtime.clock() - call.accepted_at,
        )

    async def stream(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[CallOptions],
    ) -> AsyncIterator[StreamChunk]:
        """The next message, piece by piece. Leaving the loop early cancels the call upstream."""
        call = self._call(messages, True, max_tokens, temperature, options)
        with self._under_way.waiting():
            exchange = await self._runtime.engine.open(call)
        reader = ChunkReader()
        try:
            with self._under_way.streaming(exchange):
                while (frame := await self._pulled(call, exchange)) is not None:
                    with _understood(call, exchange):
                        chunks = reader.feed(frame.data)
                    for chunk in chunks:
                        yield chunk
            for chunk in reader.eof():
                yield chunk
        finally:
            await exchange.aclose()

    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, **options: Unpack[Place]
    ) -> EmbeddingResponse:
        """One vector for each text, all from one back end; for no texts none, and nothing is sent.

        They belong to the component `embedding` unless the configuration's rules or `component` say another; either
        way they move with the embeddings' own share, for the vectors of two back ends do not mix.

        Raises:
            EmbeddingServiceError: the vectors could not be had. What is refused is a `BadRequest`, as for any call.
        """
        self._under_way.check()
        runtime = self._runtime
        call = build_embed(texts, options={**options, "model": model}, policy=runtime.policy(), now=runtime.clock())
        if not texts:
            return EmbeddingResponse(vectors=[], request_id=call.id)
        exchange, body = await self._whole(call)
        with _understood(call, exchange):
            answer = parse_vectors(body, len(texts))
        return replace(answer, provider=exchange.served.provider, model=exchange.served.model, request_id=call.id)

    def explain(self, **options: Unpack[CallOptions]) -> Decision:
        """The decision for such a chat call, nothing sent. `session` is the key; without one, each call has its own.

        Raises:
            NotOffered: no configured provider can do such a call.
        """
        return self._runtime.engine.decide(self._call([], False, None, None, options))

    def provider(self, component: str) -> "BoundRouter":
        """This router as an `LLMProvider` for one component: a pipeline cannot tell it from a single provider."""
        return BoundRouter(self, component)

    async def aclose(self) -> None:
        """End the calls under way, and close what `open` opened; those calls and later ones raise `ControlError`.

        Harmless when repeated.
        """
        await self._under_way.end()
        await self._runtime.aclose()

    def _call(
        self, messages: Chat, stream: bool, max_tokens: int | None, temperature: float | None, options: CallOptions
    ) -> Call:
        self._under_way.check()
        return build(
            messages,
            stream=stream,
            max_tokens=max_tokens,
            temperature=temperature,
            options=options,
            policy=self._runtime.policy(),
            now=self._runtime.clock(),
        )

    async def _whole(self, call: Call) -> tuple[Exchange, bytes]:
        with self._under_way.waiting():
            exchange = await self._runtime.engine.open(call)
            try:
                with _understood(call, exchange):
                    frame = await exchange.next()
                    await exchange.next()
            finally:
                await exchange.aclose()
        return exchange, frame.data if frame else b""

    async def _pulled(self, call: Call, exchange: Exchange) -> Frame | None:
        with self._under_way.waiting(), _understood(call, exchange):
            return await exchange.next()


class BoundRouter:
    """A router bound to one component; an `LLMProvider`. Closing it leaves the router open."""

    def __init__(self, router: Router, component: str) -> None:
        self._router, self._component = router, component
        self.name = component

    async def generate(
        self,
        prompt: str,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[CallOptions],
    ) -> LLMResponse:
        """As `Router.generate`."""
        return await self._router.generate(
            prompt, max_tokens=max_tokens, temperature=temperature, **self._bound(options)
        )

    async def chat(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[CallOptions],
    ) -> LLMResponse:
        """As `Router.chat`."""
        return await self._router.chat(messages, max_tokens=max_tokens, temperature=temperature, **self._bound(options))

    def stream(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[CallOptions],
    ) -> AsyncIterator[StreamChunk]:
        """As `Router.stream`."""
        return self._router.stream(messages, max_tokens=max_tokens, temperature=temperature, **self._bound(options))

    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, **options: Unpack[Place]
    ) -> EmbeddingResponse:
        """As `Router.embed`."""
        bound: Place = {"component": self._component, **options}
        return await self._router.embed(texts, model=model, **bound)

    async def aclose(self) -> None:
        """Nothing of its own to close."""

    def _bound(self, options: CallOptions) -> CallOptions:
        return {"component": self._component, **options}


class _Opening:
    """`async with Router.open(…) as router` and `router = await Router.open(…)`."""

    def __init__(self, cls: type[Router], config: str | Path | Settings | None, probe: bool) -> None:
        self._cls, self._config, self._probe = cls, config, probe
        self._router: Router | None = None

    def __await__(self) -> Generator[Any, None, Router]:
        return self._open().__await__()

    async def __aenter__(self) -> Router:
        self._router = await self._open()
        return self._router

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._router is not None:
            await self._router.aclose()

    async def _open(self) -> Router:
        given = self._config
        if isinstance(given, Settings):
            runtime = await open_runtime(given, kind="library")
        else:
            path = Path(given) if given else None
            source = Source(path)
            runtime = await open_runtime(load(path), kind="library", source=source)
            runtime.start_watching()
        if self._probe:
            runtime.start_probing()
        return self._cls(runtime)


@contextmanager
def _understood(call: Call, exchange: Exchange) -> Iterator[None]:
    """An answer that the engine took and we cannot read is told as every malformed one; its errors know the route."""
    try:
        yield
    except AttemptFailed as failed:
        kind = EmbeddingServiceError if call.operation is Operation.EMBEDDINGS else InvalidResponse
        error = kind(str(failed), provider=exchange.served.provider, request_id=call.id)
        error.decision, error.attempts = exchange.decision, exchange.attempts
        raise error from failed
    except LLMError as error:
        error.decision, error.attempts = exchange.decision, exchange.attempts
        raise
