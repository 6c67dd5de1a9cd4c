"""Completions, embeddings and errors as a client meets them: through a real gateway, to emulated back ends."""

import json
import math
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest
from stack import ME, VLLM_MODEL, Stack, open_stack, until

from memos_llm.core.commands import Shift
from memos_llm.core.flags import PPM

MODEL = "qwen3:8b"
USER = [{"role": "user", "content": "Why is the sky blue?"}]
ALONE = {"baseline": "vllm", "candidate": "ollama", "fallback": "vllm"}  # vLLM has nobody behind it
VECTORS = {"task": "embed", "dimension": 256, "max_model_len": 64}
EMBEDDER = {"models": {MODEL: {"vllm": {"name": VLLM_MODEL}}}}


async def post(stack: Stack, path: str, body: dict[str, Any]) -> Any:
    async with stack.client() as client:
        return await client.post(path, json=body)


# --- completions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("usage", [False, True])
async def test_a_list_of_prompts_streams_from_ollama_as_one_answer(tmp_path: Path, usage: bool) -> None:
    asked = {"stream_options": {"include_usage": True}} if usage else {}
    body = {"model": "llama3.2:3b", "prompt": ["Why?", "How?"], "max_tokens": 5, "stream": True, **asked}
    async with open_stack(tmp_path) as stack:
        answer = await post(stack, "/v1/completions", body)
        (ended,) = await stack.ended()
    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]] == [0, 1]
    assert {choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["text"]} == {0, 1}
    assert ("usage" in answer.text) == usage
    assert ended.usage is not None
    if usage:
        assert chunks[-1]["usage"]["completion_tokens"] == ended.usage.output_tokens == 10


async def test_a_list_of_prompts_has_one_whole_answer_from_either_side(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack, openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x") as client:
        for share in (0.0, 1.0):
            await stack.shift(share)
            answer = await client.completions.create(model=MODEL, prompt=["Why?", "How?"], max_tokens=5)
            assert [choice.index for choice in answer.choices] == [0, 1]
            assert answer.usage is not None
            assert (answer.usage.completion_tokens, answer.model) == (10, MODEL)


async def test_one_of_several_prompts_that_fails_before_the_answer_is_nobody_s_error(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config=ALONE) as stack:
        await stack.runtime.live.submit(Shift(provider="ollama", share_ppm=PPM), ME)
        stack.ollama.faults.set("cut_before_content:where=headers,count=1")
        answer = await post(stack, "/v1/completions", {"model": MODEL, "prompt": ["Why?", "How?"], "max_tokens": 5})
        assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1]
        assert answer.headers["x-memos-provider"] == "vllm"


@pytest.mark.parametrize("limit", [{}, {"max_tokens": None}])
async def test_a_completion_without_a_limit_is_not_cut_at_16_tokens(tmp_path: Path, limit: dict[str, Any]) -> None:
    async with open_stack(tmp_path, probe=True) as stack:
        await until(lambda: stack.runtime.transports["vllm"].offer(VLLM_MODEL).context_tokens)  # of its model list
        await stack.shift(1.0)
        answer = (await post(stack, "/v1/completions", {"model": MODEL, "prompt": "words:40", **limit})).json()
    assert answer["usage"]["completion_tokens"] > 16
    assert answer["choices"][0]["finish_reason"] == "stop"


async def test_token_ids_are_vllm_s_to_take_and_ollama_s_to_refuse(tmp_path: Path) -> None:
    body = {"model": MODEL, "prompt": [[1, 2, 3], [4, 5]], "max_tokens": 5}
    async with open_stack(tmp_path) as stack:
        refused = await post(stack, "/v1/completions", body)
        await stack.shift(1.0)
        taken = await post(stack, "/v1/completions", body)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    assert refused.headers["x-memos-provider"] == "ollama"
    assert [choice["index"] for choice in taken.json()["choices"]] == [0, 1]
    assert taken.headers["x-memos-provider"] == "vllm"


async def test_a_load_of_an_embedding_model_goes_to_ollama_whatever_the_share(tmp_path: Path) -> None:
    config = {"models": {"mxbai-embed-large": {"vllm": {"name": VLLM_MODEL}}}}
    async with open_stack(tmp_path, config=config, ollama={"models": ["mxbai-embed-large"]}, vllm=VECTORS) as stack:
        shift = Shift(provider="vllm", share_ppm=PPM, scope="embedding", new_index=True)
        await stack.runtime.live.submit(shift, ME)
        loaded = await post(stack, "/api/embed", {"model": "mxbai-embed-large", "input": []})
        vector = await post(stack, "/api/embed", {"model": "mxbai-embed-large", "input": "sky"})
    assert (loaded.json()["embeddings"], loaded.headers["x-memos-provider"]) == ([], "ollama")
    assert (loaded.headers["x-memos-reason"], vector.headers["x-memos-provider"]) == ("not-offered", "vllm")


# --- embeddings -------------------------------------------------------------------------------------------------------


async def test_ollama_s_sdk_gets_its_vectors_from_vllm(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config=ALONE | EMBEDDER, vllm=VECTORS) as stack:
        client = ollama.AsyncClient(stack.url)
        whole = await client.embed(MODEL, ["sky", "blue"])
        short = await client.embed(MODEL, ["sky", "blue"], dimensions=8)
        single = await client.embeddings(MODEL, "sky")
        cut = await client.embed(MODEL, "sky " * 500)
        with pytest.raises(ollama.ResponseError) as refused:
            await client.embed(MODEL, "sky " * 500, truncate=False)
        await client._client.aclose()  # it has no close of its own
    assert [len(vector) for vector in whole.embeddings] == [256, 256]
    assert whole.model == MODEL
    assert whole.prompt_eval_count
    assert whole.total_duration
    for vector, beginning in zip(whole.embeddings, short.embeddings, strict=True):
        length = math.hypot(*vector[:8])
        assert list(beginning) == pytest.approx([value / length for value in vector[:8]], abs=1e-6)
    assert list(single.embedding) == pytest.approx(list(whole.embeddings[0]), abs=1e-6)
    assert len(cut.embeddings[0]) == 256
    assert (refused.value.status_code, refused.value.error) == (400, "the input length exceeds the context length")


@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_openai_s_sdk_gets_short_vectors_from_vllm(tmp_path: Path, encoding: Any) -> None:
    asked = {"encoding_format": encoding} if encoding else {}
    async with (
        open_stack(tmp_path, config=ALONE | EMBEDDER, vllm=VECTORS) as stack,
        openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="x") as client,
    ):
        raw = await client.embeddings.with_raw_response.create(model=MODEL, input="sky " * 500, dimensions=8, **asked)
        whole = await client.embeddings.create(model=MODEL, input="sky", dimensions=256)
    assert raw.headers["x-memos-warnings"] == "repaired:truncate_prompt_tokens, repaired:dimensions"
    assert len(whole.data[0].embedding) == 256
    if encoding != "base64":  # asked for by name, the SDK leaves it encoded
        (item,) = raw.parse().data
        assert len(item.embedding) == 8
        assert math.hypot(*item.embedding) == pytest.approx(1, abs=1e-5)


# --- errors -----------------------------------------------------------------------------------------------------------

CHAT, GENERATE = "/api/chat", "/api/generate"
OPENAI = "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": USER},
    GENERATE: {"model": MODEL, "prompt": "p"},
    OPENAI: {"model": MODEL, "messages": USER},
}

FROM_VLLM: list[tuple[str, str, dict[str, Any], int, str]] = [
    # fault, path, more, status, words
    ("", CHAT, {"messages": [{"role": "user", "content": "x " * 500}]}, 400, "maximum context length"),
    ("model_missing", CHAT, {}, 404, f"model '{MODEL}' not found"),
    ("model_missing", GENERATE, {}, 404, f"model '{MODEL}' not found"),
    ("status:code=401", CHAT, {}, 502, ""),
    ("queue_full", CHAT, {}, 503, ""),
    ("engine_dead", CHAT, {}, 502, ""),
    ("refuse", CHAT, {}, 503, ""),
]


@pytest.mark.parametrize(("fault", "path", "more", "status", "words"), FROM_VLLM)
async def test_a_native_client_reads_vllm_s_errors_as_ollama_s(
    fault: str, path: str, more: dict[str, Any], status: int, words: str, tmp_path: Path
) -> None:
    async with open_stack(tmp_path, config=ALONE, vllm={"max_model_len": 256}) as stack:
        stack.vllm.faults.set(*([fault] if fault else []))
        answer = await post(stack, path, BODIES[path] | more)
        stack.vllm.faults.clear()
    assert answer.status_code == status
    text = answer.json()["error"]
    assert words in text
    assert "Unauthorized" not in text
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


FROM_OLLAMA: list[tuple[str, int, str]] = [
    ("model_missing", 404, "not_found_error"),
    ("queue_full", 503, "api_error"),
    ("status:code=500", 502, "api_error"),
    ("status:code=401", 502, "api_error"),
    ("refuse", 503, "api_error"),
]


@pytest.mark.parametrize(("fault", "status", "kind"), FROM_OLLAMA)
async def test_an_openai_client_reads_ollama_s_errors_as_openai_s(
    fault: str, status: int, kind: str, tmp_path: Path
) -> None:
    async with open_stack(tmp_path) as stack:
        stack.ollama.faults.set(fault)
        answer = await post(stack, OPENAI, BODIES[OPENAI])
        stack.ollama.faults.clear()
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
