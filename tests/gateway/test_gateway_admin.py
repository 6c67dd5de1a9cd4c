"""The admin API as its users meet it: who may do what, what is refused and how, and that it tells what is so."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack import Stack, open_stack, until

SCOPES = ("inference", "metrics", "read", "operate", "admin")
CHAT = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "canary-prompt"}]}


def key(scope: str) -> str:
    return f"key-of-{scope}-0123456789"


def keys() -> list[dict[str, Any]]:
    return [
        {"id": f"k-{scope}", "sha256": hashlib.sha256(key(scope).encode()).hexdigest(), "scopes": [scope]}
        for scope in SCOPES
    ]


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def token() -> str:
    return (Path.home() / ".local/state/memos_llm/admin_token").read_text().strip()


class Admin:
    """Requests with one token."""

    def __init__(self, stack: Stack, secret: str | None = None) -> None:
        self.client = httpx.AsyncClient(
            base_url=f"{stack.url}/admin/v1", headers=bearer(secret) if secret else {}, timeout=20.0
        )

    async def __aenter__(self) -> httpx.AsyncClient:
        return self.client

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[Stack]:
    async with open_stack(tmp_path, config={"gateway": {"api_keys": keys()}}) as running:
        yield running


SHARE = {"provider": "vllm", "share": 0.0, "wait_s": 0}
EMBEDDING = {"provider": "vllm", "share": 0, "component": "embedding", "wait_s": 0}
NEEDS = [
    ("GET", "status", None, "read"),
    ("GET", "flags", None, "read"),
    ("GET", "history", None, "read"),
    ("GET", "incidents", None, "read"),
    ("GET", "explain?model=qwen3:8b", None, "read"),
    ("GET", "openapi.json", None, "read"),
    ("POST", "shift", SHARE, "operate"),
    ("POST", "shift", {**SHARE, "share": 0.4}, "admin"),
    ("POST", "shift", EMBEDDING, "admin"),
    ("POST", "rollback", {"component": "x", "wait_s": 0}, "operate"),
    ("POST", "maintenance", {"provider": "vllm", "for": "90s", "wait_s": 0}, "operate"),
    ("POST", "rollback", {"component": "embedding", "wait_s": 0}, "admin"),
    ("POST", "rearm", {"component": "y", "wait_s": 0}, "admin"),
    ("POST", "adopt", {"wait_s": 0}, "admin"),
    ("POST", "verify", {"model": "qwen3:8b", "proof": None, "wait_s": 0}, "admin"),
]
GRANTS = {"read": {"read", "operate", "admin"}, "operate": {"operate", "admin"}, "admin": {"admin"}}


async def test_every_scope_can_do_exactly_what_it_says(keyed: Stack) -> None:
    async def status(secret: str | None, method: str, path: str, body: Any) -> int:
        async with Admin(keyed, secret) as client:
            return (await client.request(method, path, json=body)).status_code

    for method, path, body, needed in NEEDS:
        assert await status(None, method, path, body) == 401, path
        assert await status("nobody-knows-this-key", method, path, body) == 401, path
        for scope in SCOPES:
            expected = {200, 409} if scope in GRANTS[needed] else {403}
            assert await status(key(scope), method, path, body) in expected, (path, scope)
        assert await status(token(), method, path, body) in (200, 409), path


async def test_events_take_read_too(keyed: Stack) -> None:
    for secret, expected in ((None, 401), (key("inference"), 403), (key("metrics"), 403)):
        async with Admin(keyed, secret) as client:
            assert (await client.get("events")).status_code == expected


async def test_on_loopback_without_keys_the_admin_token_is_wanted_too(stack: Stack) -> None:
    async with Admin(stack) as client:
        answer = await client.get("status")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "ERR_5112"


async def test_lowering_everything_that_raises_one_component_takes_admin(keyed: Stack) -> None:
    await keyed.shift(0.5)
    await keyed.shift(0.1, "synthesis")
    async with Admin(keyed, key("operate")) as client:
        refused = await client.post("shift", json={**SHARE, "share": 0.3})
        assert refused.status_code == 403
        assert "admin" in refused.json()["error"]["message"]
        assert (await client.post("shift", json={**SHARE, "share": 0.05})).status_code == 200


async def test_the_history_names_the_key(keyed: Stack) -> None:
    async with Admin(keyed, key("admin")) as client:
        changed = await client.post("shift", json={**SHARE, "share": "30%", "reason": "first step"})
        assert changed.json()["share"] == 0.3
        entry = (await client.get("history?limit=1")).json()["entries"][0]
    assert (entry["actor"], entry["command"], entry["reason"]) == ("k-admin", "shift", "first step")
    assert entry["revision"] == changed.json()["revision"] == keyed.runtime.live.current().revision


async def test_a_reason_is_kept_as_one_short_line(stack: Stack) -> None:
    async with Admin(stack, token()) as client:
        for reason in ("a\x1b[2Jb\x00\n\u202ec ", "x" * 60_000):
            assert (await client.post("rollback", json={"reason": reason, "wait_s": 0})).status_code == 200
        long, odd = [entry["reason"] for entry in (await client.get("history?limit=2")).json()["entries"]]
    assert odd == "a [2Jb c"
    assert len(long) == 500


async def test_the_events_of_a_key_that_is_gone_end(keyed: Stack) -> None:
    async with Admin(keyed, key("read")) as client, client.stream("GET", "events") as stream:
        lines = stream.aiter_lines()
        assert (await anext(lines)).startswith(":")
        settings = keyed.runtime.settings
        left = tuple(entry for entry in settings.gateway.api_keys if entry.id != "k-read")
        gateway = settings.gateway.model_copy(update={"api_keys": left})
        await keyed.runtime.adopt(settings.model_copy(update={"gateway": gateway}))
        async with asyncio.timeout(5):
            assert [line async for line in lines if line] == []
        assert (await client.get("status")).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("OPTIONS", "/admin/v1/shift", {}, 405),
        ("GET", "/admin/v2", {}, 404),
        ("GET", "/admin/v1/status", {"host": "evil.example"}, 403),
        ("GET", "/admin/v1/status", {"origin": "http://evil.example"}, 403),
        ("GET", "/c/x/admin/v1/status", {"x-memos-hop": "1"}, 508),
        ("POST", "/admin/v1/shift", {"content-encoding": "gzip"}, 415),
    ],
)
async def test_what_is_refused_before_the_admin_api_is_told_in_its_words(
    method: str, path: str, headers: dict[str, str], status: int, stack: Stack
) -> None:
    async with stack.client() as client:
        answer = await client.request(method, path, headers={**headers, **bearer(token())})
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "code", "name"}
    assert answer.json()["error"]["code"] == answer.headers["x-memos-error-code"]


@pytest.mark.parametrize(
    ("path", "content", "status", "says"),
    [
        ("shift", b'{"provider":"vllm","shar":0.1}', 400, "did you mean share?"),
        ("shift", b'{"provider":"vllm"}', 400, "share"),
        ("shift", b'{"provider":"vllm","share":[]}', 400, "share"),
        ("shift", b'{"provider":"vllm","share":30}', 400, "0.3"),
        ("shift", b'{"provider":"vllm","share":-1}', 400, "outside 0 to 1"),
        ("shift", b'{"provider":"ollama","share":0.1}', 400, "is the baseline"),
        ("shift", b'{"provider":"nosuch","share":0.1}', 400, "vllm"),
        ("shift", b'{"provider":"vllm","share":0.1,"component":"a/b"}', 400, "component"),
        ("shift", b'{"provider":"vllm","share":0.1,"new_index":true}', 400, "embedding"),
        ("shift", b'{"provider":"vllm","share":0.1,"wait_s":1e9}', 400, "wait_s"),
        ("shift", b'{"provider":"vllm","share":1,"component":"embedding"}', 409, "never mix"),
        ("rollback", b'{"componnt":"x"}', 400, "did you mean component?"),
        ("rollback", b"[]", 400, "object"),
        ("rollback", b"{", 400, "not JSON"),
        ("rollback", b'{"reason":"\xff"}', 400, "not JSON"),
        ("rollback", b"[" * 60_000, 400, "not JSON"),
        ("rollback", b" " * 70_000, 413, "larger"),
        ("rearm", b"{}", 409, "not latched"),
        ("verify", b'{"model":"nosuch","proof":null}', 400, "nosuch"),
        ("verify", b'{"model":"llama3.2:3b","proof":null}', 400, "no name on vllm"),
        ("nosuch", b"{}", 404, "shift"),
        ("status", b"{}", 405, "GET"),
    ],
)
async def test_what_is_refused_says_why_and_changes_nothing(
    stack: Stack, path: str, content: bytes, status: int, says: str
) -> None:
    before = stack.runtime.live.current()
    async with Admin(stack, token()) as client:
        answer = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert says in error["message"]
    assert set(error) == {"message", "code", "name"}
    assert stack.runtime.live.current() == before


async def test_only_json_is_taken(stack: Stack) -> None:
    async with Admin(stack, token()) as client:
        for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}):
            answer = await client.post("rollback", content=b"{}", headers=headers)
            assert answer.status_code == 415
        assert (await client.get("history?limit=abc")).status_code == 400
        assert (await client.get("history?limt=3")).status_code == 400
        assert (await client.get("incidents/nosuch")).status_code == 404


async def test_a_store_that_is_gone_is_503_and_the_status_still_tells(stack: Stack) -> None:
    await stack.runtime.live.store.aclose()
    async with Admin(stack, token()) as client:
        for method, path, body in (("GET", "history", None), ("POST", "rollback", {})):
            answer = await client.request(method, path, json=body)
            assert answer.status_code == 503
            assert answer.json()["error"]["name"] == "STORE_UNREACHABLE"
        status = (await client.get("status")).json()
    assert status["store"]["reachable"] is False
    assert status["shares"]["*"] == {"vllm": 0.0}


async def test_the_status_of_a_gateway_tells_breakers_probes_and_what_is_in_flight(tmp_path: Path) -> None:
    async with open_stack(tmp_path, probe=True) as stack, Admin(stack, token()) as client:

        async def vllm() -> dict[str, Any]:
            found: dict[str, Any] = (await client.get("status")).json()["providers"]["vllm"]
            return found

        await stack.shift(1.0)
        async with asyncio.timeout(5):
            while not (await vllm())["up"]:
                await asyncio.sleep(0.01)
        assert (await vllm())["endpoints"][0]["models"] == ["Qwen/Qwen3-8B"]
        assert (await vllm())["breaker"] == "closed"

        stack.vllm.faults.set("hang")
        async with stack.client() as data:
            asked = asyncio.create_task(data.post("/v1/chat/completions", json=CHAT))
            async with asyncio.timeout(5):
                while (await vllm())["in_flight"] != 1:
                    await asyncio.sleep(0.01)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            async with asyncio.timeout(5):
                while (await vllm())["in_flight"]:
                    await asyncio.sleep(0.01)
            stack.vllm.faults.set("status:code=500")
            for _ in range(6):
                assert (await data.post("/v1/chat/completions", json=CHAT)).status_code == 200
        found = await vllm()
        assert found["breaker"] == found["endpoints"][0]["breaker"] == "open"
        said = (await client.get("explain", params={"session": "s", "model": "qwen3:8b"})).json()
    assert (said["reason"], said["provider"]) == ("diverted", "ollama")
    assert said["diverted"] == [{"provider": "vllm", "reason": "breaker-open"}]


async def test_events_tell_what_happens_and_no_secret(keyed: Stack) -> None:
    async with Admin(keyed, key("read")) as client, client.stream("GET", "events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.aiter_lines()
        assert (await anext(lines)).startswith(":")
        async with keyed.client() as data:
            assert (await data.post("/v1/chat/completions", json=CHAT)).status_code == 401
            await data.post("/v1/chat/completions", json=CHAT, headers=bearer(key("inference")))
        shifted = await keyed.shift(0.3)
        seen = ""
        async with asyncio.timeout(5):
            async for line in lines:
                seen += line + "\n"
                if line.startswith("data:") and f'"revision":{shifted.revision}' in line:
                    break
    assert "event: flags" in seen
    assert "event: refused" in seen
    found = next(json.loads(line[6:]) for line in seen.splitlines() if '"scopes"' in line)
    assert found["scopes"]["*"]["share"] == 0.3
    for secret in ("canary", keyed.runtime.live.current().salt, *(key(scope) for scope in SCOPES)):
        assert secret not in seen


async def test_the_openapi_document_has_every_verb_and_resolves(stack: Stack) -> None:
    async with Admin(stack, token()) as client:
        document = (await client.get("openapi.json")).json()
        assert document["openapi"].startswith("3.1")
        listed = {(method.upper(), path) for path, verbs in document["paths"].items() for method in verbs}
        for method, path, _, _ in NEEDS:
            assert (method, f"/admin/v1/{path.partition('?')[0]}") in listed
        for method, path in listed - {("GET", "/admin/v1/events")}:
            body: dict[str, Any] | None = {} if method == "POST" else None
            answer = await client.request(method, f"{stack.url}{path.replace('{id}', 'x')}", json=body)
            assert answer.status_code not in (405, 500), path
    schemas = document["components"]["schemas"]
    assert references(document) <= {f"#/components/schemas/{name}" for name in schemas}
    assert set(schemas["ShiftOrder"]["properties"]) >= {"provider", "share", "component", "reason"}
    (scheme,) = document["security"][0]
    assert document["components"]["securitySchemes"][scheme] | {"description": ""} == {
        "type": "http", "scheme": "bearer", "description": "",
    }  # fmt: skip


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(each) for each in value.values()))
    return set().union(*(references(each) for each in value)) if isinstance(value, list) else set()


async def test_a_rollback_is_an_incident_that_can_be_read(stack: Stack) -> None:
    await stack.shift(0.5)
    async with Admin(stack, token()) as client:
        change = (await client.post("rollback", json={"reason": "bad answers"})).json()
        listed = (await client.get("incidents")).json()["incidents"]
        alone = (await client.get(f"incidents/{change['latched']}")).json()["incidents"]
        assert listed == alone
        assert (alone[0]["reason"], alone[0]["shares_before"]) == ("bad answers", {"*": 0.5})
        assert (await client.get("flags")).json()["scopes"]["*"]["latched"]["incident"] == change["latched"]
        assert "salt" not in (await client.get("flags")).text
        await until(lambda: stack.runtime.live.current().revision == change["revision"])
