"""The back end of the benchmark: answers at once, for a few microseconds; a program of its own.

One process plays Ollama and vLLM, each on its own port. Streams step together, one event each per tick and each event
a write of its own, as an inference engine's do: so what is measured downstream is the cost of an event, not of a heap
of them. It believes what it is sent: HTTP/1.1, one request at a time, with a Content-Length.

usage: python -m memos_llm.bench.upstream TICK_MS    (prints its two ports)
"""

import asyncio
import re
import sys
from functools import cache

import msgspec
import uvloop

from memos_llm.bench.wire import CHAT, LAST_PIECE, MODEL, NATIVE, VLLM_MODEL, Answers, response

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_MODEL = re.compile(rb'"model": *"([^"]+)"')
_TOKENS = re.compile(rb'"(?:max_tokens|max_completion_tokens|num_predict)": *(\d+)')
_STREAM = re.compile(rb'"stream": *true')
_USAGE = re.compile(rb'"include_usage": *true')
_answers = cache(Answers)

DOCUMENTS = {
    "/health": b"",
    "/version": b'{"version":"0.32.0"}',
    "/v1/models": msgspec.json.encode({"object": "list", "data": [{"id": VLLM_MODEL, "object": "model"}]}),
    "/api/version": b'{"version":"0.31.0"}',
    "/api/tags": msgspec.json.encode({"models": [{"name": MODEL, "model": MODEL}]}),
    "/api/ps": b'{"models":[]}',
}


class Streams:
    """The streams that are under way, and the tick that moves them."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s = tick_s
        self._running: dict[asyncio.Transport, tuple[list[bytes], int, bytes]] = {}

    def add(self, transport: asyncio.Transport, token: bytes, count: int, ending: list[bytes]) -> None:
        """`count` times `token`, one a tick, then every piece of `ending`."""
        self._running[transport] = (ending, count, token)

    def drop(self, transport: asyncio.BaseTransport | None) -> None:
        if isinstance(transport, asyncio.Transport):
            self._running.pop(transport, None)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            for transport, (ending, left, token) in list(self._running.items()):
                if left:
                    transport.write(token)
                    self._running[transport] = (ending, left - 1, token)
                    continue
                del self._running[transport]
                for piece in ending:
                    transport.write(piece)


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # asyncio types it too widely

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.drop(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        found = _LENGTH.search(self._buffer, 0, end)
        if len(self._buffer) < end + (int(found[1]) if found else 0):
            return
        request, self._buffer = self._buffer, b""
        self._answer(request[: request.index(b"\r")].split()[1].decode(), request[end:])

    def _answer(self, path: str, body: bytes) -> None:
        model = _MODEL.search(body)
        if path in DOCUMENTS:
            self._transport.write(response("json", DOCUMENTS[path]))
        elif path not in (CHAT, NATIVE) or model is None:
            self._transport.write(response("json", b'{"error":"unknown"}', "404 Not Found"))
        elif _STREAM.search(body):
            self._stream(path, body, _answers(model[1].decode()))
        else:
            answers = _answers(model[1].decode())
            self._transport.write(answers.chat if path == CHAT else answers.native)

    def _stream(self, path: str, body: bytes, answers: Answers) -> None:
        tokens = _TOKENS.search(body)
        count = int(tokens[1]) if tokens else 16
        if path == NATIVE:
            self._transport.write(answers.ndjson_head)
            self._streams.add(self._transport, answers.record, count, [answers.last_record, LAST_PIECE])
            return
        usage = [answers.usage] if _USAGE.search(body) else []
        self._transport.write(answers.sse_head)
        self._transport.write(answers.role)
        ending = [answers.finish, *usage, answers.done, LAST_PIECE]
        self._streams.add(self._transport, answers.token, count, ending)


async def serve(tick_s: float) -> None:
    """Until killed."""
    loop, streams = asyncio.get_running_loop(), Streams(tick_s)
    servers = [await loop.create_server(lambda: Upstream(streams), "127.0.0.1", 0, backlog=512) for _ in range(2)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)  # noqa: T201 - its one output
    await streams.run()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(float(sys.argv[1]) / 1000))
