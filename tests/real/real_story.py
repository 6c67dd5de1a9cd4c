"""A migration for real: shares up and down by `llmctl`, back ends killed and restarted, under traffic of real SDKs.

It holds if no client saw an error before its answer had begun, every share was as asked, and nothing was left behind.
"""

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import real_left
import real_servers
from real_install import say
from real_servers import OLLAMA, VLLM, Servers
from real_traffic import Traffic

from memos_llm.cli.demo.checks import bounds
from memos_llm.cli.demo.processes import Child, Processes
from memos_llm.cli.demo.stack import llmctl
from memos_llm.core.flags import PPM

HEALTHY_S = 120.0
SETTLE_S = 1.5
STAGE_S = 120.0
LEAST = 20  # requests of a stage, however busy the machine
CONFIG = """\
providers:
  # An Ollama whose runner was killed may say nothing for minutes; with these it is given up, and vLLM answers.
  ollama: {{kind: ollama, base_url: "{ollama}", timeouts: {{ttft_s: 30, answer_s: 30, idle_s: 30}}}}
  vllm: {{kind: vllm, base_url: "{vllm}"}}
baseline: ollama
candidate: vllm
fallback: [ollama, vllm]  # each takes over from the other, vLLM only where it has a share
models:
  tiny: {{vllm: tiny, defaults: {{temperature: 0}}}}
rollback: {{enabled: false}}  # the point is what happens without one
store: sqlite:///{store}
"""
Deed = Callable[[], Awaitable[None]]
_LISTENING = re.compile(r"listening on (http://[\d.:]+)")


@dataclass(slots=True)
class Stage:
    """What was done, and what share its requests are to show; None where a back end is down."""

    title: str
    share: float | None
    requests: int = 0
    settled: int = 0
    candidate: int = 0
    bounds: tuple[int, int] = (0, 0)
    before: int = 0
    after: int = 0
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        least, most = self.bounds
        return not self.before and self.settled > 0 and least <= self.candidate <= most


@dataclass(slots=True)
class Story:
    """The stages, what clients said of errors, and what was left behind."""

    stages: list[Stage] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return all(stage.holds for stage in self.stages) and not self.left

    def document(self) -> dict[str, Any]:
        stages = [{**asdict(stage), "holds": stage.holds} for stage in self.stages]
        return {"stages": stages, "errors": dict(self.errors), "left": self.left}


class Teller:
    """One run of it. `servers`: the real ones; they run again, all of them, when it has ended."""

    def __init__(self, servers: Servers, folder: Path, gateway: str, traffic: Traffic) -> None:
        self.story = Story()
        self._servers, self._folder, self._gateway, self._traffic = servers, folder, gateway, traffic
        self._ports = {name: server.port for name, server in servers.running().items()}

    async def tell(self) -> Story:
        """All of it, in order."""
        await self._stage("share 0", 0.0, 5)
        await self._shift(0.3)
        await self._stage("share 0.3", 0.3, 12)
        await self._stage("vLLM killed", None, 10, self._kill_vllm)
        await self._restart(VLLM)
        await self._until_served_by(VLLM)
        await self._stage("vLLM restarted", 0.3, 10)
        await self._stage("Ollama's runner killed", 0.3, 10, self._kill_runner)
        await self._shift(1.0)
        await self._stage("share 1", 1.0, 8)
        await self._stage("Ollama stopped", 1.0, 5, self._stop_ollama)
        await self._restart(OLLAMA)
        await self._shift(0.0)
        await self._stage("share 0 again", 0.0, 6)
        return self.story

    def judge(self) -> None:
        """Fill in what the clients heard."""
        for heard in self._traffic.heard:
            stage = self.story.stages[heard.stage]
            stage.requests += 1
            if heard.problem:
                stage.before += not heard.committed
                stage.after += heard.committed
                self.story.errors[f"{stage.title}, {heard.kind}: {heard.problem}"] += 1
            elif heard.settled:
                stage.settled += 1
                on = heard.arm == "candidate" if stage.share is not None else heard.provider == VLLM
                stage.candidate += on
        for stage in self.story.stages:
            stage.bounds = bounds(stage.settled, round((stage.share or 0.0) * PPM))

    async def _stage(self, title: str, share: float | None, seconds: float, deed: Deed | None = None) -> None:
        self._traffic.stage = len(self.story.stages)
        self.story.stages.append(Stage(title, share, seconds=seconds))
        say(f"story: {title}")
        if deed is not None:
            await deed()
        self._traffic.settled = True
        await asyncio.sleep(seconds)  # the least that a stage lasts; then until it says something
        async with asyncio.timeout(STAGE_S):
            while self._told(len(self.story.stages) - 1) < LEAST:
                await asyncio.sleep(0.1)
        self._traffic.settled = False

    def _told(self, number: int) -> int:
        return sum(heard.stage == number and heard.settled for heard in self._traffic.heard)

    async def _shift(self, share: float) -> None:
        await command(self._folder, "shift", "--vllm", f"{share:g}")
        await asyncio.sleep(SETTLE_S)

    async def _kill_vllm(self) -> None:
        await asyncio.to_thread(real_servers.stop, self._servers.running()[VLLM], kill=True)

    async def _kill_runner(self) -> None:
        runners = real_servers.runner_of(self._servers.running()[OLLAMA])
        assert runners, "Ollama has no runner to kill"
        for pid in runners:
            os.kill(pid, signal.SIGKILL)

    async def _stop_ollama(self) -> None:
        await asyncio.to_thread(real_servers.stop, self._servers.running()[OLLAMA])

    async def _restart(self, name: str) -> None:
        await asyncio.to_thread(self._servers.restart, name, self._ports[name])
        await healthy(self._gateway)

    async def _until_served_by(self, provider: str) -> None:
        """The circuit breaker lets a back end that is up again in by and by."""
        begun = len(self._traffic.heard)
        async with asyncio.timeout(HEALTHY_S):
            while not any(heard.provider == provider for heard in self._traffic.heard[begun:]):
                await asyncio.sleep(0.1)
        await asyncio.sleep(SETTLE_S)


async def run(servers: Servers, folder: Path) -> Story:
    """Tell it, with a gateway of its own in `folder`."""
    running = servers.running()
    processes = {name: len(server.processes()) for name, server in running.items()}
    text = CONFIG.format(ollama=running[OLLAMA].url, vllm=running[VLLM].url, store=folder / "flags.db")
    (folder / "memos_llm.yaml").write_text(text)
    async with Processes(folder, environment(folder)) as children:
        gateway = await children.start("gateway", llmctl("serve", "--seed", "--port", "0"))
        gateway.expected_to_end = True
        url = await address(gateway)
        await healthy(url)
        traffic = Traffic(url)
        asking = asyncio.create_task(traffic.run())
        teller = Teller(servers, folder, url, traffic)
        try:
            story = await teller.tell()
        finally:
            traffic.end()
            await asking
        teller.judge()
        story.left += await real_left.connections(gateway.pid, int(url.rsplit(":", 1)[1]))
        await gateway.close()
    story.left += real_left.processes(gateway.pid, servers, processes)
    return story


def environment(folder: Path) -> dict[str, str]:
    """Of the gateway and of `llmctl`: nothing of the user's own."""
    foreign = ("MEMOS_LLM_", "OLLAMA_", "VLLM_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return own | {"HOME": str(folder), "MEMOS_LLM_CONFIG": str(folder / "memos_llm.yaml"), "NO_COLOR": "1"}


async def command(folder: Path, *arguments: str) -> None:
    """Run `llmctl`.

    Raises:
        RuntimeError: it failed.
    """
    process = await asyncio.create_subprocess_exec(
        *llmctl(*arguments),
        env=environment(folder),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"llmctl {' '.join(arguments)}: {said.decode(errors='replace')[-500:]}")


async def address(gateway: Child) -> str:
    """Where it listens, once it says so."""
    async with asyncio.timeout(HEALTHY_S):
        while not (found := _LISTENING.search(gateway.said)):
            assert gateway.running, gateway.said[-500:]
            await asyncio.sleep(0.05)
    return found[1]


async def healthy(gateway: str) -> None:
    """Until the gateway's prober finds both back ends up."""
    async with httpx.AsyncClient(timeout=5.0) as client, asyncio.timeout(HEALTHY_S):
        while (await client.get(f"{gateway}/health")).json()["status"] != "healthy":
            await asyncio.sleep(0.1)


def show(story: Story) -> None:
    """Print the table."""
    print(
        f"\n{'stage':24} {'share':>5} {'requests':>8} {'on vLLM':>8} {'bounds':>11} {'errors before':>13} {'after':>6}"
    )
    for stage in story.stages:
        share = "–" if stage.share is None else f"{stage.share:g}"
        least, most = stage.bounds
        print(
            f"{stage.title:24} {share:>5} {stage.requests:8} {stage.candidate:8} {f'{least} to {most}':>11}"
            f" {stage.before:13} {stage.after:6}{'' if stage.holds else '  <- does not hold'}"
        )
    for error, count in story.errors.most_common(12):
        print(f"  {count} × {error}")
    for what in story.left:
        print(f"left behind: {what}")
