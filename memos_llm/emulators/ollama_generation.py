"""Runs one checked Ollama request: load, slot, truncation, tokens in time, and the native records it makes.

A `Generation` yields `Record`s; the native routes write them as they are, the /v1 layer rewrites them, as the
real server does. Facts: Ollama 0.17.4, measured; 0.33 source.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from memos_llm.emulators import answers, golang
from memos_llm.emulators.answers import Answer
from memos_llm.emulators.emulator import Timing
from memos_llm.emulators.ollama_models import OllamaModel
from memos_llm.emulators.ollama_requests import Asked, Refusal
from memos_llm.emulators.ollama_runner import Runner
from memos_llm.emulators.playing import EngineFailure


@dataclass(frozen=True, slots=True)
class Record:
    """One native record, before a route gives it its shape."""

    content: str = ""
    thinking: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()


@dataclass(slots=True)
class Clock:
    """The durations of one request, in nanoseconds; each at least 1, because zero would be left out."""

    started: int = field(default_factory=time.monotonic_ns)
    loaded: int = 0
    first: int = 0
    last: int = 0

    def durations(self, prompt_tokens: int, eval_tokens: int, *, single_eval: bool) -> dict[str, int]:
        """The counters of the final record; what is zero is left out. single_eval: report even one token's time."""
        now = time.monotonic_ns()
        found = {
            "total_duration": max(1, now - self.started),
            "load_duration": max(1, self.loaded - self.started),
            "prompt_eval_count": prompt_tokens,
            "prompt_eval_duration": max(1, self.first - self.loaded),
            "eval_count": eval_tokens,
            "eval_duration": max(1, self.last - self.first) if eval_tokens > 1 or single_eval else 0,
        }
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True, slots=True)
class Window:
    """What is left of a prompt that must fit a context window. full: there is room for one more token only."""

    messages: list[dict[str, Any]]
    prompt_tokens: int
    full: bool = False


def fit(asked: Asked, model: OllamaModel, num_ctx: int, *, exact: bool) -> Window:
    """Drop oldest messages, then cut, as Ollama does before it gives up.

    Args:
        exact: 0.17.4 cuts one long message to exactly num_ctx tokens, and answers one token where the window
            may not be shifted; 0.33 cuts to num_ctx/2 + 2, or refuses.

    Raises:
        Refusal: 400 when the request or the model's path forbids cutting.
    """
    messages = list(asked.messages)
    if asked.truncate:
        messages = _drop_oldest(messages, asked.tools, num_ctx)
    count = _count(messages, asked.tools)
    if count <= num_ctx:
        return Window(messages, count)
    if model.jinja:
        raise Refusal(400, _nested_overflow(count, num_ctx))
    if asked.truncate and exact and not asked.shift:
        return Window(messages, num_ctx, full=True)
    if not asked.truncate or not asked.shift:
        raise Refusal(400, "the input length exceeds the context length")
    return Window(messages, num_ctx if exact else num_ctx // 2 + 2)


def output_limit(asked: Asked, model: OllamaModel, num_ctx: int) -> int:
    """Most tokens to generate: Ollama stops a model that runs on after ten windows; the trained length does here."""
    most = min(10 * num_ctx, model.context_length)
    return most if asked.num_predict is None else min(asked.num_predict, most)


def _count(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> int:
    return answers.prompt_tokens(answers.logical("ollama", messages), tools)


def _drop_oldest(messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], num_ctx: int) -> list[dict[str, Any]]:
    kept = messages
    while _count(kept, tools) > num_ctx:
        droppable = next((i for i, m in enumerate(kept[:-1]) if m["role"] != "system"), None)
        if droppable is None:
            break
        kept = kept[:droppable] + kept[droppable + 1 :]
    return kept


def _nested_overflow(count: int, num_ctx: int) -> str:
    inner = {
        "code": 400,
        "message": f"request ({count} tokens) exceeds the available context size ({num_ctx} tokens), try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": count,
        "n_ctx": num_ctx,
    }
    return golang.dumps({"error": inner}).decode()


class Generation:
    """The answer to one request on one runner.

    Args:
        answer: what will be said. prompt_tokens: after truncation. on_token: told every token generated.
        crash_text: what the server says if the runner dies. call_ids: whether tool calls have ids.
    """

    def __init__(
        self,
        asked: Asked,
        answer: Answer,
        runner: Runner,
        *,
        clock: Clock,
        timing: Timing,
        on_token: Callable[[int], None],
        prompt_tokens: int,
        crash_text: str,
        call_ids: bool = True,
    ) -> None:
        self._call_ids = call_ids
        self.asked, self.answer, self.runner = asked, answer, runner
        self.prompt_tokens = prompt_tokens
        self.clock = clock
        self._timing, self._on_token, self._crash_text = timing, on_token, crash_text

    @property
    def calls(self) -> tuple[dict[str, Any], ...]:
        """The tool calls in native shape."""
        return tuple(
            {
                **({"id": _call_id(f"{call.name}{index}{dict(call.arguments)}")} if self._call_ids else {}),
                "function": {"index": index, "name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(self.answer.tool_calls)
        )

    @property
    def calls_at_the_end(self) -> bool:
        """Whether tool calls come in the final record (native path) instead of one record each."""
        return self.runner.model.jinja

    async def records(self) -> AsyncGenerator[Record, None]:
        """The records before the final one, paced; ends early by `EngineFailure` if the runner crashes."""
        async with self.runner.slots:
            await self._pause(self._timing.ttft_s)
            self.clock.first = self.clock.last = time.monotonic_ns()
            for number, record in enumerate(self._planned()):
                if number:
                    await self._pause(self._timing.inter_token_s)
                self._on_token(1)
                yield record
            self.clock.last = time.monotonic_ns()

    def _planned(self) -> Iterator[Record]:
        for piece in self.answer.thinking:
            yield Record(thinking=piece, logprobs=self._logprobs(piece))
        for piece in self.answer.content:
            yield Record(piece, logprobs=self._logprobs(piece))
        if not self.calls_at_the_end:
            for call in self.calls:
                yield Record(tool_calls=(call,))

    def _logprobs(self, piece: str) -> tuple[dict[str, Any], ...]:
        return _logprobs(piece, self.asked.top_logprobs) if self.asked.logprobs else ()

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self.runner.crashed:
            raise EngineFailure(self._crash_text)


def _call_id(text: str) -> str:
    return f"call_{answers.token_id(text):08x}"


@lru_cache(maxsize=1024)
def _logprobs(piece: str, top: int) -> tuple[dict[str, Any], ...]:
    """Cached, and never changed by anyone: a long answer says the same few words over and over."""
    one = {"token": piece, "logprob": logprob(piece), "bytes": list(piece.encode())}
    others = [
        {"token": token, "logprob": logprob(piece) - rank, "bytes": list(token.encode())}
        for rank, token in enumerate([piece, *(f" other{i}" for i in range(1, 20))][:top])
    ]
    return ({**one, "top_logprobs": others} if others else one,)


def logprob(piece: str) -> float:
    """A stable log probability of a piece, between -2 and 0."""
    return -round(math.fmod(answers.token_id(piece), 2000) / 1000, 3)
