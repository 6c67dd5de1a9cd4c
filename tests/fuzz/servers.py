"""What is fuzzed: two emulators and a gateway, each a process as a user starts it, and the fuzzer's own back end."""

import asyncio
import contextlib
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fuzz.backend import Backend
from fuzz.cases import HOSTILE, MODELS, TOKEN
from fuzz.grammar import CHAT_MODEL, EMBED_MODEL
from memos_llm.cli.demo.processes import Child, Processes, tail
from memos_llm.cli.demo.stack import llmctl

VLLM_MODEL = "meta-llama/Llama-3.2-3B-Instruct"
START_S = 40.0
LIMITS = {"connect_s": 2, "ttft_s": 1.5, "answer_s": 1.5, "idle_s": 1.5, "stall_s": 8, "total_s": 6}
PATIENT = {"connect_s": 5, "ttft_s": 20, "answer_s": 20, "idle_s": 20, "stall_s": 60, "total_s": 20}
_LISTENING = re.compile(r"listening on (http://[\d.]+:\d+)")
_EMULATE = "import sys, json; from memos_llm.emulators import run; run(**json.loads(sys.argv[1]))"
_SAMPLE = re.compile(r"^memos_llm_(\w+)(?:\{.*\})? (\S+)$", re.MULTILINE)


class Failed(Exception):
    """The run itself could not go on."""


@dataclass(frozen=True)
class Body:
    """The gateway's process: sockets, other descriptors, resident memory in kB."""

    sockets: int
    files: int
    rss_kb: int


class Servers:
    """All of them; `port` is the gateway's once `start` has returned."""

    def __init__(self, folder: Path, processes: Processes, backend: Backend) -> None:
        self.folder, self.backend, self.port = folder, backend, 0
        self._processes = processes
        self._gateway: Child | None = None
        self._urls: dict[str, str] = {}
        self._http = httpx.AsyncClient(timeout=20.0, trust_env=False)

    @staticmethod
    def environment(folder: Path) -> dict[str, str]:
        """Of every child."""
        foreign = ("MEMOS_LLM_", "OLLAMA_", "VLLM_", "PYTEST_", "COV_")
        own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return own | {
            "HOME": str(folder),
            "NO_COLOR": "1",
            "MEMOS_LLM_CONFIG": str(folder / "memos_llm.yaml"),
            "MEMOS_LLM_ADMIN_TOKEN": TOKEN,
        }

    async def start(self) -> None:
        """Raises:
        Failed: one did not come up.
        """
        ollama = {"engine": "ollama", "models": [CHAT_MODEL, EMBED_MODEL], "options": {"num_parallel": 32}}
        await asyncio.gather(
            self._emulate("ollama", ollama), self._emulate("vllm", {"engine": "vllm", "models": [VLLM_MODEL]})
        )
        (self.folder / "memos_llm.yaml").write_text(json.dumps(self._document(), indent=1))
        self._gateway = await self._processes.start("gateway", llmctl("serve", "--seed", "--port", "0"))
        self.port = int((await _address(self._gateway)).rpartition(":")[2])
        await self._healthy()

    async def aclose(self) -> int | None:
        """End the gateway; its exit code."""
        await self._http.aclose()
        if self._gateway is None:
            return None
        await self._gateway.close()
        code: int | None = self._gateway._process.returncode
        return code

    @property
    def running(self) -> bool:
        return self._gateway is not None and self._gateway.running

    @property
    def log(self) -> str:
        return (self.folder / "gateway.log").read_text(errors="replace")

    def body(self) -> Body:
        """The gateway now, from /proc."""
        assert self._gateway is not None
        links, pid = [], self._gateway.pid
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(os.readlink(link))
        sockets = sum(link.startswith("socket:") for link in links)
        status = Path(f"/proc/{pid}/status").read_text()
        return Body(sockets, len(links) - sockets, int(status.partition("VmRSS:")[2].split()[0]))

    async def metrics(self) -> dict[str, float]:
        """Every metric, summed over its labels."""
        text = (await self._http.get(f"http://127.0.0.1:{self.port}/metrics")).text
        found: dict[str, float] = {}
        for name, value in _SAMPLE.findall(text):
            found[name] = found.get(name, 0.0) + float(value)
        return found

    async def in_flight(self) -> int:
        """Requests that the emulators still work on."""
        counters = [(await self._http.get(f"{url}/_emulator/counters")).json() for url in self._urls.values()]
        return sum(int(each["in_flight"]) for each in counters)

    async def get(self, path: str) -> httpx.Response:
        return await self._http.get(f"http://127.0.0.1:{self.port}{path}")

    async def post(self, path: str, body: Any) -> httpx.Response:
        return await self._http.post(f"http://127.0.0.1:{self.port}{path}", json=body)

    async def _emulate(self, name: str, given: dict[str, Any]) -> None:
        child = await self._processes.start(
            name,
            [sys.executable, "-P", "-c", _EMULATE, json.dumps({"port": 0, "ttft_s": 0, "inter_token_s": 0, **given})],
        )
        self._urls[name] = await _address(child)

    def _document(self) -> dict[str, Any]:
        """The configuration; JSON is YAML."""
        providers: dict[str, Any] = {
            "ollama": {"kind": "ollama", "base_url": self._urls["ollama"], "timeouts": PATIENT},
            "vllm": {"kind": "vllm", "base_url": self._urls["vllm"], "timeouts": PATIENT},
        }
        models: dict[str, Any] = {CHAT_MODEL: {"vllm": VLLM_MODEL}, EMBED_MODEL: {}}
        for name in HOSTILE:
            endpoints = [{"url": self.backend.urls[model], "models": [model]} for model in MODELS[name]]
            kind = "vllm" if name == "hvllm" else "ollama"
            providers[name] = {"kind": kind, "endpoints": endpoints, "timeouts": LIMITS}
            models |= {model: {name: model} for model in MODELS[name]}
        providers["hnative"]["native_chat"] = True
        return {
            "providers": providers,
            "baseline": "ollama",
            "candidate": "vllm",
            "fallback": "none",
            "models": models,
            "routing": {"share": 0.5},
            "rollback": {"enabled": False},
            "store": f"sqlite:///{self.folder / 'store.db'}",
            "gateway": {"header_timeout_s": 8, "body_timeout_s": 8, "drain_s": 2, "max_body_bytes": 1_000_000},
        }

    async def _healthy(self) -> None:
        deadline, report = time.monotonic() + START_S, ""
        while time.monotonic() < deadline:
            answer = await self.get("/health")
            report = answer.text
            if set(answer.json()["services"].values()) == {"healthy"}:
                return
            await asyncio.sleep(0.1)
        assert self._gateway is not None
        raise Failed(f"not all is healthy: {report}; {tail(self._gateway.log)}")


async def _address(child: Child) -> str:
    deadline = time.monotonic() + START_S
    while not (found := _LISTENING.search(child.said)):
        if not child.running or time.monotonic() > deadline:
            raise Failed(f"{child.name} did not start: {tail(child.log)}")
        await asyncio.sleep(0.02)
    return found[1]
