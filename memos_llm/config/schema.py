"""The shape of the configuration file: every setting, its default, its limits, one line on what it does.

Shapes only: what must hold between settings is in `checks`, what follows from them in `settings`.
"""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainSerializer, SecretStr

from memos_llm.config.urls import normalise
from memos_llm.config.values import (
    MASK,
    Component,
    Count,
    Fraction,
    Integer,
    Milliseconds,
    Names,
    Number,
    Port,
    Seconds,
    Secret,
    Section,
    Text,
    Whole,
)
from memos_llm.core.call import Operation, Thinking
from memos_llm.core.policy import Signal

STORES = ("sqlite", "redis", "rediss", "unix", "memory")
DEFAULT_STORE = "sqlite:///~/.local/state/memos_llm/memos_llm.db"
SCOPES = Literal["inference", "metrics", "read", "operate", "admin"]
GATES = Literal[
    "json_valid", "schema_valid", "tool_names", "tool_arguments_valid", "cut_short", "empty", "refusal", "language",
    "error_class", "tool_arguments", "exact", "normalised", "edit_distance", "length_ratio", "first_divergence",
    "cosine_distance", "dimension", "norm_ratio", "ttft", "tpot", "e2e", "tokens",
]  # fmt: skip


def _address(value: str) -> str:
    return normalise(value) if "://" in value else normalise(f"http://{value}")


def _store(value: Any) -> Any:
    scheme, separator, _ = str(value).partition("://")
    if not separator or scheme not in STORES:
        raise ValueError(f"must begin with {', '.join(f'{name}://' for name in STORES)}")
    return value


def _masked_store(secret: SecretStr) -> str:
    """`redis://user:password@host` without the password."""
    scheme, _, rest = secret.get_secret_value().partition("://")
    login, at, place = rest.rpartition("@")
    user = login.partition(":")[0]
    return f"{scheme}://{user}:{MASK}@{place}" if at else f"{scheme}://{place}"


def _masked_address(secret: SecretStr) -> str:
    """A webhook's path is often its password."""
    scheme, _, rest = secret.get_secret_value().partition("://")
    host = rest.partition("/")[0].rpartition("@")[2]
    return f"{scheme}://{host}/{MASK}"


def _webhook(value: Any) -> Any:
    """Its path and query are its own affair, and often its password: no message repeats any of it."""
    try:
        parts = urlsplit(str(value).strip())
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, a bracket that is not closed
        raise ValueError("is not a URL such as https://hooks.example.com/…") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError("must begin with http:// or https://")
    if not usable:
        raise ValueError("names no host")
    return str(value).strip()


def _part(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError("must be above 0 and below 1; null switches the trigger off")
    return value


def _confidence(value: float) -> float:
    if value == 1:
        raise ValueError("nothing is ever certain: below 1, such as 0.999; null for a limit switches its trigger off")
    return value


def _origin(value: str) -> str:
    if "*" in value.split("://")[-1].split(":")[0]:
        raise ValueError("must name each origin: a wildcard would let any web page use this gateway")
    if "://" not in value:
        raise ValueError("must be an origin with its scheme, such as https://app.example.org")
    return value


def _host(value: str) -> str:
    if "*" in value or "/" in value:
        raise ValueError("must be a host name or an address, such as gpu-box or 192.168.1.5")
    return value


def _short(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _no_fallback(value: Any) -> Any:
    return () if value is None or (isinstance(value, str) and value.lower() == "none") else value


def _empty(value: Any) -> Any:
    return {} if value is None else value


Address = Annotated[str, AfterValidator(_address)]
Store = Annotated[SecretStr, BeforeValidator(_store), PlainSerializer(_masked_store)]
WebhookAddress = Annotated[SecretStr, BeforeValidator(_webhook), PlainSerializer(_masked_address)]
Part = Annotated[Fraction, AfterValidator(_part)]
Confidence = Annotated[Fraction, AfterValidator(_confidence)]
Origin = Annotated[str, AfterValidator(_origin)]
Hosts = Annotated[Names, AfterValidator(lambda hosts: tuple(_host(host) for host in hosts))]
Upper = BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value)


class Endpoint(Section):
    url: Address = Field(description="address of one server, with or without /v1")
    models: Names = Field(default=(), description="the provider's own names that it serves; empty: it is asked")


class ProviderTimeouts(Section):
    """Limits of one provider; what is left out comes from the top-level `timeouts`."""

    connect_s: Seconds = Field(default=3.0, description="to establish a connection")
    ttft_s: Seconds | None = Field(default=None, description="to the first content of a stream; vLLM: 15 s")
    answer_s: Seconds | None = Field(default=None, description="for a whole non-streaming answer of one attempt")
    idle_s: Seconds = Field(default=60.0, description="between two reads once a stream has begun")
    stall_s: Seconds = Field(
        default=120.0, description="without content on any stream before an endpoint counts as hung"
    )
    total_s: Seconds = Field(default=600.0, description="for the whole chain, to its first content or whole answer")


class Timeouts(ProviderTimeouts):
    """Limits of every provider that does not set its own; null leaves it to the provider's kind."""


class Provider(Section):
    kind: Text = Field(description="ollama, vllm, litellm, or an installed provider plug-in; default: the name")
    base_url: Address | None = Field(default=None, description="its address; for several servers use endpoints")
    endpoints: tuple[Endpoint, ...] = Field(default=(), description="its addresses, when there are several")
    api_key: Secret = Field(default=SecretStr(""), description='sent as a bearer token; write "${VLLM_API_KEY:-}"')
    keep_warm: Names = Field(default=(), description="Ollama: models kept loaded while the candidate has a share")
    native_chat: bool = Field(
        default=False,
        description="Ollama: OpenAI chat calls go to /api/chat, which keeps what its /v1 drops (top_k, num_ctx, …)",
    )
    own_loads: bool = Field(default=True, description="Ollama: a client that leaves never aborts a model's load")
    max_inflight: Whole | None = Field(default=None, description="requests in flight on one endpoint; null: no limit")
    queue_s: Seconds = Field(default=10.0, description="how long a request waits for a place there before a 503")
    model_prefix: str = Field(default="", description="LiteLLM: put before every model name, such as openai/")
    timeouts: ProviderTimeouts = Field(default=ProviderTimeouts(), description="limits of this provider, in seconds")
    enabled: bool = Field(default=True, description="false: known, but nothing is sent there")


class ModelOnProvider(Section):
    name: Text = Field(description="the provider's own name for the model")
    thinking: Thinking | None = Field(
        default=None, description="how vLLM switches its reasoning: enable_thinking, thinking, reasoning_effort"
    )
    split_think_tags: bool = Field(default=False, description="cut `<think>…</think>` out of the content")


class Sampling(Section):
    """Sent when the caller gives none, so that both sides agree."""

    temperature: Annotated[Number, Field(ge=0, le=2)] | None = Field(default=None, description="0 to 2")
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = Field(default=None, description="above 0, at most 1")
    top_k: Annotated[Integer, Field(ge=-1)] | None = Field(default=None, description="0 or -1 switches it off")
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = Field(default=None, description="0 to 1")
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = Field(default=None, description="-2 to 2")
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = Field(default=None, description="-2 to 2")
    seed: Integer | None = Field(default=None, description="of the sampler")


class Model(Section):
    """A logical model. Every other key is a provider's name: its own name for the model, or null if it lacks it."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[ModelOnProvider, BeforeValidator(_short)] | None] = Field(init=False)

    aliases: Names = Field(default=(), description="other names that callers use for it")
    defaults: Sampling = Field(default=Sampling(), description="sampling parameters sent when the caller gives none")
    fallbacks: Names = Field(default=(), description="logical models tried when no provider answers for this one")

    @property
    def on(self) -> dict[str, ModelOnProvider | None]:
        return self.__pydantic_extra__ or {}


class Rule(Section):
    component: Component = Field(description="the component that fitting calls belong to")
    model: Text | None = Field(default=None, description="a pattern over the model's name, such as deepseek-r1:*")
    operation: Operation | None = Field(default=None, description="chat, text_completion, embeddings or passthrough")


class Routing(Section):
    share: Fraction = Field(default=0.0, description="the candidate's share that a new store starts with")
    components: Annotated[dict[Component, Text], BeforeValidator(_empty)] = Field(
        default={}, description="per component: share, baseline, candidate, or a provider's name"
    )
    component_rules: tuple[Rule, ...] = Field(default=(), description="name the component of calls that name none")


class Gate(Section):
    margin: Fraction = Field(default=0.01, description="the excess disagreement that is still accepted")
    min_pairs: Whole = Field(default=500, description="comparable pairs needed for a verdict")


class Shadow(Section):
    enabled: bool = Field(default=False, description="mirror a sample of the baseline's requests")
    provider: Text | None = Field(default=None, description="where they are mirrored to; default: the candidate")
    sample: Fraction = Field(default=0.1, description="the part of the requests that is mirrored")
    aa_sample: Fraction = Field(
        default=1.0, description="the part of those sent to the baseline again, to measure its noise"
    )
    capture: Literal["none", "hash", "text"] = Field(default="none", description="what is kept of the texts")
    max_inflight: Whole = Field(default=1, description="mirrored requests at a time")
    gates: Annotated[dict[GATES, Gate | None], BeforeValidator(_empty)] = Field(
        default={}, description="per metric: its margin and least number of pairs; null: it gates nothing"
    )


class Webhook(Section):
    url: WebhookAddress = Field(description="gets the incident as a POST")
    secret: Secret = Field(default=SecretStr(""), description="signs it (HMAC-SHA256)")


class Limits(Section):
    """What requests are held to. What an override leaves out comes from `rollback` itself."""

    error_rate: Part | None = Field(default=0.05, description="the part of requests that may fail; null: any")
    latency_p95_ms: Milliseconds | None = Field(
        default=5000, description="95 of 100 requests must be faster; null: any"
    )
    latency_signal: Signal = Field(
        default=Signal.E2E, description="which latency that is: e2e, or (streams only) ttft, tpot"
    )
    window_s: Annotated[Integer, Field(gt=0, le=86_400)] = Field(
        default=300, description="the time looked back over, in whole seconds; 86400 at most"
    )
    min_requests: Whole = Field(default=50, description="fewer give no verdict")
    confidence: Confidence = Field(default=0.999, description="how sure a verdict must be; 0: the plain threshold")
    consecutive_timeouts: Whole | None = Field(default=3, description="time-outs in a row; null: any number")
    health_failures: Whole | None = Field(default=3, description="failed probes in a row; null: any number")
    abandon_s: Seconds = Field(
        default=20, description="a caller who leaves after waiting this long may count as a time-out"
    )


Overrides = Annotated[dict[Text, Limits], BeforeValidator(_empty)]


class RollbackRules(Limits):
    """When the split is taken back by itself."""

    enabled: bool = Field(default=True, description="false switches all triggers off")
    providers: Overrides = Field(default={}, description="other limits for one provider; what is left out is as above")
    components: Annotated[dict[Component, Limits], BeforeValidator(_empty)] = Field(
        default={}, description="for one component; these go before its provider's"
    )
    models: Overrides = Field(default={}, description="for one model; these go before all others")
    webhooks: tuple[Webhook, ...] = Field(default=(), description="told about every rollback")


class ApiKey(Section):
    """One entry as `llmctl keys new` prints it."""

    id: Text = Field(description="its name in the history and the logs")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="the key's SHA-256; the key itself is never stored")
    scopes: tuple[SCOPES, ...] = Field(min_length=1, description="inference, metrics, read, operate, admin")
    component: Component | None = Field(default=None, description="the component of calls that name none")
    rate_per_minute: Whole | None = Field(default=None, description="requests a minute; null: no limit")


class Gateway(Section):
    host: Text = Field(default="127.0.0.1", description="address to listen on; without api_keys only loopback")
    port: Port = Field(default=8200, description="port to listen on")
    api_keys: tuple[ApiKey, ...] = Field(
        default=(), description="who may call; `llmctl keys new`; empty: anyone on this machine"
    )
    allowed_hosts: Hosts = Field(
        default=(), description="Host names accepted, no others; empty: local ones, with api_keys any"
    )
    cors_origins: tuple[Origin, ...] = Field(
        default=(), description="web origins accepted, no others; empty: local ones"
    )
    media_domains: Names = Field(default=(), description="domains that media URLs may name; empty: data: URLs only")
    allow_cloud: bool = Field(default=False, description="pass on Ollama's :cloud names, which leave this machine")
    max_connections: Whole = Field(default=4096, description="connections of clients at a time; more get a 503")
    max_concurrency: Whole = Field(default=1024, description="requests served at a time")
    max_body_bytes: Whole = Field(default=33_554_432, description="largest request body")
    max_bodies_bytes: Whole = Field(default=1_073_741_824, description="of larger bodies held at a time, together")
    max_json_values: Whole = Field(default=200_000, description="values in one JSON body; token ids count, too")
    header_timeout_s: Seconds = Field(default=10, description="to receive a request's headers")
    body_timeout_s: Seconds = Field(default=30, description="to receive a request's body")
    drain_s: Seconds = Field(default=30, description="for running requests to finish at shutdown")
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Upper] = Field(
        default="INFO", description="to stderr"
    )


class Root(Section):
    """The file."""

    providers: dict[Text, Provider] = Field(min_length=1, description="the back ends, each under its name")
    baseline: Text = Field(description="the provider we come from; default: ollama, or the only one")
    candidate: Text | None = Field(default=None, description="the provider we move to; default: vllm if configured")
    fallback: Annotated[Names, BeforeValidator(_no_fallback)] = Field(
        default=(), description="who may serve another provider's requests, in order, or none; default: the baseline"
    )
    models: Annotated[dict[Text, Model], BeforeValidator(_empty)] = Field(
        default={}, description="logical name to each provider's own"
    )
    routing: Routing = Field(default=Routing(), description="what goes where")
    shadow: Shadow = Field(default=Shadow(), description="compare the candidate with the baseline on real requests")
    rollback: RollbackRules = Field(default=RollbackRules(), description="when the split is taken back by itself")
    timeouts: Timeouts = Field(default=Timeouts(), description="limits of every provider, in seconds")
    retries: Count = Field(default=0, description="tries at the same target beyond those for connection errors")
    backoff_s: Seconds = Field(default=0.2, description="the first pause before such a try; it doubles")
    store: Store = Field(
        default=SecretStr(DEFAULT_STORE),
        description="where flags and history live: sqlite:///… (one host), redis://… or rediss://… (a fleet), "
        "memory:// (one process)",
    )
    gateway: Gateway = Field(default=Gateway(), description="the server of `llmctl serve`")
