"""The story: 0 → 10 → 30 %, vLLM killed and back, and why each conversation is where it is.

Each change is made between two quiet moments of the tally, so that every request is known to belong before or after.
vLLM is killed while requests wait at it and none of them has begun to be answered: nobody can take back words that a
client has already heard, so a stream cut in its middle would be an error for any gateway.
"""

import asyncio
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from memos_llm.cli.demo.checks import Slots, slots
from memos_llm.cli.demo.conversations import MODEL, Session
from memos_llm.cli.demo.failures import DemoFailed
from memos_llm.cli.demo.screen import Screen
from memos_llm.cli.demo.stack import Stack, pause, shown
from memos_llm.cli.demo.tally import CANDIDATE, Served, Stage, Tally
from memos_llm.cli.demo.watch import Watch
from memos_llm.core.flags import PPM

STAGE_LIMIT_S, RECOVERY_LIMIT_S = 30.0, 40.0
SETTLE_S, WAITING_LIMIT_S = 1.0, 4.0  # together less than the stall lasts
WAITING = 2  # requests that wait at vLLM when it is killed
PROOF = 3  # requests in a row that vLLM answers before it counts as back


@dataclass(frozen=True, slots=True)
class Pace:
    """How long and how much. Stages last longer if a conversation has not spoken yet."""

    sessions: int  # of each application
    workers: int  # of each application
    pause_s: float
    baseline_s: float
    share_s: float
    dead_s: float
    back_s: float


FULL = Pace(sessions=100, workers=5, pause_s=0.22, baseline_s=7, share_s=9, dead_s=7, back_s=6)
QUICK = Pace(sessions=24, workers=5, pause_s=0.18, baseline_s=1.5, share_s=2, dead_s=1.5, back_s=1.5)


@dataclass(slots=True)
class Story:
    """What happened besides the requests."""

    slots: Slots = field(default_factory=dict)
    waiting_at_kill: int = 0
    diversion_ended_s: float = 0.0
    explained: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Scenario:
    """Plays the story once."""

    def __init__(self, stack: Stack, tally: Tally, watch: Watch, screen: Screen, pace: Pace) -> None:
        self.story = Story()
        self._stack, self._tally, self._watch, self._screen, self._pace = stack, tally, watch, screen, pace

    async def play(self) -> Story:
        """Everything, in order.

        Raises:
            DemoFailed: a step could not be made at all.
        """
        self.story.slots = slots(self._tally, (await self._stack.flags()).salt)
        self._enter(Stage("all on Ollama", 0))
        await self._hold(self._pace.baseline_s)
        await self._shift(Stage("10 % to vLLM", PPM // 10), "10%")
        await self._shift(Stage("30 % to vLLM", 3 * PPM // 10), "30%")
        await self._kill()
        await self._bring_back()
        self._tally.finish()
        return self.story

    def _enter(self, stage: Stage) -> None:
        self._tally.enter(stage)
        self._screen.say(f"stage {len(self._tally.stages)}: {stage.title}", "bold")

    async def _hold(self, seconds: float) -> None:
        """What begins from now on is settled; go on for a while, and until every conversation has spoken."""
        self._tally.settled = True
        number, started_s = len(self._tally.stages) - 1, time.monotonic()
        while time.monotonic() < started_s + STAGE_LIMIT_S:
            spoke = {one.session for one in self._tally.of_stage(number, settled=True)}
            if time.monotonic() >= started_s + seconds and len(spoke) == len(self._tally.sessions):
                break
            await asyncio.sleep(0.1)
        self._tally.settled = False
        await self._tally.quiet()

    async def _shift(self, stage: Stage, share: str) -> None:
        self._enter(stage)
        command = ("shift", f"--{CANDIDATE}", share)
        self._screen.command(shown(*command))
        document, took_s = await self._stack.llmctl_json(*command)
        followers = len(document["confirmed"])
        self._screen.say(f"confirmed by {followers} instance{'s' * (followers != 1)}; the command took {took_s:.1f} s")
        if not followers or document["unconfirmed"]:
            self.story.failures.append(f"`{shown(*command)}` was not confirmed: {document}")
        await self._hold(self._pace.share_s)

    async def _kill(self) -> None:
        self._enter(Stage("vLLM killed", self._tally.stages[-1].share_ppm, dead=True))
        self._screen.say("vLLM stalls: it takes requests and answers none")
        await self._stack.stall_vllm()
        await asyncio.sleep(SETTLE_S)  # what it had begun to answer before is answered; nothing new was begun
        self.story.waiting_at_kill = await self._wait_for_waiting()
        self._screen.command(f"kill -9 {self._stack.vllm_pid}  # vLLM")
        killed_s = time.monotonic()
        self._stack.kill_vllm()
        self._screen.say(f"vLLM killed with {self.story.waiting_at_kill} requests waiting at it", "bold red")
        await self._first_fallback(killed_s)
        await self._tally.quiet()
        await self._hold(self._pace.dead_s)
        await self._explain_diversion()

    async def _wait_for_waiting(self) -> int:
        share_ppm, deadline = self._tally.stages[-1].share_ppm, time.monotonic() + WAITING_LIMIT_S
        while True:
            waiting = sum(self.story.slots[session.id] < share_ppm for session in self._tally.under_way())
            if waiting >= WAITING or time.monotonic() > deadline:
                return waiting
            await pause()

    async def _first_fallback(self, killed_s: float) -> None:
        while time.monotonic() < killed_s + STAGE_LIMIT_S:
            first = next((one for one in reversed(self._tally.served) if one.fell_back), None)
            if first is not None:
                self._screen.say(f"first fallback: {first.session} answered by Ollama, {_ms(first.ended_s - killed_s)}")
                return
            await pause()

    async def _explain_diversion(self) -> None:
        """A conversation that Ollama answers for vLLM at the moment keeps its arm, and it can be said why."""
        diverted = next((one for one in reversed(self._tally.served) if one.fell_back), None)
        if diverted is None:
            self.story.failures.append("no request of vLLM's was answered by Ollama while vLLM was dead")
            return
        await self._explained([self._tally.sessions[diverted.session]])

    async def _bring_back(self) -> None:
        self._screen.command(shown("emulate", CANDIDATE, "--port", str(self._stack.vllm_port)) + " …")
        await self._stack.restart_vllm()
        back_s = time.monotonic()
        self._enter(Stage("vLLM back", self._tally.stages[-1].share_ppm))
        await self._diversion_ended(back_s + RECOVERY_LIMIT_S)
        self.story.diversion_ended_s = time.monotonic() - back_s
        self._screen.say(
            f"the diversion ended by itself, {self.story.diversion_ended_s:.1f} s after vLLM was back", "bold"
        )
        await self._tally.quiet()
        await self._hold(self._pace.back_s)

    async def _diversion_ended(self, deadline_s: float) -> None:
        number = len(self._tally.stages) - 1
        while not (self._watch.well and self._proven(number)):
            if time.monotonic() > deadline_s:
                raise DemoFailed(f"vLLM is back, and its requests still go to Ollama after {RECOVERY_LIMIT_S:g} s")
            await pause()

    def _proven(self, stage: int) -> bool:
        moved = [one for one in self._tally.of_stage(stage) if one.arm == "candidate"][-PROOF:]
        return len(moved) == PROOF and all(one.provider == CANDIDATE for one in moved)

    async def explain(self) -> None:
        """A sample of conversations: what `llmctl explain` says must be what their clients saw."""
        await self._explained(self._sample())

    async def _explained(self, chosen: list[Session]) -> None:
        documents = await asyncio.gather(*(self._stack.llmctl_json(*_explain(session)) for session in chosen))
        for session, (document, _) in zip(chosen, documents, strict=True):
            self._screen.command(shown(*_explain(session)))
            self._screen.say(
                f"{document['provider']} ({document['model']}): arm {document['arm']}, reason {document['reason']}, "
                f"slot {self.story.slots[session.id] / PPM:.2%}"
            )
            self.story.explained.append({"session": session.id, **document})
            seen = self._last(session)
            if seen is not None and (seen.arm, seen.provider) != (document["arm"], document["provider"]):
                self.story.failures.append(
                    f"explain says {document['arm']}, {document['provider']} for {session.id}, "
                    f"and its client saw {seen.arm}, {seen.provider}"
                )

    def _sample(self) -> list[Session]:
        """One conversation that moved at each share, and one that stayed; of both applications where possible."""
        by_slot = sorted(self._tally.sessions.values(), key=lambda session: self.story.slots[session.id])
        limits = (0, PPM // 10, 3 * PPM // 10, PPM)
        bands = [[s for s in by_slot if low <= self.story.slots[s.id] < high] for low, high in pairwise(limits)]
        return [band[number % 2 if len(band) > 1 else 0] for number, band in enumerate(bands) if band]

    def _last(self, session: Session) -> Served | None:
        return next((one for one in reversed(self._tally.served) if one.session == session.id and one.arm), None)


def _explain(session: Session) -> tuple[str, ...]:
    return ("explain", "--component", session.component, "--session", session.id, "--model", MODEL)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms after the kill"
