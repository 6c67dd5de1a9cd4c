"""The window rule on errors, second by second: requests and failures of each second are drawn (Poisson), added up over
the window, and judged each second from the epoch's first request on.

A verdict depends on two counts only, so that the production code is asked once for each number of requests from which
number of failures on it says FAIL (`Critical`); whatever that finds is put to the production trigger again.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from memos_llm.core.policy import Limits
from memos_llm.core.verdicts import Sum, Verdict
from memos_llm.guard.binomial import surely_over
from memos_llm.guard.triggers import Counted, error_rate

CELLS = 3_000_000  # seconds drawn at a time
NEVER = np.iinfo(np.int32).max
CHECK_EVERY = 101
OF = Sum(provider="candidate")

Ints = NDArray[np.int32]


def fails(limits: Limits, n: int, k: int) -> bool:
    """What the production trigger says of k failures among n requests, all ended."""
    return error_rate(OF, limits, Counted(n=n, ended=n, failures=k), 0.0).verdict is Verdict.FAIL


@lru_cache(16)
def critical(limits: Limits, most: int) -> "Critical":
    """Made once in a process."""
    return Critical(limits, most)


class Critical:
    """n → the least k for which the window rule says FAIL, for n up to `most`."""

    def __init__(self, limits: Limits, most: int) -> None:
        assert limits.error_rate is not None
        self.limits = limits
        self.table = np.full(most + 1, NEVER, dtype=np.int32)
        k = 1
        for n in range(max(1, limits.min_requests), most + 1):
            while k <= n and not surely_over(k, n, limits.error_rate, limits.confidence):
                k += 1
            if k <= n:
                self.table[n] = k
        for n in range(limits.min_requests, most + 1, CHECK_EVERY):
            if fails(limits, n, int(self.table[n])) is not True or fails(limits, n, int(self.table[n]) - 1):
                raise AssertionError(f"the trigger and its bound disagree at n = {n}")

    def over(self, n: Ints, k: Ints) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = k >= self.table[n]
        return found


def windowed(counts: Ints, window_s: int) -> Ints:
    """Counts by second (last axis) → those of the window that ends with each second."""
    sums = np.cumsum(counts, axis=-1, dtype=np.int32)
    sums[..., window_s:] = sums[..., window_s:] - sums[..., :-window_s].copy()
    return sums


def most_in_window(limits: Limits, per_s: float, seconds: int) -> int:
    """More requests than any window will have."""
    mean = per_s * min(seconds, limits.window_s)
    return int(mean + 10 * mean**0.5 + 50)


def false_alarms(
    rng: np.random.Generator,
    limits: Limits,
    rate: float,
    per_s: float,
    requests: int,
    runs: int,
) -> int:
    """In how many of so many runs of about `requests` requests, each failing with probability `rate`, it says FAIL."""
    seconds = max(1, round(requests / per_s))
    over_at = critical(limits, most_in_window(limits, per_s, seconds))
    hits, done = 0, 0
    while done < runs:
        now = min(runs - done, max(1, CELLS // seconds))
        bad = rng.poisson(per_s * rate, (now, seconds)).astype(np.int32)
        n = windowed(rng.poisson(per_s * (1 - rate), (now, seconds)).astype(np.int32) + bad, limits.window_s)
        k = windowed(bad, limits.window_s)
        over = over_at.over(n, k)
        for run in np.flatnonzero(over.any(axis=1)):
            first = int(over[run].argmax())
            hits += fails(limits, int(n[run, first]), int(k[run, first]))
        done += now
    return hits
