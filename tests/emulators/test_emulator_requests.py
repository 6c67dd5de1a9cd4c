"""Whatever arrives is answered or refused in the server's words: a request that crashes an emulator shows as text."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from emulator_wire import SCHEMA, WEATHER_TOOL, Answered, ask
from hypothesis import given
from hypothesis import strategies as st

from memos_llm.emulators import OllamaEmulator, OllamaModel, VllmEmulator, golang, ollama_requests, vllm_requests
from memos_llm.emulators.ollama_requests import Refusal
from memos_llm.emulators.vllm_requests import Rejection

ODD: list[Any] = [
    None,
    True,
    1,
    -1,
    2.5,
    "",
    "x",
    [],
    [1],
    ["x"],
    [None],
    [[]],
    [{}],
    {},
    {"type": 1},
    {"function": "x"},
]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
OPENAI: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny", "tool_call_id": "c"},
        {"role": "user", "content": "weather"},
    ],
    "tools": [WEATHER_TOOL],
    "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
    "stream": True,
    "stream_options": {"include_usage": True},
    "stop": ["a"],
    "temperature": 1.0,
    "max_tokens": 20,
    "n": 1,
    "seed": 1,
    "logprobs": True,
    "top_logprobs": 1,
    "reasoning_effort": "low",
    "reasoning": {"effort": "low"},
    "chat_template_kwargs": {"enable_thinking": True},
}
NATIVE_CALL: dict[str, Any] = {"function": {"name": "get_weather", "arguments": {"city": "x"}}}
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "user", "content": "x", "images": ["AA=="]},
        {"role": "assistant", "content": "", "thinking": "t", "tool_calls": [NATIVE_CALL]},
        {"role": "tool", "content": "sunny", "tool_name": "get_weather"},
        {"role": "user", "content": "weather"},
    ],
    "tools": [WEATHER_TOOL],
    "format": SCHEMA,
    "options": {"temperature": 1, "stop": ["a"], "num_predict": 20, "num_ctx": 512, "use_mmap": True},
    "keep_alive": "5m",
    "think": True,
    "top_logprobs": 1,
    "logprobs": True,
    "truncate": True,
}
GENERATE: dict[str, Any] = {
    "model": "m",
    "prompt": "x",
    "suffix": "",
    "system": "s",
    "template": "t",
    "context": [1, 2],
    "images": ["AA=="],
    "options": {},
    "raw": False,
}
TEXT: dict[str, Any] = {"model": "m", "prompt": ["x", "y"], "max_tokens": 5, "stop": "z", "echo": True, "logprobs": 1}


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in members:
        yield from paths(item, (*at, key))


def changed(body: Any, at: tuple[Any, ...], value: Any) -> Any:
    body = copy.deepcopy(body)
    target = body
    for key in at[:-1]:
        target = target[key]
    target[at[-1]] = value
    return body


@pytest.mark.parametrize(
    ("engine", "path", "body"),
    [
        ("ollama", "/api/chat", CHAT),
        ("ollama", "/api/generate", GENERATE),
        ("ollama", "/v1/chat/completions", OPENAI),
        ("vllm", "/v1/chat/completions", OPENAI),
        ("vllm", "/v1/completions", TEXT),
        ("vllm", "/tokenize", {"model": "m", "messages": OPENAI["messages"], "tools": OPENAI["tools"]}),
    ],
)
async def test_any_one_odd_value_is_answered_or_refused_in_json(engine: str, path: str, body: Any) -> None:
    model = OllamaModel("m", ("completion", "tools", "thinking", "vision", "insert"))
    emulator = OllamaEmulator(models=[model]) if engine == "ollama" else VllmEmulator(models=["m"], vision=True)
    async with emulator as emu:
        assert (await ask(emu.url, "POST", path, body)).status == 200
        cases = [(at, value) for at in paths(body) for value in ODD]
        for some in range(0, len(cases), 64):
            batch = cases[some : some + 64]
            answers = await asyncio.gather(*(ask(emu.url, "POST", path, changed(body, *case)) for case in batch))
            for case, got in zip(batch, answers, strict=True):
                assert _civil(got), (case, got)
        for odd in ODD:
            assert _civil(await ask(emu.url, "POST", path, odd if odd is not None else b"null"))


def _civil(got: Answered) -> bool:
    kind = got.headers.get("content-type", "")
    return got.ended == "complete" and ("json" in kind or "event-stream" in kind)


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(body: bytes) -> None:
    with contextlib.suppress(Refusal):
        ollama_requests.read_chat(body)
    with contextlib.suppress(Rejection):
        vllm_requests.read_json(body, "application/json")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_go_json_round_trips(value: Any) -> None:
    written = golang.dumps(value)
    assert not set(b"<>&") & set(written)
    assert golang.loads(written) == value
