"""A time limit without `asyncio.timeout`, which costs 8 µs: for what every request and every event pays.

As the limit of one wait it costs a timer. Between the reads of a stream it costs nothing per read: a read notes its
start, and one timer for the life of the stream, when it fires, looks how long the current read has lasted.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class IdleWatch:
    """Cancels what lasts longer than `idle_s`. Belongs to one task at a time; `close` it at the end."""

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._since = 0.0
        self._late = False
        self._timer = self._loop.call_later(idle_s, self._look)

    async def read(self, read: Callable[[], Awaitable[T]]) -> T:
        """One read, or whatever else may not last.

        Raises:
            TimeoutError: it lasted too long.
        """
        task = asyncio.current_task()
        assert task is not None
        self._task, self._since, self._late = task, self._loop.time(), False
        before = task.cancelling()
        try:
            return await read()
        except asyncio.CancelledError:
            if self._late and task.uncancel() <= before:
                raise TimeoutError from None
            raise
        finally:
            self._task = None

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        left_s = self._idle_s
        if self._task is not None:
            left_s = self._since + self._idle_s - self._loop.time()
            if left_s <= 0:
                self._late = True
                self._task.cancel()
                return
        self._timer = self._loop.call_later(left_s, self._look)
