"""What to try next, and for how long: the chain of one request as a small state machine without I/O.

One deadline holds for the whole chain. Every attempt gets a slice of what remains; one that is not the last leaves
half for what follows. The same target is tried again after a connection error on the last target, and as often as the
`retries` setting says after what may pass (`REPEATABLE`), within the retry budget and half of the time that is left.
Going on to the next target needs no budget.
"""

import random
from collections.abc import Callable

from msgspec import Struct

from memos_llm.core.call import Call, Target
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind
from memos_llm.core.policy import Policy

REPEATABLE = frozenset({Kind.CONNECT, Kind.SERVER, Kind.TRUNCATED, Kind.SATURATED})


class Try(Struct, frozen=True):
    """Attempt a target: not before `after_s` from now, and no longer than `until` (monotonic seconds).

    `limit` names what `until` comes from: ttft, answer, slice or total.
    """

    target: Target
    until: float
    limit: str
    after_s: float = 0.0
    last: bool = False


class RetryBudget:
    """Same-target retries may be at most `ratio` of the requests, with a small reserve for quiet times."""

    def __init__(self, ratio: float = 0.1, reserve: float = 10.0) -> None:
        self._ratio, self._reserve = ratio, reserve
        self._tokens = reserve

    def request(self) -> None:
        self._tokens = min(self._tokens + self._ratio, self._reserve)

    def take(self) -> bool:
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Chain:
    """Iterates over the tries of one call: `first()`, then `after(failure)` until it returns None."""

    def __init__(
        self,
        call: Call,
        targets: tuple[Target, ...],
        policy: Policy,
        budget: RetryBudget,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._call, self._targets, self._policy, self._budget, self._rng = call, targets, policy, budget, rng
        self._at = 0
        self._retries = 0

    def first(self, now: float) -> Try:
        return self._try(now)

    def after(self, failure: AttemptFailed, now: float) -> Try | None:
        """The next try, or None: no target or no time is left, or trying again cannot mend it."""
        if now >= self._call.deadline:
            return None
        pause_s = self._pause_s(failure)
        if self._may_repeat(failure, pause_s, now):
            self._retries += 1
            return self._try(now, pause_s)
        if self._last or not self._goes_on(failure):
            return None
        self._at, self._retries = self._at + 1, 0
        return self._try(now)

    @property
    def _last(self) -> bool:
        return self._at == len(self._targets) - 1

    def _goes_on(self, failure: AttemptFailed) -> bool:
        """A 4xx of anyone but the baseline may be that back end's narrowness: the baseline has the last word."""
        narrow = failure.outcome.kind is Kind.CLIENT and self._targets[self._at].provider != self._policy.baseline
        return failure.outcome.rule.try_next or narrow

    def _may_repeat(self, failure: AttemptFailed, pause_s: float, now: float) -> bool:
        """Not what will not change, and not at the price of the next target's time."""
        kind = failure.outcome.kind
        allowed = self._policy.retries + (kind is Kind.CONNECT and self._last)
        worth = kind in REPEATABLE and self._retries < allowed and pause_s <= (self._call.deadline - now) / 2
        return worth and self._budget.take()

    def _pause_s(self, failure: AttemptFailed) -> float:
        """Exponential, jittered, and at least what the back end asked for."""
        wanted = self._policy.backoff_s * 2.0**self._retries * (0.5 + self._rng())
        return max(wanted, failure.outcome.retry_after_s or 0.0)

    def _try(self, now: float, after_s: float = 0.0) -> Try:
        target, start = self._targets[self._at], now + after_s
        limits = self._policy.limits(target.provider)
        remaining = self._call.deadline - start
        until, limit = self._call.deadline, "total"
        if not self._last:
            until, limit = start + remaining / 2, "slice"
        own, name = (limits.ttft_s, "ttft") if self._call.stream else (limits.answer_s, "answer")
        if own is not None and start + own < until:
            until, limit = start + own, name
        return Try(target=target, until=until, limit=limit, after_s=after_s, last=self._last)
