"""How sure k bad ones of n make us: exact binomial tails and bounds, in logarithms, so that small ones are exact. Pure.

The upper tail is the regularised incomplete beta function (DLMF 8.17.5), here by its continued fraction (8.17.22),
which takes some √n steps. Clopper and Pearson (1934) for one rate; Newcombe (1998), method 10, for a difference.
"""

from functools import lru_cache
from math import exp, inf, lgamma, log, log1p, sqrt
from statistics import NormalDist

_TINY, _EPS = 1e-300, 1e-15
_CLOSE = 1e-12  # of a bound: it converges quadratically, so that the next step would change nothing
_STEPS = 10_000  # of the continued fraction: enough for n beyond 10^7
_HALVINGS = 60  # of an interval no longer than 1: to the last bit, nearly


def log_at_least(k: int, n: int, rate: float) -> float:
    """log P(X ≥ k) for X bad ones of n, each bad with probability `rate` (0…1)."""
    if k <= 0:
        return 0.0
    if k > n or rate <= 0:
        return -inf
    if rate >= 1:
        return 0.0
    return _log_beta(k, n - k + 1, rate)


def lower(k: int, n: int, confidence: float) -> float:
    """The one-sided Clopper–Pearson lower bound of the rate that k bad ones of n come from. `confidence`: 0…1, open."""
    if k <= 0 or n <= 0:
        return 0.0
    return _root(k, n, log1p(-confidence), wilson(k, n, confidence)[0])


def upper(k: int, n: int, confidence: float) -> float:
    """The one-sided Clopper–Pearson upper bound."""
    return 1.0 if k >= n else 1.0 - lower(n - k, n, confidence)


def surely_over(k: int, n: int, limit: float, confidence: float) -> bool:
    """`lower(k, n, confidence) > limit`, at the cost of one tail; with confidence 0, k / n > limit."""
    if k <= limit * n:
        return False
    return confidence <= 0 or log_at_least(k, n, limit) < log1p(-confidence)


def difference_lower(one: tuple[int, int], other: tuple[int, int], confidence: float) -> float:
    """The one-sided lower bound of (rate of `one`) − (rate of `other`), each (k, n) with n > 0."""
    (one_low, one_rate, _), (_, other_rate, other_high) = wilson(*one, confidence), wilson(*other, confidence)
    return one_rate - other_rate - sqrt((one_rate - one_low) ** 2 + (other_high - other_rate) ** 2)


def wilson(k: int, n: int, confidence: float) -> tuple[float, float, float]:
    """One-sided lower bound, estimate, one-sided upper bound, by Wilson (1927). n > 0."""
    z, rate = normal(confidence), k / n
    middle, reach = rate + z * z / (2 * n), z * sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    whole = 1 + z * z / n
    return max(0.0, (middle - reach) / whole), rate, min(1.0, (middle + reach) / whole)


@lru_cache(256)
def normal(confidence: float) -> float:
    """The normal distribution's quantile. `confidence`: 0…1, open."""
    return NormalDist().inv_cdf(confidence)


@lru_cache(1024)
def student(confidence: float, freedom: int) -> float:
    """Student's quantile with that many degrees of freedom, above the median: `confidence` 0.5…1, open."""
    tail = log(2) + log1p(-confidence)  # P(|T| > t) = I_x(freedom / 2, 1 / 2) with x = freedom / (freedom + t²)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _log_beta(freedom / 2, 0.5, middle) < tail else (low, middle)
    return sqrt(freedom * (1 - high) / high)


def _root(k: int, n: int, tail: float, rate: float) -> float:
    """The rate at which log P(X ≥ k), which grows with it, is `tail`; looked for from `rate` on."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        found = log_at_least(k, n, rate)
        if found < tail:
            low = rate
        else:
            high = rate
        step = _newton(k, n, rate, found, tail)
        before, rate = rate, step if low < step < high else (low + high) / 2
        if abs(rate - before) <= _CLOSE * rate:
            break
    return rate


def _newton(k: int, n: int, rate: float, found: float, tail: float) -> float:
    """A step in logarithms of both: the curve is nearly straight there."""
    if not 0 < rate < 1:
        return -1.0
    log_density = _log_front(k, n - k + 1, rate) + log(k) - log(rate) - log1p(-rate)
    slope = exp(min(700.0, log_density + log(rate) - found))
    return rate * exp(max(-50.0, min(50.0, (tail - found) / slope))) if slope > 0 else -1.0


def _log_front(a: float, b: float, x: float) -> float:
    return lgamma(a + b) - lgamma(a + 1) - lgamma(b) + a * log(x) + b * log1p(-x)


def _log_beta(a: float, b: float, x: float) -> float:
    """log I_x(a, b), 0 ≤ x ≤ 1. The fraction converges fast only on this side of the mean."""
    if x <= 0 or x >= 1:
        return -inf if x <= 0 else 0.0
    if x <= (a + 1) / (a + b + 2):
        return _log_front(a, b, x) + log(_fraction(a, b, x))
    other = _log_front(b, a, 1 - x) + log(_fraction(b, a, 1 - x))
    return log1p(-exp(other)) if other < 0 else -inf


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1.0 / _apart(1.0 - (a + b) * x / (a + 1))
    value = d
    for step in range(1, _STEPS):
        twice = a + 2 * step
        for part in (
            step * (b - step) * x / ((twice - 1) * twice),
            -(a + step) * (a + b + step) * x / (twice * (twice + 1)),
        ):
            d, c = 1.0 / _apart(1.0 + part * d), _apart(1.0 + part / c)
            value *= d * c
        if abs(d * c - 1.0) < _EPS:
            break
    return value


def _apart(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
