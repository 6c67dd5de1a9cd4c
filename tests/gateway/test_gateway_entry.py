"""What every request passes before it is routed: Host, web origin, loops, encodings; what a body may not ask for."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stack import Stack, document, open_gateway, open_stack, settings

from memos_llm.core.errors import BadRequest, Forbidden
from memos_llm.core.events import RequestRefused
from memos_llm.gateway.rules import OPEN, Rules, host_name
from memos_llm.gateway.screening import ANY_KEYS, check_media, check_model

CHAT: dict[str, Any] = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "hi"}], "stream": False}
KEY = {"id": "k", "sha256": "0" * 64, "scopes": ["inference"]}


async def get(stack: Stack, path: str = "/api/version", method: str = "GET", **headers: str) -> httpx.Response:
    async with stack.client() as client:
        return await client.request(method, path, headers={name.replace("_", "-"): v for name, v in headers.items()})


@pytest.mark.parametrize(
    ("host", "admitted"),
    [
        ("localhost", True),
        ("LocalHost:8200", True),
        ("127.0.0.1", True),
        ("127.9.9.9:1", True),
        ("[::1]:8200", True),
        ("app.localhost:8200", True),
        ("192.168.1.7:8200", True),  # an address cannot be made to mean another
        ("localhost.", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example:8200", False),
        ("8.8.8.8", False),
        ("[::1", True),
        ("", False),
    ],
)
async def test_a_foreign_host_is_refused_but_not_to_health_checks(host: str, admitted: bool, stack: Stack) -> None:
    response = await get(stack, host=host)
    assert response.status_code == (200 if admitted else 403)
    assert admitted or "gateway.allowed_hosts" in response.json()["error"]
    assert (await get(stack, "/health", host=host)).status_code == 200
    assert (await get(stack, "/ready", host=host)).status_code == 200


async def test_configured_hosts_are_the_only_ones(tmp_path: Path) -> None:
    config = {"gateway": {"allowed_hosts": ["LLM.example", "127.0.0.1"]}}
    async with open_stack(tmp_path, config=config) as stack:
        codes = [(await get(stack, host=host)).status_code for host in ("llm.example:8200", "127.0.0.1", "localhost")]
        assert codes == [200, 200, 403]


async def test_with_keys_any_host_will_do_unless_some_are_configured(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"api_keys": [KEY]}}) as stack:
        assert (await get(stack, "/", host="llm.example")).status_code == 200
    async with open_stack(tmp_path, config={"gateway": {"api_keys": [KEY], "allowed_hosts": ["a"]}}) as stack:
        assert (await get(stack, "/", host="llm.example")).status_code == 403


@pytest.mark.parametrize(
    ("origin", "admitted"),
    [
        ("http://localhost:3000", True),
        ("https://127.0.0.1", True),
        ("tauri://localhost", True),
        ("vscode-webview://1a2b", True),
        ("http://evil.example", False),
        ("http://localhost.evil.example", False),
        ("http://localhost:3000.evil.example", False),
        ("null", False),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/api/version"), ("POST", "/api/chat"), ("GET", "/health")])
async def test_only_web_pages_of_this_machine_are_let_in(
    method: str, path: str, origin: str, admitted: bool, stack: Stack
) -> None:
    async with stack.client() as client:
        body = CHAT if method == "POST" else None
        headers = {"origin": origin, "sec-fetch-site": "cross-site"}
        answer = await client.request(method, path, headers=headers, json=body)
    assert answer.status_code == (200 if admitted else 403)
    assert answer.headers.get("access-control-allow-origin") == (origin if admitted else None)
    if admitted:
        assert answer.headers["vary"] == "Origin"


async def test_configured_origins_replace_the_local_ones(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"cors_origins": ["https://App.example/"]}}) as stack:
        asked = ("https://app.example", "http://localhost:3000", "null")
        assert [(await get(stack, origin=o)).status_code for o in asked] == [200, 403, 403]
        assert (await get(stack, origin=stack.url)).status_code == 200  # its own pages


async def test_a_cross_site_request_without_an_origin_is_refused(stack: Stack) -> None:
    assert (await get(stack, sec_fetch_site="cross-site")).status_code == 403
    assert (await get(stack, sec_fetch_site="Cross-Site")).status_code == 403
    assert (await get(stack, sec_fetch_site="same-origin")).status_code == 200


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("host", "evil.example", "localhost"),
        ("origin", "http://evil.example", "http://localhost"),
        ("sec-fetch-site", "cross-site", "none"),
        ("authorization", "Bearer a", "Bearer b"),
        ("x-memos-provider", "a", "b"),
    ],
)
async def test_a_header_that_decides_is_there_once(name: str, first: str, second: str, stack: Stack) -> None:
    host = "" if name == "host" else "host: localhost\r\n"
    head = f"GET /api/version HTTP/1.1\r\n{host}{name}: {first}\r\n{name}: {second}\r\nconnection: close\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rpartition(":")[2]))
    writer.write(head.encode())  # no client of ours would send that
    answer = (await asyncio.wait_for(reader.read(), 5)).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 400")
    assert f"the header {name} is there 2 times" in answer
    async with stack.client() as client:
        assert (await client.get("/", headers=[("accept", "a"), ("accept", "b")])).status_code == 200


async def test_a_page_can_read_why_it_was_refused(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"api_keys": [KEY]}}) as stack:
        answer = await get(stack, "/api/chat", origin="http://localhost:5173")
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"


@pytest.mark.parametrize("path", ["/metrics/", "/health/", "/admin/v1", "/v1/models/"])
async def test_nobody_is_sent_to_an_address_made_of_the_hosts_name(path: str, stack: Stack) -> None:
    answer = await get(stack, path)
    assert answer.status_code == 404
    assert "location" not in answer.headers


async def test_a_preflight_is_answered_without_a_key_on_any_path(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"api_keys": [KEY]}}) as stack:
        wanted = "authorization,content-type,x-stainless-os"
        for path in ("/v1/chat/completions", "/api/anything", "/c/a/api/chat"):
            answer = await get(
                stack, path, "OPTIONS", origin="http://localhost:5173", access_control_request_headers=wanted
            )
            assert answer.status_code == 204
            assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"
            assert answer.headers["access-control-allow-headers"] == wanted
            assert "POST" in answer.headers["access-control-allow-methods"]
        assert (await get(stack, "/api/chat", "OPTIONS", origin="http://evil.example")).status_code == 403


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br"])
async def test_a_compressed_body_is_refused(encoding: str, stack: Stack) -> None:
    async with stack.client() as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers={"content-encoding": encoding})
        assert (answer.status_code, answer.json()["error"]["type"]) == (415, "invalid_request_error")
        assert (await client.post("/api/chat", json=CHAT, headers={"content-encoding": "identity"})).status_code == 200


async def test_a_request_that_comes_back_is_a_loop(tmp_path: Path) -> None:
    """A gateway whose Ollama is a gateway: OLLAMA_HOST was meant for the applications and reached the gateway."""
    async with open_stack(tmp_path) as stack:
        (tmp_path / "outer").mkdir()
        config = document(stack.url, stack.vllm.url, tmp_path / "outer")
        outer = settings(tmp_path / "outer", config)
        async with open_gateway(outer) as (_, _, url), httpx.AsyncClient(base_url=url, timeout=10) as client:
            answer = await client.post("/api/chat", json=CHAT)
        assert answer.status_code >= 500
        assert {event.status for event in stack.told.of(RequestRefused)} == {508}
        assert not stack.ollama.requests


async def test_what_is_refused_at_the_door_is_told_once_and_in_dialect(stack: Stack) -> None:
    async with stack.client() as client:
        for path, code in (("/c//v1/chat/completions", 400), ("/v1/chat/completions", 508), ("/c//api/chat", 400)):
            headers = {"x-memos-hop": "1"} if code == 508 else {}
            answer = await client.post(path, json=CHAT, headers={**headers, "x-request-id": f"id-{code}"})
            assert answer.status_code == code
            assert isinstance(answer.json()["error"], dict if "/v1/" in path else str)
    refused = [(event.status, event.request_id) for event in stack.told.of(RequestRefused)]
    assert refused == [(400, "id-400"), (508, "id-508"), (400, "id-400")]


async def raw(stack: Stack, *pieces: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rpartition(":")[2]))
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.05)  # read piece by piece
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


@pytest.mark.parametrize(("path", "shape"), [("/v1/models", dict), ("/api/tags", str)])
async def test_a_head_that_is_too_large_is_told_in_dialect(path: str, shape: type, stack: Stack) -> None:
    head, _, body = (await raw(stack, f"GET {path} HTTP/1.1\r\nx: ".encode(), *[b"y" * 30_000] * 3)).partition(
        b"\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.1 431")
    assert b"x-memos-error-code: ERR_5101" in head
    assert isinstance(json.loads(body)["error"], shape)
    assert [event.status for event in stack.told.of(RequestRefused)] == [431]


async def test_a_head_that_never_ends_has_a_limit(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"header_timeout_s": 0.2}}) as stack:
        assert (await raw(stack, b"GET /api/tags HTTP/1.1\r\nhost: ")).startswith(b"HTTP/1.1 408")
        assert [event.status for event in stack.told.of(RequestRefused)] == [408]
        assert await raw(stack) == b""  # nothing was asked: nobody waits for words
        async with stack.client() as client:  # an idle connection is no slow head
            assert (await client.get("/health")).status_code == 200
            await asyncio.sleep(0.4)
            assert (await client.get("/health")).status_code == 200
            assert len(stack.told.of(RequestRefused)) == 1


# --- what a body may not ask for --------------------------------------------------------------------------------------

CLOUD = ["gpt-oss:120b-cloud", "big:cloud", "BIG:Cloud", "a/b:x-CLOUD"]


@pytest.mark.parametrize("name", CLOUD)
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/responses", "/api/show", "/c/a/api/embed"])
async def test_a_cloud_model_is_refused(name: str, path: str, stack: Stack) -> None:
    async with stack.client() as client:
        answer = await client.post(path, json={**CHAT, "model": name, "input": "x"})
        assert (answer.status_code, "gateway.allow_cloud" in answer.text) == (403, True)
        assert not [request for request in stack.ollama.requests if request.method == "POST"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"model":"qwen3:8b","MODEL":"big:cloud","input":"x"}', 403),
        (b'\n{"mod\\u0065l":"big:cloud","input":"x"}', 403),
        (b'{"model":"big:cloud","input":"x"} and what Ollama overlooks', 400),
    ],
)
async def test_a_cloud_model_that_hides_is_refused(body: bytes, status: int, stack: Stack) -> None:
    async with stack.client() as client:
        assert (await client.post("/v1/responses", content=body)).status_code == status
        assert not [request for request in stack.ollama.requests if request.method == "POST"]


async def test_cloud_models_pass_where_they_are_allowed(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"gateway": {"allow_cloud": True}}) as stack, stack.client() as client:
        assert (await client.post("/api/chat", json={**CHAT, "model": "big:cloud"})).status_code != 403
        assert "/api/chat" in [request.path for request in stack.ollama.requests]


@pytest.mark.parametrize("name", ["cloud", "my-cloud", "cloud:8b", "x:cloudy", ""])
def test_other_names_are_nobodys_cloud(name: str) -> None:
    check_model(name, OPEN)


def part(url: Any, kind: str = "image_url") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind, kind: url}]}]}


MEDIA = {
    "an object": part({"url": "http://169.254.169.254/latest"}),
    "a string": part("https://intern.example/x.png"),
    "a video": part({"url": "http://x/y"}, "video_url"),
    "audio": part({"url": "http://x/y"}, "audio_url"),
    "a local file": part({"url": "file:///etc/passwd"}),
    "a tool's result": {"messages": [{"role": "tool", "content": part({"url": "http://x"})["messages"][0]["content"]}]},
    "of responses": {"input": [{"content": [{"type": "input_image", "image_url": "http://x/y"}]}]},
    "a file of responses": {"input": [{"content": [{"type": "input_file", "file_url": "http://x/y"}]}]},
    "of messages": {"messages": [{"content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]},
    "not a string of data": part({"url": " datum:http://x"}),
}


@pytest.mark.parametrize("body", MEDIA.values(), ids=MEDIA)
def test_media_by_url_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="media_domains"):
        check_media(json.dumps(body).encode(), OPEN, ANY_KEYS)
    spelt = json.dumps(body).replace("url", "\\u0075rl").encode()  # decoded first, then judged
    with pytest.raises(BadRequest, match="media_domains"):
        check_media(spelt, OPEN)


@pytest.mark.parametrize(
    "body",
    [
        part({"url": "data:image/png;base64,AAAA"}),
        part("DATA:image/png;base64,AAAA"),
        {"messages": [{"role": "user", "content": "look at http://x/y, the url is https://z"}]},
        {"tools": [{"function": {"parameters": {"properties": {"image_url": {"url": "http://json-schema"}}}}}]},
        {"messages": [{"content": [{"type": "tool_use", "input": {"image_url": "http://an-argument"}}]}]},
        {"messages": [{"tool_calls": [{"function": {"arguments": {"image_url": "http://an-argument"}}}]}]},
    ],
)
def test_what_nobody_would_fetch_passes(body: dict[str, Any]) -> None:
    check_media(json.dumps(body).encode(), OPEN)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://img.example/a.png", True),
        ("http://cdn.img.example:8080/a.png", True),
        ("https://IMG.example./a", True),
        ("https://img.example.evil/a", False),
        ("https://evilimg.example/a", False),
        ("https://img.example@evil/a", False),
        ("https://img.example\\@evil/a", False),
        ("https://evil\\.img.example/a", False),
        ("ftp://img.example/a", False),
        ("https://img.example\n.evil/a", False),
        ("//img.example/a", False),
    ],
)
def test_a_domain_is_allowed_with_its_subdomains_and_no_look_alikes(url: str, allowed: bool) -> None:
    body, rules = json.dumps(part({"url": url})).encode(), Rules(media_domains=("img.example",))
    if allowed:
        check_media(body, rules)
    else:
        with pytest.raises(BadRequest):
            check_media(body, rules)


async def test_media_by_url_never_reaches_a_back_end(stack: Stack) -> None:
    await stack.shift(1.0)
    async with stack.client() as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, **part({"url": "http://10.0.0.1/x"})})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
        assert "10.0.0.1" not in answer.text
        assert not stack.vllm.requests


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/responses", "/api/show", "/api/embed"])
async def test_a_body_nested_too_deep_is_a_400(path: str, stack: Stack) -> None:
    deep = b'{"model":"qwen3:8b","url":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    async with stack.client() as client:
        answer = await client.post(path, content=deep)
        assert (answer.status_code, "deep" in answer.text) == (400, True)


# --- the pure parts ---------------------------------------------------------------------------------------------------


@given(st.text(max_size=40))
@example("[")
@example("[]:80")
def test_no_host_is_admitted_that_is_not_of_this_machine(text: str) -> None:
    name = host_name(text)
    if OPEN.admits_host(text):
        assert name in ("localhost",) or name.endswith(".localhost") or set(name) <= set("0123456789abcdef.:%/")


@given(st.text(max_size=40), st.text(max_size=10))
def test_no_origin_of_another_scheme_or_host_is_admitted(origin: str, host: str) -> None:
    if OPEN.admits_origin(origin, host):
        scheme = origin.lower().partition("://")[0]
        assert scheme in ("http", "https", "app", "file", "tauri", "vscode-webview", "vscode-file")


def test_forbidden_is_what_a_cloud_model_is() -> None:
    with pytest.raises(Forbidden):
        check_model("x:cloud", OPEN)
