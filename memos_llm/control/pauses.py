"""Waiting: the pauses before a store that failed is asked again, and for something to do."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator

from memos_llm.core.errors import LLMError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


def pauses_s() -> Iterator[float]:
    """Growing, jittered (so that a fleet does not come back in step), without end."""
    for step in itertools.count():
        yield random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(step, 10))


async def woken(event: asyncio.Event, timeout_s: float | None = None) -> None:
    """Wait for an event, no longer than `timeout_s`, and clear it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    event.clear()


async def briefly(work: Awaitable[None], within_s: float) -> bool:
    """Do something at the end, if the store lets us; False when it was not done in time."""
    with contextlib.suppress(LLMError):
        try:
            async with asyncio.timeout(within_s):
                await work
        except TimeoutError:
            return False
    return True


async def for_ever(step: Callable[[], Awaitable[None]], failed: Callable[[Exception], None]) -> None:
    """Run a step again and again. What it raises goes to `failed`, and the next is after a pause, which grows until one
    has gone well.
    """
    loop = asyncio.get_running_loop()
    pauses = pauses_s()
    while True:
        started_s = loop.time()
        try:
            await step()
        except Exception as error:  # noqa: BLE001 - told, then tried again; the flags in force stay in force
            failed(error)
        else:
            pauses = pauses_s()
            continue
        if loop.time() - started_s > LONGEST_PAUSE_S:  # it had worked
            pauses = pauses_s()
        await asyncio.sleep(next(pauses))
