"""The gateway's own surface: names, limits, headers, lists, health, metrics."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stack import Stack, document, open_gateway, open_stack, settings, until

from memos_llm.core.events import RequestEnded

BODY: dict[str, Any] = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "hi"}], "stream": False}


async def ask(stack: Stack, path: str = "/api/chat", body: Any = None, **options: Any) -> httpx.Response:
    async with stack.client() as client:
        content = body if isinstance(body, bytes) else json.dumps(body or BODY).encode()
        return await client.post(path, content=content, **options)


@pytest.mark.parametrize(
    ("path", "headers", "body", "component"),
    [
        ("/api/chat", {}, {}, "default"),
        ("/api/chat", {}, {"metadata": {"component": "analysis"}}, "analysis"),
        ("/c/reflection/api/chat", {}, {"metadata": {"component": "analysis"}}, "reflection"),
        ("/c/reflection/s/x/api/chat", {"x-memos-component": "synthesis"}, {}, "synthesis"),
        ("/api/chat", {}, {"model": "llama3.2:3b"}, "evaluation"),
    ],
)
async def test_a_component_is_named_by_header_path_body_or_rule(
    path: str, headers: dict[str, str], body: dict[str, Any], component: str, tmp_path: Path
) -> None:
    rules = {"routing": {"component_rules": [{"model": "llama3.2:*", "component": "evaluation"}]}}
    async with open_stack(tmp_path, config=rules) as stack:
        assert (await ask(stack, path, {**BODY, **body}, headers=headers)).status_code == 200
        (end,) = await stack.ended()
        assert end.component == component


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "says"),
    [
        ("/api/chat", b"", {}, 400, "missing request body"),
        ("/api/chat", b"{", {}, 400, "JSON"),
        ("/v1/chat/completions", b"[]", {}, 400, "JSON object"),
        ("/v1/chat/completions", b'{"messages":[]}', {}, 400, "model"),
        ("/api/chat", b'{"model":"qwen3:8b","MODEL":"other","messages":[]}', {}, 400, "twice"),
        ("/api/generate", b'{"prompt":"x"}', {}, 404, "model '' not found"),
        ("/api/chat", {"model": 7}, {}, 400, "model"),
        ("/api/chat", BODY, {"x-memos-component": "a b"}, 400, "component"),
        ("/api/chat", BODY, {"x-memos-timeout-ms": "soon"}, 400, "x-memos-timeout-ms"),
        ("/api/chat", BODY, {"x-memos-provider": "vllm"}, 403, "admin"),
        ("/c//api/chat", BODY, {}, 400, "COMPONENT"),
        ("/c/a/s//api/chat", BODY, {}, 400, "SESSION"),
        ("/v1/chat/completions", b"[" * 100_000, {}, 400, ""),
    ],
)
async def test_what_cannot_be_understood_is_a_clear_4xx(
    path: str, body: Any, headers: dict[str, str], status: int, says: str, stack: Stack
) -> None:
    response = await ask(stack, path, body, headers=headers)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert says in (error["message"] if isinstance(error, dict) else error)
    assert stack.ollama.counters.requests.total() == 0


async def test_the_body_has_a_limit(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"max_body_bytes": 1000}}) as stack:
        padded = {**BODY, "x": "y" * 2000}
        assert (await ask(stack, body=padded)).status_code == 413
        assert (await ask(stack)).status_code == 200


async def test_a_body_that_never_comes_has_a_limit(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"body_timeout_s": 0.2}}) as stack:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rpartition(":")[2]))
        writer.write(b"POST /api/chat HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert b"408" in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


async def test_concurrency_has_a_limit(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"max_concurrency": 1}}, ollama={"ttft_s": 30.0}) as stack:
        first = asyncio.create_task(ask(stack))
        await until(lambda: stack.ollama.counters.in_flight)
        second = await ask(stack)
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        first.cancel()


async def test_every_answer_says_who_served_it_and_why(stack: Stack) -> None:
    await stack.shift(1.0)
    headers = (await ask(stack, headers={"x-request-id": "my-id.7"})).headers
    told = {name: headers[f"x-memos-{name}"] for name in ("provider", "arm", "model", "attempts", "reason")}
    assert told == {
        "provider": "vllm", "arm": "candidate", "model": "Qwen/Qwen3-8B", "attempts": "1", "reason": "split",
    }  # fmt: skip
    assert headers["x-request-id"] == "my-id.7"
    assert headers["x-memos-warnings"]


@pytest.mark.parametrize("given", ["", "has space", "x" * 129, "semi;colon"])
async def test_an_ill_formed_request_id_is_replaced(given: str, stack: Stack) -> None:
    made = (await ask(stack, headers={"x-request-id": given})).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{24}", made)


async def test_the_callers_credentials_and_names_are_not_forwarded(stack: Stack) -> None:
    private = {"authorization": "Bearer sk-secret", "cookie": "a=b", "x-memos-session": "s", "origin": "x"}
    await ask(stack, headers=private)
    (received,) = [r for r in stack.ollama.requests if r.path == "/api/chat"]
    assert not set(private) & set(received.headers)
    assert received.headers["host"] == stack.ollama.url.removeprefix("http://")


async def test_a_callers_own_deadline_is_kept_and_blames_nobody(tmp_path: Path) -> None:
    async with open_stack(tmp_path, ollama={"ttft_s": 30.0}) as stack:
        response = await ask(stack, headers={"x-memos-timeout-ms": "300"})
        assert response.status_code == 504
        assert response.headers["x-memos-error-code"] == "ERR_5002"
        assert stack.attempts() == [("ollama", "cancelled")]


@pytest.mark.parametrize("feature", [{"template": "{{ .Prompt }}"}, {"context": [1, 2, 3]}])
async def test_what_the_candidate_does_not_offer_stays_with_the_baseline(feature: Any, tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        await stack.shift(1.0)
        response = await ask(stack, "/api/generate", {"model": "qwen3:8b", "prompt": "x", "stream": False, **feature})
        assert response.status_code == 200
        assert (response.headers["x-memos-provider"], response.headers["x-memos-reason"]) == ("ollama", "not-offered")
        assert stack.vllm.counters.requests.total() == 0


async def test_load_and_unload_go_to_ollama_only(stack: Stack) -> None:
    await stack.shift(1.0)
    for body in ({"model": "qwen3:8b"}, {"model": "qwen3:8b", "keep_alive": 0}):
        response = await ask(stack, "/api/generate", body)
        assert response.json()["done_reason"] == ("unload" if "keep_alive" in body else "load")
        assert response.headers["x-memos-provider"] == "ollama"


async def test_a_model_without_a_mapping_never_goes_to_the_candidate(stack: Stack) -> None:
    await stack.shift(1.0)
    response = await ask(stack, body={**BODY, "model": "llama3.2:3b"})
    assert (response.headers["x-memos-provider"], response.headers["x-memos-reason"]) == ("ollama", "unmapped-model")


async def test_a_latch_sends_everything_to_the_baseline_at_once(stack: Stack) -> None:
    await stack.shift(1.0)
    await stack.rollback()
    assert (await ask(stack)).headers["x-memos-reason"] == "latched"
    await stack.rearm()
    assert (await ask(stack)).headers["x-memos-arm"] == "baseline"


async def test_lists_join_the_baseline_and_the_catalogue_and_outlive_an_outage(tmp_path: Path) -> None:
    models = {"qwen3:8b": {"vllm": "Qwen/Qwen3-8B"}, "big": {"vllm": "org/Big"}}
    async with open_stack(tmp_path, config={"models": models}) as stack, stack.client() as client:

        async def names() -> tuple[set[str], set[str]]:
            listed, tags = (await client.get("/v1/models")).json(), (await client.get("/api/tags")).json()
            return {m["id"] for m in listed["data"]}, {m["name"] for m in tags["models"]}

        before = await names()
        assert before == ({"qwen3:8b", "llama3.2:3b", "big"}, {"qwen3:8b", "llama3.2:3b", "big:latest"})
        version = (await client.get("/api/version")).json()
        stack.ollama.faults.set("refuse")
        assert await names() == before
        assert (await client.get("/api/version")).json() == version


async def test_root_says_what_ollama_says(stack: Stack) -> None:
    async with stack.client() as client:
        assert (await client.get("/")).text == "Ollama is running"
        assert (await client.head("/")).status_code == 200
        assert (await client.head("/c/synthesis/")).status_code == 200


async def test_health_is_the_last_probes_and_readiness_needs_one_provider(tmp_path: Path) -> None:
    config = settings(tmp_path, document("http://127.0.0.1:9", "http://127.0.0.1:7", tmp_path))
    async with open_gateway(config, probe=True) as (_, _, url), httpx.AsyncClient(base_url=url) as client:
        health: dict[str, Any] = {}
        while health.get("status") != "unhealthy":
            health = (await client.get("/health")).json()
        assert health["services"] == {"router": "healthy", "ollama": "unhealthy", "vllm": "unhealthy"}
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 503


async def test_health_of_running_providers(tmp_path: Path) -> None:
    async with open_stack(tmp_path, probe=True) as stack, stack.client() as client:
        await until(lambda: stack.vllm.counters.requests and stack.ollama.counters.requests)
        health = (await client.get("/health")).json()
        assert set(health) == {"status", "services", "age_s"}
        assert health["status"] == "healthy"
        assert (await client.get("/ready")).status_code == 200


async def test_metrics_tell_what_happened(stack: Stack) -> None:
    await stack.shift(1.0)
    await ask(stack, "/c/synthesis/api/chat")
    stack.vllm.faults.set("status:code=500")
    await ask(stack, "/c/synthesis/api/chat", {**BODY, "stream": True})
    await stack.ended(2)
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(await stack.metrics())
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return samples[f"memos_llm_{name}", tuple(sorted(labels.items()))]

    common = {"arm": "candidate", "component": "synthesis", "operation": "chat"}
    assert value("requests_total", provider="vllm", model="qwen3:8b", outcome="ok", **common) == 1
    assert value("requests_total", provider="ollama", model="qwen3:8b", outcome="ok", **common) == 1
    assert value("attempts_total", provider="vllm", outcome="server") == 1
    assert value("fallbacks_total", from_provider="vllm", to_provider="ollama", reason="server") == 1
    assert value("request_duration_seconds_count", provider="vllm", **common) == 1
    assert value("time_to_first_token_seconds_count", provider="ollama", **common) == 1
    assert value("tokens_total", provider="vllm", component="synthesis", model="qwen3:8b", type="output") > 0
    assert value("inflight_requests", provider="vllm") == 0
    assert value("share_ratio", component="*", provider="vllm") == 1
    assert value("decisions_total", reason="split") == 2
    assert value("flags_revision") == 2


async def test_unknown_paths_and_methods_are_plain_4xx(stack: Stack) -> None:
    async with stack.client() as client:
        assert (await client.get("/nowhere")).status_code == 404
        assert (await client.get("/api/chat")).status_code in (404, 405)


async def test_no_prompt_reaches_events_metrics_or_errors(stack: Stack) -> None:
    canary = "canary-7f3a9"
    for fault in ("", "status:code=500", "status:code=400", "malformed:after=0", "error_mid_stream"):
        if fault:
            stack.ollama.faults.set(fault)
        await ask(stack, body={**BODY, "stream": True, "messages": [{"role": "user", "content": canary}]})
    await stack.ended(5)
    assert canary not in repr(stack.told.events)
    assert canary not in await stack.metrics()
    assert {type(e.outcome.code) for e in stack.told.of(RequestEnded)} == {str}
