"""The decision table: precedence, capability, pins, latches, diversion, chains."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memos_llm.core.call import Call, Feature, Target, Wire
from memos_llm.core.catalogue import Catalogue, Model, ProviderModel
from memos_llm.core.decision import Arm, Decision, Offer, Reason
from memos_llm.core.errors import NotOffered
from memos_llm.core.flags import GLOBAL, PPM, Flags, Latch, Scope, fresh
from memos_llm.core.policy import Policy, Timeouts
from memos_llm.router.decide import decide

LATCH = Latch(provider="vllm", since=1.0, incident="inc-1", holddown_until=1.0)
CATALOGUE = Catalogue(
    [
        Model(
            "qwen3:8b",
            {"ollama": ProviderModel("qwen3:8b"), "vllm": ProviderModel("Qwen/Qwen3-8B")},
            aliases=("qwen3",),
            fallbacks=("llama3.2:3b",),
        ),
        Model("llama3.2:3b", {"ollama": ProviderModel("llama3.2:3b"), "vllm": ProviderModel("meta/Llama")}),
        Model("gemma3:4b", {"ollama": ProviderModel("gemma3:4b")}),
    ]
)
POLICY = Policy(
    baseline="ollama",
    candidate="vllm",
    fallback=("ollama",),
    pins={"evaluation": "ollama", "reflection": "vllm"},
    timeouts={"ollama": Timeouts(), "vllm": Timeouts()},
    catalogue=CATALOGUE,
)
OFFER = Offer(wires=frozenset({Wire.OPENAI_CHAT}))


def call(**changes: Any) -> Call:
    base = Call(
        id="r1", wire=Wire.OPENAI_CHAT, head={}, body=b"{}", model="qwen3:8b", stream=False, component="synthesis",
        key=b"k", accepted_at=0.0, deadline=600.0,
    )  # fmt: skip
    return replace(base, **changes)


def flags(share_ppm: int, latch: Latch | None = None, **components: Scope) -> Flags:
    return replace(fresh("i", "salt"), scopes={GLOBAL: Scope(share_ppm=share_ppm, epoch=3, latch=latch), **components})


def judged(c: Call, f: Flags, policy: Policy = POLICY, offers: dict[str, Offer | None] | None = None) -> Decision:
    offered = {"ollama": OFFER, "vllm": OFFER, **(offers or {})}
    return decide(
        c, f, policy, lambda t: offered[t.provider], lambda c, o: c.wire in o.wires and not c.needs & ~o.features
    )


def providers(decision: Decision) -> list[tuple[str, str]]:
    return [(t.provider, t.model) for t in decision.targets]


@pytest.mark.parametrize(
    ("c", "f", "arm", "reason", "first"),
    [
        (call(), flags(0), Arm.BASELINE, Reason.SPLIT, "ollama"),
        (call(), flags(PPM), Arm.CANDIDATE, Reason.SPLIT, "vllm"),
        (call(), flags(0, synthesis=Scope(share_ppm=PPM)), Arm.CANDIDATE, Reason.SPLIT, "vllm"),
        (call(), flags(PPM, synthesis=Scope(share_ppm=0)), Arm.BASELINE, Reason.SPLIT, "ollama"),
        (call(), flags(PPM, latch=LATCH), Arm.BASELINE, Reason.LATCHED, "ollama"),
        (call(), flags(PPM, synthesis=Scope(share_ppm=PPM, latch=LATCH)), Arm.BASELINE, Reason.LATCHED, "ollama"),
        (call(component="analysis"), flags(PPM, synthesis=Scope(latch=LATCH)), Arm.CANDIDATE, Reason.SPLIT, "vllm"),
        (call(), flags(0, latch=LATCH, synthesis=Scope(share_ppm=PPM)), Arm.BASELINE, Reason.LATCHED, "ollama"),
        (call(model="gemma3:4b"), flags(PPM), Arm.BASELINE, Reason.UNMAPPED_MODEL, "ollama"),
        (call(model="nobody:1b"), flags(PPM), Arm.BASELINE, Reason.UNMAPPED_MODEL, "ollama"),
        (call(component="evaluation"), flags(PPM), Arm.BASELINE, Reason.PIN, "ollama"),
        (call(component="reflection"), flags(0), Arm.CANDIDATE, Reason.PIN, "vllm"),
        (call(component="reflection"), flags(0, latch=LATCH), Arm.BASELINE, Reason.LATCHED, "ollama"),
        (call(component="reflection", model="gemma3:4b"), flags(0), Arm.BASELINE, Reason.UNMAPPED_MODEL, "ollama"),
        (call(override="vllm"), flags(0, latch=LATCH), Arm.CANDIDATE, Reason.OVERRIDE, "vllm"),
        (call(override="ollama"), flags(PPM), Arm.BASELINE, Reason.OVERRIDE, "ollama"),
        (call(component="embedding"), flags(PPM), Arm.BASELINE, Reason.SPLIT, "ollama"),
    ],
)  # fmt: skip
def test_precedence(c: Call, f: Flags, arm: Arm, reason: Reason, first: str) -> None:
    decision = judged(c, f)
    assert (decision.arm, decision.reason, decision.targets[0].provider) == (arm, reason, first)


@pytest.mark.parametrize("name", ["qwen3:8b", "QWEN3:8B", "qwen3", "qwen3:latest", "Qwen/Qwen3-8B", "qwen/qwen3-8b"])
def test_every_name_of_a_model_resolves_to_each_providers_own(name: str) -> None:
    assert providers(judged(call(model=name), flags(PPM)))[0] == ("vllm", "Qwen/Qwen3-8B")
    assert providers(judged(call(model=name), flags(0)))[0] == ("ollama", "qwen3:8b")


def test_a_name_nobody_owns_stays_as_spelt() -> None:
    assert providers(judged(call(model="Nobody:1b"), flags(PPM))) == [("ollama", "Nobody:1b")]


def test_a_feature_the_candidate_lacks_keeps_the_call_on_the_baseline() -> None:
    lacking = Offer(wires=OFFER.wires, features=Feature.NONE)
    decision = judged(call(needs=Feature.GO_TEMPLATE), flags(PPM), offers={"vllm": lacking})
    assert (decision.reason, providers(decision)[0][0]) == (Reason.NOT_OFFERED, "ollama")
    assert all(p == "ollama" for p, _ in providers(decision))


def test_a_call_that_nobody_offers_is_refused() -> None:
    with pytest.raises(NotOffered, match="qwen3:8b"):
        judged(call(wire=Wire.OLLAMA_CHAT), flags(0))


def test_the_chain_is_same_model_first_then_fallback_models_and_never_twice() -> None:
    assert providers(judged(call(), flags(PPM))) == [
        ("vllm", "Qwen/Qwen3-8B"), ("ollama", "qwen3:8b"), ("vllm", "meta/Llama"), ("ollama", "llama3.2:3b"),
    ]  # fmt: skip


def test_the_candidate_is_never_in_the_chain_of_a_scope_without_share() -> None:
    both = replace(POLICY, fallback=("vllm", "ollama"))
    assert {p for p, _ in providers(judged(call(), flags(0), both))} == {"ollama"}
    assert {p for p, _ in providers(judged(call(), flags(PPM, latch=LATCH), both))} == {"ollama"}
    assert ("vllm", "Qwen/Qwen3-8B") in providers(judged(call(key=b"\x00"), flags(1), both))


def test_only_a_fallback_receives_another_providers_requests() -> None:
    alone = replace(POLICY, fallback=())
    assert {p for p, _ in providers(judged(call(), flags(PPM), alone))} == {"vllm"}


def test_a_refusing_provider_keeps_its_arm_and_is_passed_over() -> None:
    decision = judged(call(), flags(PPM), offers={"vllm": replace(OFFER, refused="breaker-open")})
    assert (decision.arm, decision.reason) == (Arm.CANDIDATE, Reason.DIVERTED)
    assert providers(decision)[0] == ("ollama", "qwen3:8b")
    assert [(d.provider, d.reason) for d in decision.diverted] == [("vllm", "breaker-open")]
    assert providers(decision)[-1][0] == "vllm"  # the last resort


def test_when_all_refuse_the_first_is_tried_all_the_same() -> None:
    down = replace(OFFER, refused="down")
    decision = judged(call(), flags(PPM), offers={"vllm": down, "ollama": down})
    assert (decision.reason, providers(decision)[0][0]) == (Reason.SPLIT, "vllm")


def test_a_provider_that_is_switched_off_is_no_target() -> None:
    decision = judged(call(), flags(PPM), offers={"vllm": None})
    assert {p for p, _ in providers(decision)} == {"ollama"}
    assert decision.reason is Reason.NOT_OFFERED


@given(st.binary(max_size=20), st.integers(0, PPM), st.integers(0, PPM), st.sampled_from(["synthesis", "analysis"]))
def test_one_components_own_share_never_alters_another(key: bytes, share: int, own: int, other: str) -> None:
    before = judged(call(component=other, key=key), flags(share))
    after = judged(call(component=other, key=key), flags(share, verification=Scope(share_ppm=own)))
    assert before == after


@given(st.binary(max_size=20), st.integers(0, PPM))
def test_one_conversation_moves_as_a_whole(key: bytes, share: int) -> None:
    """Components that follow one share see one key on one side."""
    arms = {judged(call(component=c, key=key), flags(share)).arm for c in ("synthesis", "analysis", "verification")}
    assert len(arms) == 1


def test_the_decision_says_which_scope_epoch_and_revision_spoke() -> None:
    decision = judged(call(), flags(0, synthesis=Scope(share_ppm=5, epoch=9)))
    assert (decision.scope, decision.epoch, decision.revision) == ("synthesis", 9, 1)
    assert judged(call(), flags(0)).scope == GLOBAL


def test_targets_carry_what_a_codec_needs() -> None:
    assert judged(call(), flags(0)).targets[0] == Target("ollama", "qwen3:8b")


def test_shares_that_were_set_for_another_provider_move_nothing() -> None:
    given = replace(flags(PPM, synthesis=Scope(share_ppm=PPM)), candidate="other")
    assert providers(judged(call(), given)) == providers(judged(call(), flags(0)))
    assert providers(judged(call(), replace(given, candidate="vllm")))[0][0] == "vllm"


# --- maintenance ------------------------------------------------------------------------------------------------------


def drained(c: Call, f: Flags, *names: str, offers: dict[str, Offer | None] | None = None) -> Decision:
    offered = {"ollama": OFFER, "vllm": OFFER, **(offers or {})}
    carries = lambda c, o: c.wire in o.wires and not c.needs & ~o.features  # noqa: E731 - as in `judged`
    return decide(c, f, POLICY, lambda t: offered[t.provider], carries, drained=frozenset(names))


@pytest.mark.parametrize("offer", [OFFER, replace(OFFER, refused="down")], ids=["well", "restarting"])
def test_who_is_under_maintenance_keeps_its_arm_and_is_passed_over(offer: Offer) -> None:
    decision = drained(call(), flags(PPM), "vllm", offers={"vllm": offer})
    assert (decision.arm, decision.reason, decision.assigned) == (Arm.CANDIDATE, Reason.DIVERTED, "vllm")
    assert [target.provider for target in decision.targets] == ["ollama", "ollama", "vllm", "vllm"]  # a last resort
    assert [(passed.provider, passed.reason) for passed in decision.diverted] == [("vllm", "maintenance")]


def test_the_maintenance_of_another_changes_nothing() -> None:
    assert drained(call(), flags(0), "vllm") == judged(call(), flags(0))
    assert drained(call(), flags(PPM), "cloud") == judged(call(), flags(PPM))


def test_where_nobody_else_is_left_maintenance_is_no_reason_to_fail() -> None:
    decision = drained(call(model="nobody-knows-it"), flags(PPM), "ollama")
    assert [target.provider for target in decision.targets] == ["ollama"]
    everybody = drained(call(), flags(PPM), "ollama", "vllm")
    assert (everybody.reason, everybody.assigned) == (Reason.SPLIT, "vllm")


def test_an_override_tries_what_is_under_maintenance() -> None:
    decision = drained(call(override="vllm"), flags(0), "vllm")
    assert (decision.reason, decision.targets[0].provider) == (Reason.OVERRIDE, "vllm")
