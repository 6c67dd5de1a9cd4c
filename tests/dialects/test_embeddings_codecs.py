"""Embeddings: Ollama's native calls as vLLM's, and what is repaired on the OpenAI wire."""

import base64
import math
import struct
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from dialect_streams import OFFER, Ticking, cut, make_call, run, target, told
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_llm.core.call import Call, Part, Usage, Wire
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed, BadRequest
from memos_llm.core.outcome import Kind
from memos_llm.dialects.codecs import CODECS, vectors
from memos_llm.dialects.codecs.embed_to_openai import EmbedToOpenAI
from memos_llm.dialects.codecs.identity import Identity

EMBED, EMBEDDINGS, OPENAI = Wire.OLLAMA_EMBED, Wire.OLLAMA_EMBEDDINGS, Wire.OPENAI_EMBEDDINGS
VLLM = Offer(frozenset({OPENAI}))
IDENTITY = Identity()
REPAIRING = target(repairs=frozenset({"truncate_prompt_tokens", "dimensions"}))
WHOLE = Part.CONTENT | Part.FINISH | Part.END


def codec() -> EmbedToOpenAI:
    return EmbedToOpenAI(Ticking())


def embed(**body: Any) -> Call:
    return make_call(EMBED, {"model": "Caller:latest", "input": "hi"} | body)


def sent(call: Call, offer: Offer = OFFER) -> tuple[dict[str, Any], tuple[str, ...]]:
    request, warnings = codec().request(call, target(), offer)
    assert (request.wire, request.model, request.stream) == (OPENAI, "served/m", False)
    return msgspec.json.decode(request.body), warnings


def answer(*found: Any, tokens: int = 7) -> bytes:
    data = [{"index": index, "object": "embedding", "embedding": one} for index, one in enumerate(found)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    return msgspec.json.encode({"id": "embd-1", "object": "list", "model": "served/m", "data": data, "usage": usage})


# --- native to vLLM: requests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", [EMBED, EMBEDDINGS])
def test_a_native_call_finds_its_way_to_vllm(wire: Wire) -> None:
    asked = {"model": "m", "input": "x", "prompt": "x"}
    assert type(CODECS.find(make_call(wire, asked), VLLM)) is EmbedToOpenAI
    assert type(CODECS.find(make_call(wire, asked), Offer(frozenset({wire})))) is Identity


@pytest.mark.parametrize("nothing", ["", [], None])
def test_a_call_that_only_loads_is_for_ollama(nothing: Any) -> None:
    call = embed(input=nothing)
    assert CODECS.find(call, VLLM) is None
    with pytest.raises(AttemptFailed) as refused:
        sent(call)
    assert refused.value.outcome.kind is Kind.INCOMPATIBLE


@pytest.mark.parametrize(
    ("given_", "written"),
    [
        ({}, {"input": "hi", "truncate_prompt_tokens": -1}),
        ({"input": ["a", "b"]}, {"input": ["a", "b"], "truncate_prompt_tokens": -1}),
        ({"input": ["a", ""]}, {"input": ["a", ""], "truncate_prompt_tokens": -1}),
        ({"truncate": True}, {"input": "hi", "truncate_prompt_tokens": -1}),
        ({"truncate": None}, {"input": "hi", "truncate_prompt_tokens": -1}),
        ({"truncate": False}, {"input": "hi"}),
        ({"dimensions": 2}, {"input": "hi", "truncate_prompt_tokens": -1}),
        ({"keep_alive": "5m"}, {"input": "hi", "truncate_prompt_tokens": -1}),
        ({"options": {"temperature": 1, "x": 2}}, {"input": "hi", "truncate_prompt_tokens": -1}),
    ],
)
def test_an_embed_call_is_carried_over(given_: dict[str, Any], written: dict[str, Any]) -> None:
    assert sent(embed(**given_)) == ({"model": "served/m"} | written, ())


def test_the_older_route_never_cuts_its_prompt() -> None:
    call = make_call(EMBEDDINGS, {"model": "m", "prompt": "p", "keep_alive": 0})
    assert sent(call) == ({"model": "served/m", "input": "p"}, ("approximated:embedding",))


@pytest.mark.parametrize(
    ("context", "warnings"), [(None, ("dropped:num_ctx",)), (100, ("dropped:num_ctx",)), (512, ())]
)
def test_a_longer_context_than_the_target_s_is_told(context: int | None, warnings: tuple[str, ...]) -> None:
    offer = Offer(frozenset({OPENAI}), context_tokens=context)
    assert sent(embed(options={"num_ctx": 512}), offer)[1] == warnings


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"input": [1, 2]}, "invalid input type"),
        ({"input": [["a"]]}, "invalid input type"),
        ({"input": {"a": 1}}, "invalid input type"),
        ({"truncate": "no"}, "truncate: "),
        ({"dimensions": "3"}, "dimensions: "),
        ({"options": {"num_ctx": "big"}}, 'option "num_ctx" must be of type integer'),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(given_: dict[str, Any], words: str) -> None:
    with pytest.raises(AttemptFailed) as refused:
        sent(embed(**given_))
    assert (refused.value.outcome.kind, refused.value.client_text[: len(words)]) == (Kind.CLIENT, words)


# --- native to vLLM: answers ------------------------------------------------------------------------------------------


def test_vectors_come_in_the_inputs_order_normalised_with_counts_and_times() -> None:
    document = msgspec.json.decode(answer([3.0, 4.0], [0.0, 2.0], [0.0, 0.0]))
    document["data"].reverse()
    data, parts, usage = told(
        run(codec().decoder(embed(input=["a", "b", "c"]), target()), [msgspec.json.encode(document)])
    )
    assert data == (
        b'{"model":"Caller:latest","embeddings":[[0.6,0.8],[0.0,1.0],[0.0,0.0]],"total_duration":500000000,'
        b'"load_duration":1,"prompt_eval_count":7}'
    )
    assert (parts, usage) == (WHOLE | Part.USAGE, Usage(7, 0))


def test_counts_of_zero_are_left_out() -> None:
    assert b"prompt_eval_count" not in run(codec().decoder(embed(), target()), [answer([1.0], tokens=0)])[0].data


@pytest.mark.parametrize(("dimensions", "length"), [(2, 2), (4, 4), (9, 4), (0, 4), (-1, 4), (None, 4)])
def test_dimensions_cut_and_normalise_as_ollama_does_and_are_ignored_out_of_range(dimensions: Any, length: int) -> None:
    data = run(codec().decoder(embed(dimensions=dimensions), target()), [answer([0.5, 0.5, 0.5, 0.5])])[0].data
    (vector,) = msgspec.json.decode(data)["embeddings"]
    assert len(vector) == length
    assert math.hypot(*vector) == pytest.approx(1)


def test_the_older_route_has_one_vector_as_it_came() -> None:
    call = make_call(EMBEDDINGS, {"model": "m", "prompt": "p"})
    assert run(codec().decoder(call, target()), [answer([3.0, 4.0])])[0].data == b'{"embedding":[3.0,4.0]}'


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", Kind.MALFORMED),
        (b"{}", Kind.MALFORMED),
        (answer(), Kind.MALFORMED),
        (answer([1.0], [1.0]), Kind.MALFORMED),
        (answer("AAAA"), Kind.MALFORMED),
        (b'{"error":{"message":"dead","code":500}}', Kind.SERVER),
    ],
)
def test_an_answer_without_a_vector_for_each_input_fails(body: bytes, kind: Kind) -> None:
    with pytest.raises(AttemptFailed) as failed:
        run(codec().decoder(embed(), target()), [body])
    assert failed.value.outcome.kind is kind


def test_an_answer_does_not_depend_on_the_cuts() -> None:
    body, call = answer([3.0, 4.0]), embed()
    expected = told(run(codec().decoder(call, target()), [body]))
    for place in range(len(body)):
        assert told(run(codec().decoder(call, target()), cut(body, [place]))) == expected


# --- OpenAI's wire to vLLM --------------------------------------------------------------------------------------------


def openai(**body: Any) -> Call:
    return make_call(OPENAI, {"model": "served/m", "input": "hi"} | body)


def context(tokens: int | None) -> Offer:
    return Offer(frozenset({OPENAI}), context_tokens=tokens)


@pytest.mark.parametrize(
    ("input_", "tokens", "repaired"),
    [
        ("hi", None, True),
        ("hi", 512, False),
        ("x" * 600, 512, True),
        (["x" * 300, "y" * 300], 512, False),
        (["x" * 600, "y"], 512, True),
        ([1] * 600, 512, True),
    ],
)
def test_an_input_that_may_be_too_long_is_let_be_cut(input_: Any, tokens: int | None, repaired: bool) -> None:
    call = openai(input=input_)
    request, warnings = IDENTITY.request(call, REPAIRING, context(tokens))
    assert warnings == (("repaired:truncate_prompt_tokens",) if repaired else ())
    assert msgspec.json.decode(request.body).get("truncate_prompt_tokens") == (-1 if repaired else None)
    assert repaired or request.body is call.body


def test_a_caller_s_own_truncation_stays() -> None:
    call = openai(truncate_prompt_tokens=5)
    assert IDENTITY.request(call, REPAIRING, context(None))[0].body is call.body


def test_nothing_is_repaired_where_the_provider_needs_nothing() -> None:
    call = openai(dimensions=2)
    request, warnings = IDENTITY.request(call, target(), context(None))
    assert (request.body, warnings) == (call.body, ())
    body = answer([3.0, 4.0, 0.0])
    assert run(IDENTITY.decoder(make_call(OPENAI, {"model": "m", "dimensions": 2}), target("m")), [body])


def float32(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


@pytest.mark.parametrize(
    ("encoding", "whole", "short"),
    [
        ({}, [3.0, 4.0, 12.0], [0.6, 0.8]),
        ({"encoding_format": None}, [3.0, 4.0, 12.0], [0.6, 0.8]),
        ({"encoding_format": "float"}, [3.0, 4.0, 12.0], [0.6, 0.8]),
        ({"encoding_format": "base64"}, float32(3.0, 4.0, 12.0), float32(0.6, 0.8)),
    ],
)
def test_dimensions_are_cut_here_in_both_encodings(encoding: dict[str, Any], whole: Any, short: Any) -> None:
    call = openai(dimensions=2, **encoding)
    request, warnings = IDENTITY.request(call, REPAIRING, context(512))
    assert "dimensions" not in msgspec.json.decode(request.body)
    assert warnings == ("repaired:dimensions",)
    data = run(IDENTITY.decoder(call, REPAIRING), [answer(whole)])[0].data
    assert msgspec.json.decode(data) == msgspec.json.decode(answer(short))


def test_a_vector_that_is_short_enough_keeps_its_bytes() -> None:
    body = b'{"object":"list","model":"served/m","data":[{"embedding":[0.10,2e0],"index":0}]}'
    assert run(IDENTITY.decoder(openai(dimensions=2), REPAIRING), [body])[0].data == body


@pytest.mark.parametrize("given_", [{"dimensions": 2, "encoding_format": "bytes"}, {"dimensions": "2"}])
def test_what_we_cannot_cut_is_the_back_end_s_to_refuse(given_: dict[str, Any]) -> None:
    call = openai(**given_)
    assert IDENTITY.request(call, REPAIRING, context(512))[0].body is call.body


@pytest.mark.parametrize("broken", [["x"], "no base64", "AAA=", {"a": 1}, None])
def test_a_vector_that_is_none_fails_the_attempt(broken: Any) -> None:
    with pytest.raises(AttemptFailed) as failed:
        run(IDENTITY.decoder(openai(dimensions=2), REPAIRING), [answer(broken)])
    assert failed.value.outcome.kind is Kind.MALFORMED


# --- anything at all --------------------------------------------------------------------------------------------------

FLOATS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


@given(FLOATS, st.integers(-2, 50))
def test_a_cut_vector_is_the_beginning_with_length_one(vector: list[float], dimensions: int) -> None:
    short = vectors.cut(vector, dimensions)
    if not 0 < dimensions < len(vector):
        assert short == vector
        return
    length = math.hypot(*vector[:dimensions])
    assert len(short) == dimensions
    if length > 1e-30:
        assert math.hypot(*short) == pytest.approx(1, abs=1e-5)
        assert [value * length for value in short] == pytest.approx(vector[:dimensions], rel=1e-5, abs=1e-5)


@given(FLOATS)
def test_base64_and_floats_are_the_same_vector(vector: list[float]) -> None:
    assert vectors.from_base64(vectors.to_base64(vector)) == vector
    assert vectors.to_base64(vector) == float32(*vector)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    "input",
    "prompt",
    "truncate",
    "dimensions",
    "options",
    "keep_alive",
    "encoding_format",
    "truncate_prompt_tokens",
]


@settings(max_examples=250)
@given(st.sampled_from([EMBED, EMBEDDINGS, OPENAI]), st.dictionaries(st.sampled_from(KEYS), JSON), JSON | st.binary())
def test_anything_is_carried_or_fails_as_an_attempt(wire: Wire, body: dict[str, Any], reply: Any) -> None:
    with suppress(AttemptFailed, BadRequest):
        call = make_call(wire, {"model": "m"} | body)
        carrier = IDENTITY if wire is OPENAI else codec()
        carrier.request(call, REPAIRING, OFFER)
        raw = reply if isinstance(reply, bytes) else msgspec.json.encode({"data": [{"index": 0, "embedding": reply}]})
        run(carrier.decoder(call, REPAIRING), [raw])
