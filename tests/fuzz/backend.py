"""The fuzzer's own back end: raw TCP listeners that speak as Ollama or vLLM, and answer a marked request by a script.

Every listener is an endpoint of its own with one model, so that a breaker that one opens says nothing of the others.
"""

import asyncio
import contextlib
import json
import random
import re
from collections.abc import Mapping
from typing import Any

from fuzz.answers import AT
from fuzz.hostile import Script, plain, script, valid

MARK = re.compile(rb"case-(\d+)-([hc])")
WIRES: Mapping[str, str] = {
    "/api/chat": "ollama.chat",
    "/api/generate": "ollama.generate",
    "/api/embed": "ollama.embed",
    "/api/embeddings": "ollama.embeddings",
    "/v1/chat/completions": "openai.chat",
    "/v1/completions": "openai.completion",
    "/v1/embeddings": "openai.embeddings",
}
HANGS_S = 20.0


class Backend:
    """Listeners for some models. `scripts` are given beforehand (a replay), `played` is what was said, by mark."""

    def __init__(self, seed: int, models: tuple[str, ...]) -> None:
        self.urls: dict[str, str] = {}
        self.scripts: dict[str, Script] = {}
        self.played: dict[str, Script] = {}
        self._seed, self._models = seed, models
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Backend":
        for model in self._models:
            server = await asyncio.start_server(self._accepting(model), "127.0.0.1", 0)
            self._servers.append(server)
            self.urls[model] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        for server in self._servers:
            server.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accepting(self, model: str) -> Any:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                while await self._answer(model, reader, writer):
                    pass
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, asyncio.CancelledError):
                pass
            finally:
                self._tasks.discard(task)
                writer.close()

        return accept

    async def _answer(self, model: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, path = head.split(" ")[:2]
        length = re.search(r"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1])) if length else b""
        said = self._script(model, method, path, body)
        for piece in said.pieces:
            writer.write(piece)
            await writer.drain()
            if said.pause_s:
                await asyncio.sleep(said.pause_s)
        if said.ends == "hangs":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANGS_S):
                    await reader.read()
        if said.ends == "resets":
            writer.transport.abort()
        return said.ends == "keeps"

    def _script(self, model: str, method: str, path: str, body: bytes) -> Script:
        wire = WIRES.get(path) if method == "POST" else None
        if wire is None:
            return _probed(path, model)
        asked = json.loads(body)
        given = asked.get("stream")
        stream = wire in ("ollama.chat", "ollama.generate") if given is None else given is True
        texts = asked.get("input")
        inputs = len(texts) if isinstance(texts, list) and texts else 1
        found = MARK.search(body)
        if found is None:
            return plain(valid(random.Random(0), wire, "loaded", stream=False))
        mark = found[0].decode()
        if mark not in self.scripts:
            rng = random.Random(f"{self._seed}:{mark}:answer")
            if mark.endswith("h"):
                said = script(rng, wire, mark, stream=stream, inputs=inputs)
            else:
                said = plain(valid(rng, wire, mark, stream=stream, inputs=inputs))
            self.scripts[mark] = said
        self.played[mark] = self.scripts[mark]
        return self.scripts[mark]


def _probed(path: str, model: str) -> Script:
    document = json.dumps(_DOCUMENTS.get(path, {})).replace("MODEL", model).encode()
    status = "200 OK" if path in _DOCUMENTS or path in ("/health", "/metrics") else "404 Not Found"
    kind = "text/plain" if path == "/metrics" else "application/json"
    body = b"" if path in ("/health", "/metrics") else document
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return Script(fault="", pieces=(head.encode() + body,))


_ENTRY = {"name": "MODEL", "model": "MODEL", "size": 1, "digest": "0", "details": {}, "modified_at": AT}
_LOADED = {**_ENTRY, "expires_at": "2319-01-01T00:00:00Z", "size_vram": 1, "context_length": 4096}
_DOCUMENTS: Mapping[str, Any] = {
    "/api/version": {"version": "0.33.0"},
    "/version": {"version": "0.33.0"},
    "/api/tags": {"models": [_ENTRY]},
    "/api/ps": {"models": [_LOADED]},
    "/v1/models": {"object": "list", "data": [{"id": "MODEL", "object": "model", "max_model_len": 4096}]},
}
