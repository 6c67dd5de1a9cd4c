"""Ollama's records as OpenAI's: `/api/chat` to `/v1/chat/completions`, streaming or whole.

Invariants: no finish without `done: true`, no `[DONE]` without a finish; one id and one `created` per answer; a tool
call leaves whole, with an index of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from memos_llm.core.call import Call, Frame, Usage
from memos_llm.core.decoding import FAILURES
from memos_llm.dialects.codecs.decoder import CONTENT, END, FINISH, USAGE, WHOLE, counted, failed, malformed, truncated
from memos_llm.dialects.codecs.openai_request import asks_usage
from memos_llm.dialects.framing import Event
from memos_llm.dialects.jsons import decode_optional

FINISHES: Mapping[str, str] = {"length": "length"}
"""`done_reason` → finish reason; any other is `stop`, or `tool_calls` where there were some."""

_NS = 1_000_000_000


class _Function(Struct):
    name: str = ""
    arguments: Raw = Raw(b"{}")


class _Call(Struct):
    id: str = ""
    function: _Function = msgspec.field(default_factory=_Function)


class _Message(Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class _Record(Struct):
    message: _Message | None = None
    done: bool = False
    done_reason: str = ""
    logprobs: list[Any] | None = None
    prompt_eval_count: float | None = None
    eval_count: float | None = None
    error: Any = None


_record = msgspec.json.Decoder(_Record).decode


def _read(data: bytes) -> _Record:
    try:
        return _record(data)
    except FAILURES as error:
        raise malformed("not-json") from error


class OpenAIWriter:
    """One answer. `now_ns`: Unix nanoseconds."""

    def __init__(self, call: Call, now_ns: Callable[[], int]) -> None:
        self._id, self._model = f"chatcmpl-{call.id}", call.model
        self._created = now_ns() // _NS
        self._tells_usage = asks_usage(call)
        self._calls = 0
        self._begun = self._done = False

    def read(self, event: Event) -> Frame | None:
        if event.data is None or self._done:
            return None
        record = _read(event.data)
        if record.error is not None:
            raise failed(record.error)
        chunks = [self._chunk(delta, logprobs=_logprobs(record)) for delta in self._deltas(record.message)]
        bits = CONTENT if chunks else 0
        if not record.done:
            return Frame(_sse(chunks), bits) if chunks else None
        usage = counted(record.prompt_eval_count, record.eval_count)
        self._done = True
        return Frame(_sse(chunks) + self._ending(record, usage), bits | FINISH | END | (USAGE if usage else 0), usage)

    def finish(self) -> Frame | None:
        if not self._done:
            raise truncated()
        return None

    def whole(self, body: bytes) -> Frame:
        """A non-streaming answer."""
        record = _read(body)
        if record.error is not None:
            raise failed(record.error, "error-body")
        if not record.done:
            raise truncated()
        usage = counted(record.prompt_eval_count, record.eval_count)
        choice = {
            "index": 0,
            "message": self._message(record.message or _Message()),
            "logprobs": _logprobs(record),
            "finish_reason": self._finish(record),
        }
        document = self._document("chat.completion", [choice]) | {"usage": _usage(usage)}
        return Frame(msgspec.json.encode(document), WHOLE | (USAGE if usage else 0), usage)

    def _deltas(self, message: _Message | None) -> Sequence[dict[str, Any]]:
        """What a record says, piece by piece; the first one also names the role."""
        if message is None:
            return ()
        deltas: list[dict[str, Any]] = []
        if message.thinking:
            deltas.append({"reasoning": message.thinking})
        if message.content:
            deltas.append({"content": message.content})
        deltas += [{"tool_calls": [call]} for call in self._tool_calls(message)]
        if deltas and not self._begun:
            self._begun = True
            deltas[0] = {"role": "assistant", "content": deltas[0].get("content", ""), **deltas[0]}
        return deltas

    def _message(self, message: _Message) -> dict[str, Any]:
        written: dict[str, Any] = {"role": "assistant", "content": message.content or ""}
        if message.thinking:
            written["reasoning"] = message.thinking
        if calls := self._tool_calls(message):
            written["tool_calls"] = calls
        return written

    def _tool_calls(self, message: _Message) -> list[dict[str, Any]]:
        written = []
        for call in message.tool_calls or ():
            arguments = _object(call.function.arguments)
            written.append(
                {
                    "index": self._calls,
                    "id": call.id or f"call_{self._id[-12:]}_{self._calls}",  # Ollama to 0.12.9 gives none
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": arguments},
                }
            )
            self._calls += 1
        return written

    def _ending(self, record: _Record, usage: Usage | None) -> bytes:
        chunks = [self._chunk({}, finish=self._finish(record))]
        if self._tells_usage:
            chunks.append(self._document("chat.completion.chunk", []) | {"usage": _usage(usage)})
        return _sse(chunks) + b"data: [DONE]\n\n"

    def _finish(self, record: _Record) -> str:
        return FINISHES.get(record.done_reason, "tool_calls" if self._calls else "stop")

    def _chunk(self, delta: dict[str, Any], *, finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._document("chat.completion.chunk", [choice])

    def _document(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices}


def _object(arguments: Raw) -> str:
    """A call's arguments as they came, in a string; none (or null) is an empty object."""
    try:
        return bytes(arguments).decode() if decode_optional(arguments, dict[str, Raw]) else "{}"
    except ValueError as error:  # bytes that are no UTF-8 included
        raise malformed("tool-arguments") from error


def _logprobs(record: _Record) -> dict[str, Any] | None:
    return None if record.logprobs is None else {"content": record.logprobs}


def _usage(usage: Usage | None) -> dict[str, int]:
    """Ollama leaves a count of 0 out."""
    counts = usage or Usage()
    return {
        "prompt_tokens": counts.input_tokens,
        "completion_tokens": counts.output_tokens,
        "total_tokens": counts.input_tokens + counts.output_tokens,
    }


def _sse(chunks: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks)
