"""The breaker: its table, its thresholds, and what must hold whatever happens."""

from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_llm.core.outcome import OUTCOMES, Kind
from memos_llm.providers.breaker import TRANSITIONS, VERDICTS, Breaker, BreakerLimits, Signal, State, Window

LIMITS = BreakerLimits(jitter=0.0)


def breaker(limits: BreakerLimits = LIMITS, seed: int = 0) -> Breaker:
    return Breaker(limits, Random(seed))


def opened(at: float = 0.0) -> Breaker:
    it = breaker()
    for _ in range(LIMITS.consecutive):
        it.record(False, at, at)
    assert it.state is State.OPEN
    return it


def test_every_kind_has_a_verdict() -> None:
    assert VERDICTS.keys() == OUTCOMES.keys() == set(Kind)


def test_what_counts_against_the_endpoint() -> None:
    hard = {kind for kind, verdict in VERDICTS.items() if verdict is False}
    assert hard == {Kind.CONNECT, Kind.TIMEOUT, Kind.SERVER, Kind.TRUNCATED, Kind.MALFORMED}
    assert {kind for kind, verdict in VERDICTS.items() if verdict} == {Kind.OK}


def test_the_machine_is_the_table() -> None:
    drawn = {(before, signal): after for (before, signal), after in TRANSITIONS.items()}
    for before, signal in product(State, Signal):
        it = breaker()
        it.state = before
        it._signal(signal, 1.0)
        assert it.state is drawn.get((before, signal), before)


def test_every_state_can_be_reached_and_left() -> None:
    assert {before for before, _ in TRANSITIONS} == set(TRANSITIONS.values()) == set(State)


def test_consecutive_failures_open_it() -> None:
    it = breaker()
    for _ in range(4):
        it.record(False, 0.0, 0.0)
    assert it.admits(0.0)
    it.record(False, 0.0, 0.0)
    assert it.state is State.OPEN
    assert not it.admits(0.0)


def test_a_success_ends_the_streak() -> None:
    it = breaker()
    for _ in range(4):
        it.record(False, 0.0, 0.0)
    it.record(True, 0.0, 0.0)
    for _ in range(4):
        it.record(False, 0.0, 0.0)
    assert it.state is State.CLOSED


def test_a_failure_rate_opens_it_only_with_enough_samples() -> None:
    it = breaker()
    for n in range(1, 20):
        it.record(n % 2 == 1, 0.0, 0.0)
        assert it.state is State.CLOSED, n
    it.record(False, 0.0, 0.0)
    assert it.state is State.OPEN


def test_a_failure_rate_is_of_the_window_only() -> None:
    it = breaker()
    for n in range(19):
        it.record(n % 2 == 1, 0.0, 0.0)
    it.record(False, 40.0, 40.0)
    assert it.state is State.CLOSED


def test_it_half_opens_when_its_time_is_over() -> None:
    it = opened()
    assert not it.admits(4.999)
    assert it.wait_s(1.0) == pytest.approx(4.0)
    assert it.admits(5.0)
    assert it.state is State.HALF_OPEN


def test_trials_are_capped_and_grow_with_success() -> None:
    it = opened()
    allowed = []
    for done in range(3):
        count = 0
        while it.admits(5.0):
            assert it.begin()
            count += 1
        allowed.append(count)
        for _ in range(count):
            it.end()
        if done < 2:
            it.record(True, 6.0, 5.5)
    assert allowed == [1, 2, 3]


def test_successful_trials_close_it() -> None:
    it = opened()
    assert it.admits(5.0)
    for _ in range(3):
        assert it.state is State.HALF_OPEN
        it.record(True, 6.0, 5.0)
    assert it.state is State.CLOSED
    assert not it.begin()


def test_a_failed_trial_opens_it_for_twice_as_long_up_to_a_minute() -> None:
    it = opened()
    now, waits = 0.0, []
    for _ in range(6):
        waits.append(it.wait_s(now))
        now += waits[-1]
        assert it.admits(now)
        it.record(False, now + 0.1, now)
        now += 0.1
    assert waits == pytest.approx([5.0, 10.0, 20.0, 40.0, 60.0, 60.0])


def test_closing_forgets_how_long_it_was_open() -> None:
    it = opened()
    assert it.admits(5.0)
    it.record(False, 5.0, 5.0)
    assert it.admits(15.0)
    for _ in range(3):
        it.record(True, 15.0, 15.0)
    for _ in range(5):
        it.record(False, 16.0, 16.0)
    assert it.wait_s(16.0) == pytest.approx(5.0)


def test_attempts_from_before_the_opening_say_nothing() -> None:
    it = opened(at=10.0)
    assert it.admits(15.0)
    for _ in range(5):
        it.record(True, 15.0, 9.0)
    assert it.state is State.HALF_OPEN
    it.record(False, 15.0, 9.0)
    assert it.state is State.HALF_OPEN


def test_many_breakers_do_not_come_back_at_once() -> None:
    waits = set()
    for seed in range(20):
        it = breaker(BreakerLimits(jitter=0.1), seed)
        for _ in range(5):
            it.record(False, 0.0, 0.0)
        waits.add(it.wait_s(0.0))
    assert len(waits) == 20
    assert all(4.5 <= wait <= 5.5 for wait in waits)


steps = st.lists(st.tuples(st.booleans(), st.floats(0.0, 8.0), st.booleans()), max_size=120)


@given(steps, st.integers(0, 5))
def test_whatever_happens_trials_are_bounded_and_it_comes_back(
    steps: list[tuple[bool, float, bool]], seed: int
) -> None:
    it, now, running = breaker(BreakerLimits(), seed), 0.0, 0
    for good, after_s, stays in steps:
        now += after_s
        if not it.admits(now):
            assert it.state is not State.CLOSED
            it.record(good, now, now - after_s)
            continue
        assert it.state is not State.OPEN
        if it.begin():
            running += 1
            assert it.trials == running <= LIMITS.trials
            if not stays:
                running -= 1
                it.end()
        it.record(good, now, now)
    while running:
        running -= 1
        it.end()
    assert it.admits(now + 67.0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 20.0)), max_size=100), st.integers(1, 30))
def test_the_window_agrees_with_a_recount(samples: list[tuple[bool, float]], span_s: int) -> None:
    window, now, seen = Window(span_s), 100.0, []
    for good, after_s in samples:
        now += after_s
        window.add(good, now)
        seen.append((good, int(now)))
        kept = [was_good for was_good, second in seen if second > int(now) - span_s]
        assert (window.good, window.ill) == (sum(kept), len(kept) - sum(kept))
