"""`SyncRouter`: a `Router` on an event loop in a thread of its own.

Everything of the router happens on that loop; other threads hand it work and wait. Closing ends the calls under way
first, so that they count as cancelled and not against the back end whose connection would go away under them.
"""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

from memos_llm.config import Settings
from memos_llm.core.decision import Decision
from memos_llm.core.errors import ControlError
from memos_llm.core.responses import Chat, EmbeddingResponse, LLMResponse, StreamChunk
from memos_llm.library.calls import CallOptions, Place
from memos_llm.library.router import Router
from memos_llm.library.under_way import CLOSED, ENDED

T = TypeVar("T")

FORKED = "the router belongs to the process that opened it, and its thread stayed there: open one after the fork"


class SyncRouter:
    """`Router` for code without asyncio, and inside a running loop. Any thread may call it."""

    def __init__(self, config: str | Path | Settings | None, probe: bool) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._lock = threading.RLock()  # a stream may be collected, hence left, wherever its holder stands
        self._closed = False
        self._calls: set[asyncio.Task[object]] = set()
        self._streams: set[_Pulled] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="memos_llm-router", daemon=True)
        self._thread.start()
        try:
            self._router = self._run(lambda: _opened(config, probe))
        except BaseException:  # raised again: no thread may be left, whatever interrupts
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
        """As `Router.generate`."""
        return self._run(
            lambda: self._router.generate(prompt, max_tokens=max_tokens, temperature=temperature, **options)
        )

    def chat(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[CallOptions],
    ) -> LLMResponse:
        """As `Router.chat`."""
        return self._run(lambda: self._router.chat(messages, max_tokens=max_tokens, temperature=temperature, **options))

    def stream(
        self,
        messages: Chat,
        *,
        max_tokens: int | None = 4096,
        temperature: float | None = 0.7,
        **options: Unpack[CallOptions],
    ) -> Iterator[StreamChunk]:
        """As `Router.stream`. Leaving the loop early cancels the call upstream."""
        pulled = _Pulled(self._router, messages, max_tokens, temperature, options)
        try:
            while (chunk := self._run(lambda: self._pull(pulled))) is not None:
                yield chunk
        finally:
            self._leave(pulled)

    def embed(self, texts: Sequence[str], *, model: str | None = None, **options: Unpack[Place]) -> EmbeddingResponse:
        """As `Router.embed`."""
        return self._run(lambda: self._router.embed(texts, model=model, **options))

    def explain(self, **options: Unpack[CallOptions]) -> Decision:
        """As `Router.explain`."""

        async def explained() -> Decision:
            return self._router.explain(**options)

        return self._run(explained)

    def close(self) -> None:
        """Cancels the calls under way, which raise `ControlError` where they were made. Harmless when repeated.

        In a forked process there is nothing to close: all of it is the parent's.
        """
        if self._is_forked():
            return
        with self._lock:
            first, self._closed = not self._closed, True
            ending = asyncio.run_coroutine_threadsafe(self._end(), self._loop) if first else None
        if ending is None:
            self._thread.join()
            return
        try:
            ending.result()
        finally:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it on the loop and wait. What is handed over before `close` is seen by it: the loop keeps the order."""
        if self._is_forked():  # before the lock, which may have been held when the process was forked
            raise ControlError(FORKED)
        with self._lock:
            if self._closed:
                raise ControlError(CLOSED)
            future = asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ControlError(ENDED) from None
        except BaseException:  # Ctrl-C while waiting
            future.cancel()
            raise

    def _leave(self, pulled: "_Pulled") -> None:
        """Never waits: a stream that was dropped may be collected on the loop's own thread."""
        if self._is_forked():
            return
        with self._lock:
            if not self._closed:
                asyncio.run_coroutine_threadsafe(self._left(pulled), self._loop)

    def _is_forked(self) -> bool:
        return os.getpid() != self._process

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # On the loop

    async def _tracked(self, work: Callable[[], Awaitable[T]]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            return await work()
        finally:
            self._calls.discard(task)

    async def _pull(self, pulled: "_Pulled") -> StreamChunk | None:
        self._streams.add(pulled)
        return await pulled.next()

    async def _left(self, pulled: "_Pulled") -> None:
        self._streams.discard(pulled)
        await pulled.aclose()

    async def _end(self) -> None:
        """Calls, then streams that wait to be pulled, then what carried them."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await asyncio.gather(*(pulled.aclose() for pulled in self._streams), return_exceptions=True)
        await self._router.aclose()
        await self._loop.shutdown_asyncgens()


class _Pulled:
    """A stream of the router. One at a time: leaving waits for a pull that is being cancelled."""

    def __init__(
        self, router: Router, messages: Chat, max_tokens: int | None, temperature: float | None, options: CallOptions
    ) -> None:
        self._chunks = router.stream(messages, max_tokens=max_tokens, temperature=temperature, **options)
        self._turn = asyncio.Lock()

    async def next(self) -> StreamChunk | None:
        async with self._turn:
            return await anext(self._chunks, None)

    async def aclose(self) -> None:
        async with self._turn:
            await self._chunks.aclose()  # type: ignore[attr-defined]  # an async generator, typed as its iterator


async def _opened(config: str | Path | Settings | None, probe: bool) -> Router:
    return await Router.open(config, probe=probe)
