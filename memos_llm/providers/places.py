"""The places of one endpoint: at most so many requests in flight, the others wait in line for a bounded time."""

import asyncio
from collections import deque

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome

INFLIGHT = "inflight"  # the code of a `saturated` outcome: no place came free in time
SOON_S = 1.0  # the least that a caller is asked to stay away


class Places:
    """First come, first served.

    Args:
        limit: how many may be taken at once. queue_s: how long to wait for one.
    """

    def __init__(self, limit: int, queue_s: float) -> None:
        self.taken = 0
        self._limit, self._queue_s = limit, queue_s
        self._line: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait for a place; who is cancelled meanwhile leaves the line.

        Raises:
            AttemptFailed: `saturated`, none came free in time.
        """
        if self.taken < self._limit:
            self.taken += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            async with asyncio.timeout(self._queue_s):
                await place
        except BaseException as error:  # raised again: a place that came just as its taker left goes to the next
            self._leave(place)
            if isinstance(error, TimeoutError):
                raise self._refusal() from None
            raise

    def free(self) -> None:
        """A request has ended: its place is the next one's."""
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.taken -= 1

    def _leave(self, place: "asyncio.Future[None]") -> None:
        if place.done() and not place.cancelled():
            self.free()
        elif place in self._line:
            self._line.remove(place)

    def _refusal(self) -> AttemptFailed:
        wait_s = max(SOON_S, self._queue_s)
        return AttemptFailed(Outcome(kind=Kind.SATURATED, code=INFLIGHT, retry_after_s=wait_s))
