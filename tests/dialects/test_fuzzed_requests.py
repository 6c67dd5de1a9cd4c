"""Requests of both dialects through every translation: declared refusals, or a body that keeps what was said.

Requests come from the same grammar and mutations as `scripts/fuzz`; an example is the seed of a `Random`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Any, NamedTuple

import msgspec
import pytest
from dialect_streams import OFFER, make_call, native_codec, target
from fuzz import grammar
from fuzz.mutating import mutate_document, write
from fuzz.validating import parsed
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_llm.core.call import Call, Wire
from memos_llm.core.errors import AttemptFailed, LLMError
from memos_llm.core.outcome import Kind
from memos_llm.dialects.codecs.embed_to_openai import EMBED, EMBEDDINGS, EmbedToOpenAI
from memos_llm.dialects.codecs.identity import Identity
from memos_llm.dialects.codecs.ollama_options import OPTIONS
from memos_llm.dialects.codecs.ollama_request import CHAT, GENERATE
from memos_llm.dialects.codecs.openai_request import CHAT as OPENAI_CHAT
from memos_llm.dialects.codecs.openai_to_ollama import OpenAIToOllama
from memos_llm.dialects.codecs.rules import Policy, Rule
from memos_llm.dialects.codecs.table import Translation
from memos_llm.dialects.edge import DIALECTS

REFUSALS = {Kind.CLIENT, Kind.INCOMPATIBLE}
WIRES = tuple(grammar.ROUTES)
seeds = st.integers(0, 2**64 - 1)


class Way(NamedTuple):
    wire: Wire
    codec: Translation
    rules: Mapping[str, Rule]


WAYS = [
    Way(Wire.OLLAMA_CHAT, native_codec(), CHAT),
    Way(Wire.OLLAMA_GENERATE, native_codec(), GENERATE),
    Way(Wire.OLLAMA_EMBED, EmbedToOpenAI(), EMBED),
    Way(Wire.OLLAMA_EMBEDDINGS, EmbedToOpenAI(), EMBEDDINGS),
    Way(Wire.OPENAI_CHAT, OpenAIToOllama(), OPENAI_CHAT),
]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.wire.value)


@contextmanager
def refused_as_declared() -> Iterator[None]:
    """Whatever is refused in it is refused as the caller's mistake, or as what another target may do."""
    try:
        yield
    except (LLMError, AttemptFailed) as refused:
        check_refusal(refused)


def check_refusal(refused: LLMError | AttemptFailed) -> None:
    if isinstance(refused, AttemptFailed):
        assert refused.outcome.kind in REFUSALS
    else:
        assert 400 <= refused.http_status < 500


def asked(rng: Random, wire: Wire) -> dict[str, Any]:
    body = grammar.request(rng, "mark", "caller", (wire.value,)).body
    assert body is not None
    return body


def carried(way: Way, call: Call) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The back end's body, which must be JSON (in UTF-8 if the caller's was), and the warnings."""
    request, warnings = way.codec.request(call, target(), OFFER)
    body = parsed(request.body, strict=is_utf8(call.body))
    assert isinstance(body, dict)
    return body, warnings


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def with_fields(rng: Random, way: Way) -> dict[str, Any]:
    """A valid body that gives a few fields more of all that the table knows; `raw` and `suffix` have another table."""
    body = asked(rng, way.wire)
    names = rng.sample(sorted(way.rules.keys() - {"raw", "suffix"}), rng.randint(0, min(6, len(way.rules) - 2)))
    odd: tuple[Any, ...] = (True, False, 0, 1, 2, -1, 0.5, "x", "low", "", [], ["a"], {}, {"a": 1}, None)
    return body | {name: rng.choice(odd) for name in names if name not in ("model", "messages", "prompt", "input")}


@every_way
@settings(max_examples=150)
@given(seed=seeds)
def test_a_field_is_carried_or_told_or_refused(way: Way, seed: int) -> None:
    rng = Random(seed)
    body = with_fields(rng, way)
    with refused_as_declared():
        call = make_call(way.wire, body)
        sent, warnings = carried(way, call)
        for name, value in body.items():
            if value is not None and name in way.rules:
                check(way, name, body, sent, warnings, call)


EMPTY = (b"false", b"0", b'""', b"[]", b"{}")
UNASKED: Mapping[str, Callable[[Any, Mapping[str, Any]], bool]] = {
    "tool_choice": lambda value, body: value in ("auto", "none"),
    "parallel_tool_calls": lambda value, body: value is not False,
    "n": lambda value, body: value < 2,
    "tools": lambda value, body: body.get("tool_choice") == "none",
    "response_format": lambda value, body: value == {"type": "text"},
    "reasoning": lambda value, body: "effort" not in value,
    "stop": lambda value, body: not isinstance(value, str | list),
    "shift": lambda value, body: value is True,
}
"""Values that ask for nothing but what comes anyway (or, of `stop`, that Ollama's `/v1` takes for nothing)."""


def check(
    way: Way, name: str, body: Mapping[str, Any], sent: Mapping[str, Any], warnings: tuple[str, ...], call: Call
) -> None:
    """One field that was given, by what the table says becomes of it."""
    rule, asks_nothing = way.rules[name], UNASKED.get(name)
    empty = bytes(call.head[name]) in EMPTY or (asks_nothing is not None and asks_nothing(body[name], body))
    told = any(warning.endswith(f":{name}") for warning in warnings)
    if rule.policy is Policy.DROPPED:
        assert told or empty, name
    elif rule.policy is Policy.REFUSED:
        assert empty or call.needs & ~way.codec.features, name
    elif rule.policy is Policy.IGNORED:
        assert name not in sent
    elif rule.to and not empty:
        assert told or any(field.partition(".")[0] in sent for field in rule.to.split(", ")), name


@every_way
@settings(max_examples=150)
@given(seed=seeds)
def test_an_odd_request_is_refused_as_declared_or_carried_as_json(way: Way, seed: int) -> None:
    rng = Random(seed)
    body = write(rng, mutate_document(rng, asked(rng, way.wire)))
    with refused_as_declared():
        carried(way, make_call(way.wire, body))


@settings(max_examples=400)
@given(seed=seeds)
def test_an_odd_request_on_its_own_wire_is_refused_or_passes(seed: int) -> None:
    rng = Random(seed)
    wire = Wire(rng.choice(WIRES))
    body = write(rng, mutate_document(rng, asked(rng, wire)))
    with refused_as_declared():
        call = make_call(wire, body)
        request, _ = Identity().request(call, target(), OFFER)
        Identity().decoder(call, target())
        names = [value for key, value in msgspec.json.decode(request.body, type=Head).items() if key.lower() == "model"]
        assert [bytes(name) for name in names] == [b'"served/m"']


Head = dict[str, msgspec.Raw]


@settings(max_examples=500)
@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode), st.sampled_from(list(DIALECTS)))
def test_any_bytes_are_a_request_or_refused(body: bytes, wire: Wire) -> None:
    with refused_as_declared():
        DIALECTS[wire].parse(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["model", "MODEL", "messages", "prompt", "input", "stream", "Stream", "n", "metadata", "user"])


@settings(max_examples=500)
@given(st.dictionaries(KEYS | st.text(max_size=6), JSON, max_size=5) | JSON, st.sampled_from(list(DIALECTS)))
def test_any_json_is_a_request_or_refused(body: Any, wire: Wire) -> None:
    with refused_as_declared():
        found = DIALECTS[wire].parse(json.dumps(body).encode())
        assert found.model
        assert isinstance(found.stream, bool)


def texts(messages: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    for message in messages:
        content = message.get("content") or ""
        said = content if isinstance(content, str) else "".join(part["text"] for part in content)
        yield message["role"], said


SAMPLING = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")


@settings(max_examples=200)
@given(seed=seeds)
def test_an_openai_chat_to_ollama_and_back_means_the_same(seed: int) -> None:
    rng = Random(seed)
    body = asked(rng, Wire.OPENAI_CHAT)
    for refused in ("n", "logit_bias", "tool_choice"):
        body.pop(refused, None)
    native, _ = carried(WAYS[-1], make_call(Wire.OPENAI_CHAT, body))
    back, _ = carried(WAYS[0], make_call(Wire.OLLAMA_CHAT, {**native, "model": "caller"}))
    assert list(texts(back["messages"])) == list(texts(body["messages"]))
    assert [m.get("tool_calls") for m in native["messages"]].count(None) == len(native["messages"]) - _calls(body)
    assert back.get("tools") == (body.get("tools") or None)
    assert bool(back["stream"]) == bool(body.get("stream"))
    for name in SAMPLING:
        if name in body:
            assert back[name] == pytest.approx(body[name]), name
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    assert back.get("max_tokens") == limit
    stop = body.get("stop")
    assert back.get("stop") == ([stop] if isinstance(stop, str) else stop)


def _calls(body: dict[str, Any]) -> int:
    return sum("tool_calls" in message for message in body["messages"])


@settings(max_examples=150)
@given(seed=seeds)
def test_an_ollama_chat_keeps_its_messages_tools_and_options_on_vllm(seed: int) -> None:
    rng = Random(seed)
    body = asked(rng, Wire.OLLAMA_CHAT)
    sent, warnings = carried(WAYS[0], make_call(Wire.OLLAMA_CHAT, body))
    assert list(texts(sent["messages"])) == list(texts(body["messages"]))
    assert sent.get("tools") == (body.get("tools") or None)
    for name, value in body.get("options", {}).items():
        if value is not None and OPTIONS[name].policy is Policy.DROPPED:
            assert f"dropped:{name}" in warnings
    if sent.get("temperature") is not None:
        assert sent["temperature"] == body["options"]["temperature"]
