"""vLLM's engines: what their page tells, and when they stand still. A long prompt, a sleeping engine and the numbers
of a request that has gone are no hang.
"""

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from memos_llm.core.call import Wire, WireRequest
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.events import Bus, Load, ProbeEnded
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.policy import Endpoint, ProviderSpec
from memos_llm.emulators import VllmEmulator
from memos_llm.providers import AiohttpClient, open_transport
from memos_llm.providers.engines import RETRY_S, Stillness, read_page
from memos_llm.providers.http import HttpTransport
from memos_llm.testing import ManualClock

MODEL = "Qwen/Qwen3-8B"
CHAT = b'{"model":"%s","messages":[{"role":"user","content":"words:200"}],"stream":true}' % MODEL.encode()
STREAM = WireRequest("r", Wire.OPENAI_CHAT, MODEL, CHAT, True)


def page(*lines: str) -> bytes:
    return "\n".join(["# HELP x y", *(f"vllm:{line}" for line in lines), "process_open_fds 7", ""]).encode()


def series(engine: str | None = "0", **values: float) -> list[str]:
    label = 'model_name="m, engine=\\"9\\""' + ("" if engine is None else f',engine="{engine}"')
    return [f"{name}{{{label}}} {value}" for name, value in values.items()]


def test_the_page_of_a_current_release() -> None:
    found = read_page(
        page(
            *series(num_requests_running=3, num_requests_waiting=2, kv_cache_usage_perc=0.25),
            *series(iteration_tokens_total_count=41, generation_tokens_total=900),
            *series(prefix_cache_queries_total=120, prefix_cache_hits_total=80),
        )
    )
    assert found is not None
    assert found.load() == Load(running=3, waiting=2, kv_cache=0.25, steps=41, prefix_queries=120, prefix_hits=80)


def test_the_page_of_an_old_release() -> None:
    found = read_page(
        page(
            *series(None, num_requests_running=1, gpu_cache_usage_perc=0.5, generation_tokens_total=900),
            *series(None, gpu_prefix_cache_queries_total=12, gpu_prefix_cache_hits_total=8),
        )
    )
    assert found is not None
    assert found.load() == Load(running=1, kv_cache=0.5, steps=900, prefix_queries=12, prefix_hits=8)


def test_several_engines_are_added_and_the_fullest_cache_speaks() -> None:
    names = {"num_requests_running": 2.0, "iteration_tokens_total_count": 10.0}
    one, two = series("0", **names, kv_cache_usage_perc=0.1), series("1", **names, kv_cache_usage_perc=0.9)
    found = read_page(page(*one, *two))
    assert found is not None
    assert found.load() == Load(running=4, kv_cache=0.9, steps=20)


def test_a_release_that_shows_both_names_is_counted_once() -> None:
    shown = series(num_requests_running=1, prefix_cache_queries_total=5, gpu_prefix_cache_queries_total=5)
    found = read_page(page(*shown, *series(kv_cache_usage_perc=0.1, gpu_cache_usage_perc=0.1)))
    assert found is not None
    assert found.load() == Load(running=1, kv_cache=0.1, prefix_queries=5)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>",
        b"http_requests_total 7\n",
        page("num_requests_running{} NaN"),
        page("num_requests_running{} -1"),
        page("num_requests_running{} 1e300"),
        page("num_requests_running{} x"),
        page(*series(num_requests_running=1)) + b"#" * 3_000_000,
        page(*(line for n in range(2_000) for line in series(f"{n}", num_requests_running=1))),
    ],
)
def test_what_is_no_page_of_vllm_tells_nothing(text: bytes) -> None:
    assert read_page(text) is None


class Look:
    """Looks at a page every five seconds; the request of ours waits all the while, unless told."""

    def __init__(self) -> None:
        self.still, self.now, self.turn = Stillness(), 1000.0, 0
        self.content_at = float("-inf")

    def __call__(self, *lines: str, in_flight: bool = True, after_s: float = 5.0) -> bool:
        found = read_page(page(*lines))
        assert found is not None
        self.now += after_s
        return self.still.look(
            found.busy(), in_flight=in_flight, turn=self.turn, content_at=self.content_at, now=self.now
        )


def numbers(engine: str = "0", /, **changes: float) -> list[str]:
    same = {"num_requests_running": 2.0, "kv_cache_usage_perc": 0.2, "iteration_tokens_total_count": 7.0}
    return series(engine, **{**same, **changes})


def test_each_look_at_the_same_numbers_counts_one() -> None:
    look = Look()
    assert [look(*numbers()) for _ in range(4)] == [False, True, True, True]
    assert look.still.looks == 3


@pytest.mark.parametrize("moves", ["iteration_tokens_total_count", "generation_tokens_total", "kv_cache_usage_perc"])
def test_whatever_moves_is_life(moves: str) -> None:
    """Of a long prompt, read chunk by chunk, nothing but the use of the cache tells."""
    look = Look()
    assert not any(look(*numbers(**{moves: n / 100})) for n in range(9))


def test_one_engine_of_several_that_stands_still_is_enough() -> None:
    look = Look()
    looks = [look(*numbers("0", iteration_tokens_total_count=n), *numbers("1")) for n in range(3)]
    assert looks == [False, True, True]


def test_an_idle_engine_and_a_sleeping_one_may_stand_still() -> None:
    look = Look()
    assert not any(look(*numbers(num_requests_running=0)) for _ in range(5))
    asleep = ['engine_sleep_state{engine="0",sleep_state="awake"} 0', 'engine_sleep_state{sleep_state="discard_all"} 1']
    assert not any(look(*numbers(), *asleep) for _ in range(5))


def test_the_numbers_of_a_request_that_has_gone_prove_nothing() -> None:
    look = Look()
    look(*numbers())
    assert look(*numbers())
    assert not any(look(*numbers(), in_flight=False) for _ in range(5))


def test_clients_that_come_and_give_up_between_two_looks_count_as_waiting() -> None:
    look = Look()
    look(*numbers(), in_flight=False)
    look.turn += 1
    assert look(*numbers(), in_flight=False)


def test_content_since_the_last_look_is_life_whatever_the_numbers_say() -> None:
    look = Look()
    look(*numbers())
    look.content_at = look.now + 1.0
    assert not look(*numbers())
    assert look(*numbers())


def test_a_restart_begins_anew() -> None:
    look = Look()
    assert [look(*numbers()) for _ in range(3)] == [False, True, True]
    assert not look(*numbers(iteration_tokens_total_count=0.0))
    assert look(*numbers(iteration_tokens_total_count=0.0))
    assert look.still.looks == 1


def test_two_looks_at_once_are_one() -> None:
    look = Look()
    look(*numbers())
    assert not look(*numbers(), after_s=0.1)
    assert look(*numbers())
    assert look(*numbers(), after_s=0.1)
    assert look.still.looks == 1


def test_what_is_passed_over_stays_so_until_it_moves_or_is_to_be_tried_again() -> None:
    look = Look()
    for _ in range(4):
        look(*numbers())
    passed_over = [look(*numbers(), in_flight=False) for _ in range(int(RETRY_S // 5) + 1)]
    assert all(passed_over[:-2])
    assert not passed_over[-1]


# --- probes of a server -----------------------------------------------------------------------------------------------


class Site:
    """An emulated vLLM, and a transport whose clock is ours."""

    def __init__(self, emulator: VllmEmulator, transport: HttpTransport, clock: ManualClock) -> None:
        self.emulator, self.transport, self.clock = emulator, transport, clock

    async def probe(self, after_s: float = 5.0) -> ProbeEnded:
        self.clock.advance(after_s)
        (ended,) = await self.transport.probe()
        return ended

    async def ask(self) -> None:
        reply = await self.transport.open(STREAM)
        try:
            while await reply.read():
                pass
        finally:
            await reply.aclose()


@pytest.fixture(params=[{}, {"version": "0.10.0"}], ids=["current", "old"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    given: dict[str, Any] = request.param
    client, clock = AiohttpClient(), ManualClock()
    async with VllmEmulator(models=[MODEL], thinking=False, inter_token_s=0.005, **given) as emulator:
        spec = ProviderSpec(name="vllm", kind="vllm", endpoints=(Endpoint(emulator.url),))
        transport = open_transport(spec, client, Bus(), clock=clock, rng=Random(0))
        assert isinstance(transport, HttpTransport)
        yield Site(emulator, transport, clock)
        await transport.aclose()
    await client.aclose()


async def until(condition: Any) -> None:
    async with asyncio.timeout(5.0):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_probe_tells_the_load(site: Site) -> None:
    await site.ask()
    load = (await site.probe()).load
    assert load is not None
    assert (load.running, load.waiting) == (0, 0)
    assert load.steps >= 200
    assert load.prefix_queries > 0


async def test_a_hang_behind_a_healthy_health_is_found_cut_and_over_by_itself(site: Site) -> None:
    asking = asyncio.create_task(site.ask())
    await until(lambda: site.emulator.counters.tokens_generated > 1)
    assert (await site.probe()).failure == ""
    seen = site.emulator.counters.tokens_generated
    await until(lambda: site.emulator.counters.tokens_generated > seen + 1)  # else that look would be one of a hang
    site.emulator.faults.set("hang_engine")
    await until(lambda: site.emulator.engine_core.gauges().running)
    waiting = asyncio.create_task(site.ask())
    await until(lambda: site.emulator.counters.in_flight > 1)
    await site.probe()
    found = [await site.probe() for _ in range(3)]
    assert [one.failure for one in found] == ["frozen"] * 3
    assert [one.up for one in found] == [True, True, False]
    with pytest.raises(AttemptFailed) as failed:
        await waiting
    assert failed.value.outcome == Outcome(kind=Kind.TIMEOUT, code="frozen")
    assert site.transport.offer(MODEL).refused == "down"
    await asyncio.gather(asking, return_exceptions=True)  # nobody had begun to use it: it went the same way
    assert (await site.probe()).up is False  # nobody is there any more, and nothing has moved
    site.emulator.faults.clear()
    await until(lambda: not site.emulator.engine_core.running)
    good = await site.probe()
    assert (good.up, good.failure, site.transport.offer(MODEL).refused) == (True, "", None)


async def test_a_long_prompt_is_no_hang(site: Site) -> None:
    site.emulator.timing.ttft_s = 60.0
    asking = asyncio.create_task(site.ask())
    await until(lambda: site.emulator.engine_core.running)
    used = [0.0]
    for _ in range(4):
        await until(lambda: site.emulator.engine_core.kv_usage() > used[-1])
        used.append(site.emulator.engine_core.kv_usage())
        assert (await site.probe()).failure == ""
    asking.cancel()


async def test_a_server_without_metrics_is_no_failure(site: Site) -> None:
    site.emulator.faults.set("status:code=404,all=true")
    ended = await site.probe()
    assert (ended.up, ended.failure, ended.load) == (True, "", None)
