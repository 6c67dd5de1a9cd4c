"""From Ollama's native wires to vLLM and back: one case for every row of the translation's specification."""

import base64
from typing import Any, NamedTuple

import msgspec
import pytest
from dialect_streams import ROLE, USAGE, chunk, make_call, native_codec, records, run, sse, target
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_llm.core.call import Quirk, Thinking, Wire
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind
from memos_llm.core.ports import Codec, Decoder
from memos_llm.dialects.codecs import CODECS, report
from memos_llm.dialects.codecs.embed_to_openai import EmbedToOpenAI
from memos_llm.dialects.codecs.silence import SILENCES

CHAT, GENERATE, EMBED, EMBEDDINGS = Wire.OLLAMA_CHAT, Wire.OLLAMA_GENERATE, Wire.OLLAMA_EMBED, Wire.OLLAMA_EMBEDDINGS
WIRES = frozenset({Wire.OPENAI_CHAT, Wire.OPENAI_COMPLETION, Wire.OPENAI_EMBEDDINGS})
USER = {"role": "user", "content": "hi"}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 20).decode()
ABSENT = object()
SCHEMA = {"type": "object"}


class Row(NamedTuple):
    """A call, and what of vLLM's request must be so; `told` are the warnings, None means that vLLM is not asked."""

    id: str
    wire: Wire
    body: dict[str, Any]
    sent: dict[str, Any]
    told: tuple[str, ...] | None = ()
    model: dict[str, Any] | None = None
    context: int | None = None
    quirks: Quirk = Quirk.NONE


def chat(id: str, body: dict[str, Any], sent: dict[str, Any], told: tuple[str, ...] | None = (), **more: Any) -> Row:
    return Row(id, CHAT, {"messages": [USER]} | body, sent, told, **more)


def history(id: str, messages: list[Any], sent: list[Any], told: tuple[str, ...] | None = (), **more: Any) -> Row:
    return Row(id, CHAT, {"messages": messages}, {"messages": sent}, told, **more)


def option(id: str, name: str, value: Any, sent: dict[str, Any], told: tuple[str, ...] = (), **more: Any) -> Row:
    return chat(id, {"options": {name: value}}, sent, told, **more)


def generate(
    id: str, body: dict[str, Any], sent: dict[str, Any], told: tuple[str, ...] | None = (), **more: Any
) -> Row:
    return Row(id, GENERATE, {"prompt": "p"} | body, sent, told, **more)


CALLED = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {}}}]}
SENT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SENT_CALLED = {"role": "assistant", "content": "", "tool_calls": [SENT_CALL]}
ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}
QWEN, GPT_OSS = {"thinking": Thinking.ENABLE_THINKING}, {"thinking": Thinking.REASONING_EFFORT}
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
LONG = {"role": "user", "content": "x" * 400}

ROWS = [
    # chat
    chat("chat-model", {}, {"model": "served/m"}),
    chat("chat-no-messages", {"messages": []}, {}, None),
    history("chat-role", [{"role": "USER", "content": "x"}], [{"role": "user", "content": "x"}]),
    history("chat-content-null", [{"role": "user", "content": None}], [{"role": "user", "content": ""}]),
    history("chat-content-absent", [{"role": "system"}, USER], [{"role": "system", "content": ""}, USER]),
    history(
        "chat-images",
        [{"role": "user", "content": "see", "images": [PNG]}],
        [{"role": "user", "content": [{"type": "text", "text": "see"}, IMAGE]}],
    ),
    history(
        "chat-history-thinking",
        [{"role": "assistant", "content": "x", "thinking": "t"}],
        [{"role": "assistant", "content": "x", "reasoning": "t"}],
    ),
    history(
        "chat-history-thinking-old-release",
        [{"role": "assistant", "content": "x", "thinking": "t"}],
        [{"role": "assistant", "content": "x", "reasoning_content": "t"}],
        quirks=Quirk.OLD_REASONING,
    ),
    history("chat-arguments", [USER, CALLED], [USER, SENT_CALLED]),
    history(
        "chat-call-id-missing",
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}],
        [{"role": "assistant", "content": "", "tool_calls": [SENT_CALL | {"id": "call_000000000"}]}],
    ),
    history(
        "chat-tool-result-by-id",
        [CALLED, {"role": "tool", "content": "r", "tool_call_id": "c1", "tool_name": "f"}],
        [SENT_CALLED, {"role": "tool", "content": "r", "tool_call_id": "c1", "name": "f"}],
    ),
    history(
        "chat-tool-result-by-order",
        [CALLED, {"role": "tool", "content": "r"}],
        [SENT_CALLED, {"role": "tool", "content": "r", "tool_call_id": "c1"}],
    ),
    history("chat-tool-result-unmatched", [{"role": "tool", "content": "r"}], [], None),
    chat(
        "chat-tools", {"tools": [{"function": {"$x": 1}}]}, {"tools": [{"function": {"$x": 1}}], "tool_choice": ABSENT}
    ),
    chat("chat-tools-empty", {"tools": []}, {"tools": ABSENT}),
    chat("chat-stream-absent", {}, {"stream": True, "stream_options": {"include_usage": True}}),
    chat(
        "chat-stream-false",
        {"stream": False},
        {"stream": False, "stream_options": ABSENT},
        ("estimated:eval_duration",),
    ),
    chat("chat-format-json", {"format": "json"}, {"response_format": {"type": "json_object"}}),
    chat(
        "chat-format-schema",
        {"format": SCHEMA},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "ollama_format", "schema": SCHEMA}}},
        ("approximated:format",),
    ),
    chat("chat-format-empty", {"format": ""}, {"response_format": ABSENT}),
    chat("chat-format-null", {"format": None}, {"response_format": ABSENT}),
    chat("chat-think-true", {"think": True}, {"chat_template_kwargs": ON}, model=QWEN),
    chat("chat-think-false", {"think": False}, {"chat_template_kwargs": OFF, "reasoning_effort": ABSENT}, model=QWEN),
    chat(
        "chat-think-false-gpt-oss",
        {"think": False},
        {"reasoning_effort": "low"},
        ("approximated:think",),
        model=GPT_OSS,
    ),
    chat("chat-think-level", {"think": "low"}, {"reasoning_effort": "low"}, ("approximated:think",), model=QWEN),
    chat("chat-think-max", {"think": "max"}, {"reasoning_effort": "high"}, model=GPT_OSS),
    chat("chat-think-absent", {}, {"chat_template_kwargs": ON}, model=QWEN),
    chat("chat-think-absent-without-a-switch", {}, {"chat_template_kwargs": ABSENT, "reasoning_effort": ABSENT}),
    chat("chat-logprobs", {"logprobs": True, "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
    chat("chat-keep-alive", {"keep_alive": 0}, {"keep_alive": ABSENT}),
    chat("chat-truncate", {"truncate": True}, {"truncate_prompt_tokens": ABSENT}, ("dropped:truncate",)),
    chat("chat-shift", {"shift": True}, {"shift": ABSENT}, ("dropped:shift",)),
    chat("chat-debug-render", {"_debug_render_only": True}, {}, None),
    # options
    option("option-temperature", "temperature", 0.2, {"temperature": 0.2}),
    option("option-temperature-high", "temperature", 3, {"temperature": 2.0}, ("approximated:temperature",)),
    option("option-top-p", "top_p", 0.5, {"top_p": 0.5}),
    option("option-top-p-zero", "top_p", 0, {"top_p": 1e-6}, ("approximated:top_p",)),
    option("option-top-k", "top_k", -1, {"top_k": 0}),
    option("option-min-p", "min_p", 0.1, {"min_p": 0.1}),
    option("option-seed", "seed", 3, {"seed": 3}),
    option("option-seed-random", "seed", -1, {"seed": ABSENT}),
    option("option-stop", "stop", ["a", ""], {"stop": ["a"]}),
    chat("option-stop-five", {"options": {"stop": list("abcde")}}, {}, None),
    option("option-num-predict", "num_predict", 9, {"max_tokens": 9}, context=10),
    option("option-num-predict-over", "num_predict", 99, {"max_tokens": 10}, ("approximated:num_predict",), context=10),
    option("option-num-predict-unknown-context", "num_predict", 99, {"max_tokens": 99}),
    chat(
        "option-num-predict-old-release",
        {"messages": [LONG], "options": {"num_predict": 990}},
        {"max_tokens": 1000 - 64 - 200},
        ("approximated:num_predict",),
        context=1000,
        quirks=Quirk.STRICT_LENGTH,
    ),
    chat(
        "option-num-predict-old-release-fits",
        {"messages": [LONG], "options": {"num_predict": 700}},
        {"max_tokens": 700},
        context=1000,
        quirks=Quirk.STRICT_LENGTH,
    ),
    chat(
        "option-num-predict-old-release-no-room",
        {"messages": [LONG], "options": {"num_predict": 90}},
        {"max_tokens": 90},
        context=200,
        quirks=Quirk.STRICT_LENGTH,
    ),
    option("option-num-predict-negative", "num_predict", -1, {"max_tokens": ABSENT}),
    chat("option-num-predict-zero", {"options": {"num_predict": 0}}, {}, None),
    option(
        "option-repeat-penalty", "repeat_penalty", 1.1, {"repetition_penalty": 1.1}, ("approximated:repeat_penalty",)
    ),
    option("option-repeat-penalty-off", "repeat_penalty", 1, {"repetition_penalty": ABSENT}),
    option("option-presence", "presence_penalty", 5, {"presence_penalty": 2.0}, ("approximated:presence_penalty",)),
    option("option-frequency", "frequency_penalty", 1, {"frequency_penalty": 1.0}, ("approximated:frequency_penalty",)),
    option("option-num-ctx", "num_ctx", 10, {"num_ctx": ABSENT}, context=10),
    option("option-num-ctx-over", "num_ctx", 11, {"num_ctx": ABSENT}, ("dropped:num_ctx",), context=10),
    *(
        option(f"option-{name}", name, value, {name: ABSENT}, (f"dropped:{name}",))
        for name, value in (
            ("typical_p", 0.5),
            ("repeat_last_n", 9),
            ("num_keep", 9),
            ("mirostat", 2),
            ("tfs_z", 0.5),
            ("penalize_newline", True),
        )
    ),
    *(
        option(f"option-{name}", name, value, {name: ABSENT})
        for name, value in (
            ("num_gpu", 1),
            ("main_gpu", 1),
            ("num_batch", 1),
            ("num_thread", 1),
            ("use_mmap", True),
            ("use_mlock", True),
            ("low_vram", True),
            ("numa", True),
            ("draft_num_predict", 1),
            ("unheard_of", 1),
        )
    ),
    chat("option-none", {}, {"temperature": ABSENT, "top_p": ABSENT, "top_k": ABSENT, "max_tokens": ABSENT}),
    # generate
    generate(
        "generate-plain", {"system": "s"}, {"messages": [{"role": "system", "content": "s"}, USER | {"content": "p"}]}
    ),
    generate("generate-raw", {"raw": True}, {"prompt": "p", "max_tokens": None, "add_special_tokens": ABSENT}),
    generate("generate-raw-bos", {"raw": True, "prompt": "<s>p"}, {"prompt": "<s>p", "add_special_tokens": False}),
    generate("generate-suffix", {"suffix": "s"}, {"prompt": "p", "suffix": "s", "max_tokens": None}),
    generate("generate-template", {"template": "{{ .Prompt }}"}, {}, None),
    generate("generate-context", {"context": [1]}, {}, None),
    generate(
        "generate-images",
        {"images": [PNG]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "p"}, IMAGE]}]},
    ),
    generate("generate-format", {"format": "json"}, {"response_format": {"type": "json_object"}}),
    generate("generate-options", {"options": {"seed": 3}}, {"seed": 3}),
    generate("generate-think", {"think": False}, {"chat_template_kwargs": OFF}, model=QWEN),
    # embeddings
    Row("embed-text", EMBED, {"input": "x"}, {"input": "x", "truncate_prompt_tokens": -1}),
    Row("embed-texts", EMBED, {"input": ["x", "y"]}, {"input": ["x", "y"]}),
    Row("embed-nothing", EMBED, {"input": []}, {}, None),
    Row("embed-truncate-false", EMBED, {"input": "x", "truncate": False}, {"truncate_prompt_tokens": ABSENT}),
    Row("embed-dimensions", EMBED, {"input": "x", "dimensions": 2}, {"dimensions": ABSENT}),
    Row(
        "embeddings-one",
        EMBEDDINGS,
        {"prompt": "x"},
        {"input": "x", "truncate_prompt_tokens": ABSENT},
        told=("approximated:embedding",),
    ),
]


def codec_of(row: Row, offer: Offer) -> Codec | None:
    return CODECS.find(make_call(row.wire, {"model": "m"} | row.body), offer)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_request_is_carried_over_or_not_offered(row: Row) -> None:
    offer = Offer(WIRES, context_tokens=row.context, quirks=row.quirks)
    codec = codec_of(row, offer)
    if row.told is None:
        assert codec is None
        return
    assert codec is not None
    request, warnings = codec.request(
        make_call(row.wire, {"model": "m"} | row.body), target(**(row.model or {})), offer
    )
    body = msgspec.json.decode(request.body)
    assert {key: body.get(key, ABSENT) for key in row.sent} == row.sent
    assert warnings == row.told


def test_the_rows_have_names_of_their_own() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("options", [{"temperature": "hot"}, {"stop": "bare"}, {"num_ctx": True}, {"use_mmap": 1}])
def test_an_option_of_a_wrong_type_is_a_400(options: dict[str, Any]) -> None:
    with pytest.raises(AttemptFailed) as refused:
        native_codec().request(
            make_call(CHAT, {"model": "m", "messages": [USER], "options": options}), target(), Offer(WIRES)
        )
    assert (refused.value.outcome.kind, refused.value.outcome.status) == (Kind.CLIENT, 400)


@settings(max_examples=200)
@given(
    st.integers(1, 5000),
    st.integers(1, 5000) | st.none(),
    st.text(max_size=60),
    st.sampled_from([Quirk.NONE, Quirk.STRICT_LENGTH]),
)
def test_an_answer_s_limit_never_grows_and_never_passes_the_context(
    num_predict: int, context: int | None, text: str, quirks: Quirk
) -> None:
    call = make_call(
        CHAT, {"model": "m", "messages": [USER | {"content": text}], "options": {"num_predict": num_predict}}
    )
    request, warnings = native_codec().request(call, target(), Offer(WIRES, context_tokens=context, quirks=quirks))
    limit = msgspec.json.decode(request.body)["max_tokens"]
    assert 1 <= limit <= min(num_predict, context or num_predict)
    assert warnings == (() if limit == num_predict else ("approximated:num_predict",))


# --- answers ----------------------------------------------------------------------------------------------------------

TOOL = [{"index": 0, "id": "t", "function": {"name": "f", "arguments": ""}}]
MORE = [{"index": 0, "function": {"arguments": '{"a":1}'}}]
BEGUN, DONE = {"done": False}, {"done": True}


def says(content: str = "", **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **more}, "done": False}


def call_of(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": "t", "function": {"index": 0, "name": "f", "arguments": arguments}}


def ends(reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": reason,
        "load_duration": 1,
        **more,
    }


TOKEN = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.0, "bytes": [98]}]}

ANSWERS: list[tuple[str, list[Any], list[dict[str, Any]], dict[str, Any]]] = [
    ("role-only", [ROLE, chunk({}, "stop")], [ends()], {}),
    ("content", [chunk({"content": "x"}), chunk({}, "stop")], [says("x"), ends()], {}),
    ("empty-delta", [chunk({"content": ""}), chunk({}, "stop")], [ends()], {}),
    ("reasoning", [chunk({"reasoning": "t"}), chunk({}, "stop")], [says(thinking="t"), ends()], {}),
    ("reasoning-content", [chunk({"reasoning_content": "t"}), chunk({}, "stop")], [says(thinking="t"), ends()], {}),
    (
        "both-in-one",
        [chunk({"reasoning": "t", "content": "x"}), chunk({}, "stop")],
        [says(thinking="t"), says("x"), ends()],
        {},
    ),
    ("content-on-the-finish", [chunk({"content": "x"}, "stop")], [says("x"), ends()], {}),
    (
        "think-tags",
        [chunk({"content": "<th"}), chunk({"content": "ink>t</think>x"}), chunk({}, "stop")],
        [says(thinking="t"), says("x"), ends()],
        {"split_think_tags": True},
    ),
    (
        "tool-call",
        [chunk({"tool_calls": TOOL}), chunk({"tool_calls": MORE}), chunk({}, "tool_calls")],
        [says(tool_calls=[call_of({"a": 1})]), ends()],
        {},
    ),
    (
        "tool-call-empty",
        [chunk({"tool_calls": TOOL}), chunk({}, "tool_calls")],
        [says(tool_calls=[call_of({})]), ends()],
        {},
    ),
    ("finish-repetition", [chunk({}, "repetition")], [ends()], {}),
    ("finish-length", [chunk({}, "length")], [ends("length")], {}),
    ("finish-content-filter", [chunk({}, "content_filter")], [ends()], {}),
    ("usage", [chunk({}, "stop"), USAGE], [ends(prompt_eval_count=3, eval_count=2)], {}),
    (
        "logprobs",
        [chunk({"content": "a"}, logprobs={"content": [TOKEN]}), chunk({}, "stop")],
        [says("a") | {"logprobs": [TOKEN]}, ends()],
        {},
    ),
    (
        "logprobs-of-completions",
        [
            {
                "choices": [
                    {
                        "index": 0,
                        "text": "a",
                        "logprobs": {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.0}]},
                        "finish_reason": None,
                    }
                ]
            },
            chunk({}, "stop"),
        ],
        [says("a") | {"logprobs": [TOKEN]}, ends()],
        {},
    ),
    ("second-choice", [chunk({"content": "x"}), {"choices": []}, chunk({}, "stop")], [says("x"), ends()], {}),
    (
        "own-times",
        [chunk({"content": "x"}, "stop"), USAGE | {"metrics": {"time_to_first_token_ms": 7, "generation_time_ms": 5}}],
        [says("x"), ends(prompt_eval_duration=7_000_000, eval_duration=5_000_000)],
        {},
    ),
]


@pytest.mark.parametrize(("events", "expected", "model"), [a[1:] for a in ANSWERS], ids=[a[0] for a in ANSWERS])
def test_an_answer_becomes_records(events: list[Any], expected: list[dict[str, Any]], model: dict[str, Any]) -> None:
    call = make_call(CHAT, {"model": "caller", "messages": [USER]})
    frames = run(native_codec().decoder(call, target(**model)), [sse(*events, "[DONE]")])
    found = records(b"".join(frame.data for frame in frames))
    assert [{key: one.get(key) for key in want} for one, want in zip(found, expected, strict=True)] == expected
    assert all(one["model"] == "caller" and one["created_at"].endswith("Z") for one in found)
    assert all(found[-1][key] >= 1 for key in ("total_duration", "prompt_eval_duration", "eval_duration"))
    assert all("id" not in one and "system_fingerprint" not in one for one in found)


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([chunk({"content": "x"}), chunk({}, "abort"), "[DONE]"], Kind.SERVER),
        ([chunk({"content": "x"}), "[DONE]"], Kind.TRUNCATED),
        ([chunk({"content": "x"})], Kind.TRUNCATED),
        ([chunk({"content": "x"}), {"error": {"message": "dead"}}, "[DONE]"], Kind.SERVER),
        (
            [chunk({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{no"}}]}), chunk({}, "stop")],
            Kind.MALFORMED,
        ),
    ],
    ids=["abort", "no-finish", "cut", "error-event", "unparsable-arguments"],
)
def test_a_failed_answer_ends_as_an_error_and_never_as_done(events: list[Any], kind: Kind) -> None:
    decoder = native_codec().decoder(make_call(CHAT, {"model": "m", "messages": [USER]}), target())
    written: list[bytes] = []
    with pytest.raises(AttemptFailed) as failed:
        play(decoder, events, written)
    assert failed.value.outcome.kind is kind
    assert b'"done":true' not in b"".join(written)


def play(decoder: Decoder, events: list[Any], written: list[bytes]) -> None:
    for event in events:
        written += [frame.data for frame in decoder.feed(sse(event))]
    written += [frame.data for frame in decoder.eof()]


def test_an_embeddings_answer_is_sorted_normalised_and_counted() -> None:
    call = make_call(EMBED, {"model": "caller", "input": ["x", "y"]})
    body = b'{"data":[{"index":1,"embedding":[0,2]},{"index":0,"embedding":[3,4]}],"usage":{"prompt_tokens":5}}'
    answer = msgspec.json.decode(run(EmbedToOpenAI(lambda: 100.5).decoder(call, target()), [body])[0].data)
    assert answer == {
        "model": "caller",
        "embeddings": [[0.6, 0.8], [0.0, 1.0]],
        "total_duration": 500_000_000,
        "load_duration": 1,
        "prompt_eval_count": 5,
    }


def test_the_report_has_a_line_for_every_rule() -> None:
    text = report.markdown()
    for rules in report.RULES.values():
        assert all(f"| `{name}` |" in text for name in rules)
    assert text.count("#### ") == len(report.RULES) + 2 + len(SILENCES) + 1
