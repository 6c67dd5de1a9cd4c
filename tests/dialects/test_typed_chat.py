"""The library's requests and answers as Python values."""

from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from dialect_streams import VLLM_STREAM, cut, sse

from memos_llm.core.call import Usage
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind
from memos_llm.core.responses import Options, StreamChunk, ToolCall
from memos_llm.dialects.typed import SHAPING, ChunkReader, chat_body, parse_answer

USER = ({"role": "user", "content": "hi"},)


def body(options: Options | None = None, **more: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"stream": False, "model": "m", "max_tokens": 5, "temperature": 0.0} | more
    decoded: dict[str, Any] = msgspec.json.decode(chat_body(USER, options=options or {}, **arguments))
    return decoded


PLAIN = {"model": "m", "messages": list(USER), "stream": False, "max_tokens": 5, "temperature": 0.0}


def test_none_is_left_out_and_zero_is_not() -> None:
    assert body() == PLAIN
    assert body(max_tokens=None, temperature=None) == {"model": "m", "messages": list(USER), "stream": False}


def test_a_stream_asks_for_its_usage() -> None:
    assert body(stream=True) == PLAIN | {"stream": True, "stream_options": {"include_usage": True}}


def test_options_and_extra_are_merged_and_the_model_is_the_given_one() -> None:
    options: Options = {"model": "other", "stop": ("a",), "seed": 1, "extra": {"seed": 2, "n": 1}}
    assert body(options) == PLAIN | {"stop": ["a"], "seed": 2, "n": 1}


@pytest.mark.parametrize("kind", ["object", ["object", "null"], None])
def test_a_bare_schema_is_wrapped(kind: Any) -> None:
    schema = {"type": kind, "properties": {"a": {"type": "string"}}}
    wrapped = {"type": "json_schema", "json_schema": {"name": "response", "schema": schema}}
    assert body({"response_format": MappingProxyType(schema)}) == PLAIN | {"response_format": wrapped}


@pytest.mark.parametrize("kind", ["text", "json_object", "json_schema", "structural_tag"])
def test_a_response_format_of_the_api_stays_as_it_is(kind: str) -> None:
    assert body({"response_format": {"type": kind, "x": 1}}) == PLAIN | {"response_format": {"type": kind, "x": 1}}


def test_every_option_but_the_model_and_extra_has_a_place() -> None:
    sampling = set(Options.__annotations__) - {"model", "extra", "request_id", "timeout_s", "session", "component"}
    assert sampling == SHAPING


def test_read_only_mappings_are_messages_too() -> None:
    message = MappingProxyType({"role": "user", "content": ({"type": "text", "text": "x"},)})
    sent = chat_body([message], stream=False, model="m", max_tokens=None, temperature=None, options={})
    assert msgspec.json.decode(sent)["messages"] == [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    with pytest.raises(TypeError, match="object has no place"):
        chat_body([{"role": object()}], stream=False, model="m", max_tokens=None, temperature=None, options={})


def test_a_whole_answer_is_parsed_with_its_document() -> None:
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call]}
    document = {
        "model": "served",
        "choices": [{"message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
    answer = parse_answer(msgspec.json.encode(document))
    assert (answer.text, answer.reasoning, answer.finish_reason, answer.model) == ("", "hm", "tool_calls", "served")
    assert answer.tool_calls == (ToolCall("t", "f", '{"a": 1}'),)
    assert (answer.usage, answer.raw) == (Usage(3, 2), document)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[{}]}', b'{"choices":3}', b"\xff"])
def test_an_answer_that_is_none_is_malformed(data: bytes) -> None:
    with pytest.raises(AttemptFailed) as failed:
        parse_answer(data)
    assert failed.value.outcome.kind is Kind.MALFORMED


def test_chunks_carry_text_and_the_last_one_the_rest() -> None:
    expected = [
        StreamChunk(reasoning="hm <b> & \u2028"),
        StreamChunk(text='Grüße "model":"x" 🚀'),
        StreamChunk(tool_calls=(ToolCall("t1", "f", '{"a": 1}'),), finish_reason="tool_calls", usage=Usage(3, 2)),
    ]
    for place in range(0, len(VLLM_STREAM), 11):
        reader = ChunkReader()
        found = [chunk for piece in cut(VLLM_STREAM, [place]) for chunk in reader.feed(piece)]
        assert found + reader.eof() == expected


def test_a_frame_without_bytes_is_no_chunk() -> None:
    assert ChunkReader().feed(b"") == []


def test_a_chunk_that_is_no_json_is_malformed() -> None:
    with pytest.raises(AttemptFailed, match="malformed"):
        ChunkReader().feed(sse("{no"))
