"""What a running process has heard of its providers: last probes, breakers, attempts in flight. Never asks itself."""

from collections.abc import Callable, Iterable

from msgspec import Struct
from msgspec.structs import replace

from memos_llm.core.events import AttemptEnded, AttemptStarted, BreakerChanged, Event, ProbeEnded
from memos_llm.core.policy import ProviderSpec
from memos_llm.operate.documents import EndpointState, ProviderState

CLOSED, HALF_OPEN, OPEN = "closed", "half_open", "open"
_WORSE = (CLOSED, HALF_OPEN, OPEN)


class _Heard(Struct):
    """What is known of one endpoint."""

    probe: ProbeEnded | None = None
    breaker: str = CLOSED


class Board:
    """Subscribe `on_event` to `KINDS`. `specs` says which providers there are now (a reload may change them)."""

    KINDS = (ProbeEnded, BreakerChanged, AttemptStarted, AttemptEnded)

    def __init__(self, specs: Callable[[], Iterable[ProviderSpec]]) -> None:
        self._specs = specs
        self._heard: dict[tuple[str, str], _Heard] = {}
        self._in_flight: dict[str, int] = {}

    def on_event(self, event: Event) -> None:
        match event:
            case AttemptStarted():
                self._in_flight[event.provider] = self._in_flight.get(event.provider, 0) + 1
            case AttemptEnded():
                self._in_flight[event.provider] = max(0, self._in_flight.get(event.provider, 0) - 1)
            case ProbeEnded():
                self._of(event.provider, event.endpoint).probe = event
            case BreakerChanged():
                self._of(event.provider, event.endpoint).breaker = event.state
            case _:
                pass

    def providers(self) -> dict[str, ProviderState]:
        """Every configured provider, in the configuration's order."""
        return {spec.name: self._provider(spec) for spec in self._specs()}

    def _of(self, provider: str, endpoint: str) -> _Heard:
        return self._heard.setdefault((provider, endpoint), _Heard())

    def _provider(self, spec: ProviderSpec) -> ProviderState:
        urls = [endpoint.url for endpoint in spec.endpoints]
        urls += [url for name, url in self._heard if name == spec.name and not spec.endpoints]
        states = tuple(self._endpoint(spec.name, url) for url in urls)
        known = [state.up for state in states if state.up is not None]
        breakers = [state.breaker for state in states if state.breaker is not None]
        return ProviderState(
            up=any(known) if known else None,
            breaker=max(breakers, key=_WORSE.index, default=None),
            in_flight=self._in_flight.get(spec.name, 0),
            endpoints=states,
        )

    def _endpoint(self, provider: str, url: str) -> EndpointState:
        heard = self._heard.get((provider, url)) or _Heard()
        state = EndpointState(url=url, breaker=heard.breaker)
        if heard.probe is None:
            return state
        probe = heard.probe
        return replace(state, up=probe.up, detail=probe.detail, models=probe.models, version=probe.version)
