"""What the requests of the parity tables are made of."""

import base64
from typing import Any

from real_servers import CHAT_MODEL, EMBED_MODEL

LEFT_OUT: Any = object()
"""As a field's value: leave the field out."""

PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
        "0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
    )
).decode()
USER: list[dict[str, Any]] = [{"role": "user", "content": "Tell me about os.path and import"}]
SYSTEM = [{"role": "system", "content": "You are terse."}, *USER]
TURNS = [*SYSTEM, {"role": "assistant", "content": "It is a module."}, {"role": "user", "content": "More?"}]
LONG = "os path import " * 1500
UNICODE = "Grüße 🎉 <b>&</b> \u2028"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": "string", "description": "City"}},
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
}
_ROME: dict[str, Any] = {"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
_NATIVE_CALLS = [
    {"id": "call_a1", "function": {"index": 0, "name": "get_weather", "arguments": {"city": "Rome"}}},
    {"id": "call_a2", "function": {"index": 1, "name": "get_weather", "arguments": {"city": "Bonn"}}},
]
_OPENAI_CALL = {
    "id": "call_a1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'},
}
CALLED = [
    *USER,
    {"role": "assistant", "content": "", "tool_calls": [_ROME]},
    {"role": "tool", "content": "sunny", "tool_name": "get_weather"},
    {"role": "user", "content": "and?"},
]
CALLED_BY_ID = [
    *USER,
    {"role": "assistant", "content": "", "tool_calls": _NATIVE_CALLS},
    {"role": "tool", "content": "sunny", "tool_name": "get_weather", "tool_call_id": "call_a1"},
    {"role": "tool", "content": "rain", "tool_call_id": "call_a2"},
]
CALLED_OPENAI = [
    *USER,
    {"role": "assistant", "content": None, "tool_calls": [_OPENAI_CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "call_a1"},
    {"role": "user", "content": "and?"},
]


def said(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return [*USER, *messages]


def user(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **more}]


def _filled(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if value is not LEFT_OUT}


def _options(options: dict[str, Any]) -> dict[str, Any]:
    return _filled({"temperature": 0, "num_predict": 12, "repeat_penalty": 1.0, **options})


def chat(messages: Any = USER, stream: Any = False, options: dict[str, Any] | None = None, **more: Any) -> Any:
    """A body for /api/chat."""
    return _filled(
        {"model": CHAT_MODEL, "messages": messages, "stream": stream, "options": _options(options or {}), **more}
    )


def generate(prompt: Any = "def main(", stream: Any = False, options: dict[str, Any] | None = None, **more: Any) -> Any:
    """A body for /api/generate."""
    return _filled(
        {"model": CHAT_MODEL, "prompt": prompt, "stream": stream, "options": _options(options or {}), **more}
    )


def openai(messages: Any = USER, **more: Any) -> Any:
    """A body for /v1/chat/completions."""
    return _filled({"model": CHAT_MODEL, "messages": messages, "temperature": 0, "max_tokens": 12, **more})


def complete(prompt: Any = "def main(", **more: Any) -> Any:
    """A body for /v1/completions."""
    return _filled({"model": CHAT_MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 12, **more})


def embed(given: Any = "os path import", **more: Any) -> Any:
    """A body for /api/embed and /v1/embeddings."""
    return _filled({"model": EMBED_MODEL, "input": given, **more})
