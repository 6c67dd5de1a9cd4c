"""`init`: what it finds, what it pairs, and that its file is a configuration."""

from pathlib import Path

import pytest
from cli_driver import DEAD, Llmctl, llmctl, working_in

from memos_llm.cli.pairs import confidence, propose
from memos_llm.emulators import OllamaEmulator, VllmEmulator


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("qwen3:8b", "Qwen/Qwen3-8B"),
        ("llama3.2:3b", "meta-llama/Llama-3.2-3B-Instruct"),
        ("gemma3:4b", "google/gemma-3-4b-it"),
        ("gpt-oss:20b", "openai/gpt-oss-20b"),
        ("mistral:7b", "mistralai/Mistral-7B-Instruct-v0.3"),
        ("qwen2.5-coder:7b-instruct-q4_K_M", "Qwen/Qwen2.5-Coder-7B-Instruct-AWQ"),
        ("qwen3:30b-a3b", "Qwen/Qwen3-30B-A3B"),
        ("mixtral:8x7b", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
        ("phi4:latest", "microsoft/phi-4"),
    ],
)
def test_names_of_one_model_are_paired(here: str, there: str) -> None:
    assert propose([here], [there]).pairs == ((here, there),)


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("qwen3:8b", "Qwen/Qwen3-14B"),
        ("qwen3:8b", "Qwen/Qwen3-Coder-8B"),
        ("qwen3:latest", "Qwen/Qwen3-8B"),
        ("deepseek-r1:8b", "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"),
        ("qwen3-embedding:0.6b", "Qwen/Qwen3-Embedding-0.6B"),
    ],
)
def test_nothing_is_guessed(here: str, there: str) -> None:
    proposal = propose([here], [there])
    assert proposal.pairs == ()
    assert (proposal.alone_here, proposal.alone_there) == ((here,), (there,))


def test_a_name_is_paired_once() -> None:
    proposal = propose(["qwen3:8b", "qwen3:8b-q8_0"], ["Qwen/Qwen3-8B"])
    assert proposal.pairs == (("qwen3:8b", "Qwen/Qwen3-8B"),)
    assert proposal.alone_here == ("qwen3:8b-q8_0",)


async def test_init_finds_pairs_writes_and_seeds(tmp_path: Path) -> None:
    path = tmp_path / "new" / "memos.yaml"
    run = Llmctl(path)
    async with (
        OllamaEmulator(port=0, models=["qwen3:8b", "gemma3:4b", "nomic-embed-text"]) as ollama,
        VllmEmulator(port=0, models=["Qwen/Qwen3-8B", "org/Other-1B"]) as vllm,
    ):
        servers = {"OLLAMA_HOST": ollama.url, "VLLM_BASE_URL": f"{vllm.url}/v1", "VLLM_API_KEY": "canary-key"}
        written = await Llmctl(path, servers).json("init")
        assert written["pairs"] == {"qwen3:8b": "Qwen/Qwen3-8B"}
        assert written["unmatched"]["vllm"] == ["org/Other-1B"]
        text = path.read_text()
        assert "gemma3:4b" in text, "what has no partner is listed"
        assert "canary-key" not in text
        checked = await run.json("config", "check")
        assert checked["providers"] == {"ollama": [ollama.url], "vllm": [vllm.url]}
        assert checked["models"]["qwen3:8b"]["vllm"] == "Qwen/Qwen3-8B"
        status = await run.json("status")
        assert status["revision"] == written["revision"] == 1, "init seeds the store"
        said = await run("init", "--force")
    assert sum(line.startswith("  llmctl") for line in said.out.splitlines()) == 3


def test_how_sure_a_pair_is_and_that_the_surest_is_taken() -> None:
    assert confidence("qwen3:8b", "Qwen/Qwen3-8B")[0] == "high"
    assert confidence("phi4:latest", "microsoft/phi-4")[0] == "medium"
    assert confidence("qwen3:8b-q8_0", "Qwen/Qwen3-8B-AWQ") == (
        "medium",
        "same family and size, other weights: q8 and awq",
    )
    assert propose(["qwen3:8b"], ["Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-8B"]).pairs == (("qwen3:8b", "Qwen/Qwen3-8B"),)


async def test_several_servers_and_embeddings_are_found_and_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memos_llm.cli import init

    async with (
        OllamaEmulator(port=0, models=["qwen3:8b", "nomic-embed-text:v1.5"]) as ollama,
        VllmEmulator(port=0, models=["Qwen/Qwen3-8B"]) as first,
        VllmEmulator(port=0, models=["nomic-ai/nomic-embed-text-v1.5"], task="embed") as second,
    ):
        ports = [int(server.url.rpartition(":")[2]) for server in (first, second, ollama)]
        monkeypatch.setattr(init, "BESIDE", (*ports, 1))
        run = Llmctl(tmp_path / "memos.yaml", {"OLLAMA_HOST": ollama.url})
        found = await run.json("init")
        checked = await run.json("config", "check")
    assert found["embeddings"] == {"nomic-embed-text:v1.5": "nomic-ai/nomic-embed-text-v1.5"}
    assert found["confidence"] == {"qwen3:8b": "high"}
    beside = {f"http://localhost:{port}" for port in ports[:2]}
    assert beside <= set(found["providers"]["vllm"]["urls"])
    assert f"http://localhost:{ports[2]}" not in found["providers"]["vllm"]["urls"], "an Ollama is no vLLM"
    assert beside <= set(checked["providers"]["vllm"])
    text = (tmp_path / "memos.yaml").read_text()
    assert "# confidence high" in text
    assert '#  "nomic-embed-text:v1.5": {vllm: "nomic-ai/nomic-embed-text-v1.5"}' in text


async def test_init_overwrites_nothing_unasked(tmp_path: Path) -> None:
    path = tmp_path / "memos.yaml"
    path.write_text("mine")
    ran = await Llmctl(path)("init")
    assert ran.code == 2
    assert "--force" in ran.err
    assert path.read_text() == "mine"


def test_init_works_when_no_server_answers(tmp_path: Path) -> None:
    with working_in(tmp_path):
        ran = llmctl("init", environ={"OLLAMA_HOST": DEAD[0], "VLLM_BASE_URL": DEAD[1]})
        assert ran.code == 0
        assert "neither server answers" in ran.out
        assert (tmp_path / "config" / "memos_llm.yaml").exists()
        assert llmctl("config", "check").code == 0


def test_init_says_when_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = llmctl("init", "--config", str(tmp_path / "file" / "memos.yaml"))
    assert ran.code == 2
    assert "cannot be written" in ran.err
