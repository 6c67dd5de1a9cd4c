"""Valid requests in both dialects, with any optional field that either server knows, as a function of a `Random`."""

import base64
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Document = dict[str, Any]

CHAT_MODEL, EMBED_MODEL = "llama3.2:3b", "mxbai-embed-large"
TEXTS = (
    "Why are llamas woolly?",
    "",
    "Grüße 🚀 \u2028 <b>&amp;</b>",
    "line\nline",
    "a" * 300,
    '{"a": 1}',
    "<think>x</think>",
)
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
TOOL: Document = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA: Document = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

Field = Callable[[random.Random], Any]


def one_of(*values: Any) -> Field:
    return lambda rng: rng.choice(values)


def _real(low: float, high: float) -> Field:
    return lambda rng: round(rng.uniform(low, high), 3)


def _whole(low: int, high: int) -> Field:
    return lambda rng: rng.randint(low, high)


OPTIONS: Mapping[str, Field] = {
    "num_ctx": one_of(2048, 4096),
    "num_predict": one_of(-1, 1, 5, 16),
    "temperature": _real(0, 2),
    "top_k": one_of(-1, 0, 1, 40),
    "top_p": _real(0.1, 1),
    "min_p": _real(0, 1),
    "typical_p": _real(0.1, 1),
    "repeat_penalty": one_of(1, 1.1),
    "repeat_last_n": _whole(0, 64),
    "presence_penalty": _real(-2, 2),
    "frequency_penalty": _real(-2, 2),
    "seed": _whole(-1, 9),
    "stop": one_of([], ["###"], ["a", "b"]),
    "num_keep": one_of(4),
    "use_mmap": one_of(True, None),
}
KEEP_ALIVE = one_of("5m", 300, -1, "1h30m")

CHAT: Mapping[str, Field] = {
    "stream": one_of(True, False, None),
    "format": one_of("json", SCHEMA, "", None),
    "options": lambda rng: some(rng, OPTIONS, 4),
    "keep_alive": KEEP_ALIVE,
    "tools": one_of([], [TOOL], None),
    "think": one_of(False, None),
    "truncate": one_of(True, False),
    "shift": one_of(True),
    "logprobs": one_of(True, False),
}
GENERATE: Mapping[str, Field] = {
    **{name: field for name, field in CHAT.items() if name != "tools"},
    "system": one_of("Be brief.", ""),
    "raw": one_of(False),
    "images": one_of([]),
}
OPENAI: Mapping[str, Field] = {
    "stream": one_of(True, False, None),
    "max_tokens": one_of(1, 5, 16, None),
    "temperature": _real(0, 2),
    "top_p": _real(0.1, 1),
    "seed": _whole(0, 9),
    "stop": one_of("###", ["a"], ["a", "b", "c", "d"], None),
    "presence_penalty": _real(-2, 2),
    "frequency_penalty": _real(-2, 2),
    "user": one_of("somebody"),
    "logit_bias": one_of({"11": 1}, None),
    "n": one_of(1, 2, None),
    "metadata": one_of({"component": "analysis"}, {"session": "s-1"}, {}),
}
OPENAI_CHAT: Mapping[str, Field] = {
    **OPENAI,
    "max_completion_tokens": one_of(1, 16),
    "tools": one_of([TOOL]),
    "tool_choice": one_of("auto", "none"),
    "response_format": one_of(
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
    ),
    "reasoning_effort": one_of("none"),
    "logprobs": one_of(True, False),
    "parallel_tool_calls": one_of(True, False),
    "store": one_of(False),
}


class Request(NamedTuple):
    """One request before it is written; `wire` names its dialect and operation, `other` what is not split."""

    method: str
    path: str
    body: Document | None
    wire: str

    @property
    def streams(self) -> bool:
        """Whether its answer comes as a row of events."""
        if self.body is None or self.wire not in STREAMED:
            return False
        given = self.body.get("stream")
        loads = self.wire.startswith("ollama") and not (self.body.get("messages") or self.body.get("prompt"))
        return (self.wire.startswith("ollama") if given is None else given is True) and not loads


STREAMED = ("ollama.chat", "ollama.generate", "openai.chat", "openai.completion")
ROUTES: Mapping[str, str] = {
    "ollama.chat": "/api/chat",
    "ollama.generate": "/api/generate",
    "openai.chat": "/v1/chat/completions",
    "openai.completion": "/v1/completions",
    "ollama.embed": "/api/embed",
    "ollama.embeddings": "/api/embeddings",
    "openai.embeddings": "/v1/embeddings",
}


def some(rng: random.Random, fields: Mapping[str, Field], most: int = 5) -> Document:
    """A few optional fields."""
    names = rng.sample(sorted(fields), rng.randint(0, min(most, len(fields))))
    return {name: fields[name](rng) for name in names}


def request(rng: random.Random, mark: str, model: str = CHAT_MODEL, wires: tuple[str, ...] = tuple(ROUTES)) -> Request:
    """A request on one of the wires; its prompt holds `mark`."""
    wire = rng.choice(wires)
    if model == CHAT_MODEL and wire in ("ollama.embed", "ollama.embeddings", "openai.embeddings"):
        model = EMBED_MODEL
    return Request("POST", ROUTES[wire], {"model": model, **BODIES[wire](rng, mark)}, wire)


def _chat(rng: random.Random, mark: str) -> Document:
    return {"messages": history(rng, mark, native=True), **some(rng, CHAT)}


def _generate(rng: random.Random, mark: str) -> Document:
    return {"prompt": f"{mark} {rng.choice(TEXTS)}", **some(rng, GENERATE)}


def _openai_chat(rng: random.Random, mark: str) -> Document:
    body = {"messages": history(rng, mark, native=False), **some(rng, OPENAI_CHAT)}
    if "tool_choice" in body:
        body.setdefault("tools", [TOOL])
    return _streaming(rng, body)


def _completion(rng: random.Random, mark: str) -> Document:
    prompt = f"{mark} {rng.choice(TEXTS)}"
    return _streaming(rng, {"prompt": rng.choice([prompt, prompt, [prompt, "second"]]), **some(rng, OPENAI)})


def _streaming(rng: random.Random, body: Document) -> Document:
    if body.get("stream") and rng.random() < 0.5:
        body["stream_options"] = {"include_usage": rng.choice([True, False])}
    return body


def _embed(rng: random.Random, mark: str) -> Document:
    return {"input": rng.choice([mark, [mark], [mark, "second"]]), **some(rng, {"truncate": one_of(True, False)})}


def _embeddings(rng: random.Random, mark: str) -> Document:
    return {"prompt": mark, **some(rng, {"keep_alive": KEEP_ALIVE})}


def _openai_embeddings(rng: random.Random, mark: str) -> Document:
    fields = {"encoding_format": one_of("float", "base64"), "user": one_of("somebody")}
    return {"input": rng.choice([mark, [mark], [mark, "second"]]), **some(rng, fields)}


BODIES: Mapping[str, Callable[[random.Random, str], Document]] = {
    "ollama.chat": _chat,
    "ollama.generate": _generate,
    "openai.chat": _openai_chat,
    "openai.completion": _completion,
    "ollama.embed": _embed,
    "ollama.embeddings": _embeddings,
    "openai.embeddings": _openai_embeddings,
}


def history(rng: random.Random, mark: str, *, native: bool) -> list[Document]:
    """A conversation that both servers take: system, turns, perhaps a tool's call with its result, the question."""
    found: list[Document] = []
    if rng.random() < 0.3:
        found.append({"role": "system", "content": rng.choice(TEXTS) or "s"})
    for _ in range(rng.randint(0, 2)):
        found += [{"role": "user", "content": rng.choice(TEXTS)}, {"role": "assistant", "content": rng.choice(TEXTS)}]
    if rng.random() < 0.2:
        arguments: Any = {"city": "Ulm"}
        call = {"name": "weather", "arguments": arguments if native else '{"city": "Ulm"}'}
        found.append(
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": call}]}
        )
        found.append({"role": "tool", "content": "rain", "tool_call_id": "c1"})
    question: Any = f"{mark} {rng.choice(TEXTS)}"
    if not native and rng.random() < 0.2:
        question = [{"type": "text", "text": question}]
    return [*found, {"role": "user", "content": question}]
