"""`serve` and `emulate` as processes: ready line, graceful end, ports and addresses that cannot be had."""

import json
import re
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cli_driver import LLMCTL, clean_environment, llmctl, write_config

LISTENING = re.compile(r"listening on (http://\S+)")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@contextmanager
def running(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server process and its URL, from the line that it prints when it is ready."""
    with subprocess.Popen(
        [*LLMCTL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                said += line
                if found := LISTENING.search(line):
                    yield process, found[1]
                    return
            pytest.fail(f"never ready: {said}")
        finally:
            process.kill()
            process.communicate()


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    return process.returncode, out


def get(url: str) -> int:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return int(answer.status)


def test_serve_says_its_url_when_ready_and_ends_with_0(config: Path) -> None:
    with running("--config", str(config), "serve", "--port", "0", "--json") as (process, url):
        assert get(f"{url}/health") == 200
        code, out = ended(process)
    assert code == 0
    assert json.loads(out) == {"url": url}


def test_serve_seeds_a_new_store_only_when_told(config: Path) -> None:
    config.write_text(config.read_text() + "\nvllm_traffic_percentage: 0.25\n")
    shares = []
    for seed in ([], ["--seed"]):
        with running("--config", str(config), "serve", "--port", "0", *seed):
            shares.append(llmctl("--config", str(config), "status", "--json").json["shares"]["*"]["newbox"])
    assert shares == [0.0, 0.25]


def test_emulate_serves_the_models_it_was_told_of() -> None:
    with running("emulate", "vllm", "--port", "0", "--model", "org/My-1B", "--fault", "status:code=503") as (
        process,
        url,
    ):
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
            assert json.load(answer)["data"][0]["id"] == "org/My-1B"
        code, out = ended(process)
    assert (code, out) == (0, "")


def test_emulate_is_an_embedding_server_when_told() -> None:
    with running("emulate", "vllm", "--port", "0", "--model", "org/Embed", "--embed", "--space", "s") as (_, url):
        answer = httpx.post(f"{url}/v1/embeddings", json={"model": "org/Embed", "input": "sky"})
        assert len(answer.json()["data"][0]["embedding"]) > 1
        assert httpx.post(f"{url}/v1/chat/completions", json={"model": "org/Embed"}).status_code == 404
    assert llmctl("emulate", "ollama", "--embed").code == 2


@pytest.mark.parametrize("command", [["serve"], ["emulate", "ollama"]], ids=" ".join)
def test_a_taken_port_is_exit_4_and_named(command: list[str], config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = llmctl("--config", str(config), *command, "--port", str(port))
    assert ran.code == 4
    assert f"{port} is taken" in ran.err
    assert "--port" in ran.err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_serve_refuses_an_address_that_others_reach(config: Path, host: str) -> None:
    ran = llmctl("--config", str(config), "serve", "--host", host)
    assert ran.code == 2
    assert "--insecure" in ran.err


def test_an_unknown_fault_is_named_with_the_choices() -> None:
    ran = llmctl("emulate", "vllm", "--port", "0", "--fault", "nosuch")
    assert ran.code == 2
    assert "cut_mid_stream" in ran.err


def test_the_faults_are_listed() -> None:
    assert "cold_load" in llmctl("emulate", "ollama", "--list-faults").out
    assert "cold_load" not in llmctl("emulate", "vllm", "--list-faults").out
