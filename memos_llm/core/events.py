"""What happened, as frozen facts on a synchronous bus. Requests go down; facts go sideways, here.

Who emits: engine (requests, attempts), gateway (refusals), providers (probes, breaker), control (flags, incidents),
guard (verdicts). Who listens: telemetry, breaker, guard, rollout. A listener must return at once; what it raises is
caught, counted as `InternalError` and never reaches a request.
"""

from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct

from memos_llm.core.call import Feature, Operation, Usage, Wire
from memos_llm.core.commands import Incident
from memos_llm.core.decision import Decision
from memos_llm.core.flags import Flags
from memos_llm.core.outcome import Outcome
from memos_llm.core.verdicts import ArmWindow, Evaluation


class Event(Struct, frozen=True, kw_only=True):
    """Base of all events."""


class RequestStarted(Event, frozen=True, kw_only=True):
    request_id: str
    decision: Decision
    component: str
    model: str
    operation: Operation


class AttemptStarted(Event, frozen=True, kw_only=True):
    """One try begins.

    Attributes:
        decision, component, model, operation: of the request, as in `RequestStarted`.
        key: tells requests of one split key from others, in this process only; never shown.
        retry: how often the client's SDK says that it has tried before.
        needs: of the call.
        serial: of the request in this process; its `request_id` may be another's too, for callers name them.
        at: when it did, in monotonic seconds by the clock of the process's router; who hears of it may do so later.
    """

    request_id: str
    provider: str
    arm: str
    endpoint: str
    decision: Decision
    component: str
    model: str
    operation: Operation
    stream: bool
    key: int = 0
    retry: int = 0
    needs: Feature = Feature.NONE
    serial: int = 0
    at: float


class ContentBegan(Event, frozen=True, kw_only=True):
    """The first content of a stream came; `ttft_s` as in `AttemptEnded`, `serial` and `at` as in `AttemptStarted`."""

    request_id: str
    provider: str
    endpoint: str
    ttft_s: float
    serial: int = 0
    at: float


class AttemptEnded(Event, frozen=True, kw_only=True):
    """One try. `ttft_s` is first content minus the attempt's start, streams only; `tpot_s` as in `RequestEnded`.

    `silent`: the endpoint gave nobody any content since the attempt began; told of a cancelled one only. `serial` and
    `at` as in `AttemptStarted`: the end of one that waits for another's verdict is told later than it was.
    """

    request_id: str
    provider: str
    endpoint: str
    arm: str
    component: str
    model: str
    outcome: Outcome
    duration_s: float
    ttft_s: float | None = None
    tpot_s: float | None = None
    silent: bool = False
    serial: int = 0
    at: float


class FellBack(Event, frozen=True, kw_only=True):
    """The chain went on to the next target because an attempt failed with `reason` (an outcome kind)."""

    request_id: str
    from_provider: str
    to_provider: str
    reason: str


class RequestEnded(Event, frozen=True, kw_only=True):
    """Exactly one for every `RequestStarted`.

    Attributes:
        provider: who served it; the last one tried when nobody did.
        model: the logical name, or the caller's when the catalogue does not know it.
        outcome: how the last attempt ended (`ok`, `cancelled`, …).
        wire, needs: of the call. caller: who made it (`Call.caller`).
        route: of a passage, as it may be told; empty for the others.
        ttft_s, tpot_s: streams only; TTFT counts from acceptance, TPOT = (last − first) / (output tokens − 1).
        serial, at: as in `AttemptStarted`.
    """

    request_id: str
    decision: Decision
    provider: str
    component: str
    model: str
    operation: Operation
    outcome: Outcome
    attempts: int
    stream: bool
    duration_s: float
    ttft_s: float | None
    tpot_s: float | None
    usage: Usage | None
    warnings: tuple[str, ...]
    wire: Wire
    route: str = ""
    caller: str = ""
    needs: Feature = Feature.NONE
    serial: int = 0
    at: float


class RequestRefused(Event, frozen=True, kw_only=True):
    """A request that was answered with an error before its `RequestStarted`: shed, not understood, not offered.

    Attributes:
        status: the HTTP status that the caller got.
        error_name, error_code: of the error's class (`core.errors`).
    """

    request_id: str
    status: int
    error_name: str
    error_code: str


class KeyConcentrated(Event, frozen=True, kw_only=True):
    """One split key carries `share` (0…1) of the recent requests; `fingerprint` is its HMAC."""

    fingerprint: str
    share: float


class Load(Struct, frozen=True, kw_only=True):
    """How busy an endpoint says it is.

    Attributes:
        running, waiting: requests there, everybody's. kv_cache: the part of it in use, 0…1.
        steps: of its engine since it started; they stand still while one hangs.
        prefix_queries, prefix_hits: tokens looked up in the prefix cache, and found, since it started.
    """

    running: int = 0
    waiting: int = 0
    kv_cache: float = 0.0
    steps: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


class ProbeEnded(Event, frozen=True, kw_only=True):
    """One probe of one endpoint. `models` are the names that it serves, None when it could not be asked.

    `up` is what routing believes now; `failure` says that this probe failed and counts (an outcome kind, or `frozen`:
    its engine stands still while requests run), and is empty for one that went well or says nothing.
    """

    provider: str
    endpoint: str
    up: bool
    failure: str = ""
    detail: str = ""
    models: tuple[str, ...] | None = None
    version: str = ""
    load: Load | None = None


class BreakerChanged(Event, frozen=True, kw_only=True):
    """`state` is closed, open or half_open."""

    provider: str
    endpoint: str
    state: str


class FlagsChanged(Event, frozen=True, kw_only=True):
    flags: Flags


class IncidentOpened(Event, frozen=True, kw_only=True):
    """This process has brought a rollback to the store: the latch and its record are there."""

    incident: Incident


class RollbackHeld(Event, frozen=True, kw_only=True):
    """A trigger fired and the split stays as it is; told once, until something changes.

    Attributes:
        why: `baseline-down`, `baseline-unmapped`, `limit-unfit` (the baseline is as bad), `maintenance`, `no-share`, …
        detail: in words.
    """

    provider: str
    scope: str
    trigger: str
    why: str
    detail: str = ""


class GuardSaid(Event, frozen=True, kw_only=True):
    """The guard's evaluations of the last second, of all rules over all sums. Also when nothing is wrong."""

    at: float
    evaluations: tuple[Evaluation, ...]
    windows: tuple[ArmWindow, ...]


class GuardBlind(Event, frozen=True, kw_only=True):
    """What keeps the guard of this process from judging, and that it no longer does (`what` empty).

    `what`: `lag` (the event loop is late: latencies measured here are not counted), `no-data`.
    """

    what: str
    detail: str = ""


class ConfigChanged(Event, frozen=True, kw_only=True):
    """The configuration file was read again and is in force, but for what `waiting` names.

    Attributes:
        changed: False: it says what was in force already (a bad file was put right, or a good one touched).
        generation: of the policy in force.
        providers, endpoints: those in force; an endpoint is (provider, URL).
        candidate, components, models: the names in force, as metrics label them.
        waiting: keys whose new value needs a restart.
    """

    path: str
    changed: bool
    generation: int
    providers: tuple[str, ...]
    endpoints: tuple[tuple[str, str], ...]
    candidate: str | None
    components: tuple[str, ...]
    models: tuple[str, ...]
    waiting: tuple[str, ...] = ()


class ConfigRejected(Event, frozen=True, kw_only=True):
    """The configuration file was read again and is wrong: what was in force stays. One error a line, no secrets."""

    path: str
    errors: tuple[str, ...]


class StoreState(Event, frozen=True, kw_only=True):
    """The store as this process sees it now; emitted when that changes.

    Attributes:
        reachable: False: the last known flags stay in force, nothing can be changed.
        regressed: it answers, but with another or an older document than one already in force here: that one stays.
        detail: what is wrong and what mends it; empty when nothing is.
    """

    reachable: bool
    regressed: bool = False
    detail: str = ""


class InternalError(Event, frozen=True, kw_only=True):
    """One of our own parts failed and was caught: `part` names it, `error` is the exception's type name only.

    `where` is the innermost line of ours that it passed (`module:line`), empty when not known.
    """

    part: str
    error: str
    where: str = ""


def place_of(error: BaseException) -> str:
    """The innermost line of ours that an exception passed, for `InternalError.where`."""
    found, traceback = "", error.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        if module.startswith("memos_llm."):
            found = f"{module}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return found


Listener = Callable[[Event], None]


class Bus:
    """Synchronous fan-out. Order of listeners is order of subscription."""

    def __init__(self) -> None:
        self._subscriptions: list[Subscription] = []
        self._by_kind: dict[type[Event], tuple[Subscription, ...]] = {}

    def subscribe(self, part: str, listener: Listener, *kinds: type[Event]) -> Callable[[], None]:
        """Add a listener for some kinds of event, or all. `part` names it should it ever raise.

        Returns:
            What takes it off again.
        """
        subscription = Subscription(part, listener, kinds)
        self._subscriptions.append(subscription)
        self._by_kind.clear()

        def unsubscribe() -> None:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
                self._by_kind.clear()

        return unsubscribe

    def emit(self, event: Event) -> None:
        listening = self._by_kind.get(type(event))
        for subscription in self._listening(type(event)) if listening is None else listening:
            try:
                subscription.listener(event)
            except Exception as error:  # noqa: BLE001 - a failing sink must never reach a request
                self._report(subscription, error)

    def _listening(self, kind: type[Event]) -> "tuple[Subscription, ...]":
        found = tuple(s for s in self._subscriptions if not s.kinds or kind in s.kinds)
        self._by_kind[kind] = found
        return found

    def _report(self, failed: "Subscription", error: Exception) -> None:
        event = InternalError(part=failed.part, error=type(error).__name__, where=place_of(error))
        for subscription in self._listening(InternalError):
            if subscription is failed:
                continue
            try:
                subscription.listener(event)
            except Exception:  # noqa: BLE001, S112 - the report of a failure must not fail the request either
                continue


class Subscription(NamedTuple):
    part: str
    listener: Listener
    kinds: tuple[type[Event], ...]
