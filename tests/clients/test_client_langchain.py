"""`langchain-ollama` and `langchain-openai`: chat, streams, tools, structure, embeddings; only the URL is ours."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from clients_facade import ASKS_FOR_TOOL, CALLS_TOOLS, CHAT, DIMENSION, EMBED, SCHEMA, SIDES, Facade, open_facade
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr
from stack import LEAVES_SOCKETS

KEY = SecretStr("any")


pytestmark = LEAVES_SOCKETS


@pytest.fixture(params=SIDES.values(), ids=list(SIDES))
async def facade(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Facade]:
    async with open_facade(tmp_path, request.param) as opened:
        yield opened


@pytest.fixture(params=["ollama", "openai"])
def chat(request: pytest.FixtureRequest, facade: Facade) -> BaseChatModel:
    if request.param == "ollama":
        return ChatOllama(base_url=facade.url, model=CHAT, reasoning=False)
    return ChatOpenAI(base_url=f"{facade.url}/v1", model=CHAT, api_key=KEY, max_retries=0)


@pytest.fixture(params=["ollama", "openai"])
def embeddings(request: pytest.FixtureRequest, facade: Facade) -> Embeddings:
    if request.param == "ollama":
        return OllamaEmbeddings(base_url=facade.url, model=EMBED)
    # Without this it sends token ids of OpenAI's own tokenizer, which no other model understands.
    return OpenAIEmbeddings(
        base_url=f"{facade.url}/v1", model=EMBED, api_key=KEY, max_retries=0, check_embedding_ctx_length=False
    )


@tool
def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"4 degrees in {city}"


async def test_chat(facade: Facade, chat: BaseChatModel) -> None:
    answer = await chat.ainvoke("Why is the sky blue?")
    assert str(answer.content).startswith(facade.voice)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0
    assert facade.served_by() == {facade.provider}


async def test_a_stream_adds_up(facade: Facade, chat: BaseChatModel) -> None:
    whole = await chat.ainvoke("Why is the sky blue?")
    pieces = [str(piece.content) async for piece in chat.astream("Why is the sky blue?")]
    assert "".join(pieces) == whole.content
    assert len(pieces) > 2
    assert facade.served_by() == {facade.provider}


@CALLS_TOOLS
async def test_tools_over_two_turns(facade: Facade, chat: BaseChatModel) -> None:
    bound = chat.bind_tools([get_weather])
    question = HumanMessage(ASKS_FOR_TOOL)
    called = await bound.ainvoke([question])
    (call,) = called.tool_calls
    assert call["name"] == "get_weather"
    assert set(call["args"]) == {"city"}
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    answer = await bound.ainvoke([question, called, result])
    assert str(answer.content).startswith(facade.voice)
    assert facade.served_by() == {facade.provider}


async def test_structured_output(facade: Facade, chat: BaseChatModel) -> None:
    asked: Any = chat.with_structured_output(SCHEMA, method="json_schema")
    assert set(await asked.ainvoke("the weather")) == {"city", "degrees"}
    assert facade.served_by() == {facade.provider}


async def test_embeddings(facade: Facade, embeddings: Embeddings) -> None:
    vectors = await embeddings.aembed_documents(["sky", "rain"])
    assert [len(vector) for vector in vectors] == [DIMENSION, DIMENSION]
    assert await embeddings.aembed_query("sky") == pytest.approx(vectors[0], abs=1e-5)
    assert facade.served_by() == {facade.provider}
