"""Requests in both dialects, and what each engine must answer to them: both are a function of a seed.

A prompt holds a canary (a word that is nowhere else), so that a log line with a prompt in it is found.
"""

import base64
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memos_llm.cli.demo.conversations import TOOLS
from memos_llm.emulators import Answer, expected
from memos_llm.emulators.vectors import vector

Document = dict[str, Any]

CHAT_MODEL, EMBED_MODEL = "llama3.2:3b", "mxbai-embed-large"
VLLM_CHAT_MODEL, VLLM_EMBED_MODEL = "meta-llama/Llama-3.2-3B-Instruct", "mixedbread-ai/mxbai-embed-large-v1"
EMBED_MODELS = {"ollama": f"{EMBED_MODEL}:latest", "vllm": VLLM_EMBED_MODEL}  # by the names that their vectors go by
COMPONENTS = ("classification", "analysis", "synthesis", "reflection", "evaluation")
CANARY = "canary"
SCHEMA: Document = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
STOP = "a stop that nobody says"
TOPICS = ("llamas", "paged attention", "strangler figs", "canals", "rollbacks", "queues", "tokens", "salt")
LONG_WORDS = 60
META = ("/v1/models", "/api/tags", "/api/ps", "/api/version")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request.

    Attributes:
        wire: which dialect and operation, as `openai.chat`; `meta` for what no back end infers.
        key: the session, which the split hashes.
        messages: what the model sees. limits: `max_tokens`, `stop`, `tools`, `schema` as `expected` takes them.
        counted: a stream that asked for usage.
        patience: how its client behaves: `stays`, `slow`, `leaves-early`, `leaves-midway`.
    """

    id: str
    wire: str
    path: str
    body: Document | None
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: bool = False
    component: str = "default"
    key: str = ""
    messages: tuple[Document, ...] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    counted: bool = False
    patience: str = "stays"

    @property
    def model(self) -> str:
        return str(self.body["model"]) if self.body else ""

    @property
    def openai(self) -> bool:
        return self.wire.startswith("openai") or self.path.startswith("/v1/")

    @property
    def embeds(self) -> bool:
        return self.wire in ("openai.embeddings", "ollama.embed", "ollama.embeddings")


def right(asked: Asked, engine: str) -> Answer:
    """What this engine must say."""
    messages = asked.messages
    if asked.wire == "openai.completion" and engine == "vllm":  # vLLM applies no template to it
        messages = tuple({**message, "role": "raw"} for message in messages)
    return expected("vllm" if engine == "vllm" else "ollama", messages, **asked.limits)


def right_vectors(asked: Asked, engine: str) -> list[list[float]]:
    """The vectors that this engine must give."""
    return [vector(engine, EMBED_MODELS[engine], text) for text in asked.texts]


def floats(value: Any) -> list[float]:
    """A vector as it came: numbers, or base64 of little-endian single precision."""
    if isinstance(value, str):
        raw = base64.b64decode(value)
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))
    return [float(number) for number in value]


class Asker:
    """One client's requests, in order. `name` is unique in the run; `sessions`: how many it goes on with."""

    def __init__(self, name: str, seed: int, sessions: int = 6) -> None:
        self._name, self._rng, self._sent = name, random.Random(f"{seed}/{name}"), 0
        self._canary = f"{CANARY}-{seed:x}"
        self._sessions = [f"{name}-s{number}" for number in range(sessions)]

    @property
    def rng(self) -> random.Random:
        return self._rng

    def next(self) -> Asked:
        self._sent += 1
        make = self._rng.choices((self._chat, self._prompt, self._vectors, self._meta), (60, 22, 9, 9))[0]
        return make(f"{self._name}-{self._sent}")

    # What is asked

    def _text(self, id: str, *, long: bool) -> str:
        length = f" words:{LONG_WORDS}" if long else ""
        return f"Tell me about {self._rng.choice(TOPICS)}.{length} ({self._canary}-{id})"

    def _chat(self, id: str) -> Asked:
        rng, openai = self._rng, self._rng.random() < 0.5
        stream = rng.random() < 0.6
        patience = self._patience(stream)
        text = self._text(id, long=stream and (patience != "stays" or rng.random() < 0.2))
        messages: list[Document] = [{"role": "user", "content": text}]
        if rng.random() < 0.3:
            messages.insert(0, {"role": "system", "content": "You are terse."})
        limits: Document = {}
        kind = rng.choices(("plain", "tools", "results", "schema", "limit", "stop"), (50, 15, 8, 7, 12, 8))[0]
        if kind == "tools":
            messages[-1]["content"] = f"What is the weather in Lima? ({self._canary}-{id})"
            limits["tools"] = TOOLS
        elif kind == "results":
            messages += _called(id, openai=openai)
            limits["tools"] = TOOLS
        elif kind == "schema":
            limits["schema"] = SCHEMA
        elif kind == "limit":
            limits["max_tokens"] = rng.randrange(3, 9)
        elif kind == "stop":
            limits["stop"] = (STOP,)
        build = self._openai_chat if openai else self._ollama_chat
        return build(id, tuple(messages), limits, stream, patience)

    def _openai_chat(
        self, id: str, messages: tuple[Document, ...], limits: Document, stream: bool, patience: str
    ) -> Asked:
        body: Document = {"model": CHAT_MODEL, "messages": list(messages), "stream": stream}
        counted = stream and self._rng.random() < 0.5
        if counted:
            body["stream_options"] = {"include_usage": True}
        body |= {name: list(value) if name != "max_tokens" else value for name, value in _plain(limits).items()}
        if "schema" in limits:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
        place = self._place("/v1/chat/completions", id)
        return Asked(
            **place, wire="openai.chat", body=body, stream=stream, messages=messages, limits=limits,
            counted=counted, patience=patience,
        )  # fmt: skip

    def _ollama_chat(
        self, id: str, messages: tuple[Document, ...], limits: Document, stream: bool, patience: str
    ) -> Asked:
        body: Document = {"model": CHAT_MODEL, "messages": list(messages)} | _options(limits)
        if not stream or self._rng.random() < 0.3:  # Ollama streams unless told otherwise
            body["stream"] = stream
        if "tools" in limits:
            body["tools"] = list(limits["tools"])
        if "schema" in limits:
            body["format"] = SCHEMA
        place = self._place("/api/chat", id)
        return Asked(
            **place, wire="ollama.chat", body=body, stream=stream, messages=messages, limits=limits, patience=patience
        )

    def _prompt(self, id: str) -> Asked:
        rng, stream = self._rng, self._rng.random() < 0.5
        patience = self._patience(stream)
        text = self._text(id, long=stream and patience != "stays")
        limits: Document = {"max_tokens": rng.randrange(3, 9)} if rng.random() < 0.3 else {}
        messages: tuple[Document, ...] = ({"role": "user", "content": text},)
        if rng.random() < 0.5:
            body: Document = {"model": CHAT_MODEL, "prompt": text, "stream": stream} | limits
            place = self._place("/v1/completions", id)
            return Asked(
                **place, wire="openai.completion", body=body, stream=stream, messages=messages, limits=limits,
                patience=patience,
            )  # fmt: skip
        body = {"model": CHAT_MODEL, "prompt": text, "stream": stream} | _options(limits)
        if rng.random() < 0.3:
            body["system"] = "You are terse."
            messages = ({"role": "system", "content": "You are terse."}, *messages)
        place = self._place("/api/generate", id)
        return Asked(
            **place, wire="ollama.generate", body=body, stream=stream, messages=messages, limits=limits,
            patience=patience,
        )  # fmt: skip

    def _vectors(self, id: str) -> Asked:
        rng = self._rng
        texts = tuple(f"{rng.choice(TOPICS)} ({self._canary}-{id}-{n})" for n in range(rng.choice((1, 1, 2))))
        wire = rng.choice(("openai.embeddings", "ollama.embed", "ollama.embeddings"))
        if wire == "ollama.embeddings":
            texts = texts[:1]
            body: Document = {"model": EMBED_MODEL, "prompt": texts[0]}
            path = "/api/embeddings"
        else:
            body = {"model": EMBED_MODEL, "input": texts[0] if len(texts) == 1 else list(texts)}
            path = "/api/embed" if wire == "ollama.embed" else "/v1/embeddings"
        if wire == "openai.embeddings" and rng.random() < 0.5:
            body["encoding_format"] = "base64"
        place = self._place(path, id) | {"component": "embedding"}
        place["path"], place["headers"] = path, {"x-memos-session": place["key"]}
        return Asked(**place, wire=wire, body=body, texts=texts)

    def _meta(self, id: str) -> Asked:
        return Asked(id=id, wire="meta", path=self._rng.choice(META), body=None)

    # How it is asked

    def _patience(self, stream: bool) -> str:
        if stream:
            choices, weights = ("stays", "slow", "leaves-early", "leaves-midway"), (76, 8, 6, 10)
        else:
            choices, weights = ("stays", "leaves-early", "stays", "stays"), (90, 10, 0, 0)
        return self._rng.choices(choices, weights)[0]

    def _place(self, path: str, id: str) -> Document:
        """Component and session, told by the path or by headers."""
        rng = self._rng
        component, key = rng.choice(COMPONENTS), rng.choice(self._sessions)
        if rng.random() < 0.5:
            return {"id": id, "path": f"/c/{component}/s/{key}{path}", "component": component, "key": key}
        headers = {"x-memos-component": component, "x-memos-session": key}
        return {"id": id, "path": path, "headers": headers, "component": component, "key": key}


def _plain(limits: Document) -> Document:
    return {name: value for name, value in limits.items() if name != "schema"}


def _options(limits: Document) -> Document:
    options: Document = {}
    if "max_tokens" in limits:
        options["num_predict"] = limits["max_tokens"]
    if "stop" in limits:
        options["stop"] = list(limits["stop"])
    return {"options": options} if options else {}


def _called(id: str, *, openai: bool) -> list[Document]:
    """What was said when a tool had been called, in the client's dialect."""
    given: Document = {"city": "Lima"}
    if openai:
        call = {
            "id": f"call_{id}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city":"Lima"}'},
        }
        return [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "18 degrees", "tool_call_id": f"call_{id}"},
        ]
    call = {"function": {"name": "get_weather", "arguments": given}}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "18 degrees", "tool_name": "get_weather"},
    ]
