"""`bench`: two servers of known speed, measured directly and side by side."""

import asyncio
import csv
import json
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cli_driver import LLMCTL, Llmctl, Ran, clean_environment, llmctl, write_config
from ruamel.yaml import YAML
from stack import OLLAMA_MODELS, VLLM_MODEL, document, until

from memos_llm.emulators import OllamaEmulator, VllmEmulator

MODEL = OLLAMA_MODELS[0]
TOKENS = 12
CANARY = "canary-prompt"


class Pair(NamedTuple):
    """Two servers and a command on a configuration that names them."""

    ollama: OllamaEmulator
    vllm: VllmEmulator
    run: Llmctl
    folder: Path

    async def bench(self, *arguments: str) -> Ran:
        """Short answers, two rounds of two clients unless told otherwise."""
        usual = {"--runs": "2", "--concurrency": "2", "--max-tokens": str(TOKENS)}
        given = [part for name, value in usual.items() if name not in arguments for part in (name, value)]
        return await self.run("bench", *given, *arguments)


@asynccontextmanager
async def pair(
    folder: Path,
    *,
    ollama: Mapping[str, Any] | None = None,
    vllm: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> AsyncIterator[Pair]:
    """By default both answer at once, and at length."""
    async with (
        OllamaEmulator(port=0, **{"models": OLLAMA_MODELS, "words": 40, **(ollama or {})}) as old,
        VllmEmulator(port=0, **{"models": [VLLM_MODEL], "words": 40, **(vllm or {})}) as new,
    ):
        path = folder / "memos_llm.yaml"
        YAML().dump(document(old.url, new.url, folder, **(config or {})), path)
        yield Pair(old, new, Llmctl(path), folder)


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Pair]:
    async with pair(tmp_path) as running:
        yield running


def figures(found: Any, provider: str, level: int = 0) -> Any:
    (one,) = [f for f in found["models"][0]["levels"][level]["figures"] if f["provider"] == provider]
    return one


def chats(bodies: list[Any]) -> list[Any]:
    """The bodies of streamed chats, in the order of their arrival."""
    return [body for body in bodies if body.get("stream")]


def asked(server: OllamaEmulator | VllmEmulator) -> list[Any]:
    return chats([json.loads(one.body) for one in server.requests if "chat" in one.path and one.body])


# What is measured


async def test_figures_are_those_that_the_servers_were_told_to_have(tmp_path: Path) -> None:
    """One Ollama request at a time, vLLM's all at once: sleeping takes at least as long as asked."""
    slow, quick = {"ttft_s": 0.08, "inter_token_s": 0.008}, {"ttft_s": 0.02, "inter_token_s": 0.01}
    async with pair(tmp_path, ollama=slow, vllm=quick) as servers:
        ran = await servers.bench("--concurrency", "1,4", "--runs", "6", "--json")
    assert ran.code == 0, ran
    for level, clients in enumerate((1, 4)):
        ollama, vllm = (figures(ran.json, name, level) for name in ("ollama", "vllm"))
        assert (ollama["requests"], ollama["answered"], vllm["answered"]) == (6 * clients, 6 * clients, 6 * clients)
        assert ollama["output_tokens_mean"] == vllm["output_tokens_mean"] == TOKENS
        assert ollama["tpot_p50_s"] >= 0.008 / 2  # a first token that is read late shortens it
        assert vllm["tpot_p50_s"] >= 0.01 / 2
        assert vllm["ttft_p50_s"] >= 0.02
        alone_s = 0.08 + (TOKENS - 1) * 0.008
        assert ollama["per_s"] <= TOKENS / alone_s
        assert vllm["per_s"] <= clients * TOKENS / (0.02 + (TOKENS - 1) * 0.01)
    waited_s = (0.08 + (TOKENS - 1) * 0.008) * 3 + 0.08  # the last of four in line
    assert figures(ran.json, "ollama", 1)["ttft_p95_s"] >= waited_s
    (compared,) = ran.json["models"][0]["levels"][1]["comparisons"]
    mine, other = figures(ran.json, "vllm", 1), figures(ran.json, "ollama", 1)
    assert compared["per_s"]["value"] == pytest.approx(mine["per_s"] / other["per_s"])
    assert compared["per_s"]["low"] <= compared["per_s"]["value"] <= compared["per_s"]["high"]


async def test_providers_take_turns_and_get_the_same_prompts_each_with_a_mark_of_its_own(both: Pair) -> None:
    file = both.folder / "prompts.txt"
    file.write_text("one\ntwo\n\nthree\n")
    ran = await both.bench("--runs", "3", "--prompts", str(file), "-o", str(both.folder / "o.json"))
    assert ran.code == 0, ran
    order = [turn["provider"] for turn in json.loads((both.folder / "o.json").read_text())["turns"]]
    assert order == ["ollama", "vllm"] * 3
    for server in (both.ollama, both.vllm):
        sent = [body["messages"][0]["content"] for body in asked(server)]
        assert sorted(text.split()[-1] for text in sent) == sorted(["one", "two", "three"] * 2)
        marks = [text.split()[0] for text in sent]
        assert len(set(marks)) == len(marks) == 6
    everything = [body["messages"][0]["content"].split()[0] for server in both[:2] for body in asked(server)]
    assert len(set(everything)) == 12


async def test_same_prompt_sends_them_as_they_are_and_says_what_that_means(both: Pair) -> None:
    file = both.folder / "prompts.jsonl"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    file.write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"prompt": "hello"}) + "\n")
    ran = await both.bench("--same-prompt", "--prompts", str(file), "--runs", "1")
    assert ran.code == 0
    assert "prefix cache" in ran.err
    sent = sorted((body["messages"] for body in asked(both.vllm)), key=len)
    assert sent == [[{"role": "user", "content": "hello"}], messages]


async def test_a_cold_load_is_told_and_not_counted(tmp_path: Path) -> None:
    async with pair(tmp_path, ollama={"load_s": 1.0}) as servers:
        ran = await servers.bench("--json")
        assert servers.ollama.counters.loads == 1
    assert ran.code == 0
    (load_s,) = ran.json["models"][0]["loads_s"]["ollama"]
    assert load_s > 0.5
    assert ran.json["models"][0]["loads_s"]["vllm"] == []
    assert f"ollama loaded {MODEL} first" in ran.err
    assert figures(ran.json, "ollama")["ttft_p95_s"] < load_s


async def test_several_models_are_measured_one_after_the_other(tmp_path: Path) -> None:
    config = {"models": {MODEL: {"vllm": VLLM_MODEL}, "llama3.2:3b": {"vllm": "org/Llama"}}}
    async with pair(tmp_path, vllm={"models": [VLLM_MODEL, "org/Llama"]}, config=config) as servers:
        ran = await servers.bench("--model", "llama3.2:3b", "--model", "Qwen/Qwen3-8B", "--json")
    assert ran.code == 0, ran
    assert [model["model"] for model in ran.json["models"]] == ["llama3.2:3b", MODEL]
    assert ran.json["models"][0]["names"] == {"ollama": "llama3.2:3b", "vllm": "org/Llama"}


async def test_a_model_that_is_not_there_leaves_the_others_figures(tmp_path: Path) -> None:
    config = {"models": {MODEL: {"vllm": VLLM_MODEL}, "llama3.2:3b": {"vllm": "org/Gone"}}}
    async with pair(tmp_path, config=config) as servers:
        ran = await servers.bench("--model", MODEL, "--model", "llama3.2:3b")
    assert ran.code == 2, ran
    assert "serve org/Gone" in ran.err
    assert "at 2 clients vllm gives" in ran.out


async def test_an_embedding_model_is_measured_in_embeddings_per_second(tmp_path: Path) -> None:
    old, new = "nomic-embed-text", "nomic-ai/nomic-embed-text-v1.5"
    async with pair(
        tmp_path,
        ollama={"models": [old]},
        vllm={"models": [new], "task": "embed"},
        config={"models": {"vectors": {"ollama": old, "vllm": new}}},  # known by its names there
    ) as servers:
        ran = await servers.bench("--json")
        shown = await servers.bench()
    assert ran.code == 0, ran
    found = figures(ran.json, "vllm")
    assert (found["answered"], found["ttft_p50_s"], found["tpot_p50_s"]) == (4, None, None)
    assert found["per_s"] > 0
    assert "embeddings/s" in shown.out
    assert "the embeddings per second of ollama" in shown.out


async def test_one_provider_alone_has_figures_and_no_ratio(both: Pair) -> None:
    ran = await both.bench("--providers", "vllm", "--json")
    assert ran.code == 0
    (level,) = ran.json["models"][0]["levels"]
    assert level["comparisons"] == []
    assert ran.json["summary"] == []
    assert not asked(both.ollama)


# What goes wrong


async def test_a_dead_provider_is_exit_4_and_names_its_address(both: Pair) -> None:
    both.vllm.faults.set("refuse")
    ran = await both.bench("-o", str(both.folder / "o.json"))
    assert ran.code == 4
    assert f"does vllm run at {both.vllm.url}" in ran.err
    assert not (both.folder / "o.json").exists()


async def test_a_servers_own_words_cannot_steer_the_terminal(both: Pair) -> None:
    body = json.dumps({"error": {"message": "no \x1b]0;title\x07 such\nmodel", "code": 404}}).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"{head}connection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        YAML().dump(document(both.ollama.url, url, both.folder), both.folder / "memos_llm.yaml")
        ran = await both.bench()
    assert ran.code != 0
    assert "no ]0;title such model" in ran.err
    assert "\x1b" not in ran.out + ran.err


async def test_errors_are_counted_by_kind_and_the_figures_are_of_the_rest(tmp_path: Path) -> None:
    """One runs, one waits, and the third of three at once is turned away."""
    narrow = {"max_num_seqs": 1, "max_num_queued_reqs": 1, "inter_token_s": 0.03}
    async with pair(tmp_path, vllm=narrow) as servers:
        ran = await servers.bench("--concurrency", "3", "--json")
    assert ran.code == 0, ran
    found = figures(ran.json, "vllm")
    assert (found["requests"], found["answered"], found["errors"]) == (6, 4, {"saturated 503": 2})
    assert found["per_s"] > 0
    assert "vllm at 3 clients: 2 of 6 failed (2 saturated 503); its figures are of the answered ones only" in ran.err


async def test_a_provider_that_answers_nothing_at_a_level_is_exit_1(tmp_path: Path) -> None:
    async with pair(tmp_path, vllm={"ttft_s": 1.2}) as servers:
        ran = await servers.bench("--timeout", "1", "--runs", "1", "--json")
    assert ran.code == 1, ran
    assert figures(ran.json, "vllm")["errors"] == {"timeout": 2}
    assert figures(ran.json, "ollama")["answered"] == 2
    assert ran.json["summary"] == ["at 2 clients vllm and ollama cannot be compared"]


async def test_an_answer_without_text_is_a_failure_however_quick(tmp_path: Path) -> None:
    async with pair(tmp_path) as servers, silent() as url:
        YAML().dump(document(servers.ollama.url, url, tmp_path), servers.run.config)
        ran = await servers.bench("--json")
    assert ran.code == 1, ran
    assert figures(ran.json, "vllm")["errors"] == {"empty": 4}
    assert figures(ran.json, "vllm")["per_s"] is None


@asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """A server that ends every stream at once, without a word: no engine does, and so no emulator."""
    choice = {"index": 0, "finish_reason": "stop", "delta": {}, "message": {"role": "assistant", "content": ""}}
    told = json.dumps({"id": "x", "model": VLLM_MODEL, "choices": [choice], "usage": {"completion_tokens": 1}})

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.partition("content-length:")[2].split()[0]) if "content-length:" in head else 0
        streamed = b'"stream":true' in await reader.readexactly(size)
        body = f"data: {told}\n\ndata: [DONE]\n\n" if streamed else told
        kind = "text/event-stream" if streamed else "application/json"
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_what_makes_figures_doubtful_is_said(tmp_path: Path) -> None:
    async with pair(tmp_path, vllm={"words": 3, "thinking": False}) as servers:
        servers.vllm.faults.set("no_usage")
        told = (await servers.bench()).err
        servers.vllm.faults.clear()
        differing = (await servers.bench()).err
    assert "ollama and vllm both run on this machine" in told
    assert "fewer than 20 answers at 2 clients" in told
    assert "vllm at 2 clients told no token count for 4 of 4 answers: no tokens/s there" in told
    assert "the answers at 2 clients differ in length" in differing


async def test_places_that_the_configuration_limits_are_said(tmp_path: Path) -> None:
    async with pair(tmp_path) as servers:
        path = servers.folder / "memos_llm.yaml"
        config = document(servers.ollama.url, servers.vllm.url, tmp_path)
        config["providers"]["ollama"]["max_inflight"] = 1
        YAML().dump(config, path)
        ran = await servers.bench()
    assert ran.code == 0
    assert "ollama has max_inflight 1" in ran.err


# Files


@pytest.mark.parametrize("ending", ["json", "md", "csv"])
async def test_the_file_reads_back_and_holds_no_prompt(both: Pair, ending: str) -> None:
    prompts = both.folder / "prompts.txt"
    prompts.write_text(f"{CANARY} one\n{CANARY} two and three\n")
    file = both.folder / f"o.{ending}"
    ran = await both.bench("-o", str(file), "--prompts", str(prompts))
    assert ran.code == 0
    assert f"written to {file}" in ran.err
    text = file.read_text()
    assert CANARY not in text + ran.out + ran.err
    assert sorted(path.name for path in both.folder.glob("*o.*")) == [file.name]
    if ending == "json":
        found = json.loads(text)
        samples = [sample for turn in found["turns"] for sample in turn["samples"]]
        assert len(samples) == 8
        assert {(sample["prompt"], sample["prompt_chars"]) for sample in samples} == {(0, 17), (1, 27)}
        assert found["environment"]["memos_llm"]
        assert [side["versions"] for side in found["providers"]] == [["0.33.0"], ["0.33.0"]]
    elif ending == "csv":
        rows = list(csv.DictReader(text.splitlines()))
        assert [row["provider"] for row in rows] == ["ollama", "vllm"]
        assert float(rows[1]["per_s_ratio"]) > 0
    else:
        assert "| vllm | 0 of 4 |" in text
        assert f"http://127.0.0.1:{both.vllm.port}" in text


async def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    """The first level is quick; at the second Ollama is silent until the user has enough."""
    async with pair(tmp_path, vllm={"ttft_s": 1.0}) as servers:  # long enough to tell Ollama meanwhile
        file = tmp_path / "o.json"
        async with started(servers, "--concurrency", "1,3", "--runs", "1", "-o", str(file)) as process:
            await until(lambda: len(asked(servers.vllm)) == 1, 30)
            servers.ollama.faults.set("hang")
            await until(lambda: servers.ollama.counters.faults_fired["hang"], 10)
            out, err = await interrupted(process)
    assert process.returncode == 130, err
    assert "as far as it went" in err
    assert "interrupted: these are the turns that were whole" in err
    assert "1 client" in out
    found = json.loads(file.read_text())
    assert found["interrupted"] is True
    assert [(turn["provider"], turn["concurrency"]) for turn in found["turns"]] == [("ollama", 1), ("vllm", 1)]


async def test_ctrl_c_before_anything_was_measured_writes_nothing(tmp_path: Path) -> None:
    async with pair(tmp_path, ollama={"faults": ["hang"]}) as servers:
        file = tmp_path / "o.json"
        async with started(servers, "-o", str(file)) as process:
            await until(lambda: servers.ollama.counters.faults_fired["hang"], 30)
            out, err = await interrupted(process)
    assert (process.returncode, out) == (130, "")
    assert f"nothing was measured; {file} is not written" in err
    assert not file.exists()


@asynccontextmanager
async def started(servers: Pair, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command as a process of its own, as only such a one gets a Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        *(*LLMCTL, "bench", "--config", str(servers.run.config), "--max-tokens", "5", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def interrupted(process: asyncio.subprocess.Process) -> tuple[str, str]:
    """What it says in the end."""
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 20)
    return out.decode(), err.decode()


# Usage


@pytest.fixture
def config(tmp_path: Path) -> str:
    return str(write_config(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--providers", "ollama,newbx"], "'newbx' is not configured; choices: ollama, newbox, third"),
        (["--providers", ","], "name one or more of ollama, newbox, third"),
        (["--providers", "ollama,third"], "no model is mapped on ollama and third"),
        (["--model", "nosuch"], "there is no 'nosuch'; choices: qwen3:8b"),
        (["--model", "llama3.2:3b"], "llama3.2:3b has no name on newbox"),
        (["--concurrency", "1,zwei"], "whole numbers from 1 to 1000"),
        (["--concurrency", "0"], "whole numbers from 1 to 1000"),
        (["--gateway", "http://127.0.0.1:1"], "leave it out"),
        (["-o", "figures.txt"], "must end in .json, .md, .csv"),
        (["-o", "/nowhere/at/all.md"], "cannot be written"),
        (["--prompts", "/nowhere.txt"], "--prompts /nowhere.txt cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_sent(config: str, arguments: list[str], says: str) -> None:
    ran = llmctl("--config", config, "bench", *arguments)
    assert ran.code == 2, ran
    assert says in ran.err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "canary"}\n{', "line 2: not JSON"),
        ('{"canary": 1}', "line 1: neither text nor"),
        ('{"messages": ["canary"]}', "line 1: messages: number 0 is str"),
    ],
)
def test_a_prompt_that_is_none_is_named_by_its_line_and_not_quoted(
    config: str, tmp_path: Path, content: str, says: str
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(content)
    ran = llmctl("--config", config, "bench", "--prompts", str(file))
    assert ran.code == 2
    assert says in ran.err
    assert "canary" not in ran.err


def test_a_disabled_provider_is_said_to_be_disabled(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    text = path.read_text().replace("third: {kind: vllm,", "third: {kind: vllm, enabled: false,")
    path.write_text(text)
    ran = llmctl("--config", str(path), "bench", "--providers", "ollama,third")
    assert ran.code == 2
    assert "'third' is disabled in the configuration" in ran.err
