"""Every decoder under valid and spoilt answers of both back ends, cut anywhere: declared failures, or a right answer.

The answers come from the same grammar and mutations as `scripts/fuzz`; an example is the seed of a `Random`.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

import pytest
from dialect_streams import make_call, native_codec, target
from fuzz import answers, validating
from fuzz.hostile import spoil
from fuzz.mutating import mutate_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_llm.core.call import Call, Frame, ModelSettings, Part, Target, Wire
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind
from memos_llm.core.ports import Decoder
from memos_llm.dialects.codecs.embed_to_openai import EmbedToOpenAI
from memos_llm.dialects.codecs.identity import Identity
from memos_llm.dialects.codecs.openai_to_ollama import OpenAIToOllama
from memos_llm.dialects.framing import NdjsonFramer, SseFramer
from memos_llm.dialects.typed import ChunkReader, parse_answer, parse_vectors

DECLARED = {Kind.MALFORMED, Kind.TRUNCATED, Kind.SERVER}
USER = [{"role": "user", "content": "hi"}]
APART = Target("ollama", "served/m", ModelSettings(repairs=frozenset({"prompt"})))
TAGS = target(split_think_tags=True)


class Way(NamedTuple):
    """One decoder: of which call, how it is made, and the back end's wire. `answers`: how many follow each other."""

    id: str
    call: Call
    decoder: Callable[[Call], Decoder]
    upstream: str
    answers: int = 1

    @property
    def translates(self) -> bool:
        return self.upstream != self.call.wire.value

    def problems(self, data: bytes) -> Iterator[str]:
        """What is wrong with a whole answer on the client's wire."""
        wire = self.call.wire.value
        if not self.call.stream:
            return validating.document(wire, data, strict=self.translates)
        check = validating.ollama_stream if wire.startswith("ollama") else validating.openai_stream
        return check(wire, data, strict=self.translates)


def _identity(call: Call) -> Decoder:
    return Identity().decoder(call, target())


def _native(call: Call) -> Decoder:
    return native_codec().decoder(call, target())


def _ways() -> Iterator[Way]:
    bodies: dict[Wire, dict[str, Any]] = {
        Wire.OPENAI_CHAT: {"messages": USER},
        Wire.OPENAI_COMPLETION: {"prompt": "p"},
        Wire.OLLAMA_CHAT: {"messages": USER},
        Wire.OLLAMA_GENERATE: {"prompt": "p"},
    }
    for stream in (True, False):
        told = "stream" if stream else "whole"
        more = {"model": "caller", "stream": stream}
        calls = {wire: make_call(wire, {**more, **body}) for wire, body in bodies.items()}
        for wire, call in calls.items():
            yield Way(f"{wire}-{told}", call, _identity, wire.value)
        for wire in (Wire.OLLAMA_CHAT, Wire.OLLAMA_GENERATE):
            yield Way(f"{wire}-of-vllm-{told}", calls[wire], _native, "openai.chat")
        yield Way(
            f"tags-{told}", calls[Wire.OLLAMA_CHAT], lambda call: native_codec().decoder(call, TAGS), "openai.chat"
        )
        raw = make_call(Wire.OLLAMA_GENERATE, {**more, "prompt": "p", "raw": True})
        yield Way(f"raw-of-vllm-{told}", raw, _native, "openai.completion")
        to_ollama = calls[Wire.OPENAI_CHAT]
        yield Way(
            f"openai-of-ollama-{told}", to_ollama, lambda call: OpenAIToOllama().decoder(call, target()), "ollama.chat"
        )
        usage = {"stream_options": {"include_usage": True}} if stream else {}
        several = make_call(Wire.OPENAI_COMPLETION, {**more, "prompt": ["p", "q"], **usage})
        yield Way(
            f"apart-{told}", several, lambda call: Identity().decoder(call, APART), "openai.completion", answers=2
        )
    for wire in (Wire.OPENAI_EMBEDDINGS, Wire.OLLAMA_EMBED, Wire.OLLAMA_EMBEDDINGS):
        key = "prompt" if wire is Wire.OLLAMA_EMBEDDINGS else "input"
        call = make_call(wire, {"model": "caller", key: "x"})
        yield Way(wire.value, call, _identity, wire.value)
        if wire is not Wire.OPENAI_EMBEDDINGS:
            embed = EmbedToOpenAI(lambda: 100.5)
            yield Way(f"{wire}-of-vllm", call, lambda call, e=embed: e.decoder(call, target()), "openai.embeddings")  # type: ignore[misc]  # bound early


WAYS = list(_ways())


def found_of(way: Way, rng: Random) -> list[Any]:
    """A valid answer's events; one document where it does not stream."""
    return answers.events(rng, way.upstream) if way.call.stream else [answers.whole(rng, way.upstream)]


def written(way: Way, found: list[Any]) -> bytes:
    if way.call.stream:
        return b"".join(answers.written(way.upstream, found))
    return json.dumps(found[0]).encode() if found else b""


def cut(rng: Random, data: bytes) -> list[bytes]:
    """In pieces, of one byte each now and then."""
    if rng.random() < 0.1:
        return [data[at : at + 1] for at in range(len(data))]
    edges = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(rng.randint(0, 8)))})
    return [data[a:b] for a, b in pairwise(edges)]


def play(decoder: Decoder, rows: Sequence[Sequence[bytes]]) -> tuple[list[Frame], AttemptFailed | None]:
    """The frames of answers that follow each other, and how it failed if it did."""
    frames: list[Frame] = []
    try:
        for chunks in rows:
            for chunk in chunks:
                frames += decoder.feed(chunk)
            frames += decoder.eof()
    except AttemptFailed as failure:
        return frames, failure
    return frames, None


def joined(frames: list[Frame]) -> bytes:
    return b"".join(frame.data for frame in frames)


def said_the_end(way: Way, found: list[Any]) -> bool:
    """Whether a back end's answer, read by anybody, has an end; vectors need none."""
    if "embed" in way.upstream:
        return True
    text = written(way, found).replace(b" ", b"")
    if way.upstream.startswith("ollama"):
        return b'"done":true' in text
    return re.search(rb'"finish_reason":"', text) is not None


every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.id)
seeds = st.integers(0, 2**64 - 1)


@every_way
@settings(max_examples=40)
@given(seed=seeds)
def test_a_valid_answer_is_a_valid_answer_on_the_client_s_wire_wherever_it_is_cut(way: Way, seed: int) -> None:
    rng = Random(seed)
    rows = [written(way, found_of(way, rng)) for _ in range(way.answers)]
    frames, failure = play(way.decoder(way.call), [cut(rng, data) for data in rows])
    assert failure is None
    assert list(way.problems(joined(frames))) == []
    at_once, _ = play(way.decoder(way.call), [[data] for data in rows])
    assert unstamped(joined(frames)) == unstamped(joined(at_once))
    assert sum(bool(frame.parts & Part.END) for frame in frames) == 1


def unstamped(data: bytes) -> bytes:
    """Without what a clock says."""
    return re.sub(rb'"(created|created_at|\w+_duration)": ?("[^"]*"|\d+)', b"", data)


@every_way
@settings(max_examples=120)
@given(seed=seeds)
def test_a_spoilt_answer_fails_as_declared_or_is_whole(way: Way, seed: int) -> None:
    rng = Random(seed)
    given_ = [spoil(rng, found_of(way, rng)) for _ in range(way.answers)]
    frames, failure = play(way.decoder(way.call), [cut(rng, written(way, found)) for found in given_])
    check(way, frames, failure)
    if any(frame.parts & Part.END for frame in frames):
        assert all(said_the_end(way, found) for found in given_)


@every_way
@settings(max_examples=120)
@given(seed=seeds)
def test_spoilt_bytes_fail_as_declared_or_are_whole(way: Way, seed: int) -> None:
    rng = Random(seed)
    rows = [mutate_bytes(rng, written(way, found_of(way, rng))) for _ in range(way.answers)]
    check(way, *play(way.decoder(way.call), [cut(rng, data) for data in rows]))


def check(way: Way, frames: list[Frame], failure: AttemptFailed | None) -> None:
    """Only declared failures, no frame behind the end, and a whole answer where nothing failed."""
    ends = [number for number, frame in enumerate(frames) if frame.parts & Part.END]
    assert len(ends) <= 1
    assert not ends or joined(frames[ends[0] + 1 :]).strip() == b""
    if failure is not None:
        assert failure.outcome.kind in DECLARED
        assert not ends
    else:
        assert [each for each in way.problems(joined(frames)) if "no end" not in each or way.translates] == []
        assert all(
            frame.usage is None or min(frame.usage.input_tokens, frame.usage.output_tokens) >= 0 for frame in frames
        )


ENDING = b'{"message":{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":%b}}]},"done":true}\n'
CHOICE = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}],"metrics":{%b}}\n\n'


@pytest.mark.parametrize("arguments", [b'{"x":"\xff"}', b'"text"', b"[1]", b"5"])
@pytest.mark.parametrize("way", [way for way in WAYS if way.id.startswith("openai-of-ollama")], ids=lambda way: way.id)
def test_tool_arguments_that_are_no_object_fail_as_malformed(way: Way, arguments: bytes) -> None:
    frames, failure = play(way.decoder(way.call), [[ENDING % arguments]])
    assert frames == []
    assert failure is not None
    assert failure.outcome.kind is Kind.MALFORMED


@pytest.mark.parametrize("told", [b'"time_to_first_token_ms":1e308', b'"generation_time_ms":-1e308'])
def test_times_that_are_none_are_measured_instead(told: bytes) -> None:
    way = next(way for way in WAYS if way.id == "ollama.chat-of-vllm-stream")
    frames, failure = play(way.decoder(way.call), [[CHOICE % told]])
    assert failure is None
    assert list(way.problems(joined(frames))) == []
    assert b'"prompt_eval_duration":500000000' in joined(frames)


@pytest.mark.parametrize("way", [way for way in WAYS if way.id == "openai.chat-whole"], ids=lambda way: way.id)
def test_a_finish_of_another_type_is_malformed(way: Way) -> None:
    _, failure = play(way.decoder(way.call), [[b'{"choices":[{"index":0,"message":{},"finish_reason":[1]}]}']])
    assert failure is not None
    assert failure.outcome.kind is Kind.MALFORMED


@settings(max_examples=300)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8), st.sampled_from([SseFramer, NdjsonFramer]))
def test_framing_loses_no_byte_of_anything(data: bytes, edges: list[int], kind: type[SseFramer | NdjsonFramer]) -> None:
    places = sorted({0, len(data), *(edge for edge in edges if edge < len(data))})
    framer = kind()
    events = [event for a, b in pairwise(places) for event in framer.feed(data[a:b])]
    assert b"".join(event.raw for event in [*events, *framer.close()]) == data


@settings(max_examples=400)
@given(seed=seeds)
def test_what_the_library_reads_fails_as_declared(seed: int) -> None:
    rng = Random(seed)
    chunks = cut(rng, b"".join(answers.written("openai.chat", spoil(rng, answers.events(rng, "openai.chat")))))
    reader = ChunkReader()
    for read in (
        lambda: [reader.feed(chunk) for chunk in chunks] and reader.eof(),
        lambda: parse_answer(mutate_bytes(rng, json.dumps(answers.whole(rng, "openai.chat")).encode())),
        lambda: parse_answer(json.dumps(spoil(rng, [answers.whole(rng, "openai.chat")])[:1]).encode()[1:-1]),
        lambda: parse_vectors(mutate_bytes(rng, json.dumps(answers.whole(rng, "openai.embeddings")).encode()), 1),
        lambda: parse_vectors(json.dumps(spoil(rng, [answers.whole(rng, "openai.embeddings")])[:1]).encode()[1:-1], 1),
    ):
        with suppress(AttemptFailed):
            read()
