"""Embeddings of a back end that means harm: what is no vector for each input reaches nobody, on any wire.

As the candidate it is nobody's: the baseline's vectors come. Alone it makes a clear error of the caller's dialect.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from hostile import HONEST, Honest, Script, sized
from test_gateway_hostile_backend import EMBEDDER, SLOW, Site, open_alone, open_site

from memos_llm.core.errors import EmbeddingServiceError
from memos_llm.library import Router

FINE = "[0.6,0.8]"
TEXTS = ["a", "b"]
OPENAI, EMBED, EMBEDDINGS = "/v1/embeddings", "/api/embed", "/api/embeddings"
ASKED: Mapping[str, dict[str, Any]] = {
    OPENAI: {"model": EMBEDDER, "input": TEXTS},
    EMBED: {"model": EMBEDDER, "input": TEXTS},
    EMBEDDINGS: {"model": EMBEDDER, "prompt": "a"},
}
PACKED = {**ASKED[OPENAI], "encoding_format": "base64"}
SHORT = {**ASKED[OPENAI], "dimensions": 1}


def items(*found: str, at: tuple[str, ...] = ("0", "1", "2")) -> str:
    """OpenAI's list of vectors."""
    each = (f'{{"object":"embedding","index":{n},"embedding":{v}}}' for n, v in zip(at, found, strict=False))
    return f'{{"object":"list","model":"m","data":[{",".join(each)}],"usage":{{"prompt_tokens":3,"total_tokens":3}}}}'


def rows(*found: str) -> str:
    """Ollama's."""
    return f'{{"model":"m","embeddings":[{",".join(found)}],"prompt_eval_count":3}}'


def one(*found: str) -> str:
    return f'{{"embedding":{(*found, "null")[0]}}}'


WRITTEN = {OPENAI: items, EMBED: rows, EMBEDDINGS: one}

VECTORS: Mapping[str, str] = {
    "NaN": "[0.6,NaN]",
    "infinity": "[0.6,Infinity]",
    "minus infinity": "[0.6,-Infinity]",
    "a number beyond 64 bits": "[0.6,1e400]",
    "a number beyond 32 bits": "[0.6,1e39]",
    "a number of 400 digits": f"[0.6,{'9' * 400}]",
    "null in it": "[0.6,null]",
    "a string in it": '[0.6,"0.8"]',
    "a list in it": "[0.6,[0.8]]",
    "all in a list": "[[0.6,0.8]]",
    "an object in it": '[0.6,{"a":1}]',
    "true in it": "[0.6,true]",
    "nothing in it": "[]",
    "null": "null",
    "a number": "0.6",
    "an object": '{"a":1}',
    "words": '"no vector"',
    "base64 that nobody asked for": '"mpkZP83MTD8="',
    "a million dimensions": f"[{'0,' * 999_999}0]",
    "no JSON": "[0.6,,0.8]",
}
"""One vector of an answer on each wire."""

LISTS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "too few": (FINE,),
    "too many": (FINE, FINE, FINE),
    "of different lengths": (FINE, "[1]"),
    "the first is empty": ("[]", FINE),
    "the second is none": (FINE, "0.6"),
}
"""All vectors of an answer to two texts."""

DOCUMENTS: Mapping[str, Mapping[str, str]] = {
    "one place twice": {OPENAI: items(FINE, FINE, at=("0", "0"))},
    "places from 1": {OPENAI: items(FINE, FINE, at=("1", "2"))},
    "a place below zero": {OPENAI: items(FINE, FINE, at=("-1", "0"))},
    "a place between": {OPENAI: items(FINE, FINE, at=("0", "0.5"))},
    "a huge place": {OPENAI: items(FINE, FINE, at=("0", "9" * 400))},
    "a place in words": {OPENAI: items(FINE, FINE, at=("0", '"1"'))},
    "no vector in its object": {OPENAI: '{"data":[{"index":0},{"index":1}]}'},
    "a list of a million nothings": {OPENAI: f'{{"data":[{"{}," * 999_999}{{}}]}}', EMBED: rows("0," * 999_999 + "0"),
                                     EMBEDDINGS: one(f"[{'[],' * 999_999}[]]")},
    "nothing": {OPENAI: "{}", EMBED: "{}", EMBEDDINGS: "{}"},
    "null": {OPENAI: '{"data":null}', EMBED: '{"embeddings":null}', EMBEDDINGS: '{"embedding":null}'},
    "an object": {OPENAI: '{"data":{"0":[1]}}', EMBED: '{"embeddings":{"0":[1]}}', EMBEDDINGS: '{"embedding":{}}'},
    "words": {OPENAI: '{"data":"no"}', EMBED: '{"embeddings":"[1][2]"}', EMBEDDINGS: '{"embedding":"no"}'},
    "the other wire's": {OPENAI: rows(FINE, FINE), EMBED: items(FINE, FINE), EMBEDDINGS: rows(FINE)},
    "nested": {OPENAI: f'{{"data":{"[" * 10_000}{"]" * 10_000}}}', EMBED: rows("[" * 9999 + "]" * 9999),
               EMBEDDINGS: one("[" * 9999 + "]" * 9999)},
}  # fmt: skip

WRONG: Mapping[str, Mapping[str, str]] = {
    **{f"a vector: {name}": {OPENAI: items(FINE, vector), EMBED: rows(FINE, vector), EMBEDDINGS: one(vector)}
       for name, vector in VECTORS.items()},
    **{f"vectors: {name}": {OPENAI: items(*found), EMBED: rows(*found)} for name, found in LISTS.items()},
    **{f"a document: {name}": bodies for name, bodies in DOCUMENTS.items()},
}  # fmt: skip
"""What is wrong → the answer's body by the path that the back end is asked on."""

BASE64: Mapping[str, tuple[str, ...]] = {
    "no base64": ('"mpkZP83MTD8="', '"no vector"'),
    "half a number": ('"mpkZP83MTD8="', '"mpkZP80="'),
    "empty": ('"mpkZP83MTD8="', '""'),
    "of different lengths": ('"mpkZP83MTD8="', '"AACAPw=="'),
    "NaN": ('"mpkZP83MTD8="', '"mpkZPwAAwH8="'),
    "infinity": ('"mpkZP83MTD8="', '"mpkZPwAAgH8="'),
    "a million dimensions": ('"mpkZP83MTD8="', f'"{"A" * 5_333_336}"'),
    "too few": ('"mpkZP83MTD8="',),
}


def says(site: Site, bodies: Mapping[str, str]) -> None:
    """Whoever is asked on a path without a body of its own answers honestly."""
    paths = {HONEST[path, False].body: path for path in ASKED}

    def attack(honest: Honest) -> Script:
        body = bodies.get(paths[honest.body])
        return Script(sized(honest, "Connection: close", body=None if body is None else body.encode()))

    site.server.attack = attack


def check_error(path: str, response: httpx.Response) -> None:
    assert response.status_code == 502, response.text
    assert response.headers["x-memos-error-code"] == "ERR_5004"
    assert isinstance(response.json()["error"], dict if path == OPENAI else str)
    assert "0.6" not in response.text


def check_baseline_s(path: str, response: httpx.Response, count: int = 2) -> None:
    assert (response.status_code, response.headers["x-memos-provider"]) == (200, "ollama"), response.text
    document = response.json()
    found = {OPENAI: document.get("data"), EMBED: document.get("embeddings"), EMBEDDINGS: [document.get("embedding")]}
    assert len(found[path]) == (1 if path == EMBEDDINGS else count)
    assert FINE not in response.text


async def check_malformed(site: Site, response: httpx.Response, providers: list[str]) -> None:
    ended = await site.ended(response)
    assert [attempt.provider for attempt in ended] == providers
    assert ended[0].outcome.kind.value == "malformed"


@pytest.mark.parametrize("wrong", WRONG)
async def test_the_baseline_answers_for_a_candidate_whose_vectors_are_none(wrong: str, tmp_path: Path) -> None:
    bodies = {OPENAI: WRONG[wrong][OPENAI]} if OPENAI in WRONG[wrong] else {}
    if EMBEDDINGS in WRONG[wrong] and wrong.startswith("a vector"):
        bodies[EMBEDDINGS] = items(VECTORS[wrong.removeprefix("a vector: ")])
    async with open_site(tmp_path, SLOW) as site:
        for path in (OPENAI, EMBED, EMBEDDINGS):
            body = bodies.get(EMBEDDINGS, bodies[OPENAI]) if path == EMBEDDINGS else bodies[OPENAI]
            if path == EMBEDDINGS and wrong == "vectors: too few":
                continue  # one is enough for one prompt
            says(site, {OPENAI: body})
            response = await site.client.post(path, json=ASKED[path])
            check_baseline_s(path, response)
            await check_malformed(site, response, ["vllm", "ollama"])
        says(site, bodies)
        answer = await Router(site.runtime).embed(TEXTS, model=EMBEDDER)
        assert (answer.provider, len(answer.vectors)) == ("ollama", 2)
        await site.settled()


@pytest.mark.parametrize("wrong", WRONG)
async def test_vectors_that_are_none_make_a_clear_error(wrong: str, tmp_path: Path) -> None:
    async with open_alone(tmp_path, patience=SLOW) as site:
        says(site, WRONG[wrong])
        for path in WRONG[wrong]:
            response = await site.client.post(path, json=ASKED[path])
            check_error(path, response)
            await check_malformed(site, response, ["ollama"] * len(await site.ended(response)))
        with pytest.raises(EmbeddingServiceError) as caught:
            await Router(site.runtime).embed(TEXTS, model=EMBEDDER)
        assert caught.value.http_status == 502
        await site.settled()


@pytest.mark.parametrize("wrong", BASE64)
async def test_base64_that_is_no_vector_makes_a_clear_error(wrong: str, tmp_path: Path) -> None:
    async with open_alone(tmp_path, patience=SLOW) as site:
        says(site, {OPENAI: items(*BASE64[wrong])})
        for asked in (PACKED, {**PACKED, "dimensions": 1}):
            response = await site.client.post(OPENAI, json=asked)
            check_error(OPENAI, response)
            await check_malformed(site, response, ["ollama"] * len(await site.ended(response)))
        await site.settled()


RIGHT: Mapping[str, tuple[str, list[Any]]] = {
    "the places are mixed": (items("[1,0]", "[0,1]", at=("1", "0")), [[0, 1], [1, 0]]),
    "no places": (items("[1,0]", "[0,1]").replace('"index":0,', "").replace('"index":1,', ""), [[1, 0], [0, 1]]),
    "numbers where base64 was asked for": (items(FINE, FINE), [[0.6, 0.8], [0.6, 0.8]]),
    "zeros": (items("[0,0]", "[0,0]"), [[0, 0], [0, 0]]),
    "base64": (items('"mpkZP83MTD8="', r'"mpkZP83MTD8\u003d"'), ["mpkZP83MTD8="] * 2),
}


@pytest.mark.parametrize("right", RIGHT)
async def test_vectors_are_the_inputs_in_their_order(right: str, tmp_path: Path) -> None:
    body, expected = RIGHT[right]
    async with open_alone(tmp_path, patience=SLOW) as site:
        says(site, {OPENAI: body})
        response = await site.client.post(OPENAI, json=PACKED)
        assert response.status_code == 200, response.text
        assert [item["embedding"] for item in response.json()["data"]] == expected
        await site.settled()


async def test_what_only_loads_a_model_has_no_vectors(tmp_path: Path) -> None:
    async with open_alone(tmp_path, patience=SLOW) as site:
        says(site, {EMBED: '{"model":"m","embeddings":[]}', EMBEDDINGS: '{"embedding":[]}'})
        for path, found in ((EMBED, "embeddings"), (EMBEDDINGS, "embedding")):
            response = await site.client.post(path, json={"model": EMBEDDER})
            assert (response.status_code, response.json()[found]) == (200, [])
        await site.settled()
