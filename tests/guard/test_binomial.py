"""Bounds and tails against scipy's, and what they must be at the edges."""

from math import exp, inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from memos_llm.guard.binomial import (
    difference_lower,
    log_at_least,
    lower,
    normal,
    student,
    surely_over,
    upper,
    wilson,
)

SURE = st.sampled_from([0.5, 0.9, 0.95, 0.999, 0.999999])


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 50_000))
    return draw(st.integers(0, n)), n


@given(counts(), SURE)
def test_bounds_are_those_of_clopper_and_pearson(kn: tuple[int, int], confidence: float) -> None:
    k, n = kn
    low = stats.beta.ppf(1 - confidence, k, n - k + 1) if k else 0.0
    high = stats.beta.ppf(confidence, k + 1, n - k) if k < n else 1.0
    assert lower(k, n, confidence) == pytest.approx(low, rel=1e-6, abs=1e-12)
    assert upper(k, n, confidence) == pytest.approx(high, rel=1e-6, abs=1e-12)


@given(counts(), st.floats(0.0001, 0.9999))
def test_tails_are_exact_however_small(kn: tuple[int, int], rate: float) -> None:
    k, n = kn
    expected = stats.binom.logsf(k - 1, n, rate)
    if expected > -600:  # scipy's own tail is 0 beyond
        assert log_at_least(k, n, rate) == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_tails_at_the_edges() -> None:
    assert log_at_least(0, 10, 0.5) == 0.0
    assert log_at_least(11, 10, 0.5) == -inf
    assert log_at_least(1, 10, 0.0) == -inf
    assert log_at_least(10, 10, 1.0) == 0.0
    assert exp(log_at_least(10, 10, 0.5)) == pytest.approx(0.5**10)
    assert log_at_least(10_000, 10_000, 0.05) == pytest.approx(10_000 * log(0.05))


@given(counts(), SURE, st.sampled_from([0.01, 0.05, 0.1, 0.3]))
def test_surely_over_is_what_the_bound_says(kn: tuple[int, int], confidence: float, limit: float) -> None:
    k, n = kn
    low = lower(k, n, confidence)
    if abs(low - limit) > 1e-9 and k > limit * n:
        assert surely_over(k, n, limit, confidence) == (low > limit)


def test_without_confidence_the_plain_threshold_counts() -> None:
    assert surely_over(6, 100, 0.05, 0.0)
    assert not surely_over(5, 100, 0.05, 0.0)


def test_any_failure_is_over_a_limit_of_nothing() -> None:
    assert surely_over(1, 1000, 0.0, 0.999)
    assert not surely_over(0, 1000, 0.0, 0.999)


@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.999, 0.99999])
@pytest.mark.parametrize("freedom", [1, 2, 5, 29, 1000])
def test_quantiles(confidence: float, freedom: int) -> None:
    assert student(confidence, freedom) == pytest.approx(stats.t.ppf(confidence, freedom), rel=1e-6)
    assert normal(confidence) == pytest.approx(stats.norm.ppf(confidence))


def test_the_difference_of_two_rates_is_newcombes() -> None:
    """Newcombe (1998), table II, example (a), method 10: 56/70 − 48/80 is 0.0524 to 0.3339 at 95 %, two-sided."""
    assert difference_lower((56, 70), (48, 80), 0.975) == pytest.approx(0.0524, abs=5e-5)
    assert -difference_lower((48, 80), (56, 70), 0.975) == pytest.approx(0.3339, abs=5e-5)


def test_wilsons_bounds_stay_within_0_and_1() -> None:
    assert wilson(0, 10, 0.95)[0] == 0.0
    assert wilson(10, 10, 0.95)[2] == 1.0
