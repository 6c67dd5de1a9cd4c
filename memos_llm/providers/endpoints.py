"""The endpoints of one provider: which serve a model, which are usable now, and which gets the next request.

Three things make an endpoint unusable: the last probes (`down`), its breaker (`breaker-open`), and, where other
endpoints are known to serve the model, not being one of them. Nothing is known at first, and unknown means: try.
The breakers are fed by `AttemptEnded` on the bus, whoever made the attempt; the transport tells them nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import AttemptEnded, BreakerChanged, Bus, Event
from memos_llm.core.outcome import BREAKER_OPEN, MODEL_NOT_FOUND, NO_FINISH, Kind, Outcome
from memos_llm.core.policy import Endpoint
from memos_llm.core.ports import Clock
from memos_llm.providers.affinity import fingerprint, overloaded, weight
from memos_llm.providers.breaker import VERDICTS, Breaker, BreakerLimits, State
from memos_llm.providers.endpoint import EndpointState, Lease, gone
from memos_llm.providers.places import Places

__all__ = ["BEST_EFFORT", "DOWN", "EndpointState", "Lease", "Pool", "gone"]

DOWN = "down"
BEST_EFFORT = 32  # requests in flight on an endpoint whose breaker is open

_MAX_REMEMBERED = 1_000  # models are named by callers


class Pool:
    """All endpoints of one provider.

    Args:
        canonical: folds the spellings of a model's name that the back end takes for one.
        max_inflight: requests in flight on one endpoint. queue_s: how long others wait for a place.
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
        max_inflight: int | None = None,
        queue_s: float = 10.0,
    ) -> None:
        limits = limits or BreakerLimits()
        self.provider = provider
        self._bus, self._clock, self._canonical, self._max_inflight = bus, clock, canonical, max_inflight
        self._states = {
            endpoint.url: EndpointState(
                endpoint, Breaker(limits, rng), canonical, Places(max_inflight, queue_s) if max_inflight else None
            )
            for endpoint in endpoints
        }
        self._serving: dict[str, tuple[EndpointState, ...]] = {}
        self._turn = 0
        self._unsubscribe = bus.subscribe(f"breaker.{provider}", self._on_event, AttemptEnded)

    def close(self) -> None:
        """Hear no more."""
        self._unsubscribe()

    def __iter__(self) -> Iterator[EndpointState]:
        return iter(self._states.values())

    def serving(self, model: str) -> tuple[EndpointState, ...]:
        """The endpoints for a model, usable or not; none when all have configured lists and it is on none."""
        found = self._serving.get(model)
        return self._remember(model) if found is None else found

    def refusal(self, serving: Sequence[EndpointState]) -> str | None:
        """Why none of them would take a request now, or None; called for every request. Changes nothing."""
        refused = DOWN
        for state in serving:
            if state.up is False:
                continue
            if state.breaker.state is State.CLOSED or state.breaker.would_admit(self._clock):
                return None
            refused = BREAKER_OPEN
        return refused

    def pick(self, model: str, key: bytes = b"") -> EndpointState:
        """The key's home among the usable endpoints, unless that is overloaded; without a key, or then, the one with
        the fewest requests in flight, in turn where equal. One that is down if all are.

        Where every breaker is open: a bounded best effort on the least bad. Who asks has nowhere else to go (the chain
        puts refusing providers last), and an open breaker may be wrong; an answer half-opens it.

        Raises:
            AttemptFailed: `saturated`, the best effort is at its bound; `config`, no endpoint has the model.
        """
        serving = self.serving(model)
        if not serving:
            raise AttemptFailed(Outcome(kind=Kind.CONFIG, code=MODEL_NOT_FOUND))
        best = self._best(serving, fingerprint(key) if key and len(serving) > 1 else 0)
        self._half_open(best)
        self._turn += 1
        best.turn = self._turn
        return best

    def _best(self, serving: Sequence[EndpointState], key: int) -> EndpointState:
        least = home = None
        heaviest = -1
        for state in serving:
            breaker = state.breaker
            if breaker.state is not State.CLOSED and not breaker.would_admit(self._clock):
                continue
            if least is None or _rank(state) < _rank(least):
                least = state
            if key and state.up is not False:
                own = weight(key, state.seed)
                if own > heaviest:
                    home, heaviest = state, own
        if least is None:
            return self._least_bad(serving)
        if home is None or overloaded(home.in_flight, least.in_flight, self._max_inflight):
            return least
        return home

    def _least_bad(self, serving: Sequence[EndpointState]) -> EndpointState:
        now = self._clock()
        best = min(serving, key=lambda state: (state.up is False, state.in_flight, state.breaker.wait_s(now)))
        if best.in_flight >= BEST_EFFORT:
            wait_s = min(state.breaker.wait_s(now) for state in serving)
            raise AttemptFailed(Outcome(kind=Kind.SATURATED, code=BREAKER_OPEN, retry_after_s=wait_s))
        return best

    def find(self, url: str) -> EndpointState:
        return self._states[url]

    def learn(self, state: EndpointState, models: Sequence[str], contexts: Mapping[str, int] | None = None) -> None:
        """What an endpoint told of its models."""
        state.contexts = {self._canonical(model): length for model, length in (contexts or {}).items()}
        served = frozenset(self._canonical(model) for model in models)
        if served != state.served:
            state.served = served
            self._serving.clear()

    def context_tokens(self, model: str) -> int | None:
        """The least context length among the endpoints that serve a model and told it."""
        name = self._canonical(model)
        told = [state.contexts[name] for state in self.serving(model) if name in state.contexts]
        return min(told, default=None)

    def lists(self, model: str) -> bool:
        """Whether any of those that it may be sent to told of a model, or told nothing yet."""
        name = self._canonical(model)
        return any(state.served is None or name in state.served for state in self.serving(model))

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

    def elapsed(self, state: EndpointState) -> None:
        """Tell of a breaker whose time is over though nobody came: it refuses nobody any more."""
        self._half_open(state)

    def _half_open(self, state: EndpointState) -> None:
        """An open breaker whose time is over takes the next request for a trial."""
        before = state.breaker.state
        if before is not State.CLOSED:
            state.breaker.admits(self._clock())
            self._tell(state, before)

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
