"""Routes that we do not read: passed to the baseline as they are, and its answers back."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack import Stack, document, open_gateway, open_stack, settings, until

from memos_llm.core.events import RequestEnded
from memos_llm.testing import Recorder

TOKEN = "test-admin-token-0123456789"
ADMIN = {"authorization": f"Bearer {TOKEN}"}
RESPONSES = {"model": "qwen3:8b", "input": "Why is the sky blue?"}
MESSAGES = {"model": "qwen3:8b", "max_tokens": 50, "messages": [{"role": "user", "content": "Why?"}]}

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMOS_LLM_ADMIN_TOKEN", TOKEN)


class Backend:
    """A baseline that answers everything with the same bytes, and keeps what it got."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.gone = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next((line for line in head.lower().split("\r\n") if line.startswith("content-length:")), ":0")
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(int(length.partition(":")[2])))
                for piece in self.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await self.go_on.wait()
                if b"connection: close" in self.pieces[0].lower():
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()


@asynccontextmanager
async def before(backend: Backend, folder: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Recorder]]:
    """A gateway whose baseline that is."""
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = settings(folder, document(f"http://127.0.0.1:{port}", "http://127.0.0.1:9", folder))
    try:
        async with open_gateway(config) as (_, told, url), httpx.AsyncClient(base_url=url, timeout=10) as client:
            yield client, told
    finally:
        server.close()


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_method_path_query_type_and_bytes_arrive_as_they_were_sent(method: str, tmp_path: Path) -> None:
    body = b'\x00\xff{"a":1,"a":2} \n' if method != "GET" else b""
    backend = Backend(answer(b"\xfe\x00ok", "418 I'm a teapot", "content-type: x/y; z=1", "x-secret: s"))
    async with before(backend, tmp_path) as (client, _):
        headers = {**ADMIN, "content-type": "multipart/form-data; boundary=x", "x-other": "y", "cookie": "a=b"}
        response = await client.request(method, "/v1/audio/x%2Fy?a=%20b&c", content=body, headers=headers)
    assert (response.status_code, response.content) == (418, b"\xfe\x00ok")
    assert (response.headers["content-type"], response.headers["content-length"]) == ("x/y; z=1", "4")
    assert "x-secret" not in response.headers
    line, *sent = backend.heads[0].rstrip().split("\r\n")
    names = {header.partition(":")[0].lower() for header in sent}
    assert line == f"{method} /v1/audio/x%2Fy?a=%20b&c HTTP/1.1"
    assert backend.bodies == [body]
    assert {"content-type", "x-request-id", "x-memos-hop"} <= names
    assert not {"authorization", "cookie", "x-other"} & names


async def test_a_component_before_the_path_is_ours(tmp_path: Path) -> None:
    backend = Backend(answer(b"{}"))
    async with before(backend, tmp_path) as (client, told):
        response = await client.post("/c/analysis/s/a%2Fb/v1/responses?x=1", json=RESPONSES)
        assert backend.heads[0].startswith("POST /v1/responses?x=1 ")
        (end,) = told.of(RequestEnded)
    assert (end.component, end.operation.value, end.decision.reason.value) == ("analysis", "passthrough", "passthrough")
    assert (end.model, end.provider) == ("qwen3:8b", "ollama")
    assert response.headers["x-memos-reason"] == "passthrough"
    assert response.headers["x-memos-provider"] == "ollama"


async def test_pieces_are_passed_on_as_they_come(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n"
    backend = Backend(head + b"5\r\nfirst\r\n", b"6\r\nsecond\r\n0\r\n\r\n")
    backend.go_on.clear()
    streaming = {**RESPONSES, "stream": True}
    async with before(backend, tmp_path) as (client, _), client.stream("POST", "/v1/audio", json=streaming) as got:
        pieces = got.aiter_raw()
        assert await anext(pieces) == b"first"
        backend.go_on.set()
        assert b"".join([piece async for piece in pieces]) == b"second"
        assert got.headers["content-type"] == "text/event-stream"


async def test_a_head_request_and_an_empty_answer_pass(tmp_path: Path) -> None:
    async with before(Backend(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n"), tmp_path) as (client, _):
        response = await client.head("/v1/files/x")
        assert (response.status_code, response.headers["content-length"]) == (200, "1234")
    async with before(Backend(b"HTTP/1.1 204 No Content\r\n\r\n"), tmp_path) as (client, _):
        response = await client.post("/v1/files/x")
        assert (response.status_code, response.content) == (204, b"")


@pytest.mark.parametrize("location", ["/v1/elsewhere", "http://inner.example/v1", "//inner.example/v1"])
async def test_a_redirect_is_the_callers_and_names_no_host_of_ours(location: str, tmp_path: Path) -> None:
    backend = Backend(answer(b"", "307 Temporary Redirect", f"location: {location}"))
    async with before(backend, tmp_path) as (client, _):
        response = await client.post("/v1/files/")
        assert response.status_code == 307
        assert response.headers.get("location") == (location if location == "/v1/elsewhere" else None)


@pytest.mark.parametrize(
    "path", ["/v1/../api/push", "/v1//x", "/v1/./x", "/api/x%5Cy", "/v1/%2e%2e/api/push", "/v1/a%0Ab"]
)
async def test_a_path_that_could_be_read_otherwise_is_refused(path: str, stack: Stack) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rpartition(":")[2]))
    writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    assert b" 400 " in await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    assert not stack.ollama.requests


@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        ("/v1/responses", RESPONSES, lambda d: isinstance(d["error"]["message"], str)),
        ("/v1/messages", MESSAGES, lambda d: d["error"]["type"] == "overloaded_error" and d["request_id"]),
        ("/api/status", None, lambda d: isinstance(d["error"], str)),
    ],
)
async def test_a_baseline_that_is_down_is_told_in_the_paths_dialect(
    path: str, body: Any, shape: Any, stack: Stack
) -> None:
    stack.ollama.faults.set("refuse")
    async with stack.client() as client:
        response = await client.request("POST" if body else "GET", path, json=body)
    assert response.status_code == 503
    assert shape(response.json())
    for name, value in {"arm": "baseline", "reason": "passthrough", "error-code": "ERR_5001"}.items():
        assert response.headers[f"x-memos-{name}"] == value
    assert int(response.headers["x-memos-attempts"]) >= 1


@pytest.mark.parametrize(("path", "body"), [("/v1/responses", RESPONSES), ("/v1/messages", MESSAGES)])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_the_back_ends_own(path: str, body: Any, stream: bool, tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack, stack.client() as client:
        await stack.shift(1.0)
        asked = {**body, "stream": stream}
        async with httpx.AsyncClient(base_url=stack.ollama.url) as direct:
            expected = await direct.post(path, json=asked)
        got = await client.post(path, json=asked)
        assert (got.status_code, got.headers["content-type"]) == (200, expected.headers["content-type"])
        assert (
            got.headers.get("cache-control")
            == expected.headers.get("cache-control")
            == ("no-cache" if stream else None)
        )
        assert got.text.count("\n") == expected.text.count("\n")
        assert not stack.vllm.requests


@pytest.mark.parametrize("wait_bytes", [0, 1])
async def test_a_client_that_leaves_is_gone_upstream_at_once(wait_bytes: int, tmp_path: Path) -> None:
    timing = {"inter_token_s": 0.05} if wait_bytes else {"ttft_s": 30.0}
    async with open_stack(tmp_path, ollama=timing) as stack:
        body = json.dumps({**RESPONSES, "stream": True}).encode()
        best = min([await _leave(stack, body, wait_bytes) for _ in range(3)])
        assert best <= 0.25
        ended = await stack.ended(3)
        assert {end.outcome.kind.value for end in ended} == {"cancelled"}


async def _leave(stack: Stack, body: bytes, wait_bytes: int) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rpartition(":")[2]))
    head = f"POST /v1/responses HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    before = stack.ollama.counters.aborted
    await until(lambda: stack.ollama.counters.in_flight > 0)
    if wait_bytes:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(wait_bytes)
    writer.transport.abort()
    left_at = time.monotonic()
    await until(lambda: stack.ollama.counters.aborted > before)
    noticed_at = stack.ollama.counters.last_abort_monotonic
    assert noticed_at is not None
    return noticed_at - left_at


async def test_an_answer_that_breaks_off_ends_in_an_error_and_not_as_if_whole(tmp_path: Path) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    )
    async with before(Backend(head + b"5\r\nfirst\r\n"), tmp_path) as (client, told):
        response = await client.post("/v1/responses", json={**RESPONSES, "stream": True})
        assert response.text.startswith("first")
        assert "broke off" in response.text
        (end,) = told.of(RequestEnded)
        assert end.outcome.kind.value == "truncated"


@pytest.mark.parametrize("kind", ["content-type: text/event-stream\r\ncontent-length: 20", "content-type: audio/wav"])
async def test_where_no_error_can_be_said_a_broken_answer_stays_without_an_end(kind: str, tmp_path: Path) -> None:
    chunked = "" if "length" in kind else "\r\ntransfer-encoding: chunked"
    head = f"HTTP/1.1 200 OK\r\n{kind}{chunked}\r\nconnection: close\r\n\r\n".encode()
    async with before(Backend(head + b"5\r\nfirst\r\n"), tmp_path) as (client, _):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/v1/audio/speech", json={"model": "qwen3:8b"})


# --- what no other reader may read in it ------------------------------------------------------------------------------

MEDIA = '{"model":"qwen3:8b","input":[{"type":"input_image","image_url":"http://10.0.0.1/x"}]}'
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")


async def test_json_that_is_not_in_utf_8_is_refused_whatever_its_type(stack: Stack) -> None:
    """What Python reads of bytes: a back end in it would fetch what we cannot see."""
    types: list[dict[str, str]] = [{}, {"content-type": "application/json"}, {"content-type": "text/plain"}]
    async with stack.client() as client:
        for encoding, text, headers in product(ENCODINGS, (MEDIA, f" \r\n{MEDIA}"), types):
            body = text.encode(encoding)
            assert json.loads(body)["input"]
            response = await client.post("/v1/responses", content=body, headers=headers)
            assert (response.status_code, "UTF-8" in response.text) == (400, True), (encoding, text, headers)
    assert not [request for request in stack.ollama.requests if request.method == "POST"]


@pytest.mark.parametrize("body", [b"\xff\xfe\x00", b"\x20\x00\x00\x00\x00\x00\x00\x00{", b"\x00\xd8\x00\xd8"])
async def test_bytes_that_are_no_json_in_any_encoding_pass(body: bytes, tmp_path: Path) -> None:
    backend = Backend(answer(b"ok"))
    async with before(backend, tmp_path) as (client, _):
        assert (await client.post("/v1/files", content=body)).status_code == 200
    assert backend.bodies == [body]


# --- pull -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3:8b", "Qwen/Qwen3-8B", "mine"])
async def test_a_pull_of_a_known_name_has_nothing_to_do(name: str, tmp_path: Path) -> None:
    async with open_stack(tmp_path, ollama={"models": ["qwen3:8b", "mine"]}) as stack, stack.client() as client:
        streamed = await client.post("/api/pull", json={"model": name})
        assert streamed.headers["content-type"] == "application/x-ndjson"
        statuses = [json.loads(line)["status"] for line in streamed.text.splitlines()]
        assert (statuses[0], statuses[-1]) == ("pulling manifest", "success")
        whole = await client.post("/api/pull", json={"name": name, "stream": False})
        assert whole.json() == {"status": "success"}
        assert not [request for request in stack.ollama.requests if request.path == "/api/pull"]


async def test_a_pull_is_understood_in_any_case_as_ollama_does(stack: Stack) -> None:
    async with stack.client() as client:
        answer = await client.post("/api/pull", json={"Model": "qwen3:8b", "STREAM": False})
    assert (answer.status_code, answer.json()) == (200, {"status": "success"})


async def test_an_administrator_pulls_what_is_not_there(stack: Stack) -> None:
    async with stack.client() as client:
        assert (await client.post("/api/pull", json={"model": "nobody:1b"})).status_code == 401
        response = await client.post("/api/pull", json={"model": "nobody:1b"}, headers=ADMIN)
        assert response.status_code == 200
        assert "pulling manifest" in response.text
        assert [request.path for request in stack.ollama.requests if request.method == "POST"] == ["/api/pull"]


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b"[]", b'{"model":7}'])
async def test_a_pull_that_cannot_be_understood_is_a_400(body: bytes, stack: Stack) -> None:
    async with stack.client() as client:
        response = await client.post("/api/pull", content=body)
        assert (response.status_code, isinstance(response.json()["error"], str)) == (400, True)
