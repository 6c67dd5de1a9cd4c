"""Probes and breakers: streaks, dead models, majorities, and how long everything was shut."""

import pytest

from memos_llm.core.events import BreakerChanged, ProbeEnded
from memos_llm.core.ports import Instance
from memos_llm.core.verdicts import Evaluation, Verdict
from memos_llm.guard.health import MOST_CHANGES, Health, agreed, judge_breakers, judge_probes

ONE, TWO = "http://one.test", "http://two.test"
SERVING = {"qwen3:8b": [ONE, TWO], "llama3.2:3b": [TWO]}
AT = 1_000_000.0  # the Unix time of moment 0


def probed(health: Health, endpoint: str, *failures: str, start: float = 0.0) -> None:
    for number, failure in enumerate(failures):
        now = start + 5.0 * number
        event = ProbeEnded(provider="vllm", endpoint=endpoint, up=not failure, failure=failure)
        health.probed(event, now, AT + now)


def other(name: str, *dead: str, probes: bool = True, ephemeral: bool = False) -> Instance:
    return Instance(
        id=name, kind="gateway", revision=1, at=AT, ephemeral=ephemeral, dead=tuple(dead) if probes else None
    )


def judged(health: Health, *others: Instance, now: float = 20.0) -> dict[str, Evaluation]:
    found = judge_probes(health, "vllm", SERVING, 3, others, now, AT + now)
    return {one.sum.model: one for one in found}


def test_three_failed_probes_in_a_row_make_an_endpoint_dead_and_a_good_one_ends_that() -> None:
    health = Health()
    probed(health, ONE, "connect", "connect")
    assert health.dead(lambda _: 3) == frozenset()
    probed(health, ONE, "", "connect", "connect")
    assert health.dead(lambda _: 3) == frozenset()
    probed(health, ONE, "timeout")
    assert health.dead(lambda _: 3) == {ONE}
    assert health.dead(lambda _: None) == frozenset(), "the trigger is switched off"
    probed(health, ONE, "")
    assert health.dead(lambda _: 3) == frozenset()


def test_a_probe_that_says_nothing_of_an_endpoint_that_is_down_leaves_the_streak() -> None:
    health = Health()
    probed(health, ONE, "connect", "connect", "connect")
    health.probed(ProbeEnded(provider="vllm", endpoint=ONE, up=False, detail="hung"), 16.0, AT + 16)
    assert health.dead(lambda _: 3) == {ONE}


def test_a_model_is_dead_only_with_all_its_endpoints() -> None:
    health = Health()
    probed(health, TWO, "connect", "connect", "connect")
    found = judged(health)
    assert (found["llama3.2:3b"].verdict, found["llama3.2:3b"].reason) == (Verdict.FAIL, "over-limit")
    assert found["qwen3:8b"].verdict is Verdict.PASS
    assert found["llama3.2:3b"].since == AT, "when the first of those probes failed"
    assert (found["llama3.2:3b"].k, found["llama3.2:3b"].limit) == (3, 3)


def test_without_any_probe_nothing_is_known() -> None:
    assert {one.verdict for one in judged(Health()).values()} == {Verdict.INCONCLUSIVE}


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ([], Verdict.FAIL),
        ([other("a", TWO)], Verdict.FAIL),
        ([other("a")], Verdict.INCONCLUSIVE),
        ([other("a", TWO), other("b")], Verdict.FAIL),
        ([other("a"), other("b"), other("c", TWO)], Verdict.INCONCLUSIVE),
        ([other("a", probes=False), other("b", ephemeral=True)], Verdict.FAIL),
    ],
)
def test_a_majority_of_those_that_probe_must_say_so(others: list[Instance], verdict: Verdict) -> None:
    health = Health()
    probed(health, TWO, "connect", "connect", "connect")
    assert judged(health, *others)["llama3.2:3b"].verdict is verdict


def test_others_alone_do_not_make_it_dead_here() -> None:
    health = Health()
    probed(health, TWO, "")
    assert judged(health, other("a", TWO), other("b", TWO))["llama3.2:3b"].verdict is Verdict.PASS
    assert not agreed([], {TWO}, []), "nothing is not dead"


def broke(health: Health, endpoint: str, state: str, now: float) -> None:
    health.broke(BreakerChanged(provider="vllm", endpoint=endpoint, state=state), now)


def shut(health: Health, now: float, since: float = 0.0) -> dict[str, Evaluation]:
    return {one.sum.model: one for one in judge_breakers(health, "vllm", SERVING, since, now, AT + now)}


def test_a_breaker_that_is_open_for_thirty_seconds_in_all_is_too_much() -> None:
    health = Health()
    broke(health, TWO, "open", 0.0)
    broke(health, TWO, "half_open", 20.0)
    broke(health, TWO, "closed", 22.0)
    broke(health, TWO, "open", 50.0)
    assert shut(health, 59.0)["llama3.2:3b"].verdict is Verdict.PASS
    found = shut(health, 60.5)["llama3.2:3b"]
    assert (found.verdict, found.n, found.since) == (Verdict.FAIL, 2, AT)
    assert shut(health, 60.5)["qwen3:8b"].verdict is Verdict.PASS, "its other endpoint took requests"


def test_three_openings_within_two_minutes_are_too_much_and_older_ones_do_not_count() -> None:
    health = Health()
    for moment in (0.0, 70.0, 90.0):
        broke(health, TWO, "open", moment)
        broke(health, TWO, "half_open", moment + 1)
    assert shut(health, 100.0)["llama3.2:3b"].verdict is Verdict.FAIL
    assert shut(health, 125.0)["llama3.2:3b"].verdict is Verdict.PASS
    assert shut(health, 100.0, since=80.0)["llama3.2:3b"].verdict is Verdict.PASS, "of before the re-arm"


def test_of_several_endpoints_only_the_time_counts_in_which_all_were_shut() -> None:
    health = Health()
    broke(health, ONE, "open", 0.0)
    broke(health, TWO, "open", 20.0)
    broke(health, ONE, "half_open", 40.0)
    broke(health, TWO, "half_open", 60.0)
    found = shut(health, 61.0)
    assert found["qwen3:8b"].verdict is Verdict.PASS
    assert found["llama3.2:3b"].verdict is Verdict.FAIL


def test_what_opened_long_ago_and_never_closed_counts_whole() -> None:
    health = Health()
    broke(health, TWO, "open", 0.0)
    assert shut(health, 500.0)["llama3.2:3b"].verdict is Verdict.FAIL


def test_memory_is_bounded_and_what_is_no_longer_configured_is_forgotten() -> None:
    health = Health()
    for number in range(3 * MOST_CHANGES):
        broke(health, TWO, "open" if number % 2 else "closed", number / 100)
    probed(health, TWO, "connect", "connect", "connect")
    assert shut(health, 10.0)["llama3.2:3b"].verdict is Verdict.FAIL
    health.keep({("vllm", ONE)})
    assert health.dead(lambda _: 3) == frozenset()
    assert health.seen("vllm") == ()
    assert shut(health, 10.0)["llama3.2:3b"].verdict is Verdict.PASS
