"""Versions as the servers spell them."""

import pytest

from memos_llm.providers.quirks import older, parse, vllm_says_reasoning_content


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("0.33.0", (0, 33, 0)),
        ("v0.33.0-rc2", (0, 33, 0)),
        ("0.8.5.post1", (0, 8, 5)),
        ("0.32.0+cpu", (0, 32, 0)),
        ("0.11.1rc7.dev3+gabc", (0, 11, 1)),
        ("0.0.0", None),
        ("dev", None),
        ("", None),
    ],
)
def test_versions(text: str, version: tuple[int, ...] | None) -> None:
    assert parse(text) == version


def test_numbers_are_compared_as_numbers() -> None:
    assert older("0.9.2", (0, 12))
    assert not older("0.12.0", (0, 12))
    assert not older("0.0.0", (0, 12))


def test_the_old_name_of_reasoning() -> None:
    assert vllm_says_reasoning_content("0.11.2")
    assert not vllm_says_reasoning_content("0.12.0")
    assert not vllm_says_reasoning_content("")
