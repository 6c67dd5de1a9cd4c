"""OpenAI's chat calls on Ollama's native wire: nothing that Ollama can do is lost, nothing made up."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from dialect_streams import OFFER, OLLAMA, OLLAMA_STREAM, cut, make_call, run, target, told
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from memos_llm.core.call import Call, Frame, Part, Usage, Wire
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind
from memos_llm.dialects.codecs import CODECS
from memos_llm.dialects.codecs.openai_request import CHAT
from memos_llm.dialects.codecs.openai_to_ollama import OpenAIToOllama

CODEC = OpenAIToOllama(lambda: 1_787_392_800_120_000_000)
USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def openai(**more: Any) -> Call:
    return replace(make_call(Wire.OPENAI_CHAT, {"model": "m", "messages": USER} | more), typed=True)


def sent(call: Call, **settings: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    request, warnings = CODEC.request(call, target(**settings), OFFER)
    assert request.wire is Wire.OLLAMA_CHAT
    return msgspec.json.decode(request.body), warnings


def refusal(call: Call) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as failed:
        CODEC.request(call, target(), OFFER)
    return failed.value


def chunks(data: bytes) -> list[Any]:
    events = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    return [event if event == "[DONE]" else msgspec.json.decode(event) for event in events]


# --- which codec ------------------------------------------------------------------------------------------------------


def test_a_typed_call_takes_the_native_wire_and_a_client_s_bytes_do_not() -> None:
    call = openai()
    assert isinstance(CODECS.find(call, OLLAMA), OpenAIToOllama)
    assert not isinstance(CODECS.find(replace(call, typed=False), OLLAMA), OpenAIToOllama)


def test_a_server_without_the_openai_wire_is_spoken_to_natively() -> None:
    native = Offer(frozenset({Wire.OLLAMA_CHAT, Wire.OLLAMA_GENERATE}))
    assert isinstance(CODECS.find(replace(openai(), typed=False), native), OpenAIToOllama)


def test_a_typed_call_to_another_server_keeps_its_wire() -> None:
    vllm = Offer(frozenset({Wire.OPENAI_CHAT}))
    assert not isinstance(CODECS.find(openai(), vllm), OpenAIToOllama)


# --- the request, row by row ------------------------------------------------------------------------------------------

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}

ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "max_completion_tokens": ({"max_completion_tokens": 7, "max_tokens": 9}, {"options": {"num_predict": 7}}),
    "max_tokens": ({"max_tokens": 9}, {"options": {"num_predict": 9}}),
    "temperature": ({"temperature": 0.5}, {"options": {"temperature": 0.5}}),
    "top_p": ({"top_p": 0.5}, {"options": {"top_p": 0.5}}),
    "top_k": ({"top_k": 3}, {"options": {"top_k": 3}}),
    "min_p": ({"min_p": 0.1}, {"options": {"min_p": 0.1}}),
    "seed": ({"seed": 4}, {"options": {"seed": 4}}),
    "presence_penalty": ({"presence_penalty": 1}, {"options": {"presence_penalty": 1}}),
    "frequency_penalty": ({"frequency_penalty": 1}, {"options": {"frequency_penalty": 1}}),
    "repetition_penalty": ({"repetition_penalty": 1.1}, {"options": {"repeat_penalty": 1.1}}),
    "stop": ({"stop": "x"}, {"options": {"stop": ["x"]}}),
    "stop-many": ({"stop": list("abcdef")}, {"options": {"stop": list("abcdef")}}),
    "num_ctx": ({"num_ctx": 64}, {"options": {"num_ctx": 64}}),
    "options": ({"seed": 1, "options": {"seed": 2, "mirostat": 1}}, {"options": {"seed": 2, "mirostat": 1}}),
    "keep_alive": ({"keep_alive": "1h"}, {"keep_alive": "1h"}),
    "think": ({"think": "high"}, {"think": "high"}),
    "reasoning_effort": ({"reasoning_effort": "xhigh"}, {"think": "max"}),
    "reasoning_effort-ultra": ({"reasoning_effort": "ultra"}, {"think": "max"}),
    "reasoning_effort-empty": ({"reasoning_effort": ""}, {}),
    "reasoning": ({"reasoning_effort": "high", "reasoning": {"effort": "none"}}, {"think": False}),
    "reasoning-no-effort": ({"reasoning_effort": "high", "reasoning": {"summary": "auto"}}, {"think": "high"}),
    "max_tokens-negative": ({"max_tokens": -1}, {"options": {"num_predict": -1}}),
    "stop-no-text": ({"stop": 5}, {}),
    "stop-some-text": ({"stop": [1, "x"]}, {"options": {"stop": ["x"]}}),
    "reasoning_effort-none": ({"reasoning_effort": "none"}, {"think": False}),
    "json_object": ({"response_format": {"type": "json_object"}}, {"format": "json"}),
    "json_schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
        {"format": {"type": "object"}},
    ),
    "text": ({"response_format": {"type": "text"}}, {}),
    "tools": ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL]}),
    "tools-none": ({"tools": [TOOL], "tool_choice": "none"}, {}),
    "logprobs": ({"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
    "stream": ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
    "n-1": ({"n": 1}, {}),
    "logit_bias-empty": ({"logit_bias": {}}, {}),
    "harmless": ({"user": "u", "metadata": {"a": 1}, "store": True, "service_tier": "auto", "verbosity": "low"}, {}),
    "nothing": ({}, {}),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_field_becomes(row: str) -> None:
    given_, wanted = ROWS[row]
    body, warnings = sent(openai(**given_))
    base = {"model": "served/m", "messages": USER, "stream": bool(given_.get("stream"))}
    assert body == base | wanted
    assert warnings == (("approximated:repetition_penalty",) if row == "repetition_penalty" else ())


@pytest.mark.parametrize(
    ("more", "warning"),
    [
        ({"tools": [TOOL], "tool_choice": "required"}, "dropped:tool_choice"),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "dropped:parallel_tool_calls"),
    ],
)
def test_what_ollama_cannot_do_is_said(more: dict[str, Any], warning: str) -> None:
    assert sent(openai(**more))[1] == (warning,)


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2},
        {"logit_bias": {"1": 5}},
        {"structured_outputs": {"regex": "a"}},
        {"response_format": {"type": "structural_tag"}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "data:,"}}]}]},
    ],
)
def test_what_another_target_may_do_is_left_to_it(more: dict[str, Any]) -> None:
    assert refusal(openai(**more)).outcome.kind is Kind.INCOMPATIBLE


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 0},
        {"max_tokens": "many"},
        {"messages": []},  # never a call to load the model
        {"messages": None},
        {"reasoning_effort": "utmost"},
        {"response_format": {"type": "json_schema"}},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]}]},
        {"messages": [{"role": "user", "content": 3}]},
    ],
)
def test_what_nobody_understands_is_the_caller_s_fault(more: dict[str, Any]) -> None:
    failure = refusal(openai(**more))
    assert failure.outcome.kind is Kind.CLIENT
    assert failure.client_text


def test_configured_defaults_are_sent_where_the_caller_gives_none() -> None:
    body, warnings = sent(openai(temperature=0.1), defaults={"temperature": 0.8, "top_k": 40})
    assert warnings == ("repaired:defaults",)
    assert body["options"] == {"temperature": 0.1, "top_k": 40}


def test_a_history_with_parts_tools_and_thoughts() -> None:
    history = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "look"}, IMAGE, {"type": "text", "text": "here"}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": 2}'}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "name": "other", "content": [{"type": "text", "text": "two"}]},
    ]
    body, warnings = sent(openai(messages=history))
    assert body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "look\nhere", "images": ["iVBORw0KGgo="]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [
                {"id": "c1", "function": {"name": "f", "arguments": {"b": 1, "a": 2}}},
                {"id": "c2", "function": {"name": "g", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "one", "tool_call_id": "c1", "tool_name": "f"},
        {"role": "tool", "content": "two", "tool_call_id": "c2", "tool_name": "other"},
    ]
    assert warnings == ()


def test_every_row_of_the_table_is_tried() -> None:
    tried = {key for more, _ in ROWS.values() for key in more} | {"model", "messages", "structured_outputs"}
    assert set(CHAT) - tried == {"parallel_tool_calls"}  # tried above, for its warning


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda v: st.lists(v), max_leaves=5)
)
def test_values_of_any_type_are_carried_or_refused(value: Any) -> None:
    for key in CHAT:
        if key in ("model", "stream", "stream_options", "messages"):
            continue
        try:
            sent(openai(**{key: value}))
        except AttemptFailed as failed:
            assert failed.outcome.kind in (Kind.CLIENT, Kind.INCOMPATIBLE)  # noqa: PT017 - which one is the point


# --- the answer -------------------------------------------------------------------------------------------------------


def record(message: dict[str, Any], **more: Any) -> bytes:
    document = {
        "model": "m",
        "created_at": "x",
        "message": {"role": "assistant", "content": ""} | message,
        "done": False,
    }
    return msgspec.json.encode(document | more) + b"\n"


def stream(*records: bytes, **more: Any) -> list[Any]:
    call = openai(stream=True, **more)
    return chunks(told(run(CODEC.decoder(call, target()), [b"".join(records)]))[0])


DONE = record({}, done=True, done_reason="stop", prompt_eval_count=3, eval_count=2)
TOOLS = [
    {"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"x": "é"}}},
    {"function": {"index": 1, "name": "g", "arguments": {}}},
]


@given(st.sets(st.integers(1, len(OLLAMA_STREAM) - 1)))
def test_a_stream_is_the_same_however_it_is_cut(places: set[int]) -> None:
    call = openai(stream=True, stream_options={"include_usage": True})

    def answer(pieces: Iterable[int]) -> tuple[bytes, int, Usage | None]:
        return told(run(CODEC.decoder(call, target()), cut(OLLAMA_STREAM, pieces)))

    assert answer(places) == answer(())


def test_a_stream_in_openai_s_words() -> None:
    events = stream(record({"thinking": "hm"}), record({"content": "Hi"}), DONE, stream_options={"include_usage": True})
    assert events[-1] == "[DONE]"
    deltas = [event["choices"][0]["delta"] for event in events[:-2]]
    assert deltas == [{"role": "assistant", "content": "", "reasoning": "hm"}, {"content": "Hi"}, {}]
    assert [event["choices"][0]["finish_reason"] for event in events[:-2]] == [None, None, "stop"]
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert len({(event["id"], event["created"], event["model"]) for event in events[:-1]}) == 1


def test_usage_is_told_to_us_and_not_to_a_caller_who_did_not_ask() -> None:
    call = openai(stream=True)
    data, parts, usage = told(run(CODEC.decoder(call, target()), [DONE]))
    assert usage == Usage(3, 2)
    assert parts & Part.USAGE
    assert b"usage" not in data


@pytest.mark.parametrize("in_the_last", [False, True])
def test_tool_calls_leave_whole_with_text_arguments_and_indexes(in_the_last: bool) -> None:
    said = {"tool_calls": TOOLS}
    records = [record(said, done=True, done_reason="stop")] if in_the_last else [record(said), DONE]
    events = stream(*records)
    calls = [call for event in events[:-1] for c in event["choices"] for call in c["delta"].get("tool_calls", ())]
    assert [(call["index"], call["function"]) for call in calls] == [
        (0, {"name": "f", "arguments": '{"x":"é"}'}),
        (1, {"name": "g", "arguments": "{}"}),
    ]
    assert calls[0]["id"] == "c1"
    assert calls[1]["id"]
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_whole_answer() -> None:
    body = record(
        {"content": "Hi", "thinking": "hm", "tool_calls": TOOLS},
        done=True,
        done_reason="length",
        eval_count=2,
        logprobs=[{"token": "Hi", "logprob": -0.1, "bytes": [72, 105]}],
    )
    data, parts, usage = told(run(CODEC.decoder(openai(), target()), [body[:20], body[20:]]))
    answer = msgspec.json.decode(data)
    choice = answer["choices"][0]
    assert (answer["object"], answer["model"], choice["finish_reason"]) == ("chat.completion", "m", "length")
    assert (choice["message"]["content"], choice["message"]["reasoning"]) == ("Hi", "hm")
    assert choice["logprobs"]["content"][0]["token"] == "Hi"
    assert answer["usage"] == {"prompt_tokens": 0, "completion_tokens": 2, "total_tokens": 2}
    assert usage == Usage(0, 2)
    assert parts & Part.END


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (record({"content": "Hi"}), Kind.TRUNCATED),
        (record({"content": "Hi"}) + b'{"error":"runner died"}\n', Kind.SERVER),
        (b"<html>", Kind.TRUNCATED),
        (b"<html>\n", Kind.MALFORMED),
    ],
)
def test_an_unfinished_stream_is_never_finished(data: bytes, kind: Kind) -> None:
    decoder = CODEC.decoder(openai(stream=True), target())
    frames: list[Frame] = []
    with pytest.raises(AttemptFailed) as failed:  # noqa: PT012 - whichever of the two finds out
        frames += decoder.feed(data)
        frames += decoder.eof()
    assert failed.value.outcome.kind is kind
    assert b'finish_reason":"' not in b"".join(frame.data for frame in frames)


@pytest.mark.parametrize("body", [record({"content": "Hi"}), b'{"error":"x"}', b"[]", b""])
def test_an_unfinished_whole_answer_is_a_failure(body: bytes) -> None:
    with pytest.raises(AttemptFailed):
        run(CODEC.decoder(openai(), target()), [body])
