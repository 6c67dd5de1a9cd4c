"""Clients that read nothing of a stream without end: the back end waits with them, and little of it is held."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from attacking import port_of, post
from hostile import HostileServer, Script, begun, event, fill, hostile
from stack import document, settings, until
from test_gateway_hostile_backend_load import MIB, OTHER, PATIENCE, VICTIM, Site, running

from memos_llm.emulators import OllamaEmulator

READERS = 8
HELD = READERS * 2 * MIB  # by all of them; of what is on its way, most is in the kernel's buffers
REQUEST = b'{"model":"%b","messages":[{"role":"user","content":"hi"}],"stream":true}' % VICTIM.encode()
FLOOD = fill(event('{"content":"%s"}' % ("word " * 200)))


@asynccontextmanager
async def open_site(folder: Path) -> AsyncIterator[tuple[Site, HostileServer]]:
    """A gateway process, and here the back end that never comes to an end."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MEMOS_LLM_")}
    async with (
        OllamaEmulator(port=0, models=[VICTIM, OTHER]) as ollama,
        hostile(lambda h: Script(begun(h, h.preamble + h.content), FLOOD)) as server,
    ):
        models = {VICTIM: {"vllm": "m"}, OTHER: {}}
        config = document(ollama.url, server.url, folder, models=models, routing={"share": 1.0})
        config["providers"]["vllm"]["timeouts"] = PATIENCE
        settings(folder, config)
        command = ("-m", "memos_llm", "--config", str(folder / "memos_llm.yaml"), "serve", "--port", "0", "--seed")
        async with running(*command, env=environment) as (process, said):
            await until(lambda: any("listening on" in line for line in said) or process.returncode is not None, 20)
            url = next(line for line in said if "listening on" in line).rpartition(" ")[2]
            async with httpx.AsyncClient(base_url=url, timeout=20.0) as client:
                yield Site(client, process.pid), server
        assert "Traceback" not in "\n".join(said)


async def reader(url: httpx.URL, path: bytes) -> socket.socket:
    """A client that has asked, and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port_of(str(url).rstrip("/"))))
    await loop.sock_sendall(client, post(path, body=REQUEST))
    return client


async def stood_still(server: HostileServer) -> int:
    """Wait until a second goes by in which it could send nothing; what it has sent by then."""
    sent = -1
    while sent != server.flooded:
        sent = server.flooded
        await asyncio.sleep(1.0)
    return sent


async def in_flight(site: Site) -> float:
    lines = (await site.client.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("memos_llm_inflight_requests{"))


@pytest.mark.slow
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/api/chat"])
async def test_who_reads_nothing_makes_the_back_end_wait_and_costs_little(path: bytes, tmp_path: Path) -> None:
    async with open_site(tmp_path) as (site, server):
        for _ in range(20):
            assert (await site.ask(OTHER)).status_code == 200
        site.forget_peak()
        before, files = site.memory("VmRSS"), site.files()
        with ExitStack() as stack:
            for _ in range(READERS):
                stack.enter_context(await reader(site.client.base_url, path))
            await until(lambda: server.served == READERS and server.flooded > 0)
            sent = await stood_still(server)
            assert server.open >= READERS
            assert await in_flight(site) == READERS
            assert (await site.ask(OTHER)).headers["x-memos-provider"] == "ollama"  # others are served meanwhile
            assert server.flooded == sent
            grown = site.memory("VmHWM") - before
            print(f"{path.decode()} | {sent / MIB:.0f} MiB sent | {grown / MIB:.1f} MiB held")  # for pytest -s
            assert grown < HELD
        await until(lambda: site.files() <= files + 1)
        await until(lambda: server.open <= 1)  # but for a look at its health
        assert await in_flight(site) == 0
        assert site.memory("VmHWM") - before < HELD
