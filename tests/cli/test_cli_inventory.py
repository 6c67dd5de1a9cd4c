"""`llmctl inventory`: what was called through a gateway or the library, and whether the old provider may go."""

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from cli_driver import Llmctl, Ran, llmctl, write_config
from stack import OLLAMA_MODELS, VLLM_MODEL, Stack, document, open_stack, settings

import memos_llm
from memos_llm.rollout.recorder import Recorder

CANARY = "canary-7c41"
DAY_S = 86_400
MODELS = {
    "qwen3:8b": {"vllm": VLLM_MODEL},
    "llama3.2:3b": {},
    "nomic-embed-text": {"vllm": "nomic-ai/nomic-embed-text-v1.5"},
}
CHAT = {"model": "qwen3:8b", "messages": [{"role": "user", "content": CANARY}], "stream": False}
TOOLS = [{"type": "function", "function": {"name": CANARY, "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memos_llm.wiring.Recorder", partial(Recorder, every_s=0.05))


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    old = {"models": [*OLLAMA_MODELS, "nomic-embed-text"]}
    new = {"enable_auto_tool_choice": False}
    async with open_stack(tmp_path, config={"models": MODELS}, ollama=old, vllm=new) as running:
        yield running


@pytest.fixture
def run(stack: Stack, tmp_path: Path) -> Llmctl:
    return Llmctl(tmp_path / "memos_llm.yaml")


async def send(client: httpx.AsyncClient, path: str, body: Any = None, *, method: str = "POST", **headers: str) -> int:
    response = await client.request(method, path, json=body, headers=headers)
    return response.status_code


async def a_day(stack: Stack) -> None:
    """One request of each kind, as agents of several stages send them."""
    session = {"x-memos-session": f"{CANARY}-session"}
    async with stack.client() as client:
        for _ in range(3):
            await send(client, "/v1/chat/completions", CHAT, **{"x-memos-component": "synthesis"}, **session)
        await send(client, "/v1/chat/completions", {**CHAT, "tools": TOOLS}, **{"x-memos-component": "tools"})
        await send(client, "/c/analysis/api/chat", {**CHAT, "options": {"mirostat": 1}})
        await send(client, "/api/chat", {**CHAT, "model": "llama3.2:3b"})
        await send(
            client, "/api/generate", {"model": "qwen3:8b", "prompt": CANARY, "template": CANARY, "stream": False}
        )
        await send(client, "/api/generate", {"model": "qwen3:8b"})
        await send(client, "/api/embed", {"model": "nomic-embed-text", "input": CANARY})
        await send(client, "/v1/responses", {"model": "qwen3:8b", "input": CANARY})
        assert await send(client, f"/v1/responses/{CANARY}?key={CANARY}", method="GET") == 404


PER_DAY = 11  # one of them a mistake of its caller


async def seen(run: Llmctl, requests: int, *arguments: str) -> dict[str, Any]:
    """The document, once so many requests have been written."""
    async with asyncio.timeout(10):
        while True:
            found: dict[str, Any] = await run.json("inventory", *arguments)
            if sum(row["requests"] + row["refused"] for row in found["rows"]) >= requests:
                return found
            await asyncio.sleep(0.02)


def by_call(found: dict[str, Any]) -> dict[tuple[str, str, str], Any]:
    return {(row["component"], row["model"], row["route"] or row["wire"]): row for row in found["rows"]}


def states(found: dict[str, Any]) -> dict[tuple[str, str, str], tuple[str, str]]:
    return {call: (row["state"], row["why"]) for call, row in by_call(found).items()}


def in_a_line(ran: Ran) -> str:
    return " ".join(ran.out.split())


def recording_since(folder: Path, days: float) -> None:
    """As if counting had begun so many days earlier."""
    with sqlite3.connect(folder / "flags.db") as db:
        db.execute("UPDATE inventory_since SET at = at - ?", (days * DAY_S,))
    db.close()


HANGING = {
    ("default", "llama3.2:3b", "ollama.chat"): ("hangs", "unmapped-model"),
    ("default", "qwen3:8b", "ollama.generate"): ("hangs", "not-offered"),
    ("embedding", "nomic-embed-text", "ollama.embed"): ("hangs", "embeddings-unverified"),
    ("default", "qwen3:8b", "POST /v1/responses"): ("hangs", "passthrough"),
    ("default", "", "GET /v1/responses/…"): ("ready", "refused"),
}


async def test_before_a_migration_it_says_what_is_called_and_what_of_it_can_move(stack: Stack, run: Llmctl) -> None:
    await a_day(stack)
    found = await seen(run, PER_DAY)
    moving = {
        ("synthesis", "qwen3:8b", "openai.chat"): ("moves", "split"),
        ("tools", "qwen3:8b", "openai.chat"): ("moves", "split"),
        ("analysis", "qwen3:8b", "ollama.chat"): ("moves", "split"),
    }
    assert states(found) == HANGING | moving
    assert (found["verdict"], found["requests"]) == ("hangs", PER_DAY - 1)
    rows = by_call(found)
    assert rows["synthesis", "qwen3:8b", "openai.chat"]["requests"] == 3
    assert {row["caller"] for row in found["rows"]} == {"anonymous"}
    generated = rows["default", "qwen3:8b", "ollama.generate"]
    assert generated["reasons"] == {"load": 1, "not-offered": 1}
    assert [(one["name"], one["n"]) for one in generated["needs"]] == [("go-template", 1)]


async def test_at_share_1_it_says_what_still_hangs_and_why(stack: Stack, run: Llmctl) -> None:
    await stack.shift(1.0)
    await a_day(stack)
    found = await seen(run, PER_DAY)
    moved = {
        ("synthesis", "qwen3:8b", "openai.chat"): ("ready", ""),
        ("tools", "qwen3:8b", "openai.chat"): ("hangs", "incompatible"),
        ("analysis", "qwen3:8b", "ollama.chat"): ("ready", ""),
    }
    assert states(found) == HANGING | moved
    rows = by_call(found)
    assert [(o["provider"], o["code"], o["n"]) for o in rows["tools", "qwen3:8b", "openai.chat"]["incompatible"]] == [
        ("vllm", "400", 1)
    ]
    warnings = [one["name"] for one in rows["analysis", "qwen3:8b", "ollama.chat"]["warnings"]]
    assert "dropped:mirostat" in warnings
    assert found["text"] == "ollama may NOT be switched off: it answered 5 of 10 requests in the last 7 days"
    assert len(found["todo"]) == 5


async def test_the_old_provider_may_go_when_nothing_hung_on_it_for_the_whole_span(
    stack: Stack, run: Llmctl, tmp_path: Path
) -> None:
    await stack.shift(1.0)
    async with stack.client() as client:
        for _ in range(4):
            await send(client, "/v1/chat/completions", CHAT)
    early = await seen(run, 4)
    assert early["verdict"] == "too-early"
    assert (await run("inventory", "--check")).code == 1
    recording_since(tmp_path, 8)
    yes = await run("inventory", "--check")
    assert yes.code == 0
    assert "ollama may be switched off: nothing hung on it in the last 7 days (seen 4 requests)" in in_a_line(yes)
    no = await run("inventory", "--check", "--since", "2w")
    assert (no.code, (await run("inventory", "--since", "2w")).code) == (1, 0)
    async with stack.client() as client:
        await send(client, "/api/chat", {**CHAT, "model": "llama3.2:3b"})
    await seen(run, 5)
    assert (await run("inventory", "--check", "--json")).code == 1


async def test_without_data_it_says_since_when_it_looks(run: Llmctl) -> None:
    ran = await run("inventory")
    assert ran.code == 0
    assert "nothing was called in the last 7 days (it has been recording for " in in_a_line(ran)
    assert (await run("inventory", "--check")).code == 1


def test_where_nobody_ever_recorded_it_says_how_to_begin(tmp_path: Path) -> None:
    ran = llmctl("--config", str(write_config(tmp_path)), "inventory")
    assert (ran.code, "llmctl serve" in ran.out) == (0, True)


async def test_a_gateway_gives_the_same_document_and_exit_codes(stack: Stack, run: Llmctl) -> None:
    await a_day(stack)
    await seen(run, PER_DAY)

    async def through(*arguments: str) -> Ran:
        return await asyncio.to_thread(llmctl, "--gateway", stack.url, "inventory", *arguments)

    here, there = await run.json("inventory"), (await through("--json")).json
    for told in (here, there):
        told.pop("at")
        told.pop("since")
    assert here == there
    for arguments, code in ((["--check"], 1), ([], 0), (["--since", "soon"], 2), (["--since", "91d"], 2)):
        ran, other = await run("inventory", *arguments), await through(*arguments)
        assert (ran.code, other.code) == (code, code)
        assert ran.err == other.err
        assert len(ran.err.splitlines()) == (code == 2)


async def test_names_that_do_not_fit_side_by_side_are_wrapped_and_whole(stack: Stack, tmp_path: Path) -> None:
    component, model = "classification-of-documents", "deepseek-r1:70b-llama-distill-q4_K_M"
    async with stack.client() as client:
        await send(client, f"/c/{component}/v1/responses", {"model": model, "input": "x"})
    run = Llmctl(tmp_path / "memos_llm.yaml", {"COLUMNS": "80"})
    await seen(run, 1)
    shown = await run("inventory")
    assert all(len(line.rstrip()) <= 80 for line in shown.out.splitlines())
    assert f"{component}, {model}, POST /v1/responses" in in_a_line(shown)


@pytest.mark.parametrize("columns", ["80", "120"])
async def test_a_person_sees_it_all_in_80_columns(stack: Stack, tmp_path: Path, columns: str) -> None:
    await a_day(stack)
    run = Llmctl(tmp_path / "memos_llm.yaml", {"COLUMNS": columns})
    await seen(run, PER_DAY)
    shown = (await run("inventory")).out
    assert all(len(line.rstrip()) <= int(columns) for line in shown.splitlines())
    for word in ("HANGS on ollama: unmapped-model", "moves with the share", "asked wrongly", "POST /v1/responses"):
        assert word in shown
    assert "…" not in shown.replace("responses/…", "")  # nothing is cut off


async def test_nothing_of_a_request_is_kept_but_names(stack: Stack, run: Llmctl, tmp_path: Path) -> None:
    await stack.shift(1.0)
    await a_day(stack)
    await seen(run, PER_DAY)
    said = [(await run("inventory", *options)).out for options in ([], ["--json"])]
    stored = b"".join((tmp_path / f"flags.db{suffix}").read_bytes() for suffix in ("", "-wal"))
    assert b"llama3.2:3b" in stored
    assert CANARY.encode() not in stored
    assert not any(CANARY in text for text in said)


async def test_callers_are_told_apart_by_the_ids_of_their_keys(tmp_path: Path) -> None:
    keys = {name: f"sk-{CANARY}-{name}" for name in ("team-a", "team-b")}
    entries = [
        {"id": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), "scopes": ["inference"]}
        for name, key in keys.items()
    ]
    async with open_stack(tmp_path, config={"gateway": {"api_keys": entries}}) as stack, stack.client() as client:
        for name, n in (("team-a", 1), ("team-b", 2)):
            told = {"authorization": f"Bearer {keys[name]}"}
            assert [await send(client, "/api/chat", CHAT, **told) for _ in range(n)] == [200] * n
        run = Llmctl(tmp_path / "memos_llm.yaml")
        found = await seen(run, 3)
        assert {row["caller"]: row["requests"] for row in found["rows"]} == {"team-a": 1, "team-b": 2}
        shown = (await run("inventory")).out
    assert "team-a" in shown
    assert CANARY not in shown


async def test_a_model_that_is_mapped_moves_from_the_next_look_on(stack: Stack, run: Llmctl, tmp_path: Path) -> None:
    async with stack.client() as client:
        await send(client, "/api/chat", {**CHAT, "model": "llama3.2:3b"})
    (row,) = (await seen(run, 1))["rows"]
    assert (row["state"], row["why"]) == ("hangs", "unmapped-model")
    mapped = {**MODELS, "llama3.2:3b": {"vllm": "meta-llama/Llama-3.2-3B"}}
    settings(tmp_path, document(stack.ollama.url, stack.vllm.url, tmp_path, models=mapped))
    (row,) = (await run.json("inventory"))["rows"]
    assert (row["state"], row["todo"]) == ("moves", "raise the share: `llmctl shift --vllm SHARE`")


async def test_a_program_with_the_library_is_in_it_once_it_ends(stack: Stack, run: Llmctl, tmp_path: Path) -> None:
    async with memos_llm.Router.open(tmp_path / "memos_llm.yaml", probe=False) as router:
        await router.generate("x", component="reflection", model="qwen3:8b")
        await router.embed(["x"], model="nomic-embed-text")
    found = await run.json("inventory")
    assert {(row["component"], row["caller"], row["operation"]) for row in found["rows"]} == {
        ("reflection", "library", "chat"),
        ("embedding", "library", "embeddings"),
    }


async def test_it_is_there_without_a_file_too_as_long_as_the_gateway_runs(tmp_path: Path) -> None:
    async with open_stack(tmp_path, config={"store": "memory://"}) as stack, stack.client() as client:
        await send(client, "/v1/chat/completions", CHAT)

        async def ask() -> Any:
            return (await asyncio.to_thread(llmctl, "--gateway", stack.url, "inventory", "--json")).json

        async with asyncio.timeout(10):
            while not (found := await ask())["requests"]:
                await asyncio.sleep(0.02)
        assert [row["state"] for row in found["rows"]] == ["moves"]
