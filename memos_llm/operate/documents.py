"""What the verbs answer: one document each, the same JSON from the admin API and from `llmctl --json`.

Shares are fractions 0…1, times Unix seconds, durations seconds unless the name says otherwise. Fields may be added.
"""

from collections.abc import Mapping

from msgspec import Struct

from memos_llm.core.commands import Audit, Incident
from memos_llm.core.flags import Verification


class EndpointState(Struct, frozen=True, kw_only=True):
    """One endpoint. `up` is None before its first probe, `models` when it did not say; `breaker` is a gateway's."""

    url: str
    up: bool | None = None
    detail: str = ""
    models: tuple[str, ...] | None = None
    version: str = ""
    latency_ms: float | None = None
    breaker: str | None = None


class ProviderState(Struct, frozen=True, kw_only=True):
    """A provider. `breaker` is the worst of its endpoints', `in_flight` its running attempts: a gateway's both."""

    up: bool | None
    breaker: str | None = None
    in_flight: int | None = None
    endpoints: tuple[EndpointState, ...] = ()


class LatchState(Struct, frozen=True, kw_only=True):
    provider: str
    scope: str
    since: float
    incident: str
    holddown_until: float


class InstanceState(Struct, frozen=True, kw_only=True):
    id: str
    kind: str
    revision: int
    age_s: float


class EmbeddingModel(Struct, frozen=True, kw_only=True):
    """A model that has a name on both sides and is, or looks like, one for embeddings."""

    model: str
    baseline: str
    candidate: str
    verified: Verification | None


class StoreSeen(Struct, frozen=True, kw_only=True):
    reachable: bool = True
    regressed: bool = False
    detail: str = ""


class ConfigSeen(Struct, frozen=True, kw_only=True):
    """A gateway's configuration. `errors`: why the file as it is now was refused; `waiting`: what needs a restart."""

    path: str
    generation: int
    errors: tuple[str, ...]
    waiting: tuple[str, ...]


class RuleState(Struct, frozen=True, kw_only=True):
    """One rule of the guard over one sum of requests, as `core.verdicts.Evaluation` has it.

    Attributes:
        missing: how many more requests it needs for a verdict; 0 when that is not what is missing.
        spare: how many more of these requests would have to be bad for it to fire; None where that is not known.
    """

    trigger: str
    verdict: str
    reason: str
    text: str = ""
    n: int = 0
    k: int = 0
    limit: float = 0.0
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    missing: int = 0
    spare: int | None = None


class WindowState(Struct, frozen=True, kw_only=True):
    """A provider's requests, or those of one component or one model (empty: all), against their limits.

    Attributes:
        n: started since `since`; ended, failures: of them; timed: of those, whose latency is judged; slow: beyond it.
        error_rate, error_limit: 0…1. None: nothing started, or no limit.
        p95_ms, p95_limit_ms: within 5 %; None: nothing is timed, or no limit.
        verdict: fail, error, inconclusive or pass: the worst of `rules`. reason: of the rule that says so.
        missing: how many more requests the windows need for a verdict.
        kinds: failures by outcome kind. since, until: Unix seconds; 0: there were none.
    """

    provider: str
    component: str
    model: str
    n: int
    failures: int
    error_rate: float | None
    error_limit: float | None
    p95_ms: float | None
    p95_limit_ms: float | None
    verdict: str
    reason: str
    missing: int = 0
    ended: int = 0
    slow: int = 0
    timed: int = 0
    kinds: Mapping[str, int] = {}
    since: float = 0.0
    until: float = 0.0
    rules: tuple[RuleState, ...] = ()


class HeldState(Struct, frozen=True, kw_only=True):
    """A trigger fired, and the split stays as it is: `why` in a word, `detail` in a sentence."""

    provider: str
    scope: str
    trigger: str
    why: str
    detail: str
    at: float


class GuardState(Struct, frozen=True, kw_only=True):
    """The guard.

    Attributes:
        said_at: when the windows shown were judged, Unix seconds; None: nobody has judged yet.
        blind: what keeps this process from judging, in words. held: what fired and was not acted on.
        rule: what the candidate is held to, in a sentence; empty without a candidate.
    """

    enabled: bool = True
    said_at: float | None = None
    blind: tuple[str, ...] = ()
    held: tuple[HeldState, ...] = ()
    rule: str = ""


class Status(Struct, frozen=True, kw_only=True):
    """How things stand.

    Attributes:
        revision: of the flags; 0: there are none yet.
        shares: scope → provider → its share in force, latches and pins applied.
        why: scope → why that share is in force.
        configured_share: the file's; it seeds a new store only.
        windows: of both arms. maintenance: provider → until when (Unix seconds) it is drained.
        seen_by: `gateway`: from its probes and breakers; `cli`: the providers were asked just now.
    """

    revision: int
    epoch: Mapping[str, int]
    shares: Mapping[str, Mapping[str, float]]
    why: Mapping[str, str]
    pins: Mapping[str, str]
    baseline: str
    candidate: str | None
    configured_share: float
    latched: tuple[LatchState, ...]
    providers: Mapping[str, ProviderState]
    embeddings: tuple[EmbeddingModel, ...]
    windows: tuple[WindowState, ...] = ()
    guard: GuardState = GuardState()
    maintenance: Mapping[str, float] = {}
    instances: tuple[InstanceState, ...]
    plan: None = None
    store: StoreSeen = StoreSeen()
    config: ConfigSeen | None = None
    at: float
    version: str
    seen_by: str


class ScopeState(Struct, frozen=True, kw_only=True):
    """`share` is None for a component that follows `*`."""

    share: float | None
    epoch: int
    latched: LatchState | None
    rearmed_at: float
    new_index: bool


class FlagsDocument(Struct, frozen=True, kw_only=True):
    """The flags as they are in force, but for the salt, which would tell who is where."""

    schema: int
    installation: str
    revision: int
    scopes: Mapping[str, ScopeState]
    maintenance: Mapping[str, float] = {}
    verified: Mapping[str, Verification]


class Change(Struct, frozen=True, kw_only=True):
    """What a command did, and which instances were seen to follow.

    Attributes:
        dropped: components whose own share was taken away, and what it was.
        latched: the incident of the latch in force there now, if any.
        until: of a maintenance: when it is over, Unix seconds; None: it is.
        notes, warnings: what a person should know of it, in sentences.
    """

    command: str
    revision: int
    scope: str
    provider: str
    share: float
    share_before: float
    confirmed: tuple[str, ...]
    unconfirmed: tuple[str, ...]
    dropped: Mapping[str, float]
    latched: str | None
    until: float | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Adoption(Struct, frozen=True, kw_only=True):
    """What adopting the store means, and, if `adopted`, has done. Shares are those in force, by scope.

    Attributes:
        fault: what was wrong with the store; empty: nothing, so that there was nothing to adopt.
        raised: the scopes whose share grows by it.
        latched: the scopes that stay latched.
    """

    adopted: bool
    revision: int
    fault: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    raised: tuple[str, ...]
    latched: tuple[str, ...]
    confirmed: tuple[str, ...] = ()
    unconfirmed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class History(Struct, frozen=True, kw_only=True):
    """Newest first."""

    entries: tuple[Audit, ...]


class Incidents(Struct, frozen=True, kw_only=True):
    """Newest first. `latched`: the latches in force `at` (Unix seconds); each names its incident."""

    incidents: tuple[Incident, ...]
    latched: tuple[LatchState, ...] = ()
    at: float = 0.0


class Aim(Struct, frozen=True):
    provider: str
    model: str


class Passed(Struct, frozen=True):
    provider: str
    reason: str


class Explained(Struct, frozen=True, kw_only=True):
    """A decision, and what it rests on.

    Attributes:
        provider, model: who would serve it, and the model's name there; `targets` is the whole chain.
        logical_model: as asked for. slot: of the session among all, 0…1: inside `share` means the candidate.
        why: the reason as a sentence.
    """

    arm: str
    provider: str
    model: str
    targets: tuple[Aim, ...]
    shadow: Aim | None
    reason: str
    epoch: int
    revision: int
    component: str
    session: str
    logical_model: str
    operation: str
    scope: str
    slot: float
    share: float
    diverted: tuple[Passed, ...]
    why: str


class Problem(Struct, frozen=True, kw_only=True):
    message: str
    code: str
    name: str


class ErrorDocument(Struct, frozen=True, kw_only=True):
    error: Problem
