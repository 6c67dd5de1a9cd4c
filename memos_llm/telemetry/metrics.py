"""Prometheus metrics from events. `Metrics.on_event` is subscribed to the bus; `render` answers a scrape.

Names, types and labels are a contract with dashboards and alerts. The registry is our own: a host application's
metrics are neither shown nor disturbed. Three events per request pass through here, so each costs dictionary look-ups
and counter increments only.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from memos_llm.core.events import (
    AttemptEnded,
    AttemptStarted,
    BreakerChanged,
    ConfigChanged,
    ConfigRejected,
    Event,
    FellBack,
    FlagsChanged,
    GuardSaid,
    IncidentOpened,
    InternalError,
    ProbeEnded,
    RequestEnded,
    RequestRefused,
    RequestStarted,
    RollbackHeld,
)
from memos_llm.core.flags import GLOBAL, Flags, format_share
from memos_llm.core.verdicts import ArmWindow, Trigger
from memos_llm.core.version import VERSION
from memos_llm.telemetry.labels import Child, Children, Slots
from memos_llm.telemetry.shared import Merge, Shared, families, join
from memos_llm.telemetry.webhooks import WebhookTried

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
_WINDOW = ("provider", "component")
_ENDPOINT = ("provider", "endpoint")


class Described(NamedTuple):
    """One metric as the documentation lists it; `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


def describe_metrics() -> tuple[Described, ...]:
    """Every metric there is, names without the prefix that all share."""
    return tuple(Metrics().described)


class Metrics:
    """The listener and its registry.

    Args:
        candidate: the provider whose shares the flags tell; None when nothing is split.
        components, models: configured names; they never lose their label to unknown ones.
        version: ours, for `build_info`.
        shared: where the metrics of several workers meet; None: this process is the only one.
    """

    def __init__(
        self,
        *,
        candidate: str | None = None,
        components: Iterable[str] = (),
        models: Iterable[str] = (),
        version: str = VERSION,
        shared: Shared | None = None,
    ) -> None:
        if shared is not None:
            join(shared)
        self._shared = shared
        self._registry = CollectorRegistry()
        sharers = shared.workers if shared else 1
        self._components, self._models = Slots(MAX_COMPONENTS, sharers), Slots(MAX_MODELS, sharers)
        self._candidate = ""
        self._flags: Flags | None = None
        self.described: list[Described] = []
        self._make_request_metrics()
        self._make_state_metrics()
        self._gauge("build_info", "The running version.", "version", merge="livemax")[version].set(1)
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
            ConfigChanged: self._config_changed,
            ConfigRejected: self._config_rejected,
            IncidentOpened: self._incident_opened,
            RollbackHeld: self._rollback_held,
            GuardSaid: self._guard_said,
            InternalError: self._internal_error,
            WebhookTried: self._webhook_tried,
        }
        self.follow(candidate=candidate, components=components, models=models)

    def follow(self, *, candidate: str | None, components: Iterable[str] = (), models: Iterable[str] = ()) -> None:
        """Take over the names of a new configuration; the shares are told anew under them."""
        self._candidate = candidate or ""
        self._components.reserve(components)
        self._models.reserve(models)
        for trigger in Trigger if candidate else ():
            self._rollbacks[candidate, trigger]  # there from the start: what begins with 1 has never grown
        if self._flags is not None:
            self._show(self._flags)

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
        """The exposition and its content type; of all workers, whichever is asked."""
        shared = self._shared
        collect = self._registry.collect if shared is None else lambda: families(shared.folder)
        return generate_latest(_Shown(collect)), CONTENT_TYPE_LATEST

    def _counter(self, name: str, help: str, *labels: str) -> Children[Counter]:
        return self._children(Counter(f"memos_llm_{name}", help, labels, registry=self._registry), name, help, labels)

    def _gauge(self, name: str, help: str, *labels: str, merge: Merge = "livemostrecent") -> Children[Gauge]:
        """`merge`: what several workers' values become."""
        made = Gauge(f"memos_llm_{name}", help, labels, registry=self._registry, multiprocess_mode=merge)
        return self._children(made, name, help, labels)

    def _histogram(self, name: str, help: str) -> Children[Histogram]:
        made = Histogram(f"memos_llm_{name}", help, _TIMED, registry=self._registry, buckets=SECONDS)
        return self._children(made, name, help, _TIMED)

    def _children(self, metric: Child, name: str, help: str, labels: tuple[str, ...]) -> Children[Child]:
        self.described.append(Described(name, type(metric).__name__.lower(), labels, help))
        return Children(metric, shared=self._shared is not None)

    def _make_request_metrics(self) -> None:
        self._requests = self._counter(
            "requests_total", "Finished requests.", "provider", "arm", "component", "model", "operation", "outcome"
        )
        self._refused = self._counter(
            "refused_requests_total", "Requests refused before a decision, by error code.", "code"
        )
        self._duration = self._histogram("request_duration_seconds", "Acceptance to the last byte.")
        self._ttft = self._histogram("time_to_first_token_seconds", "Acceptance to first content; streams only.")
        self._tpot = self._histogram("time_per_output_token_seconds", "Per output token after the first; streams only.")
        self._tokens = self._counter(
            "tokens_total", "Tokens as the back end counts them.", "provider", "component", "model", "type"
        )
        self._attempts = self._counter(
            "attempts_total", "Tries at a provider, by how they ended.", "provider", "outcome"
        )
        self._inflight = self._gauge("inflight_requests", "Tries under way now.", "provider", merge="livesum")
        self._fallbacks = self._counter(
            "fallbacks_total",
            "Times a chain went on; reason: how the try before ended.",
            "from_provider",
            "to_provider",
            "reason",
        )
        self._diverted = self._counter(
            "diverted_total",
            "Requests that passed over a provider that takes nothing: down, breaker-open, maintenance.",
            "provider",
            "reason",
        )
        self._decisions = self._counter("decisions_total", "Routing decisions, by `x-memos-reason`.", "reason")

    def _make_state_metrics(self) -> None:
        self._up = self._gauge("provider_up", "1 if the last probe succeeded.", "provider", "endpoint")
        self._breaker = self._gauge(
            "breaker_state",
            "1 for the breaker's state, 0 for the others; with several workers, 1 for each that one of them is in.",
            *("provider", "endpoint", "state"),
            merge="livemax",
        )
        self._make_load_metrics()
        self._share = self._gauge("share_ratio", "The candidate's share, latches applied.", "component", "provider")
        self._epoch = self._gauge("epoch", "Grows with every change of a scope.", "component")
        self._latched = self._gauge("rollback_latched", "1 while a rollback holds.", "provider", "component")
        self._rollbacks = self._counter(
            "rollbacks_total", "Rollbacks that this process has brought to the store.", "provider", "trigger"
        )
        self._held = self._counter(
            "rollbacks_held_total", "Verdicts that changed nothing, as told in the log.", "provider", "trigger", "why"
        )
        self._window_errors = self._gauge(
            "window_error_ratio", "Failed requests in the guard's window, 0 to 1; of all processes.", *_WINDOW
        )
        self._window_p95 = self._gauge(
            "window_latency_p95_seconds", "95 of 100 were faster, within 5 %; of all processes.", *_WINDOW
        )
        self._window_requests = self._gauge("window_requests", "What the guard's window holds.", *_WINDOW)
        self._revision = self._gauge("flags_revision", "Of the flags in force here.", merge="livemin")[()]
        self._internal_errors = self._counter("internal_errors_total", "Failures of our own parts.", "part")
        self._webhooks = self._counter(
            "webhooks_total", "Tries to tell a webhook of an incident: delivered, failed, given-up, too-old.", "result"
        )
        self._reloads = self._counter(
            "config_reloads_total", "Readings of a changed configuration file: changed, unchanged, rejected.", "result"
        )
        self._stale = self._gauge("config_stale", "1 while the configuration file is not in force.", merge="livemax")[
            ()
        ]
        self._stale.set(0)

    def _make_load_metrics(self) -> None:
        """The back end's own numbers, as it last told them: its counters are passed on, so that no worker of ours
        counts them twice.
        """
        running = self._gauge("backend_requests_running", "Requests that vLLM runs, everybody's.", *_ENDPOINT)
        waiting = self._gauge("backend_requests_waiting", "Requests that wait there.", *_ENDPOINT)
        cache = self._gauge("kv_cache_usage_ratio", "Its KV cache in use, 0 to 1; of its fullest engine.", *_ENDPOINT)
        queries = self._passed_on("prefix_cache_queries_total", "Tokens that it looked up in its prefix cache.")
        hits = self._passed_on("prefix_cache_hits_total", "Tokens that it found there.")
        self._load: dict[str, Children[Gauge]] = {
            "running": running, "waiting": waiting, "kv_cache": cache, "prefix_queries": queries, "prefix_hits": hits,
        }  # fmt: skip

    def _passed_on(self, name: str, help: str) -> Children[Gauge]:
        """A counter of the back end's. It starts anew with it, as counters do."""
        gauge = self._gauge(name, help, *_ENDPOINT)
        self.described[-1] = self.described[-1]._replace(kind="counter")
        return gauge

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

        for name, gauges in self._load.items():
            if event.load is not None:
                gauges[event.provider, event.endpoint].set(getattr(event.load, name))
            elif (event.provider, event.endpoint) in gauges:  # what it said is old
                gauges.forget((event.provider, event.endpoint))

    def _breaker_changed(self, event: BreakerChanged) -> None:
        self._set_breaker(event.provider, event.endpoint, event.state)

    def _set_breaker(self, provider: str, endpoint: str, state: str) -> None:
        for one in STATES:
            self._breaker[provider, endpoint, one].set(one == state)

    def _flags_changed(self, event: FlagsChanged) -> None:
        self._flags = event.flags
        self._show(event.flags)

    def _show(self, flags: Flags) -> None:
        self._revision.set(flags.revision)
        _replace(self._epoch, {(self._components[name],): scope.epoch for name, scope in flags.scopes.items()})
        _replace(self._share, self._shares(flags))
        _replace(self._latched, self._latches(flags))

    def _config_changed(self, event: ConfigChanged) -> None:
        """What is no longer configured is neither up nor down."""
        self._reloads["changed" if event.changed else "unchanged"].inc()
        self._stale.set(bool(event.waiting))
        self.follow(candidate=event.candidate, components=event.components, models=event.models)
        for gauges in (self._up, self._breaker, *self._load.values()):
            for labels in [labels for labels in gauges if labels[:2] not in event.endpoints]:
                gauges.forget(labels)

    def _config_rejected(self, event: ConfigRejected) -> None:
        self._reloads["rejected"].inc()
        self._stale.set(1)

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

    def _incident_opened(self, event: IncidentOpened) -> None:
        self._rollbacks[event.incident.provider, event.incident.trigger].inc()

    def _rollback_held(self, event: RollbackHeld) -> None:
        self._held[event.provider, event.trigger, event.why].inc()

    def _guard_said(self, event: GuardSaid) -> None:
        """Windows by model are not shown; an empty one tells how many there were, and nothing of how they went."""
        windows = [window for window in event.windows if not window.model]
        labelled: dict[tuple[str, ...], ArmWindow] = {
            (one.provider, self._components[one.component or GLOBAL]): one for one in windows
        }
        judged = {labels: one for labels, one in labelled.items() if one.n}
        timed = {labels: one.p95_ms / 1000 for labels, one in judged.items() if one.p95_ms is not None}
        _replace(self._window_requests, {labels: one.n for labels, one in labelled.items()})
        _replace(self._window_errors, {labels: one.failures / one.n for labels, one in judged.items()})
        _replace(self._window_p95, timed)

    def _webhook_tried(self, event: WebhookTried) -> None:
        self._webhooks[event.result].inc()

    def _internal_error(self, event: InternalError) -> None:
        self._internal_errors[event.part].inc()


def _replace(gauges: Children[Gauge], values: Mapping[tuple[str, ...], float]) -> None:
    """Show these label sets and no others."""
    for labels in gauges.keys() - values.keys():
        gauges.forget(labels)
    for labels, value in values.items():
        gauges[labels].set(value)


class _Shown(Collector):
    """Less the `_created` series, which double the size and which nobody reads, and less what was forgotten."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        for family in self._collect():
            family.samples = [
                sample
                for sample in family.samples
                if not sample.name.endswith("_created") and not math.isnan(sample.value)
            ]
            if family.type == "gauge" and family.name.endswith("_total"):  # a counter that was passed on
                family.type, family.name = "counter", family.name.removesuffix("_total")
            yield family
