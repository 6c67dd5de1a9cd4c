"""vLLM's `/v1/responses`, without a store: one answer, whole or as typed events; no [DONE].

Facts: vLLM 0.33 source. Built-in tools, `previous_response_id` and background work are a 501 or what an unknown id is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memos_llm.emulators.answers import ToolUse
from memos_llm.emulators.emulator import json_bytes
from memos_llm.emulators.vllm_chunks import arguments_text
from memos_llm.emulators.vllm_generation import Job, Piece, carried, chat_pieces, said_apart
from memos_llm.emulators.vllm_requests import Rejection, not_emulated, schema_error

_COPIED = ("model", "temperature", "top_p", "top_k", "stream", "user", "seed", "chat_template_kwargs")


def to_chat(given: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request that a responses request becomes.

    Raises:
        Rejection: 400, a field is missing or of another type; 404, an earlier response; 501, not emulated.
    """
    if "input" not in given:
        raise schema_error(("input",), "missing", "Field required", given)
    if given.get("previous_response_id"):
        raise not_found(str(given["previous_response_id"]))
    if given.get("background"):
        raise not_emulated("background responses are")
    chat = {name: given[name] for name in _COPIED if name in given}
    instructions = given.get("instructions")
    chat["messages"] = [{"role": "system", "content": instructions}] if instructions else []
    chat["messages"] += _messages(given["input"])
    if given.get("max_output_tokens") is not None:
        chat["max_tokens"] = given["max_output_tokens"]
    reasoning = given.get("reasoning")
    if isinstance(reasoning, dict) and reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]
    return chat | _format(given.get("text")) | _tools(given)


def not_found(response_id: str) -> Rejection:
    """No such response: nothing is stored."""
    return Rejection(404, "invalid_request_error", f"Response with id '{response_id}' not found.", "response_id")


def _messages(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise schema_error(("input", "str"), "string_type", "Input should be a valid string", value)
    return [message for index, item in enumerate(value) for message in _item(index, item)]


def _item(index: int, item: Any) -> list[dict[str, Any]]:
    if not isinstance(item, dict):
        raise schema_error(("input", index), "dict_type", "Input should be a valid dictionary", item)
    kind = item.get("type", "message")
    if kind == "message":
        content = item.get("content")
        content = [_part(part) for part in content] if isinstance(content, list) else content
        return [{"role": item.get("role"), "content": content}]
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
        return [
            {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "type": "function", "function": function}]}
        ]
    if kind == "function_call_output":
        return [{"role": "tool", "tool_call_id": item.get("call_id"), "content": str(item.get("output", ""))}]
    if kind == "reasoning":
        return []
    raise not_emulated(f"input items of type {kind} are")


def _part(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text")}
    return {"type": "image_url", "image_url": {"url": part.get("image_url")}} if kind == "input_image" else part


def _format(text: Any) -> dict[str, Any]:
    wanted = text.get("format") if isinstance(text, dict) else None
    if not isinstance(wanted, dict) or wanted.get("type") in (None, "text"):
        return {}
    if wanted["type"] == "json_schema":
        schema = {name: wanted[name] for name in ("name", "schema", "strict") if name in wanted}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": wanted["type"]}}


def _tools(given: Mapping[str, Any]) -> dict[str, Any]:
    tools = given.get("tools")
    if not tools:
        return {}
    if not isinstance(tools, list) or not all(isinstance(t, dict) and t.get("type") == "function" for t in tools):
        raise not_emulated("tools other than functions are")
    functions = [{name: t[name] for name in ("name", "description", "parameters") if name in t} for t in tools]
    choice = given.get("tool_choice", "auto")
    if isinstance(choice, dict):
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    return {"tools": [{"type": "function", "function": f} for f in functions], "tool_choice": choice}


class ResponsesFormat:
    """Typed events, or one response object.

    Args:
        given: the request as it came; its settings are repeated in the answer.
    """

    broken = b'event: response.output_text.delta\ndata: {"type":\n\n'

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._number = 0
        self._items = 0
        self._open: tuple[str, str] | None = None  # kind and text so far

    def pieces(self, job: Job, index: int) -> list[Piece]:
        return [piece for piece in chat_pieces(job, index) if not piece.delta.get("tool_calls")]

    def preamble(self, job: Job) -> bytes:
        begun = self._response(job, "in_progress", [], None)
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def piece(self, job: Job, index: int, piece: Piece, so_far: int) -> bytes:
        return b"".join(self._delta(job, piece.delta))

    def ending(self, job: Job) -> list[bytes]:
        last = carried(job, 0, self.pieces(job, 0))
        events = [*(self._delta(job, last.delta) if last else ()), *self._closed(job)]
        for call in _calls(job):
            at = self._items
            self._items += 1
            events.append(self._event("response.output_item.added", output_index=at, item={**call, "arguments": ""}))
            name = {"item_id": call["id"], "output_index": at}
            events.append(self._event("response.function_call_arguments.delta", delta=call["arguments"], **name))
            events.append(self._event("response.function_call_arguments.done", arguments=call["arguments"], **name))
            events.append(self._event("response.output_item.done", output_index=at, item=call))
        whole = self.whole(job)
        return [*events, self._event(f"response.{whole['status']}", response=whole)]

    def error(self, text: str) -> list[bytes]:
        return [self._event("error", code="server_error", message=text, param=None)]

    def whole(self, job: Job) -> dict[str, Any]:
        text, reasoning = said_apart(job, 0)
        output = [_item_of(job, "reasoning", reasoning)] if reasoning else []
        output += [_item_of(job, "message", text)] if text else []
        usage = {
            "input_tokens": job.frame.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": job.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": job.reasoning_tokens},
            "total_tokens": job.frame.prompt_tokens + job.completion_tokens,
        }
        status = "incomplete" if job.finish_reason(0) in ("length", "abort") else "completed"
        return self._response(job, status, [*output, *_calls(job)], None if job.fault_name == "no_usage" else usage)

    def _response(self, job: Job, status: str, output: Sequence[Any], usage: Any) -> dict[str, Any]:
        given = self._given
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": job.frame.id,
            "created_at": job.frame.created,
            "incomplete_details": reason,
            "instructions": given.get("instructions"),
            "metadata": given.get("metadata"),
            "model": job.frame.model,
            "object": "response",
            "output": list(output),
            "parallel_tool_calls": given.get("parallel_tool_calls", True),
            "temperature": given.get("temperature", 1.0),
            "tool_choice": given.get("tool_choice", "auto"),
            "tools": given.get("tools") or [],
            "top_p": given.get("top_p", 1.0),
            "background": False,
            "max_output_tokens": job.limit,
            "previous_response_id": None,
            "reasoning": given.get("reasoning"),
            "service_tier": "auto",
            "status": status,
            "text": given.get("text"),
            "truncation": "disabled",
            "usage": usage,
            "user": given.get("user"),
        }

    def _delta(self, job: Job, delta: Mapping[str, Any]) -> list[bytes]:
        thought = delta.get("reasoning") or delta.get("reasoning_content")
        kind, text = ("reasoning", thought) if thought else ("message", delta.get("content") or "")
        events = self._opened(job, kind)
        so_far = self._open[1] if self._open else ""
        self._open = (kind, so_far + text)
        return [*events, self._event(f"response.{_PARTS[kind]}.delta", delta=text, **self._place(job, kind))]

    def _opened(self, job: Job, kind: str) -> list[bytes]:
        if self._open and self._open[0] == kind:
            return []
        events = self._closed(job)
        self._open = (kind, "")
        item = {**_item_of(job, kind, ""), "content": [], "status": "in_progress"}
        return [
            *events,
            self._event("response.output_item.added", output_index=self._items, item=item),
            self._event("response.content_part.added", part=_part_of(kind, ""), **self._place(job, kind)),
        ]

    def _closed(self, job: Job) -> list[bytes]:
        if self._open is None:
            return []
        kind, text = self._open
        place, at = self._place(job, kind), self._items
        self._open = None
        self._items += 1
        return [
            self._event(f"response.{_PARTS[kind]}.done", text=text, **place),
            self._event("response.content_part.done", part=_part_of(kind, text), **place),
            self._event("response.output_item.done", output_index=at, item=_item_of(job, kind, text)),
        ]

    def _place(self, job: Job, kind: str) -> dict[str, Any]:
        return {"item_id": _item_id(job, kind), "output_index": self._items, "content_index": 0}

    def _event(self, event_type: str, /, **more: Any) -> bytes:
        body = {"type": event_type, "sequence_number": self._number, **more}
        self._number += 1
        return f"event: {event_type}\ndata: ".encode() + json_bytes(body) + b"\n\n"


_PARTS: Mapping[str, str] = {"reasoning": "reasoning_text", "message": "output_text"}


def _item_id(job: Job, kind: str) -> str:
    return f"{'rs' if kind == 'reasoning' else 'msg'}_{job.frame.id.removeprefix('resp_')}"


def _part_of(kind: str, text: str) -> dict[str, Any]:
    part: dict[str, Any] = {"text": text, "type": _PARTS[kind]}
    return part if kind == "reasoning" else {"annotations": [], **part, "logprobs": None}


def _item_of(job: Job, kind: str, text: str) -> dict[str, Any]:
    item: dict[str, Any] = {"id": _item_id(job, kind), "content": [_part_of(kind, text)], "type": kind}
    if kind == "reasoning":
        return {**item, "summary": [], "encrypted_content": None, "status": None}
    return {**item, "role": "assistant", "status": "completed"}


def _calls(job: Job) -> list[dict[str, Any]]:
    calls: Sequence[ToolUse] = job.answers[0].tool_calls
    return [
        {
            "arguments": arguments_text(call.arguments),
            "call_id": call_id.replace("chatcmpl-tool-", "call_"),
            "name": call.name,
            "type": "function_call",
            "id": call_id.replace("chatcmpl-tool-", "fc_"),
            "status": "completed",
        }
        for call, call_id in zip(calls, job.call_ids(0), strict=True)
    ]
