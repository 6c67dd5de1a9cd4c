"""The engine in process: `Router` for asyncio, `SyncRouter` for everything else.

The same decisions as in the gateway, from the same flags. Calls travel as OpenAI chat completions, which every
provider offers; `component` names the pipeline stage and `session` the conversation that must not change arms.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from msgspec.structs import replace

from memos_llm.config import Settings, load
from memos_llm.core.call import Call, Operation, Wire
from memos_llm.core.decision import Decision
from memos_llm.core.errors import AttemptFailed, ConfigError, InvalidResponse, NotOffered
from memos_llm.core.ports import Exchange
from memos_llm.core.responses import Chat, EmbeddingResponse, LLMResponse, Options, StreamChunk
from memos_llm.dialects.edge import DIALECTS
from memos_llm.dialects.typed import ChunkReader, chat_body, parse_answer
from memos_llm.wiring import Runtime, open_runtime

T = TypeVar("T")


class CallOptions(Options, total=False):
    """What every call of a router takes besides the sampling options.

    `component` names the pipeline stage, `session` the conversation; `timeout_s` is the caller's own deadline.
    """

    component: str
    session: str
    request_id: str
    timeout_s: float


class Router:
    """Routes calls of this process. `async with Router.open("config/memos_llm.yaml") as router: …`

    Raises:
        LLMError: and only that, from every call; see `memos_llm.core.errors`.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
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
        exchange = await self._runtime.engine.open(call)
        try:
            frame = await exchange.next()
            await exchange.next()
        finally:
            await exchange.aclose()
        return self._response(call, exchange, frame.data if frame else b"")

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
        exchange = await self._runtime.engine.open(call)
        reader = ChunkReader()
        try:
            while (frame := await exchange.next()) is not None:
                for chunk in reader.feed(frame.data):
                    yield chunk
            for chunk in reader.eof():
                yield chunk
        finally:
            await exchange.aclose()

    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, component: str = "embedding"
    ) -> EmbeddingResponse:
        """Not offered yet."""
        raise NotOffered("embeddings are not routed yet: call the embedding back end directly")

    def explain(self, **options: Unpack[CallOptions]) -> Decision:
        """The decision for such a call, nothing sent. `session` is the key; without one, each call has its own."""
        return self._runtime.engine.decide(self._call([], False, None, None, options))

    def provider(self, component: str) -> "BoundRouter":
        """This router as an `LLMProvider` for one component: a pipeline cannot tell it from a single provider."""
        return BoundRouter(self, component)

    async def aclose(self) -> None:
        await self._runtime.aclose()

    def _call(
        self, messages: Chat, stream: bool, max_tokens: int | None, temperature: float | None, options: CallOptions
    ) -> Call:
        policy, now = self._runtime.policy(), self._runtime.clock()
        model = options.get("model") or policy.default_model()
        if model is None:
            raise ConfigError("no model was given and `models` does not have exactly one: pass model=…")
        wait_s = options.get("timeout_s", policy.total_s)
        body = chat_body(
            messages,
            stream=stream,
            model=model,
            max_tokens=max_tokens,
            temperature=temperature,
            options=_sampling(options),
        )
        dialect = DIALECTS[Wire.OPENAI_CHAT]
        parsed = dialect.parse(body)
        id = options.get("request_id") or os.urandom(12).hex()
        session = options.get("session")
        key = session.encode() if session else parsed.named_key or dialect.conversation_key(parsed.head) or id.encode()
        return Call(
            id=id,
            wire=dialect.wire,
            head=parsed.head,
            body=body,
            model=model,
            stream=stream,
            component=options.get("component") or policy.component(model, Operation.CHAT),
            key=key,
            accepted_at=now,
            deadline=now + min(wait_s, policy.total_s),
            own_deadline=wait_s < policy.total_s,
            needs=parsed.needs,
        )

    def _response(self, call: Call, exchange: Exchange, body: bytes) -> LLMResponse:
        try:
            answer = parse_answer(body)
        except AttemptFailed as error:
            raise InvalidResponse(str(error), provider=exchange.served.provider, request_id=call.id) from error
        return replace(
            answer,
            provider=exchange.served.provider,
            model=exchange.served.model,
            arm=exchange.decision.arm.value,
            attempts=exchange.attempts,
            request_id=call.id,
            duration_s=self._runtime.clock() - call.accepted_at,
        )


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
        return await self._router.chat(messages, max_tokens=max_tokens, temperature=temperature, **self._bound(options))

    def stream(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[CallOptions],
    ) -> AsyncIterator[StreamChunk]:
        return self._router.stream(messages, max_tokens=max_tokens, temperature=temperature, **self._bound(options))

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> EmbeddingResponse:
        return await self._router.embed(texts, model=model, component=self._component)

    async def aclose(self) -> None:
        return None

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
        settings = (
            self._config if isinstance(self._config, Settings) else load(Path(self._config) if self._config else None)
        )
        runtime = await open_runtime(settings, kind="library")
        if self._probe:
            runtime.start_probing()
        return self._cls(runtime)


class SyncRouter:
    """`Router` for code without asyncio, and inside a running loop: calls run on a loop in a thread of its own."""

    def __init__(self, config: str | Path | Settings | None, probe: bool) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="memos_llm-router", daemon=True)
        self._thread.start()
        try:
            self._router = self._run(_await(Router.open(config, probe=probe)))
        except BaseException:
            self._stop()
            raise

    @classmethod
    def open(cls, config: str | Path | Settings | None = None, *, probe: bool = True) -> Self:
        """As `Router.open`, but at once; use it with `with`."""
        return cls(config, probe)

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[CallOptions],
    ) -> LLMResponse:
        return self._run(self._router.generate(prompt, max_tokens=max_tokens, temperature=temperature, **options))

    def chat(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[CallOptions],
    ) -> LLMResponse:
        return self._run(self._router.chat(messages, max_tokens=max_tokens, temperature=temperature, **options))

    def stream(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[CallOptions],
    ) -> Iterator[StreamChunk]:
        """Leaving the loop early cancels the call upstream."""
        chunks = self._router.stream(messages, max_tokens=max_tokens, temperature=temperature, **options)
        try:
            while (chunk := self._run(_next(chunks))) is not None:
                yield chunk
        finally:
            self._run(chunks.aclose())  # type: ignore[attr-defined]  # an async generator, typed as its iterator

    def explain(self, **options: Unpack[CallOptions]) -> Decision:
        return self._router.explain(**options)

    def close(self) -> None:
        if self._thread.is_alive():
            self._run(self._router.aclose())
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Coroutine[object, object, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _await(opening: _Opening) -> Router:
    return await opening


async def _next(chunks: AsyncIterator[StreamChunk]) -> StreamChunk | None:
    return await anext(chunks, None)


def _sampling(options: CallOptions) -> Options:
    names = Options.__annotations__
    return {name: value for name, value in options.items() if name in names}  # type: ignore[return-value]
