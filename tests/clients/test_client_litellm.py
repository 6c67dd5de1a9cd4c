"""LiteLLM as a client, in both of its dialects: chat, streams, tools, embeddings; only the URL is ours.

Its blocking calls, in a thread: the others block their loop too (for a price, at /api/show) and leave work behind.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from clients_facade import ASKS_FOR_TOOL, CALLS_TOOLS, CHAT, DIMENSION, EMBED, SIDES, TOOL, Facade, open_facade
from stack import LEAVES_SOCKETS

pytestmark = LEAVES_SOCKETS


class Spoken(NamedTuple):
    """How LiteLLM is told to reach the facade in one dialect."""

    facade: Facade
    chat: str
    embed: str
    base: dict[str, Any]


@pytest.fixture(params=SIDES.values(), ids=list(SIDES))
async def facade(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Facade]:
    async with open_facade(tmp_path, request.param) as opened:
        yield opened


@pytest.fixture(params=["openai", "ollama"])
def spoken(request: pytest.FixtureRequest, facade: Facade, monkeypatch: pytest.MonkeyPatch) -> Spoken:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the internet for prices
    if request.param == "openai":
        base = {"api_base": f"{facade.url}/v1", "api_key": "any"}
        return Spoken(facade, f"openai/{CHAT}", f"openai/{EMBED}", base)
    return Spoken(facade, f"ollama_chat/{CHAT}", f"ollama/{EMBED}", {"api_base": facade.url})


def ask(spoken: Spoken, text: str, **options: Any) -> Any:
    import litellm

    messages = [{"role": "user", "content": text}]
    return litellm.completion(model=spoken.chat, messages=messages, **options, **spoken.base)


async def test_chat(spoken: Spoken) -> None:
    answer = await asyncio.to_thread(ask, spoken, "Why is the sky blue?")
    assert answer.choices[0].message.content.startswith(spoken.facade.voice)
    assert answer.usage.completion_tokens > 0
    assert spoken.facade.served_by() == {spoken.facade.provider}


async def test_a_stream(spoken: Spoken) -> None:
    def streamed() -> str:
        stream = ask(spoken, "Why is the sky blue?", stream=True)
        return "".join([chunk.choices[0].delta.content or "" for chunk in stream])

    text = await asyncio.to_thread(streamed)
    assert text.startswith(spoken.facade.voice)
    assert spoken.facade.served_by() == {spoken.facade.provider}


@CALLS_TOOLS
async def test_tools(spoken: Spoken) -> None:
    answer = await asyncio.to_thread(ask, spoken, ASKS_FOR_TOOL, tools=[TOOL])
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert spoken.facade.served_by() == {spoken.facade.provider}


async def test_embeddings(spoken: Spoken) -> None:
    import litellm

    answer = await asyncio.to_thread(
        lambda: litellm.embedding(model=spoken.embed, input=["sky", "rain"], **spoken.base)
    )
    assert [len(item["embedding"]) for item in answer.data] == [DIMENSION, DIMENSION]
    assert spoken.facade.served_by() == {spoken.facade.provider}
