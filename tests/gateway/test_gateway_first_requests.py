"""A request that comes before any probe was answered: what it needs to know of the server is found out first."""

from pathlib import Path

import pytest
from stack import OLLAMA_MODELS, VLLM_MODEL, Stack, document, open_gateway, open_stack, settings

from memos_llm.core.events import AttemptEnded
from memos_llm.emulators import OllamaEmulator, VllmEmulator

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


@pytest.mark.parametrize(("fault", "kind"), [("", "ok"), ("status:code=500", "server"), ("hang", "timeout")])
async def test_of_two_unknown_endpoints_the_one_with_the_model_is_asked_and_judged(
    tmp_path: Path, fault: str, kind: str
) -> None:
    """The other one was picked first, in ignorance."""
    async with (
        OllamaEmulator(models=OLLAMA_MODELS) as ollama,
        VllmEmulator(models=["other"]) as other,
        VllmEmulator(models=[VLLM_MODEL]) as twin,
    ):
        config = document(ollama.url, other.url, tmp_path, routing={"share": 1.0})
        both = [{"url": other.url}, {"url": twin.url}]
        config["providers"]["vllm"] = {"kind": "vllm", "endpoints": both, "timeouts": {"answer_s": 0.5}}
        async with open_gateway(settings(tmp_path, config)) as gateway:
            stack = Stack(ollama, twin, *gateway)
            if fault:
                twin.faults.set(fault)
            body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "Why?"}]}
            async with stack.client() as client:
                await client.post("/v1/chat/completions", json=body)
            first = stack.told.of(AttemptEnded)[0]
            assert (first.provider, first.endpoint, first.outcome.kind) == ("vllm", twin.url, kind)
