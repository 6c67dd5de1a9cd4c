"""Drives one inference request: model, capabilities, load, slot, generation, and the answer in its route's shape.

The routes read the request (`Asked`) and say how it looks (`Shape`); this file alone runs it. Order of the checks
as measured: unload skips everything, a load still checks capabilities and options, a bad format fails last.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Protocol

from memos_llm.emulators import answers, ollama_requests
from memos_llm.emulators.faults import Fault
from memos_llm.emulators.ollama_generation import Clock, Generation, Record, fit, output_limit
from memos_llm.emulators.ollama_models import OllamaModel
from memos_llm.emulators.ollama_requests import Asked, Refusal
from memos_llm.emulators.ollama_runner import Runner, load_options
from memos_llm.emulators.ollama_server import CHUNK_ABOVE, Ollama
from memos_llm.emulators.playing import EngineFailure, Script, play, reply_whole
from memos_llm.emulators.wire import Exchange, Headers


class Shape(Protocol):
    """How one route writes what a generation makes. `broken` is an event that is not JSON."""

    @property
    def stream_headers(self) -> Headers: ...
    @property
    def whole_headers(self) -> Headers: ...
    @property
    def broken(self) -> bytes: ...

    def loaded(self, reason: str) -> bytes:
        """The answer to a load or unload."""

    def record(self, record: Record) -> bytes:
        """One event of a stream; may be empty."""

    def ending(self, generation: Generation) -> list[bytes]:
        """The last writes of a stream."""

    def error(self, text: str) -> list[bytes]:
        """What a stream says when it fails in the middle."""

    def whole(self, records: list[Record], generation: Generation, *, finished: bool) -> bytes:
        """The answer that is not streamed; unfinished means that the runner ended without a final record."""


async def infer(server: Ollama, exchange: Exchange, asked: Asked, shape: Shape) -> None:
    """Answer an inference request.

    Raises:
        Refusal: it is refused before anything was sent. QueueFull: no room to wait for a load.
    """
    clock = Clock()
    behaves = server.behaves
    model = ollama_requests.find_model(
        server.catalogue, asked.model_name, asked.naming, strict_names=behaves.strict_names
    )
    if asked.empty and asked.keep_alive_s == 0:
        server.scheduler.unload(model)
        await exchange.reply(200, shape.loaded("unload"), shape.whole_headers)
        return
    think = ollama_requests.check_capabilities(model, asked, behaves)
    ollama_requests.check_options(asked.options)
    async with AsyncExitStack() as stack:
        runner = await _runner(server, stack, model, asked)
        clock.loaded = time.monotonic_ns()
        if asked.empty:
            await exchange.reply(200, shape.loaded("load"), shape.whole_headers)
            return
        if "vision" not in model.capabilities:
            asked.messages = [ollama_requests.blind(message) for message in asked.messages]
        try:
            generation = _generation(server, asked, model, runner, clock, think=think)
        except Refusal as refusal:  # by the runner, so that a stream has begun in a way
            if not asked.stream:
                raise
            await server.fail_unstarted(exchange, refusal.text, refusal.status)
            return
        await _answer(server, exchange, asked, generation, shape)


async def _runner(server: Ollama, stack: AsyncExitStack, model: OllamaModel, asked: Asked) -> Runner:
    cold = server.faults.take("load")
    shift = asked.shift or not server.behaves.llama_server
    return await stack.enter_async_context(
        server.scheduler.runner(
            model,
            load_options(model, asked.options, shift=shift),
            keep_alive_s=asked.keep_alive_s,
            cold_s=cold.seconds if cold else None,
        )
    )


def _generation(
    server: Ollama, asked: Asked, model: OllamaModel, runner: Runner, clock: Clock, *, think: bool
) -> Generation:
    if asked.format_error:
        raise Refusal(500, asked.format_error)
    window = fit(asked, model, runner.num_ctx, exact=not server.behaves.llama_server)
    answer = answers.expected(
        "ollama",
        window.messages,
        seed=server.seed,
        tools=asked.tools,
        schema=asked.schema,
        thinking=think,
        max_tokens=1 if window.full else output_limit(asked, model, runner.num_ctx),
        stop=asked.stop,
        words=server.words,
    )
    return Generation(
        asked,
        answer,
        runner,
        clock=clock,
        timing=server.timing,
        on_token=server.generated,
        prompt_tokens=window.prompt_tokens,
        crash_text=server.crash_text,
        call_ids=server.behaves.tool_call_ids,
    )


async def _answer(server: Ollama, exchange: Exchange, asked: Asked, generation: Generation, shape: Shape) -> None:
    fault = server.faults.take("answer")
    if asked.stream:
        await play(exchange, _script(server, exchange, generation, shape, fault), fault)
    else:
        await _answer_whole(server, exchange, generation, shape, fault)


def _script(server: Ollama, exchange: Exchange, generation: Generation, shape: Shape, fault: Fault | None) -> Script:
    async def events() -> AsyncGenerator[bytes, None]:
        sent = 0
        async with aclosing(generation.records()) as records:
            async for record in records:
                _maybe_crash(server, generation, fault, sent)
                sent += 1
                yield shape.record(record)
        if fault and fault.after >= sent:
            _maybe_crash(server, generation, fault, fault.after)

    async def fail(text: str) -> None:
        await server.fail_unstarted(exchange, text)

    return Script(
        headers=shape.stream_headers,
        early=False,
        events=events(),
        ending=lambda: shape.ending(generation),
        error=shape.error,
        failure=server.crash_text,
        broken=shape.broken,
        fail=fail,
    )


def _maybe_crash(server: Ollama, generation: Generation, fault: Fault | None, sent: int) -> None:
    if fault and fault.name == "runner_crash" and sent == fault.after:
        generation.runner.crashed = True
        raise EngineFailure(server.crash_text)


async def _answer_whole(
    server: Ollama, exchange: Exchange, generation: Generation, shape: Shape, fault: Fault | None
) -> None:
    try:
        records = [record async for record in generation.records()]
        if fault and fault.name in ("runner_crash", "error_mid_stream"):
            generation.runner.crashed = fault.name == "runner_crash"
            raise EngineFailure(server.crash_text)
    except EngineFailure as failure:
        await server.refuse(exchange, Refusal(500, str(failure)))
        return
    finished = not (fault and fault.name == "eof_without_done")
    body = shape.whole(records, generation, finished=finished)
    await reply_whole(exchange, body, shape.whole_headers, fault, chunk_above=CHUNK_ABOVE)
