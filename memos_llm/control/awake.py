"""Notices that the event loop has stood still: in a notebook between two cells, in a script that computes.

Then whatever the store told meanwhile still waits to be heard, behind the request that is decided now.
"""

import asyncio
import time
from collections.abc import Callable
from math import inf

from memos_llm.core.ports import Clock

STALE_S = 0.75  # with the pause between two looks of a store's watch, nobody decides by flags older than a second


class Awake:
    """On one event loop.

    Args:
        stale_s: standing still for longer is noticed.
        asleep: called once after that, by `check` or `tick`, whichever is first.
        clock: monotonic.
    """

    def __init__(self, stale_s: float, asleep: Callable[[], None], clock: Clock = time.monotonic) -> None:
        self._stale_s, self._asleep, self._clock = stale_s, asleep, clock
        self._until = inf

    def check(self) -> None:
        if self._clock() > self._until:
            self.renew()
            self._asleep()

    def renew(self) -> None:
        """It is awake now."""
        self._until = self._clock() + self._stale_s

    def end(self) -> None:
        """Notice nothing more."""
        self._until = inf

    async def tick(self) -> None:
        """One step of many: as long as they come on time, so does what the store tells."""
        await asyncio.sleep(self._stale_s / 3)
        self.check()
        self.renew()
