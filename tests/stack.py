"""The product as a user runs it, in this process: two emulated back ends and a real gateway on free loopback ports."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from ruamel.yaml import YAML

from memos_llm.config import Settings, load
from memos_llm.core.commands import Actor, Rearm, Rollback, Shift
from memos_llm.core.events import AttemptEnded, RequestEnded
from memos_llm.core.flags import GLOBAL, PPM, Flags
from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.gateway import server
from memos_llm.gateway.build import build_app
from memos_llm.gateway.health import HealthBoard
from memos_llm.testing import Recorder
from memos_llm.wiring import Runtime, open_runtime

OLLAMA_MODELS = ["qwen3:8b", "llama3.2:3b"]
VLLM_MODEL = "Qwen/Qwen3-8B"
ME = Actor("test")

LEAVES_SOCKETS = pytest.mark.usefixtures("swept")
"""For client libraries that keep connections for themselves and offer no way to close them."""


def document(
    ollama: str, vllm: str, folder: Path, *, patience: Mapping[str, float] | None = None, **changes: Any
) -> dict[str, Any]:
    """A configuration for a pair of back ends; `changes` replace top-level keys.

    patience: time-outs with the candidate alone, so that a slow machine makes no baseline fail.
    """
    return {
        "providers": {
            "ollama": {"kind": "ollama", "base_url": ollama},
            "vllm": {"kind": "vllm", "base_url": vllm, "timeouts": dict(patience or {})},
        },
        "baseline": "ollama",
        "candidate": "vllm",
        "fallback": "ollama",
        "models": {
            "qwen3:8b": {"vllm": {"name": VLLM_MODEL, "thinking": "enable_thinking", "split_think_tags": True}},
            "llama3.2:3b": {},
        },
        "store": f"sqlite:////{folder}/flags.db",
        **changes,
    }


def settings(folder: Path, config: Mapping[str, Any]) -> Settings:
    path = folder / "memos_llm.yaml"
    YAML().dump(dict(config), path)
    return load(path, environ={})


class Stack:
    """Two emulators, a gateway, and everything it told."""

    def __init__(self, ollama: OllamaEmulator, vllm: VllmEmulator, runtime: Runtime, told: Recorder, url: str) -> None:
        self.ollama, self.vllm, self.runtime, self.told, self.url = ollama, vllm, runtime, told, url

    async def shift(self, share: float, scope: str = GLOBAL) -> Flags:
        return await self.runtime.live.submit(Shift(provider="vllm", share_ppm=round(share * PPM), scope=scope), ME)

    async def rollback(self) -> Flags:
        return await self.runtime.live.submit(Rollback(provider="vllm", incident="inc-test"), ME)

    async def rearm(self) -> Flags:
        return await self.runtime.live.submit(Rearm(provider="vllm"), ME)

    async def ended(self, count: int = 1) -> list[RequestEnded]:
        """The ends told so far, at least `count` of them."""
        await until(lambda: len(self.told.of(RequestEnded)) >= count)
        return self.told.of(RequestEnded)

    def attempts(self) -> list[tuple[str, str]]:
        return [(e.provider, e.outcome.kind.value) for e in self.told.of(AttemptEnded)]

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=20.0, **options)

    async def metrics(self) -> str:
        async with self.client() as client:
            return (await client.get("/metrics")).text


async def until(condition: Any, timeout_s: float = 5.0) -> None:
    """Wait for a condition, looking often.

    Raises:
        TimeoutError: it did not come true.
    """
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def open_stack(
    folder: Path, *, config: Mapping[str, Any] | None = None, ollama: Any = None, vllm: Any = None, probe: bool = False
) -> AsyncIterator[Stack]:
    """Everything up. `ollama`, `vllm`: further arguments of the emulators; `probe`: with the prober running."""
    async with (
        OllamaEmulator(port=0, **{"models": OLLAMA_MODELS, **(ollama or {})}) as old,
        VllmEmulator(port=0, **{"models": [VLLM_MODEL], **(vllm or {})}) as new,
        open_gateway(settings(folder, document(old.url, new.url, folder, **(config or {}))), probe=probe) as gateway,
    ):
        runtime, told, url = gateway
        yield Stack(old, new, runtime, told, url)


@asynccontextmanager
async def open_gateway(config: Settings, *, probe: bool = False) -> AsyncIterator[tuple[Runtime, Recorder, str]]:
    """A gateway alone: its runtime, what it told, its URL."""
    runtime = await open_runtime(config, kind="gateway", seed=True)
    told = Recorder()
    runtime.bus.subscribe("recorder", told)
    health = HealthBoard(runtime.transports, runtime.clock, draining=lambda: False)
    runtime.bus.subscribe("health", health.on_event)
    if probe:
        runtime.start_probing()
    listener = server.bind("127.0.0.1", 0)
    uvicorn_server = server.build(build_app(runtime, health), drain_s=1)
    serving = asyncio.create_task(uvicorn_server.serve(sockets=[listener]))
    try:
        await until(lambda: uvicorn_server.started)
        yield runtime, told, f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        uvicorn_server.should_exit = True
        await serving
        await runtime.aclose()
