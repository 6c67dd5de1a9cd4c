"""vLLM's `/v1/messages`: Anthropic's dialect over the chat route, as vLLM 0.12 and later translate it.

Facts: vLLM 0.33 source. Errors in the words of that dialect, also in the middle of a stream; no [DONE].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memos_llm.emulators import answers
from memos_llm.emulators.emulator import json_bytes
from memos_llm.emulators.vllm_generation import Job, Piece, carried, chat_pieces, said_apart
from memos_llm.emulators.vllm_requests import Rejection, schema_error

_STOP_REASONS: Mapping[str, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_ERROR_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_CHOICES: Mapping[str, str] = {"auto": "auto", "any": "required", "none": "none"}


def error_body(rejection: Rejection) -> dict[str, Any]:
    """An error as this dialect words it."""
    kind = _ERROR_TYPES.get(rejection.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": rejection.message}}


def to_chat(given: Mapping[str, Any], *, counting: bool = False) -> dict[str, Any]:
    """The chat request that a messages request becomes.

    Args:
        counting: for `count_tokens`, which needs no `max_tokens`.

    Raises:
        Rejection: 400, a field is missing or of another type.
    """
    for name in ("model", "messages") if counting else ("model", "messages", "max_tokens"):
        if name not in given:
            raise schema_error((name,), "missing", "Field required", given)
    if not isinstance(given["messages"], list):
        raise schema_error(("messages",), "list_type", "Input should be a valid list", given["messages"])
    chat = {name: given[name] for name in ("model", "max_tokens", "temperature", "top_p", "top_k") if name in given}
    chat["messages"] = _system(given.get("system"))
    for index, message in enumerate(given["messages"]):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise schema_error(
                ("messages", index, "role"), "literal_error", "Input should be 'user' or 'assistant'", message
            )
        chat["messages"] += _messages(message)
    if given.get("stop_sequences"):
        chat["stop"] = given["stop_sequences"]
    if given.get("stream"):
        chat |= {"stream": given["stream"], "stream_options": {"include_usage": True}}
    return chat | _tools(given)


def _system(system: Any) -> list[dict[str, Any]]:
    if not system:
        return []
    return [{"role": "system", "content": system if isinstance(system, str) else _text(system)}]


def _text(blocks: Any) -> str:
    if isinstance(blocks, str):
        return blocks
    found = [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []
    return "\n".join(str(block.get("text", "")) for block in found if block.get("type") == "text")


def _messages(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    if not isinstance(content, list):
        return [dict(message)]
    blocks = [block for block in content if isinstance(block, dict)]
    results = [
        {"role": "tool", "tool_call_id": block.get("tool_use_id", ""), "content": _text(block.get("content") or "")}
        for block in blocks
        if block.get("type") == "tool_result"
    ]
    parts = [_part(block) for block in blocks if block.get("type") in ("text", "image")]
    calls = [_call(block) for block in blocks if block.get("type") == "tool_use"]
    turn: dict[str, Any] = {"role": message["role"], **({"content": parts} if parts else {})}
    turn |= {"tool_calls": calls} if calls else {}
    thoughts = "".join(str(b.get("thinking", "")) for b in blocks if b.get("type") == "thinking")
    turn |= {"reasoning": thoughts} if thoughts else {}
    return [*results, *([turn] if parts or calls else [])]


def _part(block: Mapping[str, Any]) -> dict[str, Any]:
    if block["type"] == "text":
        return {"type": "text", "text": block.get("text")}
    source = block.get("source")
    source = source if isinstance(source, dict) else {}
    url = source.get("url") or f"data:{source.get('media_type')};base64,{source.get('data')}"
    return {"type": "image_url", "image_url": {"url": url}}


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(block.get("input") or {})
    return {"id": block.get("id"), "type": "function", "function": {"name": block.get("name"), "arguments": arguments}}


def _tools(given: Mapping[str, Any]) -> dict[str, Any]:
    tools = given.get("tools")
    if tools is None:
        return {}
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise schema_error(("tools",), "list_type", "Input should be a valid list", tools)
    functions = [
        {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool.get("input_schema")}
        for tool in tools
    ]
    chosen = given.get("tool_choice") or {"type": "auto"}
    kind = chosen.get("type") if isinstance(chosen, dict) else None
    choice: Any = _CHOICES.get(str(kind), "auto")
    if kind == "tool":
        choice = {"type": "function", "function": {"name": chosen.get("name")}}
    return {"tools": [{"type": "function", "function": f} for f in functions], "tool_choice": choice}


class MessagesFormat:
    """Anthropic's events, or one message."""

    broken = b'event: content_block_delta\ndata: {"type":\n\n'

    def __init__(self) -> None:
        self._open: str | None = None
        self._index = 0

    def pieces(self, job: Job, index: int) -> list[Piece]:
        return chat_pieces(job, index)

    def preamble(self, job: Job) -> bytes:
        message: dict[str, Any] = {
            "id": job.frame.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": job.frame.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": job.frame.prompt_tokens, "output_tokens": 0},
        }
        return _event("message_start", message=message)

    def piece(self, job: Job, index: int, piece: Piece, so_far: int) -> bytes:
        return b"".join(self._delta(piece.delta))

    def ending(self, job: Job) -> list[bytes]:
        last = carried(job, 0, chat_pieces(job, 0))
        events = [*(self._delta(last.delta) if last else ()), *self._closed()]
        usage = {"input_tokens": job.frame.prompt_tokens, "output_tokens": job.completion_tokens}
        reason = _STOP_REASONS.get(job.finish_reason(0), "end_turn")
        shown = {} if job.fault_name == "no_usage" else {"usage": usage}
        return [
            *events,
            _event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, **shown),
            _event("message_stop"),
        ]

    def error(self, text: str) -> list[bytes]:
        return [_event("error", error={"type": "api_error", "message": text})]

    def whole(self, job: Job) -> dict[str, Any]:
        text, reasoning = said_apart(job, 0)
        blocks: list[dict[str, Any]] = []
        if reasoning:
            blocks.append({"type": "thinking", "thinking": reasoning, "signature": _signature(job)})
        if text:
            blocks.append({"type": "text", "text": text})
        for call, call_id in zip(job.answers[0].tool_calls, job.call_ids(0), strict=True):
            blocks.append({"type": "tool_use", "id": call_id, "name": call.name, "input": dict(call.arguments)})
        body = {
            "id": job.frame.id,
            "type": "message",
            "role": "assistant",
            "content": blocks,
            "model": job.frame.model,
            "stop_reason": _STOP_REASONS.get(job.finish_reason(0), "end_turn"),
        }
        usage = {"input_tokens": job.frame.prompt_tokens, "output_tokens": job.completion_tokens}
        return body if job.fault_name == "no_usage" else {**body, "usage": usage}

    def _delta(self, delta: Mapping[str, Any]) -> list[bytes]:
        reasoning = delta.get("reasoning") or delta.get("reasoning_content")
        if reasoning:
            block = {"type": "thinking", "thinking": ""}
            return [*self._opened("thinking", block), self._said({"type": "thinking_delta", "thinking": reasoning})]
        if delta.get("content"):
            block = {"type": "text", "text": ""}
            return [*self._opened("text", block), self._said({"type": "text_delta", "text": delta["content"]})]
        return [event for call in delta.get("tool_calls") or () for event in self._called(call)]

    def _called(self, call: Mapping[str, Any]) -> list[bytes]:
        events = []
        function = call.get("function") or {}
        if call.get("id"):
            block = {"type": "tool_use", "id": call["id"], "name": function.get("name"), "input": {}}
            events += self._opened(call["id"], block)
        if function.get("arguments"):
            events.append(self._said({"type": "input_json_delta", "partial_json": function["arguments"]}))
        return events

    def _opened(self, name: str, block: Mapping[str, Any]) -> list[bytes]:
        if self._open == name:
            return []
        events = self._closed()
        self._open = name
        return [*events, _event("content_block_start", index=self._index, content_block=block)]

    def _closed(self) -> list[bytes]:
        if self._open is None:
            return []
        self._open = None
        self._index += 1
        return [_event("content_block_stop", index=self._index - 1)]

    def _said(self, delta: Mapping[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)


def _signature(job: Job) -> str:
    return f"{answers.token_id(job.frame.id):032x}"


def _event(kind: str, /, **more: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + json_bytes({"type": kind, **more}) + b"\n\n"
