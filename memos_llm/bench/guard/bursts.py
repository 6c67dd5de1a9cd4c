"""Both latency rules, second by second: bursts of slowness that should be borne, and slowness that should not.

Quick answers take a second. That an answer is slow is known when the limit passes, as in production; until then it
counts as quick where FAIL is asked.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memos_llm.bench.guard.counts import OF, Ints, windowed
from memos_llm.core.policy import Limits
from memos_llm.core.verdicts import Trigger, Verdict
from memos_llm.guard.binomial import surely_over
from memos_llm.guard.sequences import LatencyRun
from memos_llm.guard.triggers import SLOW_PART, Counted, cluster_lower, latency

QUICK_S = 1
BLOCKS = 30  # of a window


class Weather(NamedTuple):
    """How slowness comes: bursts of `burst_s` in which `inside` of all are slow, so many that `mean` is; no bursts (0):
    all the time.
    """

    mean: float
    inside: float = 0.0
    burst_s: int = 0


def parts(rng: np.random.Generator, weather: Weather, seconds: int) -> NDArray[np.float64]:
    """The part that is slow, of each second's starts. Bursts come by themselves, and one may be under way at 0."""
    if not weather.burst_s:
        return np.full(seconds, weather.mean)
    pause_s = weather.burst_s * (weather.inside / weather.mean - 1)
    found = np.zeros(seconds)
    at = -rng.uniform(0, weather.burst_s) if rng.random() < weather.mean / weather.inside else rng.exponential(pause_s)
    while at < seconds:
        found[max(0, round(at)) : max(0, round(at) + weather.burst_s)] = weather.inside
        at += weather.burst_s + rng.exponential(pause_s)
    return found


def play(
    rng: np.random.Generator, limits: Limits, weather: Weather, per_s: float, seconds: int
) -> tuple[int, Trigger] | None:
    """From an epoch's first request on: the second of the first verdict that would roll back, and whose it is."""
    assert limits.latency_p95_s is not None
    known_s = int(limits.latency_p95_s)
    timed = rng.poisson(per_s, seconds).astype(np.int32)
    slow = rng.binomial(timed, parts(rng, weather, seconds)).astype(np.int32)
    known = _later(slow, known_s)
    by_run = _run(known.tolist(), _later(timed - slow, QUICK_S).tolist())
    by_window = _window(limits, timed, slow, known_s)
    both = [
        (at, trigger) for at, trigger in ((by_run, Trigger.LATENCY_RUN), (by_window, Trigger.LATENCY)) if at is not None
    ]
    return min(both, default=None)


def _later(counts: Ints, seconds: int) -> Ints:
    return np.concatenate([np.zeros(seconds, dtype=np.int32), counts])[: len(counts)]


def _run(slow: list[int], quick: list[int]) -> int | None:
    run = LatencyRun()
    for second, (bad, good) in enumerate(zip(slow, quick, strict=True)):
        if run.second(bad, good):
            return second
    return None


def _window(limits: Limits, timed: Ints, slow: Ints, known_s: int) -> int | None:
    """Blocks are asked only where the plain count is surely over: cheaper, and the production rule wants both."""
    n, k = windowed(timed, limits.window_s), windowed(_later(slow, known_s), limits.window_s)
    resolved = windowed(_later(timed - slow, QUICK_S), limits.window_s) + k
    for second in np.flatnonzero((k > SLOW_PART * n) & (n >= limits.min_requests)).tolist():
        if not surely_over(int(k[second]), int(n[second]), SLOW_PART, limits.confidence):
            continue
        blocks = _blocks(limits, timed, slow, second, known_s)
        if cluster_lower(blocks, limits.confidence) <= SLOW_PART:
            continue
        total, bad, seen = int(n[second]), int(k[second]), int(resolved[second])
        counted = Counted(n=total, ended=seen, timed=total, resolved=seen, slow=bad)
        if latency(OF, limits, counted, blocks, 0.0).verdict is Verdict.FAIL:
            return int(second)
    return None


def _blocks(limits: Limits, timed: Ints, slow: Ints, second: int, known_s: int) -> list[tuple[int, int]]:
    """Of the window that ends with this second; a block begins at a multiple of its length."""
    length = max(1, limits.window_s // BLOCKS)
    first = max(0, second + 1 - limits.window_s)
    edges = np.array([first, *range(first - first % length + length, second + 1, length)])
    known = slow[: second + 1].copy()
    known[max(0, second + 1 - known_s) :] = 0
    sums = np.add.reduceat(timed[: second + 1], edges), np.add.reduceat(known, edges)
    return list(zip(sums[0].tolist(), sums[1].tolist(), strict=True))
