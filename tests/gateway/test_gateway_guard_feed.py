"""What the guard learns of through a gateway: an SDK's retries, who left in vain, maintenance, probes, load."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack import ME, VLLM_MODEL, Stack, open_stack, until

from memos_llm.core.commands import Maintain
from memos_llm.core.events import AttemptEnded, AttemptStarted, ProbeEnded

BODY = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "hi"}], "stream": False}
CHAT = "/v1/chat/completions"


async def ask(stack: Stack, path: str = CHAT, **options: Any) -> httpx.Response:
    async with stack.client() as client:
        return await client.post(path, json=BODY, **options)


@pytest.mark.parametrize("path", [CHAT, "/api/chat", "/v1/messages"], ids=["split", "native", "passed on"])
async def test_an_sdk_says_how_often_it_has_tried_and_nobody_upstream_hears(path: str, tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        for said, heard in (("2", 2), ("0", 0), ("500", 99), ("x", 0), ("-1", 0), ("9" * 30, 0), (None, 0)):
            await ask(stack, path, headers={} if said is None else {"x-stainless-retry-count": said})
            assert stack.told.of(AttemptStarted)[-1].retry == heard, said
        for request in (*stack.ollama.requests, *stack.vllm.requests):
            assert "x-stainless-retry-count" not in request.headers


async def test_under_maintenance_requests_are_diverted_until_it_is_over(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        await stack.shift(1.0)
        live = stack.runtime.live
        await live.submit(Maintain(provider="vllm", until=time.time() + 600), ME)
        response = await ask(stack)
        assert (response.headers["x-memos-provider"], response.headers["x-memos-reason"]) == ("ollama", "diverted")
        assert response.headers["x-memos-arm"] == "candidate"
        assert 'diverted_total{provider="vllm",reason="maintenance"} 1.0' in await stack.metrics()
        await live.submit(Maintain(provider="vllm", until=None), ME)
        assert (await ask(stack)).headers["x-memos-provider"] == "vllm"
        await live.submit(Maintain(provider="vllm", until=time.time() + 0.05), ME)
        await until(lambda: not live.current().maintained(time.time()))
        assert (await ask(stack)).headers["x-memos-provider"] == "vllm"
        assert stack.attempts() == [("ollama", "ok"), ("vllm", "ok"), ("vllm", "ok")]


async def test_under_maintenance_the_last_resort_still_answers(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        await stack.shift(1.0)
        await stack.runtime.live.submit(Maintain(provider="vllm", until=time.time() + 600), ME)
        stack.ollama.faults.set("status:code=500")
        assert (await ask(stack)).headers["x-memos-provider"] == "vllm"


@pytest.mark.parametrize("others", [True, False], ids=["others are served", "nobody is served"])
async def test_who_leaves_in_vain_is_told_with_whether_anybody_was_served(others: bool, tmp_path: Path) -> None:
    async with open_stack(tmp_path, vllm={"inter_token_s": 0.01}) as stack:
        await stack.shift(1.0)
        stack.vllm.faults.set("hang:count=1")
        leaving = asyncio.create_task(ask(stack))
        await until(lambda: stack.vllm.counters.in_flight == 1)
        if others:
            assert (await ask(stack)).headers["x-memos-provider"] == "vllm"
        leaving.cancel()
        await until(lambda: any(e.outcome.kind == "cancelled" for e in stack.told.of(AttemptEnded)))
        (left,) = [e for e in stack.told.of(AttemptEnded) if e.outcome.kind == "cancelled"]
        assert left.silent is not others


async def test_the_load_of_a_back_end_is_shown(tmp_path: Path) -> None:
    async with open_stack(tmp_path, probe=True) as stack:
        await until(lambda: any(e.load for e in stack.told.of(ProbeEnded)))
        place = f'{{endpoint="{stack.vllm.url}",provider="vllm"}}'
        shown = await stack.metrics()
        for name in ("backend_requests_running", "backend_requests_waiting", "prefix_cache_hits_total"):
            assert f"memos_llm_{name}{place} 0.0" in shown
        assert "# TYPE memos_llm_prefix_cache_queries_total counter" in shown


async def test_a_server_with_another_model_fails_its_probe(tmp_path: Path) -> None:
    async with open_stack(tmp_path, vllm={"models": ["Another/Model"]}, probe=True) as stack:
        await until(lambda: len(stack.told.of(ProbeEnded)) >= 2)
        failures = {e.provider: e.failure for e in stack.told.of(ProbeEnded)}
        assert failures == {"ollama": "", "vllm": "config"}
        assert VLLM_MODEL not in str(stack.vllm.requests)


async def test_a_cold_load_is_no_failed_probe(tmp_path: Path) -> None:
    async with open_stack(tmp_path, ollama={"load_s": 60.0}) as stack:
        asking = asyncio.create_task(ask(stack))
        await until(lambda: stack.ollama.counters.loads == 1)
        (ended,) = await stack.runtime.transports["ollama"].probe()
        assert (ended.up, ended.failure) == (True, "")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert stack.ollama.counters.load_aborts == 0
