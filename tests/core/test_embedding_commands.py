"""What opens the share of embeddings, and what shuts it."""

import pytest

from memos_llm.core.commands import Rearm, Rollback, Shift, Verify
from memos_llm.core.errors import Refused
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM, Flags, Verification, fresh

NEW = fresh("i", "s")
PROOF = Verification(baseline="a", candidate="b", dimension=8, cosine_min=0.9995, texts=9, at=1.0)


def shift(flags: Flags, share_ppm: int = PPM, *, new_index: bool = False) -> Flags:
    return Shift(provider="vllm", share_ppm=share_ppm, scope=EMBEDDING, new_index=new_index).apply(flags, 1.0)


def verified(flags: Flags = NEW, proof: Verification | None = PROOF, model: str = "m") -> Flags:
    return Verify(provider="vllm", model=model, proof=proof).apply(flags, 1.0)


def test_a_proof_opens_it() -> None:
    with pytest.raises(Refused, match="embeddings verify"):
        shift(NEW)
    after = shift(verified())
    assert after.share_ppm(EMBEDDING) == PPM
    assert not after.scope(EMBEDDING).new_index


def test_a_new_index_opens_it_without_a_proof_and_going_back_ends_that() -> None:
    after = shift(NEW, new_index=True)
    assert after.scope(EMBEDDING).new_index
    assert not shift(after, 0).scope(EMBEDDING).new_index
    with pytest.raises(Refused):
        shift(shift(after, 0))


def test_a_rollback_of_a_new_index_ends_it_too() -> None:
    back = Rollback(provider="vllm", incident="i", scope=EMBEDDING).apply(shift(NEW, new_index=True), 1.0)
    assert (back.share_ppm(EMBEDDING), back.scope(EMBEDDING).new_index) == (0, False)
    with pytest.raises(Refused, match="latched"):
        shift(back, new_index=True)
    assert shift(Rearm(provider="vllm", scope=EMBEDDING).apply(back, 1.0), new_index=True).share_ppm(EMBEDDING) == PPM


@pytest.mark.parametrize("share_ppm", [1, 300_000, PPM - 1])
def test_a_part_of_it_is_never_moved(share_ppm: int) -> None:
    with pytest.raises(Refused, match="0 or 1"):
        shift(verified(), share_ppm, new_index=True)


@pytest.mark.parametrize("cosine_min", [0.9989, 0.0, -1.0])
def test_a_proof_that_is_none_is_refused(cosine_min: float) -> None:
    unlike = Verification(baseline="a", candidate="b", dimension=8, cosine_min=cosine_min, texts=9, at=1.0)
    with pytest.raises(Refused, match="cosine"):
        verified(proof=unlike)


def test_a_failed_repetition_takes_the_proof_away_and_no_other() -> None:
    both = verified(verified(), model="n")
    after = verified(both, proof=None)
    assert set(after.verified) == {"n"}
    assert after.proof("n", "a", "b") == PROOF
    assert after.proof("n", "a", "c") is None
    assert after.revision == both.revision + 1


def test_everything_else_leaves_proofs_alone() -> None:
    flags = verified()
    for command in (
        Shift(provider="vllm", share_ppm=5),
        Rollback(provider="vllm", incident="i"),
        Rearm(provider="vllm"),
    ):
        flags = command.apply(flags, 1.0)
        assert flags.proof("m", "a", "b") == PROOF
    assert flags.share_ppm(GLOBAL) == 0
