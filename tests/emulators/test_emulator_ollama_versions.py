"""What an older release does otherwise, each on the wire; the release before the change and the one with it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from emulator_wire import WEATHER_TOOL, Answered, ask, user

from memos_llm.emulators import OllamaEmulator
from memos_llm.emulators.ollama_versions import Behaviour, behaviour

CHAT, V1, EMBED = "/api/chat", "/v1/chat/completions", "/api/embed"
EMBEDDER, THINKER, MODEL = "mxbai-embed-large", "qwen3:8b", "llama3.2:3b"


async def one(version: str, path: str, *, method: str = "POST", **body: Any) -> Answered:
    async with OllamaEmulator(version=version) as emu:
        return await ask(emu.url, method, path, body or None)


def chat(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": user("hi"), "stream": False, **more}


def first_call_id(got: Answered) -> Any:
    return got.json["message"]["tool_calls"][0].get("id", "")[:5]


CASES: list[tuple[str, str, str, dict[str, Any], Any, Any, Any]] = [
    # before, since, path, body, what is looked at, then, now
    ("0.11.4", "0.11.5", V1, chat(model=THINKER, reasoning_effort="nonsense"), lambda a: a.status, 200, 400),
    ("0.11.10", "0.11.11", EMBED, {"model": EMBEDDER, "input": "x", "dimensions": 8},
     lambda a: len(a.json["embeddings"][0]), 1024, 8),
    ("0.12.3", "0.12.4", CHAT, chat(model=THINKER), lambda a: "thinking" in a.json["message"], False, True),
    ("0.12.6", "0.12.7", "/v1/embeddings", {"model": EMBEDDER, "input": "x", "encoding_format": "base64"},
     lambda a: type(a.json["data"][0]["embedding"]), list, str),
    ("0.12.9", "0.12.10", CHAT, chat(tools=[WEATHER_TOOL], messages=user("weather?")), first_call_id, "", "call_"),
    ("0.12.10", "0.12.11", CHAT, chat(logprobs=True), lambda a: "logprobs" in a.json, False, True),
    ("0.13.2", "0.13.3", "/v1/responses", {"model": MODEL, "input": "x"}, lambda a: a.status, 404, 200),
    ("0.13.5", "0.14.0", "/v1/messages", {"model": MODEL, "max_tokens": 9, "messages": user("x")},
     lambda a: a.status, 404, 200),
    ("0.17.5", "0.17.6", CHAT, chat(model="//"), lambda a: a.json["error"], "model is required", "invalid model name"),
    ("0.17.5", "0.17.6", "/api/generate", {"model": "//", "prompt": "x"}, lambda a: (a.status, a.json["error"]),
     (404, "model '//' not found"), (400, "invalid model name")),
    ("0.17.5", "0.17.6", "/api/show", {"model": "//"}, lambda a: (a.status, a.json["error"]),
     (500, "unqualified name: !MISSING!/!MISSING!/!MISSING!:latest"), (400, "invalid model name")),
    ("0.17.5", "0.17.6", EMBED, {"input": "x"}, lambda a: (a.status, a.json["error"]),
     (500, "unqualified name: registry.ollama.ai/library/!MISSING!:latest"), (404, "model '' not found")),
    ("0.17.6", "0.17.7", CHAT, chat(model=THINKER, think="low"), lambda a: a.status, 400, 200),
    ("0.17.7", "0.18.0", V1, chat(model="nope"), lambda a: a.json["error"]["type"], "api_error", "not_found_error"),
    ("0.21.0", "0.22.0", CHAT, chat(model=THINKER, think="max"), lambda a: a.status, 400, 200),
    ("0.32.5", "0.32.6", V1, chat(stream=True), lambda a: a.events[-2]["choices"][0]["delta"],
     {"role": "assistant", "content": ""}, {}),
    ("0.32.10", "0.32.11", V1, chat(model=THINKER, reasoning_effort="minimal"), lambda a: a.status, 400, 200),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]} {case[2]}")
async def test_the_release_decides(case: tuple[str, str, str, dict[str, Any], Any, Any, Any]) -> None:
    before, since, path, body, look, then, now = case
    assert look(await one(before, path, **body)) == then
    assert look(await one(since, path, **body)) == now


async def test_tags_list_capabilities_since_0_18_0() -> None:
    for version, listed in (("0.17.7", False), ("0.18.0", True)):
        tag = (await one(version, "/api/tags", method="GET")).json["models"][0]
        assert ("capabilities" in tag, "context_length" in tag["details"]) == (listed, listed)


async def test_overflow_is_cut_to_the_whole_window_before_0_30_0() -> None:
    body = chat(messages=user("word " * 100), options={"num_ctx": 64})
    assert (await one("0.17.4", CHAT, **body)).json["prompt_eval_count"] == 64
    assert (await one("0.30.0", CHAT, **body)).json["prompt_eval_count"] == 34
    unshifted = (await one("0.17.4", CHAT, **body, shift=False)).json
    assert (unshifted["eval_count"], unshifted["done_reason"]) == (1, "length")
    assert "eval_duration" not in unshifted
    assert (await one("0.30.0", CHAT, **body, shift=False)).status == 400


def test_the_newest_release_has_every_change_and_a_candidate_counts_as_its_release() -> None:
    assert behaviour("0.33.0") == behaviour("0.33.0-rc2") == Behaviour(*[True] * len(fields(Behaviour)))
    assert behaviour("0.11.4") == Behaviour(*[False] * len(fields(Behaviour)))
