"""Golden wire data: what a real Ollama and a real vLLM answered, cut at every boundary.

The files in `recorded` are made by `scripts/real_backends record`. However the bytes of an answer are cut, each codec
tells the client the same, and says what the back end said.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from dialect_streams import cut, make_call, run, target, told

from memos_llm.core.call import Call, Part, Usage, Wire
from memos_llm.core.ports import Decoder
from memos_llm.dialects.codecs.embed_to_openai import EmbedToOpenAI
from memos_llm.dialects.codecs.identity import Identity
from memos_llm.dialects.codecs.ollama_to_openai import OllamaToOpenAI
from memos_llm.dialects.codecs.openai_to_ollama import OpenAIToOllama
from memos_llm.dialects.framing import Event, Framer, NdjsonFramer, SseFramer
from memos_llm.dialects.typed import ChunkReader, parse_answer

SHORT_BYTES = 3000
"""Streams up to here are cut at every single boundary; longer ones byte by byte, which is all of them at once."""
WIRES = {
    "/api/chat": Wire.OLLAMA_CHAT,
    "/api/generate": Wire.OLLAMA_GENERATE,
    "/api/embed": Wire.OLLAMA_EMBED,
    "/v1/chat/completions": Wire.OPENAI_CHAT,
    "/v1/completions": Wire.OPENAI_COMPLETION,
    "/v1/embeddings": Wire.OPENAI_EMBEDDINGS,
}
NATIVE = (Wire.OLLAMA_CHAT, Wire.OLLAMA_GENERATE, Wire.OLLAMA_EMBED)
VECTORS = (Wire.OLLAMA_EMBED, Wire.OPENAI_EMBEDDINGS)
SAY = [{"role": "user", "content": "hi"}]


class Recorded(NamedTuple):
    """One answer of a real server."""

    name: str
    server: str
    wire: Wire
    request: dict[str, Any]
    status: int
    content_type: str
    pieces: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def streamed(self) -> bool:
        return "event-stream" in self.content_type or "ndjson" in self.content_type

    def framer(self) -> Framer:
        return SseFramer() if "event-stream" in self.content_type else NdjsonFramer()


def _recorded() -> Iterable[Recorded]:
    for file in sorted((Path(__file__).parent / "recorded").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").rstrip("\n").split("\n"):
            told = json.loads(line)
            pieces = [piece.encode() for _, piece in told["pieces"]]
            wire, request = WIRES[told["path"]], told["request"] or {"model": "tiny", "messages": SAY}
            yield Recorded(told["name"], told["server"], wire, request, told["status"], told["content_type"], pieces)


RECORDED = list(_recorded())
ANSWERS = [each for each in RECORDED if each.status == 200]
STREAMS = [each for each in ANSWERS if each.streamed]


def named(recorded: Iterable[Recorded]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("recorded", [pytest.param(each, id=each.name) for each in recorded])


def same(recorded: Recorded) -> Call:
    """The call of a client that speaks the back end's wire."""
    return make_call(recorded.wire, recorded.request)


def decoders(recorded: Recorded) -> dict[str, Callable[[], Decoder]]:
    """By codec, how a decoder for this answer is made: on its own wire, and translated where a codec does that."""
    call = same(recorded)
    found: dict[str, Callable[[], Decoder]] = {"identity": lambda: Identity().decoder(call, target())}
    stream = {"model": "tiny", "stream": recorded.streamed}
    if recorded.wire is Wire.OLLAMA_CHAT and not recorded.name.endswith(": load"):
        asked = make_call(
            Wire.OPENAI_CHAT, {**stream, "messages": SAY, "logprobs": True, "stream_options": {"include_usage": True}}
        )
        found["openai_to_ollama"] = lambda: OpenAIToOllama(lambda: 0).decoder(asked, target())
    native = make_call(Wire.OLLAMA_CHAT, {**stream, "messages": SAY, "logprobs": True})
    raw = make_call(Wire.OLLAMA_GENERATE, {**stream, "prompt": "p", "raw": True, "logprobs": True})
    if recorded.server == "vllm" and "n 2" not in recorded.name and "list of two" not in recorded.name:
        translated = native if recorded.wire is Wire.OPENAI_CHAT else raw
        found["ollama_to_openai"] = lambda: OllamaToOpenAI(lambda: 100.5, lambda: 0).decoder(translated, target())
    if recorded.server == "vllm-embed" and "encoding_format" not in recorded.request:  # the codec asks for numbers
        embed = make_call(Wire.OLLAMA_EMBED, {"model": "tiny-embed", "input": recorded.request["input"]})
        found["embed_to_openai"] = lambda: EmbedToOpenAI(lambda: 100.5).decoder(embed, target())
    return found


CODECS = [pytest.param(each, codec, id=f"{codec}-{each.name}") for each in ANSWERS for codec in decoders(each)]


def cuts(data: bytes) -> Iterable[list[bytes]]:
    """Every way to cut a short body in two, and any body into single bytes."""
    yield [data[at : at + 1] for at in range(len(data))]
    if len(data) <= SHORT_BYTES:
        yield from (cut(data, [at]) for at in range(1, len(data)))


# --- whatever the boundaries ------------------------------------------------------------------------------------------


def events(framer: Framer, chunks: Iterable[bytes]) -> list[Event]:
    found = [event for piece in chunks for event in framer.feed(piece)]
    return found + framer.close()


@named(STREAMS)
def test_events_are_the_same_however_they_come(recorded: Recorded) -> None:
    whole = events(recorded.framer(), [recorded.body])
    assert b"".join(event.raw for event in whole) == recorded.body
    assert len(whole) > 1
    assert events(recorded.framer(), recorded.pieces) == whole
    for pieces in cuts(recorded.body):
        assert events(recorded.framer(), pieces) == whole


@pytest.mark.parametrize(("recorded", "codec"), CODECS)
def test_a_codec_tells_the_same_however_it_comes(recorded: Recorded, codec: str) -> None:
    decoder = decoders(recorded)[codec]
    whole = told(run(decoder(), [recorded.body]))
    assert whole[1] & Part.FINISH
    assert told(run(decoder(), recorded.pieces)) == whole
    for pieces in cuts(recorded.body):
        assert told(run(decoder(), pieces)) == whole


@named(each for each in STREAMS if each.wire is Wire.OPENAI_CHAT)
def test_the_library_reads_the_same_however_it_comes(recorded: Recorded) -> None:
    def read(pieces: Iterable[bytes]) -> tuple[str, str, Usage | None]:
        reader = ChunkReader()
        found = [chunk for piece in pieces for chunk in reader.feed(piece)] + reader.eof()
        return "".join(chunk.text for chunk in found), found[-1].finish_reason, found[-1].usage

    whole = read([recorded.body])
    assert whole[1] in ("stop", "length")
    for pieces in (recorded.pieces, *cuts(recorded.body)):
        assert read(pieces) == whole


# --- and what was said is what is told --------------------------------------------------------------------------------


class Said(NamedTuple):
    """An answer in neither dialect."""

    text: str
    ended: str
    prompt_tokens: int
    tokens: int


def understood(data: bytes, wire: Wire) -> Said:
    documents = [
        msgspec.json.decode(event.data)
        for event in events(SseFramer() if data.startswith(b"data:") else NdjsonFramer(), [data])
        if event.data not in (None, b"[DONE]")
    ]
    return (_native if wire in NATIVE else _openai)(documents)


def _native(documents: list[dict[str, Any]]) -> Said:
    text = "".join(each.get("response", each.get("message", {}).get("content", "")) for each in documents)
    last = documents[-1]
    return Said(text, last["done_reason"], last.get("prompt_eval_count", 0), last.get("eval_count", 0))


def _openai(documents: list[dict[str, Any]]) -> Said:
    choices = [choice for each in documents for choice in each["choices"]]
    pieces = [
        choice.get("text", (choice.get("delta") or choice.get("message") or {}).get("content")) for choice in choices
    ]
    ended = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    usage: dict[str, int] = next((each["usage"] for each in reversed(documents) if each.get("usage")), {})
    counts = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    return Said("".join(piece or "" for piece in pieces), ended[-1], *counts)


TRANSLATED = [
    pytest.param(each, codec, id=f"{codec}-{each.name}")
    for each in ANSWERS
    for codec in decoders(each)
    if codec in ("openai_to_ollama", "ollama_to_openai")
]


@pytest.mark.parametrize(("recorded", "codec"), TRANSLATED)
def test_a_translation_says_what_the_back_end_said(recorded: Recorded, codec: str) -> None:
    data = told(run(decoders(recorded)[codec](), [recorded.body]))[0]
    theirs = understood(recorded.body, recorded.wire)
    ours = understood(data, Wire.OPENAI_CHAT if codec == "openai_to_ollama" else Wire.OLLAMA_CHAT)
    assert (ours.text, ours.ended) == (theirs.text, theirs.ended)
    if theirs.tokens:  # a stream of vLLM has no counts unless it was asked for them
        assert ours == theirs


@named(each for each in ANSWERS if each.wire is Wire.OPENAI_CHAT and not each.streamed)
def test_the_library_reads_whole_answers(recorded: Recorded) -> None:
    answer, theirs = parse_answer(recorded.body), understood(recorded.body, recorded.wire)
    assert (answer.text, answer.finish_reason) == (theirs.text, theirs.ended)
    assert answer.usage == Usage(theirs.prompt_tokens, theirs.tokens)
