"""One checked request on its way through the engine: what is generated, piece by piece, and when.

A `Format` writes it as one of the server's dialects; this file alone knows the engine, faults and the order of things.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from memos_llm.emulators import answers, vllm_chunks
from memos_llm.emulators.answers import Answer
from memos_llm.emulators.emulator import json_bytes
from memos_llm.emulators.faults import Fault
from memos_llm.emulators.playing import EngineFailure, Script, play, reply_whole
from memos_llm.emulators.vllm_chunks import Frame
from memos_llm.emulators.vllm_engine import Engine
from memos_llm.emulators.vllm_tokens import generated
from memos_llm.emulators.wire import Exchange

JSON = (("content-type", "application/json"),)
SSE = (("content-type", "text/event-stream; charset=utf-8"),)


@dataclass(frozen=True, slots=True)
class Piece:
    """One engine output of one choice: a delta for the client, and the token it stands for ("" for none alone)."""

    delta: Mapping[str, Any]
    token: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: its ids, and the text and pieces that `echo` shows before each answer."""

    ids: Sequence[int]
    echo: str = ""
    echoed: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """One checked request with everything its answer needs.

    Args:
        prompts: each has as many answers as the others, in order. limit: max_tokens as given.
        carries_last: the finish chunk carries the last delta whatever ended the answer.
    """

    given: Mapping[str, Any]
    frame: Frame
    prompts: Sequence[Prompt]
    answers: Sequence[Answer]
    limit: int | None = None
    carries_last: bool = False
    fault: Fault | None = None

    @property
    def fault_name(self) -> str:
        """Name of the fault, empty if there is none."""
        return self.fault.name if self.fault else ""

    @property
    def n(self) -> int:
        """Choices of one prompt."""
        return len(self.answers) // len(self.prompts)

    @property
    def completion_tokens(self) -> int:
        """Generated tokens of all choices."""
        return sum(answer.completion_tokens for answer in self.answers)

    @property
    def reasoning_tokens(self) -> int:
        """Thinking tokens of all choices."""
        return sum(len(answer.thinking) for answer in self.answers)

    @property
    def shows_reasoning(self) -> bool:
        """Whether the client wants to see the thinking."""
        return self.given.get("include_reasoning") is not False

    def option(self, name: str) -> bool:
        """A flag of stream_options."""
        return bool((self.given.get("stream_options") or {}).get(name))

    def prompt(self, index: int) -> Prompt:
        """The prompt of a choice."""
        return self.prompts[index // self.n]

    def carries(self, index: int) -> bool:
        """Whether the finish chunk of this choice carries its last delta.

        It does when the limit was reached, and when a stop string was met inside it (0.32, measured).
        """
        answer = self.answers[index]
        return self.carries_last or answer.finish == "length" or answer.matched_stop is not None

    def finish_reason(self, index: int) -> str:
        """`finish_reason` of a choice; a named tool that had to be called ends with "stop"."""
        answer = self.answers[index]
        if self.fault_name == "finish_abort":
            return "abort"
        if answer.tool_calls and not isinstance(self.given.get("tool_choice"), dict):
            return "tool_calls"
        return answer.finish

    def call_ids(self, index: int) -> list[str]:
        """The ids of a choice's tool calls."""
        generator = random.Random(f"{self.frame.id}/{index}")
        return [f"chatcmpl-tool-{generator.getrandbits(64):016x}" for _ in self.answers[index].tool_calls]


class Format(Protocol):
    """How one route writes what is generated."""

    broken: bytes

    def pieces(self, job: Job, index: int) -> list[Piece]:
        """All deltas of a choice."""

    def preamble(self, job: Job) -> bytes:
        """Bytes just before the first delta."""

    def piece(self, job: Job, index: int, piece: Piece, so_far: int) -> bytes:
        """One delta; `so_far` tokens were generated."""

    def ending(self, job: Job) -> list[bytes]:
        """The last writes."""

    def error(self, text: str) -> list[bytes]:
        """An error in the middle."""

    def whole(self, job: Job) -> dict[str, Any]:
        """The answer at once."""


async def respond(exchange: Exchange, job: Job, engine: Engine, form: Format) -> None:
    """Generate and answer.

    Raises:
        EngineFailure: the engine died before the answer was begun.
    """
    if job.given.get("stream"):
        script = Script(
            headers=SSE,
            early=True,
            events=_events(job, engine, form),
            preamble=lambda: form.preamble(job),
            ending=lambda: form.ending(job),
            error=form.error,
            failure="Internal server error",
            broken=form.broken,
        )
        await play(exchange, script, job.fault)
        return
    await _generate(job, engine)
    if job.fault_name == "error_mid_stream":
        raise EngineFailure("Internal server error")
    await reply_whole(exchange, json_bytes(form.whole(job)), JSON, job.fault)


def sent_alone(job: Job, index: int, pieces: list[Piece]) -> list[Piece]:
    """The deltas before the finish chunk."""
    return pieces[:-1] if job.carries(index) else pieces


def carried(job: Job, index: int, pieces: list[Piece]) -> Piece | None:
    """The delta on the finish chunk."""
    return pieces[-1] if pieces and job.carries(index) else None


async def _events(job: Job, engine: Engine, form: Format) -> AsyncGenerator[bytes, None]:
    for prompt, indices in _groups(job):
        async with AsyncExitStack() as stack:
            run = await stack.enter_async_context(engine.request(prompt.ids))
            for index in indices:
                for piece in sent_alone(job, index, form.pieces(job, index)):
                    await run.token()
                    yield form.piece(job, index, piece, run.generated)
                await run.token()  # the token that ends it
            run.finish(_reason(job, indices), said=_said(job, indices), asked=job.limit, n=job.n)


async def _generate(job: Job, engine: Engine) -> None:
    for prompt, indices in _groups(job):
        async with engine.request(prompt.ids) as run:
            for _ in range(max(job.answers[index].completion_tokens for index in indices)):
                await run.token()
            run.finish(_reason(job, indices), said=_said(job, indices), asked=job.limit, n=job.n)


def _groups(job: Job) -> Iterator[tuple[Prompt, range]]:
    for number, prompt in enumerate(job.prompts):
        yield prompt, range(number * job.n, (number + 1) * job.n)


def _reason(job: Job, indices: range) -> str:
    return "abort" if job.fault_name == "finish_abort" else job.answers[indices[0]].finish


def _said(job: Job, indices: range) -> list[int]:
    return [answers.token_id(piece) for piece in generated(job.answers[indices[0]])]


def chat_pieces(job: Job, index: int) -> list[Piece]:
    """The deltas of a chat answer: thinking, text, tool calls."""
    answer = job.answers[index]
    pieces = _thinking_pieces(job, answer)
    pieces += [Piece({"content": piece}, piece) for piece in answer.content]
    repeats = job.fault_name == "repeat_tool_metadata"
    deltas = vllm_chunks.tool_deltas(answer, job.call_ids(index), repeat_metadata=repeats)
    return pieces + [Piece(delta, "") for delta in deltas]


def _thinking_pieces(job: Job, answer: Answer) -> list[Piece]:
    if not answer.thinking:
        return []
    if not job.frame.parser:
        return [Piece({"content": piece}, piece) for piece in think_text(answer)]
    if not job.shows_reasoning:
        return []
    fields = vllm_chunks.reasoning_fields
    return [Piece(fields(job.frame.release, piece), piece) for piece in answer.thinking]


def think_text(answer: Answer) -> list[str]:
    """What stays in the content without a reasoning parser; unclosed if the limit came first."""
    closed = ["\n</think>\n\n"] if answer.content or answer.finish == "stop" else []
    return ["<think>\n", *answer.thinking, *closed]


def said_apart(job: Job, index: int) -> tuple[str, str | None]:
    """Content and reasoning of a whole chat answer."""
    answer = job.answers[index]
    if answer.thinking and not job.frame.parser:
        return "".join(think_text(answer)) + answer.text, None
    return answer.text, answer.thinking_text if answer.thinking and job.shows_reasoning else None
