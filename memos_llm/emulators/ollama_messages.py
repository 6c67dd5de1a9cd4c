"""`/v1/messages` of Ollama: Anthropic's shapes, made of a chat request and its native records.

Facts: 0.33 source. tool_choice and metadata do nothing; the input tokens of `message_start` are an estimate; a
failure in mid-stream ends the stream without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from memos_llm.emulators import golang, ollama_requests
from memos_llm.emulators.ollama_answering import infer
from memos_llm.emulators.ollama_generation import Generation, Record
from memos_llm.emulators.ollama_requests import Asked, Refusal
from memos_llm.emulators.ollama_server import JSON_BARE, SSE_UNCACHED, Ollama
from memos_llm.emulators.wire import Exchange, Headers

_FIELDS: Mapping[str, golang.Field] = {
    "model": ("string", "string"),
    "max_tokens": ("int", "int"),
    "messages": ("slice", "[]anthropic.MessageParam"),
    "system": ("any", "interface {}"),
    "stream": ("bool", "bool"),
    "temperature": ("float64", "float64"),
    "top_p": ("float64", "float64"),
    "top_k": ("int", "int"),
    "stop_sequences": ("slice", "[]string"),
    "tools": ("slice", "[]anthropic.Tool"),
    "thinking": ("map", "anthropic.ThinkingConfig"),
    "output_config": ("map", "anthropic.OutputConfig"),
}
_STRING: golang.Field = ("string", "string")
_MESSAGE: Mapping[str, golang.Field] = {"role": _STRING, "content": ("any", "json.RawMessage")}
_BLOCK: Mapping[str, golang.Field] = {
    **dict.fromkeys(("type", "text", "thinking", "id", "name", "tool_use_id"), _STRING),
    "input": ("map", "api.ToolCallFunctionArguments"),
    "source": ("map", "anthropic.ImageSource"),
    "content": ("any", "interface {}"),
}
_TOOL: Mapping[str, golang.Field] = {
    **dict.fromkeys(("type", "name", "description"), _STRING),
    "input_schema": ("map", "json.RawMessage"),
}
_OPTIONS: Mapping[str, str] = {
    "max_tokens": "num_predict",
    "stop_sequences": "stop",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
}
_EFFORTS: Mapping[str, str] = {**{level: level for level in ("low", "medium", "high", "max")}, "xhigh": "high"}
_STOP_REASONS: Mapping[str, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_CHARACTERS_A_TOKEN = 4  # of the estimate

Body = dict[str, Any]


async def messages(server: Ollama, exchange: Exchange) -> None:
    """`POST /v1/messages`."""
    asked = read(exchange.request.body)
    await infer(server, exchange, asked, MessagesShape(asked, f"msg_{server.ids.randrange(16**12):024x}"))


def read(body: bytes) -> Asked:
    """Read a request into native terms.

    Raises:
        Refusal: by the layer, 400.
    """
    try:
        return _asked(golang.fields(golang.loads(body), "MessagesRequest", _FIELDS))
    except golang.DecodeError as reason:
        raise Refusal(400, str(reason), by_layer=True) from reason


def _asked(given: Mapping[str, Any]) -> Asked:
    for missing, text in (
        (not given.get("model"), "model is required"),
        (given.get("max_tokens", 0) <= 0, "max_tokens is required and must be positive"),
        (not given.get("messages"), "messages is required"),
    ):
        if missing:
            raise Refusal(400, text, by_layer=True)
    said = [*_system(given), *(native for message in given["messages"] for native in _natives(message))]
    return Asked(
        given["model"],
        said,
        tools=[ollama_requests.tool(_tool(item)) for item in given.get("tools", [])],
        stream=given.get("stream", False),
        options={native: given[name] for name, native in _OPTIONS.items() if name in given},
        think=_think(given),
        empty=not said,
    )


def _think(given: Mapping[str, Any]) -> bool | str | None:
    switch = {"enabled": True, "disabled": False}.get(str((given.get("thinking") or {}).get("type")))
    if switch is not None:
        return switch
    return _EFFORTS.get(str((given.get("output_config") or {}).get("effort", "")).strip().lower())


def _system(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    text = _text(given.get("system"))
    if text:
        yield {"role": "system", "content": text}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(
        str(part.get("text") or "") for part in parts if isinstance(part, dict) and part.get("type") == "text"
    )


def _tool(given: Any) -> Any:
    tool = golang.fields(given, "MessagesRequest", _TOOL, "tools")
    function = {"name": tool.get("name"), "description": tool.get("description")}
    return {"type": "function", "function": {**function, "parameters": tool.get("input_schema")}}


def _natives(given: Any) -> Iterator[dict[str, Any]]:
    """The results of tools are messages of their own, before the rest of a user's message."""
    message = golang.fields(given, "MessagesRequest", _MESSAGE, "messages")
    content = message.get("content")
    if not isinstance(content, str | list):
        where = "Go struct field MessagesRequest.messages of type []anthropic.ContentBlock"
        raise golang.DecodeError(f"json: cannot unmarshal {golang.kind(content)} into {where}")
    said = [{"type": "text", "text": content}] if isinstance(content, str) else content
    blocks = [golang.fields(block, "MessagesRequest", _BLOCK, "messages.content") for block in said]
    native: dict[str, Any] = {"role": message.get("role", "").lower(), "content": _text(blocks)}
    for block in blocks:
        kind = block.get("type")
        if kind == "tool_result":
            yield {"role": "tool", "content": _text(block.get("content")), "tool_call_id": block.get("tool_use_id")}
        elif kind == "tool_use":
            native.setdefault("tool_calls", []).append(_tool_call(block))
        elif kind == "image":
            native.setdefault("images", []).append(_image(block.get("source")))
    if native["content"] or len(native) > 2:
        yield native


def _tool_call(block: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("id", "name"):
        if not block.get(name):
            raise golang.DecodeError(f"tool_use block missing required '{name}' field")
    return {"id": block["id"], "function": {"name": block["name"], "arguments": block.get("input", {})}}


def _image(source: Any) -> str:
    if not isinstance(source, dict):
        raise golang.DecodeError("invalid image source")
    if source.get("type") != "base64":
        text = f"invalid image source type: {source.get('type', '')}. Only base64 images are supported."
        raise golang.DecodeError(text)
    return str(source.get("data", ""))


class MessagesShape:
    """A message made of native records. message_id: its id."""

    stream_headers: Headers = SSE_UNCACHED
    broken = b'event: content_block_delta\ndata: {"type":\n\n'

    def __init__(self, asked: Asked, message_id: str) -> None:
        self._asked, self._id = asked, message_id
        self._begun = False
        self._open: str | None = None  # kind of the block that text is added to
        self._index = 0

    @property
    def whole_headers(self) -> Headers:
        """A load is answered as a stream where a stream was asked for."""
        return SSE_UNCACHED if self._asked.stream else JSON_BARE

    def loaded(self, reason: str) -> bytes:
        """The answer to messages that say nothing."""
        if self._asked.stream:
            return self._begin() + _final(None, 0, 0)
        return golang.dumps(self._message([], None, 0, 0)) + b"\n"

    def record(self, record: Record) -> bytes:
        """The events of one record."""
        events = self._begin()
        if record.thinking:
            events += self._added("thinking", {"type": "thinking_delta", "thinking": record.thinking})
        if record.content:
            events += self._added("text", {"type": "text_delta", "text": record.content})
        return events + b"".join(self._call(call) for call in record.tool_calls)

    def ending(self, generation: Generation) -> list[bytes]:
        """What is open is closed; then the reason and the counts."""
        events = self._begin()
        if generation.calls_at_the_end:
            events += b"".join(self._call(call) for call in generation.calls)
        counts = generation.prompt_tokens, generation.answer.completion_tokens
        return [events + self._closed() + _final(_reason(generation), *counts)]

    def error(self, text: str) -> list[bytes]:
        """Nothing: the stream just ends."""
        return []

    def whole(self, records: list[Record], generation: Generation, *, finished: bool) -> bytes:
        """A whole message; one that did not finish has no reason and no counts."""
        answer = generation.answer
        blocks: list[Body] = []
        if answer.thinking:
            blocks.append({"type": "thinking", "thinking": answer.thinking_text})
        if answer.text:
            blocks.append({"type": "text", "text": answer.text})
        for call in generation.calls:
            blocks.append({**_tool_use(call), "input": call["function"]["arguments"]})
        counts = (generation.prompt_tokens, answer.completion_tokens) if finished else (0, 0)
        reason = _reason(generation) if finished else None
        return golang.dumps(self._message(blocks or None, reason, *counts)) + b"\n"

    def _message(self, blocks: list[Body] | None, reason: str | None, prompt: int, generated: int) -> Body:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._asked.model_name,
            "content": blocks,
            **({"stop_reason": reason} if reason else {}),
            "usage": {"input_tokens": prompt, "output_tokens": generated},
        }

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        characters = sum(len(str(message["content"])) for message in self._asked.messages)
        estimate = max(1, characters // _CHARACTERS_A_TOKEN)
        return _event("message_start", {"message": self._message([], None, estimate, 0)})

    def _added(self, kind: str, delta: Body) -> bytes:
        events = b""
        if self._open != kind:
            events = self._closed() + self._started({"type": kind, kind: ""})
            self._open = kind
        return events + _event("content_block_delta", {"index": self._index, "delta": delta})

    def _started(self, block: Body) -> bytes:
        return _event("content_block_start", {"index": self._index, "content_block": block})

    def _closed(self) -> bytes:
        return b"" if self._open is None else self._stopped()

    def _stopped(self) -> bytes:
        event = _event("content_block_stop", {"index": self._index})
        self._open = None
        self._index += 1
        return event

    def _call(self, call: Mapping[str, Any]) -> bytes:
        events = self._closed() + self._started({**_tool_use(call), "input": {}})
        arguments = golang.dumps(call["function"]["arguments"]).decode()
        delta = {"type": "input_json_delta", "partial_json": arguments}
        return events + _event("content_block_delta", {"index": self._index, "delta": delta}) + self._stopped()


def _tool_use(call: Mapping[str, Any]) -> Body:
    return {"type": "tool_use", "id": call.get("id", ""), "name": call["function"]["name"]}


def _reason(generation: Generation) -> str:
    return _STOP_REASONS["tool_calls" if generation.calls else generation.answer.finish]


def _final(reason: str | None, prompt: int, generated: int) -> bytes:
    delta = {"stop_reason": reason} if reason else {}
    usage = {"input_tokens": prompt, "output_tokens": generated}
    return _event("message_delta", {"delta": delta, "usage": usage}) + _event("message_stop", {})


def _event(name: str, data: Body) -> bytes:
    return f"event: {name}\ndata: ".encode() + golang.dumps({"type": name, **data}) + b"\n\n"
