"""Both error rules on one stream of requests: how soon a fault is seen, and that a good candidate is left alone.

Every end is known before the next request starts. A fault begins with the window full of requests of a candidate of
which 1 % fail: a younger epoch is judged sooner.
"""

from typing import NamedTuple

import numpy as np

from memos_llm.bench.guard.counts import Critical, Ints, critical, fails, most_in_window, windowed
from memos_llm.core.policy import Limits
from memos_llm.guard.sequences import ErrorRun, parameters

HEALTHY = 0.01
WARM = 2_000  # requests, for the sequential rule


class Seen(NamedTuple):
    """When a fault was seen: after how many requests and seconds since it began, and whether by the window first."""

    requests: int
    seconds: float
    by_window: bool


def detect(
    rng: np.random.Generator, limits: Limits, rate: float, per_s: float, runs: int, most: int
) -> list[Seen | None]:
    """Of each run; None: not within `most` requests. Starts are Poisson."""
    seconds = int(most / per_s) + 1
    over_at = critical(limits, most_in_window(limits, per_s, limits.window_s))
    return [_detect(rng, limits, over_at, rate, per_s, seconds, most) for _ in range(runs)]


def _detect(
    rng: np.random.Generator, limits: Limits, over_at: Critical, rate: float, per_s: float, seconds: int, most: int
) -> Seen | None:
    assert limits.error_rate is not None
    run = ErrorRun(parameters(limits.error_rate))
    feed(run, rng.random(WARM) < HEALTHY, 0)
    run = run if not run.tripped else ErrorRun(run.parameters)
    failing = rng.random(most) < rate
    at = np.cumsum(rng.exponential(1 / per_s, most))  # seconds since the fault began
    tripped = feed(run, failing, WARM)
    by_run = None if tripped is None else Seen(tripped + 1, float(at[tripped]), False)
    before_s = limits.window_s
    well = rng.poisson(per_s, before_s).astype(np.int32)
    ill = rng.binomial(well, HEALTHY).astype(np.int32)
    second = np.minimum(at.astype(np.int64), seconds)
    n = windowed(np.concatenate([well, _by_second(second, seconds)]), limits.window_s)[before_s:]
    k = windowed(np.concatenate([ill, _by_second(second[failing], seconds)]), limits.window_s)[before_s:]
    whole = int(second[-1])  # the last second may be cut short
    over = np.flatnonzero(over_at.over(n, k)[:whole])
    by_window = None
    if len(over):
        end = int(over[0]) + 1
        assert fails(limits, int(n[end - 1]), int(k[end - 1]))
        by_window = Seen(int(np.searchsorted(at, end)), float(end), True)
    return min((seen for seen in (by_run, by_window) if seen), key=lambda seen: seen.seconds, default=None)


def _by_second(second: np.ndarray[tuple[int], np.dtype[np.int64]], seconds: int) -> Ints:
    return np.bincount(second, minlength=seconds + 1)[:seconds].astype(np.int32)


def feed(run: ErrorRun, failing: np.ndarray[tuple[int], np.dtype[np.bool_]], offset: int) -> int | None:
    """One request after the other; the place of the one that trips. Those before a failure at rest change nothing."""
    start, fail = run.start, run.fail
    at = 0
    for place in np.flatnonzero(failing).tolist():
        while at < place and run.s:
            start()
            at += 1
        at = place + 1
        if fail(start(), offset + place, offset + place + 0.5):
            return int(place)
    while at < len(failing) and run.s:
        start()
        at += 1
    return None


def endure(rng: np.random.Generator, limits: Limits, rate: float, per_s: int, requests: int, epoch: int) -> int:
    """How often both rules together trip in so many requests; every `epoch` requests all begins anew."""
    assert limits.error_rate is not None
    seconds = epoch // per_s
    over_at = critical(limits, per_s * limits.window_s)
    hits = 0
    run = ErrorRun(parameters(limits.error_rate))
    for _ in range(requests // epoch):
        run.reset()
        failing = rng.random(epoch) < rate
        by_run = feed(run, failing, 0)
        k = windowed(failing.reshape(seconds, per_s).sum(axis=1).astype(np.int32), limits.window_s)
        n = windowed(np.full(seconds, per_s, dtype=np.int32), limits.window_s)
        hits += by_run is not None or bool(over_at.over(n, k).any())
    return hits
