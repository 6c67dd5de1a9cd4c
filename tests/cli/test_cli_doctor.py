"""`doctor` as an engineer runs it: against servers that are well, and against each way in which they are not."""

import asyncio
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from cli_driver import DEAD, Llmctl, Ran, llmctl, working_in
from stack import VLLM_MODEL, Stack, document, open_stack, settings, until

from memos_llm.core.events import RequestRefused, RequestStarted
from memos_llm.emulators import OllamaModel, VllmEmulator

CANARY = "canary-key-1f3a"
EMBEDS, EMBEDS_THERE = "nomic-embed-text", "nomic-ai/nomic-embed-text-v1.5"
KINDS = {"ok", "warn", "fail", "skipped"}

Seen = dict[str, dict[str, str]]


def checks(ran: Ran) -> Seen:
    """By id."""
    found = ran.json["checks"]
    assert len({check["id"] for check in found}) == len(found), "an id stands for one check"
    return {check["id"]: check for check in found}


def said(check: dict[str, str]) -> str:
    return f"{check['seen']} -> {check['fix']}"


async def doctor(folder: Path, *arguments: str) -> Ran:
    return await Llmctl(folder / "memos_llm.yaml")("doctor", "--json", *arguments)


async def examined(folder: Path, stack: dict[str, Any], *arguments: str) -> Seen:
    async with open_stack(folder, **stack):
        return checks(await doctor(folder, *arguments))


# The whole


async def test_a_pair_that_is_well_passes_and_nothing_is_generated(stack: Stack, tmp_path: Path) -> None:
    ran = await doctor(tmp_path)
    assert ran.code == 0, ran
    found = checks(ran)
    assert ran.json["verdict"] in ("ok", "warn")
    assert not [check for check in found.values() if check["verdict"] == "fail"]
    assert {check["verdict"] for check in found.values()} <= KINDS
    assert all(set(check) == {"id", "group", "verdict", "seen", "fix"} for check in found.values())
    assert all(check["seen"] and "\n" not in said(check) for check in found.values())
    assert all(check["fix"] for check in found.values() if check["verdict"] == "warn"), "a warning says what to do"
    assert sum(ran.json["counts"].values()) == len(found)
    for id in (
        "config.file", "config.roles", "config.fallback", "config.timeouts", "config.exposure", "config.models",
        "store.opens", "store.writable", "store.mode", "store.schema", "store.share", "store.followers",
        "endpoint.up.ollama.0", "endpoint.up.vllm.0", "endpoint.version.vllm.0", "endpoint.key.vllm.0",
        "endpoint.models.ollama.0", "endpoint.models.vllm.0", "endpoint.loaded.ollama.0",
        "model.baseline.qwen3:8b", "model.candidate.qwen3:8b", "model.context.qwen3:8b", "model.kind.qwen3:8b",
    ):  # fmt: skip
        assert found[id]["verdict"] == "ok", found[id]
    assert found["deep"]["verdict"] == "skipped"
    asked = [*stack.ollama.requests, *stack.vllm.requests]
    assert {one.path for one in asked if one.method == "POST"} == {"/api/show"}
    assert stack.ollama.counters.loads == 0
    assert not (await stack.runtime.live.store.instances())[1:], "only the gateway is left among the instances"


async def test_the_picture_fits_80_columns_and_ends_with_what_failed(stack: Stack, tmp_path: Path) -> None:
    run = Llmctl(tmp_path / "memos_llm.yaml")
    well = await run("doctor")
    assert well.code == 0
    assert max(map(len, well.out.splitlines())) <= 80
    assert well.err == ""
    assert [line for line in well.out.splitlines() if line and not line.startswith(" ")][-1].startswith(
        ("ok: ", "WARN: ")
    )
    stack.vllm.faults.set("refuse")
    ill = await run("doctor")
    assert ill.code == 1
    assert max(map(len, ill.out.splitlines())) <= 80
    _, _, last = ill.out.partition("\nFAIL: ")
    assert "vllm http" in last
    assert "is down" in last
    assert "-> nothing listens there" in last


async def test_no_secret_is_printed_whatever_is_wrong_with_it(tmp_path: Path) -> None:
    async with open_stack(tmp_path, vllm={"api_key": "another"}) as stack:
        config = document(stack.ollama.url, stack.vllm.url, tmp_path)
        config["providers"]["vllm"]["api_key"] = CANARY
        config["gateway"] = {"api_keys": [{"id": "ops", "sha256": "a" * 64, "scopes": ["read"]}]}
        settings(tmp_path, config)
        for arguments in (["--deep"], ["--deep", "--json"], ["--gateway", stack.url, "--json"]):
            ran = await Llmctl(tmp_path / "memos_llm.yaml")("doctor", *arguments)
            assert ran.code == 1, ran
            assert CANARY not in ran.out + ran.err
            assert "a" * 64 not in ran.out + ran.err
            assert "refuses the key" in " ".join(ran.out.split())


# The configuration

CONFIGURED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"fallback": "none"}, "config.fallback", "warn", "set `fallback: ollama`"),
    ({"shadow": {"enabled": True}}, "config.pending.shadow", "warn", "nothing is mirrored"),
    ({"rollback": {"enabled": False}}, "guard.enabled", "warn", "set it to true before a shift"),
    ({"timeouts": {"ttft_s": 700}}, "config.timeouts.vllm.ttft", "warn", "total_s 600"),
    ({"timeouts": {"answer_s": 900}}, "config.timeouts.vllm.answer", "warn", "answer_s 900"),
    ({"timeouts": {"answer_s": 9, "ttft_s": 10}}, "config.timeouts.vllm.order", "warn", "make it the longer one"),
    ({"timeouts": {"connect_s": 20}}, "config.timeouts.vllm.connect", "warn", "connect_s 20"),
    ({"timeouts": {"ttft_s": 20}}, "config.timeouts.ollama.cold", "warn", "leave it out for Ollama"),
    ({"gateway": {"host": "0.0.0.0"}}, "config.exposure", "fail", "llmctl keys new"),
    ({"models": {"qwen3:8b": {}}}, "config.models", "warn", "llmctl init"),
    ({"candidate": None}, "config.roles", "warn", "set `candidate`"),
    ({"enable_shadow_mode": False}, "config.aliases", "ok", "enable_shadow_mode = shadow.enabled"),
]


@pytest.mark.parametrize(("changes", "id", "verdict", "words"), CONFIGURED, ids=lambda value: str(value)[:40])
def test_what_the_configuration_says_is_weighed(
    tmp_path: Path, changes: dict[str, Any], id: str, verdict: str, words: str
) -> None:
    settings(tmp_path, document(DEAD[0], DEAD[1], tmp_path, **changes))
    found = checks(llmctl("--config", str(tmp_path / "memos_llm.yaml"), "doctor", "--json"))
    assert found[id]["verdict"] == verdict
    assert words in said(found[id])


def test_a_disabled_candidate_is_said_and_not_asked(tmp_path: Path) -> None:
    config = document(DEAD[0], DEAD[1], tmp_path)
    config["providers"]["vllm"]["enabled"] = False
    settings(tmp_path, config)
    ran = llmctl("--config", str(tmp_path / "memos_llm.yaml"), "doctor", "--json", "--for", "0.1")
    found = checks(ran)
    assert found["config.roles"]["verdict"] == "warn"
    assert found["shift.wanted"]["verdict"] == "fail"
    assert not [id for id in found if ".vllm." in id]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("baselin: ollama", "did you mean baseline?"),
        ("providers: {a: {base_url: 'http://x', kind: vllm}}\nbaseline: a\ncandidate: a", "they must be two providers"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_configuration_is_a_verdict_with_its_place(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "wrong.yaml"
    if text is not None:
        path.write_text(text)
    ran = llmctl("--config", str(path), "doctor", "--json")
    assert ran.code == 1, ran
    (broken,) = [check for check in checks(ran).values() if check["verdict"] == "fail"]
    assert (broken["id"], broken["group"]) == ("config.file", "configuration")
    assert "wrong.yaml" in broken["seen"]
    assert words in broken["seen"]
    assert "llmctl config check" in broken["fix"]


def test_without_a_file_the_defaults_are_named_and_looked_at(tmp_path: Path) -> None:
    with working_in(tmp_path):
        ran = llmctl("doctor", "--json", environ={"OLLAMA_HOST": DEAD[0], "VLLM_BASE_URL": DEAD[1]})
    assert ran.code == 1
    found = checks(ran)
    assert found["config.file"]["verdict"] == "warn"
    assert "llmctl init" in found["config.file"]["fix"]
    assert DEAD[0] in found["endpoint.up.ollama.0"]["seen"]


def test_a_share_is_written_as_everywhere(tmp_path: Path) -> None:
    ran = llmctl("doctor", "--for", "30")
    assert ran.code == 2
    assert "0.3" in ran.err


# The store


async def test_others_rights_to_the_store_are_seen(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "flags.db"
    os.chmod(file, 0o644)
    assert checks(await doctor(tmp_path))["store.mode"]["verdict"] == "warn"
    os.chmod(file, 0o666)
    ran = await doctor(tmp_path)
    assert ran.code == 1
    assert checks(ran)["store.mode"]["verdict"] == "fail"
    assert f"{file}; chmod 700" in checks(ran)["store.mode"]["fix"]


async def test_a_new_store_is_named_and_not_made(tmp_path: Path) -> None:
    settings(tmp_path, document(DEAD[0], DEAD[1], tmp_path))
    found = checks(await doctor(tmp_path))
    assert found["store.opens"]["verdict"] == "ok"
    assert "new" in found["store.opens"]["seen"]
    assert not (tmp_path / "flags.db").exists()


STORES = [
    ("memory://", "warn", "each process has flags of its own"),
    ("sqlite:////dev/null/flags.db", "fail", "Not a directory"),
    ("sqlite:///", "fail", "names no file"),
    ("redis://127.0.0.1:1", "fail", "cannot be reached"),
    ("redis://127.0.0.1:1?db=x", "fail", "not known"),
]


@pytest.mark.parametrize(("url", "verdict", "words"), STORES)
async def test_a_store_that_is_of_no_use_is_named(tmp_path: Path, url: str, verdict: str, words: str) -> None:
    settings(tmp_path, document(DEAD[0], DEAD[1], tmp_path))
    found = checks(await doctor(tmp_path, "--store", url))
    assert found["store.opens"]["verdict"] == verdict, found["store.opens"]
    assert words in said(found["store.opens"])


async def test_a_damaged_store_is_a_failure_that_says_what_mends_it(tmp_path: Path) -> None:
    settings(tmp_path, document(DEAD[0], DEAD[1], tmp_path))
    (tmp_path / "flags.db").write_text("this is no database, whatever its name says" * 40)
    ran = await doctor(tmp_path)
    assert ran.code == 1
    assert "restore a backup" in said(checks(ran)["store.opens"])


async def test_a_store_that_nobody_follows_is_a_warning(tmp_path: Path) -> None:
    settings(tmp_path, document(DEAD[0], DEAD[1], tmp_path))
    run = Llmctl(tmp_path / "memos_llm.yaml")
    await run.json("shift", "--vllm", "0.1")
    found = checks(await doctor(tmp_path))
    assert found["store.followers"]["verdict"] == "warn"
    assert "llmctl serve" in found["store.followers"]["fix"]
    assert "10% to vllm" in found["store.share"]["seen"]
    assert "seeds a new store only" in found["store.share"]["seen"]


async def test_shares_of_another_candidate_are_a_failure(tmp_path: Path) -> None:
    config = document(DEAD[0], DEAD[1], tmp_path)
    settings(tmp_path, config)
    await Llmctl(tmp_path / "memos_llm.yaml").json("shift", "--vllm", "0.1")
    config["providers"]["newer"] = {"kind": "vllm", "base_url": DEAD[2]}
    settings(tmp_path, {**config, "candidate": "newer"})
    found = checks(await doctor(tmp_path))
    assert found["store.share"]["verdict"] == "fail"
    assert "set for vllm" in found["store.share"]["seen"]


async def test_a_store_that_lost_what_this_host_knows_is_a_failure(stack: Stack, tmp_path: Path) -> None:
    await stack.shift(0.3)
    kept = Path.home() / ".local/state/memos_llm/last_good"
    await until(lambda: any(b'"revision":2' in file.read_bytes() for file in kept.glob("*.json")))
    assert checks(await doctor(tmp_path))["store.regressed"]["verdict"] == "ok"
    with sqlite3.connect(tmp_path / "flags.db") as db:
        db.execute("DELETE FROM flags")
        db.execute("DELETE FROM history")
    db.close()
    ran = await doctor(tmp_path)
    assert ran.code == 1
    assert "llmctl store adopt" in checks(ran)["store.regressed"]["fix"]


# The shift


async def test_a_latch_is_a_warning_and_stands_against_a_shift(stack: Stack, tmp_path: Path) -> None:
    await stack.shift(0.3)
    assert "shift.latched" not in checks(await doctor(tmp_path))
    await stack.rollback()
    assert checks(await doctor(tmp_path))["shift.latched"]["verdict"] == "warn"
    ran = await doctor(tmp_path, "--for", "10%")
    assert ran.code == 1
    assert checks(ran)["shift.latched"]["verdict"] == "fail"
    assert "llmctl rearm" in checks(ran)["shift.latched"]["fix"]


async def test_a_share_is_judged_before_it_is_set(stack: Stack, tmp_path: Path) -> None:
    little = checks(await doctor(tmp_path, "--for", "10%"))
    assert little["shift.wanted"]["verdict"] == "ok"
    assert little["shift.wanted"]["fix"] == "`llmctl shift --vllm 0.1` does it"
    assert little["shift.way-back"]["verdict"] == "ok"
    much = checks(await doctor(tmp_path, "--for", "0.8"))
    assert much["shift.way-back"]["verdict"] == "warn"
    assert "keep_warm" in much["shift.way-back"]["fix"]
    stack.ollama.faults.set("refuse")
    ran = await doctor(tmp_path, "--for", "0.8")
    assert ran.code == 1
    assert "no way back" in checks(ran)["shift.way-back"]["seen"]


# The servers


@pytest.mark.parametrize(("server", "start"), [("ollama", "ollama serve"), ("vllm", "vllm serve MODEL --port ")])
async def test_a_dead_server_is_a_failure_that_says_how_to_start_it(
    stack: Stack, tmp_path: Path, server: str, start: str
) -> None:
    getattr(stack, server).faults.set("refuse")
    ran = await doctor(tmp_path)
    assert ran.code == 1
    down = checks(ran)[f"endpoint.up.{server}.0"]
    assert down["verdict"] == "fail"
    assert start in down["fix"]
    models = "baseline" if server == "ollama" else "candidate"
    assert checks(ran)[f"model.{models}.qwen3:8b"]["verdict"] == "skipped", "what is not known is not judged"


async def test_a_server_that_hangs_is_named_and_not_waited_for(stack: Stack, tmp_path: Path) -> None:
    stack.vllm.faults.set("hang:all=true")
    found = checks(await doctor(tmp_path))
    assert found["endpoint.up.vllm.0"]["verdict"] == "fail"
    assert "no answer in 3 s" in found["endpoint.up.vllm.0"]["seen"]


SERVERS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"vllm": {"api_key": "theirs"}}, "endpoint.key.vllm.0", "fail", "providers.vllm.api_key"),
    ({"vllm": {"version": "0.11.0"}}, "endpoint.version.vllm.0", "ok", "before 0.12"),
    ({"vllm": {"version": "0.33.0"}}, "endpoint.version.vllm.0", "ok", "no quirk"),
    ({"vllm": {"models": ["other/model"]}}, "model.candidate.qwen3:8b", "fail", "--served-model-name Qwen/Qwen3-8B"),
    ({"vllm": {"models": ["other/model"]}}, "model.candidate.qwen3:8b", "fail", "what it serves (other/model)"),
    ({"ollama": {"models": ["gemma3:4b"]}}, "model.baseline.qwen3:8b", "fail", "ollama pull qwen3:8b"),
    ({"ollama": {"models": []}}, "endpoint.models.ollama.0", "warn", "ollama pull"),
    ({"ollama": {"models": ["qwen3:8b", "llama3.2:3b", "phi4"]}}, "model.unconfigured", "ok", "phi4"),
    ({"vllm": {"max_model_len": 2048}}, "model.context.qwen3:8b", "warn", "--max-model-len 4096"),
    ({"vllm": {"task": "embed"}}, "model.kind.qwen3:8b", "fail", "only embeds"),
]  # fmt: skip


@pytest.mark.parametrize(("servers", "id", "verdict", "words"), SERVERS, ids=lambda value: str(value)[:50])
async def test_what_a_server_is_is_weighed(
    tmp_path: Path, servers: dict[str, Any], id: str, verdict: str, words: str
) -> None:
    found = await examined(tmp_path, servers)
    assert found[id]["verdict"] == verdict, found[id]
    assert words in said(found[id])


async def test_the_context_in_force_is_what_is_loaded(stack: Stack, tmp_path: Path) -> None:
    async with stack.client() as client:
        body = {"model": "qwen3:8b", "prompt": "x", "stream": False, "options": {"num_ctx": 65536, "num_predict": 1}}
        await client.post(f"{stack.ollama.url}/api/generate", json=body)
    found = checks(await doctor(tmp_path))
    assert "as loaded" in found["model.context.qwen3:8b"]["seen"]
    assert "qwen3:8b" in found["endpoint.loaded.ollama.0"]["seen"]


async def test_a_model_that_should_be_warm_and_is_not_is_named(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        config = document(stack.ollama.url, stack.vllm.url, tmp_path)
        config["providers"]["ollama"]["keep_warm"] = ["llama3.2:3b"]
        settings(tmp_path, config)
        assert checks(await doctor(tmp_path))["endpoint.loaded.ollama.0"]["verdict"] == "ok", "nothing is shifted yet"
        await stack.shift(0.2)
        cold = checks(await doctor(tmp_path))["endpoint.loaded.ollama.0"]
        assert cold["verdict"] == "warn"
        assert "llama3.2:3b should be kept warm" in cold["seen"]


@pytest.mark.parametrize("server", ["ollama", "vllm"])
async def test_something_else_at_its_address_is_no_server(stack: Stack, tmp_path: Path, server: str) -> None:
    getattr(stack, server).faults.set("garbage:all=true")
    ran = await doctor(tmp_path)
    assert ran.code == 1
    assert checks(ran)[f"endpoint.up.{server}.0"]["verdict"] == "fail"


WRONG = [
    ("text/html", b"<html>\x1b[31mIt works!"),
    ("application/json", b'{"data": [{"id": "Qwen/Qwen3-8B", "max_model_len": "many"}], "models": 5}'),
    ("application/json", b'{"a":' * 20_000),
]


@pytest.mark.parametrize("side", ["ollama", "vllm"])
@pytest.mark.parametrize(("kind", "body"), WRONG, ids=["html", "other-json", "deep-json"])
async def test_whatever_listens_in_a_servers_place_is_a_failure_and_no_crash(
    stack: Stack, tmp_path: Path, side: str, kind: str, body: bytes
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        urls = {"ollama": stack.ollama.url, "vllm": stack.vllm.url, side: url}
        settings(tmp_path, document(urls["ollama"], urls["vllm"], tmp_path))
        ran = await doctor(tmp_path, "--for", "0.1")
    assert ran.code == 1, ran
    found = checks(ran)
    wrong = [check for id, check in found.items() if f".{side}.0" in id and check["verdict"] == "fail"]
    assert wrong
    assert found["shift.wanted" if side == "vllm" else "shift.way-back"]["verdict"] == "fail"
    assert all("\x1b" not in said(check) for check in found.values())


async def test_a_server_with_a_queue_is_a_warning(tmp_path: Path) -> None:
    async with open_stack(tmp_path, vllm={"max_num_seqs": 1, "ttft_s": 60}) as stack, stack.client() as client:
        assert checks(await doctor(tmp_path))["endpoint.load.vllm.0"]["verdict"] == "ok"
        body = {"model": VLLM_MODEL, "messages": [{"role": "user", "content": "x"}]}
        url = f"{stack.vllm.url}/v1/chat/completions"
        waiting = [asyncio.create_task(client.post(url, json=body)) for _ in range(3)]
        await until(lambda: stack.vllm.counters.in_flight == 3)
        full = checks(await doctor(tmp_path))["endpoint.load.vllm.0"]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert full["verdict"] == "warn"
    assert "1 running, 2 waiting" in full["seen"]


async def test_two_servers_of_one_model_that_differ_are_a_warning(stack: Stack, tmp_path: Path) -> None:
    async with VllmEmulator(port=0, models=[VLLM_MODEL], version="0.32.0") as second:
        config = document(stack.ollama.url, stack.vllm.url, tmp_path)
        ends = [{"url": stack.vllm.url}, {"url": second.url}]
        config["providers"]["vllm"] = {"kind": "vllm", "endpoints": ends}
        settings(tmp_path, config)
        found = checks(await doctor(tmp_path))
    assert found[f"endpoint.replicas.vllm.{VLLM_MODEL}"]["verdict"] == "warn"
    assert "versions 0.32.0, 0.33.0" in found[f"endpoint.replicas.vllm.{VLLM_MODEL}"]["seen"]


async def test_what_the_file_says_a_server_has_is_held_against_it(stack: Stack, tmp_path: Path) -> None:
    config = document(stack.ollama.url, stack.vllm.url, tmp_path)
    config["providers"]["vllm"] = {"kind": "vllm", "endpoints": [{"url": stack.vllm.url, "models": ["no/such"]}]}
    settings(tmp_path, config)
    found = checks(await doctor(tmp_path))
    assert found["endpoint.models.vllm.0"]["verdict"] == "fail"
    assert "no/such" in found["endpoint.models.vllm.0"]["seen"]


# Embedding models


def embedding(*, alike: bool) -> dict[str, Any]:
    space = {"space": "one"} if alike else {}
    return {
        "config": {"models": {EMBEDS: {"vllm": EMBEDS_THERE}}},
        "ollama": {"models": [EMBEDS], **space},
        "vllm": {"models": [EMBEDS_THERE], "task": "embed", "dimension": 768, **space},
    }


async def test_unverified_vectors_are_a_warning_until_they_are_verified(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"text {n}" for n in range(60)))
    async with open_stack(tmp_path, **embedding(alike=True)):
        found = checks(await doctor(tmp_path))
        assert found[f"model.kind.{EMBEDS}"]["verdict"] == "ok"
        assert found[f"model.vectors.{EMBEDS}"]["verdict"] == "warn"
        assert f"llmctl embeddings verify {EMBEDS}" in found[f"model.vectors.{EMBEDS}"]["fix"]
        await Llmctl(tmp_path / "memos_llm.yaml").json("embeddings", "verify", EMBEDS, "--file", str(texts))
        assert checks(await doctor(tmp_path))[f"model.vectors.{EMBEDS}"]["verdict"] == "ok"


@pytest.mark.parametrize(("alike", "verdict"), [(True, "ok"), (False, "warn")])
async def test_deep_compares_vectors(tmp_path: Path, alike: bool, verdict: str) -> None:
    found = await examined(tmp_path, embedding(alike=alike), "--deep")
    assert found[f"deep.vectors.{EMBEDS}"]["verdict"] == verdict
    assert "embeddings verify" in found[f"deep.vectors.{EMBEDS}"]["fix"]


async def test_a_model_that_embeds_and_a_server_that_chats_do_not_go_together(tmp_path: Path) -> None:
    stack = embedding(alike=True)
    stack["vllm"] = {"models": [EMBEDS_THERE]}
    found = await examined(tmp_path, stack, "--deep")
    assert found[f"model.kind.{EMBEDS}"]["verdict"] == "fail"
    assert "--runner pooling" in found[f"model.kind.{EMBEDS}"]["fix"]
    assert found[f"deep.vectors.{EMBEDS}"]["verdict"] == "fail"


async def test_fallbacks_of_a_model_that_turns_out_to_embed_are_a_failure(tmp_path: Path) -> None:
    mine = OllamaModel("corp-vec", capabilities=("embedding",), family="bert")
    stack = {
        "config": {"models": {"corp-vec": {"vllm": "corp/vec", "fallbacks": ["other-vec"]}}},
        "ollama": {"models": [mine, "other-vec"]},
        "vllm": {"models": ["corp/vec"], "task": "embed"},
    }
    found = await examined(tmp_path, stack)
    assert found["model.kind.corp-vec"]["verdict"] == "fail"
    assert "fallbacks" in found["model.kind.corp-vec"]["fix"]


# --deep


async def test_deep_talks_to_both_sides(stack: Stack, tmp_path: Path) -> None:
    ran = await doctor(tmp_path, "--deep")
    assert ran.code == 0, ran
    found = checks(ran)
    assert "deep" not in found
    for side in ("ollama", "vllm"):
        assert found[f"deep.chat.qwen3:8b.{side}"]["verdict"] == "ok"
        assert "first content after" in found[f"deep.chat.qwen3:8b.{side}"]["seen"]
    for what in ("thinking", "tokens", "tools", "schema"):
        assert found[f"deep.{what}.qwen3:8b"]["verdict"] in ("ok", "warn"), found[f"deep.{what}.qwen3:8b"]
    assert found["deep.tools.qwen3:8b"]["verdict"] == "ok"
    through_a_gateway = stack.told.of(RequestStarted), stack.told.of(RequestRefused)
    assert not any(through_a_gateway)


async def test_deep_says_which_flags_tools_need(tmp_path: Path) -> None:
    async with open_stack(tmp_path, vllm={"enable_auto_tool_choice": False}):
        ran = await doctor(tmp_path, "--deep")
        assert ran.code == 1
        refused = checks(ran)["deep.tools.qwen3:8b"]
        assert refused["verdict"] == "fail"
        assert "vLLM refuses tools (400)" in refused["seen"]
        assert "--enable-auto-tool-choice --tool-call-parser hermes" in refused["fix"]


async def test_tools_are_not_asked_of_a_model_that_never_took_them(tmp_path: Path) -> None:
    stack = {
        "config": {"models": {"gemma3:4b": {"vllm": "google/gemma"}}},
        "ollama": {"models": ["gemma3:4b"]},
        "vllm": {"models": ["google/gemma"], "enable_auto_tool_choice": False},
    }
    found = await examined(tmp_path, stack, "--deep")
    assert found["deep.tools.gemma3:4b"]["verdict"] == "skipped"


@pytest.mark.parametrize(("split", "verdict"), [(False, "warn"), (True, "ok")])
async def test_deep_finds_thoughts_in_the_content(tmp_path: Path, split: bool, verdict: str) -> None:
    stack = {
        "config": {"models": {"qwen3:8b": {"vllm": {"name": VLLM_MODEL, "split_think_tags": split}}}},
        "vllm": {"reasoning_parser": None},
    }
    found = await examined(tmp_path, stack, "--deep")
    assert found["deep.thinking.qwen3:8b"]["verdict"] == verdict
    if not split:
        assert "--reasoning-parser" in found["deep.thinking.qwen3:8b"]["fix"]


FAULTY = [
    ("status:code=500", "500"),
    ("error_mid_stream", "an error event"),
    ("cut_mid_stream", "truncated"),
    ("queue_full", "503"),
]


@pytest.mark.parametrize(("fault", "words"), FAULTY)
async def test_deep_says_how_a_chat_failed(stack: Stack, tmp_path: Path, fault: str, words: str) -> None:
    stack.vllm.faults.set(fault)
    ran = await doctor(tmp_path, "--deep")
    assert ran.code == 1
    found = checks(ran)
    assert found["deep.chat.qwen3:8b.ollama"]["verdict"] == "ok"
    assert found["deep.chat.qwen3:8b.vllm"]["verdict"] == "fail"
    assert words in found["deep.chat.qwen3:8b.vllm"]["seen"]


async def test_deep_says_that_nothing_listens_where_nothing_does(stack: Stack, tmp_path: Path) -> None:
    stack.vllm.faults.set("refuse")
    chat = checks(await doctor(tmp_path, "--deep"))["deep.chat.qwen3:8b.vllm"]
    assert (chat["verdict"], "nothing listens there" in chat["fix"]) == ("fail", True)


async def test_deep_asks_nothing_of_a_model_that_is_not_there(tmp_path: Path) -> None:
    found = await examined(tmp_path, {"vllm": {"models": ["other/model"]}}, "--deep")
    assert found["deep.chat.qwen3:8b"]["verdict"] == "skipped"


# --gateway


async def probed(stack: Stack) -> None:
    """As the prober does, now."""
    for transport in stack.runtime.transports.values():
        for ended in await transport.probe():
            stack.runtime.bus.emit(ended)


async def test_a_gateway_is_asked_and_the_servers_from_here(stack: Stack, tmp_path: Path) -> None:
    await probed(stack)
    ran = await doctor(tmp_path, "--gateway", stack.url)
    assert ran.code == 0, ran
    found = checks(ran)
    assert "asked from here" in found["gateway.place"]["seen"]
    for id in ("gateway.health", "gateway.status", "gateway.store", "gateway.instances", "gateway.same"):
        assert found[id]["verdict"] == "ok", found[id]
    assert found["endpoint.up.vllm.0"]["verdict"] == "ok"
    assert not [id for id in found if id.startswith("store.")], "the store is the gateway's own"


async def test_a_gateway_with_other_servers_is_noticed(stack: Stack, tmp_path: Path) -> None:
    settings(tmp_path, document(stack.ollama.url, DEAD[1], tmp_path))
    found = checks(await doctor(tmp_path, "--gateway", stack.url))
    assert found["gateway.same"]["verdict"] == "warn"
    assert "vllm" in found["gateway.same"]["seen"]


async def test_what_a_gateway_sees_down_is_a_failure(stack: Stack, tmp_path: Path) -> None:
    stack.vllm.faults.set("refuse")
    await probed(stack)
    ran = await doctor(tmp_path, "--gateway", stack.url)
    assert ran.code == 1
    found = checks(ran)
    assert found["gateway.health"]["verdict"] == "warn", "the baseline can answer"
    assert found["gateway.endpoint.vllm.0"]["verdict"] == "fail"
    assert found["gateway.endpoint.ollama.0"]["verdict"] == "ok"
    stack.ollama.faults.set("refuse")
    await probed(stack)
    assert checks(await doctor(tmp_path, "--gateway", stack.url))["gateway.health"]["verdict"] == "fail"


async def test_without_a_configuration_here_the_gateway_speaks_alone(stack: Stack, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with working_in(elsewhere):
        ran = await asyncio.to_thread(llmctl, "doctor", "--json", "--gateway", stack.url)
    assert ran.code == 0, ran
    found = checks(ran)
    assert {check["group"] for check in found.values()} <= {"gateway", "configuration", "shift", "deep"}
    assert found["gateway.place"]["verdict"] == "skipped"
    assert "--config" in found["gateway.place"]["fix"]


async def test_what_was_asked_for_and_cannot_be_looked_at_is_said(stack: Stack, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with working_in(elsewhere):
        ran = await asyncio.to_thread(llmctl, "doctor", "--json", "--deep", "--for", "10%", "--gateway", stack.url)
    found = checks(ran)
    assert (found["deep"]["verdict"], found["shift.wanted"]["verdict"]) == ("skipped", "skipped")
    assert "no configuration" in found["shift.wanted"]["seen"]


async def test_a_token_that_is_refused_is_a_failure(stack: Stack, tmp_path: Path) -> None:
    run = Llmctl(tmp_path / "memos_llm.yaml", environ={"MEMOS_LLM_ADMIN_TOKEN": CANARY})
    ran = await run("doctor", "--json", "--gateway", stack.url)
    assert ran.code == 1
    assert checks(ran)["gateway.health"]["verdict"] == "ok"
    assert checks(ran)["gateway.status"]["verdict"] == "fail"
    assert "MEMOS_LLM_ADMIN_TOKEN" in checks(ran)["gateway.status"]["seen"]
    assert CANARY not in ran.out + ran.err


async def test_a_gateway_that_is_gone_fails_and_the_servers_are_looked_at_all_the_same(
    stack: Stack, tmp_path: Path
) -> None:
    ran = await doctor(tmp_path, "--gateway", DEAD[0])
    assert ran.code == 1
    assert checks(ran)["gateway.health"]["verdict"] == "fail"
    assert checks(ran)["endpoint.up.vllm.0"]["verdict"] == "ok"


def test_where_nothing_can_be_looked_at_it_is_exit_4(tmp_path: Path) -> None:
    with working_in(tmp_path):
        ran = llmctl("doctor", "--json", "--gateway", DEAD[0])
    assert ran.code == 4
    assert ran.json["error"]["exit_code"] == 4
    assert "--config" in ran.err
