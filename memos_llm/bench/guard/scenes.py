"""Scenes in which it matters what started when: stalls, slow answers with quick errors, slowness, few requests."""

from collections.abc import Iterator

import numpy as np
from msgspec.structs import replace

from memos_llm.bench.guard.traffic import Fired, Guarded, Request
from memos_llm.core.outcome import Kind
from memos_llm.core.policy import Limits

ANSWER_S = 1.0


def stall(rng: np.random.Generator, limits: Limits, age_s: int, rate: float, quick_errors: bool) -> Fired | None:
    """50 callers, each asking again as soon as it is answered, in about a second. For 3 s nothing is; then whatever was
    in flight times out, and all is as before. `rate` of all fail anyway: at once, or when an answer would have come.

    Args:
        age_s: of the epoch when the scene begins, 5 s before the stall.
    """
    guarded = Guarded(limits, phase_s=float(rng.random()))
    starts = rng.poisson(50 / ANSWER_S, age_s)
    guarded.history(age_s, starts.tolist(), rng.binomial(starts, rate).tolist())
    requests = [request for _ in range(50) for request in _caller(rng, rate, quick_errors, 5.0, 8.0, 13.0)]
    return guarded.play(requests, until=15.0)


def _caller(
    rng: np.random.Generator, rate: float, quick_errors: bool, begins: float, ends: float, until: float
) -> Iterator[Request]:
    at = float(rng.random()) * ANSWER_S
    while at < until:
        ill = bool(rng.random() < rate)
        duration_s = 0.005 if ill and quick_errors else ANSWER_S * float(rng.uniform(0.5, 1.5))
        request = Request(at, duration_s, Kind.SERVER if ill else Kind.OK)
        if at < ends and at + duration_s > begins:
            request = Request(at, ends - at + float(rng.random()) * 0.05, Kind.TIMEOUT)
        yield request
        at += request.duration_s + 0.001


def quick_errors(rng: np.random.Generator, limits: Limits, rate: float, per_s: float, until: float) -> Fired | None:
    """Answers take 30 s, errors nothing: who counts at the end judges an epoch by its errors alone."""
    at = np.cumsum(rng.exponential(1 / per_s, int(per_s * until))).tolist()
    ill = (rng.random(len(at)) < rate).tolist()
    requests = [Request(t, 0.005, Kind.SERVER) if bad else Request(t, 30.0) for t, bad in zip(at, ill, strict=True)]
    return Guarded(replace(limits, latency_p95_s=None), phase_s=float(rng.random())).play(requests, until)


def slowness(rng: np.random.Generator, limits: Limits, per_s: float, steady: bool, window: bool) -> float | None:
    """From 0 on every answer takes 20 s, which before took one. Seconds from when the first passes the limit to the
    verdict. `steady`: one each 1 / per_s, else by chance. `window`: 5 minutes went well before.
    """
    assert limits.latency_p95_s is not None
    guarded = Guarded(limits, phase_s=float(rng.random()) - 5)
    if window:
        seconds = limits.window_s
        guarded.history(seconds, rng.poisson(per_s, seconds).tolist(), [0] * seconds)
    count = int(per_s * 90)
    gaps = np.full(count, 1 / per_s) if steady else rng.exponential(1 / per_s, count)
    at = np.cumsum(gaps) - 5 + rng.random() / per_s
    requests = [Request(float(t), 20.0 if t >= 0 else ANSWER_S) for t in at]
    first = min(request.at for request in requests if request.at >= 0)
    fired = guarded.play(requests, until=80.0)
    return None if fired is None else fired.at - first - limits.latency_p95_s


def few(rng: np.random.Generator, limits: Limits, rate: float, kind: Kind, hours: float) -> Fired | None:
    """One request a minute; `rate` of them fail so, or (OK) are slow."""
    guarded = Guarded(limits, tick_s=1.0, flush_s=15.0)
    at = np.cumsum(rng.exponential(60.0, int(hours * 60)))
    bad = rng.random(len(at)) < rate
    requests = [
        Request(float(t), 20.0 if kind in (Kind.OK, Kind.TIMEOUT) else 0.005, kind) if ill else Request(float(t), 1.0)
        for t, ill in zip(at, bad, strict=True)
    ]
    return guarded.play(requests, until=float(at[-1]))
