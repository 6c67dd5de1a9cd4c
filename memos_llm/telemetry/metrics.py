"""Prometheus metrics from events. `Metrics.on_event` is subscribed to the bus; `render` answers a scrape.

Names, types and labels are a contract with dashboards and alerts. The registry is our own: a host application's
metrics are neither shown nor disturbed. Three events per request pass through here, so each costs dictionary look-ups
and counter increments only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from memos_llm.core.events import (
    AttemptEnded,
    AttemptStarted,
    BreakerChanged,
    Event,
    FellBack,
    FlagsChanged,
    InternalError,
    ProbeEnded,
    RequestEnded,
    RequestRefused,
    RequestStarted,
)
from memos_llm.core.flags import GLOBAL, Flags, format_share
from memos_llm.core.version import VERSION
from memos_llm.telemetry.labels import Children, Slots

MAX_COMPONENTS = 100
MAX_MODELS = 200
STATES = ("closed", "open", "half_open")
SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180,
    300, 600,
)  # fmt: skip
"""Bucket edges. Every default limit is one (3, 5, 10, 15, 20, 60, 120, 300, 600 s; 0.25 s loop lag), so that the part
of requests beyond a limit is counted exactly and not interpolated."""

_TIMED = ("provider", "arm", "component", "operation")


class Metrics:
    """The listener and its registry.

    Args:
        candidate: the provider whose shares the flags tell; None when nothing is split.
        components, models: configured names; they never lose their label to unknown ones.
        version: ours, for `build_info`.
    """

    def __init__(
        self,
        *,
        candidate: str | None = None,
        components: Iterable[str] = (),
        models: Iterable[str] = (),
        version: str = VERSION,
    ) -> None:
        self._registry = CollectorRegistry()
        self._components, self._models = Slots(MAX_COMPONENTS), Slots(MAX_MODELS)
        self._candidate = ""
        self._make_request_metrics()
        self._make_state_metrics()
        self._gauge("build_info", "The running version.", "version")[version].set(1)
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            RequestStarted: self._request_started,
            RequestEnded: self._request_ended,
            RequestRefused: self._request_refused,
            AttemptStarted: self._attempt_started,
            AttemptEnded: self._attempt_ended,
            FellBack: self._fell_back,
            ProbeEnded: self._probe_ended,
            BreakerChanged: self._breaker_changed,
            FlagsChanged: self._flags_changed,
            InternalError: self._internal_error,
        }
        self.follow(candidate=candidate, components=components, models=models)

    def follow(self, *, candidate: str | None, components: Iterable[str] = (), models: Iterable[str] = ()) -> None:
        """Take over the names of a new configuration. Emit `FlagsChanged` after it, so that shares are told anew."""
        self._candidate = candidate or ""
        self._components.reserve(components)
        self._models.reserve(models)

    def on_event(self, event: Event) -> None:
        """The listener."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    @property
    def kinds(self) -> tuple[type[Event], ...]:
        """The events it counts."""
        return tuple(self._handlers)

    def render(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return generate_latest(_WithoutCreated(self._registry)), CONTENT_TYPE_LATEST

    def _counter(self, name: str, help: str, *labels: str) -> Children[Counter]:
        return Children(Counter(f"memos_llm_{name}", help, labels, registry=self._registry))

    def _gauge(self, name: str, help: str, *labels: str) -> Children[Gauge]:
        return Children(Gauge(f"memos_llm_{name}", help, labels, registry=self._registry))

    def _histogram(self, name: str, help: str) -> Children[Histogram]:
        return Children(Histogram(f"memos_llm_{name}", help, _TIMED, registry=self._registry, buckets=SECONDS))

    def _make_request_metrics(self) -> None:
        self._requests = self._counter(
            "requests_total", "Finished requests.", "provider", "arm", "component", "model", "operation", "outcome"
        )
        self._refused = self._counter("refused_requests_total", "Requests refused before a decision.", "code")
        self._duration = self._histogram("request_duration_seconds", "Acceptance to the last byte.")
        self._ttft = self._histogram("time_to_first_token_seconds", "Acceptance to first content; streams only.")
        self._tpot = self._histogram("time_per_output_token_seconds", "Per output token after the first; streams only.")
        self._tokens = self._counter(
            "tokens_total", "Tokens as the back end counts them.", "provider", "component", "model", "type"
        )
        self._attempts = self._counter("attempts_total", "Tries at a provider.", "provider", "outcome")
        self._inflight = self._gauge("inflight_requests", "Tries under way.", "provider")
        self._fallbacks = self._counter(
            "fallbacks_total", "Chains that went on.", "from_provider", "to_provider", "reason"
        )
        self._diverted = self._counter(
            "diverted_total", "Requests that passed over a refusing provider.", "provider", "reason"
        )
        self._decisions = self._counter("decisions_total", "Routing decisions.", "reason")

    def _make_state_metrics(self) -> None:
        self._up = self._gauge("provider_up", "1 if the last probe succeeded.", "provider", "endpoint")
        self._breaker = self._gauge(
            "breaker_state", "1 for the breaker's state, 0 for the others.", "provider", "endpoint", "state"
        )
        self._share = self._gauge("share_ratio", "The candidate's share, latches applied.", "component", "provider")
        self._epoch = self._gauge("epoch", "Grows with every change of a scope.", "component")
        self._latched = self._gauge("rollback_latched", "1 while a rollback holds.", "provider", "component")
        self._revision = Gauge("memos_llm_flags_revision", "Of the flags in force here.", registry=self._registry)
        self._internal_errors = self._counter("internal_errors_total", "Failures of our own parts.", "part")

    def _request_started(self, event: RequestStarted) -> None:
        decision = event.decision
        self._decisions[decision.reason].inc()
        for passed in decision.diverted:
            self._diverted[passed.provider, passed.reason].inc()

    def _request_ended(self, event: RequestEnded) -> None:
        provider, arm, operation = event.provider, event.decision.arm, event.operation
        component, model = self._components[event.component], self._models[event.model]
        timed = (provider, arm, component, operation)
        self._requests[provider, arm, component, model, operation, event.outcome.kind].inc()
        self._duration[timed].observe(event.duration_s)
        if event.ttft_s is not None:
            self._ttft[timed].observe(event.ttft_s)
        if event.tpot_s is not None:
            self._tpot[timed].observe(event.tpot_s)
        if event.usage is not None:
            self._tokens[provider, component, model, "input"].inc(event.usage.input_tokens)
            self._tokens[provider, component, model, "output"].inc(event.usage.output_tokens)

    def _request_refused(self, event: RequestRefused) -> None:
        self._refused[event.error_code].inc()

    def _attempt_started(self, event: AttemptStarted) -> None:
        self._inflight[event.provider].inc()

    def _attempt_ended(self, event: AttemptEnded) -> None:
        self._inflight[event.provider].dec()
        self._attempts[event.provider, event.outcome.kind].inc()

    def _fell_back(self, event: FellBack) -> None:
        self._fallbacks[event.from_provider, event.to_provider, event.reason].inc()

    def _probe_ended(self, event: ProbeEnded) -> None:
        self._up[event.provider, event.endpoint].set(event.up)
        if (event.provider, event.endpoint, STATES[0]) not in self._breaker:
            self._set_breaker(event.provider, event.endpoint, STATES[0])

    def _breaker_changed(self, event: BreakerChanged) -> None:
        self._set_breaker(event.provider, event.endpoint, event.state)

    def _set_breaker(self, provider: str, endpoint: str, state: str) -> None:
        for one in STATES:
            self._breaker[provider, endpoint, one].set(one == state)

    def _flags_changed(self, event: FlagsChanged) -> None:
        flags = event.flags
        self._revision.set(flags.revision)
        _replace(self._epoch, {(self._components[name],): scope.epoch for name, scope in flags.scopes.items()})
        _replace(self._share, self._shares(flags))
        _replace(self._latched, self._latches(flags))

    def _shares(self, flags: Flags) -> dict[tuple[str, ...], float]:
        if not self._candidate:
            return {}
        return {(self._components[name], self._candidate): format_share(flags.share_ppm(name)) for name in flags.scopes}

    def _latches(self, flags: Flags) -> dict[tuple[str, ...], float]:
        """A scope that was never latched is 0 for the candidate, so that an alert has a series from the start."""
        held: dict[tuple[str, ...], float] = {(self._candidate, GLOBAL): 0} if self._candidate else {}
        for name, scope in flags.scopes.items():
            provider = scope.latch.provider if scope.latch else self._candidate
            if provider:
                held[provider, self._components[name]] = scope.latch is not None
        return held

    def _internal_error(self, event: InternalError) -> None:
        self._internal_errors[event.part].inc()


def _replace(gauges: Children[Gauge], values: Mapping[tuple[str, ...], float]) -> None:
    """Show these label sets and no others."""
    for labels in gauges.keys() - values.keys():
        gauges.forget(labels)
    for labels, value in values.items():
        gauges[labels].set(value)


class _WithoutCreated(Collector):
    """The registry less the `_created` series, which double its size and which nobody reads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
