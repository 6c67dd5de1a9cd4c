"""A router's calls under way, so that closing it ends them before their connections go.

What was cut off by us would count against the back end otherwise. A call that is ended so raises `ControlError`.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from memos_llm.core.errors import ControlError
from memos_llm.core.ports import Exchange

CLOSED = "the router is closed"
ENDED = "the router was closed during the call"


class UnderWay:
    """Tasks that wait for a back end, and streams that wait to be pulled. All of it belongs to one event loop."""

    def __init__(self) -> None:
        self._closed = False
        self._waiting: set[asyncio.Task[object]] = set()
        self._ended: set[asyncio.Task[object]] = set()
        self._streams: set[Exchange] = set()
        self._left = asyncio.Event()

    def check(self) -> None:
        """Raises:
        ControlError: the router is closed.
        """
        if self._closed:
            raise ControlError(CLOSED)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the current task waits for."""
        self.check()
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task in self._ended and task.uncancel() == 0:  # ours alone, as `asyncio.timeout` tells its own
                raise ControlError(ENDED) from None
            raise
        finally:
            self._waiting.discard(task)
            self._ended.discard(task)
            self._left.set()

    @contextmanager
    def streaming(self, exchange: Exchange) -> Iterator[None]:
        """Around the whole life of a stream."""
        self._streams.add(exchange)
        try:
            yield
        finally:
            self._streams.discard(exchange)

    async def end(self) -> None:
        """Cancel them all, and return when they are gone. Harmless when repeated."""
        self._closed = True
        for task in self._waiting:
            self._ended.add(task)
            task.cancel()
        while self._waiting:
            self._left.clear()
            await self._left.wait()
        for exchange in tuple(self._streams):
            await exchange.aclose()
