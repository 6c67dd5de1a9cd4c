"""The budget of unfinished answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind
from memos_llm.router.buffers import Buffers


def test_over_the_budget_a_large_answer_ends_and_a_small_one_does_not() -> None:
    buffers = Buffers(limit_bytes=1_000, small_bytes=100)
    large = buffers.hold(950, 0)
    with pytest.raises(AttemptFailed) as failed:
        buffers.hold(51, large)
    assert (failed.value.outcome.kind, failed.value.outcome.code) == (Kind.SATURATED, "buffers")
    assert buffers.hold(100, 0) == 100
    assert buffers.held_bytes == 1_050
    buffers.free(large)
    assert buffers.hold(51, 100) == 151


@given(sizes=st.lists(st.integers(0, 500), max_size=30))
def test_what_was_held_is_free_again_and_nothing_else(sizes: list[int]) -> None:
    buffers, held = Buffers(limit_bytes=2_000, small_bytes=100), 0
    for size in sizes:
        try:
            held = buffers.hold(size, held)
        except AttemptFailed:
            assert held + size > 100
            assert held + size > 2_000
    assert buffers.held_bytes == held
    buffers.free(held)
    assert buffers.held_bytes == 0
