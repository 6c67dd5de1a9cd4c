"""Four gateways as users start them (`llmctl serve`, four times, on one store), in front of emulators in this process.

Nothing is asked of their insides: what is known of them is what they answer, their log lines with their time stamps,
and what `llmctl` would show of the store.
"""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from fleet.traffic import Asks
from memos_llm.cli.demo.processes import Child, Processes, tail
from memos_llm.cli.demo.stack import llmctl
from memos_llm.emulators import OllamaEmulator, VllmEmulator

GATEWAYS = 4
START_S = 40.0
LOOK_S = 0.02
QWEN, LLAMA = "qwen3:8b", "llama3.2:3b"
VLLM_NAMES = {QWEN: "Qwen/Qwen3-8B", LLAMA: "meta-llama/Llama-3.2-3B-Instruct"}
ASKS = (
    Asks("synthesis", QWEN),
    Asks("analysis", QWEN),
    Asks("agent", QWEN, tools=True),
    Asks("classification", LLAMA),
)
TOKEN = "token-of-the-fleet-test"
_LISTENING = re.compile(r"listening on (http://[\d.]+:\d+)")

Line = Mapping[str, Any]


class Log:
    """A gateway's lines, as far as they are written; `at` is when each happened, Unix seconds."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self._lines: list[Line] = []

    def lines(self) -> list[Line]:
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for text in whole.splitlines():
            if text.startswith(b"{"):
                line = json.loads(text)
                self._lines.append(line | {"at": datetime.fromisoformat(line["time"]).timestamp()})
        return self._lines

    def of(self, event: str, since: float = 0.0) -> list[Line]:
        return [line for line in self.lines() if line["event"] == event and line["at"] >= since]


class Fleet:
    """`open_fleet` makes one.

    Attributes:
        urls: of the gateways; `logs` in the same order.
        vllm: the emulators of the candidate, by logical model; `ollama`: of the baseline.
    """

    def __init__(
        self, processes: Processes, config: Path, ollama: OllamaEmulator, vllm: Mapping[str, VllmEmulator]
    ) -> None:
        self.ollama, self.vllm = ollama, vllm
        self.urls: list[str] = []
        self.logs: list[Log] = []
        self._processes, self._config = processes, config
        self._children: list[Child] = []
        self._http = httpx.AsyncClient(timeout=20.0, trust_env=False, headers={"authorization": f"Bearer {TOKEN}"})

    async def start(self) -> None:
        names = [f"gateway-{number}" for number in range(GATEWAYS)]
        self._children = await asyncio.gather(
            *(self._processes.start(name, llmctl("serve", "--seed", "--port", "0")) for name in names)
        )
        for child in self._children:
            self.urls.append(await _address(child))
            self.logs.append(Log(child.log))
        await self.until_healthy()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def until_healthy(self) -> None:
        """Every gateway finds every provider up."""
        async with asyncio.timeout(START_S):
            for url in self.urls:
                while set((await self._http.get(f"{url}/health")).json()["services"].values()) != {"healthy"}:
                    await asyncio.sleep(0.05)

    def set(self, spec: str, *models: str) -> float:
        """A fault on the candidate's servers of these models (none: of all); when it was set."""
        for name in models or self.vllm:
            self.vllm[name].faults.set(spec)
        return time.time()

    def mend(self) -> None:
        for emulator in (self.ollama, *self.vllm.values()):
            emulator.faults.clear()

    async def get(self, what: str, gateway: int = 0) -> Any:
        answer = await self._http.get(f"{self.urls[gateway]}/admin/v1/{what}")
        answer.raise_for_status()
        return answer.json()

    async def order(self, what: str, gateway: int = 0, **order: Any) -> Any:
        answer = await self._http.post(f"{self.urls[gateway]}/admin/v1/{what}", json=order)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def incidents(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.get("incidents"))["incidents"]
        return found

    async def begin(self, share: float, rules: Mapping[str, Any]) -> None:
        """As the operator does it once the candidate is well: re-arm, configure, shift.

        Args:
            rules: `rollback` of the configuration; the others are the defaults.
        """
        self.mend()
        await self.until_healthy()
        await self._configure({"rollback": dict(rules)})
        for latch in (await self.get("status"))["latched"]:
            order = {} if latch["scope"] == "*" else {"component": latch["scope"]}
            await self.order("rearm", **order, force=True, reason="the next fault's turn")
        await self.order("shift", provider="vllm", share=share)

    async def _configure(self, changes: Mapping[str, Any]) -> None:
        """Returns when every gateway follows the new file."""
        before = json.loads(self._config.read_text())
        if before == (after := before | changes):
            return
        since = time.time()
        new = self._config.with_suffix(".new")
        new.write_text(json.dumps(after, indent=1))
        new.replace(self._config)
        for child in self._children:
            os.kill(child.pid, signal.SIGHUP)
        async with asyncio.timeout(START_S):
            while not all(log.of("config", since) for log in self.logs):
                await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def open_fleet(folder: Path, store: str, *, timeouts: Mapping[str, float] | None = None) -> AsyncIterator[Fleet]:
    """`timeouts` are the candidate's. The share is 0."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240 - once, and on this disk
    async with (
        OllamaEmulator(port=0, models=list(VLLM_NAMES), num_parallel=256, ttft_s=0.01) as ollama,
        VllmEmulator(port=0, models=[VLLM_NAMES[QWEN]], ttft_s=0.01) as qwen,
        VllmEmulator(port=0, models=[VLLM_NAMES[LLAMA]], ttft_s=0.01) as llama,
    ):
        vllm = {QWEN: qwen, LLAMA: llama}
        document = {
            "providers": {
                "ollama": {"kind": "ollama", "base_url": ollama.url},
                "vllm": {
                    "kind": "vllm",
                    "endpoints": [{"url": each.url} for each in vllm.values()],
                    "timeouts": timeouts or {},
                },
            },
            "baseline": "ollama",
            "candidate": "vllm",
            "fallback": "ollama",
            "models": {name: {"vllm": own} for name, own in VLLM_NAMES.items()},
            "rollback": {},
            "store": store,
            "gateway": {"drain_s": 1},
        }
        config = folder / "memos_llm.yaml"
        config.write_text(json.dumps(document, indent=1))
        async with Processes(folder, _environment(folder, config)) as processes:
            fleet = Fleet(processes, config, ollama, vllm)
            try:
                await fleet.start()
                yield fleet
            finally:
                await fleet.aclose()


def _environment(folder: Path, config: Path) -> dict[str, str]:
    foreign = ("MEMOS_LLM_", "OLLAMA_", "VLLM_", "PYTEST_", "COV_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return own | {
        "HOME": str(folder),
        "NO_COLOR": "1",
        "MEMOS_LLM_CONFIG": str(config),
        "MEMOS_LLM_ADMIN_TOKEN": TOKEN,
    }


async def _address(child: Child) -> str:
    async with asyncio.timeout(START_S):
        while not (found := _LISTENING.search(child.said)):
            assert child.running, tail(child.log)
            await asyncio.sleep(LOOK_S)
    return found[1]
