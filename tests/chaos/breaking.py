"""Carries out what the schedule breaks, and writes down from when to when what was broken."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace

import httpx

from chaos.schedule import FAULTS, LONG_STOP_S, OLLAMA_FAULTS, VLLM_FAULTS, Step
from chaos.servers import WORKERS, Servers, client_ports, freeze, thaw
from chaos.truth import ANY, GATEWAY, Effect, Kill, Truth

EFFECTS = {**FAULTS, **OLLAMA_FAULTS, **VLLM_FAULTS}
REPLACED_S = 15.0  # in which a killed worker must have a successor

Act = Callable[[Step], Coroutine[None, None, None]]


class Breaker:
    """One run's. `done` counts what was done; `problems` is what went wrong with the product while doing it."""

    def __init__(self, servers: Servers, truth: Truth, note: Callable[[str], None]) -> None:
        self._servers, self._truth, self._note = servers, truth, note
        self._locks: dict[str, asyncio.Lock] = {}
        self.done: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.problems: list[str] = []
        self._acts: Mapping[str, Act] = {
            "fault": self._fault,
            "kill": self._kill,
            "freeze": self._freeze,
            "kill-worker": self._kill_worker,
            "freeze-worker": self._freeze_worker,
            "disk-full": self._disk_full,
            "clock": self._clock,
        }

    async def run(self, steps: list[Step], began: float) -> None:
        """All of them, each at its time and beside the others; returns when all are over."""
        async with asyncio.TaskGroup() as group:
            for step in steps:
                await asyncio.sleep(max(0.0, began + step.at_s - time.monotonic()))
                self._note(str(step))
                group.create_task(self._acts[step.act](step))

    async def _each(self, step: Step, one: Callable[[str], Awaitable[None]]) -> None:
        await asyncio.gather(*(one(target) for target in step.targets))

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _fault(self, step: Step) -> None:
        async def one(name: str) -> None:
            span = self._truth.begin(name, step.spec, EFFECTS[step.spec], time.monotonic())
            try:
                await self._servers.break_(name, step.spec, step.for_s)
                self.done[f"{name.partition('-')[0]} {step.spec}"] += 1
            except httpx.HTTPError:  # it resets us too, as `refuse` does, or it is dead: it may have heard us
                (self.done if step.spec == "refuse" else self.missed)[f"{name.partition('-')[0]} {step.spec}"] += 1
            await asyncio.sleep(step.for_s)
            self._truth.end(span, time.monotonic())

        await self._each(step, one)

    async def _kill(self, step: Step) -> None:
        async def one(name: str) -> None:
            async with self._lock(name):
                span = self._truth.begin(name, "kill", ANY, time.monotonic())
                self._servers.children[name].kill()
                self.done[f"{name} kill -9"] += 1
                await asyncio.sleep(step.for_s)
                await self._servers.emulate(name)
                self._truth.end(span, time.monotonic())

        await self._each(step, one)

    async def _freeze(self, step: Step) -> None:
        long = step.for_s >= LONG_STOP_S

        async def one(name: str) -> None:
            async with self._lock(name):
                pid = self._servers.children[name].pid
                what = "frozen for long" if long else "frozen shortly"
                span = self._truth.begin(name, what, ANY if long else Effect.NOTHING, time.monotonic())
                try:
                    freeze(pid)
                    self.done[f"{name} {what}"] += 1
                    await asyncio.sleep(step.for_s)
                finally:
                    thaw(pid)
                    self._truth.end(span, time.monotonic())

        await self._each(step, one)

    async def _kill_worker(self, step: Step) -> None:
        """Stopped first, so that what it holds is known exactly: nothing is accepted between looking and killing."""
        async with self._lock(GATEWAY):
            workers = self._servers.workers()
            pid = workers[int(step.spec) % len(workers)]
            span = self._truth.begin(GATEWAY, "worker killed", Effect.NOTHING, time.monotonic())
            freeze(pid)
            ports = client_ports(pid, self._servers.gateway_port)
            kill = Kill(time.monotonic(), ports)
            self._truth.kills.append(kill)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.done["worker kill -9"] += 1
            deadline = time.monotonic() + REPLACED_S
            while pid in (now := self._servers.workers()) or len(now) < WORKERS:
                if time.monotonic() > deadline:
                    self.problems.append(f"a killed worker had no successor within {REPLACED_S:g} s")
                    break
                await asyncio.sleep(0.05)
            self._truth.kills[self._truth.kills.index(kill)] = replace(kill, gone=time.monotonic())
            await asyncio.sleep(1.0)  # it reads flags and configuration
            self._truth.end(span, time.monotonic())

    async def _freeze_worker(self, step: Step) -> None:
        async with self._lock(GATEWAY):
            workers = self._servers.workers()
            pid = workers[int(step.spec) % len(workers)]
            span = self._truth.begin(GATEWAY, "worker frozen", Effect.NOTHING, time.monotonic())
            try:
                freeze(pid)
                self.done["worker frozen"] += 1
                await asyncio.sleep(step.for_s)
            finally:
                thaw(pid)
                self._truth.end(span, time.monotonic())

    async def _disk_full(self, step: Step) -> None:
        async with self._lock("disk"):
            span = self._truth.begin(GATEWAY, "disk full", Effect.NOTHING, time.monotonic())
            try:
                await asyncio.to_thread(self._servers.disk.fill, self._pids())
                self.done["disk full"] += 1
                await asyncio.sleep(step.for_s)
            finally:
                self._servers.disk.free(self._pids())
                self._truth.end(span, time.monotonic())

    async def _clock(self, step: Step) -> None:
        async with self._lock("clock"):
            span = self._truth.begin(GATEWAY, f"clock {step.spec} s", Effect.NOTHING, time.monotonic())
            try:
                self._servers.set_clock(float(step.spec))
                self.done["clock jump"] += 1
                await asyncio.sleep(step.for_s)
            finally:
                self._servers.set_clock(0.0)
                self._truth.end(span, time.monotonic())

    def _pids(self) -> list[int]:
        return [self._servers.children["gateway"].pid, *self._servers.workers()]
