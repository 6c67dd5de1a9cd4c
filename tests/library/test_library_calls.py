"""Embeddings, tools and structured answers from the library, over both arms."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from stack import ME, VLLM_MODEL, document, settings

import memos_llm
from memos_llm import LLMProvider, OllamaProvider, Router, SyncRouter, VllmProvider
from memos_llm.config import Settings
from memos_llm.core.commands import Shift
from memos_llm.core.events import RequestStarted
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM
from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.testing import Recorder

ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TEXTS = ["the sky", "the sea", "the sand"]


class Servers:
    def __init__(self, ollama: OllamaEmulator, vllm: VllmEmulator, embedder: VllmEmulator, config: Settings) -> None:
        self.ollama, self.vllm, self.embedder, self.config = ollama, vllm, embedder, config


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Servers]:
    """Ollama for everything; a vLLM for chat and one for embeddings."""
    async with (
        OllamaEmulator(port=0, models=["qwen3:8b", "mxbai-embed-large"]) as ollama,
        VllmEmulator(port=0, models=[VLLM_MODEL]) as vllm,
        VllmEmulator(port=0, models=["Embed"], task="embed") as embedder,
    ):
        endpoints = [{"url": vllm.url, "models": [VLLM_MODEL]}, {"url": embedder.url, "models": ["Embed"]}]
        changes: dict[str, Any] = {
            "providers": {
                "ollama": {"kind": "ollama", "base_url": ollama.url},
                "vllm": {"kind": "vllm", "endpoints": endpoints},
            },
            "models": {
                "qwen3:8b": {"vllm": {"name": VLLM_MODEL, "thinking": "enable_thinking", "split_think_tags": True}},
                "mxbai-embed-large": {"vllm": "Embed"},
            },
            "store": "memory://",
        }
        yield Servers(ollama, vllm, embedder, settings(tmp_path, document("", "", tmp_path, **changes)))


async def shift(router: Router, share: float, scope: str = GLOBAL) -> None:
    new_index = scope == EMBEDDING
    command = Shift(provider="vllm", share_ppm=round(share * PPM), scope=scope, new_index=new_index)
    await router._runtime.live.submit(command, ME)


@pytest.mark.parametrize("share", [0.0, 1.0])
async def test_a_tools_round_trip(servers: Servers, share: float) -> None:
    async with Router.open(servers.config, probe=False) as router:
        await shift(router, share)
        asked = await router.chat(ASK, model="qwen3:8b", tools=[TOOL], tool_choice="auto")
        chunks = [chunk async for chunk in router.stream(ASK, model="qwen3:8b", tools=[TOOL])]
        (call,) = asked.tool_calls
        answered = await router.chat(
            [
                *ASK,
                {
                    "role": "assistant",
                    "content": asked.text,
                    "tool_calls": [
                        {
                            "id": call.id,
                            "type": "function",
                            "function": {"name": call.name, "arguments": call.arguments},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
            ],
            model="qwen3:8b",
            tools=[TOOL],
        )
    assert asked.finish_reason == chunks[-1].finish_reason == "tool_calls"
    assert (call.name, list(json.loads(call.arguments))) == ("get_weather", ["city"])
    assert [(c.name, json.loads(c.arguments)) for c in chunks[-1].tool_calls] == [
        (call.name, json.loads(call.arguments))
    ]
    assert (answered.finish_reason, answered.tool_calls) == ("stop", ())
    assert answered.text


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_schema_shapes_the_answer(servers: Servers, share: float, wrapped: bool) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}} if wrapped else SCHEMA
    async with Router.open(servers.config, probe=False) as router:
        await shift(router, share)
        answer = await router.chat(ASK, model="qwen3:8b", response_format=schema)
    assert list(json.loads(answer.text)) == ["city"]


async def test_embeddings_have_a_share_of_their_own(servers: Servers) -> None:
    async with Router.open(servers.config, probe=False) as router:
        told = Recorder()
        router._runtime.bus.subscribe("told", told)
        await shift(router, 1.0)
        old = await router.embed(TEXTS, model="mxbai-embed-large", request_id="req-7", session="s")
        await shift(router, 1.0, EMBEDDING)
        new = await router.embed(TEXTS, model="mxbai-embed-large", component="search")
    assert (old.provider, old.model, old.request_id) == ("ollama", "mxbai-embed-large", "req-7")
    assert (new.provider, new.model) == ("vllm", "Embed")
    assert [event.component for event in told.of(RequestStarted)] == ["embedding", "search"]
    for answer in (old, new):
        assert len({tuple(vector) for vector in answer.vectors}) == 3
        assert answer.usage is not None
        assert answer.usage.input_tokens > 0
        assert answer.request_id


async def test_embeddings_that_cannot_be_had_are_an_error_of_their_own(servers: Servers) -> None:
    servers.ollama.faults.set("status:code=500")
    async with Router.open(servers.config, probe=False) as router:
        with pytest.raises(memos_llm.EmbeddingServiceError) as caught:
            await router.embed(TEXTS, model="mxbai-embed-large", request_id="req-7")
    error = caught.value
    assert (error.code, error.name, error.request_id) == ("ERR_5004", "EMBEDDING_SERVICE_ERROR", "req-7")
    assert "sky" not in str(error)


async def test_every_face_gives_the_same_vectors(servers: Servers) -> None:
    def work() -> list[list[float]]:
        with SyncRouter.open(servers.config, probe=False) as router:
            return router.embed(TEXTS, model="mxbai-embed-large", timeout_s=5.0).vectors

    alone = OllamaProvider(servers.ollama.url, model="mxbai-embed-large")
    async with Router.open(servers.config, probe=False) as router:
        bound: LLMProvider = router.provider("synthesis")
        found = [
            (await bound.embed(TEXTS, model="mxbai-embed-large")).vectors,
            (await alone.embed(TEXTS)).vectors,
            await asyncio.to_thread(work),
        ]
    await alone.aclose()
    assert found[0] == found[1] == found[2]
    other = VllmProvider(servers.embedder.url, model="Embed")
    assert (await other.embed(TEXTS)).vectors != found[0]
    await other.aclose()
