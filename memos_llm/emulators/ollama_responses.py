"""`/v1/responses` of Ollama: stateless, always `completed`, made of a chat request and its native records.

Facts: 0.33 source. Only messages, function calls with their outputs, and reasoning are read; nothing is stored, so
previous_response_id, conversation and tool_choice do nothing; a failure in mid-stream ends the stream without a word.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from memos_llm.emulators import golang, ollama_requests
from memos_llm.emulators.ollama_answering import infer
from memos_llm.emulators.ollama_generation import Generation, Record
from memos_llm.emulators.ollama_requests import Asked, Refusal
from memos_llm.emulators.ollama_server import JSON_BARE, SSE_UNCACHED, Ollama
from memos_llm.emulators.ollama_v1 import data_url_image, openai_call
from memos_llm.emulators.wire import Exchange, Headers

_FIELDS: Mapping[str, golang.Field] = {
    "model": ("string", "string"),
    "input": ("any", "openai.ResponsesInput"),
    "instructions": ("string", "string"),
    "max_output_tokens": ("int", "int"),
    "reasoning": ("map", "openai.ResponsesReasoning"),
    "temperature": ("float64", "float64"),
    "top_p": ("float64", "float64"),
    "text": ("map", "openai.ResponsesText"),
    "tools": ("slice", "[]openai.ResponsesTool"),
    "truncation": ("string", "string"),
    "background": ("bool", "bool"),
    "stream": ("bool", "bool"),
}
_STRING: golang.Field = ("string", "string")
_ANY: golang.Field = ("any", "json.RawMessage")
_ITEM: Mapping[str, golang.Field] = {
    **dict.fromkeys(("id", "type", "role", "call_id", "name", "arguments", "encrypted_content"), _STRING),
    **dict.fromkeys(("content", "output", "summary"), _ANY),
}
_PART: Mapping[str, golang.Field] = {"type": _STRING, "text": _STRING, "image_url": _STRING}
_REASONING: Mapping[str, golang.Field] = {"effort": _STRING, "summary": _STRING}
_TEXT: Mapping[str, golang.Field] = {"format": ("map", "openai.ResponsesTextFormat")}
_FORMAT: Mapping[str, golang.Field] = {"type": _STRING, "name": _STRING, "schema": _ANY, "strict": ("bool", "bool")}
_TOOL: Mapping[str, golang.Field] = {
    "type": _STRING,
    "name": _STRING,
    "description": _STRING,
    "strict": ("bool", "bool"),
    "parameters": ("map", "map[string]interface {}"),
}
_EFFORTS: Mapping[str, bool | str] = {"none": False, "low": "low", "medium": "medium", "high": "high", "max": "max"}

Given = Mapping[str, Any]
Body = dict[str, Any]


async def responses(server: Ollama, exchange: Exchange) -> None:
    """`POST /v1/responses`."""
    asked, given = read(exchange.request.body)
    await infer(server, exchange, asked, ResponsesShape(asked, given, server.ids.randrange(999_999)))


def read(body: bytes) -> tuple[Asked, dict[str, Any]]:
    """Read a request into native terms, and what of it the answer repeats (`text` is its format).

    Raises:
        Refusal: by the layer, 400.
    """
    try:
        given = golang.fields(golang.loads(body), "ResponsesRequest", _FIELDS)
        for name, spec in (("reasoning", _REASONING), ("text", _TEXT)):
            given[name] = golang.fields(given.get(name), "ResponsesRequest", spec, name)
        given["text"] = golang.fields(given["text"].get("format"), "ResponsesRequest", _FORMAT, "text.format")
        messages = list(_messages(given))
        tools = [ollama_requests.tool(_tool(item)) for item in given.get("tools", [])]
        effort = given["reasoning"].get("effort")
        if effort and effort not in _EFFORTS:
            choices = '"high", "medium", "low", "max", or "none"'
            raise golang.DecodeError(f'invalid reasoning value: "{effort}" (must be {choices})')
    except golang.DecodeError as reason:
        raise Refusal(400, str(reason), by_layer=True) from reason
    except Refusal as refusal:
        raise Refusal(refusal.status, refusal.text, by_layer=True) from refusal
    asked = Asked(
        given.get("model", ""),
        messages,
        tools=tools,
        stream=given.get("stream", False),
        schema=_schema(given),
        options=_options(given),
        think=_EFFORTS[effort] if effort else None,
        empty=not messages,
    )
    return asked, given


def _options(given: Given) -> dict[str, Any]:
    """An absent temperature is forced to 1, an absent top_p is not."""
    options = {"temperature": given.get("temperature", 1.0)}
    if "top_p" in given:
        options["top_p"] = given["top_p"]
    if "max_output_tokens" in given:
        options["num_predict"] = given["max_output_tokens"]
    return options


def _schema(given: Given) -> Any:
    return given["text"].get("schema") if given["text"].get("type") == "json_schema" else None


def _tool(given: Any) -> Any:
    tool = golang.fields(given, "ResponsesRequest", _TOOL, "tools")
    return {"type": tool.get("type"), "function": {k: tool.get(k) for k in ("name", "description", "parameters")}}


def _messages(given: Given) -> Iterator[dict[str, Any]]:
    if given.get("instructions"):
        yield {"role": "system", "content": given["instructions"]}
    said = given.get("input", "")
    if isinstance(said, str):
        if said:
            yield {"role": "user", "content": said}
    elif isinstance(said, list):
        for index, item in enumerate(said):
            yield from _item(item, index)
    else:
        raise golang.DecodeError("input must be a string or array")


def _item(item: Any, index: int) -> Iterator[dict[str, Any]]:
    given = golang.fields(item, "ResponsesInputItem", _ITEM, f"input[{index}]")
    kind = given.get("type") or ("message" if given.get("role") else "")
    if kind == "message":
        texts, images = _content(given.get("content"), index)
        yield {"role": given.get("role", ""), "content": texts, **({"images": images} if images else {})}
    elif kind == "function_call":
        call = {"id": given.get("call_id", ""), "function": _function(given)}
        yield {"role": "assistant", "content": "", "tool_calls": [call]}
    elif kind == "function_call_output":
        text, _ = _content(given.get("output"), index)
        yield {"role": "tool", "content": text, "tool_call_id": given.get("call_id", "")}
    elif not kind:
        raise golang.DecodeError(f"input[{index}]: input item missing required 'type' field")
    elif kind != "reasoning":
        raise golang.DecodeError(f'input[{index}]: unknown input item type: "{kind}"')


def _function(given: Given) -> dict[str, Any]:
    try:
        arguments = json.loads(given.get("arguments") or "{}")
    except (json.JSONDecodeError, TypeError) as reason:
        raise golang.DecodeError(f"failed to parse function call arguments: {reason}") from reason
    return {"name": given.get("name", ""), "arguments": arguments if isinstance(arguments, dict) else {}}


def _content(content: Any, index: int) -> tuple[str, list[str]]:
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise golang.DecodeError(f"input[{index}]: content must be a string or array")
    texts, images = [], []
    for number, given in enumerate(content):
        part = golang.fields(given, "ResponsesContent", _PART, f"content[{number}]")
        kind = part.get("type")
        if kind in ("input_text", "output_text"):
            texts.append(part.get("text", ""))
        elif kind == "input_image":
            images.append(data_url_image(part.get("image_url")))
        else:
            raise golang.DecodeError(f"input[{index}]: content[{number}]: unknown content type: {kind or ''}")
    return "".join(texts), images


class ResponsesShape:
    """A response made of native records. given: the request. number: of the ids."""

    stream_headers: Headers = SSE_UNCACHED
    broken = b'event: response.output_text.delta\ndata: {"type":\n\n'

    def __init__(self, asked: Asked, given: Given, number: int) -> None:
        self._asked, self._given, self._number = asked, given, number
        self._created = int(time.time())
        self._sequence = 0
        self._output: list[Body] = []  # items that are complete
        self._open: Body | None = None  # the item that text is added to
        self._text = ""

    @property
    def whole_headers(self) -> Headers:
        """A load is answered as a stream where a stream was asked for."""
        return SSE_UNCACHED if self._asked.stream else JSON_BARE

    def loaded(self, reason: str) -> bytes:
        """The answer to an empty input."""
        if self._asked.stream:
            return self._begun() + self._completed([], 0, 0)
        return golang.dumps(self._response("completed", [_message(self._id("msg"), "")], 0, 0)) + b"\n"

    def record(self, record: Record) -> bytes:
        """The events of one record; the first is preceded by two that say that the response began."""
        events = self._begun() if self._sequence == 0 else b""
        if record.thinking:
            events += self._added("reasoning", record.thinking)
        for call in record.tool_calls:
            events += self._call(call)
        if record.content and not record.tool_calls:
            events += self._added("message", record.content)
        return events

    def ending(self, generation: Generation) -> list[bytes]:
        """What is open is closed, and the whole response comes once more."""
        events = self._begun() if self._sequence == 0 else b""
        if generation.calls_at_the_end:
            events += b"".join(self._call(call) for call in generation.calls)
        events += self._closed()
        counts = generation.prompt_tokens, generation.answer.completion_tokens
        return [events + self._completed(self._output, *counts)]

    def error(self, text: str) -> list[bytes]:
        """Nothing: the stream just ends."""
        return []

    def whole(self, records: list[Record], generation: Generation, *, finished: bool) -> bytes:
        """A whole response; one that did not finish looks the same, without counts."""
        answer = generation.answer
        output: list[Body] = []
        if answer.thinking:
            output.append(_reasoning(f"rs_{self._id('resp')}", answer.thinking_text))
        calls = [openai_call(call) for call in generation.calls]
        for index, call in enumerate(calls):
            output.append(_function_call(f"fc_{self._id('resp')}_{index}", call))
        if not calls:
            output.append(_message(self._id("msg"), answer.text))
        counts = (generation.prompt_tokens, answer.completion_tokens) if finished else (0, 0)
        return golang.dumps(self._response("completed", output, *counts)) + b"\n"

    def _begun(self) -> bytes:
        started = self._response("in_progress", [], None, None)
        names = ("response.created", "response.in_progress")
        return b"".join(self._event(name, {"response": started}) for name in names)

    def _added(self, kind: str, text: str) -> bytes:
        """Text for an item of that kind, which is opened first where another one is open or none."""
        events = b""
        if self._open is None or self._open["type"] != kind:
            events = self._closed() + self._opened(kind)
        self._text += text
        if kind == "reasoning":
            return events + self._event(
                "response.reasoning_summary_text.delta", {**self._at(), "summary_index": 0, "delta": text}
            )
        delta = {**self._at(), "content_index": 0, "delta": text, "logprobs": []}
        return events + self._event("response.output_text.delta", delta)

    def _opened(self, kind: str) -> bytes:
        empty: Body = {"id": self._id("rs"), "type": "reasoning", "summary": []}
        if kind == "message":
            empty = {**_message(self._id("msg"), ""), "status": "in_progress", "content": []}
        self._open, self._text = empty, ""
        events = self._event("response.output_item.added", {"output_index": len(self._output), "item": empty})
        if kind == "message":
            part = {**self._at(), "content_index": 0, "part": _part("")}
            events += self._event("response.content_part.added", part)
        return events

    def _closed(self) -> bytes:
        if self._open is None:
            return b""
        at, text = self._at(), self._text
        if self._open["type"] == "reasoning":
            item = _reasoning(self._open["id"], text)
            events = self._event("response.reasoning_summary_text.done", {**at, "summary_index": 0, "text": text})
        else:
            item = _message(self._open["id"], text)
            done = {**at, "content_index": 0}
            events = self._event("response.output_text.done", {**done, "text": text, "logprobs": []})
            events += self._event("response.content_part.done", {**done, "part": _part(text)})
        return events + self._item_done(item)

    def _call(self, native: Mapping[str, Any]) -> bytes:
        events = self._closed()
        call = openai_call(native)
        item = _function_call(f"fc_{self._number}_{len(self._output)}", call)
        at = {"item_id": item["id"], "output_index": len(self._output)}
        begun = {**item, "status": "in_progress", "arguments": ""}
        events += self._event("response.output_item.added", {"output_index": len(self._output), "item": begun})
        events += self._event("response.function_call_arguments.delta", {**at, "delta": item["arguments"]})
        events += self._event("response.function_call_arguments.done", {**at, "arguments": item["arguments"]})
        return events + self._item_done(item)

    def _item_done(self, item: Body) -> bytes:
        event = self._event("response.output_item.done", {"output_index": len(self._output), "item": item})
        self._output.append(item)
        self._open = None
        return event

    def _at(self) -> Body:
        return {"item_id": (self._open or {}).get("id"), "output_index": len(self._output)}

    def _completed(self, output: list[Body], prompt: int, generated: int) -> bytes:
        return self._event("response.completed", {"response": self._response("completed", output, prompt, generated)})

    def _event(self, name: str, data: Body) -> bytes:
        body = golang.dumps({**data, "sequence_number": self._sequence, "type": name})
        self._sequence += 1
        return f"event: {name}\ndata: ".encode() + body + b"\n\n"

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._number}"

    def _response(self, status: str, output: list[Body], prompt: int | None, generated: int | None) -> Body:
        usage = None if prompt is None or generated is None else _usage(prompt, generated)
        given, done = self._given, status == "completed"
        effort = given["reasoning"].get("effort")
        return {
            "id": self._id("resp"),
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if done else None,
            "status": status,
            "incomplete_details": None,
            "model": self._asked.model_name,
            "previous_response_id": None,
            "instructions": given.get("instructions") or None,
            "output": output,
            "error": None,
            "tools": given.get("tools", []),
            "tool_choice": "auto",
            "truncation": given.get("truncation", "disabled"),
            "parallel_tool_calls": True,
            "text": {"format": given["text"] or {"type": "text"}},
            "top_p": golang.number(given.get("top_p", 1)),
            **dict.fromkeys(("presence_penalty", "frequency_penalty", "top_logprobs"), 0),
            "temperature": golang.number(given.get("temperature", 1)),
            "reasoning": {"effort": effort, "summary": None} if effort else None,
            "usage": usage,
            "max_output_tokens": given.get("max_output_tokens"),
            "max_tool_calls": None,
            "store": False,
            "background": given.get("background", False),
            "service_tier": "default",
            "metadata": {},
            **dict.fromkeys(("safety_identifier", "prompt_cache_key")),
        }


def _usage(prompt: int, generated: int) -> Body:
    return {
        "input_tokens": prompt,
        "output_tokens": generated,
        "total_tokens": prompt + generated,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _part(text: str) -> Body:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message(item_id: str, text: str) -> Body:
    return {"id": item_id, "type": "message", "status": "completed", "role": "assistant", "content": [_part(text)]}


def _reasoning(item_id: str, text: str) -> Body:
    summary = [{"type": "summary_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": summary, "encrypted_content": text}


def _function_call(item_id: str, call: Mapping[str, Any]) -> Body:
    function = call["function"]
    return {
        "id": item_id,
        "type": "function_call",
        "status": "completed",
        "call_id": call["id"],
        "name": function["name"],
        "arguments": function["arguments"],
    }
