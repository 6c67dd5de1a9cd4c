"""Reading a request's head and writing errors, wire by wire."""

import base64
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_llm.core.call import Feature, Wire
from memos_llm.core.errors import (
    BadRequest,
    LLMError,
    ModelNotFound,
    NotOffered,
    Overloaded,
    StreamBroken,
    Unavailable,
)
from memos_llm.dialects.edge import DIALECTS, Parsed

CHAT, GENERATE, OPENAI = Wire.OLLAMA_CHAT, Wire.OLLAMA_GENERATE, Wire.OPENAI_CHAT
TOO_LONG = "the input length exceeds the context length"
EMBED, EMBEDDINGS = Wire.OLLAMA_EMBED, Wire.OLLAMA_EMBEDDINGS
USER = {"role": "user", "content": "hi"}
WAV = base64.b64encode(b"RIFF\0\0\0\0WAVEfmt " + b"\0" * 20).decode()
MP3 = base64.b64encode(b"ID3" + b"\0" * 20).decode()
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 20).decode()


def parse(wire: Wire, body: Any) -> Parsed:
    return DIALECTS[wire].parse(body if isinstance(body, bytes) else msgspec.json.encode(body))


SPOKEN = [wire for wire in Wire if wire is not Wire.PASSTHROUGH]  # what is passed on unread is in no dialect


def test_every_wire_has_a_dialect() -> None:
    assert set(DIALECTS) == set(SPOKEN)
    assert all(dialect.wire is wire for wire, dialect in DIALECTS.items())


@pytest.mark.parametrize(("wire", "default"), [(CHAT, True), (GENERATE, True), (OPENAI, False)])
def test_stream_defaults_are_the_wire_s_own(wire: Wire, default: bool) -> None:
    body = {"model": "m", "messages": [USER], "prompt": "p"}
    assert parse(wire, body).stream is default
    assert parse(wire, body | {"stream": None}).stream is default
    assert parse(wire, body | {"stream": not default}).stream is not default


@pytest.mark.parametrize(
    ("wire", "body", "words"),
    [
        (CHAT, b"", "missing request body"),
        (OPENAI, b"", "empty"),
        (CHAT, b"null", "model is required"),
        (CHAT, b"{}", "model is required"),
        (OPENAI, b"[]", "not a JSON object"),
        (OPENAI, b'{"model":"m"} x', "not a JSON object"),
        (OPENAI, b'{"model":1}', "model:"),
        (OPENAI, b'{"model":"m","stream":"yes"}', "stream:"),
        (OPENAI, b'{"model":"\xff"}', "UTF-8"),
        (OPENAI, b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deep"),
        (CHAT, b'{"model":"a","MODEL":"b"}', "twice"),
        (CHAT, b'{"model":"a", "x" : 1, "model" :"a"}', "twice"),
        (CHAT, b'{"model":"a","m\\u006fdel":"b"}', "twice"),
        (CHAT, '{"keep_alive":1,"model":"a","\u212aeep_alive":2}'.encode(), "twice"),
        (CHAT, '{"messages":[],"model":"a","me\u017fsages":2}'.encode(), "twice"),
        (OPENAI, b'{"model":"a","Model":"b"}', "twice"),
        (CHAT, b'{"x":{"model":"q"},"model":"a","x":{"model":"q"}}', "twice"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_in_words(wire: Wire, body: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as refused:
        parse(wire, body)
    assert refused.value.http_status == 400


def test_generate_without_a_model_is_a_404() -> None:
    with pytest.raises(ModelNotFound, match="model '' not found") as refused:
        parse(GENERATE, {"prompt": "x"})
    assert refused.value.http_status == 404


def test_ollama_keys_are_folded_and_openai_keys_are_not() -> None:
    assert parse(CHAT, {"Model": "m", "MESSAGES": [USER]}).needs is Feature.NONE
    assert "Temperature" in parse(OPENAI, {"model": "m", "Temperature": 0}).head


@pytest.mark.parametrize("wire", [OPENAI, Wire.OPENAI_COMPLETION])
@pytest.mark.parametrize("key", ["Model", "Stream", "N", "stream_Options", "me\u017fsages", "METADATA"])
def test_an_openai_key_that_we_read_is_refused_in_another_spelling(wire: Wire, key: str) -> None:
    body: dict[str, Any] = {} if key == "Model" else {"model": "m"}
    meant = key.lower().replace("\u017f", "s")
    with pytest.raises(BadRequest, match=f"'{key}' is not spelt as the API spells it: write '{meant}'") as refused:
        parse(wire, body | {key: True})
    assert refused.value.http_status == 400


def test_escaped_keys_and_odd_spaces_are_no_duplicates() -> None:
    body = b' { "model" : "m" ,\n"a\\"b":{"model":"x"}, "c":"}" , "d\\u00e9":[1] } \n'
    assert set(parse(CHAT, body).head) == {"model", 'a"b', "c", "dé"}


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"user": "u"}, b"u"),
        ({"user": "u", "safety_identifier": "s"}, b"s"),
        ({"user": "u", "safety_identifier": "s", "prompt_cache_key": "p"}, b"p"),
        ({"user": 7, "prompt_cache_key": ""}, None),
    ],
)
def test_the_named_key_prefers_the_cache_key(body: dict[str, Any], key: bytes | None) -> None:
    assert parse(OPENAI, {"model": "m"} | body).named_key == key


def test_component_and_session_come_from_metadata() -> None:
    parsed = parse(OPENAI, {"model": "m", "metadata": {"component": "synthesis", "session": "s-1"}})
    assert (parsed.component, parsed.session) == ("synthesis", "s-1")
    assert parse(OPENAI, {"model": "m", "metadata": ["x"]}).component is None


@pytest.mark.parametrize(
    ("wire", "body", "needs"),
    [
        (CHAT, {}, Feature.LOAD),
        (CHAT, {"messages": None}, Feature.LOAD),
        (CHAT, {"messages": [], "keep_alive": 0}, Feature.LOAD),
        (CHAT, {"messages": [USER]}, Feature.NONE),
        (GENERATE, {"prompt": ""}, Feature.LOAD),
        (GENERATE, {"prompt": "", "suffix": "s"}, Feature.LOAD | Feature.SUFFIX),
        (GENERATE, {"prompt": "p", "template": "{{ .Prompt }}"}, Feature.GO_TEMPLATE),
        (GENERATE, {"prompt": "p", "template": ""}, Feature.NONE),
        (GENERATE, {"prompt": "p", "context": [1]}, Feature.CONTEXT),
        (GENERATE, {"prompt": "p", "context": []}, Feature.NONE),
        (GENERATE, {"prompt": "p", "suffix": "s"}, Feature.SUFFIX),
        (GENERATE, {"prompt": "p", "images": [WAV]}, Feature.AUDIO),
        (GENERATE, {"prompt": "p", "images": [PNG]}, Feature.NONE),
        (CHAT, {"messages": [USER], "_debug_render_only": True}, Feature.DEBUG_RENDER),
        (CHAT, {"messages": [USER], "_debug_render_only": False}, Feature.NONE),
        (GENERATE, {"prompt": "p", "_debug_render_only": True}, Feature.DEBUG_RENDER),
        (CHAT, {"messages": [USER], "options": {"stop": list("abcde")}}, Feature.MANY_STOPS),
        (CHAT, {"messages": [USER], "options": {"stop": ["a", "", "", "b", ""]}}, Feature.NONE),
        (OPENAI, {"messages": [USER], "stop": list("abcde")}, Feature.MANY_STOPS),
        (OPENAI, {"messages": [USER], "stop": "abcdef"}, Feature.NONE),
        (CHAT, {"messages": [USER], "options": {"num_predict": 0}}, Feature.NO_PREDICT),
        (CHAT, {"messages": [USER], "options": {"num_predict": 0.5}}, Feature.NO_PREDICT),
        (CHAT, {"messages": [USER], "options": {"num_predict": False}}, Feature.NONE),
        (CHAT, {"messages": [USER], "options": 3}, Feature.NONE),
        (CHAT, {"messages": [USER | {"images": [MP3]}]}, Feature.AUDIO),
        (CHAT, {"messages": [USER, {"role": "tool", "content": "x"}]}, Feature.UNMATCHED_TOOL_RESULT),
        (CHAT, {"messages": [{"role": "TOOL", "content": "x"}]}, Feature.UNMATCHED_TOOL_RESULT),
        (EMBED, {}, Feature.LOAD),
        (EMBED, {"input": ""}, Feature.LOAD),
        (EMBED, {"input": []}, Feature.LOAD),
        (EMBED, {"input": [""]}, Feature.NONE),
        (EMBED, {"prompt": "p"}, Feature.LOAD),
        (EMBED, {"input": "p"}, Feature.NONE),
        (EMBEDDINGS, {"input": "p"}, Feature.LOAD),
        (EMBEDDINGS, {"prompt": "p"}, Feature.NONE),
        (Wire.OPENAI_EMBEDDINGS, {"input": "p"}, Feature.NONE),
        (Wire.OPENAI_EMBEDDINGS, {"input": [1, 2]}, Feature.TOKEN_IDS),
        (Wire.OPENAI_EMBEDDINGS, {"input": [[1, 2]]}, Feature.TOKEN_IDS),
        (Wire.OPENAI_COMPLETION, {"prompt": [1, 2]}, Feature.TOKEN_IDS),
        (Wire.OPENAI_COMPLETION, {"prompt": ["1"]}, Feature.NONE),
        (Wire.OPENAI_COMPLETION, {"prompt": "p", "suffix": "s"}, Feature.SUFFIX),
    ],
)
def test_what_a_call_needs(wire: Wire, body: dict[str, Any], needs: Feature) -> None:
    assert parse(wire, {"model": "m"} | body).needs == needs


@pytest.mark.parametrize(
    ("wire", "body", "needs"),
    [
        (Wire.OLLAMA_CHAT, b'{"model": "m", "messages": [ ]}', Feature.LOAD),
        (Wire.OLLAMA_CHAT, b'{"model": "m", "messages": [\n  ]}', Feature.LOAD),
        (Wire.OLLAMA_EMBED, b'{"model": "m", "input": [ ]}', Feature.LOAD),
        (Wire.OLLAMA_GENERATE, b'{"model": "m", "prompt": "p", "context": [ ]}', Feature.NONE),
        (Wire.OLLAMA_CHAT, b'{"model": "m", "messages": [ {} ]}', Feature.NONE),
    ],
)
def test_an_empty_list_is_empty_however_it_is_written(wire: Wire, body: bytes, needs: Feature) -> None:
    assert DIALECTS[wire].parse(body).needs == needs


def test_a_load_call_never_streams() -> None:
    assert parse(CHAT, {"model": "m", "stream": True}).stream is False


@pytest.mark.parametrize("wire", [CHAT, GENERATE])
def test_a_rendered_prompt_never_streams(wire: Wire) -> None:
    body = {"model": "m", "messages": [USER], "prompt": "p", "stream": True}
    assert parse(wire, body | {"_debug_render_only": True}).stream is False
    assert parse(wire, body | {"_debug_render_only": False}).stream is True


@settings(max_examples=150)
@given(st.sampled_from(SPOKEN), st.binary(max_size=60))
def test_random_bytes_are_read_or_refused(wire: Wire, body: bytes) -> None:
    with suppress(BadRequest):
        parse(wire, body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    "messages",
    "prompt",
    "stream",
    "options",
    "images",
    "suffix",
    "stop",
    "metadata",
    "user",
    "context",
    "raw",
    "input",
]


@settings(max_examples=200)
@given(st.sampled_from(SPOKEN), st.dictionaries(st.sampled_from(KEYS), JSON))
def test_values_of_any_type_are_read_or_refused(wire: Wire, body: dict[str, Any]) -> None:
    with suppress(BadRequest):
        DIALECTS[wire].conversation_key(parse(wire, {"model": "m"} | body).head)


# --- the conversation's key -------------------------------------------------------------------------------------------

TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "and then?"},
    {"role": "assistant", "content": "nothing"},
]


def key_of(turns: list[dict[str, Any]], wire: Wire = OPENAI) -> bytes | None:
    return DIALECTS[wire].conversation_key(parse(wire, {"model": "m", "messages": turns, "prompt": "p"}).head)


def test_a_conversation_has_no_key_before_its_first_answer() -> None:
    assert key_of(TURNS[:2]) is None
    assert key_of([{"role": "user", "content": 'say "assistant"'}]) is None
    assert key_of([TURNS[2]]) is None


def test_a_conversation_keeps_its_key_while_it_grows() -> None:
    assert key_of(TURNS[:3]) == key_of(TURNS[:4]) == key_of(TURNS) == key_of(TURNS, CHAT) is not None


def test_other_conversations_have_other_keys() -> None:
    split = [{"role": "system", "content": "be briefh"}, {"role": "user", "content": "i"}, *TURNS[2:]]
    parts = [TURNS[0], {"role": "user", "content": [{"type": "text", "text": "hi"}]}, *TURNS[2:]]
    assert len({key_of(TURNS), key_of(TURNS[1:]), key_of(split), key_of(parts)}) == 4


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (BadRequest("no"), "invalid_request_error", None),
        (ModelNotFound("no"), "not_found_error", "model_not_found"),
        (Overloaded("busy"), "api_error", None),
        (BadRequest("x", http_status=429), "rate_limit_error", None),
        (
            BadRequest("x", client_text="… maximum context length is 8"),
            "invalid_request_error",
            "context_length_exceeded",
        ),
    ],
)
def test_openai_errors_have_a_type_by_status_and_a_code_or_null(error: LLMError, kind: str, code: str | None) -> None:
    body = msgspec.json.decode(DIALECTS[OPENAI].error_body(error))
    assert body == {"error": {"message": error.text, "type": kind, "param": None, "code": code}}


def test_a_json_document_as_ollama_s_error_text_is_unwrapped_for_openai_clients() -> None:
    nested = '{"error":{"code":400,"message":"request exceeds","type":"exceed_context_size_error"}}'
    error = msgspec.json.decode(DIALECTS[OPENAI].error_body(BadRequest("x", client_text=nested)))["error"]
    assert (error["message"], error["code"]) == ("request exceeds", "context_length_exceeded")
    broken = msgspec.json.decode(DIALECTS[OPENAI].error_body(BadRequest("x", client_text="{no")))["error"]
    assert broken["message"] == "{no"


def test_ollama_errors_are_one_string_escaped_as_go_does() -> None:
    assert DIALECTS[CHAT].error_body(BadRequest("a < b")) == b'{"error":"a \\u003c b"}'


NATIVE_WORDS: list[tuple[Wire, LLMError, int, str]] = [
    (CHAT, ModelNotFound("x", provider="p", client_text="The model `q` does not exist."), 404, "model 'M' not found"),
    (GENERATE, ModelNotFound("x", provider="p"), 404, "model 'M' not found"),
    (EMBED, ModelNotFound("x", provider="p"), 404, 'model "M" not found, try pulling it first'),
    (EMBEDDINGS, ModelNotFound("x", provider="p"), 404, 'model "M" not found, try pulling it first'),
    (GENERATE, ModelNotFound("model '' not found"), 404, "model '' not found"),
    (CHAT, NotOffered("x", provider="p", client_text="no"), 400, '"M" does not support chat'),
    (GENERATE, NotOffered("x", provider="p"), 400, '"M" does not support generate'),
    (EMBED, NotOffered("x", provider="p"), 400, '"M" does not support embeddings'),
    (CHAT, NotOffered("no configured provider offers it"), 400, "no configured provider offers it"),
    (CHAT, BadRequest("x", client_text="maximum context length is 9"), 400, "maximum context length is 9"),
    (EMBED, BadRequest("x", client_text="maximum context length is 9"), 400, TOO_LONG),
    (EMBEDDINGS, BadRequest("x", client_text="maximum context length is 9"), 400, TOO_LONG),
    (EMBED, BadRequest("x", client_text="other"), 400, "other"),
    (CHAT, BadRequest("x", http_status=422, client_text="no such image"), 400, "no such image"),
    (CHAT, Unavailable("x", http_status=502, client_text="dead"), 502, "dead"),
]


@pytest.mark.parametrize(("wire", "error", "status", "text"), NATIVE_WORDS)
def test_a_native_client_reads_ollama_s_own_words(wire: Wire, error: LLMError, status: int, text: str) -> None:
    dialect = DIALECTS[wire]
    assert msgspec.json.decode(dialect.error_body(error, "M")) == {"error": text}
    assert dialect.error_status(error) == status
    assert DIALECTS[OPENAI].error_status(error) == error.http_status


@pytest.mark.parametrize("wire", SPOKEN)
def test_the_back_end_s_own_body_is_passed_on(wire: Wire) -> None:
    assert DIALECTS[wire].error_body(BadRequest("x", client_body=b"as it came")) == b"as it came"


def test_a_broken_stream_ends_with_an_error_and_claims_no_finish() -> None:
    broken = StreamBroken("cut off")
    openai, native = DIALECTS[OPENAI].stream_error(broken), DIALECTS[CHAT].stream_error(broken)
    assert openai.startswith(b'data: {"error":{"message":"cut off"')
    assert openai.endswith(b"}\n\n")
    assert native == b'{"error":"cut off"}\n'


def test_media_types_are_the_wire_s_own() -> None:
    assert DIALECTS[OPENAI].media_type(True) == b"text/event-stream; charset=utf-8"
    assert DIALECTS[OPENAI].media_type(False) == b"application/json"
    assert DIALECTS[CHAT].media_type(True) == b"application/x-ndjson"
    assert DIALECTS[CHAT].media_type(False) == b"application/json; charset=utf-8"
