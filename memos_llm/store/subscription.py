"""One watcher of a store: the newest flags, from any thread, as an async iterator on one event loop.

Newest only: a slow reader misses what was replaced, never the last. A store keeps its subscriptions weakly, so one
whose reader has gone costs nothing.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

from memos_llm.core.flags import Flags


class Subscription:
    """Fed by `offer`, `fail` and `end` (any thread), read with `async for` (the loop it was made on)."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._newest: Flags | None = None
        self._error: Exception | None = None
        self._ended = False

    def offer(self, flags: Flags) -> None:
        self._on_loop(lambda: self._set(flags=flags))

    def fail(self, error: Exception) -> None:
        """The reader gets the error, and the iteration is over."""
        self._on_loop(lambda: self._set(error=error, ended=True))

    def end(self) -> None:
        self._on_loop(lambda: self._set(ended=True))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Flags:
        await self._ready.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error
        flags, self._newest = self._newest, None
        if not self._ended:
            self._ready.clear()
        if flags is None:
            raise StopAsyncIteration
        return flags

    def _set(self, flags: Flags | None = None, error: Exception | None = None, ended: bool = False) -> None:
        self._newest = flags or self._newest
        self._error = error or self._error
        self._ended = self._ended or ended
        self._ready.set()

    def _on_loop(self, act: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the reader's loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(act)
