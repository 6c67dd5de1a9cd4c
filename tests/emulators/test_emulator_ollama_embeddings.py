"""Ollama's three embedding routes, and the vectors themselves."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

import ollama
import openai
import pytest
from emulator_wire import ask
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.emulators.vectors import vector

EMBED, LEGACY, V1 = "/api/embed", "/api/embeddings", "/v1/embeddings"
MODEL = "mxbai-embed-large"
TOO_LONG = "the input length exceeds the context length"
MANY = "x " * 1000
CAT, CAT_TOO, MONEY = "the cat sat on the mat", "the cat sat on a mat", "quarterly revenue rises again"


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@pytest.fixture
async def emu() -> AsyncIterator[OllamaEmulator]:
    async with OllamaEmulator() as emulator:
        yield emulator


# -- the vectors


@given(st.text(max_size=40), st.integers(1, 40), st.sampled_from([None, "shared"]))
@settings(max_examples=40)
def test_a_vector_has_its_dimension_and_length_one_and_repeats(text: str, dimension: int, space: str | None) -> None:
    made = vector("ollama", "m", text, dimension, space=space)
    assert len(made) == dimension
    assert math.isclose(math.hypot(*made), 1.0, rel_tol=1e-9)
    assert vector("ollama", "m", text, dimension, space=space) == made


def test_texts_that_share_words_lie_closer() -> None:
    cat, cat_too, money = (vector("ollama", "m", text) for text in (CAT, CAT_TOO, MONEY))
    assert cosine(cat, cat_too) > 0.7
    assert abs(cosine(cat, money)) < 0.2


async def test_engines_agree_only_in_a_space_they_share() -> None:
    found = []
    for space in (None, "one"):
        async with (
            OllamaEmulator(space=space) as old,
            VllmEmulator(models=["org/embedder"], task="embed", dimension=1024, space=space) as new,
        ):
            one = (await ask(old.url, "POST", V1, model=MODEL, input=CAT)).json["data"][0]["embedding"]
            other = (await ask(new.url, "POST", V1, model="org/embedder", input=CAT)).json["data"][0]["embedding"]
            found.append(cosine(one, other))
    assert abs(found[0]) < 0.2
    assert 0.9999 < found[1] < 1.0 - 1e-9


# -- the routes


async def test_embed_gives_a_unit_vector_for_each_text_with_counts(emu: OllamaEmulator) -> None:
    got = await ask(emu.url, "POST", EMBED, model=MODEL, input=[CAT, CAT_TOO, ""])
    assert list(got.json) == ["model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"]
    assert got.json["model"] == MODEL
    assert [len(v) for v in got.json["embeddings"]] == [1024] * 3
    assert all(math.isclose(math.hypot(*v), 1.0, rel_tol=1e-6) for v in got.json["embeddings"])
    assert got.json["prompt_eval_count"] == 6 + 6 + 0 + 3 * 2
    assert got.json["total_duration"] >= got.json["load_duration"] >= 1
    assert got.headers["transfer-encoding"] == "chunked"
    single = await ask(emu.url, "POST", EMBED, model=MODEL, input=CAT)
    assert single.json["embeddings"] == got.json["embeddings"][:1]


async def test_dimensions_cut_and_renormalise_and_odd_ones_are_ignored(emu: OllamaEmulator) -> None:
    whole = (await ask(emu.url, "POST", EMBED, model=MODEL, input=CAT)).json["embeddings"][0]
    cut = (await ask(emu.url, "POST", EMBED, model=MODEL, input=CAT, dimensions=8)).json["embeddings"][0]
    assert math.isclose(math.hypot(*cut), 1.0, rel_tol=1e-6)
    assert cosine(cut, whole[:8]) == pytest.approx(1.0)
    for odd in (0, -1, 1024, 4096):
        assert (await ask(emu.url, "POST", EMBED, model=MODEL, input=CAT, dimensions=odd)).json["embeddings"] == [whole]


@pytest.mark.parametrize("more", [{"input": ""}, {"input": []}, {}, {"input": None}])
async def test_embed_of_nothing_loads(emu: OllamaEmulator, more: Any) -> None:
    got = await ask(emu.url, "POST", EMBED, {"model": MODEL, "keep_alive": -1, **more})
    assert got.json == {"model": MODEL, "embeddings": []}
    shown = (await ask(emu.url, "GET", "/api/ps")).json["models"][0]
    assert shown["name"] == f"{MODEL}:latest"
    assert shown["context_length"] == 512
    assert shown["expires_at"].startswith("2319")
    assert (await ask(emu.url, "POST", LEGACY, model=MODEL, prompt="")).json == {"embedding": []}


async def test_only_embed_and_v1_cut_what_is_too_long(emu: OllamaEmulator) -> None:
    cut = await ask(emu.url, "POST", EMBED, model=MODEL, input=MANY)
    assert (cut.status, cut.json["prompt_eval_count"]) == (200, 512)
    refused = await ask(emu.url, "POST", EMBED, model=MODEL, input=["short", MANY], truncate=False)
    assert (refused.status, refused.json) == (400, {"error": TOO_LONG})
    legacy = await ask(emu.url, "POST", LEGACY, model=MODEL, prompt=MANY)
    assert (legacy.status, legacy.json) == (500, {"error": TOO_LONG})
    assert (await ask(emu.url, "POST", V1, model=MODEL, input=MANY)).json["usage"]["prompt_tokens"] == 512
    tight = await ask(emu.url, "POST", EMBED, model=MODEL, input=MANY, options={"num_ctx": 16})
    assert tight.json["prompt_eval_count"] == 16


async def test_legacy_vector_points_the_same_way_with_another_length(emu: OllamaEmulator) -> None:
    legacy = (await ask(emu.url, "POST", LEGACY, model=MODEL, prompt=CAT)).json
    assert list(legacy) == ["embedding"]
    now = (await ask(emu.url, "POST", EMBED, model=MODEL, input=CAT)).json["embeddings"][0]
    assert cosine(legacy["embedding"], now) == pytest.approx(1.0)
    assert math.hypot(*legacy["embedding"]) > 1.5


NOT_PULLED = 'model "nope" not found, try pulling it first'


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        (EMBED, {"model": MODEL, "input": [1, 2]}, 400, "invalid input type"),
        (EMBED, {"model": MODEL, "input": [[1, 2]]}, 400, "invalid input type"),
        (EMBED, {"model": MODEL, "input": {"text": "x"}}, 400, "invalid input type"),
        (EMBED, {"model": "nope", "input": "x"}, 404, NOT_PULLED),
        (EMBED, {"input": "x"}, 404, "model '' not found"),
        (EMBED, {"model": "//", "input": "x"}, 400, "invalid model name"),
        (EMBED, {"model": MODEL, "input": "x", "keep_alive": "5"}, 400, 'time: missing unit in duration "5"'),
        (EMBED, b"", 400, "missing request body"),
        (LEGACY, {"model": "nope", "prompt": "x"}, 404, NOT_PULLED),
        (LEGACY, {"prompt": "x"}, 400, "model is required"),
        ("/api/chat", {"model": MODEL, "messages": []}, 400, f'"{MODEL}" does not support chat'),
        ("/api/generate", {"model": MODEL, "prompt": "x"}, 400, f'"{MODEL}" does not support generate'),
    ],
)
async def test_refusals(emu: OllamaEmulator, path: str, body: Any, status: int, text: str) -> None:
    got = await ask(emu.url, "POST", path, body)
    assert (got.status, got.json) == (status, {"error": text})
    assert got.headers["content-type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("body", "status", "text", "by_layer"),
    [
        ({"model": MODEL, "input": []}, 400, "invalid input", True),
        ({"model": MODEL}, 400, "invalid input", True),
        (
            {"model": MODEL, "input": "x", "encoding_format": "hex"},
            400,
            "Invalid value for 'encoding_format' = hex. Supported values: ['float', 'base64'].",
            True,
        ),
        ({"model": MODEL, "input": [1]}, 400, "invalid input type", False),
        ({"model": "nope", "input": "x"}, 404, NOT_PULLED, False),
    ],
)
async def test_v1_refusals(emu: OllamaEmulator, body: Any, status: int, text: str, by_layer: bool) -> None:
    got = await ask(emu.url, "POST", V1, body)
    kind = {400: "invalid_request_error", 404: "not_found_error"}[status]
    assert (got.status, got.json["error"]) == (status, {"message": text, "type": kind, "param": None, "code": None})
    assert (b"\n" in got.body) != by_layer


async def test_v1_gives_floats_or_base64_and_takes_an_empty_text(emu: OllamaEmulator) -> None:
    plain = await ask(emu.url, "POST", V1, model=MODEL, input=["", CAT], dimensions=4)
    assert plain.headers["content-type"] == "application/json"
    assert [d["index"] for d in plain.json["data"]] == [0, 1]
    assert plain.json["usage"] == {"prompt_tokens": 10, "total_tokens": 10}
    packed = await ask(emu.url, "POST", V1, model=MODEL, input=["", CAT], dimensions=4, encoding_format="base64")
    for one, other in zip(plain.json["data"], packed.json["data"], strict=True):
        assert struct.unpack("<4f", base64.b64decode(other["embedding"])) == pytest.approx(one["embedding"], abs=1e-7)


@pytest.mark.parametrize(("path", "given"), [(EMBED, ["a", ""]), (V1, ""), (V1, ["a", ""])])
async def test_a_chat_model_has_nothing_to_embed_in_an_empty_text(emu: OllamaEmulator, path: str, given: Any) -> None:
    refused = await ask(emu.url, "POST", path, model="llama3.2:3b", input=given)
    text = "Failed to create new sequence: no input provided"
    assert refused.status == 500
    assert refused.json["error"] == (text if path == EMBED else error_of(text))
    assert (await ask(emu.url, "POST", path, model=MODEL, input=given)).status == 200  # its tokenizer adds two tokens


def error_of(text: str) -> dict[str, Any]:
    return {"message": text, "type": "api_error", "param": None, "code": None}


async def test_a_chat_model_embeds_too_in_a_space_of_its_own(emu: OllamaEmulator) -> None:
    chat = (await ask(emu.url, "POST", EMBED, model="llama3.2:3b", input=CAT)).json["embeddings"][0]
    own = (await ask(emu.url, "POST", EMBED, model=MODEL, input=CAT)).json["embeddings"][0]
    assert abs(cosine(chat, own)) < 0.2


@pytest.mark.parametrize("path", [EMBED, LEGACY, V1])
@pytest.mark.parametrize(
    ("spec", "status", "ended"),
    [
        ("status:code=503", 503, "complete"),
        ("model_missing", 404, "complete"),
        ("runner_crash", {EMBED: 400, LEGACY: 500, V1: 400}, "complete"),
        ("cut_mid_stream", 200, "cut"),
        ("cut_before_content", 200, "cut"),
    ],
)
async def test_faults_hit_embeddings(path: str, spec: str, status: Any, ended: str) -> None:
    body = {"model": MODEL, "prompt" if path == LEGACY else "input": CAT}
    async with OllamaEmulator(faults=[spec]) as emu:
        got = await ask(emu.url, "POST", path, body)
        assert (got.status, got.ended) == (status[path] if isinstance(status, dict) else status, ended)
        emu.faults.clear()
        assert (await ask(emu.url, "POST", path, body)).status == 200
        assert emu.counters.loads_started[f"{MODEL}:latest"] == {"runner_crash": 2, "status:code=503": 1}.get(spec, 1)


async def test_the_sdks_embed(emu: OllamaEmulator) -> None:
    async with ollama.AsyncClient(host=emu.url) as old:
        native = await old.embed(model=MODEL, input=CAT)
    async with openai.AsyncOpenAI(base_url=f"{emu.url}/v1", api_key="x") as client:
        made = await client.embeddings.create(model=MODEL, input=CAT)  # base64 on the wire
    assert made.data[0].embedding == pytest.approx(list(native.embeddings[0]), abs=1e-7)
