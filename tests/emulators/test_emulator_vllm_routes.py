"""vLLM's names, completions, token routes, prefix cache and the two younger dialects, over real sockets."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from emulator_wire import WEATHER_TOOL, Answered, ask, user

from memos_llm.emulators import VllmEmulator, expected

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
MODEL = "org/Plain-1B"


@pytest.fixture
async def emu() -> AsyncIterator[VllmEmulator]:
    async with VllmEmulator(models=[MODEL, "alias"], loras=["sql"]) as emulator:
        yield emulator


def raw(text: str) -> list[dict[str, Any]]:
    return [{"role": "raw", "content": text}]


# -- names


async def test_adapters_are_listed_under_their_parent_and_answer_by_name(emu: VllmEmulator) -> None:
    cards = (await ask(emu.url, "GET", "/v1/models")).json["data"]
    assert [(c["id"], c["parent"], c["max_model_len"]) for c in cards] == [
        (MODEL, None, 40960),
        ("alias", None, 40960),
        ("sql", MODEL, None),
    ]
    for asked, shown in (("sql", "sql"), ("alias", MODEL), (None, MODEL), ("", MODEL)):
        for path in (CHAT, TEXT):
            got = await ask(emu.url, "POST", path, {"model": asked, "messages": user("x"), "prompt": "x"})
            assert got.json["model"] == shown
    missing = await ask(emu.url, "POST", TEXT, model="ghost", prompt="x")
    assert (missing.status, missing.json["error"]["param"]) == (404, "model")


# -- completions


async def test_a_streamed_completion_has_vllm_s_chunks(emu: VllmEmulator) -> None:
    nulls = {"logprobs": None, "stop_reason": None, "prompt_token_ids": None, "token_ids": None}
    for counted in (False, True):
        asked = {"model": MODEL, "prompt": "hi", "stream": True, "stream_options": {"include_usage": counted}}
        got = await ask(emu.url, "POST", TEXT, asked)
        first, finish = got.events[0], next(e for e in got.events if e["choices"][0]["finish_reason"])
        assert first["choices"] == [{"index": 0, "text": first["choices"][0]["text"], "finish_reason": None, **nulls}]
        assert "usage" not in first
        assert ("system_fingerprint" in finish) is not counted
        if counted:
            assert list(got.events[-2])[-3:] == ["choices", "usage", "system_fingerprint"]


async def test_prompts_of_every_kind_have_choices_in_order(emu: VllmEmulator) -> None:
    ids = [(await ask(emu.url, "POST", "/tokenize", prompt=text)).json["tokens"] for text in ("one two", "three")]
    said = [expected("vllm", raw(text), max_tokens=16).text for text in ("one two", "three")]
    for prompt, texts in (("one two", said[:1]), (["one two", "three"], said), (ids[0], said[:1]), (ids, said)):
        got = await ask(emu.url, "POST", TEXT, prompt=prompt)
        assert [c["text"] for c in got.json["choices"]] == texts
    twice = await ask(emu.url, "POST", TEXT, prompt=["a", "b"], n=2)
    assert [c["index"] for c in twice.json["choices"]] == [0, 1, 2, 3]
    assert twice.json["choices"][3]["text"] == expected("vllm", raw("b"), max_tokens=16, choice=1).text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, None),
        ({"prompt": ["a", ""]}, None),
        ({"prompt": [[]]}, None),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "suffix": ""}, "suffix"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": {"a": 1}}, "body.prompt"),
    ],
)
async def test_completions_that_are_refused(emu: VllmEmulator, body: dict[str, Any], param: str | None) -> None:
    got = await ask(emu.url, "POST", TEXT, body)
    assert (got.status, got.json["error"]["param"]) == (400, param)


async def test_logprobs_of_completions_are_arrays_with_the_end_token(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", TEXT, prompt="hi there", logprobs=2, echo=True, max_tokens=None)
    choice = got.json["choices"][0]
    shown = choice["logprobs"]
    assert choice["text"].startswith("hi there")
    assert shown["tokens"][:2] == ["hi", " there"]
    assert shown["tokens"][-1] == "<|im_end|>"
    assert "".join(shown["tokens"][:-1]) == choice["text"]
    assert (shown["token_logprobs"][0], shown["top_logprobs"][0]) == (None, None)
    assert len(shown["top_logprobs"][1]) == 2
    assert shown["text_offset"][:3] == [0, 2, 8]
    body = {"prompt": "hi there", "logprobs": 2, "echo": True, "max_tokens": None, "stream": True}
    sent = [e["choices"][0]["logprobs"] for e in (await ask(emu.url, "POST", TEXT, body)).events[:-1]]
    for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs"):
        assert [value for logprobs in sent for value in logprobs[name]] == shown[name]
    only = await ask(emu.url, "POST", TEXT, prompt="hi there", echo=True, max_tokens=0)
    assert only.json["choices"][0]["text"] == "hi there"


async def test_logprobs_of_chat_end_with_the_end_token(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, messages=user("hi"), logprobs=True)
    tokens = [item["token"] for item in got.json["choices"][0]["logprobs"]["content"]]
    assert tokens[-1] == "<|im_end|>"
    assert len(tokens) == got.json["usage"]["completion_tokens"]
    stream = await ask(emu.url, "POST", CHAT, messages=user("hi"), logprobs=True, stream=True)
    shown = [e["choices"][0]["logprobs"] for e in stream.events[1:-1]]
    assert [item["token"] for logprobs in shown for item in logprobs["content"]] == tokens


# -- tokens


async def test_tokens_go_there_and_back(emu: VllmEmulator) -> None:
    text = "Grüße, R&D  team!\n"
    there = (await ask(emu.url, "POST", "/tokenize", prompt=text, return_token_strs=True)).json
    assert (there["count"], "".join(there["token_strs"]), there["max_model_len"]) == (len(there["tokens"]), text, 40960)
    back = await ask(emu.url, "POST", "/detokenize", tokens=there["tokens"])
    assert back.json == {"prompt": text}
    for wrong in ({}, {"tokens": "x"}, {"tokens": ["x"]}):
        assert (await ask(emu.url, "POST", "/detokenize", wrong)).status == 400


async def test_a_conversation_has_as_many_ids_as_usage_says(emu: VllmEmulator) -> None:
    body = {
        "messages": [*user("hello"), {"role": "assistant", "content": "a b"}, *user("weather")],
        "tools": [WEATHER_TOOL],
    }
    counted = (await ask(emu.url, "POST", "/tokenize", body)).json["count"]
    assert (await ask(emu.url, "POST", CHAT, body)).json["usage"]["prompt_tokens"] == counted


# -- the prefix cache


async def metric(emu: VllmEmulator, name: str) -> float:
    page = (await ask(emu.url, "GET", "/metrics")).body.decode()
    found = re.findall(rf'^vllm:{name}{{model_name="[^"]+",engine="0"}} (\S+)$', page, re.MULTILINE)
    return float(found[0])


async def test_a_repeated_prefix_hits_the_cache_of_the_process_that_saw_it(emu: VllmEmulator) -> None:
    long = user(" ".join(f"word{n}" for n in range(200)))
    first = (await ask(emu.url, "POST", CHAT, messages=long)).json
    assert await metric(emu, "prefix_cache_hits_total") == 0
    answer = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    second = (await ask(emu.url, "POST", CHAT, messages=[*long, answer, *user("and?")])).json
    hits = await metric(emu, "prefix_cache_hits_total")
    known = first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
    assert known - 16 < hits <= known
    queries = first["usage"]["prompt_tokens"] + second["usage"]["prompt_tokens"]
    assert await metric(emu, "prefix_cache_queries_total") == queries
    async with VllmEmulator(models=[MODEL]) as other:
        await ask(other.url, "POST", CHAT, messages=long)
        assert await metric(other, "prefix_cache_hits_total") == 0


async def test_http_requests_are_counted_by_route_and_status(emu: VllmEmulator) -> None:
    await ask(emu.url, "POST", CHAT, messages=user("x"))
    await ask(emu.url, "POST", CHAT, {})
    page = (await ask(emu.url, "GET", "/metrics")).body.decode()
    for status in ("2xx", "4xx"):
        assert f'http_requests_total{{handler="{CHAT}",method="POST",status="{status}"}} 1.0' in page
    assert 'handler="/metrics"' not in page


# -- /v1/responses and /v1/messages


def named(got: Answered) -> list[tuple[str, Any]]:
    """Events with their names."""
    blocks = [block.split(b"\n") for block in got.body.strip().split(b"\n\n")]
    return [(name.decode().removeprefix("event: "), json.loads(data.removeprefix(b"data: "))) for name, data in blocks]


async def test_openai_sdk_uses_responses() -> None:
    async with (
        VllmEmulator() as emu,
        openai.AsyncOpenAI(base_url=emu.url + "/v1", api_key="x", max_retries=0) as client,
    ):
        answer = expected("vllm", user("hi"), thinking=True)
        whole = await client.responses.create(model="Qwen/Qwen3-8B", input="hi")
        assert (whole.status, whole.output_text) == ("completed", answer.text)
        assert [item.type for item in whole.output] == ["reasoning", "message"]
        async with client.responses.stream(model="Qwen/Qwen3-8B", input="hi") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert final.output_text == answer.text
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        tool: Any = {"type": "function", **WEATHER_TOOL["function"], "strict": False}
        called = await client.responses.create(model="Qwen/Qwen3-8B", input="weather", tools=[tool])
        assert [item.name for item in called.output if item.type == "function_call"] == ["get_weather"]
        with pytest.raises(openai.NotFoundError, match="resp_1"):
            await client.responses.retrieve("resp_1")


async def test_messages_stream_has_anthropic_s_events(emu: VllmEmulator) -> None:
    body = {"model": "alias", "max_tokens": 50, "messages": user("weather")}
    tools = [{"name": "get_weather", "input_schema": WEATHER_TOOL["function"]["parameters"]}]
    whole = (await ask(emu.url, "POST", MESSAGES, body)).json
    assert (whole["type"], whole["role"], whole["model"], whole["stop_reason"]) == (
        "message",
        "assistant",
        MODEL,
        "end_turn",
    )
    assert whole["content"] == [{"type": "text", "text": expected("vllm", user("weather")).text}]
    events = named(await ask(emu.url, "POST", MESSAGES, {**body, "stream": True}))
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events if name != "content_block_delta"]
    assert names == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    text = "".join(d["delta"]["text"] for name, d in events if name == "content_block_delta")
    assert text == whole["content"][0]["text"]
    called = named(await ask(emu.url, "POST", MESSAGES, {**body, "stream": True, "tools": tools}))
    arguments = "".join(d["delta"]["partial_json"] for name, d in called if name == "content_block_delta")
    assert "city" in json.loads(arguments)
    assert called[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    count = await ask(emu.url, "POST", "/v1/messages/count_tokens", model=MODEL, messages=user("weather"))
    tokens = whole["usage"]["input_tokens"]
    assert count.json == {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}


async def test_messages_errors_are_anthropic_s(emu: VllmEmulator) -> None:
    body = {"model": "ghost", "max_tokens": 5, "messages": user("x")}
    got = await ask(emu.url, "POST", MESSAGES, body)
    assert (got.status, got.json["type"], got.json["error"]["type"]) == (404, "error", "not_found_error")
    emu.faults.set("queue_full:count=1")
    full = await ask(emu.url, "POST", MESSAGES, body)
    assert (full.status, full.json["error"]["type"]) == (503, "overloaded_error")


async def test_a_refused_request_uses_up_no_fault(emu: VllmEmulator) -> None:
    emu.faults.set("cut_mid_stream:count=1")
    assert (await ask(emu.url, "POST", CHAT, {})).status == 400
    assert (await ask(emu.url, "POST", CHAT, messages=user("x"))).ended == "cut"
    assert (await ask(emu.url, "POST", CHAT, messages=user("x"))).ended == "complete"


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
@pytest.mark.parametrize(
    "fault", ["cut_mid_stream", "eof_without_done", "error_mid_stream", "malformed", "engine_dead"]
)
async def test_faults_hit_the_younger_dialects(emu: VllmEmulator, path: str, fault: str) -> None:
    body = {"model": MODEL, "max_tokens": 50, "messages": user("x"), "input": "x", "stream": True}
    emu.faults.set(fault)
    got = await ask(emu.url, "POST", path, body)
    last = b"message_stop" if path == MESSAGES else b"response.completed"
    if fault == "malformed":
        with pytest.raises(ValueError, match="Expecting"):
            named(got)
        return
    assert last not in got.body
    assert got.ended == ("cut" if fault == "cut_mid_stream" else "complete")
    assert (got.status == 500) == (fault == "engine_dead")
    assert (b"event: error" in got.body) == (fault == "error_mid_stream")


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
RESPONSES_BODY: dict[str, Any] = {
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "y"},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": {}}],
    "tool_choice": "auto",
    "text": {"format": {"type": "json_schema", "name": "s", "schema": {}}},
    "reasoning": {"effort": "low"},
    "max_output_tokens": 9,
}
MESSAGES_BODY: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 9,
    "system": [{"type": "text", "text": "s"}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "y"}]},
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": {"properties": {"a": {}}}}],
    "tool_choice": {"type": "tool", "name": "f"},
    "stop_sequences": ["z"],
}
ODD: tuple[Any, ...] = (None, -1.5, "x", [], [1], [{}], {}, {"type": 1})


def changes(value: Any) -> Iterator[Any]:
    """The same body with one odd value in it, at every place and of every kind."""
    yield from ODD
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(members):
        for changed in changes(item):
            copied = value.copy()
            copied[key] = changed
            yield copied


@pytest.mark.parametrize(("path", "body"), [(RESPONSES, RESPONSES_BODY), (MESSAGES, MESSAGES_BODY)])
async def test_any_one_odd_value_is_answered_or_refused_in_json(path: str, body: dict[str, Any]) -> None:
    async with VllmEmulator(models=[MODEL], vision=True) as emu:
        assert (await ask(emu.url, "POST", path, body)).status == 200
        for changed in changes(body):
            got = await ask(emu.url, "POST", path, json.dumps(changed).encode())
            assert got.headers["content-type"] == "application/json", changed
            assert got.status in (200, 400, 404, 422, 501), (changed, got.body)
