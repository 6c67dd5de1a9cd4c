"""What the gateway needs of a client's wire: read a request's head, and say an error in the client's words.

A request is decoded no deeper than routing needs: the top-level keys, their values left as they came. Keys of the
Ollama wires are folded as Go folds them, and a key that comes twice is refused: `MODEL` must not slip past a gate that
reads `model`. On the OpenAI wires Ollama folds too and vLLM does not, so that a key that we read must be spelt as the
API spells it. (Of keys that are equal to the letter there, every reader, ours too, takes the last.)
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from memos_llm.core.call import Feature, Wire
from memos_llm.core.errors import BadRequest, LLMError, ModelNotFound
from memos_llm.dialects.edge_errors import OLLAMA, OPENAI, Errors
from memos_llm.dialects.jsons import decode_as, decode_optional
from memos_llm.dialects.needs import (
    chat_needs,
    completion_needs,
    embed_needs,
    embeddings_needs,
    generate_needs,
    openai_embeddings_needs,
    openai_needs,
)

T = TypeVar("T")

KEY_FIELDS = ("prompt_cache_key", "safety_identifier", "user")
"""What an OpenAI client may name a conversation or a person with, in the order in which we believe it."""


MAX_KEYS = 1000
"""Of a request's object; the longest that an API knows has some fifty."""

SPELT = frozenset({"model", "stream", "n", "stream_options", "messages", "metadata"})
"""What we read of an OpenAI client's body, and therefore understand only if the back end reads it the same way."""

UNSTREAMED = Feature.LOAD | Feature.DEBUG_RENDER
"""What Ollama answers with one object, whatever `stream` says."""


class Parsed(Struct, frozen=True, kw_only=True):
    """A request's head. `stream` is the form of the answer: an `UNSTREAMED` call never streams, whatever it asks."""

    head: Mapping[str, Raw]
    model: str
    stream: bool
    needs: Feature
    named_key: bytes | None = None
    component: str | None = None
    session: str | None = None


class Dialect(Struct, frozen=True, kw_only=True):
    """One client wire.

    Attributes:
        streams: whether an answer streams when the request does not say; None: it never does.
        folds: whether the back end's JSON reader ignores the case of keys.
        unnamed: what a request without a model is told, and how.
    """

    wire: Wire
    streams: bool | None
    folds: bool
    stream_type: bytes
    json_type: bytes
    needs: Callable[[Mapping[str, Raw]], Feature]
    errors: Errors
    no_body: str
    unnamed: LLMError

    def parse(self, body: bytes) -> Parsed:
        """Read the head of a request.

        Raises:
            BadRequest: it is no JSON object, a key comes twice, or a key that we read has another type or spelling.
        """
        head = self._head(body)
        model = _read(head, "model", str)
        if not model:
            raise type(self.unnamed)(self.unnamed.message)
        needs = self.needs(head)
        stream = None if self.streams is None else _read(head, "stream", bool)
        metadata = _metadata(head)
        return Parsed(
            head=head,
            model=model,
            stream=bool(self.streams if stream is None else stream) and not needs & UNSTREAMED,
            needs=needs,
            named_key=_named_key(head),
            component=_text(metadata.get("component")),
            session=_text(metadata.get("session")),
        )

    def conversation_key(self, head: Mapping[str, Raw]) -> bytes | None:
        """A digest that stays the same while a conversation grows; None before the first answer is part of it.

        Of the system prompt and the first user message, each field with its length in front.
        """
        if "messages" not in head or b'"assistant"' not in bytes(head["messages"]):
            return None
        try:
            messages = decode_as(head["messages"], list[_Turn])
        except ValueError:
            return None
        return _digest(messages)

    def error_body(self, error: LLMError, model: str = "") -> bytes:
        """The whole answer to a request that failed; the back end's own where it is on this wire.

        Args:
            model: as the caller spelt it, if its request could be read: some of Ollama's words name it.
        """
        return error.client_body or self.errors.body(error, model)

    def error_status(self, error: LLMError) -> int:
        """The HTTP status that goes with it."""
        return self.errors.status(error)

    def stream_error(self, error: LLMError) -> bytes:
        """The last event of a stream that broke: it claims no finish."""
        return self.errors.event(error)

    def media_type(self, stream: bool) -> bytes:
        return self.stream_type if stream else self.json_type

    def _head(self, body: bytes) -> dict[str, Raw]:
        if not body:
            raise BadRequest(self.no_body)
        try:
            head = decode_optional(body, dict[str, Raw]) or {}
        except ValueError as error:
            raise BadRequest(f"the body is not a JSON object: {error}") from None
        if len(head) > MAX_KEYS:
            raise BadRequest(f"the body has more than {MAX_KEYS} keys")
        plain = _is_folded(head)
        folded = head if plain else {_fold(key): value for key, value in head.items()}
        if len(folded) < len(head) or (self.folds and not _each_once(body, head)):
            raise BadRequest("a key comes twice in the body (keys that differ only in case count as one)")
        if not self.folds and not plain:
            _check_spelling(head)
        return folded if self.folds else head


class _Turn(Struct):
    role: Any = None
    content: Any = None


def _fold(key: str) -> str:
    """As Go's encoding/json matches keys: ASCII case, the Kelvin sign and the long s."""
    return key.lower().replace("ſ", "s")


def _is_folded(head: Mapping[str, Raw]) -> bool:
    """Whether folding would change no key: of nearly every body, and told of all keys at once."""
    keys = "".join(head)
    return keys == keys.lower() and "ſ" not in keys


def _check_spelling(head: Mapping[str, Raw]) -> None:
    for key in head:
        if key not in SPELT and (meant := _fold(key)) in SPELT:
            raise BadRequest(f"the key {key!r} is not spelt as the API spells it: write {meant!r}")


_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')


def _each_once(body: bytes, head: Mapping[str, Raw]) -> bool:
    """Whether the object holds exactly the entries that were decoded: msgspec keeps the last of equal keys.

    Walks over the values without reading them.
    """
    at, skip = body.index(b"{") + 1 if head else 0, _SPACE.match
    for key, value in head.items():
        name, text = b'"' + key.encode() + b'"', bytes(value)
        at = skip(body, at).end()  # type: ignore[union-attr]  # matches anything
        if not body.startswith(name, at):
            name = _escaped(body, at, key)
        if not name:
            return False
        colon = skip(body, at + len(name)).end()  # type: ignore[union-attr]  # matches anything
        at = skip(body, colon + 1).end()  # type: ignore[union-attr]  # matches anything
        if not body.startswith(text, at):
            return False
        at = skip(body, at + len(text)).end() + 1  # type: ignore[union-attr]  # matches anything
    return not head or body.startswith(b"}", at - 1)


def _escaped(body: bytes, at: int, key: str) -> bytes:
    """The key as it is written there with escapes; empty: another one is."""
    found = _STRING.match(body, at)
    return found[0] if found is not None and decode_as(found[0], str) == key else b""


def _read(head: Mapping[str, Raw], key: str, kind: type[T]) -> T | None:
    if key not in head:
        return None
    try:
        return decode_optional(head[key], kind)
    except ValueError as error:
        raise BadRequest(f"{key}: {error}") from None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _lenient(head: Mapping[str, Raw], key: str) -> object:
    """A value that is ours to use only if it has the right type; the back end judges the rest."""
    if key not in head:
        return None
    try:
        return decode_as(head[key], Any)
    except ValueError:
        return None


def _metadata(head: Mapping[str, Raw]) -> Mapping[str, object]:
    if "metadata" not in head:
        return {}
    metadata = _lenient(head, "metadata")
    return metadata if isinstance(metadata, dict) else {}


def _named_key(head: Mapping[str, Raw]) -> bytes | None:
    if head.keys().isdisjoint(KEY_FIELDS):
        return None
    named = (_text(_lenient(head, key)) for key in KEY_FIELDS)
    return next((name.encode() for name in named if name), None)


def _digest(turns: list[_Turn]) -> bytes | None:
    first: _Turn | None = None
    fields, answered = [], False
    for turn in turns:
        answered = answered or turn.role == "assistant"
        if first is None and turn.role == "user":
            first = turn
        elif first is None and turn.role in ("system", "developer"):
            fields.append(turn.content)
    if first is None or not answered:
        return None
    digest = hashlib.sha256(b"conversation/v1")
    for content in (*fields, first.content):
        text = content.encode() if isinstance(content, str) else msgspec.json.encode(content, order="sorted")
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.digest()


# --- the table --------------------------------------------------------------------------------------------------------


Needs = Callable[[Mapping[str, Raw]], Feature]


def _openai(wire: Wire, needs: Needs, *, streams: bool | None = False) -> Dialect:
    return Dialect(
        wire=wire,
        streams=streams,
        folds=False,
        stream_type=b"text/event-stream; charset=utf-8",
        json_type=b"application/json",
        needs=needs,
        errors=OPENAI,
        no_body="the body is empty",
        unnamed=BadRequest("model is required"),
    )


def _ollama(wire: Wire, needs: Needs, unnamed: LLMError, *, streams: bool | None = True) -> Dialect:
    return Dialect(
        wire=wire,
        streams=streams,
        folds=True,
        stream_type=b"application/x-ndjson",
        json_type=b"application/json; charset=utf-8",
        needs=needs,
        errors=OLLAMA[wire],
        no_body="missing request body",
        unnamed=unnamed,
    )


DIALECTS: Mapping[Wire, Dialect] = {
    Wire.OPENAI_CHAT: _openai(Wire.OPENAI_CHAT, openai_needs),
    Wire.OPENAI_COMPLETION: _openai(Wire.OPENAI_COMPLETION, completion_needs),
    Wire.OPENAI_EMBEDDINGS: _openai(Wire.OPENAI_EMBEDDINGS, openai_embeddings_needs, streams=None),
    Wire.OLLAMA_CHAT: _ollama(Wire.OLLAMA_CHAT, chat_needs, BadRequest("model is required")),
    Wire.OLLAMA_GENERATE: _ollama(Wire.OLLAMA_GENERATE, generate_needs, ModelNotFound("model '' not found")),
    Wire.OLLAMA_EMBED: _ollama(Wire.OLLAMA_EMBED, embed_needs, ModelNotFound("model '' not found"), streams=None),
    Wire.OLLAMA_EMBEDDINGS: _ollama(
        Wire.OLLAMA_EMBEDDINGS, embeddings_needs, BadRequest("model is required"), streams=None
    ),
}
"""Every wire that a client may speak (what is passed on unread is in nobody's dialect)."""
