"""An error of ours in a client's words: its status, its body, and the last event of a stream that broke.

Facts: Ollama 0.33 source and 0.17.4 measured, vLLM 0.32 measured, the OpenAI API's specification.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import msgspec
from msgspec import Struct

from memos_llm.core.call import Wire
from memos_llm.core.errors import LLMError, ModelNotFound, NotOffered
from memos_llm.dialects.jsons import decode_as, go_json


class Errors(Protocol):
    """How one wire tells errors; `model` is the caller's spelling, empty when not known."""

    def status(self, error: LLMError) -> int: ...

    def body(self, error: LLMError, model: str) -> bytes: ...

    def event(self, error: LLMError) -> bytes: ...


CONTEXT_WORDS = (
    "maximum context length",
    "exceeds the context length",
    "exceed_context_size",
    "available context size",
)
"""What says that a prompt was too long, in whichever server's words."""


def _is_too_long(error: LLMError) -> bool:
    return error.http_status == 400 and any(words in error.text for words in CONTEXT_WORDS)


# --- OpenAI -----------------------------------------------------------------------------------------------------------

OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
"""HTTP status → `type`; anything else is `api_error`."""


class _OpenAI:
    def status(self, error: LLMError) -> int:
        return error.http_status

    def body(self, error: LLMError, model: str) -> bytes:
        code = "model_not_found" if isinstance(error, ModelNotFound) else None
        if _is_too_long(error):
            code = "context_length_exceeded"
        kind = OPENAI_TYPES.get(error.http_status, "api_error")
        message = _unwrapped(error.text)
        return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})

    def event(self, error: LLMError) -> bytes:
        return b"data: " + self.body(error, "") + b"\n\n"


class _Nested(Struct):
    message: str


class _NestedError(Struct):
    error: _Nested


def _unwrapped(text: str) -> str:
    """Ollama passes on llama-server's JSON document as the text of its own error (Ollama 0.33 source)."""
    if not text.startswith("{"):
        return text
    try:
        return decode_as(text.encode(), _NestedError).error.message
    except ValueError:
        return text


# --- Ollama -----------------------------------------------------------------------------------------------------------


class Words(NamedTuple):
    """Ollama's own texts on one route; with `{model}` as the caller spelt it, None: the back end's words."""

    not_found: str
    not_supported: str
    too_long: str | None = None


class _Ollama(NamedTuple):
    words: Words

    def status(self, error: LLMError) -> int:
        """Ollama knows no 422: vLLM says it of an image that it cannot fetch."""
        return 400 if error.http_status == 422 else error.http_status

    def body(self, error: LLMError, model: str) -> bytes:
        return go_json({"error": self._text(error, model)})

    def event(self, error: LLMError) -> bytes:
        return self.body(error, "") + b"\n"

    def _text(self, error: LLMError, model: str) -> str:
        """In Ollama's words where a back end failed that speaks with others; clients look for them."""
        asked = bool(model and error.provider)
        if asked and isinstance(error, ModelNotFound):
            return self.words.not_found.replace("{model}", model)
        if asked and isinstance(error, NotOffered):
            return self.words.not_supported.replace("{model}", model)
        if self.words.too_long is not None and _is_too_long(error):
            return self.words.too_long
        return error.text


_EMBED = Words(
    not_found='model "{model}" not found, try pulling it first',
    not_supported='"{model}" does not support embeddings',
    too_long="the input length exceeds the context length",
)

OPENAI: Errors = _OpenAI()
OLLAMA: Mapping[Wire, Errors] = {
    Wire.OLLAMA_CHAT: _Ollama(Words("model '{model}' not found", '"{model}" does not support chat')),
    Wire.OLLAMA_GENERATE: _Ollama(Words("model '{model}' not found", '"{model}" does not support generate')),
    Wire.OLLAMA_EMBED: _Ollama(_EMBED),
    Wire.OLLAMA_EMBEDDINGS: _Ollama(_EMBED),
}
