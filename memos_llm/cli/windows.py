"""The guard in `status`: what it holds the candidate to, how far each rule is from its limit, what data is missing.

Drawn from the status document alone. Both sides stand in one table; the rules are the candidate's.
"""

from collections.abc import Callable, Iterator

from rich.console import RenderableType

from memos_llm.cli.output import ago, clock, heading, table
from memos_llm.core.verdicts import Trigger
from memos_llm.operate.documents import RuleState, Status, WindowState

WORDS = {"pass": "within", "fail": "OVER", "inconclusive": "no verdict", "error": "ERROR"}
REASONS = {
    "too-few": "too few",
    "no-data": "no requests",
    "unsure": "over, but not surely",
    "unsure-over": "over, but not surely enough",
    "unresolved": "too many are still under way",
    "off": "switched off",
    "over-limit": "over its limit",
    "within": "within",
    "lag": "this process is too busy to time anything",
}
FEW = ("no-data", "too-few")
ELSEWHERE = (Trigger.ERROR_RUN, Trigger.LATENCY_RUN, Trigger.TIMEOUTS, Trigger.HEALTH, Trigger.BREAKER_OPEN)
"""The rules that the store's windows say nothing of."""


def maintenance(now: Status) -> Iterator[str]:
    for name, until in now.maintenance.items():
        yield f"  ! maintenance of {name} until {clock(until)} ({ago(until - now.at)} left): nothing new goes there"
        yield f"    end it with `llmctl maintenance {name} --end`"


def guard(now: Status) -> Iterator[RenderableType]:
    if now.candidate is None:
        return
    yield heading(_title(now))
    yield from _state(now, now.candidate)
    if not now.windows:
        return
    yield table(
        ("requests of", "", "n", "failed", "p95", "verdict"),
        [_row(one, now) for one in now.windows],
        right=("n",),
        whole=("failed", "p95"),
    )
    rules = [row for one in now.windows if one.provider == now.candidate for row in _rules(one)]
    if rules:
        yield heading(f"how far {now.candidate} is from each limit")
        yield table(("of", "rule", "says"), rules, whole=("rule",))


def _title(now: Status) -> str:
    if not now.guard.enabled:
        return "guard: OFF (rollback.enabled): nothing rolls back by itself"
    if now.guard.said_at is None:
        return "guard: nothing was judged yet"
    return f"guard: judged {ago(now.at - now.guard.said_at)} ago"


def _state(now: Status, candidate: str) -> Iterator[str]:
    if now.guard.enabled and now.guard.rule:
        yield f"  {candidate} goes back at {now.guard.rule.replace(', ', f',{chr(10)}    ')}"
    if now.guard.enabled and now.seen_by == "cli":
        yield f"  {len(ELSEWHERE)} more rules only a running gateway knows, and what it held or cannot judge:"
        yield f"    {', '.join(ELSEWHERE)}: ask it, `llmctl --gateway URL status`"
    for said in now.guard.blind:
        yield f"  ! it cannot judge: {said}"
    for held in now.guard.held:
        place = "everything" if held.scope == "*" else held.scope
        yield f"  ! {held.trigger} fired for {held.provider}, {place}, and was held {ago(now.at - held.at)} ago"
        yield f"    {held.why}{': ' if held.detail else ''}{held.detail}"


def _row(one: WindowState, now: Status) -> tuple[str, str, str, str, str, str]:
    return (
        one.provider,
        _of(one),
        str(one.n),
        _against(one.error_rate, one.error_limit, _rate),
        _against(one.p95_ms, one.p95_limit_ms, _time),
        _verdict(one),
    )


def _of(one: WindowState) -> str:
    return one.component or one.model or "everything"


def _against(value: float | None, limit: float | None, show: Callable[[float], str]) -> str:
    """`1.7% of 5%`."""
    shown = "-" if value is None else show(value)
    return f"{shown} of {show(limit)}" if limit is not None else f"{shown}, no limit"


def _rate(value: float) -> str:
    return f"{value * 100:.3g}%"


def _time(value_ms: float) -> str:
    return f"{value_ms:.0f} ms" if value_ms < 1000 else f"{value_ms / 1000:.3g} s"


def _verdict(one: WindowState) -> str:
    if one.verdict != "inconclusive":
        return WORDS.get(one.verdict, one.verdict)
    reason = REASONS.get(one.reason, one.reason)
    return f"{one.missing} more needed" if one.missing and one.reason in FEW else reason


def _rules(one: WindowState) -> Iterator[tuple[str, str, str]]:
    """A sum that got nothing has nothing to say, rule by rule."""
    if one.n == 0 and all(rule.reason in FEW for rule in one.rules):
        return
    for rule in one.rules:
        yield _of(one), rule.trigger, _says(rule)


def _says(rule: RuleState) -> str:
    """The verdict, then its numbers: how far from the limit, and how many requests a verdict still needs."""
    reason = REASONS.get(rule.reason, rule.reason)
    parts = [reason if rule.verdict == "inconclusive" else WORDS.get(rule.verdict, rule.verdict)]
    parts += [rule.text] if rule.text else _numbers(rule)
    if rule.missing:
        parts.append(f"{rule.missing} more requests needed for a verdict")
    if rule.spare:
        parts.append(f"{rule.spare} more bad ones among these would fire it")
    return "; ".join(parts)


def _numbers(rule: RuleState) -> list[str]:
    if rule.estimate is None:
        return [f"{rule.k} of {rule.limit:g}"]
    sure = "" if rule.low is None else f", surely more than {_rate(rule.low)}"
    return [f"{rule.k} of {rule.n}, {_rate(rule.estimate)}{sure}; the limit is {_rate(rule.limit)}"]
