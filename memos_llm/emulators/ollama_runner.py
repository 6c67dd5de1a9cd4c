"""Models and their runners: what is installed, what is loaded, who waits for a load or a slot.

Facts: Ollama 0.17.4, measured, and 0.33 source. One model loads at a time; a client that leaves while loading
aborts the load; each request's keep_alive replaces the runner's; requests to a loaded model queue without limit.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

DEFAULT_CAPABILITIES: Mapping[str, tuple[str, ...]] = {
    "qwen3": ("completion", "tools", "thinking"),
    "gemma3": ("completion", "vision"),
    "llama3.2": ("completion", "tools"),
    "qwen2.5-coder": ("completion", "tools", "insert"),
    "mxbai-embed-large": ("embedding",),
    "nomic-embed-text": ("embedding",),
}
DEFAULT_MODELS = ("qwen3:8b", "gemma3:4b", "llama3.2:3b", "mxbai-embed-large")
DEFAULT_NUM_CTX = 4096
_NAME = re.compile(r"(?:[\w.:-]+/)?(?:[\w.-]+/)?[\w.-]+(?::[\w.-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """One installed model.

    Args:
        name: with or without tag. capabilities: completion, tools, insert, vision, embedding, thinking.
        context_length: trained length in tokens. family: architecture name.
        jinja: runs through llama-server's own template ("native path"): tool calls come in the final record.
    """

    name: str
    capabilities: tuple[str, ...] = ("completion", "tools")
    context_length: int = 40960
    family: str = "llama"
    jinja: bool = False

    @classmethod
    def named(cls, name: str) -> OllamaModel:
        """A model with the capabilities its family usually has; completion and tools for unknown families."""
        family = name.rsplit("/", 1)[-1].split(":")[0].lower()
        return cls(name, DEFAULT_CAPABILITIES.get(family, ("completion", "tools")), family=family)

    @property
    def short(self) -> str:
        """The canonical short form, with its tag."""
        return self.name if ":" in self.name.rsplit("/", 1)[-1] else f"{self.name}:latest"

    @property
    def qualified(self) -> str:
        """The full registry path, as capability errors show it."""
        prefix = {0: "registry.ollama.ai/library/", 1: "registry.ollama.ai/"}
        return prefix.get(self.short.count("/"), "") + self.short

    @property
    def digest(self) -> str:
        """A stable bare hex digest."""
        return hashlib.sha256(self.short.encode()).hexdigest()


def valid_name(name: str) -> bool:
    """Whether a model name is well-formed."""
    return _NAME.fullmatch(name) is not None


def canonical(name: str) -> str:
    """A name as the manifests are searched for it: lower case, with tag, without the default registry."""
    low = name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return low if ":" in low.rsplit("/", 1)[-1] else f"{low}:latest"


class Catalogue:
    """The installed models, newest first."""

    def __init__(self, models: Iterable[str | OllamaModel]) -> None:
        listed = [m if isinstance(m, OllamaModel) else OllamaModel.named(m) for m in models]
        self._models = {canonical(model.name): model for model in listed}

    def find(self, name: str) -> OllamaModel | None:
        """The model of that name, None if it is not installed."""
        return self._models.get(canonical(name))

    def all(self) -> list[OllamaModel]:
        """Every model."""
        return list(self._models.values())


class QueueFull(Exception):
    """Too many requests wait for a load."""


@dataclass(slots=True)
class Runner:
    """One loaded model; `crashed` ends every request that runs on it."""

    model: OllamaModel
    num_ctx: int
    slots: asyncio.Semaphore
    keep_alive_s: float
    idle_since: float = field(default_factory=time.time)
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    crashed: bool = False

    @property
    def expires_at(self) -> float:
        """Epoch seconds at which it will be unloaded; infinite for never."""
        return self.idle_since + self.keep_alive_s


@dataclass(slots=True)
class LoadCounts:
    """Where the scheduler reports loads; the emulator's counters fit."""

    started: Callable[[], None]
    aborted: Callable[[], None]


class Scheduler:
    """Loads, keeps and unloads runners.

    Args:
        load_s: seconds a load takes. num_parallel: slots of a runner. max_queue: pending loads before a 503.
        keep_alive_s: default of the server.
    """

    def __init__(
        self, *, load_s: float, num_parallel: int, max_queue: int, keep_alive_s: float, counts: LoadCounts
    ) -> None:
        self.load_s = load_s
        self._num_parallel = num_parallel
        self._max_queue = max_queue
        self._keep_alive_s = keep_alive_s
        self._counts = counts
        self._runners: dict[str, Runner] = {}
        self._loading = asyncio.Lock()
        self._pending = 0

    @asynccontextmanager
    async def runner(
        self, model: OllamaModel, *, num_ctx: int | None, keep_alive_s: float | None, cold_s: float | None
    ) -> AsyncIterator[Runner]:
        """A loaded runner for one request (not yet a slot on it); loads it first where needed.

        Raises:
            QueueFull: more loads are pending than the queue holds.
        """
        runner = await self._ready(model, num_ctx, cold_s)
        if keep_alive_s is not None:
            runner.keep_alive_s = keep_alive_s
        runner.users += 1
        runner.idle.clear()
        try:
            yield runner
        finally:
            runner.users -= 1
            if runner.users == 0:
                runner.idle.set()
            runner.idle_since = time.time()
            if runner.crashed or (runner.keep_alive_s == 0 and runner.users == 0):
                self._forget(runner)

    def unload(self, model: OllamaModel) -> None:
        """Unload once the running requests are done; the next request loads again."""
        self._runners.pop(model.short, None)

    async def loaded(self, *, wait: bool) -> list[Runner]:
        """The loaded runners. wait: since 0.32.4 the listing waits for a load in progress."""
        if wait and self._loading.locked():
            async with self._loading:
                pass
        return [runner for runner in list(self._runners.values()) if self._alive(runner)]

    async def _ready(self, model: OllamaModel, num_ctx: int | None, cold_s: float | None) -> Runner:
        warm = self._warm(model, num_ctx)
        if warm is not None and cold_s is None:
            return warm
        if self._pending > self._max_queue:
            raise QueueFull
        self._pending += 1
        try:
            async with self._loading:
                warm = self._warm(model, num_ctx)
                if warm is not None and cold_s is None:
                    return warm
                return await self._load(model, num_ctx, self.load_s if cold_s is None else cold_s)
        finally:
            self._pending -= 1

    async def _load(self, model: OllamaModel, num_ctx: int | None, seconds: float) -> Runner:
        self._counts.started()
        old = self._runners.pop(model.short, None)
        try:
            if old is not None and not old.crashed:
                await old.idle.wait()  # a reload waits for the running requests (measured)
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self._counts.aborted()
            raise
        size = max(4, min(num_ctx or DEFAULT_NUM_CTX, model.context_length))
        runner = Runner(model, size, asyncio.Semaphore(self._num_parallel), self._keep_alive_s)
        runner.idle.set()
        self._runners[model.short] = runner
        return runner

    def _warm(self, model: OllamaModel, num_ctx: int | None) -> Runner | None:
        runner = self._runners.get(model.short)
        if runner is None or not self._alive(runner):
            return None
        wanted = max(4, min(num_ctx or DEFAULT_NUM_CTX, model.context_length))
        return runner if runner.num_ctx == wanted else None

    def _alive(self, runner: Runner) -> bool:
        expired = runner.users == 0 and not math.isinf(runner.keep_alive_s) and time.time() >= runner.expires_at
        if runner.crashed or expired:
            self._forget(runner)
            return False
        return True

    def _forget(self, runner: Runner) -> None:
        if self._runners.get(runner.model.short) is runner:
            del self._runners[runner.model.short]
