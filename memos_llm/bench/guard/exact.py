"""What the sequential rule does, exactly: the Markov chain of its sum, each request failing by itself.

The figures are of one sum in one process, from rest, with every end known before the next request starts, so that the
stall rule never holds anything back.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memos_llm.bench.guard.results import Figure, Point
from memos_llm.core.policy import Limits
from memos_llm.guard.sequences import QUIET, Parameters, mean_run_length, parameters

FALSE_RATES = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04)
FAULT_RATES = (0.07, 0.10, 0.20, 0.50, 1.00)
REQUESTS = 10_000
SECTION = "Sequential rule, exact"
AT_MOST = {1.0: 6, 0.5: 15, 0.2: 130}
"""Failing part → requests until it is seen: all of them at 100 %, else the median."""


def step(rate: float, parameters: Parameters) -> NDArray[np.float64]:
    """The chain: from each sum to each, and to `h`, which stands for tripped."""
    u, h = parameters
    matrix = np.zeros((h + 1, h + 1))
    for s in range(h):
        matrix[s, max(s - 1, 0)] += 1 - rate
        matrix[s, min(s + u, h)] += rate
    matrix[h, h] = 1
    return matrix


def tripped_within(requests: int, rate: float, parameters: Parameters) -> float:
    """The probability of a trip within so many requests."""
    start = np.zeros(parameters.h + 1)
    start[0] = 1
    return float((start @ np.linalg.matrix_power(step(rate, parameters), requests))[-1])


def detected_by(part: float, rate: float, parameters: Parameters, most: int = 10**9) -> int | None:
    """The least number of requests by which so large a part of all runs has tripped."""
    if tripped_within(most, rate, parameters) < part:
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tripped_within(middle, rate, parameters) >= part else (middle, high)
    return high


def figures(limits: Limits) -> Iterator[Figure]:
    """`limits.error_rate` must be set."""
    assert limits.error_rate is not None
    found = parameters(limits.error_rate)
    yield Figure(section=SECTION, case="a failure adds u", name="u", value=found.u, unit="")
    yield Figure(section=SECTION, case="the sum that trips", name="H", value=found.h, unit="")
    for rate in (0.01, 0.02, 0.03, 0.04):
        yield Figure(
            section=SECTION,
            case=f"{rate * 100:g} % failing",
            name="mean run between false trips",
            value=mean_run_length(rate, found),
            unit="requests",
            at_least=QUIET if rate == 0.03 else None,
        )
    for rate in FALSE_RATES:
        name = f"false trip within {REQUESTS:,} requests"
        value = tripped_within(REQUESTS, rate, found)
        yield Figure(section=SECTION, case=f"{rate * 100:g} % failing", name=name, value=value, unit="part")
    for rate in FAULT_RATES:
        for part, name in ((0.5, "seen by half of all runs"), (0.95, "seen by 95 %"), (1 - 1e-9, "seen by all")):
            yield Figure(
                section=SECTION,
                case=f"{rate * 100:g} % failing",
                name=name,
                value=detected_by(part, rate, found),
                unit="requests",
                at_most=AT_MOST.get(rate) if (part == 0.5) == (rate < 1) and part != 0.95 else None,
            )
    yield from _timeouts(limits)


def _timeouts(limits: Limits) -> Iterator[Figure]:
    """Of K in a row, each by itself: (1 − p^K) / (p^K (1 − p)), as for any run of heads (Feller, vol. 1, XIII.7)."""
    k = limits.consecutive_timeouts
    if k is None:
        return
    for rate in (0.001, 0.005, 0.01, 0.02):
        yield Figure(
            section=SECTION,
            case=f"{rate * 100:g} % timing out",
            name=f"mean run between {k} time-outs in a row",
            value=(1 - rate**k) / (rate**k * (1 - rate)),
            unit="requests",
        )


def points(limits: Limits) -> Iterator[Point]:
    assert limits.error_rate is not None
    found = parameters(limits.error_rate)
    for rate in [rate / 1000 for rate in range(5, 101)]:
        run = mean_run_length(rate, found)
        yield Point(picture="run_length", line="sequential rule, exact", x=rate, y=run)
    for rate in [rate / 1000 for rate in range(5, 41)]:
        part = tripped_within(REQUESTS, rate, found)
        yield Point(picture="false_rollbacks", line="sequential rule alone, exact", x=rate, y=part)
