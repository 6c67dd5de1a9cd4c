"""`native_chat`: an OpenAI client reaches Ollama's own wire, and loses nothing on the way."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from stack import document, open_gateway, settings

from memos_llm.emulators import OllamaEmulator

KEPT: dict[str, Any] = {"top_k": 7, "min_p": 0.1, "num_ctx": 2048, "keep_alive": "1h"}
MESSAGES: list[Any] = [{"role": "user", "content": "Why is the sky blue? tool:get_weather"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(params=[True, False], ids=["native_chat", "/v1"])
async def side(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[OllamaEmulator, str, bool]]:
    async with OllamaEmulator(port=0, models=["qwen3:8b"]) as ollama:
        config = document(ollama.url, "http://127.0.0.1:9", tmp_path)
        config["providers"]["ollama"]["native_chat"] = request.param
        async with open_gateway(settings(tmp_path, config)) as (_, _, url):
            yield ollama, url, request.param


async def test_what_ollama_s_v1_would_drop(side: tuple[OllamaEmulator, str, bool]) -> None:
    ollama, url, native = side
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="qwen3:8b", messages=MESSAGES, tools=[TOOL], extra_body=KEPT
        )
    answer = raw.parse()
    assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) is not None  # type: ignore[index,union-attr]  # the emulator's is a function call
    warned = raw.headers.get("x-memos-warnings", "")
    sent = [request for request in ollama.requests if b"sky" in request.body][-1]
    body = json.loads(sent.body)
    if native:
        assert sent.path == "/api/chat"
        assert body["options"] == {"top_k": 7, "min_p": 0.1, "num_ctx": 2048}
        assert body["keep_alive"] == "1h"
        assert warned == ""
    else:
        assert sent.path == "/v1/chat/completions"
        assert {"dropped:top_k", "dropped:min_p", "dropped:num_ctx"} <= set(warned.split(", "))
