"""`--gateway`: the same commands, answers and exit codes through a running gateway's admin API."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from cli_driver import DEAD, Ran, llmctl
from stack import Stack, open_stack, until

STATE = Path(".local/state/memos_llm")
SEEN_DIFFERENTLY = ("at", "seen_by", "providers", "config", "guard", "windows")  # a guard knows of probes, too


def token() -> str:
    return (Path.home() / STATE / "admin_token").read_text().strip()


class Both:
    """One command, on the store and through the gateway."""

    def __init__(self, stack: Stack, config: Path) -> None:
        self.places = (("--config", str(config)), ("--gateway", stack.url))

    async def __call__(self, *arguments: str) -> tuple[Ran, Ran]:
        store, gateway = [await asyncio.to_thread(llmctl, *place, *arguments) for place in self.places]
        return store, gateway


@pytest.fixture
def both(stack: Stack, tmp_path: Path) -> Both:
    return Both(stack, tmp_path / "memos_llm.yaml")


def plain(document: dict[str, Any]) -> dict[str, Any]:
    """Without what two looks at one thing see differently: times, revisions of two commands, made-up ids."""
    document = {name: value for name, value in document.items() if name not in SEEN_DIFFERENTLY}
    for one in document.get("instances", ()):
        one.pop("age_s")
    for name in ("revision", "latched"):
        if not isinstance(document.get(name), list):
            document.pop(name, None)
    return document


COMMANDS = [
    ["status"],
    ["history"],
    ["incidents"],
    ["explain", "--session", "conv-42", "--model", "qwen3:8b"],
    ["explain", "--session", "conv-42", "--model", "llama3.2:3b", "--component", "synthesis"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_what_is_read_is_the_same_document(both: Both, stack: Stack, command: list[str]) -> None:
    await stack.shift(0.3)
    await stack.rollback()
    await stack.rearm()
    await stack.shift(0.4)
    store, gateway = await both(*command, "--json")
    assert (store.code, gateway.code) == (0, 0), gateway
    assert plain(store.json) == plain(gateway.json)


async def test_what_is_changed_is_the_same_document(both: Both) -> None:
    for command in (
        ["shift", "--vllm", "30%", "--reason", "r"],
        ["shift", "--vllm", "0.6", "--component", "synthesis"],
        ["shift", "--vllm", "0.2", "--component", "synthsis"],
        ["rollback", "--component", "synthesis"],
    ):
        store, gateway = await both(*command, "--json")
        assert (store.code, gateway.code) == (0, 0), gateway
        assert plain(store.json) | {"share_before": 0} == plain(gateway.json) | {"share_before": 0}
        assert store.err == gateway.err


REFUSED = [
    (["shift", "--vllm", "30"], 2),
    (["shift", "--vllm", "nan"], 2),
    (["shift", "--ollama", "0.3"], 2),
    (["shift", "--nosuch", "0.3"], 2),
    (["shift"], 2),
    (["shift", "--vllm", "0.3", "--new-index"], 2),
    (["shift", "--vllm", "1", "--component", "embedding"], 3),
    (["rearm"], 3),
    (["incidents", "inc-nosuch"], 2),
    (["explain", "--component", "a/b"], 2),
]


@pytest.mark.parametrize(("command", "code"), REFUSED, ids=str)
async def test_what_is_refused_ends_the_same(both: Both, command: list[str], code: int) -> None:
    for ran in await both(*command):
        assert ran.code == code, ran
        assert ran.out == ""
        assert len(ran.err.splitlines()) == 1


async def test_a_rollback_through_the_gateway_is_in_the_history_with_the_token(both: Both, stack: Stack) -> None:
    await stack.shift(1.0)
    _, ran = await both("rollback", "--reason", "bad answers")
    assert ran.code == 0
    assert "latched" in ran.out
    (entry,) = await stack.runtime.live.store.history(1)
    assert (entry.actor, entry.command, entry.reason) == ("admin-token", "rollback", "bad answers")
    await until(lambda: stack.runtime.live.current().share_ppm("x") == 0)


async def test_a_rearm_through_the_gateway_needs_a_healthy_candidate(stack: Stack) -> None:
    async def run(*arguments: str) -> Ran:
        return await asyncio.to_thread(llmctl, "--gateway", stack.url, *arguments)

    assert (await run("rollback")).code == 0
    stack.vllm.faults.set("refuse")
    refused = await run("rearm", "--force", "--reason", "I know better")
    assert refused.code == 3
    assert "not healthy" in refused.err
    stack.vllm.faults.clear()
    assert "is lifted" in (await run("rearm")).out
    assert not (await run("status", "--json")).json["latched"]


async def test_the_gateway_is_named_by_the_environment_and_a_store_on_the_command_line_wins(
    both: Both, stack: Stack, tmp_path: Path
) -> None:
    async def status(*arguments: str) -> Ran:
        environ = {"MEMOS_LLM_GATEWAY_URL": stack.url, "MEMOS_LLM_ADMIN_TOKEN": token()}
        return await asyncio.to_thread(llmctl, *arguments, "status", "--json", environ=environ)

    assert (await status()).json["seen_by"] == "gateway"
    assert (await status("--store", f"sqlite:///{tmp_path}/other.db")).json["seen_by"] == "cli"
    both_named = await status("--store", f"sqlite:///{tmp_path}/other.db", "--gateway", stack.url)
    assert both_named.code == 2


async def test_a_wrong_token_names_file_and_variable(stack: Stack) -> None:
    for environ in ({"MEMOS_LLM_ADMIN_TOKEN": "x" * 20}, {"HOME": "/nonexistent"}):
        ran = await asyncio.to_thread(llmctl, "--gateway", stack.url, "status", environ=environ)
        assert ran.code == 3, ran
        assert "MEMOS_LLM_ADMIN_TOKEN" in ran.err
        assert "admin_token" in ran.err
        assert "x" * 20 not in ran.err


@pytest.mark.parametrize("url", [DEAD[0], "http://127.0.0.1:1/v1"])
def test_a_gateway_that_does_not_answer_is_exit_4(url: str) -> None:
    ran = llmctl("--gateway", url, "status", "--json")
    assert ran.code == 4
    assert ran.json["error"]["exit_code"] == 4
    assert "llmctl serve" in ran.err


@pytest.mark.parametrize("url", ["ftp://x", "http://", "::"])
def test_a_wrong_address_is_exit_2(url: str) -> None:
    assert llmctl("--gateway", url, "status").code == 2


async def test_another_server_there_is_said(stack: Stack) -> None:
    ran = await asyncio.to_thread(llmctl, "--gateway", stack.ollama.url, "status")
    assert ran.code == 4
    assert "not as a gateway does" in ran.err
    assert len(ran.err.splitlines()) == 1


async def test_the_picture_of_a_gateway_shows_breakers_and_bars(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        await stack.shift(0.3)
        stack.vllm.faults.set("refuse")
        for transport in stack.runtime.transports.values():
            for ended in await transport.probe():
                stack.runtime.bus.emit(ended)
        ran = await asyncio.to_thread(llmctl, "--gateway", stack.url, "status")
        assert "DOWN" in ran.out
        assert "vllm can be sent nothing now" in ran.out
        assert "up 0." in ran.out
        assert "██████░░░░░░░░░░░░░░  30%" in ran.out
        assert "gateway-" in ran.out
        assert max(map(len, ran.out.splitlines()[:3])) <= 80
