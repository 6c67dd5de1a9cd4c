"""One endpoint as this process sees it, the requests in flight there, and those that wait for it."""

import asyncio
from collections.abc import Callable, Mapping

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.policy import Endpoint
from memos_llm.providers.affinity import fingerprint
from memos_llm.providers.breaker import Breaker
from memos_llm.providers.engines import Stillness
from memos_llm.providers.places import Places

FOUND_DOWN = "endpoint_down"  # the code of a time-out: probes found the endpoint dead
STALLED = "stalled"  # none of its streams moves


class EndpointState:
    """One endpoint as this process sees it.

    Attributes:
        up: by the last probes; None before the first.
        served: the models it told of (canonical), None before it did. contexts: their context lengths, where told.
        misses: probes that failed in a row. heard_at: when a request there last got a byte.
        in_flight: requests from `begin` until their lease ends, those that still wait for a load or a place included.
        streams: how many of them stream by now. content_at: when any of these last moved, the first one began, or they
            were cut.
        answered_at: when anybody there, streaming or not, last got any content.
        loads: model loads of ours under way. loading: it seems to load a model for someone.
        stalled: it is down because no stream moved. moving: and since then it answers who came later. engines: whether
            they stand still, where it tells of them.
        waiting: tasks within `patience`; `cut`: those that were told to give up. downs: how often they were, `why`
            the last time.
    """

    def __init__(
        self, endpoint: Endpoint, breaker: Breaker, canonical: Callable[[str], str], places: Places | None = None
    ) -> None:
        self.url = endpoint.url
        self.seed = fingerprint(endpoint.url.encode())
        self.configured = frozenset(canonical(model) for model in endpoint.models)
        self.served: frozenset[str] | None = None
        self.contexts: Mapping[str, int] = {}
        self.version = ""
        self.up: bool | None = None
        self.misses = 0
        self.heard_at = float("-inf")
        self.breaker = breaker
        self.places = places
        self.in_flight = 0
        self.turn = 0
        self.streams = 0
        self.content_at = float("-inf")
        self.answered_at = float("-inf")
        self.loads = 0
        self.loading = False
        self.stalled = False
        self.moving = False
        self.engines = Stillness()
        self.waiting: set[asyncio.Task[object]] = set()
        self.cut: set[asyncio.Task[object]] = set()
        self.downs = 0
        self.why = FOUND_DOWN

    def begin(self, *, generates: bool = False) -> "Lease":
        """A request more. One that has an engine generate shows, when it is answered, that this one does."""
        return Lease(self, generates)

    def patience(self) -> "Patience":
        """What is awaited within ends at once when the endpoint is found down. Not to be nested.

        Raises:
            AttemptFailed: `timeout`, code `endpoint_down` or `stalled`.
        """
        return Patience(self)

    def hang(self, now: float) -> None:
        """No stream moves: who comes from now on has as long as who is cut had."""
        self.up, self.stalled, self.moving = False, True, False
        self.content_at = now
        self.cut_waiting(STALLED)

    def cut_waiting(self, why: str = FOUND_DOWN) -> None:
        """The endpoint was found down: end, as time-outs, what waits for it."""
        self.downs += 1
        self.why = why
        for task in self.waiting - self.cut:
            self.cut.add(task)
            task.cancel()


class Patience:
    """A context manager without a generator: it is entered for every read before the commit point."""

    __slots__ = ("_before", "_state", "_task")

    def __init__(self, state: EndpointState) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._state, self._task, self._before = state, task, task.cancelling()

    def __enter__(self) -> None:
        self._state.waiting.add(self._task)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        state, task = self._state, self._task
        cut = task in state.cut
        state.waiting.discard(task)
        state.cut.discard(task)
        if cut and kind is asyncio.CancelledError and task.uncancel() <= self._before:
            raise gone(state.why) from None


def gone(why: str = FOUND_DOWN) -> AttemptFailed:
    return AttemptFailed(Outcome(kind=Kind.TIMEOUT, code=why))


class Lease:
    """One request in flight on an endpoint. Ends once, however often `end` is called."""

    __slots__ = ("_downs", "_generates", "_open", "_placed", "_streams", "_trial", "state")

    def __init__(self, state: EndpointState, generates: bool) -> None:
        self.state = state
        self._generates, self._downs = generates, state.downs
        self._open = True
        self._placed = self._streams = False
        self._trial = state.breaker.begin()
        state.in_flight += 1

    async def place(self) -> None:
        """Wait for one of the endpoint's places, if they are limited.

        Raises:
            AttemptFailed: `saturated`, or the endpoint was found down meanwhile.
        """
        state = self.state
        if state.places is None:
            return
        with state.patience():
            await state.places.take()
        self._placed = True

    def flow(self, now: float) -> None:
        """From now on content is expected of it."""
        state, self._streams = self.state, True
        if not state.streams:
            state.content_at = now
        state.streams += 1

    def heard(self, now: float, content: bool) -> None:
        """Bytes of its answer have come."""
        state = self.state
        state.heard_at = now
        if content:
            state.answered_at = now
            if self._streams:
                state.content_at = now
            if state.stalled and self._generates and self._downs == state.downs:  # not what an older stream had left
                state.moving = True

    def end(self) -> None:
        if not self._open:
            return
        self._open = False
        state = self.state
        state.in_flight -= 1
        state.streams -= self._streams
        if self._placed and state.places is not None:
            state.places.free()
        if self._trial:
            state.breaker.end()
