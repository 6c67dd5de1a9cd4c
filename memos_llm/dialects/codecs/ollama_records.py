"""The records of Ollama's answers: keys in its order, empty ones left out (Ollama 0.33 source)."""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from memos_llm.core.call import Wire
from memos_llm.dialects.jsons import go_json


class Function(Struct):
    index: int
    name: str
    arguments: dict[str, Any]


class ToolCall(Struct, omit_defaults=True, kw_only=True):
    id: str = ""
    function: Function


class Alternative(Struct):
    token: str
    logprob: float
    bytes: list[int]


class Logprob(Struct, omit_defaults=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Alternative] = []


class Said(Struct):
    """What one record says."""

    content: str = ""
    thinking: str = ""
    tool_calls: list[ToolCall] = []
    logprobs: list[Logprob] = []


class Ending(Struct):
    """What only the last record says; durations in nanoseconds, counts in tokens."""

    done_reason: str = ""
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


class _Message(Struct, omit_defaults=True):
    role: str
    content: str
    thinking: str = ""
    tool_calls: list[ToolCall] = []


class _ChatRecord(Struct, omit_defaults=True, kw_only=True):
    model: str
    created_at: str
    message: _Message
    done: bool
    done_reason: str = ""
    logprobs: list[Logprob] = []
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0


class _GenerateRecord(Struct, omit_defaults=True, kw_only=True):
    model: str
    created_at: str
    response: str
    thinking: str = ""
    done: bool
    done_reason: str = ""
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    tool_calls: list[ToolCall] = []
    logprobs: list[Logprob] = []


def _chat(model: str, created_at: str, said: Said, done: bool) -> _ChatRecord:
    message = _Message("assistant", said.content, said.thinking, said.tool_calls)
    return _ChatRecord(model=model, created_at=created_at, message=message, done=done, logprobs=said.logprobs)


def _generate(model: str, created_at: str, said: Said, done: bool) -> _GenerateRecord:
    return _GenerateRecord(
        model=model,
        created_at=created_at,
        response=said.content,
        thinking=said.thinking,
        done=done,
        tool_calls=said.tool_calls,
        logprobs=said.logprobs,
    )


_RECORDS: Mapping[Wire, Callable[[str, str, Said, bool], _ChatRecord | _GenerateRecord]] = {
    Wire.OLLAMA_CHAT: _chat,
    Wire.OLLAMA_GENERATE: _generate,
}


def record(wire: Wire, model: str, created_at: str, said: Said, ending: Ending | None = None) -> bytes:
    """One record as JSON, without a line end; the last one if there is an ending."""
    written = _RECORDS[wire](model, created_at, said, ending is not None)
    if ending is not None:
        for name in Ending.__struct_fields__:
            setattr(written, name, getattr(ending, name))
    return go_json(written)
