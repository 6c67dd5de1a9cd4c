"""Whatever arrives is answered or refused in the server's words: a request that crashes an emulator shows as text."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulator_wire import SCHEMA, WEATHER_TOOL, Answered, ask
from hypothesis import given
from hypothesis import strategies as st

from memos_llm.emulators import (
    OllamaEmulator,
    OllamaModel,
    VllmEmulator,
    expected,
    golang,
    ollama_requests,
    vllm_requests,
)
from memos_llm.emulators.ollama_requests import Refusal
from memos_llm.emulators.ollama_versions import behaviour
from memos_llm.emulators.vllm_requests import Rejection

NEWEST = behaviour("0.33.0")
HALF = b'"a\\ud800b"'  # a lone surrogate
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


EMBED: dict[str, Any] = {
    "model": "m",
    "input": ["x", "y"],
    "truncate": False,
    "dimensions": 3,
    "keep_alive": "5m",
    "options": {"num_ctx": 512},
}
RESPONSE: dict[str, Any] = {
    "model": "m",
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "reasoning", "encrypted_content": "t"},
        {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
    ],
    "instructions": "s",
    "tools": [{"type": "function", **WEATHER_TOOL["function"]}],
    "reasoning": {"effort": "low"},
    "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}},
    "max_output_tokens": 9,
}
MESSAGE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 20,
    "system": [{"type": "text", "text": "s"}],
    "messages": [
        {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "AA=="}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "get_weather", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "sunny"}]},
    ],
    "tools": [{"name": "get_weather", "input_schema": {"type": "object"}}],
    "thinking": {"type": "enabled", "budget_tokens": 5},
    "output_config": {"effort": "low"},
    "stop_sequences": ["z"],
}
MANAGED: dict[str, Any] = {"model": "m2", "from": "m", "files": {"a": "b"}, "parameters": {}, "stream": False}


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
        ("ollama", "/v1/completions", {**TEXT, "prompt": "x", "suffix": "y", "seed": 1, "top_p": 0}),
        ("ollama", "/v1/responses", RESPONSE),
        ("ollama", "/v1/messages", MESSAGE),
        ("ollama", "/api/embed", EMBED),
        ("ollama", "/api/embeddings", {"model": "m", "prompt": "x", "options": {}, "keep_alive": 1}),
        ("ollama", "/v1/embeddings", {"model": "m", "input": ["x"], "encoding_format": "base64", "dimensions": 3}),
        ("ollama", "/api/show", {"model": "m", "verbose": True, "system": "s", "options": {}}),
        ("vllm", "/v1/chat/completions", OPENAI),
        ("vllm", "/v1/completions", TEXT),
        ("vllm", "/tokenize", {"model": "m", "messages": OPENAI["messages"], "tools": OPENAI["tools"]}),
    ],
)
@pytest.mark.parametrize("one_in", [5, pytest.param(1, marks=pytest.mark.slow)])  # of 16 values: each place meets some
async def test_any_one_odd_value_is_answered_or_refused_in_json(engine: str, path: str, body: Any, one_in: int) -> None:
    model = OllamaModel("m", ("completion", "tools", "thinking", "vision", "insert"))
    emulator = OllamaEmulator(models=[model]) if engine == "ollama" else VllmEmulator(models=["m"], vision=True)
    async with emulator as emu:
        assert (await ask(emu.url, "POST", path, body)).status == 200
        cases = [(at, value) for at in paths(body) for value in ODD][::one_in]
        for some in range(0, len(cases), 64):
            batch = cases[some : some + 64]
            answers = await asyncio.gather(*(ask(emu.url, "POST", path, changed(body, *case)) for case in batch))
            for case, got in zip(batch, answers, strict=True):
                assert _civil(got), (case, got)
        for odd in ODD:
            assert _civil(await ask(emu.url, "POST", path, odd if odd is not None else b"null"))


# -- numbers that would eat the machine

HUGE = 99999999999999999999
GREEDY: list[dict[str, Any]] = [
    {"n": HUGE},
    {"n": "99999999999999999999"},
    {"n": 16384, "ignore_eos": True, "temperature": 1},
    {"best_of": HUGE, "dimensions": HUGE},
    {"logprobs": True, "top_logprobs": HUGE},
    {"logprobs": HUGE, "top_logprobs": None},
    {"max_tokens": HUGE},
    {"max_tokens": 10**400, "max_completion_tokens": 10**400},
    {"n": 10**400, "seed": 10**400, "temperature": 10**400},
    {"seed": "WIDE"},
]
WIDE = b"9" * 5000  # more digits than Python reads
SCHEMAS: list[Any] = [
    {"type": "array", "minItems": HUGE},
    {"type": "array", "minItems": 1000, "items": {"type": "array", "minItems": 1000, "items": {"$ref": "#"}}},
    {"type": "array", "minItems": HUGE, "items": {"const": "x" * 5000}},
    {"type": "string", "minLength": HUGE},
    {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}},
    {"$ref": "#"},
    {"type": "number", "minimum": 10**400, "maximum": -(10**300)},
]


def _asking(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode().replace(b'"WIDE"', WIDE)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A mistake in what follows fails instead of taking the machine down."""
    with Path("/proc/self/statm").open() as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("more", GREEDY)
async def test_a_client_s_number_does_not_decide_how_much_memory_is_taken(more: dict[str, Any]) -> None:
    said = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "temperature": 1}
    for emulator in (OllamaEmulator(models=["m"]), VllmEmulator(models=["m"])):
        paths = ("/v1/chat/completions", "/v1/completions") if emulator.engine == "vllm" else ("/v1/chat/completions",)
        async with emulator as emu:
            for path in paths:
                got = await asyncio.wait_for(ask(emu.url, "POST", path, _asking({"model": "m"} | said | more)), 20)
                assert _civil(got), got


@pytest.mark.usefixtures("little_memory")
async def test_more_than_16384_choices_are_refused_as_vllm_refuses_them() -> None:
    async with VllmEmulator(models=["m"]) as emu:
        for path in ("/v1/chat/completions", "/v1/completions"):
            said = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}
            got = await ask(emu.url, "POST", path, said | {"n": HUGE})
            assert (got.status, got.json["error"]["type"]) == (400, "BadRequestError")
            assert got.json["error"]["message"].startswith(f"n must be at most 16384, got {HUGE}.")
            got = await ask(emu.url, "POST", path, said | {"n": 16384, "ignore_eos": True, "max_tokens": 400})
            assert (got.status, got.json["error"]["type"]) == (501, "NotImplementedError")


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("words", [HUGE, "9" * 5000])
async def test_a_long_answer_ends_with_the_context(words: object) -> None:
    async with VllmEmulator(models=["m"], max_model_len=512, thinking=False) as emu:
        said = {"messages": [{"role": "user", "content": f"words:{words}"}], "max_tokens": 400}
        got = (await ask(emu.url, "POST", "/v1/chat/completions", said)).json
        assert (got["choices"][0]["finish_reason"], got["usage"]["completion_tokens"]) == ("length", 400)
    async with OllamaEmulator(models=[OllamaModel("m", context_length=512)]) as ollama:
        for options in ({}, {"num_predict": HUGE}, {"num_predict": HUGE, "num_ctx": HUGE}, {"num_predict": 1e300}):
            said = {"model": "m", "prompt": f"words:{words}", "raw": True, "stream": False, "options": options}
            got = (await ask(ollama.url, "POST", "/api/generate", said)).json
            assert (got["done_reason"], got["eval_count"]) == ("length", 512)


def test_a_bounded_text_is_the_beginning_of_the_unbounded_one() -> None:
    for stop in ([], ["llama meadow wool"], ["café"], ["nowhere" * 9]):
        for limit in range(1, 40):
            long, short = (
                expected("ollama", [{"role": "raw", "content": f"words:{n}"}], max_tokens=limit, stop=stop)
                for n in (300, 3000)
            )
            whole = expected("ollama", [{"role": "raw", "content": "words:300"}], stop=stop)
            assert long.content == whole.content[:limit]
            assert (len(short.content), short.completion_tokens <= limit) == (len(short.content[:limit]), True)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("schema", SCHEMAS)
async def test_a_schema_does_not_decide_how_much_memory_is_taken(schema: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": schema}}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    plain = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    asked = ({"response_format": wanted}, {"tools": [tool], "messages": [{"role": "user", "content": "tool:f " * 500}]})
    for emulator in (OllamaEmulator(models=["m"]), VllmEmulator(models=["m"])):
        async with emulator as emu:
            for more in asked:
                got = await asyncio.wait_for(ask(emu.url, "POST", "/v1/chat/completions", _asking(plain | more)), 20)
                assert _civil(got), got


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "9" * 5000])
async def test_a_number_that_go_cannot_hold_is_refused(number: str) -> None:
    async with OllamaEmulator(models=["m"]) as emu:
        for body in ('"keep_alive":%s', '"options":{"num_predict":%s}', '"top_logprobs":%s'):
            raw = ('{"model":"m","prompt":"x",' + body % number + "}").encode()
            got = await ask(emu.url, "POST", "/api/generate", raw)
            assert got.status == 400
            assert "cannot unmarshal number" in got.json["error"]
        assert (await ask(emu.url, "POST", "/api/generate", {"model": "m", "keep_alive": 1e300})).status == 200
        assert (await ask(emu.url, "GET", "/api/ps")).status == 200


async def test_bodies_nested_too_deep_are_refused() -> None:
    deep = b'{"model":"m","messages":' + b"[" * 200_000
    async with OllamaEmulator(models=["m"]) as ollama, VllmEmulator(models=["m"]) as vllm:
        for url, path in ((ollama.url, "/api/chat"), (vllm.url, "/v1/chat/completions")):
            assert (await ask(url, "POST", path, deep)).status == 400


def _civil(got: Answered) -> bool:
    kind = got.headers.get("content-type", "")
    return got.ended == "complete" and ("json" in kind or "event-stream" in kind)


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(body: bytes) -> None:
    with contextlib.suppress(Refusal):
        ollama_requests.read_chat(body, NEWEST)
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


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
async def test_vllm_takes_no_lone_surrogate_and_ollama_replaces_it(path: str) -> None:
    """As both were seen to do (vLLM 0.32, Ollama 0.17.4)."""
    prompt = b'"messages":[{"role":"user","content":%b}]' if "chat" in path else b'"prompt":%b'
    async with (
        VllmEmulator(port=0, models=["m"]) as vllm,
        OllamaEmulator(port=0, models=["m"], version="0.17.4") as ollama,
    ):
        refused = await ask(vllm.url, "POST", path, b'{"model":"m",%b}' % (prompt % HALF))
        assert (refused.status, refused.json["error"]["message"][:15]) == (400, "TextEncodeInput")
        unknown = await ask(vllm.url, "POST", path, b'{"model":%b,%b}' % (HALF, prompt % b'"a"'))
        assert (unknown.status, "can't encode character '\\ud800'" in unknown.json["error"]["message"]) == (400, True)
        if path != "/tokenize":
            answered = await ask(ollama.url, "POST", path, b'{"model":"m",%b}' % (prompt % HALF))
            same = await ask(ollama.url, "POST", path, b'{"model":"m",%b}' % (prompt % '"a\ufffdb"'.encode()))
            assert (answered.status, answered.json["choices"]) == (200, same.json["choices"])
