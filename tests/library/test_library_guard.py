"""Routers in process and ten-line scripts are of the fleet: they count for it, roll back for it, and follow it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack import ME, VLLM_MODEL, document, open_gateway, settings, until

from memos_llm import Router, SyncRouter
from memos_llm.config import Settings
from memos_llm.core.commands import Shift
from memos_llm.core.events import GuardSaid, IncidentOpened
from memos_llm.core.flags import PPM
from memos_llm.core.ports import StateStore
from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.store import open_store
from memos_llm.testing import Recorder
from memos_llm.wiring import Runtime

ILL = "status:code=500,rate=0.6"
RULES = {"min_requests": 10, "consecutive_timeouts": None}

SCRIPT = """
import sys
import memos_llm

config, first = sys.argv[1], int(sys.argv[2])
with memos_llm.SyncRouter.open(config) as router:
    for number in range(first, first + 4):
        answer = router.generate("Why?", component="synthesis", model="qwen3:8b", session=f"s{number}", max_tokens=8)
        print(answer.provider, answer.attempts)
"""


class Pair:
    """Two back ends, a configuration for many processes, and the store that they share."""

    def __init__(self, ollama: OllamaEmulator, vllm: VllmEmulator, folder: Path, store: str = "") -> None:
        self.ollama, self.vllm, self.folder = ollama, vllm, folder
        changes: dict[str, Any] = {"models": {"qwen3:8b": {"vllm": VLLM_MODEL}}, "rollback": RULES}
        if store:
            changes["store"] = store
        self.config: Settings = settings(folder, document(ollama.url, vllm.url, folder, **changes))

    @property
    def path(self) -> Path:
        return self.folder / "memos_llm.yaml"

    @property
    def chats(self) -> int:
        """That the candidate was asked."""
        return sum(request.path == "/v1/chat/completions" for request in self.vllm.requests)

    @property
    def store(self) -> StateStore:
        return open_store(self.config.store_url)

    async def incidents(self) -> list[Any]:
        store = self.store
        try:
            return list(await store.incidents(9))
        finally:
            await store.aclose()

    async def latched(self) -> bool:
        store = self.store
        try:
            flags = await store.load()
        finally:
            await store.aclose()
        return flags is not None and flags.scope("*").latch is not None


@pytest.fixture
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    """On SQLite; with a test's parameter `redis` on that."""
    server = request.getfixturevalue("redis") if getattr(request, "param", "") == "redis" else None
    async with (
        OllamaEmulator(port=0, models=["qwen3:8b"]) as ollama,
        VllmEmulator(port=0, models=[VLLM_MODEL]) as vllm,
    ):
        yield Pair(ollama, vllm, tmp_path, server.url(f"library-{tmp_path.name}") if server else "")


ON_EVERY_STORE = pytest.mark.parametrize("pair", ["sqlite", "redis"], indirect=True)


def told_by(runtime: Runtime) -> Recorder:
    told = Recorder()
    runtime.bus.subscribe("told", told)
    return told


async def to_vllm(runtime: Runtime, share: float = 1.0) -> None:
    await runtime.live.submit(Shift(provider="vllm", share_ppm=round(share * PPM)), ME)


async def generate(router: Router, count: int, first: int = 0) -> list[str]:
    """The providers that answered."""
    calls = (
        router.generate("Why?", component="synthesis", model="qwen3:8b", session=f"s{number}", max_tokens=8)
        for number in range(first, first + count)
    )
    return [answer.provider for answer in await asyncio.gather(*calls)]


@ON_EVERY_STORE
async def test_scripts_that_each_see_little_roll_back_together(pair: Pair) -> None:
    """None of them sees enough: what they leave behind does, and the one that brings the last of it acts."""
    async with Router.open(pair.config) as router:
        await to_vllm(router._runtime)
        revision = router._runtime.live.current().revision
    pair.vllm.faults.set("status:code=500,rate=0.9")
    scripts = 0
    async with asyncio.timeout(30):
        while not await pair.latched():
            async with Router.open(pair.config) as script:
                assert script._runtime.live.current().revision == revision
                assert len(await generate(script, 2, 2 * scripts)) == 2
            scripts += 1
    assert scripts > 3
    (incident,) = await pair.incidents()
    assert (incident.trigger, incident.scope) == ("error_rate", "*")
    assert incident.n >= RULES["min_requests"]
    asked = pair.chats
    async with Router.open(pair.config, probe=False) as script:
        decision = script.explain(component="synthesis", model="qwen3:8b")
        assert decision.reason == "latched", "at once, before it has asked anything"
        assert set(await generate(script, 2)) == {"ollama"}
    assert pair.chats == asked


@ON_EVERY_STORE
async def test_a_gateway_rolls_back_for_what_scripts_saw_and_long_lived_routers_follow(pair: Pair) -> None:
    async with open_gateway(pair.config) as (runtime, _, url), Router.open(pair.config) as long_lived:
        with await asyncio.to_thread(SyncRouter.open, pair.config) as sync:
            await to_vllm(runtime)
            await until(lambda: long_lived.explain(model="qwen3:8b").arm == "candidate")
            pair.vllm.faults.set("status:code=500,rate=0.9")
            scripts = 0
            async with asyncio.timeout(30):
                while not await pair.latched():
                    async with Router.open(pair.config, probe=False) as script:
                        await generate(script, 2, 2 * scripts)
                    scripts += 1
            await until(lambda: not runtime.live.current().share_ppm("default"))
            await until(lambda: long_lived.explain(model="qwen3:8b").reason == "latched")
            async with asyncio.timeout(5):
                while (await asyncio.to_thread(sync.explain, model="qwen3:8b")).reason != "latched":
                    await asyncio.sleep(0.01)
            async with httpx.AsyncClient(base_url=url, timeout=10.0) as client:
                body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 8}
                answer = await client.post("/v1/chat/completions", json=body)
            assert answer.headers["x-memos-reason"] == "latched"
    assert len(await pair.incidents()) == 1


async def test_what_a_gateway_and_a_router_saw_is_one_window(pair: Pair) -> None:
    async with open_gateway(pair.config) as (runtime, told, _), Router.open(pair.config) as router:
        await to_vllm(runtime)
        await until(lambda: router.explain(model="qwen3:8b").arm == "candidate")
        mine = told_by(router._runtime)
        await generate(router, 12)

        def both_know() -> bool:
            return all(_asked(each) == 12 for each in (told, mine))

        await until(both_know)
        pair.vllm.faults.set(ILL)
        async with asyncio.timeout(20):
            number = 100
            while not mine.of(IncidentOpened):
                assert len(await generate(router, 4, number)) == 4
                number += 4
        await until(lambda: not runtime.live.current().share_ppm("default"))
    assert len(await pair.incidents()) == 1


def _asked(told: Recorder) -> int:
    said = told.of(GuardSaid)
    windows = said[-1].windows if said else ()
    return sum(one.n for one in windows if (one.provider, one.component, one.model) == ("vllm", "", ""))


async def test_scripts_that_come_and_go_do_not_outvote_a_gateway_whose_probes_fail(pair: Pair) -> None:
    """A script has probed once or twice: that says nothing of whether an endpoint is dead."""
    async with open_gateway(pair.config) as (runtime, told, _):
        await to_vllm(runtime)
        pair.vllm.faults.set("refuse")
        routers = [await Router.open(pair.config) for _ in range(3)]
        try:
            await asyncio.gather(*(generate(each, 1) for each in routers))
            async with asyncio.timeout(5):
                while len(await runtime.live.store.instances()) < 4:
                    await asyncio.sleep(0.02)
            for _ in range(3):
                for ended in await runtime.transports["vllm"].probe():
                    runtime.bus.emit(ended)
            await until(lambda: bool(told.of(IncidentOpened)))
            assert told.of(IncidentOpened)[0].incident.trigger == "health"
        finally:
            for each in routers:
                await each.aclose()


async def run_script(pair: Pair, first: int) -> list[str]:
    """A process of its own; the lines that it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, str(pair.path), str(first), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().split("\n")[:-1]


@pytest.mark.slow
async def test_ten_line_scripts_as_processes_roll_back_and_those_after_it_go_to_the_baseline(pair: Pair) -> None:
    async with Router.open(pair.config) as router:
        await to_vllm(router._runtime)
    pair.vllm.faults.set("status:code=500,rate=0.9")
    first = 0
    async with asyncio.timeout(60):
        while not await pair.latched():
            answers = await run_script(pair, first)
            assert len(answers) == 4
            first += 4
    asked = pair.chats
    assert set(await run_script(pair, first)) == {"ollama 1"}, "at once: no try elsewhere before"
    assert pair.chats == asked
    assert len(await pair.incidents()) == 1
