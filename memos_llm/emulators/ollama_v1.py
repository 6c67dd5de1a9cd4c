"""Ollama's OpenAI-compatible layer: rewrites the request to native and the native records to chunks.

Like the original it sits in front of the native handler: what the layer refuses itself has a charset and no
newline, what the native handler refuses has neither charset nor its own shape (Ollama 0.17.4, measured).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from memos_llm.emulators import documents, golang, ollama_requests
from memos_llm.emulators.ollama_requests import BAD_SCHEMA, Asked, Refusal
from memos_llm.emulators.ollama_server import JSON_BARE, SSE
from memos_llm.emulators.ollama_versions import Behaviour

if TYPE_CHECKING:
    from memos_llm.emulators.ollama_generation import Generation, Record

_CHAT: Mapping[str, golang.Field] = {
    "model": ("string", "string"),
    "messages": ("slice", "[]openai.Message"),
    "stream": ("bool", "bool"),
    "stream_options": ("map", "openai.StreamOptions"),
    "max_tokens": ("int", "int"),
    "seed": ("int", "int"),
    "stop": ("any", "interface {}"),
    "temperature": ("float64", "float64"),
    "frequency_penalty": ("float64", "float64"),
    "presence_penalty": ("float64", "float64"),
    "top_p": ("float64", "float64"),
    "response_format": ("map", "openai.ResponseFormat"),
    "tools": ("slice", "[]api.Tool"),
    "reasoning": ("map", "openai.Reasoning"),
    "reasoning_effort": ("string", "string"),
    "logprobs": ("bool", "bool"),
    "top_logprobs": ("int", "int"),
}
_MESSAGE: Mapping[str, golang.Field] = {
    "role": ("string", "string"),
    "content": ("any", "interface {}"),
    "reasoning": ("string", "string"),
    "tool_calls": ("slice", "[]openai.ToolCall"),
    "name": ("string", "string"),
    "tool_call_id": ("string", "string"),
}
_STRING: golang.Field = ("string", "string")
_CALL: Mapping[str, golang.Field] = {"id": _STRING, "type": _STRING, "function": ("map", "struct")}
_CALL_FUNCTION: Mapping[str, golang.Field] = {"name": _STRING, "arguments": _STRING}
_STRUCT = "ChatCompletionRequest"
_FORMAT: Mapping[str, golang.Field] = {"type": _STRING, "json_schema": ("map", "openai.JsonSchema")}
_EFFORT: Mapping[str, golang.Field] = {"effort": _STRING}
_IMAGE_PREFIXES = ("data:;base64,", *(f"data:image/{kind};base64," for kind in ("jpeg", "jpg", "png", "webp")))
_EFFORTS_0_17: Mapping[str, bool | str] = {"none": False, "low": "low", "medium": "medium", "high": "high"}
_EFFORTS_0_22: Mapping[str, bool | str] = {**_EFFORTS_0_17, "max": "max"}
_EFFORTS: Mapping[str, bool | str] = {**_EFFORTS_0_22, "minimal": "low", "xhigh": "max", "ultra": "max"}


def read_chat(body: bytes, *, behaves: Behaviour) -> tuple[Asked, bool]:
    """Read a chat completion request into native terms, and whether usage was asked for.

    Raises:
        Refusal: by the layer, 400.
    """
    try:
        given = golang.fields(golang.loads(body), _STRUCT, _CHAT, go_type=f"openai.{_STRUCT}")
        raw_messages = [
            golang.fields(m, _STRUCT, _MESSAGE, "messages", "openai.Message") for m in given.get("messages", [])
        ]
        if not raw_messages:
            raise golang.DecodeError("[] is too short - 'messages'")
        messages = [native for message in raw_messages for native in _native(message)]
        tools = [ollama_requests.tool(item) for item in given.get("tools", [])]
        think = _think(given, behaves)
        wanted = golang.fields(given.get("response_format"), _STRUCT, _FORMAT, "response_format")
    except golang.DecodeError as reason:
        raise Refusal(400, str(reason), by_layer=True) from reason
    except Refusal as refusal:
        raise Refusal(refusal.status, refusal.text, by_layer=True) from refusal
    schema = _schema(wanted)
    if not 0 <= given.get("top_logprobs", 0) <= 20:
        raise Refusal(400, "top_logprobs must be between 0 and 20")
    asked = Asked(
        given.get("model", ""),
        messages,
        tools=tools,
        stream=given.get("stream", False),
        schema=schema,
        format_error=BAD_SCHEMA if documents.unknown_type(schema) else None,
        options=_options(given),
        think=think,
        logprobs=behaves.logprobs and given.get("logprobs", False),
        top_logprobs=given.get("top_logprobs", 0),
        empty=not messages,
    )
    return asked, bool((given.get("stream_options") or {}).get("include_usage"))


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Native options; `max_completion_tokens` is not read, absent temperature and top_p are forced to 1."""
    options: dict[str, Any] = {"temperature": given.get("temperature", 1.0), "top_p": given.get("top_p", 1.0)}
    for name in ("seed", "frequency_penalty", "presence_penalty"):
        if name in given:
            options[name] = given[name]
    if "max_tokens" in given:
        options["num_predict"] = given["max_tokens"]
    stop = given.get("stop")
    if isinstance(stop, str):
        options["stop"] = [stop]
    elif isinstance(stop, list):
        options["stop"] = [word for word in stop if isinstance(word, str)]
    return options


def _schema(wanted: Mapping[str, Any]) -> Any:
    if wanted.get("type") == "json_object":
        return "json"
    return wanted.get("json_schema", {}).get("schema") if wanted.get("type") == "json_schema" else None


def _think(given: Mapping[str, Any], behaves: Behaviour) -> bool | str | None:
    reasoning = golang.fields(given.get("reasoning"), _STRUCT, _EFFORT, "reasoning")
    effort = reasoning.get("effort") or given.get("reasoning_effort")
    if not effort or not behaves.reasoning_effort:
        return None
    known = _EFFORTS if behaves.more_efforts else _EFFORTS_0_22 if behaves.think_max else _EFFORTS_0_17
    if effort not in known:
        most = '"max", ' if behaves.think_max else ""
        choices = f'"high", "medium", "low", {most}or "none"'
        raise golang.DecodeError(f"invalid reasoning value: '{effort}' (must be {choices})")
    return known[effort]


def _native(message: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    role, content = message.get("role", "").lower(), message.get("content")
    calls = [_call(call) for call in message.get("tool_calls", [])]
    if isinstance(content, list):
        natives = [_part(role, part) for part in content]
    elif isinstance(content, str):
        natives = [{"role": role, "content": content}]
    elif "tool_calls" in message:
        natives = [{"role": role, "content": ""}]
    else:
        name = "<nil>" if content is None else _go_type(content)
        raise golang.DecodeError(f"invalid message content type: {name}")
    if natives and calls:
        natives[-1]["tool_calls"] = calls
    return natives


def _go_type(value: Any) -> str:
    return {"bool": "bool", "number": "float64"}.get(golang.kind(value), "map[string]interface {}")


def _part(role: str, part: Any) -> dict[str, Any]:
    """Each part of a content becomes a message of its own."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"role": role, "content": part["text"]}
    if kind == "image_url":
        return {"role": role, "content": "", "images": [data_url_image(part.get("image_url"))]}
    raise golang.DecodeError("invalid message format")


def data_url_image(given: Any) -> str:
    """The base64 of an image part; only data URLs are taken.

    Raises:
        DecodeError: anything else.
    """
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str):
        raise golang.DecodeError("invalid message format")
    prefix = next((p for p in _IMAGE_PREFIXES if url.startswith(p)), None)
    if prefix is None and url.startswith(("http://", "https://")):
        raise golang.DecodeError("image URLs are not currently supported, please use base64 encoded data instead")
    if prefix is None:
        raise golang.DecodeError("invalid image input")
    return url.removeprefix(prefix)


def _call(given: Any) -> dict[str, Any]:
    call = golang.fields(given, _STRUCT, _CALL, "messages.tool_calls")
    where = "messages.tool_calls.function"
    function = golang.fields(call.get("function"), _STRUCT, _CALL_FUNCTION, where)
    try:
        arguments = json.loads(function.get("arguments", ""))
    except (json.JSONDecodeError, TypeError) as reason:
        raise golang.DecodeError("invalid tool call arguments") from reason
    if not isinstance(arguments, dict):
        raise golang.DecodeError("invalid tool call arguments")
    return {"id": call.get("id", ""), "function": {"name": function.get("name", ""), "arguments": arguments}}


class V1Shape:
    """Chat completions made of native records.

    Args:
        number: of the id, 0 to 998. finish_alone: the finish chunk has an empty delta and role comes once
            (since 0.32.6); before, every delta repeats role and content.
    """

    stream_headers = SSE
    whole_headers = JSON_BARE
    broken = b'data: {"id":"chatcmpl-\n\n'

    def __init__(self, asked: Asked, number: int, *, include_usage: bool, finish_alone: bool) -> None:
        self._asked, self._id = asked, f"chatcmpl-{number}"
        self._include_usage, self._finish_alone = include_usage, finish_alone
        self._created = int(time.time())
        self._role_sent = False

    def loaded(self, reason: str) -> bytes:
        """The answer to a load: a whole completion, even for a stream."""
        message = {"role": "assistant", "content": ""}
        return self._completion(message, reason, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})

    def record(self, record: Record) -> bytes:
        """One event."""
        delta: dict[str, Any] = {**self._role(), "content": record.content}
        if record.thinking:
            delta["reasoning"] = record.thinking
        if record.tool_calls:
            delta["tool_calls"] = [openai_call(call) for call in record.tool_calls]
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
        if record.logprobs:
            choice["logprobs"] = {"content": list(record.logprobs)}
        return event(self._chunk([choice]))

    def ending(self, generation: Generation) -> list[bytes]:
        """Finish, usage and [DONE], which leave in one chunk (measured)."""
        events = b""
        if generation.calls and generation.calls_at_the_end:
            delta = {**self._role(), "content": "", "tool_calls": [openai_call(call) for call in generation.calls]}
            events += event(self._chunk([{"index": 0, "delta": delta, "finish_reason": None}]))
        last: dict[str, Any] = {} if self._finish_alone else {"role": "assistant", "content": ""}
        events += event(self._chunk([{"index": 0, "delta": last, "finish_reason": _finish(generation)}]))
        if self._include_usage:
            events += event({**self._chunk([]), "usage": usage(generation)})
        return [events + b"data: [DONE]\n\n"]

    def error(self, text: str) -> list[bytes]:
        """A mid-stream error is swallowed: one event without model and content."""
        delta = {**self._role(), "content": ""}
        chunk = {**self._chunk([{"index": 0, "delta": delta, "finish_reason": None}]), "model": ""}
        return [event(chunk)]

    def whole(self, records: list[Record], generation: Generation, *, finished: bool) -> bytes:
        """A whole completion; unfinished means finish_reason null and zero usage."""
        message: dict[str, Any] = {"role": "assistant", "content": generation.answer.text}
        if generation.answer.thinking:
            message["reasoning"] = generation.answer.thinking_text
        if generation.calls:
            message["tool_calls"] = [openai_call(call) for call in generation.calls]
        if not finished:
            return self._completion(message, None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})
        logprobs = [one for record in records for one in record.logprobs]
        return self._completion(message, _finish(generation), usage(generation), logprobs)

    def _role(self) -> dict[str, str]:
        if self._finish_alone and self._role_sent:
            return {}
        self._role_sent = True
        return {"role": "assistant"}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._asked.model_name,
            "system_fingerprint": "fp_ollama",
            "choices": choices,
        }

    def _completion(
        self,
        message: dict[str, Any],
        finish: str | None,
        usage: dict[str, int],
        logprobs: list[dict[str, Any]] | None = None,
    ) -> bytes:
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
        if logprobs:
            choice["logprobs"] = {"content": logprobs}
        body = self._chunk([choice]) | {"object": "chat.completion", "usage": usage}
        return golang.dumps(body) + b"\n"


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + golang.dumps(value) + b"\n\n"


def _finish(generation: Generation) -> str:
    return "tool_calls" if generation.calls else generation.answer.finish


def usage(generation: Generation) -> dict[str, int]:
    """The counts in OpenAI's names."""
    prompt, completion = generation.prompt_tokens, generation.answer.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def openai_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A native tool call in OpenAI's shape: its arguments are a string."""
    function = call["function"]
    arguments = golang.dumps(function["arguments"]).decode()
    return {
        "id": call.get("id", ""),
        "index": function["index"],
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }
