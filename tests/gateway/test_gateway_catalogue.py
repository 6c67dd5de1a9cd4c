"""Several vLLM servers behind one name: each model finds its servers, a conversation its replica, and one may die."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack import ME, OLLAMA_MODELS, document, open_gateway, settings

from memos_llm.core.commands import Shift
from memos_llm.core.flags import PPM
from memos_llm.emulators import OllamaEmulator, VllmEmulator

QWEN, LLAMA = "Qwen/Qwen3-8B", "meta-llama/Llama-3.2-3B"
CHAT = "/v1/chat/completions"


class Fleet:
    """Two replicas of one model and a server of another, all moved to."""

    def __init__(self, client: httpx.AsyncClient, runtime: Any, servers: list[VllmEmulator]) -> None:
        self.client, self.runtime = client, runtime
        *self.replicas, self.other = servers

    async def ask(self, model: str, session: str, messages: Any = None) -> httpx.Response:
        body = {"model": model, "messages": messages or [{"role": "user", "content": "hi"}]}
        response = await self.client.post(CHAT, json=body, headers={"x-memos-session": session})
        assert response.status_code == 200, response.text
        return response

    def asked(self) -> list[int]:
        return [server.counters.requests[CHAT] for server in (*self.replicas, self.other)]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        ollama = await stack.enter_async_context(OllamaEmulator(port=0, models=OLLAMA_MODELS))
        servers = [await stack.enter_async_context(VllmEmulator(port=0, models=[m])) for m in (QWEN, QWEN, LLAMA)]
        models = {"qwen3:8b": {"vllm": QWEN, "aliases": ["small"]}, "llama3.2:3b": {"vllm": LLAMA}}
        config = document(ollama.url, "", tmp_path, models=models)
        config["providers"]["vllm"] = {"kind": "vllm", "endpoints": [{"url": server.url} for server in servers]}
        runtime, _, url = await stack.enter_async_context(open_gateway(settings(tmp_path, config)))
        await runtime.live.submit(Shift(provider="vllm", share_ppm=PPM), ME)
        await runtime.transports["vllm"].probe()
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=20.0))
        yield Fleet(client, runtime, servers)


async def hits(server: VllmEmulator) -> float:
    async with httpx.AsyncClient() as client:
        lines = (await client.get(f"{server.url}/metrics")).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))


async def test_each_model_is_asked_where_it_is_served(fleet: Fleet) -> None:
    for i in range(20):
        for model in ("qwen3:8b", "small", "llama3.2:3b"):
            response = await fleet.ask(model, f"s{i}")
            assert (response.headers["x-memos-provider"], response.headers["x-memos-attempts"]) == ("vllm", "1")
    one, two, other = fleet.asked()
    assert (one + two, other) == (40, 20)
    assert min(one, two) > 5  # conversations spread over the replicas


async def test_a_conversation_stays_where_its_prefix_is_cached(fleet: Fleet) -> None:
    turns = [{"role": "user", "content": "a long question " * 50}]
    for _ in range(4):
        answer = (await fleet.ask("qwen3:8b", "one", turns)).json()["choices"][0]["message"]["content"]
        turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": "and then?"}]
    assert sorted(fleet.asked()[:2]) == [0, 4]
    assert sorted([await hits(server) > 100 for server in fleet.replicas]) == [False, True]


async def test_a_replica_that_dies_is_nobody_s_error_and_its_conversations_move(fleet: Fleet) -> None:
    fleet.replicas[0].faults.set("refuse")
    for i in range(20):
        await fleet.ask("qwen3:8b", f"s{i}")  # each is answered, by the baseline where it met the dead one
    await fleet.runtime.transports["vllm"].probe()
    for i in range(20):
        response = await fleet.ask("qwen3:8b", f"s{i}")
        assert (response.headers["x-memos-provider"], response.headers["x-memos-attempts"]) == ("vllm", "1")


async def test_a_server_that_comes_back_with_another_model_is_asked_for_that(fleet: Fleet) -> None:
    for server in (*fleet.replicas, fleet.other):
        server.faults.set("refuse")  # its port is free
    port = int(fleet.other.url.rpartition(":")[2])
    async with VllmEmulator(port=port, models=[QWEN]) as back:
        await fleet.runtime.transports["vllm"].probe()
        for i in range(10):
            response = await fleet.ask("qwen3:8b", f"s{i}")
            assert (response.headers["x-memos-provider"], response.headers["x-memos-attempts"]) == ("vllm", "1")
        assert back.counters.requests[CHAT] == 10
