"""vLLM's engine as seen from outside: who runs, who waits, steps, token counts, and the Prometheus page.

Facts: vLLM 0.33 source. A client that leaves is aborted at once and shows in no request metric; a hung engine
keeps its requests "running" while the step counter stands still.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

from memos_llm.emulators.emulator import Timing
from memos_llm.emulators.playing import EngineFailure

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_LATENCY_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FINISHED = ("stop", "length", "abort", "error", "repetition")


class Histogram:
    """A Prometheus histogram."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self._counts)

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Exposition lines without the header."""
        seen = 0
        for bound, count in zip([*(str(float(b)) for b in self._bounds), "+Inf"], self._counts, strict=True):
            seen += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {float(seen)}'
        yield f"{name}_count{{{labels}}} {float(seen)}"
        yield f"{name}_sum{{{labels}}} {self.total}"


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
        self._seats = asyncio.Semaphore(max_num_seqs)
        self._kv_tokens = kv_tokens
        self._on_token = on_token
        self.max_queued = max_queued
        self.running = self.waiting = self.cached_tokens = 0
        self.prompt_tokens = self.generation_tokens = 0
        self.rejected = 0
        self.finished: Counter[str] = Counter()
        self.histograms = {
            "time_to_first_token_seconds": Histogram(_TTFT_S),
            "inter_token_latency_seconds": Histogram(_ITL_S),
            "request_time_per_output_token_seconds": Histogram(_ITL_S),
            "e2e_request_latency_seconds": Histogram(_LATENCY_S),
            "request_queue_time_seconds": Histogram(_LATENCY_S),
            "request_prefill_time_seconds": Histogram(_LATENCY_S),
            "request_decode_time_seconds": Histogram(_LATENCY_S),
            "request_inference_time_seconds": Histogram(_LATENCY_S),
            "request_prompt_tokens": Histogram(_TOKENS),
            "request_generation_tokens": Histogram(_TOKENS),
            "iteration_tokens_total": Histogram(_STEP_TOKENS),
        }
        self.dead = False
        self._moving = asyncio.Event()
        self._moving.set()
        self._died = asyncio.Event()

    def set_state(self, *, dead: bool, hung: bool) -> None:
        """Declare the engine dead or hung, or well again."""
        self.dead = dead
        if hung and not dead:
            self._moving.clear()
        else:
            self._moving.set()
        if dead:
            self._died.set()
        else:
            self._died.clear()

    def full(self) -> bool:
        """Whether one more request is to be rejected."""
        return self.max_queued is not None and self._seats.locked() and self.waiting >= self.max_queued

    @asynccontextmanager
    async def request(self, prompt_tokens: int) -> AsyncIterator[Run]:
        """One request from arrival to finish or abort."""
        run = Run(self, prompt_tokens)
        self.waiting += 1
        try:
            await self._seats.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        self.cached_tokens += prompt_tokens
        run.scheduled = time.monotonic()
        try:
            yield run
        finally:
            self.running -= 1
            self.cached_tokens -= prompt_tokens + run.generated
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

    def step(self, tokens: int, *, prefill: int = 0) -> None:
        """Count one engine step."""
        self.histograms["iteration_tokens_total"].observe(tokens + prefill)
        self.prompt_tokens += prefill
        self.generation_tokens += tokens
        self.cached_tokens += tokens
        self._on_token(tokens)

    @property
    def timing(self) -> Timing:
        """How slow it is."""
        return self._timing

    def kv_usage(self) -> float:
        """Share of the KV cache in use, 0 to 1."""
        return min(1.0, self.cached_tokens / self._kv_tokens)


class Run:
    """One request in the engine."""

    def __init__(self, engine: Engine, prompt_tokens: int) -> None:
        self._engine, self._prompt_tokens = engine, prompt_tokens
        self.generated = 0
        self._arrived = time.monotonic()
        self.scheduled = self._first = self._last = self._arrived

    async def token(self) -> None:
        """Wait for the next token.

        Raises:
            EngineFailure: the engine is dead.
        """
        first = self.generated == 0
        await self._engine.pause(self._engine.timing.ttft_s if first else self._engine.timing.inter_token_s)
        now = time.monotonic()
        if first:
            self._engine.histograms["time_to_first_token_seconds"].observe(now - self._arrived)
            self._first = now
        else:
            self._engine.histograms["inter_token_latency_seconds"].observe(now - self._last)
        self._last = now
        self.generated += 1
        self._engine.step(1, prefill=self._prompt_tokens if first else 0)

    def finish(self, reason: str) -> None:
        """Count it as finished; never called for a client that left."""
        observed = {
            "e2e_request_latency_seconds": self._last - self._arrived,
            "request_queue_time_seconds": self.scheduled - self._arrived,
            "request_prefill_time_seconds": self._first - self.scheduled,
            "request_decode_time_seconds": self._last - self._first,
            "request_inference_time_seconds": self._last - self.scheduled,
            "request_prompt_tokens": self._prompt_tokens,
            "request_generation_tokens": self.generated,
            "request_time_per_output_token_seconds": (self._last - self._first) / max(1, self.generated - 1),
        }
        for name, value in observed.items():
            self._engine.histograms[name].observe(value)
        self._engine.finished[reason] += 1


def exposition(engine: Engine, model: str, max_model_len: int) -> bytes:
    """The `/metrics` page: the main vllm: series, with their real names and labels."""
    labels = f'model_name="{model}",engine="0"'
    lines: list[str] = []
    for name, value in (
        ("num_requests_running", engine.running),
        ("num_requests_waiting", engine.waiting),
        ("kv_cache_usage_perc", engine.kv_usage()),
    ):
        lines += [*_header(name, "gauge"), f"vllm:{name}{{{labels}}} {float(value)}"]
    for reason, value in (("capacity", engine.waiting), ("deferred", 0)):
        lines.append(f'vllm:num_requests_waiting_by_reason{{{labels},reason="{reason}"}} {float(value)}')
    lines += [*_header("engine_sleep_state", "gauge")]
    for state, on in (("awake", 1.0), ("weights_offloaded", 0.0), ("discard_all", 0.0)):
        lines.append(f'vllm:engine_sleep_state{{{labels},sleep_state="{state}"}} {on}')
    for name, value in (
        ("prompt_tokens", engine.prompt_tokens),
        ("generation_tokens", engine.generation_tokens),
        ("prefix_cache_queries", engine.prompt_tokens),
        ("prefix_cache_hits", 0),
        ("num_preemptions", 0),
    ):
        lines += [*_header(name, "counter"), f"vllm:{name}_total{{{labels}}} {float(value)}"]
    lines += _header("request_success", "counter")
    for reason in FINISHED:
        lines.append(f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {engine.finished[reason]:.1f}')
    lines += _header("admission_rejections", "counter")
    rejected = f'model_name="{model}",reason="max_num_queued_reqs"'
    lines.append(f"vllm:admission_rejections_total{{{rejected}}} {float(engine.rejected)}")
    for name, histogram in engine.histograms.items():
        lines += [*_header(name, "histogram"), *histogram.lines(f"vllm:{name}", labels)]
    lines.append(f'vllm:cache_config_info{{block_size="16",engine="0",num_gpu_blocks="{max_model_len // 16}"}} 1.0')
    return ("\n".join(lines) + "\n").encode()


def _header(name: str, kind: str) -> list[str]:
    shown = f"vllm:{name}_total" if kind == "counter" else f"vllm:{name}"
    return [f"# HELP {shown} As in vLLM.", f"# TYPE {shown} {kind}"]
