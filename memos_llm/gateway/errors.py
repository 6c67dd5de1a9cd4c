"""How an error is told to a client: in the words of the path's API, with what is known of the call."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

import msgspec
from msgspec import Struct

from memos_llm.core.call import Target, Wire
from memos_llm.core.decision import Decision
from memos_llm.core.errors import LLMError
from memos_llm.core.events import Bus, RequestRefused
from memos_llm.dialects.edge import DIALECTS
from memos_llm.gateway.asgi import Headers, Send, header_value, respond
from memos_llm.operate.documents import ErrorDocument, Problem


class Voice(Struct, frozen=True):
    """One API's way to say an error.

    Attributes:
        media_type: of whole errors.
        body: a whole error, given the model as the caller spelt it ("": not known); `status` goes with it.
        event: the last event of a stream that broke.
    """

    media_type: bytes
    body: Callable[[LLMError, str], bytes]
    status: Callable[[LLMError], int]
    event: Callable[[LLMError], bytes]


def _admin(error: LLMError, model: str = "") -> bytes:
    return msgspec.json.encode(ErrorDocument(error=Problem(message=error.message, code=error.code, name=error.name)))


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""HTTP status → `type` on `/v1/messages`; anything else is `api_error` (Anthropic's API reference, Ollama's source)."""


def _anthropic(error: LLMError, model: str = "") -> bytes:
    kind = _ANTHROPIC_TYPES.get(error.http_status, "api_error")
    document = {"type": "error", "error": {"type": kind, "message": error.text}, "request_id": error.request_id or None}
    return msgspec.json.encode(document)


def _plain_status(error: LLMError) -> int:
    return error.http_status


def _anthropic_event(error: LLMError) -> bytes:
    return b"event: error\ndata: " + _anthropic(error) + b"\n\n"


def _of(wire: Wire) -> Voice:
    dialect = DIALECTS[wire]
    return Voice(dialect.media_type(stream=False), dialect.error_body, dialect.error_status, dialect.stream_error)


VOICES: Mapping[Wire, Voice] = {wire: _of(wire) for wire in DIALECTS}
_BY_PREFIX = (
    ("/admin/", Voice(b"application/json", _admin, _plain_status, _admin)),  # it streams no errors
    ("/v1/messages", Voice(b"application/json", _anthropic, _plain_status, _anthropic_event)),
    ("/v1/", VOICES[Wire.OPENAI_CHAT]),
    ("", VOICES[Wire.OLLAMA_CHAT]),  # {"error": "…"} is a good answer anywhere else, too
)


def voice_of(path: str) -> Voice:
    """The words of the API that a path belongs to, with or without a component before it."""
    if path.startswith("/c/"):  # also where what stands before it is malformed
        path = path[max(path.rfind("/v1/"), path.rfind("/api/"), 0) :] if "/admin/v1/" not in path else "/admin/"
    return next(voice for prefix, voice in _BY_PREFIX if path.startswith(prefix))


def error_headers(error: LLMError, request_id: str, media_type: bytes) -> Headers:
    """What an error response says besides its body."""
    headers: Headers = [
        (b"content-type", media_type),
        (b"x-request-id", request_id.encode()),
        (b"x-memos-error-code", error.code.encode()),
    ]
    if error.http_status != 429:  # of one key's limit the SDKs should take care themselves
        headers.append((b"x-should-retry", b"false"))
    if error.http_status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.provider:
        headers.append((b"x-memos-provider", header_value(error.provider)))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    if error.decision is not None:
        headers += _told(error, error.decision)
    return headers


def _told(error: LLMError, decision: Decision) -> Headers:
    tried = (target for target in reversed(decision.targets) if target.provider == error.provider)
    target: Target = next(tried, decision.targets[0])
    return [
        (b"x-memos-arm", decision.arm.encode()),
        (b"x-memos-model", header_value(target.model)),
        (b"x-memos-attempts", b"%d" % error.attempts),
        (b"x-memos-reason", decision.reason.encode()),
    ]


class Told(NamedTuple):
    """A whole error response."""

    status: int
    headers: Headers
    body: bytes


def telling(voice: Voice, error: LLMError, request_id: str, model: str = "") -> Told:
    error.request_id = error.request_id or request_id
    headers = error_headers(error, request_id, voice.media_type)
    return Told(voice.status(error), headers, voice.body(error, model))


def refusal(bus: Bus, path: str, error: LLMError, request_id: str) -> Told:
    """The answer to a request that is refused before anything was decided about it; told to everyone who listens."""
    bus.emit(
        RequestRefused(request_id=request_id, status=error.http_status, error_name=error.name, error_code=error.code)
    )
    return telling(voice_of(path), error, request_id)


async def refuse(send: Send, bus: Bus, path: str, error: LLMError, request_id: str) -> None:
    """Send that."""
    await respond(send, *refusal(bus, path, error, request_id))


async def tell(send: Send, voice: Voice, error: LLMError, request_id: str, model: str = "") -> None:
    """Send a whole error response."""
    await respond(send, *telling(voice, error, request_id, model))


def as_http(told: Told) -> bytes:
    """The same as bytes, for a connection that is closed behind it."""
    status, headers, body = told
    headers += [(b"connection", b"close"), (b"content-length", b"%d" % len(body))]
    line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
    return b"\r\n".join([line, *(b"%s: %s" % header for header in headers), b"", body])
