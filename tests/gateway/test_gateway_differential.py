"""Odd but valid requests: what is answered at share 0 is answered at share 1, and who answers instead says why."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
from stack import VLLM_MODEL, Stack, open_stack

MODEL = "qwen3:8b"
USER = [{"role": "user", "content": "hi"}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 20).decode()
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALLED = {"function": {"name": "f", "arguments": {"a": 1}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
CHAT, TEXT, NATIVE, GENERATE = "/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": USER},
    TEXT: {"prompt": "hi"},
    NATIVE: {"messages": USER, "stream": False},
    GENERATE: {"prompt": "hi", "stream": False},
}
ODD: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        *({"stream": each} for each in (True, None)),
        *({"tools": [], "tool_choice": each} for each in ("auto", "none", "required")),
        *({"tool_choice": each} for each in ("auto", "none", "required")),
        *({"tools": [TOOL], "tool_choice": each} for each in ("required", "none", None)),
        {"tools": [TOOL], "parallel_tool_calls": False, "stream": True},
        *({"max_tokens": each} for each in (0, -1, None, 10**7)),
        *({"max_completion_tokens": each} for each in (0, 5)),
        *({"temperature": each} for each in (9, -1, None)),
        *({"top_p": each} for each in (0, 2)),
        *({"n": each} for each in (3, 0, None)),
        *({"stop": each} for each in ("", [], ["", "a"], list("abcde"), 5, [1, "b"])),
        *({"seed": each} for each in (-1, 2**63 - 1)),
        *({"metadata": each} for each in ({"a": {"b": 1}}, "x", None)),
        *({"response_format": {"type": each}} for each in ("text", "json_object", "weird")),
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        *({"reasoning_effort": each} for each in ("none", "low", "max", "", None)),
        {"reasoning": {"effort": "none"}},
        {"top_logprobs": 3},
        {"logprobs": True, "top_logprobs": 3},
        *({"stream": True, "stream_options": each} for each in (None, {}, {"include_usage": False})),
        {"stream_options": {"include_usage": True}},
        {"frequency_penalty": 3},
        {"logit_bias": {"5": 1}},
        {"top_k": -5, "min_p": 2, "repetition_penalty": 0},
        {"keep_alive": "5m", "options": {"num_ctx": 100}, "think": False, "unknown": {"x": 1}},
        {"functions": [{"name": "f"}]},
        {"messages": [{"role": "USER", "content": "hi"}]},
        {"messages": [{"content": "hi"}]},
        {"messages": [{"role": "developer", "content": "be brief"}, *USER]},
        {"messages": [*USER, {"role": "tool", "content": "r", "tool_call_id": "nobody's"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": f"data:image/png;base64,{PNG}"}]}
            ]
        },
    ],
    TEXT: [
        *({"prompt": each} for each in ("", None, [""], ["a", "b"])),
        {"prompt": ["a", "b"], "stream": True},
        {"echo": True, "best_of": 2, "logprobs": 2, "n": 2},
        *({"max_tokens": each} for each in (0, None)),
        {"suffix": ""},
        {"stop": list("abcdef")},
        {"temperature": 3},
    ],
    NATIVE: [
        {"messages": []},
        {"messages": None},
        {"messages": [], "keep_alive": 0},
        *({"format": each} for each in ("", "json", None, SCHEMA)),
        *({"think": each} for each in (True, False, "high", "max", None)),
        *({"options": {"num_predict": each}} for each in (-1, -2, 0, 2.7)),
        *({"options": {"stop": each}} for each in ([""], list("abcdef"))),
        {"options": {"temperature": 3, "top_p": 0, "seed": -1, "top_k": -1, "mirostat": 1, "foo": 1, "min_p": None}},
        {"options": {"num_ctx": 100_000}},
        {"tools": []},
        {"tools": [TOOL], "stream": True},
        {"logprobs": True, "top_logprobs": 3},
        {"top_logprobs": 3, "truncate": False, "shift": False, "keep_alive": -1},
        {"messages": [{"Role": "User", "Content": "hi"}]},
        {"messages": [{"role": "", "content": None}]},
        {"messages": [{"role": "user", "content": "hi", "images": [PNG]}]},
        {"messages": [*USER, {"role": "assistant", "tool_calls": [CALLED]}, {"role": "tool", "content": "r"}]},
        {"messages": [*USER, {"role": "tool", "content": "r"}]},
        {"_debug_render_only": True},
    ],
    GENERATE: [
        *({"prompt": each} for each in ("", None)),
        {"prompt": "", "keep_alive": 0},
        {"raw": True, "prompt": "<s>x", "stream": True},
        {"raw": True, "think": True, "images": [PNG], "format": "json"},
        {"template": "{{ .Prompt }}"},
        {"context": [1, 2]},
        {"context": []},
        {"suffix": "", "system": "s", "images": []},
        {"options": {"num_predict": 0}},
    ],
}
NAMES = [
    "QWEN3:8B",
    VLLM_MODEL,
    VLLM_MODEL.lower() + ":latest",
    "alias",
    "ALIAS:latest",
    "llama3.2:3b",
    "library/" + MODEL,
]
REQUESTS = [
    *((path, BODIES[path] | odd | {"model": MODEL}) for path, odds in ODD.items() for odd in odds),
    *((path, body | {"model": name}) for name in NAMES for path, body in BODIES.items()),
]


async def answers(stack: Stack) -> list[httpx.Response]:
    some = asyncio.Semaphore(16)
    async with stack.client() as client:

        async def ask(path: str, body: dict[str, Any]) -> httpx.Response:
            async with some:
                return await client.post(path, json=body)

        return await asyncio.gather(*(ask(path, body) for path, body in REQUESTS))


async def test_what_is_answered_at_share_0_is_answered_at_share_1(tmp_path: Path) -> None:
    models = {MODEL: {"aliases": ["alias"], "vllm": {"name": VLLM_MODEL, "thinking": "enable_thinking"}}}
    off = {"enabled": False}  # so many odd requests are refused at share 1 that the guard would go back
    config = {"models": models | {"llama3.2:3b": {}}, "rollback": off}
    async with open_stack(tmp_path, config=config) as stack:
        before = await answers(stack)
        await stack.shift(1.0)
        after = await answers(stack)
    assert len(REQUESTS) > 130
    moved = 0
    for (path, body), old, new in zip(REQUESTS, before, after, strict=True):
        case = (path, body, old.text, new.text)
        assert (old.status_code, new.status_code) == (200, 200), case
        assert new.headers["content-type"] == old.headers["content-type"], case
        moved += new.headers["x-memos-provider"] == "vllm"
        if new.headers["x-memos-provider"] != "vllm":  # it says why: not offered there, or refused there
            refused = int(new.headers["x-memos-attempts"]) == 2
            assert refused or new.headers["x-memos-reason"] in ("not-offered", "unmapped-model"), case
    assert moved > 70  # and most of it is carried over
