"""An incident as an engineer reads it at night: what happened, when, why, how both sides stood, and what to do now.

Drawn from the incidents' document alone, so that a gateway's looks like the store's. 80 columns, no colour needed.
"""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.text import Text

from memos_llm.cli.output import ago, clock, heading, moment, percent, table
from memos_llm.core.commands import Incident
from memos_llm.core.flags import GLOBAL
from memos_llm.core.verdicts import ArmWindow, Evidence, Trigger
from memos_llm.operate.documents import Incidents, LatchState

WHY: Mapping[str, str] = {
    Trigger.MANUAL: "somebody took it back by hand",
    Trigger.ERROR_RATE: "too many of its requests failed",
    Trigger.LATENCY: "too many of its requests were too slow",
    Trigger.ERROR_RUN: "its requests failed in a burst",
    Trigger.LATENCY_RUN: "its requests were slow one after the other",
    Trigger.TIMEOUTS: "its requests timed out one after the other",
    Trigger.HEALTH: "its probes failed",
    Trigger.BREAKER_OPEN: "its breakers were open too long, so that it got nothing to do",
    Trigger.STORE_REGRESSED: "the store came back without this latch, and it was put there again",
}
"""What a trigger means, as a sentence's second half."""

LOOK: Mapping[str, str] = {
    "connect": "nothing listens there, or the network is cut: is the server running?",
    "timeout": "it takes requests and does not answer: is the engine hung, or the queue too long?",
    "server": "it answers 5xx: its own log says why",
    "truncated": "its answers break off: has it been restarted, or run out of memory?",
    "malformed": "its answers cannot be read: has it been upgraded, or is something in between?",
    "saturated": "it says that it is full: lower the share, raise max_inflight's limit, or give it more room",
    "config": "it refuses our key, or does not know the model's name: `llmctl doctor` finds which",
    "incompatible": "it refuses what the baseline takes: tool parser, context length; `llmctl doctor --deep`",
}
"""Kind of failure → where to look first."""

SLOW = (Trigger.LATENCY, Trigger.LATENCY_RUN)


def full(found: Incidents, one: Incident) -> Iterator[RenderableType]:
    """Everything on record of one incident."""
    latches = [latch for latch in found.latched if latch.incident == one.id]
    places = _places(one)
    yield heading(f"{one.id}: {one.provider} rolled back, {places}")
    yield f"  {WHY.get(one.trigger, one.trigger)}"
    yield from _facts(one)
    first = one.evidence[0] if one.evidence else None
    if first is not None:
        yield from _evidence(first, one)
    yield from _others(one)
    yield heading("what to do now")
    yield from _numbered(_next(found, one, latches))


def _places(one: Incident) -> str:
    names = ("everything" if name == GLOBAL else name for name in (one.scope, *one.also))
    return ", ".join(names)


def _facts(one: Incident) -> Iterator[str]:
    yield f"  at         {moment(one.at)}"
    yield f"  by         {one.actor} ({one.trigger})"
    yield f"  reason     {one.reason or '-'}"
    if one.rule and one.rule != one.reason:
        yield f"  rule       {one.rule}"
    if one.n is not None and one.k is not None:
        yield f"  counted    {_counted(one)}"
    for name, before in one.shares_before.items():
        after = one.shares_after.get(name)
        yield f"  share      {name}: {percent(before)} -> {'follows *' if after is None else percent(after)}"
    yield f"  flags      revision {one.revision}, epoch {one.epoch}"
    if one.plan:
        yield f"  plan       {one.plan}, step {one.step}"


def _counted(one: Incident | Evidence) -> str:
    """`12 of 60 (20%, between 11% and 32%), limit 5%`; a count in a row has no rate."""
    said = f"{one.k} of {one.n}"
    if one.estimate is None:
        return said
    sure = "" if one.low is None else f", surely more than {_rate(one.low)}"
    most = "" if one.high is None else f", at most {_rate(one.high)}"
    limit = "" if one.limit is None else f"; the limit is {_rate(one.limit)}"
    return f"{said} ({_rate(one.estimate)}{sure}{most}){limit}"


def _rate(value: float) -> str:
    return f"{value * 100:.3g}%"


# --- the evidence of the first


def _evidence(first: Evidence, one: Incident) -> Iterator[RenderableType]:
    yield heading("how fast")
    yield from _times(first, one)
    if first.windows:
        yield heading("both sides, over the time judged")
        yield table(
            ("provider", "of", "requests", "failed", "slow", "p95"),
            [_arm(window) for window in first.windows],
            right=("requests", "failed", "slow", "p95"),
        )
        yield from _kinds_told(first.windows)
        since, until = first.windows[0].since, first.windows[0].until
        yield f"  from {clock(since)} to {clock(until)} ({ago(until - since)})"
    if first.probes:
        yield heading("last probes")
        yield table(
            ("provider", "endpoint", "was", "version", "before"),
            [
                (
                    probe.provider,
                    probe.endpoint,
                    "up" if probe.up else f"DOWN {probe.detail}".rstrip(),
                    probe.version or "-",
                    ago(first.at - probe.at) if probe.at else "-",
                )
                for probe in first.probes
            ],
            whole=("endpoint",),
        )
    if first.models:
        yield f"  models     {', '.join(first.models)}"
    if first.versions:
        yield f"  versions   {', '.join(f'{name} {version}' for name, version in first.versions.items())}"
    if first.requests:
        yield heading("requests that went wrong (grep the gateway's log for them)")
        yield from (f"  {id}" for id in first.requests)


def _times(first: Evidence, one: Incident) -> Iterator[str]:
    yield f"  seen by    {first.by}, at {clock(first.at)}"
    if first.detection_s is not None:
        yield f"  detection  {_seconds(first.detection_s)} from the first failed or slow one to the verdict"
    if first.decision_s is not None:
        yield f"  decision   {_seconds(first.decision_s)} from there until that process sent no more"
    if first.propagation_s is not None:
        yield f"  fleet      {_seconds(first.propagation_s)} from there until it was in the store, for everybody"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s" if seconds < 60 else ago(seconds)


def _arm(window: ArmWindow) -> tuple[str, ...]:
    failed = f"{window.failures} ({_rate(window.failures / window.n)})" if window.n else "-"
    slow = f"{window.slow} of {window.timed}" if window.timed else "-"
    p95 = "-" if window.p95_ms is None else _seconds(window.p95_ms / 1000)
    return window.provider, _of(window), str(window.n), failed, slow, p95


def _of(window: ArmWindow) -> str:
    return window.component or (f"model {window.model}" if window.model else "everything")


def _kinds_told(windows: Sequence[ArmWindow]) -> Iterator[str]:
    for window in windows:
        kinds = sorted(window.kinds.items(), key=lambda kind: -kind[1])
        if kinds:
            yield f"  {window.provider} failed by: {', '.join(f'{kind} {many}' for kind, many in kinds)}"


def _others(one: Incident) -> Iterator[RenderableType]:
    """Who came to the same, and what else was seen later."""
    further = one.evidence[1:]
    if not further:
        return
    yield heading(f"also seen by {len(further)}")
    for each in further:
        note = f" ({each.note})" if each.note else ""
        place = "everything" if each.scope == GLOBAL else each.scope
        yield f"  {clock(each.at)}  {each.by}: {each.trigger}, {place}{note}"
        if each.rule:
            yield f"    {each.rule}"


# --- what to do


def _numbered(lines: Iterator[str]) -> Iterator[Text]:
    for number, line in enumerate(lines, start=1):
        yield Text(f"  {number}. {line}")


def _next(found: Incidents, one: Incident, latches: Sequence[LatchState]) -> Iterator[str]:
    yield "`llmctl status`: what is in force, and who is up, at this moment"
    yield from _causes(one)
    if not latches:
        yield "the latch was lifted since: `llmctl history` tells by whom"
        return
    for latch in latches:
        option = "" if latch.scope == GLOBAL else f" --component {latch.scope}"
        yield f'when the cause is mended: `llmctl rearm{option} --reason "…"`{_when(latch, found.at)}'
    scope = latches[0].scope
    option = "" if scope == GLOBAL else f" --component {scope}"
    yield f"then a small share first: `llmctl shift --{one.provider} 5%{option}`, and `llmctl status --watch`"


def _when(latch: LatchState, now: float) -> str:
    left_s = latch.holddown_until - now
    if left_s <= 0:
        return ""
    return f", from {clock(latch.holddown_until)} on (hold-down, {ago(left_s)} left; --force cuts it short)"


def _causes(one: Incident) -> Iterator[str]:
    kinds = _kinds(one)
    for kind in kinds[:3]:
        if kind in LOOK:
            yield f"{kind}: {LOOK[kind]}"
    if one.trigger in SLOW:
        yield "slow: look at its queue and its KV cache: `llmctl doctor`; is a limit meant for other answers?"
    if one.trigger != Trigger.MANUAL:
        yield "`llmctl doctor`: the servers, the keys, the models, one by one"


def _kinds(one: Incident) -> list[str]:
    """How the rolled-back provider's requests failed, the most frequent first."""
    found: dict[str, int] = {}
    for window in one.evidence[0].windows if one.evidence else ():
        if window.provider == one.provider:
            for kind, many in window.kinds.items():
                found[kind] = max(many, found.get(kind, 0))
    if one.trigger == Trigger.TIMEOUTS:
        found.setdefault("timeout", 1)
    return sorted(found, key=lambda kind: -found[kind])
