"""Two gateways as users start them, on one store, and users who each come back again and again, so that it shows
which side every one of them is on, at every gateway, at any time.
"""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from ruamel.yaml import YAML
from stack import OLLAMA_MODELS, VLLM_MODEL, document, until

from fleet.fleet import Log
from memos_llm.cli.demo.processes import Child, Processes, tail
from memos_llm.cli.demo.stack import llmctl
from memos_llm.control import Live
from memos_llm.core.commands import Actor, Command, Incident
from memos_llm.core.errors import StoreUnreachable
from memos_llm.core.events import Bus
from memos_llm.core.flags import GLOBAL, Flags
from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.store import open_store

SHARE = 0.5
START_S = PATIENCE_S = 40.0
TOKEN = "token-of-the-outage-tests"
USERS = 16
RATE = 24.0  # requests a second, at each gateway that is asked
FAILS = "status:code=401"  # counts against the candidate, and opens no breaker
_LISTENING = re.compile(r"listening on (http://[\d.]+:\d+)")


class Gateway:
    """One process, which may be killed and started again; it is the same one to its users.

    Attributes:
        home: of its user, where the last good flags are kept.
    """

    def __init__(self, name: str, home: Path, processes: Processes) -> None:
        self.name, self.home, self.url = name, home, ""
        self._processes = processes
        self._child: Child | None = None
        self.log: Log

    async def start(self) -> None:
        home = ("env", f"HOME={self.home}")
        self._child = child = await self._processes.start(self.name, [*home, *llmctl("serve", "--seed", "--port", "0")])
        self.log = Log(child.log)
        async with asyncio.timeout(START_S):
            while not (found := _LISTENING.search(child.said)):
                assert child.running, tail(child.log)
                await asyncio.sleep(0.02)
        self.url = found[1]

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    async def kill(self) -> None:
        """kill -9; its open connections end with it."""
        assert self._child is not None
        self._child.kill()
        await until(lambda: not self.running, PATIENCE_S)

    async def stop(self) -> None:
        assert self._child is not None
        await self._child.close()

    def latched_at(self, since: float = 0.0) -> float | None:
        """When it first took the whole share back."""
        return next((line["at"] for line in self.log.of("flags", since) if "*" in line["latched"]), None)

    async def until_latched(self, since: float) -> float:
        """Waits until it has taken the whole share back; when that was."""
        await until(lambda: self.latched_at(since) is not None, PATIENCE_S)
        return self.latched_at(since) or 0.0

    async def until_store(self, *, reachable: bool = True, regressed: bool = False) -> None:
        """Waits until it says so of the store."""

        def said() -> bool:
            told = self.log.of("store")
            return bool(told) and (told[-1]["reachable"], told[-1]["regressed"]) == (reachable, regressed)

        await until(said, PATIENCE_S)

    async def until_revision(self, revision: int) -> None:
        """Waits until flags of that revision, or beyond, are in force there."""
        await until(lambda: any(line["revision"] >= revision for line in self.log.of("flags")), PATIENCE_S)

    def shares_shown(self, since: float) -> set[float]:
        """Every share that was in force there."""
        return {line["shares"]["*"] for line in self.log.of("flags", since)}


class Answer(NamedTuple):
    """What a user got, and when (Unix seconds); `status` 0: the connection broke."""

    gateway: Gateway
    user: int
    asked_at: float
    ended_at: float
    status: int
    arm: str

    @property
    def took_s(self) -> float:
        return self.ended_at - self.asked_at


class Users:
    """A steady flow of requests, of every user in turn, to each of the gateways that are in `at`."""

    def __init__(self, gateways: Sequence[Gateway]) -> None:
        self.at = list(gateways)
        self.answers: list[Answer] = []
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Users":
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30), connector=aiohttp.TCPConnector(limit=0))
        self._sender = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *why: object) -> None:
        self._sender.cancel()
        await asyncio.gather(self._sender, *self._running, return_exceptions=True)
        await self._http.close()

    async def sides(self, *gateways: Gateway) -> dict[int, str]:
        """The arm of every user from now on; the same at each of these gateways, and each time they are asked."""
        since = time.time()
        async with asyncio.timeout(30):
            while True:
                seen = [one for one in self.answers if one.asked_at >= since and one.gateway in gateways]
                if len({(one.gateway, one.user) for one in seen}) == USERS * len(gateways):
                    break
                await asyncio.sleep(0.05)
        assert {one.status for one in seen} == {200}
        arms = {one.user: one.arm for one in seen}
        assert [one for one in seen if one.arm != arms[one.user]] == []
        return arms

    def of(self, since: float, until: float = float("inf")) -> list[Answer]:
        """The answers to what was asked in that time, as far as they are there."""
        return [one for one in self.answers if since <= one.asked_at < until]

    async def _send(self) -> None:
        due = time.monotonic()
        for number in count():
            due = max(due + 1 / RATE, time.monotonic() - 0.2)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            for gateway in self.at:
                task = asyncio.create_task(self._ask(gateway, number % USERS))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _ask(self, gateway: Gateway, user: int) -> None:
        body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "Why is the sky blue? words:3"}]}
        url, asked_at, status, arm = f"{gateway.url}/c/default/s/user-{user}/v1", time.time(), 0, ""
        with suppress(aiohttp.ClientError):
            async with self._http.post(f"{url}/chat/completions", json=body) as response:
                await response.read()
                status, arm = response.status, response.headers["x-memos-arm"]
        self.answers.append(Answer(gateway, user, asked_at, time.time(), status, arm))


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Pair:
    """Attributes:
    store: its URL. a, b: the gateways.
    """

    def __init__(
        self, folder: Path, store: str, processes: Processes, vllm: VllmEmulator, homes: Sequence[str]
    ) -> None:
        self.store, self.vllm = store, vllm
        self._folder, self._processes = folder, processes
        self.gateways = [
            Gateway(f"gateway-{name}", folder / home, processes) for name, home in zip("ab", homes, strict=True)
        ]
        self.a, self.b = self.gateways

    async def start(self) -> None:
        await asyncio.gather(*(gateway.start() for gateway in self.gateways))

    async def llmctl(self, *arguments: str, of: Gateway | None = None) -> Ran:
        """A command as its user runs it, on the first gateway's host or another's."""
        command = ["env", f"HOME={(of or self.a).home}", *llmctl(*arguments)]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(self._folder),
        )
        try:
            async with asyncio.timeout(START_S):
                out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert b"Traceback" not in err
        return Ran(process.returncode or 0, out.decode(), err.decode())

    async def order(self, gateway: Gateway, what: str, **order: Any) -> int:
        """What the admin API answers: a status."""
        async with (
            aiohttp.ClientSession(headers={"authorization": f"Bearer {TOKEN}"}) as http,
            http.post(f"{gateway.url}/admin/v1/{what}", json=order) as response,
        ):
            return response.status

    async def stored(self) -> tuple[Flags | None, Sequence[Incident]]:
        """What is in the store: the flags, and the incidents, oldest first; a busy machine may need more tries."""
        store = open_store(self.store)
        try:
            async with asyncio.timeout(20):
                while True:
                    with suppress(StoreUnreachable):
                        return await store.load(), tuple(reversed(await store.incidents(1000)))
                    await asyncio.sleep(0.05)
        finally:
            await store.aclose()

    async def latched(self) -> bool:
        flags, _ = await self.stored()
        return flags is not None and flags.scope(GLOBAL).latch is not None

    async def submit(self, *commands: Command) -> Flags:
        """As an operator elsewhere does it."""
        store = open_store(self.store)
        live = Live(store, Bus(), instance_id="operator", kind="test", ephemeral=True, owns_store=True)
        await live.start()
        try:
            for command in commands:
                flags = await live.submit(command, Actor("operator"))
            return flags
        finally:
            await live.aclose()


@asynccontextmanager
async def open_pair(folder: Path, store: str, *, homes: Sequence[str] = ("", "")) -> AsyncIterator[Pair]:
    """Both up, with half of the users on the candidate. `homes`: "" twice is one host; two names are two."""
    async with (
        OllamaEmulator(port=0, models=OLLAMA_MODELS, num_parallel=256) as ollama,
        VllmEmulator(port=0, models=[VLLM_MODEL]) as vllm,
    ):
        config = document(ollama.url, vllm.url, folder, store=store, routing={"share": SHARE}, gateway={"drain_s": 1})
        with (folder / "memos_llm.yaml").open("w") as file:
            YAML().dump(config, file)
        async with Processes(folder, environment(folder)) as processes:
            pair = Pair(folder, store, processes, vllm, homes)
            await pair.start()
            yield pair


def environment(folder: Path) -> dict[str, str]:
    """Of every child."""
    foreign = ("MEMOS_LLM_", "OLLAMA_", "VLLM_", "PYTEST_", "COV_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    ours = {"NO_COLOR": "1", "MEMOS_LLM_CONFIG": str(folder / "memos_llm.yaml"), "MEMOS_LLM_ADMIN_TOKEN": TOKEN}
    return own | ours


def split(sides: Mapping[int, str]) -> bool:
    """Whether there are users on both sides."""
    return set(sides.values()) == {"baseline", "candidate"}


def slowest(answers: Iterable[Answer]) -> str:
    took = sorted(one.took_s for one in answers)
    return f"{len(took)} requests, median {took[len(took) // 2] * 1000:.0f} ms, slowest {took[-1] * 1000:.0f} ms"
