from __future__ import annotations

import json
from typing import Any

import pytest
from emulator_wire import SCHEMA, WEATHER_TOOL, user
from hypothesis import given
from hypothesis import strategies as st

from memos_llm.emulators import expected
from memos_llm.emulators.answers import tokens
from memos_llm.emulators.documents import sample

IMAGE = "iVBORw0KGgo="


@given(st.text(max_size=200))
def test_tokens_join_to_the_text(text: str) -> None:
    assert "".join(tokens(text)) == text


def test_engines_differ_and_both_repeat() -> None:
    ollama, vllm = expected("ollama", user("hi")), expected("vllm", user("hi"))
    assert ollama.text.startswith("Ollama answers ")
    assert vllm.text.startswith("vLLM replies ")
    assert ollama == expected("ollama", user("hi"))
    assert ollama.text != expected("ollama", user("hi!")).text
    assert ollama.text != expected("ollama", user("hi"), seed=1).text


def test_answer_is_the_same_for_both_dialects_of_one_message() -> None:
    native: list[dict[str, Any]] = [{"role": "user", "content": "look", "images": [IMAGE]}]
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}},
    ]
    openai: list[dict[str, Any]] = [{"role": "user", "content": parts}]
    assert expected("vllm", native).text == expected("vllm", openai).text
    assert expected("ollama", native).text == expected("ollama", openai).text
    assert expected("vllm", native).text != expected("vllm", user("look")).text


def test_tool_arguments_in_history_count_as_object_or_string() -> None:
    def history(arguments: Any, call_id: str) -> list[dict[str, Any]]:
        call = {"id": call_id, "function": {"name": "f", "arguments": arguments}}
        return [
            *user("x"),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "1"},
        ]

    assert expected("vllm", history({"a": 1, "b": 2}, "1")) == expected("vllm", history('{"b": 2, "a": 1}', "2"))
    assert expected("vllm", history({"a": 1}, "1")) != expected("vllm", history({"a": 2}, "1"))


@pytest.mark.parametrize("engine", ["ollama", "vllm"])
def test_limit_and_stop_string_end_the_answer(engine: Any) -> None:
    full = expected(engine, user("hi"))
    assert full.finish == "stop"
    assert full.completion_tokens == len(full.content) + 1
    cut = expected(engine, user("hi"), max_tokens=3)
    assert (cut.content, cut.finish, cut.completion_tokens) == (full.content[:3], "length", 3)
    assert expected(engine, user("hi"), max_tokens=full.completion_tokens) == full
    stopped = expected(engine, user("hi"), stop=[": "])
    assert stopped.text == full.text.split(": ")[0]
    assert stopped.matched_stop == ": "


def test_length_follows_the_user_or_the_caller() -> None:
    assert len(expected("vllm", user("words:50 please")).text.split(": ", 1)[1].split(" ")) == 50
    assert len(expected("vllm", user("hi"), words=20).text.split(": ", 1)[1].split(" ")) == 20


def test_schema_document_is_valid_and_compact_only_on_vllm() -> None:
    ollama = expected("ollama", user("json"), schema=SCHEMA).text
    vllm = expected("vllm", user("json"), schema=SCHEMA).text
    for text in (ollama, vllm):
        value = json.loads(text)
        assert set(value) == set(SCHEMA["properties"])
        assert 1 <= value["age"] <= 9
        assert len(value["tags"]) == 2
        assert value["kind"] in ("a", "b")
    assert '": ' in ollama
    assert '": ' not in vllm


def test_schema_follows_references_and_branches() -> None:
    schema = {
        "type": "object",
        "$defs": {"p": {"type": "object", "properties": {"x": {"type": "number"}}}},
        "properties": {"p": {"$ref": "#/$defs/p"}, "q": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}},
    }
    value = sample(schema, "abcd1234" * 8)
    assert isinstance(value["p"]["x"], float)
    assert isinstance(value["q"], bool)


def test_tools_are_called_by_mention_by_weather_and_not_otherwise() -> None:
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}}
    tools = [WEATHER_TOOL, other]
    weather = expected("ollama", user("What is the weather?"), tools=tools)
    assert [c.name for c in weather.tool_calls] == ["get_weather"]
    assert weather.text == ""
    named = expected("ollama", user("tool:other tool:get_weather tool:unknown"), tools=tools)
    assert [c.name for c in named.tool_calls] == ["other", "get_weather"]
    assert expected("ollama", user("hello"), tools=tools).tool_calls == ()
    assert expected("vllm", user("weather"), tools=tools, tool_choice="none").tool_calls == ()
    assert len(expected("vllm", user("hello"), tools=tools, tool_choice="required").tool_calls) == 1


def test_both_engines_make_the_same_tool_call() -> None:
    ollama = expected("ollama", user("weather"), tools=[WEATHER_TOOL])
    vllm = expected("vllm", user("weather"), tools=[WEATHER_TOOL])
    assert ollama.tool_calls == vllm.tool_calls
    assert len(ollama.tool_calls[0].arguments["city"]) == 20
    assert 3 <= ollama.tool_calls[0].arguments["days"] <= 5


def test_after_a_tool_result_the_model_answers_in_text() -> None:
    messages = [*user("weather"), {"role": "tool", "content": "sunny"}]
    assert expected("ollama", messages, tools=[WEATHER_TOOL]).tool_calls == ()
