"""The rules over windows: what each says, and how sure it must be for that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memos_llm.core.policy import Limits
from memos_llm.core.verdicts import Evaluation, Sum, Trigger, Verdict
from memos_llm.guard.runs import Trip
from memos_llm.guard.triggers import Counted, as_bad, cluster_lower, error_rate, latency, tripped

VLLM = Sum(provider="vllm")
DEFAULT = Limits()
PLAIN = replace(DEFAULT, confidence=0.0)


def errors(n: int, k: int, limits: Limits = DEFAULT, ended: int | None = None) -> Evaluation:
    return error_rate(VLLM, limits, Counted(n=n, ended=n if ended is None else ended, failures=k), 7.0)


def slowness(
    timed: int, slow: int, blocks: list[tuple[int, int]], limits: Limits = DEFAULT, resolved: int | None = None
) -> Evaluation:
    seen = timed if resolved is None else resolved
    return latency(VLLM, limits, Counted(n=timed, ended=seen, timed=timed, resolved=seen, slow=slow), blocks, 7.0)


def said(one: Evaluation) -> tuple[str, str]:
    return one.verdict, one.reason


# Errors


@pytest.mark.parametrize(
    ("n", "k", "expected"),
    [
        (0, 0, (Verdict.INCONCLUSIVE, "no-data")),
        (49, 49, (Verdict.INCONCLUSIVE, "too-few")),
        (50, 8, (Verdict.INCONCLUSIVE, "unsure-over")),
        (50, 9, (Verdict.FAIL, "over-limit")),
        (50, 3, (Verdict.INCONCLUSIVE, "unsure")),
        (50, 2, (Verdict.PASS, "within")),
        (3000, 189, (Verdict.FAIL, "over-limit")),
        (3000, 188, (Verdict.INCONCLUSIVE, "unsure-over")),
        (3000, 150, (Verdict.PASS, "within")),
    ],
)
def test_it_fails_only_when_sure(n: int, k: int, expected: tuple[str, str]) -> None:
    assert said(errors(n, k)) == expected


def test_the_bound_that_decides_is_shown() -> None:
    sure, unsure = errors(50, 9), errors(50, 8)
    assert sure.low is not None
    assert unsure.low is not None
    assert unsure.low <= 0.05 < sure.low
    assert (sure.n, sure.k, sure.estimate, sure.limit, sure.since) == (50, 9, 0.18, 0.05, 7.0)
    assert "9 of 50 requests failed" in sure.text
    assert "5%" in sure.text


def test_without_confidence_the_plain_threshold_counts() -> None:
    assert said(errors(100, 6, PLAIN)) == (Verdict.FAIL, "over-limit")
    assert said(errors(100, 5, PLAIN)) == (Verdict.PASS, "within")


def test_what_is_in_flight_is_good_for_fail_and_bad_for_pass() -> None:
    assert said(errors(3000, 149, ended=2999)) == (Verdict.PASS, "within")
    assert said(errors(3000, 149, ended=2998)) == (Verdict.INCONCLUSIVE, "unresolved")
    assert said(errors(3000, 188, ended=188)) == (Verdict.INCONCLUSIVE, "unsure-over")
    assert said(errors(3000, 189, ended=189)) == (Verdict.FAIL, "over-limit")


def test_it_says_how_many_requests_are_missing() -> None:
    assert errors(0, 0).missing == 50
    assert errors(20, 0).missing == 30
    unsure = errors(50, 8)
    assert unsure.missing > 0
    more = 50 + unsure.missing
    assert said(errors(2 * more, round(0.16 * 2 * more))) == (Verdict.FAIL, "over-limit")
    assert errors(3000, 150).missing == errors(3000, 200).missing == 0


def test_a_limit_of_nothing_is_broken_by_one_failure() -> None:
    assert said(errors(50, 1, replace(DEFAULT, error_rate=0.0)))[0] == Verdict.FAIL


def test_a_trigger_that_is_switched_off_never_fails() -> None:
    off = replace(DEFAULT, error_rate=None, latency_p95_s=None)
    assert said(errors(100, 100, off)) == said(slowness(100, 100, [(10, 10)] * 10, off)) == (Verdict.PASS, "off")


@given(st.integers(1, 5000), st.data())
def test_more_failures_never_make_it_better(n: int, data: st.DataObject) -> None:
    order = [Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL]
    k = data.draw(st.integers(0, n - 1))
    assert order.index(errors(n, k).verdict) <= order.index(errors(n, k + 1).verdict)


@given(st.integers(50, 3000), st.data())
def test_no_order_of_ends_makes_a_verdict_that_all_ends_would_not(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    ended = data.draw(st.integers(0, n))
    seen = data.draw(st.integers(max(0, k - (n - ended)), min(k, ended)))
    early, late = errors(n, seen, ended=ended), errors(n, k)
    if early.verdict in (Verdict.PASS, Verdict.FAIL):
        assert early.verdict == late.verdict


# Latency


def test_slowness_all_over_the_window_fails() -> None:
    assert said(slowness(300, 60, [(30, 6)] * 10)) == (Verdict.FAIL, "over-limit")


def test_one_burst_of_slowness_does_not() -> None:
    assert said(slowness(300, 60, [(30, 0)] * 8 + [(30, 30)] * 2)) == (Verdict.INCONCLUSIVE, "unsure-over")


@pytest.mark.parametrize(("blocks", "verdict"), [(5, Verdict.INCONCLUSIVE), (6, Verdict.FAIL)])
def test_slowness_must_be_seen_in_six_blocks(blocks: int, verdict: Verdict) -> None:
    assert slowness(50 * blocks, 50 * blocks, [(50, 50)] * blocks + [(0, 0)] * 5).verdict == verdict


def test_within_the_limit_it_passes_once_all_is_resolved() -> None:
    blocks = [(30, 1)] * 10
    assert said(slowness(300, 10, blocks)) == (Verdict.PASS, "within")
    assert said(slowness(300, 10, blocks, resolved=294)) == (Verdict.INCONCLUSIVE, "unresolved")


def test_only_what_is_timed_counts() -> None:
    counted = Counted(n=500, ended=500, timed=20, resolved=20, slow=20)
    one = latency(VLLM, DEFAULT, counted, [(2, 2)] * 10, 7.0)
    assert (said(one), one.missing) == ((Verdict.INCONCLUSIVE, "too-few"), 30)


def test_without_confidence_neither_doubt_nor_bursts_count() -> None:
    assert said(slowness(100, 6, [(100, 6)], PLAIN)) == (Verdict.FAIL, "over-limit")


def test_blocks_that_differ_are_less_sure_than_blocks_that_agree() -> None:
    assert cluster_lower([(30, 6)] * 10, 0.999) == pytest.approx(0.2)
    assert cluster_lower([(30, 0), (30, 12)] * 5, 0.999) < 0.05
    assert cluster_lower([(30, 6)] * 5, 0.999) == 0.0


# The baseline


def test_a_baseline_that_keeps_its_limit_is_never_as_bad() -> None:
    assert not as_bad(0.05, candidate=(8, 100), baseline=(5, 100))


def test_a_baseline_that_is_over_too_is_as_bad_unless_the_candidate_is_surely_worse() -> None:
    assert as_bad(0.05, candidate=(10, 100), baseline=(10, 100))
    assert as_bad(0.05, candidate=(12, 100), baseline=(10, 100))
    assert not as_bad(0.05, candidate=(60, 100), baseline=(10, 100))


def test_one_bad_request_of_few_makes_no_baseline_as_bad() -> None:
    assert not as_bad(0.05, candidate=(6, 6), baseline=(1, 1))
    assert not as_bad(0.05, candidate=(60, 100), baseline=(1, 8))
    assert as_bad(0.05, candidate=(6, 6), baseline=(2, 2))


def test_of_an_arm_without_requests_nothing_is_known() -> None:
    assert not as_bad(0.05, candidate=(6, 6), baseline=(0, 0))
    assert not as_bad(0.05, candidate=(0, 0), baseline=(6, 6))


# Runs that tripped


def trip(trigger: Trigger, n: int, k: int) -> Trip:
    return Trip(
        sum=VLLM, trigger=trigger, limits=DEFAULT, n=n, k=k, since=7.0, at=9.0, requests=("a", "b"), epochs={"*": 1}
    )


def test_a_run_that_tripped_says_what_it_saw() -> None:
    one = tripped(trip(Trigger.ERROR_RUN, 9, 6))
    assert (one.verdict, one.reason, one.n, one.k, one.limit) == (Verdict.FAIL, "over-limit", 9, 6, 0.05)
    assert (one.since, one.requests) == (7.0, ("a", "b"))
    assert "6 of 9" in one.text


def test_time_outs_in_a_row_have_no_rate() -> None:
    one = tripped(trip(Trigger.TIMEOUTS, 3, 3))
    assert (one.limit, one.estimate) == (3, None)
    assert "3 time-outs in a row" in one.text


def test_slow_answers_in_a_row_name_the_limit() -> None:
    one = tripped(trip(Trigger.LATENCY_RUN, 20, 18))
    assert "18 of 20" in one.text
    assert "5 s (e2e)" in one.text
