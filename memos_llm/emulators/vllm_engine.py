"""vLLM's engine as seen from outside: who runs, who waits, steps, token counts, and the prefix cache.

Facts: vLLM 0.33 source. A client that leaves is aborted at once and shows in no request metric. The gauges come from
the engine's steps: a hung engine keeps its requests "running", those that left as well, and every number of its page
stands still. A long prompt is read in chunks, and only the use of the KV cache tells of them. Blocks of one process
are found again by requests that begin alike, whoever sent them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from memos_llm.emulators.emulator import Timing
from memos_llm.emulators.playing import EngineFailure
from memos_llm.emulators.vllm_histograms import Histogram, histograms
from memos_llm.emulators.vllm_tokens import blocks

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
BLOCK_SIZE = 16  # tokens
CHUNK_S = 1.0  # a step that reads a part of a long prompt takes no longer


class Gauges(NamedTuple):
    """What the page tells of this moment; `kv`: share of the cache in use, 0 to 1."""

    running: int
    waiting: int
    kv: float


class PrefixCache:
    """Which blocks of tokens were computed; the least recently used go first.

    Args:
        size: how many blocks there is room for.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: OrderedDict[int, None] = OrderedDict()

    def hits(self, ids: Sequence[int]) -> int:
        """Tokens of a prompt that need not be computed: whole blocks from its beginning, never the last token."""
        found = 0
        for block in blocks(ids[:-1], BLOCK_SIZE):
            if block not in self._known:
                break
            found += BLOCK_SIZE
        return found

    def keep(self, ids: Sequence[int]) -> None:
        """Remember the blocks of these tokens."""
        for block in blocks(ids, BLOCK_SIZE):
            self._known[block] = None
            self._known.move_to_end(block)
        while len(self._known) > self._size:
            self._known.popitem(last=False)


class Engine:
    """The engine core.

    Args:
        timing: shared with the emulator, may change. max_num_seqs: requests that run at once.
        kv_tokens: size of the KV cache in tokens. on_token: told every token generated.
        max_queued: requests that may wait before a 503, None for no limit (the default of vLLM).
    """

    def __init__(
        self,
        timing: Timing,
        *,
        max_num_seqs: int,
        kv_tokens: int,
        max_queued: int | None,
        on_token: Callable[[int], None],
    ) -> None:
        self._timing = timing
        self.since = time.time()
        self._seats = asyncio.Semaphore(max_num_seqs)
        self.kv_tokens = kv_tokens
        self._on_token = on_token
        self.max_queued = max_queued
        self.running = self.waiting = 0
        self.held_tokens = 0.0
        self.prompt_tokens = self.generation_tokens = self.cached_tokens = 0
        self.rejected = 0
        self.finished: Counter[str] = Counter()
        self.histograms: dict[str, Histogram] = histograms()
        self.cache = PrefixCache(kv_tokens // BLOCK_SIZE)
        self.dead = False
        self._moving = asyncio.Event()
        self._moving.set()
        self._stood: Gauges | None = None
        self._died = asyncio.Event()

    def set_state(self, *, dead: bool, hung: bool) -> None:
        """Declare the engine dead or hung, or well again."""
        self.dead = dead
        if hung and not dead:
            self._moving.clear()
            self._stand()
        else:
            self._moving.set()
            self._stood = None
        if dead:
            self._died.set()
        else:
            self._died.clear()

    def full(self) -> bool:
        """Whether one more request is to be rejected."""
        return self.max_queued is not None and self._seats.locked() and self.waiting >= self.max_queued

    @asynccontextmanager
    async def request(self, prompt: Sequence[int]) -> AsyncIterator[Run]:
        """One request from arrival to finish or abort; `prompt` are its token ids."""
        run = Run(self, prompt)
        self.waiting += 1
        try:
            await self._seats.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        self._stand()
        run.scheduled = time.monotonic()
        try:
            yield run
        finally:
            self.running -= 1
            self.held_tokens -= run.read + run.generated
            self._seats.release()

    async def pause(self, seconds: float) -> None:
        """Let engine time pass.

        Raises:
            EngineFailure: the engine died meanwhile.
        """
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._died.wait(), seconds)
        else:
            await asyncio.sleep(0)
        await self._moving.wait()
        if self.dead:
            raise EngineFailure(DEAD)

    async def read(self, run: Run, tokens: int) -> None:
        """Let the time pass that a prompt takes, chunk by chunk.

        Raises:
            EngineFailure: as `pause`.
        """
        chunks = max(1, math.ceil(self._timing.ttft_s / CHUNK_S))
        seconds = self._timing.ttft_s / chunks
        for chunk in range(chunks):
            read = tokens * (chunk + 1) / chunks
            self.held_tokens += read - run.read
            run.read = read
            await self.pause(seconds)

    def step(self, tokens: int) -> None:
        """Count one engine step that generated so many tokens."""
        self.histograms["iteration_tokens_total"].observe(tokens)
        self.generation_tokens += tokens
        self.held_tokens += tokens
        self._on_token(tokens)

    def prefill(self, prompt: Sequence[int], tokens: int) -> int:
        """Count the step that reads a prompt, and generates so many tokens; says how much of it was cached."""
        cached = self.cache.hits(prompt)
        self.cache.keep(prompt)
        self.prompt_tokens += len(prompt)
        self.cached_tokens += cached
        self.histograms["iteration_tokens_total"].observe(len(prompt) - cached + tokens)
        self.generation_tokens += tokens
        self.held_tokens += tokens
        self._on_token(tokens)
        return cached

    @property
    def timing(self) -> Timing:
        """How slow it is."""
        return self._timing

    def gauges(self) -> Gauges:
        """What its page shows: as of the last step."""
        return self._stood or Gauges(self.running, self.waiting, self.kv_usage())

    def kv_usage(self) -> float:
        """Share of the KV cache in use, 0 to 1."""
        return min(1.0, max(0.0, round(self.held_tokens / self.kv_tokens, 12)))

    def _stand(self) -> None:
        """In a hang that finds nobody there, the step after the first request's is the one that never ends."""
        if self._stood is None and self.running and not self._moving.is_set():
            self._stood = self.gauges()


class Run:
    """One request in the engine."""

    def __init__(self, engine: Engine, prompt: Sequence[int]) -> None:
        self._engine, self._prompt = engine, prompt
        self.generated = self.cached = 0
        self.read = 0.0
        self._arrived = time.monotonic()
        self.scheduled = self._first = self._last = self._arrived

    async def token(self) -> None:
        """Wait for the next token.

        Raises:
            EngineFailure: the engine is dead.
        """
        first = self.generated == 0
        if first:
            await self._engine.read(self, len(self._prompt))
        else:
            await self._engine.pause(self._engine.timing.inter_token_s)
        now = time.monotonic()
        if first:
            self._engine.histograms["time_to_first_token_seconds"].observe(now - self._arrived)
            self._first = now
            self.cached = self._engine.prefill(self._prompt, 1)
        else:
            self._engine.histograms["inter_token_latency_seconds"].observe(now - self._last)
            self._engine.step(1)
        self._last = now
        self.generated += 1

    async def pooled(self) -> None:
        """Wait for the one step of a pooling request, which generates nothing.

        Raises:
            EngineFailure: the engine is dead.
        """
        await self._engine.read(self, len(self._prompt))
        self._first = self._last = time.monotonic()
        self.cached = self._engine.prefill(self._prompt, 0)

    def finish(self, reason: str, *, said: Sequence[int] = (), asked: int | None = None, n: int = 1) -> None:
        """Count it as finished; never called for a client that left.

        Args:
            said: ids generated, found again by a request that goes on from here. asked: max_tokens. n: choices.
        """
        self._engine.cache.keep([*self._prompt, *said])
        observed = {
            "e2e_request_latency_seconds": self._last - self._arrived,
            "request_queue_time_seconds": self.scheduled - self._arrived,
            "request_prefill_time_seconds": self._first - self.scheduled,
            "request_decode_time_seconds": self._last - self._first,
            "request_inference_time_seconds": self._last - self.scheduled,
            "request_prompt_tokens": len(self._prompt),
            "request_generation_tokens": self.generated,
            "request_max_num_generation_tokens": self.generated,
            "request_prefill_kv_computed_tokens": len(self._prompt) - self.cached,
            "request_params_n": n,
            "request_num_preemptions": 0,
            "request_time_per_output_token_seconds": (self._last - self._first) / max(1, self.generated - 1),
            **({} if asked is None else {"request_params_max_tokens": asked}),
        }
        for name, value in observed.items():
            self._engine.histograms[name].observe(value)
        self._engine.finished[reason] += 1
