"""What the guard says, as documents: every sum of both arms against its limits, and what a limit means in words.

Drawn from `ArmWindow`s and `Evaluation`s alone, whoever made them: a gateway's guard a second ago (`Heard`), or this
process from the store's windows (`look`).
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from memos_llm.core.events import Event, GuardBlind, GuardSaid, RollbackHeld
from memos_llm.core.flags import GLOBAL, Flags
from memos_llm.core.policy import Limits, Policy
from memos_llm.core.ports import Clock, StateStore
from memos_llm.core.verdicts import ArmWindow, Evaluation, Sum, Trigger, Verdict
from memos_llm.operate.documents import GuardState, HeldState, RuleState, WindowState

SLOW_PART = 0.05  # p95: this part may be slower
HELD_S = 900.0  # how long what was held is shown
WINDOWED = frozenset({Trigger.ERROR_RATE, Trigger.LATENCY})
_WORST = (Verdict.FAIL, Verdict.ERROR, Verdict.INCONCLUSIVE, Verdict.PASS)


class Guarded(Struct, frozen=True, kw_only=True):
    """What is known of the guard. `at`: when it was judged, Unix seconds; None: it was not."""

    at: float | None = None
    windows: tuple[ArmWindow, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    blind: tuple[str, ...] = ()
    held: tuple[HeldState, ...] = ()


class Heard:
    """What this process's guard said last. Subscribe `on_event` to `KINDS`. `clock`: Unix seconds."""

    KINDS = (GuardSaid, GuardBlind, RollbackHeld)

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._said: GuardSaid | None = None
        self._blind: Mapping[str, str] = {}
        self._held: dict[tuple[str, str], HeldState] = {}

    def on_event(self, event: Event) -> None:
        match event:
            case GuardSaid():
                self._said = event
            case GuardBlind():
                self._blind = {event.what: event.detail} if event.what else {}
            case RollbackHeld():
                self._held[event.provider, event.scope] = HeldState(
                    provider=event.provider,
                    scope=event.scope,
                    trigger=event.trigger,
                    why=event.why,
                    detail=event.detail,
                    at=self._clock(),
                )
            case _:
                pass

    def guarded(self) -> Guarded:
        young = self._clock() - HELD_S
        held = tuple(one for one in self._held.values() if one.at > young)
        blind = tuple(f"{what}: {detail}" if detail else what for what, detail in self._blind.items())
        if self._said is None:
            return Guarded(blind=blind, held=held)
        said = self._said
        return Guarded(at=said.at, windows=said.windows, evaluations=said.evaluations, blind=blind, held=held)


async def look(store: StateStore, policy: Policy, flags: Flags) -> Guarded:
    """What the store's windows say now, by the guard's own rules; of runs, streaks and probes only a guard knows.

    Raises:
        StoreUnreachable
    """
    from memos_llm.guard.judge import read, say  # most commands look at no window, and should load no guard
    from memos_llm.guard.windows import Windows

    merged = await store.merge((), 0)
    windows = Windows()
    windows.learn(merged)
    said = await asyncio.to_thread(lambda: say(read(windows, policy, flags, merged.at)))
    return Guarded(at=said.at, windows=said.windows, evaluations=said.evaluations)


async def baseline_doubts(store: StateStore, policy: Policy, flags: Flags, scope: str) -> tuple[str, ...]:
    """Where the baseline itself is beyond a limit that the candidate is to be held to.

    Raises:
        StoreUnreachable
    """
    candidate = policy.candidate
    if candidate is None or not policy.guard.enabled:
        return ()
    limits, component = limits_of(policy, candidate, scope), "" if scope == GLOBAL else scope
    seen = await look(store, policy, flags)
    mine = (one for one in seen.windows if (one.provider, one.component, one.model) == (policy.baseline, component, ""))
    return tuple(
        f"{policy.baseline} itself is beyond rollback.{setting}: {_figure(setting, found)} over {window.n} requests, "
        f"the limit is {_figure(setting, limit)}; {candidate} would be held to what the baseline does not keep: "
        "mend that, or raise the limit"
        for window in mine
        if window.n >= limits.min_requests
        for setting, found, limit in breaches(window, limits)
    )


def _figure(setting: str, value: float) -> str:
    return f"{value:.0f} ms" if setting.endswith("_ms") else f"{value * 100:.3g}%"


def rows(policy: Policy, windows: Iterable[ArmWindow], evaluations: Iterable[Evaluation]) -> tuple[WindowState, ...]:
    """One for each window, and for each sum that was judged without one; the whole provider's first."""
    judged: dict[tuple[str, str, str], list[Evaluation]] = defaultdict(list)
    for one in evaluations:
        judged[_key(one.sum)].append(one)
    seen = {_key(window): window for window in windows}
    order = sorted({*seen, *judged}, key=lambda key: (key[0] == policy.baseline, key))
    return tuple(_row(policy, key, seen.get(key), judged.get(key, ())) for key in order)


def _key(of: ArmWindow | Sum) -> tuple[str, str, str]:
    return of.provider, of.component, of.model


def _row(
    policy: Policy, key: tuple[str, str, str], seen: ArmWindow | None, judged: Sequence[Evaluation]
) -> WindowState:
    provider, component, model = key
    limits = policy.guard.of(provider, component, model)
    window = seen or ArmWindow(
        provider=provider,
        component=component,
        model=model,
        since=0.0,
        until=0.0,
        n=0,
        ended=0,
        failures=0,
        slow=0,
        timed=0,
    )
    verdict, reason, missing = _worst(judged) if judged else _plain(window, limits)
    return WindowState(
        provider=provider,
        component=component,
        model=model,
        n=window.n,
        failures=window.failures,
        error_rate=window.failures / window.n if window.n else None,
        error_limit=limits.error_rate,
        p95_ms=window.p95_ms,
        p95_limit_ms=None if limits.latency_p95_s is None else limits.latency_p95_s * 1000,
        verdict=verdict,
        reason=reason,
        missing=missing,
        ended=window.ended,
        slow=window.slow,
        timed=window.timed,
        kinds=dict(window.kinds),
        since=window.since,
        until=window.until,
        rules=tuple(_rule(one, limits) for one in judged),
    )


def _worst(judged: Sequence[Evaluation]) -> tuple[str, str, int]:
    worst = min(judged, key=lambda one: _WORST.index(one.verdict))
    return worst.verdict, worst.reason, max(one.missing for one in judged)


def _plain(window: ArmWindow, limits: Limits) -> tuple[str, str, int]:
    """Of an arm that nothing rolls back: is it beyond a limit, as it stands?"""
    if not window.n:
        return Verdict.INCONCLUSIVE, "no-data", limits.min_requests
    if window.n < limits.min_requests:
        return Verdict.INCONCLUSIVE, "too-few", limits.min_requests - window.n
    if breaches(window, limits):
        return Verdict.FAIL, "over-limit", 0
    return Verdict.PASS, "within", 0


def breaches(window: ArmWindow, limits: Limits) -> tuple[tuple[str, float, float], ...]:
    """The limits that an arm is beyond by plain count: (setting, what it is, what it may be), as the file has them."""
    found = []
    if limits.error_rate is not None and window.n and window.failures / window.n > limits.error_rate:
        found.append(("error_rate", window.failures / window.n, limits.error_rate))
    slow = limits.latency_p95_s is not None and window.timed and window.slow / window.timed > SLOW_PART
    if slow and limits.latency_p95_s is not None:
        limit_ms = limits.latency_p95_s * 1000
        found.append(("latency_p95_ms", max(window.p95_ms or 0.0, limit_ms), limit_ms))
    return tuple(found)


def _rule(one: Evaluation, limits: Limits) -> RuleState:
    return RuleState(
        trigger=one.trigger,
        verdict=one.verdict,
        reason=one.reason,
        text=one.text,
        n=one.n,
        k=one.k,
        limit=one.limit,
        estimate=one.estimate,
        low=one.low,
        high=one.high,
        missing=one.missing,
        spare=spare(one, limits) if one.trigger in WINDOWED else None,
    )


def spare(one: Evaluation, limits: Limits) -> int | None:
    """How many more of the requests judged would have to be bad for a window's rule to fire; None: no number would."""
    from memos_llm.guard.binomial import surely_over

    if one.n < limits.min_requests or one.verdict is Verdict.FAIL:
        return None
    few, many = one.k, one.n
    if not surely_over(many, one.n, one.limit, limits.confidence):
        return None
    while few < many:
        middle = (few + many) // 2
        if surely_over(middle, one.n, one.limit, limits.confidence):
            many = middle
        else:
            few = middle + 1
    return few - one.k


def guard_state(policy: Policy, guarded: Guarded) -> GuardState:
    candidate = policy.candidate
    rule = "" if candidate is None else in_words(policy.guard.of(candidate))
    return GuardState(
        enabled=policy.guard.enabled, said_at=guarded.at, blind=guarded.blind, held=guarded.held, rule=rule
    )


def limits_of(policy: Policy, provider: str, scope: str) -> Limits:
    """What a share of a scope is held to."""
    return policy.guard.of(provider, "" if scope == GLOBAL else scope)


def in_words(limits: Limits) -> str:
    """`more than 5% failing, more than 5% slower than 5 s (e2e), 3 time-outs in a row, …`."""
    return ", ".join(_in_words(limits)) or "nothing: every trigger is switched off"


def _in_words(limits: Limits) -> Iterator[str]:
    if limits.error_rate is not None:
        yield f"more than {limits.error_rate * 100:g}% failing"
    if limits.latency_p95_s is not None:
        yield f"more than 5% slower than {limits.latency_p95_s:g} s ({limits.signal.value})"
    if limits.consecutive_timeouts is not None:
        yield f"{limits.consecutive_timeouts} time-outs in a row"
    if limits.health_failures is not None:
        yield f"{limits.health_failures} failed probes in a row"


def watched(policy: Policy, provider: str, scope: str) -> tuple[str, ...]:
    """What a share that was just raised is held to, and when that can first be judged; for whoever raised it."""
    if not policy.guard.enabled:
        return ("rollback.enabled is false: nothing rolls back by itself; watch `llmctl status --watch`",)
    limits = limits_of(policy, provider, scope)
    lines = [f"the guard takes {provider} back at {in_words(limits)} (over {_span(limits.window_s)})"]
    if limits.error_rate is not None or limits.latency_p95_s is not None:
        lines.append(
            f"it can first judge that after {limits.min_requests} requests there; bursts of failures, time-outs and "
            "probes at once"
        )
    return tuple(lines)


def _span(seconds: int) -> str:
    """`300` → `5 min`."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
