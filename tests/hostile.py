"""A back end that means harm: a server of plain TCP, and the table of what it does instead of answering.

It tells of its models and its health as any back end does, so that requests go to it; what it does to an inference is
a `Script`. As a program (`python tests/hostile.py ATTACK`) it is a process of its own, and says its URL.
"""

import asyncio
import gzip
import json
import os
import socket
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import NamedTuple

FLOOD_BYTES = 65_536
DRIP_S = 0.05
MODEL = "m"
EVIL = "evil-4b1d"  # in every header that must not pass, and in every word that only the client may read


class Honest(NamedTuple):
    """What the answer would have been, to be damaged."""

    media: str
    preamble: bytes
    content: bytes
    finish: bytes

    @property
    def body(self) -> bytes:
        return self.preamble + self.content + self.finish


class Script(NamedTuple):
    """What a connection does with one request.

    Attributes:
        says: sent first. drips: byte by byte, `DRIP_S` between them.
        floods: repeated for as long as somebody takes it.
        ends: what follows: the connection is closed, reset, kept for the next request, or left as it is (`hangs`).
        later: what is said on it when `speak` is called.
    """

    says: bytes
    floods: bytes = b""
    ends: str = "closes"
    drips: bytes = b""
    later: bytes = b""


Attack = Callable[[Honest], Script]

OK = b"HTTP/1.1 200 OK\r\n"


def event(delta: str, finish: str = "null") -> bytes:
    head = '{"id":"c-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    return f'data: {head}"delta":{delta},"finish_reason":{finish}}}]}}\n\n'.encode()


def record(content: str, **more: object) -> bytes:
    said = {"model": MODEL, "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": content}}
    return json.dumps({**said, "done": False, **more}).encode() + b"\n"


CHUNKS = Honest(
    "text/event-stream",
    event('{"role":"assistant","content":""}'),
    event('{"content":"hello"}'),
    event("{}", '"stop"') + b"data: [DONE]\n\n",
)
WHOLE = {
    "id": "c-1", "object": "chat.completion", "created": 1, "model": MODEL,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}  # fmt: skip
VECTORS = {
    "object": "list", "model": MODEL, "usage": {"prompt_tokens": 3, "total_tokens": 3},
    "data": [{"object": "embedding", "index": n, "embedding": [0.6, 0.8]} for n in range(2)],
}  # fmt: skip
LAST = {"done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2}
HONEST: Mapping[tuple[str, bool], Honest] = {
    ("/v1/chat/completions", True): CHUNKS,
    ("/v1/chat/completions", False): Honest("application/json", b"", b"", json.dumps(WHOLE).encode()),
    ("/api/chat", True): Honest("application/x-ndjson", record(""), record("hello"), record("", **LAST)),
    ("/api/chat", False): Honest("application/json", b"", b"", record("hello", **LAST)),
    ("/v1/embeddings", False): Honest("application/json", b"", b"", json.dumps(VECTORS).encode()),
    ("/api/embed", False): Honest("application/json", b"", b"", b'{"model":"m","embeddings":[[0.6,0.8],[0.6,0.8]]}'),
    ("/api/embeddings", False): Honest("application/json", b"", b"", b'{"embedding":[0.6,0.8]}'),
}


# --- how things are said ----------------------------------------------------------------------------------------------


def sized(honest: Honest, *headers: str, status: str = "200 OK", body: bytes | None = None) -> bytes:
    """A whole answer with its length."""
    body = honest.body if body is None else body
    head = [f"HTTP/1.1 {status}", f"Content-Type: {honest.media}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def begun(honest: Honest, body: bytes = b"") -> bytes:
    """The head of an answer in chunks, and a chunk."""
    return OK + f"Content-Type: {honest.media}\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunk(body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def pressed(honest: Honest, how: str, data: bytes) -> bytes:
    return OK + f"Content-Type: {honest.media}\r\nContent-Encoding: {how}\r\nConnection: close\r\n\r\n".encode() + data


def fill(data: bytes) -> bytes:
    """About `FLOOD_BYTES` of it, a chunk of a body."""
    return chunk(data * max(1, FLOOD_BYTES // len(data)))


@cache
def bomb() -> bytes:
    """128 MiB of zeros, in 128 KiB."""
    return gzip.compress(b"\0" * 2**27, 6)


def nested(depth: int) -> bytes:
    return b'{"choices":' + b"[" * depth + b"]" * depth + b"}"


def silent(honest: Honest) -> bytes:
    """An event that says nothing, on the wire of that answer."""
    return event('{"role":"assistant","content":""}') if "event" in honest.media else record("")


ELSEWHERE = (
    "http://169.254.169.254/latest/meta-data/",
    "//evil.example/x",
    "/\\evil.example/x",
    "https://evil.example/",
)
HEADERS = (
    f"Set-Cookie: {EVIL}=1", f"X-Memos-Provider: {EVIL}", f"X-Request-Id: {EVIL}", f"Server: {EVIL}",
    f"Access-Control-Allow-Origin: {EVIL}", f"X-Memos-Warnings: {EVIL}", f"Link: <{EVIL}>",
    f"X-Odd: {EVIL} \xe9\x80\xff",
    f"Strict-Transport-Security: {EVIL}", f"Alt-Svc: {EVIL}", f"Refresh: 0; url={EVIL}", f"Trailer: {EVIL}",
)  # fmt: skip


def redirected(status: int, place: str) -> Attack:
    return lambda h: Script(sized(h, f"Location: {place}", status=f"{status} Away"))


BEFORE: Mapping[str, tuple[Attack, str]] = {
    # heads
    "endless headers": (lambda h: Script(OK, b"X-More: and more\r\n" * 3000), "malformed"),
    "an endless header": (lambda h: Script(OK + b"X: ", b"a" * FLOOD_BYTES), "malformed"),
    "an endless reason": (lambda h: Script(b"HTTP/1.1 200 ", b"a" * FLOOD_BYTES), "malformed"),
    "endless interim answers": (lambda h: Script(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000), "malformed"),
    "endless blank lines": (lambda h: Script(b"", b"\r\n" * 30_000), "malformed"),
    "thousands of headers": (lambda h: Script(sized(h, *[f"X{n}: 1" for n in range(3000)])), "malformed"),
    "a dripping head": (lambda h: Script(OK + b"X: ", drips=b"a" * 1000), "timeout"),
    "HTTP/0.9": (lambda h: Script(h.body), "malformed"),
    "HTTP/2": (lambda h: Script(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ends="hangs"), "malformed"),
    "another protocol": (
        lambda h: Script(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", ends="hangs"),
        "malformed",
    ),
    "status abc": (lambda h: Script(sized(h, status="abc OK")), "malformed"),
    "status 000": (lambda h: Script(sized(h, status="000 OK") + sized(h)), "malformed"),
    "status 099": (lambda h: Script(sized(h, status="099 OK") + sized(h)), "malformed"),
    "status 999": (lambda h: Script(sized(h, status="999 OK")), "malformed"),
    "status 1200": (lambda h: Script(sized(h, status="1200 OK")), "malformed"),
    "a NUL in a header": (lambda h: Script(sized(h, "X: a\0b")), "malformed"),
    "a control character in a header": (lambda h: Script(sized(h, "X: a\x01b")), "malformed"),
    "a bare CR in a header": (lambda h: Script(sized(h, "X: a\rSet-Cookie: b")), "malformed"),
    "a folded header": (lambda h: Script(sized(h, "X: a\r\n b")), "malformed"),
    "nothing": (lambda h: Script(b""), "truncated"),
    "half a status line": (lambda h: Script(b"HTTP/1.1 2"), "truncated"),
    "half a head": (lambda h: Script(OK + b"Content-Ty"), "truncated"),
    "half a head, reset": (lambda h: Script(OK + b"Content-Ty", ends="resets"), "truncated"),
    # lengths
    "too long a length": (
        lambda h: Script(OK + b"Content-Length: %d\r\n\r\n" % (len(h.body) + 9) + h.body[:5]),
        "truncated",
    ),
    "too short a length": (lambda h: Script(sized(h).replace(b"Content-Length: ", b"Content-Length: 0\r\nX: ")), ""),
    "a negative length": (lambda h: Script(OK + b"Content-Length: -1\r\n\r\n" + h.body), "malformed"),
    "two lengths": (lambda h: Script(sized(h, "Content-Length: 1")), "malformed"),
    "a huge length": (lambda h: Script(OK + b"Content-Length: 999999999999999999\r\n\r\n" + h.body[:5]), "truncated"),
    "a length beyond counting": (lambda h: Script(OK + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n"), "malformed"),
    "a length and chunks": (lambda h: Script(sized(h, "Transfer-Encoding: chunked")), "malformed"),
    "a chunk that is none": (lambda h: Script(begun(h) + b"zz\r\nhello\r\n"), "truncated"),
    "a negative chunk": (lambda h: Script(begun(h) + b"-5\r\nhello\r\n"), "truncated"),
    "an endless chunk extension": (lambda h: Script(begun(h) + b"5;", b"a" * FLOOD_BYTES), "truncated"),
    "endless trailers": (lambda h: Script(begun(h) + b"0\r\n", b"X-More: and more\r\n" * 3000), ""),
    # bodies
    "no body": (lambda h: Script(sized(h, body=b"")), ""),
    "no content": (lambda h: Script(b"HTTP/1.1 204 No Content\r\n\r\n"), ""),
    "half a body": (lambda h: Script(begun(h, h.preamble + h.finish[:9])), "truncated"),
    "half a body, reset": (lambda h: Script(begun(h, h.preamble + h.finish[:9]), ends="resets"), "truncated"),
    "a dripping body": (lambda h: Script(begun(h), drips=b"1\r\n \r\n" * 1000), "timeout"),
    "an endless line": (lambda h: Script(begun(h), fill(b"a")), "malformed timeout"),
    "an endless body without chunks": (lambda h: Script(OK + b"\r\n", b"a" * FLOOD_BYTES), "malformed timeout"),
    "an endless body with a length": (
        lambda h: Script(OK + b"Content-Length: 99999999999\r\n\r\n", b"a" * FLOOD_BYTES),
        "malformed timeout",
    ),
    "endless blank lines of a body": (lambda h: Script(begun(h), fill(b"\n")), "malformed timeout"),
    "endless comments": (lambda h: Script(begun(h), fill(b":\n\n")), "malformed timeout"),
    "endless preamble": (lambda h: Script(begun(h), fill(silent(h))), "malformed timeout"),
    "endless usage": (lambda h: Script(begun(h), fill(b'data: {"choices":[],"usage":{}}\n\n')), "malformed timeout"),
    "a web page": (lambda h: Script(sized(h, body=b"<!doctype html><html>\n<p>Sign in</p>\n</html>\n")), ""),
    "JSON of 10,000 levels": (lambda h: Script(sized(h, body=b"data: " + nested(10_000) + b"\n\n")), "malformed"),
    "bytes that are no text": (lambda h: Script(sized(h, body=b'data: {"model":"\xff\xfe"}\n\n')), ""),
    "gzip": (lambda h: Script(pressed(h, "gzip", gzip.compress(h.body))), ""),
    "deflate": (lambda h: Script(pressed(h, "deflate", zlib.compress(h.body))), ""),
    "a gzip bomb": (lambda h: Script(pressed(h, "gzip", bomb())), ""),
    # refusals
    "an endless error": (
        lambda h: Script(b'HTTP/1.1 500 No\r\n\r\n{"error":"', b"a" * FLOOD_BYTES),
        "server",
    ),
    "a dripping error": (lambda h: Script(b"HTTP/1.1 500 No\r\n\r\n", drips=b"a" * 1000), "timeout"),
    "an error of 10,000 levels": (lambda h: Script(sized(h, status="500 No", body=nested(10_000))), "server"),
    "an endless wait": (
        lambda h: Script(sized(h, "Retry-After: Mon, 01 Jan 2024 00:00:00 +99999999999999999999", status="503 No")),
        "server",
    ),
    **{
        f"redirect {status} to {place}": (redirected(status, place), "config")
        for status, place in zip((301, 302, 307, 308), ELSEWHERE, strict=True)
    },
}  # fmt: skip
"""Before the answer has begun: what it is for the books; empty where that depends on the route."""

MIDWAY: Mapping[str, tuple[Attack, str]] = {
    "ends": (lambda h: Script(begun(h, h.preamble + h.content) + b"0\r\n\r\n"), "truncated"),
    "closes": (lambda h: Script(begun(h, h.preamble + h.content)), "truncated"),
    "resets": (lambda h: Script(begun(h, h.preamble + h.content), ends="resets"), "truncated"),
    "is silent": (lambda h: Script(begun(h, h.preamble + h.content), ends="hangs"), "timeout"),
    "says no chunk": (lambda h: Script(begun(h, h.preamble + h.content) + b"zz\r\n"), "truncated"),
    "says no JSON": (
        lambda h: Script(begun(h, h.preamble + h.content) + chunk(b"data: {nope}\n\n")),
        "malformed truncated",
    ),
    "nests": (
        lambda h: Script(begun(h, h.preamble + h.content) + chunk(b"data: " + nested(10_000) + b"\n\n")),
        "malformed truncated",
    ),
    "never ends a line": (lambda h: Script(begun(h, h.preamble + h.content), fill(b"a")), "malformed"),
    "extends a chunk": (lambda h: Script(begun(h, h.preamble + h.content) + b"5;", b"a" * FLOOD_BYTES), "truncated"),
    "begins another answer": (lambda h: Script(begun(h, h.preamble + h.content) + sized(h)), "truncated"),
}
"""Of a stream, once its answer has begun."""

HARMLESS: Mapping[str, Attack] = {
    "hostile headers": lambda h: Script(sized(h, *HEADERS), ends="stays"),
    "a hostile reason": lambda h: Script(sized(h, status=f"200 {EVIL} \0 \xe9"), ends="stays"),
    "a second answer": lambda h: Script(sized(h) + sized(h, body=b'{"evil-4b1d":1}'), ends="stays"),
    "a second answer after chunks": lambda h: Script(
        begun(h, h.body) + b"0\r\n\r\n" + sized(h, body=b'{"evil-4b1d":1}'), ends="stays"
    ),
    "interim answers": lambda h: Script(
        f"HTTP/1.1 103 Early Hints\r\nSet-Cookie: {EVIL}=1\r\n\r\n".encode() * 3 + sized(h), ends="stays"
    ),
    "an end that is told": lambda h: Script(sized(h, "Connection: close"), ends="stays"),
    "no length": lambda h: Script(OK + b"\r\n" + h.body),
    "chunks of a byte": lambda h: Script(
        begun(h) + b"".join(chunk(bytes([byte])) for byte in h.body) + b"0\r\n\r\n", ends="stays"
    ),
    "no end of the connection": lambda h: Script(begun(h, h.body), ends="hangs"),
}
"""The answer is whole all the same, and what is not the answer reaches nobody."""

CALL = '{"tool_calls":[{"index":0,"id":"t","type":"function","function":{"name":"f","arguments":"%s"}}]}'
FOR_EVER: Mapping[str, Attack] = {
    "comments for ever": lambda h: Script(begun(h, h.preamble + h.content), fill(b":\n\n")),
    "blank lines for ever": lambda h: Script(begun(h, h.preamble + h.content), fill(b"\n\n")),
    "endless calls": lambda h: Script(begun(h, h.preamble), fill(event(CALL % ("x" * 1000)))),
}
"""On its own wire a client reads these for as long as he likes."""

ATTACKS: Mapping[str, Attack] = {
    **{name: attack for name, (attack, _) in {**BEFORE, **MIDWAY}.items()},
    **HARMLESS,
    **FOR_EVER,
    "none": lambda h: Script(sized(h), ends="stays"),
}


# --- the server -------------------------------------------------------------------------------------------------------

DOCUMENTS: Mapping[str, bytes] = {
    "/health": b"",
    "/version": b'{"version":"0.11.0"}',
    "/metrics": b'vllm:num_requests_running{engine="0"} 0.0\n',
    "/api/version": b'{"version":"0.17.4"}',
    "/v1/models": b'{"object":"list","data":[{"id":"m","max_model_len":4096},{"id":"e","max_model_len":4096}]}',
    "/api/tags": b'{"models":[{"name":"m","model":"m"},{"name":"e","model":"e"}]}',
    "/api/ps": b'{"models":[{"name":"m","model":"m","expires_at":"2099-01-01T00:00:00Z"}]}',
    "/api/show": b'{"details":{}}',
}


class HostileServer:
    """`attack` is what it does to the next inference; `on` has other scripts for the paths of its documents.

    `served` counts inferences, `accepted` connections, `open` those that are still there, `flooded` the bytes of
    floods that went out; `targets` lists every path.
    """

    def __init__(self, attack: Attack = ATTACKS["none"], on: Mapping[str, Script] | None = None) -> None:
        self.attack, self.on = attack, dict(on or {})
        self.served = self.accepted = self.open = self.flooded = 0
        self.targets: list[str] = []
        self.url = ""
        self._writers: set[asyncio.StreamWriter] = set()
        self._later: list[tuple[asyncio.StreamWriter, bytes]] = []

    def speak(self) -> None:
        """Say what was to be said later: it is in the kernel's hands when this returns."""
        for writer, words in self._later:
            writer.write(words)
        self._later.clear()

    def hang_up(self) -> None:
        """Close every connection: the kernel knows when this returns."""
        for writer in self._writers:
            wire: socket.socket = writer.get_extra_info("socket")
            with socket.socket(fileno=os.dup(wire.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next((line for line in head.split("\r\n") if line.startswith("content-length:")), "x:0")
        body = await reader.readexactly(int(length.partition(":")[2]))
        target = head.split(" ", 2)[1]
        self.targets.append(target)
        script = self._script(target, body)
        writer.write(script.says)
        for byte in script.drips:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(DRIP_S)
        while script.floods:
            writer.write(script.floods)
            await writer.drain()
            self.flooded += len(script.floods)
        await writer.drain()
        if script.later:
            self._later.append((writer, script.later))
        if script.ends == "closes":
            writer.close()
            await writer.wait_closed()
        elif script.ends == "resets":
            writer.transport.abort()
        elif script.ends == "hangs":
            await reader.read()
        return script.ends == "stays"

    def _script(self, target: str, body: bytes) -> Script:
        if target in self.on:
            return self.on[target]
        if target in DOCUMENTS:
            return Script(sized(Honest("application/json", b"", b"", DOCUMENTS[target])), ends="stays")
        self.served += 1
        asked = json.loads(body) if body.startswith(b"{") else {}
        stream = asked.get("stream", target == "/api/chat") is True
        return self.attack(HONEST.get((target, stream), Honest("application/json", b"", b"", b'{"ok":true}')))


@asynccontextmanager
async def hostile(
    attack: Attack = ATTACKS["none"], on: Mapping[str, Script] | None = None
) -> AsyncIterator[HostileServer]:
    played: set[asyncio.Task[None]] = set()
    server = HostileServer(attack, on)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        played.add(task)
        with suppress(asyncio.CancelledError):
            await server.play(reader, writer)
        played.discard(task)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        tasks = tuple(played)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listener.wait_closed()


async def _main(name: str) -> None:
    async with hostile(ATTACKS[name]) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
