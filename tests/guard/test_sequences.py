"""Runs of failures: what they are set to, how long they stay silent, and that one stall is one event."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_llm.guard.sequences import (
    AT_RATE,
    LATENCY_TRIP,
    QUIET,
    ErrorRun,
    LatencyRun,
    Parameters,
    TimeoutRun,
    mean_run_length,
    parameters,
)

DEFAULT = parameters(0.05)


def fail_by_itself(run: ErrorRun, at: float) -> bool:
    """A request that starts, and fails before the next one does."""
    return run.fail(run.start(), at, at + 0.5)


def stalled(run: ErrorRun, in_flight: int) -> None:
    """All of them started before any of them failed."""
    charged = [run.start() for _ in range(in_flight)]
    for place, charge in enumerate(charged):
        run.fail(charge, 0.0, 3.0 + place / 1000)


# What it is set to


@pytest.mark.parametrize(("limit", "u"), [(0.05, 4), (0.01, 20), (0.1, 2), (0.02, 10), (0.3, 1), (1.0, 1)])
def test_a_failure_adds_a_fifth_over_the_limit(limit: float, u: int) -> None:
    assert parameters(limit).u == u


def test_the_default_limit_trips_at_six_failures_in_a_row() -> None:
    assert parameters(0.05) == Parameters(u=4, h=24)


@pytest.mark.parametrize("limit", [0.0, 0.0001, 0.001, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25])
def test_the_sum_that_trips_is_the_least_that_stays_silent(limit: float) -> None:
    u, h = parameters(limit)
    rate = AT_RATE * max(limit, 0.0001)
    assert h % u == 0
    assert 6 * u <= h <= 12 * u
    assert mean_run_length(rate, Parameters(u, h)) >= QUIET
    assert h == 6 * u or mean_run_length(rate, Parameters(u, h - u)) < QUIET


@pytest.mark.parametrize(("rate", "requests"), [(0.01, 3e11), (0.02, 2.4e9), (0.03, 1.3e8), (0.04, 1.55e7)])
def test_how_long_it_stays_silent_at_the_default_limit(rate: float, requests: float) -> None:
    assert mean_run_length(rate, DEFAULT) == pytest.approx(requests, rel=0.01)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 0.7, 0.99, 1.0])
def test_the_mean_run_length_is_that_of_the_run_itself(rate: float) -> None:
    random, lengths = Random(7), []
    for _ in range(400 if rate > 0.05 else 4):
        run, n = ErrorRun(Parameters(2, 6)), 0
        while True:
            n += 1
            charge = run.start()
            if random.random() < rate and run.fail(charge, n, n + 0.5):
                break
        lengths.append(n)
    mean = mean_run_length(rate, Parameters(2, 6))
    assert sum(lengths) / len(lengths) == pytest.approx(mean, rel=0.2 if rate > 0.05 else 1.5)


def test_a_rate_of_nothing_never_trips() -> None:
    assert mean_run_length(0.0, DEFAULT) == float("inf")


# Errors


def test_six_failures_in_a_row_trip() -> None:
    run = ErrorRun(DEFAULT)
    assert [fail_by_itself(run, place) for place in range(6)] == [False] * 5 + [True]


def test_good_requests_take_off_what_failures_added() -> None:
    run = ErrorRun(DEFAULT)
    fail_by_itself(run, 0.0)
    assert (run.s, run.since) == (4, 0.5)
    for _ in range(4):
        run.start()
    assert (run.s, run.since) == (0, None)


def test_fifty_that_fail_at_once_do_not_trip() -> None:
    run = ErrorRun(DEFAULT)
    stalled(run, 50)
    assert run.s >= DEFAULT.h
    assert not run.tripped


def test_after_a_stall_one_request_that_fails_anyway_does_not_trip() -> None:
    run = ErrorRun(DEFAULT)
    stalled(run, 50)
    assert not fail_by_itself(run, 4.0)


def test_after_a_stall_that_goes_on_the_next_failures_trip() -> None:
    run = ErrorRun(DEFAULT)
    stalled(run, 50)
    tripped = [fail_by_itself(run, 4.0 + place) for place in range(6)]
    assert tripped.index(True) == 4, "the stall is the first of six"


def test_after_a_stall_a_request_that_waits_for_content_trips() -> None:
    run = ErrorRun(DEFAULT)
    stalled(run, 50)
    assert not run.waits(started_at=2.0), "it is of the same stall"
    assert run.waits(started_at=3.5)


def test_nothing_that_waits_trips_a_run_at_rest() -> None:
    assert not ErrorRun(DEFAULT).waits(started_at=3.5)


def test_a_request_that_is_taken_back_was_never_there() -> None:
    run = ErrorRun(DEFAULT)
    fail_by_itself(run, 0.0)
    charge = run.start()
    run.withdraw(charge)
    assert run.s == run.fresh == 4


def test_a_new_epoch_begins_at_rest() -> None:
    run = ErrorRun(DEFAULT)
    for place in range(5):
        fail_by_itself(run, place)
    run.reset()
    assert (run.s, run.fresh, run.since) == (0, 0, None)
    assert not fail_by_itself(run, 9.0)


@given(st.lists(st.sampled_from(["good", "bad", "open", "void", "late"]), max_size=200))
def test_whatever_comes_in_whatever_order_the_sums_stay_within_their_bounds(story: list[str]) -> None:
    run, flying = ErrorRun(DEFAULT), []
    for at, what in enumerate(story):
        if what in ("good", "bad", "open"):
            charge = run.start()
            if what == "bad":
                run.fail(charge, at, at + 0.5)
            elif what == "open":
                flying.append((charge, float(at)))
        elif flying:
            charge, started_at = flying.pop(0)
            if what == "void":
                run.withdraw(charge)
            else:
                run.fail(charge, started_at, at)
        assert 0 <= run.fresh <= run.s <= DEFAULT.h + DEFAULT.u
        assert (run.since is None) == (run.s == 0)


@given(st.lists(st.booleans(), max_size=300))
def test_one_after_the_other_it_is_the_plain_sum(failing: list[bool]) -> None:
    """S − 1 for a good one, but not below 0; S + u for a bad one: the chain that the figures are computed of."""
    run, plain = ErrorRun(DEFAULT), 0
    for at, bad in enumerate(failing):
        charge = run.start()
        if bad:
            plain += DEFAULT.u
            assert run.fail(charge, at, at + 0.5) == (plain >= DEFAULT.h)
        else:
            plain = max(plain - 1, 0)
        if plain >= DEFAULT.h:
            return
        assert run.s == run.fresh == plain


# Slowness


def test_four_seconds_of_slow_answers_trip() -> None:
    run = LatencyRun()
    assert [run.second(4, 0) for _ in range(4)] == [False, False, False, True]


def test_many_slow_answers_in_a_second_are_four_looks() -> None:
    run = LatencyRun()
    assert not run.second(1000, 0)
    assert run.s == 4


def test_quick_answers_weigh_as_much_as_slow_ones() -> None:
    run = LatencyRun()
    run.second(4, 0)
    run.second(50, 50)
    assert run.s == 4
    run.second(0, 1000)
    assert run.s == 0


def test_a_burst_in_which_most_are_quick_never_trips() -> None:
    run = LatencyRun()
    assert not any(run.second(30, 70) for _ in range(1000))


def test_one_slow_answer_a_minute_trips_too_in_the_end() -> None:
    run = LatencyRun()
    told = [run.second(minute == 0, 0) for _ in range(LATENCY_TRIP) for minute in range(60)]
    assert told.index(True) == 60 * (LATENCY_TRIP - 1)


def test_slowness_of_another_epoch_is_forgotten() -> None:
    run = LatencyRun()
    run.second(4, 0)
    run.reset()
    assert run.s == 0
    assert not run.tripped


# Time-outs


def test_three_time_outs_one_after_the_other_trip() -> None:
    run = TimeoutRun(3)
    assert [run.timeout(at, at + 10.0) for at in (0.0, 11.0, 22.0)] == [False, False, True]


def test_three_time_outs_at_once_do_not() -> None:
    run = TimeoutRun(3)
    assert not any(run.timeout(0.0, 10.0 + place) for place in range(3))
    assert not run.waits(started_at=9.0)
    assert run.waits(started_at=11.0)


def test_content_ends_a_streak() -> None:
    run = TimeoutRun(3)
    run.timeout(0.0, 10.0)
    run.timeout(11.0, 21.0)
    run.content()
    assert (run.streak, run.since) == (0, None)
    assert not run.timeout(22.0, 32.0)


def test_what_an_sdk_sends_again_by_itself_makes_no_streak_longer() -> None:
    run = TimeoutRun(3)
    run.timeout(0.0, 10.0)
    assert not any(run.timeout(at, at + 10.0, retry=1) for at in (11.0, 22.0, 33.0))
    assert run.streak == 1


def test_where_one_is_too_many_one_is_enough() -> None:
    assert TimeoutRun(1).timeout(0.0, 10.0)
