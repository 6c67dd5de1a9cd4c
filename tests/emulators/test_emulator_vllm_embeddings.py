"""vLLM's embeddings: what is accepted, what comes back, and what a server of the other kind says."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from emulator_wire import Answered, ask, until, user

from memos_llm.emulators import VllmEmulator
from memos_llm.emulators.vectors import cut, vector

PATH = "/v1/embeddings"
MODEL = "BAAI/bge-small-en-v1.5"
DIMENSION = 32


@pytest.fixture
async def emu() -> AsyncIterator[VllmEmulator]:
    async with VllmEmulator(models=[MODEL, "alias"], task="embed", dimension=DIMENSION, max_model_len=20) as emulator:
        yield emulator


def embeddings(got: Answered) -> list[Any]:
    assert got.status == 200, got.json
    assert [item["index"] for item in got.json["data"]] == list(range(len(got.json["data"])))
    return [item["embedding"] for item in got.json["data"]]


async def test_the_answer_has_vllm_s_shape(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", PATH, {"model": "alias", "input": "a b"}, {"X-Request-Id": "abc"})
    assert (got.json["id"], got.json["object"], got.json["model"]) == ("embd-abc", "list", MODEL)
    assert got.json["usage"] == {
        "prompt_tokens": 3,
        "total_tokens": 3,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    assert embeddings(got) == [vector("vllm", MODEL, "a b", DIMENSION)]
    assert math.isclose(math.hypot(*embeddings(got)[0]), 1.0)


async def test_inputs_keep_their_order_in_every_spelling(emu: VllmEmulator) -> None:
    texts = embeddings(await ask(emu.url, "POST", PATH, input=["x y", "z", ""]))
    assert texts == [vector("vllm", MODEL, text, DIMENSION) for text in ("x y", "z", "")]
    ids = [(await ask(emu.url, "POST", "/tokenize", prompt=text)).json["tokens"] for text in ("x y", "z")]
    assert embeddings(await ask(emu.url, "POST", PATH, input=ids)) == texts[:2]
    assert embeddings(await ask(emu.url, "POST", PATH, input=ids[0])) == texts[:1]
    assert len(embeddings(await ask(emu.url, "POST", PATH, messages=user("x y")))) == 1


async def test_base64_is_little_endian_float32(emu: VllmEmulator) -> None:
    (coded,) = embeddings(await ask(emu.url, "POST", PATH, input="x", encoding_format="base64"))
    (plain,) = embeddings(await ask(emu.url, "POST", PATH, input="x"))
    assert struct.unpack(f"<{DIMENSION}f", base64.b64decode(coded)) == pytest.approx(plain, abs=1e-7)


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        ({}, "Bad Request", "body.input"),
        ({"input": 5}, "Bad Request", "body.input"),
        ({"input": ["a", 1]}, "Bad Request", "body.input"),
        ({"input": "a", "encoding_format": "hex"}, "Bad Request", "body.encoding_format"),
        ({"input": "a", "dimensions": "many"}, "Bad Request", "body.dimensions"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "Bad Request", "body.truncate_prompt_tokens"),
        ({"input": "a", "dimensions": DIMENSION}, "BadRequestError", None),
        ({"input": "a", "truncate_prompt_tokens": 21}, "BadRequestError", "truncate_prompt_tokens"),
        ({"input": "a", "normalize": True}, "BadRequestError", "normalize"),
        ({"input": ["a", "x " * 30]}, "BadRequestError", "input_tokens"),
        ({"messages": []}, "BadRequestError", None),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "BadRequestError", None),
        ({"input": []}, "BadRequestError", None),
        ({"input": [[1], []]}, "BadRequestError", None),
    ],
)
async def test_rejections(emu: VllmEmulator, body: Any, kind: str, param: str | None) -> None:
    got = await ask(emu.url, "POST", PATH, body)
    assert (got.status, got.json["error"]["type"], got.json["error"]["param"]) == (400, kind, param)


async def test_a_long_input_is_cut_only_if_asked_for(emu: VllmEmulator) -> None:
    long = " ".join(f"w{n}" for n in range(40))
    got = await ask(emu.url, "POST", PATH, input=long, truncate_prompt_tokens=-1)
    assert got.json["usage"]["prompt_tokens"] == 20
    five = await ask(emu.url, "POST", PATH, input=long, truncate_prompt_tokens=5)
    assert embeddings(five) == [vector("vllm", MODEL, "w0 w1 w2 w3 w4", DIMENSION)]


async def test_dimensions_are_for_matryoshka_models() -> None:
    async with VllmEmulator(models=["m"], task="embed", dimension=32, matryoshka=(8, 16)) as emu:
        whole = vector("vllm", "m", "x", 32)
        assert embeddings(await ask(emu.url, "POST", PATH, input="x", dimensions=8)) == [cut(whole, 8)]
        assert embeddings(await ask(emu.url, "POST", PATH, input="x")) == [whole]
        for wrong in (9, 0, -1, 10**30):
            assert (await ask(emu.url, "POST", PATH, input="x", dimensions=wrong)).status == 400


async def test_another_engine_s_space_can_be_shared() -> None:
    async with (
        VllmEmulator(models=["a"], task="embed", space="one") as shared,
        VllmEmulator(models=["a"], task="embed") as apart,
    ):
        (first,) = embeddings(await ask(shared.url, "POST", PATH, input="hello there"))
        (second,) = embeddings(await ask(apart.url, "POST", PATH, input="hello there"))
    other = vector("ollama", "b", "hello there", space="one")
    assert _dot(first, other) > 0.999
    assert abs(_dot(second, other)) < 0.3


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


async def test_a_server_has_the_routes_of_its_task_alone(emu: VllmEmulator) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"):
        got = await ask(emu.url, "POST", path, model=MODEL, messages=user("x"))
        assert (got.status, got.json) == (404, {"detail": "Not Found"})
    missing = await ask(emu.url, "POST", PATH, model="ghost", input="x")
    assert (missing.status, missing.json["error"]["type"]) == (404, "NotFoundError")


async def test_more_than_an_emulator_should_hold_is_refused(emu: VllmEmulator) -> None:
    got = await ask(emu.url, "POST", PATH, input=["a"] * 200_000)
    assert got.status == 501


@pytest.mark.parametrize(
    ("fault", "status"), [("status:code=500", 500), ("queue_full", 503), ("model_missing", 404), ("engine_dead", 500)]
)
async def test_faults_hit_embeddings(emu: VllmEmulator, fault: str, status: int) -> None:
    emu.faults.set(fault)
    assert (await ask(emu.url, "POST", PATH, input="x")).status == status
    emu.faults.clear()
    assert (await ask(emu.url, "POST", PATH, input="x")).status == 200


async def test_faults_inside_the_answer_hit_embeddings(emu: VllmEmulator) -> None:
    emu.faults.set("cut_mid_stream:count=1")
    assert (await ask(emu.url, "POST", PATH, input="x")).ended == "cut"
    emu.faults.set("malformed:count=1")
    with pytest.raises(ValueError, match=r"Unterminated|Expecting|delimiter"):
        _ = (await ask(emu.url, "POST", PATH, input="x")).json
    emu.faults.set("no_usage:count=1")
    assert "usage" not in (await ask(emu.url, "POST", PATH, input="x")).json


async def test_a_hung_engine_holds_embeddings_and_freezes_the_step_counter(emu: VllmEmulator) -> None:
    steps = emu.engine_core.histograms["iteration_tokens_total"]
    await ask(emu.url, "POST", PATH, input="x")
    assert steps.count == 1
    emu.faults.set("hang_engine")
    task = asyncio.create_task(ask(emu.url, "POST", PATH, input="x"))
    await until(lambda: emu.engine_core.running == 1)
    assert (await ask(emu.url, "GET", "/health")).status == 200
    assert steps.count == 1
    emu.faults.clear()
    assert (await task).status == 200
    assert steps.count == 2


async def test_openai_sdk_embeds(emu: VllmEmulator) -> None:
    async with openai.AsyncOpenAI(base_url=emu.url + "/v1", api_key="x", max_retries=0) as client:
        got = await client.embeddings.create(model=MODEL, input=["x", "y"])
        assert [len(item.embedding) for item in got.data] == [DIMENSION, DIMENSION]
        assert got.data[0].embedding == pytest.approx(vector("vllm", MODEL, "x", DIMENSION), abs=1e-7)
        with pytest.raises(openai.BadRequestError, match="Matryoshka"):
            await client.embeddings.create(model=MODEL, input="x", dimensions=8)
