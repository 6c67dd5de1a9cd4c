"""Streams as vLLM 0.32 and Ollama write them, and what the tests need to feed them."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from memos_llm.core.call import Call, Frame, ModelSettings, Target, Usage, Wire
from memos_llm.core.decision import Offer
from memos_llm.core.ports import Decoder
from memos_llm.dialects.codecs.ollama_to_openai import OllamaToOpenAI
from memos_llm.dialects.edge import DIALECTS

NATIVE = (Wire.OLLAMA_CHAT, Wire.OLLAMA_GENERATE)
VLLM = Offer(frozenset({Wire.OPENAI_CHAT, Wire.OPENAI_COMPLETION}))
OLLAMA = Offer(frozenset({Wire.OPENAI_CHAT, *NATIVE}))


def make_call(wire: Wire, body: dict[str, Any] | bytes) -> Call:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    parsed = DIALECTS[wire].parse(raw)
    return Call(
        id="id-1",
        wire=wire,
        head=parsed.head,
        body=raw,
        model=parsed.model,
        stream=parsed.stream,
        component="default",
        key=b"k",
        accepted_at=100.0,
        deadline=700.0,
        needs=parsed.needs,
    )


OFFER = Offer(frozenset(Wire))  # of a current release that said nothing of its context


def target(model: str = "served/m", **settings: Any) -> Target:
    return Target("vllm", model, ModelSettings(**settings))


def sse(*documents: dict[str, Any] | str, end: str = "\n\n") -> bytes:
    texts = (d if isinstance(d, str) else msgspec.json.encode(d).decode() for d in documents)
    return "".join(f"data: {text}{end}" for text in texts).encode()


def chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": more.pop("logprobs", None), "finish_reason": finish}
    choices = [] if delta is None else [choice]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": choices,
    } | more


ROLE = chunk({"role": "assistant", "content": ""})
USAGE = chunk(None, usage={"prompt_tokens": 3, "total_tokens": 5, "completion_tokens": 2})

VLLM_STREAM = b": keep-alive\n\n" + sse(
    ROLE,
    chunk({"reasoning": "hm <b> & \u2028"}),
    chunk({"content": 'Grüße "model":"x" 🚀'}),
    chunk({"content": None, "tool_calls": [{"index": 0, "id": "t1", "type": "function", "function": {"name": "f"}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]}),
    chunk({"tool_calls": [{"index": 0, "id": "t1", "function": {"name": "f", "arguments": " 1}"}}]}, "tool_calls"),
    USAGE,
    "[DONE]",
)

OLLAMA_STREAM = (
    '{"model":"m","created_at":"2026-08-22T10:00:00.123Z","message":{"role":"assistant","content":"",'
    '"thinking":"Let"},"done":false}\n'
    '{"model":"m","created_at":"2026-08-22T10:00:00.2Z","message":{"role":"assistant",'
    '"content":"Grüße 🚀"},"done":false}\n'
    '{"model":"m","created_at":"2026-08-22T10:00:00.3Z","message":{"role":"assistant","content":""},"done":true,'
    '"done_reason":"stop","total_duration":9,"load_duration":2,"prompt_eval_count":11,"prompt_eval_duration":3,'
    '"eval_count":5,"eval_duration":4}\n'
).encode()

V1_STREAM = sse(
    chunk({"role": "assistant", "content": "Hi"}), chunk({"role": "assistant", "content": ""}, "stop"), USAGE, "[DONE]"
)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def run(decoder: Decoder, chunks: Sequence[bytes]) -> list[Frame]:
    frames: list[Frame] = []
    for piece in chunks:
        frames += decoder.feed(piece)
    return frames + list(decoder.eof())


def told(frames: Sequence[Frame]) -> tuple[bytes, int, Usage | None]:
    """The whole of what was told, whatever the frames' borders."""
    parts, usage = 0, None
    for frame in frames:
        parts |= frame.parts
        usage = frame.usage or usage
    return b"".join(frame.data for frame in frames), parts, usage


class Ticking:
    """A clock that moves half a second with every look."""

    def __init__(self, at: float = 100.0) -> None:
        self.at = at

    def __call__(self) -> float:
        self.at += 0.5
        return self.at


def native_codec() -> OllamaToOpenAI:
    return OllamaToOpenAI(Ticking(), lambda: 1_787_392_800_120_000_000)


def records(data: bytes) -> list[dict[str, Any]]:
    assert b"\n\n" not in data
    return [msgspec.json.decode(line) for line in data.splitlines()]
