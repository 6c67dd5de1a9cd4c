"""The library's view of `openai.chat`: a request's body from Python values, Python values from an answer."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec
from msgspec import Struct

from memos_llm.core.call import Usage
from memos_llm.core.decoding import FAILURES
from memos_llm.core.responses import Chat, EmbeddingResponse, LLMResponse, Options, StreamChunk, ToolCall
from memos_llm.dialects.codecs.decoder import counted, malformed
from memos_llm.dialects.framing import SseFramer
from memos_llm.dialects.toolcalls import Assembler, Fragment

SHAPING = frozenset(
    {
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "stop",
        "frequency_penalty",
        "presence_penalty",
        "tools",
        "tool_choice",
        "response_format",
        "reasoning_effort",
    }
)
"""The options that are fields of the body under their own names."""

FORMATS = ("text", "json_object", "json_schema", "structural_tag")
"""The types of a `response_format`; a mapping of any other is a JSON schema."""


EXTRA = " What only one back end knows goes into extra={…}"


def check_names(
    options: Iterable[str], known: Collection[str], named: Sequence[str] = ("max_tokens", "temperature")
) -> None:
    """`named` are what such a call takes by name, for the message.

    Raises:
        TypeError: an option is none of the known ones; the message names it and the nearest, as Python would.
    """
    for name in options:
        if name not in known:
            choices = [*known, *named]
            near = get_close_matches(name, choices, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"choices: {', '.join(sorted(choices))}"
            raise TypeError(f"{name}: is no option; {meant}{EXTRA if 'extra' in known else ''}")


def chat_body(
    messages: Chat,
    *,
    stream: bool,
    model: str,
    max_tokens: int | None,
    temperature: float | None,
    options: Options,
) -> bytes:
    """The JSON body of a chat call; what is None is left out, `extra` is merged last, a stream asks for its usage.

    A `response_format` that is a bare JSON schema is wrapped as the API wants it.

    Raises:
        TypeError: messages that are none, or a value is none of JSON's; the message names the argument and repeats
            nothing of it.
    """
    check_messages(messages)
    named: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "stream": stream,
        "stream_options": {"include_usage": True} if stream else None,
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    shaping: dict[str, Any] = {key: value for key, value in options.items() if key in SHAPING}
    shaping["response_format"] = response_format(options.get("response_format"))
    body = {key: value for key, value in (named | shaping).items() if value is not None}
    extra = options.get("extra") or {}
    if not isinstance(extra, Mapping):
        raise TypeError(f"extra: a mapping is wanted, not {type(extra).__name__}")
    try:
        return _encode(body | dict(extra), enc_hook=_plain)
    except UNWRITABLE:
        raise _blame(body | {"extra": extra}) from None


def check_messages(messages: object) -> None:
    """Raises:
    TypeError: no sequence of mappings, or a prompt that is None: a back end would answer it all the same.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise TypeError(f"messages: a list of messages is wanted, not {type(messages).__name__}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(
                f"messages: number {index} is {type(message).__name__}, not a mapping with role and content"
            )
        if message.get("role") == "user" and message.get("content") is None:
            raise TypeError(f"messages: number {index} is the user's and has no content")


def response_format(value: object) -> object:
    """As the API wants it: a mapping that is none of its types is a JSON schema, and is wrapped."""
    if not isinstance(value, Mapping) or value.get("type") in FORMATS:
        return value
    return {"type": "json_schema", "json_schema": {"name": "response", "schema": value}}


def checked_texts(texts: object) -> list[str]:
    """What is to be embedded.

    Raises:
        TypeError: no sequence of texts, or a text that UTF-8 cannot write.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise TypeError(f"texts: a list of texts is wanted, not {type(texts).__name__}")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts: a list of texts is wanted, and number {index} is {type(text).__name__}")
    try:
        _encode(texts, enc_hook=_plain)
    except UNWRITABLE:
        raise _blame({"texts": texts}) from None
    return list(texts)


def embed_body(texts: Sequence[str], model: str) -> bytes:
    """The JSON body of an embeddings call.

    Raises:
        TypeError: as `chat_body`.
    """
    checked = checked_texts(texts)
    try:
        return _encode({"model": model, "input": checked, "encoding_format": "float"})
    except UNWRITABLE:
        raise _blame({"model": model}) from None


_encode = msgspec.json.encode
UNWRITABLE = (TypeError, ValueError, RecursionError, OverflowError, msgspec.MsgspecError)
"""What encoding raises on values that are none of JSON's: ours, lone surrogates, circles."""


def _blame(arguments: Mapping[str, object]) -> TypeError:
    """The error for the first argument that cannot be written."""
    for name, value in arguments.items():
        try:
            _encode(value, enc_hook=_plain)
        except UnicodeEncodeError:
            return TypeError(f"{name}: a lone surrogate is in it, which UTF-8 cannot write")
        except RecursionError:
            return TypeError(f"{name}: nested too deep, or in a circle")
        except UNWRITABLE as error:
            return TypeError(f"{name}: {error}")
    return TypeError("the arguments cannot be written as JSON")


def _plain(value: object) -> object:
    """Mappings and sequences that are no dict or list."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no place in a request")


class _Function(Struct, frozen=True):
    name: str = ""
    arguments: str = ""


class _Call(Struct):
    id: str = ""
    function: _Function = _Function()


class _Message(Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Delta(Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Fragment] | None = None


class _Choice(Struct):
    message: _Message | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def counted(self) -> Usage | None:
        return counted(self.prompt_tokens, self.completion_tokens)


class _Document(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    model: str = ""


_document = msgspec.json.Decoder(_Document).decode


def parse_answer(body: bytes) -> LLMResponse:
    """A whole answer; provider, arm and times are the caller's to fill in.

    Raises:
        AttemptFailed: `malformed`.
    """
    try:
        answer = _document(body)
        raw: dict[str, Any] = msgspec.json.decode(body)
    except FAILURES as error:
        raise malformed("not-json") from error
    if not answer.choices or answer.choices[0].message is None:
        raise malformed("no-choices")
    message = answer.choices[0].message
    calls = (ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ())
    return LLMResponse(
        text=message.content or "",
        reasoning=message.reasoning or message.reasoning_content or "",
        tool_calls=tuple(calls),
        finish_reason=answer.choices[0].finish_reason or "",
        usage=answer.usage.counted() if answer.usage else None,
        model=answer.model,
        raw=raw,
    )


class ChunkReader:
    """Frames of a stream in, chunks out; tool calls, finish reason and usage come on the last one, from `eof`."""

    def __init__(self) -> None:
        self._framer = SseFramer()
        self._tools = Assembler()
        self._finish = ""
        self._usage: Usage | None = None

    def feed(self, data: bytes) -> list[StreamChunk]:
        """Raises:
        AttemptFailed: `malformed`.
        """
        chunks = (self._chunk(event.data) for event in self._framer.feed(data) if event.data not in (None, b"[DONE]"))
        return [chunk for chunk in chunks if chunk.text or chunk.reasoning]

    def eof(self) -> list[StreamChunk]:
        """The last chunk."""
        calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in self._tools.calls())
        return [StreamChunk(tool_calls=calls, finish_reason=self._finish, usage=self._usage)]

    def _chunk(self, data: bytes | None) -> StreamChunk:
        try:
            document = _document(data or b"")
        except FAILURES as error:
            raise malformed("not-json") from error
        if document.usage is not None:
            self._usage = document.usage.counted()
        if not document.choices:
            return StreamChunk()
        choice = document.choices[0]
        delta = choice.delta or _Delta()
        self._finish = choice.finish_reason or self._finish
        self._tools.add(delta.tool_calls or ())
        return StreamChunk(text=delta.content or "", reasoning=delta.reasoning or delta.reasoning_content or "")


class _Vector(Struct):
    embedding: list[float]
    index: int | None = None


class _Vectors(Struct):
    data: list[_Vector]
    usage: _Usage | None = None
    model: str = ""


_vectors = msgspec.json.Decoder(_Vectors).decode


def parse_vectors(body: bytes, count: int) -> EmbeddingResponse:
    """The vectors of `count` inputs, in the order of the inputs; provider and request id are the caller's to fill in.

    Raises:
        AttemptFailed: `malformed`, also when it is not one vector for each input.
    """
    try:
        answer = _vectors(body)
    except FAILURES as error:
        raise malformed("not-json") from error
    numbered = {n if vector.index is None else vector.index: vector.embedding for n, vector in enumerate(answer.data)}
    if len(answer.data) != count or numbered.keys() != set(range(count)):
        raise malformed("vectors")
    usage = answer.usage.counted() if answer.usage else None
    return EmbeddingResponse(vectors=[numbered[n] for n in range(count)], model=answer.model, usage=usage)
