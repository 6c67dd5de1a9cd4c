"""The pool: which endpoint gets a request, which is left out, and what the bus teaches it."""

from random import Random

import pytest

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import AttemptEnded, BreakerChanged, Bus
from memos_llm.core.outcome import MODEL_NOT_FOUND, NO_FINISH, OK, Kind, Outcome
from memos_llm.core.policy import Endpoint
from memos_llm.providers.breaker import BreakerLimits
from memos_llm.providers.endpoints import BEST_EFFORT, Pool
from memos_llm.providers.ollama import canonical
from memos_llm.testing import ManualClock, Recorder

A, B, C = "http://a:1", "http://b:1", "http://c:1"
FAILED = Outcome(kind=Kind.SERVER, status=500)


class Setup:
    def __init__(self, *endpoints: Endpoint) -> None:
        self.clock, self.bus, self.heard = ManualClock(), Bus(), Recorder()
        self.bus.subscribe("test", self.heard)
        self.pool = Pool(
            "p",
            endpoints or (Endpoint(A), Endpoint(B)),
            self.bus,
            clock=self.clock,
            rng=Random(0),
            canonical=canonical,
            limits=BreakerLimits(jitter=0.0),
        )

    def ended(self, url: str, outcome: Outcome, provider: str = "p", times: int = 1) -> None:
        event = AttemptEnded(
            request_id="r",
            provider=provider,
            endpoint=url,
            arm="baseline",
            component="c",
            model="m",
            outcome=outcome,
            duration_s=0.0,
            at=0.0,
        )
        for _ in range(times):
            self.bus.emit(event)

    def refusal(self, model: str) -> str | None:
        return self.pool.refusal(self.pool.serving(model))

    def picks(self, count: int, model: str = "m") -> list[str]:
        return [self.pool.pick(model).url for _ in range(count)]


def test_equal_endpoints_take_turns() -> None:
    assert Setup().picks(4) == [A, B, A, B]


def test_the_one_with_the_fewest_in_flight_is_next() -> None:
    setup = Setup()
    leases = [setup.pool.find(A).begin(), setup.pool.find(A).begin(), setup.pool.find(B).begin()]
    assert setup.picks(2) == [B, B]
    leases[0].end()
    leases[0].end()
    leases[1].end()
    assert setup.picks(1) == [A]


def test_a_configured_list_is_binding() -> None:
    setup = Setup(Endpoint(A, ("one",)), Endpoint(B, ("two",)))
    assert setup.picks(2, "one") == [A, A]
    assert [state.url for state in setup.pool.serving("two")] == [B]
    assert setup.pool.serving("three") == ()
    with pytest.raises(AttemptFailed) as caught:
        setup.pool.pick("three")
    assert caught.value.outcome == Outcome(kind=Kind.CONFIG, code=MODEL_NOT_FOUND)


def test_names_are_compared_as_the_back_end_does() -> None:
    assert Setup(Endpoint(A, ("One:latest",)), Endpoint(B, ("two",))).picks(2, "one") == [A, A]


def test_what_is_not_known_is_tried() -> None:
    setup = Setup()
    assert setup.refusal("never heard of") is None
    setup.pool.learn(setup.pool.find(A), ["other"])
    assert setup.picks(2) == [B, B]
    setup.pool.learn(setup.pool.find(B), ["another"])
    assert sorted(setup.picks(2)) == [A, B]


def test_what_is_discovered_is_used() -> None:
    setup = Setup()
    setup.pool.learn(setup.pool.find(B), ["m"])
    assert setup.picks(2) == [B, B]
    setup.pool.learn(setup.pool.find(A), ["m"])
    assert sorted(setup.picks(2)) == [A, B]


def test_names_of_callers_do_not_pile_up() -> None:
    setup = Setup()
    for n in range(3_000):
        setup.refusal(f"made up {n}")
    assert len(setup.pool._serving) <= 1_000


def test_one_that_is_down_is_avoided() -> None:
    setup = Setup()
    setup.pool.find(A).up = False
    assert setup.picks(3) == [B, B, B]
    assert setup.refusal("m") is None


def test_all_down_is_refused_and_still_tried_if_asked() -> None:
    setup = Setup()
    for state in setup.pool:
        state.up = False
    assert setup.refusal("m") == "down"
    assert setup.picks(1) == [A]


def test_a_provider_is_down_for_a_model_whose_only_endpoint_is() -> None:
    setup = Setup(Endpoint(A, ("one",)), Endpoint(B, ("two",)))
    setup.pool.find(A).up = False
    assert setup.refusal("one") == "down"
    assert setup.refusal("two") is None


def test_failures_on_the_bus_open_one_endpoints_breaker() -> None:
    setup = Setup()
    setup.ended(A, FAILED, times=5)
    assert setup.heard.of(BreakerChanged) == [BreakerChanged(provider="p", endpoint=A, state="open")]
    assert setup.picks(3) == [B, B, B]
    assert setup.refusal("m") is None


@pytest.mark.parametrize("kind", [Kind.SATURATED, Kind.CONFIG, Kind.CLIENT, Kind.INCOMPATIBLE, Kind.CANCELLED])
def test_what_says_nothing_of_the_endpoint_leaves_the_breaker_alone(kind: Kind) -> None:
    setup = Setup()
    setup.ended(A, Outcome(kind=kind), times=50)
    setup.ended(A, FAILED, times=4)
    setup.ended(A, Outcome(kind=kind))
    setup.ended(A, FAILED)
    assert [e.state for e in setup.heard.of(BreakerChanged)] == ["open"]


def test_attempts_elsewhere_are_none_of_its_business() -> None:
    setup = Setup()
    setup.ended(A, FAILED, provider="other", times=9)
    setup.ended(C, FAILED, times=9)
    setup.ended("", FAILED, times=9)
    assert setup.heard.of(BreakerChanged) == []


def test_all_open_is_a_bounded_best_effort_on_the_least_bad() -> None:
    setup = Setup()
    setup.ended(A, FAILED, times=5)
    setup.clock.advance(2.0)
    setup.ended(B, FAILED, times=5)
    assert setup.refusal("m") == "breaker-open"
    picked = []
    for _ in range(2 * BEST_EFFORT):
        picked.append(setup.pool.pick("m"))
        picked[-1].begin()
    assert {state.url: picked.count(state) for state in setup.pool} == {A: BEST_EFFORT, B: BEST_EFFORT}
    with pytest.raises(AttemptFailed) as caught:
        setup.pool.pick("m")
    assert caught.value.outcome == Outcome(kind=Kind.SATURATED, code="breaker-open", retry_after_s=3.0)


def test_a_lone_endpoint_that_answers_after_all_comes_back_at_once() -> None:
    """Five ill requests must not shut a healthy back end for everyone who has no other."""
    setup = Setup(Endpoint(A))
    setup.ended(A, FAILED, times=5)
    setup.clock.advance(0.5)
    for _ in range(3):
        setup.pool.pick("m").begin().end()
        setup.ended(A, OK)
    assert [e.state for e in setup.heard.of(BreakerChanged)] == ["open", "half_open", "closed"]


def test_an_answer_without_a_finish_is_the_models_doing() -> None:
    setup = Setup(Endpoint(A))
    setup.ended(A, Outcome(kind=Kind.TRUNCATED, code=NO_FINISH), times=50)
    assert setup.heard.of(BreakerChanged) == []


def test_a_half_open_endpoint_takes_its_trials_and_closes() -> None:
    setup = Setup(Endpoint(A))
    setup.ended(A, FAILED, times=5)
    setup.clock.advance(5.0)
    assert setup.refusal("m") is None
    trial = setup.pool.pick("m").begin()
    assert setup.refusal("m") == "breaker-open"
    trial.end()
    for _ in range(3):
        assert setup.refusal("m") is None
        setup.ended(A, OK)
    assert [e.state for e in setup.heard.of(BreakerChanged)] == ["open", "half_open", "closed"]
    assert setup.pool.find(A).breaker.trials == 0


def test_an_open_breaker_whose_time_is_over_is_told_though_nobody_comes() -> None:
    """It refuses nobody any more; who counts how long it was open must not count an idle night."""
    setup = Setup(Endpoint(A))
    setup.ended(A, FAILED, times=5)
    state = setup.pool.find(A)
    setup.clock.advance(4.9)
    setup.pool.elapsed(state)
    setup.clock.advance(0.2)
    setup.pool.elapsed(state)
    setup.pool.elapsed(state)
    assert [e.state for e in setup.heard.of(BreakerChanged)] == ["open", "half_open"]
    assert state.breaker.trials == 0
