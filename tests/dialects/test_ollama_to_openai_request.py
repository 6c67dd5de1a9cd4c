"""Native requests as vLLM's: a row here for each row of the rule tables, and every warning."""

import base64
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from dialect_streams import OFFER, make_call, native_codec, target
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_llm.core.call import Call, Feature, Thinking, Wire
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind
from memos_llm.dialects.codecs.ollama_options import OPTIONS
from memos_llm.dialects.codecs.ollama_request import CHAT as CHAT_RULES
from memos_llm.dialects.codecs.ollama_request import GENERATE as GENERATE_RULES
from memos_llm.dialects.codecs.ollama_request import VERBATIM as VERBATIM_RULES
from memos_llm.dialects.codecs.rules import Policy

CHAT, GENERATE = Wire.OLLAMA_CHAT, Wire.OLLAMA_GENERATE
USER = {"role": "user", "content": "hi"}
CODEC = native_codec()


def b64(data: bytes) -> str:
    return base64.b64encode(data + b"\0" * 20).decode()


PNG, JPEG, GIF = b64(b"\x89PNG\r\n\x1a\n"), b64(b"\xff\xd8\xff\xe0"), b64(b"GIF89a")
WEBP, OTHER = b64(b"RIFF\0\0\0\0WEBP"), b64(b"?")
WAV, MP3 = b64(b"RIFF\0\0\0\0WAVE"), b64(b"ID3")


def translated(wire: Wire, body: dict[str, Any], **settings_: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    call = make_call(wire, {"model": "caller"} | body)
    request, warnings = CODEC.request(call, target(**settings_), OFFER)
    assert (request.id, request.model, request.stream) == ("id-1", "served/m", call.stream)
    assert request.wire is CODEC.upstream(call)
    return msgspec.json.decode(request.body), warnings


def chat(**body: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    return translated(CHAT, {"messages": [USER]} | body)


def sent_messages(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = translated(CHAT, {"messages": list(messages)})[0]["messages"]
    return found


def refusal(wire: Wire, body: dict[str, Any]) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as failed:
        translated(wire, body)
    return failed.value


# --- the whole --------------------------------------------------------------------------------------------------------


def test_a_plain_chat_becomes_a_streaming_one_that_reports_its_usage() -> None:
    assert chat() == (
        {
            "model": "served/m",
            "messages": [USER],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        (),
    )


def test_a_non_streaming_call_stays_one_and_says_that_its_times_are_estimated() -> None:
    body, warnings = chat(stream=False)
    assert body == {"model": "served/m", "messages": [USER], "stream": False}
    assert warnings == ("estimated:eval_duration",)


def test_a_plain_generate_becomes_a_chat() -> None:
    body, warnings = translated(GENERATE, {"prompt": "p", "system": "s", "images": [PNG], "raw": False})
    user = {"role": "user", "content": [{"type": "text", "text": "p"}, image("png", PNG)]}
    assert body["messages"] == [{"role": "system", "content": "s"}, user]
    assert warnings == ()


def image(kind: str, data: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}}


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        ({"role": "User", "content": "x"}, {"role": "user", "content": "x"}),
        ({"role": "user", "content": None}, {"role": "user", "content": ""}),
        ({"role": "system"}, {"role": "system", "content": ""}),
        (
            {"role": "assistant", "content": "x", "thinking": "t"},
            {"role": "assistant", "content": "x", "reasoning": "t"},
        ),
        ({"role": "user", "content": "x", "thinking": "t"}, {"role": "user", "content": "x"}),
        ({"role": "user", "content": "x", "images": []}, {"role": "user", "content": "x"}),
        ({"role": "user", "content": "", "images": [JPEG]}, {"role": "user", "content": [image("jpeg", JPEG)]}),
    ],
)
def test_a_message_is_carried_over(message: dict[str, Any], sent: dict[str, Any]) -> None:
    assert sent_messages(message) == [sent]


@pytest.mark.parametrize(
    ("data", "kind"),
    [(PNG, "png"), (JPEG, "jpeg"), (GIF, "gif"), (WEBP, "webp"), (OTHER, "jpeg"), (PNG[:9] + "\n" + PNG[9:], "png")],
)
def test_images_become_parts_after_the_text(data: str, kind: str) -> None:
    (message,) = sent_messages({"role": "user", "content": "look", "images": [data]})
    assert message["content"] == [{"type": "text", "text": "look"}, image(kind, data.replace("\n", ""))]


@pytest.mark.parametrize(("data", "kind"), [(WAV, "wav"), (MP3, "mp3")])
def test_sound_among_the_images_becomes_audio(data: str, kind: str) -> None:
    (message,) = sent_messages({"role": "user", "content": "", "images": [data]})
    assert message["content"] == [{"type": "input_audio", "input_audio": {"data": data, "format": kind}}]


@pytest.mark.parametrize("data", ["data:image/png;base64," + PNG, "not base64!", "abc"])
def test_images_that_ollama_would_not_decode_are_refused(data: str) -> None:
    failed = refusal(CHAT, {"messages": [{"role": "user", "images": [data]}]})
    assert (failed.outcome.kind, failed.outcome.status) == (Kind.CLIENT, 400)
    assert failed.client_text.startswith("images: illegal base64")


def test_neighbours_of_one_role_stay_apart() -> None:
    assert sent_messages(USER, USER, USER) == [USER] * 3


def test_tool_calls_keep_their_ids_and_the_order_of_their_keys() -> None:
    raw = b'{"model":"m","messages":[{"role":"assistant","tool_calls":[{"id":"a1","function":{"index":0,"name":"f",'
    raw += b'"arguments":{"z":1, "a":[2.50]}}},{"function":{"name":"g"}}]}]}'
    body = msgspec.json.decode(CODEC.request(make_call(CHAT, raw), target(), OFFER)[0].body)
    first, second = body["messages"][0]["tool_calls"]
    assert first == {"id": "a1", "type": "function", "function": {"name": "f", "arguments": '{"z":1, "a":[2.50]}'}}
    assert second["function"] == {"name": "g", "arguments": "{}"}
    assert body["messages"][0]["content"] == ""


def called(*names: str, ids: tuple[str, ...] = ()) -> dict[str, Any]:
    calls: list[dict[str, Any]] = [{"function": {"name": name, "arguments": {}}} for name in names]
    for one, id_ in zip(calls, ids, strict=False):
        one["id"] = id_
    return {"role": "assistant", "content": "", "tool_calls": calls}


def result(content: str, **more: str) -> dict[str, Any]:
    return {"role": "tool", "content": content} | more


def matched(*messages: dict[str, Any]) -> list[str]:
    """For each result the name of the function whose id it carries."""
    sent = sent_messages(*messages)
    names = {c["id"]: c["function"]["name"] for m in sent for c in m.get("tool_calls", ())}
    return [names[m["tool_call_id"]] for m in sent if m["role"] == "tool"]


def test_tool_results_find_their_calls_by_id_by_name_and_by_order() -> None:
    assert matched(called("f", "g", ids=("1", "2")), result("x", tool_call_id="2"), result("y", tool_call_id="1")) == [
        "g",
        "f",
    ]
    assert matched(called("f", "g"), result("x", tool_name="g"), result("y", tool_name="f")) == ["g", "f"]
    assert matched(called("f", "g"), result("x"), result("y")) == ["f", "g"]
    assert matched(called("f"), result("x"), called("g"), result("y")) == ["f", "g"]
    assert matched(called("f"), result("x", tool_call_id="?", tool_name="f")) == ["f"]


def test_a_tool_result_keeps_its_name() -> None:
    sent = sent_messages(called("f"), result("x", tool_name="f"))[1]
    assert sent == {"role": "tool", "content": "x", "tool_call_id": sent["tool_call_id"], "name": "f"}


def test_made_up_ids_differ_in_their_last_nine_characters() -> None:
    ids = ("call_x000000000", "")
    sent = sent_messages(called("a", "b", ids=ids), called(*"cdef"), called("g", ids=("000001000",)))
    tails = [c["id"][-9:] for m in sent for c in m["tool_calls"]]
    assert len(set(tails)) == len(tails) == 7
    assert all(tail.isalnum() for tail in tails)


@pytest.mark.parametrize(
    "messages",
    [
        [result("x")],
        [called("f"), result("x"), result("y")],
        [called("f"), result("x", tool_name="g")],
        [called("f", ids=("1",)), result("x"), USER, result("y", tool_call_id="9")],
    ],
)
def test_a_result_without_a_call_is_for_another_target(messages: list[dict[str, Any]]) -> None:
    call = make_call(CHAT, {"model": "m", "messages": messages})
    assert call.needs == Feature.UNMATCHED_TOOL_RESULT
    with pytest.raises(AttemptFailed, match="not-offered") as failed:
        CODEC.request(msgspec.structs.replace(call, needs=Feature.NONE), target(), OFFER)
    assert failed.value.outcome.kind is Kind.INCOMPATIBLE


# --- tools, format, logprobs ------------------------------------------------------------------------------------------


def test_tools_are_carried_whole_and_empty_ones_left_out() -> None:
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "$ref": "#/x", "minimum": 3}}}
    ]
    assert chat(tools=tools)[0]["tools"] == tools
    assert "tool_choice" not in chat(tools=tools)[0]
    assert chat(tools=[]) == chat(tools=None) == chat()


SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}


@pytest.mark.parametrize(
    ("given_", "sent", "warnings"),
    [
        ("json", {"type": "json_object"}, ()),
        (
            SCHEMA,
            {"type": "json_schema", "json_schema": {"name": "ollama_format", "schema": SCHEMA}},
            ("approximated:format",),
        ),
        ("", None, ()),
        (None, None, ()),
    ],
)
def test_format_becomes_a_response_format(given_: Any, sent: Any, warnings: tuple[str, ...]) -> None:
    body, told = chat(format=given_)
    assert (body.get("response_format"), told) == (sent, warnings)


@pytest.mark.parametrize(
    ("given_", "sent", "warnings"),
    [
        ({"logprobs": True}, {"logprobs": True}, ()),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}, ()),
        ({"logprobs": False}, {}, ()),
        ({"logprobs": False, "top_logprobs": 3}, {}, ("dropped:top_logprobs",)),
    ],
)
def test_logprobs_are_carried_over(given_: dict[str, Any], sent: dict[str, Any], warnings: tuple[str, ...]) -> None:
    assert chat(**given_) == (chat()[0] | sent, warnings)


# --- thinking ---------------------------------------------------------------------------------------------------------

ON, OFF = {"chat_template_kwargs": {"enable_thinking": True}}, {"chat_template_kwargs": {"enable_thinking": False}}
ABSENT = object()
APPROX_THINK = ("approximated:think",)


@pytest.mark.parametrize(
    ("switch", "think", "sent", "warnings"),
    [
        (None, ABSENT, {}, ()),
        (None, False, {}, ()),
        (None, True, {}, ("dropped:think",)),
        (None, "high", {}, ("dropped:think",)),
        (Thinking.ENABLE_THINKING, ABSENT, ON, ()),
        (Thinking.ENABLE_THINKING, None, ON, ()),
        (Thinking.ENABLE_THINKING, True, ON, ()),
        (Thinking.ENABLE_THINKING, False, OFF, ()),
        (Thinking.ENABLE_THINKING, "low", ON | {"reasoning_effort": "low"}, APPROX_THINK),
        (Thinking.THINKING, False, {"chat_template_kwargs": {"thinking": False}}, ()),
        (Thinking.REASONING_EFFORT, ABSENT, {}, ()),
        (Thinking.REASONING_EFFORT, True, {}, ()),
        (Thinking.REASONING_EFFORT, False, {"reasoning_effort": "low"}, APPROX_THINK),
        (Thinking.REASONING_EFFORT, "medium", {"reasoning_effort": "medium"}, ()),
        (Thinking.REASONING_EFFORT, "max", {"reasoning_effort": "high"}, ()),
    ],
)
def test_think_is_switched_as_the_model_wants_it(
    switch: Thinking | None, think: Any, sent: dict[str, Any], warnings: tuple[str, ...]
) -> None:
    body = {"messages": [USER]} | ({} if think is ABSENT else {"think": think})
    assert translated(CHAT, body, thinking=switch) == (chat()[0] | sent, warnings)
    generate = {"prompt": "hi"} | ({} if think is ABSENT else {"think": think})
    assert translated(GENERATE, generate, thinking=switch) == (chat()[0] | sent, warnings)


# --- options ----------------------------------------------------------------------------------------------------------

LOAD_TIME = ("num_gpu", "main_gpu", "num_batch", "num_thread", "draft_num_predict")
SWITCHES = ("use_mmap", "use_mlock", "low_vram", "numa")

OPTION_ROWS: list[tuple[str, Any, dict[str, Any], tuple[str, ...]]] = [
    ("temperature", 0.7, {"temperature": 0.7}, ()),
    ("temperature", 0, {"temperature": 0}, ()),
    ("temperature", 9, {"temperature": 2.0}, ("approximated:temperature",)),
    ("temperature", None, {}, ()),
    ("top_p", 0.9, {"top_p": 0.9}, ()),
    ("top_p", 0, {"top_p": 1e-6}, ("approximated:top_p",)),
    ("top_p", 3, {"top_p": 1.0}, ()),
    ("top_k", 40, {"top_k": 40}, ()),
    ("top_k", -1, {"top_k": 0}, ()),
    ("top_k", 40.9, {"top_k": 40}, ()),
    ("min_p", 0.1, {"min_p": 0.1}, ()),
    ("min_p", 2, {"min_p": 1.0}, ("approximated:min_p",)),
    ("seed", 7, {"seed": 7}, ()),
    ("seed", -1, {}, ()),
    ("stop", ["a", "", "b"], {"stop": ["a", "b"]}, ()),
    ("stop", [""], {}, ()),
    ("num_predict", 5, {"max_tokens": 5}, ()),
    ("num_predict", -1, {}, ()),
    ("num_predict", -2, {}, ()),
    ("repeat_penalty", 1.1, {"repetition_penalty": 1.1}, ("approximated:repeat_penalty",)),
    ("repeat_penalty", 1.0, {}, ()),
    ("repeat_penalty", 0, {}, ("dropped:repeat_penalty",)),
    ("presence_penalty", 0.5, {"presence_penalty": 0.5}, ("approximated:presence_penalty",)),
    ("presence_penalty", 0, {"presence_penalty": 0}, ()),
    ("frequency_penalty", -3, {"frequency_penalty": -2.0}, ("approximated:frequency_penalty",)),
    ("num_ctx", 8192, {}, ("dropped:num_ctx",)),
    ("typical_p", 0.5, {}, ("dropped:typical_p",)),
    ("typical_p", 1.0, {}, ()),
    ("repeat_last_n", 64, {}, ("dropped:repeat_last_n",)),
    ("num_keep", 4, {}, ("dropped:num_keep",)),
    ("mirostat", 1, {}, ("dropped:mirostat",)),
    ("mirostat", 0, {}, ()),
    ("mirostat_tau", 5.0, {}, ("dropped:mirostat_tau",)),
    ("mirostat_eta", 0.1, {}, ("dropped:mirostat_eta",)),
    ("tfs_z", 0.5, {}, ("dropped:tfs_z",)),
    ("tfs_z", 1, {}, ()),
    ("penalize_newline", True, {}, ("dropped:penalize_newline",)),
    ("unheard_of", {"x": 1}, {}, ()),
    *((name, 1, {}, ()) for name in LOAD_TIME),
    *((name, True, {}, ()) for name in SWITCHES),
]


@pytest.mark.parametrize(("name", "value", "sent", "warnings"), OPTION_ROWS)
def test_options_become_sampling_parameters(
    name: str, value: Any, sent: dict[str, Any], warnings: tuple[str, ...]
) -> None:
    assert chat(options={name: value}) == (chat()[0] | sent, warnings)


def test_the_rows_above_leave_no_option_out() -> None:
    assert set(OPTIONS) <= {name for name, *_ in OPTION_ROWS}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_known_option_of_another_type_is_refused_by_name(name: str) -> None:
    failed = refusal(CHAT, {"messages": [USER], "options": {name: {"x": 1}}})
    assert (failed.outcome.kind, failed.outcome.status) == (Kind.CLIENT, 400)
    assert failed.client_text.startswith(f'option "{name}" must be of ')


@pytest.mark.parametrize("options", [{"stop": "bare"}, {"temperature": True}, {"top_k": "40"}, {"stop": [1]}])
def test_types_are_as_strict_as_ollama_s(options: dict[str, Any]) -> None:
    assert refusal(CHAT, {"messages": [USER], "options": options}).outcome.kind is Kind.CLIENT


def test_defaults_fill_what_the_caller_leaves_open() -> None:
    defaults = {"temperature": 0.8, "top_k": 40, "max_tokens": 99}
    body, warnings = translated(
        CHAT, {"messages": [USER], "options": {"temperature": 0.0, "num_predict": -1}}, defaults=defaults
    )
    assert warnings == ("repaired:defaults",)
    assert (body["temperature"], body["top_k"], body["max_tokens"]) == (0.0, 40, 99)
    assert translated(GENERATE, {"prompt": "p", "raw": True}, defaults=defaults)[0]["max_tokens"] == 99


# --- raw and suffix ---------------------------------------------------------------------------------------------------


def test_a_raw_prompt_goes_to_completions_as_it_is_without_vllm_s_limit_of_16() -> None:
    body, warnings = translated(GENERATE, {"prompt": " <p>\n", "raw": True, "options": {"seed": 1}})
    assert body == {
        "model": "served/m",
        "prompt": " <p>\n",
        "max_tokens": None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 1,
    }
    assert warnings == ()


@pytest.mark.parametrize(
    ("given_", "sent", "warnings"),
    [
        ({"options": {"num_predict": 5}}, {"max_tokens": 5}, ()),
        ({"prompt": "<s>x"}, {"prompt": "<s>x", "add_special_tokens": False}, ()),
        ({"logprobs": True}, {"logprobs": 0}, ()),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": 2}, ()),
        ({"format": "json"}, {"response_format": {"type": "json_object"}}, ()),
        ({"think": True}, {}, ("dropped:think",)),
        ({"think": False}, {}, ()),
        ({"images": [PNG]}, {}, ("dropped:images",)),
        ({"images": [], "system": ""}, {}, ()),
        ({"raw": False, "suffix": "end"}, {"suffix": "end"}, ()),
        ({"raw": False, "suffix": "end", "system": "s"}, {"suffix": "end"}, ("dropped:system",)),
    ],
)
def test_raw_and_suffix_carry_the_rest(given_: dict[str, Any], sent: dict[str, Any], warnings: tuple[str, ...]) -> None:
    plain = translated(GENERATE, {"prompt": "p", "raw": True})[0]
    assert translated(GENERATE, {"prompt": "p", "raw": True} | given_) == (plain | sent, warnings)


# --- what is dropped or refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "warnings"),
    [
        ("keep_alive", "5m", ()),
        ("truncate", True, ("dropped:truncate",)),
        ("truncate", None, ()),
        ("shift", False, ("dropped:shift",)),
        ("unheard_of", 1, ()),
    ],
)
def test_keys_without_an_equivalent(key: str, value: Any, warnings: tuple[str, ...]) -> None:
    assert chat(**{key: value}) == (chat()[0], warnings)
    assert translated(GENERATE, {"prompt": "hi", key: value}) == (chat()[0], warnings)


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (CHAT, {"messages": []}),
        (CHAT, {"messages": [USER], "_debug_render_only": True}),
        (GENERATE, {"prompt": "p", "_debug_render_only": True}),
        (CHAT, {"messages": [USER], "options": {"num_predict": 0}}),
        (CHAT, {"messages": [USER], "options": {"stop": list("abcde")}}),
        (GENERATE, {"prompt": "p", "template": "x"}),
        (GENERATE, {"prompt": "p", "context": [1]}),
    ],
)
def test_what_vllm_cannot_do_is_for_another_target(wire: Wire, body: dict[str, Any]) -> None:
    assert refusal(wire, body).outcome.kind is Kind.INCOMPATIBLE
    call = make_call(wire, {"model": "m"} | body)
    assert call.needs & ~CODEC.features


@pytest.mark.parametrize(
    ("wire", "body", "words"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages: "),
        (
            CHAT,
            {"messages": [called("f") | {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
            "messages: ",
        ),
        (CHAT, {"messages": [USER], "tools": {}}, "tools: "),
        (CHAT, {"messages": [USER], "options": [1]}, "options: "),
        (CHAT, {"messages": [USER], "format": "xml"}, "format: "),
        (CHAT, {"messages": [USER], "format": 3}, "format: "),
        (CHAT, {"messages": [USER], "think": "hard"}, "think: "),
        (CHAT, {"messages": [USER], "think": ""}, "think: "),
        (CHAT, {"messages": [USER], "think": 1}, "think: "),
        (CHAT, {"messages": [USER], "logprobs": 1}, "logprobs: "),
        (CHAT, {"messages": [USER], "logprobs": True, "top_logprobs": 21}, "top_logprobs "),
        (GENERATE, {"prompt": 5}, "prompt: "),
        (GENERATE, {"prompt": "p", "raw": "yes"}, "raw: "),
        (GENERATE, {"prompt": "p", "raw": True, "system": "s"}, "raw mode "),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(wire: Wire, body: dict[str, Any], words: str) -> None:
    failed = refusal(wire, body)
    assert (failed.outcome.kind, failed.outcome.status) == (Kind.CLIENT, 400)
    assert failed.client_text.startswith(words)


@pytest.mark.parametrize("rules", [CHAT_RULES, GENERATE_RULES, VERBATIM_RULES])
def test_every_rule_says_where_a_value_goes_or_why_not(rules: dict[str, Any]) -> None:
    for rule in rules.values():
        assert rule.to or rule.note or rule.policy in (Policy.REFUSED, Policy.DROPPED) or rule.apply


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "images", "tool_calls", "tool_name", "thinking"]),
        JSON | st.sampled_from(["tool", "assistant", [{"function": {"name": "f", "arguments": {}}}], [PNG]]),
    ),
    max_size=3,
)
KEYS = sorted({*CHAT_RULES, *GENERATE_RULES} - {"model", "stream", "messages", "options"})


@settings(max_examples=250)
@given(
    st.sampled_from([CHAT, GENERATE]),
    st.dictionaries(st.sampled_from(KEYS), JSON),
    MESSAGES | JSON,
    st.dictionaries(st.sampled_from(sorted(OPTIONS)), JSON) | JSON,
    st.sampled_from([None, *Thinking]),
)
def test_values_of_any_type_are_translated_or_refused(
    wire: Wire, body: dict[str, Any], messages: Any, options: Any, thinking: Thinking | None
) -> None:
    call: Call = make_call(wire, body | {"model": "m", "messages": messages, "options": options})
    with suppress(AttemptFailed):
        CODEC.request(call, target(thinking=thinking), OFFER)
