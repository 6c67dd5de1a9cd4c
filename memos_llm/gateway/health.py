"""Health from the last probes: never probes itself, never waits.

`healthy`: every provider is up; `degraded`: one is down but another can answer; `unhealthy`: none is up.
"""

from collections.abc import Callable, Iterable

from memos_llm.core.events import Event, ProbeEnded
from memos_llm.core.ports import Clock

HEALTHY, DEGRADED, UNHEALTHY, UNKNOWN = "healthy", "degraded", "unhealthy", "unknown"


class HealthBoard:
    """Remembers the last probe of every endpoint. Subscribe `on_event` to the bus."""

    def __init__(self, providers: Iterable[str], clock: Clock, draining: Callable[[], bool]) -> None:
        self.draining = draining
        self._clock = clock
        self._up: dict[str, dict[str, bool]] = {provider: {} for provider in providers}
        self._at: float | None = None

    def on_event(self, event: Event) -> None:
        if isinstance(event, ProbeEnded):
            self._up.setdefault(event.provider, {})[event.endpoint] = event.up
            self._at = self._clock()

    def report(self) -> dict[str, object]:
        """The `/health` document; `age_s` is the age of the last probe, None before the first."""
        services = {provider: _service(endpoints) for provider, endpoints in self._up.items()}
        return {
            "status": _overall(services.values()),
            "services": {"router": HEALTHY, **services},
            "age_s": None if self._at is None else round(self._clock() - self._at, 3),
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
