"""The gateway's own surface: names, limits, headers, lists, health, metrics."""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stack import Stack, document, open_gateway, open_stack, settings, until

from memos_llm.core.call import Wire
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import InternalError, RequestEnded, RequestRefused, RequestStarted
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.ports import Routes
from memos_llm.gateway import meta
from memos_llm.gateway.asgi import CONNECTION, DisconnectWatch, header_value
from memos_llm.gateway.build import build_app
from memos_llm.gateway.health import HealthBoard
from memos_llm.gateway.meta import Meta
from memos_llm.gateway.paths import Place, locate
from memos_llm.testing import FakeTransport

BODY: dict[str, Any] = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "hi"}], "stream": False}


async def ask(stack: Stack, path: str = "/api/chat", body: Any = None, **options: Any) -> httpx.Response:
    async with stack.client() as client:
        content = body if isinstance(body, bytes) else json.dumps(body or BODY).encode()
        return await client.post(path, content=content, **options)


async def connect(stack: Stack) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(stack.url.rpartition(":")[2]))


@pytest.mark.parametrize(
    ("path", "headers", "body", "component"),
    [
        ("/api/chat", {}, {}, "default"),
        ("/api/chat", {}, {"metadata": {"component": "analysis"}}, "analysis"),
        ("/c/reflection/api/chat", {}, {"metadata": {"component": "analysis"}}, "reflection"),
        ("/c/reflection/s/x/api/chat", {"x-memos-component": "synthesis"}, {}, "synthesis"),
        ("/api/chat", {}, {"model": "llama3.2:3b"}, "evaluation"),
        ("/api/chat", {}, {"metadata": {"component": "my stage"}}, "default"),
        ("/api/chat", {}, {"model": "llama3.2:3b", "metadata": {"component": "my stage"}}, "evaluation"),
        ("/c/a/s/x%2Fy/api/chat", {}, {}, "a"),
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
        ("/c/a%20b/api/chat", BODY, {}, 400, "component"),
        ("/api/chat", BODY, {"x-memos-session": "x" * 513}, 400, "session"),
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


async def test_a_body_that_says_it_is_too_large_is_not_waited_for(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"max_body_bytes": 1000}}) as stack:
        reader, writer = await connect(stack)
        writer.write(b"POST /api/chat HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1001\r\n\r\n")
        assert b"413" in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


async def test_a_body_that_never_comes_has_a_limit(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"body_timeout_s": 0.2}}) as stack:
        reader, writer = await connect(stack)
        writer.write(b"POST /api/chat HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{")
        assert b"408" in await asyncio.wait_for(reader.readline(), 5)
        assert [event.status for event in stack.told.of(RequestRefused)] == [408]
        writer.close()


HEADS = {  # the pieces of a request's head, each below the limit that they pass together
    "many headers": [b"GET /health HTTP/1.1\r\n" + b"x: %s\r\n" % (b"y" * 998) * 64, b"x: %s\r\n\r\n" % (b"y" * 2000)],
    "one header": [b"GET /health HTTP/1.1\r\nx: ", *[b"y" * 30_000] * 3],
    "one path": [b"GET /", *[b"y" * 30_000] * 3],
}


@pytest.mark.parametrize("pieces", HEADS.values(), ids=HEADS)
async def test_the_head_of_a_request_has_a_limit(pieces: list[bytes], stack: Stack) -> None:
    reader, writer = await connect(stack)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.05)  # read piece by piece: what is unread at the end would reset the connection
    assert b"431" in await asyncio.wait_for(reader.readline(), 5)
    await asyncio.wait_for(reader.read(), 5)  # to the end: it is closed
    writer.close()


async def test_a_large_head_within_the_limit_is_read_and_counted_anew_for_each_request(stack: Stack) -> None:
    async with stack.client() as client:
        for _ in range(3):
            assert (await client.get("/health", headers={"x-large": "y" * 60_000})).status_code == 200


LEGACY = {"model": "qwen3:8b", "prompt": "x", "context": [1]}


@pytest.mark.parametrize(
    ("config", "body", "headers", "status", "name"),
    [
        ({}, b"{", {}, 400, "LLM_BAD_REQUEST"),
        ({}, {"model": ""}, {}, 404, "LLM_MODEL_NOT_FOUND"),
        ({}, BODY, {"x-memos-provider": "vllm"}, 403, "LLM_FORBIDDEN"),
        ({"gateway": {"max_body_bytes": 1}}, BODY, {}, 413, "LLM_BAD_REQUEST"),
        ({"baseline": "vllm", "candidate": None, "fallback": "vllm"}, LEGACY, {}, 400, "LLM_NOT_OFFERED"),
    ],
)
async def test_a_request_refused_before_a_decision_is_told_once(
    config: Any, body: Any, headers: dict[str, str], status: int, name: str, tmp_path: Path
) -> None:
    async with open_stack(tmp_path, config=config) as stack:
        response = await ask(stack, "/api/generate", body, headers=headers)
        assert response.status_code == status, response.text
        code = response.headers["x-memos-error-code"]
        assert stack.told.of(RequestRefused) == [
            RequestRefused(request_id=response.headers["x-request-id"], status=status, error_name=name, error_code=code)
        ]
        assert not stack.told.of(RequestStarted)
        assert f'memos_llm_refused_requests_total{{code="{code}"}} 1.0' in await stack.metrics()


async def test_what_the_engine_tells_is_no_refusal(stack: Stack) -> None:
    assert (await ask(stack, body={**BODY, "model": "nobody-has-this"})).status_code == 404
    await stack.ended()
    assert not stack.told.of(RequestRefused)


async def test_concurrency_has_a_limit(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"max_concurrency": 1}}, ollama={"ttft_s": 30.0}) as stack:
        first = asyncio.create_task(ask(stack))
        await until(lambda: stack.ollama.counters.in_flight)
        second = await ask(stack)
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        assert [(e.status, e.error_name) for e in stack.told.of(RequestRefused)] == [(503, "LLM_OVERLOADED")]
        first.cancel()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["a\nb", "a\r\nx-forged: 1", "模型", "\u007f"])
async def test_a_model_name_cannot_break_the_answers_headers(name: str, stream: bool, tmp_path: Path) -> None:
    config = {"models": {"qwen3:8b": {"vllm": name}}}
    async with open_stack(tmp_path, config=config, vllm={"models": [name]}) as stack:
        await stack.shift(1.0)
        response = await ask(stack, body={**BODY, "stream": stream})
        assert response.status_code == 200, response.text
        assert response.headers["x-memos-model"] == header_value(name).decode("latin-1")
        assert "x-forged" not in response.headers


def test_a_header_value_holds_no_control_character_and_has_a_limit() -> None:
    assert header_value(" a\nb\x00é模 ") == b"a%0Ab%00\xe9?"
    assert len(header_value("x" * 10**6)) < 4096


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
    private = {"authorization": "Bearer sk-secret", "cookie": "a=b", "x-memos-session": "s"}
    private["origin"] = "http://localhost:3000"
    await ask(stack, headers=private)
    received = stack.ollama.requests
    assert "/api/chat" in [request.path for request in received]
    for request in received:
        assert not set(private) & set(request.headers)
        assert request.headers["host"] == stack.ollama.url.removeprefix("http://")


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


class Baseline(FakeTransport):
    """Its documents can hang."""

    def __init__(self, document: bytes) -> None:
        super().__init__("ollama", (b"",), wires=(Wire.OLLAMA_CHAT,))
        self.document, self.hangs = document, False

    async def fetch(self, path: str, body: bytes | None = None) -> bytes:
        if self.hangs:
            await asyncio.sleep(0.5)
            raise AttemptFailed(Outcome(kind=Kind.TIMEOUT, code="document"))
        return self.document


def over(stack: Stack, baseline: Baseline) -> Meta:
    routes = Routes(stack.runtime.policy(), {**stack.runtime.transports, "ollama": baseline})
    return Meta(lambda: routes, 0.0)


async def test_a_hung_baseline_is_not_waited_for_where_a_last_good_list_is_there(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meta, "LAST_GOOD_AFTER_S", 0.05)
    baseline = Baseline(b'{"models":[{"name":"m"}]}')
    lists = over(stack, baseline)
    before = await lists.tags()
    baseline.hangs = True
    async with asyncio.timeout(0.4):
        assert await lists.tags() == before
    started = time.monotonic()
    assert [entry["id"] for entry in (await lists.models())["data"]] == ["qwen3:8b"]
    assert time.monotonic() - started > 0.4  # never had: worth the whole wait


@pytest.mark.parametrize("document", [b'{"models":["m",7,null],"data":["m"]}', b'{"models":{"a":1},"data":"m"}', b"{}"])
async def test_of_a_baselines_odd_list_nothing_is_taken(document: bytes, stack: Stack) -> None:
    lists = over(stack, Baseline(document))
    assert [entry["name"] for entry in (await lists.tags())["models"]] == ["qwen3:8b"]
    assert [entry["id"] for entry in (await lists.models())["data"]] == ["qwen3:8b"]


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ("/c/a/s/x%2Fy/api/chat", Place("/api/chat", "a", "x/y")),
        ("/c/a%3Ab/api/chat", Place("/api/chat", "a:b")),
        ("/c/a/s/%E6%A8%A1/api%2Fchat", Place("/api/chat", "a", "模")),
        ("/api/ch%61t", Place("/api/chat")),
    ],
)
def test_a_path_is_split_as_it_was_sent(raw: str, place: Place) -> None:
    assert locate(raw) == place


class Line:
    """A client's connection, as the server keeps it."""

    on_left: Any = None
    lost = False


async def test_a_request_that_is_over_leaves_the_next_ones_watch_alone() -> None:
    line: Any = Line()
    first, second = DisconnectWatch(line), DisconnectWatch(line)
    first.stop()
    assert line.on_left is not None
    second.stop()
    assert line.on_left is None


async def test_another_asgi_server_is_told_which_one_to_use(stack: Stack) -> None:
    health = HealthBoard([], stack.runtime.clock, draining=lambda: False)
    app: Any = build_app(stack.runtime, health)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        with pytest.raises(RuntimeError, match=r"memos_llm\.gateway\.server"):
            await client.post("/api/chat", json=BODY)


async def test_a_bug_of_ours_says_where_and_nothing_else(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def boom(call: object) -> None:
        raise ValueError("canary-7f3a9")

    monkeypatch.setattr(stack.runtime.engine, "open", boom)
    response = await ask(stack)
    assert (response.status_code, "canary" in response.text) == (500, False)
    (error,) = stack.told.of(InternalError)
    assert (error.part, error.error) == ("gateway", "ValueError")
    assert re.fullmatch(r"memos_llm\.gateway\.inference:\d+", error.where)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_whose_start_was_not_sent_has_not_begun(stream: bool, stack: Stack) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps({**BODY, "stream": stream}).encode()}

    async def send(message: Any) -> None:
        if not sent:
            sent.append("refused")
            raise RuntimeError
        sent.append(message)

    app: Any = build_app(stack.runtime, HealthBoard([], stack.runtime.clock, draining=lambda: False))
    scope = {"type": "http", "method": "POST", "raw_path": b"/api/chat", "path": "/api/chat", "headers": []}
    await app({**scope, "extensions": {CONNECTION: Line()}}, receive, send)
    assert (sent[1]["type"], sent[1].get("status")) == ("http.response.start", 500)


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
