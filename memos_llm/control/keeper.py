"""The writer of the last-good file: what changed here is on the disk soon, and no event loop waits for it."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from memos_llm.control import last_good
from memos_llm.control.adopt import View
from memos_llm.control.pauses import woken
from memos_llm.core.ports import Clock


class Keeper:
    """On the event loop of its `Live`; the writing is a thread's.

    Args:
        path: None: nothing is kept.
        view: what this process holds at the moment.
        clock: Unix seconds.
    """

    def __init__(self, path: Path | None, view: Callable[[], View], clock: Clock) -> None:
        self._path, self._view, self._clock = path, view, clock
        self._kept: View | None = None
        self._saving = threading.Lock()
        self._changed = asyncio.Event()

    def read(self) -> View:
        """What an earlier process left."""
        self._kept = last_good.read(self._path, self._clock())
        return self._kept

    def wake(self) -> None:
        """There is something new to keep."""
        self._changed.set()

    async def keep(self) -> None:
        """Wait for something new, and write it."""
        if self._kept is self._view():
            await woken(self._changed)
        await self.save()

    async def save(self) -> None:
        """Write what has changed, if anything.

        Raises:
            OSError: it cannot be written.
        """
        if self._path is not None:
            await asyncio.to_thread(self._write, self._path)

    def _write(self, path: Path) -> None:
        with self._saving:  # a writer that was cancelled may still be at it; the last one writes the newest
            view = self._view()
            if view is not self._kept:
                last_good.write(path, view, self._clock())
                self._kept = view
