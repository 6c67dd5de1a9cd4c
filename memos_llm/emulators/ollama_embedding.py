"""Ollama's three embedding routes: `/api/embed`, the legacy `/api/embeddings` and `/v1/embeddings`.

Facts: Ollama 0.17.4, measured; 0.33 source. A chat model embeds too; an empty input only loads; `/api/embed` cuts
what is too long unless told not to, the legacy route never cuts, `/v1` always does.
"""

from __future__ import annotations

import asyncio
import base64
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from memos_llm.emulators import answers, golang, ollama_requests, vectors
from memos_llm.emulators.ollama_models import OllamaModel
from memos_llm.emulators.ollama_requests import Refusal
from memos_llm.emulators.ollama_runner import Runner, load_options
from memos_llm.emulators.ollama_server import CHUNK_ABOVE, JSON, JSON_BARE, Ollama
from memos_llm.emulators.ollama_versions import Behaviour
from memos_llm.emulators.playing import reply_whole
from memos_llm.emulators.wire import Exchange, Headers

_COMMON: Mapping[str, golang.Field] = {
    "model": ("string", "string"),
    "keep_alive": ("any", "api.Duration"),
    "options": ("map", "map[string]interface {}"),
}
_EMBED: Mapping[str, golang.Field] = {
    **_COMMON,
    "input": ("any", "interface {}"),
    "truncate": ("bool", "bool"),
    "dimensions": ("int", "int"),
}
_EMBEDDINGS: Mapping[str, golang.Field] = {**_COMMON, "prompt": ("string", "string")}
_V1: Mapping[str, golang.Field] = {
    "model": ("string", "string"),
    "input": ("any", "interface {}"),
    "encoding_format": ("string", "string"),
    "dimensions": ("int", "int"),
}
_ENDS = 2  # the start and end that an embedding model's tokenizer adds; a chat model's adds none
_TOO_LONG = "the input length exceeds the context length"
_NO_INPUT = "Failed to create new sequence: no input provided"
_LEGACY_LENGTH = 8.0  # the legacy route gives the runner's raw vector, whatever its length


@dataclass(slots=True)
class Wanted:
    """One checked request. naming: whose words refuse a model's name. failure: status when the runner fails."""

    model_name: str
    texts: list[str]
    naming: ollama_requests.Naming
    options: dict[str, Any] = field(default_factory=dict)
    keep_alive_s: float | None = None
    truncate: bool = True
    dimensions: int | None = None
    too_long: int = 400
    failure: int = 400
    base64: bool = False


@dataclass(frozen=True, slots=True)
class Embedded:
    """What came out. Durations in nanoseconds, each at least 1, because zero would be left out."""

    wanted: Wanted
    vectors: list[list[float]]
    tokens: int
    total_ns: int
    load_ns: int


Reader = Callable[[bytes, Behaviour], Wanted]
Writer = Callable[[Embedded], bytes]


async def embed(server: Ollama, exchange: Exchange) -> None:
    """`POST /api/embed`."""
    await _run(server, exchange, _read_embed, _embed_body, JSON)


async def embeddings(server: Ollama, exchange: Exchange) -> None:
    """`POST /api/embeddings`."""
    await _run(server, exchange, _read_embeddings, _embeddings_body, JSON)


async def v1_embeddings(server: Ollama, exchange: Exchange) -> None:
    """`POST /v1/embeddings`."""
    await _run(server, exchange, _read_v1, _v1_body, JSON_BARE)


async def _run(server: Ollama, exchange: Exchange, read: Reader, write: Writer, headers: Headers) -> None:
    started = time.monotonic_ns()
    wanted = read(exchange.request.body, server.behaves)
    strict = server.behaves.strict_names
    model = ollama_requests.find_model(server.catalogue, wanted.model_name, wanted.naming, strict_names=strict)
    ollama_requests.check_options(wanted.options)
    cold = server.faults.take("load")
    options = load_options(model, wanted.options)
    async with server.scheduler.runner(
        model, options, keep_alive_s=wanted.keep_alive_s, cold_s=cold.seconds if cold else None
    ) as runner:
        loaded = time.monotonic_ns()
        ends = _ENDS if "embedding" in model.capabilities else 0
        texts = [_fitted(text, runner.num_ctx, ends, wanted) for text in wanted.texts]
        fault = server.faults.take("answer")
        if texts:
            await _compute(server, runner, wanted)
        if fault and fault.name in ("runner_crash", "error_mid_stream"):
            runner.crashed = fault.name == "runner_crash"
            raise Refusal(wanted.failure, server.crash_text)
    made = [_vector(server, model, text, wanted.dimensions) for text in texts]
    count = sum(len(answers.tokens(text)) + ends for text in texts)
    done = Embedded(wanted, made, count, max(1, time.monotonic_ns() - started), max(1, loaded - started))
    await reply_whole(exchange, write(done), headers, fault, chunk_above=CHUNK_ABOVE)


async def _compute(server: Ollama, runner: Runner, wanted: Wanted) -> None:
    async with runner.slots:
        await asyncio.sleep(server.timing.ttft_s)
    if runner.crashed:
        raise Refusal(wanted.failure, server.crash_text)


def _fitted(text: str, num_ctx: int, ends: int, wanted: Wanted) -> str:
    """What the runner embeds: a cut leaves room for both ends, whether the model has them or not (measured)."""
    pieces = answers.tokens(text)
    if not len(pieces) + ends:
        raise Refusal(500, _NO_INPUT)
    if len(pieces) + ends <= num_ctx:
        return text
    if not wanted.truncate:
        raise Refusal(wanted.too_long, _TOO_LONG)
    return "".join(pieces[: max(num_ctx - _ENDS, 0)])


def _vector(server: Ollama, model: OllamaModel, text: str, dimensions: int | None) -> list[float]:
    name = model.source or model.short
    made = vectors.vector("ollama", name, text, model.dimension, space=server.space)
    return vectors.cut(made, dimensions)


# -- requests


def _read_embed(body: bytes, behaves: Behaviour) -> Wanted:
    given = ollama_requests.decoded(body, "EmbedRequest", _EMBED)
    texts = _texts(given.get("input"))
    return Wanted(
        given.get("model", ""),
        texts,
        ollama_requests.EMBED_NAMING,
        options=ollama_requests.options(given),
        keep_alive_s=ollama_requests.keep_alive_s(given),
        truncate=given.get("truncate", True),
        dimensions=given.get("dimensions") if behaves.embed_dimensions else None,
    )


def _texts(given: Any) -> list[str]:
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        return given
    if given is None or isinstance(given, str):
        return [given] if given else []
    raise Refusal(400, "invalid input type")


def _read_embeddings(body: bytes, behaves: Behaviour) -> Wanted:
    given = ollama_requests.decoded(body, "EmbeddingRequest", _EMBEDDINGS)
    return Wanted(
        given.get("model", ""),
        _texts(given.get("prompt")),
        ollama_requests.EMBEDDINGS_NAMING,
        options=ollama_requests.options(given),
        keep_alive_s=ollama_requests.keep_alive_s(given),
        truncate=False,
        too_long=500,
        failure=500,
    )


def _read_v1(body: bytes, behaves: Behaviour) -> Wanted:
    try:
        given = golang.fields(golang.loads(body), "EmbedRequest", _V1)
    except golang.DecodeError as reason:
        raise Refusal(400, str(reason), by_layer=True) from reason
    encoding = given.get("encoding_format", "").lower()
    if behaves.v1_base64 and encoding not in ("", "float", "base64"):
        said = given["encoding_format"]
        choices = "Supported values: ['float', 'base64']."
        raise Refusal(400, f"Invalid value for 'encoding_format' = {said}. {choices}", by_layer=True)
    texts = given.get("input")
    if texts is None or texts == []:
        raise Refusal(400, "invalid input", by_layer=True)
    return Wanted(
        given.get("model", ""),
        [""] if texts == "" else _texts(texts),
        ollama_requests.EMBED_NAMING,
        dimensions=given.get("dimensions") if behaves.embed_dimensions else None,
        base64=behaves.v1_base64 and encoding == "base64",
    )


# -- answers


def _embed_body(done: Embedded) -> bytes:
    body: dict[str, Any] = {
        "model": done.wanted.model_name,
        "embeddings": [_floats(vector) for vector in done.vectors],
    }
    if done.vectors:
        body |= {"total_duration": done.total_ns, "load_duration": done.load_ns, "prompt_eval_count": done.tokens}
    return golang.dumps(body)


def _embeddings_body(done: Embedded) -> bytes:
    made = done.vectors[0] if done.vectors else []
    return golang.dumps({"embedding": _floats(_LEGACY_LENGTH * value for value in made)})


def _v1_body(done: Embedded) -> bytes:
    data = [
        {"object": "embedding", "embedding": _packed(vector) if done.wanted.base64 else _floats(vector), "index": index}
        for index, vector in enumerate(done.vectors)
    ]
    usage = {"prompt_tokens": done.tokens, "total_tokens": done.tokens}
    body = {"object": "list", "data": data, "model": done.wanted.model_name, "usage": usage}
    return golang.dumps(body) + b"\n"


def _floats(values: Iterable[float]) -> list[float]:
    """As Go prints a float32: nine digits are enough to tell it from its neighbours."""
    return [float(f"{value:.9g}") for value in values]


def _packed(vector: Iterable[float]) -> str:
    kept = list(vector)
    return base64.b64encode(struct.pack(f"<{len(kept)}f", *kept)).decode()
