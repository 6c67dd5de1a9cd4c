"""The provider's side of the typed face: its arguments out of a request's body, an answer's bytes out of its values.

The inverse of `dialects.typed`, on `openai.chat` and `openai.embeddings`. Nothing is lost on the way in: what the typed
arguments cannot say goes into `extra`, and what the typed answer could not say is refused.
"""

import base64
from array import array
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec
from msgspec import Struct

from memos_llm.core.call import Usage
from memos_llm.core.responses import EmbeddingResponse, LLMResponse, Message, Options, StreamChunk, ToolCall
from memos_llm.dialects.jsons import decode_as
from memos_llm.dialects.typed import SHAPING


class ChatArguments(Struct, frozen=True):
    """What a typed provider's `chat` and `stream` take. `include_usage`: the caller wants the usage event."""

    messages: list[Message]
    max_tokens: int | None
    temperature: float | None
    options: Options
    include_usage: bool


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _Chat(Struct):
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    stream_options: _StreamOptions | None = None


_ARGUMENTS = frozenset({"model", "stream", *_Chat.__struct_fields__}) | SHAPING

UNSAYABLE: Mapping[str, Callable[[Any], bool]] = {
    "n": lambda value: value != 1,
    "logprobs": bool,
    "top_logprobs": bool,
    "audio": bool,
    "modalities": lambda value: value != ["text"],
}
"""Fields that ask for what a typed answer has no place for → whether a value does."""


def read_chat(body: bytes, model: str) -> ChatArguments:
    """The arguments that a chat body makes; `model` is the provider's own name for the model.

    Raises:
        ValueError: a value has the wrong type, or asks for what a typed answer cannot say; repeats no value.
    """
    typed, given = decode_as(body, _Chat), decode_as(body, dict[str, Any])
    said = {key: value for key, value in given.items() if value is not None}
    for key, asks in UNSAYABLE.items():
        if key in said and asks(said[key]):
            raise ValueError(f"{key}: this provider cannot do that")
    options: dict[str, Any] = {key: value for key, value in said.items() if key in SHAPING}
    extra = {key: value for key, value in said.items() if key not in _ARGUMENTS and key not in UNSAYABLE}
    if extra:
        options["extra"] = extra
    return ChatArguments(
        messages=list(typed.messages),
        max_tokens=typed.max_tokens if typed.max_completion_tokens is None else typed.max_completion_tokens,
        temperature=typed.temperature,
        options=cast(Options, {**options, "model": model}),
        include_usage=typed.stream_options is not None and bool(typed.stream_options.include_usage),
    )


class EmbedArguments(Struct, frozen=True):
    """What a typed provider's `embed` takes. `base64`: the caller wants the vectors so."""

    texts: list[str]
    base64: bool


class _Embed(Struct):
    input: str | list[str]
    dimensions: int | None = None
    encoding_format: str | None = None


def read_embed(body: bytes) -> EmbedArguments:
    """The arguments that an embeddings body makes.

    Raises:
        ValueError: as `read_chat`; a typed provider embeds texts, and chooses the length of its vectors itself.
    """
    asked = decode_as(body, _Embed)
    if asked.dimensions is not None:
        raise ValueError("dimensions: this provider cannot choose them")
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    return EmbedArguments(texts, asked.encoding_format == "base64")


class Stamp(Struct, frozen=True):
    """What every part of one answer repeats. `created` is Unix seconds; `model` names an answer that names none."""

    id: str
    created: int
    model: str

    def document(self, kind: str, model: str, **fields: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": model or self.model, **fields}


def answer_body(answer: LLMResponse, stamp: Stamp) -> bytes:
    """A whole answer. A finish that the provider did not tell is not invented: it is null."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if answer.tool_calls else "")}
    if answer.reasoning:
        message["reasoning"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [_call(call) for call in answer.tool_calls]
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason or None}
    usage = {} if answer.usage is None else {"usage": _usage(answer.usage)}
    return msgspec.json.encode(stamp.document("chat.completion", answer.model, choices=[choice], **usage))


def vectors_body(answer: EmbeddingResponse, stamp: Stamp, *, as_base64: bool) -> bytes:
    """All vectors, in the order of the inputs; base64 holds little-endian 32-bit floats, as OpenAI writes it."""
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(vector) if as_base64 else vector}
        for index, vector in enumerate(answer.vectors)
    ]
    tokens = answer.usage.input_tokens if answer.usage else 0
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    model = answer.model or stamp.model
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


class ChunkWriter:
    """Chunks in, server-sent events out; finish and usage leave at the end, whenever they came."""

    def __init__(self, stamp: Stamp, *, include_usage: bool) -> None:
        self._stamp, self._include_usage = stamp, include_usage
        self._calls = 0
        self._begun = False
        self._finish = ""
        self._usage: Usage | None = None

    def feed(self, chunk: StreamChunk) -> bytes:
        """Empty when the chunk says nothing that is written at once."""
        self._finish = chunk.finish_reason or self._finish
        self._usage = chunk.usage or self._usage
        delta: dict[str, Any] = {}
        if chunk.reasoning:
            delta["reasoning"] = chunk.reasoning
        if chunk.text:
            delta["content"] = chunk.text
        if chunk.tool_calls:
            delta["tool_calls"] = [{"index": self._calls + n, **_call(c)} for n, c in enumerate(chunk.tool_calls)]
            self._calls += len(chunk.tool_calls)
        return self._event(delta) if delta else b""

    def eof(self) -> bytes:
        """The end; empty when the provider told no finish, so that the answer is seen to be cut off."""
        if not self._finish:
            return b""
        end = self._event({}, self._finish)
        if self._include_usage and self._usage is not None:
            end += self._written(choices=[], usage=_usage(self._usage))
        return end + b"data: [DONE]\n\n"

    def _event(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        if not self._begun:
            delta = {"role": "assistant", **delta}
        self._begun = True
        return self._written(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])

    def _written(self, **fields: Any) -> bytes:
        event = self._stamp.document("chat.completion.chunk", "", **fields)
        return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _packed(vector: list[float]) -> str:
    packed = array("f", vector)
    if _BIG_ENDIAN:
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode()


_BIG_ENDIAN = array("H", [1]).tobytes() == b"\x00\x01"
