"""A key that carries too much of the traffic is noticed, once in a while, and others are not."""

import random

from memos_llm.router.concentration import LIMIT, SAY_AGAIN_S, WINDOW, Concentration


def noted(keys: list[str], seconds: float = 0.001) -> list[float]:
    watch = Concentration()
    return [share for i, key in enumerate(keys) if (share := watch.note(key, i * seconds)) is not None]


def test_a_heavy_key_is_noticed() -> None:
    rng = random.Random(1)
    keys = ["heavy" if rng.random() < 0.4 else f"k{i}" for i in range(WINDOW * 3)]
    (share,) = noted(keys)
    assert LIMIT < share < 0.6


def test_it_is_said_again_only_after_a_while() -> None:
    keys = ["heavy"] * (WINDOW * 3)
    assert len(noted(keys, seconds=SAY_AGAIN_S / WINDOW)) in (2, 3)


def test_even_traffic_is_never_noticed() -> None:
    assert noted([f"k{i % 10}" for i in range(WINDOW * 3)]) == []


def test_a_heavy_beginning_is_forgotten() -> None:
    watch = Concentration()
    for i in range(WINDOW):
        assert watch.note("heavy", i) is None
    said = [watch.note(f"k{i}", WINDOW + i) for i in range(WINDOW)]
    assert not any(said)
    assert watch.note("heavy", 1e6) is None
