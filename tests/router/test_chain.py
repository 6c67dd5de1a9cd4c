"""What the chain tries next: order, slices of the one deadline, retries and their budget."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memos_llm.core.call import Call, Target, Wire
from memos_llm.core.catalogue import Catalogue
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import OUTCOMES, Kind, Outcome
from memos_llm.core.policy import Policy, Timeouts
from memos_llm.router.chain import Chain, RetryBudget, Try

VLLM, OLLAMA, OTHER = Target("vllm", "Q"), Target("ollama", "q"), Target("other", "q")
LIMITS = {"vllm": Timeouts(ttft_s=15.0, answer_s=300.0), "ollama": Timeouts(), "other": Timeouts()}


def policy(**changes: Any) -> Policy:
    base = Policy(
        baseline="ollama", candidate="vllm", fallback=("ollama",), pins={}, timeouts=LIMITS, catalogue=Catalogue([])
    )
    return replace(base, **changes)


def call(stream: bool = True, deadline: float = 600.0) -> Call:
    return Call(
        id="r", wire=Wire.OPENAI_CHAT, head={}, body=b"", model="q", stream=stream, component="c", key=b"k",
        accepted_at=0.0, deadline=deadline,
    )  # fmt: skip


def failed(kind: Kind, **more: Any) -> AttemptFailed:
    return AttemptFailed(Outcome(kind=kind, **more))


def chain(*targets: Target, budget: RetryBudget | None = None, p: Policy | None = None, **c: Any) -> Chain:
    return Chain(call(**c), targets, p or policy(), budget or RetryBudget(), rng=lambda: 0.5)


def target_of(step: Try | None) -> Target | None:
    return None if step is None else step.target


@pytest.mark.parametrize("kind", [k for k in Kind if k not in (Kind.OK, Kind.CONNECT)])
def test_what_goes_on_is_what_the_table_says(kind: Kind) -> None:
    """From the baseline, to leave no doubt about whose word it is."""
    steps = chain(OLLAMA, OTHER)
    steps.first(0.0)
    assert target_of(steps.after(failed(kind), 1.0)) == (OTHER if OUTCOMES[kind].try_next else None)


def test_a_4xx_of_the_candidate_goes_to_the_baseline_which_has_the_last_word() -> None:
    steps = chain(VLLM, OLLAMA, OTHER)
    steps.first(0.0)
    assert target_of(steps.after(failed(Kind.CLIENT), 1.0)) == OLLAMA
    assert steps.after(failed(Kind.CLIENT), 2.0) is None


def test_an_attempt_that_is_not_the_last_leaves_half_of_what_remains() -> None:
    steps = chain(OTHER, OLLAMA, deadline=100.0)
    first = steps.first(0.0)
    assert (first.until, first.limit) == (50.0, "slice")
    second = steps.after(failed(Kind.TIMEOUT), 50.0)
    assert second is not None
    assert (second.until, second.limit, second.last) == (100.0, "total", True)


@pytest.mark.parametrize(("stream", "until", "limit"), [(True, 15.0, "ttft"), (False, 300.0, "slice")])
def test_a_providers_own_limits_cut_shorter(stream: bool, until: float, limit: str) -> None:
    step = chain(VLLM, OLLAMA, stream=stream).first(0.0)
    assert (step.until, step.limit) == (until, limit)


def test_an_answer_limit_holds_for_a_whole_answer() -> None:
    step = chain(VLLM, stream=False, deadline=600.0).first(0.0)
    assert (step.until, step.limit) == (300.0, "answer")


def test_a_connection_error_is_tried_again_only_where_nothing_else_is_left() -> None:
    steps = chain(VLLM, OLLAMA)
    steps.first(0.0)
    assert target_of(steps.after(failed(Kind.CONNECT), 0.0)) == OLLAMA
    again = steps.after(failed(Kind.CONNECT), 0.0)
    assert again is not None
    assert (again.target, again.after_s) == (OLLAMA, 0.2)
    assert steps.after(failed(Kind.CONNECT), 0.0) is None


def test_retries_as_many_as_the_setting_says_and_growing_pauses() -> None:
    steps = chain(VLLM, OLLAMA, p=policy(retries=2))
    steps.first(0.0)
    pauses = []
    while (step := steps.after(failed(Kind.SERVER), 0.0)) is not None and step.target == VLLM:
        pauses.append(step.after_s)
    assert pauses == [0.2, 0.4]
    assert target_of(step) == OLLAMA


def test_an_empty_budget_stops_retries_but_never_a_fallback() -> None:
    budget = RetryBudget(reserve=0.0)
    steps = chain(VLLM, OLLAMA, budget=budget, p=policy(retries=5))
    steps.first(0.0)
    assert target_of(steps.after(failed(Kind.SERVER), 0.0)) == OLLAMA


@given(st.lists(st.booleans(), max_size=300))
def test_retries_never_exceed_a_tenth_of_the_requests_and_the_reserve(events: list[bool]) -> None:
    budget, taken, requests = RetryBudget(), 0, 0
    for is_request in events:
        if is_request:
            requests += 1
            budget.request()
        else:
            taken += budget.take()
    assert taken <= 10 + requests * 0.1 + 1e-6


def test_retry_after_is_honoured_where_half_of_the_time_allows_it() -> None:
    steps = chain(OLLAMA, p=policy(retries=1), deadline=10.0)
    steps.first(0.0)
    patient = steps.after(failed(Kind.SATURATED, retry_after_s=3.0), 0.0)
    assert patient is not None
    assert patient.after_s == 3.0


@pytest.mark.parametrize(("targets", "following"), [((OLLAMA,), None), ((VLLM, OLLAMA), OLLAMA)])
def test_a_long_retry_after_is_not_waited_for(targets: tuple[Target, ...], following: Target | None) -> None:
    steps = chain(*targets, p=policy(retries=3), deadline=600.0)
    steps.first(0.0)
    step = steps.after(failed(Kind.SATURATED, retry_after_s=3600.0), 0.0)
    assert target_of(step) == following
    assert step is None or step.after_s == 0.0


@pytest.mark.parametrize("kind", [Kind.CONFIG, Kind.TIMEOUT, Kind.MALFORMED, Kind.INCOMPATIBLE])
def test_what_will_not_change_is_not_repeated(kind: Kind) -> None:
    steps = chain(VLLM, OLLAMA, p=policy(retries=3))
    steps.first(0.0)
    assert target_of(steps.after(failed(kind), 0.0)) == OLLAMA


def test_nothing_is_tried_after_the_deadline() -> None:
    steps = chain(VLLM, OLLAMA, deadline=10.0)
    steps.first(0.0)
    assert steps.after(failed(Kind.TIMEOUT), 10.0) is None


@given(st.lists(st.sampled_from([k for k in Kind if OUTCOMES[k].try_next]), max_size=12), st.integers(0, 3))
def test_every_chain_ends_and_visits_targets_in_order(kinds: list[Kind], retries: int) -> None:
    targets = (VLLM, OLLAMA, OTHER)
    steps = chain(*targets, p=policy(retries=retries))
    now, seen = 0.0, [steps.first(0.0).target]
    for kind in kinds:
        step = steps.after(failed(kind), now)
        if step is None:
            break
        assert now <= step.until <= 600.0
        now += step.after_s + 0.1
        seen.append(step.target)
    order = [targets.index(t) for t in seen]
    assert order == sorted(order)
    assert len(seen) <= len(targets) * (retries + 1) + 1
