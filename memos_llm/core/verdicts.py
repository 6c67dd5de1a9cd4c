"""What the guard says of the requests it counted, and what goes on record when it acts."""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct


class Verdict(StrEnum):
    """INCONCLUSIVE: too little is known for either; ERROR: it could not be evaluated, which is never a pass."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"


class Trigger(StrEnum):
    """What may roll back; the label of `rollbacks_total`. The windows' and the sequential ones are soft: they judge
    one epoch. Time-outs, health and breaker are hard: they survive it.
    """

    MANUAL = "manual"
    ERROR_RATE = "error_rate"
    LATENCY = "latency_p95"
    ERROR_RUN = "error_run"
    LATENCY_RUN = "latency_run"
    TIMEOUTS = "timeouts"
    HEALTH = "health"
    BREAKER_OPEN = "breaker_open"
    STORE_REGRESSED = "store-regressed"


HARD = frozenset({Trigger.TIMEOUTS, Trigger.HEALTH, Trigger.BREAKER_OPEN})


class Sum(Struct, frozen=True, kw_only=True):
    """What is judged: a provider's requests, or those of one component or of one model (empty: all)."""

    provider: str
    component: str = ""
    model: str = ""


class Evaluation(Struct, frozen=True, kw_only=True):
    """One rule over one sum.

    Attributes:
        reason: machine-readable: `within`, `over-limit`, `unsure`, `too-few`, `no-data`, `lag`, …
        text: the rule in words, with its numbers.
        n, k: what was counted: of n requests (probes, looks) k were bad.
        limit: what k / n (or the count named in `text`) may be; estimate, low, high: of the same, where there is one.
        missing: how many more requests a verdict needs; 0 when that is not what is missing.
        since: when what was judged began, Unix seconds.
        requests: ids of some of the bad ones, at most ten.
    """

    trigger: Trigger
    sum: Sum
    verdict: Verdict
    reason: str
    text: str = ""
    n: int = 0
    k: int = 0
    limit: float = 0.0
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    missing: int = 0
    since: float = 0.0
    requests: tuple[str, ...] = ()


class ArmWindow(Struct, frozen=True, kw_only=True):
    """One arm over one stretch of time, as an incident keeps it and `status` shows it. Rates 0…1; `kinds`: failures by
    outcome kind. `p95_ms` is within 5 %; None where nothing is timed.
    """

    provider: str
    component: str = ""
    model: str = ""
    since: float
    until: float
    n: int
    ended: int
    failures: int
    slow: int
    timed: int
    p95_ms: float | None = None
    kinds: Mapping[str, int] = {}


class ProbeSeen(Struct, frozen=True, kw_only=True):
    """The last probe of an endpoint, as one process saw it."""

    provider: str
    endpoint: str
    up: bool
    detail: str = ""
    version: str = ""
    at: float = 0.0


class Evidence(Struct, frozen=True, kw_only=True):
    """Why one process rolled back. An incident holds the first, and those of others that came to the same.

    Attributes:
        at: when it was decided, Unix seconds; by: the instance.
        windows: both arms', over the stretch judged.
        detection_s: from the first bad request judged to the verdict; decision_s: from there to the share being 0 in
            the process that decided; propagation_s: from there to being in the store, None until it is.
        note: what else there is to say, e.g. that the scope was widened.
    """

    at: float
    by: str
    scope: str
    trigger: str
    rule: str
    limit: float
    n: int
    k: int
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    windows: tuple[ArmWindow, ...] = ()
    probes: tuple[ProbeSeen, ...] = ()
    models: tuple[str, ...] = ()
    versions: Mapping[str, str] = {}
    requests: tuple[str, ...] = ()
    detection_s: float | None = None
    decision_s: float | None = None
    propagation_s: float | None = None
    note: str = ""
