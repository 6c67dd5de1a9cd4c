"""Embeddings move as a whole and only when proven equal; what is passed through unread stays with the baseline."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memos_llm.core.call import Call, Feature, Wire
from memos_llm.core.catalogue import Catalogue, Model, ProviderModel
from memos_llm.core.decision import Decision, Offer, Reason
from memos_llm.core.errors import NotOffered
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM, Flags, Latch, Scope, Verification, fresh
from memos_llm.core.policy import Policy, Timeouts
from memos_llm.router.decide import decide

MODEL = Model("mxbai", {"ollama": ProviderModel("mxbai"), "vllm": ProviderModel("mixed/mxbai")}, fallbacks=("nomic",))
NOMIC = Model("nomic", {"ollama": ProviderModel("nomic")})
POLICY = Policy(
    baseline="ollama",
    candidate="vllm",
    fallback=("ollama", "vllm"),
    pins={},
    timeouts={"ollama": Timeouts(), "vllm": Timeouts()},
    catalogue=Catalogue([MODEL, NOMIC]),
)
OFFER = Offer(frozenset(Wire))
PROOF = Verification(baseline="mxbai", candidate="mixed/mxbai", dimension=8, cosine_min=0.9999, texts=9, at=1.0)
LATCH = Latch(provider="vllm", since=1.0, incident="inc-1", holddown_until=1.0)


def call(**changes: Any) -> Call:
    base = Call(
        id="r1", wire=Wire.OLLAMA_EMBED, head={}, body=b"{}", model="mxbai", stream=False, component=EMBEDDING,
        key=b"k", accepted_at=0.0, deadline=600.0,
    )  # fmt: skip
    return replace(base, **changes)


def flags(share_ppm: int, everything: int = 0, proof: Verification | None = PROOF, **more: Any) -> Flags:
    scopes = {GLOBAL: Scope(share_ppm=everything), EMBEDDING: Scope(share_ppm=share_ppm, epoch=7, **more)}
    return replace(fresh("i", "salt"), scopes=scopes, verified={"mxbai": proof} if proof else {})


def judged(c: Call, f: Flags, policy: Policy = POLICY, **offers: Offer) -> Decision:
    offered = {"ollama": OFFER, "vllm": OFFER} | offers
    return decide(c, f, policy, lambda t: offered[t.provider], lambda c, o: c.wire in o.wires)


def chain(decision: Decision) -> list[str]:
    return [f"{target.provider}/{target.model}" for target in decision.targets]


OLD, NEW = "ollama/mxbai", "vllm/mixed/mxbai"
PINNED = replace(POLICY, pins={EMBEDDING: "ollama"})
WITHOUT = Offer(frozenset({Wire.OPENAI_CHAT}))


@pytest.mark.parametrize(
    ("c", "f", "policy", "reason", "targets"),
    [
        (call(), flags(0), POLICY, Reason.SPLIT, [OLD]),
        (call(), flags(0, everything=PPM), POLICY, Reason.SPLIT, [OLD]),
        (call(), flags(PPM), POLICY, Reason.SPLIT, [NEW, OLD]),
        (call(component="synthesis"), flags(PPM), POLICY, Reason.SPLIT, [NEW, OLD]),
        (call(component="synthesis"), flags(0, everything=PPM), POLICY, Reason.SPLIT, [OLD]),
        (call(), flags(PPM, proof=None), POLICY, Reason.EMBEDDINGS_UNVERIFIED, [OLD]),
        (call(), flags(PPM, proof=replace(PROOF, candidate="x")), POLICY, Reason.EMBEDDINGS_UNVERIFIED, [OLD]),
        (call(), flags(PPM, proof=None, new_index=True), POLICY, Reason.SPLIT, [NEW]),
        (call(), flags(PPM, new_index=True), POLICY, Reason.SPLIT, [NEW, OLD]),
        (call(model="nomic"), flags(PPM), POLICY, Reason.UNMAPPED_MODEL, ["ollama/nomic"]),
        (call(model="nobody"), flags(PPM), POLICY, Reason.UNMAPPED_MODEL, ["ollama/nobody"]),
        (call(), flags(PPM), PINNED, Reason.PIN, [OLD]),
        (call(), flags(PPM, latch=LATCH), POLICY, Reason.LATCHED, [OLD]),
        (call(override="vllm"), flags(0), POLICY, Reason.OVERRIDE, [NEW, OLD]),
        (call(override="vllm"), flags(0, proof=None), POLICY, Reason.OVERRIDE, [NEW]),
    ],
)  # fmt: skip
def test_where_vectors_come_from(c: Call, f: Flags, policy: Policy, reason: Reason, targets: list[str]) -> None:
    decision = judged(c, f, policy)
    assert (decision.reason, chain(decision)) == (reason, targets)
    assert (decision.scope, decision.epoch) == (EMBEDDING, 7)


@given(st.binary(min_size=1), st.sampled_from([0, PPM]))
def test_no_key_ever_splits_them(key: bytes, share_ppm: int) -> None:
    assert chain(judged(call(key=key), flags(share_ppm)))[0] == (NEW if share_ppm else OLD)


def test_a_candidate_without_the_route_leaves_them_where_they_are() -> None:
    decision = judged(call(), flags(PPM), vllm=WITHOUT)
    assert (decision.reason, chain(decision)) == (Reason.NOT_OFFERED, [OLD])


@pytest.mark.parametrize("side", ["ollama", "vllm"])
def test_the_pin_of_a_stage_that_chats_too_does_not_tear_a_models_vectors_apart(side: str) -> None:
    pinned, indexing = replace(POLICY, pins={"synthesis": side}), call(component="synthesis")
    assert chain(judged(indexing, flags(0, proof=None), pinned)) == [OLD]
    assert chain(judged(indexing, flags(PPM, proof=None, new_index=True), pinned)) == [NEW]
    equal = judged(indexing, flags(0), pinned)
    assert (equal.reason, equal.targets[0].provider) == (Reason.PIN, side)


def test_what_the_owner_of_a_new_index_does_not_offer_is_refused_not_filled_in_by_the_other() -> None:
    anew = flags(PPM, proof=None, new_index=True)
    with pytest.raises(NotOffered):
        judged(call(), anew, vllm=WITHOUT)
    loads = judged(call(needs=Feature.LOAD), anew, vllm=WITHOUT)  # holds no vector
    assert (loads.reason, chain(loads)) == (Reason.NOT_OFFERED, [OLD])
    assert chain(judged(call(), flags(PPM, new_index=True), vllm=WITHOUT)) == [OLD]  # proven equal


def test_a_refusing_candidate_is_passed_over_only_for_equal_vectors() -> None:
    down = replace(OFFER, refused="down")
    assert chain(judged(call(), flags(PPM), vllm=down)) == [OLD, NEW]
    unproven = judged(call(), flags(PPM, proof=None, new_index=True), vllm=down)
    assert chain(unproven) == [NEW]  # an error is better than a vector of another space


@pytest.mark.parametrize("share_ppm", [0, PPM])
@pytest.mark.parametrize(("model", "target"), [("mxbai", OLD), ("nobody", "ollama/nobody"), ("", "ollama/")])
def test_a_passage_goes_to_the_baseline(share_ppm: int, model: str, target: str) -> None:
    everything = flags(0, everything=share_ppm)
    decision = judged(call(wire=Wire.PASSTHROUGH, model=model, component="synthesis"), everything)
    assert (decision.reason, chain(decision)) == (Reason.PASSTHROUGH, [target])


def test_a_passage_stays_with_a_baseline_that_is_down() -> None:
    decision = judged(call(wire=Wire.PASSTHROUGH), flags(0), ollama=replace(OFFER, refused="down"))
    assert chain(decision) == [OLD]
