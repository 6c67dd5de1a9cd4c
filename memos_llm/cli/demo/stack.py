"""What the demo runs: both emulators and the gateway, each a process as a user would start it, and `llmctl`.

Everything lives in one temporary folder: configuration, store, logs, and the home of the children, so that the demo
neither reads nor leaves anything of the user's. Processes are started, killed and asked through the same commands and
ports that users have.
"""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from memos_llm.cli.demo.conversations import MODEL
from memos_llm.cli.demo.failures import DemoFailed
from memos_llm.cli.demo.processes import Child, Finished, Processes, is_free, tail
from memos_llm.core.flags import Flags
from memos_llm.store import open_store

FAULT = "MEMOS_LLM_DEMO_FAULT"  # a fault for both emulators: proves that the verdict can be no
DEFAULT_PORT = 8200
VLLM_MODEL = "Qwen/Qwen3-8B"
EMULATED = {"ollama": (MODEL, 0.02), "vllm": (VLLM_MODEL, 0.05)}  # model, seconds to the first token
STALL_S = 8.0  # below the 15 s that the gateway gives a vLLM stream to begin
START_LIMIT_S, COMMAND_LIMIT_S = 30.0, 30.0
LOOK_S = 0.05
HEALTHY = "healthy"
_LISTENING = re.compile(r"listening on (http://[\d.:]+)")

CONFIG = """\
# Made by `llmctl demo`.
providers:
  ollama: {{kind: ollama, base_url: "{ollama}"}}
  vllm: {{kind: vllm, base_url: "{vllm}"}}
baseline: ollama
candidate: vllm
fallback: ollama
models:
  {model}: {{vllm: {{name: {vllm_model}, thinking: enable_thinking}}}}
routing: {{share: 0.0}}
rollback: {{enabled: false}}  # the demo kills vLLM to show the diversion, which comes and goes without a rollback
store: sqlite:///{store}
"""


class Stack:
    """The three servers and the command line; the addresses are known once `start` has returned.

    Args:
        folder: an empty folder for everything. processes: starts and ends the children.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder, self.config = folder, folder / "memos_llm.yaml"
        self.gateway = self.ollama = self.vllm = ""
        self._processes = processes
        self._vllm: Child | None = None
        self._store_url = f"sqlite:///{folder / 'store' / 'memos_llm.db'}"
        self._http = httpx.AsyncClient(timeout=5.0, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    @staticmethod
    def environment(folder: Path) -> dict[str, str]:
        """Of every child: this process's, without settings of the user's own installation."""
        foreign = ("MEMOS_LLM_", "OLLAMA_", "VLLM_")
        own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return own | {"HOME": str(folder), "MEMOS_LLM_CONFIG": str(folder / "memos_llm.yaml"), "NO_COLOR": "1"}

    async def start(self) -> list[Child]:
        """Start all and wait until the gateway finds both back ends healthy; the children that are to stay.

        Raises:
            DemoFailed: one did not come up.
        """
        ollama, vllm = await self._emulate("ollama"), await self._emulate("vllm")
        self.ollama, self.vllm, self._vllm = await _address(ollama), await _address(vllm), vllm
        self._write_config()
        gateway = await self._start_gateway()
        await self._both_healthy(gateway)
        return [ollama, gateway]

    async def restart_vllm(self) -> None:
        """Start vLLM again, where it was; returns once it listens."""
        self._vllm = await self._emulate("vllm", self.vllm_port)
        await _address(self._vllm)

    @property
    def vllm_pid(self) -> int:
        """Of the process that was started last."""
        assert self._vllm is not None
        return self._vllm.pid

    @property
    def vllm_port(self) -> int:
        return int(self.vllm.rpartition(":")[2])

    async def stall_vllm(self) -> None:
        """From now on vLLM accepts requests and says nothing for a long while, as an overloaded one does."""
        answer = await self._http.post(f"{self.vllm}/_emulator/timing", json={"ttft_s": STALL_S})
        answer.raise_for_status()

    def kill_vllm(self) -> None:
        assert self._vllm is not None
        self._vllm.kill()

    async def llmctl(self, *arguments: str) -> Finished:
        """Run the command line, exactly as it is shown."""
        return await self._processes.run(shown(*arguments), llmctl(*arguments), COMMAND_LIMIT_S)

    async def llmctl_json(self, *arguments: str) -> tuple[dict[str, Any], float]:
        """Run it with --json; the document and how long it took."""
        finished = await self.llmctl("--json", *arguments)
        try:
            document: dict[str, Any] = json.loads(finished.out)
        except ValueError:
            raise DemoFailed(f"`{shown(*arguments)}` printed no JSON: {finished.out[:200]!r}") from None
        return document, finished.duration_s

    async def flags(self) -> Flags:
        """The flags in the store: the salt tells where every conversation belongs."""
        store = open_store(self._store_url)
        try:
            flags = await store.load()
        finally:
            await store.aclose()
        if flags is None:
            raise DemoFailed(f"the gateway has not made its store: {tail(self.folder / 'gateway.log')}")
        return flags

    async def get(self, path: str) -> httpx.Response:
        """A page of the gateway."""
        return await self._http.get(self.gateway + path)

    def _write_config(self) -> None:
        text = CONFIG.format(
            ollama=self.ollama,
            vllm=self.vllm,
            model=MODEL,
            vllm_model=VLLM_MODEL,
            store=self._store_url.removeprefix("sqlite:///"),
        )
        self.config.write_text(text)

    async def _emulate(self, engine: str, port: int = 0) -> Child:
        model, ttft_s = EMULATED[engine]
        options = ["--port", str(port), "--model", model, "--ttft", f"{ttft_s:g}"]
        fault = os.environ.get(FAULT)
        options += ["--fault", fault] if fault else []
        return await self._processes.start(engine, llmctl("emulate", engine, *options))

    async def _start_gateway(self) -> Child:
        """On the default port if it can be had, even if somebody takes it at this moment; else on any."""
        for port in (DEFAULT_PORT, 0) if is_free(DEFAULT_PORT) else (0,):
            child = await self._processes.start("gateway", llmctl("serve", "--seed", "--port", str(port)))
            child.expected_to_end = True
            try:
                self.gateway = await _address(child)
            except DemoFailed:
                if port == 0:
                    raise
            else:
                child.expected_to_end = False
                return child
        raise AssertionError  # port 0 returns or raises

    async def _both_healthy(self, gateway: Child) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        services: Mapping[str, str] = {}
        while not {services.get("ollama"), services.get("vllm")} <= {HEALTHY}:
            if time.monotonic() > deadline:
                raise DemoFailed(f"the gateway does not find both back ends: {services}; {tail(gateway.log)}")
            services = (await self.get("/health")).json()["services"]
            await pause()


def llmctl(*arguments: str) -> list[str]:
    """The command line of this installation."""
    return [sys.executable, "-P", "-m", "memos_llm", *arguments]


async def _address(child: Child) -> str:
    """Where a server listens, once it says so.

    Raises:
        DemoFailed: it ended, or never said so.
    """
    deadline = time.monotonic() + START_LIMIT_S
    while not (found := _LISTENING.search(child.said)):
        if not child.running:
            raise DemoFailed(f"{child.name} did not start: {tail(child.log)}")
        if time.monotonic() > deadline:
            raise DemoFailed(f"{child.name} does not listen after {START_LIMIT_S:g} s: {tail(child.log)}")
        await pause()
    return found[1]


def shown(*arguments: str) -> str:
    """As a user types it."""
    return " ".join(("llmctl", *arguments))


async def pause() -> None:
    """Between two looks at something that is awaited."""
    await asyncio.sleep(LOOK_S)
