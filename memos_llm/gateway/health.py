"""Health from the last probes: never probes itself, never waits.

`healthy`: every provider is up; `degraded`: one is down but another can answer; `unhealthy`: none is up. A store that
does not answer or a wrong configuration file degrades: what was in force stays so, but cannot be changed.
"""

from collections.abc import Callable, Iterable

from memos_llm.core.events import ConfigChanged, ConfigRejected, Event, ProbeEnded, StoreState
from memos_llm.core.ports import Clock

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = "healthy", "degraded", "unhealthy", "unknown"


class HealthBoard:
    """Remembers the last probe of every endpoint. Subscribe `on_event` to the bus."""

    def __init__(self, providers: Iterable[str], clock: Clock, draining: Callable[[], bool]) -> None:
        self.draining = draining
        self._clock = clock
        self._up: dict[str, dict[str, bool]] = {provider: {} for provider in providers}
        self._at: float | None = None
        self._parts = {"store": UNKNOWN, "config": HEALTHY}

    def on_event(self, event: Event) -> None:
        if isinstance(event, ProbeEnded):
            self._up.setdefault(event.provider, {})[event.endpoint] = event.up
            self._at = self._clock()
        elif isinstance(event, StoreState):
            self._parts["store"] = HEALTHY if event.reachable and not event.regressed else DEGRADED
        elif isinstance(event, ConfigRejected):
            self._parts["config"] = DEGRADED
        elif isinstance(event, ConfigChanged):
            self._parts["config"] = HEALTHY
            self._follow(event)

    def _follow(self, event: ConfigChanged) -> None:
        """What is configured no more is asked for no more."""
        known = self._up
        self._up = {provider: {} for provider in event.providers}
        for provider, endpoint in event.endpoints:
            if provider in self._up and endpoint in known.get(provider, {}):
                self._up[provider][endpoint] = known[provider][endpoint]

    def report(self) -> dict[str, object]:
        """The `/health` document; `age_s` is the age of the last probe, None before the first."""
        services = {provider: _service(endpoints) for provider, endpoints in self._up.items()}
        return {
            "status": _overall(services.values()),
            "services": {"router": HEALTHY, **services},
            "age_s": None if self._at is None else round(self._clock() - self._at, 3),
        }

    def aggregate(self) -> dict[str, object]:
        """The same with every part: each endpoint (anyone may ask, so none by its address), the store, the file."""
        report = self.report()
        services = {provider: _service(endpoints) for provider, endpoints in self._up.items()}
        ill = report["status"] == HEALTHY and DEGRADED in self._parts.values()
        return {
            **report,
            "status": DEGRADED if ill else report["status"],
            "services": {"router": HEALTHY, **services, **self._parts},
            "endpoints": {
                provider: [HEALTHY if up else UNHEALTHY for up in endpoints.values()]
                for provider, endpoints in self._up.items()
            },
        }


def _service(endpoints: dict[str, bool]) -> str:
    if not endpoints:
        return UNKNOWN
    if all(endpoints.values()):
        return HEALTHY
    return DEGRADED if any(endpoints.values()) else UNHEALTHY


def _overall(services: Iterable[str]) -> str:
    states = set(services)
    if states <= {HEALTHY, UNKNOWN}:
        return HEALTHY
    return UNHEALTHY if states == {UNHEALTHY} else DEGRADED
