"""Ollama's scheduler: what is loaded, with which options, who waits for a load or a slot, who is unloaded.

Facts: Ollama 0.17.4, measured, and 0.33 source. One model loads at a time; a client that leaves while loading
aborts the load, and another waiter starts it afresh; each request's keep_alive replaces the runner's; requests to
a loaded model queue without limit; models made from one file share one runner.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from memos_llm.emulators.ollama_models import OllamaModel

DEFAULT_NUM_CTX = 4096
MAX_LOADED = 3  # OLLAMA_MAX_LOADED_MODELS of one GPU or of a CPU
_LOAD_OPTIONS = ("num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict")

LoadOptions = Mapping[str, Any]


class QueueFull(Exception):
    """Too many requests wait for a load."""


def load_options(model: OllamaModel, options: Mapping[str, Any], *, shift: bool = True) -> dict[str, Any]:
    """What a request fixes at load time; a runner that was loaded with other values must be reloaded.

    Args:
        options: the request's; num_ctx is cut to the trained length silently and is never below 4 (measured).
        shift: since the llama-server engine a launch-time property too.
    """
    num_ctx = max(4, min(int(options.get("num_ctx") or DEFAULT_NUM_CTX), model.context_length))
    given = {name: options[name] for name in _LOAD_OPTIONS if name in options}
    return {"num_ctx": num_ctx, **given, **({} if shift else {"shift": False})}


@dataclass(slots=True)
class Load:
    """One load, for whoever wants to know what the server was made to do."""

    model: str
    options: LoadOptions
    state: Literal["loading", "done", "aborted"] = "loading"


@dataclass(slots=True)
class Runner:
    """One loaded model; `crashed` ends every request that runs on it, `leaving` waits for them and takes no more."""

    model: OllamaModel
    options: LoadOptions
    slots: asyncio.Semaphore
    keep_alive_s: float
    idle_since: float = field(default_factory=time.time)
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    crashed: bool = False
    leaving: bool = False
    slot_count: int = 1

    @property
    def num_ctx(self) -> int:
        """Context of one slot, in tokens."""
        return int(self.options["num_ctx"])

    @property
    def expires_at(self) -> float:
        """Epoch seconds at which it will be unloaded; infinite for never."""
        return self.idle_since + (0.0 if self.leaving else self.keep_alive_s)


class Scheduler:
    """Loads, keeps and unloads runners.

    Args:
        load_s: seconds a load takes. num_parallel: slots of a runner. max_queue: pending loads before a 503.
        keep_alive_s: default of the server. max_loaded: runners at a time. told: called when a load starts, and
            again when it ended.
    """

    def __init__(
        self,
        *,
        load_s: float,
        num_parallel: int,
        max_queue: int,
        keep_alive_s: float,
        told: Callable[[Load], None],
        max_loaded: int = MAX_LOADED,
    ) -> None:
        self.load_s = load_s
        self._num_parallel = num_parallel
        self._max_queue = max_queue
        self._keep_alive_s = keep_alive_s
        self._max_loaded = max_loaded
        self._told = told
        self._runners: dict[str, Runner] = {}  # by digest: names of one file share a runner
        self._loading = asyncio.Lock()
        self._pending = 0
        self._left = 0  # of those pending: their client left, the scheduler has not reached them yet

    @asynccontextmanager
    async def runner(
        self, model: OllamaModel, options: LoadOptions, *, keep_alive_s: float | None, cold_s: float | None = None
    ) -> AsyncIterator[Runner]:
        """A loaded runner for one request (not yet a slot on it); loads it first where needed.

        Args:
            options: of `load_options`. cold_s: load it in any case, and take so long.

        Raises:
            QueueFull: more loads are pending than the queue holds.
        """
        runner = await self._ready(model, options, cold_s)
        if keep_alive_s is not None:
            runner.keep_alive_s = keep_alive_s
        runner.users += 1
        runner.idle.clear()
        try:
            yield runner
        finally:
            runner.users -= 1
            runner.idle_since = time.time()
            if runner.users == 0:
                runner.idle.set()
            if runner.crashed or (runner.users == 0 and (runner.leaving or runner.keep_alive_s == 0)):
                self._forget(runner)

    def unload(self, model: OllamaModel) -> None:
        """Unload once the running requests are done; ps lists it until then, the next request loads again."""
        runner = self._runners.get(model.digest)
        if runner is None:
            return
        runner.leaving, runner.idle_since = True, time.time()
        if runner.users == 0:
            self._forget(runner)

    async def loaded(self, *, wait: bool) -> list[Runner]:
        """The loaded runners. wait: since 0.32.4 the listing waits for a load in progress."""
        if wait and self._loading.locked():
            async with self._loading:
                pass
        return [runner for runner in list(self._runners.values()) if self._alive(runner)]

    async def _ready(self, model: OllamaModel, options: LoadOptions, cold_s: float | None) -> Runner:
        warm = self._warm(model, options)
        if warm is not None and cold_s is None:
            return warm
        if self._pending > self._max_queue:
            raise QueueFull
        self._pending += 1
        await self._turn()
        try:
            warm = self._warm(model, options)
            if warm is not None and cold_s is None:
                return warm
            usual_s = self.load_s if model.load_s is None else model.load_s
            return await self._load(model, options, usual_s if cold_s is None else cold_s)
        finally:
            self._pending -= 1
            self._loading.release()

    async def _turn(self) -> None:
        """Wait for the scheduler's hand; a request whose client leaves meanwhile keeps its place until then."""
        try:
            await self._loading.acquire()
        except asyncio.CancelledError:
            self._left += 1
            raise
        self._pending -= self._left
        self._left = 0

    async def _load(self, model: OllamaModel, options: LoadOptions, seconds: float) -> Runner:
        load = Load(model.short, options)
        self._told(load)
        try:
            await self._make_room(model)
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            load.state = "aborted"
            self._told(load)
            raise
        load.state = "done"
        self._told(load)
        slots = self._slots(model)
        runner = Runner(model, options, asyncio.Semaphore(slots), self._keep_alive_s, slot_count=slots)
        runner.idle.set()
        self._runners[model.digest] = runner
        return runner

    async def _make_room(self, model: OllamaModel) -> None:
        """A reload waits for the running requests (measured); one too many evicts what is idle and expires first."""
        old = self._runners.get(model.digest)
        if old is None and sum(self._alive(r) for r in list(self._runners.values())) >= self._max_loaded:
            old = min(self._runners.values(), key=lambda runner: (runner.users > 0, runner.keep_alive_s))
        if old is None:
            return
        old.leaving = True
        if not old.crashed:
            await old.idle.wait()
        self._forget(old)

    def _slots(self, model: OllamaModel) -> int:
        return 1 if "embedding" in model.capabilities else self._num_parallel

    def _warm(self, model: OllamaModel, options: LoadOptions) -> Runner | None:
        runner = self._runners.get(model.digest)
        if runner is None or not self._alive(runner) or runner.leaving:
            return None
        return runner if runner.options == options else None

    def _alive(self, runner: Runner) -> bool:
        expired = runner.users == 0 and not math.isinf(runner.keep_alive_s) and time.time() >= runner.expires_at
        if runner.crashed or expired:
            self._forget(runner)
            return False
        return True

    def _forget(self, runner: Runner) -> None:
        if self._runners.get(runner.model.digest) is runner:
            del self._runners[runner.model.digest]
