"""Mem0, with both of its providers: it asks its model, embeds what it keeps, finds it again; only the URL is ours."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from clients_facade import (
    ASKS_FOR_TOOL,
    CALLS_TOOLS,
    CHAT,
    DIMENSION,
    EMBED,
    SIDES,
    TOOL,
    UNDERSTANDS,
    Facade,
    open_facade,
)
from stack import LEAVES_SOCKETS

pytestmark = LEAVES_SOCKETS
KINDS = pytest.mark.parametrize("memory", ["ollama", "openai"], indirect=True)


@pytest.fixture(params=SIDES.values(), ids=list(SIDES))
async def facade(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Facade]:
    async with open_facade(tmp_path, request.param) as opened:
        yield opened


def configured(kind: str, facade: Facade, folder: Path) -> dict[str, Any]:
    if kind == "ollama":
        llm: dict[str, Any] = {"model": CHAT, "ollama_base_url": facade.url}
        embedder: dict[str, Any] = {"model": EMBED, "ollama_base_url": facade.url}
    else:
        llm = {"model": CHAT, "openai_base_url": f"{facade.url}/v1", "api_key": "any"}
        embedder = {"model": EMBED, "openai_base_url": f"{facade.url}/v1", "api_key": "any"}
        embedder["embedding_dims"] = DIMENSION
    store = {"path": str(folder / "qdrant"), "embedding_model_dims": DIMENSION, "collection_name": "memories"}
    return {
        "llm": {"provider": kind, "config": llm},
        "embedder": {"provider": kind, "config": embedder},
        "vector_store": {"provider": "qdrant", "config": store},
        "history_db_path": str(folder / "history.db"),
    }


@pytest.fixture
async def memory(
    facade: Facade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Any:
    monkeypatch.setenv("MEM0_TELEMETRY", "False")
    monkeypatch.setenv("MEM0_DIR", str(tmp_path / "mem0"))
    from mem0 import Memory

    # It asks Ollama for its models, and blocks meanwhile.
    return await asyncio.to_thread(Memory.from_config, configured(request.param, facade, tmp_path))


@KINDS
async def test_it_asks(memory: Any, facade: Facade) -> None:
    question = [{"role": "user", "content": "Why is the sky blue?"}]
    assert facade.voice in str(await asyncio.to_thread(memory.llm.generate_response, question))
    assert facade.served_by() == {facade.provider}


@CALLS_TOOLS
@KINDS
async def test_it_calls_a_tool(memory: Any, facade: Facade) -> None:
    question = [{"role": "user", "content": ASKS_FOR_TOOL}]
    called = await asyncio.to_thread(memory.llm.generate_response, question, tools=[TOOL])
    assert called["tool_calls"][0]["name"] == "get_weather"
    assert facade.served_by() == {facade.provider}


def search(memory: Any) -> list[str]:
    for text in ("The cat sleeps on the mat", "Paris is the capital of France"):
        memory.add(text, user_id="u", infer=False)
    found = memory.search("where does the cat sleep", filters={"user_id": "u"}, top_k=2)
    return [each["memory"] for each in found["results"]]


@UNDERSTANDS
@KINDS
async def test_it_finds_what_it_remembers(memory: Any, facade: Facade) -> None:
    assert (await asyncio.to_thread(search, memory))[0] == "The cat sleeps on the mat"
    assert facade.served_by() == {facade.provider}
