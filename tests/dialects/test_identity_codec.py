"""Equal wires: bytes pass, and what may change is exactly what is listed."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from dialect_streams import (
    OFFER,
    OLLAMA,
    OLLAMA_STREAM,
    ROLE,
    USAGE,
    V1_STREAM,
    VLLM,
    VLLM_STREAM,
    chunk,
    cut,
    make_call,
    run,
    sse,
    target,
    told,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_llm.core.call import Call, Part, Thinking, Usage, Wire
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed, BadRequest, ModelNotFound
from memos_llm.core.outcome import Kind
from memos_llm.core.ports import Codec, Decoder
from memos_llm.dialects.codecs import CODECS
from memos_llm.dialects.codecs.decoder import WholeDecoder
from memos_llm.dialects.codecs.echo import ModelEcho
from memos_llm.dialects.codecs.embed_to_openai import EmbedToOpenAI
from memos_llm.dialects.codecs.identity import Identity
from memos_llm.dialects.codecs.ollama_to_openai import OllamaToOpenAI
from memos_llm.dialects.codecs.repairs import REPAIRS
from memos_llm.dialects.codecs.silence import SILENCES
from memos_llm.dialects.edge import DIALECTS

CHAT, GENERATE, OPENAI = Wire.OLLAMA_CHAT, Wire.OLLAMA_GENERATE, Wire.OPENAI_CHAT
USER = [{"role": "user", "content": "hi"}]
ASKED: dict[str, Any] = {"stream_options": {"include_usage": True}}
IDENTITY = Identity()


def openai_call(model: str = "m", **more: Any) -> Call:
    return make_call(OPENAI, {"model": model, "messages": USER, "stream": True} | more)


def decoder(call: Call) -> Decoder:
    return IDENTITY.decoder(call, target())


def failure(call: Call, *chunks: bytes) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as failed:
        run(decoder(call), chunks)
    return failed.value


# --- which codec ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "body", "offer", "kind"),
    [
        (OPENAI, {}, VLLM, Identity),
        (CHAT, {}, OLLAMA, Identity),
        (CHAT, {}, VLLM, OllamaToOpenAI),
        (GENERATE, {"prompt": "p"}, VLLM, OllamaToOpenAI),
        (GENERATE, {"prompt": "p", "raw": True}, VLLM, OllamaToOpenAI),
        (GENERATE, {"prompt": "p", "suffix": "s"}, VLLM, OllamaToOpenAI),
        (GENERATE, {"prompt": "p", "raw": True}, Offer(frozenset({OPENAI})), type(None)),
        (GENERATE, {"prompt": "p", "context": [1]}, VLLM, type(None)),
        (CHAT, {"messages": []}, VLLM, type(None)),
        (CHAT, {"messages": []}, OLLAMA, Identity),
        (OPENAI, {"stop": list("abcde")}, Offer(VLLM.wires, features=VLLM.features ^ 16), type(None)),
        (Wire.OPENAI_COMPLETION, {"prompt": "p"}, VLLM, Identity),
        (Wire.OPENAI_COMPLETION, {"prompt": "p"}, Offer(frozenset({OPENAI})), type(None)),
    ],
)
def test_the_same_wire_comes_first_then_a_translation_that_fits(
    wire: Wire, body: dict[str, Any], offer: Offer, kind: type
) -> None:
    assert type(CODECS.find(make_call(wire, {"model": "m", "messages": USER} | body), offer)) is kind


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_body_that_needs_no_change_is_sent_as_it_came() -> None:
    raw = b'{ "model":"served/m", "messages" : [ {"role":"user","content":"\\u0068i"} ],"stream":true,'
    raw += b'"stream_options":{"include_usage":true}}'
    call = make_call(OPENAI, raw)
    request, warnings = IDENTITY.request(call, target(), OFFER)
    assert request.body is call.body
    assert (request.id, request.wire, request.model, request.stream, warnings) == ("id-1", OPENAI, "served/m", True, ())


def test_only_the_model_s_value_changes_when_its_name_does() -> None:
    raw = b'{"model":"alias","messages":[ {"role":"user",  "content":"\\u0068i"}],"seed":1.50,"options":{ }}'
    request, warnings = IDENTITY.request(make_call(CHAT, raw), target(), OFFER)
    assert request.body == raw.replace(b'"alias"', b'"served/m"')
    assert warnings == ()


@pytest.mark.parametrize("tools", ["[]", "[ \n]"])
def test_empty_tools_are_dropped_with_a_warning(tools: str) -> None:
    raw = b'{"model":"served/m","tools":%b,"messages":[]}' % tools.encode()
    request, warnings = IDENTITY.request(make_call(OPENAI, raw), target(), OFFER)
    assert (request.body, warnings) == (b'{"model":"served/m","messages":[]}', ("repaired:tools",))


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        ("auto", {}),
        ("none", {}),
        ("required", {"tool_choice": "required"}),
        ({"type": "function"}, {"tool_choice": {"type": "function"}}),
    ],
)
def test_empty_tools_take_a_choice_among_none_with_them(choice: Any, left: dict[str, Any]) -> None:
    call = make_call(OPENAI, {"model": "served/m", "tools": [], "tool_choice": choice})
    request, warnings = IDENTITY.request(call, target(), OFFER)
    assert (msgspec.json.decode(request.body), warnings) == ({"model": "served/m"} | left, ("repaired:tools",))
    tooled = make_call(OPENAI, {"model": "served/m", "tools": [{}], "tool_choice": choice})
    assert IDENTITY.request(tooled, target(), OFFER)[0].body is tooled.body


def test_empty_tools_stay_on_ollama_s_own_wire() -> None:
    call = make_call(CHAT, {"model": "served/m", "tools": [], "messages": USER})
    assert IDENTITY.request(call, target(), OFFER)[0].body is call.body


def test_max_completion_tokens_is_renamed_only_where_the_provider_needs_it() -> None:
    call = make_call(OPENAI, {"model": "served/m", "messages": [], "max_completion_tokens": 7, "max_tokens": 9})
    assert IDENTITY.request(call, target(), OFFER)[0].body is call.body
    request, warnings = IDENTITY.request(call, target(repairs=frozenset({"max_completion_tokens"})), OFFER)
    assert msgspec.json.decode(request.body) == {"model": "served/m", "messages": [], "max_tokens": 7}
    assert warnings == ("repaired:max_completion_tokens",)


def test_a_null_max_completion_tokens_is_left_alone() -> None:
    call = make_call(OPENAI, {"model": "served/m", "max_completion_tokens": None})
    assert IDENTITY.request(call, target(repairs=frozenset(REPAIRS)), OFFER)[0].body is call.body


@pytest.mark.parametrize(
    ("given_", "sent"),
    [
        ({}, {"temperature": 0.8, "max_tokens": 64}),
        ({"temperature": None}, {"temperature": 0.8, "max_tokens": 64}),
        ({"temperature": 0, "max_tokens": 1}, {"temperature": 0, "max_tokens": 1}),
        ({"max_completion_tokens": 5}, {"max_completion_tokens": 5, "temperature": 0.8}),
    ],
)
def test_defaults_fill_what_the_caller_leaves_open(given_: dict[str, Any], sent: dict[str, Any]) -> None:
    settings_ = target(defaults={"temperature": 0.8, "max_tokens": 64})
    request, warnings = IDENTITY.request(make_call(OPENAI, {"model": "served/m"} | given_), settings_, OFFER)
    assert msgspec.json.decode(request.body) == {"model": "served/m"} | sent
    assert warnings == (() if given_ == sent else ("repaired:defaults",))


@pytest.mark.parametrize(
    ("options", "sent"), [(None, {"top_k": 40}), ({"seed": 1}, {"seed": 1, "top_k": 40}), ([], [])]
)
def test_defaults_go_into_the_options_on_ollama_s_wire(options: Any, sent: Any) -> None:
    call = make_call(GENERATE, {"model": "served/m", "prompt": "p", "options": options})
    body = msgspec.json.decode(IDENTITY.request(call, target(defaults={"top_k": 40}), OFFER)[0].body)
    assert body["options"] == sent


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (None, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"x": 1}, {"x": 1, "include_usage": True}),
    ],
)
def test_a_stream_is_always_asked_for_its_usage(options: Any, sent: Any) -> None:
    body = IDENTITY.request(openai_call("served/m", stream_options=options), target(), OFFER)[0].body
    assert msgspec.json.decode(body)["stream_options"] == sent


def test_stream_options_of_a_wrong_type_are_the_back_end_s_to_refuse() -> None:
    call = openai_call("served/m", stream_options=[1])
    assert IDENTITY.request(call, target(), OFFER)[0].body is call.body


# --- answers: bytes ---------------------------------------------------------------------------------------------------

STREAMS = [
    (openai_call(**ASKED), VLLM_STREAM),
    (openai_call(**ASKED), V1_STREAM),
    (openai_call(**ASKED), VLLM_STREAM.replace(b"\n", b"\r\n")),
    (openai_call(**ASKED), VLLM_STREAM.replace(b"\n", b"\r")),
    (make_call(CHAT, {"model": "m", "messages": USER}), OLLAMA_STREAM),
    (make_call(GENERATE, {"model": "m", "prompt": "p"}), OLLAMA_STREAM.replace(b"message", b"m")),
]
EVERYTHING = Part.CONTENT | Part.FINISH | Part.USAGE | Part.END


@pytest.mark.parametrize(("call", "stream"), STREAMS)
def test_a_stream_passes_byte_for_byte_at_every_cut(call: Call, stream: bytes) -> None:
    expected = told(run(decoder(call), [stream]))
    assert expected[0] == stream
    assert expected[1] | Part.CONTENT == EVERYTHING
    for place in range(len(stream)):
        assert told(run(decoder(call), cut(stream, [place]))) == expected


@settings(max_examples=150)
@given(st.sampled_from(STREAMS), st.data())
def test_a_stream_passes_byte_for_byte_at_many_cuts(case: tuple[Call, bytes], draw: st.DataObject) -> None:
    call, stream = case
    places = draw.draw(st.lists(st.integers(0, len(stream)), max_size=30))
    assert told(run(decoder(call), cut(stream, places))) == told(run(decoder(call), [stream]))


def test_the_usage_event_is_kept_from_a_caller_who_did_not_ask() -> None:
    for place in range(len(VLLM_STREAM)):
        data, parts, usage = told(run(decoder(openai_call()), cut(VLLM_STREAM, [place])))
        assert data == VLLM_STREAM.replace(sse(USAGE), b"")
        assert (parts, usage) == (EVERYTHING, Usage(3, 2))


def test_usage_on_an_event_with_choices_stays() -> None:
    stream = sse(chunk({"content": "x"}, "stop", usage={"prompt_tokens": 1, "completion_tokens": 1}), "[DONE]")
    assert told(run(decoder(openai_call()), [stream]))[0] == stream


@pytest.mark.parametrize("name", ["cäller/«m»", 'quo"te', "m:latest"])
def test_answers_carry_the_caller_s_spelling_of_the_model_and_differ_in_nothing_else(name: str) -> None:
    stream = VLLM_STREAM.replace(b'"model":"m"', b'"model":"served/m"')
    data, *_ = told(run(decoder(openai_call(name, **ASKED)), cut(stream, range(0, len(stream), 7))))
    assert data == VLLM_STREAM.replace(b'"model":"m"', b'"model":' + msgspec.json.encode(name))


@pytest.mark.parametrize(
    ("raw", "rewritten"),
    [
        (b'{"model":"a","x":{"model":"a"}}', b'{"model":"B","x":{"model":"a"}}'),
        (b'{"x":{"model":"a"},"model":"a"}', b'{"x":{"model":"a"},"model":"B"}'),
        (b'{"x":["model","a"], "model" : "a" }', b'{"x":["model","a"], "model" : "B" }'),
        (b'{"t":"\\"model\\":\\"a\\"","model":"a"}', b'{"t":"\\"model\\":\\"a\\"","model":"B"}'),
        (b'{"t":"{\\"model\\":","model":"a"}', b'{"t":"{\\"model\\":","model":"B"}'),
        (b'{"t\\"model":"a","model":"a"}', b'{"t\\"model":"a","model":"B"}'),
        (b'{"object":"model","model":"\\u0061"}', b'{"object":"model","model":"B"}'),
        (b'{"x":{"model":"a"}}', b'{"x":{"model":"a"}}'),
    ],
)
def test_only_the_top_level_model_is_rewritten(raw: bytes, rewritten: bytes) -> None:
    assert ModelEcho("B").rewrite(raw, "a") == rewritten


# --- answers: parts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "parts"),
    [
        (sse(ROLE), Part.PREAMBLE),
        (b": keep-alive\n\n", Part.PREAMBLE),
        (sse(chunk({})), Part.PREAMBLE),
        (sse(chunk({"content": "x"})), Part.CONTENT),
        (sse(chunk({"reasoning": "x"})), Part.CONTENT),
        (sse(chunk({"reasoning_content": "x"})), Part.CONTENT),
        (sse(chunk({"refusal": "x"})), Part.CONTENT),
        (sse(chunk({"content": None, "tool_calls": [{"index": 0}]})), Part.CONTENT),
        (sse(chunk({"content": "x"}, "length")), Part.CONTENT | Part.FINISH),
        (sse({"choices": [{"text": "x", "finish_reason": None}]}), Part.CONTENT),
        (sse({"choices": [{"text": "", "finish_reason": None}], "usage": {"prompt_tokens": 0}}), Part.CONTENT),
        (sse({"choices": [{"text": "", "finish_reason": "stop"}]}), Part.FINISH),
        (sse(chunk({"content": "x"}), chunk({}, "stop"), USAGE, "[DONE]"), EVERYTHING),
    ],
)
def test_openai_events_are_told_apart(event: bytes, parts: int) -> None:
    (frame,) = decoder(openai_call(**ASKED)).feed(event)
    assert (frame.data, frame.parts) == (event, parts)


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        ({"message": {"content": "x"}, "done": False}, Part.CONTENT),
        ({"message": {"content": "", "thinking": "x"}, "done": False}, Part.CONTENT),
        ({"message": {"content": "", "tool_calls": [{}]}, "done": False}, Part.CONTENT),
        ({"response": "x", "done": False}, Part.CONTENT),
        ({"response": "", "thinking": "x", "done": False}, Part.CONTENT),
        ({"response": "", "done": False}, Part.PREAMBLE),
        ({"message": {"content": ""}, "done": True}, Part.FINISH | Part.END),
        ({"response": "x", "done": True, "eval_count": 2}, EVERYTHING),
    ],
)
def test_native_records_are_told_apart(record: dict[str, Any], parts: int) -> None:
    line = msgspec.json.encode(record) + b"\n"
    (frame,) = decoder(make_call(CHAT, {"model": "m", "messages": USER})).feed(line)
    assert (frame.data, frame.parts) == (line, parts)


# --- answers: failures ------------------------------------------------------------------------------------------------

NATIVE_CALL = make_call(CHAT, {"model": "m", "messages": USER})
SAID = sse(chunk({"content": "x"}))
LINE = b'{"message":{"content":"x"},"done":false}\n'


@pytest.mark.parametrize(
    ("call", "good", "bad", "kind", "text"),
    [
        (openai_call(), SAID, sse({"error": {"message": "dead", "code": 500}}, "[DONE]"), Kind.SERVER, "dead"),
        (openai_call(), SAID, sse({"error": "dead"}), Kind.SERVER, "dead"),
        (openai_call(), SAID, sse(chunk({"content": ""}, "abort")), Kind.SERVER, ""),
        (openai_call(), SAID, sse(chunk({}, "error")), Kind.SERVER, ""),
        (openai_call(), SAID, sse(chunk({"content": ""}) | {"model": ""}), Kind.SERVER, ""),
        (openai_call(), SAID, sse("{no"), Kind.MALFORMED, ""),
        (openai_call(), SAID, sse("[DONE]"), Kind.TRUNCATED, ""),
        (openai_call(), SAID, b"", Kind.TRUNCATED, ""),
        (openai_call(), SAID, SAID[:-9], Kind.TRUNCATED, ""),
        (openai_call(n=2), SAID, sse(chunk({}, "stop"), "[DONE]"), Kind.TRUNCATED, ""),
        (NATIVE_CALL, LINE, b'{"error":"runner died"}\n', Kind.SERVER, "runner died"),
        (NATIVE_CALL, LINE, b"<html>\n", Kind.MALFORMED, ""),
        (NATIVE_CALL, LINE, b"", Kind.TRUNCATED, ""),
        (NATIVE_CALL, LINE, LINE[:-5], Kind.TRUNCATED, ""),
    ],
)
def test_a_failure_comes_after_all_that_arrived_before_it(
    call: Call, good: bytes, bad: bytes, kind: Kind, text: str
) -> None:
    together = decoder(call)
    frames = together.feed(good + bad)
    assert frames[0].data.startswith(good)
    for attempt in (together.eof, together.eof):
        with pytest.raises(AttemptFailed) as failed:
            attempt()
        assert (failed.value.outcome.kind, failed.value.client_text) == (kind, text)
    assert failure(call, good, bad).outcome == failed.value.outcome


def test_a_finished_stream_without_its_last_marker_or_terminator_counts() -> None:
    finished = sse(chunk({"content": "x"}, "stop"))
    assert told(run(decoder(openai_call()), [finished]))[0] == finished
    assert told(run(decoder(openai_call()), [finished + b"data: [DONE]\n"]))[1] & Part.END
    assert told(run(decoder(NATIVE_CALL), [OLLAMA_STREAM.rstrip()]))[1] & Part.END


def test_n_choices_each_finish() -> None:
    other = {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}
    stream = sse(chunk({"content": "x"}, "stop"), other, "[DONE]")
    assert told(run(decoder(openai_call(n=2)), [stream]))[0] == stream


# --- whole answers ----------------------------------------------------------------------------------------------------

ANSWER = (
    b'{"id":"c","model":"m", "choices":[{"message":{"content":"x"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2}}'
)
WHOLE = make_call(OPENAI, {"model": "m", "messages": USER})
NATIVE_WHOLE = make_call(CHAT, {"model": "m", "messages": USER, "stream": False})


def test_a_whole_answer_is_one_frame_and_the_same_bytes() -> None:
    frames = run(decoder(WHOLE), cut(ANSWER, [5, 40]))
    assert [told(frames)] == [(ANSWER, EVERYTHING, Usage(3, 2))]
    assert len(frames) == 1
    renamed = make_call(OPENAI, {"model": "alias", "messages": USER})
    assert run(decoder(renamed), [ANSWER])[0].data == ANSWER.replace(b'"m"', b'"alias"')


@pytest.mark.parametrize("reason", ["load", "unload", "stop"])
def test_native_answers_pass_load_and_unload_too(reason: str) -> None:
    body = b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"%b"}' % reason.encode()
    call = make_call(CHAT, {"model": "m"}) if reason != "stop" else NATIVE_WHOLE
    assert told(run(decoder(call), [body])) == (body, Part.CONTENT | Part.FINISH | Part.END, None)


@pytest.mark.parametrize("wire", [CHAT, GENERATE])
def test_a_rendered_prompt_is_whole_though_never_done(wire: Wire) -> None:
    """As Ollama 0.17 answers, and with `stream: true` too."""
    said = b'"message":{"role":"","content":""}' if wire is CHAT else b'"response":""'
    body = b'{"model":"m","created_at":"2026-08-22T10:00:00Z",%b,"done":false,' % said
    body += b'"_debug_info":{"rendered_template":"<s>hi"}}'
    asked = {"model": "m", "messages": USER, "prompt": "p", "stream": True, "_debug_render_only": True}
    assert told(run(decoder(make_call(wire, asked)), [body])) == (body, Part.CONTENT | Part.FINISH | Part.END, None)


@pytest.mark.parametrize(
    ("call", "body", "kind", "returned"),
    [
        (WHOLE, b"", Kind.MALFORMED, b""),
        (WHOLE, b"<html>", Kind.MALFORMED, b""),
        (WHOLE, b'{"choices":[]}', Kind.MALFORMED, b""),
        (WHOLE, b'{"error":{"message":"dead"}}', Kind.SERVER, b""),
        (WHOLE, ANSWER.replace(b'"stop"', b'"abort"'), Kind.SERVER, b""),
        (WHOLE, ANSWER.replace(b'"stop"', b"null"), Kind.TRUNCATED, ANSWER.replace(b'"stop"', b"null")),
        (WHOLE, ANSWER[:-1], Kind.MALFORMED, b""),
        (
            NATIVE_WHOLE,
            b'{"message":{"content":"x"},"done":false}',
            Kind.TRUNCATED,
            b'{"message":{"content":"x"},"done":false}',
        ),
        (NATIVE_WHOLE, b'{"error":"dead"}', Kind.SERVER, b""),
        (NATIVE_WHOLE, b"", Kind.MALFORMED, b""),
    ],
)
def test_a_whole_answer_that_is_none_fails(call: Call, body: bytes, kind: Kind, returned: bytes) -> None:
    failed = failure(call, body)
    assert (failed.outcome.kind, failed.client_body) == (kind, returned)


def test_a_whole_answer_has_a_size_cap() -> None:
    capped = WholeDecoder(lambda body: pytest.fail("read"), max_bytes=4)
    capped.feed(b"1234")
    with pytest.raises(AttemptFailed, match="oversize"):
        capped.feed(b"5")


@settings(max_examples=200)
@given(st.sampled_from([openai_call(), NATIVE_CALL, WHOLE, NATIVE_WHOLE]), st.lists(st.binary(max_size=40), max_size=4))
def test_random_bytes_fail_as_an_attempt_or_pass(call: Call, chunks: list[bytes]) -> None:
    failure(call, *chunks, b"\n\n{")


# --- bodies that were damaged on the way ------------------------------------------------------------------------------

PNG = "iVBORw0KGgo="
BODIES: dict[Wire, dict[str, Any]] = {
    CHAT: {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be \u00fc"},
            {"role": "user", "content": "hi", "images": [PNG]},
            {
                "role": "assistant",
                "thinking": "t",
                "tool_calls": [{"function": {"name": "f", "arguments": {"a": "b"}}}],
            },
            {"role": "tool", "content": "x", "tool_name": "f"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "format": {"type": "object"},
        "think": "high",
        "options": {"temperature": 0.5, "num_predict": 7, "seed": 3, "stop": ["a"], "num_ctx": 9},
        "keep_alive": "5m",
        "logprobs": True,
        "top_logprobs": 3,
        "stream": True,
    },
    GENERATE: {
        "model": "m",
        "prompt": "<s>hi",
        "system": "be brief",
        "images": [PNG],
        "raw": False,
        "suffix": "",
        "format": "json",
        "think": True,
        "options": {"top_k": 4, "repeat_penalty": 1.1},
    },
    OPENAI: {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        "stream": True,
        "stream_options": {"include_usage": False},
        "n": 2,
        "max_completion_tokens": 9,
        "tools": [],
        "metadata": {"component": "c"},
        "user": "u",
    },
    Wire.OPENAI_COMPLETION: {"model": "m", "prompt": ["p", "q"], "max_tokens": 5, "n": 2, "stop": ["a"], "echo": True},
    Wire.OPENAI_EMBEDDINGS: {"model": "m", "input": ["p", "q"], "dimensions": 5, "encoding_format": "base64"},
    Wire.OLLAMA_EMBED: {"model": "m", "input": ["p"], "truncate": True, "dimensions": 5, "options": {"num_ctx": 9}},
    Wire.OLLAMA_EMBEDDINGS: {"model": "m", "prompt": "p", "keep_alive": 5, "options": {"num_ctx": 9}},
}
PIECES = [
    b"\xff",
    b"\xc3",
    b"\\ud800",
    b"\\udc00x",
    b"1e999",
    b"1e300",
    b"9" * 400,
    b"9" * 5000,
    b"\x00",
    b"null",
    b"{",
    b"]",
    b'"',
    b"[" * 9,
]
DAMAGE = st.tuples(
    st.sampled_from(["insert", "replace", "delete"]),
    st.integers(0, 2000),
    st.sampled_from(PIECES) | st.binary(min_size=1, max_size=3),
)
CARRIERS: dict[Wire, Codec] = {
    CHAT: OllamaToOpenAI(),
    GENERATE: OllamaToOpenAI(),
    Wire.OLLAMA_EMBED: EmbedToOpenAI(),
    Wire.OLLAMA_EMBEDDINGS: EmbedToOpenAI(),
}
ALL = frozenset({*REPAIRS, *SILENCES})


def damaged(body: bytes, steps: list[tuple[str, int, bytes]]) -> bytes:
    for how, place, piece in steps:
        at = place % (len(body) + 1)
        kept = at if how == "insert" else at + len(piece)
        body = body[:at] + (b"" if how == "delete" else piece) + body[kept:]
    return body


def carried(wire: Wire, body: bytes) -> None:
    """All that is done with a request before it is sent: read or refused, never anything else."""
    with suppress(BadRequest, ModelNotFound):
        call = make_call(wire, body)
        DIALECTS[wire].conversation_key(call.head)
        for codec in (IDENTITY, CARRIERS.get(wire, IDENTITY)):
            for settings_ in ({}, {"thinking": Thinking.REASONING_EFFORT}, {"thinking": Thinking.THINKING}):
                with suppress(AttemptFailed):
                    full = target(**settings_, defaults={"temperature": 0.1}, repairs=ALL)
                    codec.request(call, full, OFFER)
                    codec.decoder(call, full)


@settings(max_examples=600)
@given(st.sampled_from(list(BODIES)), st.lists(DAMAGE, min_size=1, max_size=3))
def test_damaged_bodies_are_carried_or_refused(wire: Wire, steps: list[tuple[str, int, bytes]]) -> None:
    carried(wire, damaged(msgspec.json.encode(BODIES[wire]), steps))


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("wire", list(BODIES))
def test_damage_at_every_place_is_carried_or_refused(wire: Wire, piece: bytes) -> None:
    body = msgspec.json.encode(BODIES[wire])
    for at in range(len(body)):
        carried(wire, damaged(body, [("insert", at, piece)]))
        carried(wire, damaged(body, [("replace", at, piece)]))


@pytest.mark.parametrize("number", ["1e300", "-1e300", "9" * 30, "9" * 400, "1e999"])
@pytest.mark.parametrize("name", ["num_predict", "top_k", "seed", "num_ctx", "temperature", "repeat_penalty"])
def test_options_beyond_64_bits_are_carried_or_refused(name: str, number: str) -> None:
    raw = b'{"model":"m","messages":[{"role":"user","content":"x"}],"options":{"%b":%b}}'
    carried(CHAT, raw % (name.encode(), number.encode()))


@pytest.mark.parametrize(
    ("wire", "raw", "words"),
    [
        (CHAT, b'"think":"\xff"', "think: not valid UTF-8"),
        (CHAT, b'"think":true,"options":{"\xff":1}', "options: not valid UTF-8"),
        (
            CHAT,
            b'"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{"a":"\xff"}}}]}]',
            "messages: the arguments of a tool call are not valid UTF-8",
        ),
    ],
)
def test_what_is_no_utf_8_is_refused_by_name(wire: Wire, raw: bytes, words: str) -> None:
    rest = b"" if b"messages" in raw else b',"messages":[{"role":"user","content":"x"}]'
    call = make_call(wire, b'{"model":"m",%b%b}' % (raw, rest))
    with pytest.raises(AttemptFailed) as failed:
        OllamaToOpenAI().request(call, target(thinking=Thinking.THINKING), OFFER)
    assert (failed.value.outcome.kind, failed.value.outcome.status) == (Kind.CLIENT, 400)
    assert failed.value.client_text == words
