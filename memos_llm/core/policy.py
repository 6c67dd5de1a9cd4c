"""What routing needs of the configuration, as plain data. Logic reads this and never the settings."""

from collections.abc import Mapping
from enum import StrEnum
from fnmatch import fnmatchcase

from msgspec import Struct

from memos_llm.core.call import ModelSettings, Operation, Target
from memos_llm.core.catalogue import Catalogue
from memos_llm.core.flags import EMBEDDING
from memos_llm.core.verdicts import Sum


class Timeouts(Struct, frozen=True, kw_only=True):
    """Limits of one provider, in seconds; None means none.

    Attributes:
        connect_s: to establish a connection.
        ttft_s: to the first content of a stream.
        answer_s: for a whole non-streaming answer of one attempt.
        idle_s: between two reads once a stream is committed.
        stall_s: without content on any stream of an endpoint before it counts as hung.
        total_s: the whole chain, to the commit point.
    """

    connect_s: float = 3.0
    ttft_s: float | None = None
    answer_s: float | None = None
    idle_s: float = 60.0
    stall_s: float = 120.0
    total_s: float = 600.0


class Endpoint(Struct, frozen=True):
    """One address of a provider: scheme, host, port, no trailing slash, no `/v1`.

    `models` are the provider's own names that it serves; empty means: ask it.
    """

    url: str
    models: tuple[str, ...] = ()


class ProviderSpec(Struct, frozen=True, kw_only=True):
    """A configured back end. `repr` hides the key.

    Attributes:
        max_inflight: requests in flight on one endpoint, None for no limit. queue_s: how long others wait for a place.
        native_chat: OpenAI's chat calls go there on the native wire (Ollama).
        own_loads: load cold models apart from the requests that need them (Ollama).
        model_prefix: put before every model's name (LiteLLM).
        keep_warm: its own names of models that are kept loaded while the candidate has a share (Ollama).
    """

    name: str
    kind: str
    endpoints: tuple[Endpoint, ...]
    api_key: str = ""
    model_prefix: str = ""
    timeouts: Timeouts = Timeouts()
    max_inflight: int | None = None
    queue_s: float = 10.0
    own_loads: bool = True
    native_chat: bool = False
    keep_warm: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"ProviderSpec(name={self.name!r}, kind={self.kind!r})"


DEFAULT_COMPONENT = "default"
DEFAULT_COMPONENTS: Mapping[Operation, str] = {Operation.EMBEDDINGS: EMBEDDING}
FOLLOW_SHARE = "share"  # the value of routing.components that follows the split


class ComponentRule(Struct, frozen=True, kw_only=True):
    """Names the component of calls that name none. `model` is a glob over the caller's spelling."""

    component: str
    model: str | None = None
    operation: Operation | None = None


class Signal(StrEnum):
    """Which latency is judged: of the whole answer, to the first content, or per output token (both: streams only)."""

    E2E = "e2e"
    TTFT = "ttft"
    TPOT = "tpot"


class Limits(Struct, frozen=True, kw_only=True):
    """What a sum of requests is held to; None switches a trigger off.

    Attributes:
        error_rate: the part that may fail, 0…1. latency_p95_s: 95 of 100 must be faster, by `signal`.
        window_s: the time looked back over. min_requests: fewer give no verdict. confidence: 0…1, 0: plain threshold.
        consecutive_timeouts, health_failures: time-outs, and failed probes, in a row.
        abandon_s: a caller who leaves after waiting this long for nothing may count as a time-out.
    """

    error_rate: float | None = 0.05
    latency_p95_s: float | None = 5.0
    signal: Signal = Signal.E2E
    window_s: int = 300
    min_requests: int = 50
    confidence: float = 0.999
    consecutive_timeouts: int | None = 3
    health_failures: int | None = 3
    abandon_s: float = 20.0

    @property
    def failing(self) -> bool:
        """Whether failures are judged at all; an open breaker is a sign of any of them."""
        return (self.error_rate, self.consecutive_timeouts, self.health_failures) != (None, None, None)


class GuardPolicy(Struct, frozen=True, kw_only=True):
    """What the guard holds providers to. The limits of a model go before those of a component, these before a
    provider's, these before the default; each is whole (the configuration has filled in what one leaves out).
    """

    enabled: bool = True
    default: Limits = Limits()
    providers: Mapping[str, Limits] = {}
    components: Mapping[str, Limits] = {}
    models: Mapping[str, Limits] = {}

    def limits(self, sum: Sum) -> Limits:
        return self.of(sum.provider, sum.component, sum.model)

    def of(self, provider: str, component: str = "", model: str = "") -> Limits:
        return self.models.get(model) or self.components.get(component) or self.providers.get(provider) or self.default


class Policy(Struct, frozen=True, kw_only=True):
    """The routing policy; replaced as a whole when the configuration changes.

    Attributes:
        candidate: None when there is only one provider: then nothing is split.
        fallback: the providers that may receive another provider's requests, in order.
        pins: component → provider name, for components that do not follow the share.
        common: provider → the settings of models that the catalogue does not know.
        retries: same-target retries beyond the ones for connection errors; `backoff_s` is their first pause.
        guard: what the guard holds providers to.
        generation: grows with every reload, so that what is derived from a policy can be kept per policy.
    """

    baseline: str
    candidate: str | None
    fallback: tuple[str, ...]
    pins: Mapping[str, str]
    timeouts: Mapping[str, Timeouts]
    catalogue: Catalogue
    common: Mapping[str, ModelSettings] = {}
    total_s: float = 600.0
    retries: int = 0
    backoff_s: float = 0.2
    generation: int = 0
    rules: tuple[ComponentRule, ...] = ()
    guard: GuardPolicy = GuardPolicy()

    def component(self, model: str, operation: Operation) -> str:
        """The component of a call that names none: the first rule that fits, else the operation's, else `default`."""
        for rule in self.rules:
            fits = rule.operation in (None, operation)
            if fits and (rule.model is None or fnmatchcase(model.lower(), rule.model.lower())):
                return rule.component
        return DEFAULT_COMPONENTS.get(operation, DEFAULT_COMPONENT)

    def unmapped(self, provider: str, name: str) -> Target:
        """Where a call for a model goes that the catalogue does not know: its name stays as spelt."""
        return Target(provider, name, self.common.get(provider, ModelSettings()))

    def default_model(self) -> str | None:
        """The model of library calls that name none: the only one configured."""
        names = list(self.catalogue.models)
        return names[0] if len(names) == 1 else None

    def limits(self, provider: str) -> Timeouts:
        return self.timeouts[provider]
