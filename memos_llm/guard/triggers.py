"""The rules over windows, and what is said of a tripped run: each evaluation with verdict, reason and numbers, also
when nothing is wrong. Pure.

Requests whose end is not known yet count as good where FAIL is asked and as bad where PASS is: so no order of ends
makes a verdict that all of them together would not.
"""

from collections.abc import Sequence
from math import ceil, sqrt
from typing import NamedTuple

from memos_llm.core.policy import Limits
from memos_llm.core.verdicts import Evaluation, Sum, Trigger, Verdict
from memos_llm.guard.binomial import difference_lower, lower, normal, student, surely_over, upper
from memos_llm.guard.runs import Trip
from memos_llm.guard.sequences import LATENCY_TRIP, parameters

SLOW_PART = 0.05  # p95: this part may be slower
UNSURE = 0.95  # so sure holds a plan and alerts; `Limits.confidence` rolls back
LEAST_BLOCKS = 6

Blocks = Sequence[tuple[int, int]]
"""Of each thirtieth of a window: how many were timed, and slow. Slow requests come in bursts."""


class Counted(NamedTuple):
    """Requests of one sum that started within a stretch of time; the fields of `core.windows`."""

    n: int = 0
    ended: int = 0
    failures: int = 0
    timed: int = 0
    resolved: int = 0
    slow: int = 0


def error_rate(sum: Sum, limits: Limits, counted: Counted, since: float) -> Evaluation:
    """More than `limits.error_rate` of those that started since then failed. `since`: Unix seconds."""
    limit = limits.error_rate
    if limit is None:
        return _off(Trigger.ERROR_RATE, sum)
    text = f"{counted.failures} of {counted.n} requests failed; more than {limit * 100:g}% are too many"
    return _judge(
        _Case(Trigger.ERROR_RATE, sum, text, limits, limit, since),
        counted.n,
        counted.failures,
        counted.n - counted.ended,
        sure=True,
    )


def latency(sum: Sum, limits: Limits, counted: Counted, blocks: Blocks, since: float) -> Evaluation:
    """More than 5 % of the timed ones that started since then took longer than `limits.latency_p95_s`."""
    limit_s = limits.latency_p95_s
    if limit_s is None:
        return _off(Trigger.LATENCY, sum)
    text = (
        f"{counted.slow} of {counted.timed} requests took longer than {limit_s:g} s ({limits.signal.value}); "
        f"more than {SLOW_PART * 100:g}% are too many"
    )
    return _judge(
        _Case(Trigger.LATENCY, sum, text, limits, SLOW_PART, since),
        counted.timed,
        counted.slow,
        counted.timed - counted.resolved,
        sure=limits.confidence <= 0 or cluster_lower(blocks, limits.confidence) > SLOW_PART,
    )


def cluster_lower(blocks: Blocks, confidence: float) -> float:
    """The lower bound of slow / timed that allows for bursts: of whole blocks, not of requests; 0 with too few blocks.

    The linearised variance of a ratio of sums over clusters (Cochran, Sampling Techniques, 6.4), Student's quantile.
    """
    used = [(timed, slow) for timed, slow in blocks if timed]
    many = len(used)
    if many < LEAST_BLOCKS:
        return 0.0
    timed, slow = sum(block[0] for block in used), sum(block[1] for block in used)
    rate = slow / timed
    spread = sqrt(many / (many - 1) * sum((slow - rate * timed) ** 2 for timed, slow in used)) / timed
    return max(0.0, rate - student(max(confidence, 0.5), many - 1) * spread)


def as_bad(limit: float, candidate: tuple[int, int], baseline: tuple[int, int]) -> bool:
    """Whether the baseline is over the limit itself and the candidate not surely worse (Newcombe, 95 %, one-sided).
    One bad request is no rate: a baseline that hardly anybody asks would stand in the way of everything.

    Args:
        candidate, baseline: bad ones and all, over the same stretch of time.
    """
    if baseline[0] < 2 or not candidate[1] or baseline[0] <= limit * baseline[1]:
        return False
    return difference_lower(candidate, baseline, UNSURE) <= 0


def tripped(trip: Trip) -> Evaluation:
    """What a run that has tripped says."""
    text, limit = _run_in_words(trip)
    return Evaluation(
        trigger=trip.trigger,
        sum=trip.sum,
        verdict=Verdict.FAIL,
        reason="over-limit",
        text=text,
        n=trip.n,
        k=trip.k,
        limit=limit,
        estimate=trip.k / trip.n if trip.n and trip.trigger is not Trigger.TIMEOUTS else None,
        since=trip.since,
        requests=trip.requests,
    )


def _run_in_words(trip: Trip) -> tuple[str, float]:
    """And the limit on k / n, or on k."""
    limits, n, k = trip.limits, trip.n, trip.k
    match trip.trigger:
        case Trigger.ERROR_RUN:
            limit = limits.error_rate or 0.0
            u, h = parameters(limit)
            return f"{k} of {n} requests in a row failed; each adds {u}, any other takes 1 off, {h} is too much", limit
        case Trigger.LATENCY_RUN:
            slow = f"{k} of {n} requests in a row took longer than {limits.latency_p95_s or 0:g} s"
            return f"{slow} ({limits.signal.value}); {LATENCY_TRIP} more slow ones than fast are too many", SLOW_PART
        case _:
            most = limits.consecutive_timeouts or 0
            return f"{k} time-outs in a row; {most} are too many", most


class _Case(NamedTuple):
    trigger: Trigger
    sum: Sum
    text: str
    limits: Limits
    limit: float
    since: float


class _Said(NamedTuple):
    verdict: Verdict
    reason: str
    missing: int = 0


def _off(trigger: Trigger, sum: Sum) -> Evaluation:
    return Evaluation(trigger=trigger, sum=sum, verdict=Verdict.PASS, reason="off", text="switched off")


def _judge(case: _Case, n: int, k: int, unresolved: int, *, sure: bool) -> Evaluation:
    said = _say(case, n, k, unresolved, sure=sure)
    confidence = case.limits.confidence or UNSURE
    return Evaluation(
        trigger=case.trigger,
        sum=case.sum,
        verdict=said.verdict,
        reason=said.reason,
        text=case.text,
        n=n,
        k=k,
        limit=case.limit,
        estimate=k / n if n else None,
        low=lower(k, n, confidence) if n else None,
        high=upper(k, n, confidence) if n else None,
        missing=said.missing,
        since=case.since,
    )


def _say(case: _Case, n: int, k: int, unresolved: int, *, sure: bool) -> _Said:
    """`sure`: what else FAIL needs is there."""
    limits, limit = case.limits, case.limit
    if n < limits.min_requests or not n:
        return _Said(Verdict.INCONCLUSIVE, "too-few" if n else "no-data", max(1, limits.min_requests - n))
    if surely_over(k, n, limit, limits.confidence):
        return _Said(Verdict.FAIL, "over-limit") if sure else _Said(Verdict.INCONCLUSIVE, "unsure-over")
    if surely_over(k, n, limit, UNSURE):
        return _Said(Verdict.INCONCLUSIVE, "unsure-over", _missing(k, n, limit, limits.confidence))
    if k > limit * n:
        return _Said(Verdict.INCONCLUSIVE, "unsure", _missing(k, n, limit, limits.confidence))
    if k + unresolved > limit * n:
        return _Said(Verdict.INCONCLUSIVE, "unresolved")
    return _Said(Verdict.PASS, "within")


def _missing(k: int, n: int, limit: float, confidence: float) -> int:
    """How many more requests, failing as often as these, would make FAIL sure (by the normal approximation)."""
    rate = k / n
    needed = limit * (1 - limit) * (normal(max(confidence, UNSURE)) / (rate - limit)) ** 2
    return max(1, ceil(needed - n))
