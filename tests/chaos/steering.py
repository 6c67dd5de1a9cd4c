"""Shifts, rollbacks and reloads while it runs, through `llmctl` and the configuration file, as an operator does it.

One after the other: a command is never run while the file is a bad one. What came of a command is read from the store.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from chaos.schedule import Step
from chaos.servers import LIMITS, Servers
from chaos.truth import FOLLOWS_S, RELOADS_S, InForce, Truth
from memos_llm.core.errors import LLMError

FINE = frozenset({0, 3, 4})  # done, refused (latched, ill), a needed service is unreachable: all may be the truth


class Helm:
    """One run's. `pending` is when a command was begun that has not come to its end."""

    def __init__(self, servers: Servers, truth: Truth, note: Callable[[str], None]) -> None:
        self._servers, self._truth, self._note = servers, truth, note
        self.pending: float | None = None
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []
        self.changes = 0
        self._turn = 0
        self._acts: Mapping[str, Callable[[Step], Awaitable[None]]] = {
            "shift": self._shift,
            "rollback": self._rollback,
            "reload": self._reload,
        }

    async def start(self) -> None:
        """What is in force at the start."""
        now = time.monotonic()
        self._truth.flags.append(InForce(0.0, now, await self._servers.flags()))
        self._truth.configs.append(InForce(0.0, now))

    async def run(self, steps: list[Step], began: float, until: float) -> None:
        """In order, each at its time or when the one before it is over; what would begin too late is left out."""
        for step in steps:
            await asyncio.sleep(max(0.0, began + step.at_s - time.monotonic()))
            if time.monotonic() > until:
                return
            self._note(str(step))
            await self._acts[step.act](step)

    async def _shift(self, step: Step) -> None:
        (scope,) = step.targets
        await self._rearm_all()
        more = ["--new-index"] if scope == "embedding" and float(step.spec) else []
        await self._command("shift", "--vllm", step.spec, *_component(scope), *more, "--wait", "2")

    async def _rollback(self, step: Step) -> None:
        (scope,) = step.targets
        await self._command("rollback", *_component(scope), "--reason", "chaos", "--wait", "2")
        await asyncio.sleep(step.for_s)
        await self._rearm_all()
        if scope == "*":  # a re-arm restores nothing
            await self._command("shift", "--vllm", "0.5", "--wait", "2")

    async def _rearm_all(self) -> None:
        flags = self._truth.flags[-1].flags
        assert flags is not None
        for name, scope in flags.scopes.items():
            if scope.latch is not None:
                await self._command("rearm", *_component(name), "--force", "--reason", "chaos", "--wait", "2")

    async def _command(self, *arguments: str) -> None:
        """Half of them on the store, half through the gateway."""
        self._turn += 1
        through = ("--gateway", self._servers.gateway) if self._turn % 2 else ()
        self.pending = time.monotonic()
        code, _, err = await self._servers.llmctl(*through, "--json", *arguments)
        self.done[f"{arguments[0]} exit {code}"] += 1
        if code not in FINE or b"Traceback" in err:
            self.problems.append(f"`llmctl {' '.join(arguments)}` ended with {code}: {err.decode()[-300:]}")
        await self._learn()
        self.pending = None

    async def _learn(self) -> None:
        """What the command did, whatever it said."""
        assert self.pending is not None
        before = self._truth.flags[-1].flags
        for _ in range(100):
            try:
                flags = await self._servers.flags()
            except LLMError as error:
                self._note(f"the store cannot be read: {error}")
                await asyncio.sleep(0.1)
                continue
            if before is None or flags.revision != before.revision:
                self.changes += flags.revision - (before.revision if before else 0)
                self._truth.flags.append(InForce(self.pending, time.monotonic() + FOLLOWS_S, flags))
            return
        self.problems.append("the store could not be read for 10 s")

    async def _reload(self, step: Step) -> None:
        servers, good = self._servers, self._servers.document()
        documents = {
            "pin": servers.document(pinned=True),
            "one-replica": servers.document(replicas=1),
            "other-limits": servers.document(limits={**LIMITS, "idle_s": 4.5}),
            "broken": good[:-3] + ": [",
            "unknown-key": json.dumps(json.loads(good) | {"baselin": "ollama"}),
            "empty": "",
            "cut-short": good[: len(good) // 2],
        }
        self.done[f"reload {step.spec}"] += 1
        self._write(documents[step.spec], pinned=step.spec == "pin")
        await asyncio.sleep(step.for_s)
        self._write(good, pinned=False)
        await asyncio.sleep(RELOADS_S)  # it must be taken before the next one is a bad one, which changes nothing

    def _write(self, text: str, *, pinned: bool) -> None:
        now = time.monotonic()
        self._servers.write_config(text)
        pins = frozenset({"evaluation"}) if pinned else frozenset()
        self._truth.configs.append(InForce(now, now + RELOADS_S, pinned=pins))


def _component(scope: str) -> list[str]:
    return [] if scope == "*" else ["--component", scope]
