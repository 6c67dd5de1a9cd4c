"""What the typed face returns and takes: the shapes a pipeline sees."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from msgspec import Struct

from memos_llm.core.call import Usage

Message = Mapping[str, Any]
Chat = Sequence[Message]
"""OpenAI-style messages: `{"role": "user", "content": "…"}`, tool calls and tool results included."""


class ToolCall(Struct, frozen=True):
    """A call the model wants made. `arguments` is the JSON text exactly as the model wrote it."""

    id: str
    name: str
    arguments: str


class Options(TypedDict, total=False):
    """Sampling and shaping options, common to every provider. `extra` goes into the body as it is."""

    model: str
    top_p: float
    top_k: int
    min_p: float
    seed: int
    stop: str | Sequence[str]
    frequency_penalty: float
    presence_penalty: float
    tools: Sequence[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    response_format: Mapping[str, Any]
    reasoning_effort: str
    extra: Mapping[str, Any]


class LLMResponse(Struct, frozen=True, kw_only=True):
    """A whole answer.

    Attributes:
        finish_reason: `stop`, `length`, `tool_calls`, …
        provider, model: who served it, and its own name for the model.
        arm: `baseline` or `candidate` as assigned; empty when a provider was called directly.
        ttft_s: None unless streamed. duration_s: acceptance to the last byte.
        raw: the back end's JSON document.
    """

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""
    usage: Usage | None = None
    provider: str = ""
    model: str = ""
    arm: str = ""
    attempts: int = 1
    request_id: str = ""
    ttft_s: float | None = None
    duration_s: float = 0.0
    raw: Mapping[str, Any] = {}


class StreamChunk(Struct, frozen=True, kw_only=True):
    """A piece of an answer. Tool calls arrive whole; `finish_reason` and `usage` come on the last chunk only."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""
    usage: Usage | None = None


class EmbeddingResponse(Struct, frozen=True, kw_only=True):
    """`vectors[i]` belongs to input i."""

    vectors: list[list[float]]
    provider: str = ""
    model: str = ""
    usage: Usage | None = None
    request_id: str = ""
