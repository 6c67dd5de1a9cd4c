"""Texts that Ollama cannot embed are the caller's fault, though it answers 500: they close no door for others."""

from pathlib import Path
from typing import Any

import pytest
from stack import open_stack

from memos_llm.core.events import BreakerChanged

CHAT_MODEL, EMBEDDER = "qwen3:8b", "mxbai-embed-large"
NO_INPUT = "Failed to create new sequence: no input provided"
TOO_LONG = "the input length exceeds the context length"

CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "ollama embed, an empty text": ("/api/embed", {"model": CHAT_MODEL, "input": ["a", ""]}, NO_INPUT),
    "openai embeddings, an empty text": ("/v1/embeddings", {"model": CHAT_MODEL, "input": ""}, NO_INPUT),
    "ollama embeddings, too long": ("/api/embeddings", {"model": EMBEDDER, "prompt": "word " * 600}, TOO_LONG),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_text_that_cannot_be_embedded_is_refused_in_ollama_s_words(case: str, tmp_path: Path) -> None:
    path, body, words = CASES[case]
    async with open_stack(tmp_path, ollama={"models": [CHAT_MODEL, EMBEDDER]}) as stack, stack.client() as client:
        for _ in range(8):  # more failures in a row than a breaker stands
            refused = await client.post(path, json=body)
            assert (refused.status_code, refused.headers["x-memos-error-code"]) == (500, "ERR_5101")
            assert words in refused.text
        assert {kind for _, kind in stack.attempts()} == {"client"}
        assert not stack.told.of(BreakerChanged)
