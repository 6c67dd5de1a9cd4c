"""The guard on a switch: what it hears comes and goes, and what its tasks use is counted, theirs only."""

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from memos_llm.bench.switch import OFF, ON, Ear, Metered
from memos_llm.core.events import BreakerChanged, Bus, ContentBegan, Event

BEGAN = ContentBegan(request_id="r", provider="vllm", endpoint="e", ttft_s=0.1, at=0.1)
BROKE = BreakerChanged(provider="vllm", endpoint="e", state="open")


@dataclass
class Hearing:
    """Who listens on an ear as the guard does."""

    ear: Ear
    heard: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.off = [self.ear.subscribe("guard", self.heard.append, kind) for kind in (ContentBegan, BreakerChanged)]


def test_an_ear_that_is_shut_hears_of_everything_but_requests() -> None:
    bus = Bus()
    hearing = Hearing(Ear(bus))
    for to in (OFF, OFF, ON, ON):
        hearing.ear.turn(to)
        hearing.heard.clear()
        bus.emit(BEGAN)
        bus.emit(BROKE)
        assert hearing.heard == ([BEGAN, BROKE] if to == ON else [BROKE])


def test_what_took_its_listeners_off_hears_nothing_whatever_the_switch_did_before() -> None:
    bus = Bus()
    hearing = Hearing(Ear(bus))
    hearing.ear.turn(OFF)
    hearing.ear.turn(ON)
    for off in hearing.off:
        off()
    bus.emit(BEGAN)
    bus.emit(BROKE)
    assert hearing.heard == []


class Guard:
    """Named as the one whose tasks are metered."""

    async def work(self, cpu_s: float) -> str:
        for _ in range(3):
            _burn(cpu_s / 3)
            await asyncio.sleep(0)
        return "done"

    async def fail(self) -> None:
        await asyncio.sleep(0)
        raise ValueError("as any")

    async def wait(self) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "heard of it"
        return "slept"


async def of_others(cpu_s: float) -> None:
    _burn(cpu_s)


def _burn(cpu_s: float) -> None:
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        pass


async def test_the_meter_adds_up_the_steps_of_the_guards_tasks_and_of_no_others() -> None:
    metered = Metered()
    asyncio.get_running_loop().set_task_factory(metered)
    await asyncio.create_task(of_others(0.05))
    assert metered.ns == 0
    assert await asyncio.create_task(Guard().work(0.06), name="some name") == "done"
    used_ns = metered.ns
    assert used_ns >= 0.06e9
    both = asyncio.create_task(of_others(0.05)), asyncio.create_task(Guard().work(0.03))
    await asyncio.gather(*both)
    assert 0.03e9 <= metered.ns - used_ns < 0.08e9


async def test_a_metered_task_fails_and_hears_of_a_cancellation_as_any_does() -> None:
    asyncio.get_running_loop().set_task_factory(Metered())
    with pytest.raises(ValueError, match="as any"):
        await asyncio.create_task(Guard().fail())
    waiting = asyncio.create_task(Guard().wait())
    await asyncio.sleep(0)
    waiting.cancel()
    assert await waiting == "heard of it"
