"""A client that sees bytes: status, headers, every chunk, and how the connection ended. No HTTP library between."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Answered:
    """What came back. `ended`: "complete", "cut" (FIN inside the body), "reset", or "nothing" (no status line)."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    ended: str = "nothing"
    raw: bytes = b""

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Data of SSE events; [DONE] as a string."""
        found = [e.removeprefix(b"data: ") for e in self.body.split(b"\n\n") if e]
        return [e.decode() if e == b"[DONE]" else json.loads(e) for e in found]

    @property
    def records(self) -> list[Any]:
        """Objects of an NDJSON body."""
        return [json.loads(line) for line in self.body.splitlines()]


async def ask(
    url: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, **given: Any
) -> Answered:
    """One request on a connection of its own; `body` is bytes, or a value sent as JSON; `given` is such a value too."""
    parts = urlsplit(url)
    data = (
        body if isinstance(body, bytes) else b"" if body is None and not given else json.dumps(body or given).encode()
    )
    sent = {"Host": parts.netloc, "Content-Type": "application/json", "Content-Length": str(len(data))}
    sent |= headers or {}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in sent.items()) + "\r\n"
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    answered = Answered()
    try:
        writer.write(head.encode() + data)
        await _read(reader, answered, method)
    except ConnectionResetError:
        answered.ended = "reset"
    except asyncio.IncompleteReadError as reason:
        answered.raw += reason.partial
        answered.ended = "cut" if answered.status else "nothing"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return answered


async def _read(reader: asyncio.StreamReader, answered: Answered, method: str) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    answered.raw = head.encode("latin-1")
    if not head.startswith("HTTP/1.1 "):
        return
    first, *lines = head.strip().split("\r\n")
    answered.status = int(first.split(" ")[1])
    answered.headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
    if answered.headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
            answered.chunks.append((await reader.readexactly(size + 2))[:-2])
        await reader.readexactly(2)
    elif method != "HEAD":
        length = int(answered.headers.get("content-length", 0))
        answered.chunks.append(await reader.readexactly(length))
    answered.ended = "complete"


async def until(condition: Any, within_s: float = 3.0) -> None:
    """Wait for a condition; fails if it does not come true in time."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.002)


WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "weather of a city",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {
                "city": {"type": "string", "minLength": 20},
                "unit": {"type": "string", "enum": ["C", "F"]},
                "days": {"type": "integer", "minimum": 3, "maximum": 5},
            },
        },
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["name", "age"],
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 1, "maximum": 9},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        "kind": {"enum": ["a", "b"]},
    },
}


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]
