"""The real `ollama` and `openai` SDKs, unmodified but for the URL, at share 0 and at share 1."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import ollama
import openai
import pytest
from stack import Stack, open_stack

MESSAGES: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
WEATHER: list[Any] = [{"role": "user", "content": "What is the weather in Oslo? tool:get_weather"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
}
VOICE = {0.0: "Ollama answers", 1.0: "vLLM replies"}


class Side(NamedTuple):
    """The product at one share, who answers there, and both SDKs pointed at it."""

    stack: Stack
    voice: str
    native: ollama.AsyncClient
    compatible: openai.AsyncOpenAI


@pytest.fixture(params=[0.0, 1.0], ids=["share 0", "share 1"])
async def side(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Side]:
    async with open_stack(tmp_path) as stack:
        await stack.shift(request.param)
        native = ollama.AsyncClient(host=f"{stack.url}/c/synthesis/s/conv-1")
        async with (
            openai.AsyncOpenAI(base_url=f"{stack.url}/c/synthesis/v1", api_key="any", max_retries=0) as compatible,
            native._client,  # the SDK has no public way to close it
        ):
            yield Side(stack, VOICE[request.param], native, compatible)


async def test_ollama_chat(side: Side) -> None:
    answer = await side.native.chat("qwen3:8b", MESSAGES, think=False)
    assert answer.message.content is not None
    assert answer.message.content.startswith(side.voice)
    assert (answer.model, answer.done, answer.done_reason) == ("qwen3:8b", True, "stop")
    for count in (answer.prompt_eval_count, answer.eval_count, answer.total_duration, answer.eval_duration):
        assert count is not None
        assert count > 0


async def test_ollama_chat_stream_adds_up(side: Side) -> None:
    whole = await side.native.chat("qwen3:8b", MESSAGES)
    chunks = [chunk async for chunk in await side.native.chat("qwen3:8b", MESSAGES, stream=True)]
    assert "".join(c.message.content or "" for c in chunks) == whole.message.content
    assert "".join(c.message.thinking or "" for c in chunks) == whole.message.thinking
    assert [c.done for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert (chunks[-1].eval_count, chunks[-1].prompt_eval_count) == (whole.eval_count, whole.prompt_eval_count)


async def test_ollama_generate(side: Side) -> None:
    whole = await side.native.generate("qwen3:8b", "Why is the sky blue?", think=False)
    assert (whole.response or "").startswith(side.voice)
    chunks = [c async for c in await side.native.generate("qwen3:8b", "Why is the sky blue?", think=False, stream=True)]
    assert "".join(c.response or "" for c in chunks) == whole.response
    assert chunks[-1].done_reason == "stop"


async def test_ollama_thinking_is_kept_apart(side: Side) -> None:
    thought = await side.native.chat("qwen3:8b", MESSAGES, think=True)
    assert thought.message.thinking
    assert thought.message.content is not None
    assert thought.message.content.startswith(side.voice)
    plain = await side.native.chat("qwen3:8b", MESSAGES, think=False)
    assert not plain.message.thinking


@pytest.mark.parametrize("stream", [False, True])
async def test_ollama_tools_over_two_turns(side: Side, stream: bool) -> None:
    client = side.native
    if stream:
        chunks = [c async for c in await client.chat("qwen3:8b", WEATHER, tools=[TOOL], stream=True, think=False)]
        calls = [call for c in chunks for call in c.message.tool_calls or ()]
    else:
        calls = list((await client.chat("qwen3:8b", WEATHER, tools=[TOOL], think=False)).message.tool_calls or ())
    (call,) = calls
    assert call.function.name == "get_weather"
    assert set(call.function.arguments) == {"city"}
    history = [
        *WEATHER,
        {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_name": "get_weather", "content": "4 degrees"},
    ]
    answer = await client.chat("qwen3:8b", history, tools=[TOOL], think=False)
    assert (answer.message.content or "").startswith(side.voice)


@pytest.mark.parametrize("form", ["json", SCHEMA], ids=["json", "schema"])
async def test_ollama_structured_output(side: Side, form: Any) -> None:
    answer = await side.native.chat("qwen3:8b", MESSAGES, format=form, think=False)
    document = json.loads(answer.message.content or "")
    if form is SCHEMA:
        assert set(document) == {"city", "degrees"}


async def test_ollama_options_are_honoured(side: Side) -> None:
    answer = await side.native.chat("qwen3:8b", MESSAGES, think=False, options={"num_predict": 3, "temperature": 0})
    assert (answer.done_reason, answer.eval_count) == ("length", 3)


async def test_ollama_lists_models(side: Side) -> None:
    assert {"qwen3:8b", "llama3.2:3b"} <= {m.model for m in (await side.native.list()).models}


async def test_ollama_errors_are_the_sdks_own(side: Side) -> None:
    with pytest.raises(ollama.ResponseError, match="nobody") as caught:
        await side.native.chat("nobody:1b", MESSAGES)
    assert caught.value.status_code == 404


async def test_openai_chat(side: Side) -> None:
    answer = await side.compatible.chat.completions.create(model="qwen3:8b", messages=MESSAGES)
    (choice,) = answer.choices
    assert (choice.message.content or "").startswith(side.voice)
    assert (answer.model, choice.finish_reason) == ("qwen3:8b", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_openai_stream_adds_up(side: Side) -> None:
    client = side.compatible
    whole = await client.chat.completions.create(model="qwen3:8b", messages=MESSAGES)
    stream = await client.chat.completions.create(
        model="qwen3:8b", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


async def test_openai_usage_comes_only_when_asked_for(side: Side) -> None:
    stream = await side.compatible.chat.completions.create(model="qwen3:8b", messages=MESSAGES, stream=True)
    assert [chunk.usage async for chunk in stream if chunk.usage is not None] == []
    (end,) = await side.stack.ended()
    assert end.usage is not None  # counted all the same


async def test_openai_tools_over_two_turns(side: Side) -> None:
    client = side.compatible
    first = await client.chat.completions.create(model="qwen3:8b", messages=WEATHER, tools=[TOOL])
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert set(json.loads(call.function.arguments)) == {"city"}
    history: list[Any] = [
        *WEATHER,
        {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "4 degrees"},
    ]
    answer = await client.chat.completions.create(model="qwen3:8b", messages=history, tools=[TOOL])
    assert (answer.choices[0].message.content or "").startswith(side.voice)


async def test_openai_structured_output(side: Side) -> None:
    answer = await side.compatible.chat.completions.create(
        model="qwen3:8b",
        messages=MESSAGES,
        response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}},
    )
    assert set(json.loads(answer.choices[0].message.content or "")) == {"city", "degrees"}


async def test_openai_errors_are_the_sdks_own(side: Side) -> None:
    client = side.compatible
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="nobody:1b", messages=MESSAGES)
    side.stack.ollama.faults.set("refuse")
    side.stack.vllm.faults.set("refuse")
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="qwen3:8b", messages=MESSAGES)
    assert caught.value.status_code == 503


async def test_openai_lists_models(side: Side) -> None:
    assert {"qwen3:8b", "llama3.2:3b"} <= {m.id async for m in side.compatible.models.list()}


async def test_an_sdk_that_retries_by_default_is_told_not_to(stack: Stack) -> None:
    stack.ollama.faults.set("refuse")
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="any", max_retries=5) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="qwen3:8b", messages=MESSAGES)
    assert len(await stack.ended()) == 1
