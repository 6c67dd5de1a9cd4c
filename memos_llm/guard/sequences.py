"""Failures in a row, nearly: small integer machines that see at once what the windows see late. Pure; one per sum and
process; times are of one monotonic clock, in seconds.

`ErrorRun` is a CUSUM: a failure adds u, any other request takes one off, and at H it trips. u and H follow from the
limit alone, so that it stays silent for 10^8 requests at 0.6 of it (exact, by its Markov chain).

One stall that fails all that is in flight is one event: `ErrorRun` and `TimeoutRun` trip only once a failing request
*started* after the first failure of the run was recorded, or such a request waits for content for `WAITS_S`.
"""

from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import NamedTuple

WAITS_S = 5.0  # in flight for so long without content: as good as failed, where the stall rule asks
QUIET, AT_RATE = 1e8, 0.6  # the mean requests between false trips, at this part of the limit
STEP = 0.2  # over the limit: what a failure adds
LEAST, MOST = 6, 12  # failures in a row that trip
LEAST_LIMIT = 1e-4
FARTHEST = 256  # limits beyond 0.25 need more than MOST, and those beyond 0.8 more than is of use

LATENCY_TRIP = 16
LATENCY_LOOKS = 4  # a second: however many answers, they are slow together


class Parameters(NamedTuple):
    """What a failure adds, and the sum that trips."""

    u: int
    h: int


@lru_cache(256)
def parameters(limit: float) -> Parameters:
    """Of the limit on the error rate, 0…1 (less than 0.01 % is taken for that). Computed once, within 50 ms."""
    limit = max(limit, LEAST_LIMIT)
    u = max(1, ceil(round(STEP / limit, 9)))
    found = Parameters(u, LEAST * u)
    for times in range(LEAST, FARTHEST + 1 if u == 1 else MOST + 1):
        found = Parameters(u, times * u)
        if mean_run_length(AT_RATE * limit, found) >= QUIET:
            break
    return found


def mean_run_length(rate: float, parameters: Parameters) -> float:
    """The mean number of requests until `ErrorRun` trips, from rest, if each fails by itself with probability `rate`.

    Let E(i) be it from sum i, and e(i) = E(i − 1) − E(i). A request leads from i to i + u, or to max(i − 1, 0), so that
    e(1) + … + e(u) = 1 / rate, and (1 − rate) e(i) = rate (e(i + 1) + … + e(i + u)) − 1, with e(i) = 0 beyond H. So
    each e(i) is a(i) e(H) − b(i), with a and b sums of what is above them, and E(0) the sum of all. Nothing cancels
    while rate · u < 1; where it would, it is computed in fractions.
    """
    u, h = parameters
    if rate <= 0:
        return float("inf")
    if rate >= 1:
        return -(-h // u)
    return float(_mean(Fraction(rate) if rate * u > 1 else rate, u, h))


def _mean(rate: float | Fraction, u: int, h: int) -> float | Fraction:
    a: list[float | Fraction] = [1]
    b: list[float | Fraction] = [0]
    last_a: float | Fraction = 1  # sums of the last u
    last_b: float | Fraction = 0
    for step in range(1, h):
        a.append(rate * last_a / (1 - rate))
        b.append((rate * last_b + 1) / (1 - rate))
        last_a += a[-1] - (a[step - u] if step >= u else 0)
        last_b += b[-1] - (b[step - u] if step >= u else 0)
    top = (1 / rate + sum(b[-u:])) / sum(a[-u:])
    return top * sum(a) - sum(b)


class ErrorRun:
    """One sum's failures.

    Failures of requests that started before the run's first failure was recorded are of the same event. `fresh` has
    them as one, and is what trips: were it enough that *one* request fails after a stall, the next one that would have
    failed anyway would do it (measured with 50 in flight and 1 % failing at any time, at once: in 4 of 10 stalls).

    Attributes:
        s: 0…h + u, of all failures.
        fresh: 0…s, the same with the first event as one failure; `parameters.h` trips.
        since: when the first failure of the present run was recorded; None at rest (s = 0).
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.s = self.fresh = 0
        self.since: float | None = None

    @property
    def tripped(self) -> bool:
        return self.fresh >= self.parameters.h

    def start(self) -> int:
        """A request has started. Returns what it took off, which `withdraw` and `fail` want to be told."""
        if not self.s:
            return 0
        self.s -= 1
        if self.fresh:
            self.fresh -= 1
        if not self.s:
            self.reset()
        return 1

    def withdraw(self, c: int) -> None:
        """It is not an observation, after all (its caller left early, or failed twice in a second)."""
        if self.s:  # otherwise the run that it was part of is over
            self.s = min(self.s + c, self.parameters.h + self.parameters.u)
            self.fresh = min(self.fresh + c, self.s)

    def fail(self, c: int, started_at: float, now: float) -> bool:
        """It failed. Returns whether the run has tripped. `now`: when that was recorded."""
        u, h = self.parameters
        if self.since is None:
            self.since = now
        self.s = min(self.s + u + c, h + u)
        self.fresh = min(self.fresh + u + c, self.s) if started_at > self.since else max(self.fresh, u + c)
        return self.tripped

    def waits(self, started_at: float) -> bool:
        """A counted request that started then is in flight without content for `WAITS_S`. Returns whether that trips
        the run: nothing is kept of it, for it may still be answered.
        """
        return self.s >= self.parameters.h and self.since is not None and started_at > self.since

    def reset(self) -> None:
        """At rest: the scope has a new epoch, or all was taken off again."""
        self.s = self.fresh = 0
        self.since = None


class LatencyRun:
    """One sum's slow answers, second by second: +1 slow, −1 fast.

    Attributes:
        s: 0…`LATENCY_TRIP`, which trips.
    """

    def __init__(self) -> None:
        self.s = 0.0

    @property
    def tripped(self) -> bool:
        return self.s >= LATENCY_TRIP

    def second(self, slow: int, fast: int) -> bool:
        """So many were found to be slow, and fast, within a second. Returns whether the run has tripped."""
        looks = slow + fast
        if looks:
            weight = min(1.0, LATENCY_LOOKS / looks)
            self.s = min(float(LATENCY_TRIP), max(0.0, self.s + weight * (slow - fast)))
        return self.tripped

    def reset(self) -> None:
        self.s = 0.0


class TimeoutRun:
    """Time-outs in a row: `k` trip.

    Attributes:
        streak: how many there have been since the last content, an SDK's own retries left out.
        since: when the first of them was recorded; None when there is none.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.streak = 0
        self.since: float | None = None
        self._again = False

    @property
    def tripped(self) -> bool:
        return self.streak >= self.k and (self._again or self.k == 1)  # of one there is no second to wait for

    def content(self) -> None:
        """A request got its first content, or was answered."""
        self.streak, self.since, self._again = 0, None, False

    def timeout(self, started_at: float, now: float, retry: int = 0) -> bool:
        """One timed out. Returns whether the streak has tripped. `retry`: how often the SDK sent it again."""
        if retry:
            return self.tripped
        if self.since is None:
            self.since = now
        self._again = self._again or started_at > self.since
        self.streak += 1
        return self.tripped

    def waits(self, started_at: float) -> bool:
        """As `ErrorRun.waits`."""
        return self.streak >= self.k and self.since is not None and started_at > self.since
