"""What is never split: models, what they are, what is loaded; load calls; health and GPUs."""

import sys
import types
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
from stack import Stack, document, open_gateway, open_stack, settings, until
from starlette.requests import Request

from memos_llm.core.events import ConfigRejected, ProbeEnded, RequestRefused, RequestStarted, StoreState
from memos_llm.emulators import VllmEmulator
from memos_llm.providers import http

ONLY_VLLM = {"vllm": "Qwen/Qwen3-8B"}
CONFIG = {
    "models": {
        "llama3.2:3b": {"aliases": ["small"], "ollama": "llama3.2:3b"},
        "big": {**ONLY_VLLM, "aliases": ["large"]},
    }
}
"""`big` is on vLLM only: Ollama, which has everything by its logical name, lists no such model."""


@pytest.fixture
async def both(tmp_path: Path) -> Any:
    async with open_stack(tmp_path, config=CONFIG, ollama={"models": ["llama3.2:3b"]}, probe=True) as running:
        await until(lambda: {probe.provider for probe in running.told.of(ProbeEnded)} == {"ollama", "vllm"})
        yield running


async def ask(stack: Stack, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    async with stack.client() as client:
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        return await client.request(method, path, headers=headers, **content)


async def down(stack: Stack) -> None:
    """vLLM's engine dies, and probes find out."""
    stack.vllm.faults.set("engine_dead")
    vllm = stack.runtime.transports["vllm"]
    while vllm.offer("Qwen/Qwen3-8B").refused is None:
        await vllm.probe()


async def test_what_only_the_candidate_has_is_listed_as_loaded_with_its_context(both: Stack) -> None:
    (entry,) = (await ask(both, "GET", "/api/ps")).json()["models"]
    assert (entry["name"], entry["model"], entry["context_length"]) == ("big:latest", "big:latest", 40960)
    assert entry["expires_at"] > "2200"
    assert set(entry) >= {"size", "digest", "details", "size_vram"}


async def test_what_is_down_is_not_loaded_but_still_a_model(both: Stack) -> None:
    await down(both)
    assert (await ask(both, "GET", "/api/ps")).json() == {"models": []}
    tags = (await ask(both, "GET", "/api/tags")).json()["models"]
    assert [entry["name"] for entry in tags] == ["llama3.2:3b", "big:latest"]


async def test_a_model_that_ollama_runs_is_in_its_own_words(both: Stack) -> None:
    await ask(both, "POST", "/api/generate", {"model": "llama3.2:3b"})
    listed = (await ask(both, "GET", "/api/ps")).json()["models"]
    async with httpx.AsyncClient(base_url=both.ollama.url) as direct:
        theirs = (await direct.get("/api/ps")).json()["models"]
    assert [entry["name"] for entry in listed] == ["llama3.2:3b", "big:latest"]
    assert listed[0].keys() == theirs[0].keys()


@pytest.mark.parametrize("name", ["big", "big:latest", "BIG", "large", "Qwen/Qwen3-8B"])
async def test_a_model_of_the_candidate_is_shown_by_any_of_its_names(name: str, both: Stack) -> None:
    for key in ("model", "name"):
        shown = (await ask(both, "POST", "/api/show", {key: name})).json()
        architecture = shown["model_info"]["general.architecture"]
        assert shown["model_info"][f"{architecture}.context_length"] == 40960
        assert "completion" in shown["capabilities"]
        assert (shown["template"], shown["parameters"]) == ("", "")
        assert set(shown["details"]) >= {"format", "family", "families", "parameter_size", "quantization_level"}


@pytest.mark.parametrize("name", ["llama3.2:3b", "LLAMA3.2:3b", "small"])
async def test_a_model_of_the_baseline_is_shown_byte_for_byte(name: str, both: Stack) -> None:
    async with httpx.AsyncClient(base_url=both.ollama.url) as direct:
        expected = await direct.post("/api/show", json={"model": "llama3.2:3b", "verbose": True})
    for key in ("model", "name"):
        response = await ask(both, "POST", "/api/show", {key: name, "verbose": True})
        assert (response.status_code, response.content) == (200, expected.content)


async def test_a_document_too_large_to_hold_is_passed_on(both: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_DOCUMENT_BYTES", 100)
    async with httpx.AsyncClient(base_url=both.ollama.url) as direct:
        expected = await direct.post("/api/show", json={"model": "llama3.2:3b"})
    response = await ask(both, "POST", "/api/show", {"model": "small"})
    assert (response.status_code, response.content) == (200, expected.content)


async def test_the_last_good_answer_is_given_while_the_baseline_is_down(both: Stack) -> None:
    before = (await ask(both, "POST", "/api/show", {"model": "llama3.2:3b"})).content
    both.ollama.faults.set("refuse")
    assert (await ask(both, "POST", "/api/show", {"model": "llama3.2:3b"})).content == before
    other = await ask(both, "POST", "/api/show", {"model": "llama3.2:3b", "verbose": True})
    assert (other.status_code, other.headers["x-memos-error-code"]) == (503, "ERR_5001")  # never had
    assert (await ask(both, "POST", "/api/show", {"model": "big"})).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"model": "nobody:1b"}, 404, "model 'nobody:1b' not found"),
        ({}, 400, "model is required"),
        (b"", 400, "missing request body"),
        (b"{", 400, ""),
        (b'{"model":7}', 400, ""),
        (b"x" * 100, 400, ""),
    ],
)
async def test_what_cannot_be_shown_is_an_error_in_ollamas_words(
    body: Any, status: int, says: str, both: Stack
) -> None:
    response = await ask(both, "POST", "/api/show", body)
    assert response.status_code == status
    assert says in response.json()["error"]


@pytest.mark.parametrize("name", ["llama3.2:3b", "small", "big", "large", "Qwen/Qwen3-8B", "Qwen%2FQwen3-8B"])
async def test_one_model_of_the_openai_list(name: str, both: Stack) -> None:
    entry = (await ask(both, "GET", f"/v1/models/{name}")).json()
    assert (entry["object"], entry["id"]) == ("model", name.replace("%2F", "/"))
    assert (await ask(both, "HEAD", f"/v1/models/{name}")).status_code == 200


async def test_a_model_that_nobody_has_is_openais_404(both: Stack) -> None:
    response = await ask(both, "GET", "/v1/models/org/nothing")
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["code"], set(error)) == ("model_not_found", {"message", "type", "param", "code"})
    assert "org/nothing" in error["message"]


@pytest.mark.parametrize("path", ["/", "/api/tags", "/api/version", "/api/ps", "/v1/models", "/c/a/api/tags"])
async def test_a_head_request_is_answered_like_a_get(path: str, both: Stack) -> None:
    got, head = await ask(both, "GET", path), await ask(both, "HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/chat"), ("POST", "/api/tags"), ("PUT", "/v1/embeddings")])
async def test_a_wrong_method_is_a_405_here(method: str, path: str, both: Stack) -> None:
    response = await ask(both, method, path)
    assert (response.status_code, method in response.text) == (405, True)


async def test_nothing_is_a_404(both: Stack) -> None:
    response = await ask(both, "GET", "/favicon.ico")
    assert (response.status_code, "favicon" in response.json()["error"]) == (404, True)


async def test_an_error_is_told_without_a_look_at_the_host(both: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older starlette makes the whole address of it, and raises where it can be no host."""

    def url(request: Request) -> NoReturn:
        raise ValueError("Invalid IPv6 URL")

    monkeypatch.setattr(Request, "url", property(url))
    assert (await ask(both, "GET", "/v1/models/org/nothing")).status_code == 404
    assert "/admin/v1/nothing" in (await ask(both, "GET", "/admin/v1/nothing")).text


# --- load and unload --------------------------------------------------------------------------------------------------

LOADS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "chat": ("/api/chat", {}, {"message": {"role": "assistant", "content": ""}, "done": True}),
    "generate": ("/api/generate", {}, {"response": "", "done": True}),
    "embed": ("/api/embed", {"input": ""}, {"embeddings": []}),
    "embeddings": ("/api/embeddings", {"prompt": ""}, {"embedding": []}),
}


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("case", LOADS)
async def test_a_model_that_no_ollama_has_is_loaded_while_its_server_runs(case: str, share: float, both: Stack) -> None:
    await both.shift(share)
    path, body, expected = LOADS[case]
    response = await ask(both, "POST", path, {"model": "large", **body})
    assert response.status_code == 200, response.text
    document = response.json()
    assert expected.items() <= document.items()
    if "done" in document:
        assert (document["done_reason"], document["model"]) == ("load", "large")
    assert response.headers["x-memos-provider"] == "vllm"


@pytest.mark.parametrize("keep_alive", [0, "0", "0s"])
async def test_it_cannot_be_unloaded_and_says_so(keep_alive: Any, both: Stack) -> None:
    response = await ask(both, "POST", "/api/generate", {"model": "big", "keep_alive": keep_alive})
    assert (response.status_code, response.json()["done_reason"]) == (200, "unload")
    assert "keep_alive" in response.headers["x-memos-warnings"]


async def test_it_is_not_loaded_while_its_server_is_down(both: Stack) -> None:
    await down(both)
    response = await ask(both, "POST", "/api/generate", {"model": "big"})
    assert (response.status_code, isinstance(response.json()["error"], str)) == (503, True)
    assert len(both.told.of(RequestStarted)) == 1  # that the baseline has no such model is its answer
    assert not both.told.of(RequestRefused)


async def test_a_load_that_no_provider_could_be_asked_for_is_told_as_refused(tmp_path: Path) -> None:
    async with VllmEmulator(port=0, models=["org/model"]) as emulator:
        config = {
            **document("http://127.0.0.1:9", emulator.url, tmp_path, models={"later": {"vllm": "not/there-yet"}}),
            "baseline": "old",
            "fallback": "old",
        }
        config["providers"] = {
            "old": {"kind": "vllm", "base_url": "http://127.0.0.1:9"},
            "vllm": config["providers"]["vllm"],
        }
        async with open_gateway(settings(tmp_path, config)) as (runtime, told, url):
            await runtime.transports["vllm"].probe()
            async with httpx.AsyncClient(base_url=url) as client:
                assert (await client.post("/api/generate", json={"model": "later"})).status_code == 503
            assert [(event.status, event.error_name) for event in told.of(RequestRefused)] == [(503, "LLM_UNAVAILABLE")]
            assert not told.of(RequestStarted)


async def test_a_model_that_its_server_does_not_list_is_neither_loaded_nor_running(tmp_path: Path) -> None:
    config = {"models": {"later": {"vllm": "not/there-yet"}}}
    async with open_stack(tmp_path, config=config, ollama={"models": ["llama3.2:3b"]}) as stack:
        vllm = stack.runtime.transports["vllm"]
        assert (await ask(stack, "POST", "/api/generate", {"model": "later"})).status_code == 200  # nothing known yet
        await vllm.probe()
        response = await ask(stack, "POST", "/api/generate", {"model": "later"})
        assert (response.status_code, isinstance(response.json()["error"], str)) == (503, True)
        assert (await ask(stack, "GET", "/api/ps")).json() == {"models": []}
        unload = await ask(stack, "POST", "/api/generate", {"model": "later", "keep_alive": 0})
        assert unload.json()["done_reason"] == "unload"


async def test_a_model_that_nobody_has_is_not_loaded(both: Stack) -> None:
    assert (await ask(both, "POST", "/api/generate", {"model": "nobody:1b"})).status_code == 404


# --- health -----------------------------------------------------------------------------------------------------------


async def test_whole_health_tells_of_every_part(both: Stack) -> None:
    response = await ask(both, "GET", "/api/v1/system/health/aggregate")
    health = response.json()
    parts = {"router", "ollama", "vllm", "store", "config"}
    assert (response.status_code, health["status"]) == (200, "healthy")
    assert health["services"] == dict.fromkeys(parts, "healthy")
    assert health["endpoints"] == {"ollama": ["healthy"], "vllm": ["healthy"]}
    assert both.vllm.url not in response.text  # anyone may ask
    quick = (await ask(both, "GET", "/api/v1/health/quick")).json()
    assert set(quick["services"]) == {"router", "ollama", "vllm"}


@pytest.mark.parametrize(
    ("event", "part"),
    [
        (StoreState(reachable=False), "store"),
        (StoreState(reachable=True, regressed=True), "store"),
        (ConfigRejected(path="x", errors=("y",)), "config"),
    ],
)
async def test_a_part_that_is_ill_degrades(event: Any, part: str, both: Stack) -> None:
    both.runtime.bus.emit(event)
    response = await ask(both, "GET", "/api/v1/system/health/aggregate")
    health = response.json()
    assert (response.status_code, health["status"], health["services"][part]) == (200, "degraded", "degraded")
    assert (await ask(both, "GET", "/health")).json()["status"] == "healthy"


async def test_health_asks_nobody(both: Stack) -> None:
    both.ollama.faults.set("hang")
    both.vllm.faults.set("hang")
    async with httpx.AsyncClient(base_url=both.url, timeout=2.0) as client:
        for path in ("/health", "/api/v1/health/quick", "/api/v1/system/health/aggregate", "/ready"):
            assert (await client.get(path)).status_code == 200


# --- GPUs -------------------------------------------------------------------------------------------------------------


async def test_without_a_gpu_the_list_is_empty(both: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert (await ask(both, "GET", "/api/v1/models/gpu/status")).json() == {"gpus": [], "source": "none"}


async def test_gpus_are_told_in_the_drivers_numbers(both: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    driver: Any = types.ModuleType("pynvml")
    driver.nvmlInit = driver.nvmlShutdown = lambda: None
    driver.nvmlDeviceGetCount = lambda: 1
    driver.nvmlDeviceGetHandleByIndex = lambda index: index
    driver.nvmlDeviceGetName = lambda handle: b"NVIDIA H200"
    driver.nvmlDeviceGetMemoryInfo = lambda handle: types.SimpleNamespace(
        total=8 * 2**30, used=3 * 2**30, free=5 * 2**30
    )
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert (await ask(both, "GET", "/api/v1/models/gpu/status")).json() == {
        "gpus": [
            {
                "index": 0,
                "name": "NVIDIA H200",
                "total_bytes": 8 * 2**30,
                "used_bytes": 3 * 2**30,
                "free_vram_gb": 5.0,
            }
        ],
        "source": "nvml",
    }
