"""`embeddings verify`: what two servers' vectors are to each other, and what that opens."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cli_driver import Llmctl, llmctl
from hypothesis import given
from hypothesis import strategies as st
from stack import Stack, open_stack

from memos_llm.cli import texts
from memos_llm.cli.failures import Failure
from memos_llm.operate.vectors import NEIGHBOURS, compare, proof

OLLAMA, VLLM = "nomic-embed-text", "nomic-ai/nomic-embed-text-v1.5"
SENTENCES = [f"canary text {n} about {word}" for n in range(9) for word in ("ships", "bread", "rain", "chess", "tax")]
CONFIG = {"models": {OLLAMA: {"aliases": ["nomic"], "vllm": VLLM}}}


def servers(*, alike: bool) -> dict[str, Any]:
    space = {"space": "one"} if alike else {}
    return {
        "ollama": {"models": [OLLAMA], **space},
        "vllm": {"models": [VLLM], "task": "embed", "dimension": 768, **space},
    }


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(SENTENCES) + "\n\n")
    return str(path)


@pytest.fixture
async def alike(tmp_path: Path) -> AsyncIterator[Stack]:
    async with open_stack(tmp_path, config=CONFIG, **servers(alike=True)) as running:
        yield running


async def test_equal_vectors_open_the_share(alike: Stack, tmp_path: Path, file: str) -> None:
    run = Llmctl(tmp_path / "memos_llm.yaml")
    to_one = ("shift", "--vllm", "1", "--component", "embedding")
    assert (await run(*to_one)).code == 3
    found = await run.json("embeddings", "verify", "nomic", "--file", file)
    assert (found["equal"], found["model"], found["texts"]) == (True, OLLAMA, len(SENTENCES))
    assert found["cosine"]["min"] >= 0.999
    assert found["dimension_baseline"] == found["dimension_candidate"] > 0
    assert found["overlap_at_10"] > 0.9
    (shown,) = (await run.json("status"))["embeddings"]
    assert shown["verified"]["texts"] == len(SENTENCES)
    assert (await run.json(*to_one))["share"] == 1.0
    said = await run.json("explain", "--component", "embedding", "--model", OLLAMA)
    assert (said["provider"], said["operation"]) == ("vllm", "embeddings")
    assert "verified equal" in (await run("status")).out


async def test_other_vectors_are_exit_1_and_take_an_earlier_proof_back(tmp_path: Path, file: str) -> None:
    run = Llmctl(tmp_path / "memos_llm.yaml")
    async with open_stack(tmp_path, config=CONFIG, **servers(alike=True)):
        assert (await run("embeddings", "verify", OLLAMA, "--file", file)).code == 0
        await run.json("shift", "--vllm", "1", "--component", "embedding")
    async with open_stack(tmp_path, config=CONFIG, **servers(alike=False)) as stack:
        looked = await run("embeddings", "verify", OLLAMA, "--file", file, "--no-record", "--json")
        assert (looked.code, looked.json["equal"], looked.json["recorded_revision"]) == (1, False, None)
        assert stack.runtime.live.current().verified
        ran = await run("embeddings", "verify", OLLAMA, "--file", file)
        assert ran.code == 1
        assert "NOT EQUAL" in ran.out
        assert f"{OLLAMA} go back to ollama" in ran.err
        assert "canary" not in ran.out + ran.err
        history = await run("history", "--json")
        assert "canary" not in history.out
        (shown,) = (await run.json("status"))["embeddings"]
        assert shown["verified"] is None
        said = await run.json("explain", "--component", "embedding", "--model", OLLAMA)
        assert (said["reason"], said["provider"]) == ("embeddings-unverified", "ollama")


async def test_it_is_recorded_through_a_gateway_too(alike: Stack, tmp_path: Path, file: str) -> None:
    run = Llmctl(tmp_path / "memos_llm.yaml")
    found = await run.json("--gateway", alike.url, "embeddings", "verify", OLLAMA, "--file", file, "--texts", "3")
    assert found["texts"] == 3
    assert alike.runtime.live.current().verified[OLLAMA].texts == 3
    assert (await alike.runtime.live.store.history(1))[0].actor == "admin-token"


async def test_a_server_that_does_not_answer_records_nothing(alike: Stack, tmp_path: Path, file: str) -> None:
    alike.vllm.faults.set("refuse")
    run = Llmctl(tmp_path / "memos_llm.yaml")
    ran = await run("embeddings", "verify", OLLAMA, "--file", file)
    assert ran.code == 4
    assert f"does vllm run, and serve {VLLM}" in ran.err
    assert not alike.runtime.live.current().verified


@pytest.mark.parametrize(("model", "says"), [("nosuch", "choices"), ("alone", "no name on vllm")])
def test_a_model_that_is_not_on_both_sides_is_named(tmp_path: Path, file: str, model: str, says: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("models: {alone: {}}\nstore: 'memory://'\n")
    ran = llmctl("--config", str(config), "embeddings", "verify", model, "--file", file)
    assert ran.code == 2
    assert says in ran.err


# The file


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.txt", "one\n\n two \nthree", ["one", "two", "three"]),
        ("a.jsonl", '"one"\n{"id": 1, "text": "two"}\n\n{"input": "three"}', ["one", "two", "three"]),
        ("a.csv", 'id,Text\n1,one\n2,"two,\nlines"\n', ["one", "two,\nlines"]),
        ("a.csv", "one,1\ntwo,2\n", ["one", "two"]),
    ],
)
def test_texts_are_read(tmp_path: Path, name: str, content: str, wanted: list[str]) -> None:
    (tmp_path / name).write_text(content)
    assert texts.read(tmp_path / name, 100) == wanted
    assert texts.read(tmp_path / name, 1) == wanted[:1]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"\n \n", "no texts"),
        ("a.csv", b"", "no texts"),
        ("a.jsonl", b'"canary"\n{', "line 2: not JSON"),
        ("a.jsonl", b'{"canary": "x"}', "line 1"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_quotes_nothing(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Failure, match=says) as raised:
        texts.read(tmp_path / name, 100)
    assert "canary" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot be read"):
        texts.read(tmp_path / "nowhere", 1)


# The arithmetic

NUMBERS = st.floats(-10, 10).map(lambda x: round(x, 3))
SPACES = st.integers(2, 6).flatmap(
    lambda size: st.lists(st.lists(NUMBERS, min_size=size, max_size=size).filter(any), min_size=2, max_size=15)
)


@given(space=SPACES, factor=st.floats(0.1, 100))
def test_a_space_is_equal_to_itself_at_any_length(space: list[list[float]], factor: float) -> None:
    found = compare(space, [[x * factor for x in vector] for vector in space])
    assert found.equal
    assert found.cosine is not None
    assert found.cosine.min > 0.999999
    kept = proof(found, "a", "b", 1.0)
    assert kept is not None
    assert (kept.dimension, kept.texts) == (len(space[0]), len(space))
    json.dumps([found.norms_baseline.mean, found.overlap_at_10])


@given(space=SPACES, place=st.integers(0, 14))
def test_one_text_that_differs_is_enough(space: list[list[float]], place: int) -> None:
    place %= len(space)
    other = [[-x for x in vector] if i == place else vector for i, vector in enumerate(space)]
    found = compare(space, other)
    assert not found.equal
    assert found.worst[0] == place
    assert proof(found, "a", "b", 1.0) is None


@pytest.mark.parametrize(
    ("here", "there", "why"),
    [
        ([[1.0, 0.0]], [[1.0]], "dimensions differ: 2 and 1"),
        ([[1.0], [1.0, 2.0]], [[1.0], [1.0]], "not all of one dimension"),
        ([[0.0, 0.0]], [[0.0, 0.0]], "least cosine"),
        ([[1.0, 0.0]], [[float("nan"), 0.0]], "least cosine"),
        ([[1.0, 0.0]], [[float("inf"), 0.0]], "least cosine"),
    ],
)
def test_what_is_no_proof(here: list[list[float]], there: list[list[float]], why: str) -> None:
    found = compare(here, there)
    assert not found.equal
    assert why in found.why


def test_neighbours_that_differ_show() -> None:
    line = [[1.0, n / 100] for n in range(3 * NEIGHBOURS)]
    assert compare(line, line).overlap_at_10 == 1.0
    shuffled = line[::2] + line[1::2]
    overlap = compare(line, shuffled).overlap_at_10
    assert overlap is not None
    assert overlap < 0.8
