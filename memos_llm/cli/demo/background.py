"""Tasks that go on beside the story; the first of them that fails ends it."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Background:
    """An async context manager: leaving it cancels what still runs."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _end(set(self._tasks))

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin; one that returns is simply over."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    async def during(self, story: Coroutine[Any, Any, T]) -> T:
        """The story's result.

        Raises:
            what the story, or a task beside it, raises first.
        """
        main, failing = asyncio.create_task(story), asyncio.create_task(self._failed.get())
        try:
            await asyncio.wait({main, failing}, return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                failing.result().result()
            return main.result()
        finally:
            await _end({main, failing})

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failed.put_nowait(task)


async def _end(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
