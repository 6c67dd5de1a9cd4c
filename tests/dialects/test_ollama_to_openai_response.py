"""vLLM's answers as Ollama's records."""

import re
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from dialect_streams import (
    ROLE,
    USAGE,
    VLLM_STREAM,
    chunk,
    cut,
    make_call,
    native_codec,
    records,
    run,
    sse,
    target,
    told,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_llm.core.call import Call, Frame, Part, Usage, Wire
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind
from memos_llm.core.ports import Decoder
from memos_llm.dialects.codecs.think import Piece, ThinkSplitter
from memos_llm.dialects.jsons import go_json, rfc3339
from memos_llm.dialects.toolcalls import Assembler, Fragment, FunctionFragment

USER = [{"role": "user", "content": "hi"}]
CHAT = make_call(Wire.OLLAMA_CHAT, {"model": "Caller:latest", "messages": USER})
GENERATE = make_call(Wire.OLLAMA_GENERATE, {"model": "Caller:latest", "prompt": "p"})
WHOLE_CHAT = make_call(Wire.OLLAMA_CHAT, {"model": "Caller:latest", "messages": USER, "stream": False})
WHOLE_GENERATE = make_call(Wire.OLLAMA_GENERATE, {"model": "Caller:latest", "prompt": "p", "stream": False})
AT = "2026-08-22T10:00:00.12Z"
STOPPED = chunk({}, "stop")


def decoder(call: Call, **settings_: Any) -> Decoder:
    return native_codec().decoder(call, target(**settings_))


def frames_of(call: Call, *documents: Any, **settings_: Any) -> list[Frame]:
    """One feed per event."""
    return run(decoder(call, **settings_), [sse(document) for document in documents])


def said(call: Call, *documents: Any, **settings_: Any) -> list[dict[str, Any]]:
    """The messages, or the answering fields of generate, of all records but the last."""
    found = records(b"".join(frame.data for frame in frames_of(call, *documents, **settings_)))
    assert [record["done"] for record in found] == [False] * (len(found) - 1) + [True]
    return [
        record.get("message", {k: record[k] for k in ("response", "thinking") if k in record}) for record in found[:-1]
    ]


def ending(call: Call, *documents: Any) -> dict[str, Any]:
    return records(b"".join(frame.data for frame in frames_of(call, *documents)))[-1]


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_chat_stream_becomes_records_with_ollama_s_keys_in_ollama_s_order() -> None:
    data = told(
        frames_of(CHAT, ROLE, chunk({"reasoning": "hm"}), chunk({"content": "<b>&"}), STOPPED, USAGE, "[DONE]")
    )[0]
    head = b'{"model":"Caller:latest","created_at":"%b",' % AT.encode()
    assert data.splitlines() == [
        head + b'"message":{"role":"assistant","content":"","thinking":"hm"},"done":false}',
        head + b'"message":{"role":"assistant","content":"\\u003cb\\u003e\\u0026"},"done":false}',
        head
        + b'"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","total_duration":2000000000,'
        b'"load_duration":1,"prompt_eval_count":3,"prompt_eval_duration":500000000,"eval_count":2,"eval_duration":500000000}',
    ]


def test_a_generate_stream_has_response_and_thinking_and_never_a_context() -> None:
    data = told(
        frames_of(GENERATE, ROLE, chunk({"reasoning": "hm"}), chunk({"content": "x"}), STOPPED, USAGE, "[DONE]")
    )[0]
    head = b'{"model":"Caller:latest","created_at":"%b",' % AT.encode()
    assert data.splitlines() == [
        head + b'"response":"","thinking":"hm","done":false}',
        head + b'"response":"x","done":false}',
        head + b'"response":"","done":true,"done_reason":"stop","total_duration":2000000000,"load_duration":1,'
        b'"prompt_eval_count":3,"prompt_eval_duration":500000000,"eval_count":2,"eval_duration":500000000}',
    ]


def test_a_raw_generate_reads_completions_with_their_logprobs() -> None:
    logprobs = {
        "tokens": ["é", "b"],
        "token_logprobs": [-0.5, None],
        "top_logprobs": [{"é": -0.5}, None],
        "text_offset": [0, 1],
    }
    event = {"id": "cmpl-1", "choices": [{"index": 0, "text": "éb", "logprobs": logprobs, "finish_reason": None}]}
    last = {"id": "cmpl-1", "choices": [{"index": 0, "text": "", "finish_reason": "length"}]}
    first, final = records(told(frames_of(GENERATE, event, last, "[DONE]"))[0])
    assert (first["response"], final["done_reason"]) == ("éb", "length")
    assert first["logprobs"] == [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [195, 169],
            "top_logprobs": [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}],
        },
        {"token": "b", "logprob": 0.0, "bytes": [98]},
    ]


@pytest.mark.parametrize(
    ("deltas", "messages"),
    [
        ([{"role": "assistant", "content": ""}], []),
        ([{"content": None}], []),
        ([{"content": "a"}, {"content": "b"}], [{"content": "a"}, {"content": "b"}]),
        ([{"reasoning_content": "t"}], [{"content": "", "thinking": "t"}]),
        ([{"reasoning": "t", "content": "a"}], [{"content": "", "thinking": "t"}, {"content": "a"}]),
        ([{"reasoning": "t", "reasoning_content": "t"}], [{"content": "", "thinking": "t"}]),
    ],
)
def test_deltas_become_messages(deltas: list[dict[str, Any]], messages: list[dict[str, Any]]) -> None:
    assert said(CHAT, *map(chunk, deltas), STOPPED, "[DONE]") == [{"role": "assistant"} | m for m in messages]


def test_the_finish_event_s_own_content_comes_before_the_end() -> None:
    assert said(CHAT, chunk({"content": "last"}, "stop"), "[DONE]") == [{"role": "assistant", "content": "last"}]


def test_logprobs_are_carried_even_on_an_event_without_text() -> None:
    logprobs = {
        "content": [
            {
                "token": "a",
                "logprob": -1.0,
                "bytes": None,
                "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": [98]}],
            }
        ]
    }
    found = records(told(frames_of(CHAT, chunk({"content": ""}, logprobs=logprobs), STOPPED, "[DONE]"))[0])
    assert found[0]["message"]["content"] == ""
    assert found[0]["logprobs"] == [
        {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": [98]}]}
    ]


def seen(*tokens: str) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": -1.0, "bytes": None, "top_logprobs": []} for token in tokens]}


def tokens_of(found: list[dict[str, Any]]) -> list[str]:
    return [one["token"] for record in found for one in record.get("logprobs", [])]


@pytest.mark.parametrize(
    ("last", "kept"),
    [
        (chunk({"content": ""}, "stop", logprobs=seen("<end>")), ["a"]),
        (chunk({}, "stop", logprobs=seen("b", "<end>")), ["a"]),
        (chunk({"content": "b"}, "stop", logprobs=seen("b", "<end>")), ["a", "b"]),
        (chunk({"reasoning": "b"}, "stop", logprobs=seen("b", "<end>")), ["a", "b"]),
        (chunk({"content": ""}, "length", logprobs=seen("b")), ["a", "b"]),
    ],
)
def test_the_end_token_of_a_stream_has_no_logprob(last: dict[str, Any], kept: list[str]) -> None:
    found = records(told(frames_of(CHAT, chunk({"content": "a"}, logprobs=seen("a")), last, "[DONE]"))[0])
    assert tokens_of(found) == kept


@pytest.mark.parametrize(
    ("reason", "stop_reason", "kept"),
    [
        ("stop", None, ["a"]),
        ("stop", 128009, ["a"]),  # another end token of the model's
        ("stop", "b", ["a", "b"]),
        ("length", None, ["a", "b"]),
    ],
)
def test_the_end_token_of_a_whole_answer_has_no_logprob(reason: str, stop_reason: Any, kept: list[str]) -> None:
    end = {"finish_reason": reason, "stop_reason": stop_reason}
    chat = {"choices": [{"message": {"content": "a"}, "logprobs": seen("a", "b")} | end]}
    completion = {"choices": [{"text": "a", "logprobs": {"tokens": ["a", "b"]}} | end]}
    for call, body in ((WHOLE_CHAT, chat), (WHOLE_GENERATE, completion)):
        assert tokens_of(records(run(decoder(call), [msgspec.json.encode(body)])[0].data)) == kept


@pytest.mark.parametrize(
    ("reason", "done_reason"),
    [
        ("stop", "stop"),
        ("tool_calls", "stop"),
        ("repetition", "stop"),
        ("content_filter", "stop"),
        ("length", "length"),
    ],
)
def test_finish_reasons_become_done_reasons(reason: str, done_reason: str) -> None:
    assert ending(CHAT, chunk({"content": "x"}, reason), "[DONE]")["done_reason"] == done_reason
    assert ending(CHAT, chunk({"content": "x"}, reason))["done_reason"] == done_reason


def test_counts_of_zero_are_left_out_and_durations_are_at_least_one() -> None:
    last = ending(CHAT, STOPPED, "[DONE]")
    assert "prompt_eval_count" not in last
    assert "eval_count" not in last
    assert min(last["load_duration"], last["prompt_eval_duration"], last["eval_duration"]) >= 1


def test_vllm_s_own_times_are_preferred() -> None:
    times = USAGE | {"metrics": {"time_to_first_token_ms": 12.5, "generation_time_ms": 40.0}}
    last = ending(CHAT, chunk({"content": "x"}, "stop"), times, "[DONE]")
    assert (last["prompt_eval_duration"], last["eval_duration"]) == (12_500_000, 40_000_000)


def test_parts_and_usage_are_told() -> None:
    first, last = frames_of(CHAT, ROLE, chunk({"content": "x"}), STOPPED, USAGE, "[DONE]")
    assert first.parts == Part.CONTENT
    assert (last.parts, last.usage) == (Part.FINISH | Part.USAGE | Part.END, Usage(3, 2))


# --- tool calls -------------------------------------------------------------------------------------------------------


def fragment(
    index: int | None, id_: str | None = None, name: str | None = None, arguments: str | None = None
) -> dict[str, Any]:
    return {"index": index, "id": id_, "function": {"name": name, "arguments": arguments}}


def tools(*fragments: dict[str, Any]) -> dict[str, Any]:
    return chunk({"content": None, "tool_calls": list(fragments)})


def calls(*documents: Any) -> list[tuple[str, int, str, Any]]:
    found = [m["tool_calls"] for m in said(CHAT, *documents, chunk({}, "tool_calls"), "[DONE]")]
    assert all(len(one) == 1 for one in found)
    return [(c["id"], c["function"]["index"], c["function"]["name"], c["function"]["arguments"]) for (c,) in found]


def test_fragments_become_one_record_per_call() -> None:
    events = [
        tools(fragment(0, "a", "f", "")),
        tools(fragment(0, arguments='{"x":')),
        tools(fragment(0, "a", "f", " 1}"), fragment(1, "b", "g")),
    ]
    assert calls(*events) == [("a", 0, "f", {"x": 1}), ("b", 1, "g", {})]


def test_a_parser_that_forgets_its_indexes_is_understood() -> None:
    assert calls(tools(fragment(0, "a", "f", "{}")), tools(fragment(0, "b", "g", "{}"))) == [
        ("a", 0, "f", {}),
        ("b", 1, "g", {}),
    ]
    assert calls(tools(fragment(None, "a", "f", "{")), tools(fragment(None, arguments="}"))) == [("a", 0, "f", {})]


def test_gathering_a_call_shows_as_content_without_bytes() -> None:
    (frame,) = decoder(CHAT).feed(sse(tools(fragment(0, "a", "f", "{"))))
    assert (frame.data, frame.parts) == (b"", Part.CONTENT)


@pytest.mark.parametrize("arguments", ['{"x":', "[1]", "3", "no"])
def test_arguments_that_are_no_object_fail_instead_of_being_guessed(arguments: str) -> None:
    with pytest.raises(AttemptFailed, match="tool-arguments") as failed:
        calls(tools(fragment(0, "a", "f", arguments)))
    assert failed.value.outcome.kind is Kind.MALFORMED


def test_an_assembler_keeps_late_ids_and_names() -> None:
    assembler = Assembler()
    assembler.add([Fragment(0, None, FunctionFragment(None, "{")), Fragment(0, "a", FunctionFragment("f", "}"))])
    (call,) = assembler.calls()
    assert (call.id, call.name, call.arguments) == ("a", "f", "{}")


# --- failures ---------------------------------------------------------------------------------------------------------

SAID = sse(chunk({"content": "x"}))


@pytest.mark.parametrize(
    ("bad", "kind", "text"),
    [
        (sse({"error": {"message": "dead"}}, "[DONE]"), Kind.SERVER, "dead"),
        (sse(chunk({}, "abort")), Kind.SERVER, ""),
        (sse(chunk({}, "error")), Kind.SERVER, ""),
        (sse("[DONE]"), Kind.TRUNCATED, ""),
        (b"", Kind.TRUNCATED, ""),
        (SAID[:-9], Kind.TRUNCATED, ""),
        (sse("{no"), Kind.MALFORMED, ""),
    ],
)
def test_a_failed_stream_never_ends_with_done(bad: bytes, kind: Kind, text: str) -> None:
    attempt = decoder(CHAT)
    (frame,) = attempt.feed(SAID + bad)
    assert [record["done"] for record in records(frame.data)] == [False]
    with pytest.raises(AttemptFailed) as failed:
        attempt.eof()
    assert (failed.value.outcome.kind, failed.value.client_text, failed.value.client_body) == (kind, text, b"")


def test_what_follows_the_end_is_ignored() -> None:
    attempt = decoder(CHAT)
    attempt.feed(sse(STOPPED, "[DONE]", "{no"))
    assert list(attempt.eof()) == []


# --- cuts -------------------------------------------------------------------------------------------------------------


def same(call: Call, chunks: list[bytes]) -> tuple[list[dict[str, Any]], int, Usage | None]:
    """All that was told but for the durations, which grow with the number of reads."""
    data, parts, usage = told(run(decoder(call, split_think_tags=True), chunks))
    return records(re.sub(rb'"\w+_duration":\d+', b'"duration":0', data)), parts, usage


@pytest.mark.parametrize("call", [CHAT, GENERATE])
def test_records_do_not_depend_on_the_cuts(call: Call) -> None:
    expected = same(call, [VLLM_STREAM])
    for place in range(len(VLLM_STREAM)):
        assert same(call, cut(VLLM_STREAM, [place])) == expected


@settings(max_examples=100)
@given(st.lists(st.integers(0, len(VLLM_STREAM)), max_size=30))
def test_records_do_not_depend_on_many_cuts(places: list[int]) -> None:
    assert same(CHAT, cut(VLLM_STREAM, places)) == same(CHAT, [VLLM_STREAM])


@settings(max_examples=200)
@given(st.sampled_from([CHAT, GENERATE, WHOLE_CHAT]), st.lists(st.binary(max_size=40), max_size=4))
def test_random_bytes_fail_as_an_attempt(call: Call, chunks: list[bytes]) -> None:
    with pytest.raises(AttemptFailed):
        run(decoder(call), [*chunks, b"\n\ndata: {"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["delta", "content", "index"]), inner),
    max_leaves=5,
)
KEYS = st.sampled_from(["choices", "usage", "error", "model", "metrics"])


@settings(max_examples=200)
@given(st.sampled_from([CHAT, WHOLE_CHAT]), st.dictionaries(KEYS, JSON))
def test_documents_of_any_shape_fail_as_an_attempt(call: Call, document: dict[str, Any]) -> None:
    body = sse(document) if call.stream else msgspec.json.encode(document)
    with pytest.raises(AttemptFailed):
        run(decoder(call), [body])


# --- whole answers ----------------------------------------------------------------------------------------------------


def answer(finish: str | None = "stop", **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "refusal": None} | message, "finish_reason": finish}
    usage = {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29}
    return msgspec.json.encode({"id": "c", "model": "m", "choices": [choice], "usage": usage})


def test_a_whole_chat_answer_becomes_one_object() -> None:
    function = {"name": "f", "arguments": '{"b":1,"a":"<"}'}
    body = answer(
        "tool_calls", content=None, reasoning="hm", tool_calls=[{"id": "t", "type": "function", "function": function}]
    )
    (frame,) = run(decoder(WHOLE_CHAT), cut(body, [9, 50]))
    assert frame.data == (
        b'{"model":"Caller:latest","created_at":"%b","message":{"role":"assistant","content":"","thinking":"hm",'
        b'"tool_calls":[{"id":"t","function":{"index":0,"name":"f","arguments":{"b":1,"a":"\\u003c"}}}]},"done":true,'
        b'"done_reason":"stop","total_duration":1000000000,"load_duration":1,"prompt_eval_count":20,'
        b'"prompt_eval_duration":50000000,"eval_count":9,"eval_duration":450000000}' % AT.encode()
    )
    assert (frame.parts, frame.usage) == (Part.CONTENT | Part.FINISH | Part.USAGE | Part.END, Usage(20, 9))


def test_a_whole_generate_answer_is_read_from_chat_and_from_completions() -> None:
    completion = msgspec.json.encode({"choices": [{"text": "x", "finish_reason": "length"}]})
    for body, reason in ((answer(content="x"), "stop"), (completion, "length")):
        document = msgspec.json.decode(run(decoder(WHOLE_GENERATE), [body])[0].data)
        assert (document["response"], document["done_reason"], document["done"]) == ("x", reason, True)
        assert "context" not in document


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", Kind.MALFORMED),
        (b'{"choices":[]}', Kind.MALFORMED),
        (b'{"error":"dead"}', Kind.SERVER),
        (answer("abort", content="x"), Kind.SERVER),
        (answer(None, content="x"), Kind.TRUNCATED),
        (answer(content="x", tool_calls=[{"id": "t", "function": {"name": "f", "arguments": "{"}}]), Kind.MALFORMED),
    ],
)
def test_a_whole_answer_that_is_none_fails(body: bytes, kind: Kind) -> None:
    with pytest.raises(AttemptFailed) as failed:
        run(decoder(WHOLE_CHAT), [body])
    assert failed.value.outcome.kind is kind


# --- think tags -------------------------------------------------------------------------------------------------------

TAGGED = " <think>\n a < b </ no \n</think>\n\nso <think>x</think> "
SPLIT = ("a < b </ no", "so <think>x</think> ")


def pieces(*texts: str) -> tuple[str, str]:
    splitter = ThinkSplitter()
    found: list[Piece] = [piece for text in texts for piece in splitter.feed(text)] + splitter.close()
    assert all(piece.text for piece in found)
    return "".join(p.text for p in found if p.thought), "".join(p.text for p in found if not p.thought)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        (TAGGED, SPLIT),
        ("plain <think>no</think>", ("", "plain <think>no</think>")),
        ("<thin", ("", "<thin")),
        ("  \n", ("", "  \n")),
        ("<think>cut </thi", ("cut </thi", "")),
        ("<think>cut \n", ("cut", "")),
        ("<think></think>x", ("", "x")),
        ("<think>t</think> \n", ("t", "")),
        ("", ("", "")),
    ],
)
def test_think_tags_are_split_off_wherever_the_text_is_cut(text: str, split: tuple[str, str]) -> None:
    assert pieces(text) == split
    assert pieces(*text) == split
    for place in range(len(text)):
        assert pieces(text[:place], text[place:]) == split


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<", "think>", " ", "\n", "a", "/"]), max_size=8), st.data())
def test_the_splitter_does_not_depend_on_the_cuts(words: list[str], draw: st.DataObject) -> None:
    text = "".join(words)
    edges = [0, *sorted(draw.draw(st.lists(st.integers(0, len(text)), max_size=5))), len(text)]
    assert pieces(*(text[a:b] for a, b in pairwise(edges))) == pieces(text)


def test_tags_are_split_only_where_the_settings_say_so() -> None:
    events = [chunk({"content": text}) for text in ("<th", "ink>t</thi", "nk>", "\nx")]
    split = said(CHAT, *events, STOPPED, "[DONE]", split_think_tags=True)
    assert [(m["content"], m.get("thinking")) for m in split] == [("", "t"), ("x", None)]
    assert said(CHAT, *events, STOPPED, "[DONE]")[0]["content"] == "<th"
    whole = msgspec.json.decode(run(decoder(WHOLE_CHAT, split_think_tags=True), [answer(content=TAGGED)])[0].data)
    assert (whole["message"]["thinking"], whole["message"]["content"]) == SPLIT


# --- Go's spelling ----------------------------------------------------------------------------------------------------


def test_json_is_escaped_as_go_does() -> None:
    assert go_json({"t": '<&>\u2028\u2029é"\\'}) == '{"t":"\\u003c\\u0026\\u003e\\u2028\\u2029é\\"\\\\"}'.encode()


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (1_787_392_800_000_000_000, "2026-08-22T10:00:00Z"),
        (1_787_392_800_100_000_000, "2026-08-22T10:00:00.1Z"),
        (1_787_392_800_000_000_001, "2026-08-22T10:00:00.000000001Z"),
    ],
)
def test_times_lose_their_trailing_zeros(ns: int, text: str) -> None:
    assert rfc3339(ns) == text
