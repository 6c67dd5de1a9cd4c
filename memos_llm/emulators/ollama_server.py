"""What all routes of one emulated Ollama share, and how an error is worded on each family of routes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memos_llm.emulators import golang
from memos_llm.emulators.emulator import Counters, Timing
from memos_llm.emulators.faults import FaultBoard
from memos_llm.emulators.ollama_models import Catalogue
from memos_llm.emulators.ollama_requests import Refusal
from memos_llm.emulators.ollama_runner import Scheduler
from memos_llm.emulators.ollama_versions import Behaviour
from memos_llm.emulators.playing import reply_whole
from memos_llm.emulators.wire import Exchange

JSON = (("content-type", "application/json; charset=utf-8"),)
JSON_BARE = (("content-type", "application/json"),)
NDJSON = (("content-type", "application/x-ndjson"),)
SSE = (("content-type", "text/event-stream"),)
SSE_UNCACHED = (*SSE, ("cache-control", "no-cache"), ("connection", "keep-alive"))  # of the two younger dialects
TEXT = (("content-type", "text/plain"),)
BUSY = "server busy, please try again.  maximum pending requests exceeded"
CRASH = "an error was encountered while running the model: unexpected EOF"
CRASH_LLAMA_SERVER = f"{CRASH}: llama-server exited"
CHUNK_ABOVE = 2048  # bytes; a longer JSON answer goes without Content-Length (measured)
_ERROR_TYPES: Mapping[int, str] = {400: "invalid_request_error", 404: "not_found_error"}
_MESSAGES_TYPES: Mapping[int, str] = {
    **_ERROR_TYPES,
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(slots=True)
class Ollama:
    """One server's state and settings.

    space: see `vectors.vector`. words: see `answers.expected`. blobs: digests of the files it was sent.
    """

    version: str
    behaves: Behaviour
    catalogue: Catalogue
    scheduler: Scheduler
    faults: FaultBoard
    timing: Timing
    counters: Counters
    ids: random.Random
    seed: int
    words: int | None
    space: str | None
    blobs: set[str] = field(default_factory=set)

    @property
    def crash_text(self) -> str:
        """What is said when a runner dies under a request."""
        return CRASH_LLAMA_SERVER if self.behaves.llama_server else CRASH

    def generated(self, count: int) -> None:
        """Count generated tokens."""
        self.counters.tokens_generated += count

    async def refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        """Answer an error, in the shape of the dialect the path belongs to."""
        path = exchange.request.path
        if path == "/v1/messages":
            body = _messages_error(refusal, self.ids.randrange(16**12))
            await exchange.reply(refusal.status, body, JSON if refusal.by_layer else JSON_BARE)
        elif path.startswith("/v1/"):
            body = _v1_error(refusal, by_status=self.behaves.v1_typed_errors)
            await exchange.reply(refusal.status, body, JSON if refusal.by_layer else JSON_BARE)
        else:
            await exchange.reply(refusal.status, golang.dumps({"error": refusal.text}), JSON)

    async def fail_unstarted(self, exchange: Exchange, text: str, status: int = 500) -> None:
        """An error before the first record keeps its status; it is chunked and without charset (measured)."""
        if exchange.request.path.startswith("/v1/"):
            await self.refuse(exchange, Refusal(status, text))
        else:
            await exchange.reply(status, golang.dumps({"error": text}), JSON_BARE, chunked=True)

    async def show(self, exchange: Exchange, value: Any, *, v1: bool = False) -> None:
        """Answer JSON on a route that does no inference; faults with `all` interrupt it. v1: as that layer writes."""
        fault = self.faults.take("answer", data_route=False)
        body = golang.dumps(value) + (b"\n" if v1 else b"")
        await reply_whole(exchange, body, JSON_BARE if v1 else JSON, fault, chunk_above=CHUNK_ABOVE)


def _v1_error(refusal: Refusal, *, by_status: bool) -> bytes:
    """by_status: the native handler's errors are typed by status too."""
    typed = refusal.by_layer or by_status
    kind = _ERROR_TYPES.get(refusal.status, "api_error") if typed else "api_error"
    body = golang.dumps({"error": {"message": refusal.text, "type": kind, "param": None, "code": None}})
    return body if refusal.by_layer else body + b"\n"


def _messages_error(refusal: Refusal, number: int) -> bytes:
    kind = _MESSAGES_TYPES.get(refusal.status, "api_error")
    error = {"type": kind, "message": refusal.text}
    body = golang.dumps({"type": "error", "error": error, "request_id": f"req_{number:024x}"})
    return body if refusal.by_layer else body + b"\n"
