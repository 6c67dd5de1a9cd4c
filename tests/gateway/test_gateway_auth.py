"""Who may do what: every class of route × every scope, with keys and without; the admin token; rate limits."""

import asyncio
import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack import Stack, open_stack

from memos_llm.core.errors import ConfigError, Overloaded
from memos_llm.core.events import RequestEnded, RequestRefused
from memos_llm.gateway import console
from memos_llm.gateway.admin_token import admin_token
from memos_llm.gateway.app import OWN
from memos_llm.gateway.auth import Buckets
from memos_llm.gateway.inference import WIRES
from memos_llm.gateway.principal import Principal
from memos_llm.gateway.rights import MANAGEMENT, OPEN
from memos_llm.gateway.rules import Key
from memos_llm.testing import ManualClock

TOKEN = "test-admin-token-0123456789"
SCOPES = ("inference", "metrics", "read", "operate", "admin")
KEYS = {scope: f"sk-test-{scope}-{'x' * 32}" for scope in SCOPES}
CHAT = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "hi"}], "stream": False}

CALLERS = ("nobody", "stranger", *SCOPES, "token")
ALL = frozenset(CALLERS)
LOOKERS = frozenset({"read", "operate", "admin", "token"})

# class of route → a request of it, and who is let in: (with keys, without keys). Everyone else gets 401 or 403.
ROUTES: dict[str, tuple[str, str, Any, frozenset[str], frozenset[str]]] = {
    "root": ("GET", "/", None, ALL, ALL),
    "health": ("GET", "/health", None, ALL, ALL),
    "quick health": ("GET", "/api/v1/health/quick", None, ALL, ALL),
    "whole health": ("GET", "/api/v1/system/health/aggregate", None, ALL, ALL),
    "readiness": ("GET", "/ready", None, ALL, ALL),
    **{f"the console's {path}": ("GET", path, None, ALL, ALL) for path in sorted(console.PATHS)},
    **{
        f"admin's {name}": ("GET", f"/admin/v1/{name}", None, LOOKERS, frozenset({"token"}))
        for name in ("status", "flags", "history", "inventory")
    },
    "metrics": ("GET", "/metrics", None, frozenset({"metrics", "token"}), ALL),
    **{
        name: (method, path, body, frozenset({"inference", "token"}), ALL)
        for name, method, path, body in [
            ("openai chat", "POST", "/v1/chat/completions", CHAT),
            ("openai text", "POST", "/v1/completions", {"model": "qwen3:8b", "prompt": "x"}),
            ("openai embeddings", "POST", "/v1/embeddings", {"model": "qwen3:8b", "input": "x"}),
            ("ollama chat", "POST", "/api/chat", CHAT),
            ("ollama chat with a component", "POST", "/c/a/s/b/api/chat", CHAT),
            ("ollama generate", "POST", "/api/generate", {"model": "qwen3:8b", "prompt": "x", "stream": False}),
            ("ollama embed", "POST", "/api/embed", {"model": "qwen3:8b", "input": "x"}),
            ("ollama embeddings", "POST", "/api/embeddings", {"model": "qwen3:8b", "prompt": "x"}),
            ("openai models", "GET", "/v1/models", None),
            ("openai model", "GET", "/v1/models/qwen3:8b", None),
            ("tags", "GET", "/api/tags", None),
            ("loaded", "GET", "/api/ps", None),
            ("version", "GET", "/api/version", None),
            ("show", "POST", "/api/show", {"model": "qwen3:8b"}),
            ("responses", "POST", "/v1/responses", {"model": "qwen3:8b", "input": "x"}),
            ("messages", "POST", "/v1/messages", {"model": "qwen3:8b", "max_tokens": 8, "messages": CHAT["messages"]}),
            ("audio", "POST", "/v1/audio/transcriptions", {"model": "qwen3:8b"}),
            ("status of ollama", "GET", "/api/status", None),
            ("gpus", "GET", "/api/v1/models/gpu/status", None),
            ("a wrong method", "GET", "/api/chat", None),
            ("nothing", "GET", "/favicon.ico", None),
        ]
    },
    "pull of a known name": (
        "POST",
        "/api/pull",
        {"model": "qwen3:8b"},
        frozenset({"inference", "admin", "token"}),
        ALL,
    ),
    "pull of another": (
        "POST",
        "/api/pull",
        {"model": "nobody:1b", "stream": False},
        frozenset({"admin", "token"}),
        frozenset({"token"}),
    ),
    **{
        name: (method, path, body, frozenset({"admin", "token"}), frozenset({"token"}))
        for name, method, path, body in [
            ("push", "POST", "/api/push", {"model": "x"}),
            ("create", "POST", "/api/create", {"model": "x"}),
            ("copy", "POST", "/api/copy", {"source": "x", "destination": "y"}),
            ("delete", "DELETE", "/api/delete", {"model": "nobody"}),
            ("delete, with a component", "DELETE", "/c/a/api/delete", {"model": "nobody"}),
            ("blobs", "POST", "/api/blobs/sha256:0", None),
            ("me", "POST", "/api/me", None),
            ("sign in", "POST", "/api/signin", None),
            ("sign out", "POST", "/api/signout", None),
            ("cloud keys", "DELETE", "/api/user/keys/x", None),
            ("cloud search", "POST", "/api/experimental/web_search", {"query": "x"}),
            ("lora", "POST", "/v1/load_lora_adapter", {"lora_name": "x"}),
            ("lora, away", "POST", "/v1/unload_lora_adapter", {"lora_name": "x"}),
            ("an encoded path", "POST", "/api/%70ush", {"model": "x"}),
            ("an encoded slash", "POST", "/api%2Fpush", {"model": "x"}),
            ("a slash behind it", "POST", "/c/a/s/b/api/push/", {"model": "x"}),
            ("another method", "PATCH", "/api/push", None),
            ("a deletion of whatever", "DELETE", "/v1/responses/x", None),
        ]
    },
}


def key_entries() -> list[dict[str, Any]]:
    return [
        {"id": f"the-{scope}-key", "sha256": hashlib.sha256(key.encode()).hexdigest(), "scopes": [scope]}
        for scope, key in KEYS.items()
    ]


def bearer(caller: str) -> dict[str, str]:
    keys = {**KEYS, "token": TOKEN, "stranger": "sk-nobody-knows"}
    return {"authorization": f"Bearer {keys[caller]}"} if caller in keys else {}


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMOS_LLM_ADMIN_TOKEN", TOKEN)


async def send(client: httpx.AsyncClient, method: str, path: str, body: Any, **options: Any) -> httpx.Response:
    return await client.request(method, path, json=body, **options)


@pytest.mark.parametrize("keyed", [True, False], ids=["with keys", "without keys"])
async def test_every_scope_does_exactly_what_it_says(keyed: bool, tmp_path: Path) -> None:
    config = {"gateway": {"api_keys": key_entries()}} if keyed else {}
    wrong = []
    async with open_stack(tmp_path, config=config) as stack, stack.client() as client:
        for name, (method, path, body, with_keys, without) in ROUTES.items():
            for caller in CALLERS:
                may = caller in (with_keys if keyed else without)
                response = await send(client, method, path, body, headers=bearer(caller))
                refused = None if may else 401 if not keyed or caller in ("nobody", "stranger") else 403
                got = response.status_code if response.headers.get("x-memos-error-code") in CODES else None
                if got != refused:
                    wrong.append(f"{name} as {caller}: {response.status_code} instead of {refused or 'an answer'}")
    assert wrong == []


CODES = {"ERR_5111", "ERR_5112"}


def test_no_route_is_missing_from_the_table() -> None:
    asked = {path for _, path, *_ in ROUTES.values()}
    known = {*OWN, *WIRES, *MANAGEMENT, *OPEN}
    assert {
        route for route in known if not any(path == route or path.startswith(f"{route}/") for path in asked)
    } == set()


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/chat/completions", lambda d: d["error"]["type"] == "authentication_error"),
        ("/v1/messages", lambda d: d["type"] == "error" and d["error"]["type"] == "authentication_error"),
        ("/api/chat", lambda d: "API key" in d["error"]),
    ],
)
async def test_a_missing_key_is_told_in_the_callers_dialect(path: str, shape: Any, tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"api_keys": key_entries()}}) as stack, stack.client() as client:
        response = await client.post(path, json=CHAT)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert response.headers["x-memos-error-code"] == "ERR_5112"
        assert shape(response.json())
        assert [event.status for event in stack.told.of(RequestRefused)] == [401]
        assert not stack.ollama.requests


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEYS['inference']}"},
        {"authorization": f"bearer  {KEYS['inference']}"},
        {"authorization": "Basic " + base64.b64encode(f"anyone:{KEYS['inference']}".encode()).decode()},
        {"x-api-key": KEYS["inference"]},
    ],
)
async def test_a_key_may_come_in_three_ways_and_goes_no_further(headers: dict[str, str], tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"api_keys": key_entries()}}) as stack, stack.client() as client:
        assert (await client.post("/api/chat", json=CHAT, headers=headers)).status_code == 200
        for request in stack.ollama.requests:
            assert KEYS["inference"] not in str(request.headers)
            assert not {"authorization", "x-api-key"} & set(request.headers)


@pytest.mark.parametrize(
    "value", ["Bearer", "Basic !!!", "Basic " + base64.b64encode(b"\xff").decode(), "x", "Bearer ,"]
)
async def test_an_authorization_that_is_none_is_no_key(value: str, tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"api_keys": key_entries()}}) as stack, stack.client() as client:
        response = await client.post("/api/chat", json=CHAT, headers={"authorization": value})
        assert response.status_code == 401


async def test_keys_follow_the_configuration_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_stack(tmp_path, config={"gateway": {"api_keys": key_entries()}}) as stack, stack.client() as client:
        headers = bearer("inference")
        assert (await client.post("/api/chat", json=CHAT, headers=headers)).status_code == 200
        settings = stack.runtime.settings
        gateway = settings.gateway.model_copy(update={"api_keys": settings.gateway.api_keys[1:]})
        await stack.runtime.adopt(settings.model_copy(update={"gateway": gateway}))
        assert (await client.post("/api/chat", json=CHAT, headers=headers)).status_code == 401


async def test_a_keys_component_is_that_of_calls_that_name_none(tmp_path: Path) -> None:
    entry = {**key_entries()[0], "component": "synthesis"}
    rules = {"component_rules": [{"model": "*", "component": "ruled"}]}
    config = {"gateway": {"api_keys": [entry]}, "routing": rules}
    async with open_stack(tmp_path, config=config) as stack, stack.client(headers=bearer("inference")) as client:
        await client.post("/api/chat", json=CHAT)
        await client.post("/c/analysis/api/chat", json=CHAT)
        await client.post("/api/chat", json={**CHAT, "metadata": {"component": "evaluation"}})
        assert [end.component for end in await stack.ended(3)] == ["synthesis", "analysis", "evaluation"]


async def test_a_key_has_a_rate_limit_and_others_have_theirs(tmp_path: Path) -> None:
    entries = key_entries()
    config = {"gateway": {"api_keys": [{**entries[0], "rate_per_minute": 2}, *entries[1:]]}}
    async with open_stack(tmp_path, config=config) as stack, stack.client(headers=bearer("inference")) as client:
        answers = [await client.post("/v1/chat/completions", json=CHAT) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 30
        assert answers[2].json()["error"]["type"] == "rate_limit_error"
        assert "x-should-retry" not in answers[2].headers
        assert (await client.get("/metrics", headers=bearer("metrics"))).status_code == 200


def test_a_bucket_fills_evenly_and_holds_a_minute() -> None:
    clock = ManualClock()
    buckets, key = Buckets(clock), Key(Principal("k", frozenset()), b"", 60)

    for waited_s, count in ((0, 60), (10, 10), (3600, 60)):
        clock.advance(waited_s)
        for _ in range(count):
            buckets.take(key)
        with pytest.raises(Overloaded) as refused:
            buckets.take(key)
        assert refused.value.retry_after_s == pytest.approx(1)


@pytest.mark.parametrize(
    ("caller", "provider", "status", "says"),
    [
        ("nobody", "vllm", 403, "admin"),
        ("token", "vllm", 200, ""),
        ("token", "ollama", 200, ""),
        ("token", "vlm", 400, "choices: ollama, vllm"),
    ],
)
async def test_an_override_takes_the_admin_right(
    caller: str, provider: str, status: int, says: str, stack: Stack
) -> None:
    async with stack.client(headers={**bearer(caller), "x-memos-provider": provider}) as client:
        response = await client.post("/api/chat", json=CHAT)
        assert response.status_code == status
        assert says in response.text
        if status == 200:
            assert (response.headers["x-memos-provider"], response.headers["x-memos-reason"]) == (provider, "override")


async def test_an_override_to_a_provider_without_the_model_is_a_clear_400(stack: Stack) -> None:
    async with stack.client(headers={**bearer("token"), "x-memos-provider": "vllm"}) as client:
        response = await client.post("/api/chat", json={**CHAT, "model": "llama3.2:3b"})
        assert (response.status_code, "does not have the model 'llama3.2:3b'" in response.text) == (400, True)


async def test_an_override_passes_the_latch(stack: Stack) -> None:
    await stack.shift(1.0)
    await stack.rollback()
    async with stack.client(headers={**bearer("token"), "x-memos-provider": "vllm"}) as client:
        assert (await client.post("/api/chat", json=CHAT)).headers["x-memos-provider"] == "vllm"


# --- the admin token --------------------------------------------------------------------------------------------------


def test_the_token_is_made_once_and_kept_for_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    token = admin_token({}, folder)
    assert len(token) >= 32
    assert admin_token({}, folder) == token
    assert (folder / "admin_token").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == ["admin_token"]


async def test_processes_that_start_together_have_one_token(tmp_path: Path) -> None:
    made = await asyncio.gather(*(asyncio.to_thread(admin_token, {}, tmp_path / "state") for _ in range(8)))
    assert len(set(made)) == 1


def test_the_environments_token_is_taken_and_no_file_is_made(tmp_path: Path) -> None:
    assert admin_token({"MEMOS_LLM_ADMIN_TOKEN": f" {TOKEN}\n"}, tmp_path / "x") == TOKEN
    assert not (tmp_path / "x").exists()


def readable(path: Path) -> None:
    path.chmod(0o644)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def emptied(path: Path) -> None:
    path.write_text("\n")


def open_folder(path: Path) -> None:
    path.parent.chmod(0o777)


@pytest.mark.parametrize("spoil", [readable, linked, emptied, open_folder])
def test_a_token_that_others_could_know_is_refused(spoil: Any, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    admin_token({}, folder)
    spoil(folder / "admin_token")
    with pytest.raises(ConfigError, match="state"):
        admin_token({}, folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_token_is_refused(tmp_path: Path) -> None:
    admin_token({}, tmp_path / "state")
    os.chown(tmp_path / "state" / "admin_token", 12345, 12345)
    with pytest.raises(ConfigError, match="another user"):
        admin_token({}, tmp_path / "state")


def test_a_token_that_could_be_guessed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="MEMOS_LLM_ADMIN_TOKEN"):
        admin_token({"MEMOS_LLM_ADMIN_TOKEN": "short"}, tmp_path)


# --- secrets ----------------------------------------------------------------------------------------------------------

PROMPT = "canary-prompt-5b1c"
TEXT = "canary-of-the-back-end-77"


async def test_no_key_and_no_prompt_reaches_a_sink(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Through refusals and faults of both back ends: nothing of the caller's is in events, metrics, logs or errors."""
    keys = [*KEYS.values(), TOKEN, "sk-nobody-knows"]
    bodies = []
    body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": PROMPT}], "prompt": PROMPT, "input": PROMPT}
    faults = ["status:code=500", "refuse", "garbage", "status:code=401", "cut_before_content:where=headers"]
    async with open_stack(tmp_path, config={"gateway": {"api_keys": key_entries()}}) as stack:
        await stack.shift(1.0)
        async with stack.client() as client:
            for fault in faults:
                stack.ollama.faults.set(fault)
                stack.vllm.faults.set(fault)
                for path in ("/v1/chat/completions", "/api/generate", "/api/embed", "/v1/responses", "/api/show"):
                    for caller in ("inference", "metrics", "stranger"):
                        bodies.append(await client.post(path, json=body, headers=bearer(caller)))
            for path in ("/c//api/chat", "/api/push", "/api/pull"):
                bodies.append(await client.post(path, json=body, headers=bearer("read")))
            metrics = (await client.get("/metrics", headers=bearer("metrics"))).text
    told = "".join(repr(event) for event in stack.told.events if isinstance(event, RequestEnded | RequestRefused))
    logs = "".join(capfd.readouterr())
    assert all(response.status_code >= 400 for response in bodies if response.url.path != "/api/show")
    answers = json.dumps([[response.text, dict(response.headers)] for response in bodies])
    for secret in (*keys, PROMPT):
        for sink in (answers, metrics, told, logs):
            assert secret not in sink
