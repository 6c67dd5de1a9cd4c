"""What the guard adds to the cost of a request, as `switch` tells its two parts apart.

Per request is: of as many as a process that does nothing else can take. What it does each second, whatever is asked, is
more of a request's where they are few.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from memos_llm.bench.load import Client
from memos_llm.bench.results import BESIDE, GUARDED, UNGUARDED, Sample
from memos_llm.bench.subjects import Program
from memos_llm.bench.switch import OFF, ON, USED

TURNS = (ON, OFF, OFF, ON)  # of a pair of samples, with the same requests
REST_S = 0.3  # until the guard has worked off what it heard
PARTS = {ON: GUARDED, OFF: UNGUARDED}


class Asked(Protocol):
    """A program with a guard on a switch, and how it is given its work. `phase`: what the samples are called after."""

    phase: str
    program: Program

    async def ask(self, count: int, first: int) -> int:
        """So many requests, of conversations from that one on; the nanoseconds of CPU time that they took."""
        ...


class AskedGateway:
    phase = "guard-requests"

    def __init__(self, program: Program, client: Client, prepared: Sequence[bytes], at_once: int) -> None:
        self.program = program
        self._client, self._prepared, self._at_once = client, prepared, at_once

    async def ask(self, count: int, first: int) -> int:
        """What is done for an answer that is there already is in it: the program has answered to something else."""
        first %= len(self._prepared)
        prepared = [*self._prepared[first:], *self._prepared[:first]]
        before = self.program.cpu_ns()
        await self._client.burst(prepared, connections=self._at_once, count=count)
        self.program.ask_switch(USED)
        return self.program.cpu_ns() - before


class AskedRouter:
    """It measures itself."""

    phase = "guard-calls"

    def __init__(self, program: Program, at_once: int) -> None:
        self.program, self._at_once = program, at_once

    async def ask(self, count: int, first: int) -> int:
        return int(self.program.tell(f"{count} {self._at_once} {first}"))


async def samples(asked: Asked, *, pairs: int, turn: int, beside_s: float) -> list[Sample]:
    """So many pairs, each of four turns of so many requests; and one sample of what the guard uses beside them, over so
    many seconds, for it judges once a second.
    """
    found = [sample for number in range(pairs) for sample in await _pair(asked, turn, number * turn)]
    asked.program.ask_switch(ON)
    await asyncio.sleep(REST_S)
    answers, until = 0, time.perf_counter() + beside_s
    before_ns = int(asked.program.ask_switch(USED))
    while time.perf_counter() < until:
        await asked.ask(turn, answers)
        answers += turn
    await asyncio.sleep(REST_S)
    used_ns = int(asked.program.ask_switch(USED)) - before_ns
    return [*found, Sample(subject=GUARDED, phase=asked.phase + BESIDE, answers=answers, cpu_ns=used_ns)]


async def _pair(asked: Asked, turn: int, first: int) -> list[Sample]:
    used_ns = dict.fromkeys(PARTS, 0)
    for to in TURNS:
        asked.program.ask_switch(to)
        used_ns[to] += await asked.ask(turn, first)
    return [Sample(subject=PARTS[to], phase=asked.phase, answers=2 * turn, cpu_ns=ns) for to, ns in used_ns.items()]
