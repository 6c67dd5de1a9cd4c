"""The guard on a real fleet: each fault of the candidate takes the share back in all of four gateway processes, within
a second of the verdict, in the right scope and with one incident, on SQLite and on Redis; no client sees an error in
place of an answer that had not begun. What is the clients' own fault changes nothing.

`FLEET_TABLE=FILE` keeps what was measured.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from redis_server import redis_server

from fleet.faults import OF_QWEN, TABLE
from fleet.fleet import QWEN, Fleet, open_fleet
from fleet.proving import Fault, prove, prove_quiet

Fleets = Mapping[str, Fleet]

SHORT = {"ttft_s": 2.5, "answer_s": 2.5, "idle_s": 3}
FEW = {"min_requests": 20}
NO_WINDOWS = {"min_requests": 1_000_000}
"""What users can set, so that a verdict takes seconds, and is one rule's; the rules themselves are as they are."""

ONE_PER_TRIGGER = [
    Fault(
        name="half fail",
        spec="status:code=500,rate=0.5",
        triggers=("error_run",),
        by_chance=True,
        rules=NO_WINDOWS,
        known=5,
    ),
    Fault(
        name="40 % fail where 30 % may",
        spec="status:code=500,rate=0.4",
        triggers=("error_rate",),
        by_chance=True,
        rate_then=8.0,  # a process's own run would need 12 failures more than successes: too few requests for that
        rules=FEW | {"error_rate": 0.3, "confidence": 0.5, "window_s": 5},
        known=5,
    ),
    Fault(
        name="all are slow",
        spec="slow_first_byte:seconds=0.9",
        triggers=("latency_run",),
        rules=NO_WINDOWS | {"latency_p95_ms": 700},
        known=5,
    ),
    Fault(
        name="a third is slow for one component",
        spec="slow_first_byte:seconds=0.9,rate=0.35",
        triggers=("latency_p95",),
        scope=("synthesis",),
        rules=FEW | {"confidence": 0.95, "window_s": 30, "components": {"synthesis": {"latency_p95_ms": 700}}},
        known=20,
    ),
    Fault(
        name="one model's breakers open and close",
        spec="status:code=500,every_s=3",
        triggers=("breaker_open",),
        models=(QWEN,),
        scope=OF_QWEN,
        rules={"error_rate": None, "consecutive_timeouts": None},
        known=5,  # what takes the time are two open periods, of 5 s at least
    ),
    Fault(name="hangs, /health is well", spec="hang", triggers=("timeouts",), rules={"error_rate": None}, known=5),
    Fault(
        name="refused at night",
        spec="refuse",
        triggers=("health",),
        rate_then=1.0,
        rules={"health_failures": 1, "error_rate": None},  # what it cuts in midstream are failures too
        known=5,
    ),
]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def fleets(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleets]:
    """One on each store."""
    async with open_fleets(tmp_path_factory.mktemp("fleets"), SHORT) as opened:
        yield opened


@asynccontextmanager
async def open_fleets(folder: Path, timeouts: Mapping[str, float] | None = None) -> AsyncIterator[Fleets]:
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(redis_server())
        stores = {"sqlite": f"sqlite:////{folder}/flags.db", "redis": redis.url()}
        opened = {}
        for store, url in stores.items():
            opened[store] = await stack.enter_async_context(open_fleet(folder / store, url, timeouts=timeouts))
        yield opened


async def on_each(fleets: Fleets, prove: Callable[[str, Fleet], Awaitable[object]]) -> None:
    """On all stores at once."""
    done = await asyncio.gather(*(prove(store, fleet) for store, fleet in fleets.items()), return_exceptions=True)
    for error in done:
        if isinstance(error, BaseException):
            raise error


@pytest.mark.parametrize("fault", ONE_PER_TRIGGER, ids=lambda fault: fault.name)
@pytest.mark.asyncio(loop_scope="module")
async def test_each_trigger_takes_the_share_back_everywhere_within_a_second(fleets: Fleets, fault: Fault) -> None:
    await on_each(fleets, partial(prove, fault=replace(fault, rate=30.0)))


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_the_clients_fault_changes_nothing(fleets: Fleets) -> None:
    """The last on these fleets: the components that it asks with would be latched along with others of their model."""
    await on_each(fleets, partial(prove_quiet, seconds=1.0))


@pytest.mark.slow
@pytest.mark.parametrize("fault", TABLE, ids=lambda fault: fault.name)
async def test_the_whole_table_of_faults_by_the_default_rules(tmp_path: Path, fault: Fault) -> None:
    async with open_fleets(tmp_path) as opened:
        await on_each(opened, partial(prove, fault=fault))


@pytest.mark.slow
async def test_half_a_minute_of_clients_faults_changes_nothing_by_the_default_rules(tmp_path: Path) -> None:
    async with open_fleets(tmp_path) as opened:
        await on_each(opened, partial(prove_quiet, seconds=30.0))
