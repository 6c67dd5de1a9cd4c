from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import ollama
import openai
import pytest
from emulator_wire import SCHEMA, WEATHER_TOOL, ask, until, user

from memos_llm.emulators import OllamaEmulator, OllamaModel, expected

CHAT, GENERATE, V1 = "/api/chat", "/api/generate", "/v1/chat/completions"
MODEL = "llama3.2:3b"


@pytest.fixture
async def emu() -> AsyncIterator[OllamaEmulator]:
    async with OllamaEmulator() as emulator:
        yield emulator


# -- framing and records


async def test_native_stream_is_one_record_a_chunk_and_the_default(emu: OllamaEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, model=MODEL, messages=user("hi"))
    answer = expected("ollama", user("hi"))
    assert got.headers["content-type"] == "application/x-ndjson"
    assert "server" not in got.headers
    assert all(chunk.endswith(b"\n") and chunk.count(b"\n") == 1 for chunk in got.chunks)
    assert "".join(r["message"]["content"] for r in got.records) == answer.text
    first, last = got.records[0], got.records[-1]
    assert list(first) == ["model", "created_at", "message", "done"]
    assert first["message"] == {"role": "assistant", "content": "Ollama"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z", first["created_at"])
    assert list(last) == [
        "model",
        "created_at",
        "message",
        "done",
        "done_reason",
        "total_duration",
        "load_duration",
        "prompt_eval_count",
        "prompt_eval_duration",
        "eval_count",
        "eval_duration",
    ]
    assert last["eval_count"] == answer.completion_tokens
    assert last["prompt_eval_count"] == answer.prompt_tokens


async def test_json_is_escaped_as_go_escapes_it(emu: OllamaEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, model=MODEL, messages=user("words:60"), stream=False)
    assert b"\\u003cb\\u003eherd\\u003c/b\\u003e" in got.body
    assert b"R\\u0026D" in got.body
    assert "ラマ".encode() in got.body


async def test_long_json_is_chunked_and_short_json_is_not(emu: OllamaEmulator) -> None:
    short = await ask(emu.url, "POST", CHAT, model=MODEL, messages=user("hi"), stream=False)
    long = await ask(emu.url, "POST", CHAT, model=MODEL, messages=user("words:600"), stream=False)
    assert "content-length" in short.headers
    assert len(short.body) < 2048 < len(long.body)
    assert long.headers["transfer-encoding"] == "chunked"
    assert short.headers["content-type"] == long.headers["content-type"] == "application/json; charset=utf-8"


async def test_v1_stream_ends_with_finish_usage_and_done_in_one_chunk(emu: OllamaEmulator) -> None:
    got = await ask(
        emu.url, "POST", V1, model="qwen3:8b", messages=user("hi"), stream=True, stream_options={"include_usage": True}
    )
    answer = expected("ollama", user("hi"), thinking=True)
    assert got.headers["content-type"] == "text/event-stream"
    assert all(chunk.count(b"data: ") == 1 for chunk in got.chunks[:-1])
    assert got.chunks[-1].count(b"data: ") == 3
    deltas = [e["choices"][0]["delta"] for e in got.events[:-3]]
    assert deltas[0] == {"role": "assistant", "content": "", "reasoning": "Let"}
    assert all("role" not in d and "content" in d for d in deltas[1:])
    assert "".join(d.get("reasoning", "") for d in deltas) == answer.thinking_text
    assert "".join(d["content"] for d in deltas) == answer.text
    finish, usage, done = got.events[-3:]
    assert finish["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == answer.completion_tokens
    assert done == "[DONE]"
    assert len({e["id"] for e in got.events[:-1]}) == 1
    assert 0 <= int(finish["id"].removeprefix("chatcmpl-")) <= 998


async def test_v1_before_0_32_6_repeats_role_and_puts_finish_on_a_message_chunk() -> None:
    async with OllamaEmulator(version="0.17.4") as emu:
        got = await ask(emu.url, "POST", V1, model=MODEL, messages=user("hi"), stream=True)
    assert all(e["choices"][0]["delta"]["role"] == "assistant" for e in got.events[:-1])
    assert got.events[-2]["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "finish_reason": "stop",
    }


async def test_v1_whole_answer(emu: OllamaEmulator) -> None:
    got = await ask(emu.url, "POST", V1, model=MODEL, messages=user("hi"), max_tokens=2)
    assert got.headers["content-type"] == "application/json"
    assert got.body.endswith(b"}\n")
    assert got.json["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "Ollama answers"},
        "finish_reason": "length",
    }
    assert got.json["system_fingerprint"] == "fp_ollama"


async def test_max_completion_tokens_is_ignored_on_v1(emu: OllamaEmulator) -> None:
    got = await ask(emu.url, "POST", V1, model=MODEL, messages=user("hi"), max_completion_tokens=1)
    assert got.json["choices"][0]["finish_reason"] == "stop"


# -- errors


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        (CHAT, b"", 400, "missing request body"),
        (CHAT, b"null", 400, "model is required"),
        (CHAT, b"{", 400, "unexpected EOF"),
        (CHAT, b"nope", 400, "invalid character 'n' looking for beginning of value"),
        (CHAT, {"messages": []}, 400, "model is required"),
        (GENERATE, {"prompt": "x"}, 404, "model '' not found"),
        (CHAT, {"model": "ghost", "messages": user("x")}, 404, "model 'ghost' not found"),
        (CHAT, {"model": "a b", "messages": user("x")}, 400, "invalid model name"),
        (
            CHAT,
            {"model": MODEL, "messages": "x"},
            400,
            "json: cannot unmarshal string into Go struct field ChatRequest.messages of type []api.Message",
        ),
        (
            CHAT,
            {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
            400,
            "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string",
        ),
        (
            CHAT,
            {"model": "gemma3:4b", "messages": user("x"), "tools": [WEATHER_TOOL]},
            400,
            "registry.ollama.ai/library/gemma3:4b does not support tools",
        ),
        (
            CHAT,
            {"model": "gemma3:4b", "tools": [WEATHER_TOOL]},
            400,
            "registry.ollama.ai/library/gemma3:4b does not support tools",
        ),
        (CHAT, {"model": MODEL, "messages": user("x"), "think": True}, 400, f'"{MODEL}" does not support thinking'),
        (
            CHAT,
            {"model": "mxbai-embed-large", "messages": user("x")},
            400,
            '"mxbai-embed-large" does not support chat',
        ),
        (
            GENERATE,
            {"model": "mxbai-embed-large", "prompt": "x"},
            400,
            '"mxbai-embed-large" does not support generate',
        ),
        (
            GENERATE,
            {"model": MODEL, "prompt": "x", "suffix": "y"},
            400,
            f"registry.ollama.ai/library/{MODEL} does not support insert",
        ),
        (
            GENERATE,
            {"model": MODEL, "prompt": "x", "raw": True, "system": "s"},
            400,
            "raw mode does not support template, system, or context",
        ),
        (
            CHAT,
            {"model": MODEL, "messages": user("x"), "options": {"temperature": "hot"}},
            500,
            'option "temperature" must be of type float32',
        ),
        (
            CHAT,
            {"model": MODEL, "messages": user("x"), "options": {"stop": "END"}},
            500,
            'option "stop" must be of type array',
        ),
        (
            CHAT,
            {"model": MODEL, "messages": user("x"), "keep_alive": "300"},
            400,
            'time: missing unit in duration "300"',
        ),
        (
            CHAT,
            {"model": MODEL, "messages": [{"role": "user", "content": "x", "images": ["data:image/png;base64,AA=="]}]},
            400,
            "illegal base64 data at input byte 4",
        ),
    ],
)
async def test_native_refusals(emu: OllamaEmulator, path: str, body: Any, status: int, text: str) -> None:
    got = await ask(emu.url, "POST", path, body)
    assert (got.status, got.json) == (status, {"error": text})
    assert got.headers["content-type"] == "application/json; charset=utf-8"
    assert not got.body.endswith(b"\n")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "EOF"),
        ({"model": MODEL, "messages": []}, "[] is too short - 'messages'"),
        ({"model": MODEL, "messages": [{"role": "user"}]}, "invalid message content type: <nil>"),
        ({"model": MODEL, "messages": [{"role": "assistant", "content": None}]}, "invalid message content type: <nil>"),
        (
            {
                "model": "gemma3:4b",
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]}
                ],
            },
            "image URLs are not currently supported, please use base64 encoded data instead",
        ),
        ({"model": MODEL, "messages": user("x"), "reasoning_effort": "huge"}, None),
    ],
)
async def test_what_the_v1_layer_refuses_has_a_charset_and_no_newline(
    emu: OllamaEmulator, body: Any, text: Any
) -> None:
    got = await ask(emu.url, "POST", V1, body)
    assert got.status == 400
    assert got.headers["content-type"] == "application/json; charset=utf-8"
    assert not got.body.endswith(b"\n")
    error = got.json["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, None)
    assert text is None or error["message"] == text


async def test_what_the_native_handler_refuses_on_v1_has_a_newline_and_no_charset(emu: OllamaEmulator) -> None:
    got = await ask(emu.url, "POST", V1, model="ghost", messages=user("x"))
    assert (got.status, got.headers["content-type"]) == (404, "application/json")
    assert got.body.endswith(b"}\n")
    assert got.json["error"] == {
        "message": "model 'ghost' not found",
        "type": "not_found_error",
        "param": None,
        "code": None,
    }
    async with OllamaEmulator(version="0.17.4") as old:
        assert (await ask(old.url, "POST", V1, model="ghost", messages=user("x"))).json["error"]["type"] == "api_error"


async def test_routes_methods_and_slashes(emu: OllamaEmulator) -> None:
    missing = await ask(emu.url, "GET", "/nope")
    assert (missing.status, missing.body, missing.headers["content-type"]) == (404, b"404 page not found", "text/plain")
    wrong = await ask(emu.url, "GET", CHAT)
    assert (wrong.status, wrong.body, wrong.headers["allow"]) == (405, b"405 method not allowed", "POST")
    assert (await ask(emu.url, "GET", "/api/tags/")).status == 301
    assert (await ask(emu.url, "POST", CHAT + "/")).status == 307
    assert (await ask(emu.url, "HEAD", "/")).status == 200
    assert (await ask(emu.url, "GET", "/")).body == b"Ollama is running"


async def test_foreign_host_or_origin_is_403_with_empty_body(emu: OllamaEmulator) -> None:
    for headers in ({"Host": "llm.example.com"}, {"Origin": "https://example.com"}, {"Origin": "null"}):
        got = await ask(emu.url, "POST", CHAT, {"model": MODEL, "messages": user("x")}, headers)
        assert (got.status, got.body) == (403, b"")
    local = await ask(emu.url, "GET", "/api/version", headers={"Origin": "http://localhost:3000"})
    assert local.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert local.headers["vary"] == "Origin"
    assert (await ask(emu.url, "OPTIONS", "/any", headers={"Origin": "http://localhost"})).status == 204
    assert (await ask(emu.url, "OPTIONS", CHAT)).status == 405


# -- parsing


async def test_go_parses_generously(emu: OllamaEmulator) -> None:
    body = (
        b'{"MODEL":"ghost","Model":"llama3.2:3b","messages":[{"ROLE":"USER","content":"hi"}],"x":1,"stream":false} more'
    )
    got = await ask(emu.url, "POST", CHAT, body, {"Content-Type": "text/plain"})
    assert got.json["message"]["content"] == expected("ollama", user("hi")).text


async def test_model_names_are_matched_loosely_and_echoed_exactly(emu: OllamaEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, model="Mxbai-Embed-Large:LATEST", messages=user("x"))
    assert got.json["error"] == '"Mxbai-Embed-Large:LATEST" does not support chat'
    got = await ask(emu.url, "POST", CHAT, model="LLAMA3.2:3b", messages=user("x"), stream=False)
    assert got.json["model"] == "LLAMA3.2:3b"


# -- behaviour


async def test_thinking_is_on_unless_refused(emu: OllamaEmulator) -> None:
    on = await ask(emu.url, "POST", CHAT, model="qwen3:8b", messages=user("x"), stream=False)
    off = await ask(emu.url, "POST", CHAT, model="qwen3:8b", messages=user("x"), stream=False, think=False)
    answer = expected("ollama", user("x"), thinking=True)
    assert on.json["message"] == {"role": "assistant", "content": answer.text, "thinking": answer.thinking_text}
    assert "thinking" not in off.json["message"]
    assert on.json["eval_count"] == off.json["eval_count"] + len(answer.thinking)


async def test_logprobs_are_on_every_record(emu: OllamaEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, model=MODEL, messages=user("x"), logprobs=True, top_logprobs=2)
    assert all(len(r["logprobs"][0]["top_logprobs"]) == 2 for r in got.records[:-1])
    assert bytes(got.records[0]["logprobs"][0]["bytes"]) == b"Ollama"
    refused = await ask(emu.url, "POST", CHAT, model=MODEL, messages=user("x"), top_logprobs=21)
    assert refused.status == 400


async def test_system_role_of_v1_parts_reaches_the_model_as_one_prompt(emu: OllamaEmulator) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    got = await ask(emu.url, "POST", V1, model=MODEL, messages=messages)
    assert got.json["choices"][0]["message"]["content"] == expected("ollama", messages).text
    assert expected("ollama", messages) == expected("ollama", [*user("a"), *user("b")])


async def test_each_tool_call_is_a_record_of_its_own(emu: OllamaEmulator) -> None:
    got = await ask(
        emu.url, "POST", CHAT, model=MODEL, messages=user("tool:get_weather tool:get_weather"), tools=[WEATHER_TOOL]
    )
    calls = [r["message"]["tool_calls"] for r in got.records if "tool_calls" in r["message"]]
    assert [len(c) for c in calls] == [1, 1]
    assert [c[0]["function"]["index"] for c in calls] == [0, 1]
    assert re.fullmatch(r"call_[a-z0-9]{8}", calls[0][0]["id"])
    assert isinstance(calls[0][0]["function"]["arguments"], dict)
    assert got.records[-1]["done_reason"] == "stop"
    assert "tool_calls" not in got.records[-1]["message"]


async def test_tool_schema_is_lossy(emu: OllamaEmulator) -> None:
    got = await ask(emu.url, "POST", CHAT, model=MODEL, messages=user("weather"), tools=[WEATHER_TOOL], stream=False)
    assert len(got.json["message"]["tool_calls"][0]["function"]["arguments"]["city"]) < 20  # minLength never arrived


async def test_native_path_carries_tool_calls_in_the_final_record() -> None:
    async with OllamaEmulator(models=[OllamaModel("jinja:1b", jinja=True)]) as emu:
        got = await ask(emu.url, "POST", CHAT, model="jinja:1b", messages=user("weather"), tools=[WEATHER_TOOL])
    assert len(got.records) == 1
    assert got.records[0]["done"]
    assert got.records[0]["message"]["tool_calls"]


async def test_generate_whole_raw_and_context(emu: OllamaEmulator) -> None:
    got = await ask(emu.url, "POST", GENERATE, model=MODEL, prompt="hi", system="be brief", stream=False)
    answer = expected("ollama", [{"role": "system", "content": "be brief"}, *user("hi")])
    assert got.json["response"] == answer.text
    assert "message" not in got.json
    context = got.json["context"]
    assert context
    assert all(isinstance(n, int) for n in context)
    raw = await ask(emu.url, "POST", GENERATE, model=MODEL, prompt="hi", raw=True, stream=False)
    assert raw.json["response"] == expected("ollama", [{"role": "raw", "content": "hi"}]).text
    assert "context" not in raw.json
    more = await ask(emu.url, "POST", GENERATE, model=MODEL, prompt="hi", context=context, stream=False)
    assert more.json["response"] != got.json["response"]


async def test_load_and_unload(emu: OllamaEmulator) -> None:
    assert (await ask(emu.url, "GET", "/api/ps")).json == {"models": []}
    loaded = await ask(emu.url, "POST", CHAT, model=MODEL)
    assert loaded.headers["content-type"] == "application/json; charset=utf-8"
    assert {k: v for k, v in loaded.json.items() if k != "created_at"} == {
        "model": MODEL,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "load",
    }
    [shown] = (await ask(emu.url, "GET", "/api/ps")).json["models"]
    assert (shown["name"], shown["context_length"]) == (MODEL, 4096)
    unloaded = await ask(emu.url, "POST", GENERATE, model=MODEL, keep_alive=0)
    assert (unloaded.json["response"], unloaded.json["done_reason"]) == ("", "unload")
    assert (await ask(emu.url, "GET", "/api/ps")).json == {"models": []}
    assert (await ask(emu.url, "POST", GENERATE, model=MODEL, keep_alive="-1m")).json["done_reason"] == "load"
    assert (await ask(emu.url, "GET", "/api/ps")).json["models"][0]["expires_at"].startswith("2319")


async def test_other_num_ctx_reloads(emu: OllamaEmulator) -> None:
    for options in ({}, {}, {"num_ctx": 64}, {"num_ctx": 64}, {}):
        await ask(emu.url, "POST", CHAT, model=MODEL, messages=user("x"), options=options)
    assert emu.counters.loads == 3


async def test_long_prompt_loses_old_messages_then_is_cut_silently(emu: OllamaEmulator) -> None:
    long = "word " * 100
    kept = [{"role": "system", "content": "s"}, *user("last")]
    got = await ask(
        emu.url,
        "POST",
        CHAT,
        model=MODEL,
        messages=[kept[0], *user(long), kept[1]],
        options={"num_ctx": 64},
        stream=False,
    )
    assert got.json["message"]["content"] == expected("ollama", kept).text
    cut = await ask(emu.url, "POST", CHAT, model=MODEL, messages=user(long), options={"num_ctx": 64}, stream=False)
    assert (cut.status, cut.json["prompt_eval_count"]) == (200, 34)
    refused = await ask(
        emu.url, "POST", CHAT, model=MODEL, messages=user(long), options={"num_ctx": 64}, truncate=False
    )
    assert (refused.status, refused.json["error"]) == (400, "the input length exceeds the context length")


async def test_one_slot_a_model_serialises_requests() -> None:
    async with OllamaEmulator(inter_token_s=0.01) as emu:
        both = [ask(emu.url, "POST", CHAT, model=MODEL, messages=user(t), stream=False) for t in ("words:5", "words:6")]
        first, second = await asyncio.gather(*both)
    durations = sorted(a.json["total_duration"] for a in (first, second))
    evals = sorted(a.json["eval_duration"] for a in (first, second))
    assert durations[1] > evals[0] + evals[1]


async def test_model_lists(emu: OllamaEmulator) -> None:
    tags = (await ask(emu.url, "GET", "/api/tags")).json["models"]
    assert [t["name"] for t in tags] == ["qwen3:8b", "gemma3:4b", "llama3.2:3b", "mxbai-embed-large:latest"]
    assert tags[0]["capabilities"] == ["completion", "tools", "thinking"]
    listed = (await ask(emu.url, "GET", "/v1/models")).json
    assert listed["data"][0]["owned_by"] == "library"
    assert (await ask(emu.url, "GET", "/v1/models/qwen3:8b")).json == listed["data"][0]
    assert (await ask(emu.url, "GET", "/v1/models/a/b")).body == b"404 page not found"
    shown = (await ask(emu.url, "POST", "/api/show", model="qwen3")).json
    assert shown == {"error": "model 'qwen3' not found"}
    shown = (await ask(emu.url, "POST", "/api/show", model="qwen3:8b")).json
    assert shown["model_info"]["qwen3.context_length"] == 40960
    async with OllamaEmulator(models=[]) as empty:
        assert (await ask(empty.url, "GET", "/v1/models")).json == {"object": "list", "data": None}


async def test_client_that_leaves_stops_the_generation_and_frees_the_slot() -> None:
    async with OllamaEmulator(inter_token_s=60.0) as emu:
        leaving = asyncio.create_task(ask(emu.url, "POST", CHAT, model=MODEL, messages=user("x")))
        await until(lambda: emu.counters.tokens_generated == 1)
        leaving.cancel()
        await until(lambda: emu.counters.aborted == 1)
        assert emu.counters.in_flight == 0
        assert emu.counters.last_abort_monotonic is not None
        emu.timing.inter_token_s = 0.0
        assert (await ask(emu.url, "POST", CHAT, model=MODEL, messages=user("x"), stream=False)).status == 200


# -- the SDKs


async def test_ollama_sdk_chats_streams_calls_tools_and_formats(emu: OllamaEmulator) -> None:
    client = ollama.AsyncClient(host=emu.url)
    async with client._client:
        whole = await client.chat(MODEL, user("hi"))
        assert whole.message.content == expected("ollama", user("hi")).text
        parts = [p.message.content or "" async for p in await client.chat(MODEL, user("hi"), stream=True)]
        assert "".join(parts) == whole.message.content
        called = await client.chat(MODEL, user("weather"), tools=[WEATHER_TOOL])
        assert called.message.tool_calls is not None
        assert called.message.tool_calls[0].function.name == "get_weather"
        formatted = await client.chat(MODEL, user("json"), format=SCHEMA)
        assert 1 <= json.loads(formatted.message.content or "")["age"] <= 9
        thought = await client.chat("qwen3:8b", user("hi"), think=True)
        assert thought.message.thinking
        seen = await client.chat("gemma3:4b", [{"role": "user", "content": "x", "images": [b"\x89PNG"]}])
        image = base64.b64encode(b"\x89PNG").decode()
        assert seen.message.content == expected("ollama", [{"role": "user", "content": "x", "images": [image]}]).text
        assert (await client.generate(MODEL, "hi")).response
        assert [m.model for m in (await client.ps()).models]
        with pytest.raises(ollama.ResponseError, match="not found"):
            await client.chat("ghost", user("x"))


async def test_openai_sdk_chats_streams_calls_tools_and_formats(emu: OllamaEmulator) -> None:
    async with openai.AsyncOpenAI(base_url=emu.url + "/v1", api_key="x", max_retries=0) as client:
        messages: Any = user("hi")
        whole = await client.chat.completions.create(model=MODEL, messages=messages)
        assert whole.choices[0].message.content == expected("ollama", user("hi")).text
        stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
        assert text == whole.choices[0].message.content
        weather: Any = user("weather")
        tools: Any = [WEATHER_TOOL]
        called = await client.chat.completions.create(model=MODEL, messages=weather, tools=tools)
        assert called.choices[0].finish_reason == "tool_calls"
        call: Any = (called.choices[0].message.tool_calls or [])[0]
        assert "city" in json.loads(call.function.arguments)
        shape: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
        formatted = await client.chat.completions.create(model=MODEL, messages=messages, response_format=shape)
        assert "tags" in json.loads(formatted.choices[0].message.content or "")
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="ghost", messages=messages)
