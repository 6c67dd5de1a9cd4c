"""Cold models, as users of the gateway meet them: nobody who leaves spoils the load for the others."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack import OLLAMA_MODELS, VLLM_MODEL, Stack, document, open_gateway, open_stack, settings, until

from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.providers.http import HttpTransport

CHAT = {"model": "qwen3:8b", "stream": False, "messages": [{"role": "user", "content": "hi"}]}
ROUTES = [
    ("/api/chat", CHAT),
    ("/api/generate", {"model": "qwen3:8b", "prompt": "hi"}),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
]


async def leave_while_loading(stack: Stack, path: str, body: Any, count: int = 1) -> None:
    """So many clients ask, and leave when all of them wait for the load."""
    clients = [asyncio.create_task(answered(stack, path, body)) for _ in range(count)]
    transport = stack.runtime.transports["ollama"]
    assert isinstance(transport, HttpTransport)
    (endpoint,) = transport._pool
    await until(lambda: endpoint.in_flight == count and stack.ollama.counters.loads)
    for client in clients:
        client.cancel()
    await asyncio.wait(clients)
    await until(lambda: endpoint.in_flight == 0)


async def answered(stack: Stack, path: str, body: Any) -> httpx.Response:
    async with stack.client() as client:
        return await client.post(path, json=body)


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_clients_that_leave_do_not_abort_the_load(tmp_path: Path, path: str, body: Any) -> None:
    async with open_stack(tmp_path, ollama={"load_s": 1.0}) as stack:
        await leave_while_loading(stack, path, body, 20)
        counters = stack.ollama.counters
        assert (counters.loads, counters.loads_completed.total()) == (1, 0)
        await until(lambda: counters.loads_completed.total())
        assert (await answered(stack, path, body)).status_code == 200
        assert (counters.loads, counters.load_aborts) == (1, 0)


async def test_the_next_client_waits_for_the_load_that_is_under_way(tmp_path: Path) -> None:
    async with open_stack(tmp_path, ollama={"load_s": 0.5}) as stack:
        await leave_while_loading(stack, *ROUTES[0])
        assert (await answered(stack, *ROUTES[0])).status_code == 200
        assert (stack.ollama.counters.loads, stack.ollama.counters.load_aborts) == (1, 0)


async def test_a_cold_model_is_loaded_as_the_request_says(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        body = {**CHAT, "options": {"num_ctx": 1024}}
        for _ in range(2):
            assert (await answered(stack, "/api/chat", body)).status_code == 200
        assert stack.ollama.counters.loads == 1


async def test_a_hung_candidate_is_passed_over_and_nobody_sees_an_error(tmp_path: Path) -> None:
    limits = {"connect_s": 3, "stall_s": 0.3, "total_s": 20}
    async with open_stack(tmp_path, config={"timeouts": limits}, probe=False) as stack:
        await stack.shift(1.0)
        stack.vllm.faults.set("hang_after_headers")
        first = await answered(stack, *ROUTES[2])
        assert (first.status_code, first.headers["x-memos-provider"]) == (200, "ollama")
        assert stack.attempts() == [("vllm", "timeout"), ("ollama", "ok")]
        stack.vllm.faults.clear()
        await until(lambda: stack.runtime.transports["vllm"].offer("Qwen/Qwen3-8B").refused is None)
        assert (await answered(stack, *ROUTES[2])).headers["x-memos-provider"] == "vllm"


@asynccontextmanager
async def with_ollama(folder: Path, ollama: Mapping[str, Any], **provider: Any) -> AsyncIterator[Stack]:
    """A stack whose Ollama provider has further settings."""
    async with OllamaEmulator(models=OLLAMA_MODELS, **ollama) as old, VllmEmulator(models=[VLLM_MODEL]) as new:
        providers = document(old.url, new.url, folder)["providers"]
        providers["ollama"] |= provider
        config = document(old.url, new.url, folder, providers=providers)
        async with open_gateway(settings(folder, config)) as gateway:
            yield Stack(old, new, *gateway)


async def test_a_full_endpoint_answers_503_and_says_when_to_come_again(tmp_path: Path) -> None:
    async with with_ollama(tmp_path, {"ttft_s": 30.0}, max_inflight=1, queue_s=0.1) as stack:
        first = asyncio.create_task(answered(stack, *ROUTES[0]))
        await until(lambda: stack.ollama.counters.requests["/api/chat"])
        response = await answered(stack, *ROUTES[0])
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.headers["x-should-retry"] == "false"
        assert stack.ollama.counters.requests["/api/chat"] == 1
        first.cancel()
        await asyncio.wait([first])


async def test_models_are_kept_warm_while_the_candidate_has_a_share(tmp_path: Path) -> None:
    async with with_ollama(tmp_path, {}, keep_warm=["llama3.2:3b"]) as stack:
        assert stack.ollama.counters.requests.total() == 0
        await stack.shift(0.1)
        await until(lambda: stack.ollama.counters.loads_completed.total())
        assert stack.ollama.counters.loads == 1
