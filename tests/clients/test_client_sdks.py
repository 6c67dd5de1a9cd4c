"""The `openai` and `ollama` SDKs: one suite at share 0 and at share 1, sync and async; only the URL is ours."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest
from clients_facade import (
    ASKS_FOR_TOOL,
    CALLS_TOOLS,
    CHAT,
    DIMENSION,
    EMBED,
    REAL,
    SCHEMA,
    SIDES,
    THINKS,
    TOOL,
    Facade,
    alike,
    open_facade,
)

MESSAGES: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
WEATHER: list[Any] = [{"role": "user", "content": ASKS_FOR_TOOL}]
TOOLS: list[Any] = [TOOL]


@pytest.fixture(params=SIDES.values(), ids=list(SIDES))
async def facade(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Facade]:
    async with open_facade(tmp_path, request.param) as opened:
        yield opened


@pytest.fixture
async def native(facade: Facade) -> AsyncIterator[ollama.AsyncClient]:
    client = ollama.AsyncClient(host=facade.url)
    async with client._client:  # the SDK has no public way to close it
        yield client


@pytest.fixture
async def compatible(facade: Facade) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{facade.url}/v1", api_key="any", max_retries=0) as client:
        yield client


# --- openai -----------------------------------------------------------------------------------------------------------


def sync_openai(facade: Facade) -> None:
    with openai.OpenAI(base_url=f"{facade.url}/v1", api_key="any", max_retries=0) as client:
        answer = client.chat.completions.create(model=CHAT, messages=MESSAGES)
        assert (answer.choices[0].message.content or "").startswith(facade.voice)
        chunks = client.chat.completions.create(model=CHAT, messages=MESSAGES, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content
        assert len(client.embeddings.create(model=EMBED, input="sky").data[0].embedding) == DIMENSION
        assert {model.id.removesuffix(":latest") for model in client.models.list()} >= {CHAT, EMBED}
        assert client.models.retrieve(CHAT).id == CHAT


async def test_openai_sync(facade: Facade) -> None:
    await asyncio.to_thread(sync_openai, facade)
    assert facade.served_by() == {facade.provider}


async def test_openai_parsed_output(facade: Facade, compatible: openai.AsyncOpenAI) -> None:
    answer = await compatible.chat.completions.create(
        model=CHAT,
        messages=MESSAGES,
        response_format={"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}},
    )
    assert set(json.loads(answer.choices[0].message.content or "")) == {"city", "degrees"}
    assert facade.served_by() == {facade.provider}


@CALLS_TOOLS
@pytest.mark.parametrize("stream", [False, True])
async def test_openai_tools(facade: Facade, compatible: openai.AsyncOpenAI, stream: bool) -> None:
    if stream:
        async with compatible.chat.completions.stream(model=CHAT, messages=WEATHER, tools=TOOLS) as events:
            answer: Any = await events.get_final_completion()
    else:
        answer = await compatible.chat.completions.create(model=CHAT, messages=WEATHER, tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls
    assert call.type == "function"
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert facade.served_by() == {facade.provider}


async def test_openai_completions(facade: Facade, compatible: openai.AsyncOpenAI) -> None:
    whole = await compatible.completions.create(model=CHAT, prompt="Why is the sky blue?")
    assert whole.choices[0].text
    assert whole.usage is not None
    # And not after vLLM's 16 tokens; random weights may go on until the context is full.
    assert whole.choices[0].finish_reason == "stop" or (REAL and whole.usage.completion_tokens > 16)
    stream = await compatible.completions.create(model=CHAT, prompt="Why is the sky blue?", stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert [chunk.usage for chunk in chunks if chunk.usage] == []
    assert facade.served_by() == {facade.provider}


async def test_openai_completions_of_a_list(facade: Facade, compatible: openai.AsyncOpenAI) -> None:
    prompts = ["Why is the sky blue?", "What is rain?"]
    alone = [(await compatible.completions.create(model=CHAT, prompt=prompt)).choices[0].text for prompt in prompts]
    whole = await compatible.completions.create(model=CHAT, prompt=prompts)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert all(map(alike, [choice.text for choice in whole.choices], alone))
    stream = await compatible.completions.create(model=CHAT, prompt=prompts, stream=True)
    texts = {0: "", 1: ""}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert all(map(alike, texts.values(), alone))


async def test_openai_embeddings(facade: Facade, compatible: openai.AsyncOpenAI) -> None:
    answer = await compatible.embeddings.create(model=EMBED, input=["sky", "rain"])  # base64 unless told otherwise
    floats = await compatible.embeddings.create(model=EMBED, input=["sky", "rain"], encoding_format="float")
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.model == EMBED
    for one, other in zip(answer.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-5)
        assert len(one.embedding) == DIMENSION
    assert answer.usage.prompt_tokens > 0
    assert facade.served_by() == {facade.provider}


async def test_openai_embeddings_of_a_long_text(facade: Facade, compatible: openai.AsyncOpenAI) -> None:
    answer = await compatible.embeddings.create(model=EMBED, input="word " * 2000)
    assert len(answer.data[0].embedding) == DIMENSION
    assert facade.served_by() == {facade.provider}


async def test_openai_responses_stay_with_the_baseline(facade: Facade, compatible: openai.AsyncOpenAI) -> None:
    answer = await compatible.responses.create(model=CHAT, input="Why is the sky blue?")
    assert answer.output_text
    assert facade.served_by() == {"ollama"}


# --- ollama -----------------------------------------------------------------------------------------------------------


def sync_ollama(facade: Facade) -> None:
    client = ollama.Client(host=facade.url)
    with client._client:
        answer = client.chat(CHAT, MESSAGES, think=False)
        assert (answer.message.content or "").startswith(facade.voice)
        chunks = client.chat(CHAT, MESSAGES, think=False, stream=True)
        assert "".join(chunk.message.content or "" for chunk in chunks) == answer.message.content
        assert len(client.embed(EMBED, "sky").embeddings[0]) == DIMENSION
        assert len(client.embeddings(EMBED, "sky").embedding) == DIMENSION


async def test_ollama_sync(facade: Facade) -> None:
    await asyncio.to_thread(sync_ollama, facade)
    assert facade.served_by() == {facade.provider}


async def test_ollama_generate_with_system_and_format(facade: Facade, native: ollama.AsyncClient) -> None:
    answer = await native.generate(CHAT, "the weather", system="be brief", format=SCHEMA, think=False)
    assert set(json.loads(answer.response or "")) == {"city", "degrees"}
    assert facade.served_by() == {facade.provider}


@THINKS
async def test_ollama_thinks(facade: Facade, native: ollama.AsyncClient) -> None:
    assert (await native.chat(CHAT, MESSAGES, think=True)).message.thinking
    assert not (await native.chat(CHAT, MESSAGES, think=False)).message.thinking
    assert facade.served_by() == {facade.provider}


@CALLS_TOOLS
async def test_ollama_tools(facade: Facade, native: ollama.AsyncClient) -> None:
    answer = await native.chat(CHAT, WEATHER, tools=TOOLS, think=False)
    (call,) = answer.message.tool_calls or []
    assert set(call.function.arguments) == {"city"}
    assert facade.served_by() == {facade.provider}


async def test_ollama_embed(facade: Facade, native: ollama.AsyncClient) -> None:
    answer = await native.embed(EMBED, ["sky", "rain"])
    assert [len(vector) for vector in answer.embeddings] == [DIMENSION, DIMENSION]
    assert sum(value * value for value in answer.embeddings[0]) == pytest.approx(1.0, abs=1e-3)
    assert answer.model == EMBED
    assert (answer.prompt_eval_count or 0) > 0
    shorter = await native.embed(EMBED, "sky", dimensions=16)
    assert len(shorter.embeddings[0]) == 16
    assert sum(value * value for value in shorter.embeddings[0]) == pytest.approx(1.0, abs=1e-3)
    assert facade.served_by() == {facade.provider}


async def test_ollama_embed_of_a_long_text(facade: Facade, native: ollama.AsyncClient) -> None:
    assert len((await native.embed(EMBED, "word " * 2000)).embeddings[0]) == DIMENSION
    with pytest.raises(ollama.ResponseError, match="input length exceeds the context length") as caught:
        await native.embed(EMBED, "word " * 2000, truncate=False)
    assert caught.value.status_code == 400


async def test_ollama_lists_shows_and_tells_what_runs(facade: Facade, native: ollama.AsyncClient) -> None:
    await native.chat(CHAT, MESSAGES)
    assert {(model.model or "").removesuffix(":latest") for model in (await native.list()).models} >= {CHAT, EMBED}
    shown = await native.show(CHAT)
    assert shown.modelinfo
    assert "completion" in (shown.capabilities or [])
    running = {(model.model or "").removesuffix(":latest") for model in (await native.ps()).models}
    assert CHAT in running or facade.share == 1.0


async def test_ollama_loads_and_pulls_what_is_there(facade: Facade, native: ollama.AsyncClient) -> None:
    loaded = await native.generate(CHAT, "")
    assert loaded.done_reason == "load"
    statuses = [progress.status async for progress in await native.pull(CHAT, stream=True)]
    assert (statuses[0], statuses[-1]) == ("pulling manifest", "success")
