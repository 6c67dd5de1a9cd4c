"""`llmctl serve --workers N`: processes that share an address, a store and their metrics, and outlive each other."""

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from stack import document, settings, until
from test_gateway_process import (
    Server,
    Site,
    ask,
    check_said,
    environment,
    instances,
    messages,
    open_site,
    running,
    spawn,
)

from memos_llm.config import parse
from memos_llm.gateway.workers import LONGEST_PAUSE_S, divide, pause_s

OK = re.compile(r'^memos_llm_requests_total\{.*outcome="ok".*\} (\d+)\.0$', re.MULTILINE)


@asynccontextmanager
async def fleet(site: Site, workers: int = 3) -> AsyncIterator[Server]:
    async with running("--config", str(site.path), "serve", "--port", "0", "--workers", str(workers)) as server:
        yield server
    check_said(server)


def pids(server: Server) -> set[int]:
    """The living workers."""
    return {int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()}


async def counted(server: Server) -> int:
    """The good requests, as whichever worker is asked tells it."""
    async with httpx.AsyncClient(timeout=20) as client:  # another connection each time
        exposed = (await client.get(f"{server.url}/metrics")).text
    return sum(int(value) for value in OK.findall(exposed))


async def every_worker_counts(server: Server, expected: int) -> None:
    async with asyncio.timeout(10):
        while await counted(server) != expected:  # what is answered is counted a moment later
            await asyncio.sleep(0.02)
    assert {await counted(server) for _ in range(12)} == {expected}


class Client:
    """An application that asks again and again on a connection of its own, and opens another when it is cut."""

    def __init__(self, server: Server) -> None:
        self.good = self.cut = self.good_since_cut = 0
        self._server = server

    async def run(self, until_good: int) -> None:
        while self.good < until_good or (self.cut and self.good_since_cut < 3):
            async with httpx.AsyncClient(timeout=20) as client:
                try:
                    while self.good < until_good or self.good_since_cut < 3:
                        await ask(client, self._server.url)
                        self.good += 1
                        self.good_since_cut += 1
                except httpx.TransportError:
                    self.cut += 1
                    self.good_since_cut = 0


async def test_a_killed_worker_is_replaced_while_the_others_serve_and_nothing_counted_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    monkeypatch.setenv("TMPDIR", str(metrics))
    async with open_site(tmp_path) as site, fleet(site) as server:
        assert len(list(metrics.iterdir())) == 1
        assert len(await instances(site)) == 3
        before = pids(server)
        assert len(before) == 3
        first = [Client(server) for _ in range(6)]
        await asyncio.gather(*(client.run(5) for client in first))
        assert [(client.good, client.cut) for client in first] == [(5, 0)] * 6
        await every_worker_counts(server, 30)

        clients = [Client(server) for _ in range(6)]
        running = [asyncio.create_task(client.run(20)) for client in clients]
        await until(lambda: sum(client.good for client in clients) >= 20, 20)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        await until(lambda: len(pids(server)) == 3 and victim not in pids(server), 10)
        await asyncio.gather(*running)
        assert all(client.cut <= 1 for client in clients)
        good = 30 + sum(client.good for client in clients)
        (died,) = server.lines("worker-died")
        assert died["exit_code"] == -signal.SIGKILL
        await until(lambda: len({line["worker"] for line in server.lines("provider")}) == 3, 10)
        total = await counted(server)
        assert good <= total <= good + sum(client.cut for client in clients)  # answered, and then cut off
        await every_worker_counts(server, total)
        async with httpx.AsyncClient() as client:
            exposed = (await client.get(f"{server.url}/metrics")).text
        assert 'memos_llm_inflight_requests{provider="ollama"} 0.0' in exposed  # the dead one holds nothing
        assert "pid=" not in exposed

        server.process.send_signal(signal.SIGTERM)
        assert await server.ended(20) == 0
        assert list(metrics.iterdir()) == []
        assert {line["worker"] for line in server.lines("request")} <= {"1", "2", "3"}


async def test_a_key_that_was_taken_away_is_unknown_to_a_killed_workers_successor_too(tmp_path: Path) -> None:
    entries = [
        {"id": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "scopes": ["inference"]}
        for name in ("left", "gone")
    ]
    async with open_site(tmp_path, gateway={"api_keys": entries}) as site, fleet(site, 2) as server:

        async def asks(key: str) -> int:
            async with httpx.AsyncClient(timeout=20, headers={"x-api-key": key}) as client:
                return (await client.get(f"{server.url}/v1/models")).status_code

        assert await asks("gone") == 200
        changed = document(site.ollama.url, site.vllm.url, tmp_path, gateway={"api_keys": entries[:1]})
        settings(tmp_path, changed)
        await until(lambda: len({line["worker"] for line in server.lines("config")}) == 2, 10)
        before = pids(server)
        for victim in before:
            os.kill(victim, signal.SIGKILL)
        await until(lambda: len(pids(server)) == 2 and not pids(server) & before, 10)
        assert {await asks("gone") for _ in range(30)} == {401}  # the first answers of the successors
        assert await asks("left") == 200


async def test_signals_reach_every_worker_and_streams_are_finished(tmp_path: Path) -> None:
    async with open_site(tmp_path, inter_token_s=0.02) as site, fleet(site, workers=2) as server:
        config = document(site.ollama.url, site.vllm.url, tmp_path)
        settings(tmp_path, {**config, "routing": {"components": {"default": "vllm"}}})
        server.process.send_signal(signal.SIGHUP)
        await until(lambda: {line["worker"] for line in server.lines("config")} == {"1", "2"}, 10)
        async with httpx.AsyncClient(timeout=20) as client:
            for _ in range(4):
                assert (await ask(client, server.url)).headers["x-memos-provider"] == "vllm"
            body = {"model": "qwen3:8b", "stream": True, "messages": messages(50)}
            async with client.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
                lines = response.aiter_lines()
                await anext(lines)
                server.process.send_signal(signal.SIGINT)
                rest = [line async for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert await server.ended(20) == 0


async def test_workers_that_lose_their_parent_drain_and_end(tmp_path: Path) -> None:
    async with open_site(tmp_path) as site, fleet(site, workers=2) as server:
        workers = pids(server)
        server.process.kill()
        await until(lambda: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in workers), 20)
        assert await instances(site) == []  # they have deregistered


FIRST_MOMENT = """
import os, signal, socket, time
from memos_llm.gateway import workers

be = workers._Supervisor._be

def struck(self, *arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    be(self, *arguments)

workers._Supervisor._be = struck
try:
    workers.supervise(lambda worker: time.sleep(60), 1, socket.socket(), drain_s=1, ready=lambda: None)
except RuntimeError as error:
    print(error)
"""


async def test_a_signal_in_the_first_moment_of_a_worker_is_that_workers_own() -> None:
    command = (sys.executable, "-c", FIRST_MOMENT)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(20):
        told, faults = await process.communicate()
    assert (told.decode(), faults) == (f"worker 1 ended with -{signal.SIGTERM:d} before it served\n", b"")


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_closed_terminal_ends_it_though_its_signal_is_the_one_that_reloads(
    tmp_path: Path, workers: str
) -> None:
    ours, terminal = os.openpty()
    async with open_site(tmp_path) as site:
        command = (sys.executable, "-m", "memos_llm", "--config", str(site.path), "serve", "--port", "0")
        process = await asyncio.create_subprocess_exec(
            *command, "--workers", workers, stdin=terminal, stdout=DEVNULL, stderr=PIPE, env=environment()
        )
        server = Server(process)
        os.close(terminal)
        try:
            await server.ready()
            server.process.send_signal(signal.SIGHUP)
            await until(lambda: len(server.lines("config")) == int(workers), 10)
            os.close(ours)
            server.process.send_signal(signal.SIGHUP)
            assert await server.ended(20) == 0
        finally:
            await server.kill()


async def refused(site: Site, *arguments: str) -> tuple[int | None, list[str]]:
    """The exit code of a gateway that cannot start, and what it said."""
    process = await spawn("--config", str(site.path), "serve", *arguments)
    try:
        async with asyncio.timeout(20):
            _, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, err.decode().splitlines()


@pytest.mark.parametrize("workers", ["1", "3"])
async def test_what_only_a_worker_finds_wrong_ends_them_all_and_is_said_once(tmp_path: Path, workers: str) -> None:
    async with open_site(tmp_path) as site:
        settings(tmp_path, {**document(site.ollama.url, site.vllm.url, tmp_path), "store": f"sqlite:////{tmp_path}/"})
        code, said = await refused(site, "--port", "0", "--workers", workers)
    assert code == 2
    assert len(said) == 1
    assert "names no file" in said[0]


async def test_a_port_that_is_taken_is_said_once(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        async with open_site(tmp_path) as site:
            code, said = await refused(site, "--port", str(other.getsockname()[1]), "--workers", "2")
    assert code == 4
    assert len(said) == 1
    assert "is taken" in said[0]


async def test_a_store_that_each_process_has_for_itself_is_refused_for_several(tmp_path: Path) -> None:
    async with open_site(tmp_path, store="memory://") as site:
        code, said = await refused(site, "--port", "0", "--workers", "2")
    assert code == 2
    assert len(said) == 1
    assert "memory://" in said[0]


def test_what_is_limited_per_gateway_is_shared_out() -> None:
    keys = [
        {"id": name, "sha256": name * 64, "scopes": ["inference"], "rate_per_minute": rate}
        for name, rate in (("a", 90), ("b", 2), ("c", None))
    ]
    whole = parse(json.dumps({"gateway": {"max_concurrency": 100, "api_keys": keys}}).encode(), {})  # JSON is YAML
    part = divide(whole, 3).gateway
    assert part.max_concurrency == 33
    assert [entry.rate_per_minute for entry in part.api_keys] == [30, 1, None]
    assert divide(whole, 200).gateway.max_concurrency == 1
    assert divide(whole, 1) is whole


def test_the_first_successor_comes_at_once_and_the_next_ones_ever_later() -> None:
    pauses = [pause_s(deaths) for deaths in range(1, 40)]
    assert pauses[0] == 0
    assert all(one <= other for one, other in pairwise(pauses))
    assert pauses[1] > 0
    assert pauses[-1] == LONGEST_PAUSE_S
