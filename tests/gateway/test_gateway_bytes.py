"""Equal wires: the client gets the back end's bytes, however the network cut them, but for the listed repairs."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from stack import document, open_gateway, settings

OPENAI_STREAM = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"qwen3:8b","choices":[{"index":0,'
    '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
    ": keep-alive\n\n"
    'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"Grüße, 世界 🌍"},"finish_reason":null}],'
    '"model":"qwen3:8b"}\n\n'
    'data: {"id":"chatcmpl-1","model":"qwen3:8b","choices":[{"index":0,"delta":{"content":"say \\"model\\":\\"x\\""},'
    '"finish_reason":"stop","stop_reason":null}]}\n\n'
    'data: {"id":"chatcmpl-1","model":"qwen3:8b","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7}}\n\n'
    "data: [DONE]\n\n"
).encode()
OPENAI_WHOLE = (
    '{"id":"chatcmpl-1","object":"chat.completion","model":"qwen3:8b","choices":[{"index":0,"message":{"role":'
    '"assistant","content":"Grüße\\u2028"},"finish_reason":"stop"}],  '
    '"usage":{"prompt_tokens":3,"completion_tokens":7}}'
).encode()
OLLAMA_STREAM = (
    '{"model":"qwen3:8b","created_at":"2026-08-22T10:00:00.1Z","message":{"role":"assistant","content":"Gr"},'
    '"done":false}\n'
    '{"model":"qwen3:8b","created_at":"2026-08-22T10:00:00.2Z","message":{"role":"assistant",'
    '"content":"üße \\u003cb\\u003e"},"done":false}\n'
    '{"model":"qwen3:8b","created_at":"2026-08-22T10:00:00.3Z","message":{"role":"assistant","content":""},"done":true,'
    '"done_reason":"stop","total_duration":9,"prompt_eval_count":11,"eval_count":5}\n'
).encode()
OLLAMA_WHOLE = OLLAMA_STREAM.splitlines()[-1]
GENERATE_STREAM = b'{"model":"qwen3:8b","response":"Hi","done":false}\n{"model":"qwen3:8b","response":"","done":true}\n'
TEXT_STREAM = (
    b'data: {"id":"cmpl-1","model":"qwen3:8b","choices":[{"index":0,"text":"Hi \\u003c","finish_reason":"stop"}]}\n\n'
    b'data: {"id":"cmpl-1","model":"qwen3:8b","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7}}\n\n'
    b"data: [DONE]\n\n"
)
TEXT_WHOLE = b'{"id":"cmpl-1", "model":"qwen3:8b","choices":[{"index":0,"text":"Hi","finish_reason":"stop"}],"x":1.50}'
VECTORS = (
    b'{"object":"list","data":[{"object":"embedding","embedding":[0.10,-2e-05],"index":0}],"model":"qwen3:8b", '
    b'"usage":{"prompt_tokens":1,"total_tokens":1}}'
)
EMBEDDED = b'{"model":"qwen3:8b","embeddings":[[0.10,-2e-05]], "total_duration":9,"prompt_eval_count":1}'
RESPONSES = (
    b'event: response.created\ndata: {"type":"response.created", "x":1.50}\n\nevent: response.completed\ndata: {}\n\n'
)

EXCHANGES = {
    "openai stream": ("/v1/chat/completions", True, "text/event-stream; charset=utf-8", OPENAI_STREAM),
    "openai whole": ("/v1/chat/completions", False, "application/json", OPENAI_WHOLE),
    "chat stream": ("/api/chat", True, "application/x-ndjson", OLLAMA_STREAM),
    "chat whole": ("/api/chat", False, "application/json; charset=utf-8", OLLAMA_WHOLE),
    "generate stream": ("/api/generate", True, "application/x-ndjson", GENERATE_STREAM),
    "text stream": ("/v1/completions", True, "text/event-stream; charset=utf-8", TEXT_STREAM),
    "text whole": ("/v1/completions", False, "application/json", TEXT_WHOLE),
    "openai embeddings": ("/v1/embeddings", False, "application/json", VECTORS),
    "ollama embed": ("/api/embed", False, "application/json; charset=utf-8", EMBEDDED),
    "ollama embeddings": ("/api/embeddings", False, "application/json; charset=utf-8", b'{"embedding":[0.10, -2e-05]}'),
    "responses": ("/v1/responses", True, "text/event-stream", RESPONSES),
}


class Upstream:
    """A back end of bytes: answers every POST with the pieces it is given, one write each, and keeps the request."""

    def __init__(self) -> None:
        self.url, self.media_type = "", ""
        self.pieces: Iterable[bytes] = ()
        self.body = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(v)
                    for k, _, v in (h.partition(b":") for h in head.split(b"\r\n"))
                    if k.lower() == b"content-length"
                )
                self.body = await reader.readexactly(length)
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n"
                    % self.media_type.encode()
                )
                for piece in self.pieces:
                    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def gateway_over_bytes(folder: Path) -> AsyncIterator[tuple[Upstream, httpx.AsyncClient]]:
    upstream = Upstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = settings(folder, document(upstream.url, "http://127.0.0.1:9", folder))
    async with server, open_gateway(config) as (_, _, url), httpx.AsyncClient(base_url=url) as client:
        yield upstream, client


def request(path: str, stream: bool) -> bytes:
    body = {
        "model": "qwen3:8b",
        "stream": stream,
        "prompt": "x",
        "input": "x",
        "messages": [{"role": "user", "content": "Grüße"}],
    }
    if path.startswith("/v1"):
        body["stream_options"] = {"include_usage": True}
    return json.dumps(body, ensure_ascii=False, indent=1).encode()


@pytest.mark.parametrize("exchange", EXCHANGES)
async def test_the_answer_is_byte_identical_whichever_way_it_was_cut(exchange: str, tmp_path: Path) -> None:
    path, stream, media_type, answer = EXCHANGES[exchange]
    async with gateway_over_bytes(tmp_path) as (upstream, client):
        upstream.media_type = media_type
        for cut in range(1, len(answer)):
            upstream.pieces = (answer[:cut], answer[cut:])
            response = await client.post(path, content=request(path, stream))
            assert response.content == answer, cut
            assert response.headers["content-type"] == media_type


@pytest.mark.parametrize("exchange", EXCHANGES)
async def test_byte_by_byte_and_all_at_once_are_the_same(exchange: str, tmp_path: Path) -> None:
    path, stream, media_type, answer = EXCHANGES[exchange]
    async with gateway_over_bytes(tmp_path) as (upstream, client):
        upstream.media_type = media_type
        for upstream.pieces in ([answer], [answer[i : i + 1] for i in range(len(answer))]):
            assert (await client.post(path, content=request(path, stream))).content == answer


@pytest.mark.parametrize("exchange", EXCHANGES)
async def test_a_request_that_needs_no_repair_arrives_byte_identical(exchange: str, tmp_path: Path) -> None:
    path, stream, media_type, answer = EXCHANGES[exchange]
    async with gateway_over_bytes(tmp_path) as (upstream, client):
        upstream.media_type, upstream.pieces = media_type, [answer]
        body = request(path, stream)
        await client.post(path, content=body)
        assert upstream.body == body


async def test_only_the_models_name_changes_when_it_was_spelt_otherwise(tmp_path: Path) -> None:
    path, stream, media_type, answer = EXCHANGES["openai stream"]
    async with gateway_over_bytes(tmp_path) as (upstream, client):
        upstream.media_type, upstream.pieces = media_type, [answer]
        body = request(path, stream).replace(b"qwen3:8b", b"QWEN3:8B")
        response = await client.post(path, content=body)
        assert response.content == answer.replace(b'"model":"qwen3:8b"', b'"model":"QWEN3:8B"')
        assert json.loads(upstream.body) == {**json.loads(body), "model": "qwen3:8b"}


async def test_the_usage_event_that_only_we_asked_for_is_kept_from_the_client(tmp_path: Path) -> None:
    path, _, media_type, answer = EXCHANGES["openai stream"]
    async with gateway_over_bytes(tmp_path) as (upstream, client):
        upstream.media_type, upstream.pieces = media_type, [answer]
        response = await client.post(path, json={"model": "qwen3:8b", "stream": True, "messages": []})
        assert json.loads(upstream.body)["stream_options"] == {"include_usage": True}
        usage = next(event for event in answer.split(b"\n\n") if b'"usage"' in event) + b"\n\n"
        assert response.content == answer.replace(usage, b"")
