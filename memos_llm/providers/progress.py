"""The progress watch: an endpoint that streams to someone, loads nothing and sends no one anything counts as hung.

A stopped runner of Ollama shows on no probe, and Ollama mends it only once its clients have left (0.17.4, measured).
So what is not committed there is cut, the endpoint is passed over, and a probe that finds it well brings it back as
soon as nothing of ours is in flight there, or somebody who came later is answered: who has nowhere else to go still
comes. These are cut, too, once they have waited as long. What does not stream may be silent as long as it likes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from memos_llm.core.ports import Clock
from memos_llm.providers.endpoint import EndpointState

LOOKS = 4  # so often within `stall_s`


def hung(state: EndpointState, now: float, stall_s: float) -> bool:
    busy = state.loads or state.loading
    return bool(state.streams) and not busy and now - state.content_at >= stall_s


def is_content(chunk: bytes) -> bool:
    """Not what an event stream says to keep its connection open (vLLM since 0.30): a comment alone."""
    return not (chunk.startswith(b":") and b"\ndata:" not in chunk)


class Watch:
    """Looks while anything streams or an endpoint is held for hung, and sleeps otherwise.

    Args:
        tell: an endpoint was just found hung.
        ask: probe one, and let the finding take effect.
    """

    def __init__(
        self,
        endpoints: Iterable[EndpointState],
        stall_s: float,
        clock: Clock,
        *,
        tell: Callable[[EndpointState], None],
        ask: Callable[[EndpointState], Awaitable[object]],
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._stall_s, self._clock, self._tell, self._ask = stall_s, clock, tell, ask
        self._timer: asyncio.TimerHandle | None = None
        self._asking: dict[str, asyncio.Task[object]] = {}
        self._closed = False

    def wake(self) -> None:
        """Something streams."""
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._stall_s / LOOKS, self._look)

    def look(self) -> None:
        """One look at every endpoint."""
        now = self._clock()
        for state in self._endpoints:
            if hung(state, now, self._stall_s):
                known = state.stalled
                state.hang(now)
                if not known:
                    self._tell(state)

    async def aclose(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    def _look(self) -> None:
        self._timer = None
        self.look()
        for state in self._endpoints:
            if state.stalled and (state.moving or not state.in_flight) and state.url not in self._asking:
                self._probe(state)
        if any(state.streams or state.stalled for state in self._endpoints):
            self.wake()

    def _probe(self, state: EndpointState) -> None:
        """Nobody else may: a library can run without probes."""
        task = asyncio.ensure_future(self._ask(state))
        self._asking[state.url] = task
        task.add_done_callback(lambda _: self._asking.pop(state.url, None))
