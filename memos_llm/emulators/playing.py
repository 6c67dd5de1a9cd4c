"""Plays a prepared answer onto an exchange, and lets a fault interrupt it.

The engines prepare a `Script` (what the bytes are); this file alone decides what a mid-answer fault does to them.
Invariant: a fault set to act after more events than the answer has acts before the ending, so it never misses.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from memos_llm.emulators.faults import Fault
from memos_llm.emulators.wire import Exchange, Headers, forever


class EngineFailure(Exception):
    """The emulated engine or runner died under a request; the text is what the server would say."""


@dataclass(frozen=True, slots=True)
class Script:
    """A streamed answer.

    Args:
        headers: of the 200. early: send them before the first event (vLLM) or with it (Ollama).
        events: content events, paced and counted by the engine as they are drawn.
        preamble: bytes just before the first event (vLLM's role chunk). ending: the last writes.
        error: in-band error for a text. failure: the text of an injected error. broken: a malformed event.
        fail: the whole response instead, if the engine fails before anything was sent; None: in-band as well.
    """

    headers: Headers
    early: bool
    events: AsyncGenerator[bytes, None]
    ending: Callable[[], list[bytes]]
    error: Callable[[str], list[bytes]]
    failure: str
    broken: bytes
    preamble: Callable[[], bytes] = bytes
    fail: Callable[[str], Awaitable[None]] | None = None


async def play(exchange: Exchange, script: Script, fault: Fault | None) -> None:
    """Send the answer, interrupted by `fault` if it is one that interrupts."""
    interrupt = INTERRUPTIONS.get(fault.name) if fault else None
    player = _Player(exchange, script, fault, interrupt)
    async with aclosing(script.events):  # a client that leaves frees the slot now, not at garbage collection
        try:
            await player.run()
        except EngineFailure as failure:
            await player.fail(str(failure))


class _Player:
    def __init__(self, exchange: Exchange, script: Script, fault: Fault | None, interrupt: Interruption | None) -> None:
        self._exchange, self._script, self._fault, self._interrupt = exchange, script, fault, interrupt

    async def run(self) -> None:
        if self._script.early:
            await self._open()
        sent = 0
        async for event in self._script.events:
            if sent == 0:
                if self._fault and self._fault.name == "error_mid_stream" and self._fault.after == 0:
                    raise EngineFailure(self._script.failure)  # nothing was sent yet: Ollama keeps the status
                await self._first()
            await self._maybe_interrupt(sent)
            if self._exchange.done:
                return
            await self._exchange.write(event)
            sent += 1
        if sent == 0:
            await self._first()
        await self._finish(sent)

    async def fail(self, text: str) -> None:
        if not self._exchange.started and self._script.fail is not None:
            await self._script.fail(text)
            return
        await self._open()
        await _error(self._exchange, self._script.error(text))

    async def _finish(self, sent: int) -> None:
        if self._fault and sent <= self._fault.after:
            await self._maybe_interrupt(self._fault.after)
        if self._exchange.done:
            return
        for piece in self._script.ending():
            await self._exchange.write(piece)
        await self._exchange.end()

    async def _open(self) -> None:
        if not self._exchange.started:
            await self._exchange.start(200, self._script.headers)

    async def _first(self) -> None:
        await self._open()
        early_cut = self._fault is not None and self._fault.name == "cut_before_content"
        if early_cut and self._fault and self._fault.where == "headers":
            await self._exchange.cut(reset=self._fault.reset)
        await self._exchange.write(self._script.preamble())
        if early_cut and self._fault:
            await self._exchange.cut(reset=self._fault.reset)

    async def _maybe_interrupt(self, sent: int) -> None:
        if self._fault and self._interrupt and sent == self._fault.after:
            await self._interrupt(self._exchange, self._script, self._fault)


Interruption = Callable[[Exchange, Script, Fault], Awaitable[None]]


async def _cut(exchange: Exchange, script: Script, fault: Fault) -> None:
    await exchange.cut(reset=fault.reset)


async def _stall(exchange: Exchange, script: Script, fault: Fault) -> None:
    await forever()


async def _error_in_band(exchange: Exchange, script: Script, fault: Fault) -> None:
    await _error(exchange, script.error(script.failure))


async def _end_early(exchange: Exchange, script: Script, fault: Fault) -> None:
    await exchange.end()


async def _break_event(exchange: Exchange, script: Script, fault: Fault) -> None:
    await exchange.write(script.broken)


async def _error(exchange: Exchange, pieces: list[bytes]) -> None:
    for piece in pieces:
        await exchange.write(piece)
    await exchange.end()


INTERRUPTIONS: Mapping[str, Interruption] = {
    "cut_mid_stream": _cut,
    "stall_mid_stream": _stall,
    "error_mid_stream": _error_in_band,
    "eof_without_done": _end_early,
    "malformed": _break_event,
}


async def reply_whole(
    exchange: Exchange, body: bytes, headers: Headers, fault: Fault | None, *, chunk_above: int | None = None
) -> None:
    """Send a non-streamed 200, or what a fault leaves of it.

    Args:
        chunk_above: bodies longer than this go without Content-Length (Ollama: 2048), None never.
    """
    name = fault.name if fault else ""
    if name == "malformed":
        body = body[: len(body) // 2]
    if name == "stall_mid_stream":
        await forever()
    chunked = chunk_above is not None and len(body) > chunk_above
    if fault and name in ("cut_mid_stream", "cut_before_content"):
        await exchange.start(200, headers if chunked else (*headers, ("content-length", str(len(body)))))
        await exchange.write(body[: len(body) // 2] if name == "cut_mid_stream" else b"")
        await exchange.cut(reset=fault.reset)
    await exchange.reply(200, body, headers, chunked=chunked)
