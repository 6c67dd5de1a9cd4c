"""What a request needs that not every target can give, told from its head with as little decoding as possible."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from msgspec import Raw, Struct

from memos_llm.core.call import Feature
from memos_llm.dialects import media
from memos_llm.dialects.jsons import decode_as
from memos_llm.dialects.ollama import Message, Options, has_unmatched_result

MAX_STOPS = 4  # vLLM since 0.28

T = TypeVar("T")

_EMPTY = frozenset({b"null", b'""', b"[]", b"false", b"{}", b"0"})
_BLANK = re.compile(rb"\[\s*\]|\{\s*\}")


class _Flags(Struct):
    """What of a message can make a need."""

    images: Any = None
    role: Any = None


def openai_needs(head: Mapping[str, Raw]) -> Feature:
    return _many_stops(_decoded(head, "stop", list[Any]))


def completion_needs(head: Mapping[str, Raw]) -> Feature:
    suffix = Feature.SUFFIX if _given(head, "suffix") else Feature.NONE
    return openai_needs(head) | _token_ids(head, "prompt") | suffix


def openai_embeddings_needs(head: Mapping[str, Raw]) -> Feature:
    return _token_ids(head, "input")


def embed_needs(head: Mapping[str, Raw]) -> Feature:
    """Of Ollama's /api/embed: without anything to embed it loads the model (`[""]` has a vector)."""
    return Feature.NONE if _given(head, "input") else Feature.LOAD


def embeddings_needs(head: Mapping[str, Raw]) -> Feature:
    """Of Ollama's /api/embeddings, likewise."""
    return Feature.NONE if _given(head, "prompt") else Feature.LOAD


def _token_ids(head: Mapping[str, Raw], key: str) -> Feature:
    """A list of numbers, or of lists of numbers."""
    first = bytes(head.get(key, b"")).lstrip(b"[ \t\r\n")[:1]
    return Feature.TOKEN_IDS if first in (b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9") else Feature.NONE


def chat_needs(head: Mapping[str, Raw]) -> Feature:
    """Of Ollama's /api/chat."""
    needs = _options_needs(head)
    if not _given(head, "messages"):
        needs |= Feature.LOAD
    if _given(head, "_debug_render_only"):
        needs |= Feature.DEBUG_RENDER
    return needs | _message_needs(head)


def generate_needs(head: Mapping[str, Raw]) -> Feature:
    """Of Ollama's /api/generate."""
    needs = _options_needs(head)
    if not _given(head, "prompt"):
        needs |= Feature.LOAD
    for key, feature in _GENERATE.items():
        if _given(head, key):
            needs |= feature
    return needs | _audio(_decoded(head, "images", list[Any]) or [])


_GENERATE = {
    "template": Feature.GO_TEMPLATE,
    "context": Feature.CONTEXT,
    "suffix": Feature.SUFFIX,
    "_debug_render_only": Feature.DEBUG_RENDER,
}


def _given(head: Mapping[str, Raw], key: str) -> bool:
    if key not in head:
        return False
    value = bytes(head[key])
    return value not in _EMPTY and _BLANK.fullmatch(value) is None


def _decoded(head: Mapping[str, Raw], key: str, kind: type[T]) -> T | None:
    """A value of the expected type, or None: what is wrong with it is the back end's to say."""
    if key not in head:
        return None
    try:
        return decode_as(head[key], kind)
    except ValueError:
        return None


def _options_needs(head: Mapping[str, Raw]) -> Feature:
    options = _decoded(head, "options", Options)
    if options is None:
        return Feature.NONE
    zero = type(options.num_predict) in (int, float) and int(options.num_predict) == 0
    return _many_stops(options.stop) | (Feature.NO_PREDICT if zero else Feature.NONE)


def _many_stops(stop: object) -> Feature:
    many = isinstance(stop, list) and sum(1 for text in stop if text != "") > MAX_STOPS
    return Feature.MANY_STOPS if many else Feature.NONE


def _message_needs(head: Mapping[str, Raw]) -> Feature:
    raw = bytes(head.get("messages", b""))
    needs = Feature.NONE
    if b'"images"' in raw:
        for message in _decoded(head, "messages", list[Message]) or []:
            needs |= _audio(message.images or [])
    if b'"tool' in raw.lower() and has_unmatched_result(_decoded(head, "messages", list[Message]) or []):
        needs |= Feature.UNMATCHED_TOOL_RESULT
    return needs


def _audio(images: list[Any]) -> Feature:
    heard = any(isinstance(image, str) and media.sniff(image).audio for image in images)
    return Feature.AUDIO if heard else Feature.NONE
