"""The endpoints of one provider: which serve a model, which are usable now, and which gets the next request.

Three things make an endpoint unusable: the last probes (`down`), its breaker (`breaker-open`), and, where other
endpoints are known to serve the model, not being one of them. Nothing is known at first, and unknown means: try.
The breakers are fed by `AttemptEnded` on the bus, whoever made the attempt; the transport tells them nothing.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from random import Random

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import AttemptEnded, BreakerChanged, Bus, Event
from memos_llm.core.outcome import BREAKER_OPEN, MODEL_NOT_FOUND, NO_FINISH, Kind, Outcome
from memos_llm.core.policy import Endpoint
from memos_llm.core.ports import Clock
from memos_llm.providers.breaker import VERDICTS, Breaker, BreakerLimits, State

DOWN = "down"
BEST_EFFORT = 32  # requests in flight on an endpoint whose breaker is open

_MAX_REMEMBERED = 1_000  # models are named by callers


class EndpointState:
    """One endpoint as this process sees it.

    Attributes:
        up: by the last probes; None before the first.
        served: the models it told of (canonical), None before it did.
        misses: probes that failed in a row. heard_at: when a request there last got a byte.
        in_flight: requests from `begin` until their lease ends.
        waiting: tasks within `patience`; `cut`: those that were told to give up. downs: how often they were.
    """

    def __init__(self, endpoint: Endpoint, breaker: Breaker, canonical: Callable[[str], str]) -> None:
        self.url = endpoint.url
        self.configured = frozenset(canonical(model) for model in endpoint.models)
        self.served: frozenset[str] | None = None
        self.version = ""
        self.up: bool | None = None
        self.misses = 0
        self.heard_at = float("-inf")
        self.breaker = breaker
        self.in_flight = 0
        self.turn = 0
        self.waiting: set[asyncio.Task[object]] = set()
        self.cut: set[asyncio.Task[object]] = set()
        self.downs = 0

    def begin(self) -> "Lease":
        return Lease(self)

    def patience(self) -> "Patience":
        """What is awaited within ends at once when the endpoint is found down. Not to be nested.

        Raises:
            AttemptFailed: `timeout`, code `endpoint_down`.
        """
        return Patience(self)

    def cut_waiting(self) -> None:
        """The endpoint was found down: end, as time-outs, what waits for it."""
        self.downs += 1
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
            raise gone() from None


def gone() -> AttemptFailed:
    return AttemptFailed(Outcome(kind=Kind.TIMEOUT, code="endpoint_down"))


class Lease:
    """One request in flight on an endpoint. Ends once, however often `end` is called."""

    __slots__ = ("_open", "_trial", "state")

    def __init__(self, state: EndpointState) -> None:
        self.state = state
        self._open = True
        self._trial = state.breaker.begin()
        state.in_flight += 1

    def end(self) -> None:
        if not self._open:
            return
        self._open = False
        self.state.in_flight -= 1
        if self._trial:
            self.state.breaker.end()


class Pool:
    """All endpoints of one provider.

    Args:
        canonical: folds the spellings of a model's name that the back end takes for one.
    """

    def __init__(
        self,
        provider: str,
        endpoints: Sequence[Endpoint],
        bus: Bus,
        *,
        clock: Clock,
        rng: Random,
        canonical: Callable[[str], str] = str,
        limits: BreakerLimits | None = None,
    ) -> None:
        limits = limits or BreakerLimits()
        self.provider = provider
        self._bus, self._clock, self._canonical = bus, clock, canonical
        self._states = {e.url: EndpointState(e, Breaker(limits, rng), canonical) for e in endpoints}
        self._serving: dict[str, tuple[EndpointState, ...]] = {}
        self._turn = 0
        bus.subscribe(f"breaker.{provider}", self._on_event, AttemptEnded)

    def __iter__(self) -> Iterator[EndpointState]:
        return iter(self._states.values())

    def serving(self, model: str) -> tuple[EndpointState, ...]:
        """The endpoints for a model, usable or not; none when all have configured lists and it is on none."""
        found = self._serving.get(model)
        return self._remember(model) if found is None else found

    def refusal(self, serving: Sequence[EndpointState]) -> str | None:
        """Why none of them would take a request now, or None; called for every request."""
        refused = DOWN
        for state in serving:
            if state.up is False:
                continue
            if self._admits(state):
                return None
            refused = BREAKER_OPEN
        return refused

    def pick(self, model: str) -> EndpointState:
        """The usable endpoint with the fewest requests in flight, in turn where equal; one that is down if all are.

        Where every breaker is open: a bounded best effort on the least bad. Who asks has nowhere else to go (the chain
        puts refusing providers last), and an open breaker may be wrong; an answer half-opens it.

        Raises:
            AttemptFailed: `saturated`, the best effort is at its bound; `config`, no endpoint has the model.
        """
        serving = self.serving(model)
        if not serving:
            raise AttemptFailed(Outcome(kind=Kind.CONFIG, code=MODEL_NOT_FOUND))
        best = None
        for state in serving:
            if self._admits(state) and (best is None or _rank(state) < _rank(best)):
                best = state
        if best is None:
            best = self._least_bad(serving)
        self._turn += 1
        best.turn = self._turn
        return best

    def _least_bad(self, serving: Sequence[EndpointState]) -> EndpointState:
        now = self._clock()
        best = min(serving, key=lambda state: (state.up is False, state.in_flight, state.breaker.wait_s(now)))
        if best.in_flight >= BEST_EFFORT:
            wait_s = min(state.breaker.wait_s(now) for state in serving)
            raise AttemptFailed(Outcome(kind=Kind.SATURATED, code=BREAKER_OPEN, retry_after_s=wait_s))
        return best

    def find(self, url: str) -> EndpointState:
        return self._states[url]

    def learn(self, state: EndpointState, models: Sequence[str]) -> None:
        """What an endpoint told of its models."""
        served = frozenset(self._canonical(model) for model in models)
        if served != state.served:
            state.served = served
            self._serving.clear()

    def _remember(self, model: str) -> tuple[EndpointState, ...]:
        """Those that serve a model for sure, else those that may, else (they may have got it since) those that did not.

        A configured list is binding, a discovered one is not.
        """
        name = self._canonical(model)
        if not name:  # a passage that names none
            return tuple(self)
        states = [state for state in self if not state.configured or name in state.configured]
        sure = [state for state in states if state.configured or (state.served and name in state.served)]
        unknown = [state for state in states if state.served is None]
        if len(self._serving) >= _MAX_REMEMBERED:
            self._serving.clear()
        found = self._serving[model] = tuple(sure or unknown or states)
        return found

    def _admits(self, state: EndpointState) -> bool:
        breaker = state.breaker
        if breaker.state is State.CLOSED:
            return True
        before = breaker.state
        admitted = breaker.admits(self._clock())
        self._tell(state, before)
        return admitted

    def _on_event(self, event: Event) -> None:
        """A well-formed end without a finish is the model's doing (Ollama's repeat guard), not the endpoint's."""
        if not isinstance(event, AttemptEnded) or event.provider != self.provider:
            return
        verdict = None if event.outcome.code == NO_FINISH else VERDICTS[event.outcome.kind]
        state = self._states.get(event.endpoint)
        if verdict is None or state is None:
            return
        now, before = self._clock(), state.breaker.state
        state.breaker.record(verdict, now, now - event.duration_s)
        self._tell(state, before)

    def _tell(self, state: EndpointState, before: State) -> None:
        after = state.breaker.state
        if after is not before:
            self._bus.emit(BreakerChanged(provider=self.provider, endpoint=state.url, state=after.value))


def _rank(state: EndpointState) -> tuple[bool, int, int]:
    return (state.up is False, state.in_flight, state.turn)
