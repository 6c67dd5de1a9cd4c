"""A request that comes before any probe was answered: what it needs to know of the server is found out first."""

from pathlib import Path

import pytest
from stack import open_stack

WORDS = 60


@pytest.mark.parametrize("release", ["0.32.0", "0.33.0"])
async def test_the_first_completion_without_a_limit_is_not_cut_at_16_tokens(tmp_path: Path, release: str) -> None:
    """vLLM reads a missing `max_tokens` as 16; the worker that took the place of a killed one knows nothing yet."""
    vllm = {"version": release, "words": WORDS}
    async with open_stack(tmp_path, config={"routing": {"share": 1.0}}, vllm=vllm) as stack, stack.client() as client:
        for _ in range(2):
            answer = await client.post("/v1/completions", json={"model": "qwen3:8b", "prompt": "Why?"})
            assert answer.headers["x-memos-provider"] == "vllm"
            assert answer.json()["choices"][0]["finish_reason"] == "stop"
            assert answer.json()["usage"]["completion_tokens"] >= WORDS
