from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from emulator_wire import SCHEMA, WEATHER_TOOL, Answered, ask, until, user

from memos_llm.emulators import VllmEmulator, expected

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MODEL = "Qwen/Qwen3-8B"


@pytest.fixture
async def emu() -> AsyncIterator[VllmEmulator]:
    async with VllmEmulator(models=[MODEL, "alias"], thinking=False) as emulator:
        yield emulator


def chunk(got: Answered, choice: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    first = got.events[0]
    start = {k: first[k] for k in ("id", "object", "created", "model")}
    return {**start, "choices": [] if choice is None else [choice], **more}


# -- exact shapes


async def test_stream_is_role_chunk_content_finish_usage_done(emu: VllmEmulator) -> None:
    got = await ask(
        emu.url, "POST", CHAT, model="alias", messages=user("hi"), stream=True, stream_options={"include_usage": True}
    )
    answer = expected("vllm", user("hi"))
    assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert got.headers["server"] == "uvicorn"
    role, first, *_, finish, usage, done = got.events
    assert role["model"] == MODEL
    assert role["object"] == "chat.completion.chunk"
    nothing = {"logprobs": None, "finish_reason": None}
    assert role == chunk(
        got,
        {"index": 0, "delta": {"role": "assistant", "content": ""}, **nothing},
        prompt_token_ids=None,
        prompt_text=None,
    )
    assert first == chunk(
        got, {"index": 0, "delta": {"content": "vLLM"}, **nothing, "token_ids": None}, kv_transfer_params=None
    )
    last = {"logprobs": None, "finish_reason": "stop", "stop_reason": None, "token_ids": None, "weight_versions": None}
    assert finish == chunk(got, {"index": 0, "delta": {"content": ""}, **last}, kv_transfer_params=None)
    counts = {
        "prompt_tokens": answer.prompt_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        "completion_tokens": answer.completion_tokens,
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert usage == chunk(got, None, usage=counts, system_fingerprint=usage["system_fingerprint"])
    assert usage["system_fingerprint"].startswith("vllm-0.33.0-")
    assert done == "[DONE]"
    assert "".join(e["choices"][0]["delta"]["content"] for e in got.events[:-2]) == answer.text


async def test_without_include_usage_the_fingerprint_is_on_the_finish_chunk(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, messages=user("hi"), stream=True)
    assert "system_fingerprint" in got.events[-2]
    assert not any("usage" in e for e in got.events[:-1])


async def test_0_32_has_no_transfer_or_weight_nulls() -> None:
    async with VllmEmulator(version="0.32.0", thinking=False) as emu:
        got = await ask(emu.url, "POST", CHAT, messages=user("hi"), stream=True)
        assert (await ask(emu.url, "GET", "/version")).json == {"version": "0.32.0"}
    assert b"kv_transfer_params" not in got.body
    assert b"weight_versions" not in got.body


async def test_whole_answer_has_the_explicit_nulls(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, {"messages": user("hi")}, {"X-Request-Id": "abc"})
    assert got.headers["content-type"] == "application/json"
    assert (got.json["id"], got.json["model"]) == ("chatcmpl-abc", MODEL)
    assert got.json["choices"][0] == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": expected("vllm", user("hi")).text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        },
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": None,
        "routed_experts": None,
    }


async def test_limit_carries_the_last_delta_on_the_finish_chunk(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, messages=user("hi"), stream=True, max_completion_tokens=2, max_tokens=9)
    choices = [e["choices"][0] for e in got.events[:-1]]
    assert [c["delta"]["content"] for c in choices] == ["", "vLLM", " replies"]
    assert choices[-1]["finish_reason"] == "length"


async def test_finish_chunk_can_carry_the_last_delta() -> None:
    async with VllmEmulator(thinking=False, finish_carries_last=True) as emu:
        got = await ask(emu.url, "POST", CHAT, messages=user("hi"), stream=True)
    finish = got.events[-2]["choices"][0]
    assert (finish["delta"]["content"], finish["finish_reason"]) == (".", "stop")


async def test_stop_string_is_reported_as_stop_reason(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, messages=user("hi"), stop=":")
    choice = got.json["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ":")


async def test_tool_call_comes_in_fragments(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, messages=user("weather"), stream=True, tools=[WEATHER_TOOL])
    deltas = [e["choices"][0]["delta"] for e in got.events[1:-2]]
    assert all(d["content"] is None for d in deltas)
    head, *pieces = [d["tool_calls"][0] for d in deltas]
    assert (head["index"], head["type"], head["function"]["name"]) == (0, "function", "get_weather")
    assert head["id"].startswith("chatcmpl-tool-")
    assert all(set(p) == {"index", "function"} and set(p["function"]) == {"arguments"} for p in pieces)
    arguments = json.loads("".join(p["function"]["arguments"] for p in pieces))
    assert arguments == expected("vllm", user("weather"), tools=[WEATHER_TOOL]).tool_calls[0].arguments
    assert got.events[-2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_whole_tool_call_has_null_content_and_named_choice_ends_with_stop(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, messages=user("weather"), tools=[WEATHER_TOOL])
    message = got.json["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["type"] == "function"
    choice = {"type": "function", "function": {"name": "get_weather"}}
    named = await ask(emu.url, "POST", CHAT, messages=user("x"), tools=[WEATHER_TOOL], tool_choice=choice)
    assert named.json["choices"][0]["finish_reason"] == "stop"
    assert named.json["choices"][0]["message"]["tool_calls"]


async def test_reasoning_is_a_field_with_a_parser_and_think_text_without() -> None:
    answer = expected("vllm", user("hi"), thinking=True)
    async with VllmEmulator() as emu:
        got = await ask(emu.url, "POST", CHAT, messages=user("hi"), stream=True)
        thoughts = [e["choices"][0]["delta"].get("reasoning", "") for e in got.events[:-1]]
        assert "".join(thoughts) == answer.thinking_text
        hidden = await ask(emu.url, "POST", CHAT, messages=user("hi"), include_reasoning=False)
        assert hidden.json["choices"][0]["message"]["reasoning"] is None
        for off in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
            plain = await ask(emu.url, "POST", CHAT, {"messages": user("hi"), **off})
            assert plain.json["choices"][0]["message"]["reasoning"] is None
    async with VllmEmulator(reasoning_parser=None) as emu:
        whole = await ask(emu.url, "POST", CHAT, messages=user("hi"))
        content = whole.json["choices"][0]["message"]["content"]
        assert content == f"<think>\n{answer.thinking_text}\n</think>\n\n{answer.text}"
        got = await ask(emu.url, "POST", CHAT, messages=user("hi"), stream=True)
        assert "".join(e["choices"][0]["delta"]["content"] for e in got.events[:-1]) == content


async def test_completions_default_to_16_tokens(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", TEXT, prompt="words:50", stream=True, stream_options={"include_usage": True})
    text = "".join(e["choices"][0]["text"] for e in got.events[:-2])
    answer = expected("vllm", [{"role": "raw", "content": "words:50"}], max_tokens=16)
    assert text == answer.text
    assert got.events[-2]["usage"]["completion_tokens"] == 16
    assert got.events[-3]["choices"][0]["finish_reason"] == "length"
    assert got.events[0]["id"].startswith("cmpl-")
    null = await ask(emu.url, "POST", TEXT, prompt="words:50", max_tokens=None, stream=True)
    assert null.events[-2]["choices"][0]["finish_reason"] == "length"
    two = await ask(emu.url, "POST", TEXT, prompt=["a", "b"], echo=True)
    assert [c["text"][0] for c in two.json["choices"]] == ["a", "b"]


async def test_n_and_logprobs(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, messages=user("hi"), n=2, logprobs=True, top_logprobs=2)
    first, second = got.json["choices"]
    assert first["message"]["content"] != second["message"]["content"]
    one = first["logprobs"]["content"][0]
    assert (one["token"], len(one["top_logprobs"])) == ("vLLM", 2)


async def test_ignore_eos_generates_up_to_the_limit(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, messages=user("hi"), ignore_eos=True, max_tokens=100)
    assert got.json["usage"]["completion_tokens"] == 100


# -- errors

SCHEMA_ERROR, LATER_ERROR = "Bad Request", "BadRequestError"
HI: dict[str, Any] = {"messages": user("hi")}


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        ({**HI, "temperature": "hot"}, SCHEMA_ERROR, "body.temperature"),
        ({}, SCHEMA_ERROR, "body.messages"),
        (b'{"messages": [}', SCHEMA_ERROR, "body.14"),
        ({"messages": [{"role": "user", "content": None}]}, SCHEMA_ERROR, "body.messages.0.content"),
        ({"messages": [{"role": "system", "content": None}]}, SCHEMA_ERROR, "body.messages.0.content"),
        ({"messages": [{"content": "x"}]}, SCHEMA_ERROR, "body.messages.0.role"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]},
            SCHEMA_ERROR,
            "body.messages.0.tool_calls.0.function.arguments",
        ),
        ({**HI, "stop": list("abcde")}, SCHEMA_ERROR, "body.stop"),
        (
            {**HI, "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            SCHEMA_ERROR,
            "body.response_format.json_schema.name",
        ),
        ({**HI, "reasoning_effort": "huge"}, SCHEMA_ERROR, "body.reasoning_effort"),
        ({**HI, "stream_options": {"include_usage": True}}, LATER_ERROR, "stream_options"),
        ({**HI, "top_logprobs": 2}, LATER_ERROR, "top_logprobs"),
        ({**HI, "tools": []}, LATER_ERROR, "tools"),
        ({**HI, "tool_choice": "auto"}, LATER_ERROR, "tool_choice"),
        ({**HI, "temperature": 2.5}, LATER_ERROR, "temperature"),
        ({**HI, "temperature": -1}, LATER_ERROR, "temperature"),
        ({**HI, "top_p": 0}, LATER_ERROR, "top_p"),
        ({**HI, "max_tokens": 0}, LATER_ERROR, "max_tokens"),
        ({**HI, "max_completion_tokens": 0}, LATER_ERROR, "max_tokens"),
        ({**HI, "max_tokens": 1_000_000}, LATER_ERROR, "max_tokens"),
        ({"messages": user("x " * 41000)}, LATER_ERROR, "input_tokens"),
        ({**HI, "min_p": 2}, LATER_ERROR, None),
        ({**HI, "presence_penalty": 3}, LATER_ERROR, None),
        ({**HI, "repetition_penalty": 0}, LATER_ERROR, None),
        ({**HI, "top_k": -2}, LATER_ERROR, None),
        ({**HI, "n": 0}, LATER_ERROR, None),
        ({**HI, "n": 2, "temperature": 0}, LATER_ERROR, None),
        ({**HI, "stop": [""]}, LATER_ERROR, None),
        ({**HI, "chat_template": "x"}, LATER_ERROR, None),
        ({**HI, "continue_final_message": True}, LATER_ERROR, None),
    ],
)
async def test_chat_rejections(emu: VllmEmulator, body: Any, kind: str, param: str | None) -> None:
    got = await ask(emu.url, "POST", CHAT, body)
    error = got.json["error"]
    assert (got.status, error["type"], error["param"], error["code"]) == (400, kind, param, 400)
    assert ("(parameter=" in error["message"]) == (kind == LATER_ERROR and param is not None)
    if kind == SCHEMA_ERROR:
        assert re.match(r"\d validation errors?:\n  {'type': ", error["message"])


async def test_null_is_unset_and_assistants_may_be_null(emu: VllmEmulator) -> None:
    messages = [*user("a"), {"role": "assistant", "content": None}, {"role": "user"}]
    nulls = dict.fromkeys(("temperature", "top_p", "max_tokens", "stop", "tools", "stream", "n", "response_format"))
    got = await ask(emu.url, "POST", CHAT, {"messages": messages, "guided_json": {}, "unknown": 1, **nulls})
    assert got.status == 200


async def test_other_content_type_is_400(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, HI, {"Content-Type": "text/plain"})
    assert got.status == 400
    assert got.json["error"]["type"] == "Bad Request"
    assert got.json["error"]["param"] is None


async def test_unknown_model_route_and_method(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, model="ghost", messages=user("x"))
    error = got.json["error"]
    assert (got.status, error["type"], error["param"], error["code"]) == (404, "NotFoundError", "model", 404)
    assert "`ghost`" in error["message"]
    assert "alias" in error["message"]
    missing = await ask(emu.url, "POST", "/v1/embeddings", input="x")
    assert (missing.status, missing.json) == (404, {"detail": "Not Found"})
    wrong = await ask(emu.url, "GET", CHAT)
    assert (wrong.status, wrong.json, wrong.headers["allow"]) == (405, {"detail": "Method Not Allowed"}, "POST")


async def test_api_key_guards_v1_only_and_the_error_is_a_string() -> None:
    async with VllmEmulator(api_key="secret") as emu:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": "secret"}):
            got = await ask(emu.url, "POST", CHAT, HI, headers)
            assert (got.status, got.json) == (401, {"error": "Unauthorized"})
        assert (await ask(emu.url, "POST", CHAT, HI, {"Authorization": "Bearer secret"})).status == 200
        for path in ("/health", "/metrics", "/version", "/load"):
            assert (await ask(emu.url, "GET", path)).status == 200
        assert (await ask(emu.url, "POST", "/tokenize", prompt="x")).status == 200


async def test_tools_need_the_server_flag() -> None:
    async with VllmEmulator(enable_auto_tool_choice=False) as emu:
        auto = await ask(emu.url, "POST", CHAT, messages=user("x"), tools=[WEATHER_TOOL])
        assert auto.status == 400
        assert "--enable-auto-tool-choice" in auto.json["error"]["message"]
        forced = await ask(emu.url, "POST", CHAT, messages=user("x"), tools=[WEATHER_TOOL], tool_choice="required")
        assert forced.status == 400
        none = await ask(emu.url, "POST", CHAT, messages=user("x"), tools=[WEATHER_TOOL], tool_choice="none")
        assert none.status == 200


async def test_images_need_a_vision_model() -> None:
    def image(url: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]

    data = image("data:image/png;base64,iVBORw0KGgo=")
    async with VllmEmulator(thinking=False) as blind, VllmEmulator(models=["Qwen/Qwen2.5-VL-7B"]) as seeing:
        assert (await ask(blind.url, "POST", CHAT, messages=data)).status == 400
        got = await ask(seeing.url, "POST", CHAT, messages=data)
        assert got.json["choices"][0]["message"]["content"] == expected("vllm", data).text
        assert (await ask(seeing.url, "POST", CHAT, messages=image("https://nowhere/x.png"))).status == 422


async def test_before_0_32_oversized_max_tokens_is_a_400() -> None:
    body = {"messages": user("hi"), "max_tokens": 100}
    async with VllmEmulator(version="0.30.0", max_model_len=100) as old, VllmEmulator(max_model_len=100) as new:
        assert (await ask(old.url, "POST", CHAT, body)).status == 400
        assert (await ask(new.url, "POST", CHAT, body)).status == 200


# -- behaviour


async def test_small_routes(emu: VllmEmulator) -> None:
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        got = await ask(emu.url, method, path)
        assert (got.status, got.body) == (200, b"")
    models = (await ask(emu.url, "GET", "/v1/models")).json["data"]
    assert [m["id"] for m in models] == [MODEL, "alias"]
    assert models[1]["root"] == MODEL
    assert models[0]["max_model_len"] == 40960
    counted = (await ask(emu.url, "POST", "/tokenize", messages=user("hi there"))).json
    assert counted["count"] == len(counted["tokens"]) == expected("vllm", user("hi there")).prompt_tokens


def metric(page: str, name: str) -> float:
    return sum(float(v) for v in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", page, re.MULTILINE))


async def page(emu: VllmEmulator) -> str:
    return (await ask(emu.url, "GET", "/metrics")).body.decode()


async def test_metrics_count_real_requests(emu: VllmEmulator) -> None:
    before = await page(emu)
    assert metric(before, "vllm:generation_tokens_total") == 0
    assert 'vllm:request_success_total{model_name="Qwen/Qwen3-8B",engine="0",finished_reason="stop"} 0.0' in before
    answer = expected("vllm", user("hi"))
    for stream in (True, False):
        await ask(emu.url, "POST", CHAT, messages=user("hi"), stream=stream)
    after = await page(emu)
    assert metric(after, "vllm:generation_tokens_total") == 2 * answer.completion_tokens
    assert metric(after, "vllm:prompt_tokens_total") == 2 * answer.prompt_tokens
    assert metric(after, "vllm:request_success_total") == 2
    assert metric(after, "vllm:time_to_first_token_seconds_count") == 2
    assert metric(after, "vllm:iteration_tokens_total_count") == 2 * answer.completion_tokens
    assert metric(after, "vllm:num_requests_running") == metric(after, "vllm:kv_cache_usage_perc") == 0


async def test_running_waiting_and_admission_limit() -> None:
    async with VllmEmulator(ttft_s=60.0, max_num_seqs=1, max_num_queued_reqs=1) as emu:
        tasks = [asyncio.create_task(ask(emu.url, "POST", CHAT, messages=user("x"))) for _ in range(2)]
        await until(lambda: emu.engine_core.waiting == 1)
        shown = await page(emu)
        assert metric(shown, "vllm:num_requests_running") == 1
        assert metric(shown, "vllm:num_requests_waiting") == 1
        assert metric(shown, "vllm:kv_cache_usage_perc") > 0
        rejected = await ask(emu.url, "POST", CHAT, messages=user("x"))
        assert (rejected.status, rejected.json["error"]["type"]) == (503, "Service Unavailable")
        assert "retry-after" not in rejected.headers
        for task in tasks:
            task.cancel()
        await until(lambda: emu.counters.aborted == 2)


@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_leaves_is_aborted_and_in_no_request_metric(stream: bool) -> None:
    async with VllmEmulator(inter_token_s=60.0) as emu:
        task = asyncio.create_task(ask(emu.url, "POST", CHAT, messages=user("x"), stream=stream))
        await until(lambda: emu.counters.tokens_generated == 1)
        task.cancel()
        await until(lambda: emu.counters.aborted == 1 and emu.engine_core.running == 0)
        assert metric(await page(emu), "vllm:request_success_total") == 0


async def test_stream_headers_come_before_the_first_token() -> None:
    async with VllmEmulator(ttft_s=60.0) as emu:
        reader, writer = await asyncio.open_connection("127.0.0.1", emu.port)
        body = json.dumps({**HI, "stream": True}).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        assert (await asyncio.wait_for(reader.readline(), 3)).startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()


async def test_idle_connection_is_closed() -> None:
    async with VllmEmulator(http_keep_alive_s=0.02) as emu:
        reader, writer = await asyncio.open_connection("127.0.0.1", emu.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 3)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" not in answer
        writer.close()
        await writer.wait_closed()


# -- the SDK


async def test_openai_sdk_chats_streams_calls_tools_and_formats(emu: VllmEmulator) -> None:
    async with openai.AsyncOpenAI(base_url=emu.url + "/v1", api_key="x", max_retries=0) as client:
        messages: Any = user("hi")
        whole = await client.chat.completions.create(model=MODEL, messages=messages)
        assert whole.choices[0].message.content == expected("vllm", user("hi")).text
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = [c async for c in stream]
        assert (
            "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
        )
        assert chunks[-1].usage == whole.usage or chunks[-1].usage is not None
        tools: Any = [WEATHER_TOOL]
        weather: Any = user("weather")
        called = await client.chat.completions.create(model=MODEL, messages=weather, tools=tools)
        call: Any = (called.choices[0].message.tool_calls or [])[0]
        assert "city" in json.loads(call.function.arguments)
        shape: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
        formatted = await client.chat.completions.create(model=MODEL, messages=messages, response_format=shape)
        assert "tags" in json.loads(formatted.choices[0].message.content or "")
        done = await client.completions.create(model=MODEL, prompt="hi")
        assert done.choices[0].text.startswith("vLLM")
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="ghost", messages=messages)
