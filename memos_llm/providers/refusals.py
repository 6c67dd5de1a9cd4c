"""What a back end's error answer means: one table from (status, body) to an outcome.

The words are the back end's: they may repeat the prompt, so they go into `client_text` and `client_body` only.
Shapes and situations: Ollama's `server/routes.go` and `openai/openai.go`, vLLM's `entrypoints/openai` (0.8 to 0.33).
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import msgspec

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import MODEL_NOT_FOUND, NOT_SUPPORTED, Kind, Outcome

MAX_TEXT_CHARS = 4_000  # of a body that is not JSON, as the caller is shown it
MAX_RETRY_AFTER_S = 3_600.0
TOLD = frozenset({MODEL_NOT_FOUND, NOT_SUPPORTED})  # faults of the configuration that the caller may read of


class Complaint(NamedTuple):
    """An error body, understood. `type` is the JSON field of that name, empty if there is none."""

    text: str
    type: str = ""


class Sign(NamedTuple):
    """One row: which statuses, and (if given) which words or which type must be there."""

    statuses: range | frozenset[int]
    kind: Kind
    code: str
    words: re.Pattern[str] | None = None
    type: str | None = None

    def fits(self, status: int, complaint: Complaint) -> bool:
        if status not in self.statuses:
            return False
        if self.words is None and self.type is None:
            return True
        by_words = self.words is not None and self.words.search(complaint.text) is not None
        return by_words or (self.type is not None and self.type == complaint.type)


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


def _only(*statuses: int) -> frozenset[int]:
    return frozenset(statuses)


OLLAMA_CLIENT_500 = (
    r"^(option .* must be of (type|an array of) |invalid format: |invalid JSON schema in format"
    r"|failed to create new sequence: no input provided$|the input length exceeds the context length$)"
)
"""What Ollama blames on itself and is the caller's (0.17.4, measured)."""

OLLAMA_RUNNER_DIED = (
    r"^(an error was encountered while running the model: |model runner has unexpectedly stopped"
    r"|do embedding request: |error reading embed response: )"
)
"""What `/api/embed` and `/v1/embeddings` tell as a 400 when the runner died under them (source, `EmbedHandler`)."""

SIGNS: tuple[Sign, ...] = (
    Sign(range(300, 400), Kind.CONFIG, "redirect"),
    Sign(_only(401, 403), Kind.CONFIG, "auth"),
    Sign(_only(404), Kind.CONFIG, MODEL_NOT_FOUND, _words(r"\bmodel\b"), "NotFoundError"),
    Sign(_only(404, 405), Kind.CONFIG, "route"),
    Sign(_only(501), Kind.CONFIG, NOT_SUPPORTED),
    Sign(_only(429), Kind.SATURATED, "rate"),
    Sign(_only(503), Kind.SATURATED, "queue", _words(r"server busy|\bqueue"), "Service Unavailable"),
    Sign(_only(499), Kind.SERVER, "gave_up"),
    Sign(_only(500), Kind.CLIENT, "option", _words(OLLAMA_CLIENT_500)),
    Sign(_only(500), Kind.CONFIG, NOT_SUPPORTED, _words("^this model does not support embeddings$")),
    Sign(_only(400), Kind.SERVER, "runner", _words(OLLAMA_RUNNER_DIED)),
    Sign(range(500, 600), Kind.SERVER, "status"),
    Sign(range(400, 500), Kind.CLIENT, "status"),
)
"""The first row that fits speaks; what fits none is no HTTP answer that we know."""

_UNKNOWN = Sign(range(0), Kind.MALFORMED, "status")


def refusal(status: int, headers: Mapping[str, str], body: bytes, *, whole: bool = True) -> AttemptFailed:
    """The failure that an answer other than 2xx stands for.

    The caller may read the back end's words, and have its body as it is when that is a `whole` error document. What is
    wrong on our side (the key, the route) is none of his business.
    """
    document = _decoded(body)
    complaint = _understood(document, body)
    sign = next((sign for sign in SIGNS if sign.fits(status, complaint)), _UNKNOWN)
    outcome = Outcome(
        kind=sign.kind,
        status=status,
        code=sign.code,
        retry_after_s=retry_after_s(headers.get("Retry-After"), datetime.now(UTC)),
    )
    if outcome.kind is Kind.CONFIG and outcome.code not in TOLD:
        return AttemptFailed(outcome)
    return AttemptFailed(outcome, complaint.text, body if whole and _tells(document) else b"")


def read_complaint(body: bytes) -> Complaint:
    """The message out of any of the shapes an error comes in; an unknown one gives an empty text."""
    return _understood(_decoded(body), body)


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Seconds from a Retry-After header, given in seconds or as a date (RFC 9110, 10.2.3); None if unreadable."""
    if not value:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), MAX_RETRY_AFTER_S)
    try:
        then = parsedate_to_datetime(text)
        wait_s = (then.replace(tzinfo=then.tzinfo or UTC) - now).total_seconds()
    except (ValueError, OverflowError):  # a year or a time zone beyond any calendar
        return None
    return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)


_NOT_JSON = object()


def _decoded(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return _NOT_JSON


def _tells(document: object) -> bool:
    """Whether a client that reads errors finds one there."""
    if not isinstance(document, dict):
        return False
    if "error" in document:
        return isinstance(document["error"], str | dict)
    return "message" in document or "detail" in document


def _understood(document: object, body: bytes) -> Complaint:
    return Complaint(_plain(body)) if document is _NOT_JSON else _from_json(document)


def _from_json(document: object) -> Complaint:
    if not isinstance(document, dict):
        return Complaint("")
    error = document.get("error")
    if isinstance(error, dict):  # vLLM since 0.9, Ollama's /v1
        return Complaint(_text(error.get("message")), _text(error.get("type")))
    if isinstance(error, str):  # Ollama; vLLM's 401
        return _from_string(error)
    if "message" in document:  # vLLM to 0.8
        return Complaint(_text(document["message"]), _text(document.get("type")))
    return Complaint(_text(document.get("detail")))  # FastAPI's own


def _from_string(error: str) -> Complaint:
    """Ollama passes llama-server's whole JSON document on as the string."""
    if error.startswith("{"):
        inner = read_complaint(error.encode()) if '"error"' in error else Complaint("")
        if inner.text and inner.text != error:
            return inner
    return Complaint(error)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _plain(body: bytes) -> str:
    text = body[: 4 * MAX_TEXT_CHARS].decode(errors="replace").strip()
    return "" if text.startswith("<") else text[:MAX_TEXT_CHARS]
